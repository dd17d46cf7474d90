"""What other libraries of this kind got wrong, by their own sources and issue trackers; each is a test here."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from tests.guarantees.kit import Lab, RawClient, never
from trio_rpc import (
    ConnectionLost,
    Heartbeat,
    PoolLimits,
    RemoteCancelled,
    RemoteError,
    ServerLimits,
    current_call,
    method,
    open_pool,
    open_server,
)
from trio_rpc.testing import FaultyStream, Freeze, MemoryListener, open_loopback
from trio_rpc.wire import ErrorReceived, Outcome


async def _fails(kind: type[Exception], call: Any) -> None:
    with pytest.raises(kind):
        await call()


async def test_trio_jsonrpc_a_closed_transport_wakes_its_callers(autojump_clock: trio.testing.MockClock) -> None:
    """All calls in flight fail when the transport closes, at once; none waits for ever."""
    listener = MemoryListener()
    async with open_server(Lab(), listener), open_pool(listener.connect) as pool, trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(_fails, ConnectionLost, partial(pool.stub(Lab).sleep, 60))
        nursery.start_soon(_fails, ConnectionLost, partial(pool.stub(Lab).total, never()))
        await trio.sleep(1)
        await trio.aclose_forcefully(listener.connections[0])
    assert trio.current_time() == 1


async def test_trio_jsonrpc_a_cancelled_calls_late_reply_blocks_nobody(autojump_clock: trio.testing.MockClock) -> None:
    """A reply that comes after its caller has gone is counted off, and the reader goes on."""
    async with open_loopback(Lab(), limits=PoolLimits(cancel_wait=0)) as pool:
        for _ in range(300):  # More than there are places on a connection.
            with trio.move_on_after(0.1):
                await pool.stub(Lab).stubborn(0.2)
        await trio.sleep(1)
        assert await pool.stub(Lab).echo("alive") == "alive"
        assert (pool.statistics().orphans, pool.statistics().in_flight) == (0, 0)


async def test_purerpc_the_end_of_the_stream_fails_pending_receives(autojump_clock: trio.testing.MockClock) -> None:
    """EOF ends streams that are being received with an error, and not with silence."""
    listener = MemoryListener()
    async with open_server(Lab(), listener) as server, open_pool(listener.connect) as pool:
        async with trio.open_nursery() as nursery:

            async def consume() -> None:
                async with pool.stub(Lab).doubled(never()) as doubled:
                    await doubled.receive()

            nursery.start_soon(_fails, ConnectionLost, consume)
            await trio.sleep(1)
            listener.connections[0].close()  # type: ignore[attr-defined]
        assert (trio.current_time(), server.statistics().in_flight) == (1, 0)


async def test_purerpc_a_peers_reset_and_goaway_are_heeded(autojump_clock: trio.testing.MockClock) -> None:
    """CANCEL stops the handler it names and no other; a GOAWAY from the caller stops none."""
    lab, listener = Lab(), MemoryListener()
    async with open_server(lab, listener):
        client = RawClient(await listener.connect())
        await client.greet()
        await client.send(client.request("Lab.sleep", 60), client.request("Lab.sleep", 5))
        await trio.sleep(1)
        await client.send(client.protocol.goaway(0), client.protocol.cancel(1, 1))
        ended = await client.expect(ErrorReceived)
        assert (ended.id, ended.outcome, lab.log) == (1, Outcome.CANCELLED, [("ended", 1.0)])
        await trio.sleep(5)
        assert lab.log[1:] == [("ended", 5.0)]
        await client.stream.aclose()


async def test_purerpc_handlers_of_a_lost_connection_end(autojump_clock: trio.testing.MockClock) -> None:
    """A handler does not run on for a caller that has gone."""
    lab, listener = Lab(), MemoryListener()
    async with open_server(lab, listener):
        client = RawClient(await listener.connect())
        await client.greet()
        await client.send(client.request("Lab.sleep", 60), client.request("Lab.count"))
        await trio.sleep(1)
        client.stream.reset()  # type: ignore[attr-defined]
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(lab.words) == ["Cancelled", "cleaned", "ended"]


class Failing(Lab):
    @method
    async def fails(self, which: int) -> None:
        raise (ValueError("mine"), asyncio.CancelledError("not Trio's"), trio.TooSlowError("mine"))[which]


@pytest.mark.parametrize("which", range(3))
async def test_purerpc_a_failure_is_no_cancellation(autojump_clock: trio.testing.MockClock, which: int) -> None:
    """Whatever a handler raises arrives as its failure, never as CANCELLED."""
    async with open_loopback(Failing()) as pool:
        with pytest.raises(RemoteError) as caught:
            await pool.stub(Failing).fails(which)
        assert caught.value.code.name != "CANCELLED"


async def test_grpclib_a_graceful_exit_lets_handlers_finish(autojump_clock: trio.testing.MockClock) -> None:
    """Draining waits for what runs, to its own end."""
    listener = MemoryListener()
    async with open_server(Lab(), listener) as server, open_pool(listener.connect) as pool:
        async with trio.open_nursery() as nursery:
            results: list[str] = []

            async def call() -> None:
                results.append(await pool.stub(Lab).sleep(5))

            nursery.start_soon(call)
            await trio.sleep(1)
            await server.drain(grace=60)
        assert (results, trio.current_time()) == (["slept"], 5)


async def test_grpclib_an_inbound_goaway_ends_no_call(autojump_clock: trio.testing.MockClock) -> None:
    """The peer's GOAWAY takes no new calls; those it has accepted go on over that connection."""
    listener = MemoryListener()
    async with open_server(Lab(), listener) as server, open_pool(listener.connect) as pool:
        async with pool.stub(Lab).count(2000) as counting, trio.open_nursery() as nursery:
            assert await counting.receive() == "0"
            nursery.start_soon(server.drain, 60)
            await trio.sleep(1)
            assert len([item async for item in counting]) == 1999


def test_grpclib_heartbeats_are_on_and_public() -> None:
    """Both sides watch each other unless told otherwise, by a documented option."""
    assert (Heartbeat().interval, Heartbeat().timeout) == (10, 5)


async def test_connect_py_cancellation_is_never_an_ordinary_error(autojump_clock: trio.testing.MockClock) -> None:
    """A caller's cancellation stays Trio's on both sides: no `except Exception` anywhere sees it."""
    seen: list[str] = []

    class Careful(Lab):
        @method
        async def careful(self) -> None:
            try:
                await trio.sleep_forever()
            except Exception:
                seen.append("handler")
                raise

    async with open_loopback(Careful()) as pool:
        with trio.move_on_after(1) as scope:
            try:
                await pool.stub(Careful).careful()
            except Exception:
                seen.append("caller")
    assert (scope.cancelled_caught, seen) == (True, [])


async def test_connect_py_the_server_enforces_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    """A handler whose caller's time is over ends, though no CANCEL has come, and though its stream makes no item."""
    lab, listener = Lab(), MemoryListener()
    async with open_server(lab, listener):
        client = RawClient(await listener.connect())
        await client.greet()
        await client.send(client.request("Lab.sleep", 60, timeout=2))
        error = await client.expect(ErrorReceived)
        assert (error.outcome, lab.running) == (Outcome.EXPIRED, 0)
        assert 2 <= trio.current_time() <= 2.1
        await client.stream.aclose()


async def test_connect_py_a_disconnect_is_seen_between_items(autojump_clock: trio.testing.MockClock) -> None:
    """A generator that waits for its next item is told at once that its consumer has gone."""

    class Quiet(Lab):
        @method
        async def quiet(self) -> AsyncGenerator[int, None]:
            try:
                await trio.sleep(1000)
                yield 0
            finally:
                self.note("ended")

    service, listener = Quiet(), MemoryListener()
    async with open_server(service, listener):
        client = RawClient(await listener.connect())
        await client.greet()
        await client.send(client.request("Lab.quiet"))
        await trio.sleep(3)
        await client.stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert service.log == [("ended", 3.0)]


async def test_tarpc_what_a_handler_spawned_ends_with_it(autojump_clock: trio.testing.MockClock) -> None:
    """Cancelling a call reaches the tasks in its handler's nurseries, and the calls that they make in turn."""
    leaf = Lab()
    async with open_loopback(leaf) as inner:

        class Spawning(Lab):
            @method
            async def spawns(self) -> None:
                async with trio.open_nursery() as nursery:
                    for _ in range(5):
                        nursery.start_soon(inner.stub(Lab).sleep, 60)

        async with open_loopback(Spawning()) as pool:
            with trio.move_on_after(1):
                await pool.stub(Spawning).spawns()
            assert leaf.log == [("ended", 1.0)] * 5


async def test_tarpc_expiry_tells_the_other_side(autojump_clock: trio.testing.MockClock) -> None:
    """When the caller's time is over a CANCEL is sent, and not only the wait given up."""
    lab = Lab()
    async with open_loopback(lab) as pool:
        with pytest.raises(trio.TooSlowError), trio.fail_after(1):
            await pool.stub(Lab).sleep(60)
        assert lab.log == [("ended", 1.0)]  # Without CANCEL it would be the server's timer, later.


async def test_tarpc_there_is_a_drain(autojump_clock: trio.testing.MockClock) -> None:
    """What outlasts the grace is stopped and told; `drain` returns with nothing left."""
    lab, listener = Lab(), MemoryListener()
    async with (
        open_server(lab, listener) as server,
        open_pool(listener.connect) as pool,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(_fails, RemoteCancelled, partial(pool.stub(Lab).sleep, 60))
        await trio.sleep(1)
        await server.drain(grace=2)
        assert (lab.log, server.statistics().connections) == ([("ended", 3.0)], 0)


async def test_tractor_a_slow_consumer_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    """A stream whose consumer is slow pauses its producer: no item is lost, and nobody gets an error for it."""
    async with open_loopback(Lab(), limits=PoolLimits(stream_window_items=4)) as pool:
        async with pool.stub(Lab).count(30) as counting:
            received = []
            async for item in counting:
                received.append(int(item))
                await trio.sleep(5)
        assert received == list(range(30))


async def test_tractor_the_wait_for_a_cancelled_handler_is_ours_to_choose(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A clean-up of several seconds is waited for where the stub says so, and counted where it is not."""
    async with open_loopback(Lab()) as pool:
        with trio.move_on_after(1):
            await pool.stub(Lab, cancel_wait=30).sleep(60, cleanup=8)
        assert (trio.current_time(), pool.statistics().orphans) == (9, 0)


async def test_tractor_plain_calls_are_cancelled_too(autojump_clock: trio.testing.MockClock) -> None:
    """Every shape of call sends its cancellation; there is no form that forgets to."""
    lab = Lab()
    async with open_loopback(lab) as pool:
        stub = pool.stub(Lab)

        async def consume(stream: Any) -> None:
            async with stream as items:
                async for _ in items:
                    await trio.sleep_forever()

        for call in (
            partial(stub.sleep, 60),
            partial(pool.call, "Lab.sleep", 60),
            lambda: consume(stub.count()),
            lambda: consume(pool.stream("Lab.count")),
        ):
            lab.log.clear()
            with trio.move_on_after(1):
                await call()
            assert lab.words[-1] in ("ended", "cleaned")
            assert pool.statistics().in_flight == 0


async def test_rpyc_a_disconnect_completes_what_was_pending(autojump_clock: trio.testing.MockClock) -> None:
    """Pending calls are completed with an error, in both directions."""
    client_side, listener = Lab(), MemoryListener()

    class Ringing(Lab):
        outcome: BaseException | None = None

        @method
        async def ring(self) -> None:
            try:
                await current_call().peer.stub(Lab).sleep(60)
            except BaseException as exc:
                type(self).outcome = exc
                raise

    async with open_server(Ringing(), listener):
        async with open_pool(listener.connect, services=client_side) as pool, trio.open_nursery() as nursery:
            nursery.start_soon(_fails, ConnectionLost, pool.stub(Ringing).ring)
            await trio.sleep(1)
            listener.connections[0].close()  # type: ignore[attr-defined]
    assert isinstance(Ringing.outcome, ConnectionLost | trio.Cancelled)
    assert client_side.log == [("ended", 1.0)]


async def test_rpyc_and_pyro5_a_timeout_stops_the_work_and_keeps_the_connection(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A timeout ends the remote call, costs no connection, and the next call gets its own answer."""
    lab = Lab()
    async with open_loopback(lab) as pool:
        for number in range(20):
            with trio.move_on_after(1):
                await pool.stub(Lab).sleep(60)
            assert await pool.stub(Lab).echo(number) == number
        assert (lab.running, pool.statistics().connects) == (0, 1)


async def test_pyro5_a_connection_costs_no_thread() -> None:
    """Many connections are tasks, not threads."""
    before = threading.active_count()
    async with open_server(Lab(), "tcp://127.0.0.1:0") as server:
        limits = PoolLimits(min_connections=20, max_connections=20)
        async with open_pool(server.addresses[0], limits=limits) as pool:
            await pool.wait_connected(20)
            assert threading.active_count() <= before + 1  # Trio keeps one that looked up the address.


async def test_zerorpc_a_busy_handler_does_not_look_dead(autojump_clock: trio.testing.MockClock) -> None:
    """Handlers that take long, or hold the loop for longer than the heartbeat, cost no connection."""
    lab = Lab()
    lab.hook = lambda: autojump_clock.jump(60)
    heartbeat = Heartbeat(1, 1)
    async with open_loopback(lab, heartbeat=heartbeat, server_heartbeat=heartbeat) as pool:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.stub(Lab).sleep, 200)
            for _ in range(5):
                await pool.stub(Lab).run_hook()
                await trio.sleep(0.5)
        assert (pool.statistics().connects, pool.statistics().evicted) == (1, 0)


async def test_httpcore_a_cancelled_caller_orphans_no_dial_and_no_slot(autojump_clock: trio.testing.MockClock) -> None:
    """A caller that is cancelled while its connection is being made leaves pool and server as they were."""
    listener = MemoryListener()

    async def slow_dial() -> trio.abc.Stream:
        await trio.sleep(2)
        return await listener.connect()

    limits = PoolLimits(min_connections=0, max_connections=1, max_in_flight=1)
    async with open_server(Lab(), listener), open_pool(slow_dial, limits=limits) as pool:
        for _ in range(5):
            with trio.move_on_after(1):
                await pool.stub(Lab).echo(1)
        assert await pool.stub(Lab).echo(2) == 2
        stats = pool.statistics()
        assert (stats.connects, stats.connections, stats.in_flight, stats.waiting) == (1, 1, 0, 0)


async def test_httpcore_the_idle_limit_counts_idle_connections(autojump_clock: trio.testing.MockClock) -> None:
    """What is idle for too long is closed, down to the minimum; what is busy is not, whatever their number."""
    limits = PoolLimits(min_connections=1, max_connections=3, max_in_flight=1, idle_timeout=10)
    async with open_loopback(Lab(), limits=limits) as pool:
        async with trio.open_nursery() as nursery:
            for seconds in (1, 1, 100):
                nursery.start_soon(pool.stub(Lab).sleep, seconds)
            await trio.sleep(50)
            stats = pool.statistics()
            assert (stats.connections, stats.busy) == (1, 1)
        await trio.sleep(50)
        assert (pool.statistics().connections, pool.statistics().lost) == (1, 0)


async def test_trio_websocket_pings_are_answered_behind_a_full_queue(autojump_clock: trio.testing.MockClock) -> None:
    """A consumer that takes nothing does not keep the reader from answering pings and from hearing of the end."""
    lab, heartbeat = Lab(), Heartbeat(1, 1)
    async with open_loopback(lab, heartbeat=heartbeat, server_heartbeat=heartbeat, capacity=2000) as pool:
        async with pool.stub(Lab).count(pad=1000):
            await trio.sleep(100)
            assert (pool.statistics().connects, pool.statistics().evicted) == (1, 0)


async def test_a_frozen_peer_is_found_by_every_kind_of_waiting(autojump_clock: trio.testing.MockClock) -> None:
    """Calls, streams and iterables that wait for a stopped peer end within heartbeat time."""
    freeze = Freeze()
    async with open_loopback(
        Lab(),
        heartbeat=Heartbeat(2, 1),
        server_limits=ServerLimits(stream_window_items=5),
        wrap=lambda stream: FaultyStream(stream, freeze),
    ) as pool:

        async def consume() -> None:
            async with pool.stub(Lab).doubled(never()) as doubled:
                await doubled.receive()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(_fails, ConnectionLost, partial(pool.stub(Lab).sleep, 60))
            nursery.start_soon(_fails, ConnectionLost, partial(pool.stub(Lab).total, never()))
            nursery.start_soon(_fails, ConnectionLost, consume)
            await trio.sleep(1)
            freeze.freeze()
        assert trio.current_time() <= 4
        freeze.thaw()
