"""An honest client that works for a long time, in a process of its own: calls, cancellations, connections anew."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from random import Random
from typing import Any, TypeAlias

import trio

import trio_rpc

from .census import census
from .load import due
from .parts import answer_commands, run_part
from .raw import address_of
from .target import Target

AT_ONCE = 64
"""Who call at the same time; a few of them cancel, or connect anew, instead."""
ITEMS = 20
LARGE = 100_000
Shape: TypeAlias = Callable[[Target, Random], Awaitable[None]]


async def numbers(count: float) -> AsyncGenerator[int, None]:
    """The items of a client's stream."""
    number = 0
    while number < count:
        yield number
        number += 1


async def endless() -> AsyncGenerator[int, None]:
    """A stream without items."""
    yield 0
    await trio.sleep(math.inf)


async def _echo(stub: Target, rng: Random) -> None:
    text = str(rng.random())
    due(await stub.echo(text), text)


async def _take(stub: Target, _rng: Random) -> None:
    due(await stub.take(bytes(LARGE)), LARGE)


async def _large(stub: Target, _rng: Random) -> None:
    due(len(await stub.large(LARGE)), LARGE)


async def _total(stub: Target, _rng: Random) -> None:
    due(await stub.total(numbers(ITEMS)), sum(range(ITEMS)))


async def _count(stub: Target, _rng: Random) -> None:
    async with stub.count(ITEMS) as counting:
        due([number async for number in counting], list(range(ITEMS)))


async def _doubled(stub: Target, _rng: Random) -> None:
    async with stub.doubled(numbers(ITEMS)) as doubling:
        due([number async for number in doubling], list(range(0, 2 * ITEMS, 2)))


CALLS: list[Shape] = [*[_echo] * 14, _take, _large, _total, _count, _count, _doubled]
"""Each as likely as the others."""


async def _sleep(stub: Target, _rng: Random) -> None:
    await stub.sleep(60)


async def _stubborn(stub: Target, rng: Random) -> None:
    await stub.stubborn(rng.uniform(0, 0.02))


async def _count_on(stub: Target, _rng: Random) -> None:
    async with stub.count(10**9) as counting:
        async for _ in counting:
            pass


async def _total_of_all(stub: Target, _rng: Random) -> None:
    await stub.total(numbers(math.inf))


async def _total_of_none(stub: Target, _rng: Random) -> None:
    await stub.total(endless())


CANCELLED: list[Shape] = [
    _sleep,
    _sleep,
    _sleep,
    _sleep,
    _take,
    _stubborn,
    _count_on,
    _total_of_all,
    _total_of_none,
    _doubled,
]
"""What is begun, and cancelled at a random moment, which may be the first."""


class Worker:
    """Works a part at a time, each with a new pool, of which nothing is left afterwards."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.done: Counter[str] = Counter()
        self.errors: list[str] = []

    async def work(self, calls: int, cancels: int, reconnects: int, seed: str) -> dict[str, Any]:
        """So many of each, in random order. Returns what was done, and what went wrong."""
        rng = Random(seed)
        jobs = ["call"] * calls + ["cancel"] * cancels + ["reconnect"] * reconnects
        rng.shuffle(jobs)
        queue = iter(jobs)
        limits = trio_rpc.PoolLimits(max_connections=2)
        self.done.clear()
        async with trio_rpc.open_pool(self.address, limits=limits) as pool:
            async with trio.open_nursery() as nursery:
                for _ in range(AT_ONCE):
                    nursery.start_soon(self._keep_working, pool, queue, rng)
        await self._come_and_go(pool, rng)  # The interpreter keeps alive what the last one left: always the same.
        return {"done": dict(self.done), "errors": self.errors[:10], "failed": len(self.errors)}

    async def _keep_working(self, pool: trio_rpc.Pool, queue: Any, rng: Random) -> None:
        stub = pool.stub(Target)
        for job in queue:
            try:
                match job:
                    case "call":
                        await rng.choice(CALLS)(stub, rng)
                    case "cancel":
                        with trio.move_on_after(rng.choice([0, 0.001, 0.01])):
                            await rng.choice(CANCELLED)(stub, rng)
                    case _:
                        await rng.choice(RECONNECTS)(self, pool, rng)
            except Exception as exc:
                self.errors.append(f"{job}: {exc!r}")
            self.done[job] += 1

    async def _come_and_go(self, _pool: trio_rpc.Pool, rng: Random) -> None:
        async with trio_rpc.open_pool(self.address) as pool:
            await _echo(pool.stub(Target), rng)

    async def _leave_in_the_middle(self, _pool: trio_rpc.Pool, rng: Random) -> None:
        async with trio_rpc.open_pool(self.address) as pool, trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(pool.stub(Target).sleep, 60)
            await _echo(pool.stub(Target), rng)
            nursery.cancel_scope.cancel()

    async def _break(self, _pool: trio_rpc.Pool, rng: Random) -> None:
        """Lose the connection with calls in flight."""
        stream = await trio.open_tcp_stream(*address_of(self.address))
        lost: list[trio_rpc.RpcError] = []

        async def lose(stub: Target) -> None:
            try:
                await stub.sleep(60)
            except trio_rpc.ConnectionLost as exc:
                lost.append(exc)

        async with trio_rpc.open_connection(stream) as peer, trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(lose, peer.stub(Target))
            await _echo(peer.stub(Target), rng)
            await trio.aclose_forcefully(stream)
        due(len(lost), 5)

    async def _renew(self, pool: trio_rpc.Pool, rng: Random) -> None:
        """Replace the connections of the pool that all the others work on."""
        pool.recycle()
        await _echo(pool.stub(Target), rng)

    async def census(self) -> dict[str, int]:
        """What this process holds."""
        return census()


RECONNECTS = [Worker._come_and_go, Worker._come_and_go, Worker._leave_in_the_middle, Worker._break, Worker._renew]


async def main(address: str) -> None:
    """Work as the proof says, until the input ends."""
    worker = Worker(address)
    await answer_commands({"work": worker.work, "census": worker.census})


if __name__ == "__main__":
    run_part(main)
