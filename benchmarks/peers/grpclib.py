"""grpclib: gRPC in pure Python (h2) on asyncio, or on uvloop; protobuf messages, generated stubs.

Fair: all callers share one channel, each call has its `timeout`. The message is parsed and serialized anew on both
sides, and a stream's requests are sent while its responses are received.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from grpclib.client import Channel
from grpclib.server import Server

from ..workloads import Setting
from . import HOST, Announce, AsyncCall, burn, client_tls, payload, server_tls
from ._grpc import GrpcPeer, check, compiled

__all__ = ["peer"]

messages, services = compiled("grpclib_python")


class Service(services.BenchBase):
    """See `bench.proto`."""

    def __init__(self, setting: Setting) -> None:
        self.suspends, self.burn = setting.suspends, setting.burn

    async def Echo(self, stream: Any) -> None:
        request = await stream.recv_message()
        if self.suspends:
            await asyncio.sleep(0)
        if self.burn:
            burn(self.burn)
        await stream.send_message(request)

    async def Large(self, stream: Any) -> None:
        await stream.send_message(await stream.recv_message())

    async def Numbers(self, stream: Any) -> None:
        request = await stream.recv_message()
        for i in range(request.count):
            await stream.send_message(messages.Item(**payload(i)))

    async def Total(self, stream: Any) -> None:
        count = 0
        async for _ in stream:
            count += 1
        await stream.send_message(messages.Count(count=count))

    async def Mirror(self, stream: Any) -> None:
        async for item in stream:
            await stream.send_message(item)


def over_http2(context: ssl.SSLContext | None) -> ssl.SSLContext | None:
    """Both sides agree on HTTP/2 during the handshake; grpclib leaves that to us."""
    if context:
        context.set_alpn_protocols(["h2"])
    return context


class Grpclib(GrpcPeer):
    """See Peer; the variant is `uvloop` or nothing."""

    messages = messages

    def __init__(self, setting: Setting, variant: str = "") -> None:
        super().__init__(setting, variant)
        self.runtime = "uvloop" if variant == "uvloop" else "asyncio"

    async def serve(self, announce: Announce) -> None:
        server = Server([Service(self.setting)])
        # asyncio turns Nagle's delay off only where the protocol is named; socket.create_server() does not name it.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.bind((HOST, 0))
        await server.start(sock=listener, backlog=1024, ssl=over_http2(server_tls(self.setting)))
        announce(listener.getsockname()[1])
        await server.wait_closed()

    @asynccontextmanager
    async def channel(self, port: int) -> AsyncIterator[Any]:
        async with Channel(HOST, port, ssl=over_http2(client_tls(self.setting))) as channel:
            yield services.BenchStub(channel)

    @asynccontextmanager
    async def server_stream(self) -> AsyncIterator[AsyncCall]:
        async with self.channel(self.port) as stub:

            async def run(count: int) -> None:
                async with stub.Numbers.open() as stream:
                    await stream.send_message(messages.Count(count=count), end=True)
                    await check(stream, count)

            yield run

    @asynccontextmanager
    async def client_stream(self) -> AsyncIterator[AsyncCall]:
        async with self.channel(self.port) as stub:

            async def run(count: int) -> None:
                async with stub.Total.open() as stream:
                    await self.send(stream, count)
                    reply = await stream.recv_message()
                assert reply.count == count

            yield run

    @asynccontextmanager
    async def bidi(self) -> AsyncIterator[AsyncCall]:
        async with self.channel(self.port) as stub:

            async def run(count: int) -> None:
                async with stub.Mirror.open() as stream, asyncio.TaskGroup() as group:
                    await stream.send_request()
                    group.create_task(self.send(stream, count))
                    await check(stream, count)

            yield run

    async def send(self, stream: Any, count: int) -> None:
        """Send so many payloads, then the end."""
        for i in range(count):
            await stream.send_message(messages.Item(**payload(i)))
        await stream.end()


peer = Grpclib
