"""An in-memory connection that pushes back.

`trio.testing.memory_stream_pair` takes any number of bytes at once. A socket does not: its buffers fill, `send_all`
waits in the middle of a message, and a cancellation there leaves part of it written. Code that is right over an
endless buffer may hang or corrupt over a bounded one, so this pipe is bounded.
"""

from __future__ import annotations

import attrs
import trio

from ._exclusive import Exclusive

__all__ = ["MemoryStream", "PipeStatistics", "memory_pipe"]

DEFAULT_CAPACITY = 64 * 1024
"""Bytes on their way in one direction: the order of what a kernel buffers for a new TCP connection."""


@attrs.frozen(kw_only=True)
class PipeStatistics:
    """What has passed one end of a memory pipe, in bytes."""

    sent: int
    """Written here and taken by the pipe; after an interrupted `send_all` it tells how long the written prefix is."""
    received: int
    """Handed out by `receive_some` here."""
    unsent: int
    """Taken by the pipe here and not yet received by the other end."""
    unread: int
    """Arrived here and not yet received."""


class _Flow:
    """One direction: the bytes on their way, and how either side has ended it."""

    def __init__(self, capacity: int | None) -> None:
        self.capacity = capacity
        self.buffer: bytearray = bytearray()
        self.sent: int = 0
        self.received: int = 0
        self.ended: bool = False  # by the sender: no more bytes will come
        self.reset: bool = False  # by the sender: what comes after the buffer is an error, not the end
        self.abandoned: bool = False  # by the receiver: nobody will read
        # One lot is enough: a sender waits only for a full buffer, a receiver only for an empty one.
        self.changed: trio.lowlevel.ParkingLot = trio.lowlevel.ParkingLot()

    @property
    def full(self) -> bool:
        return self.capacity is not None and len(self.buffer) >= self.capacity

    def put(self, data: memoryview) -> int:
        """Take as much of `data` as there is room for, and tell how much that was."""
        taken = len(data) if self.capacity is None else min(len(data), self.capacity - len(self.buffer))
        self.buffer += data[:taken]
        self.sent += taken
        self.changed.unpark_all()
        return taken

    def take(self, max_bytes: int | None) -> bytes:
        data = bytes(self.buffer[:max_bytes])
        del self.buffer[: len(data)]
        self.received += len(data)
        self.changed.unpark_all()
        return data

    def end(self, *, reset: bool = False) -> None:
        self.ended = True
        self.reset = self.reset or reset
        self.changed.unpark_all()

    def abandon(self) -> None:
        self.abandoned = True
        self.buffer.clear()
        self.changed.unpark_all()


class MemoryStream(trio.abc.HalfCloseableStream):
    """One end of a `memory_pipe`.

    Errors are those of `trio.abc.Stream`: ClosedResourceError once this end is closed (or, for sending, after
    `send_eof`), BrokenResourceError once the other end is gone, BusyResourceError for a second task in the same
    direction. What the other end sent before it closed is still received, then comes the end of the stream.

    Every operation is a checkpoint. A receive that is cancelled has taken nothing; a `send_all` that is cancelled
    has written a prefix, whose length `statistics().sent` tells.
    """

    def __init__(self, outgoing: _Flow, incoming: _Flow) -> None:
        self._outgoing = outgoing
        self._incoming = incoming
        self._sending = Exclusive("sending on")
        self._receiving = Exclusive("receiving from")
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<MemoryStream {state}, {self._outgoing.sent} bytes sent, {self._incoming.received} received>"

    def statistics(self) -> PipeStatistics:
        """The bytes that have passed this end so far."""
        outgoing, incoming = self._outgoing, self._incoming
        return PipeStatistics(
            sent=outgoing.sent,
            received=incoming.received,
            unsent=len(outgoing.buffer),
            unread=len(incoming.buffer),
        )

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data`, waiting for the other end to read whenever the pipe is full."""
        with self._sending, memoryview(data) as whole, whole.cast("B") as rest:
            await trio.lowlevel.checkpoint()
            self._check_sendable()
            written = 0
            while written < len(rest):
                if self._outgoing.full:
                    await self._outgoing.changed.park()
                    self._check_sendable()
                else:
                    with rest[written:] as tail:
                        written += self._outgoing.put(tail)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the pipe has room for a byte."""
        with self._sending:
            await trio.lowlevel.checkpoint()
            self._check_sendable()
            while self._outgoing.full:
                await self._outgoing.changed.park()
                self._check_sendable()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return what has arrived (at least one byte, at most `max_bytes`), waiting for it; b"" at the end."""
        if max_bytes is not None and not isinstance(max_bytes, int):
            raise TypeError(f"max_bytes must be an int or None, not {max_bytes!r}")
        if max_bytes is not None and max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, not {max_bytes}")
        with self._receiving:
            await trio.lowlevel.checkpoint()
            while not self._receivable():
                await self._incoming.changed.park()
            return self._incoming.take(max_bytes)

    async def send_eof(self) -> None:
        """Tell the other end that no more comes; receiving goes on. A second time does nothing."""
        with self._sending:
            await trio.lowlevel.checkpoint()
            if self._closed:
                raise trio.ClosedResourceError("this stream is closed: nothing can be sent on it")
            self._outgoing.end()

    def close(self) -> None:
        """Close this end at once: tasks that wait here get ClosedResourceError. A second time does nothing."""
        self._closed = True
        self._outgoing.end()
        self._incoming.abandon()

    def reset(self) -> None:
        """Close this end the way a TCP reset does.

        The other end may still read what had arrived; then its receives raise BrokenResourceError, not the end.
        """
        if not self._closed:
            self._outgoing.end(reset=True)
            self.close()

    async def aclose(self) -> None:
        """`close`, as a checkpoint. It is closed even when cancelled."""
        self.close()
        await trio.lowlevel.checkpoint()

    def _check_sendable(self) -> None:
        if self._closed or self._outgoing.ended:
            why = "closed" if self._closed else "at its end (send_eof)"
            raise trio.ClosedResourceError(f"this stream is {why}: nothing can be sent on it")
        if self._outgoing.abandoned:
            raise trio.BrokenResourceError("the other end of the pipe is closed: nobody will read what is sent")

    def _receivable(self) -> bool:
        """Whether there are bytes, or the end, to hand out."""
        if self._closed:
            raise trio.ClosedResourceError("this stream is closed: nothing can be received from it")
        if self._incoming.reset and not self._incoming.buffer:
            raise trio.BrokenResourceError("the other end reset the connection")
        return bool(self._incoming.buffer) or self._incoming.ended


def memory_pipe(capacity: int | None = DEFAULT_CAPACITY) -> tuple[MemoryStream, MemoryStream]:
    """Make two connected in-memory streams.

    `capacity` bounds the bytes on their way in each direction: a `send_all` beyond it waits until the other side
    reads. None takes any amount at once.
    """
    if capacity is not None and capacity < 1:
        raise ValueError(f"capacity must be at least 1 byte, or None for no bound, not {capacity}")
    there, back = _Flow(capacity), _Flow(capacity)
    return MemoryStream(there, back), MemoryStream(back, there)
