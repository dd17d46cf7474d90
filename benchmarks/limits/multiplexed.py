"""What the hand-written multiplexing limits share: the workloads, over a client of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

from ..peers import AsyncCall, Peer, payload

__all__ = ["Multiplexed"]


class Client(Protocol):
    """One connection, which many callers share."""

    async def call(self, value: Any) -> Any:
        """Send a value, and return its echo."""
        ...


class Multiplexed(Peer):
    """See Peer. A limit says what a client is, and how it receives a stream."""

    def client(self) -> AbstractAsyncContextManager[Any]:
        """One connection: a Client."""
        raise NotImplementedError

    def stream(self, client: Any, count: int) -> AsyncIterator[Any]:
        """So many payloads from the server."""
        raise NotImplementedError

    @asynccontextmanager
    async def unary(self) -> AsyncIterator[list[AsyncCall]]:
        client: Client
        async with self.client() as client:

            async def call(i: int) -> None:
                reply = await client.call(payload(i))
                assert reply["id"] == i

            yield [call] * self.setting.callers

    @asynccontextmanager
    async def large(self) -> AsyncIterator[AsyncCall]:
        client: Client
        async with self.client() as client:

            async def call(data: bytes) -> None:
                reply = await client.call(data)
                assert len(reply) == len(data)

            yield call

    @asynccontextmanager
    async def server_stream(self) -> AsyncIterator[AsyncCall]:
        async with self.client() as client:

            async def run(count: int) -> None:
                expected = 0
                async for item in self.stream(client, count):
                    assert item["id"] == expected
                    expected += 1
                assert expected == count

            yield run
