"""Readers that stop, or are slow, with much due to them: what the server keeps for each is bounded."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import suppress

import pytest
import trio

from tests.guarantees.kit import RawClient
from tests.scripted import ScriptedPeer
from trio_rpc import Heartbeat, PoolLimits, ServerLimits, method, open_connection, open_server
from trio_rpc.testing import MemoryListener, memory_pipe
from trio_rpc.wire import EndReceived, Hello, ItemsReceived, RequestReceived, ResponseReceived

KIB = 1024
SIZE = 100 * KIB
MOST = 300 * KIB
"""`max_queued_bytes` here."""
SLACK = 12
"""Results that have partly gone out: they do so side by side."""
LIMITS = ServerLimits(max_queued_bytes=MOST, write_timeout=None)


class Bulk:
    """Counts how much it has made."""

    def __init__(self) -> None:
        self.made = 0

    @method
    async def large(self, pause: float) -> bytes:
        if pause:
            await trio.sleep(pause)
        self.made += 1
        return b"x" * SIZE

    @method
    async def taken(self, items: AsyncIterable[bytes]) -> int:
        return len([None async for _ in items])

    @method
    async def larges(self, count: int) -> AsyncGenerator[bytes, None]:
        for _ in range(count):
            self.made += 1
            yield b"x" * SIZE


async def test_a_slow_reader_has_no_more_begun_than_there_is_room_for(autojump_clock: trio.testing.MockClock) -> None:
    """R05: each time that room is made for one further result, one is begun, and not all that have waited."""
    bulk, listener = Bulk(), MemoryListener(capacity=KIB)
    async with open_server(bulk, listener, limits=LIMITS, heartbeat=Heartbeat(None)):
        client = RawClient(await listener.connect())
        await client.greet()
        await client.send(*(client.request("Bulk.large", 0) for _ in range(100)))
        for taken in range(100):
            await trio.sleep(1)
            assert bulk.made <= taken + MOST // SIZE + SLACK
            await client.expect(ResponseReceived)
        assert bulk.made == 100
        await client.stream.aclose()


@pytest.mark.parametrize("pause", [0, 1])
async def test_calls_that_have_waited_are_all_begun(pause: float, autojump_clock: trio.testing.MockClock) -> None:
    """R05: whoever reads again gets every answer, also where handlers suspend and nothing is written meanwhile."""
    bulk, listener = Bulk(), MemoryListener(capacity=KIB)
    async with open_server(bulk, listener, limits=LIMITS, heartbeat=Heartbeat(None)):
        client = RawClient(await listener.connect())
        await client.greet()
        await client.send(*(client.request("Bulk.large", 0) for _ in range(10)))
        await client.send(*(client.request("Bulk.large", pause) for _ in range(90)))
        await trio.sleep(5)
        with trio.fail_after(math.inf if not pause else 300):
            for _ in range(100):
                await client.expect(ResponseReceived)
        await client.stream.aclose()


WIDE = Hello(stream_window=2**40, stream_window_items=2**20)
"""Leave for all items of any stream, given beforehand."""


@pytest.mark.parametrize(("streams", "items", "hello"), [(1, 100, WIDE), (100, 1, Hello()), (10, 10, WIDE)])
async def test_streams_are_held_back(
    streams: int, items: int, hello: Hello, autojump_clock: trio.testing.MockClock
) -> None:
    """R05: of streams that nobody reads, no more is made than there is room for, whatever credit they have."""
    bulk, listener = Bulk(), MemoryListener(capacity=KIB)
    async with open_server(bulk, listener, limits=LIMITS, heartbeat=Heartbeat(None)):
        client = RawClient(await listener.connect(), hello)
        await client.greet()
        await client.send(*(client.request("Bulk.larges", items) for _ in range(streams)))
        got = ended = 0
        while ended < streams:
            await trio.sleep(1)
            assert bulk.made <= got + MOST // SIZE + SLACK
            event = await client.event()
            if isinstance(event, ItemsReceived):
                got += event.count
                await client.send(client.protocol.credit(event.id, event.size, event.count))
            ended += isinstance(event, ResponseReceived | EndReceived)
        assert (bulk.made, got) == (100, 100)
        await client.stream.aclose()


async def test_a_client_holds_its_streams_back_too(autojump_clock: trio.testing.MockClock) -> None:
    """R05, X16: towards a server that gives leave for everything and reads nothing."""
    made = 0

    async def items() -> AsyncGenerator[bytes, None]:
        nonlocal made
        for _ in range(100):
            made += 1
            yield b"x" * SIZE

    ours, theirs = memory_pipe(capacity=KIB)
    limits = PoolLimits(max_queued_bytes=MOST, write_timeout=None)
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            peer = ScriptedPeer(theirs, WIDE)
            await peer.greet()
            request = await peer.expect(RequestReceived)
            got = 0
            while got < 100:
                await trio.sleep(1)
                assert made <= got + MOST // SIZE + SLACK
                got += (await peer.expect(ItemsReceived)).count
            await peer.answer(request, got)
            with suppress(trio.EndOfChannel):
                while True:
                    await peer.event()

        nursery.start_soon(serve)
        async with open_connection(ours, limits=limits, heartbeat=Heartbeat(None)) as pool:
            assert await pool.stub(Bulk).taken(items()) == 100
