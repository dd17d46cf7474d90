"""Cancelled at every checkpoint of every shape of call, and of the pool's own life: nothing is left, at once."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

import attrs
import pytest
import trio
from trio.testing import MockClock

import trio_rpc
from tests.scripted import watchdog
from trio_rpc import PoolLimits, ServerLimits, method
from trio_rpc.testing import (
    Delay,
    FaultyStream,
    Freeze,
    MemoryListener,
    Recorder,
    assert_no_leaks,
    cancel_at_every_checkpoint,
    memory_pipe,
    no_leaks,
    open_loopback,
)

Moment = Literal["suspending", "waking"]
Shape = Callable[["World"], Awaitable[None]]
MOMENTS: tuple[Moment, ...] = ("suspending", "waking")
QUIET = trio_rpc.Heartbeat(interval=None)
WINDOW = 8
"""Items in a stream's window: small, so that streams wait for credit within a few items."""


class Office:
    """One method of each shape; counts what is going on in it."""

    def __init__(self) -> None:
        self.running = 0
        self.made = 0

    @method
    async def eager(self, value: Any) -> Any:
        return value

    @method
    async def slow(self, value: Any) -> Any:
        self.running += 1
        try:
            for _ in range(3):
                await trio.sleep(0.01)
        finally:
            self.running -= 1
        return value

    @method
    async def count(self, upto: int) -> AsyncGenerator[int, None]:
        self.running += 1
        try:
            for number in range(upto):
                self.made += 1
                yield number
        finally:
            self.running -= 1

    @method
    async def total(self, numbers: AsyncIterable[int]) -> int:
        self.running += 1
        try:
            return sum([number async for number in numbers])
        finally:
            self.running -= 1

    @method
    async def double(self, numbers: AsyncIterable[int]) -> AsyncGenerator[int, None]:
        self.running += 1
        try:
            async for number in numbers:
                yield 2 * number
        finally:
            self.running -= 1


async def numbers(upto: int) -> AsyncGenerator[int, None]:
    """Items for a stream of the caller's, some of them after a wait."""
    for number in range(upto):
        if number % 5 == 0:
            await trio.sleep(0.01)
        yield number


@attrs.define
class World:
    pool: trio_rpc.Pool
    office: Office
    ahead: int = 0

    @property
    def stub(self) -> Office:
        return self.pool.stub(Office)

    async def check(self) -> None:
        """Every count is back where it was, at once; and everything still works."""
        stats = self.pool.statistics()
        assert (stats.in_flight, stats.waiting, stats.orphans, stats.lost) == (0, 0, 0, 0)
        assert stats.spare == stats.connections * self.pool.limits.max_in_flight
        assert self.office.running == 0
        assert await self.stub.eager("fresh") == "fresh"
        assert await self.run_ahead() == self.ahead, "the peer's credit for a fresh stream is whole"
        assert self.office.running == 0

    async def run_ahead(self) -> int:
        """How many items the server makes for somebody who takes none: the window, and a batch that waits."""
        self.office.made = 0
        async with self.stub.count(1000):
            await trio.testing.wait_all_tasks_blocked()
            return self.office.made


@asynccontextmanager
async def open_office(**limits: Any) -> AsyncIterator[World]:
    """A pool of one connection over a small wire, so that writes wait as well."""
    async with (
        watchdog(),
        open_loopback(
            office := Office(),
            limits=PoolLimits(stream_window_items=WINDOW, max_connections=1, **limits),
            server_limits=ServerLimits(stream_window_items=WINDOW),
            capacity=512,
        ) as pool,
    ):
        await pool.wait_connected()
        world = World(pool, office)
        world.ahead = await world.run_ahead()
        assert world.ahead >= WINDOW
        yield world


# -- one call of each shape --------------------------------------------------------------------------------------------


async def eager_call(world: World) -> None:
    """A handler that does not suspend."""
    assert await world.stub.eager([1, 2]) == [1, 2]


async def slow_call(world: World) -> None:
    """A handler that suspends."""
    assert await world.stub.slow("x") == "x"


async def large_call(world: World) -> None:
    """A request and a result in many chunks."""
    assert len(await world.stub.slow(b"x" * 200_000)) == 200_000


async def stream_read_to_its_end(world: World) -> None:
    """A server stream, all of it."""
    async with world.stub.count(30) as items:
        assert [item async for item in items] == list(range(30))


async def stream_left_early(world: World) -> None:
    """A server stream whose consumer leaves in the middle."""
    async with world.stub.count(1000) as items:
        assert await items.receive() == 0
        await trio.sleep(0.01)
        assert await items.receive() == 1


async def stream_whose_body_raises(world: World) -> None:
    """A server stream whose consumer fails: its own error comes out."""
    with pytest.raises(KeyError, match="mine"):
        async with world.stub.count(1000) as items:
            await items.receive()
            await trio.sleep(0.01)
            raise KeyError("mine")


async def stream_never_read(world: World) -> None:
    """A server stream that waits for credit all the time."""
    async with world.stub.count(1000):
        await trio.sleep(0.01)


async def client_stream(world: World) -> None:
    """A stream of the caller."""
    assert await world.stub.total(numbers(30)) == sum(range(30))


async def client_stream_that_fails(world: World) -> None:
    """A stream of the caller's that fails: its own error comes out."""

    async def failing() -> AsyncGenerator[int, None]:
        for number in range(20):
            await trio.sleep(0.01)
            yield number
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await world.stub.total(failing())


async def both_ways(world: World) -> None:
    """A stream each way, to the end."""
    async with world.stub.double(numbers(30)) as items:
        assert [item async for item in items] == list(range(0, 60, 2))


async def both_ways_left_early(world: World) -> None:
    """A stream each way, left in the middle."""
    async with world.stub.double(numbers(1000)) as items:
        assert await items.receive() == 0


async def many_side_by_side(world: World) -> None:
    """Four shapes at once."""
    async with trio.open_nursery() as nursery:
        for shape in (slow_call, stream_left_early, client_stream, both_ways):
            nursery.start_soon(shape, world)


SHAPES: list[Shape] = [
    eager_call,
    slow_call,
    large_call,
    stream_read_to_its_end,
    stream_left_early,
    stream_whose_body_raises,
    stream_never_read,
    client_stream,
    client_stream_that_fails,
    both_ways,
    both_ways_left_early,
    many_side_by_side,
]
LEAST: dict[Shape, int] = {eager_call: 1, slow_call: 1, large_call: 1, stream_never_read: 2}
"""Checkpoints that a shape has at least; 3 for all others. A scenario with fewer would show nothing."""


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("shape", SHAPES)
async def test_every_shape(autojump_clock: MockClock, shape: Shape, moment: Moment) -> None:
    """Rule 2: slots, ids, credit and handlers are back at the very moment when the cancelled call returns."""
    async with no_leaks(), open_office() as world:
        visited = await cancel_at_every_checkpoint(
            lambda: shape(world), world.check, moment=moment, spawned=True, limit=500
        )
        assert visited >= LEAST.get(shape, 3)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("shape", [slow_call, stream_left_early, client_stream, both_ways])
async def test_in_the_line(autojump_clock: MockClock, shape: Shape, moment: Moment) -> None:
    """The same while others hold the only place: whoever leaves the line leaves it whole, and the others get on."""
    async with no_leaks(), open_office(max_in_flight=1) as world:

        async def crowd() -> None:
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(shape, world)

        await cancel_at_every_checkpoint(crowd, world.check, moment=moment, spawned=True, limit=500)


@pytest.mark.parametrize("moment", MOMENTS)
async def test_one_in_the_line_while_the_others_go_on(autojump_clock: MockClock, moment: Moment) -> None:
    """Only the waiter is cancelled: the call before it and the one behind it are none the worse."""
    async with no_leaks(), open_office(max_in_flight=1) as world:
        async with trio.open_nursery() as nursery:
            done = 0

            async def neighbour() -> None:
                nonlocal done
                await slow_call(world)
                done += 1

            async def waiter() -> None:
                nursery.start_soon(neighbour)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(neighbour)
                await slow_call(world)

            runs = await cancel_at_every_checkpoint(waiter, moment=moment)
        # One run more than it has checkpoints, of two neighbours each; the first may be cancelled before its second.
        assert done in (2 * (runs + 1), 2 * (runs + 1) - 1)
        await world.check()


# -- the pool's own life -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("faults", [(), (Delay(0.01),)], ids=["at once", "slow"])
async def test_opening_and_closing_a_pool(autojump_clock: MockClock, moment: Moment, faults: tuple[Any, ...]) -> None:
    """Wherever an `open_pool` block is cancelled, no connection is left on either side."""
    listener = MemoryListener(wrap=lambda stream: FaultyStream(stream, *faults))
    office = Office()
    async with no_leaks(), watchdog(), trio_rpc.open_server(office, listener, heartbeat=QUIET) as server:

        async def scenario() -> None:
            async with trio_rpc.open_pool(listener.connect, limits=PoolLimits(min_connections=2)) as pool:
                await pool.stub(Office).slow(1)
                await pool.wait_connected(2)

        async def check() -> None:
            await trio.sleep(1)
            stats = server.statistics()
            assert (stats.connections, stats.handshaking, stats.in_flight, office.running) == (0, 0, 0, 0)

        visited = await cancel_at_every_checkpoint(scenario, check, moment=moment, spawned=True, limit=500)
        assert visited >= 5


@pytest.mark.parametrize("moment", MOMENTS)
async def test_open_connection(autojump_clock: MockClock, moment: Moment) -> None:
    """Both given streams are closed, wherever the block was cancelled, its HELLOs included."""
    office = Office()
    ends: list[trio.abc.Stream] = []

    async def scenario() -> None:
        ours, theirs = memory_pipe()
        ends[:] = ours, theirs
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio_rpc.serve_stream, office, theirs)
            async with trio_rpc.open_connection(FaultyStream(ours, Delay(0.01)), heartbeat=QUIET) as pool:
                assert await pool.stub(Office).slow(1) == 1

    async def check() -> None:
        assert office.running == 0
        for end in ends:
            with pytest.raises(trio.ClosedResourceError):
                await end.send_all(b"x")

    async with no_leaks(), watchdog():
        assert await cancel_at_every_checkpoint(scenario, check, moment=moment, limit=500) >= 3


@pytest.mark.parametrize("moment", MOMENTS)
async def test_serving(autojump_clock: MockClock, moment: Moment) -> None:
    """Wherever an `open_server` block is cancelled, its listener is closed and no handler runs on."""
    listeners: list[MemoryListener] = []
    office = Office()

    async def scenario() -> None:
        listeners.append(MemoryListener())
        async with trio_rpc.open_server(office, listeners[-1], heartbeat=QUIET):
            async with trio_rpc.open_pool(listeners[-1].connect, heartbeat=QUIET) as pool:
                await pool.stub(Office).slow(1)

    async def check() -> None:
        assert office.running == 0
        with pytest.raises(trio_rpc.ConnectError):
            await listeners[-1].connect()

    async with no_leaks(), watchdog():
        assert await cancel_at_every_checkpoint(scenario, check, moment=moment, spawned=True, limit=500) >= 5


@pytest.mark.parametrize("moment", MOMENTS)
async def test_aclose(autojump_clock: MockClock, moment: Moment) -> None:
    """A cancelled `aclose` closes all the same, under calls in flight."""
    office = Office()
    pools: list[trio_rpc.Pool] = []
    listener = MemoryListener()

    async def scenario() -> None:
        async with trio.open_nursery() as nursery:
            pools.append(await nursery.start(trio_rpc.run_pool, listener.connect))
            nursery.start_soon(ignoring_its_end, pools[-1])
            await trio.sleep(0.005)
            await pools[-1].aclose()

    async def ignoring_its_end(pool: trio_rpc.Pool) -> None:
        with pytest.raises(trio_rpc.PoolClosed):
            await pool.stub(Office).slow(1)

    async def check() -> None:
        assert "(closed)" in repr(pools[-1]) if pools else True
        assert office.running == 0

    async with no_leaks(), watchdog(), trio_rpc.open_server(office, listener, heartbeat=QUIET):
        await cancel_at_every_checkpoint(scenario, check, moment=moment, limit=500)


# -- what is still in the queue ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [slow_call, stream_read_to_its_end, client_stream, both_ways])
async def test_what_was_not_written_is_taken_back(autojump_clock: MockClock, shape: Shape) -> None:
    """S08: a call behind a stuck write leaves at once, is never seen by the server, and costs the connection nothing."""
    stuck, office = Freeze(direction="sending"), Office()
    async with watchdog(), open_loopback(office, wrap=lambda stream: FaultyStream(stream, stuck)) as pool:
        world = World(pool, office)
        await eager_call(world)
        stuck.freeze()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(slow_call, world)
            await trio.sleep(0.1)
            with trio.move_on_after(1) as scope:
                await shape(world)
            assert scope.cancelled_caught
            assert trio.current_time() == pytest.approx(1.1), "there is nobody to be joined"
            assert pool.statistics().in_flight == 1
            stuck.thaw()
        await eager_call(world)
        assert (pool.statistics().connects, pool.statistics().lost) == (1, 0)


async def test_a_stream_of_items_that_fails_at_once_harms_nobody(autojump_clock: MockClock) -> None:
    """S09: its CANCEL does not overtake its request: the connection and the calls on it live on."""

    async def failing() -> AsyncGenerator[int, None]:
        if world.office.made >= 0:
            raise KeyError("mine")
        yield 1

    async with open_office() as world, trio.open_nursery() as nursery:
        nursery.start_soon(slow_call, world)
        for _ in range(50):
            with pytest.raises(KeyError):
                await world.stub.total(failing())
            with pytest.raises(KeyError):
                async with world.stub.double(failing()) as items:
                    await items.receive()
        nursery.start_soon(slow_call, world)
        assert world.pool.statistics().connects == 1
        await trio.sleep(1)
        await world.check()


@pytest.mark.parametrize("cancelled", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
async def test_an_expired_deadline_sends_nothing(autojump_clock: MockClock, shape: Shape, cancelled: bool) -> None:
    """S03: whatever the shape, no byte leaves and Trio raises what is due."""
    recorder, office = Recorder(), Office()
    async with watchdog(), open_loopback(office, wrap=lambda stream: FaultyStream(stream, recorder)) as pool:
        await pool.wait_connected()
        recorder.clear()
        with trio.CancelScope(deadline=trio.current_time() + cancelled) as scope:
            if cancelled:
                scope.cancel()
            await shape(World(pool, office))
        assert scope.cancelled_caught
        assert recorder.bytes_sent == 0
        assert_no_leaks(pool)


async def test_ten_thousand_cancelled_at_once(autojump_clock: MockClock) -> None:
    """An honest nursery may cancel many: each is joined or leaves the line, none costs the connection."""
    async with open_office() as world:
        with trio.move_on_after(0.005):
            async with trio.open_nursery() as nursery:
                for _ in range(10_000):
                    nursery.start_soon(world.stub.slow, 1)
        await world.check()
        assert world.pool.statistics().connects == 1


@pytest.mark.parametrize("wait", [0, 0.25, 3])
async def test_a_stub_may_wait_for_longer_or_shorter(autojump_clock: MockClock, wait: float) -> None:
    """`cancel_wait` bounds the join with a handler that ignores its cancellation; its place stays taken meanwhile."""

    class Stubborn:
        @method
        async def sulk(self) -> None:
            with trio.CancelScope(shield=True):
                await trio.sleep(10)

    async with watchdog(), open_loopback(Stubborn()) as pool:
        with trio.move_on_after(1):
            await pool.stub(Stubborn, cancel_wait=wait).sulk()
        assert trio.current_time() == 1 + wait
        assert (pool.statistics().orphans, pool.statistics().in_flight) == (1, 1)
        await trio.sleep(10)
        assert (pool.statistics().orphans, pool.statistics().in_flight) == (0, 0)


@pytest.mark.parametrize("wait", [-1, float("inf"), float("nan")])
async def test_a_join_has_a_bound(wait: float) -> None:
    """What is no bound is refused before there is a call to be cancelled."""
    async with open_loopback(Office()) as pool:
        with pytest.raises(ValueError, match="cancel_wait must be at least 0, and finite"):
            pool.stub(Office, cancel_wait=wait)
