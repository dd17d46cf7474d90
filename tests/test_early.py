"""A call that goes right behind the dialler's HELLO: which one may, and what becomes of it if no HELLO answers it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import AsyncGenerator
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import trio_rpc
from tests.scripted import Script, ScriptedPeer, ScriptedServer, greet_and_serve, watchdog
from trio_rpc import Code, ConnectError, PoolClosed, PoolLimits, PoolTimeout, RetryPolicy, Unauthenticated, method
from trio_rpc.testing import open_loopback
from trio_rpc.wire import PREFACE, CancelReceived, Hello, HelloReceived, Outcome, RequestReceived

QUIET = trio_rpc.Heartbeat(interval=None)


class Desk:
    """The contract."""

    @method(idempotent=True)
    async def read(self, value: Any = None) -> Any:
        raise NotImplementedError

    @method
    async def write(self, value: Any = None) -> Any:
        raise NotImplementedError

    @method(idempotent=True)
    def watch(self) -> AsyncGenerator[int, None]:
        raise NotImplementedError


def open_pool(server: ScriptedServer, **limits: Any) -> Any:
    """A pool of one connection at most."""
    backoff = trio_rpc.Backoff(jitter=0)
    return trio_rpc.open_pool(
        server.connect, heartbeat=QUIET, limits=PoolLimits(max_connections=1, connect_backoff=backoff, **limits)
    )


async def take_early(peer: ScriptedPeer) -> RequestReceived:
    """HELLO, and the request right behind it; nothing has been answered."""
    await peer.expect(HelloReceived)
    return await peer.expect(RequestReceived)


async def nothing_early(peer: ScriptedPeer) -> None:
    """The script of a server that waits, and hears nothing but HELLO before it answers."""
    await peer.expect(HelloReceived)
    with trio.move_on_after(1):
        raise AssertionError(await peer.event())
    await peer.stream.send_all(peer.protocol.greeting())
    await peer.serve()


async def hang_up(peer: ScriptedPeer) -> None:
    """Take an early request, and close."""
    await take_early(peer)


async def say_nothing(peer: ScriptedPeer) -> None:
    """Take an early request, and never answer."""
    await take_early(peer)
    await peer.event()


async def turn_away(peer: ScriptedPeer) -> None:
    """Refuse the connection, for now."""
    await take_early(peer)
    await peer.stream.send_all(PREFACE + peer.protocol.goaway(0, Code.UNAVAILABLE, "full"))


async def test_it_goes_before_the_hello_is_answered(autojump_clock: MockClock) -> None:
    """The server has the request while its own HELLO is still unsaid."""

    async def script(peer: ScriptedPeer) -> None:
        request = await take_early(peer)
        await peer.send(peer.protocol.greeting())
        await peer.answer(request, request.method)
        await peer.serve()

    async with watchdog(), trio.open_nursery() as nursery:
        async with open_pool(ScriptedServer(nursery, script)) as pool:
            assert await pool.stub(Desk).read() == "Desk.read"
            assert await pool.stub(Desk).write() == "Desk.write"
            assert pool.statistics().retries == 0


@pytest.mark.parametrize(
    ("call", "options"),
    [
        ("write", {}),
        ("read", {"metadata": {"trace": "1"}}),
        ("read", {"retry": RetryPolicy(attempts=1)}),
    ],
)
async def test_what_waits_for_the_hello(autojump_clock: MockClock, call: str, options: dict[str, Any]) -> None:
    """What must not run twice, or what some peer would not take."""
    async with watchdog(), trio.open_nursery() as nursery:
        async with open_pool(ScriptedServer(nursery, nothing_early)) as pool:
            assert await getattr(pool.stub(Desk, **options), call)() == f"Desk.{call}"


@pytest.mark.parametrize(("size", "script"), [(900, greet_and_serve), (1024, nothing_early)])
async def test_only_small_ones(autojump_clock: MockClock, size: int, script: Script) -> None:
    """A frame of 1,024 bytes is what every peer takes."""
    async with watchdog(), trio.open_nursery() as nursery:
        async with open_pool(ScriptedServer(nursery, script)) as pool:
            assert await pool.stub(Desk).read("x" * size) == "Desk.read"


async def test_one_only(autojump_clock: MockClock) -> None:
    """Nobody knows yet how many the peer takes at once; the others follow in order."""
    order: list[Any] = []

    async def script(peer: ScriptedPeer) -> None:
        request = await take_early(peer)
        while True:
            with trio.move_on_after(1):
                raise AssertionError(await peer.event())
            if not order:
                await peer.send(peer.protocol.greeting())
            order.append(bytes(request.payload))
            await peer.answer(request, None)
            request = await peer.expect(RequestReceived)

    async with watchdog(), trio.open_nursery() as nursery:
        async with open_pool(ScriptedServer(nursery, script, hello=Hello(max_in_flight=1))) as pool:
            async with trio.open_nursery() as callers:
                for number in range(4):
                    callers.start_soon(pool.stub(Desk).read, number)
                    await trio.lowlevel.checkpoint()
    assert [payload[-1] for payload in order] == [0, 1, 2, 3]


async def test_whoever_is_less_patient_than_the_dial_waits(autojump_clock: MockClock) -> None:
    """A call in the line has its end at `acquire_timeout`, which the dial's must not lengthen."""

    async def mute(peer: ScriptedPeer) -> None:
        await peer.expect(HelloReceived)
        await peer.event()

    async with watchdog(), trio.open_nursery() as nursery:
        async with open_pool(ScriptedServer(nursery, mute), connect_timeout=5, acquire_timeout=2) as pool:
            with pytest.raises(PoolTimeout) as caught:
                await pool.stub(Desk).read()
    assert trio.current_time() == 2
    assert not caught.value.may_have_run


@pytest.mark.parametrize("fault", [hang_up, say_nothing, turn_away])
async def test_without_a_hello_it_is_tried_again(autojump_clock: MockClock, fault: Script) -> None:
    """On another connection, and this time only once that has answered."""
    async with watchdog(), trio.open_nursery() as nursery:
        async with open_pool(ScriptedServer(nursery, fault, nothing_early)) as pool:
            assert await pool.stub(Desk).read() == "Desk.read"
            assert pool.statistics().retries == 1


@pytest.mark.parametrize(("fault", "ran"), [(hang_up, True), (say_nothing, True), (turn_away, False)])
async def test_it_may_have_run_unless_it_was_refused(autojump_clock: MockClock, fault: Script, ran: bool) -> None:
    """A peer that says nothing may have run it and died; one that turns the connection away has not."""

    async def mute(peer: ScriptedPeer) -> None:
        await peer.event()

    async with watchdog(), trio.open_nursery() as nursery:
        async with open_pool(ScriptedServer(nursery, fault, mute)) as pool:
            with pytest.raises(PoolTimeout) as caught:
                await pool.stub(Desk).read()
            assert caught.value.may_have_run is ran


async def test_the_dials_error_is_not_about_the_call(autojump_clock: MockClock) -> None:
    """Whoever else waits for that connection has not run anything."""
    async with watchdog(), trio.open_nursery() as nursery:
        async with open_pool(ScriptedServer(nursery, hang_up, greet_and_serve)) as pool:
            nursery.start_soon(pool.stub(Desk).read)
            with pytest.raises(ConnectError) as caught:
                await pool.connect()
            assert not caught.value.may_have_run
            await pool.wait_connected()
            await trio.testing.wait_all_tasks_blocked()


async def test_a_handler_that_waits_does_not_keep_the_hello() -> None:
    """The server's HELLO goes with the first answer only if that comes at once."""

    class Served(Desk):
        @method
        async def read(self, value: Any = None) -> Any:
            await trio.sleep(0.6)
            return value

    async def visit(address: str) -> None:
        async with trio_rpc.open_pool(address, limits=PoolLimits(connect_timeout=0.5)) as pool:
            assert await pool.stub(Desk).read(1) == 1
            assert pool.statistics().retries == 0

    async with trio_rpc.open_server(Served(), "tcp://127.0.0.1:0") as server:
        for _ in range(2):  # At first such a method is run by the reader, later by a task of its own.
            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(visit, server.addresses[0])


async def test_refused_credentials_are_told(autojump_clock: MockClock) -> None:
    """Such a call surely did not run."""

    class Served(Desk):
        @method
        async def read(self, value: Any = None) -> Any:
            raise AssertionError("it was not to run")

    def refuse(credentials: Any, origin: trio_rpc.Origin) -> None:
        raise Unauthenticated("no")

    async with watchdog(), open_loopback(Served(), authenticate=refuse) as pool:
        with pytest.raises(Unauthenticated) as caught:
            await pool.stub(Desk).read()
    assert not caught.value.may_have_run


async def test_cancelled_before_the_hello_it_is_joined(autojump_clock: MockClock) -> None:
    """CANCEL follows as soon as the peer has answered, and its caller waits for the handler's end."""

    async def script(peer: ScriptedPeer) -> None:
        request = await take_early(peer)
        await trio.sleep(0.5)
        await peer.send(peer.protocol.greeting())
        assert (await peer.expect(CancelReceived)).id == request.id
        await trio.sleep(0.25)
        await peer.send(peer.protocol.error(request.id, Code.CANCELLED, Outcome.CANCELLED, True, "stopped"))
        await peer.serve()

    async with watchdog(), trio.open_nursery() as nursery:
        async with open_pool(ScriptedServer(nursery, script)) as pool:
            with trio.move_on_after(0.2) as scope:
                await pool.stub(Desk).read()
            assert scope.cancelled_caught
            assert trio.current_time() == 0.75
            assert pool.statistics().in_flight == pool.statistics().orphans == 0


@pytest.mark.parametrize(("answers_after", "takes"), [(0.5, 0.5), (3, 1)])
async def test_a_closing_pool_joins_it(autojump_clock: MockClock, answers_after: float, takes: float) -> None:
    """Bounded, as any call's join, by `cancel_wait`; it may have run."""
    errors: list[PoolClosed] = []

    async def script(peer: ScriptedPeer) -> None:
        request = await take_early(peer)
        await trio.sleep(answers_after)
        await peer.send(peer.protocol.greeting())
        assert (await peer.expect(CancelReceived)).id == request.id
        await peer.send(peer.protocol.error(request.id, Code.CANCELLED, Outcome.CANCELLED, True, "stopped"))
        await peer.event()

    async def call(pool: trio_rpc.Pool) -> None:
        try:
            await pool.stub(Desk).read()
        except PoolClosed as exc:
            errors.append(exc)

    async with watchdog(), trio.open_nursery() as nursery:
        async with open_pool(ScriptedServer(nursery, script), cancel_wait=1) as pool:
            nursery.start_soon(call, pool)
            await trio.testing.wait_all_tasks_blocked()
            assert pool.statistics().in_flight == 1
            await pool.aclose()
            assert trio.current_time() == takes
    assert [error.may_have_run for error in errors] == [True]


async def test_a_stream_waits_for_the_hello(autojump_clock: MockClock) -> None:
    """Only one request, one result."""

    async def script(peer: ScriptedPeer) -> None:
        await peer.expect(HelloReceived)
        with trio.move_on_after(1):
            raise AssertionError(await peer.event())
        await peer.send(peer.protocol.greeting())
        await peer.send(peer.protocol.end((await peer.expect(RequestReceived)).id))
        await peer.event()

    async with watchdog(), trio.open_nursery() as nursery:
        async with (
            open_pool(ScriptedServer(nursery, script)) as pool,
            pool.stub(Desk).watch() as numbers,
        ):
            assert [number async for number in numbers] == []


def test_what_is_remembered_of_hellos_holds_no_credentials() -> None:
    """HELLOs that say the same are read once; one with credentials is gone with its last user."""
    plain = Hello(product="remembered").to_bytes()
    assert Hello.from_bytes(plain) is Hello.from_bytes(plain)
    secret = Hello.from_bytes(Hello(product="remembered", credentials={"token": "secret"}).to_bytes())
    kept = weakref.ref(secret)
    del secret
    gc.collect()
    assert kept() is None
