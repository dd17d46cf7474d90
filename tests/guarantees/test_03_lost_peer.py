"""Guarantee 3: no call ever hangs on a lost peer, and no healthy peer is given up."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.guarantees.kit import Lab, RawClient
from tests.scripted import ScriptedPeer
from trio_rpc import (
    ConnectionLost,
    Heartbeat,
    PeerUnresponsive,
    PoolLimits,
    ServerLimits,
    current_call,
    method,
    open_connection,
    open_pool,
    open_server,
)
from trio_rpc.testing import (
    Delay,
    FaultyStream,
    Freeze,
    MemoryListener,
    Recorder,
    Trickle,
    memory_pipe,
    open_loopback,
)
from trio_rpc.wire import Hello, Kind

OFF = Heartbeat(interval=None)


def kinds(chunks: list[bytes]) -> list[int]:
    """The kinds of the frames in some chunks, each of which holds whole frames."""
    found = []
    for chunk in chunks:
        start = 0
        while start < len(chunk):
            found.append(chunk[start + 8])
            start += 10 + int.from_bytes(chunk[start : start + 4])
    return found


async def test_a_silent_server_is_given_up_on_time(autojump_clock: trio.testing.MockClock) -> None:
    """N03, Rule 5, 3: silent for `interval` and `timeout`: all calls fail at that very second, in one tick, as
    PeerUnresponsive.
    """
    freeze = Freeze()
    places: list[int] = []
    heartbeat, limits = Heartbeat(10, 5), PoolLimits(max_connections=1)
    async with open_loopback(
        Lab(), heartbeat=heartbeat, limits=limits, wrap=lambda stream: FaultyStream(stream, freeze)
    ) as pool:

        async def call() -> None:
            with pytest.raises(PeerUnresponsive, match=r"no sign of life for 15\.0 s") as caught:
                await pool.stub(Lab).sleep(60)
            places.append(pool.statistics().in_flight)
            assert (trio.current_time(), caught.value.may_have_run) == (15, True)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(call)
            await trio.sleep(1)
            freeze.freeze()
        assert (places, pool.statistics().evicted) == ([0, 0, 0], 1)
        freeze.thaw()
        assert await pool.stub(Lab).echo("on a new connection") == "on a new connection"


async def test_a_silent_clients_handlers_are_cancelled_on_time(autojump_clock: trio.testing.MockClock) -> None:
    """N02, N03, Rule 5, 3: the server does the same: its handlers for a silent client end at that very second."""
    lab, freeze = Lab(), Freeze()
    listener = MemoryListener(wrap=lambda stream: FaultyStream(stream, freeze))
    async with (
        open_server(lab, listener, heartbeat=Heartbeat(4, 2)) as server,
        open_pool(listener.connect, heartbeat=OFF) as pool,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(_fails, ConnectionLost, pool.stub(Lab).sleep, 60)
        nursery.start_soon(_fails, ConnectionLost, pool.stub(Lab).sleep, 60)
        await trio.sleep(1)
        freeze.freeze()
        await trio.sleep(6)
        assert lab.log == [("ended", 6.0)] * 2
        assert (server.statistics().evicted, server.statistics().connections) == (1, 0)
        freeze.thaw()


async def _fails(kind: type[Exception], function: object, *args: object) -> None:
    with pytest.raises(kind):
        await function(*args)  # type: ignore[operator]


async def test_a_lost_connection_cancels_its_handlers_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """3: handlers whose caller's connection ended are cancelled, and not run on for nobody."""
    lab, listener = Lab(), MemoryListener()
    async with open_server(lab, listener):
        async with open_pool(listener.connect) as pool, trio.open_nursery() as nursery:
            nursery.start_soon(_fails, ConnectionLost, pool.stub(Lab).sleep, 60)
            await trio.sleep(2)
            await trio.aclose_forcefully(listener.connections[0])
            await trio.testing.wait_all_tasks_blocked()
            assert lab.log == [("ended", 2.0)]


@pytest.mark.parametrize(
    ("ours", "theirs"), [(Heartbeat(0.2, 1), Heartbeat(100, 5)), (Heartbeat(100, 5), Heartbeat(0.2, 1))]
)
async def test_nothing_need_match(autojump_clock: trio.testing.MockClock, ours: Heartbeat, theirs: Heartbeat) -> None:
    """3: HELLO tells each side's rhythm, and the other allows it: an idle connection lives on."""
    async with open_loopback(Lab(), heartbeat=ours, server_heartbeat=theirs) as pool:
        await trio.sleep(1000)
        stats = pool.statistics()
        assert (stats.connects, stats.lost, stats.evicted) == (1, 0, 0)


async def test_a_handler_that_takes_long_is_no_dead_peer(autojump_clock: trio.testing.MockClock) -> None:
    """3: pings are answered by the connection and not by handlers."""
    async with open_loopback(Lab(), heartbeat=Heartbeat(1, 1), server_heartbeat=Heartbeat(1, 1)) as pool:
        assert await pool.stub(Lab).sleep(500) == "slept"


async def test_any_inbound_byte_is_life(autojump_clock: trio.testing.MockClock) -> None:
    """3: a side that hears something every few seconds sends no pings; once it hears nothing, it does."""
    recorder = Recorder(direction="sending")
    heartbeat = Heartbeat(10, 5)
    async with open_loopback(Lab(), heartbeat=heartbeat, wrap=lambda stream: FaultyStream(stream, recorder)) as pool:
        await pool.stub(Lab).echo(0)
        recorder.clear()
        for number in range(10):
            await pool.stub(Lab).sleep(9)
            assert Kind.PING not in kinds(recorder.sent), number
        await pool.stub(Lab).sleep(11)
        assert kinds(recorder.sent).count(Kind.PING) == 1


async def test_a_loop_that_was_late_reads_first(autojump_clock: trio.testing.MockClock) -> None:
    """N19, Rule 6, 3: a pong that has arrived while our loop was late counts, whichever task the loop runs first."""
    late_pong = Delay(4.9, direction="receiving")
    for _ in range(12):
        async with open_loopback(
            Lab(), heartbeat=Heartbeat(10, 5), wrap=lambda stream: FaultyStream(stream, late_pong)
        ) as pool:
            await pool.connect()
            start = trio.current_time()
            await trio.sleep_until(start + 10 + 4.5)
            autojump_clock.jump(1)  # Past the pong at 14.9 and the verdict at 15.
            await trio.sleep(2)
            assert pool.statistics().evicted == 0


async def test_a_loop_that_was_late_gives_a_full_timeout(autojump_clock: trio.testing.MockClock) -> None:
    """N19, Rule 6, 3: after a stall of our own, the peer gets a full `timeout` after a ping that really left."""
    line = Freeze(direction="receiving")
    async with open_loopback(Lab(), heartbeat=Heartbeat(10, 5), wrap=lambda stream: FaultyStream(stream, line)) as pool:
        await pool.connect()
        line.freeze()
        await trio.sleep_until(10.5)  # The ping has left at 10, and its pong is under way.
        autojump_clock.jump(20)
        await trio.sleep(1.5)
        line.thaw()
        await trio.sleep(100)
        assert (pool.statistics().evicted, pool.statistics().connects) == (0, 1)


async def test_a_write_that_our_own_late_loop_held_up_is_no_ones_fault(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """3: the same care where a write was under way during the stall, long or just across the moment of the verdict."""
    slow_line, limits = Delay(1, direction="sending"), PoolLimits(write_timeout=1.5)
    for _ in range(12):
        async with open_loopback(Lab(), limits=limits, wrap=lambda stream: FaultyStream(stream, slow_line)) as pool:
            await pool.connect()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pool.stub(Lab).echo, 1)
                await trio.sleep(0.9)
                autojump_clock.jump(0.8)
            assert pool.statistics().evicted == 0
    line = Freeze(direction="sending")
    async with open_loopback(Lab(), limits=limits, wrap=lambda stream: FaultyStream(stream, line)) as pool:
        await pool.connect()
        async with trio.open_nursery() as nursery:
            line.freeze()
            nursery.start_soon(pool.stub(Lab).echo, 1)
            await trio.sleep(0.9)
            autojump_clock.jump(20)
            await trio.sleep(0.3)
            line.thaw()
        assert pool.statistics().evicted == 0


async def test_a_stall_does_not_save_a_dead_peer(autojump_clock: trio.testing.MockClock) -> None:
    """3: the second look is the last: with our loop late again and again, a dead peer is still given up."""
    freeze = Freeze(direction="receiving")
    async with open_loopback(
        Lab(), heartbeat=Heartbeat(10, 5), wrap=lambda stream: FaultyStream(stream, freeze)
    ) as pool:
        await pool.connect()
        freeze.freeze()
        for _ in range(3):
            await trio.sleep(1)
            autojump_clock.jump(20)
        await trio.sleep(1)
        assert pool.statistics().evicted >= 1
        freeze.thaw()


async def test_a_server_that_takes_no_bytes_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    """3: a write without progress for `write_timeout` ends the connection, heartbeat or not."""
    ours, theirs = memory_pipe(1000)
    async with trio.open_nursery() as nursery:
        peer = ScriptedPeer(theirs, Hello())
        nursery.start_soon(peer.greet)
        async with open_connection(ours, heartbeat=OFF, limits=PoolLimits(write_timeout=7)) as pool:
            await trio.sleep(1)
            with pytest.raises(PeerUnresponsive, match="write_timeout"):
                await pool.stub(Lab).echo("x" * 5000)
            assert trio.current_time() == 8


async def test_a_client_that_takes_no_bytes_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    """R05, Rule 14, 3: the same on the serving side, for a caller that does not read its results."""
    listener = MemoryListener(capacity=1000)
    async with open_server(Lab(), listener, heartbeat=OFF, limits=ServerLimits(write_timeout=7)) as server:
        client = RawClient(await listener.connect())
        await client.greet()
        for _ in range(5):
            await client.send(client.request("Lab.echo", "x" * 700))
        await trio.sleep(6.9)
        assert server.statistics().connections == 1
        await trio.sleep(0.2)
        assert (server.statistics().connections, server.statistics().evicted) == (0, 1)
        await client.stream.aclose()


class Ringing(Lab):
    """Calls its caller back, and waits."""

    @method
    async def ring(self) -> None:
        await current_call().peer.stub(Lab).sleep(60)


async def test_calls_back_fail_with_the_connection_too(autojump_clock: trio.testing.MockClock) -> None:
    """3: it holds in both directions: the server's own calls to a client that was lost end in the same second."""
    served, freeze = Ringing(), Freeze()
    listener = MemoryListener(wrap=lambda stream: FaultyStream(stream, freeze))
    async with (
        open_server(served, listener, heartbeat=Heartbeat(4, 2)) as server,
        open_pool(listener.connect, heartbeat=Heartbeat(4, 2), services=Lab()) as pool,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(_fails, PeerUnresponsive, pool.stub(Ringing).ring)
        await trio.sleep(1)
        assert (server.statistics().calling_back, pool.statistics().serving) == (1, 1)
        freeze.freeze()
        await trio.sleep_until(6)
        await trio.testing.wait_all_tasks_blocked()
        assert (server.statistics().calling_back, server.statistics().in_flight) == (0, 0)
        assert pool.statistics().serving == 0
        freeze.thaw()


async def test_a_slow_link_is_no_dead_peer(autojump_clock: trio.testing.MockClock) -> None:
    """N10, 3: what counts is progress: a large upload at 8 KiB/s takes minutes, and neither ping nor write_timeout ends
    it.
    """
    slow = Trickle(1024, 0.125, direction="sending")
    listener = MemoryListener(wrap=lambda stream: FaultyStream(stream, slow))
    async with (
        open_server(Lab(), listener, heartbeat=Heartbeat()),
        open_pool(listener.connect, heartbeat=Heartbeat()) as pool,
    ):
        assert await pool.stub(Lab).echo("x" * 1_000_000) == "x" * 1_000_000
        assert trio.current_time() > 120
        assert pool.statistics().evicted == 0
