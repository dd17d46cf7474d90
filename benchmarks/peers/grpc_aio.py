"""grpc.aio: grpcio's asyncio interface to its C core, protobuf messages, generated stubs.

Fair: all callers share one channel, each call has its `timeout`; a channel that is opened has its own connection
(gRPC would let channels to one target share one). The message is parsed and serialized anew on both sides.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from ..workloads import Setting
from . import HOST, Announce, burn, payload
from ._grpc import GrpcPeer, compiled

__all__ = ["peer"]

messages, services = compiled("grpc_python")
OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
]


class Service(services.BenchServicer):
    """See `bench.proto`."""

    def __init__(self, setting: Setting) -> None:
        self.suspends, self.burn = setting.suspends, setting.burn

    async def Echo(self, request: Any, context: Any) -> Any:
        if self.suspends:
            await asyncio.sleep(0)
        if self.burn:
            burn(self.burn)
        return request

    async def Large(self, request: Any, context: Any) -> Any:
        return request

    async def Numbers(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for i in range(request.count):
            yield messages.Item(**payload(i))

    async def Total(self, requests: AsyncIterator[Any], context: Any) -> Any:
        count = 0
        async for _ in requests:
            count += 1
        return messages.Count(count=count)

    async def Mirror(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for item in requests:
            yield item


class GrpcAio(GrpcPeer):
    """See Peer."""

    runtime = "asyncio"
    messages = messages

    async def serve(self, announce: Announce) -> None:
        server = grpc.aio.server(options=OPTIONS)
        services.add_BenchServicer_to_server(Service(self.setting), server)
        if self.setting.certificate:
            port = server.add_secure_port(f"{HOST}:0", self.server_credentials())
        else:
            port = server.add_insecure_port(f"{HOST}:0")
        await server.start()
        announce(port)
        await server.wait_for_termination()

    def server_credentials(self) -> Any:
        """The certificate; gRPC has no place for an SSLContext."""
        folder = Path(self.setting.certificate)
        return grpc.ssl_server_credentials([((folder / "key.pem").read_bytes(), (folder / "chain.pem").read_bytes())])

    def client_credentials(self) -> Any:
        """The authority."""
        return grpc.ssl_channel_credentials(Path(self.setting.certificate, "authority.pem").read_bytes())

    @asynccontextmanager
    async def channel(self, port: int) -> AsyncIterator[Any]:
        target = f"{HOST}:{port}"
        if self.setting.certificate:
            channel = grpc.aio.secure_channel(target, self.client_credentials(), options=OPTIONS)
        else:
            channel = grpc.aio.insecure_channel(target, options=OPTIONS)
        async with channel:
            yield services.BenchStub(channel)


peer = GrpcAio
