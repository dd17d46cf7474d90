"""The victim of the proof `dead`, in a process of its own: see `parts`. It is stopped and killed, and watches nobody."""

from __future__ import annotations

from collections.abc import Mapping

import trio

import trio_rpc
from tests.faults.watched import Naps

from .parts import answer_commands, run_part

__all__ = ["UNWATCHED"]

UNWATCHED = trio_rpc.Heartbeat(60, 60)
SOON = trio_rpc.PoolLimits(connect_backoff=trio_rpc.Backoff(initial=0.05, maximum=0.05))


async def main(calls: Mapping[str, int] | None = None) -> None:
    """Be a server; or, with `calls`, a client that keeps so many calls under way at each of these addresses."""
    async with trio.open_nursery() as nursery:
        if calls is None:
            async with trio_rpc.open_server(Naps(), "tcp://127.0.0.1:0", heartbeat=UNWATCHED) as server:
                await answer_commands({}, server.addresses[0])
        else:
            for address, count in calls.items():
                nursery.start_soon(keep_calling, address, count)
            await answer_commands({})
        nursery.cancel_scope.cancel()


async def keep_calling(address: str, count: int) -> None:
    """Stay connected, and begin each call anew when it has failed."""

    async def nap() -> None:
        while True:
            try:
                await pool.call("Naps.nap")
            except trio_rpc.ConnectionFailed:
                await trio.sleep(0.01)

    async with trio_rpc.open_pool(address, heartbeat=UNWATCHED, limits=SOON) as pool, trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(nap)
        await trio.sleep_forever()


if __name__ == "__main__":
    run_part(main)
