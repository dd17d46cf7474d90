"""A server on its own standard input and output: started by test_transports.py."""

from __future__ import annotations

import sys

import trio

import trio_rpc


class Echo:
    @trio_rpc.method
    async def echo(self, value: int) -> int:
        return value


async def main() -> None:
    """Serve the parent until it closes the pipes."""
    pipes = trio.StapledStream(trio.lowlevel.FdStream(sys.stdout.fileno()), trio.lowlevel.FdStream(sys.stdin.fileno()))
    await trio_rpc.serve_stream(Echo(), pipes)


if __name__ == "__main__":
    trio.run(main)
