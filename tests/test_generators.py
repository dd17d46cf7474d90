"""One task drives a generator from its first step to its last, and what is raised comes out at its `yield`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
import trio
import trio.testing

from trio_rpc._generators import Stopped, as_generator, drive


class Recorder:
    """A sink that writes down what happens, and whose consumer takes one item each `pace` seconds, or never.

    Attributes:
        log: items as they are handed over, in batches.
        limit: how many items are gathered before there is no more room.
    """

    def __init__(self, *, limit: int = 1, pace: float = 0, stop_after: int | None = None) -> None:
        self.log: list[list[Any]] = []
        self.times: list[float] = []
        self.rooms = 0
        self._gathered: list[Any] = []
        self._limit, self._pace, self._stop_after = limit, pace, stop_after

    def batch(self) -> tuple[Callable[[Any], object], int]:
        return self._put, self._limit

    def _put(self, item: Any) -> None:
        self._gathered.append(item)
        self.times.append(trio.current_time())

    def flush(self) -> None:
        if self._gathered:
            self.log.append(self._gathered)
            self._gathered = []

    async def room(self) -> None:
        self.rooms += 1
        await trio.sleep(self._pace)
        if self._stop_after is not None and len(self.items) >= self._stop_after:
            raise Stopped

    @property
    def items(self) -> list[Any]:
        """Everything that was handed over."""
        return [item for batch in self.log for item in batch]


async def count(upto: int) -> AsyncGenerator[int, None]:
    """Yield so many numbers, without a suspension."""
    for number in range(upto):
        yield number


async def test_items_arrive_in_order() -> None:
    """Every item goes through the sink, and the last is flushed."""
    sink = Recorder(limit=4)
    await drive(count(10), sink)
    assert sink.log == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


async def test_a_batch_is_handed_over_before_the_generator_waits() -> None:
    """Items gather while the generator runs on, and never wait for it."""
    sink = Recorder(limit=100)
    seen: list[list[list[int]]] = []

    async def bursts() -> AsyncGenerator[int, None]:
        yield 1
        yield 2
        with trio.CancelScope() as waiting:
            nursery.start_soon(look, waiting)
            await trio.sleep_forever()
        yield 3

    async def look(waiting: trio.CancelScope) -> None:
        seen.append(list(sink.log))
        waiting.cancel()

    async with trio.open_nursery() as nursery:
        await drive(bursts(), sink)
    assert seen == [[[1, 2]]]
    assert sink.log == [[1, 2], [3]]


async def test_no_generator_starves_the_others() -> None:
    """One that never waits itself yields to the scheduler once for each batch."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        await drive(count(640), sink := Recorder(limit=64))
        nursery.cancel_scope.cancel()
    assert ticks >= 9
    assert sink.rooms == 10


async def test_the_generators_own_deadline_fires_at_its_yield(autojump_clock: trio.testing.MockClock) -> None:
    """A scope held open across yields fires at its very time, while the consumer sleeps, and is the generator's own."""
    log: list[object] = []

    async def limited() -> AsyncGenerator[str, None]:
        with trio.move_on_after(2.5) as scope:
            for name in "abcdef":
                yield name
        log.append((trio.current_time(), scope.cancelled_caught))
        yield "late"

    start = trio.current_time()
    sink = Recorder(pace=1)
    await drive(limited(), sink)
    assert log == [(start + 2.5, True)]
    assert sink.items == ["a", "b", "c", "late"]
    assert [time - start for time in sink.times] == [0, 1, 2, 2.5]


async def test_a_nursery_across_yields_runs_on(autojump_clock: trio.testing.MockClock) -> None:
    """Children run while the generator waits for its consumer, and their failure comes up inside of it."""

    async def fail() -> None:
        await trio.sleep(1.5)
        raise ValueError("child")

    async def supervised() -> AsyncGenerator[str, None]:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail)
                for name in "abcdef":
                    yield name
        except* ValueError as group:
            yield str(group.exceptions[0])

    sink = Recorder(pace=1)
    await drive(supervised(), sink)
    assert sink.items == ["a", "b", "child"]


async def watched(log: list[str], *, swallow: bool = False) -> AsyncGenerator[int, None]:
    """Write down how it ends."""
    try:
        while True:
            yield 1
    except BaseException as exc:
        log.append(type(exc).__name__)
        if not swallow:
            raise
    finally:
        with trio.CancelScope(shield=True):
            await trio.lowlevel.checkpoint()
        log.append("cleaned")


async def test_a_consumer_that_left_closes_the_generator() -> None:
    """Stopped means GeneratorExit at the yield, and that the clean-up has run."""
    log: list[str] = []
    await drive(watched(log), Recorder(stop_after=3))
    assert log == ["GeneratorExit", "cleaned"]


async def test_a_cancelled_driver_cancels_the_generator_at_its_yield() -> None:
    """The generator sees Cancelled, not GeneratorExit, and the cancellation goes on."""
    log: list[str] = []
    with trio.CancelScope() as scope:
        scope.cancel()
        await drive(watched(log), Recorder())
    assert scope.cancelled_caught
    assert log == ["Cancelled", "cleaned"]


async def test_what_the_generator_handles_is_not_raised() -> None:
    """It may end quietly on a cancellation: then that is the end, as for any coroutine that does so."""
    log: list[str] = []
    with trio.CancelScope() as scope:
        scope.cancel()
        await drive(watched(log, swallow=True), Recorder())
    assert not scope.cancelled_caught
    assert log == ["Cancelled", "cleaned"]


async def test_what_the_sink_raises_is_thrown_in_at_the_yield() -> None:
    """A bad item is its generator's to handle, and costs only itself."""
    handled: list[str] = []

    class Faulty(Recorder):
        async def room(self) -> None:
            await super().room()
            if self.items[-1] == "bad":
                raise ValueError("bad item")

    async def offering() -> AsyncGenerator[Any, None]:
        for item in ("good", "bad", "more"):
            try:
                yield item
            except ValueError as exc:
                handled.append(str(exc))

    sink = Faulty()
    await drive(offering(), sink)
    assert handled == ["bad item"]
    assert [item for item in sink.items if item != "bad"] == ["good", "more"]


async def test_errors_come_out_bare() -> None:
    """The generator's own error is raised as it is, behind the items before it."""
    error = KeyError("mine")

    async def failing() -> AsyncGenerator[int, None]:
        yield 1
        raise error

    sink = Recorder(limit=10)
    with pytest.raises(KeyError) as caught:
        await drive(failing(), sink)
    assert caught.value is error
    assert sink.items == [1]


async def test_all_steps_are_in_one_task() -> None:
    """So that scopes and context variables belong together."""
    tasks: set[object] = set()

    async def where() -> AsyncGenerator[int, None]:
        try:
            for number in range(3):
                tasks.add(trio.lowlevel.current_task())
                yield number
        finally:
            tasks.add(trio.lowlevel.current_task())

    await drive(where(), Recorder(stop_after=2))
    assert tasks == {trio.lowlevel.current_task()}


async def test_what_is_no_generator_is_only_iterated() -> None:
    """A receive channel stays open and stays its owner's; a generator is driven itself."""
    send, receive = trio.open_memory_channel[int](10)
    for number in range(5):
        send.send_nowait(number)
    sink = Recorder(stop_after=2)
    await drive(as_generator(receive), sink)
    assert sink.items == [0, 1]
    assert receive.receive_nowait() == 2
    generator = count(1)
    assert as_generator(generator) is generator
    await generator.aclose()
    send.close()
    receive.close()


async def test_leaving_a_generator_that_holds_a_nursery_open_is_no_failure() -> None:
    """The nursery puts GeneratorExit into a group; it stays the ordinary end, and the nursery's tasks have ended."""
    ended = trio.Event()

    async def work() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async def generate() -> AsyncGenerator[int, None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            yield 1

    await drive(generate(), Recorder(stop_after=1))
    assert ended.is_set()


async def test_a_failure_beside_generator_exit_is_told_without_it() -> None:
    """What a nursery's task raises while the generator is closed comes out, and GeneratorExit is left out of it."""

    async def fail() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("the clean-up failed")

    async def generate() -> AsyncGenerator[int, None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            yield 1

    with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="the clean-up failed")):
        await drive(generate(), Recorder(stop_after=1))
