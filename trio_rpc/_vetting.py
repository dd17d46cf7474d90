"""Which connections of an upstream take calls: not one that is being prepared or tested, or is unhealthy."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from ._backoff import delay_before
from ._connection import Connection
from ._contained import parted
from ._errors import ConnectError, RpcError, Unimplemented
from ._logs import limited
from ._text import shown
from ._timer import Moment

if TYPE_CHECKING:
    from ._statistics import EventKind
    from ._upstream import Owner

__all__ = ["Vetting"]

log = limited(logging.getLogger("trio_rpc.pool"))

HEALTH_WATCH, SERVING = "Health.watch", "SERVING"
"""What `trio_rpc.health` serves."""
NEW, TESTED, UNWELL = "new", "tested", "unwell"
"""Why a connection takes no calls: it was never let pass, there is a ping to be answered, its server does not serve."""


class Vetting:
    """Holds connections back.

    `passed(connection)` is told once of each that has been prepared, `failed(connection, error)` of each that never
    will; `changed(connection)` when one was held back, or a reason for that has come or gone; `tell(kind, detail)` of
    what those who watch may want to know.
    """

    def __init__(
        self,
        owner: Owner,
        *,
        tell: Callable[[EventKind, str], object],
        passed: Callable[[Connection], object],
        failed: Callable[[Connection, BaseException], object],
        changed: Callable[[Connection], object],
    ) -> None:
        self.held: dict[Connection, set[str]] = {}
        """Those that take no calls for now, and why: what ends one reason says nothing of the others."""
        self.complaint: ConnectError | None = None
        """What was last heard of the server's health, if that was not good."""
        self._owner = owner
        self._tell = tell
        self._passed = passed
        self._failed = failed
        self._changed = changed
        self._health_watches: dict[Connection, trio.CancelScope] = {}

    def begin(
        self, connection: Connection, nursery: trio.Nursery, prepare: Callable[[], Awaitable[object]] | None
    ) -> None:
        """A new connection: prepare it first, and ask for its server's health, if that is wanted."""
        if prepare is None and self._owner.health_check is None:
            self._passed(connection)
        else:
            self._hold(connection, NEW)
            nursery.start_soon(self._vet, connection, prepare, name="trio_rpc pool vetting")

    def own_calls(self, connection: Connection) -> int:
        """Calls of the pool's own there, which keep nobody from closing it."""
        return 1 if connection in self._health_watches else 0

    def stop_watching(self, connection: Connection) -> None:
        """Its server goes away: to ask for its health would keep it from that."""
        scope = self._health_watches.pop(connection, None)
        if scope is not None:
            scope.cancel()

    def forget(self, connection: Connection) -> None:
        """It has ended."""
        self.held.pop(connection, None)

    def _hold(self, connection: Connection, reason: str) -> None:
        reasons = self.held.setdefault(connection, set())
        if reason not in reasons:
            reasons.add(reason)
            self._changed(connection)

    def _release(self, connection: Connection, reason: str) -> None:
        reasons = self.held.get(connection)
        if reasons is not None and reason in reasons:
            reasons.remove(reason)
            if not reasons:
                del self.held[connection]
            if reason == NEW:
                self._passed(connection)
            else:
                self._changed(connection)

    # -- before and beside calls -----------------------------------------------------------------------------------

    async def _vet(self, connection: Connection, prepare: Callable[[], Awaitable[object]] | None) -> None:
        error = await self._prepare(connection, prepare) if prepare is not None else None
        if connection.closed:
            return
        if error is not None:
            self._failed(connection, error)
        elif self._owner.health_check is None:
            self._release(connection, NEW)
        elif connection.max_calls < 2:
            text = f"{connection.address} takes one call at a time, which would always be health_check's"
            self._failed(connection, ConnectError(text, peer=connection.address, permanent=True))
        else:
            await self._follow_health(connection, self._owner.health_check)

    async def _prepare(self, connection: Connection, prepare: Callable[[], Awaitable[object]]) -> BaseException | None:
        timeout = self._owner.limits.connect_timeout
        with trio.move_on_after(math.inf if timeout is None else timeout):
            try:
                await prepare()
            except BaseException as exc:
                if parted(exc, KeyboardInterrupt)[0] is not None:
                    raise
                return exc
            return None
        text = f"{connection.address} was not prepared within {timeout:g} s (connect_timeout)"
        return ConnectError(text, peer=connection.address)

    async def _follow_health(self, connection: Connection, service: str) -> None:
        """Calls go there while the server says that it serves; one that knows no health is taken for healthy.

        Its last word stands when it ends the stream. A stream that fails is begun anew, and until then not believed.
        """
        failures = 0
        while connection.usable:
            try:
                await self._watch_health(connection, service)
                return
            except Unimplemented:
                self._note_health(connection, None)
                return
            except RpcError as exc:
                log.info("the health of %s is not known: %s", connection.address, shown(exc.message))
                self._note_health(connection, f"its health is not known: {exc.message}")
            failures += 1
            await trio.sleep(delay_before(failures + 1, self._owner.limits.connect_backoff, self._owner.draw))

    async def _watch_health(self, connection: Connection, service: str) -> None:
        with trio.CancelScope() as self._health_watches[connection]:
            try:
                async with connection.peer.stream(HEALTH_WATCH, service) as statuses:
                    async for status in statuses:
                        well = status == SERVING
                        self._note_health(connection, None if well else f"the health of {service!r} is {status}")
            finally:  # Before anything else is done: from here on, calls there are the callers' alone.
                self._health_watches.pop(connection, None)

    def _note_health(self, connection: Connection, complaint: str | None) -> None:
        """What the server says of itself; None: that it is well."""
        if connection.closed:
            return
        was_unwell, self.complaint = self.complaint is not None, None
        if complaint is None:
            self._release(connection, UNWELL)
            self._release(connection, NEW)
            if was_unwell:
                self._tell("healthy", "")
        else:
            self.complaint = ConnectError(f"{connection.address}: {complaint}", peer=connection.address)
            self._hold(connection, UNWELL)
            self._tell("unhealthy", complaint)

    # -- tests -----------------------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection  # A Ctrl-C in the caller who picks it must not leave it held for ever.
    def test(self, connection: Connection) -> None:
        """Ping it; it takes no calls until there is a sign of life. Without one in time it is lost, and replaced."""
        if self.tests(connection) or not connection.usable:
            return
        self._hold(connection, TESTED)
        self._ask(connection, "a test", lambda: self._release(connection, TESTED))

    def tests(self, connection: Connection) -> bool:
        """True while the test of it is under way."""
        return TESTED in self.held.get(connection, ())

    def suspect(self, connection: Connection) -> None:
        """Find out soon whether it is alive; it goes on taking calls meanwhile, as most such doubts are unfounded."""
        self._ask(connection, "whether it is alive, after another connection was lost", lambda: None)

    def _ask(self, connection: Connection, what: str, then: Callable[[], object]) -> None:
        asked_at, timeout = trio.current_time(), self._owner.limits.validate_timeout
        limit: Moment

        def answered(_seconds: float) -> None:
            self._owner.timer.forget(limit)
            then()

        def give_up(_lateness: float) -> None:
            nonlocal limit
            moved_at = connection.outbox.progressed_at
            if not connection.closed and moved_at is not None and moved_at + timeout > trio.current_time():
                # The ping may wait behind what is being written.
                limit = self._owner.timer.at(moved_at + timeout, give_up)
                return
            if not connection.closed and connection.heard_at <= asked_at:  # Any byte since is a sign of life.
                connection.evict(f"no answer to {what}, within {timeout:g} s (validate_timeout)")
            then()

        limit = self._owner.timer.at(asked_at + timeout, give_up)
        connection.ping(answered)
