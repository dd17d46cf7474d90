"""Call a Greeter once: `python -m examples.hello.client [ADDRESS]`."""

import sys

import trio

import trio_rpc

from .contract import ADDRESS, Greeter


async def main(address: str) -> None:
    """Greet, within a second; the deadline is the server's as well."""
    async with trio_rpc.open_pool(address) as pool:
        greeter = pool.stub(Greeter)
        with trio.fail_after(1):
            print(await greeter.hello("Ada"))


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if sys.argv[1:] else ADDRESS)
