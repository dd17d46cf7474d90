"""Who reads a connection and who runs its handlers: the *leader/follower* crew.

A task and a cancel scope for each call would halve the throughput. So a connection has a small crew of long-lived
tasks, of which one *leads*: it reads, and it runs a handler at once, in its own task, when that handler usually
finishes without suspending. No task switch happens then. If the handler does suspend, a parked crew member is
promoted to leader, synchronously, and goes on reading, while the call keeps the task that it began in. Calls of
methods that usually suspend, and all streams, go to a parked (or new) member from the start.

The rest of the library does not know which of these happened. The rules, each held by a test:

1.  A member keeps ONE cancel scope over many calls. Its deadline is set before a handler's first step, and is `inf`
    again before the member reads on; unless cancelling the read loses nothing: then it may stay until another call
    needs another one, and if it should pass in between, the scope is renewed as in rule 2. Setting it twice for each
    call took a tenth of a small call's CPU.
2.  The scope is left and renewed whenever `cancel_called` is true after a call, however that ended, and after every
    call that suspended.
3.  Each step of a handler runs in the call's own copy of the context that was current when `serve` began.
4.  Reading and parsing are protected from KeyboardInterrupt; a handler's steps are not.
5.  Promotion is synchronous and cannot fail: a parked member leads, or a new one, which the nursery that the leader is
    in always takes. So a connection whose handlers never suspend has no task but its reader and its writer.
6.  The leader yields to the scheduler after RUN_SECONDS or RUN_CALLS in one go.
7.  Eager or not is a decaying estimate for each method, not a latch.
8.  Generators, client streams and worker threads are never run eagerly.
9.  Every trap is forwarded unchanged, in the task that the call began in.
10. The call keeps its coroutine, for stack reports.
11. No exception is caught inside the kept scope while a Cancelled is in flight: it belongs to that scope.
"""

from __future__ import annotations

import itertools
import math
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context
from typing import Any, Protocol

import trio
from trio.lowlevel import (
    Abort,
    Task,
    checkpoint,
    current_task,
    disable_ki_protection,
    enable_ki_protection,
    reschedule,
    wait_task_rescheduled,
)

from ._contained import parted

__all__ = ["RUN_CALLS", "Crew", "Estimate", "Job", "holds"]

RUN_CALLS = 64
RUN_SECONDS = 0.002
SURE = 0.99
"""An estimate that need not be made any surer: to note each call costs more than it tells."""
MAX_PARKED = 64
"""Members kept parked; a further one ends instead, so that a burst does not hold its tasks for ever."""


_stopped: Callable[[], float] = itertools.repeat(0.0).__next__
"""The clock by which no step takes long."""


class Estimate:
    """How often the calls of one method suspend: an average that forgets, by an eighth with each call."""

    __slots__ = ("eager", "run_eagerly", "share")

    def __init__(self, *, eager: bool) -> None:
        self.eager: bool = eager
        """Whether a call may be run eagerly at all (rule 8)."""
        self.share: float = 0.0
        self.run_eagerly: bool = eager
        """True while most of the last calls did not suspend."""

    def note(self, suspended: bool) -> None:
        """Count one more call."""
        self.share += ((1.0 if suspended else 0.0) - self.share) / 8
        self.run_eagerly = self.eager and self.share < 0.5


class Job(Protocol):
    """One call to be run. The crew drives it; what it means is the dispatch's business."""

    method: str
    deadline: float
    """Absolute; `inf` for none."""
    estimate: Estimate
    context: Context
    scope: trio.CancelScope | None
    """Set while the handler may be cancelled through it."""

    def begin(self) -> Coroutine[Any, Any, Any] | None:
        """Make the handler's coroutine, or answer the call at once (refused, already over) and return None."""

    def succeed(self, value: Any) -> None:
        """The handler returned."""

    def fail(self, exc: BaseException) -> None:
        """The handler raised."""

    def cancelled(self) -> None:
        """The handler ended by its scope's cancellation."""

    def cut_off(self) -> None:
        """The handler ended by the connection's end: there is nobody to tell."""


@disable_ki_protection
def _send(coro: Coroutine[Any, Any, Any], value: Any) -> Any:
    return coro.send(value)


@disable_ki_protection
def _throw(coro: Coroutine[Any, Any, Any], exc: BaseException) -> Any:
    return coro.throw(exc)


async def _give_way() -> float:
    """Let all other tasks have a turn; returns the time that it is then."""
    await checkpoint()
    await checkpoint()  # Twice: Trio runs the tasks of a tick in any order, and the writer shall have had its turn.
    return trio.current_time()


class _Member:
    """One task of the crew: leading (no job), running a job, or parked."""

    __slots__ = ("job", "leads", "task")

    def __init__(self, job: Job | None) -> None:
        self.job = job
        self.leads = job is None
        self.task: Task | None = None


class Crew:
    """The tasks of one connection that read and run handlers.

    `read` waits for the next bytes and puts the requests among them into `backlog`; False means that no more will
    come. It is only ever awaited by the one member that leads. While `held()` is true nothing further is begun.
    `flush()` is told when what was answered so far should be written.
    `keep_deadline`: cancelling `read` while it waits loses nothing (rule 1). `run_calls`: see rule 6.
    `now()`: when the last `read` ended, or later.
    `stalled(method, seconds)` is told of a step that took `stall_after` seconds or longer. That costs a reading of the
    clock for each run of eager calls, and two for each step of another one; `inf` costs none.
    """

    __slots__ = (
        "_clock",
        "_flush",
        "_held",
        "_keep_deadline",
        "_left_waiting",
        "_nursery",
        "_now",
        "_over",
        "_parked",
        "_read",
        "_run_calls",
        "_stall_after",
        "_stalled",
        "backlog",
    )

    def __init__(
        self,
        nursery: trio.Nursery,
        read: Callable[[], Awaitable[bool]],
        held: Callable[[], bool] = lambda: False,
        *,
        flush: Callable[[], object] = lambda: None,
        keep_deadline: bool = False,
        run_calls: int = RUN_CALLS,
        now: Callable[[], float] = trio.current_time,
        stall_after: float = math.inf,
        stalled: Callable[[str, float], object] = lambda _method, _seconds: None,
    ) -> None:
        self.backlog: list[Job] = []  # A deque is no faster at these lengths, and takes 600 bytes when it is empty.
        self._held = held
        self._flush = flush
        self._keep_deadline = keep_deadline
        self._run_calls = run_calls
        self._now = now
        self._stall_after = stall_after
        self._clock = _stopped if stall_after == math.inf else trio.lowlevel.current_clock().current_time
        self._stalled = stalled
        self._left_waiting = False
        """The leader reads on, and there are calls in the backlog that `held` has kept from being begun."""
        self._nursery = nursery
        self._read = read
        self._parked: list[_Member] = []
        self._over = False
        """No more will come."""

    def start(self) -> None:
        """Begin to read, in a new task."""
        self._start_leader()

    @enable_ki_protection
    async def run(self) -> None:
        """Read in the task that awaits this, until there is something to run; from then on the crew's own tasks do.

        So a connection without calls has no further task, and no handler runs in one that is not the crew's: where a
        handler leaves a nursery or a scope open (a generator in one that it broke off, for instance), Trio has the
        task's end raise that in whatever nursery the task is in. The crew's is this connection's own.
        """
        while not self.backlog:
            self._flush()
            if not await self._read():
                self._over = True
                return
        self._start_leader()

    def _start_leader(self) -> None:
        self._nursery.start_soon(self._run_member, _Member(None), name="trio_rpc connection reader")

    def is_busy(self) -> bool:
        """True while there is something to begin before the leader reads on."""
        return bool(self.backlog) and not self._left_waiting

    def resume(self) -> None:
        """`held` may have become false: begin the first that has waited, beside the leader, which is reading.

        One alone, as what it answers at once may be all that there was room for. When it has done so, or has suspended,
        its member resumes with the next.
        """
        if not self._left_waiting:  # A leader that only let the writer have its turn goes on by itself.
            return
        if self.backlog and not self._held():
            self._assign(self.backlog.pop(0))
        self._left_waiting = bool(self.backlog)

    @enable_ki_protection
    async def _run_member(self, me: _Member) -> None:
        me.task = current_task()

        def leave(_raise_cancel: object) -> Abort:
            self._parked.remove(me)
            return Abort.SUCCEEDED

        while not self._over:
            await self._stay(me)
            if not me.leads:
                if len(self._parked) >= MAX_PARKED:
                    return
                self._parked.append(me)
                await wait_task_rescheduled(leave)

    async def _stay(self, me: _Member) -> None:
        """One stay in a kept scope: left when it must be renewed (rule 2). Reports the call that it was left for."""
        value: Any = None
        failure: BaseException | None = None
        with_value = False
        try:
            with trio.CancelScope(deadline=math.inf if me.job is None else me.job.deadline) as scope:
                value = await (self._lead(me, scope) if me.job is None else self._work(me, me.job, scope))
                with_value = True
        except BaseException as exc:
            if me.job is None:
                raise  # The reader itself failed, or the connection is ending.
            ending, failure = parted(exc)
            if ending is not None:
                try:
                    if failure is None:
                        me.job.cut_off()
                    else:
                        me.job.fail(failure)
                    raise exc if failure is None or holds(exc, KeyboardInterrupt) else ending from None
                finally:
                    del ending, failure  # Each would hold its own traceback: work for the garbage collector.
        job, me.job = me.job, None
        if job is not None:
            job.scope = None
            if failure is not None:
                job.fail(failure)
                if holds(failure, KeyboardInterrupt):
                    raise failure  # A real Ctrl-C that landed in this task: the program's, and not the caller's.
            elif with_value:
                job.succeed(value)
            else:
                job.cancelled()
        if self._left_waiting:
            self.resume()

    async def _work(self, me: _Member, job: Job, scope: trio.CancelScope) -> Any:
        """Run the job that this member was given."""
        if self._held():  # Many were given out at once, and those before this one have taken all the room.
            self.backlog.insert(0, job)
            self._left_waiting, me.job = True, None
            return None
        job.scope = scope
        coro = job.begin()
        if coro is None:
            me.job = None
            return None
        began = self._clock()
        try:
            trap = job.context.run(_send, coro, None)
        except StopIteration as stop:
            job.estimate.note(False)
            return stop.value
        finally:
            if self._clock() - began >= self._stall_after:
                self._tell(job, began)
        if job.estimate.share < SURE:
            job.estimate.note(True)
        if self._left_waiting:
            self.resume()
        return await self._resume(job, coro, trap)

    async def _lead(self, me: _Member, scope: trio.CancelScope) -> Any:
        """Read, and run what is eager, until one of those calls suspends or the scope must be renewed."""
        job: Job | None = None
        backlog, held, clock, stall_after = self.backlog, self._held, self._clock, self._stall_after
        deadline, began = math.inf, clock()
        while True:
            count, run_until = 0, -math.inf
            while backlog and not held():
                job = backlog.pop(0)
                if not job.estimate.run_eagerly:
                    self._assign(job)
                    job = None
                    continue
                job.scope = scope
                if deadline != job.deadline:  # Setting it costs as much as a small call's decoding.
                    scope.deadline = deadline = job.deadline
                coro = job.begin()
                if coro is not None:
                    try:
                        trap = job.context.run(_send, coro, None)
                    except StopIteration as stop:
                        job.scope = None
                        if job.estimate.share > 1 - SURE:
                            job.estimate.note(False)
                        job.succeed(stop.value)
                    except Exception as exc:
                        job.scope = None
                        job.estimate.note(False)
                        job.fail(exc)
                    except BaseException:
                        me.job = job  # Not handled here: rule 11. `_stay` reports it, outside the scope.
                        raise
                    else:
                        self._promote(me, job, began)
                        return await self._resume(job, coro, trap)
                count += 1
                if not backlog or scope.cancel_called:
                    break
                now = trio.current_time()
                if count == 1 and now - began < stall_after:
                    run_until = now + RUN_SECONDS
                elif count >= self._run_calls or now >= run_until:
                    break
            if job is not None and clock() - began >= stall_after:
                self._tell(job, began)  # An earlier one that had taken so long would have been the last.
            if deadline != math.inf and not self._keep_deadline:
                scope.deadline = deadline = math.inf
            self._flush()
            if count and scope.cancel_called:
                return None
            if backlog and not held():
                began = await _give_way()
                continue
            self._left_waiting = bool(backlog)
            job = coro = trap = None  # An idle connection keeps nothing of its last call.
            self._over = not await self._read()
            began = self._now()
            if self._over or deadline <= began:
                return None  # It may pass when the bytes are there already: no Cancelled then, but for the next call.

    @types.coroutine
    def _resume(self, job: Job, coro: Coroutine[Any, Any, Any], trap: Any) -> Generator[Any, Any, Any]:
        """Go on with a coroutine that has suspended with `trap`, each step in the call's context."""
        run, clock, stall_after = job.context.run, self._clock, self._stall_after
        step: Callable[..., Any]
        value: Any
        while True:
            try:
                value = yield trap
                step = _send
            except BaseException as exc:  # Handed on, not handled: rule 9.
                step, value = _throw, exc
            began = clock()
            try:
                trap = run(step, coro, value)
            except StopIteration as stop:
                return stop.value
            finally:
                if clock() - began >= stall_after:
                    self._tell(job, began)

    def _tell(self, job: Job, began: float) -> None:
        self._stalled(job.method, self._clock() - began)

    def _assign(self, job: Job) -> None:
        """Give a job to a parked member, or to a new one."""
        if self._parked:
            member = self._parked.pop()
            member.job = job
            self._wake(member)
        else:
            self._nursery.start_soon(self._run_member, _Member(job), name="trio_rpc handler")

    def _promote(self, me: _Member, job: Job, began: float) -> None:
        """The leader stays with a job that has suspended: another member reads on."""
        me.job, me.leads = job, False
        job.estimate.note(True)
        if self._clock() - began >= self._stall_after:
            self._tell(job, began)
        if not self._parked:
            self._start_leader()
            return
        member = self._parked.pop()
        member.leads = True
        self._wake(member)

    @staticmethod
    def _wake(member: _Member) -> None:
        assert member.task is not None
        reschedule(member.task)


def holds(exc: BaseException, kind: type[BaseException]) -> bool:
    """True if `exc` is of this kind, or is a group with one in it."""
    if isinstance(exc, BaseExceptionGroup):
        return exc.split(kind)[0] is not None
    return isinstance(exc, kind)
