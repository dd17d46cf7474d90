"""The four worlds of the acceptance list, and peers in them who speak the wire by hand.

A world is one codec on one transport: a server on a real loopback socket, a pool that calls it, and the means to put
somebody else in the place of either.
"""

from __future__ import annotations

import contextlib
import functools
import os
import ssl
import struct
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Literal, TypeVar

import trio
import trustme
from attrs import frozen

import trio_rpc
from tests.acceptance_service import Interop, Service
from trio_rpc import codecs, wire
from trio_rpc.testing import Fault, FaultyStream, assert_no_leaks
from trio_rpc.wire import Event, Frames, Hello, HelloReceived, PongReceived, Protocol, RequestReceived, Role

T = TypeVar("T")

Transport = Literal["tcp", "tls"]
HOST = "127.0.0.1"
PATIENCE = 10.0
"""Seconds after which what is waited for will not come: far above what a busy machine needs."""


@functools.cache
def tls_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context for 127.0.0.1 and no other name, and a client's that trusts it."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


def octets(part: bytes | Frames) -> bytes:
    """A message as the bytes that it is on the wire."""
    if isinstance(part, bytes):
        return part
    first, rest = part
    return first + b"".join(bytes(buffer) for chunk in rest or () for buffer in chunk)


def raw_frame(kind: int, request_id: int, body: bytes = b"", *, flags: int = 0, length: int | None = None) -> bytes:
    """A frame of any kind, honest or not: `length` is what its header claims."""
    return struct.pack(">IIBB", len(body) if length is None else length, request_id, kind, flags) + body


class HandPeer:
    """One end of a connection, spoken by hand: what to send is the scenario's choice, what arrives becomes events."""

    def __init__(self, stream: trio.abc.Stream, role: Role, hello: Hello) -> None:
        self.stream = stream
        self.protocol = Protocol(role, hello)
        self.pings = 0
        self._events: deque[Event] = deque()

    async def send(self, *parts: bytes | Frames) -> None:
        await self.stream.send_all(b"".join(map(octets, parts)))

    async def expect(self, kind: type[T]) -> T:
        """The next event of this kind, in time; others wait for their turn. EOFError if the connection ended before."""
        while True:
            for event in self._events:
                if isinstance(event, kind):
                    self._events.remove(event)
                    return event
            with trio.fail_after(PATIENCE):
                await self._receive()

    async def _receive(self) -> None:
        data = await self.stream.receive_some()
        if not data:
            raise EOFError("the other side closed the connection")
        self._events.extend(self.protocol.receive_data(bytes(data)))

    async def wait_closed(self) -> None:
        """Return once the other side has closed."""
        with contextlib.suppress(EOFError, trio.BrokenResourceError):
            while True:
                await self._receive()

    async def shake_hands(self) -> None:
        if self.protocol.role is Role.DIALLER:
            await self.send(self.protocol.greeting())
            await self.expect(HelloReceived)
        else:
            await self.expect(HelloReceived)
            await self.send(self.protocol.greeting())

    def request(self, name: str, *args: object, **options: Any) -> tuple[int, bytes]:
        """A fresh id for a call of Interop's, and its bytes; `options` are those of `Protocol.request`."""
        payload = self.encode(list(args))
        request_id, frames = self.protocol.request(wire.method_block(f"Interop.{name}"), payload, **options)
        return request_id, octets(frames)

    def encode(self, value: object) -> bytes:
        """Plain values as a payload."""
        return codecs.get(self.protocol.local.codecs[0]).encode(value, [])

    def items(self, request_id: int, *texts: object, **options: Any) -> Frames:
        """A batch of a stream's items."""
        return self.protocol.items(request_id, len(texts), self.encode(list(texts)), **options)

    def response(self, request_id: int, value: object) -> Frames:
        return self.protocol.response(request_id, self.encode(value))

    async def requests(self, *names: str) -> dict[str, int]:
        """Wait for one request of each of these methods, in any order; their ids."""
        ids: dict[str, int] = {}
        while ids.keys() != set(names):
            request = await self.expect(RequestReceived)
            ids[request.method.rpartition(".")[2]] = request.id
        return ids

    async def ping(self) -> None:
        self.pings += 1
        await self.send(self.protocol.ping(self.pings.to_bytes(8, "big")))

    async def take_pongs(self) -> None:
        """Return once every ping has its pong, each with its own data and in order."""
        for number in range(1, self.pings + 1):
            assert (await self.expect(PongReceived)).data == number.to_bytes(8, "big")


Speak = Callable[[HandPeer], Awaitable[object]]


@frozen
class World:
    """One codec on one transport, with a server and a pool at work."""

    codec: str
    transport: Transport
    service: Service
    server: trio_rpc.Server
    pool: trio_rpc.Pool

    @property
    def stub(self) -> Interop:
        return self.pool.stub(Interop)

    # -- waiting and counting --------------------------------------------------------------------------------------

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until `condition` holds, in time."""
        with trio.fail_after(PATIENCE):
            while not condition():  # noqa: ASYNC110 - what is waited for are counters
                await trio.sleep(0.002)

    async def standstill(self, count: Callable[[], int]) -> int:
        """Wait until `count` has moved and then stood still for a while; where it stands."""
        await self.until(count)
        seen = 0
        while seen != count():
            seen = count()
            await trio.sleep(0.1)
        return seen

    def footprint(self) -> Mapping[str, int]:
        """Everything that must not grow with the number of calls."""
        pool, server = self.pool.statistics(), self.server.statistics()
        return {
            "tasks": trio.lowlevel.current_statistics().tasks_living,
            "descriptors": len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0,
            "pool's connections": pool.connections + pool.dialling,
            "pool's calls": pool.in_flight + pool.waiting + pool.orphans,
            "server's connections": server.connections + server.handshaking,
            "server's calls": server.in_flight,
        }

    # -- other clients and servers ---------------------------------------------------------------------------------

    def open_pool(
        self, target: str | Callable[[], Awaitable[trio.abc.Stream]] | None = None, **options: Any
    ) -> AbstractAsyncContextManager[trio_rpc.Pool]:
        """One more pool: to this world's server, unless told otherwise."""
        return open_pool_over(self.transport, target or self.server.addresses[0], codec=self.codec, **options)

    async def connect(self, *faults: Fault) -> trio.abc.Stream:
        """A transport to the server, with faults below its TLS."""
        port = int(self.server.addresses[0].rpartition(":")[2])
        stream: trio.abc.Stream = await trio.open_tcp_stream(HOST, port)
        if faults:
            stream = FaultyStream(stream, *faults)
        if self.transport == "tcp":
            return stream
        secure = trio.SSLStream(stream, tls_contexts()[1], server_hostname=HOST, https_compatible=False)
        try:
            await secure.do_handshake()
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return secure

    @asynccontextmanager
    async def hand_client(self, **hello: Any) -> AsyncGenerator[HandPeer, None]:
        """A client of the server's that is spoken by hand, after the HELLOs."""
        stream = await self.connect()
        peer = HandPeer(stream, Role.DIALLER, Hello(codecs=(self.codec,), **hello))
        try:
            await peer.shake_hands()
            yield peer
        finally:
            await trio.aclose_forcefully(stream)

    @asynccontextmanager
    async def hand_server(self, speak: Speak, **hello: Any) -> AsyncGenerator[str, None]:
        """A server that is spoken by hand: `speak` has each connection after the HELLOs. Yields what to dial."""

        async def attend(stream: trio.abc.Stream) -> None:
            if self.transport == "tls":
                stream = trio.SSLStream(stream, tls_contexts()[0], server_side=True, https_compatible=False)
            peer = HandPeer(stream, Role.ACCEPTOR, Hello(codecs=(self.codec,), **hello))
            try:
                await peer.shake_hands()
                await speak(peer)
            except (trio.BrokenResourceError, EOFError):
                pass  # The client has closed: what it had to show, it has shown.
            finally:
                await trio.aclose_forcefully(stream)

        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host=HOST)
            nursery.start_soon(trio.serve_listeners, attend, listeners)
            yield f"{self.transport}://{HOST}:{listeners[0].socket.getsockname()[1]}"
            nursery.cancel_scope.cancel()


def open_pool_over(
    transport: Transport, target: str | Callable[[], Awaitable[trio.abc.Stream]], **options: Any
) -> AbstractAsyncContextManager[trio_rpc.Pool]:
    """`open_pool`, with the client's TLS context where there is TLS and the pool makes it."""
    if transport == "tls" and isinstance(target, str):
        options["ssl_context"] = tls_contexts()[1]
    return trio_rpc.open_pool(target, **options)


@asynccontextmanager
async def open_world(
    codec: str,
    transport: Transport,
    *,
    limits: trio_rpc.PoolLimits | None = None,
    server_limits: trio_rpc.ServerLimits | None = None,
    heartbeat: trio_rpc.Heartbeat | None = None,
) -> AsyncGenerator[World, None]:
    """A world for one scenario, which must leave no call behind in it."""
    heartbeat = heartbeat or trio_rpc.Heartbeat()
    service = Service()
    async with (
        trio_rpc.open_server(
            service,
            f"{transport}://{HOST}:0",
            limits=server_limits or trio_rpc.ServerLimits(),
            heartbeat=heartbeat,
            ssl_context=tls_contexts()[0] if transport == "tls" else None,
        ) as server,
        open_pool_over(
            transport,
            server.addresses[0],
            codec=codec,
            limits=limits or trio_rpc.PoolLimits(),
            heartbeat=heartbeat,
        ) as pool,
    ):
        service.next = pool.stub(Interop)
        await pool.wait_connected()
        yield World(codec, transport, service, server, pool)
        assert_no_leaks(pool, server)
