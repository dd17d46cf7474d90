"""A TCP proxy that does to the bytes what a network and its middleboxes do: between a real client and a real server.

    async with open_proxy("127.0.0.1", 7000) as proxy:
        proxy.to_client.latency = 0.05
        ... open_pool(proxy.address)

Each connection that it accepts is one pair of sockets. What is set on `to_server` and `to_client` counts for all of
them, from the next bytes on. What happens at a certain byte counts the bytes of each connection by itself.

The namespaces' faults are packets'; TCP mends those. These here are what TCP cannot mend, or what makes it slow.
"""

from __future__ import annotations

import contextlib
import math
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeAlias

import trio

__all__ = ["Proxy", "Way", "open_proxy", "reset"]

SIZE: Final = 64 * 1024
UNDER_WAY: Final = 256
"""Pieces that are on a long way at once."""
RST: Final = struct.pack("ii", 1, 0)
"""SO_LINGER: with no time to linger, closing is resetting."""


def reset(stream: trio.SocketStream) -> None:
    """End a connection with RST."""
    with contextlib.suppress(OSError):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
    stream.socket.close()


class Way:
    """One direction; all may be changed at any time."""

    def __init__(self, rng: random.Random) -> None:
        self.latency: float = 0.0
        """Seconds that everything takes longer."""
        self.jitter: float = 0.0
        """Seconds by which that is more or less; nothing overtakes, as this is TCP."""
        self.rate: float = math.inf
        """Bytes a second."""
        self.slice: int = SIZE
        """Bytes that are passed on at once, at most; then it rests for `slice_delay` seconds."""
        self.slice_delay: float = 0.0
        self.corrupt: Callable[[bytes], bytes] = lambda data: data
        """Gives back as many bytes as it is given."""
        self.reset_after: float = math.inf
        """The first connection that has passed on so many bytes in this direction is reset, on both sides."""
        self.close_after: float = math.inf
        """Likewise, but with this side's end (FIN), while the other direction goes on."""
        self.passed: int = 0
        """Bytes, of all connections."""
        self.ended_at: float = -math.inf
        """When `reset_after` or `close_after` last came true, on Trio's clock."""
        self._rng = rng
        self._going = trio.Event()
        self._going.set()

    def stall(self) -> None:
        """Pass nothing on, until `go_on`. Nothing is lost."""
        self._going = trio.Event()

    def go_on(self) -> None:
        """Pass on again."""
        self._going.set()

    def due(self) -> float:
        """When what is here now arrives."""
        return trio.current_time() + max(0.0, self.latency + self._rng.uniform(-self.jitter, self.jitter))

    async def ready(self, size: int) -> None:
        """Wait as long as passing on so many bytes takes."""
        await self._going.wait()
        if self.rate < math.inf:
            await trio.sleep(size / self.rate)
        if self.slice_delay:
            await trio.sleep(self.slice_delay)


class Proxy:
    """Where it listens, what it does, and to whom."""

    def __init__(self, host: str, port: int, rng: random.Random) -> None:
        self.to_server: Way = Way(rng)
        self.to_client: Way = Way(rng)
        self.refuse: bool = False
        """Reset who comes, at once."""
        self.accepted: int = 0
        self.address: str = ""
        self._host = host
        self._port = port
        self._cuts: dict[trio.CancelScope, Callable[[], None]] = {}

    @property
    def open(self) -> int:
        """Connections that there are."""
        return len(self._cuts)

    def reset(self) -> None:
        """Reset all connections, on both sides."""
        for cut in list(self._cuts.values()):
            cut()

    async def attend(self, client: trio.SocketStream) -> None:
        """One connection, to its end."""
        self.accepted += 1
        try:
            server = None if self.refuse else await trio.open_tcp_stream(self._host, self._port)
        except OSError:
            server = None
        if server is None:
            reset(client)
            return

        def cut() -> None:
            for stream in (client, server):
                reset(stream)
            scope.cancel()

        async with client, server:
            with trio.CancelScope() as scope:
                self._cuts[scope] = cut
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(_carry, client, server, self.to_server, cut)
                        nursery.start_soon(_carry, server, client, self.to_client, cut)
                finally:
                    del self._cuts[scope]


Piece: TypeAlias = tuple[float, bytes]
"""When it arrives, and what; nothing is the end."""


async def _carry(source: trio.SocketStream, target: trio.SocketStream, way: Way, cut: Callable[[], None]) -> None:
    """One direction of a connection. Who resets either side of it resets both."""
    sender, receiver = trio.open_memory_channel[Piece](UNDER_WAY)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_take, source, way, sender)
            if await _give(target, way, receiver):
                await target.send_eof()
                nursery.cancel_scope.cancel()
            else:
                cut()
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        cut()


async def _take(source: trio.SocketStream, way: Way, sender: trio.MemorySendChannel[Piece]) -> None:
    data = b"-"
    async with sender:
        while data:
            data = bytes(await source.receive_some(SIZE))
            await sender.send((way.due(), data))


async def _give(target: trio.SocketStream, way: Way, receiver: trio.MemoryReceiveChannel[Piece]) -> bool:
    """Pass on what comes; True at its end, False if the connection is to be reset."""
    passed = 0
    async for due, data in receiver:
        await trio.sleep_until(due)
        start = 0
        while start < len(data):
            left = max(0, min(way.reset_after, way.close_after) - passed)
            piece = data[start : start + int(min(way.slice, left))]
            await way.ready(len(piece))
            if piece:
                await target.send_all(way.corrupt(piece))
            passed += len(piece)
            way.passed += len(piece)
            start += len(piece)
            if passed >= way.reset_after or passed >= way.close_after:
                is_end = passed < way.reset_after
                way.reset_after = way.close_after = math.inf
                way.ended_at = trio.current_time()
                return is_end
        await way.ready(0)
    return True


@asynccontextmanager
async def open_proxy(host: str, port: int, seed: int = 1) -> AsyncIterator[Proxy]:
    """A proxy before a server, for the length of a block."""
    proxy = Proxy(host, port, random.Random(seed))
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        proxy.address = f"tcp://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.start_soon(trio.serve_listeners, proxy.attend, listeners)
        yield proxy
        nursery.cancel_scope.cancel()
