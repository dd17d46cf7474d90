"""The pool list: fifty-one behaviours of connection pools, with the mistakes that others make, and ours for each.

A case carries its number. `np` is generic-pool, `pp` psycopg_pool, `hk` HikariCP, `sql` Go's database/sql, `sa`
SQLAlchemy. What does not apply to a pool whose connections are shared and not lent says why, in NOT_OURS.
"""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

import trio_rpc
from tests.pool_world import NO_JITTER, QUIET, Desk, World, open_world, refused
from trio_rpc import (
    ConnectError,
    ConnectionLost,
    Heartbeat,
    PoolClosed,
    PoolExhausted,
    PoolLimits,
    PoolTimeout,
    ServerLimits,
)
from trio_rpc.testing import FaultyStream, Freeze, cancel_at_every_checkpoint

Case = Callable[[], Awaitable[None]]
CASES: dict[int, Case] = {}

NOT_OURS = {
    18: "nothing is lent: a call never holds the connection it goes on, so it cannot give back a wrong one",
    21: "no state of one call stays on a connection for the next: there is nothing to reset",
    45: "a call's place is given back by the peer's terminal frame, and a call cannot outlive its block: no loan leaks",
    48: "Trio itself does not survive a fork: a child has to exec, and all our sockets are closed by that",
}


def item(number: int) -> Callable[[Case], Case]:
    """Say which item of the list a case is about."""

    def enter(case: Case) -> Case:
        assert number not in CASES
        CASES[number] = case
        return case

    return enter


async def several(function: Callable[[], Awaitable[Any]], times: int) -> list[float]:
    """Call side by side; when each ended, in seconds from now, in order."""
    began, ended = trio.current_time(), list[float]()

    async def one() -> None:
        await function()
        ended.append(round(trio.current_time() - began, 3))

    async with trio.open_nursery() as nursery:
        for _ in range(times):
            nursery.start_soon(one)
    return ended


async def hold_in(nursery: trio.Nursery, world: World, seconds: float, times: int = 1) -> None:
    """Let so many calls be under way."""
    for _ in range(times):
        nursery.start_soon(world.stub.hold, seconds)
    with trio.fail_after(1):
        while world.desk.running < times:  # noqa: ASYNC110 - the desk is no place for an event
            await trio.sleep(0.001)


# -- opening, and how many ---------------------------------------------------------------------------------------------


@item(1)
async def defaults_are_a_promise() -> None:
    """np: max 1, waiters unlimited, no acquire timeout, an evictor that is off. Ours bound every wait."""
    limits = PoolLimits()
    assert (limits.min_connections, limits.max_connections, limits.max_in_flight) == (1, 4, 256)
    assert (limits.max_waiting, limits.acquire_timeout, limits.connect_timeout) == (10_000, 10, 5)
    assert limits.autostart
    assert limits.spread


@item(2)
async def lifetimes_are_jittered() -> None:
    """pp: an hour less up to 5 %. Ours the same, and 10 minutes of idleness."""
    limits = PoolLimits()
    assert (limits.max_lifetime, limits.idle_timeout) == (3600, 600)
    for draw, age in ((0.0, 3600), (0.999_999, 3420)):
        async with open_world() as world:
            world.pool.rng = partial(float, draw)
            await world.pool.wait_connected()
            await trio.sleep(age - 1)
            assert world.stats.closed_age == 0
            await trio.sleep(2)
            assert world.stats.closed_age == 1


@item(3)
async def bad_sizes_are_told() -> None:
    """Np clamps silently. Ours raise, with the name and the bound."""
    bad: list[dict[str, Any]] = [
        {"min_connections": -1},
        {"max_connections": 0},
        {"min_connections": 5, "max_connections": 4},
        {"max_waiting": -1},
    ]
    for sizes in bad:
        with pytest.raises(ValueError, match=r"connections|max_waiting"):
            PoolLimits(**sizes)
    with pytest.raises(TypeError, match="must be a number"):
        PoolLimits(max_connections="4")  # type: ignore[arg-type]


@item(4)
async def minimum_and_maximum_count_what_is_being_made() -> None:
    """Hk's minimum counts idle ones alone. Ours counts idle, busy and dialled ones."""
    async with open_world(takes=1.0, min_connections=2, max_connections=2, max_in_flight=1) as world:
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(world.stub.hold, 0.1)
            await trio.sleep(0.5)
            assert (world.stats.dialling, world.stats.connections) == (2, 0)
        assert world.stats.connects == 2


@item(5)
async def opening_does_not_wait() -> None:
    """Opening returns at once and fills in the background; to wait for that is bounded by the caller's own scope."""
    began = trio.current_time()
    async with open_world(takes=2.0, min_connections=3) as world:
        assert trio.current_time() == began
        with pytest.raises(trio.TooSlowError), trio.fail_after(1):
            await world.pool.wait_connected(3)
        await world.pool.wait_connected(3)
        assert trio.current_time() - began == 2


@item(6)
async def a_closed_pool_stays_closed() -> None:
    """A closed pool does not reopen, and says so."""
    async with open_world() as world:
        await world.pool.aclose()
        await world.pool.aclose()
        with pytest.raises(PoolClosed, match="is closed"):
            await world.stub.echo(1)
        with pytest.raises(PoolClosed, match="is closed"):
            await world.pool.wait_connected()


@item(7)
async def filling_can_wait_for_the_first_call() -> None:
    """Np's autostart off: nothing is dialled before the first call, then up to the minimum."""
    async with open_world(autostart=False, min_connections=2) as world:
        await trio.sleep(10)
        assert world.stats.connects == 0
        await world.stub.echo(1)
        await world.pool.wait_connected(2)


@item(8)
async def whichever_comes_first_serves_the_head() -> None:
    """A place that gets free, or a new connection: who waited longest gets the first of either."""
    for takes, served in ((0.5, 0.5), (5.0, 1.0)):
        async with open_world(max_connections=2, max_in_flight=1) as world, trio.open_nursery() as nursery:
            await world.pool.wait_connected()
            await hold_in(nursery, world, 1.0)
            world.dialler.takes = takes
            began = trio.current_time()
            await world.stub.echo(1)
            assert trio.current_time() - began == pytest.approx(served, abs=0.01)


@item(9)
async def a_spike_opens_few() -> None:
    """hk, pp: dials take 150 ms, calls 2 ms, 50 at once: fewer than 7 connections in the end."""
    async with open_world(takes=0.15, min_connections=5, max_connections=50, max_in_flight=1) as world:
        await world.pool.wait_connected(5)
        await several(partial(world.stub.hold, 0.002), 50)
        await trio.sleep(1)
        assert world.stats.connections < 7


@item(10)
async def growth_is_one_at_a_time() -> None:
    """pp: minimum 2, maximum 4, dials of 0.1 s, calls of 0.25 s: eight callers end at exactly these times."""
    async with open_world(takes=0.1, min_connections=2, max_connections=4, max_in_flight=1) as world:
        await world.pool.wait_connected(2)
        ended = await several(partial(world.stub.hold, 0.25), 8)
        assert ended == [0.25, 0.25, 0.35, 0.45, 0.5, 0.5, 0.6, 0.7]


@item(11)
async def never_more_than_the_maximum_take_calls() -> None:
    """Np frees a slot before the old one is gone. With us a connection that has to end lets its calls end beside its
    successor, or one long stream would keep everybody waiting; what takes calls is never more than the maximum.
    """
    async with open_world(max_connections=1, max_in_flight=4) as world, trio.open_nursery() as nursery:
        await hold_in(nursery, world, 1.0, 3)
        world.pool.recycle()
        await world.stub.echo(1)
        assert world.stats.connections == 2
        assert sum(endpoint.statistics().free for endpoint in world.pool.endpoints) == 4
        await trio.sleep(2)
        assert world.stats.connections == 1


# -- waiting -----------------------------------------------------------------------------------------------------------


@item(12)
async def waiting_has_an_end() -> None:
    """An error, out of the line, never served later, counted; a stub may be more or less patient than its pool."""
    async with open_world(max_connections=1, max_in_flight=1, acquire_timeout=10) as world:
        async with trio.open_nursery() as nursery:
            await hold_in(nursery, world, 20)
            began = trio.current_time()
            for stub, timeout in ((world.stub, 10), (world.pool.stub(Desk, acquire_timeout=2), 2)):
                with pytest.raises(PoolTimeout, match=f"within {timeout} s") as caught:
                    await stub.echo("late")
                assert not caught.value.may_have_run
            assert trio.current_time() - began == pytest.approx(12)
        assert world.desk.order == []
        assert (world.stats.timeouts, world.stats.waiting) == (2, 0)


@item(13)
async def the_cap_is_for_those_who_have_to_wait() -> None:
    """It holds only where no place is free; 0 is no line at all (pp: unlimited), None an endless one."""
    async with open_world(max_connections=1, max_in_flight=1, max_waiting=0) as world:
        await world.pool.wait_connected()
        assert await world.stub.echo(1) == 1
        async with trio.open_nursery() as nursery:
            await hold_in(nursery, world, 1)
            with pytest.raises(PoolExhausted):
                await world.stub.echo(2)
    async with open_world(max_connections=1, max_in_flight=1, max_waiting=None) as world:
        assert len(await several(partial(world.stub.echo, 1), 500)) == 500


@item(14)
async def priorities_have_an_order() -> None:
    """0 first, FIFO within a class, what is beyond the range last. np serves those without one first, against its
    own manual; with us they are in the last class.
    """
    async with open_world(max_connections=1, max_in_flight=1, priorities=3) as world:
        async with trio.open_nursery() as nursery:
            await hold_in(nursery, world, 1)
            for name, priority in (("none", None), ("2", 2), ("0a", 0), ("1", 1), ("99", 99), ("0b", 0)):
                nursery.start_soon(world.pool.stub(Desk, priority=priority).echo, name)
                await trio.sleep(0.01)
        assert world.desk.order == ["0a", "0b", "1", "none", "2", "99"]


@item(15)
async def who_is_cancelled_leaves_at_once() -> None:
    """And the place that was coming to them serves the next."""
    async with open_world(max_connections=1, max_in_flight=1) as world, trio.open_nursery() as nursery:
        await hold_in(nursery, world, 1)
        began = trio.current_time()
        with trio.move_on_after(1) as scope:  # The very moment in which the place gets free.
            nursery.start_soon(world.stub.echo, "next")
            await world.stub.echo("cancelled")
        assert scope.cancelled_caught or world.desk.order
        with trio.fail_after(1):
            await world.stub.echo("after")
        assert trio.current_time() - began == pytest.approx(1, abs=0.1)
        assert world.desk.order[-1] == "after"
        assert "next" in world.desk.order


@item(16)
async def a_cancellation_anywhere_loses_nothing() -> None:
    """Pp had to mend this in three releases: cancelled at each checkpoint in turn, capacity is whole afterwards."""

    async def scenario() -> None:
        async with open_world(max_connections=2, max_in_flight=1, options={"on_connect": prepared}) as world:
            await world.stub.echo(1)
            await world.pool.check()
            await several(partial(world.stub.hold, 0.1), 3)
            world.pool.recycle()
            await world.stub.echo(2)

    async def prepared(peer: trio_rpc.Peer) -> None:
        assert await peer.call("Desk.echo", 0) == 0

    await cancel_at_every_checkpoint(scenario)


@item(17)
async def a_place_goes_to_the_next_or_stays_free() -> None:
    """Freed, it serves who waits; where nobody does, the connection is idle."""
    async with open_world(max_connections=1, max_in_flight=1) as world:
        assert await several(partial(world.stub.hold, 0.5), 2) == [0.5, 1.0]
        assert (world.stats.idle, world.stats.busy, world.stats.spare) == (1, 0, 1)


@item(19)
async def what_ends_in_a_draining_pool_is_closed() -> None:
    """Its connection goes with the last call, and not before."""
    async with open_world() as world, trio.open_nursery() as nursery:
        await hold_in(nursery, world, 1)
        began = trio.current_time()
        await world.pool.drain()
        assert trio.current_time() - began == pytest.approx(1, abs=0.01)
        assert world.stats.connections == 0


# -- good and bad connections ------------------------------------------------------------------------------------------


async def cut(world: World, which: int = 0) -> None:
    """Break a connection, without a word."""
    stream = world.listener.connections[which]
    assert isinstance(stream, FaultyStream)
    await stream.reset()


@item(20)
async def what_is_broken_is_replaced() -> None:
    """Discarded, counted, replaced in the background."""
    async with open_world(faults=(Freeze(),), connect_backoff=trio_rpc.Backoff(initial=0.1, jitter=0)) as world:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self_destruct, world)
            with pytest.raises(ConnectionLost):
                await world.stub.hold(5)
        assert world.stats.lost == 1
        await world.pool.wait_connected()
        assert await world.stub.echo(1) == 1


async def self_destruct(world: World) -> None:
    """Cut the first connection in a while."""
    await trio.sleep(1)
    await cut(world)


@item(22)
async def a_failing_preparation_is_a_failing_dial() -> None:
    """Pp's `configure`: discarded, counted, tried again with the back-off; no call goes there before."""
    attempts = list[float]()

    async def configure(peer: trio_rpc.Peer) -> None:
        attempts.append(trio.current_time())
        if len(attempts) < 3:
            raise ValueError("not yet")
        await peer.call("Desk.echo", "configured")

    async with open_world(options={"on_connect": configure}) as world:
        await world.stub.echo("call")
        assert world.desk.order == ["configured", "call"]
        assert world.stats.connect_errors == 2
        assert [round(later - earlier, 1) for earlier, later in pairwise(attempts)] == [1.0, 1.6]


@item(23)
async def a_failing_call_costs_no_connection() -> None:
    """Np's `use` destroys after any exception. Ours only what is broken itself."""
    async with open_world() as world:
        for _ in range(3):
            with pytest.raises(trio_rpc.RemoteError):
                await world.stub.fail()
        assert (world.stats.connects, world.stats.lost) == (1, 0)


@item(24)
async def a_call_finds_another_connection() -> None:
    """Tested before use: no answer loses it, and the call goes elsewhere within its own patience."""
    freeze = Freeze()
    async with open_world(
        faults=(freeze,), validate_after=60, validate_timeout=2, idle_timeout=None, max_connections=1
    ) as world:
        await world.stub.echo(1)
        freeze.freeze()
        await trio.sleep(100)
        world.listener.wrap = lambda stream: stream
        began = trio.current_time()
        assert await world.stub.echo(2) == 2
        assert trio.current_time() - began == pytest.approx(2, abs=0.01)
        assert (world.stats.evicted, world.stats.connections) == (1, 1)


@item(25)
async def whatever_a_test_raises_frees_its_place() -> None:
    """Np takes `undefined` for valid, and loses a place for ever when a test raises."""
    errors: list[Exception] = [ValueError(), LookupError("gone"), RuntimeError("broken"), trio.BrokenResourceError()]

    async def refuse(peer: trio_rpc.Peer) -> None:
        if errors:
            raise errors.pop()

    async with open_world(options={"on_connect": refuse}, max_connections=1, acquire_timeout=None) as world:
        await world.stub.echo(1)
        assert (world.stats.connect_errors, world.stats.connections, world.stats.spare) == (4, 1, 256)


@item(26)
async def what_was_heard_lately_is_not_tested() -> None:
    """Hk skips it within 500 ms of use; and a test must be shorter than the wait it is part of."""
    freeze = Freeze()
    async with open_world(faults=(freeze,), validate_after=0.5, validate_timeout=2) as world:
        await world.stub.echo(1)
        await trio.sleep(0.4)
        began = trio.current_time()
        await world.stub.echo(2)
        assert trio.current_time() == began
    with pytest.raises(ValueError, match="validate_timeout"):
        PoolLimits(validate_after=1, validate_timeout=10, acquire_timeout=10)


@item(27)
async def every_option_does_something() -> None:
    """Np has an option that nothing reads. Each of ours is read somewhere, and an unknown one is an error."""
    package = Path(inspect.getfile(trio_rpc)).parent
    source = "\n".join(path.read_text() for path in package.rglob("*.py") if path.name != "_config.py")
    unread = [field.name for field in attrs.fields(PoolLimits) if not re.search(rf"\.{field.name}\b", source)]
    assert unread == []
    with pytest.raises(TypeError, match="test_on_return"):
        PoolLimits(test_on_return=True)  # type: ignore[call-arg]


# -- idleness and age --------------------------------------------------------------------------------------------------


@item(28)
async def idleness_needs_no_second_option() -> None:
    """Np's idle timeout does nothing unless an evictor runs. Ours is exact: one timer wakes when one is due."""
    async with open_world(max_connections=2, max_in_flight=1, idle_timeout=30) as world:
        await several(partial(world.stub.hold, 1), 2)
        assert world.stats.connections == 2
        await trio.sleep(29.9)
        assert world.stats.connections == 2
        await trio.sleep(0.2)
        assert (world.stats.connections, world.stats.closed_idle) == (1, 1)


@item(29)
async def idleness_never_goes_below_the_minimum() -> None:
    """Np's hard limit does, and creates them anew: 30 in 0.3 s."""
    async with open_world(min_connections=2, idle_timeout=0.02) as world:
        await world.pool.wait_connected(2)
        await trio.sleep(0.3)
        assert (world.stats.connects, world.stats.closed_idle) == (2, 0)
    async with open_world(min_connections=2, max_idle=10) as world:  # A hard limit that replaces.
        await world.pool.wait_connected(2)
        await trio.sleep(11)
        assert (world.stats.connects, world.stats.closed_idle, world.stats.connections) == (4, 2, 2)


@item(30)
async def surplus_shrinks() -> None:
    """Pp drops one per window. Ours drops each when it has not been used for so long, down to the minimum."""
    async with open_world(min_connections=2, max_connections=4, max_in_flight=1, idle_timeout=10) as world:
        await several(partial(world.stub.hold, 1), 4)
        assert world.stats.connections == 4
        await several(partial(world.stub.hold, 8), 3)  # One of four is not used.
        await trio.sleep(4)
        assert world.stats.connections == 3
        await trio.sleep(8)
        assert world.stats.connections == 2


@item(31)
async def age_ends_no_call() -> None:
    """A connection that is too old takes no more calls, and closes after the last of them."""
    async with open_world(max_lifetime=10) as world, trio.open_nursery() as nursery:
        world.pool.rng = lambda: 0.0
        await hold_in(nursery, world, 30)
        await trio.sleep(11)
        await world.stub.echo(1)
        assert (world.stats.closed_age, world.stats.connections, world.desk.stopped) == (1, 2, 0)


@item(32)
async def idle_connections_are_kept_alive() -> None:
    """Hk takes them out to ping them. Ours are pinged where they are, and found dead when they are."""
    freeze = Freeze()
    async with open_world(heartbeat=Heartbeat(interval=10, timeout=5), faults=(freeze,)) as world:
        await world.pool.wait_connected()
        await trio.sleep(1000)
        assert (world.stats.connections, world.stats.evicted) == (1, 0)
        freeze.freeze()
        await trio.sleep(15.1)
        assert world.stats.evicted == 1


@item(33)
async def the_wall_clock_does_not_count() -> None:
    """Hk evicts everything when it runs back. Ours reads Trio's clock alone."""
    with pytest.MonkeyPatch.context() as patch:
        async with open_world(idle_timeout=10, max_lifetime=20) as world:
            await world.pool.wait_connected()
            patch.setattr(time, "time", lambda: 0.0)
            await trio.sleep(5)
            patch.setattr(time, "time", lambda: 1e12)
            await world.stub.echo(1)
            assert (world.stats.connects, world.stats.closed_age, world.stats.closed_idle) == (1, 0, 0)


@item(34)
async def calls_spread_or_pack() -> None:
    """Np's FIFO spreads, its LIFO lets surplus age; so does `spread=False` with us: the oldest with a place is next."""
    for spread, peak in ((True, 2), (False, 4)):
        async with open_world(min_connections=2, max_connections=2, max_in_flight=4, spread=spread) as world:
            await world.pool.wait_connected(2)
            async with trio.open_nursery() as nursery:
                await hold_in(nursery, world, 1, 4)
                in_flight = [world.stats.busy, world.stats.spare]
            assert in_flight == ([2, 4] if peak == 2 else [1, 4])


# -- dialling ----------------------------------------------------------------------------------------------------------


@item(35)
async def failing_dials_back_off() -> None:
    """np: 53,915 in 200 ms. Ours: 1 s, times 1.6, at most 120 s; and room for later demand stays."""
    async with open_world(acquire_timeout=None) as world:
        world.dialler.failing = ConnectError("refused")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.stub.echo, 1)
            await trio.sleep(540)
            gaps = [later - earlier for earlier, later in pairwise(world.dialler.at)]
            assert gaps[:4] == pytest.approx([1, 1.6, 2.56, 4.096])
            assert max(gaps) <= 120
            assert len(world.dialler.at) < 16
            world.dialler.failing = None
    assert world.desk.order == [1]


@item(36)
async def the_dial_error_is_the_cause() -> None:
    """Np's never reaches a caller. Ours is the cause of the timeout, and its words are in the message."""
    async with trio_rpc.open_pool(refused, limits=PoolLimits(acquire_timeout=3), heartbeat=QUIET) as pool:
        with pytest.raises(PoolTimeout, match="connection refused") as caught:
            await pool.call("Desk.echo", 1)
        assert isinstance(caught.value.__cause__, ConnectError)


@item(37)
async def closing_is_bounded() -> None:
    """A transport that takes no bytes any more holds the pool for `close_timeout`, and no longer."""
    freeze = Freeze()
    async with open_world(faults=(freeze,), close_timeout=1) as world:
        await world.stub.echo(1)
        freeze.freeze()
        began = trio.current_time()
        await world.pool.aclose()
        assert trio.current_time() - began <= 1.01


@item(38)
async def replacing_a_busy_one_serves_the_next() -> None:
    """Np's `destroy` of a lent one: those who wait are served by its successor, and the minimum is there again."""
    async with open_world(max_connections=1, max_in_flight=1) as world, trio.open_nursery() as nursery:
        await hold_in(nursery, world, 60)
        nursery.start_soon(world.stub.echo, "waits")
        await trio.sleep(1)
        world.pool.recycle()
        await trio.sleep(0.1)
        assert world.desk.order == ["waits"]
        assert world.desk.running == 1


@item(39)
async def check_tests_all() -> None:
    """Drops the dead, refills, even an empty pool; and returns when that is known."""
    freeze = Freeze()
    async with open_world(faults=(freeze,), min_connections=2, validate_timeout=3, max_in_flight=4) as world:
        await world.pool.wait_connected(2)
        began = trio.current_time()
        await world.pool.check()
        assert (trio.current_time(), world.stats.evicted) == (began, 0)
        freeze.freeze()
        world.listener.wrap = lambda stream: stream
        await world.pool.check()
        assert trio.current_time() - began == pytest.approx(3, abs=0.01)
        assert world.stats.evicted == 2
        await world.pool.wait_connected(2)
        assert world.stats.spare == 8


# -- closing and changing ----------------------------------------------------------------------------------------------


@item(40)
async def drain_serves_who_is_in_line() -> None:
    """Np's drain refuses new ones, serves the line, waits for loans. So does ours; pp's is `recycle`."""
    async with open_world(max_connections=1, max_in_flight=1) as world, trio.open_nursery() as nursery:
        await hold_in(nursery, world, 1)
        nursery.start_soon(world.stub.echo, "in line")
        await trio.sleep(0.01)
        nursery.start_soon(world.pool.drain)
        await trio.sleep(0.01)
        with pytest.raises(PoolClosed, match="draining"):
            await world.stub.echo("too late")
        await world.pool._wait_closed()
        assert world.desk.order == ["in line"]


@item(41)
async def recycle_leaves_no_dead_ones() -> None:
    """Np's `clear` on a live pool hands out destroyed objects. Ours goes on with fresh connections alone."""
    async with open_world(min_connections=3) as world:
        await world.pool.wait_connected(3)
        for number in range(10):
            world.pool.recycle()
            assert await world.stub.echo(number) == number
        await world.pool.wait_connected(3)
        assert (world.stats.connections, world.stats.lost) == (3, 0)


@item(42)
async def closing_tells_everybody() -> None:
    """Those in line get PoolClosed, calls are joined, connections are closed; all within `cancel_wait`."""
    async with open_world(max_connections=1, max_in_flight=1) as world, trio.open_nursery() as nursery:
        told = list[bool]()

        async def caller(seconds: float) -> None:
            with pytest.raises(PoolClosed) as caught:
                await world.stub.hold(seconds)
            told.append(caught.value.may_have_run)

        for _ in range(2):
            nursery.start_soon(caller, 60)
        await trio.sleep(1)
        began = trio.current_time()
        await world.pool.aclose()
        await trio.lowlevel.checkpoint()
        assert trio.current_time() - began < 5
        assert sorted(told) == [False, True]
        assert (world.stats.connections, world.desk.running) == (0, 0)


@item(43)
async def sizes_change_while_it_runs() -> None:
    """A higher minimum is there at once, a lower maximum as connections get idle; a bad one changes nothing."""
    async with open_world(max_connections=4, max_in_flight=1) as world:
        await world.pool.wait_connected(1)
        world.pool.resize(min_connections=4)
        await world.pool.wait_connected(4)
        async with trio.open_nursery() as nursery:
            await hold_in(nursery, world, 1, 2)
            world.pool.resize(min_connections=0, max_connections=1)
            await trio.sleep(0.1)
            assert (world.stats.connections, world.desk.stopped) == (2, 0)
        await trio.sleep(0.1)
        assert world.stats.connections == 1
        with pytest.raises(ValueError, match="min_connections=5 is above"):
            world.pool.resize(min_connections=5)


@item(44)
async def a_pool_that_keeps_nothing() -> None:
    """Pp's null pool: no idle connection is kept, and a live one goes only to who waits for it."""
    async with open_world(min_connections=0, max_connections=2, max_in_flight=1, idle_timeout=0) as world:
        await several(partial(world.stub.hold, 1), 6)
        await trio.sleep(0.01)
        assert (world.stats.connections, world.desk.peak) == (0, 2)
        assert world.stats.connects == 2


@item(46)
async def a_suspended_pool_lets_nobody_run_out_of_time() -> None:
    """hk: calls wait, and their patience with them, until it goes on."""
    async with open_world(acquire_timeout=5) as world, trio.open_nursery() as nursery:
        await world.stub.echo(1)
        world.pool.suspend()
        nursery.start_soon(world.stub.echo, 2)
        nursery.start_soon(world.pool.stub(Desk, acquire_timeout=1).echo, 3)
        await trio.sleep(60)
        assert world.desk.order == [1]
        world.pool.resume()
        await trio.sleep(0.01)
        assert sorted(world.desk.order) == [1, 2, 3]


@item(47)
async def one_loss_makes_the_others_suspect() -> None:
    """Sa invalidates everything older. Ours asks the others for a sign of life, and loses those that give none."""
    freeze = Freeze()
    async with open_world(
        faults=(freeze,),
        heartbeat=Heartbeat(interval=600, timeout=600),
        min_connections=3,
        validate_timeout=2,
        connect_backoff=NO_JITTER,
    ) as world:
        await world.pool.wait_connected(3)
        freeze.freeze()
        world.listener.wrap = lambda stream: stream
        await cut(world)
        await trio.sleep(2.1)
        assert (world.stats.lost, world.stats.evicted) == (3, 2)
        assert await world.stub.echo(1) == 1


@item(49)
async def credentials_are_asked_for_each_time() -> None:
    """Pp takes callables: ours are asked at each dial, so that what they give can rotate."""
    given = list[str]()

    def credentials() -> str:
        given.append(f"token {len(given)}")
        return given[-1]

    async with open_world(options={"credentials": credentials}) as world:
        await world.stub.echo(1)
        world.pool.recycle()
        await world.stub.echo(2)
        assert given == ["token 0", "token 1"]


@item(50)
async def everything_is_counted() -> None:
    """Sizes of the moment and counts since the start; the difference of two snapshots is what pp's `pop` gives."""
    async with open_world(max_connections=1, max_in_flight=1) as world:
        await world.stub.echo(1)
        before = world.stats
        await several(partial(world.stub.hold, 1), 3)
        after = world.stats
        assert after.requests - before.requests == 3
        assert after.queued - before.queued == 2
        assert after.wait_seconds - before.wait_seconds == pytest.approx(3)
        assert after.usage_seconds - before.usage_seconds == pytest.approx(3)
        assert (after.connections, after.idle, after.busy, after.waiting, after.spare) == (1, 1, 0, 0, 1)
        assert (after.min_connections, after.max_connections, after.connects) == (1, 1, 1)


@item(51)
async def a_multiplexed_pick() -> None:
    """GRPC's A105: a new connection only if all are full, below the maximum, none being dialled; those in line are
    served by whatever comes next, a connection's death included; and the peer's own limit counts.
    """
    options: dict[str, Any] = {"server_limits": ServerLimits(max_in_flight=2), "faults": (Freeze(),)}
    async with open_world(max_connections=2, takes=1.0, **options) as world, trio.open_nursery() as nursery:
        await world.pool.wait_connected()
        await hold_in(nursery, world, 0.5, 2)
        assert world.stats.connects == 1
        nursery.start_soon(world.stub.echo, "full")
        nursery.start_soon(world.stub.echo, "too")
        await trio.sleep(0.1)
        assert (world.stats.connects, world.stats.waiting) == (2, 2)
    async with open_world(max_connections=1, max_in_flight=1, **options) as world, trio.open_nursery() as nursery:
        nursery.start_soon(self_destruct, world)
        nursery.start_soon(lost, world)
        await trio.sleep(0.5)
        assert await world.stub.echo("in line") == "in line"
        assert world.stats.connects == 2


async def lost(world: World) -> None:
    """A call whose connection dies."""
    with pytest.raises(ConnectionLost):
        await world.stub.hold(60)


# -- the list ----------------------------------------------------------------------------------------------------------


def test_every_item_is_told() -> None:
    """Each of the fifty-one has a case, or a reason why it has none."""
    assert sorted({*CASES, *NOT_OURS}) == list(range(1, 52))
    assert not CASES.keys() & NOT_OURS.keys()


@pytest.mark.parametrize("number", sorted(CASES), ids=lambda number: f"{number}-{CASES[number].__name__}")
async def test_item(number: int, autojump_clock: MockClock) -> None:
    """As the case's own sentence says."""
    await CASES[number]()
