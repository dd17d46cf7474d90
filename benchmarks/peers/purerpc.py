"""purerpc: gRPC in pure Python (h2) on anyio, here with Trio; protobuf messages, generated stubs.

Fair: all callers share one channel. The message is parsed and serialized anew on both sides. It has no deadlines, so
its calls have none. (Its server listens on every interface; it takes no host.)
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import purerpc
import trio

from ..workloads import Setting
from . import HOST, Announce, burn, client_tls, payload, server_tls
from ._grpc import GrpcPeer, compiled

__all__ = ["peer"]

messages, services = compiled("purerpc")


class Service(services.BenchServicer):
    """See `bench.proto`."""

    def __init__(self, setting: Setting) -> None:
        self.suspends, self.burn = setting.suspends, setting.burn

    async def Echo(self, request: Any) -> Any:
        if self.suspends:
            await trio.lowlevel.checkpoint()
        if self.burn:
            burn(self.burn)
        return request

    async def Large(self, request: Any) -> Any:
        return request

    async def Numbers(self, request: Any) -> AsyncIterator[Any]:
        for i in range(request.count):
            yield messages.Item(**payload(i))

    async def Total(self, requests: AsyncIterator[Any]) -> Any:
        count = 0
        async for _ in requests:
            count += 1
        return messages.Count(count=count)

    async def Mirror(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for item in requests:
            yield item


class Purerpc(GrpcPeer):
    """See Peer."""

    runtime = "trio"
    messages = messages
    options: ClassVar[dict[str, Any]] = {}

    async def serve(self, announce: Announce) -> None:
        server = purerpc.Server(port=0, ssl_context=server_tls(self.setting))
        server.add_service(Service(self.setting).service)
        async with trio.open_nursery() as nursery:
            announce(await nursery.start(server.serve_async))

    @asynccontextmanager
    async def channel(self, port: int) -> AsyncIterator[Any]:
        context = client_tls(self.setting)
        channel = purerpc.secure_channel(HOST, port, context) if context else purerpc.insecure_channel(HOST, port)
        async with channel:
            yield services.BenchStub(channel)


peer = Purerpc
