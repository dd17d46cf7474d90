"""What an outside reader of the catalogue found: from the promise alone, with no look at how it is kept."""

from __future__ import annotations

import gc
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any, TypeVar

import pytest
import trio
from trio.testing import MockClock

from tests.scripted import ScriptedServer, greet_and_serve
from trio_rpc import (
    Code,
    ConnectError,
    PoolLimits,
    RpcError,
    method,
    open_pool,
    open_server,
)
from trio_rpc.testing import MemoryListener, no_leaks, open_loopback
from trio_rpc.wire import GoAwayReceived, Hello, Protocol, Role

E = TypeVar("E", bound=BaseException)

SECRET = "a planted secret"


class Named(Exception):
    """An exception that the contract names."""


class Several(ExceptionGroup[Exception]):
    """A group that the contract names."""


class Shop:
    """Raises what it is told to."""

    fault: BaseException = Named()

    @method(raises=[Named, Several])
    async def fail(self) -> None:
        raise self.fault

    @method
    async def echo(self, value: int) -> int:
        return value


def noted(exc: E) -> E:
    """The same with a note that nobody but the log is to see."""
    exc.add_note(SECRET)
    return exc


GROUPS: dict[str, BaseException] = {
    "of others": noted(ExceptionGroup(SECRET, [ValueError(SECRET)])),
    "of named ones": noted(ExceptionGroup(SECRET, [Named("told")])),
    "inside of another": ExceptionGroup(SECRET, [noted(ExceptionGroup(SECRET, [Named("told")])), KeyError(SECRET)]),
    "inside of a named one": Several("told", [noted(ExceptionGroup(SECRET, [Named("told")]))]),
    "with SystemExit": noted(BaseExceptionGroup(SECRET, [SystemExit(SECRET), Named("told")])),
}


def texts(exc: BaseException) -> list[str]:
    """All words of an exception, and of those in it."""
    inner = [text for member in exc.exceptions for text in texts(member)] if isinstance(exc, BaseExceptionGroup) else []
    return [str(exc), *getattr(exc, "__notes__", []), *inner]


@pytest.mark.parametrize("name", GROUPS)
async def test_the_text_of_a_group_stays_at_home(autojump_clock: MockClock, name: str) -> None:
    """X10, P07: a group's members cross, each as it would alone; its message and notes do if the contract names it."""
    Shop.fault = GROUPS[name]
    async with no_leaks(), open_loopback(Shop()) as pool:
        with pytest.raises(ExceptionGroup) as caught:
            await pool.stub(Shop).fail()
    words = texts(caught.value)
    assert SECRET not in str(words)
    assert ("told" in str(words)) == (name != "of others")


async def test_debug_tells_the_text_of_a_group(autojump_clock: MockClock) -> None:
    """X10: with `debug=True` it crosses, as all else does."""
    Shop.fault = noted(ExceptionGroup("in words", [Named()]))
    async with no_leaks(), open_loopback(Shop(), debug=True) as pool:
        with pytest.raises(ExceptionGroup) as caught:
            await pool.stub(Shop).fail()
    assert caught.value.message == "in words"
    assert SECRET in texts(caught.value)


async def test_a_codec_that_is_not_allowed_is_told_at_once(autojump_clock: MockClock) -> None:
    """X13: the server's refusal is one that no waiting mends, and the calls fail in that instant."""
    listener = MemoryListener()
    async with no_leaks(), open_server(Shop(), listener, codecs=["msgpack"]):
        async with open_pool(listener.connect, codec="json") as pool:
            with pytest.raises(ConnectError, match="no codec in common") as caught:
                await pool.stub(Shop).echo(1)
            assert caught.value.permanent
            assert not caught.value.may_have_run
            assert trio.current_time() < 1


@pytest.mark.parametrize(
    ("chosen", "codec"),
    [(("pickle",), "msgpack"), (("json",), "msgpack"), (("msgpack",), "json"), (("msgpack", "json"), "json")],
)
async def test_a_codec_that_was_not_offered_is_no_answer(
    autojump_clock: MockClock, chosen: tuple[str, ...], codec: Any
) -> None:
    """X13, X16: a server that chooses another codec than its client speaks is refused; no request goes to it."""
    async with no_leaks(), trio.open_nursery() as nursery:
        server = ScriptedServer(nursery, greet_and_serve, hello=Hello(codecs=chosen))
        async with open_pool(server.connect, codec=codec, limits=PoolLimits(max_connections=1)) as pool:
            with pytest.raises(ConnectError, match="chose the codec") as caught:
                await pool.call("Shop.echo", 1)
            assert caught.value.permanent
            assert trio.current_time() < 1
        nursery.cancel_scope.cancel()


async def test_who_may_come_again_and_who_need_not(autojump_clock: MockClock) -> None:
    """X13: GOAWAY before HELLO has UNAVAILABLE only where waiting may help."""
    listener = MemoryListener()
    async with no_leaks(), open_server(Shop(), listener):
        stream = await listener.connect()
        protocol = Protocol(Role.DIALLER, Hello(codecs=("pickle",)))
        async with stream:
            await stream.send_all(protocol.greeting())
            data = b"".join([bytes(part) async for part in stream])
        (event,) = protocol.receive_data(data)
        assert isinstance(event, GoAwayReceived)
        assert event.code is Code.FAILED_PRECONDITION


class Careless:
    """Handlers that leave Trio's blocks open in the task that they ran in."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    @method
    async def breaks(self) -> str:
        """Leave a generator that is in a nursery, and is not closed."""

        async def several() -> AsyncGenerator[int, None]:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep, 0.01)
                yield 1
                yield 2

        generator = several()
        self.kept.append(generator)
        async for _ in generator:
            break
        return "left"

    @method
    async def enters(self) -> str:
        """Leave a nursery."""
        manager = trio.open_nursery()
        nursery = await manager.__aenter__()
        nursery.start_soon(trio.sleep, 0.01)
        self.kept.append(manager)
        return "left"

    @method
    async def echo(self, value: int) -> int:
        return value


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Of Trio's, about what was left open.
@pytest.mark.parametrize("name", ["breaks", "enters"])
async def test_a_handler_that_leaves_a_nursery_open_costs_its_own_connection_at_most(name: str) -> None:
    """P10, P11, Rule 1: Trio gives such a task up when it ends; that ends no server, and no call of another client."""
    service = Careless()
    with trio.fail_after(20):
        async with open_server(service, "tcp://127.0.0.1:0") as server:
            async with open_pool(server.addresses[0]) as other:
                for _ in range(3):
                    async with open_pool(server.addresses[0]) as pool:
                        with suppress(RpcError):
                            await pool.call(f"Careless.{name}")
                        assert await other.stub(Careless).echo(1) == 1
                    await trio.sleep(0.05)
                    assert await other.stub(Careless).echo(2) == 2
                assert other.statistics().errors == 0
                assert server.statistics().connections == 1
                assert server.statistics().in_flight == 0
    service.kept.clear()
    gc.collect()  # What complains about its end is to do so here.
