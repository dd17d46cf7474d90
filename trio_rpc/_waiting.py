"""Attempts, and the line in which they wait for a place on a connection.

An *attempt* is a request ready to be sent: whoever has a connection with a free place calls `start(connection)`, and
from that very step on the call is in the connection's table. There is no await between picking a connection and
owning a place on it, so nothing can be lost in between: a place is never held by somebody who is not there any more.

The line is FIFO and bounded, in length and in time.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import trio
from trio.lowlevel import Abort, Task, current_task, reschedule, wait_task_rescheduled

from ._calls import Outgoing
from ._connection import Connection
from ._context import CallContext
from ._errors import PoolExhausted, PoolTimeout, RpcError
from ._placement import Route
from ._statistics import LineCounters
from ._streams import ReceiveStream
from ._timer import Timer
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
    parent: CallContext | None = None
    """The call that its caller serves. Whoever starts it later runs in the context of something else."""
    early: bool = False
    """It may be sent before the peer's HELLO has come, as it is small, and may run twice."""
    priority: int | None = None
    """Its class in the line; None for the last."""
    route: Route | None = None
    """Where it may go; None: wherever there is a place."""
    on_start: Callable[[Outgoing], object] | None = None
    """Told, in the same step, which call it became; for what cannot be awaited."""
    on_failure: Callable[[Exception], object] | None = None
    """Told that it never started."""
    call: Outgoing | None = None
    failure: Exception | None = None
    task: Task | None = None

    def start(self, connection: Connection, now: float) -> Outgoing:
        """Send it on this connection, now."""
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
        return attrs.evolve(self, call=None, failure=None, task=None)

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
    """Those who wait, first come, first served."""

    def __init__(
        self, timer: Timer, max_waiting: int | None, why: Callable[[], tuple[str, BaseException | None]]
    ) -> None:
        self.counters: LineCounters = LineCounters()
        self._timer = timer
        self._max_waiting = math.inf if max_waiting is None else max_waiting
        self._why = why
        self.attempts: OrderedDict[Attempt, float] = OrderedDict()
        """In order; each with the time when it joined."""
        self._watched = False

    def __len__(self) -> int:
        return len(self.attempts)

    def join(self, attempt: Attempt) -> None:
        """Take a place at the end. Raises PoolExhausted if the line is full."""
        if len(self.attempts) >= self._max_waiting:
            self.counters.exhausted += 1
            raise PoolExhausted(f"{len(self.attempts)} calls are waiting for a place already (max_waiting)")
        now = trio.current_time()
        self.attempts[attempt] = now
        self.counters.queued += 1
        if attempt.acquire_timeout is not None and not self._watched:
            self._watch(now + attempt.acquire_timeout)

    async def wait(self, attempt: Attempt) -> Outgoing:
        """Wait until the attempt, which has joined, has become a call, and for that call's end.

        One wait for both: to wake the task in between would cost as much as the rest of the call. Raises what kept
        it from becoming a call, and otherwise as `Outgoing.wait`.
        """
        if attempt.call is None and attempt.failure is None:
            attempt.task = current_task()

            def leave(raise_cancel: Any) -> Abort:
                if attempt.call is not None:
                    return attempt.call.abort(raise_cancel)
                attempt.task = None
                self.attempts.pop(attempt, None)
                return Abort.SUCCEEDED

            await wait_task_rescheduled(leave)
        if attempt.failure is not None:
            raise attempt.failure
        assert attempt.call is not None
        return attempt.call

    def leave(self, attempt: Attempt) -> None:
        """Somebody in the line does not want a place any more."""
        self.attempts.pop(attempt, None)

    def admit(self, connection: Connection) -> None:
        """Fill the free places of a connection from the head of the line."""
        now = trio.current_time()
        while self.attempts and connection.free > 0:
            self._admit_first(connection, now)

    def admit_early(self, connection: Connection, until: float) -> bool:
        """Start the first in line, if it may be, on a connection whose peer has not said HELLO yet. False: not.

        One, as there is no peer that would not take one. And only who would wait as long as it may take until it is
        known whether there is a HELLO, which is `until`.
        """
        for first, joined_at in self.attempts.items():
            if first.early and (first.acquire_timeout is None or joined_at + first.acquire_timeout >= until):
                self._admit_first(connection, trio.current_time())
                return True
            break
        return False

    def _admit_first(self, connection: Connection, now: float) -> None:
        attempt, joined_at = self.attempts.popitem(last=False)
        self.counters.wait_seconds += now - joined_at
        try:
            attempt.start(connection, now)
        except RpcError as exc:
            attempt.settle(exc)
        else:
            attempt.settle()

    def fail_all(self, make: Callable[[], Exception]) -> None:
        """Nobody will get a place."""
        while self.attempts:
            attempt, _ = self.attempts.popitem(last=False)
            attempt.settle(make())

    def fail_impatient(self, make: Callable[[], Exception]) -> None:
        """There is no hope for now: fail all but those who said that they wait for as long as it takes."""
        for attempt in [attempt for attempt in self.attempts if attempt.acquire_timeout is not None]:
            del self.attempts[attempt]
            attempt.settle(make())

    def _watch(self, when: float) -> None:
        """One look at a time is enough: who joined first is due first."""
        self._watched = True
        self._timer.at(when, self._expire_due)

    def _expire_due(self, _lateness: float) -> None:
        self._watched = False
        now = trio.current_time()
        for attempt, joined_at in list(self.attempts.items()):
            if attempt.acquire_timeout is None:
                continue
            due = joined_at + attempt.acquire_timeout
            if due > now:
                self._watch(due)
                return
            del self.attempts[attempt]
            self._expire(attempt)

    def _expire(self, attempt: Attempt) -> None:
        self.counters.timeouts += 1
        state, cause = self._why()
        failure = PoolTimeout(
            f"no place on a connection within {attempt.acquire_timeout:g} s (acquire_timeout): {state}"
        )
        failure.__cause__ = cause
        attempt.settle(failure)
