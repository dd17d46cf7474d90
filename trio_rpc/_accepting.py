"""Accepting: how many are let in, and what becomes of a listener when accepting fails.

A server must not stop serving because one accept has failed, must not spin, and must not live on without listening.
What an error means is decided from its number (`meaning_of`):

- The connection's own trouble: it ended before it was accepted. The next one is accepted at once, unless there is a
  run of these.
- A shortage: descriptors or memory. Accepting rests, 10 ms at first and up to a second (as NATS does); the kernel keeps
  who comes meanwhile in its queue.
- Whatever else there is, the exceptions of users' own listeners included: the same, but after `PATIENCE` of them in a
  row the listener is opened anew at its address; and if that cannot be, or did not help, the server ends with the error.

Beyond the limits accepting rests as well. Where several listeners wait for room, it is given to them in turn.
"""

from __future__ import annotations

import errno
import logging
import math
import resource
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, TypeAlias

import attrs
import trio

from ._config import ServerLimits
from ._listening import SocketListener
from ._logs import limited
from ._room import Room, Visit
from ._statistics import ServerCounters
from ._text import shown

__all__ = ["Accepting", "AnyListener", "Meaning", "Setbacks", "Step", "meaning_of", "most_connections"]

log = limited(logging.getLogger("trio_rpc.server"))

AnyListener: TypeAlias = trio.abc.Listener[Any]

FIRST_PAUSE, LONGEST_PAUSE = 0.01, 1.0
"""NATS: 10 ms, doubled up to a second."""
PATIENCE = 10
"""Failures in a row of one kind, before a run of connections' own troubles is paused for, or a listener opened anew."""
LOG_PAUSE = 5.0
"""At most one line about failing accepts in so many seconds."""
SPARE_DESCRIPTORS = 64
"""Descriptors that connections leave to the rest of the process (NATS and Redis keep 32; reliability: 64)."""

_CONNECTIONS_OWN = frozenset(
    getattr(errno, name)
    for name in (
        # accept(2): a firewall; and errors pending on the new socket, to be treated like EAGAIN.
        *("ECONNABORTED", "EPERM", "EPROTO", "ENOPROTOOPT", "ENETDOWN", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH"),
        *("ENONET", "EOPNOTSUPP", "ETIMEDOUT", "ECONNRESET", "EPIPE", "EINTR"),
    )
    if hasattr(errno, name)
)
_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Meaning(Enum):
    """What a failed accept is a sign of."""

    CONNECTION = "the connection's own trouble"
    SHORTAGE = "out of descriptors or memory"
    UNEXPECTED = "the listener may be broken"


def meaning_of(exc: Exception) -> Meaning:
    """What an accept that raised this is a sign of."""
    number = exc.errno if isinstance(exc, OSError) else None
    if number in _SHORTAGES or isinstance(exc, MemoryError):
        return Meaning.SHORTAGE
    return Meaning.CONNECTION if number in _CONNECTIONS_OWN else Meaning.UNEXPECTED


@attrs.frozen
class Step:
    """What to do after a failed accept: wait for `pause` seconds, and try again."""

    pause: float
    renew: bool = False
    """Before that, open the listener anew."""
    hopeless: bool = False
    """Instead of all that, give up: it has been opened anew, and goes on failing."""


class Setbacks:
    """What to do after each failed accept of one listener: a pure decision, from those since one has succeeded."""

    __slots__ = ("_connections", "_pauses", "_renewed", "_unexpected")

    def __init__(self) -> None:
        self._pauses = self._connections = self._unexpected = 0
        self._renewed = False

    def over(self) -> None:
        """A connection was accepted."""
        if self._connections or self._pauses:
            self._pauses = self._connections = self._unexpected = 0
            self._renewed = False

    def after(self, exc: Exception) -> Step:
        """One more accept has failed."""
        meaning = meaning_of(exc)
        if meaning is Meaning.CONNECTION:
            self._connections += 1
            return Step(self._pause() if self._connections > PATIENCE else 0.0)
        if meaning is Meaning.UNEXPECTED:
            self._unexpected += 1
            if self._unexpected % PATIENCE == 0:
                hopeless, self._renewed = self._renewed, True
                return Step(0.0, renew=not hopeless, hopeless=hopeless)
        return Step(self._pause())

    def _pause(self) -> float:
        self._pauses += 1
        return min(FIRST_PAUSE * 2.0 ** min(self._pauses - 1, 30), LONGEST_PAUSE)


def most_connections(asked: int | None) -> int | None:
    """How many connections there may be: what was asked for, and no more than the process has descriptors for.

    The soft limit on descriptors is looked at once, when a server starts. None, no bound, stays so: there it is the
    shortage itself that makes accepting rest, and whatever else needs a descriptor fails meanwhile.
    """
    if asked is None:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = asked if soft == resource.RLIM_INFINITY else min(asked, max(1, soft - SPARE_DESCRIPTORS))
    if most < asked:
        text = (
            "max_connections is %d instead of %d: the process may have %d descriptors (RLIMIT_NOFILE), and %d are kept"
        )
        tell = log.info if asked == attrs.fields(ServerLimits).max_connections.default else log.warning
        tell(text, most, asked, soft, SPARE_DESCRIPTORS)  # Nobody has asked for the default.
    return most


class Accepting:
    """Accepts at all listeners of one server, until it is stopped. `begin(stream, visit)` is told of each that was let in."""

    def __init__(self, room: Room, counters: ServerCounters, begin: Callable[[trio.abc.Stream, Visit], object]) -> None:
        self._room = room
        self._counters = counters
        self._begin = begin
        self._scope = trio.CancelScope()
        self._failure: Exception | None = None
        self._logged_at = -math.inf

    def stop(self) -> None:
        """Accept nobody any more, and close the listeners."""
        self._scope.cancel()

    async def run(self, listeners: Sequence[AnyListener]) -> Exception | None:
        """Accept until stopped. Returns what it has failed of, if one of the listeners is beyond repair.

        The listeners are closed in the end; who was in their queues finds the connection reset.
        """
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    for listener in listeners:
                        nursery.start_soon(self._accept, listener, name="trio_rpc server listener")
        finally:
            with trio.CancelScope(shield=True):
                for listener in listeners:
                    await self._close(listener)
        return self._failure

    async def _close(self, listener: AnyListener) -> None:
        try:
            await listener.aclose()
        except Exception as exc:
            log.warning("a listener (%s) failed in closing", _name(listener), exc_info=exc)

    async def _accept(self, listener: AnyListener) -> None:
        setbacks = Setbacks()
        while True:
            await self._room.wait_free()
            try:
                stream = await listener.accept()
            except trio.ClosedResourceError:
                log.warning("%s was closed by somebody else: nothing is accepted there any more", _name(listener))
                return
            except Exception as exc:
                if not await self._bear(listener, setbacks.after(exc), exc):
                    return
                continue
            setbacks.over()
            await self._let_in(stream)

    async def _let_in(self, stream: trio.abc.Stream) -> None:
        try:
            await self._room.wait_turn()
        except BaseException:  # Stopped before there was room.
            await trio.aclose_forcefully(stream)
            raise
        self._counters.accepted += 1
        self._begin(stream, self._room.enter())  # No checkpoint since there was room.

    async def _bear(self, listener: AnyListener, step: Step, exc: Exception) -> bool:
        """What is to be done after a failed accept. False: it is of no use."""
        self._counters.accept_errors += 1
        failure = exc if step.hopeless else self._renew(listener, exc) if step.renew else None
        if failure is not None:
            log.error("nothing can be accepted at %s any more: this server ends", _name(listener), exc_info=failure)
            self._failure = failure
            self._scope.cancel()
            return False
        if step.pause:
            self._tell(listener, exc)
            with trio.move_on_after(step.pause):
                if meaning_of(exc) is not Meaning.SHORTAGE:
                    await trio.sleep_forever()
                await self._room.wait_change()  # Who leaves gives back what was short.
        return True

    def _renew(self, listener: AnyListener, exc: Exception) -> Exception | None:
        """Open a listener anew. Returns why that cannot be: it is not one of ours, or its address cannot be had again."""
        if not isinstance(listener, SocketListener):
            return exc
        try:
            listener.reopen()
        except OSError as error:
            error.__cause__ = exc
            return error
        log.warning("%s was opened anew, as accepting failed there: %s", _name(listener), shown(exc))
        return None

    def _tell(self, listener: AnyListener, exc: Exception) -> None:
        now = trio.current_time()
        if now - self._logged_at >= LOG_PAUSE:
            self._logged_at = now
            text, count = shown(str(exc) or type(exc).__name__), self._counters.accept_errors
            log.warning("accept failed at %s, trying again: %s (%d times so far)", _name(listener), text, count)


def _name(listener: AnyListener) -> str:
    return shown(getattr(listener, "address", None) or repr(listener), 160)
