"""A client in a process of its own, to be killed, stopped and looked at: started by test_processes.py.

Usage: `python process_client.py ADDRESS INTERVAL TIMEOUT CALLS SECONDS`: it makes CALLS calls of SECONDS each, all at
once, and reports on stdout, one JSON object for each event, how they ended.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import trio
import trio.testing

import trio_rpc


def report(event: str, **fields: Any) -> None:
    """Tell the test. `at` is on the clock that all processes share."""
    print(json.dumps({"event": event, "at": time.monotonic(), **fields}), flush=True)


async def main() -> None:
    """Make the calls; a report when the first are under way, and one at the end."""
    address, interval, timeout, calls, seconds = sys.argv[1:]
    results: list[Any] = []
    heartbeat = trio_rpc.Heartbeat(float(interval), float(timeout))

    async def call() -> None:
        try:
            results.append(await pool.call("Work.sleep", float(seconds)))
        except trio_rpc.RpcError as exc:
            results.append(repr(exc))

    async with trio_rpc.open_pool(address, heartbeat=heartbeat) as pool:
        await pool.call("Work.echo", "ready")
        async with trio.open_nursery() as nursery:
            for _ in range(int(calls)):
                nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            report("calling")
        statistics = pool.statistics()
    report("done", results=results, connects=statistics.connects, evicted=statistics.evicted)


if __name__ == "__main__":
    trio.run(main)
