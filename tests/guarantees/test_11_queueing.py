"""Guarantee 11: calls queue, and honest clients are never refused for count."""

from __future__ import annotations

from functools import partial

import pytest
import trio
import trio.testing

from tests.guarantees.kit import Lab
from trio_rpc import (
    ConnectError,
    Heartbeat,
    PoolExhausted,
    PoolLimits,
    PoolTimeout,
    ServerLimits,
    open_pool,
    open_server,
)
from trio_rpc.testing import MemoryListener, memory_pipe, open_loopback


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (PoolLimits(max_in_flight=2, max_connections=1), ServerLimits()),
        (PoolLimits(max_connections=1), ServerLimits(max_in_flight=2)),
    ],
)
async def test_calls_beyond_the_limit_wait_first_come_first_served(
    autojump_clock: trio.testing.MockClock, ours: PoolLimits, theirs: ServerLimits
) -> None:
    """R16, R18, 11: beyond `max_in_flight`, ours or the one in the peer's HELLO, calls wait in order, and none is
    refused.
    """
    done: list[int] = []
    async with open_loopback(Lab(), limits=ours, server_limits=theirs) as pool:
        await pool.connect()

        async def call(number: int) -> None:
            await pool.stub(Lab).sleep(1)
            done.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(call, number)
                await trio.testing.wait_all_tasks_blocked()
            assert (pool.statistics().in_flight, pool.statistics().waiting) == (2, 6)
        assert trio.current_time() == 4
        assert [set(done[place : place + 2]) for place in range(0, 8, 2)] == [{0, 1}, {2, 3}, {4, 5}, {6, 7}]
        stats = pool.statistics()
        assert (stats.errors, stats.retries, stats.queued) == (0, 0, 6)


async def test_a_newcomer_does_not_pass_the_line(autojump_clock: trio.testing.MockClock) -> None:
    """11: whoever comes while others wait goes to the end of the line, though a place is just free."""
    order: list[str] = []
    async with open_loopback(Lab(), limits=PoolLimits(max_in_flight=1, max_connections=1)) as pool:
        await pool.connect()

        async def call(name: str) -> None:
            await pool.stub(Lab).sleep(1)
            order.append(name)
            if name == "first":
                await pool.stub(Lab).sleep(1)
                order.append("newcomer")

        async with trio.open_nursery() as nursery:
            for name in ("first", "second", "third"):
                nursery.start_soon(call, name)
                await trio.testing.wait_all_tasks_blocked()
    assert order == ["first", "second", "third", "newcomer"]


async def test_who_finds_no_place_in_time_is_told(autojump_clock: trio.testing.MockClock) -> None:
    """11: after `acquire_timeout`, exactly: PoolTimeout, that did not run, and says what it waited for."""
    async with open_loopback(Lab(), limits=PoolLimits(max_in_flight=1, max_connections=1, acquire_timeout=3)) as pool:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.stub(Lab).sleep, 10)
            await trio.sleep(1)
            with trio.fail_after(60), pytest.raises(PoolTimeout, match="places") as caught:
                await pool.stub(Lab).echo(1)
            assert (trio.current_time(), caught.value.may_have_run) == (4, False)
            with trio.fail_after(60), pytest.raises(PoolTimeout):
                async with pool.stub(Lab).count() as counting:
                    await counting.receive()
            assert trio.current_time() == 7


async def test_the_cause_is_the_last_dial_error(autojump_clock: trio.testing.MockClock) -> None:
    """11: where nobody answered, the PoolTimeout carries why."""
    errors: list[ConnectError] = []

    async def refuse() -> trio.abc.Stream:
        errors.append(ConnectError(f"refusal {len(errors)}"))
        raise errors[-1]

    async with open_pool(refuse, limits=PoolLimits(acquire_timeout=3)) as pool:
        with trio.fail_after(60), pytest.raises(PoolTimeout, match=r"refusal \d") as caught:
            await pool.call("Lab.echo", 1)
    assert caught.value.__cause__ is errors[-1]
    assert 2 <= len(errors) <= 4


async def test_wait_for_ready_waits_as_long_as_the_caller_does(autojump_clock: trio.testing.MockClock) -> None:
    """11: a stub's `wait_for_ready` leaves the bound to the caller's own scope."""
    listener = MemoryListener()
    up = False

    async def connect() -> trio.abc.Stream:
        if not up:
            raise ConnectError("not yet")
        return await listener.connect()

    async with open_server(Lab(), listener), open_pool(connect) as pool, trio.open_nursery() as nursery:
        nursery.start_soon(partial(pool.stub(Lab, wait_for_ready=True).echo, 1))
        with pytest.raises(trio.TooSlowError), trio.fail_after(60):
            await pool.stub(Lab, wait_for_ready=True).echo(1)
        assert trio.current_time() == 60
        up = True


async def test_connect_timeout_covers_the_hello(autojump_clock: trio.testing.MockClock) -> None:
    """Rule 12, Rule 14, 11: a server that accepts and says nothing is given up after `connect_timeout`, and that is the
    cause.
    """
    ends = []

    async def mute() -> trio.abc.Stream:
        await trio.sleep(1)
        ours, theirs = memory_pipe()
        ends.append(theirs)
        return ours

    limits = PoolLimits(connect_timeout=2, acquire_timeout=2.5)
    async with open_pool(mute, limits=limits) as pool:
        with trio.fail_after(60), pytest.raises(PoolTimeout) as caught:
            await pool.call("Lab.echo", 1)
    assert "connect_timeout" in str(caught.value.__cause__)
    assert trio.current_time() == 2.5


async def test_a_full_line_says_so_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """11: beyond `max_waiting` a call fails at once, and did not run."""
    limits = PoolLimits(max_in_flight=1, max_connections=1, max_waiting=2)
    async with open_loopback(Lab(), limits=limits) as pool, trio.open_nursery() as nursery:
        await pool.connect()
        for _ in range(3):
            nursery.start_soon(pool.stub(Lab).sleep, 1)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(PoolExhausted) as caught:
            await pool.stub(Lab).sleep(1)
        assert (trio.current_time(), caught.value.may_have_run) == (0, False)


async def test_a_cancelled_waiter_leaves_its_place_in_line(autojump_clock: trio.testing.MockClock) -> None:
    """11: whoever stops waiting costs those behind nothing."""
    lab = Lab()
    async with open_loopback(lab, limits=PoolLimits(max_in_flight=1, max_connections=1)) as pool:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.stub(Lab).sleep, 2)
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(1):
                await pool.stub(Lab).sleep(60)
            assert (trio.current_time(), pool.statistics().waiting) == (1, 0)
            await pool.stub(Lab).echo(1)
            assert trio.current_time() == 2
    assert len(lab.log) == 1


async def test_a_pool_that_is_full_grows_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """11: a healthy server's further connections are dialled when they are wanted; back-off is for failures."""
    limits = PoolLimits(max_in_flight=1, max_connections=4)
    async with open_loopback(Lab(), limits=limits) as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(pool.stub(Lab).sleep, 5)
        assert trio.current_time() == pytest.approx(5, abs=0.01)
        assert pool.statistics().connects == 4


async def test_the_least_loaded_connection_is_chosen(autojump_clock: trio.testing.MockClock) -> None:
    """11: calls spread over the connections at hand."""
    lab, listener = Lab(), MemoryListener()
    limits = PoolLimits(min_connections=3, max_connections=3)
    async with (
        open_server(lab, listener, heartbeat=Heartbeat(None)),
        open_pool(listener.connect, limits=limits) as pool,
    ):
        await pool.wait_connected(3)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(pool.stub(Lab).sleep, 1)
            await trio.testing.wait_all_tasks_blocked()
            assert pool.statistics().busy == 3


async def test_a_flapping_server_is_not_dialled_in_a_loop(autojump_clock: trio.testing.MockClock) -> None:
    """11: a server that accepts, says HELLO and is lost again is dialled about once a second, and not all the time."""
    listener = MemoryListener()
    async with open_server(Lab(), listener), open_pool(listener.connect) as pool, trio.open_nursery() as nursery:

        async def cut() -> None:
            while True:
                await pool.wait_connected()
                await trio.aclose_forcefully(listener.connections[-1])
                await trio.sleep(0.001)

        nursery.start_soon(cut)
        await trio.sleep(10)
        assert 5 <= pool.statistics().connects <= 14
        nursery.cancel_scope.cancel()
