"""A stream with faults in its way: what a fault is, and the one place where faults, closing and resets meet."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import Literal, TypeAlias, TypeVar

import trio

from ._exclusive import Exclusive
from ._pipes import MemoryStream

__all__ = ["Data", "Direction", "Fault", "FaultyStream", "Receive", "Reset", "Send"]

T = TypeVar("T")

Direction: TypeAlias = Literal["sending", "receiving", "both"]
Data: TypeAlias = bytes | bytearray | memoryview
Send: TypeAlias = Callable[[Data], Awaitable[None]]
Receive: TypeAlias = Callable[[int | None], Awaitable[bytes]]
Reset: TypeAlias = Callable[[], Awaitable[None]]


class Fault:
    """What may be given to `FaultyStream`. A subclass wraps one direction, or both; this one changes nothing."""

    direction: Direction = "both"

    def sending(self, send: Send, reset: Reset) -> Send:
        """Wrap what sends. `reset` breaks the whole connection."""
        return send

    def receiving(self, receive: Receive, reset: Reset) -> Receive:
        """Wrap what receives. `reset` breaks the whole connection."""
        return receive


class FaultyStream(trio.abc.HalfCloseableStream):
    """A stream with faults in its way.

    Closing it wakes a task that waits in a fault (with ClosedResourceError), so that a frozen or swallowed
    connection can be left. To put faults under TLS, wrap the transport, not the SSLStream.
    """

    def __init__(self, stream: trio.abc.Stream, *faults: Fault) -> None:
        self.stream = stream
        self.faults = faults
        self._sending = Exclusive("sending on")
        self._receiving = Exclusive("receiving from")
        self._operations: dict[trio.lowlevel.Task, trio.CancelScope] = {}
        self._closed = False
        self._reset = False
        self._send: Send = self._send_inside
        self._receive: Receive = self._receive_inside
        for fault in reversed(faults):
            if fault.direction != "receiving":
                self._send = fault.sending(self._send, self.reset)
            if fault.direction != "sending":
                self._receive = fault.receiving(self._receive, self.reset)

    def __repr__(self) -> str:
        return f"<FaultyStream of {self.stream!r}: {', '.join(map(repr, self.faults)) or 'no faults'}>"

    async def send_all(self, data: Data) -> None:
        """Send `data` through the faults."""
        with self._sending:
            await self._operate(lambda: self._send_some(data))

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive what the faults let through."""
        with self._receiving:
            return await self._operate(lambda: self._receive(max_bytes))

    async def send_eof(self) -> None:
        """Send the end of the stream through the faults.

        Raises TypeError if the stream inside cannot be half closed.
        """
        if not isinstance(self.stream, trio.abc.HalfCloseableStream):
            raise TypeError(f"{self.stream!r} cannot be half closed: it has no send_eof")
        with self._sending:
            await self._operate(lambda: self._send(b""))

    async def wait_send_all_might_not_block(self) -> None:
        """Wait for the stream inside; a fault may still make `send_all` wait."""
        with self._sending:
            await self._operate(self.stream.wait_send_all_might_not_block)

    async def reset(self) -> None:
        """Break the connection now: both sides get BrokenResourceError, waiting tasks included.

        What is inside is reset if it is a memory pipe or a socket, else closed forcefully.
        """
        self._reset = True
        try:
            await _reset(self.stream)
        finally:
            # A task that resets in the middle of its own operation still brings home what passed before.
            self._interrupt(other_than=trio.lowlevel.current_task())

    async def aclose(self) -> None:
        """Close the stream inside; tasks that wait here get ClosedResourceError."""
        self._closed = True
        self._interrupt()
        await self.stream.aclose()

    def _interrupt(self, other_than: trio.lowlevel.Task | None = None) -> None:
        for task, scope in self._operations.items():
            if task is not other_than:
                scope.cancel()

    async def _send_some(self, data: Data) -> None:
        octets = data.cast("B") if isinstance(data, memoryview) else data
        if len(octets):  # to the faults, no bytes mean the end
            await self._send(octets)

    async def _send_inside(self, data: Data) -> None:
        if len(data):
            await self.stream.send_all(data)
        elif isinstance(self.stream, trio.abc.HalfCloseableStream):
            await self.stream.send_eof()

    async def _receive_inside(self, max_bytes: int | None) -> bytes:
        return bytes(await self.stream.receive_some(max_bytes))

    async def _operate(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Run one operation so that closing or resetting the stream ends it, wherever in a fault it waits."""
        task = trio.lowlevel.current_task()
        with trio.CancelScope() as scope:
            self._operations[task] = scope
            try:
                await trio.lowlevel.checkpoint()
                self._check()
                return await operation()
            except trio.ClosedResourceError:
                self._check()  # the stream inside was closed because we reset it: that is Broken to our user
                raise
            finally:
                del self._operations[task]
        self._check()
        raise AssertionError("an operation is interrupted only by aclose or reset")

    def _check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this stream is closed")
        if self._reset:
            raise trio.BrokenResourceError("the connection was reset")


async def _reset(stream: trio.abc.Stream) -> None:
    if isinstance(stream, FaultyStream):
        await stream.reset()
    elif isinstance(stream, MemoryStream):
        stream.reset()
    elif isinstance(stream, trio.SSLStream):
        await _reset(stream.transport_stream)
    else:
        if isinstance(stream, trio.SocketStream) and stream.socket.fileno() != -1:
            # Lingering for no time makes the kernel send RST instead of FIN: l_onoff=1, l_linger=0.
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await trio.aclose_forcefully(stream)
