"""The limit that follows the latency: its arithmetic, and what becomes of a server under it."""

from __future__ import annotations

import heapq
import random
from collections.abc import AsyncGenerator

import attrs
import pytest
import trio
import trio.testing

from trio_rpc import Overloaded, method, open_pool, open_server
from trio_rpc._adaptive import Gradient2
from trio_rpc._policies import AdaptiveLimit
from trio_rpc.testing import MemoryListener

WIDE = AdaptiveLimit(initial=20, minimum=1, maximum=1000)


def short_time(limit: Gradient2, now: float, latency: float, running: int, calls: int = 10) -> float:
    """Tell it of so many calls within one short time; the time by then."""
    for call in range(calls):
        limit.note(latency, running, now + 0.1 * (call + 1) / calls)
    return now + 0.1


# What the latency was in the first short times, and in the last; how many were running then; the limit's next value.
STEPS: dict[str, tuple[AdaptiveLimit, float, float, int, float]] = {
    "no slower: it grows by a fifth of the step": (WIDE, 0.1, 0.1, 20, 20 + 0.2 * 4),
    "a little slower is normal": (WIDE, 0.1, 0.15, 20, 20 + 0.2 * 4),
    "faster: no more than that": (WIDE, 0.1, 0.01, 20, 20 + 0.2 * 4),
    "twice as slow": (WIDE, 0.1, 0.2, 20, 20 + 0.2 * (20 * 0.75 + 4 - 20)),
    "a hundred times as slow": (WIDE, 0.1, 10, 20, 20 + 0.2 * (20 * 0.5 + 4 - 20)),
    "less than half in use: whatever the latency is": (WIDE, 0.1, 10, 9, 20),
    "half in use": (WIDE, 0.1, 0.1, 10, 20 + 0.2 * 4),
    "nothing at all": (WIDE, 0, 0, 20, 20 + 0.2 * 4),
    "at its maximum": (attrs.evolve(WIDE, maximum=20), 0.1, 0.1, 20, 20),
    "at its minimum": (attrs.evolve(WIDE, minimum=20), 0.1, 10, 20, 20),
    "less tolerant": (attrs.evolve(WIDE, tolerance=1), 0.1, 0.2, 20, 20 + 0.2 * (20 * 0.5 + 4 - 20)),
    "without smoothing": (attrs.evolve(WIDE, smoothing=1), 0.1, 0.2, 20, 20 * 0.75 + 4),
}


@pytest.mark.parametrize(("config", "before", "after", "running", "limit"), STEPS.values(), ids=STEPS)
def test_a_step(config: AdaptiveLimit, before: float, after: float, running: int, limit: float) -> None:
    """By the published formula: the limit times the ratio of latencies, plus the step, smoothed; within its bounds."""
    gradient, now = Gradient2(config, 0.0), 0.0
    for _ in range(20):
        now = short_time(gradient, now, before, 1)  # Far less than half in use.
    assert gradient.estimate == 20
    short_time(gradient, now, after, running)
    assert gradient.estimate == pytest.approx(limit, abs=0.05)  # The average has learned a little from the last, too.
    assert gradient.limit == int(gradient.estimate)


def test_a_few_calls_tell_nothing() -> None:
    """One slow call, or nine, may be of a slow method; and ten in no time may be one burst."""
    gradient, now = Gradient2(WIDE, 0.0), 0.0
    for _ in range(20):
        now = short_time(gradient, now, 0.1, 1)
    short_time(gradient, now, 10, 20, calls=9)
    for _ in range(100):
        gradient.note(10, 20, now)
    assert gradient.limit == 20
    gradient.note(10, 20, now + 0.1)
    assert gradient.limit == 18


def test_what_is_left_of_a_slow_time_is_forgotten_soon() -> None:
    """A long-term latency of more than twice the present one falls by a twentieth in each short time."""
    gradient, now = Gradient2(WIDE, 0.0), 0.0
    for _ in range(20):
        now = short_time(gradient, now, 1, 1)
    for _ in range(10):
        now = short_time(gradient, now, 0.1, 1)
    assert gradient.long_latency == pytest.approx(0.95**10, rel=0.05)
    for _ in range(30):
        now = short_time(gradient, now, 0.1, 1)
    assert 0.15 < gradient.long_latency <= 0.2


def simulate(
    config: AdaptiveLimit, seconds: float, *, clients: int, capacity: int, slower_at: float = 1e9, factor: float = 1
) -> tuple[list[int], list[float]]:
    """Clients that call again at once, or a little later if refused, of a server that takes 0.1 s for each call.

    Beyond its capacity, calls take longer in proportion. Returns the limits, and the latencies of the last tenth.
    """
    rng, gradient = random.Random(7), Gradient2(config, 0.0)
    running, limits, latencies = 0, [], []
    due: list[tuple[float, int, float | None]] = [(rng.random(), client, None) for client in range(clients)]
    heapq.heapify(due)
    while due[0][0] < seconds:
        now, client, began = heapq.heappop(due)
        if began is not None:
            gradient.note(now - began, running, now)
            running -= 1
            limits.append(gradient.limit)
            if now > seconds * 0.9:
                latencies.append(now - began)
        if running < gradient.limit:
            running += 1
            base = 0.1 * (factor if now > slower_at else 1)
            took = base * rng.uniform(0.5, 1.5) * max(1.0, running / capacity)
            heapq.heappush(due, (now + took, client, now))
        else:
            heapq.heappush(due, (now + rng.uniform(0.1, 1), client, None))
    return limits, latencies


QUICK = AdaptiveLimit(window=100)
"""The long term is ten seconds."""


def test_a_lasting_overload_does_not_become_the_new_normal() -> None:
    """After minutes with eight times what a server can bear, the limit is near that, and latency less than twice."""
    limits, latencies = simulate(QUICK, 240, clients=400, capacity=50)
    later = limits[len(limits) // 2 :]
    assert 40 < sum(later) / len(later) < 100
    assert max(later) < 150
    assert sum(latencies) / len(latencies) < 0.2


def test_a_server_that_has_become_slower_for_good_is_used_all_the_same() -> None:
    """Its calls take three times as long, from now on: the limit falls, and rises again as that has become normal."""
    limits, latencies = simulate(QUICK, 240, clients=400, capacity=50, slower_at=60, factor=3)
    later = limits[len(limits) * 9 // 10 :]
    assert min(limits[len(limits) // 4 :]) == 20
    assert 40 < sum(later) / len(later) < 100
    assert sum(latencies) / len(latencies) < 0.6


def test_who_asks_for_little_is_never_refused() -> None:
    """Where callers limit themselves, the limit stays above what they use."""
    limits, latencies = simulate(QUICK, 60, clients=30, capacity=50)
    assert min(limits[len(limits) // 4 :]) > 30
    assert max(latencies) <= 0.15


class Crowded:
    """What each call takes grows with the number of calls beyond ten."""

    def __init__(self) -> None:
        self.running = 0
        self.times: list[float] = []

    @method
    async def work(self) -> None:
        begun = trio.current_time()
        self.running += 1
        await trio.sleep(0.1 * max(1, self.running / 10))
        self.running -= 1
        self.times.append(trio.current_time() - begun)

    @method
    async def listen(self) -> None:
        await trio.sleep(1000)

    @method
    async def news(self) -> AsyncGenerator[str, None]:
        yield "old"
        await trio.sleep(3)
        yield "new"


async def mean_time(adaptive: AdaptiveLimit | None) -> float:
    """What a call takes on the mean that is taken, with four times the callers that the server can bear."""
    crowded, listener = Crowded(), MemoryListener()
    async with open_server(crowded, listener, adaptive=adaptive) as server, open_pool(listener.connect) as pool:
        async with trio.open_nursery() as nursery:

            async def call_on() -> None:
                while True:
                    try:
                        await pool.stub(Crowded).work()
                    except Overloaded:  # Even after the retries that its budget allows.
                        await trio.sleep(1)

            for _ in range(40):
                nursery.start_soon(call_on)
            await trio.sleep(30)
            stats = server.statistics()
            assert (stats.adaptive_limit is None) == (adaptive is None)
            assert (stats.refused_adaptive > 0) == (adaptive is not None)
            assert stats.refused == stats.refused_adaptive
            nursery.cancel_scope.cancel()
    late = crowded.times[len(crowded.times) // 2 :]
    return sum(late) / len(late)


async def test_a_server_under_it_stays_fast(autojump_clock: trio.testing.MockClock) -> None:
    """Calls that are taken take less than twice their time, and four times as long where there is no such limit."""
    assert 0.1 <= await mean_time(AdaptiveLimit(initial=5, minimum=5)) < 0.2
    assert await mean_time(None) == pytest.approx(0.4, rel=0.1)


async def test_what_callers_cancel_tells_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """How long they wanted to wait is no latency, and neither is how long a stream lasts: the limit does not fall."""
    listener = MemoryListener()
    adaptive = AdaptiveLimit(initial=60, minimum=10)
    async with open_server(Crowded(), listener, adaptive=adaptive) as server:
        async with open_pool(listener.connect) as pool, trio.open_nursery() as nursery:

            async def call_on() -> None:
                while True:
                    await pool.stub(Crowded).work()

            async def give_up() -> None:
                while True:
                    with trio.move_on_after(3) as scope:
                        await pool.stub(Crowded).listen()
                    assert scope.cancelled_caught

            async def follow() -> None:
                while True:
                    async with pool.stub(Crowded).news() as news:
                        assert [item async for item in news] == ["old", "new"]

            for _ in range(10):
                nursery.start_soon(call_on)
            await trio.sleep(10)
            for _ in range(15):
                nursery.start_soon(give_up)
                await trio.sleep(0.1)  # So that some end all the time.
                nursery.start_soon(follow)
                await trio.sleep(0.1)
            await trio.sleep(10)
            stats = server.statistics()
            assert stats.adaptive_limit is not None
            assert stats.adaptive_limit >= 60
            nursery.cancel_scope.cancel()
