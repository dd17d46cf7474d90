"""A hand-written multiplexed RPC on asyncio.Protocol: ids, futures, one write per loop iteration.

The handler is a plain call within the reading callback: no task, no cancel scope, no deadline. The variant names the
event loop, `asyncio` or `uvloop`.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, cast

from ..peers import HOST, Announce, AsyncCall, Runtime, payload
from ..workloads import Setting
from .framing import CALL, CREDIT, END, ITEMS, STREAM, Splitter, codec, packer
from .multiplexed import Multiplexed

__all__ = ["peer"]

WINDOW = 512
LARGE = 65536

encode, decode = codec("msgpack")
pack = packer(encode)


class Connection(asyncio.Protocol):
    """Frames in and out; what is pushed in one iteration of the loop leaves in one write."""

    def __init__(self) -> None:
        self.splitter = Splitter(decode)
        self.out: list[bytes] = []
        self.parts: list[Any] = []
        self.missing = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self.transport = cast("asyncio.Transport", transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.loop = asyncio.get_running_loop()

    def push(self, frame: bytes) -> None:
        """Queue a frame."""
        if not self.out:
            self.loop.call_soon(self.flush)
        self.out.append(frame)

    def flush(self) -> None:
        """Write what is queued."""
        if self.out:
            self.transport.write(b"".join(self.out) if len(self.out) > 1 else self.out[0])
            self.out.clear()

    def data_received(self, data: bytes) -> None:
        """Called by the loop. The parts of a large frame are joined once."""
        if self.missing > 0:
            self.parts.append(data)
            self.missing -= len(data)
            if self.missing > 0:
                return
            data = b"".join(self.parts)
            self.parts = []
        self.on_frames(self.splitter.feed(data))
        if self.splitter.missing > LARGE:
            self.missing = self.splitter.missing
            self.parts = [self.splitter.take()]

    def on_frames(self, frames: list[tuple[int, int, Any]]) -> None:
        """Act on what has come."""
        raise NotImplementedError


class Server(Connection):
    """The accepting side."""

    def __init__(self) -> None:
        super().__init__()
        self.credit: dict[int, tuple[list[int], asyncio.Event]] = {}
        self.streams: set[asyncio.Task[None]] = set()

    def on_frames(self, frames: list[tuple[int, int, Any]]) -> None:
        out = self.out
        for number, kind, value in frames:
            if kind == CALL:
                out.append(pack(number, CALL, value))
            elif kind == STREAM:
                task = self.loop.create_task(self.stream(number, value))
                self.streams.add(task)
                task.add_done_callback(self.streams.discard)
            elif number in self.credit:
                left, more = self.credit[number]
                left[0] += value
                more.set()
        self.flush()

    async def stream(self, number: int, count: int) -> None:
        """Send a stream, as far as the consumer's credit goes."""
        left, more = self.credit[number] = [WINDOW], asyncio.Event()
        for i in range(count):
            while not left[0]:
                more.clear()
                await more.wait()
            left[0] -= 1
            self.push(pack(number, ITEMS, payload(i)))
            if i % 64 == 0:
                await asyncio.sleep(0)
        self.push(pack(number, END, None))
        del self.credit[number]


class Client(Connection):
    """The dialling side."""

    def __init__(self) -> None:
        super().__init__()
        self.pending: dict[int, asyncio.Future[Any]] = {}
        self.streams: dict[int, Stream] = {}
        self.last = 0

    def on_frames(self, frames: list[tuple[int, int, Any]]) -> None:
        pop = self.pending.pop
        for number, kind, value in frames:
            if kind == CALL:
                future = pop(number, None)
                if future is not None and not future.done():
                    future.set_result(value)
            else:
                self.streams[number].take(kind, value)

    async def call(self, value: Any) -> Any:
        """Make a call."""
        self.last = number = (self.last + 1) & 0x7FFFFFFF
        self.pending[number] = future = self.loop.create_future()
        self.push(pack(number, CALL, value))
        return await future


class Stream:
    """The consumer's side of a stream."""

    def __init__(self, client: Client, count: int) -> None:
        client.last += 1
        self.client = client
        self.number = client.last
        self.frames: deque[tuple[int, Any]] = deque()
        self.waiter: asyncio.Future[None] | None = None
        self.used = 0
        client.streams[self.number] = self
        client.push(pack(self.number, STREAM, count))

    def take(self, kind: int, value: Any) -> None:
        """An item has come, or the end."""
        self.frames.append((kind, value))
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Any:
        while not self.frames:
            self.waiter = self.client.loop.create_future()
            await self.waiter
        kind, value = self.frames.popleft()
        if kind == END:
            del self.client.streams[self.number]
            raise StopAsyncIteration
        self.used += 1
        if self.used == WINDOW // 2:
            self.client.push(pack(self.number, CREDIT, self.used))
            self.used = 0
        return value


class HandWritten(Multiplexed):
    """See Peer."""

    def __init__(self, setting: Setting, variant: Runtime) -> None:
        super().__init__(setting, variant)
        self.runtime = variant

    async def serve(self, announce: Announce) -> None:
        server = await asyncio.get_running_loop().create_server(Server, HOST, 0, backlog=4096)
        announce(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """One connection."""
        _, client = await asyncio.get_running_loop().create_connection(Client, HOST, self.port)
        yield client
        client.transport.close()

    def stream(self, client: Any, count: int) -> AsyncIterator[Any]:
        return Stream(client, count)

    @asynccontextmanager
    async def short(self) -> AsyncIterator[AsyncCall]:
        async def call(i: int) -> None:
            async with self.client() as client:
                reply = await client.call(payload(i))
                assert reply["id"] == i

        yield call

    @asynccontextmanager
    async def idle(self) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        async with AsyncExitStack() as stack:

            async def open_one() -> None:
                client = await stack.enter_async_context(self.client())
                await client.call(payload(0))

            yield open_one


peer = HandWritten
