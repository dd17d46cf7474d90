"""The server that the load proofs put to the test, in a process of its own: see `parts`."""

from __future__ import annotations

import gc
import logging
from collections.abc import AsyncGenerator, AsyncIterable
from typing import Any

import attrs
import trio

import trio_rpc

from .census import census
from .parts import answer_commands, run_part

__all__ = ["Target"]


class Target:
    """Work of every kind that costs something."""

    def __init__(self) -> None:
        self.released = trio.Event()

    @trio_rpc.method
    async def echo(self, value: str) -> str:
        """Give it back."""
        return value

    @trio_rpc.method
    async def sleep(self, seconds: float) -> None:
        """Sleep, and end at once where it is cancelled."""
        await trio.sleep(seconds)

    @trio_rpc.method
    async def stubborn(self, seconds: float) -> None:
        """Sleep, whatever anybody says."""
        with trio.CancelScope(shield=True):
            await trio.sleep(seconds)

    @trio_rpc.method
    async def wait(self, number: int) -> int:
        """Wait until all are released."""
        await self.released.wait()
        return number

    @trio_rpc.method
    async def large(self, size: int) -> bytes:
        """Give so many bytes, in memory of their own."""
        return b"x" * size

    @trio_rpc.method
    async def late(self, size: int) -> bytes:
        """Give so many bytes, a second later: by then others have been begun as well."""
        await trio.sleep(1)
        return b"x" * size

    @trio_rpc.method
    async def larges(self, count: int, size: int) -> AsyncGenerator[bytes, None]:
        """Give the same several times."""
        for _ in range(count):
            yield b"x" * size

    @trio_rpc.method
    async def take(self, data: bytes) -> int:
        """Take many bytes."""
        return len(data)

    @trio_rpc.method
    async def leave(self, blobs: AsyncIterable[bytes]) -> None:
        """Take nothing of what comes."""
        await self.released.wait()

    @trio_rpc.method
    async def keep(self, data: bytes, blobs: AsyncIterable[bytes]) -> int:
        """Keep what there is, and take nothing of what comes."""
        await self.released.wait()
        return len(data)

    @trio_rpc.method
    async def total(self, numbers: AsyncIterable[int]) -> int:
        """Add up what comes."""
        return sum([number async for number in numbers])

    @trio_rpc.method
    async def count(self, upto: int) -> AsyncGenerator[int, None]:
        """Count."""
        for number in range(upto):
            yield number

    @trio_rpc.method
    async def doubled(self, numbers: AsyncIterable[int]) -> AsyncGenerator[int, None]:
        """Give twice each number that comes."""
        async for number in numbers:
            yield 2 * number


async def main(limits: dict[str, Any], heartbeat: tuple[float, float] = (10.0, 5.0), level: str = "WARNING") -> None:
    """Serve until the input ends. Nothing is written to standard error but what is logged."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=level)
    target = Target()
    async with trio_rpc.open_server(
        target,
        "tcp://127.0.0.1:0",
        limits=trio_rpc.ServerLimits(**limits),
        heartbeat=trio_rpc.Heartbeat(*heartbeat),
    ) as server:

        async def statistics() -> dict[str, Any]:
            return attrs.asdict(server.statistics())

        async def count() -> dict[str, int]:
            return census()

        async def collect() -> None:
            gc.collect()

        async def release() -> None:
            target.released.set()

        commands = {"statistics": statistics, "census": count, "collect": collect, "release": release}
        await answer_commands(commands, server.addresses[0])


if __name__ == "__main__":
    run_part(main)
