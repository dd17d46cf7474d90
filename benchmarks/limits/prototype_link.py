"""The prototype's connection: a socket, a queue of frames before it, and the Instrument that flushes it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import trio
from trio.lowlevel import Abort, wait_readable, wait_writable

from .framing import BLOB, HEADER, Splitter, codec, packer

__all__ = ["LARGE", "Connection", "Flusher", "give_up", "pack"]

RECEIVE = 65536
LARGE = 65536
"""Bytes from which on a body travels raw."""

encode, decode = codec("msgspec")
pack = packer(encode)


def give_up(_raise_cancel: Callable[[], Any]) -> Abort:
    """A wait that is simply left when it is cancelled."""
    return Abort.SUCCEEDED


class Flusher(trio.abc.Instrument):
    """Flushes the connections that have something to send, once per tick."""

    def __init__(self) -> None:
        self.dirty: list[Connection] = []
        self.token = trio.lowlevel.current_trio_token()
        trio.lowlevel.add_instrument(self)

    def before_io_wait(self, timeout: float) -> None:
        """Called by Trio when all tasks that could run have run."""
        if self.dirty:
            dirty, self.dirty = self.dirty, []
            for connection in dirty:
                if not connection.flush() and not connection.draining:
                    connection.draining = True
                    self.token.run_sync_soon(connection.nursery.start_soon, connection.drain)


class Connection:
    """A socket with a queue of frames in front."""

    def __init__(self, sock: socket.socket, nursery: trio.Nursery, flusher: Flusher) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.nursery = nursery
        self.flusher = flusher
        self.splitter = Splitter(decode)
        self.out: list[Any] = []
        self.raw = False
        """Whether `out` has a large body, which is not to be joined."""
        self.unsent: list[memoryview] = []
        self.draining = False

    def push(self, frame: bytes) -> None:
        """Queue a frame for the end of this tick."""
        if not self.out:
            self.flusher.dirty.append(self)
        self.out.append(frame)

    def push_raw(self, number: int, body: Any) -> None:
        """Queue a large body, uncopied."""
        self.push(HEADER.pack(len(body), number, BLOB))
        self.out.append(body)
        self.raw = True

    def flush(self) -> bool:
        """Send what can be sent now; True if that was everything."""
        out = self.out
        if not out or self.unsent:
            return not self.unsent
        if self.raw:
            self.raw = False
            self.unsent = [memoryview(part) for part in out]
            out.clear()
            return self.send_unsent()
        data = b"".join(out) if len(out) > 1 else out[0]
        out.clear()
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return True
        if sent == len(data):
            return True
        self.unsent.append(memoryview(data)[sent:])
        return False

    def send_unsent(self) -> bool:
        """Send what is left of earlier flushes; True if nothing is left."""
        unsent = self.unsent
        while unsent:
            try:
                sent = self.sock.sendmsg(unsent[:64])
            except BlockingIOError:
                return False
            except OSError:
                unsent.clear()
                return True
            while unsent and sent >= len(unsent[0]):
                sent -= len(unsent.pop(0))
            if unsent:
                unsent[0] = unsent[0][sent:]
        return True

    async def drain(self) -> None:
        """Send the rest when the socket takes it."""
        while self.unsent or not self.flush():
            await wait_writable(self.sock)
            self.send_unsent()
        self.draining = False

    async def receive(self) -> list[tuple[int, int, Any]] | None:
        """Wait for frames; None when the peer has closed."""
        await wait_readable(self.sock)
        try:
            data = self.sock.recv(RECEIVE)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        frames = self.splitter.feed(data)
        if self.splitter.missing > RECEIVE:
            missing = self.splitter.missing
            frames += self.splitter.feed(await self.receive_rest(self.splitter.take(), missing))
        return frames

    async def receive_rest(self, head: Any, missing: int) -> bytearray:
        """Receive the rest of a large frame in place."""
        frame = bytearray(len(head) + missing)
        frame[: len(head)] = head
        view, at = memoryview(frame), len(head)
        while at < len(frame):
            try:
                received = self.sock.recv_into(view[at:])
            except BlockingIOError:
                await wait_readable(self.sock)
                continue
            if not received:
                raise ConnectionError("closed within a frame")
            at += received
        return frame
