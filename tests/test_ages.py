"""How old, and how idle, a server lets a connection become; and that nobody notices when it parts with one."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from tests.guarantees.kit import Lab, RawClient, never, numbers
from trio_rpc import (
    Code,
    Heartbeat,
    PoolLimits,
    RemoteCancelled,
    Server,
    ServerLimits,
    current_call,
    method,
    open_pool,
    open_server,
)
from trio_rpc.testing import Delay, FaultyStream, MemoryListener, no_leaks
from trio_rpc.wire import MAX_ID, ErrorReceived, GoAwayReceived, Outcome, PingReceived, ResponseReceived

SILENT = Heartbeat(interval=None)


async def a_client(listener: MemoryListener) -> RawClient:
    """A new connection."""
    client = RawClient(await listener.connect())
    await client.greet()
    return client


async def farewell(client: RawClient) -> tuple[float, str]:
    """Wait for the first GOAWAY; when it came, and what it says."""
    goaway = await client.expect(GoAwayReceived)
    assert (goaway.last_id, goaway.code) == (MAX_ID, Code.UNAVAILABLE)
    return trio.current_time(), goaway.message


@pytest.mark.parametrize(("drawn", "age"), [(0.0, 90), (0.25, 95), (0.5, 100), (1 - 1e-12, 110)])
async def test_a_connection_is_drained_at_its_age(
    autojump_clock: trio.testing.MockClock, drawn: float, age: float
) -> None:
    """48: within a tenth of `max_age`, so that those that began together do not end together."""
    listener = MemoryListener()
    async with open_server(Lab(), listener, limits=ServerLimits(max_age=100), heartbeat=SILENT) as server:
        server.rng = lambda: drawn
        await trio.sleep(7)
        client = await a_client(listener)
        when, why = await farewell(client)
        assert (round(when, 6), why) == (7 + age, "this connection has reached its max_age")
        assert server.statistics().closed_age == 1
        await client.stream.aclose()


async def test_ages_differ() -> None:
    """48: unless told otherwise, they are drawn at random."""
    async with open_server(Lab(), MemoryListener(), limits=ServerLimits(max_age=100)) as server:
        assert 0 <= server.rng() < 1
        assert len({server.rng() for _ in range(10)}) > 1


@pytest.mark.parametrize(("grace", "told_at"), [(None, None), (0, 100), (5, 105), (60, None)])
async def test_calls_on_an_old_connection_have_the_grace(
    autojump_clock: trio.testing.MockClock, grace: float | None, told_at: float | None
) -> None:
    """48: what was accepted goes on, after `max_age_grace` it is cancelled and told so, and the connection ends."""
    lab, listener = Lab(), MemoryListener()
    limits = ServerLimits(max_age=100, max_age_grace=grace)
    async with open_server(lab, listener, limits=limits, heartbeat=SILENT) as server:
        server.rng = lambda: 0.5
        client = await a_client(listener)
        await trio.sleep(90)
        await client.send(client.request("Lab.sleep", 30))
        await farewell(client)
        ping = await client.expect(PingReceived)
        await client.send(client.protocol.pong(ping.data))
        while not isinstance(event := await client.event(), ResponseReceived | ErrorReceived):
            assert isinstance(event, GoAwayReceived)
        if told_at is None:
            assert isinstance(event, ResponseReceived)
            assert trio.current_time() == 120
        else:
            assert isinstance(event, ErrorReceived)
            assert (event.outcome, event.started, trio.current_time()) == (Outcome.STOPPED, True, told_at)
        ended_at = trio.current_time()
        assert await client.closed()
        assert trio.current_time() == ended_at + limits.close_timeout  # It gives the peer the time to close first.
        await trio.testing.wait_all_tasks_blocked()
        assert server.statistics().connections == 0
        await client.stream.aclose()


async def test_callers_do_not_notice_the_age(autojump_clock: trio.testing.MockClock) -> None:
    """48: calls and streams of all shapes go on while connections come and go; there is latency, and no error."""
    lab = Lab()
    listener = MemoryListener(wrap=lambda stream: FaultyStream(stream, Delay(0.02)))
    async with open_server(lab, listener, limits=ServerLimits(max_age=2)) as server:
        async with open_pool(listener.connect) as pool, trio.open_nursery() as nursery:

            async def unary(seconds: float) -> None:
                while trio.current_time() < 30:
                    assert await pool.stub(Lab).sleep(seconds) == "slept"

            async def collect() -> None:
                while trio.current_time() < 30:
                    assert await pool.stub(Lab).total(numbers(300)) == 44850
                    await trio.sleep(0.1)

            async def follow() -> None:
                while trio.current_time() < 30:
                    async with pool.stub(Lab).count(300) as counting:
                        assert len([item async for item in counting]) == 300

            for seconds in (0.01, 0.3, 5):
                nursery.start_soon(unary, seconds)
            nursery.start_soon(collect)
            nursery.start_soon(follow)
        stats = pool.statistics()
        assert (stats.errors, stats.lost) == (0, 0)
        assert server.statistics().closed_age >= 10
        assert stats.closed_going_away >= 9


async def test_an_idle_connection_is_drained(autojump_clock: trio.testing.MockClock) -> None:
    """49: after `max_idle` without a call; pings are none, and neither is a call that had begun before."""
    listener = MemoryListener()
    limits = ServerLimits(max_idle=10)
    async with open_server(Lab(), listener, limits=limits, heartbeat=Heartbeat(interval=2, timeout=100)) as server:
        client = await a_client(listener)
        while not isinstance(event := await client.event(), GoAwayReceived):
            assert isinstance(event, PingReceived)
            await client.send(client.protocol.pong(event.data))
        assert (trio.current_time(), event.message) == (10, "this connection was without a call for max_idle")
        assert server.statistics().closed_idle == 1
        await client.stream.aclose()


class Ringing(Lab):
    """Calls its caller back from a task of its own, which outlives the call."""

    def __init__(self, nursery: trio.Nursery) -> None:
        super().__init__()
        self._nursery = nursery

    @method
    async def ring_later(self, seconds: float) -> None:
        peer = current_call().peer

        async def ring() -> None:
            await peer.stub(Lab).sleep(seconds)

        self._nursery.start_soon(ring)


# What is done at the time 5, and when the connection is idle from then on.
BUSY: dict[str, tuple[tuple[Any, ...], float]] = {
    "nothing": ((), 0),
    "a short call": (("Lab.echo", 1), 5),
    "a call that is refused": (("Lab.nothing",), 5),
    "a long call": (("Lab.sleep", 50), 55),
    "a call that nobody cancels": (("Lab.stubborn", 50), 55),
}


@pytest.mark.parametrize(("request_", "idle_from"), BUSY.values(), ids=BUSY)
async def test_idle_time_counts_from_the_last_calls_end(
    autojump_clock: trio.testing.MockClock, request_: tuple[Any, ...], idle_from: float
) -> None:
    """49: not from its beginning, nor from the last byte that has arrived."""
    listener = MemoryListener()
    async with open_server(Lab(), listener, limits=ServerLimits(max_idle=10), heartbeat=SILENT):
        client = await a_client(listener)
        await trio.sleep(5)
        if request_:
            await client.send(client.request(*request_))
            await client.event()
        assert (await farewell(client))[0] == idle_from + 10
        await client.stream.aclose()


async def test_a_stream_is_a_call_for_as_long_as_it_lasts(autojump_clock: trio.testing.MockClock) -> None:
    """49: however long nothing comes."""
    listener = MemoryListener()
    async with open_server(Lab(), listener, limits=ServerLimits(max_idle=10)) as server:
        async with open_pool(listener.connect) as pool:
            with trio.move_on_after(100):
                await pool.stub(Lab).total(never())
            assert server.statistics().closed_idle == 0
            await trio.sleep(10.5)
            assert server.statistics().closed_idle == 1


async def test_calls_back_are_calls_too(autojump_clock: trio.testing.MockClock) -> None:
    """49: a connection on which the server still calls its client is not idle."""
    listener = MemoryListener()
    async with trio.open_nursery() as nursery:
        async with open_server(Ringing(nursery), listener, limits=ServerLimits(max_idle=10)) as server:
            limits = PoolLimits(min_connections=0)
            async with open_pool(listener.connect, services=Lab(), limits=limits) as pool:
                await pool.stub(Ringing).ring_later(50)
                await trio.sleep(59)
                assert (server.statistics().closed_idle, server.statistics().connections) == (0, 1)
                await trio.sleep(2)
                assert (server.statistics().closed_idle, server.statistics().connections) == (1, 0)


async def test_a_call_that_crosses_the_farewell_is_served(autojump_clock: trio.testing.MockClock) -> None:
    """49: the idle time ends just as a client stream begins, on a slow network: it is accepted all the same."""
    listener = MemoryListener(wrap=lambda stream: FaultyStream(stream, Delay(0.5)))
    async with open_server(Lab(), listener, limits=ServerLimits(max_idle=10), heartbeat=SILENT) as server:
        async with open_pool(listener.connect, heartbeat=SILENT) as pool:
            await pool.connect()
            while not server.statistics().closed_idle:  # noqa: ASYNC110
                await trio.sleep(0.01)
            assert await pool.stub(Lab).total(numbers(100)) == 4950
            assert (pool.statistics().retries, pool.statistics().errors) == (0, 0)


@pytest.mark.parametrize("limits", [ServerLimits(max_age=10, max_age_grace=500), ServerLimits(max_age=10)])
async def test_a_drain_ends_what_an_age_has_begun(autojump_clock: trio.testing.MockClock, limits: ServerLimits) -> None:
    """The server's own drain has its own grace, whatever the connection's was; and it leaves nothing."""
    lab, listener = Lab(), MemoryListener()

    async def call(server: Server, pool: Any) -> None:
        with pytest.raises(RemoteCancelled):
            await pool.stub(Lab).sleep(1000)
        assert trio.current_time() == 25

    async with no_leaks(), open_server(lab, listener, limits=limits) as server:
        server.rng = lambda: 0.5
        async with open_pool(listener.connect) as pool, trio.open_nursery() as nursery:
            nursery.start_soon(call, server, pool)
            await trio.sleep(20)
            assert server.statistics().closed_age >= 1
            await server.drain(grace=5)
            nursery.cancel_scope.cancel()
    assert lab.words == ["ended"]


async def test_a_connection_that_ends_by_itself_leaves_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """The server forgets its age: nothing of it is drained later, or counted."""
    listener = MemoryListener()
    async with open_server(Lab(), listener, limits=ServerLimits(max_age=100, max_idle=50)) as server:
        for _ in range(5):
            client = await a_client(listener)
            await client.send(client.request("Lab.echo", 1))
            await client.expect(ResponseReceived)
            await client.stream.aclose()
        await trio.sleep(200)
        stats = server.statistics()
        assert (stats.connections, stats.closed_age, stats.closed_idle) == (0, 0, 0)
