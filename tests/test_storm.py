"""All kinds of calls at once over real sockets: nothing is stuck in a queue, lost, or mixed up.

The in-memory simulation cannot show this: only a socket of our own is written to without waiting for the writer.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable

import pytest
import trio

from trio_rpc import PoolLimits, method, open_pool, open_server

STEPS = 25
SIZES = (10, 100_000, 1_000_000, 3_000_000)


class Weather:
    @method
    async def echo(self, value: int) -> int:
        return value

    @method
    async def later(self, data: bytes, seconds: float) -> int:
        await trio.sleep(seconds)
        return len(data)

    @method
    async def large(self, data: bytes) -> bytes:
        return data

    @method
    async def rain(self, drops: int) -> AsyncGenerator[int, None]:
        for drop in range(drops):
            yield drop

    @method
    async def fall(self, drops: AsyncIterable[int]) -> int:
        total = 0
        async for drop in drops:
            total += drop
        return total


class Caller:
    """Does this and that, and checks each answer."""

    def __init__(self, stub: Weather, seed: int) -> None:
        self.stub = stub
        self.random = random.Random(seed)
        self.moves: list[Callable[[], Awaitable[None]]] = [
            *[self.echo] * 3,
            self.give_up,
            self.large,
            self.rain,
            self.fall,
            self.pause,
        ]

    async def run(self) -> None:
        for _ in range(STEPS):
            await self.random.choice(self.moves)()

    async def echo(self) -> None:
        value = self.random.randrange(1000)
        assert await self.stub.echo(value) == value

    async def give_up(self) -> None:
        with trio.move_on_after(self.random.random() / 300):
            await self.stub.later(bytes(self.random.choice(SIZES)), self.random.random() / 300)

    async def large(self) -> None:
        data = bytes([self.random.randrange(256)]) * self.random.choice(SIZES)
        assert await self.stub.large(data) == data

    async def rain(self) -> None:
        drops, enough = self.random.randrange(2000), self.random.choice([5, 5000])
        async with self.stub.rain(drops) as channel:
            expected = 0
            async for drop in channel:
                assert drop == expected
                expected += 1
                if expected == enough:
                    break
        assert expected == min(drops, enough)

    async def fall(self) -> None:
        drops = self.random.randrange(2000)

        async def falling() -> AsyncGenerator[int, None]:
            for drop in range(drops):
                yield drop

        assert await self.stub.fall(falling()) == drops * (drops - 1) // 2

    async def pause(self) -> None:
        await trio.sleep(self.random.random() / 100)


@pytest.mark.parametrize("callers", [1, 2, 40])
@pytest.mark.parametrize(("connections", "in_flight"), [(1, 4), (2, 256)])
async def test_everything_at_once(callers: int, connections: int, in_flight: int) -> None:
    """Rule 3: small and large calls, streams, cancellations and pauses: each ends, with its own result."""
    limits = PoolLimits(max_connections=connections, max_in_flight=in_flight)
    async with (
        open_server(Weather(), "tcp://127.0.0.1:0") as server,
        open_pool(server.addresses[0], limits=limits) as pool,
    ):
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for seed in range(callers):
                    nursery.start_soon(Caller(pool.stub(Weather), seed).run)
        assert pool.statistics().in_flight == pool.statistics().orphans == 0
