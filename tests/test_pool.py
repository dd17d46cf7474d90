"""What a pool does with its connections and its callers, at exact seconds of a virtual clock."""

from __future__ import annotations

import gc
import random
import signal
import tracemalloc
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

import trio_rpc
from tests.pool_world import NO_JITTER, QUIET, Desk, World, open_world, refused
from tests.scripted import ScriptedPeer, ScriptedServer, greet_and_serve, watchdog
from trio_rpc import (
    Backoff,
    ConnectError,
    ConnectionLost,
    PeerUnresponsive,
    PoolClosed,
    PoolExhausted,
    PoolLimits,
    PoolTimeout,
    RpcError,
    method,
    wire,
)
from trio_rpc.testing import Drop, FaultyStream, Freeze, MemoryListener, memory_pipe, no_leaks, open_loopback

# -- opening and growing -----------------------------------------------------------------------------------------------


async def test_opening_returns_at_once_and_fills_in_the_background(autojump_clock: MockClock) -> None:
    """The minimum is dialled in parallel, behind the caller's back."""
    async with open_world(2.0, min_connections=3) as world:
        assert trio.current_time() == 0
        assert (world.stats.connections, world.stats.dialling, world.stats.connects) == (0, 3, 0)
        await world.pool.wait_connected(3)
        assert trio.current_time() == 2
        assert world.dialler.at == [0, 0, 0]
        assert (world.stats.connections, world.stats.dialling, world.stats.connects) == (3, 0, 3)
        assert world.stats.connect_seconds == 6


async def test_growth_is_one_connection_at_a_time(autojump_clock: MockClock) -> None:
    """psycopg_pool's timetable: 2 of 4 connections at the start, 0.1 s to connect, 0.25 s for each of 8 callers."""
    ended = []

    async def caller(world: World) -> None:
        await world.stub.hold(0.25)
        ended.append(round(trio.current_time() - began, 3))

    async with open_world(0.1, min_connections=2, max_connections=4, max_in_flight=1) as world:
        await world.pool.wait_connected(2)
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(caller, world)
        assert world.desk.peak == 4
    assert sorted(ended) == [0.25, 0.25, 0.35, 0.45, 0.5, 0.5, 0.6, 0.7]


async def test_no_growth_while_there_is_room(autojump_clock: MockClock) -> None:
    """A connection carries `max_in_flight` calls before another one is dialled."""
    async with open_world(0.1, max_connections=4, max_in_flight=10) as world:
        await world.pool.wait_connected()
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(world.stub.hold, 5)
            await trio.sleep(1)
            assert (world.stats.in_flight, world.stats.spare, world.stats.connects) == (10, 0, 1)
            nursery.start_soon(world.stub.hold, 5)
            await trio.sleep(1)
            assert (world.stats.in_flight, world.stats.spare, world.stats.connects) == (11, 9, 2)


async def test_a_short_burst_does_not_open_a_connection_for_each(autojump_clock: MockClock) -> None:
    """HikariCP's spike: 0.15 s to connect, 2 ms to use, 50 callers at once, 5 connections: at most one more."""
    async with open_world(0.15, min_connections=5, max_connections=50, max_in_flight=1) as world:
        await world.pool.wait_connected(5)
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(world.stub.hold, 0.002)
        await trio.sleep(1)
        assert world.stats.connects <= 6


async def test_a_pool_without_a_minimum_dials_for_the_first_caller(autojump_clock: MockClock) -> None:
    """And for nobody before."""
    async with open_world(1.0, min_connections=0) as world:
        await trio.sleep(5)
        assert world.stats.connects == 0
        assert await world.stub.echo(1) == 1
        assert trio.current_time() == 6


async def test_never_more_connections_than_the_maximum(autojump_clock: MockClock) -> None:
    """However many wait; and with one call at a time on each, a connection is a caller's own while it lasts."""
    async with open_world(0.1, max_connections=3, max_in_flight=1) as world:
        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(world.stub.hold, 1)
            await trio.sleep(0.95)
            assert (world.stats.connections, world.stats.busy, world.stats.idle) == (3, 3, 0)
            assert (world.stats.in_flight, world.stats.waiting, world.stats.dialling) == (3, 27, 0)
        assert (world.desk.peak, world.stats.connects) == (3, 3)


async def test_calls_go_where_the_fewest_are_in_flight(autojump_clock: MockClock) -> None:
    """Two connections share four calls evenly."""
    async with open_world(min_connections=2) as world:
        await world.pool.wait_connected(2)
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(world.stub.hold, 1)
            await trio.sleep(0.5)
            assert (world.stats.busy, world.stats.idle) == (2, 0)


# -- waiting -----------------------------------------------------------------------------------------------------------


async def test_callers_are_served_in_the_order_they_came(autojump_clock: MockClock) -> None:
    """First come, first served, newcomers included."""
    async with open_world(max_connections=1, max_in_flight=1) as world:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(world.stub.echo, number)
                while world.stats.requests <= number:
                    await trio.lowlevel.checkpoint()
        assert world.desk.order == list(range(20))


async def test_a_full_line_refuses_at_once(autojump_clock: MockClock) -> None:
    """One more than `max_waiting` is told so, and surely did not run."""
    async with open_world(max_connections=1, max_in_flight=1, max_waiting=2) as world:
        await world.pool.wait_connected()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(world.stub.hold, 1)
            await trio.sleep(0.5)
            with pytest.raises(PoolExhausted, match="max_waiting") as caught:
                await world.stub.echo(1)
            with pytest.raises(PoolExhausted):
                async with world.stub.count(3):
                    pass
            assert trio.current_time() == 0.5
            assert not caught.value.may_have_run
            assert (world.stats.exhausted, world.stats.waiting, world.stats.errors) == (2, 2, 2)


async def test_waiting_for_a_place_has_an_end(autojump_clock: MockClock) -> None:
    """After `acquire_timeout` the waiter leaves the line, is told that all places are taken, and is not served later."""
    async with open_world(max_connections=1, max_in_flight=1, acquire_timeout=3) as world:
        await world.pool.wait_connected()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.stub.hold, 5)
            await trio.sleep(1)
            with pytest.raises(PoolTimeout, match=r"within 3 s .*all places of 1 connections") as caught:
                await world.stub.echo("late")
            assert trio.current_time() == 4
            assert caught.value.__cause__ is None
            assert not caught.value.may_have_run
            assert (world.stats.timeouts, world.stats.waiting, world.stats.queued) == (1, 0, 1)
        assert world.desk.order == []


async def test_a_waiters_timeout_tells_the_last_dial_error(autojump_clock: MockClock) -> None:
    """Whoever finds no connection learns why there is none."""
    async with watchdog(), trio_rpc.open_pool(refused, limits=PoolLimits(acquire_timeout=4)) as pool:
        with pytest.raises(PoolTimeout, match=r"within 4 s .*connection refused") as caught:
            await pool.call("Desk.echo", 1)
        assert trio.current_time() == 4
        assert isinstance(caught.value.__cause__, ConnectError)
        with pytest.raises(PoolTimeout) as streamed:
            async with pool.stream("Desk.count", 1) as numbers:
                await numbers.receive()
        assert isinstance(streamed.value.__cause__, ConnectError)
        assert trio.current_time() == 8
        stats = pool.statistics()
        assert (stats.timeouts, stats.errors, stats.requests) == (2, 2, 2)


async def test_wait_for_ready_waits_as_long_as_it_takes(autojump_clock: MockClock) -> None:
    """Longer than `acquire_timeout`, past errors that waiting cannot help, but not past the caller's own deadline."""
    errors = [ConnectError("no", permanent=True), *[ConnectError("no")] * 6]
    async with open_world(0.0, *errors, acquire_timeout=1) as world:
        patient = world.pool.stub(Desk, wait_for_ready=True)
        with trio.move_on_after(2) as scope:
            await patient.echo(1)
        assert scope.cancelled_caught
        assert await patient.echo(2) == 2
        assert trio.current_time() == world.dialler.at[-1] > 20


async def test_waiting_and_usage_are_counted(autojump_clock: MockClock) -> None:
    """`queued` and `wait_seconds` tell how much the calls waited, `usage_seconds` how long they held their places."""
    async with open_world(max_connections=1, max_in_flight=1) as world:
        await world.pool.wait_connected()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(world.stub.hold, 2)
        assert (world.stats.queued, world.stats.wait_seconds, world.stats.usage_seconds) == (2, 2 + 4, 3 * 2)


# -- failing dials -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("takes", [0.0, 0.9])
async def test_dials_back_off_from_start_to_start(autojump_clock: MockClock, takes: float) -> None:
    """N16: 1 s, then 1.6 times longer each time; the time a dial takes is not added."""
    async with open_world(takes, *[ConnectError("no")] * 5) as world:
        await trio.sleep(11)
        assert world.dialler.at == pytest.approx([0, 1, 2.6, 5.16, 9.256])
        assert (world.stats.connect_errors, world.stats.connects, world.stats.dialling) == (5, 5, 1)


async def test_the_back_off_is_jittered_and_bounded(autojump_clock: MockClock) -> None:
    """N16: by the pool's own random numbers: 20 % earlier or later."""
    backoff = Backoff(initial=1, factor=10, maximum=10, jitter=0.2)
    async with open_world(0.0, *[ConnectError("no")] * 4, min_connections=0, connect_backoff=backoff) as world:
        draws = deque([0.0, 1.0, 0.5, 0.25])
        world.pool.rng = lambda: draws.popleft() if draws else 0.5
        assert await world.pool.stub(Desk, wait_for_ready=True).echo(1) == 1
        assert world.dialler.at == pytest.approx([0, 0.8, 0.8 + 12, 0.8 + 12 + 10, 0.8 + 12 + 10 + 9])


async def test_a_hello_resets_the_back_off(autojump_clock: MockClock) -> None:
    """After a success the first delay is the shortest again, and growth does not wait for one."""
    async with open_world(0.0, *[ConnectError("no")] * 3, max_in_flight=1) as world:
        await world.pool.wait_connected()
        opened_at = trio.current_time()
        assert opened_at == pytest.approx(5.16)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.stub.hold, 60)
            nursery.start_soon(world.stub.hold, 60)
            await trio.sleep(0.5)
            assert world.stats.connections == 2
            await trio.sleep(9.5)
            world.dialler.failing = ConnectError("no")
            nursery.start_soon(world.stub.hold, 1)
            await trio.sleep(1.5)
            assert world.dialler.at[5:] == pytest.approx([opened_at + 10, opened_at + 11])
            nursery.cancel_scope.cancel()


async def test_parallel_failures_count_as_one(autojump_clock: MockClock) -> None:
    """A server that is down is asked by one dial at a time, however many connections the pool wants."""
    async with open_world(0.0, *[ConnectError("no")] * 5, min_connections=3) as world:
        await world.pool.wait_connected(3)
        assert world.dialler.at == pytest.approx([0, 0, 0, 1, 2.6, 5.16, 5.16, 5.16])


async def test_connect_timeout_covers_the_hello(autojump_clock: MockClock) -> None:
    """A listener that accepts and says nothing is no connection."""
    streams = []

    async def silent() -> trio.abc.Stream:
        ours, theirs = memory_pipe()
        streams.append(theirs)
        return ours

    async with watchdog(), trio_rpc.open_pool(silent, limits=PoolLimits(connect_timeout=5)) as pool:
        with pytest.raises(PoolTimeout) as caught:
            await pool.call("Desk.echo", 1)
        assert trio.current_time() == 10
        assert "did not answer within 5 s (connect_timeout)" in str(caught.value.__cause__)
        assert await streams[0].receive_some()
        assert await streams[0].receive_some() == b"", "the failed dial's stream is closed"


@pytest.mark.parametrize("error", [OSError("no route"), ValueError("a bug"), trio.BrokenResourceError()])
async def test_no_error_of_a_dial_function_ends_the_pool(autojump_clock: MockClock, error: Exception) -> None:
    """P13: whatever it raises is a failed dial, and the next one may succeed."""
    async with open_world(0.0, error) as world:
        with pytest.raises(ConnectError) as caught:
            await world.pool.connect()
        assert caught.value.__cause__ is not None
        assert await world.stub.echo(1) == 1
        assert (trio.current_time(), world.stats.connect_errors) == (1, 1)


async def test_credentials_are_asked_for_at_each_dial(autojump_clock: MockClock) -> None:
    """P13: so that they may be rotated; their failure is a failed dial."""
    answers: deque[Any] = deque([RuntimeError("the vault is locked"), "token"])

    async def credentials() -> Any:
        answer = answers.popleft()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with open_world(options={"credentials": credentials}) as world:
        assert await world.stub.echo(1) == 1
        assert world.stats.connect_errors == 1
        assert not answers


@pytest.mark.parametrize("least", [0, 1])
async def test_a_permanent_failure_is_told_at_once(autojump_clock: MockClock, least: int) -> None:
    """To those who wait and to those who come meanwhile; the next dial, at its time, may end it."""
    failure = ConnectError("no codec in common", permanent=True)
    async with open_world(0.5, failure, min_connections=least) as world:
        for moment in (0.5, 0.75):
            with pytest.raises(ConnectError, match="no codec in common") as caught:
                await world.stub.echo(1)
            assert caught.value.permanent
            assert caught.value is not failure
            assert trio.current_time() == moment
            await trio.sleep(0.25)
        assert await world.stub.echo(1) == 1
        assert trio.current_time() == 1.5


async def test_a_stranger_is_a_permanent_failure(autojump_clock: MockClock) -> None:
    """W07, N21: a peer that speaks another protocol is named, at once."""

    async def http(peer: ScriptedPeer) -> None:
        await peer.stream.receive_some()
        await peer.stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with watchdog(), trio.open_nursery() as nursery:
        async with trio_rpc.open_pool(ScriptedServer(nursery, http).connect) as pool:
            with pytest.raises(ConnectError, match="it speaks HTTP"):
                await pool.call("Desk.echo", 1)
            assert trio.current_time() == 0


# -- losing and replacing ----------------------------------------------------------------------------------------------


async def test_a_lost_connection_is_replaced_at_once(autojump_clock: MockClock) -> None:
    """The minimum is restored, the loss counted, the call in flight told."""
    async with open_world() as world:
        await world.pool.wait_connected()
        async with trio.open_nursery() as nursery:

            async def victim() -> None:
                with pytest.raises(ConnectionLost) as caught:
                    await world.stub.hold(60)
                assert caught.value.may_have_run
                assert trio.current_time() == 20

            nursery.start_soon(victim)
            await trio.sleep(20)
            await world.dialler.listener.connections[0].aclose()
        await world.pool.wait_connected()
        assert trio.current_time() == 20
        assert (world.stats.lost, world.stats.connections, world.stats.errors) == (1, 1, 1)


async def test_a_peer_that_hangs_up_on_everyone_is_not_dialled_in_a_circle(autojump_clock: MockClock) -> None:
    """A HELLO followed by the end of the connection keeps the back-off's distance."""

    async def hang_up(peer: ScriptedPeer) -> None:
        await peer.greet()

    async with watchdog(), trio.open_nursery() as nursery:
        server = ScriptedServer(nursery, hang_up)
        async with trio_rpc.open_pool(server.connect, limits=PoolLimits(connect_backoff=NO_JITTER)):
            await trio.sleep(5.5)
        assert server.dialled_at == [0, 1, 2, 3, 4, 5]


async def test_those_who_wait_move_on_to_the_next_connection(autojump_clock: MockClock) -> None:
    """S12: a connection that dies takes its own calls along, and nobody in the line."""
    results: list[Any] = []

    async def caller(world: World, number: int) -> None:
        try:
            results.append(await world.stub.hold(number))
        except ConnectionLost:
            results.append("lost")

    async with open_world(max_connections=1, max_in_flight=1) as world:
        await world.pool.wait_connected()
        async with trio.open_nursery() as nursery:
            for number in (8, 1, 2):
                nursery.start_soon(caller, world, number)
                await trio.sleep(0.5)
            await trio.sleep(2)
            await world.dialler.listener.connections[0].aclose()
        assert results == ["lost", 1, 2]
        assert (world.stats.waiting, world.stats.in_flight, world.stats.spare) == (0, 0, 1)


async def test_a_silent_peer_is_evicted(autojump_clock: MockClock) -> None:
    """Within `interval + timeout` of its last byte, with all its calls; then the pool goes on with another."""
    hole = Drop(direction="receiving")
    heartbeat = trio_rpc.Heartbeat(interval=10, timeout=5)
    async with open_world(heartbeat=heartbeat, faults=(hole,)) as world:
        assert await world.stub.echo(1) == 1
        hole.now()
        with pytest.raises(PeerUnresponsive, match=r"no sign of life for 15\.0 s") as caught:
            await world.stub.hold(60)
        assert trio.current_time() == pytest.approx(15, abs=0.01)
        assert caught.value.may_have_run
        assert (world.stats.evicted, world.stats.lost, world.stats.connections) == (1, 1, 0)


async def test_an_idle_pool_stays_alive_by_its_heartbeat(autojump_clock: MockClock) -> None:
    """An hour of silence costs a ping now and then, and no connection."""
    async with open_world(heartbeat=trio_rpc.Heartbeat(interval=10, timeout=5), max_lifetime=None) as world:
        await trio.sleep(3600)
        assert (world.stats.connects, world.stats.evicted, world.stats.connections) == (1, 0, 1)


async def test_what_goes_away_is_replaced_and_finishes(autojump_clock: MockClock) -> None:
    """S14: a draining server ends what it has accepted; new calls find another connection, unaware."""
    async with open_world(max_connections=1) as world, trio.open_nursery() as nursery:
        await world.pool.wait_connected()
        nursery.start_soon(world.stub.hold, 10)
        await trio.sleep(5)
        old, world.dialler.listener = world.server, MemoryListener()
        successor = Desk()
        async with trio_rpc.open_server(successor, world.dialler.listener, heartbeat=QUIET):
            nursery.start_soon(old.drain, 60)
            await trio.sleep(1)
            assert await world.stub.echo("new") == "new"
            assert successor.order == ["new"]
            assert (trio.current_time(), world.desk.running, world.stats.connections) == (6, 1, 2)
            await trio.sleep(5)
            assert (world.stats.closed_going_away, world.stats.connections, world.stats.lost) == (1, 1, 0)
            assert (world.desk.stopped, world.stats.errors) == (0, 0)
            await world.pool.aclose()


async def test_surplus_connections_close_when_idle(autojump_clock: MockClock) -> None:
    """At `idle_timeout` after their last call to the second, but never below the minimum."""
    async with open_world(min_connections=2, max_connections=4, max_in_flight=1, idle_timeout=100) as world:
        await world.pool.wait_connected(2)
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(world.stub.hold, 30)
        assert (trio.current_time(), world.stats.connections) == (30, 4)
        await trio.sleep(99.9)
        assert (world.stats.connections, world.stats.closed_idle) == (4, 0)
        await trio.sleep(0.2)
        assert (world.stats.connections, world.stats.closed_idle) == (2, 2)
        await trio.sleep(1000)
        assert (world.stats.connections, world.stats.connects, world.stats.lost) == (2, 4, 0)


async def test_a_busy_connection_is_not_idle(autojump_clock: MockClock) -> None:
    """A call that says nothing for longer than `idle_timeout` keeps its connection."""
    async with open_world(min_connections=0, idle_timeout=10) as world:
        assert await world.stub.hold(35) == 35
        await trio.sleep(9)
        assert world.stats.connections == 1
        await trio.sleep(2)
        assert (world.stats.connections, world.stats.closed_idle) == (0, 1)


@pytest.mark.parametrize(("draw", "age"), [(0.0, 100.0), (0.5, 97.5), (1.0, 95.0)])
async def test_old_connections_are_replaced(autojump_clock: MockClock, draw: float, age: float) -> None:
    """At `max_lifetime` less up to 5 %; an open call goes on to its end on the old one."""
    async with open_world(1.0, max_connections=1, max_lifetime=100) as world, trio.open_nursery() as nursery:
        world.pool.rng = lambda: draw
        await world.pool.wait_connected()
        await trio.sleep(age - 0.5)
        nursery.start_soon(world.stub.hold, 50)
        await trio.sleep(1)
        assert (world.stats.closed_age, world.stats.connections, world.stats.dialling) == (1, 1, 1)
        assert await world.stub.echo(1) == 1
        assert trio.current_time() == 1 + age + 1
        assert world.stats.connections == 2
        await trio.sleep(50)
        assert (world.stats.connections, world.stats.lost, world.desk.stopped) == (1, 0, 0)


# -- ending ------------------------------------------------------------------------------------------------------------


async def test_closing_ends_every_call_with_its_own_truth(autojump_clock: MockClock) -> None:
    """S13: calls in flight are cancelled and joined and may have run; those that wait did not; later ones are refused."""
    told: dict[str, PoolClosed] = {}

    async def caller(world: World, name: str) -> None:
        try:
            await world.stub.hold(60)
        except PoolClosed as exc:
            told[name] = exc

    async def consumer(world: World) -> None:
        try:
            async with world.stub.count(10**9) as numbers:
                async for _ in numbers:
                    await trio.sleep(0.5)
        except PoolClosed as exc:
            told["stream"] = exc

    async with open_world(max_connections=1, max_in_flight=2) as world:
        await world.pool.wait_connected()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(consumer, world)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(caller, world, "running")
            await trio.sleep(0.1)
            nursery.start_soon(caller, world, "waiting")
            await trio.sleep(1)
            await world.pool.aclose()
            assert trio.current_time() == pytest.approx(1.1)
        assert {name: exc.may_have_run for name, exc in told.items()} == {
            "running": True,
            "stream": True,
            "waiting": False,
        }
        assert world.desk.stopped == 1
        assert "closed" in repr(world.pool)
        for _ in range(2):
            with pytest.raises(PoolClosed):
                await world.stub.echo(1)
            with pytest.raises(PoolClosed):
                async with world.stub.count(1):
                    pass
            await world.pool.aclose()


@pytest.mark.parametrize("head_start", range(6))
async def test_what_the_closing_pool_took_back_did_not_run(autojump_clock: MockClock, head_start: int) -> None:
    """Even if the writer goes on at that very moment: a call that was withdrawn is known to have stayed here."""

    async def caller(pool: trio_rpc.Pool, name: str, told: dict[str, bool]) -> None:
        try:
            await pool.stub(Desk).echo(name)
        except PoolClosed as exc:
            told[name] = exc.may_have_run

    for _ in range(10):
        told: dict[str, bool] = {}
        stuck = Freeze(direction="sending")
        async with open_world(faults=(stuck,)) as world, trio.open_nursery() as nursery:
            await world.pool.wait_connected()
            stuck.freeze()
            for name in ("being written", "in the queue"):
                nursery.start_soon(caller, world.pool, name, told)
                await trio.sleep(1)
            stuck.thaw()
            for _ in range(head_start):
                await trio.lowlevel.checkpoint()
            await world.pool.aclose()
        assert not any(may_have_run for name, may_have_run in told.items() if name not in world.desk.order)


async def test_any_task_may_close_any_number_of_times(autojump_clock: MockClock) -> None:
    """S10: each `aclose` returns when everything is gone; `run_pool` then returns in its own nursery."""
    async with watchdog(), no_leaks():
        async with trio_rpc.open_server(Desk(), (listener := MemoryListener()), heartbeat=QUIET):
            async with trio.open_nursery() as nursery:
                pool = await nursery.start(trio_rpc.run_pool, listener.connect)
                assert await pool.stub(Desk).echo(1) == 1
                for _ in range(3):
                    nursery.start_soon(pool.aclose)
            assert pool.statistics().connections == 0


async def test_cancelling_run_pool_closes_it(autojump_clock: MockClock) -> None:
    """Its calls in flight are cancelled and joined first."""
    async with open_world() as world, trio.open_nursery() as nursery:
        pool = await nursery.start(trio_rpc.run_pool, world.dialler.dial)
        nursery.start_soon(pool.stub(Desk).hold, 60)
        await trio.sleep(1)
        assert world.desk.running == 1
        nursery.cancel_scope.cancel()
    assert (world.desk.running, world.desk.stopped, pool.statistics().connections) == (0, 1, 0)


@pytest.mark.parametrize("takes", [0.0, 3.0])
async def test_closing_while_dialling(autojump_clock: MockClock, takes: float) -> None:
    """S10: neither a dial nor a back-off under way holds a pool open, and no half-made connection is left."""
    async with no_leaks():
        async with open_world(takes, ConnectError("no")):
            await trio.sleep(0.5)
        assert trio.current_time() == 0.5


async def test_a_handler_that_will_not_end_does_not_hold_the_pool_open(autojump_clock: MockClock) -> None:
    """Its call is given up after `cancel_wait`; then the pool is gone."""

    class Stubborn:
        @method
        async def sulk(self) -> None:
            with trio.CancelScope(shield=True):
                await trio.sleep(60)

    async with watchdog(), trio_rpc.open_server(Stubborn(), (listener := MemoryListener()), heartbeat=QUIET):
        async with trio_rpc.open_pool(listener.connect, heartbeat=QUIET) as pool, trio.open_nursery() as nursery:

            async def caller() -> None:
                with pytest.raises(PoolClosed) as caught:
                    await pool.stub(Stubborn).sulk()
                assert caught.value.may_have_run

            nursery.start_soon(caller)
            await trio.sleep(1)
            await pool.aclose()
            assert trio.current_time() == 2
            assert pool.statistics().orphans == 0


async def test_the_bodys_own_exception_comes_out_bare(autojump_clock: MockClock) -> None:
    """The same object, in no group."""
    error = KeyError("mine")
    with pytest.raises(KeyError) as caught:
        async with open_loopback(Desk()) as pool:
            await pool.stub(Desk).echo(1)
            raise error
    assert caught.value is error


async def test_a_stream_between_two_attempts_learns_that_the_pool_closes(autojump_clock: MockClock) -> None:
    """There is no call to cancel at that moment, but somebody waits for items."""

    class Feed:
        @method(idempotent=True)
        def items(self) -> AsyncGenerator[int, None]:
            raise NotImplementedError

    async def hang_up(peer: ScriptedPeer) -> None:
        await peer.greet()
        await peer.event()

    async with watchdog(), trio.open_nursery() as nursery:
        retry = trio_rpc.RetryPolicy(backoff=Backoff(initial=5, maximum=5))
        async with trio_rpc.open_pool(ScriptedServer(nursery, hang_up).connect, retry=retry) as pool:
            with pytest.raises(PoolClosed) as caught:
                async with pool.stub(Feed).items() as items:
                    nursery.start_soon(_later, 1.0, pool.aclose)
                    await items.receive()
            assert caught.value.may_have_run
            assert trio.current_time() == 1


async def _later(seconds: float, function: Any) -> None:
    await trio.sleep(seconds)
    await function()


# -- what must not be noticed ------------------------------------------------------------------------------------------


async def test_a_dial_runs_in_a_clean_context(autojump_clock: MockClock) -> None:
    """What the first caller happened to have set is nothing that a connection for all may keep."""
    tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
    seen = []

    async with open_world(min_connections=0) as world:
        dial = world.dialler.dial

        async def spy() -> trio.abc.Stream:
            seen.append(tenant.get())
            return await dial()

        async with trio_rpc.open_pool(spy, limits=PoolLimits(min_connections=0)) as pool:
            tenant.set("somebody")
            assert await pool.stub(Desk).echo(1) == 1
    assert seen == ["nobody"]


async def test_waiters_cancelled_at_the_hand_over_lose_no_place() -> None:
    """S11, Rule 4: 2,000 cancellations around the moment when a place is handed over: the pool keeps its full capacity."""
    rng = random.Random(15)

    async def caller(pool: trio_rpc.Pool, scope: trio.CancelScope) -> None:
        with scope:
            await pool.stub(Desk).echo(1)

    limits = PoolLimits(max_connections=2, min_connections=2, max_in_flight=1)
    async with open_loopback(Desk(), limits=limits) as pool:
        await pool.wait_connected(2)
        for _ in range(200):
            scopes = [trio.CancelScope() for _ in range(14)]
            async with trio.open_nursery() as nursery:
                for scope in scopes:
                    nursery.start_soon(caller, pool, scope)
                for scope in rng.sample(scopes, 10):
                    for _ in range(rng.randrange(4)):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
            stats = pool.statistics()
            assert (stats.in_flight, stats.waiting, stats.spare, stats.connects) == (0, 0, 2, 2)


async def test_a_waiter_cancelled_behind_the_hand_over_gives_its_place_on(autojump_clock: MockClock) -> None:
    """S11, Rule 4: the place was given and the cancellation came in the same tick: the next in line gets it."""
    async with open_world(max_connections=1, max_in_flight=1) as world, trio.open_nursery() as nursery:
        await world.pool.wait_connected()
        impatient = trio.CancelScope()

        async def first() -> None:
            await world.stub.hold(1)
            impatient.cancel()

        async def second() -> None:
            with impatient:
                await world.stub.hold(60)

        nursery.start_soon(first)
        await trio.sleep(0.1)
        nursery.start_soon(second)
        await trio.sleep(0.1)
        assert await world.stub.echo("third") == "third"
        assert trio.current_time() == pytest.approx(1)
        assert (world.stats.in_flight, world.stats.spare) == (0, 1)


async def test_many_may_wait_for_the_first_connection(autojump_clock: MockClock) -> None:
    """All of them are woken, by success and by failure."""
    async with open_world(1.0, ConnectError("no"), min_connections=0) as world:
        outcomes: list[Any] = []

        async def wait() -> None:
            try:
                await world.pool.connect()
                outcomes.append(trio.current_time())
            except ConnectError as exc:
                outcomes.append(exc.message)

        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(wait)
        assert outcomes == ["no"] * 3 + [2.0] * 3
        assert world.dialler.at == [0, 1]


# -- one given stream --------------------------------------------------------------------------------------------------


async def test_one_given_stream_is_a_pool_of_one(autojump_clock: MockClock) -> None:
    """Ready when the block begins; once it has ended, every call fails at once, patient ones included."""
    async with watchdog(), trio.open_nursery() as nursery:
        server = ScriptedServer(nursery, greet_and_serve)
        stream = await server.connect()
        async with trio_rpc.open_connection(stream) as pool:
            assert pool.statistics().connections == 1
            assert await pool.call("Desk.echo", 1) == "Desk.echo"
            await trio.sleep(30)
            await stream.aclose()
            await trio.testing.wait_all_tasks_blocked()
            for ready in (None, True):
                with pytest.raises(ConnectError, match="has ended") as caught:
                    await pool.stub(Desk, wait_for_ready=ready).echo(1)
                assert not caught.value.may_have_run
                assert trio.current_time() == 30


async def test_a_stream_without_hello_is_told_when_the_block_begins(autojump_clock: MockClock) -> None:
    """As a ConnectError, and the stream is closed."""

    async def hang_up(_peer: ScriptedPeer) -> None:
        pass

    async with watchdog(), trio.open_nursery() as nursery:
        stream = await ScriptedServer(nursery, hang_up).connect()
        with pytest.raises(ConnectError, match=r"before its HELLO"):
            async with trio_rpc.open_connection(stream):
                pass
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"x")


# -- looking at it -----------------------------------------------------------------------------------------------------


async def test_statistics_of_a_short_life(autojump_clock: MockClock) -> None:
    """Every field, after one of each."""
    async with open_world(2.0, ConnectError("no"), max_in_flight=4, max_connections=2) as world:
        await world.stub.echo(1)
        with pytest.raises(trio_rpc.Unimplemented):
            await world.pool.call("Desk.nothing")
        with trio.move_on_after(1):
            await world.stub.hold(60)
        await trio.sleep(1)
        assert attrs.asdict(world.stats) == {
            "endpoints": 1,
            "connections": 1,
            "idle": 1,
            "busy": 0,
            "dialling": 0,
            "min_connections": 1,
            "max_connections": 2,
            "in_flight": 0,
            "spare": 4,
            "waiting": 0,
            "orphans": 0,
            "serving": 0,
            "requests": 3,
            "queued": 1,
            "wait_seconds": 4.0,
            "usage_seconds": 1.0,
            "errors": 1,
            "retries": 0,
            "hedges": 0,
            "throttled": 0,
            "timeouts": 0,
            "exhausted": 0,
            "late_replies": 0,
            "connects": 2,
            "connect_seconds": 2.0,
            "connect_errors": 1,
            "lost": 0,
            "evicted": 0,
            "closed_idle": 0,
            "closed_age": 0,
            "closed_going_away": 0,
        }


async def test_orphans_and_late_replies_are_counted(autojump_clock: MockClock) -> None:
    """S05, Rule 3: a call given up after `cancel_wait` keeps its place until its handler's end is told."""

    async def stubborn(peer: ScriptedPeer) -> None:
        await peer.greet()
        request = await peer.expect(wire.RequestReceived)
        await peer.expect(wire.CancelReceived)
        await trio.sleep(10)
        await peer.answer(request, "late")
        await peer.answer(request, "later")
        await peer.serve()

    async with watchdog(), trio.open_nursery() as nursery:
        async with trio_rpc.open_pool(ScriptedServer(nursery, stubborn).connect, heartbeat=QUIET) as pool:
            with trio.move_on_after(1):
                await pool.call("Desk.hold")
            assert trio.current_time() == 2
            stats = pool.statistics()
            assert (stats.orphans, stats.in_flight, stats.busy, stats.late_replies) == (1, 1, 1, 0)
            await trio.sleep(10)
            stats = pool.statistics()
            assert (stats.orphans, stats.in_flight, stats.idle, stats.late_replies) == (0, 0, 1, 1)


async def test_calls_of_the_server_are_counted_as_served(autojump_clock: MockClock) -> None:
    """A pool with services of its own tells how many run."""

    class Caller:
        @method
        async def call_back(self) -> float:
            seconds: float = await trio_rpc.current_call().peer.stub(Desk).hold(5)
            return seconds

    async with open_loopback(Caller(), callbacks=Desk()) as pool, trio.open_nursery() as nursery:
        nursery.start_soon(pool.stub(Caller).call_back)
        await trio.sleep(1)
        assert pool.statistics().serving == 1
        await trio.sleep(5)
        assert pool.statistics().serving == 0


async def test_the_repr_tells_the_state(autojump_clock: MockClock) -> None:
    """A pool in a debugger or a log line says what it is doing."""
    async with open_world(1.0, max_connections=3, max_in_flight=1) as world:
        name = "Dialler.dial"
        assert repr(world.pool) == (
            f"<Pool {name} (open): 0 busy, 0 idle, 1 dialling of 3; 0 calls in flight, 0 waiting>"
        )
        await world.pool.wait_connected()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.stub.hold, 0.5)
            nursery.start_soon(world.stub.hold, 0.5)
            await trio.sleep(0.25)
            assert repr(world.pool) == (
                f"<Pool {name} (open): 1 busy, 0 idle, 1 dialling of 3; 1 calls in flight, 1 waiting>"
            )
        await trio.sleep(1)
        assert repr(world.pool) == (
            f"<Pool {name} (open): 0 busy, 2 idle, 0 dialling of 3; 0 calls in flight, 0 waiting>"
        )
        await world.pool.aclose()
        assert repr(world.pool) == (
            f"<Pool {name} (closed): 0 busy, 0 idle, 0 dialling of 3; 0 calls in flight, 0 waiting>"
        )


# -- what others do to it ----------------------------------------------------------------------------------------------


async def test_a_handler_of_its_own_may_close_the_pool(autojump_clock: MockClock) -> None:
    """The closing ends that handler, and does not wait for what waits for it."""

    class Switch:
        @method
        async def off(self) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.pool.aclose)

        pool: trio_rpc.Pool

    class Operator:
        @method
        async def switch_off(self) -> None:
            await trio_rpc.current_call().peer.stub(Switch).off()

    switch = Switch()
    async with open_loopback(Operator(), callbacks=switch) as switch.pool:
        with trio.fail_after(5), pytest.raises(PoolClosed):
            await switch.pool.stub(Operator).switch_off()
        await switch.pool.aclose()
    assert trio.current_time() == 0


async def test_a_stub_says_whose_it_is(autojump_clock: MockClock) -> None:
    """Its repr names the contract, and shows the pool behind it."""
    async with open_loopback(Desk()) as pool:
        await pool.connect()
        assert repr(pool.stub(Desk)) == f"<stub of Desk over {pool!r}>"


class Sticky(FaultyStream):
    """Fails while it closes."""

    async def aclose(self) -> None:
        await super().aclose()
        raise OSError("it would not close")


async def test_a_stream_that_fails_while_closing_is_logged(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A stream of the user's may do so; neither the pool nor the server ends by it."""
    limits = PoolLimits(max_lifetime=10)
    async with watchdog(), no_leaks(), open_loopback(Desk(), limits=limits, wrap=Sticky) as pool:
        for value in range(3):
            assert await pool.stub(Desk).echo(value) == value
            await trio.sleep(20)
    assert pool.statistics().closed_age > 1
    assert {record.message for record in caplog.records} == {
        "the stream to MemoryListener.connect failed while closing"
    }


async def test_what_has_found_a_place_is_not_kept(autojump_clock: MockClock) -> None:
    """A waiter's timeout, which is an hour ahead, holds neither the call nor its payload until then."""
    async with open_world(max_connections=1, max_in_flight=1, acquire_timeout=3600) as world:
        await world.stub.echo(0)
        tracemalloc.start()
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(world.stub.echo, bytes(1_000_000))
            world.desk.order.clear()
            gc.collect()
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert world.stats.queued == 10  # The first one waited for the connection.
        assert kept < 1_000_000


async def test_those_outside_learn_that_an_interrupt_has_ended_the_pool(autojump_clock: MockClock) -> None:
    """KeyboardInterrupt in the user's own dial function: tasks beyond the pool's block do not wait for ever."""
    told: list[Exception] = []

    async def interrupted() -> trio.abc.Stream:
        await trio.sleep(1)
        raise KeyboardInterrupt

    async def wait(what: Callable[[], Awaitable[object]]) -> None:
        try:
            await what()
        except RpcError as exc:
            told.append(exc)

    async with watchdog(), trio.open_nursery() as nursery:
        with pytest.raises(BaseExceptionGroup) as caught:
            async with trio_rpc.open_pool(interrupted, limits=PoolLimits(acquire_timeout=None)) as pool:
                nursery.start_soon(wait, partial(pool.stub(Desk).echo, 1))
                nursery.start_soon(wait, pool.wait_connected)
                await trio.sleep_forever()
    assert caught.group_contains(KeyboardInterrupt)
    assert [type(exc) for exc in told] == [PoolClosed, PoolClosed]


def test_ctrl_c_reaches_the_callers_and_not_the_writer() -> None:
    """An interrupt that arrives in the middle of a write is the main task's: the connection's state stays whole."""
    caught = []

    class Interrupted(FaultyStream):
        sends = 0

        async def send_all(self, data: Any) -> None:
            self.sends += 1
            if self.sends == 2:  # Behind the HELLO.
                signal.raise_signal(signal.SIGINT)
            await super().send_all(data)

    async def main() -> None:
        listener = MemoryListener()
        async with (
            trio_rpc.open_server(Desk(), listener),
            trio_rpc.open_pool(lambda: _wrapped(listener, Interrupted), heartbeat=QUIET) as pool,
        ):
            try:
                await pool.stub(Desk).hold(60)
            except BaseException as exc:
                caught.append(type(exc))
                raise

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert caught == [KeyboardInterrupt]


async def _wrapped(listener: MemoryListener, kind: type[FaultyStream]) -> trio.abc.Stream:
    return kind(await listener.connect())
