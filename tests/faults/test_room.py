"""Nobody waits for room in the queue of a connection for ever: random programs of calls and streams over slow transports.

Many calls and streams of all sizes share one connection whose both sides queue little. Some are cancelled, some left
early, some slow. Virtual time tells a hang: nothing else here takes hours.
"""

from __future__ import annotations

import math
import random
from collections.abc import AsyncGenerator, AsyncIterable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.guarantees.kit import RawClient
from trio_rpc import Heartbeat, Pool, PoolLimits, ServerLimits, method, open_pool, open_server
from trio_rpc._flows import Flows
from trio_rpc._outbox import Outbox
from trio_rpc.testing import Delay, FaultyStream, MemoryListener
from trio_rpc.wire import Bytes, Hello, ItemsReceived, Protocol, Role

QUIET = Heartbeat(interval=None)
HANG = 20_000.0
"""Seconds; the longest of these programs takes some hundreds."""
SIZES = [0, 10, 1000, 15_000, 66_000, 200_000, 500_000]
MOST_BYTES = 4_000_000
KINDS = ["echo", "make", "make", "produce", "produce", "consume", "through"]


class Work:
    """Calls and streams of any size, in any direction."""

    @method
    async def echo(self, data: bytes, pause: float) -> bytes:
        await trio.sleep(pause)
        return data

    @method
    async def make(self, size: int, pause: float) -> bytes:
        if pause:
            await trio.sleep(pause)
        return bytes(size)

    @method
    async def produce(self, count: int, size: int, pause: float) -> AsyncGenerator[bytes, None]:
        for _ in range(count):
            if pause:
                await trio.sleep(pause)
            yield bytes(size)

    @method
    async def consume(self, items: AsyncIterable[bytes], most: int, pause: float) -> int:
        count = 0
        async for _ in items:
            count += 1
            if count == most:
                break
            await trio.sleep(pause)
        return count

    @method
    async def through(self, items: AsyncIterable[bytes], pause: float) -> AsyncGenerator[bytes, None]:
        async for item in items:
            if pause:
                await trio.sleep(pause)
            yield item


async def one_call(rng: random.Random, pool: Pool) -> None:
    """Call whatever is drawn; it ends as it should, unless its time passes before."""
    stub = pool.stub(Work)
    kind, size, count = rng.choice(KINDS), rng.choice(SIZES), rng.choice([1, 3, 20, 60])
    count = min(count, max(8, MOST_BYTES // max(size, 1)))
    pause, slow = rng.choice([0, 0, 0.001, 0.3]), rng.choice([0, 0, 0.01])
    leave = rng.choice([count, count, 1, 5])
    at, limit = rng.choice([0, 0, 0, 0.01, 0.5, 1]), rng.choice([math.inf, math.inf, math.inf, 0.005, 0.05, 0.5, 2])

    async def items() -> AsyncGenerator[bytes, None]:
        for _ in range(count):
            await trio.sleep(slow)
            yield bytes(size)

    await trio.sleep(at)
    with trio.move_on_after(limit):
        if kind == "echo":
            assert len(await stub.echo(bytes(size), pause)) == size
        elif kind == "make":
            assert len(await stub.make(size, pause)) == size
        elif kind == "consume":
            assert await stub.consume(items(), leave, pause) == min(leave, count)
        else:
            async with stub.produce(count, size, pause) if kind == "produce" else stub.through(items(), pause) as found:
                seen = 0
                async for item in found:
                    assert len(item) == size
                    seen += 1
                    if seen == leave:
                        break
                    await trio.sleep(slow)
                assert seen == min(leave, count)


def both_limits(rng: random.Random) -> tuple[ServerLimits, PoolLimits]:
    """Little room on both sides, and no other bound that would end a connection that waits."""
    shared: dict[str, Any] = {
        "stream_window": rng.choice([16 * 1024, 64 * 1024, 1 << 20]),
        "max_in_flight": rng.choice([2, 8, 256]),
        "write_timeout": None,
        "frame_timeout": None,
    }
    if rng.random() < 0.5:
        shared |= {"max_message_size": 600_000, "max_receiving_bytes": rng.choice([700_000, 1_300_000, 4_000_000])}
    ours, theirs = (rng.choice([65_536, 65_536, 100_000, 400_000]) for _ in range(2))
    pool = PoolLimits(**shared, max_queued_bytes=ours, max_connections=1, acquire_timeout=HANG)
    return ServerLimits(**shared, max_queued_bytes=theirs), pool


@pytest.mark.parametrize("seed", range(24))
async def test_all_that_waits_for_room_goes_on(seed: int, autojump_clock: MockClock) -> None:
    """S19: whatever is cancelled, stopped or left early beside them, all other calls and streams come to their ends."""
    rng = random.Random(seed)
    delays = [
        Delay(seconds, direction=direction)
        for direction in ("sending", "receiving")
        if (seconds := rng.choice([0, 0.0005, 0.01, 0.05]))
    ]
    capacity = rng.choice([1024, 16 * 1024, 64 * 1024, 1 << 20])
    listener = MemoryListener(capacity=capacity, wrap=lambda stream: FaultyStream(stream, *delays))
    served, called = both_limits(rng)
    async with (
        open_server(Work(), listener, limits=served, heartbeat=QUIET) as server,
        open_pool(listener.connect, limits=called, heartbeat=QUIET) as pool,
    ):
        with trio.fail_after(HANG):
            async with trio.open_nursery() as nursery:
                for _ in range(rng.choice([3, 10, 30])):
                    nursery.start_soon(one_call, rng, pool)
        assert (pool.statistics().connects, pool.statistics().lost) == (1, 0)
        await trio.testing.wait_all_tasks_blocked()
        assert (pool.statistics().in_flight, server.statistics().in_flight) == (0, 0)


async def test_calls_that_were_given_out_and_found_no_room(autojump_clock: MockClock) -> None:
    """S19: of streams that come together, those that the first ones leave no room begin as these are read."""
    listener = MemoryListener(capacity=1024)
    limits = ServerLimits(max_queued_bytes=64 * 1024, write_timeout=None)
    async with open_server(Work(), listener, limits=limits, heartbeat=QUIET):
        client = RawClient(await listener.connect())
        await client.greet()
        await client.send(*(client.request("Work.produce", 100, 10_000, 0) for _ in range(8)))
        await trio.sleep(1)
        begun: set[int] = set()
        with trio.fail_after(60):
            while len(begun) < 8:
                begun.add((await client.expect(ItemsReceived)).id)
        assert begun == set(range(1, 17, 2))
        await client.stream.aclose()


class Waiter:
    """A stream that waits for room, as far as `Flows` knows it."""

    def __init__(self) -> None:
        self.resumed = False

    def resume(self) -> None:
        self.resumed = True


async def test_all_who_wait_are_told_of_the_last_write() -> None:
    """However many they are: no other write follows that could tell the rest."""
    outbox, caller = Outbox(), Protocol(Role.DIALLER, Hello())
    unused: Any = None
    flows = Flows({}, {}, outbox, caller, unused, 0, unused)
    waiters: list[Any] = [Waiter() for _ in range(50)]

    async def take(buffers: list[Bytes]) -> None:
        assert buffers

    async with trio.open_nursery() as nursery:
        outbox.put(b"x" * 1000)
        assert not any(flows.has_room(waiter, 1) for waiter in waiters)
        nursery.start_soon(outbox.run, take)
        await trio.testing.wait_all_tasks_blocked()
        assert all(waiter.resumed for waiter in waiters)
        assert outbox.on_room is None
        assert flows.has_room(waiters[0], 1)
        outbox.finish()
