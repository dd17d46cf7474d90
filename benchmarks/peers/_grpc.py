"""What the gRPC libraries share: stubs compiled from `bench.proto`, and a client that is written with them.

The stubs of all three are called alike; only opening a channel, and grpclib's streams of requests, are their own.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from . import DEADLINE, AsyncCall, Peer, payload

__all__ = ["GrpcPeer", "check", "compiled"]

PROTO = Path(__file__).with_name("bench.proto")


def compiled(plugin: str) -> tuple[Any, Any]:
    """The modules of the messages and of the service, compiled by that plugin of protoc; once in each environment."""
    fingerprint = hashlib.sha256(PROTO.read_bytes()).hexdigest()[:12]
    folder = Path(sys.prefix) / "bench-stubs" / f"{plugin}-{fingerprint}"
    if not folder.exists():
        compile_into(folder, plugin)
    sys.path.insert(0, str(folder))
    return import_module("bench_pb2"), import_module("bench_pb2_grpc" if plugin == "grpc_python" else "bench_grpc")


def compile_into(folder: Path, plugin: str) -> None:
    """Make the folder at one stroke: several processes may want it at once."""
    folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        out = Path(scratch, "out")
        out.mkdir()
        outputs = [f"--python_out={out}", f"--{plugin}_out={out}"]
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO.parent}", *outputs, str(PROTO)]
        # protoc finds its plugins on the path: those of grpclib and purerpc are scripts beside the interpreter.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        subprocess.run(command, check=True, env={**os.environ, "PATH": path})
        try:
            out.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was quicker, with the same files
                raise


async def check(items: AsyncIterable[Any], count: int) -> None:
    """Receive all of them, in order."""
    expected = 0
    async for item in items:
        assert item.id == expected
        expected += 1
    assert expected == count


class GrpcPeer(Peer):
    """The client, over the channels of one library."""

    messages: Any
    options: ClassVar[dict[str, Any]] = {"timeout": DEADLINE}
    """Of every unary call."""

    def channel(self, port: int) -> AbstractAsyncContextManager[Any]:
        """Connects, and yields a stub; closes."""
        raise NotImplementedError

    async def payloads(self, count: int) -> AsyncIterator[Any]:
        """So many payloads, as messages."""
        item = self.messages.Item
        for i in range(count):
            yield item(**payload(i))

    def call_of(self, stub: Any) -> AsyncCall:
        """A small call."""
        echo, options, item = stub.Echo, self.options, self.messages.Item

        async def call(i: int) -> None:
            reply = await echo(item(**payload(i)), **options)
            assert reply.id == i

        return call

    @asynccontextmanager
    async def unary(self) -> AsyncIterator[list[AsyncCall]]:
        setting = self.setting
        async with AsyncExitStack() as stack:
            ports = [setting.ports[k % len(setting.ports)] for k in range(setting.connections)]
            calls = [self.call_of(await stack.enter_async_context(self.channel(port))) for port in ports]
            yield [calls[k % len(calls)] for k in range(setting.callers)]

    @asynccontextmanager
    async def large(self) -> AsyncIterator[AsyncCall]:
        async with self.channel(self.port) as stub:

            async def call(data: bytes) -> None:
                reply = await stub.Large(self.messages.Blob(data=data), **self.options)
                assert len(reply.data) == len(data)

            yield call

    @asynccontextmanager
    async def server_stream(self) -> AsyncIterator[AsyncCall]:
        async with self.channel(self.port) as stub:

            async def run(count: int) -> None:
                await check(stub.Numbers(self.messages.Count(count=count)), count)

            yield run

    @asynccontextmanager
    async def client_stream(self) -> AsyncIterator[AsyncCall]:
        async with self.channel(self.port) as stub:

            async def run(count: int) -> None:
                reply = await stub.Total(self.payloads(count))
                assert reply.count == count

            yield run

    @asynccontextmanager
    async def bidi(self) -> AsyncIterator[AsyncCall]:
        async with self.channel(self.port) as stub:

            async def run(count: int) -> None:
                await check(stub.Mirror(self.payloads(count)), count)

            yield run

    @asynccontextmanager
    async def short(self) -> AsyncIterator[AsyncCall]:
        async def call(i: int) -> None:
            async with self.channel(self.port) as stub:
                await self.call_of(stub)(i)

        yield call

    @asynccontextmanager
    async def idle(self) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        async with AsyncExitStack() as stack:

            async def open_one() -> None:
                stub = await stack.enter_async_context(self.channel(self.port))
                await self.call_of(stub)(0)

            yield open_one
