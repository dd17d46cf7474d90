"""Serve a Greeter until Ctrl-C: `python -m examples.hello.server [ADDRESS]`."""

import sys

import trio

import trio_rpc

from .contract import ADDRESS, Greeter


class FriendlyGreeter(Greeter):
    """The contract, with a body."""

    @trio_rpc.method
    async def hello(self, name: str) -> str:
        """Greet `name`, kindly."""
        return f"Hello, {name}!"


async def main(address: str) -> None:
    """Serve; cancelling this (Ctrl-C) first cancels the calls that are being served, and waits for their end."""
    async with trio_rpc.open_server(FriendlyGreeter(), address) as server:
        print("serving at", *server.addresses, flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    try:
        trio.run(main, sys.argv[1] if sys.argv[1:] else ADDRESS)
    except KeyboardInterrupt:
        print("stopped")
