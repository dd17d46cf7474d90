"""trio_rpc, by its public interface: a contract, its stub, `open_pool`, `serve`. Limits are the defaults.

The deadline is ambient, as users set it: one `trio.fail_after` around a caller's loop. It travels with each call, and
each handler runs under it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, asynccontextmanager
from functools import cached_property, partial
from itertools import cycle
from typing import Any, TypeVar

import attrs
import trio

import trio_rpc

from ..workloads import MIB
from . import DEADLINE, HOST, Announce, AsyncCall, Peer, client_tls, payload, server_tls
from .own_service import Benchmark, Item, Payload, Service, make_wide

__all__ = ["peer"]

L = TypeVar("L", trio_rpc.PoolLimits, trio_rpc.ServerLimits)


class Own(Peer):
    """See Peer."""

    async def serve(self, announce: Announce) -> None:
        setting = self.setting
        services = [Service(setting), *([make_wide(setting.methods)()] if setting.methods > 1 else [])]
        serve = partial(trio_rpc.serve, services, limits=self.server_limits(), ssl_context=server_tls(setting))
        scheme = "tls" if setting.certificate else "tcp"
        async with trio.open_nursery() as nursery:
            server = await nursery.start(serve, f"{scheme}://{HOST}:0")
            port = int(server.addresses[0].rpartition(":")[2])
            for endpoint in range(1, setting.endpoints):
                await nursery.start(serve, f"{scheme}://{endpoint_host(endpoint)}:{port}")
            announce(port)

    def server_limits(self) -> trio_rpc.ServerLimits:
        """The defaults, but where the setting is beyond them."""
        limits = trio_rpc.ServerLimits()
        if self.setting.connections > 1000:
            limits = attrs.evolve(limits, max_connections=None, handshake_timeout=None)
        return self.raised(limits)

    @cached_property
    def pool_limits(self) -> trio_rpc.PoolLimits:
        """As many connections as the setting says, from the start; made once, and not for each of many pools."""
        wanted = self.setting.connections
        timeout = None if wanted > 1000 else trio_rpc.PoolLimits().connect_timeout
        return self.raised(trio_rpc.PoolLimits(min_connections=wanted, max_connections=wanted, connect_timeout=timeout))

    def raised(self, limits: L) -> L:
        """For callers that shall share a connection, and messages beyond the default."""
        return attrs.evolve(
            limits,
            max_in_flight=max(limits.max_in_flight, self.setting.callers),
            max_message_size=max(limits.max_message_size, self.setting.size + MIB),
        )

    def connect(self, endpoint: int = 0) -> AbstractAsyncContextManager[trio_rpc.Pool]:
        """A pool."""
        target = f"{'tls' if self.setting.certificate else 'tcp'}://{endpoint_host(endpoint)}:{self.port}"
        return trio_rpc.open_pool(
            self.dial_in_turn() if self.setting.servers > 1 else target,
            codec=self.setting.codec or "msgpack",
            limits=self.pool_limits,
            ssl_context=client_tls(self.setting),
        )

    def dial_in_turn(self) -> Callable[[], Awaitable[trio.abc.Stream]]:
        """Spread the pool's connections over the servers."""
        ports = cycle(self.setting.ports)
        return lambda: trio.open_tcp_stream(HOST, next(ports))  # noqa: ASYNC105 -- the pool awaits it

    def ambient(self, seconds: float) -> AbstractContextManager[object]:
        return trio.fail_after(seconds + DEADLINE)

    @asynccontextmanager
    async def pool(self, endpoint: int = 0) -> AsyncIterator[trio_rpc.Pool]:
        """A pool whose connections are all there."""
        async with self.connect(endpoint) as pool:
            # Not wait_connected(): its look at all connections at each new one would count for 10,000 of them.
            while pool.statistics().connections < self.setting.connections:  # noqa: ASYNC110
                await trio.sleep(0.01)
            yield pool

    @asynccontextmanager
    async def stub(self) -> AsyncIterator[Benchmark]:
        """The stub of such a pool."""
        async with self.pool() as pool:
            yield pool.stub(Benchmark)

    @asynccontextmanager
    async def unary(self) -> AsyncIterator[list[AsyncCall]]:
        async with AsyncExitStack() as stack:
            pools = [await stack.enter_async_context(self.pool(i)) for i in range(self.setting.endpoints)]
            call = self.call_one_of(pools) if self.is_wide else self.call_of(pools[0].stub(Benchmark))
            yield [call] * self.setting.callers

    @property
    def is_wide(self) -> bool:
        return self.setting.methods > 1 or self.setting.endpoints > 1

    def call_one_of(self, pools: list[trio_rpc.Pool]) -> AsyncCall:
        """A small call of the next method, or to the next endpoint."""
        if self.setting.methods > 1:
            stub = pools[0].stub(make_wide(self.setting.methods))
            ways = cycle([(stub, f"method_{i}") for i in range(self.setting.methods)])
        else:
            ways = cycle([(pool.stub(Benchmark), "echo") for pool in pools])

        async def call(i: int) -> None:
            stub, method = next(ways)
            reply = await getattr(stub, method)(payload(i))
            assert reply["id"] == i

        return call

    def call_of(self, stub: Benchmark) -> AsyncCall:
        """A small call, of the kind that the setting wants."""

        async def typed(i: int) -> None:
            reply = await stub.typed(Item(**payload(i)))
            assert reply.id == i

        async def echo(i: int) -> None:
            reply: Any = await stub.echo(payload(i))
            assert reply["id"] == i

        async def suspending(i: int) -> None:
            reply: Any = await stub.suspending(payload(i))
            assert reply["id"] == i

        async def burning(i: int) -> None:
            reply: Any = await stub.burning(payload(i))
            assert reply["id"] == i

        setting = self.setting
        return typed if setting.typed else suspending if setting.suspends else burning if setting.burn else echo

    @asynccontextmanager
    async def shared_link(self) -> AsyncIterator[tuple[list[AsyncCall], AsyncCall]]:
        async with self.stub() as stub:
            message = bytes(self.setting.size)

            async def messages(seconds: float) -> None:
                end = trio.current_time() + seconds
                while trio.current_time() < end:
                    reply = await stub.large(message)
                    assert len(reply) == len(message)

            async def unread(seconds: float) -> None:
                async with stub.numbers(1_000_000_000):
                    await trio.sleep(seconds)

            load = messages if self.setting.load == "message" else unread
            yield [self.call_of(stub)] * self.setting.callers, load

    @asynccontextmanager
    async def large(self) -> AsyncIterator[AsyncCall]:
        async with self.stub() as stub:

            async def call(data: bytes) -> None:
                reply = await stub.large(data)
                assert len(reply) == len(data)

            yield call

    @asynccontextmanager
    async def server_stream(self) -> AsyncIterator[AsyncCall]:
        async with self.stub() as stub:

            async def run(count: int) -> None:
                async with stub.numbers(count) as items:
                    await check(items, count)

            yield run

    @asynccontextmanager
    async def client_stream(self) -> AsyncIterator[AsyncCall]:
        async with self.stub() as stub:

            async def run(count: int) -> None:
                assert await stub.count(payloads(count)) == count

            yield run

    @asynccontextmanager
    async def bidi(self) -> AsyncIterator[AsyncCall]:
        async with self.stub() as stub:

            async def run(count: int) -> None:
                async with stub.mirror(payloads(count)) as items:
                    await check(items, count)

            yield run

    @asynccontextmanager
    async def short(self) -> AsyncIterator[AsyncCall]:
        async def call(i: int) -> None:
            async with self.connect() as pool:
                reply: Any = await pool.stub(Benchmark).echo(payload(i))
                assert reply["id"] == i

        yield call

    @asynccontextmanager
    async def idle(self) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        async with trio.open_nursery() as nursery:

            async def open_one() -> None:
                pool: trio_rpc.Pool = await nursery.start(partial(trio_rpc.run_pool, f"tcp://{HOST}:{self.port}"))
                reply: Any = await pool.stub(Benchmark).echo(payload(0))
                assert reply["id"] == 0

            yield open_one
            nursery.cancel_scope.cancel()


def endpoint_host(endpoint: int) -> str:
    """The address of an endpoint: all of 127.0.0.0/8 is this machine."""
    return f"127.0.0.{endpoint + 1}"


async def payloads(count: int) -> AsyncGenerator[Payload, None]:
    """So many payloads."""
    for i in range(count):
        yield payload(i)


async def check(items: AsyncIterable[Any], count: int) -> None:
    """Receive all of them, in order."""
    expected = 0
    async for item in items:
        assert item["id"] == expected
        expected += 1
    assert expected == count


peer = Own
