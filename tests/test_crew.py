"""The eleven rules of running handlers, by number (Crew 1 to 11), as they stand at the top of the crew's module."""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from contextvars import Context, ContextVar, copy_context
from functools import partial
from typing import Any

import outcome
import pytest
import trio
import trio.testing
from trio.lowlevel import Abort, current_task, currently_ki_protected, reschedule, wait_task_rescheduled

from trio_rpc import current_call, method, open_connection, serve_stream
from trio_rpc._crew import RUN_CALLS, Crew, Estimate
from trio_rpc.testing import memory_pipe, open_loopback

VARIABLE: ContextVar[str] = ContextVar("variable", default="unset")
Handler = Callable[[], Coroutine[Any, Any, Any]]


class Call:
    """A job of the crew: one handler, and what became of it."""

    def __init__(self, handler: Handler, *, deadline: float = math.inf, eager: bool = True) -> None:
        self.handler = handler
        self.deadline = deadline
        self.method = "Crew.call"
        self.estimate = Estimate(eager=eager)
        self.context: Context = copy_context()
        self.scope: trio.CancelScope | None = None
        self.end: Any = None
        self.task: trio.lowlevel.Task | None = None
        self.ended = trio.Event()

    def begin(self) -> Coroutine[Any, Any, Any]:
        self.task = current_task()
        return self.handler()

    def succeed(self, value: Any) -> None:
        self._end(("returned", value))

    def fail(self, exc: BaseException) -> None:
        self._end(("raised", exc))

    def cancelled(self) -> None:
        self._end(("cancelled", None))

    def cut_off(self) -> None:
        self._end(("cut off", None))

    def _end(self, end: tuple[str, Any]) -> None:
        assert self.end is None
        self.end = end
        self.ended.set()


class Rig:
    """A crew whose reader takes batches of calls from a channel."""

    def __init__(self, nursery: trio.Nursery, *, keep_deadline: bool = False) -> None:
        self._send, self._receive = trio.open_memory_channel[tuple[Call, ...]](100)
        self.crew = Crew(nursery, self._read, keep_deadline=keep_deadline)
        self.leader: trio.lowlevel.Task | None = None
        self.reads = 0
        self.reads_protected = True
        self.reading_deadline = math.inf

    async def _read(self) -> bool:
        self.leader = current_task()
        self.reads_protected = self.reads_protected and currently_ki_protected()
        self.reading_deadline = min(self.reading_deadline, trio.current_effective_deadline())
        self.reads += 1
        self.crew.backlog.extend(await self._receive.receive())
        return True

    async def run(self, *calls: Call) -> Any:
        """Have some calls arrive together, and wait for their ends; the last one's end."""
        self._send.send_nowait(calls)
        with trio.fail_after(1000):
            for call in calls:
                await call.ended.wait()
        await trio.testing.wait_all_tasks_blocked()
        return calls[-1].end

    def begin(self, *calls: Call) -> None:
        """Have some calls arrive together."""
        self._send.send_nowait(calls)


@asynccontextmanager
async def a_crew(*, members: int = 2, keep_deadline: bool = False) -> AsyncIterator[Rig]:
    """A crew with so many members parked: enough for its leader to be eager, and to be relieved."""
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, keep_deadline=keep_deadline)
        rig.crew.start()
        await trio.testing.wait_all_tasks_blocked()
        if members:
            gate = trio.Event()
            first = [Call(gate.wait) for _ in range(members)]
            rig.begin(*first)
            await trio.testing.wait_all_tasks_blocked()
            gate.set()
            await trio.testing.wait_all_tasks_blocked()
        yield rig
        nursery.cancel_scope.cancel()


async def _at_once() -> str:
    return "at once"


async def _after_a_wait() -> str:
    await trio.sleep(1)
    return "after a wait"


async def _time_left() -> float:
    return trio.current_effective_deadline() - trio.current_time()


async def test_1_the_deadline_is_each_calls_own(autojump_clock: trio.testing.MockClock) -> None:
    """Crew 1: one kept scope: a call's deadline is set before its first step, and gone before the next and the reader."""
    async with a_crew() as rig:
        deadline = trio.current_time() + 5
        bounded, free = Call(_time_left, deadline=deadline), Call(_time_left)
        await rig.run(bounded, free)
        assert (bounded.end, free.end) == (("returned", 5), ("returned", math.inf))
        assert bounded.task is free.task is rig.leader
        await trio.sleep(20)
        assert await rig.run(Call(_after_a_wait)) == ("returned", "after a wait")
        assert rig.reading_deadline == math.inf


async def test_1_a_deadline_ends_its_call_wherever_it_runs(autojump_clock: trio.testing.MockClock) -> None:
    """Crew 1: the same scope cancels the handler in time, eager or not."""
    async with a_crew() as rig:
        for eager in (True, False, True):
            start = trio.current_time()
            assert await rig.run(Call(trio.sleep_forever, deadline=start + 2, eager=eager)) == ("cancelled", None)
            assert trio.current_time() == start + 2


async def test_1_a_kept_deadline_is_nobody_elses(autojump_clock: trio.testing.MockClock) -> None:
    """Crew 1: a deadline that is kept while reading, and passes when bytes are there already, cancels no other call."""
    async with a_crew(keep_deadline=True) as rig:
        for _ in range(3):
            await rig.run(Call(_time_left, deadline=trio.current_time() + 5))
            leader, free = rig.leader, Call(_after_a_wait)
            rig.begin(free)
            autojump_clock.jump(20)  # The loop was late: both are due in one turn of it.
            await free.ended.wait()
            assert (free.end, free.task) == (("returned", "after a wait"), leader)


@pytest.mark.parametrize("raises", [False, True])
async def test_2_a_cancelled_scope_is_renewed(autojump_clock: trio.testing.MockClock, raises: bool) -> None:
    """Crew 2: a call that ended by itself, though it was cancelled meanwhile, leaves no cancellation to the next one."""

    async def cancels_itself() -> str:
        assert call.scope is not None
        call.scope.cancel()
        if raises:
            raise ValueError
        return "all the same"

    async with a_crew() as rig:
        for _ in range(3):
            call, next_call = Call(cancels_itself), Call(_after_a_wait)
            await rig.run(call, next_call)  # In one batch: the next one begins in the very next moment.
            assert call.end[0] == ("raised" if raises else "returned")
            assert next_call.end == ("returned", "after a wait")
            assert call.task is next_call.task


async def test_2_the_scope_of_a_call_that_suspended_is_done_with(autojump_clock: trio.testing.MockClock) -> None:
    """Crew 2: after such a call its scope is left: cancelling it late, by whatever route, touches nobody."""
    async with a_crew() as rig:
        scopes = []
        for eager in (False, True, True, True):
            call = Call(_after_a_wait, eager=eager)
            rig.begin(call)
            await trio.testing.wait_all_tasks_blocked()
            scopes.append(call.scope)
            await call.ended.wait()
            assert call.scope is None
        later = [Call(_after_a_wait) for _ in range(4)]  # In the same tasks, and running.
        rig.begin(*later)
        await trio.testing.wait_all_tasks_blocked()
        for scope in scopes:
            assert scope is not None
            scope.cancel()
        await trio.sleep(2)
        assert [call.end for call in later] == [("returned", "after a wait")] * 4


class Contexts:
    """Tells and sets a context variable."""

    @method
    async def swap(self, value: str, wait: bool) -> list[str]:
        seen = [VARIABLE.get()]
        VARIABLE.set(value)
        if wait:
            await trio.sleep(0.01)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._child, seen)
        return seen

    async def _child(self, seen: list[str]) -> None:
        seen.append(VARIABLE.get())


async def test_3_each_call_has_a_context_of_its_own(autojump_clock: trio.testing.MockClock) -> None:
    """S20, Crew 3: a fresh copy of the context of when `serve` began: calls see neither each other's nor anybody's
    later changes.
    """
    VARIABLE.set("when serve began")
    async with open_loopback(Contexts()) as pool:
        VARIABLE.set("later")
        for number in range(6):
            for wait in (False, True):
                seen = await pool.stub(Contexts).swap(f"of call {number}", wait)
                assert seen == ["when serve began", f"of call {number}"]
        assert VARIABLE.get() == "later"


async def test_4_handlers_may_be_interrupted_and_the_reader_not(autojump_clock: trio.testing.MockClock) -> None:
    """Crew 4: KeyboardInterrupt protection: on while reading, off in every step of a handler."""
    protected: list[bool] = []

    async def looks() -> None:
        protected.append(currently_ki_protected())
        await trio.sleep(1)
        protected.append(currently_ki_protected())
        try:
            await trio.sleep(1)
        finally:
            protected.append(currently_ki_protected())

    async with a_crew() as rig:
        for eager in (True, False):
            await rig.run(Call(looks, eager=eager))
            await rig.run(Call(looks, eager=eager, deadline=trio.current_time() + 1.5))
        assert rig.reads_protected
    assert protected == [False] * 12


@pytest.mark.parametrize("wait", [False, True])
async def test_4_a_keyboard_interrupt_in_a_handler_is_the_programs(
    autojump_clock: trio.testing.MockClock, wait: bool
) -> None:
    """Crew 4 and 11: it fails the call, and goes on out of the crew."""

    async def interrupted() -> None:
        if wait:
            await trio.sleep(1)
        raise KeyboardInterrupt

    call = Call(interrupted)
    with pytest.raises(BaseExceptionGroup) as caught:
        async with a_crew() as rig:
            await rig.run(call)
            await trio.sleep_forever()
    assert caught.group_contains(KeyboardInterrupt)
    assert call.end[0] == "raised"


@pytest.mark.parametrize("members", [0, 1])
async def test_5_without_a_standby_a_new_member_leads(autojump_clock: trio.testing.MockClock, members: int) -> None:
    """Crew 5: nobody was parked, or calls that are not eager have taken all who were: reading goes on all the same."""
    async with a_crew(members=members) as rig:
        slow = [Call(_after_a_wait, eager=False) for _ in range(members)]
        rig.begin(*slow)
        await trio.testing.wait_all_tasks_blocked()
        start, old_leader = trio.current_time(), rig.leader
        waiting = Call(_after_a_wait)
        rig.begin(waiting)
        assert await rig.run(Call(_at_once)) == ("returned", "at once")
        assert trio.current_time() == start
        assert waiting.task is old_leader is not rig.leader
        await waiting.ended.wait()


async def test_5_a_crew_that_never_waits_has_one_member(autojump_clock: trio.testing.MockClock) -> None:
    """Crew 5: a standby comes into being when a handler suspends, and not before."""
    async with a_crew(members=0) as rig:
        calls = [Call(_at_once) for _ in range(3)]
        await rig.run(*calls)
        assert rig.leader is not None
        nursery = rig.leader.parent_nursery
        assert nursery is not None
        assert nursery.child_tasks == {rig.leader}


async def test_5_when_a_handler_suspends_reading_goes_on(autojump_clock: trio.testing.MockClock) -> None:
    """Crew 5: the standby leads in the same moment: whatever arrives next is read and run at once."""
    async with a_crew() as rig:
        start, old_leader = trio.current_time(), rig.leader
        waiting = Call(_after_a_wait)
        rig.begin(waiting)
        assert await rig.run(Call(_at_once)) == ("returned", "at once")
        assert trio.current_time() == start
        assert (waiting.task, waiting.end) == (old_leader, None)
        assert rig.leader is not old_leader
        await waiting.ended.wait()


async def test_5_many_at_once_that_all_suspend(autojump_clock: trio.testing.MockClock) -> None:
    """Crew 5: a burst of calls that suspend contrary to expectation loses neither a call nor the reader."""
    async with a_crew() as rig:
        start = trio.current_time()
        calls = [Call(_after_a_wait) for _ in range(200)]
        await rig.run(*calls)
        assert {call.end for call in calls} == {("returned", "after a wait")}
        assert trio.current_time() == start + 1
        assert await rig.run(Call(_at_once)) == ("returned", "at once")


class StepCounter(trio.abc.Instrument):
    """Counts what happens between two turns of the scheduler."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.now = 0

    def count(self) -> None:
        self.now += 1
        self.most = max(self.most, self.now)


async def _longest_run(rig: Rig, action: Callable[[], object], calls: int) -> int:
    """The most handlers that ran in one step of their task."""
    counter = StepCounter()

    async def handler() -> None:
        action()
        counter.count()

    trio.lowlevel.add_instrument(counter)
    batch = [Call(handler) for _ in range(calls)]
    await rig.run(*batch)
    trio.lowlevel.remove_instrument(counter)
    assert all(call.task is batch[0].task for call in batch)
    return counter.most


async def test_6_the_leader_yields(autojump_clock: trio.testing.MockClock) -> None:
    """Crew 6: after 64 handlers, or 2 ms, in one go it lets other tasks run."""
    async with a_crew() as rig:
        assert await _longest_run(rig, lambda: None, 500) == RUN_CALLS == 64
        # The first moment is taken after the first call.
        assert await _longest_run(rig, lambda: autojump_clock.jump(0.0011), 50) <= 3


async def test_7_eager_or_not_is_an_estimate_that_decays(autojump_clock: trio.testing.MockClock) -> None:
    """Crew 7: a method that begins to suspend is soon given away, and is eager again soon after it has stopped to."""
    estimate = Estimate(eager=True)

    async def one(rig: Rig, handler: Handler) -> bool:
        call = Call(handler)
        call.estimate = estimate
        leader = rig.leader
        await rig.run(call)
        return call.task is leader

    async with a_crew() as rig:
        assert [await one(rig, _at_once) for _ in range(3)] == [True] * 3
        await one(rig, _after_a_wait)
        assert await one(rig, _at_once), "one exception is no habit"
        habits = [await one(rig, _after_a_wait) for _ in range(20)]
        assert habits[0]
        assert not habits[-1]
        habits = [await one(rig, _at_once) for _ in range(20)]
        assert not habits[0]
        assert habits[-1]


class Watched(trio.abc.Stream):
    """A server's stream that knows which task reads it."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.reader: trio.lowlevel.Task | None = None

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        self.reader = current_task()
        return await self.stream.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self.stream.aclose()


class Shapes:
    """One method of each shape."""

    @method
    async def unary(self) -> None: ...

    @method
    def plain(self) -> None: ...

    @method
    async def generator(self) -> AsyncGenerator[int, None]:
        yield 1

    @method
    async def collects(self, values: AsyncIterable[int]) -> int:
        return len([value async for value in values])

    @method(thread=True)
    def threaded(self) -> None: ...


async def _one() -> AsyncGenerator[int, None]:
    yield 1


async def test_8_streams_and_threads_are_never_eager() -> None:
    """Crew 8: whatever the estimate says, only unary methods are begun by the task that reads."""
    ours, theirs = memory_pipe()
    stream = Watched(theirs)
    begun: list[tuple[str, bool]] = []

    def authorize(_peer: object, name: str) -> bool:
        """Asked right before the handler is entered, in the task that will run it."""
        begun.append((name.removeprefix("Shapes."), current_task() is stream.reader))
        return True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(serve_stream, Shapes(), stream, authorize=authorize))
        async with open_connection(ours) as pool:
            stub = pool.stub(Shapes)
            async with trio.open_nursery() as several:
                for _ in range(4):
                    several.start_soon(stub.unary)
            begun.clear()
            for _ in range(2):
                await stub.unary()
                await stub.plain()
                async with stub.generator() as items:
                    await items.receive()
                await stub.collects(_one())
                await stub.threaded()
    assert set(begun) == {
        ("unary", True),
        ("plain", True),
        ("generator", False),
        ("collects", False),
        ("threaded", False),
    }


@types.coroutine
def _foreign() -> Generator[str, None, None]:
    """What another library's awaitable would hand to Trio."""
    yield "no trap of Trio's"


async def test_9_what_trio_throws_in_arrives(autojump_clock: trio.testing.MockClock) -> None:
    """Crew 9 and 4: awaiting something that is not Trio's raises Trio's own TypeError at that place, unprotected."""

    async def awaits_foreign() -> tuple[bool, bool]:
        try:
            await _foreign()
        except TypeError as exc:
            told = "unrecognized yield" in str(exc)
            return told, currently_ki_protected()
        return False, False

    async with a_crew() as rig:
        for eager in (True, False):
            assert await rig.run(Call(awaits_foreign, eager=eager)) == ("returned", (True, False))


async def test_9_traps_pass_unchanged_in_the_same_task(autojump_clock: trio.testing.MockClock) -> None:
    """Crew 9: what a handler awaits gets the very value or exception that it was rescheduled with, in its first task."""
    parked: list[trio.lowlevel.Task] = []
    value, error = object(), ValueError("thrown in")

    async def parks() -> tuple[object, object, int]:
        tasks = {current_task()}
        parked.append(current_task())
        first = await wait_task_rescheduled(lambda _: Abort.FAILED)
        tasks.add(current_task())
        parked.append(current_task())
        second: object = None
        try:
            await wait_task_rescheduled(lambda _: Abort.FAILED)
        except ValueError as exc:
            second = exc
        tasks.add(current_task())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 1)
        return first, second, len(tasks)

    async with a_crew() as rig:
        for eager in (True, False):
            call = Call(parks, eager=eager)
            rig.begin(call)
            await trio.testing.wait_all_tasks_blocked()
            assert parked[-1] is call.task
            reschedule(parked[-1], outcome.Value(value))
            await trio.testing.wait_all_tasks_blocked()
            reschedule(parked[-1], outcome.Error(error))
            await call.ended.wait()
            assert call.end == ("returned", (value, error, 1))


class Reporting:
    call: Any = None

    @method
    async def waits(self) -> None:
        type(self).call = current_call()
        await trio.sleep(1)


async def test_10_the_call_keeps_its_coroutine(autojump_clock: trio.testing.MockClock) -> None:
    """Crew 10: from the table of calls one finds where each handler waits, as long as it does."""
    async with open_loopback(Reporting()) as pool, trio.open_nursery() as nursery:
        nursery.start_soon(pool.stub(Reporting).waits)
        await trio.testing.wait_all_tasks_blocked()
        coroutine = Reporting.call.coroutine
        assert inspect.getcoroutinestate(coroutine) == inspect.CORO_SUSPENDED
        assert "waits" in coroutine.__qualname__
        await trio.sleep(2)
        assert Reporting.call.coroutine is None


async def _fails_when_cancelled() -> None:
    try:
        await trio.sleep_forever()
    finally:
        raise ValueError("in the clean-up")


async def _mixed() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_fails_when_cancelled)
        nursery.start_soon(trio.sleep_forever)


@pytest.mark.parametrize("eager", [True, False])
async def test_11_cancelled_belongs_to_its_scope(autojump_clock: trio.testing.MockClock, eager: bool) -> None:
    """Crew 11: what is reported of a cancelled call is its own failure, without the Cancelled beside it, or `cancelled`."""
    async with a_crew() as rig:
        mixed = Call(_mixed, eager=eager, deadline=trio.current_time() + 1)
        kind, exc = await rig.run(mixed)
        assert kind == "raised"
        assert isinstance(exc, ExceptionGroup)
        assert [type(inner) for inner in exc.exceptions] == [ValueError]
        plain = Call(trio.sleep_forever, eager=eager, deadline=trio.current_time() + 1)
        assert await rig.run(plain) == ("cancelled", None)
        assert await rig.run(Call(_after_a_wait, eager=eager)) == ("returned", "after a wait")


@pytest.mark.parametrize("eager", [True, False])
async def test_11_the_connections_end_is_no_calls_failure(autojump_clock: trio.testing.MockClock, eager: bool) -> None:
    """P07, crew 11: a Cancelled from outside passes through, without what a handler raised beside it: that is its
    call's.
    A call that raised nothing else neither failed nor was it cancelled. It is cut off.
    """
    calls = [Call(trio.sleep_forever, eager=eager), Call(_mixed, eager=eager)]
    async with a_crew() as rig:
        rig.begin(*calls)
        await trio.testing.wait_all_tasks_blocked()
    assert calls[0].end == ("cut off", None)
    kind, exc = calls[1].end
    assert kind == "raised"
    assert isinstance(exc, ExceptionGroup)
    assert [type(inner) for inner in exc.exceptions] == [ValueError]
