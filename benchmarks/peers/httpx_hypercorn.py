"""httpx against hypercorn, both on Trio: what Trio's users have of HTTP.

Fair: JSON bodies, but raw ones for large messages, and lines of JSON as streams. httpx limits each step of a call, not
the whole: that is its deadline here. Without TLS, no TLS context is made. One caller uses HTTP/1.1, where httpx is
quicker; many share an HTTP/2 connection. A pool of 64 connections would be five times slower: httpx looks at each of
them for each call.
"""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import trio
from hypercorn.config import Config
from hypercorn.trio import serve

from ..workloads import Setting
from . import DEADLINE, HOST, Announce, AsyncCall, Peer, burn, client_tls, payload
from ._http import check, dumps, lines

__all__ = ["peer"]


async def bodies(receive: Any) -> AsyncIterator[bytes]:
    """The parts of a request's body."""
    more = True
    while more:
        message = await receive()
        yield message.get("body", b"")
        more = message.get("more_body", False)


class Application:
    """The handlers, by ASGI."""

    def __init__(self, setting: Setting) -> None:
        self.suspends, self.burn = setting.suspends, setting.burn
        self.paths = {"/echo": self.echo, "/large": self.large, "/total": self.total}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.live(receive, send)
        elif scope["path"] == "/numbers":
            await self.numbers(int(scope["query_string"].partition(b"=")[2]), send)
        else:
            body = await self.paths[scope["path"]](bodies(receive))
            headers = [(b"content-length", b"%d" % len(body))]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    async def live(self, receive: Any, send: Any) -> None:
        """Nothing to start or to stop."""
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})

    async def echo(self, parts: AsyncIterator[bytes]) -> bytes:
        item = json.loads(await self.large(parts))
        if self.suspends:
            await trio.lowlevel.checkpoint()
        if self.burn:
            burn(self.burn)
        return dumps(item)

    async def large(self, parts: AsyncIterator[bytes]) -> bytes:
        return b"".join([part async for part in parts])

    async def total(self, parts: AsyncIterator[bytes]) -> bytes:
        count, rest = 0, b""
        async for part in parts:
            *whole, rest = (rest + part).split(b"\n")
            for line in whole:
                json.loads(line)
            count += len(whole)
        return dumps(count)

    async def numbers(self, count: int, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        async for line in lines(count):
            await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


class Httpx(Peer):
    """See Peer."""

    runtime = "trio"

    async def serve(self, announce: Announce) -> None:
        listener = socket.create_server((HOST, 0), backlog=1024)
        config = Config()
        config.bind = [f"fd://{listener.fileno()}"]
        config.loglevel = "ERROR"
        config.keep_alive_max_requests = 10**9
        if self.setting.certificate:
            config.certfile = str(Path(self.setting.certificate, "chain.pem"))
            config.keyfile = str(Path(self.setting.certificate, "key.pem"))
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, Application(self.setting), config)
            announce(listener.getsockname()[1])

    def client(self, timeout: float | None = DEADLINE) -> httpx.AsyncClient:
        """A client with its pool of connections."""
        http2 = self.setting.callers > 1
        limits = httpx.Limits(max_connections=self.setting.connections)
        verify = client_tls(self.setting) or False
        return httpx.AsyncClient(http1=not http2, http2=http2, limits=limits, timeout=timeout, verify=verify)

    def url(self, path: str, port: int = 0) -> str:
        """Where a handler is."""
        return f"http{'s' if self.setting.certificate else ''}://{HOST}:{port or self.port}/{path}"

    def call_of(self, client: httpx.AsyncClient, port: int = 0) -> AsyncCall:
        """A small call."""
        url = self.url("echo", port)

        async def call(i: int) -> None:
            response = await client.post(url, json=payload(i))
            assert response.json()["id"] == i

        return call

    @asynccontextmanager
    async def unary(self) -> AsyncIterator[list[AsyncCall]]:
        async with self.client() as client:
            calls = [self.call_of(client, port) for port in self.setting.ports]
            yield [calls[k % len(calls)] for k in range(self.setting.callers)]

    @asynccontextmanager
    async def large(self) -> AsyncIterator[AsyncCall]:
        async with self.client() as client:

            async def call(data: bytes) -> None:
                response = await client.post(self.url("large"), content=data)
                assert len(response.content) == len(data)

            yield call

    @asynccontextmanager
    async def server_stream(self) -> AsyncIterator[AsyncCall]:
        async with self.client(timeout=None) as client:

            async def run(count: int) -> None:
                async with client.stream("GET", self.url("numbers"), params={"count": count}) as response:
                    await check(response.aiter_lines(), count)

            yield run

    @asynccontextmanager
    async def client_stream(self) -> AsyncIterator[AsyncCall]:
        async with self.client(timeout=None) as client:

            async def run(count: int) -> None:
                response = await client.post(self.url("total"), content=lines(count))
                assert response.json() == count

            yield run

    @asynccontextmanager
    async def short(self) -> AsyncIterator[AsyncCall]:
        async def call(i: int) -> None:
            async with self.client() as client:
                await self.call_of(client)(i)

        yield call

    @asynccontextmanager
    async def idle(self) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        async with AsyncExitStack() as stack:

            async def open_one() -> None:
                client = await stack.enter_async_context(self.client())
                await self.call_of(client)(0)

            yield open_one


peer = Httpx
