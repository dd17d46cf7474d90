"""Holds thousands of idle connections, in a process of its own, and answers pings: one task, and one epoll for all."""

from __future__ import annotations

import select
import socket
from functools import partial
from typing import Any

import trio

from trio_rpc.wire import HEADER_SIZE, PREFACE, Kind

from .parts import answer_commands, run_part, until
from .raw import GREETING, IP_BIND_ADDRESS_NO_PORT, SOURCES, address_of, frame

AT_ONCE = 200
"""Connections dialled before the answers of all of them have come: below `max_handshaking`."""
PATIENCE = 20.0
"""Seconds in which these must have come."""


class Held:
    """One connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.data = b""
        self.greeted = False
        self.pings = 0

    def receive(self) -> bool:
        """Take what has arrived, and answer pings; False at the end."""
        try:
            data = self.sock.recv(65536)
        except OSError:
            data = b""
        self.data += data
        if not self.greeted and self.data.startswith(PREFACE):
            self.data = self.data[len(PREFACE) :]
        while len(self.data) >= HEADER_SIZE:
            size = HEADER_SIZE + int.from_bytes(self.data[:4], "big")
            if len(self.data) < size:
                break
            kind, body = self.data[8], self.data[HEADER_SIZE:size]
            self.data = self.data[size:]
            self.greeted |= kind == Kind.HELLO
            if kind == Kind.PING:
                self.pings += 1
                self.sock.send(frame(Kind.PONG, 0, body))
        return bool(data)


class Holder:
    """All of them."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.held: dict[int, Held] = {}
        self.ended = 0

    async def run(self) -> None:
        """Serve them."""
        while True:
            await trio.lowlevel.wait_readable(self.epoll.fileno())
            for number, _ in self.epoll.poll(0, 1000):
                held = self.held[number]
                if not held.receive():
                    self.epoll.unregister(number)
                    self.ended += 1
            await trio.lowlevel.checkpoint()

    async def open(self, target: str, count: int) -> None:
        """Connect so many times, and wait for the HELLO of each."""
        address = address_of(target)
        for start in range(0, count, AT_ONCE):
            batch = [self._dial(address, number) for number in range(start, min(count, start + AT_ONCE))]
            with trio.fail_after(PATIENCE):
                for held in batch:
                    await until(partial(getattr, held, "greeted"), pause=0.005)

    def _dial(self, address: tuple[str, int], number: int) -> Held:
        sock = socket.socket()
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((f"127.0.1.{1 + number % SOURCES}", 0))
        sock.connect(address)
        sock.setblocking(False)
        sock.send(GREETING)
        held = self.held[sock.fileno()] = Held(sock)
        self.epoll.register(sock.fileno(), select.EPOLLIN)
        return held

    async def count(self) -> dict[str, Any]:
        """How many pings the least and the most pinged one has answered, all of them together, and how many ended."""
        pings = [held.pings for held in self.held.values()]
        return {"least": min(pings), "most": max(pings), "pings": sum(pings), "ended": self.ended}


async def main() -> None:
    """Hold until the input ends, or the process is killed."""
    holder = Holder()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(holder.run)
        await answer_commands({"open": holder.open, "count": holder.count})
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    run_part(main)
