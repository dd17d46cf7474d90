"""What a pool goes through: preparing, testing, suspending, draining, losing endpoints; and who waits is never forgotten."""

from __future__ import annotations

import contextlib
import gc
import math
import sys
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from trio.testing import MockClock

import trio_rpc
from tests.pool_world import NO_JITTER, QUIET, Desk, World, open_world
from tests.scripted import ScriptedPeer, ScriptedServer, greet_and_serve, watchdog
from trio_rpc import (
    CircuitBreaker,
    ConnectError,
    OutlierEjection,
    Peer,
    PoolExhausted,
    PoolLimits,
    RetryPolicy,
    RoundRobin,
    ServerLimits,
    method,
)
from trio_rpc.health import HealthService, Status
from trio_rpc.testing import (
    Delay,
    FaultyStream,
    Freeze,
    MemoryListener,
    cancel_at_every_checkpoint,
    memory_pipe,
)
from trio_rpc.wire import RequestReceived

NO_RETRY = RetryPolicy(attempts=1)


class Clerk(Desk):
    """A desk that knows its name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    @method(idempotent=True)
    async def who(self, seconds: float = 0) -> str:
        await trio.sleep(seconds)
        return self.name

    @method
    async def refuse(self, seconds: float = 0) -> str:
        await trio.sleep(seconds)
        raise trio_rpc.RemoteError("out of order", code=trio_rpc.Code.UNAVAILABLE)


@attrs.define
class Street:
    """A pool over several servers in memory."""

    pool: trio_rpc.Pool
    freezes: dict[str, Freeze]
    servers: dict[str, trio.CancelScope]
    began: float

    def stub(self, **options: Any) -> Clerk:
        """What calls any of them."""
        return self.pool.stub(Clerk, **options)

    def at(self, name: str, **options: Any) -> Clerk:
        """What calls this one of them."""
        (endpoint,) = [endpoint for endpoint in self.pool.endpoints if endpoint.address == name]
        return endpoint.stub(Clerk, **options)

    def now(self) -> float:
        """Seconds since the beginning."""
        return round(trio.current_time() - self.began, 6)


async def _serve(scope: trio.CancelScope, services: list[Any], listener: MemoryListener) -> None:
    with scope:
        await trio_rpc.serve(services, listener, heartbeat=QUIET)


@asynccontextmanager
async def open_street(
    names: str,
    *,
    healths: dict[str, HealthService] | None = None,
    delay: float = 0,
    limits: dict[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[Street]:
    """Servers of one letter each, and a pool of one connection to each, taken in turns, and without jitter."""
    freezes, scopes = {name: Freeze() for name in names}, {name: trio.CancelScope() for name in names}
    dials: dict[str, Any] = {}
    settings: dict[str, Any] = {"connect_backoff": NO_JITTER, "max_connections": 1, **(limits or {})}
    async with watchdog(), trio.open_nursery() as nursery:
        for name in names:
            faults = [freezes[name], Delay(delay)] if delay else [freezes[name]]
            listener = MemoryListener(wrap=partial(lambda faults, stream: FaultyStream(stream, *faults), faults))
            services = [Clerk(name), *([healths[name]] if healths else [])]
            nursery.start_soon(_serve, scopes[name], services, listener)
            dials[name] = listener.connect
        options = {"balance": RoundRobin(), "retry": NO_RETRY, "heartbeat": QUIET, **options}
        async with trio_rpc.open_pool(dials, limits=PoolLimits(**settings), **options) as pool:
            yield Street(pool, freezes, scopes, trio.current_time())
        nursery.cancel_scope.cancel()


async def timed(street: Street, call: Callable[[], Awaitable[Any]], into: list[Any]) -> None:
    """Note what came of it, and when."""
    try:
        result = await call()
    except trio_rpc.RpcError as exc:
        result = type(exc).__name__
    into.append((result, street.now()))


# -- before calls go there ---------------------------------------------------------------------------------------------


async def test_nobody_overtakes_on_connect(autojump_clock: MockClock) -> None:
    """A call that begins while a connection is being prepared waits for that, and not only who waited before."""

    async def prepare(_peer: Peer) -> None:
        await trio.sleep(3)

    for names in "a", "ab":
        async with open_street(names, on_connect=prepare) as street:
            await trio.sleep(1)
            assert await street.stub().who() in names
            assert street.now() == 3


async def test_check_does_not_wait_for_health(autojump_clock: MockClock) -> None:
    """A server may be unwell for hours, and its connection well."""
    health = HealthService({"Desk": Status.NOT_SERVING})
    async with open_street("ab", healths={"a": health, "b": HealthService()}, health_check="Desk") as street:
        await trio.sleep(1)
        await street.pool.check()
        assert street.now() == 1
        street.freezes["a"].freeze()
        await street.pool.check()
        assert street.now() == 6
        assert street.pool.statistics().evicted == 1


async def test_a_test_does_not_make_a_server_healthy(autojump_clock: MockClock) -> None:
    """Its server has said meanwhile that it serves no more: an answer to the ping is no word against that."""
    healths = {name: HealthService({"Desk": Status.SERVING}) for name in "ab"}
    async with (
        open_street("ab", healths=healths, health_check="Desk", delay=0.1) as street,
        trio.open_nursery() as nursery,
    ):
        await street.pool.wait_connected(2)
        nursery.start_soon(street.pool.check)
        await trio.sleep(0.05)
        healths["a"].set("Desk", Status.NOT_SERVING)
        await trio.sleep(5)
        assert {await street.stub().who() for _ in range(4)} == {"b"}


# -- draining ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("patience", "timeout"), [(3, 5), (math.inf, 3)])
async def test_drain_does_not_wait_for_who_has_gone(patience: float, timeout: float, autojump_clock: MockClock) -> None:
    """The last one in line may not want a place any more, or find none in time."""
    async with (
        open_world(takes=1000, connect_timeout=None, acquire_timeout=timeout) as world,
        trio.open_nursery() as nursery,
    ):

        async def call() -> None:
            with trio.move_on_after(patience), contextlib.suppress(trio_rpc.PoolTimeout):
                await world.stub.echo(1)

        began = trio.current_time()
        nursery.start_soon(call)
        await trio.sleep(1)
        await world.pool.drain(grace=60)
        assert trio.current_time() - began == 3


async def test_drain_lets_a_call_end_that_went_with_the_hello(autojump_clock: MockClock) -> None:
    """It is under way, though there is no connection yet."""
    async with open_street("a", delay=1, limits={"min_connections": 0}, retry=RetryPolicy()) as street:
        answers: list[Any] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(timed, street, street.stub().who, answers)
            await trio.sleep(0.5)
            await street.pool.drain(grace=60)
        assert [result for result, _ in answers] == ["a"]
        assert street.now() < 10


# -- waiting -----------------------------------------------------------------------------------------------------------


async def test_joining_a_suspended_pool_starts_no_clock(autojump_clock: MockClock) -> None:
    """The time in line begins with `resume`, neither earlier nor later, and is never less than nothing."""
    async with open_world(max_in_flight=1, max_connections=1, acquire_timeout=5) as world:
        await world.pool.connect()
        began, ended = trio.current_time(), list[float]()

        async def call() -> None:
            try:
                await world.stub.hold(100)
            except trio_rpc.PoolTimeout:
                ended.append(trio.current_time() - began)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.stub.hold, 1000)
            await trio.testing.wait_all_tasks_blocked()
            world.pool.suspend()
            await trio.sleep(8)
            nursery.start_soon(call)
            await trio.sleep(2)
            world.pool.resume()
            await trio.sleep(20)
            nursery.cancel_scope.cancel()
        assert ended == [15]


async def test_time_in_line_is_never_negative(autojump_clock: MockClock) -> None:
    """Who came while the pool was suspended, and is served as it is resumed, has waited no time that counts."""
    async with open_world() as world, trio.open_nursery() as nursery:
        await world.pool.connect()
        world.pool.suspend()
        await trio.sleep(8)
        nursery.start_soon(world.stub.echo, 1)
        await trio.sleep(2)
        world.pool.resume()
        await trio.sleep(1)
        assert world.stats.wait_seconds == 0


async def test_those_in_line_are_spread_when_a_pool_is_resumed(autojump_clock: MockClock) -> None:
    """As if they had come then, and not all to the first endpoint that has room."""
    async with open_street("abc") as street:
        await street.pool.wait_connected(3)
        street.pool.suspend()
        answers: list[Any] = []
        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(timed, street, street.stub().who, answers)
            await trio.sleep(1)
            street.pool.resume()
        assert [[result for result, _ in answers].count(name) for name in "abc"] == [10, 10, 10]


async def test_a_silent_endpoint_does_not_keep_calls_from_the_others(autojump_clock: MockClock) -> None:
    """While one is tested, its calls go where there is a place."""
    async with open_street("ab", limits={"validate_after": 10.0, "acquire_timeout": 20}) as street:
        await street.pool.wait_connected(2)
        street.freezes["a"].freeze()
        await trio.sleep(20)
        assert [await street.stub().who() for _ in range(4)] == ["b"] * 4
        assert street.now() == 20


async def test_who_fails_fast_need_not_have_an_acquire_timeout(autojump_clock: MockClock) -> None:
    """Where nothing is to be hoped for, the most patient wait on, and those who do not want to wait do not."""

    async def refused() -> trio.abc.Stream:
        raise ConnectError("a stranger", permanent=True)

    limits = PoolLimits(acquire_timeout=None, connect_backoff=trio_rpc.Backoff(initial=100, jitter=0))
    async with trio_rpc.open_pool(refused, limits=limits, heartbeat=QUIET) as pool:
        await trio.sleep(1)
        with trio.move_on_after(10) as patient:
            await pool.stub(Desk).echo(1)
        assert patient.cancelled_caught
        with trio.fail_after(1), pytest.raises(ConnectError, match="a stranger"):
            await pool.stub(Desk, wait_for_ready=False).echo(1)


EJECT = OutlierEjection(consecutive=1, base_time=1000, max_time=1000)


async def test_who_waits_goes_to_an_ejected_endpoint_when_it_is_the_only_one(autojump_clock: MockClock) -> None:
    """What was left out for the others' sake is all there is once they are gone."""
    limits = {"max_in_flight": 1, "acquire_timeout": 100}
    async with open_street("ab", ejection=EJECT, limits=limits) as street, trio.open_nursery() as nursery:
        await street.pool.wait_connected(2)
        with pytest.raises(trio_rpc.RemoteError):
            await street.at("a").refuse()
        answers: list[Any] = []
        nursery.start_soon(timed, street, partial(street.stub().hold, 1000), answers)
        await trio.sleep(1)
        nursery.start_soon(timed, street, street.stub().who, answers)
        await trio.sleep(1)
        assert answers == []
        assert street.pool.statistics().waiting == 1
        street.servers["b"].cancel()
        await trio.sleep(1)
        assert ("a", 2) in answers
        nursery.cancel_scope.cancel()


async def test_what_could_not_be_sent_is_no_probe(autojump_clock: MockClock) -> None:
    """A half-open circuit waits for no call that never began."""
    breaker = CircuitBreaker(consecutive=1, backoff=trio_rpc.Backoff(initial=100, jitter=0))
    async with open_street("a", breaker=breaker, limits={"max_message_size": 1 << 20}) as street:
        await street.pool.connect()
        with pytest.raises(trio_rpc.RemoteError):
            await street.stub().refuse()
        await trio.sleep(101)
        with pytest.raises(trio_rpc.EncodeError):
            await street.stub().echo("x" * (5 << 20))
        assert await street.stub().who() == "a"


# -- how many, and how soon --------------------------------------------------------------------------------------------


async def test_a_dial_under_way_does_not_overshoot_a_lowered_maximum(autojump_clock: MockClock) -> None:
    """What arrives after `resize` and is not needed goes again."""
    async with open_world(takes=2, max_connections=2, max_in_flight=1) as world, trio.open_nursery() as nursery:
        await world.pool.connect()
        nursery.start_soon(world.stub.hold, 3)
        nursery.start_soon(world.stub.hold, 0.1)
        await trio.sleep(1)
        assert world.stats.dialling == 1
        nursery.cancel_scope.cancel()
    async with open_world(takes=2, max_connections=2, max_in_flight=1) as world, trio.open_nursery() as nursery:
        await world.pool.connect()
        nursery.start_soon(world.stub.hold, 100)
        with trio.move_on_after(1):
            await world.stub.hold(1)
        world.pool.resize(max_connections=1)
        await trio.sleep(5)
        assert world.stats.connections == 1
        nursery.cancel_scope.cancel()


async def test_recycle_ends_a_back_off(autojump_clock: MockClock) -> None:
    """The dial that waits for it is made at once."""
    async with open_world() as world:
        await world.pool.connect()
        world.dialler.failing = ConnectError("down")
        world.pool.recycle()
        await trio.sleep(100)
        count, now = len(world.dialler.at), trio.current_time()
        world.dialler.failing = None
        assert world.stats.dialling == 1
        world.pool.recycle()
        await world.pool.connect()
        assert world.dialler.at[count:] == [now]


async def test_the_first_call_dials_even_if_nobody_may_wait(autojump_clock: MockClock) -> None:
    """With autostart=False and no line at all, it is refused, and the next one is served."""
    async with open_world(autostart=False, max_waiting=0) as world:
        with pytest.raises(PoolExhausted):
            await world.stub.echo(1)
        await trio.sleep(1)
        assert await world.stub.echo(2) == 2


# -- looking at it -----------------------------------------------------------------------------------------------------


async def test_a_closed_pool_has_no_events(autojump_clock: MockClock) -> None:
    """To watch it ends at once."""
    async with open_world() as world:
        await world.pool.aclose()
        async with world.pool.events() as events:
            with trio.fail_after(1):
                assert [event async for event in events] == []


async def test_calls_of_its_endpoints_are_the_pools(autojump_clock: MockClock) -> None:
    """In what it counts, and in what retries may cost."""
    async with open_street("ab") as street:
        await street.pool.wait_connected(2)
        assert [await stub.who() for stub in street.pool.stubs(Clerk)] == ["a", "b"]
        with pytest.raises(trio_rpc.RemoteError):
            await street.at("b").refuse()
        statistics = street.pool.statistics()
        assert (statistics.requests, statistics.errors) == (3, 1)


# -- one stream --------------------------------------------------------------------------------------------------------


async def test_one_given_stream_is_never_too_old_or_idle(autojump_clock: MockClock) -> None:
    """No limit for connections that can be replaced ends the one that cannot."""
    async with watchdog(), trio.open_nursery() as nursery:
        ours, theirs = memory_pipe()
        nursery.start_soon(partial(trio_rpc.serve_stream, Desk(), theirs, heartbeat=QUIET))
        limits = PoolLimits(max_idle=5, idle_timeout=0, max_lifetime=5)
        async with trio_rpc.open_connection(ours, limits=limits, heartbeat=QUIET) as pool:
            for _ in range(3):
                await trio.sleep(10)
                assert await pool.stub(Desk).echo(1) == 1


async def test_one_given_stream_lets_its_peer_go(autojump_clock: MockClock) -> None:
    """A server that drains need not wait out its grace for it."""
    listener = MemoryListener()
    async with watchdog(), trio_rpc.open_server(Desk(), listener, heartbeat=QUIET) as server:
        async with trio_rpc.open_connection(await listener.connect(), heartbeat=QUIET) as pool:
            async with trio.open_nursery() as nursery:
                began = trio.current_time()
                nursery.start_soon(pool.stub(Desk).hold, 2)
                await trio.sleep(1)
                await server.drain(grace=100)
                assert trio.current_time() - began < 5


# -- endpoints that come and go ----------------------------------------------------------------------------------------


async def test_an_endpoint_leaves_before_it_has_said_hello(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The call that went along with ours ends there, no other begins, and nothing of it is left."""

    async def admit(_credentials: Any, _origin: trio_rpc.Origin) -> str:
        await trio.sleep(2)
        return "anybody"

    sender, resolver = trio.open_memory_channel[Any](10)
    addresses = {name: f"unix://{tmp_path}/{name}" for name in "ab"}
    async with watchdog(), trio.open_nursery() as nursery:
        await nursery.start(partial(trio_rpc.serve, Clerk("a"), addresses["a"], heartbeat=QUIET, authenticate=admit))
        await nursery.start(partial(trio_rpc.serve, Clerk("b"), addresses["b"], heartbeat=QUIET))
        limits = PoolLimits(min_connections=0)
        answers: list[Any] = []
        async with trio_rpc.open_pool(resolver, limits=limits, heartbeat=QUIET) as pool:
            street = Street(pool, {}, {}, trio.current_time())
            sender.send_nowait([addresses["a"]])
            async with trio.open_nursery() as calls:
                calls.start_soon(timed, street, partial(street.stub().who, 5), answers)
                await trio.sleep(1)
                sender.send_nowait([addresses["b"]])
                await trio.sleep(2)
                assert await street.stub().who() == "b"
                assert pool.statistics().connections == 2
            assert answers == [("a", 7)]
            await trio.testing.wait_all_tasks_blocked()
            assert pool.statistics().connections == 1
            with trio.fail_after(10):
                await pool.aclose()
        nursery.cancel_scope.cancel()


class Careless:
    """A resolver that fails wherever it can."""

    def __init__(self, address: str) -> None:
        self.address = address

    async def __aiter__(self) -> AsyncGenerator[Any, None]:
        yield [self.address]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._break)
            await trio.sleep_forever()

    async def _break(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise RuntimeError("its clean-up failed")

    def refresh(self) -> None:
        raise RuntimeError("nothing to refresh")


async def test_no_error_of_a_resolver_ends_the_pool(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """P13: not that of its `refresh`, nor what is left to raise when the pool closes: they are logged."""
    address = f"unix://{tmp_path}/a"
    async with watchdog(), trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with trio_rpc.open_pool(Careless(address), heartbeat=QUIET) as pool:
                await trio.sleep(3)
                await nursery.start(partial(trio_rpc.serve, Clerk("a"), address, heartbeat=QUIET))
                assert await pool.stub(Clerk).who() == "a"
        assert not scope.cancelled_caught
        nursery.cancel_scope.cancel()
    told = [record.getMessage() for record in caplog.records]
    assert any("cannot be refreshed" in text for text in told)
    assert any("failed while it was ended" in text for text in told)


@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize("there", [False, True])
async def test_who_has_left_is_not_remembered(
    seen: bool, there: bool, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A set that changes all day fills no memory: not with what timers would have done for it in an hour."""
    sender, resolver = trio.open_memory_channel[Any](10)
    async with watchdog(), trio.open_nursery() as nursery:
        for name in "ab" if there else "b":
            address = f"unix://{tmp_path}/{name}"
            await nursery.start(partial(trio_rpc.serve, Clerk(name), address, heartbeat=QUIET))
        async with trio_rpc.open_pool(resolver, heartbeat=QUIET) as pool:
            sender.send_nowait([f"unix://{tmp_path}/a"])
            await trio.sleep(10)
            assert pool.state.value == ("ready" if there else "transient failure")
            assert len(pool.endpoints if seen else "1") == 1
            left = weakref.ref(pool._hub.upstreams[0])
            sender.send_nowait([f"unix://{tmp_path}/b"])
            await trio.sleep(10)
            assert await pool.stub(Clerk).who() == "b"
            for _ in range(2):  # Its endpoint goes first.
                gc.collect()
            assert left() is None
        nursery.cancel_scope.cancel()


# -- what it costs, and what survives ----------------------------------------------------------------------------------


def steps_of(function: Callable[..., Awaitable[Any]], *args: Any) -> int:
    """How many functions of the library are entered meanwhile."""
    count = 0

    def note(frame: Any, event: str, _arg: Any) -> None:
        nonlocal count
        count += event == "call" and "trio_rpc" in frame.f_code.co_filename

    async def main() -> None:
        async with watchdog():
            await function(*args)

    sys.setprofile(note)
    try:
        trio.run(main, clock=MockClock(autojump_threshold=0))
    finally:
        sys.setprofile(None)
    return count


async def _connect_to(endpoints: int) -> None:
    async with open_street("".join(map(chr, range(200, 200 + endpoints)))) as street:
        await street.pool.wait_connected(1)
        await trio.sleep(1)
        assert street.pool.statistics().connections == endpoints


async def _wait_for(endpoints: int, calls: int) -> None:
    """In vain: nobody listens."""
    down = ConnectError("down")

    async def dial() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        raise down

    dials = {str(number): dial for number in range(endpoints)}
    limits = PoolLimits(connect_backoff=trio_rpc.Backoff(initial=1000, maximum=1000, jitter=0))
    async with trio_rpc.open_pool(dials, limits=limits, heartbeat=QUIET) as pool, trio.open_nursery() as nursery:
        await trio.sleep(1)
        for _ in range(calls):
            nursery.start_soon(pool.stub(Desk).echo, 1)
        await trio.sleep(1)
        assert pool.statistics().waiting == calls
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("function", "few", "many", "times"),
    [(_connect_to, (25,), (100,), 4), (_wait_for, (1, 100), (1, 400), 4), (_wait_for, (20, 50), (80, 200), 4)],
    ids=["endpoints", "calls in line", "both"],
)
def test_nothing_is_quadratic(function: Any, few: tuple[int, ...], many: tuple[int, ...], times: int) -> None:
    """Four times as much of something costs four times as much, for connections made and for calls that wait."""
    assert steps_of(function, *many) <= steps_of(function, *few) * times * 1.3


@pytest.mark.parametrize("what", ["connect", "wait_connected", "check", "drain", "events", "call"])
async def test_whatever_waits_for_a_pool_may_be_cancelled(what: str, autojump_clock: MockClock) -> None:
    """At any point, and the pool is as good as before, or closes."""

    async def scenario() -> None:
        async with open_street("ab", delay=0.1, limits={"max_in_flight": 1}) as street:
            pool = street.pool
            if what == "connect":
                await pool.connect()
            elif what == "wait_connected":
                await pool.wait_connected(2)
            elif what == "check":
                await pool.wait_connected(2)
                await pool.check()
            elif what == "drain":
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(street.stub().hold, 1)
                    await trio.sleep(0.5)
                    await pool.drain()
            elif what == "events":
                async with pool.events() as events:
                    await events.receive()
            else:
                async with trio.open_nursery() as nursery:
                    for _ in range(4):
                        nursery.start_soon(street.stub().who, 0.1)

    await cancel_at_every_checkpoint(scenario)


async def test_slow_start_begins_when_calls_may_begin(autojump_clock: MockClock) -> None:
    """And not while a connection is being prepared."""

    async def prepare(_peer: Peer) -> None:
        await trio.sleep(4)

    async with open_street("ab", on_connect=prepare, limits={"slow_start": 8.0}) as street:
        await street.pool.wait_connected(2)
        assert [endpoint.statistics().share for endpoint in street.pool.endpoints] == [0.1, 0.1]
        await trio.sleep(4)
        assert [endpoint.statistics().share for endpoint in street.pool.endpoints] == [0.5, 0.5]


async def test_health_needs_a_place_at_the_server_too(autojump_clock: MockClock) -> None:
    """One that takes a single call at once would be busy with telling its health, for ever: that is told at once."""
    listener = MemoryListener()
    limits = ServerLimits(max_in_flight=1)
    async with (
        watchdog(),
        trio_rpc.open_server([Desk(), HealthService()], listener, limits=limits, heartbeat=QUIET),
        trio_rpc.open_pool(listener.connect, health_check="", heartbeat=QUIET) as pool,
    ):
        with trio.fail_after(1), pytest.raises(ConnectError, match="one call at a time"):
            await pool.stub(Desk).echo(1)


async def test_a_call_that_went_with_the_hello_speaks_of_its_endpoint(autojump_clock: MockClock) -> None:
    """If there is no answer, that counts for the circuit as of any other call."""
    async with trio.open_nursery() as nursery:

        async def silent() -> trio.abc.Stream:
            await trio.lowlevel.checkpoint()
            ours, theirs = memory_pipe()
            nursery.start_soon(_swallow, theirs)
            return ours

        breaker = CircuitBreaker(consecutive=1)
        limits = PoolLimits(min_connections=0)
        async with trio_rpc.open_pool(silent, breaker=breaker, limits=limits, heartbeat=QUIET) as pool:
            with pytest.raises(trio_rpc.CircuitOpen, match="circuits"):
                await pool.stub(Clerk).who()
            assert pool.endpoints[0].statistics().circuit == "open"
        nursery.cancel_scope.cancel()


async def _swallow(stream: trio.abc.Stream) -> None:
    while await stream.receive_some():
        pass


async def test_drain_lets_calls_between_two_attempts_end(autojump_clock: MockClock) -> None:
    """What the server sent away in the very moment is tried again, as without the drain."""

    async def send_away(peer: ScriptedPeer) -> None:
        await peer.greet()
        request = await peer.expect(RequestReceived)
        await trio.sleep(1)
        await peer.refuse(request, trio_rpc.Code.UNAVAILABLE)
        await peer.send(peer.protocol.goaway(request.id, trio_rpc.Code.UNAVAILABLE, "draining"))
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        server = ScriptedServer(nursery, send_away, greet_and_serve)
        async with trio_rpc.open_pool(server.connect, heartbeat=QUIET) as pool:
            await pool.connect()
            answers: list[Any] = []
            async with trio.open_nursery() as calls:
                calls.start_soon(timed, Street(pool, {}, {}, trio.current_time()), partial(pool.call, "A.b"), answers)
                await trio.sleep(0.5)
                await pool.drain()
            assert [result for result, _ in answers] == ["A.b"]
        nursery.cancel_scope.cancel()


async def test_who_waits_learns_that_all_circuits_have_opened(autojump_clock: MockClock) -> None:
    """Then, and not when its time in line is over; who waits for ready gets a place once one is closed again."""
    breaker = CircuitBreaker(consecutive=1, backoff=trio_rpc.Backoff(initial=3, jitter=0))
    limits = {"max_connections": 1, "max_in_flight": 1}
    async with open_street("a", breaker=breaker, limits=limits) as street, trio.open_nursery() as nursery:
        await street.pool.connect()

        answers: list[Any] = []
        nursery.start_soon(timed, street, partial(street.stub().refuse, 1), answers)
        await trio.sleep(0.5)
        nursery.start_soon(timed, street, street.stub(wait_for_ready=True).who, answers)
        nursery.start_soon(timed, street, street.stub().who, answers)
        await trio.sleep(5)
        assert sorted(answers) == [("CircuitOpen", 1), ("RemoteError", 1), ("a", 4)]


async def test_a_drain_that_is_cancelled_closes_at_once(autojump_clock: MockClock) -> None:
    """It leaves no pool that is open and takes nothing."""
    async with open_world() as world, trio.open_nursery() as nursery:
        nursery.start_soon(closed_under, world)
        await trio.sleep(0.1)
        with trio.move_on_after(1):
            await world.pool.drain(100)
        await world.pool.aclose()
        assert trio.current_time() < 3


async def closed_under(world: World) -> None:
    """A call that the pool's end stops."""
    with pytest.raises(trio_rpc.PoolClosed):
        await world.stub.hold(60)


async def test_one_deadline_over_many_calls_is_no_failure_of_servers(autojump_clock: MockClock) -> None:
    """Calls that had only just begun when it passed say nothing of their endpoints."""
    async with open_street("ab", breaker=CircuitBreaker(), limits={"max_in_flight": 20}) as street:
        await street.pool.wait_connected(2)
        for _ in range(3):
            with trio.move_on_after(0.02):
                async with trio.open_nursery() as nursery:
                    for _ in range(12):
                        nursery.start_soon(street.stub().who, 0.05)
        seen = [endpoint.statistics() for endpoint in street.pool.endpoints]
        assert [(one.ejected, one.circuit) for one in seen] == [(False, "closed")] * 2
        assert max(one.latency for one in seen) <= 0.05


@pytest.mark.parametrize("answers", [0, 5])
async def test_a_server_that_hangs_fails(autojump_clock: MockClock, answers: int) -> None:
    """The calls' own deadlines tell it, each counted once; what is long depends on what its answers took."""
    breaker = CircuitBreaker(consecutive=3, backoff=trio_rpc.Backoff(initial=100, jitter=0))
    async with open_street("a", breaker=breaker, limits={"max_in_flight": 20}) as street:
        await street.pool.connect()
        for _ in range(answers):
            await street.stub().who(0.1)
        for _ in range(3):
            assert street.pool.endpoints[0].statistics().circuit == "closed"
            with trio.move_on_after(2):
                async with trio.open_nursery() as nursery:
                    for _ in range(4):
                        nursery.start_soon(street.stub().who, 60)
        assert street.pool.endpoints[0].statistics().circuit == "open"


async def test_a_server_that_is_not_well_is_told_as_such(autojump_clock: MockClock) -> None:
    """Not as a lack of places: no further connection is dialled, who waits learns why, who fails fast at once."""
    healths = {"a": HealthService({"Clerk": Status.NOT_SERVING})}
    limits = {"max_connections": 4, "acquire_timeout": 2}
    async with open_street("a", healths=healths, health_check="Clerk", limits=limits) as street:
        async with street.pool.events() as events:
            with pytest.raises(trio_rpc.ConnectError, match="the health of 'Clerk' is NOT_SERVING"):
                await street.pool.connect()
            assert street.pool.state is trio_rpc.Connectivity.TRANSIENT_FAILURE
            with pytest.raises(trio_rpc.PoolTimeout, match="the health of 'Clerk' is NOT_SERVING"):
                await street.stub().who()
            assert street.now() == 2
            with pytest.raises(trio_rpc.ConnectError, match="NOT_SERVING"):
                await street.stub(wait_for_ready=False).who()
            assert (street.now(), street.pool.statistics().connects) == (2, 1)
            healths["a"].set("Clerk", Status.SERVING)
            assert await street.stub().who() == "a"
            kinds = [events.receive_nowait().kind for _ in range(events.statistics().current_buffer_used)]
            assert [kind for kind in kinds if kind.endswith("healthy")] == ["unhealthy", "healthy"]


async def test_a_policy_may_leave_refusals_alone(autojump_clock: MockClock) -> None:
    """Then a full server is told at once, and not at the end of the caller's patience."""
    limits = trio_rpc.ServerLimits(max_calls=1)
    async with open_world(server_limits=limits) as world, trio.open_nursery() as nursery:
        nursery.start_soon(world.stub.hold, 3)
        await trio.sleep(1)
        began = trio.current_time()
        with pytest.raises(trio_rpc.Overloaded) as caught:
            await world.pool.stub(Desk, retry=RetryPolicy(refusals=False)).echo(1)
        assert (trio.current_time(), caught.value.attempts, world.stats.retries) == (began, 1, 0)
        assert await world.stub.echo(1) == 1
        assert trio.current_time() > began + 1


async def test_why_connections_were_closed(autojump_clock: MockClock) -> None:
    """An event tells it of each."""
    async with open_world(max_connections=2, max_in_flight=1, idle_timeout=5, max_lifetime=100) as world:
        world.pool.rng = lambda: 0.0
        async with world.pool.events() as events, trio.open_nursery() as nursery:
            nursery.start_soon(world.stub.hold, 1)
            nursery.start_soon(world.stub.hold, 1)
            await trio.sleep(20)
            world.pool.recycle()
            await trio.sleep(101)
            await world.server.drain()
            await trio.sleep(1)
            told = [events.receive_nowait() for _ in range(events.statistics().current_buffer_used)]
    closed = [event.detail for event in told if event.kind == "closed"]
    assert closed == ["not needed", "recycle", "max_lifetime", "the server goes away"]


async def test_a_probe_closes_its_circuit_on_a_real_clock() -> None:
    """There, no two readings are the same: which call is the probe must not depend on that."""
    breaker = CircuitBreaker(consecutive=1, backoff=trio_rpc.Backoff(initial=0.02, jitter=0))
    async with open_street("a", breaker=breaker) as street:
        await street.pool.connect()
        for _ in range(3):
            with pytest.raises(trio_rpc.RemoteError):
                await street.stub().refuse()
            assert street.pool.endpoints[0].statistics().circuit != "closed"
            await trio.sleep(0.05)
            assert await street.stub().who() == "a"
            assert street.pool.endpoints[0].statistics().circuit == "closed"
