"""Guarantee 6: backpressure end to end."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import AsyncGenerator, AsyncIterable

import msgpack
import pytest
import trio
import trio.testing

from tests.guarantees.kit import Lab, RawClient, numbers
from trio_rpc import Heartbeat, PoolLimits, ServerLimits, method, open_server
from trio_rpc.testing import Delay, FaultyStream, MemoryListener, Recorder, Trickle, open_loopback
from trio_rpc.wire import ResponseReceived

KIB = 1024


async def produced(lab: Lab) -> int:
    """How far the producer came by itself."""
    await trio.testing.wait_all_tasks_blocked()
    return lab.produced


@pytest.mark.parametrize(
    ("limits", "pad", "most"),
    [
        (PoolLimits(stream_window=64 * KIB, stream_window_items=20), 0, 20 + 21),
        (PoolLimits(stream_window=10_000, stream_window_items=1000), 1000, 10 + 18),
        (PoolLimits(stream_window=1), 70_000, 2),
    ],
)
async def test_a_producer_stops_where_its_credit_ends(
    autojump_clock: trio.testing.MockClock, limits: PoolLimits, pad: int, most: int
) -> None:
    """6: a consumer that takes nothing lets the producer run ahead by the window, in bytes and items, and one batch."""
    lab = Lab()
    async with open_loopback(lab, limits=limits) as pool:
        async with pool.stub(Lab).count(pad=pad) as counting:
            ahead = await produced(lab)
            assert 0 < ahead <= most
            assert await produced(lab) == ahead  # It rests.
            with trio.fail_after(5):
                for number in range(3 * most):
                    assert int(await counting.receive()) == number
            assert ahead < await produced(lab) <= 4 * most


async def test_the_callers_items_have_credit_too(autojump_clock: trio.testing.MockClock) -> None:
    """6: a handler that takes none of its caller's items stops the caller's iterable."""
    taken = 0

    async def endless() -> AsyncGenerator[int, None]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    server_limits = ServerLimits(stream_window_items=50)
    async with open_loopback(Lab(), server_limits=server_limits) as pool:
        with trio.move_on_after(5):
            await pool.stub(Lab).stubborn_total(endless(), 3)
        assert 0 < taken <= 101


async def test_memory_is_bounded_by_credit(autojump_clock: trio.testing.MockClock) -> None:
    """6: twenty streams of 1 KiB items that nobody reads hold their windows, and not what could be produced."""
    async with open_loopback(Lab(), capacity=None) as pool, trio.open_nursery() as nursery:

        async def idle() -> None:
            async with pool.stub(Lab).count(pad=1 * KIB):
                await trio.sleep_forever()

        await pool.connect()
        tracemalloc.start()
        for _ in range(20):
            nursery.start_soon(idle)
        await trio.testing.wait_all_tasks_blocked()
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert size < 20 * 2 * 64 * KIB * 2
        nursery.cancel_scope.cancel()


async def test_a_slow_consumer_stalls_no_neighbour(autojump_clock: trio.testing.MockClock) -> None:
    """S18, 6: beside streams whose consumers sleep, calls and other streams take no time, on the same one connection."""
    async with open_loopback(Lab(), limits=PoolLimits(max_connections=1), capacity=4 * KIB) as pool:
        stub = pool.stub(Lab)
        async with stub.count(pad=1 * KIB), stub.count(), stub.doubled(numbers(10**9)):
            await trio.testing.wait_all_tasks_blocked()
            assert await stub.echo(1) == 1
            with trio.fail_after(5):
                async with stub.count(3000) as counting:
                    assert len([item async for item in counting]) == 3000
        assert trio.current_time() == 0


async def test_reading_waits_for_no_write(autojump_clock: trio.testing.MockClock) -> None:
    """6: two sides that send each other more than the transport holds do not wait for each other for ever."""
    async with open_loopback(Lab(), capacity=1 * KIB) as pool:
        with trio.fail_after(1):
            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(_echo_large, pool.stub(Lab))


async def _echo_large(stub: Lab) -> None:
    assert len(await stub.echo("x" * 500_000)) == 500_000


async def test_small_calls_pass_large_messages(autojump_clock: trio.testing.MockClock) -> None:
    """N10, S19, 6: a message of 2 MB goes in chunks, and small calls and pings get in between, with a slow line and no
    loss.
    """
    line = Trickle(16 * KIB, 0.025, direction="sending")  # The large message takes 3 s.
    heartbeat = Heartbeat(0.5, 1)
    async with open_loopback(
        Lab(), heartbeat=heartbeat, limits=PoolLimits(max_connections=1), wrap=lambda s: FaultyStream(s, line)
    ) as pool:
        stub = pool.stub(Lab)
        await stub.echo(0)
        async with trio.open_nursery() as nursery:
            start = trio.current_time()
            nursery.start_soon(stub.echo, "x" * 2_000_000)
            await trio.sleep(0.05)
            assert await stub.echo(1) == 1
            assert trio.current_time() - start < 0.5
            assert pool.statistics().in_flight == 1
        assert trio.current_time() - start > 2.5
        assert pool.statistics().lost == 0


async def test_large_messages_take_turns(autojump_clock: trio.testing.MockClock) -> None:
    """6: round-robin: a 200 kB request that begins behind one of 3 MB is done long before it."""
    line = Trickle(16 * KIB, 0.025, direction="sending")
    order: list[int] = []
    async with open_loopback(Lab(), limits=PoolLimits(max_connections=1), wrap=lambda s: FaultyStream(s, line)) as pool:

        async def echo(size: int) -> None:
            await pool.stub(Lab).echo("x" * size)
            order.append(size)

        await pool.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo, 3_000_000)
            await trio.sleep(0.01)
            nursery.start_soon(echo, 200_000)
    assert order == [200_000, 3_000_000]


async def test_a_cancellation_passes_a_large_message(autojump_clock: trio.testing.MockClock) -> None:
    """Rule 2, 6 and 1: CANCEL goes ahead of all that is queued, and what is left of its own request is not sent any
    more.
    """
    line, recorder = Trickle(16 * KIB, 0.025, direction="sending"), Recorder(direction="sending")
    slow_answers = Delay(0.5, direction="receiving")
    async with open_loopback(
        Lab(), limits=PoolLimits(max_connections=1), wrap=lambda s: FaultyStream(s, recorder, line, slow_answers)
    ) as pool:
        stub = pool.stub(Lab)
        await stub.echo(0)
        recorder.clear()
        start = trio.current_time()
        with trio.move_on_after(0.5):
            await stub.echo("x" * 3_000_000)
        assert trio.current_time() - start < 1.3
        assert recorder.bytes_sent < 300_000
        assert await stub.echo(1) == 1
        assert (pool.statistics().connects, pool.statistics().in_flight) == (1, 0)


async def test_a_clogged_client_is_served_no_more(autojump_clock: trio.testing.MockClock) -> None:
    """R05, 6 and 7: results that their caller does not read are bounded: further requests are refused, then it is
    closed.
    """
    listener = MemoryListener(capacity=16 * KIB)
    limits = ServerLimits(max_queued_bytes=1024 * KIB, write_timeout=None)
    async with open_server(Lab(), listener, limits=limits, heartbeat=Heartbeat(None)):
        client = RawClient(await listener.connect())
        await client.greet()
        tracemalloc.start()
        with pytest.raises((trio.BrokenResourceError, trio.TooSlowError)), trio.fail_after(5):
            for _ in range(3000):
                await client.send(client.request("Lab.echo", "x" * 10_000))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 8 * 1024 * KIB
        await client.stream.aclose()


class Lazy(Lab):
    """Takes one of its caller's items every second."""

    @method
    async def slowly(self, values: AsyncIterable[bytes]) -> int:
        count = 0
        async for _ in values:
            count += 1
            await trio.sleep(1)
        return count


async def test_items_larger_than_the_window_pass(autojump_clock: trio.testing.MockClock) -> None:
    """6: one item may overdraw the credit, so that a window smaller than an item slows, and does not stop, a stream."""

    async def blobs() -> AsyncGenerator[bytes, None]:
        for _ in range(4):
            yield b"x" * 300_000

    async with open_loopback(Lazy(), server_limits=ServerLimits(stream_window=1000)) as pool:
        with trio.fail_after(20):
            assert await pool.stub(Lazy).slowly(blobs()) == 4


async def test_a_large_item_right_behind_its_request_arrives(autojump_clock: trio.testing.MockClock) -> None:
    """6: a request and the first frame of a large item in one read: the item is the call's, though it is just opening."""
    listener = MemoryListener(capacity=None)
    async with open_server(Lazy(), listener):
        client = RawClient(await listener.connect())
        await client.greet()
        request = client.request("Lab.slowly", streaming=True)
        payload = msgpack.packb([b"x" * 300_000])
        first, chunks = client.protocol.items(1, 1, payload)
        assert chunks is not None
        await client.send(request, first, *[b"".join(chunk) for chunk in chunks], client.protocol.end(1))
        with trio.fail_after(5):
            response = await client.expect(ResponseReceived)
        assert msgpack.unpackb(response.payload) == 1
        await client.stream.aclose()


async def test_credit_left_behind_is_no_leak(autojump_clock: trio.testing.MockClock) -> None:
    """6 and 10: streams left in the middle of a large item keep nothing of it."""

    class Large(Lab):
        @method
        async def blobs(self) -> AsyncGenerator[bytes, None]:
            while True:
                yield b"x" * 1_000_000

    line = Trickle(64 * KIB, 0.1, direction="receiving")
    async with open_loopback(Large(), wrap=lambda s: FaultyStream(s, line)) as pool:
        stub = pool.stub(Large)
        await stub.echo(0)
        tracemalloc.start()
        for _ in range(20):
            async with stub.blobs():
                await trio.sleep(1.1)  # About 700 kB of it have come.
        await trio.sleep(5)
        gc.collect()  # When cycles are collected is each Python version's own business.
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert size < 4_000_000
        assert pool.statistics().lost == 0
