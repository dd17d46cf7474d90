"""Raw Trio: a SocketStream that echoes bytes. No codec, no frames, a connection for each caller."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import trio

from ..peers import HOST, Announce, AsyncCall, Peer, payload
from .framing import CALL, codec, packer

__all__ = ["peer"]

RECEIVE = 65536
MESSAGE = packer(codec("msgpack")[0])(1, CALL, payload(1))
"""As many bytes as the others' calls."""


async def echo(stream: trio.SocketStream) -> None:
    """Serve one connection."""
    while data := await stream.receive_some(RECEIVE):
        await stream.send_all(data)


async def receive(stream: trio.SocketStream, count: int) -> None:
    """Receive so many bytes."""
    while count > 0:
        count -= len(await stream.receive_some(RECEIVE))


async def exchange(stream: trio.SocketStream, _i: int) -> None:
    """One call."""
    await stream.send_all(MESSAGE)
    await receive(stream, len(MESSAGE))


class RawTrio(Peer):
    """See Peer."""

    async def serve(self, announce: Announce) -> None:
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, echo, 0, host=HOST))
            announce(listener.socket.getsockname()[1])

    @asynccontextmanager
    async def unary(self) -> AsyncIterator[list[AsyncCall]]:
        async with AsyncExitStack() as stack:
            streams = [await self.dial(stack) for _ in range(self.setting.callers)]
            yield [partial(exchange, stream) for stream in streams]

    async def dial(self, stack: AsyncExitStack) -> trio.SocketStream:
        """A connection that the stack closes."""
        return await stack.enter_async_context(await trio.open_tcp_stream(HOST, self.port))

    @asynccontextmanager
    async def large(self) -> AsyncIterator[AsyncCall]:
        async with AsyncExitStack() as stack:
            stream = await self.dial(stack)

            async def call(data: bytes) -> None:
                async with trio.open_nursery() as nursery:  # The echo comes back while we still send.
                    nursery.start_soon(stream.send_all, data)
                    await receive(stream, len(data))

            yield call

    @asynccontextmanager
    async def short(self) -> AsyncIterator[AsyncCall]:
        async def call(i: int) -> None:
            async with await trio.open_tcp_stream(HOST, self.port) as stream:
                await exchange(stream, i)

        yield call

    @asynccontextmanager
    async def idle(self) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        async with AsyncExitStack() as stack:

            async def open_one() -> None:
                await exchange(await self.dial(stack), 0)

            yield open_one


peer = RawTrio
