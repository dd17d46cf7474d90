"""Attempts, and the line in which they wait for a place on a connection.

An *attempt* is a request ready to be sent: whoever has a connection with a free place calls `start(connection)`, and
from that very step on the call is in the connection's table. There is no await between picking a connection and
owning a place on it, so nothing can be lost in between: a place is never held by somebody who is not there any more.

The line is FIFO and bounded, in length and in time.
"""

from __future__ import annotations

import math
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import trio
from trio.lowlevel import Abort, Task, current_task, reschedule, wait_task_rescheduled

from ._calls import Outgoing
from ._connection import Connection
from ._context import CallContext
from ._errors import EncodeError, PoolExhausted, PoolTimeout, RpcError
from ._statistics import LineCounters
from ._streams import ReceiveStream
from ._timer import Timer
from ._util import locate
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
    on_start: Callable[[Outgoing], object] | None = None
    """Told, in the same step, which call it became; for what cannot be awaited."""
    on_failure: Callable[[Exception], object] | None = None
    """Told that it never started."""
    call: Outgoing | None = None
    failure: Exception | None = None
    task: Task | None = None

    def start(self, connection: Connection) -> Outgoing:
        """Send it on this connection, now."""
        try:
            call = connection.start_call(
                self.method,
                self.payload,
                self.blobs,
                deadline=self.deadline,
                metadata=self.metadata,
                streaming=self.streaming,
                cancel_wait=self.cancel_wait,
                parent=self.parent,
                received=self.received,
            )
        except EncodeError as exc:
            locate(exc, str(self.method[1:], "utf-8"))
            raise
        self.call = call
        if self.on_start is not None:
            self.on_start(call)
        return call

    def again(self) -> Attempt:
        """The same request, to be sent once more."""
        return attrs.evolve(self, call=None, failure=None, task=None)

    def settle(self, failure: Exception | None = None) -> None:
        """It has left the line: started, or failed."""
        self.failure = failure
        if failure is not None and self.on_failure is not None:
            self.on_failure(failure)
        task, self.task = self.task, None
        if task is not None:
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
        self._attempts: OrderedDict[Attempt, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._attempts)

    def join(self, attempt: Attempt) -> None:
        """Take a place at the end. Raises PoolExhausted if the line is full."""
        if len(self._attempts) >= self._max_waiting:
            self.counters.exhausted += 1
            raise PoolExhausted(f"{len(self._attempts)} calls are waiting for a place already (max_waiting)")
        now = trio.current_time()
        self._attempts[attempt] = now
        self.counters.queued += 1
        if attempt.acquire_timeout is not None:
            reference = weakref.ref(attempt)  # Or the timer would keep each payload, and result, for so long.
            self._timer.at(now + attempt.acquire_timeout, lambda _late: self._expire(reference()))

    async def wait(self, attempt: Attempt) -> Outgoing:
        """Wait until the attempt, which has joined, has become a call. Raises what kept it from that."""
        if attempt.call is None and attempt.failure is None:
            attempt.task = current_task()

            def leave(_raise_cancel: object) -> Abort:
                attempt.task = None
                self._attempts.pop(attempt, None)
                return Abort.SUCCEEDED

            await wait_task_rescheduled(leave)
        if attempt.failure is not None:
            raise attempt.failure
        assert attempt.call is not None
        return attempt.call

    def leave(self, attempt: Attempt) -> None:
        """Somebody in the line does not want a place any more."""
        self._attempts.pop(attempt, None)

    def admit(self, connection: Connection) -> None:
        """Fill the free places of a connection from the head of the line."""
        while self._attempts and connection.free > 0:
            attempt, joined_at = self._attempts.popitem(last=False)
            self.counters.wait_seconds += trio.current_time() - joined_at
            try:
                attempt.start(connection)
            except RpcError as exc:
                attempt.settle(exc)
            else:
                attempt.settle()

    def fail_all(self, make: Callable[[], Exception]) -> None:
        """Nobody will get a place."""
        while self._attempts:
            attempt, _ = self._attempts.popitem(last=False)
            attempt.settle(make())

    def fail_impatient(self, make: Callable[[], Exception]) -> None:
        """There is no hope for now: fail all but those who said that they wait for as long as it takes."""
        for attempt in [attempt for attempt in self._attempts if attempt.acquire_timeout is not None]:
            del self._attempts[attempt]
            attempt.settle(make())

    def _expire(self, attempt: Attempt | None) -> None:
        if attempt is None or self._attempts.pop(attempt, None) is None:
            return
        self.counters.timeouts += 1
        state, cause = self._why()
        failure = PoolTimeout(
            f"no place on a connection within {attempt.acquire_timeout:g} s (acquire_timeout): {state}"
        )
        failure.__cause__ = cause
        attempt.settle(failure)
