"""Handlers and hooks that do what they should not: each costs its own call, or its own connection, and nothing else."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import NoReturn

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

import trio_rpc
from tests.guarantees.kit import RawClient
from trio_rpc import Call, Handler, RemoteError, Reply, ServerLimits, method
from trio_rpc.testing import MemoryListener, no_leaks, open_loopback
from trio_rpc.wire import method_block

QUIET = trio_rpc.Heartbeat(interval=None)
"""For servers: an autojump clock has to come to rest."""


class Odd:
    """One method of each shape, each of which does what the test has put into `act`."""

    def __init__(self) -> None:
        self.act: Callable[[], object] = lambda: None
        self.gate = trio.Event()

    @method
    async def at_once(self) -> None:
        self.act()

    @method
    async def after_a_wait(self) -> None:
        await trio.sleep(0.01)
        self.act()

    @method
    def plain(self) -> None:
        self.act()

    @method(thread=True)
    def in_a_thread(self) -> None:
        self.act()

    @method
    async def before_items(self) -> AsyncGenerator[int, None]:
        self.act()
        yield 1

    @method
    async def after_items(self) -> AsyncGenerator[int, None]:
        yield 1
        await trio.sleep(0.01)
        self.act()

    @method
    async def taking(self, items: AsyncIterable[int]) -> None:
        async for _ in items:
            self.act()

    @method
    async def mirror(self, items: AsyncIterable[int]) -> AsyncGenerator[int, None]:
        async for item in items:
            self.act()
            yield item

    @method
    async def intercepted(self) -> None:
        """Left alone: the interceptor acts."""

    @method
    async def rest(self) -> str:
        await self.gate.wait()
        return "rested"


async def one_item() -> AsyncGenerator[int, None]:
    """What a client sends, without an end."""
    yield 1
    await trio.sleep_forever()


async def use(pool: trio_rpc.Pool, shape: str) -> None:
    """Call the method of this shape, and take all that it gives."""
    name, _, keyed = shape.partition(", ")
    stub = pool.stub(Odd, idempotency_key=f"key {trio.current_time()}") if keyed else pool.stub(Odd)
    if name in ("before_items", "after_items", "mirror"):
        async with getattr(stub, name)(*[one_item()] * (name == "mirror")) as items:
            async for _ in items:
                pass
    else:
        await getattr(stub, name)(*[one_item()] * (name == "taking"))


SHAPES = [
    *("at_once", "after_a_wait", "plain", "in_a_thread", "before_items", "after_items", "taking", "mirror"),
    *("intercepted", "at_once, keyed", "after_a_wait, keyed"),
]


@asynccontextmanager
async def odd_world() -> AsyncIterator[tuple[Odd, trio_rpc.Pool]]:
    """The service and a pool; nothing is left of them."""
    odd = Odd()

    async def interceptor(call: Call, call_next: Handler) -> Reply:
        if call.method == "Odd.intercepted":
            odd.act()
        return await call_next(call)

    limits = trio_rpc.PoolLimits(max_lifetime=None)  # While a thread works, an autojump clock may go hours on.
    async with no_leaks(), open_loopback(odd, server_interceptors=[interceptor], limits=limits) as pool:
        yield odd, pool


class Unprintable(Exception):
    def __str__(self) -> str:
        raise SystemExit("no text for you")

    def __repr__(self) -> str:
        raise RuntimeError("nor this")


class Unlike(BaseException):
    """No Exception, and nothing that anybody knows."""


def recurse() -> NoReturn:
    """Until there is no stack left."""
    recurse()


def raising(exc: BaseException) -> Callable[[], NoReturn]:
    """What raises this."""

    def act() -> NoReturn:
        raise exc

    return act


async def old_cancelled() -> trio.Cancelled:
    """A Cancelled of a scope that is long over, as a cache of outcomes may keep it."""
    kept: list[trio.Cancelled] = []
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled as exc:
            kept.append(exc)
            raise
    return kept[0]


async def odd_failures() -> dict[str, Callable[[], NoReturn]]:
    """What a handler may raise, by name."""
    old = await old_cancelled()
    return {
        "an Exception": raising(ValueError("planted")),
        "one without a text": raising(Unprintable()),
        "no stack left": recurse,
        "no memory left": raising(MemoryError()),
        "SystemExit": raising(SystemExit("planted")),
        "GeneratorExit": raising(GeneratorExit("planted")),
        "a BaseException": raising(Unlike("planted")),
        "StopIteration": raising(StopIteration(1)),
        "StopAsyncIteration": raising(StopAsyncIteration(1)),
        "a group": raising(ExceptionGroup("told", [ValueError("planted"), Unprintable()])),
        "a group of others": raising(BaseExceptionGroup("told", [SystemExit("planted"), ValueError("planted")])),
        "an old Cancelled": raising(old),
        "a mix with one": raising(BaseExceptionGroup("told", [old, ValueError("planted")])),
    }


def leaves(exc: BaseException) -> list[BaseException]:
    """What a group holds, or the exception itself."""
    return (
        [leaf for inner in exc.exceptions for leaf in leaves(inner)] if isinstance(exc, BaseExceptionGroup) else [exc]
    )


@pytest.mark.parametrize("shape", SHAPES)
async def test_whatever_a_handler_raises_costs_its_own_call(
    shape: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """P05, P06, P07: anything but a KeyboardInterrupt is a RemoteError that ran, whose id finds the traceback in the
    log;
    the connection, its other calls and the server go on.
    """
    async with odd_world() as (odd, pool), trio.open_nursery() as nursery:
        rested: list[str] = []

        async def rest() -> None:
            rested.append(await pool.stub(Odd).rest())

        nursery.start_soon(rest)
        for name, act in (await odd_failures()).items():
            odd.act = act
            caplog.clear()
            with pytest.raises((RemoteError, ExceptionGroup)) as caught:
                await use(pool, shape)
            ids = set()
            for error in leaves(caught.value):
                assert isinstance(error, RemoteError), name
                assert error.may_have_run, name
                assert "planted" not in str(error), name
                ids.add(error.error_id)
            [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
            assert record.exc_info is not None, name
            assert ids == {record.args[1]}, name  # type: ignore[index]
            odd.act = lambda: None
            await pool.stub(Odd).at_once()
            await trio.sleep(1)  # Else the log would have had enough.
        assert rested == []
        odd.gate.set()
    assert rested == ["rested"]
    assert (pool.statistics().connects, pool.statistics().lost) == (1, 0)


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_ctrl_c_in_a_handler_stops_the_server(shape: str, autojump_clock: MockClock) -> None:
    """P06: a KeyboardInterrupt is the program's: the server ends cleanly, within the bounds of its own drain."""
    odd, listener = Odd(), MemoryListener()
    odd.act = raising(KeyboardInterrupt())

    async def interceptor(call: Call, call_next: Handler) -> Reply:
        if call.method == "Odd.intercepted":
            odd.act()
        return await call_next(call)

    async with no_leaks(), trio.open_nursery() as nursery:
        ended: list[float] = []

        async def serve() -> None:
            with pytest.RaisesGroup(KeyboardInterrupt, allow_unwrapped=True, flatten_subgroups=True):
                async with trio_rpc.open_server(odd, listener, heartbeat=QUIET, interceptors=[interceptor]):
                    await trio.sleep_forever()
            ended.append(trio.current_time())

        nursery.start_soon(serve)
        async with trio_rpc.open_pool(listener.connect, heartbeat=QUIET) as pool:
            with pytest.raises((RemoteError, ExceptionGroup, trio_rpc.ConnectionLost)):
                await use(pool, shape)
            began = trio.current_time()
            await trio.sleep(10)
    assert ended[0] - began <= ServerLimits().cancel_wait + 2 * ServerLimits().close_timeout


# -- handlers that do not end ------------------------------------------------------------------------------------------


class Stubborn:
    """Handlers that heed no cancellation, each in its own way."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.ended: list[float] = []

    @method
    async def shields(self, seconds: float) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(seconds)
        self.ended.append(trio.current_time())

    @method
    async def swallows(self, seconds: float) -> None:
        until = trio.current_time() + seconds
        while trio.current_time() < until:
            with trio.CancelScope(shield=True), trio.move_on_after(0.5):
                await trio.sleep_forever()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled:
                continue
        self.ended.append(trio.current_time())

    @method
    async def produces(self, seconds: float) -> AsyncGenerator[int, None]:
        try:
            yield 1
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(seconds)
            self.ended.append(trio.current_time())

    @method(thread=True)
    def in_a_thread(self, seconds: float) -> None:
        self.released.wait(30)

    @method
    async def echo(self, value: int) -> int:
        return value


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged above INFO."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


WARNED = "Stubborn.{} was cancelled 5.0 s ago and still runs, caller MemoryStream: its place stays taken"


@pytest.mark.parametrize("shape", ["shields", "swallows", "produces", "shields, keyed"])
async def test_a_handler_that_goes_on_is_left_alone_and_told_of(
    shape: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """P08: its caller goes on after `cancel_wait`, its place is taken until it has ended, and a warning names it once."""
    name, _, keyed = shape.partition(", ")
    stubborn, listener = Stubborn(), MemoryListener()
    async with (
        no_leaks(),
        trio_rpc.open_server(stubborn, listener, heartbeat=QUIET) as server,
        trio_rpc.open_pool(listener.connect, heartbeat=QUIET) as pool,
    ):
        stub = pool.stub(Stubborn, idempotency_key="k") if keyed else pool.stub(Stubborn)
        await stub.echo(0)
        with trio.move_on_after(1):
            if name == "produces":
                async with stub.produces(8.0) as items:
                    assert await items.receive() == 1
                    await trio.sleep_forever()
            else:
                await getattr(stub, name)(9.0)
        assert trio.current_time() == 2.0
        await trio.sleep(3.9)
        assert warnings(caplog) == []
        await trio.sleep(0.2)
        assert warnings(caplog) == [WARNED.format(name)]
        assert server.statistics().in_flight == 1
        await trio.sleep(3.0)
        assert stubborn.ended == [9.0]
        assert server.statistics().in_flight == 0
        await trio.sleep(100)
        assert len(warnings(caplog)) == 1


@pytest.mark.parametrize(("after", "told"), [(4.9, ["shields"]), (5.0, []), (None, [])])
async def test_when_it_is_told_of(
    after: float | None, told: list[str], autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """P08: one that ends within `cancel_warn_after` is no matter for the log; None never tells."""
    limits = ServerLimits(cancel_warn_after=after)
    async with open_loopback(Stubborn(), server_limits=limits) as pool:
        with trio.move_on_after(1):
            await pool.stub(Stubborn).shields(5.95)
        await trio.sleep(20)
    assert [text.split()[0].removeprefix("Stubborn.") for text in warnings(caplog)] == told


@pytest.mark.parametrize("cause", ["its connection is lost", "max_deadline"])
async def test_why_it_is_told_of(cause: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """P08: whatever has cancelled it."""
    limits = ServerLimits(max_deadline=1.0 if cause == "max_deadline" else None)
    listener = MemoryListener()
    async with (
        no_leaks(),
        trio_rpc.open_server(Stubborn(), listener, limits=limits, heartbeat=QUIET),
        trio_rpc.open_pool(listener.connect, heartbeat=QUIET) as pool,
        trio.open_nursery() as nursery,
    ):

        async def call() -> None:
            with contextlib.suppress(trio_rpc.ConnectionLost):
                await pool.stub(Stubborn).shields(8.0)

        nursery.start_soon(call)
        await trio.sleep(1)
        if cause != "max_deadline":
            await listener.connections[0].aclose()
        await trio.sleep(4.9)
        assert warnings(caplog) == []
        await trio.sleep(0.2)
        assert warnings(caplog) == [WARNED.format("shields")]


async def test_a_drain_that_runs_out_of_time(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """P04, P08: a second drain cuts the first one short: callers are told within `cancel_wait` and `close_timeout`.
    Only a handler that heeds no cancellation keeps the server itself, and a line says which.
    """
    stubborn, listener, told = Stubborn(), MemoryListener(), list[float]()
    async with no_leaks(), trio.open_nursery() as nursery:
        serve = partial(trio_rpc.serve_listeners, stubborn, [listener], heartbeat=QUIET)
        server = await nursery.start(serve)
        async with trio_rpc.open_pool(listener.connect, heartbeat=QUIET) as pool:

            async def call() -> None:
                with pytest.raises(trio_rpc.ConnectionLost) as caught:
                    await pool.stub(Stubborn).shields(8.0)
                assert caught.value.may_have_run
                told.append(trio.current_time())

            nursery.start_soon(call)
            await trio.sleep(0.5)
            nursery.start_soon(server.drain, 60)
            await trio.sleep(0.5)
            nursery.start_soon(server.drain, 0)
            await trio.sleep(3.5)
            assert told == [pytest.approx(2.0, abs=0.1)]
            assert warnings(caplog) == [
                "Stubborn.shields was cancelled 3.0 s ago and still runs, caller MemoryStream: the server's end waits for it"
            ]
    assert trio.current_time() == 8.0


async def test_a_thread_that_goes_on(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """P16: its caller is released after `cancel_wait`; it keeps its place and its share of `max_threads`, and is told
    of.
    """
    stubborn, listener = Stubborn(), MemoryListener()
    async with (
        trio_rpc.open_server(stubborn, listener, heartbeat=QUIET, limits=ServerLimits(max_threads=1)) as server,
        trio_rpc.open_pool(listener.connect, limits=trio_rpc.PoolLimits(max_lifetime=None), heartbeat=QUIET) as pool,
    ):
        stub = pool.stub(Stubborn)
        await stub.echo(0)
        with trio.move_on_after(1):
            await stub.in_a_thread(0.0)
        assert trio.current_time() == 2.0
        with trio.move_on_after(1) as second:
            await stub.in_a_thread(0.0)  # The only thread is taken.
        assert second.cancelled_caught
        assert trio.current_time() == 3.0
        assert server.statistics().in_flight == 1
        await trio.sleep(10)
        assert warnings(caplog) == [WARNED.format("in_a_thread")]
        stubborn.released.set()
        await stub.in_a_thread(0.0)
        assert server.statistics().in_flight == 0


# -- handlers that hold up the loop ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != "in_a_thread"])
async def test_a_handler_that_blocks_is_named(
    shape: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """P09: a step that takes `stall_warn_after` is told of, with the method's name; a shorter one is not."""
    name = shape.partition(",")[0]
    async with odd_world() as (odd, pool):
        await pool.stub(Odd).at_once()
        await trio.sleep(1)
        odd.act = lambda: autojump_clock.jump(0.49)
        await use_once(pool, shape)
        assert warnings(caplog) == []
        odd.act = lambda: autojump_clock.jump(3)
        await use_once(pool, shape)
        assert warnings(caplog) == [f"Odd.{name} held up the event loop for 3.0 s in one step"]


async def use_once(pool: trio_rpc.Pool, shape: str) -> None:
    """Use it, for as long as it takes."""
    with trio.move_on_after(20):
        await use(pool, shape)
    await trio.sleep(2)


@pytest.mark.parametrize("blocker", range(5))
async def test_it_is_found_among_others(
    blocker: int, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """P09: of calls that arrive together and are run in one go, the right one is named, wherever it stands."""

    class Row:
        @method
        async def quick(self, number: int) -> int:
            return number

        @method
        async def blocks(self, number: int) -> int:
            autojump_clock.jump(1)
            return number

        @method
        async def waits(self, number: int) -> int:
            await trio.lowlevel.checkpoint()
            return number

    async with open_loopback(Row()) as pool:
        stub = pool.stub(Row)
        for _ in range(10):
            await stub.waits(0)  # Known not to be run in the same go.
        async with trio.open_nursery() as nursery:
            for place in range(5):
                kinds = ("blocks",) if place == blocker else ("quick", "waits")
                for kind in kinds:
                    nursery.start_soon(getattr(stub, kind), place)
        assert warnings(caplog) == ["Row.blocks held up the event loop for 1.0 s in one step"]


async def test_a_neighbour_is_not_blamed(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """P09: a thousand calls that came in one piece take several turns; what blocks between these is no fault of theirs."""
    odd, listener = Odd(), MemoryListener(capacity=None)
    odd.act = lambda: autojump_clock.jump(1)
    async with trio_rpc.open_server(odd, listener, limits=ServerLimits(max_in_flight=2000), heartbeat=QUIET):
        for _ in range(10):  # Whose turn comes first is chance.
            many, one = RawClient(await listener.connect()), RawClient(await listener.connect())
            await many.greet()
            await one.greet()
            frames = [many.protocol.request(method_block("Odd.intercepted"), b"\x90")[1][0] for _ in range(1000)]
            blocking = one.protocol.request(method_block("Odd.at_once"), b"\x90")[1][0]
            await many.stream.send_all(b"".join(frames))
            await one.stream.send_all(blocking)
            await trio.sleep(0.01)
            await many.stream.aclose()
            await one.stream.aclose()
            await trio.sleep(5)
    assert set(warnings(caplog)) == {"Odd.at_once held up the event loop for 1.0 s in one step"}


async def test_none_tells_nothing(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """P09: `stall_warn_after=None` switches it off."""
    odd = Odd()
    odd.act = lambda: autojump_clock.jump(100)
    async with open_loopback(odd, server_limits=ServerLimits(stall_warn_after=None)) as pool:
        for shape in ("at_once", "after_a_wait", "at_once, keyed"):
            await use(pool, shape)
    assert warnings(caplog) == []


async def test_a_server_that_was_held_up_evicts_nobody(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """P09, Rule 6: after a stall of its own a server with 1 s + 1 s reads first what has come, and gives time for more."""
    odd, listener = Odd(), MemoryListener()
    odd.act = lambda: autojump_clock.jump(3)
    beat = trio_rpc.Heartbeat(interval=1, timeout=1)
    async with (
        trio_rpc.open_server(odd, listener, heartbeat=beat) as server,
        trio_rpc.open_pool(listener.connect) as blocker,
        trio_rpc.open_pool(listener.connect) as neighbour,
    ):
        await neighbour.stub(Odd).intercepted()
        for _ in range(5):
            await blocker.stub(Odd).at_once()
            await trio.sleep(0.3)
        await neighbour.stub(Odd).intercepted()
        assert server.statistics().evicted == 0
        assert (neighbour.statistics().lost, blocker.statistics().lost) == (0, 0)
    assert warnings(caplog) == ["Odd.at_once held up the event loop for 3.0 s in one step"] * 5


async def test_on_a_real_clock(caplog: pytest.LogCaptureFixture) -> None:
    """P09: the same over sockets and in real time: only the one that blocks is named."""
    odd = Odd()
    odd.act = lambda: time.sleep(0.3)
    limits = ServerLimits(stall_warn_after=0.25)
    async with (
        trio_rpc.open_server(odd, "tcp://127.0.0.1:0", limits=limits) as server,
        trio_rpc.open_pool(server.addresses[0]) as pool,
    ):
        await pool.stub(Odd).after_a_wait()
        await trio.sleep(0.3)
        await pool.stub(Odd).intercepted()
    blamed = {text.split(" held")[0] for text in warnings(caplog)}
    assert "Odd.after_a_wait" in blamed
