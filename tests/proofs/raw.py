"""Raw bytes for a server: honest ones to begin with, and any others."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgpack
import trio

from trio_rpc.wire import MAX_ID, Event, Flag, GoAwayReceived, Hello, Kind, Protocol, Role, method_block

__all__ = ["GREETING", "MORE", "STREAM", "Raw", "address_of", "cancel", "frame", "open_raw", "request"]

MORE, STREAM = int(Flag.MORE), int(Flag.STREAM)
SOURCES = 8
"""Addresses of this machine that connections come from, so that each has ports enough."""
IP_BIND_ADDRESS_NO_PORT = 24
GREETING = Protocol(Role.DIALLER, Hello()).greeting()
RESET = struct.pack("ii", 1, 0)


def frame(kind: int, request_id: int, body: bytes = b"", *, flags: int = 0, length: int | None = None) -> bytes:
    """A frame, honest or not: `length` is what its header claims."""
    return struct.pack(">IIBB", len(body) if length is None else length, request_id, kind, flags) + body


def request(request_id: int, name: str, *args: object, streaming: bool = False) -> bytes:
    """A small request for one of the target's methods."""
    body = method_block(f"Target.{name}") + bytes(msgpack.packb(list(args)))
    return frame(Kind.REQUEST, request_id, body, flags=STREAM if streaming else 0)


def cancel(request_id: int) -> bytes:
    """The word that nobody waits for it any more."""
    return frame(Kind.CANCEL, request_id, struct.pack(">IB", 1000, 0))


def address_of(target: str) -> tuple[str, int]:
    """Host and port."""
    host, _, port = target.removeprefix("tcp://").rpartition(":")
    return host, int(port)


class Raw:
    """One connection of bytes.

    Attributes:
        ended: True once the server has closed, or reset, it.
        goaway: what it said before.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.protocol = Protocol(Role.DIALLER, Hello())
        self.protocol.last_local_id = MAX_ID  # We number our requests ourselves: it is to take the answers to any.
        self.ended = False
        self.goaway = ""

    async def send(self, data: bytes) -> None:
        """Send, if it can be sent."""
        try:
            await self.stream.send_all(data)
        except trio.BrokenResourceError:
            self.ended = True

    async def events(self) -> list[Event]:
        """What comes next; nothing once it has ended. Raises RemoteProtocolError for what no server may say."""
        try:
            data = await self.stream.receive_some()
        except trio.BrokenResourceError:
            data = b""
        if not data:
            self.ended = True
            return []
        events = self.protocol.receive_data(bytes(data))
        for event in events:
            if isinstance(event, GoAwayReceived):
                self.goaway = event.message
        return events

    def reset(self) -> None:
        """End it with a RST, as a process that is killed with unread data does."""
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.stream.socket.close()


@asynccontextmanager
async def open_raw(target: tuple[str, int], number: int = 0) -> AsyncIterator[Raw]:
    """Connect, from the address that the number chooses; close it forcibly."""
    sock = trio.socket.socket()
    try:
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        await sock.bind((f"127.0.1.{1 + number % SOURCES}", 0))
        await sock.connect(target)
        yield Raw(trio.SocketStream(sock))
    finally:
        sock.close()
