"""What both sides know: a plain class is the contract, and the type of the client's stub."""

import trio_rpc

ADDRESS = "tcp://127.0.0.1:7000"


class Greeter:
    """Greets."""

    @trio_rpc.method
    async def hello(self, name: str) -> str:
        """Greet `name`."""
        raise NotImplementedError
