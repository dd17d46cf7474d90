"""A server in a process of its own: `python -m tests.proofs.server ADDRESS LEDGER PACE`.

It prints its address once it listens. SIGTERM drains it; when its standard input ends, so does it, whatever became of
the program that started it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import closing
from pathlib import Path

import trio

import trio_rpc

from .contract import Works
from .ledger import Ledger

GRACE = 10.0
"""Seconds that accepted calls have to end; none here needs a tenth of it."""
ITEM_PAUSE = 0.01
"""Seconds between the items of a stream, so that it lasts."""


class Worker(Works):
    """The contract, with a ledger."""

    def __init__(self, ledger: Ledger, pace: float) -> None:
        self.ledger = ledger
        self.pace = pace

    @trio_rpc.method
    async def once(self, key: str, seconds: float) -> str:
        with self.ledger.entry(key):
            await trio.sleep(seconds)
        return key

    @trio_rpc.method(idempotent=True)
    async def again(self, key: str, seconds: float) -> str:
        return await self.once(key, seconds)

    @trio_rpc.method
    async def take(self, key: str, data: bytes) -> int:
        with self.ledger.entry(key):
            return len(data)

    @trio_rpc.method
    async def total(self, key: str, numbers: AsyncIterable[int]) -> int:
        with self.ledger.entry(key):
            return sum([number async for number in numbers])

    @trio_rpc.method
    async def count(self, key: str, upto: int) -> AsyncGenerator[int, None]:
        with self.ledger.entry(key):
            for number in range(upto):
                yield number
                await trio.sleep(ITEM_PAUSE)

    @trio_rpc.method
    async def doubled(self, key: str, numbers: AsyncIterable[int]) -> AsyncGenerator[int, None]:
        with self.ledger.entry(key):
            async for number in numbers:
                yield 2 * number

    @trio_rpc.method(idempotent=True)
    async def paced(self) -> None:
        await trio.sleep(self.pace)


async def main(address: str, ledger: Path, pace: float) -> None:
    """Serve until SIGTERM, then drain."""
    with closing(Ledger(ledger)) as record:
        await serve(address, Worker(record, pace))


async def serve(address: str, worker: Worker) -> None:
    """Serve it at this address."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end_with_input, nursery.cancel_scope)
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async with trio_rpc.open_server(worker, address) as server:
                print(server.addresses[0], flush=True)
                async for _ in signals:
                    break
                await server.drain(grace=GRACE)
        nursery.cancel_scope.cancel()


async def end_with_input(scope: trio.CancelScope) -> None:
    """Cancel everything once nobody holds the other end of our standard input."""
    async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as pipe:
        async for _ in pipe:
            pass
    scope.cancel()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))
