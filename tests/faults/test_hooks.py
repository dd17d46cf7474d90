"""What the program gives to the library, and what carries a connection, may raise anything: that stays where it happens."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Literal

import pytest
import trio
from trio.testing import MockClock

import trio_rpc
from trio_rpc import Code, current_call, method
from trio_rpc.testing import MemoryListener, no_leaks, open_loopback

QUIET = trio_rpc.Heartbeat(interval=None)

Place = Literal["receive_some", "send_all", "aclose"]


class Unlike(BaseException):
    """No Exception, and nothing that anybody knows."""


class Desk:
    """Something to call."""

    def __init__(self) -> None:
        self.left: list[str] = []

    @method
    async def echo(self, value: int) -> int:
        return value

    @method
    async def wait(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.left.append("wait")


class Crashing(trio.abc.Stream):
    """A stream of the program's own, one of whose methods raises something odd once `armed`."""

    def __init__(self, stream: trio.abc.Stream, place: Place, exc: BaseException) -> None:
        self.stream = stream
        self.place = place
        self.exc = exc
        self.armed = False

    def _crash(self, place: Place) -> None:
        if self.armed and place == self.place:
            raise self.exc

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._crash("send_all")
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self.stream.receive_some(max_bytes)
        self._crash("receive_some")
        return data

    async def aclose(self) -> None:
        try:
            await self.stream.aclose()
        finally:
            self._crash("aclose")


class OddListener(MemoryListener):
    """Its accepted streams crash: the first of them, when the test wants it."""

    def __init__(self, place: Place, exc: BaseException) -> None:
        super().__init__()
        self.place: Place = place
        self.exc = exc
        self.accepted: list[Crashing] = []

    async def accept(self) -> trio.abc.Stream:
        self.accepted.append(Crashing(await super().accept(), self.place, self.exc))
        return self.accepted[-1]


ODD = {
    "ValueError": ValueError("planted"),
    "a group": ExceptionGroup("planted", [ValueError(1), OSError(2)]),
    "SystemExit": SystemExit(1),
    "a BaseException": Unlike("planted"),
}


@pytest.fixture(autouse=True)
def tracebacks_are_let_go() -> Iterator[None]:
    """What is raised in several tests keeps nothing of the earlier ones."""
    yield
    for exc in ODD.values():
        exc.__traceback__ = exc.__context__ = None


@pytest.mark.parametrize("side", ["server", "client"])
@pytest.mark.parametrize("place", ["receive_some", "send_all", "aclose"])
@pytest.mark.parametrize("name", ODD)
async def test_a_connection_that_crashes_ends_alone(
    name: str, place: Place, side: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """P11: whatever its stream raises, in its reader, its writer or at its end: only that connection ends, with all of
    its calls, and it is logged; other connections, the server and the pools go on.
    """
    desk, listener = Desk(), OddListener(place, ODD[name])
    mine: list[Crashing] = []

    async def dial() -> trio.abc.Stream:
        mine.append(Crashing(await listener.connect(), place, ODD[name]))
        return mine[-1]

    ends: list[bool] = []

    async def wait(pool: trio_rpc.Pool) -> None:
        with pytest.raises(trio_rpc.ConnectionLost) as caught:
            await pool.stub(Desk).wait()
        ends.append(caught.value.may_have_run)
        if side == "client" and place != "aclose" and isinstance(ODD[name], Exception):
            assert caught.value.__cause__ is ODD[name]

    async with (
        no_leaks(),
        trio_rpc.open_server(desk, listener, heartbeat=QUIET) as server,
        trio_rpc.open_pool(dial, heartbeat=QUIET) as pool,
    ):
        await pool.stub(Desk).echo(1)
        async with trio_rpc.open_pool(listener.connect, heartbeat=QUIET) as neighbour:
            await neighbour.stub(Desk).echo(1)
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(wait, pool)
                await trio.sleep(1)
                (listener.accepted if side == "server" else mine)[0].armed = True
                if place == "aclose":
                    await mine[0].stream.aclose()
                else:
                    with pytest.raises(trio_rpc.ConnectionLost):
                        await pool.stub(Desk).echo(2)
            assert ends == [True] * 3
            await trio.sleep(0.1)
            assert desk.left == ["wait"] * 3
            assert await neighbour.stub(Desk).echo(3) == 3
            assert await pool.stub(Desk).echo(4) == 4
            assert server.statistics().in_flight == 0
            assert neighbour.statistics().lost == 0
    assert [record for record in caplog.records if record.exc_info is not None]


# -- hooks -------------------------------------------------------------------------------------------------------------


def fail(exc: BaseException) -> Callable[..., Any]:
    """A hook that raises."""

    def hook(*_: Any, **__: Any) -> Any:
        raise exc

    return hook


def fail_later(exc: BaseException) -> Callable[..., Awaitable[Any]]:
    """An async hook that raises."""

    async def hook(*_: Any, **__: Any) -> Any:
        await trio.lowlevel.checkpoint()
        raise exc

    return hook


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("hook", ["authorize", "server_interceptors", "authenticate", "credentials", "on_connect"])
async def test_a_hook_that_raises_costs_what_asked_it(
    hook: str, name: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """P13: a hook of either side that raises fails the call, or the connection, that asked it, and is logged or told;
    the
    next ones get what they ask for.
    """
    exc, broken = ODD[name], True

    async def authenticate(_credentials: object, _origin: object) -> str:
        if broken:
            raise exc
        return "somebody"

    def authorize(_peer: object, _method: str) -> bool:
        if broken:
            raise exc
        return True

    async def interceptor(call: trio_rpc.Call, call_next: trio_rpc.Handler) -> trio_rpc.Reply:
        if broken:
            raise exc
        return await call_next(call)

    async def credentials() -> dict[str, str]:
        if broken:
            raise exc
        return {"token": "t"}

    async def on_connect(_peer: object) -> None:
        if broken:
            raise exc

    options: dict[str, Any] = {
        "authorize": authorize,
        "server_interceptors": [interceptor],
        "authenticate": authenticate,
        "credentials": credentials,
        "on_connect": on_connect,
    }
    limits = trio_rpc.PoolLimits(acquire_timeout=3)
    async with no_leaks(), open_loopback(Desk(), limits=limits, **{hook: options[hook]}) as pool:
        caplog.set_level(logging.INFO)
        with trio.fail_after(5), pytest.raises((trio_rpc.RpcError, ExceptionGroup)) as caught:
            await pool.stub(Desk).echo(1)
        told = repr(caught.value) + repr(caught.value.__cause__) + caplog.text
        assert type(exc).__name__ in told
        assert pool.statistics().connects < 20
        broken = False
        await trio.sleep(10)
        assert await pool.stub(Desk).echo(2) == 2


@pytest.mark.parametrize("name", ODD)
async def test_a_log_handler_that_raises_is_nobodys_end(name: str, autojump_clock: MockClock) -> None:
    """P13: neither a connection, nor a call: what cannot be logged is not, and its caller gets no id of it."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ODD[name]

    class Failing(Desk):
        @method
        async def fails(self) -> None:
            raise ValueError("planted")

    handler, logger = Broken(), logging.getLogger("trio_rpc")
    logger.addHandler(handler)
    try:
        async with no_leaks(), open_loopback(Failing()) as pool:
            with pytest.raises(trio_rpc.RemoteError) as caught:
                await pool.stub(Failing).fails()
            assert (caught.value.code, caught.value.error_id) == (Code.UNKNOWN, "")
            assert "error id" not in str(caught.value)
            assert await pool.stub(Failing).echo(1) == 1
            assert pool.statistics().connects == 1
    finally:
        logger.removeHandler(handler)


@pytest.mark.parametrize("name", ODD)
async def test_a_resolver_that_raises(name: str, autojump_clock: MockClock) -> None:
    """P13: one of the program's own that fails is begun anew; the pool's block and its calls go on."""
    asked = 0

    class Resolver:
        def __aiter__(self) -> AsyncIterator[Any]:
            return self.found()

        async def found(self) -> AsyncIterator[Any]:
            nonlocal asked
            asked += 1
            if asked == 1:
                raise ODD[name]
            yield ["tcp://127.0.0.1:1"]
            await trio.sleep_forever()

        def refresh(self) -> None:
            raise ODD[name]

    async with no_leaks(), trio_rpc.open_pool(Resolver(), heartbeat=QUIET) as pool:
        with pytest.raises(trio_rpc.RpcError):
            await pool.stub(Desk).echo(1)
        assert asked >= 2


# -- tasks that outlive their call -------------------------------------------------------------------------------------


async def test_what_a_handler_leaves_behind(autojump_clock: MockClock) -> None:
    """P10: a nursery of the handler's own is joined before its call ends; a task in another one is that one's, runs on,
    and
    knows by `active` that its call is over. That it fails then is no call's matter.
    """
    seen: list[tuple[str, float, bool]] = []

    class Leaky(Desk):
        nursery: trio.Nursery

        @method
        async def keeps(self) -> str:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.work, "own", 2.0)
                return "kept"

        @method
        async def leaks(self) -> str:
            self.nursery.start_soon(self.work, "leaked", 4.0)
            return "leaked"

        async def work(self, name: str, seconds: float) -> None:
            await trio.sleep(seconds)
            seen.append((name, trio.current_time(), current_call().active))

    leaky = Leaky()
    async with trio.open_nursery() as leaky.nursery, no_leaks(), open_loopback(leaky) as pool:
        stub = pool.stub(Leaky)
        assert (await stub.leaks(), trio.current_time()) == ("leaked", 0.0)
        assert (await stub.keeps(), trio.current_time()) == ("kept", 2.0)
        with trio.move_on_after(0.5):
            await stub.keeps()
        await trio.sleep(5)
    assert seen == [("own", 2.0, True), ("leaked", 4.0, False)]


@pytest.mark.parametrize("how", ["cancelled", "raised", "raised beside"])
async def test_a_nursery_around_a_pool_ends(how: str, autojump_clock: MockClock) -> None:
    """P12: with calls under way whose handlers take their time, `async with` is left within `cancel_wait`, and whole."""

    class Slow(Desk):
        @method
        async def clings(self) -> None:
            with trio.CancelScope(shield=True):
                await trio.sleep(30)

    listener = MemoryListener()
    kinds: list[str] = []

    async def call(pool: trio_rpc.Pool, name: str) -> None:
        try:
            await getattr(pool.stub(Slow), name)()
        except BaseException as exc:
            kinds.append(type(exc).__name__)
            raise

    async def fail_soon() -> None:
        await trio.sleep(1)
        raise KeyError("beside")

    async with no_leaks(), trio_rpc.open_server(Slow(), listener, heartbeat=QUIET):
        with pytest.RaisesGroup(KeyError, flatten_subgroups=True) if how != "cancelled" else trio.move_on_after(1):
            async with (
                trio.open_nursery() as outer,
                trio_rpc.open_pool(listener.connect, heartbeat=QUIET) as pool,
                trio.open_nursery() as inner,
            ):
                inner.start_soon(call, pool, "clings")
                inner.start_soon(call, pool, "wait")
                if how == "raised beside":
                    outer.start_soon(fail_soon)
                await trio.sleep(1)
                if how == "raised":
                    raise KeyError("inside")
                await trio.sleep_forever()
        assert trio.current_time() == pytest.approx(2.0, abs=0.05)
    assert kinds == ["Cancelled"] * 2


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")

    __repr__ = __str__


@pytest.mark.parametrize("exc", [Unprintable(), SystemExit(1), Unlike(1), GeneratorExit()])
@pytest.mark.parametrize("hook", ["dial", "credentials", "on_connect", "resolver"])
async def test_what_a_pool_asks_is_asked_again(hook: str, exc: BaseException, autojump_clock: MockClock) -> None:
    """P13: whatever it raises counts as a dial, or a look, that failed: with the back-off, neither given up nor in a
    spin;
    and a call that waits is told of it.
    """
    listener, asked = MemoryListener(), 0

    def ask(what: str) -> None:
        nonlocal asked
        if what == hook:
            asked += 1
            raise exc

    async def dial() -> trio.abc.Stream:
        ask("dial")
        return await listener.connect()

    async def credentials() -> dict[str, str]:
        ask("credentials")
        return {}

    async def on_connect(_peer: object) -> None:
        ask("on_connect")

    class Resolver:
        async def __aiter__(self) -> AsyncIterator[Any]:
            ask("resolver")
            yield []

    async with (
        no_leaks(),
        trio_rpc.open_server(Desk(), listener, heartbeat=QUIET),
        trio_rpc.open_pool(
            Resolver() if hook == "resolver" else dial,
            heartbeat=QUIET,
            credentials=credentials,
            on_connect=on_connect if hook == "on_connect" else None,
        ) as pool,
    ):
        with pytest.raises(trio_rpc.PoolTimeout, match=type(exc).__name__):
            await pool.stub(Desk).echo(1)
        await trio.sleep(60)
        assert 5 <= asked <= 20
