"""Guarantee 8: leaving leaves nothing."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from tests.guarantees.kit import Broken, Lab, never, numbers
from trio_rpc import (
    ConnectError,
    Heartbeat,
    PoolClosed,
    PoolLimits,
    RemoteCancelled,
    open_pool,
    open_server,
    run_pool,
    serve,
)
from trio_rpc.testing import MemoryListener, cancel_at_every_checkpoint, no_leaks, open_loopback


async def _use(pool: Any) -> None:
    stub = pool.stub(Lab)
    assert await stub.echo(1) == 1
    assert await stub.total(numbers(5)) == 10
    async with stub.count(5) as counting:
        assert len([item async for item in counting]) == 5
    with trio.move_on_after(0.01):
        await stub.sleep(60)


@pytest.mark.parametrize("heartbeat", [Heartbeat(), Heartbeat(interval=None)])
async def test_nothing_is_left_of_a_pool_and_a_server(heartbeat: Heartbeat) -> None:
    """8: after both blocks no task, descriptor, call or place is left, over real sockets."""
    async with no_leaks() as watch:
        async with open_server(Lab(), ["tcp://127.0.0.1:0", "unix:@trio_rpc-leaving"], heartbeat=heartbeat) as server:
            watch.watch(server)
            for address in server.addresses:
                async with open_pool(address, heartbeat=heartbeat) as pool:
                    watch.watch(pool)
                    await _use(pool)


async def test_nothing_is_left_where_nobody_answers(autojump_clock: trio.testing.MockClock) -> None:
    """S13, 8: a pool whose dials hang or fail is left at once, with calls still waiting in line."""

    async def hang() -> trio.abc.Stream:
        await trio.sleep_forever()
        raise AssertionError

    async def refuse() -> trio.abc.Stream:
        raise ConnectError("nobody")

    for dial in (hang, refuse):
        async with no_leaks() as watch:
            start = trio.current_time()
            async with trio.open_nursery() as nursery:
                async with open_pool(dial) as pool:
                    watch.watch(pool)
                    nursery.start_soon(_raises_closed, False, partial(pool.call, "Lab.echo", 1))
                    await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.deadline = start + 1
            assert trio.current_time() == start


async def _raises_closed(may_have_run: bool, call: Any) -> None:
    with pytest.raises(PoolClosed) as caught:
        await call()
    assert caught.value.may_have_run is may_have_run


@pytest.mark.parametrize("error", [ValueError("the body's own"), ExceptionGroup("the body's", [KeyError(1)])])
@pytest.mark.parametrize("scoped", [False, True])
async def test_the_bodys_own_exception_comes_out_bare(
    autojump_clock: trio.testing.MockClock, error: Exception, scoped: bool
) -> None:
    """P12, 8: the very object that the body raised, groups untouched; even where a scope around it is cancelled
    meanwhile.
    """
    lab = Lab()
    with trio.CancelScope() as scope, pytest.raises(type(error)) as caught:
        async with open_loopback(lab) as pool:
            async with pool.stub(Lab).doubled(never()), pool.stub(Lab).count() as counting:
                await counting.receive()
                if scoped:
                    scope.cancel()
                raise error
    assert caught.value is error
    assert error.__context__ is None
    assert not hasattr(error, "__notes__")
    assert lab.words[-1] == "cleaned"


async def test_a_pool_closed_under_other_tasks(autojump_clock: trio.testing.MockClock) -> None:
    """S13, 8: it cancels and joins their calls, each of which raises PoolClosed, and knows whether it may have run."""
    lab = Lab()
    limits = PoolLimits(max_in_flight=3, max_connections=1)
    async with open_loopback(lab, limits=limits) as pool, trio.open_nursery() as nursery:
        stub = pool.stub(Lab)

        async def consume() -> None:
            async with stub.count(1, cleanup=60) as counting:
                assert await counting.receive() == "0"
                await counting.receive()

        nursery.start_soon(_raises_closed, True, partial(stub.sleep, 60, 0.5))
        nursery.start_soon(_raises_closed, True, partial(stub.total, never()))
        nursery.start_soon(_raises_closed, True, consume)
        await trio.sleep(1)
        nursery.start_soon(_raises_closed, False, partial(stub.echo, "in the line"))
        await trio.testing.wait_all_tasks_blocked()
        await pool.aclose()
        assert (lab.running, trio.current_time()) == (0, 2)  # The stream's clean-up was waited for, for a second.
        await _raises_closed(False, partial(stub.echo, "after it"))
        with pytest.raises(PoolClosed):
            async with stub.count():
                pass


async def test_a_result_that_came_first_is_returned_though_the_pool_closes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """8: what the handler returned or raised in spite of the closing is not thrown away."""
    async with open_loopback(Lab()) as pool, trio.open_nursery() as nursery:
        results: list[str] = []

        async def call() -> None:
            results.append(await pool.stub(Lab).stubborn(1.5))

        async def breaks() -> None:
            with pytest.raises(Broken, match="clean-up"):
                await pool.stub(Lab).breaks(60)

        nursery.start_soon(call)
        nursery.start_soon(breaks)
        await trio.sleep(1)
        await pool.aclose()
    assert results == ["done"]


async def test_aclose_is_idempotent_and_returns_when_everything_is_gone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """S10, 8: several tasks may close at once, and again; each returns after the end, not before."""
    lab, ended = Lab(), []
    async with no_leaks() as watch, open_loopback(lab) as pool, trio.open_nursery() as nursery:
        watch.watch(pool)

        async def close() -> None:
            await pool.aclose()
            ended.append((trio.current_time(), lab.running))

        nursery.start_soon(_raises_closed, True, partial(pool.stub(Lab).sleep, 60, 0.5))
        await trio.sleep(1)
        nursery.start_soon(close)
        nursery.start_soon(close)
        await close()
        await close()
    assert ended == [(1.5, 0)] * 4


async def test_a_pool_in_a_nursery_is_closed_from_any_task(autojump_clock: trio.testing.MockClock) -> None:
    """8: `run_pool` returns after `aclose`, and a cancelled one closes its pool first."""
    lab, listener = Lab(), MemoryListener()
    async with open_server(lab, listener):
        await trio.testing.wait_all_tasks_blocked()
        async with no_leaks(), trio.open_nursery() as nursery:
            pool = await nursery.start(run_pool, listener.connect)
            assert await pool.stub(Lab).echo(1) == 1
            nursery.start_soon(pool.aclose)
        async with no_leaks(), trio.open_nursery() as nursery, trio.open_nursery() as owner:
            pool = await owner.start(run_pool, listener.connect)
            nursery.start_soon(_raises_closed, True, partial(pool.stub(Lab).sleep, 60, 0.5))
            await trio.sleep(1)
            owner.cancel_scope.cancel()
        assert lab.log == [("ended", 1.5)]


async def test_serve_returns_after_drain_and_a_cancelled_one_stops_its_handlers(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """8: `serve` ends by `drain`; cancelled, it cancels and joins the handlers and tells their callers first."""
    lab = Lab()
    async with no_leaks(), trio.open_nursery() as nursery:
        server = await nursery.start(serve, lab, MemoryListener())
        await server.drain()
    listener = MemoryListener()
    async with no_leaks(), trio.open_nursery() as nursery:
        async with open_pool(listener.connect) as pool, trio.open_nursery() as callers:
            await nursery.start(serve, lab, listener)

            async def call() -> None:
                with pytest.raises(RemoteCancelled) as caught:
                    await pool.stub(Lab).sleep(60, cleanup=0.5)
                assert caught.value.may_have_run

            callers.start_soon(call)
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
    assert lab.log == [("ended", 1.5)]


async def test_background_failures_do_not_raise_into_the_block(autojump_clock: trio.testing.MockClock) -> None:
    """8: connections that break, dials that fail with anything: the block goes on, and calls are told."""
    kinds = iter([OSError("no"), ValueError("a bug in the dialler"), ConnectError("no")])

    async def dial() -> trio.abc.Stream:
        raise next(kinds, ConnectError("still no"))

    async with open_pool(dial, limits=PoolLimits(acquire_timeout=30)) as pool:
        with pytest.raises(Exception, match="no") as caught:
            await pool.call("Lab.echo", 1)
        assert not caught.value.may_have_run  # type: ignore[attr-defined]


async def test_wherever_a_pool_is_cancelled_nothing_is_left() -> None:
    """P12, 8: cancelled at any checkpoint, from opening to leaving, a pool leaves no task, and its server no
    connection.
    """
    lab, listener = Lab(), MemoryListener()
    async with open_server(lab, listener) as server:

        async def scenario() -> None:
            async with open_pool(listener.connect) as pool:
                assert await pool.stub(Lab).echo(1) == 1
                async with pool.stub(Lab).count(70) as counting:
                    await counting.receive()

        await trio.testing.wait_all_tasks_blocked()
        before = trio.lowlevel.current_statistics().tasks_living

        async def check() -> None:
            with trio.fail_after(2):
                while server.statistics().connections or trio.lowlevel.current_statistics().tasks_living > before:  # noqa: ASYNC110
                    await trio.sleep(0.001)
            assert lab.running == 0

        assert await cancel_at_every_checkpoint(scenario, check) > 3
        await cancel_at_every_checkpoint(scenario, check, moment="waking")


async def test_several_may_wait_for_a_connection(autojump_clock: trio.testing.MockClock) -> None:
    """8: all who wait for a pool's state to change are woken, and none is left waiting."""
    listener = MemoryListener()
    async with open_server(Lab(), listener), open_pool(listener.connect) as pool:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(pool.wait_connected)
                    nursery.start_soon(pool.connect)
