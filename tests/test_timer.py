"""One timer for many moments: in order, on time, and never from within the call that asks for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing
from hypothesis import given, strategies as st
from trio.testing import MockClock

from trio_rpc._timer import Timer


class Record:
    """What was called, and when."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, float]] = []

    def of(self, name: float) -> Callable[[float], None]:
        """An action that notes `name` and the time."""
        return lambda _late: self.calls.append((name, trio.current_time()))


@asynccontextmanager
async def running(timer: Timer) -> AsyncIterator[None]:
    """Run the timer for a block."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timer.run)
        yield
        nursery.cancel_scope.cancel()


async def test_moments_come_in_order(autojump_clock: MockClock) -> None:
    """Whatever the order in which they were asked for, before or while it runs."""
    timer, record = Timer(), Record()
    timer.at(3, record.of(3))
    async with running(timer):
        for when in (5, 1, 4):
            timer.at(when, record.of(when))
        await trio.sleep(2)
        timer.at(2.5, record.of(2.5))
        await trio.sleep(10)
    assert record.calls == [(1, 1), (2.5, 2.5), (3, 3), (4, 4), (5, 5)]


async def test_equal_moments_keep_the_order_of_asking(autojump_clock: MockClock) -> None:
    """Functions need not be comparable for it."""
    timer, record = Timer(), Record()
    async with running(timer):
        for number in range(5):
            timer.at(1, record.of(number))
        await trio.sleep(2)
    assert record.calls == [(number, 1) for number in range(5)]


async def test_now_is_later_than_this_call(autojump_clock: MockClock) -> None:
    """Also from within an action: whoever asks for now, again and again, starves nobody."""
    timer, calls = Timer(), 0

    def again(_late: float) -> None:
        nonlocal calls
        calls += 1
        timer.at(trio.current_time(), again)

    async with running(timer):
        timer.at(trio.current_time(), again)
        assert calls == 0
        for _ in range(20):
            await trio.lowlevel.checkpoint()
        assert 5 <= calls <= 25


async def test_lateness_is_told(autojump_clock: MockClock) -> None:
    """How long ago the moment was, so that nobody is blamed for a loop that was late."""
    timer = Timer()
    late: list[float] = []
    async with running(timer):
        timer.at(-2, late.append)
        timer.at(1, late.append)
        await trio.sleep(2)
    assert late == [2, 0]


async def test_what_is_forgotten_does_not_come(autojump_clock: MockClock) -> None:
    """Nor is anything kept for it, or the timer woken by it; the others come as if it had never been."""
    timer, record = Timer(), Record()
    async with running(timer):
        moments = [timer.at(number / 1000, record.of(number)) for number in range(1000)]
        for moment in moments[1:]:
            timer.forget(moment)
            timer.forget(moment)
        await trio.sleep(5)
        timer.forget(moments[0])
        timer.at(6, record.of(6))
        await trio.sleep(5)
    assert record.calls == [(0, 0), (6, 6)]


async def test_stopped_it_ends(autojump_clock: MockClock) -> None:
    """Whether it runs by then or not; and although it is shielded."""
    for early in (False, True):
        timer, record = Timer(), Record()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(timer.run, shield=True))
            timer.at(trio.current_time() + 1, record.of(1))
            if not early:
                await trio.testing.wait_all_tasks_blocked()
            timer.stop()
        assert record.calls == []


async def test_never_is_never(autojump_clock: MockClock) -> None:
    """An infinite moment does not come, and does not keep an autojump clock from resting."""
    timer = Timer()
    async with running(timer):
        timer.at(float("inf"), lambda _late: pytest.fail("never"))
        await trio.sleep(80_000)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), max_size=30))
def test_each_moment_comes_once_and_on_time(requests: list[tuple[float, float]]) -> None:
    """For any requests `(asked at, due)`: called at the due moment, or at once if that has passed."""

    async def main() -> None:
        timer, record = Timer(), Record()
        async with running(timer):
            for asked_at, due in sorted(requests):
                await trio.sleep_until(asked_at)
                timer.at(due, record.of(due))
            await trio.sleep(200)
        assert sorted(record.calls) == sorted((due, max(asked_at, due)) for asked_at, due in requests)

    trio.run(main, clock=MockClock(autojump_threshold=0))
