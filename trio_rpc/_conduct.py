"""How the handlers of a server behave: those that do not end when they are cancelled, and those that hold up the loop.

Nothing can be done about either. Their callers go on without them, their places stay taken; so the log says who it is.
"""

from __future__ import annotations

import logging
import math
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import trio

from ._config import ServerLimits
from ._incoming import Incoming
from ._logs import limited
from ._timer import Moment, Timer

__all__ = ["Conduct", "stalled", "timed"]

log = limited(logging.getLogger("trio_rpc.server"))

LOOKS = 10
"""At most so many looks in `cancel_warn_after`, however many calls are cancelled at how many times."""


class Conduct:
    """Warns of handlers, once each, that still run `cancel_warn_after` seconds after they were cancelled.

    One for a whole server, with one moment of its timer: most cancelled handlers have ended long before.
    """

    def __init__(self, limits: ServerLimits, timer: Timer) -> None:
        self.stall_after: float = math.inf if limits.stall_warn_after is None else limits.stall_warn_after
        """A step of a handler that takes so long is told to `stalled`."""
        self._warn_after = limits.cancel_warn_after
        self._timer = timer
        self._cancelled: dict[Incoming, float] = {}
        """When each was cancelled."""
        self._moment: Moment | None = None

    def cancelled(self, call: Incoming, when: float | None = None) -> None:
        """Its handler is to end from now on, or from `when` on."""
        if self._warn_after is None:
            return
        now = trio.current_time()
        since = now if when is None else when
        known = self._cancelled.get(call)
        if known is not None and known <= since:
            return
        call.watched = True
        self._cancelled[call] = since
        self._look_at(since + self._warn_after)

    def ended(self, call: Incoming) -> None:
        """Its handler has ended."""
        self._cancelled.pop(call, None)

    def end(self) -> None:
        """The server is about to end, and does not before the last of its handlers has."""
        for call, since in self._cancelled.items():
            self._tell(call, since, "the server's end waits for it")
        self._cancelled.clear()

    def _tell(self, call: Incoming, since: float, consequence: str) -> None:
        text = "%s was cancelled %.1f s ago and still runs, caller %s: %s"
        log.warning(text, call.method, trio.current_time() - since, call.connection.address, consequence)

    def _look_at(self, when: float) -> None:
        if self._moment is not None and self._moment[2] is not None:
            if self._moment[0] <= when:
                return
            self._timer.forget(self._moment)
        self._moment = self._timer.at(when, self._look)

    def _look(self, _lateness: float) -> None:
        assert self._warn_after is not None
        now = trio.current_time()
        late = [(call, since) for call, since in self._cancelled.items() if since + self._warn_after <= now]
        for call, since in late:
            del self._cancelled[call]
            self._tell(call, since, "its place stays taken")
        if self._cancelled:
            soonest = min(self._cancelled.values()) + self._warn_after
            self._look_at(max(soonest, now + self._warn_after / LOOKS))


def stalled(method: str, seconds: float) -> None:
    """A handler of this method has held up the event loop."""
    log.warning("%s held up the event loop for %.1f s in one step", method, seconds)


@types.coroutine
def timed(coroutine: Coroutine[Any, Any, Any], method: str, stall_after: float) -> Generator[Any, Any, Any]:
    """Await `coroutine` in this very task, and tell `stalled` of each step that took too long."""
    step: Callable[[Any], Any] = coroutine.send
    value: Any = None
    while True:
        began = trio.current_time()
        try:
            trap = step(value)
        except StopIteration as stop:
            return stop.value
        finally:
            seconds = trio.current_time() - began
            if seconds >= stall_after:
                stalled(method, seconds)
        try:
            value = yield trap
            step = coroutine.send
        except BaseException as exc:  # Handed on, not handled, in the same task.
            step, value = coroutine.throw, exc
