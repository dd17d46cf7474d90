"""A server in a process of its own, which may be short of something: started by `tests.faults.scarcity.open_serving`.

Its first line on stdout is the list of its addresses. It serves until its stdin is closed, and then ends cleanly. What
it logs from WARNING on goes to stderr, where Python in its development mode also complains of what was not closed.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
from typing import Any

import attrs
import trio

import trio_rpc
from trio_rpc import ServerLimits


class Desk:
    """What the tests ask of it."""

    def __init__(self) -> None:
        self.server: trio_rpc.Server | None = None

    @trio_rpc.method
    async def echo(self, value: int) -> int:
        return value

    @trio_rpc.method
    async def statistics(self) -> dict[str, Any]:
        assert self.server is not None
        return attrs.asdict(self.server.statistics())


def spare(count: int) -> None:
    """Let this process open so many more descriptors than it has."""
    lowest_free = os.dup(0)
    os.close(lowest_free)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + count, hard))


async def main(places: list[str], limits: ServerLimits, spared: int | None) -> None:
    """Serve until stdin is closed."""
    desk = Desk()
    async with trio_rpc.open_server(desk, places, limits=limits) as desk.server:
        stdin = trio.lowlevel.FdStream(os.dup(0))
        if spared is not None:
            spare(spared)
        print(json.dumps(desk.server.addresses), flush=True)
        async with stdin:
            while await stdin.receive_some():
                pass


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    told = json.loads(sys.argv[1])
    trio.run(main, told["places"], ServerLimits(**told["limits"]), told["spare"])
