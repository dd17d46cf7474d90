"""aiohttp, server and client, on asyncio or uvloop: what many use instead of an RPC library.

Fair: JSON bodies, but raw ones for large messages; lines of JSON as streams, and a WebSocket where both sides stream.
HTTP/1.1 has one call at a time on a connection, so the client has as many as callers, up to 64; its total timeout is
each call's deadline.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web

from ..workloads import Setting
from . import DEADLINE, HOST, Announce, AsyncCall, Peer, burn, client_tls, payload, server_tls
from ._http import check, lines

__all__ = ["peer"]

CONNECTIONS = 64


class Service:
    """The handlers."""

    def __init__(self, setting: Setting) -> None:
        self.suspends, self.burn = setting.suspends, setting.burn

    async def echo(self, request: web.Request) -> web.Response:
        item = await request.json()
        if self.suspends:
            await asyncio.sleep(0)
        if self.burn:
            burn(self.burn)
        return web.json_response(item)

    async def large(self, request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    async def numbers(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        async for line in lines(int(request.query["count"])):
            await response.write(line)
        await response.write_eof()
        return response

    async def total(self, request: web.Request) -> web.Response:
        count = 0
        async for line in request.content:
            json.loads(line)
            count += 1
        return web.json_response(count)

    async def mirror(self, request: web.Request) -> web.WebSocketResponse:
        response = web.WebSocketResponse()
        await response.prepare(request)
        async for message in response:
            await response.send_json(message.json())
        return response


class Aiohttp(Peer):
    """See Peer; the variant is `uvloop` or nothing."""

    def __init__(self, setting: Setting, variant: str = "") -> None:
        super().__init__(setting, variant)
        self.runtime = "uvloop" if variant == "uvloop" else "asyncio"

    async def serve(self, announce: Announce) -> None:
        application = web.Application(client_max_size=2 * self.setting.size)
        service = Service(self.setting)
        for handler in service.echo, service.large, service.total:
            application.router.add_post(f"/{handler.__name__}", handler)
        for handler in service.numbers, service.mirror:
            application.router.add_get(f"/{handler.__name__}", handler)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        listener = socket.create_server((HOST, 0), backlog=1024)
        await web.SockSite(runner, listener, ssl_context=server_tls(self.setting)).start()
        announce(listener.getsockname()[1])
        await asyncio.Event().wait()

    def session(self, timeout: float | None = DEADLINE) -> aiohttp.ClientSession:
        """A client with its pool of connections; `timeout` is the deadline of each of its calls."""
        connector = aiohttp.TCPConnector(limit=CONNECTIONS, ssl=client_tls(self.setting) or True)
        return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=timeout))

    def url(self, path: str, port: int = 0) -> str:
        """Where a handler is."""
        return f"http{'s' if self.setting.certificate else ''}://{HOST}:{port or self.port}/{path}"

    def call_of(self, session: aiohttp.ClientSession, port: int = 0) -> AsyncCall:
        """A small call."""
        url = self.url("echo", port)

        async def call(i: int) -> None:
            async with session.post(url, json=payload(i)) as response:
                reply = await response.json()
            assert reply["id"] == i

        return call

    @asynccontextmanager
    async def unary(self) -> AsyncIterator[list[AsyncCall]]:
        async with self.session() as session:
            calls = [self.call_of(session, port) for port in self.setting.ports]
            yield [calls[k % len(calls)] for k in range(self.setting.callers)]

    @asynccontextmanager
    async def large(self) -> AsyncIterator[AsyncCall]:
        async with self.session() as session:

            async def call(data: bytes) -> None:
                async with session.post(self.url("large"), data=data) as response:
                    assert len(await response.read()) == len(data)

            yield call

    @asynccontextmanager
    async def server_stream(self) -> AsyncIterator[AsyncCall]:
        async with self.session(timeout=None) as session:

            async def run(count: int) -> None:
                async with session.get(self.url("numbers"), params={"count": count}) as response:
                    await check(response.content, count)

            yield run

    @asynccontextmanager
    async def client_stream(self) -> AsyncIterator[AsyncCall]:
        async with self.session(timeout=None) as session:

            async def run(count: int) -> None:
                async with session.post(self.url("total"), data=lines(count)) as response:
                    assert await response.json() == count

            yield run

    @asynccontextmanager
    async def bidi(self) -> AsyncIterator[AsyncCall]:
        async with self.session(timeout=None) as session:

            async def run(count: int) -> None:
                async with session.ws_connect(self.url("mirror")) as socket, asyncio.TaskGroup() as group:
                    group.create_task(send(socket, count))
                    for expected in range(count):
                        reply = await socket.receive_json()
                        assert reply["id"] == expected

            yield run

    @asynccontextmanager
    async def short(self) -> AsyncIterator[AsyncCall]:
        async def call(i: int) -> None:
            async with self.session() as session:
                await self.call_of(session)(i)

        yield call

    @asynccontextmanager
    async def idle(self) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        async with AsyncExitStack() as stack:

            async def open_one() -> None:
                session = await stack.enter_async_context(self.session())
                await self.call_of(session)(0)

            yield open_one


async def send(socket: Any, count: int) -> None:
    """Send so many payloads."""
    for i in range(count):
        await socket.send_json(payload(i))


peer = Aiohttp
