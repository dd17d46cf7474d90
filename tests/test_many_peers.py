"""Several peers behind one pool, over memory and on a virtual clock: who is left out, who is waited for, who is replaced.

The numbers are those of the acceptance list; its other items are in `test_acceptance.py`, or named there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

import trio_rpc
from tests.guarantees.kit import Lab, numbers
from tests.scripted import watchdog
from trio_rpc import (
    Backoff,
    Code,
    ConnectError,
    OutlierEjection,
    PoolEvent,
    PoolLimits,
    PoolTimeout,
    RemoteError,
    RoundRobin,
    method,
    open_pool,
    open_server,
)
from trio_rpc.testing import Delay, FaultyStream, MemoryListener, memory_pipe, no_leaks

QUIET = trio_rpc.Heartbeat(interval=None)


# -- ejection ----------------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Host:
    """One of many; it fails all its calls while it is bad."""

    name: str
    bad: bool = False

    @method
    async def work(self) -> str:
        if self.bad:
            raise RemoteError(f"{self.name} is bad", code=Code.UNAVAILABLE)
        return self.name


@attrs.define
class Hosts:
    """Hosts a, b, c and so on, and a pool over all of them."""

    hosts: list[Host]
    pool: trio_rpc.Pool
    events: trio.MemoryReceiveChannel[PoolEvent]

    def be_bad(self, names: str) -> None:
        """Let these be bad, and no others."""
        for host in self.hosts:
            host.bad = host.name in names

    async def ask(self, times: int) -> tuple[Counter[str], Counter[str]]:
        """So many calls, one after the other: which hosts served how many, and which failed how many."""
        served, failed = Counter[str](), Counter[str]()
        for _ in range(times):
            try:
                served[await self.pool.stub(Host).work()] += 1
            except RemoteError as exc:
                failed[exc.message[0]] += 1
        return served, failed

    @property
    def out(self) -> str:
        """Who is ejected now."""
        return "".join(target.address for target in self.pool.endpoints if target.statistics().ejected)

    async def news(self) -> tuple[str, str | None, float]:
        """The next ejection or restoration: which, whose, and when."""
        while True:
            event = await self.events.receive()
            if event.kind in ("ejected", "restored"):
                return event.kind, event.endpoint, round(event.time, 6)


@asynccontextmanager
async def open_hosts(count: int, ejection: OutlierEjection | None) -> AsyncIterator[Hosts]:
    """So many servers and a pool that takes them in turn; a call takes no time."""
    hosts = [Host(chr(ord("a") + number)) for number in range(count)]
    async with watchdog(), AsyncExitStack() as stack:
        target: dict[str, Callable[[], Awaitable[trio.abc.Stream]]] = {}
        for host in hosts:
            listener = MemoryListener()
            await stack.enter_async_context(open_server(host, listener, heartbeat=QUIET))
            target[host.name] = listener.connect
        limits = PoolLimits(max_connections=1)
        opening = open_pool(target, limits=limits, heartbeat=QUIET, balance=RoundRobin(), ejection=ejection)
        pool = await stack.enter_async_context(opening)
        await pool.wait_connected(count)
        yield Hosts(hosts, pool, await stack.enter_async_context(pool.events(buffer=1000)))


@pytest.mark.parametrize(
    ("ejection", "times"),
    [
        (OutlierEjection(), [0, 30, 30, 90]),
        (OutlierEjection(consecutive=None), [10, 40, 50, 110]),
        (OutlierEjection(consecutive=None, failure_share=None, deviations_calls=50), [10, 40, 50, 110]),
    ],
    ids=["five in a row", "share of failures", "deviation"],
)
async def test_one_of_ten_fails_all_its_calls(
    autojump_clock: MockClock, ejection: OutlierEjection, times: list[float]
) -> None:
    """57: it is ejected for 30 s, then for 60 s; a second one as bad stays meanwhile, as a tenth of ten is one."""
    async with open_hosts(10, ejection) as world:
        others = Counter(dict.fromkeys("bcdefghij", 50))
        for ejected_at, restored_at in (times[:2], times[2:]):
            world.be_bad("a")
            _, failed = await world.ask(500)
            assert failed == {"a": 50 if ejection.consecutive is None else ejection.consecutive}
            assert await world.news() == ("ejected", "a", ejected_at)
            world.be_bad("ab")
            served, failed = await world.ask(450)
            assert (served + failed, failed) == (others, {"b": 50})
            await trio.sleep(11)  # There is a sweep in that.
            assert (trio.current_time() - ejected_at, world.out) == (11, "a")
            world.be_bad("a")
            assert (await world.ask(450))[0] == others
            assert await world.news() == ("restored", "a", restored_at)
            assert world.out == ""
        world.be_bad("")
        assert (await world.ask(500))[0] == others + Counter(a=50)
        stats = world.pool.statistics()
        assert (stats.connects, stats.lost, stats.connections) == (10, 0, 10)


@pytest.mark.parametrize(("count", "out"), [(1, 0), (2, 1), (10, 1), (19, 1), (20, 2)])
async def test_a_tenth_is_ejected_at_most(autojump_clock: MockClock, count: int, out: int) -> None:
    """57: or one, where that is more; however many are bad. The only one is none of several."""
    async with open_hosts(count, OutlierEjection()) as world:
        world.be_bad("".join(host.name for host in world.hosts))
        for _ in range(3):
            await world.ask(50 * count)
            assert len(world.out) == out
            await trio.sleep(8)


@pytest.mark.parametrize("panic", [0.5, 0])
async def test_where_all_are_bad_all_are_picked_from(autojump_clock: MockClock, panic: float) -> None:
    """58: with all ejected, calls go to all in turn, at once; and have results as soon as there are any to be had."""
    async with open_hosts(10, OutlierEjection(max_share=1, panic=panic)) as world:
        everyone = "abcdefghij"
        world.be_bad(everyone)
        await world.ask(200)
        assert world.out == everyone
        assert await world.ask(100) == (Counter(), Counter(dict.fromkeys(everyone, 10)))
        world.be_bad("")
        assert await world.ask(100) == (Counter(dict.fromkeys(everyone, 10)), Counter())
        assert (trio.current_time(), world.out) == (0, everyone)
        await trio.sleep(30)
        assert world.out == ""


async def test_in_a_panic_the_ejected_are_picked_too(autojump_clock: MockClock) -> None:
    """58: with fewer than half left. Those could not bear what was meant for all."""
    async with open_hosts(10, OutlierEjection(max_share=1)) as world:
        world.be_bad("abcde")
        await world.ask(200)
        assert world.out == "abcde"
        served, failed = await world.ask(100)
        assert (served, failed) == (Counter(dict.fromkeys("fghij", 20)), Counter())
        world.be_bad("abcdef")
        await world.ask(100)
        assert world.out == "abcdef"
        served, failed = await world.ask(100)
        assert (served, failed) == (Counter(dict.fromkeys("ghij", 10)), Counter(dict.fromkeys("abcdef", 10)))


# -- nobody there ------------------------------------------------------------------------------------------------------


async def test_a_peer_that_closes_every_connection(autojump_clock: MockClock) -> None:
    """36: in 540 s it is dialled about 13 times, later and later: 1 s, times 1.6, at most 120 s, a fifth more or less."""
    dialled_at: list[float] = []

    async def hangs_up() -> trio.abc.Stream:
        dialled_at.append(trio.current_time())
        ours, theirs = memory_pipe()
        await theirs.aclose()
        return ours

    async with watchdog(), open_pool({"a": hangs_up}, heartbeat=QUIET):
        await trio.sleep(540)
    assert len(dialled_at) in (13, 14, 15)
    gaps = [later - earlier for earlier, later in pairwise(dialled_at)]
    shares = [gap / min(1.6**number, 120) for number, gap in enumerate(gaps)]
    assert 0.8 <= min(shares) < max(shares) <= 1.2


async def refuse_after(seconds: float, why: str) -> trio.abc.Stream:
    """A dial that fails then."""
    await trio.sleep(seconds)
    raise ConnectError(why)


async def ends_at(call: Awaitable[object]) -> tuple[object, float]:
    """What becomes of a call, and when."""
    try:
        return await call, trio.current_time()
    except trio_rpc.RpcError as exc:
        return exc, trio.current_time()


async def test_whom_an_outage_concerns(autojump_clock: MockClock) -> None:
    """60: fail-fast dies with the dial error once no endpoint is left to hope for, the default after
    `acquire_timeout`, with the same error as its cause; what waits for ready waits until somebody is there.
    """
    listener, outcomes, states = MemoryListener(), dict[str, Any](), list[str]()
    target: dict[str, Any] = {"a": partial(refuse_after, 1, "a is down"), "b": partial(refuse_after, 2, "b is down")}

    async def connect() -> trio.abc.Stream:
        return await target["b"]()  # type: ignore[no-any-return]

    limits = PoolLimits(acquire_timeout=10, connect_backoff=Backoff(initial=3, factor=1, jitter=0))
    async with watchdog(), trio.open_nursery() as nursery:
        async with open_pool({"a": target["a"], "b": connect}, limits=limits, heartbeat=QUIET) as pool:

            async def call(name: str, **options: Any) -> None:
                outcomes[name] = await ends_at(pool.stub(Lab, **options).echo(name))

            async with trio.open_nursery() as callers:
                callers.start_soon(partial(call, "fast", wait_for_ready=False))
                callers.start_soon(call, "default")
                callers.start_soon(partial(call, "hasty", acquire_timeout=4))
                callers.start_soon(partial(call, "patient", wait_for_ready=True))
                await trio.sleep(1.5)
                states.append(pool.state.value)
                assert not outcomes
                await trio.sleep(1)
                states.append(pool.state.value)
                await call("fast, later", wait_for_ready=False)
                await trio.sleep(20)
                assert outcomes.keys() == {"fast", "fast, later", "hasty", "default"}
                target["b"] = listener.connect
                await nursery.start(trio_rpc.serve, Lab(), listener)
            await call("fast, at last", wait_for_ready=False)
        nursery.cancel_scope.cancel()

    assert states == ["connecting", "transient failure"]
    assert outcomes["patient"] == ("patient", 24)
    assert outcomes["fast, at last"] == ("fast, at last", 24)
    for name, kind, when in (
        ("fast", ConnectError, 2),
        ("fast, later", ConnectError, 2.5),
        ("hasty", PoolTimeout, 4),
        ("default", PoolTimeout, 10),
    ):
        error, at = outcomes[name]
        assert (type(error), at, error.may_have_run) == (kind, when, False)
        assert "is down" in str(error)
    for name in ("hasty", "default"):
        assert isinstance(outcomes[name][0].__cause__, ConnectError)


# -- a rolling restart -------------------------------------------------------------------------------------------------


@attrs.define
class Place:
    """An endpoint at which one server after the other listens."""

    latency: float
    listener: MemoryListener = attrs.Factory(MemoryListener)
    labs: list[Lab] = attrs.Factory(list)

    async def connect(self) -> trio.abc.Stream:
        return await self.listener.connect()

    async def keep(self, drain: trio.MemoryReceiveChannel[float], task_status: trio.TaskStatus[None]) -> None:
        """Serve; at each word, drain, and be gone for so many seconds."""
        while True:
            self.labs.append(Lab())
            self.listener = MemoryListener(wrap=lambda stream: FaultyStream(stream, Delay(self.latency)))
            async with open_server(self.labs[-1], self.listener) as server:
                task_status.started()
                task_status = trio.TASK_STATUS_IGNORED
                away = await drain.receive()
                await server.drain(grace=10)
            await trio.sleep(away)


async def slowly(upto: int) -> AsyncGenerator[int, None]:
    """Numbers, as they come up."""
    async for number in numbers(upto):
        yield number
        await trio.sleep(0.02)


async def receives(stub: Lab) -> object:
    """A stream that comes."""
    async with stub.count(30) as items:
        return [int(item) async for item in items] == list(range(30))


async def converses(stub: Lab) -> object:
    """Streams both ways."""
    async with stub.doubled(slowly(20)) as items:
        return [item async for item in items] == list(range(0, 40, 2))


SHAPES: dict[str, tuple[Callable[[Lab], Awaitable[object]], object]] = {
    "once": (lambda stub: stub.sleep(0.3), "slept"),
    "again": (lambda stub: stub.sleep_again(0.05), "slept"),
    "sends": (lambda stub: stub.total(slowly(3)), 3),
    "receives": (receives, True),
    "converses": (converses, True),
}


@pytest.mark.parametrize("latency", [0.0, 0.05])
async def test_three_servers_are_replaced(autojump_clock: MockClock, latency: float) -> None:
    """N17, 62: one after the other, by drain, under calls of all shapes, twice: no caller notices, and each served its
    part.
    """
    places, done = [Place(latency) for _ in range(3)], Counter[str]()
    async with no_leaks(), watchdog(), trio.open_nursery() as nursery:
        words = [trio.open_memory_channel[float](1) for _ in places]
        for place, (_, drain) in zip(places, words, strict=True):
            await nursery.start(place.keep, drain)
        target = dict(zip("abc", (place.connect for place in places), strict=True))
        async with open_pool(target, balance=RoundRobin()) as pool, trio.open_nursery() as callers:
            await pool.wait_connected(3)
            stopped = trio.Event()

            async def calls(shape: str, number: int) -> None:
                call, result = SHAPES[shape]
                await trio.sleep(0.029 * number)
                while not stopped.is_set():
                    assert await call(pool.stub(Lab)) == result
                    done[shape] += 1
                    await trio.sleep(0.083)

            for shape in SHAPES:
                for number in range(5):
                    callers.start_soon(calls, shape, number)
            for _ in range(2):
                for word, _ in words:
                    await trio.sleep(1)
                    word.send_nowait(0.7)
                    await trio.sleep(0.5)
                    await pool.wait_connected(3)
            await trio.sleep(1)
            stopped.set()
        stats = pool.statistics()
        assert (stats.errors, stats.lost, stats.connects) == (0, 0, 9 + stats.connect_errors)
        nursery.cancel_scope.cancel()
    assert done.keys() == SHAPES.keys()
    assert min(done.values()) > 50
    assert [len(place.labs) for place in places] == [3, 3, 3]
    assert min(len(lab.log) for place in places for lab in place.labs) > 10
