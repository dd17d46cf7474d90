"""A server that runs out of file descriptors: started by test_transports.py.

Usage: `python process_scarce.py SPARE`: it may open so many descriptors more than it has when it listens. The address
is its first line on stdout.
"""

from __future__ import annotations

import os
import resource
import sys

import trio

import trio_rpc


class Echo:
    def __init__(self) -> None:
        self.server: trio_rpc.Server | None = None

    @trio_rpc.method
    async def echo(self, value: int) -> int:
        return value

    @trio_rpc.method
    async def accept_errors(self) -> int:
        assert self.server is not None
        return self.server.statistics().accept_errors


async def main() -> None:
    """Serve until killed."""
    service = Echo()
    async with trio_rpc.open_server(service, "tcp://127.0.0.1:0") as service.server:
        lowest_free = os.dup(0)
        os.close(lowest_free)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + int(sys.argv[1]), hard))
        print(service.server.addresses[0], flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main)
