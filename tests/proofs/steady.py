"""A client and a server on a bad line, who must get along: a part of the proof `patience`, in a process of its own.

The client is this process's own run, the server that of a thread: each has a loop of its own, and when one of them
stands still, the other goes on.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack, ExitStack
from dataclasses import asdict
from functools import partial
from typing import Any

import trio

import trio_rpc
from tests.faults.namespaces import SERVER, Unavailable
from tests.faults.tunnel import Conditions, Tunnel, open_tunnel
from trio_rpc import Heartbeat

from .parts import answer_commands, run_part
from .report import percentile

__all__ = ["Steady"]

PORT = 7000
CALLERS = 8
PAUSE = 0.05
"""Seconds that a caller rests between two calls, in the mean."""
LARGE = 20_000
"""Bytes of one call in twenty; of the others, a hundred."""
STALL = 1.5
"""Seconds for which a loop stands still."""
AFTERWARDS = 0.4
"""Seconds from one stall to the next round."""
ONE = trio_rpc.PoolLimits(max_connections=1)
ONCE = trio_rpc.RetryPolicy(attempts=1)


def stand_still() -> None:
    """Do what a long computation does to a loop."""
    time.sleep(STALL)


class Steady:
    """The service."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    @trio_rpc.method
    async def echo(self, data: bytes) -> bytes:
        return data

    @trio_rpc.method
    async def stand_still(self, after: float) -> None:
        """Answer, and then hold up the server's loop once."""
        self._nursery.start_soon(self._stand_still, after)

    async def _stand_still(self, after: float) -> None:
        await trio.sleep(after)
        stand_still()


class Far:
    """The server, in a thread."""

    def __init__(self, tunnel: Tunnel, beat: Heartbeat) -> None:
        self.evicted = 0
        """Known at the end."""
        self.ready = threading.Event()
        self._tunnel, self._beat = tunnel, beat
        self._stop: tuple[trio.lowlevel.TrioToken, trio.CancelScope] | None = None

    def run(self) -> None:
        """Serve until stopped."""
        try:
            trio.run(self._serve)
        finally:
            self.ready.set()

    async def _serve(self) -> None:
        async with trio.open_nursery() as nursery:
            with self._tunnel.server.sockets():
                address = f"tcp://{self._tunnel.server.ip}:{PORT}"
                service = Steady(nursery)
                async with trio_rpc.open_server(service, address, heartbeat=self._beat, allow_insecure=True) as server:
                    with trio.CancelScope() as scope:
                        self._stop = trio.lowlevel.current_trio_token(), scope
                        self.ready.set()
                        await trio.sleep_forever()
                    self.evicted = server.statistics().evicted
            nursery.cancel_scope.cancel()

    def stop(self) -> None:
        """End it."""
        if self._stop is not None:
            token, scope = self._stop
            token.run_sync_soon(scope.cancel)


class Near:
    """The client: one pool that calls all the time, and one that is idle but for the stalls."""

    def __init__(self, busy: trio_rpc.Pool, idle: trio_rpc.Pool, rng: random.Random) -> None:
        self.latencies: list[float] = []
        self.errors: list[str] = []
        self._busy, self._idle = busy.stub(Steady), idle.stub(Steady)
        self._rng = rng
        self._done = False

    async def live(self, seconds: float, stalls: int, side: str) -> None:
        """Call for so long; or until one side has stood still so often."""
        async with trio.open_nursery() as nursery:
            for _ in range(CALLERS):
                nursery.start_soon(self._keep_calling)
            if not stalls:
                await trio.sleep(seconds)
            for number in range(stalls):
                # With every second one a ping has just left on the idle connection, and its answer is on the way.
                await self._stall(side, self._rng.uniform(1.005, 1.045) if number % 2 else self._rng.uniform(0.1, 0.9))
            self._done = True

    async def _stall(self, side: str, after: float) -> None:
        if side == "server":
            await self._idle.stand_still(after)
            await trio.sleep(after + STALL)
        else:
            await self._idle.echo(b"")
            await trio.sleep(after)
            stand_still()
        await trio.sleep(AFTERWARDS)

    async def _keep_calling(self) -> None:
        while not self._done:
            data = self._rng.randbytes(LARGE if self._rng.random() < 0.05 else 100)
            start = trio.current_time()
            try:
                if await self._busy.echo(data) != data:
                    self.errors.append("a wrong answer")
            except trio_rpc.RpcError as exc:
                self.errors.append(repr(exc))
            self.latencies.append(trio.current_time() - start)
            await trio.sleep(self._rng.expovariate(1 / PAUSE))


async def live(
    tunnel: Tunnel, beats: Mapping[str, Heartbeat], seed: int, *, seconds: float, stalls: int, side: str
) -> dict[str, Any]:
    """Have both live, and tell what became of it."""
    far = Far(tunnel, beats["server"])
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        nursery.start_soon(trio.to_thread.run_sync, far.run)
        stack.callback(far.stop)
        await trio.to_thread.run_sync(far.ready.wait)
        stack.enter_context(tunnel.names())
        stack.enter_context(tunnel.client.sockets())
        opening = partial(
            trio_rpc.open_pool, f"tcp://{SERVER}:{PORT}", heartbeat=beats["client"], limits=ONE, retry=ONCE
        )
        busy, idle = [await stack.enter_async_context(opening()) for _ in range(2)]
        for pool in (busy, idle):
            await pool.connect()
        near = Near(busy, idle, random.Random(seed))
        await near.live(seconds, stalls, side)
        statistics = [pool.statistics() for pool in (busy, idle)]
    return {
        "calls": len(near.latencies),
        "failed": len(near.errors),
        "errors": near.errors[:5],
        "times": [percentile(near.latencies, share) for share in (0.5, 0.99, 1)],
        "evicted by the client": sum(each.evicted for each in statistics),
        "evicted by the server": far.evicted,
        "lost": sum(each.lost for each in statistics),
    }


async def main(conditions: dict[str, float], beats: dict[str, Any], seed: int) -> None:
    """Say whether such a line is to be had, and do what the proof says."""
    heartbeats = {side: Heartbeat(*beat) for side, beat in beats.items()}
    with ExitStack() as stack:
        try:
            tunnel = stack.enter_context(open_tunnel(Conditions(**conditions), seed))
        except Unavailable as exc:
            await answer_commands({}, str(exc))
            return

        async def traffic() -> list[dict[str, int]]:
            """Close the line, and tell what it did."""
            stack.close()
            return [asdict(each) for each in (tunnel.to_server, tunnel.to_client)]

        await answer_commands({"live": partial(live, tunnel, heartbeats, seed), "traffic": traffic})


if __name__ == "__main__":
    run_part(main)
