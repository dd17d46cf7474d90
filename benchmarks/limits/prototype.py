"""The least that an RPC on Trio could be, with async handlers, cancel scopes, deadlines and credit: the yardstick.

It has no method table, signatures, errors, metadata, heartbeats, cancel frames, pool or drain; a complete library pays
for those. What makes it quick:
- Frames queue up, and an Instrument flushes every connection once per scheduler tick, before Trio waits for I/O.
- The server's reading task runs the handlers itself (`work`). A handler that suspends keeps that task, and a parked one
  reads on; from then on handlers go to parked tasks. Each task keeps one CancelScope.
- A call's deadline stands in the table of pending calls, which one task sweeps every 20 ms.
- Bodies of 64 KiB and more travel raw: `sendmsg` of header and body, received in place.
- The items of a stream travel sixteen in a frame.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import outcome
import trio
from trio.lowlevel import Abort, current_task, reschedule, wait_readable, wait_task_rescheduled, wait_writable

from ..peers import DEADLINE, HOST, Announce, AsyncCall, payload
from .framing import BLOB, CALL, CREDIT, ITEMS, STREAM
from .multiplexed import Multiplexed
from .prototype_link import LARGE, Connection, Flusher, give_up, pack
from .prototype_server import WINDOW, Server

__all__ = ["peer"]

SWEEP = 0.02


class Client(Connection):
    """The dialling side of a connection."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.pending: dict[int, tuple[trio.lowlevel.Task, float]] = {}
        self.streams: dict[int, Stream] = {}
        self.last = 0

    async def call(self, value: Any) -> Any:
        """Make a call. Raises TooSlowError after DEADLINE seconds, rather later than earlier."""
        self.last = number = (self.last + 1) & 0x7FFFFFFF
        self.pending[number] = current_task(), time.monotonic() + DEADLINE
        if type(value) is bytes and len(value) >= LARGE:
            self.push_raw(number, value)
        else:
            self.push(pack(number, CALL, value))

        def forget(_raise_cancel: Callable[[], Any]) -> Abort:
            self.pending.pop(number, None)
            return Abort.SUCCEEDED

        return await wait_task_rescheduled(forget)

    async def read(self) -> None:
        """Hand out what comes, until the connection is closed."""
        pop, success = self.pending.pop, outcome.Value
        try:
            while (frames := await self.receive()) is not None:
                for number, kind, value in frames:
                    if kind in (CALL, BLOB):
                        waiter = pop(number, None)
                        if waiter is not None:
                            reschedule(waiter[0], success(value))
                    else:
                        self.streams[number].take(kind, value)
        except trio.ClosedResourceError:
            pass

    async def sweep(self) -> None:
        """Fail the calls whose deadline has passed."""
        while True:
            await trio.sleep(SWEEP)
            now = time.monotonic()
            for number, (task, deadline) in list(self.pending.items()):
                if deadline < now:
                    del self.pending[number]
                    reschedule(task, outcome.Error(trio.TooSlowError()))

    def close(self) -> None:
        """Close at once."""
        trio.lowlevel.notify_closing(self.sock)
        self.sock.close()


class Stream:
    """The consumer's side of a stream."""

    def __init__(self, client: Client, count: int) -> None:
        client.last += 1
        self.client = client
        self.number = client.last
        self.items: deque[Any] = deque()
        self.waiter: trio.lowlevel.Task | None = None
        self.ended = False
        self.used = 0
        client.streams[self.number] = self
        client.push(pack(self.number, STREAM, count))

    def take(self, kind: int, value: Any) -> None:
        """Some items have come, or the end."""
        if kind == ITEMS:
            self.items.extend(value)
        else:
            self.ended = True
        if self.waiter is not None:
            waiter, self.waiter = self.waiter, None
            reschedule(waiter)

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Any:
        while not self.items:
            if self.ended:
                del self.client.streams[self.number]
                raise StopAsyncIteration
            self.waiter = current_task()
            await wait_task_rescheduled(give_up)
        self.used += 1
        if self.used == WINDOW // 2:
            self.client.push(pack(self.number, CREDIT, self.used))
            self.used = 0
        return self.items.popleft()


class Prototype(Multiplexed):
    """See Peer."""

    async def serve(self, announce: Announce) -> None:
        listener = socket.create_server((HOST, 0), backlog=4096)
        listener.setblocking(False)
        announce(listener.getsockname()[1])
        flusher = Flusher()
        async with trio.open_nursery() as nursery:
            while True:
                await wait_readable(listener)
                sock, _ = listener.accept()
                sock.setblocking(False)
                nursery.start_soon(self.attend, sock, flusher)

    async def attend(self, sock: socket.socket, flusher: Flusher) -> None:
        """Serve one connection until it is closed."""
        with sock:
            async with trio.open_nursery() as nursery:
                await Server(sock, nursery, flusher, suspends=self.setting.suspends).work()

    @asynccontextmanager
    async def clients(self) -> AsyncIterator[Callable[[], Awaitable[Client]]]:
        """Yields a function that opens one more connection; all tasks are in one nursery, which ends with the block."""
        flusher = Flusher()
        async with trio.open_nursery() as nursery:

            async def connect() -> Client:
                client = Client(await self.dial(), nursery, flusher)
                nursery.start_soon(client.read)
                return client

            yield connect
            nursery.cancel_scope.cancel()
        trio.lowlevel.remove_instrument(flusher)

    async def dial(self) -> socket.socket:
        """A connected socket."""
        sock = socket.socket()
        sock.setblocking(False)
        if sock.connect_ex((HOST, self.port)):
            await wait_writable(sock)
        return sock

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """One connection, swept for deadlines."""
        async with self.clients() as connect, trio.open_nursery() as nursery:
            client = await connect()
            nursery.start_soon(client.sweep)
            yield client
            client.close()
            nursery.cancel_scope.cancel()

    def stream(self, client: Any, count: int) -> AsyncIterator[Any]:
        return Stream(client, count)

    @asynccontextmanager
    async def short(self) -> AsyncIterator[AsyncCall]:
        async with self.clients() as connect:

            async def call(i: int) -> None:
                client = await connect()
                reply = await client.call(payload(i))
                assert reply["id"] == i
                client.close()

            yield call

    @asynccontextmanager
    async def idle(self) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        async with self.clients() as connect:
            held = []

            async def open_one() -> None:
                client = await connect()
                await client.call(payload(0))
                held.append(client)

            yield open_one
            for client in held:
                client.close()


peer = Prototype
