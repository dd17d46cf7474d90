"""Attempts, and the line in which they wait for a place on a connection.

An *attempt* is a request ready to be sent: whoever has a connection with a free place calls `start(connection)`, and
from that very step on the call is in the connection's table. There is no await between picking a connection and
owning a place on it, so nothing can be lost in between: a place is never held by somebody who is not there any more.

The line is bounded, in length and in time; first come, first served, within each class of priority.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import trio
from trio.lowlevel import Abort, Task, current_task, reschedule, wait_task_rescheduled

from ._calls import Outgoing
from ._connection import Connection
from ._context import CallContext
from ._errors import ConnectError, PoolExhausted, PoolTimeout, RpcError
from ._placement import Route
from ._statistics import LineCounters
from ._streams import ReceiveStream
from ._timer import Moment, Timer
from .wire import Bytes, Metadata

__all__ = ["Attempt", "WaitingLine"]


@attrs.define(eq=False)
class Attempt:
    """One request on its way to a connection."""

    method: bytes
    payload: bytes
    blobs: Sequence[Bytes]
    deadline: float
    metadata: Metadata | None
    cancel_wait: float
    streaming: bool = False
    received: ReceiveStream[Any] | None = None
    acquire_timeout: float | None = None
    fail_fast: bool = False
    """It does not wait where no connection can be had."""
    priority: int | None = None
    """Its class in the line; None for the last."""
    route: Route | None = None
    """Where it may go; None: wherever there is a place."""
    parent: CallContext | None = None
    """The call that its caller serves. Whoever starts it later runs in the context of something else."""
    early: bool = False
    """It may be sent before the peer's HELLO has come, as it is small, and may run twice."""
    on_start: Callable[[Outgoing], object] | None = None
    """Told, in the same step, which call it became; for what cannot be awaited."""
    on_failure: Callable[[Exception], object] | None = None
    """Told that it never started."""
    call: Outgoing | None = None
    failure: Exception | None = None
    task: Task | None = None
    line: WaitingLine | None = None
    """Where it waits, or waited."""
    expiry: Moment | None = None
    """When it has waited for too long, if that is not what the whole line's others have."""

    def start(self, connection: Connection, now: float) -> Outgoing:
        """Send it on this connection, now. Raises RpcError, with nothing sent."""
        route = self.route
        if route is not None and route.instance is not None and route.instance != connection.remote.instance:
            text = f"{connection.address} is another server by now, which would not know that this call may have run"
            raise ConnectError(text, peer=connection.address)
        call = self.call = connection.start_call(
            self.method,
            self.payload,
            self.blobs,
            self.deadline,
            now,
            self.metadata,
            self.cancel_wait,
            self.parent,
            streaming=self.streaming,
            received=self.received,
        )
        if self.on_start is not None:
            self.on_start(call)
        return call

    def again(self) -> Attempt:
        """The same request, to be sent once more."""
        return attrs.evolve(self, call=None, failure=None, task=None, line=None, expiry=None)

    async def wait(self) -> Outgoing:
        """Wait until it, which has joined a line, has become a call, and for that call's end.

        One wait for both: to wake the task in between would cost as much as the rest of the call. Raises what kept
        it from becoming a call, and otherwise as `Outgoing.wait`.
        """
        if self.call is None and self.failure is None:
            self.task = current_task()
            await wait_task_rescheduled(self._abort)
        if self.failure is not None:
            raise self.failure
        assert self.call is not None
        return self.call

    def _abort(self, raise_cancel: Any) -> Abort:
        if self.call is not None:
            return self.call.abort(raise_cancel)
        self.task = None
        self.leave()
        return Abort.SUCCEEDED

    def leave(self) -> None:
        """It does not want a place any more."""
        if self.line is not None:
            self.line.leave(self)

    def settle(self, failure: Exception | None = None) -> None:
        """It has left the line: started, or failed. Who waits for a started one goes on waiting, now for its end."""
        self.failure = failure
        if failure is not None and self.on_failure is not None:
            self.on_failure(failure)
        task, self.task = self.task, None
        if self.call is not None:
            self.call.task = task
        elif task is not None:
            reschedule(task)


class WaitingLine:
    """Those who wait. All of one class before all of the next; within a class, first come, first served.

    `left()` is told of each who goes, whichever way.
    """

    def __init__(
        self,
        timer: Timer,
        why: Callable[[], tuple[str, BaseException | None]],
        *,
        max_waiting: int | None,
        acquire_timeout: float | None,
        priorities: int,
        counters: LineCounters | None = None,
        left: Callable[[], object] | None = None,
    ) -> None:
        self.count: int = 0
        """How many wait."""
        self.counters: LineCounters = LineCounters() if counters is None else counters
        self._timer = timer
        self._max_waiting = math.inf if max_waiting is None else max_waiting
        self._why = why
        self._acquire_timeout = acquire_timeout
        self._left = left
        self._classes: list[OrderedDict[Attempt, float]] = [OrderedDict() for _ in range(priorities)]
        """Each in order, with the time when each joined."""
        self._watched = False
        self._paused_at: float | None = None

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[Attempt, float]]:
        """In the order in which they will be served, with the time when each joined."""
        for waiting in self._classes:
            yield from list(waiting.items())

    def join(self, attempt: Attempt) -> None:
        """Take a place at the end of its class. Raises PoolExhausted if the line is full."""
        if self.count >= self._max_waiting:
            self.counters.exhausted += 1
            raise PoolExhausted(f"{self.count} calls are waiting for a place already (max_waiting)")
        now = trio.current_time()
        attempt.line = self
        self._class_of(attempt)[attempt] = now
        self.count += 1
        self.counters.queued += 1
        self._watch_over(attempt, now)

    def leave(self, attempt: Attempt) -> float | None:
        """Somebody in the line goes; when they had joined, or None if they were not in it any more."""
        joined_at = self._class_of(attempt).pop(attempt, None)
        if joined_at is not None:
            self.count -= 1
        if attempt.expiry is not None:
            self._timer.forget(attempt.expiry)
            attempt.expiry = None
        if self._left is not None:
            self._left()
        return joined_at

    def _class_of(self, attempt: Attempt) -> OrderedDict[Attempt, float]:
        last = len(self._classes) - 1
        return self._classes[last if attempt.priority is None else min(attempt.priority, last)]

    def head(self) -> tuple[int, float] | None:
        """The class of the next to be served, and when it joined; None if nobody waits."""
        for number, waiting in enumerate(self._classes):
            if waiting:
                return number, next(iter(waiting.values()))
        return None

    def first(self) -> Attempt | None:
        """The next to be served; None if nobody waits."""
        return next((next(iter(waiting)) for waiting in self._classes if waiting), None)

    # -- places ----------------------------------------------------------------------------------------------------

    def admit_first(self, connection: Connection, now: float) -> None:
        """Give a free place of the connection to the next in line."""
        first = self.first()
        if first is not None:
            self._admit(first, connection, now)

    def admit_early(self, connection: Connection, until: float) -> bool:
        """Start the first in line, if it may be, on a connection whose peer has not said HELLO yet. False: not.

        One, as there is no peer that would not take one. And only who would wait as long as it may take until it is
        known whether there is a HELLO, which is `until`.
        """
        for first, joined_at in self:
            if first.early and (first.acquire_timeout is None or joined_at + first.acquire_timeout >= until):
                return self._admit(first, connection, trio.current_time())
            break
        return False

    def _admit(self, attempt: Attempt, connection: Connection, now: float) -> bool:
        joined_at = self.leave(attempt)
        assert joined_at is not None
        self.counters.wait_seconds += now - joined_at
        try:
            attempt.start(connection, now)
        except RpcError as exc:
            attempt.settle(exc)
            return False
        attempt.settle()
        return True

    def fail_all(self, make: Callable[[], Exception]) -> None:
        """Nobody will get a place."""
        self.fail(make, lambda attempt: True)

    def fail(self, make: Callable[[], Exception], whom: Callable[[Attempt], bool]) -> None:
        """Some have no hope for now: those for whom `whom` is true."""
        for attempt, _ in self:
            if whom(attempt):
                self.leave(attempt)
                attempt.settle(make())

    # -- time ------------------------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Let nobody's time run out until `resume`."""
        if self._paused_at is None:
            self._paused_at = trio.current_time()

    def resume(self) -> None:
        """Let time run on: the pause does not count."""
        if self._paused_at is None:
            return
        now, paused_at = trio.current_time(), self._paused_at
        self._paused_at = None
        for waiting in self._classes:
            for attempt, joined_at in waiting.items():
                waiting[attempt] = joined_at + now - max(joined_at, paused_at)
                self._watch_over(attempt, waiting[attempt])

    def _watch_over(self, attempt: Attempt, joined_at: float) -> None:
        """One look at a time is enough for all who wait equally long: who joined first is due first."""
        timeout = attempt.acquire_timeout
        if timeout is None or self._paused_at is not None:
            return
        if timeout == self._acquire_timeout:
            if not self._watched:
                self._look_at(joined_at + timeout)
            return
        if attempt.expiry is not None:
            self._timer.forget(attempt.expiry)
        attempt.expiry = self._timer.at(joined_at + timeout, lambda _late: self._expire(attempt))

    def _look_at(self, when: float) -> None:
        self._watched = True
        self._timer.at(when, self._expire_due)

    def _expire_due(self, _lateness: float) -> None:
        self._watched = False
        timeout, now = self._acquire_timeout, trio.current_time()
        if timeout is None or self._paused_at is not None:
            return
        next_due = math.inf
        for waiting in self._classes:
            due: list[Attempt] = []
            for attempt, joined_at in waiting.items():
                if attempt.acquire_timeout != timeout:
                    continue
                if joined_at + timeout > now:
                    next_due = min(next_due, joined_at + timeout)
                    break
                due.append(attempt)
            for attempt in due:
                self._expire(attempt)
        if next_due < math.inf:
            self._look_at(next_due)

    def _expire(self, attempt: Attempt) -> None:
        if self._paused_at is not None:  # A moment of its own, which `resume` sets anew.
            return
        self.leave(attempt)
        self.counters.timeouts += 1
        state, cause = self._why()
        failure = PoolTimeout(
            f"no place on a connection within {attempt.acquire_timeout:g} s (acquire_timeout): {state}"
        )
        failure.__cause__ = cause
        attempt.settle(failure)
