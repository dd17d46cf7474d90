"""Opening connections to one endpoint, in the background, and no faster than the back-off allows.

Callers never dial: a cancelled caller leaves nothing half open. Each connection is one task, from dialling to its end,
in a nursery of its own whose scope bounds the dial first, and the goodbye at last.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio

from ._backoff import delay_before
from ._connection import Connection
from ._contained import Contained, parted
from ._errors import ConnectError, RpcError, Unauthenticated
from ._handshake import greet
from ._logs import limited
from ._text import described, shown
from .wire import Protocol, Role

if TYPE_CHECKING:
    from ._upstream import Owner, Upstream

__all__ = ["Dial", "Dialler", "Site"]

log = limited(logging.getLogger("trio_rpc.pool"))

Dial = Callable[[], Awaitable[trio.abc.Stream]]


@attrs.frozen
class Site:
    """An endpoint as the pool needs it: what it is called, its weight, and how a stream to it is opened."""

    address: str
    dial: Dial = attrs.field(eq=False)
    weight: float = 1.0


class Dialler:
    """Dials for one upstream.

    `opened(connection, nursery)` is told of each connection as it begins to run, `failed()` of each dial that came to
    nothing.

    Attributes:
        site: where the next dial goes.
        under_way: dials, those included that wait for their back-off.
        failures: those in a row that came to nothing; what fails side by side counts once.
        errors: those that came to nothing, in all.
        next_at: when the next one may begin.
        last_error: what the last failure, or the last loss of a connection, was.
    """

    def __init__(
        self,
        site: Site,
        upstream: Upstream,
        owner: Owner,
        opened: Callable[[Connection, trio.Nursery], object],
        failed: Callable[[RpcError], object],
    ) -> None:
        self.under_way: int = 0
        self.failures: int = 0
        self.errors: int = 0
        self.next_at: float = -math.inf
        self.last_error: BaseException | None = None
        self._hurry = trio.lowlevel.ParkingLot()
        self._scopes: dict[trio.CancelScope, Connection | None] = {}
        """Of the dials under way; with the connection, if that has a call already."""
        self.site: Site = site
        self._upstream = upstream
        self._owner = owner
        self._opened = opened
        self._failed = failed

    @property
    def early(self) -> list[Connection]:
        """Connections that a call is on, though the peer has not said HELLO yet."""
        return [connection for connection in self._scopes.values() if connection is not None]

    @property
    def hopeless(self) -> bool:
        """Nothing that waits can mend it: the server refuses us for good, and the next dial is not due yet."""
        error = self.last_error
        permanent = isinstance(error, Unauthenticated) or (isinstance(error, ConnectError) and error.permanent)
        return permanent and self.next_at > trio.current_time()

    def dial(self) -> None:
        """Dial one connection."""
        self.under_way += 1
        self._owner.start(self._keep_connection, "connection")

    def cancel(self, *, early_too: bool = False) -> None:
        """Give up the dials under way; those that a call depends on only if that is said."""
        for scope, connection in self._scopes.items():
            if connection is None or early_too:
                scope.cancel()

    def succeeded(self) -> None:
        """A connection takes calls: the back-off begins anew."""
        self.failures = 0
        self.last_error = None

    def hurry(self) -> None:
        """Let the next dial be made now, and one that waits for its time as well."""
        self.next_at = min(self.next_at, trio.current_time())
        self._hurry.unpark_all()

    def delay(self, started_at: float) -> None:
        """Keep the back-off's distance, start to start, from a dial that came to nothing."""
        delay = delay_before(max(2, self.failures + 1), self._owner.limits.connect_backoff, self._owner.draw)
        self.next_at = max(self.next_at, started_at + delay)

    def note_failure(self, error: BaseException, started_at: float, failures: int) -> None:
        """A dial came to nothing that began at `started_at`, with so many failures before it."""
        self.failures = max(self.failures, failures + 1)  # Dials that fail side by side count as one.
        self.delay(started_at)
        if not isinstance(error, RpcError):  # Of the user's own: a function that opens streams, or gives credentials.
            name = self.site.address
            cause, error = error, ConnectError(f"cannot connect to {name}: {described(error)}", peer=name)
            error.__cause__ = cause
        error.may_have_run = False  # The call that went with the HELLO knows better; this is told to others.
        self._owner.pool_counters.connect_errors += 1
        self.errors += 1
        self.last_error = error
        log.info("no connection: %s", shown(error, 160))
        self._failed(error)

    async def _keep_connection(self) -> None:
        """One connection, from dialling to its end, in a nursery of its own."""
        with Contained(self.site.address):
            async with trio.open_nursery() as nursery:
                nursery.cancel_scope.shield = True
                try:
                    connection = await self._connect(nursery.cancel_scope)
                    if connection is not None:
                        await connection.run(nursery, on_open=partial(self._opened, connection, nursery))
                finally:
                    if self._upstream.leaving:
                        self._owner.changed(self._upstream)

    async def _connect(self, scope: trio.CancelScope) -> Connection | None:
        """Wait for the back-off, then dial and greet, within `connect_timeout`, which `scope` holds meanwhile.

        None, or Cancelled: it came to nothing.
        """
        limits, counters = self._owner.limits, self._owner.pool_counters
        started_at, failures = trio.current_time(), self.failures
        self._scopes[scope] = None
        if self._unwanted:  # Since before the first step of this task.
            scope.cancel()
        try:
            if self.next_at > started_at:
                with trio.move_on_at(self.next_at):
                    await self._hurry.park()
                started_at, failures = trio.current_time(), self.failures
            counters.connects += 1
            if limits.connect_timeout is not None:
                scope.deadline = started_at + limits.connect_timeout
            connection = await self._dial_and_greet(scope)
            scope.deadline = math.inf
            counters.connect_seconds += trio.current_time() - started_at
            return connection
        except BaseException as exc:
            if parted(exc, KeyboardInterrupt)[0] is None:
                self.note_failure(exc, started_at, failures)
                return None
            if scope.cancel_called and not self._unwanted:  # Or a group of Cancelled: opening may take a nursery.
                text = f"{self.site.address} did not answer within {limits.connect_timeout:g} s (connect_timeout)"
                self.note_failure(ConnectError(text, peer=self.site.address), started_at, failures)
            raise
        finally:
            del self._scopes[scope]
            self.under_way -= 1

    @property
    def _unwanted(self) -> bool:
        return self._owner.closing or self._upstream.leaving

    async def _dial_and_greet(self, scope: trio.CancelScope) -> Connection:
        name = self.site.address
        stream = await self.site.dial()
        connection: Connection | None = None
        try:
            protocol = Protocol(Role.DIALLER, await self._owner.hello())
            connection = self._owner.make_connection(stream, protocol, name)
            if self._owner.admit_early(self._upstream, connection, scope.deadline):
                self._scopes[scope] = connection
            connection.meet(await greet(stream, protocol, name, connection.outbox.take_first()))
            if scope.cancel_called:  # In the very last moment: the scope is no good any more.
                await trio.lowlevel.checkpoint()
        except BaseException as exc:
            if connection is not None:
                connection.miss(exc)
            await trio.aclose_forcefully(stream)
            raise
        return connection
