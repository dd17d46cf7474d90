"""What the simulation has found in pools, each as small as it can be."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest
import trio
from trio.testing import MockClock

import trio_rpc
from trio_rpc import ConnectError, HedgePolicy, PermissionDenied, PoolLimits, method
from trio_rpc.testing import MemoryListener


class Desk:
    @method(idempotent=True)
    async def ask(self) -> str:
        return "yes"

    @method(idempotent=True)
    async def wait(self) -> None:
        await trio.sleep(60)


async def _prepare(peer: trio_rpc.Peer) -> None:
    await peer.stub(Desk).ask()


async def test_a_connection_that_is_being_prepared_is_not_idle(autojump_clock: MockClock) -> None:
    """With no idle connection to be kept, the end of `on_connect`'s own call must not close what callers wait for."""
    listener = MemoryListener()

    async def dial() -> trio.abc.Stream:
        await trio.sleep(0.1)
        return await listener.connect()

    limits = PoolLimits(min_connections=0, idle_timeout=0)
    async with (
        trio_rpc.open_server(Desk(), listener),
        trio_rpc.open_pool(dial, on_connect=_prepare, limits=limits) as pool,
    ):
        with trio.fail_after(1):
            assert await pool.stub(Desk).ask() == "yes"
        assert pool.statistics().connects == 1


async def test_who_waits_for_an_endpoint_learns_that_it_has_left(autojump_clock: MockClock) -> None:
    """A call that may go there alone, and waits as long as it takes, fails when it goes from the set; so do later ones."""
    changed = trio.Event()

    async def resolve() -> AsyncGenerator[list[str], None]:
        yield ["unix:@trio-rpc-nobody-here"]
        await changed.wait()
        yield ["unix:@trio-rpc-nor-here"]

    async with trio_rpc.open_pool(resolve()) as pool:
        await trio.sleep(1)
        (endpoint,) = pool.endpoints
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                with trio.fail_after(10), pytest.raises(ConnectError, match="nobody-here is no endpoint of"):
                    await endpoint.stub(Desk, wait_for_ready=True).ask()
                assert trio.current_time() == 3

            nursery.start_soon(call)
            await trio.sleep(2)
            changed.set()
        with pytest.raises(ConnectError, match="no endpoint of"):
            await endpoint.stub(Desk).ask()


async def test_an_attempt_that_was_refused_does_not_speak_for_the_one_beside_it(autojump_clock: MockClock) -> None:
    """A hedged call ends with a refusal while another attempt runs: it may have run, as a whole."""
    answers = iter([True, False])
    listener = MemoryListener()
    async with (
        trio_rpc.open_server(Desk(), listener, authorize=lambda _peer, _method: next(answers)),
        trio_rpc.open_pool(listener.connect) as pool,
    ):
        with pytest.raises(PermissionDenied) as caught:
            await pool.stub(Desk, hedge=HedgePolicy(delay=1)).wait()
        assert trio.current_time() == 1
        assert caught.value.may_have_run
