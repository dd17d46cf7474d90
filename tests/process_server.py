"""A server in a process of its own, to be killed, stopped and drained: started by test_processes.py.

Usage: `python process_server.py ADDRESS INTERVAL TIMEOUT`, the last two for its heartbeat. It reports on stdout, one
JSON object for each event. SIGTERM drains it, and a second one leaves it no time for that.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from typing import Any

import trio

import trio_rpc


def report(event: str, **fields: Any) -> None:
    """Tell the test. `at` is on the clock that all processes share."""
    print(json.dumps({"event": event, "at": time.monotonic(), **fields}), flush=True)


class Work:
    @trio_rpc.method
    async def echo(self, value: Any) -> Any:
        return value

    @trio_rpc.method
    async def sleep(self, seconds: float) -> float:
        try:
            await trio.sleep(seconds)
        except trio.Cancelled:
            report("cancelled")
            raise
        return seconds


async def drain(server: trio_rpc.Server, waiting: trio.CancelScope) -> None:
    """Let what was accepted finish; then there is no second signal to wait for."""
    await server.drain(grace=5)
    waiting.cancel()


async def main() -> None:
    """Serve until SIGTERM, then drain; a second one cuts that short."""
    address, interval, timeout = sys.argv[1:]
    heartbeat = trio_rpc.Heartbeat(float(interval), float(timeout))
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio_rpc.open_server(Work(), address, heartbeat=heartbeat) as server:
            report("serving", address=server.addresses[0])
            async with trio.open_nursery() as nursery:
                await anext(signals)
                report("draining")
                nursery.start_soon(drain, server, nursery.cancel_scope)
                await anext(signals)
                await server.drain(grace=0)
    report("drained")


if __name__ == "__main__":
    trio.run(main)
