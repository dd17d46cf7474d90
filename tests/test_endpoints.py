"""Pools of several endpoints: which there are, how they come and go, and what of that a caller sees: nothing."""

from __future__ import annotations

import math
import ssl
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trustme
from trio.testing import MockClock

import trio_rpc
from tests.scripted import watchdog
from trio_rpc import Backoff, ConnectError, Endpoint, PoolLimits, PoolTimeout, RoundRobin, method
from trio_rpc.resolvers import Polled, dns, static, watched_file

QUIET = trio_rpc.Heartbeat(interval=None)
NO_JITTER = Backoff(jitter=0)
AUTHORITY = trustme.CA()


class Desk:
    """Says who it is, soon or late."""

    def __init__(self, name: str) -> None:
        self.name = name

    @method
    async def who(self) -> str:
        return self.name

    @method
    async def hold(self, seconds: float) -> str:
        await trio.sleep(seconds)
        return self.name


@attrs.define
class Town:
    """Servers of one letter each, and a channel whose receiving end is a resolver."""

    nursery: trio.Nursery
    path: Path
    servers: dict[str, trio_rpc.Server] = attrs.Factory(dict)
    scopes: dict[str, trio.CancelScope] = attrs.Factory(dict)
    began: float = attrs.Factory(trio.current_time)
    channel: Any = attrs.Factory(lambda: trio.open_memory_channel[Any](100))

    async def start(self, names: str) -> None:
        """Start these servers."""
        for name in names:
            self.scopes[name] = trio.CancelScope()
            self.servers[name] = await self.nursery.start(self._serve, name)

    def stop(self, name: str) -> None:
        """End one, connections and all."""
        self.scopes[name].cancel()

    def at(self, names: str) -> list[str]:
        """Their addresses."""
        return [f"unix://{self.path}/{name}" for name in names]

    def tell(self, names: str) -> None:
        """Let these be the whole set."""
        self.channel[0].send_nowait(self.at(names))

    @property
    def told(self) -> Any:
        """The resolver."""
        return self.channel[1]

    def names(self, pool: trio_rpc.Pool) -> str:
        """What a pool takes for the whole set."""
        return "".join(target.address[-1] for target in pool.endpoints)

    def now(self) -> float:
        """Seconds since the beginning."""
        return round(trio.current_time() - self.began, 6)

    async def _serve(self, name: str, task_status: trio.TaskStatus[trio_rpc.Server]) -> None:
        with self.scopes[name]:
            (address,) = self.at(name)
            await trio_rpc.serve(Desk(name), address, heartbeat=QUIET, task_status=task_status)


@asynccontextmanager
async def open_town(path: Path, names: str) -> AsyncIterator[Town]:
    """Servers at sockets in a directory, on an autojump clock; what passes between them takes no time."""
    async with watchdog(), trio.open_nursery() as nursery:
        town = Town(nursery, path)
        await town.start(names)
        yield town
        nursery.cancel_scope.cancel()


def open_pool(target: Any, *, balance: Any = RoundRobin(), **limits: Any) -> Any:  # noqa: B008 - frozen
    """A pool whose turns and delays can be foretold."""
    limits.setdefault("connect_backoff", NO_JITTER)
    return trio_rpc.open_pool(target, balance=balance, heartbeat=QUIET, limits=PoolLimits(**limits))


async def ask(pool: trio_rpc.Pool, times: int) -> dict[str, int]:
    """Who answers so many calls, one after the other."""
    return Counter([await pool.stub(Desk).who() for _ in range(times)])


# -- lists -------------------------------------------------------------------------------------------------------------


async def test_calls_go_to_all_endpoints_of_a_list(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Addresses and endpoints in any iterable, in their order; each has a stub of its own."""
    async with open_town(tmp_path, "abc") as town:
        a, b, c = town.at("abc")
        for target in [[a, Endpoint(b), c], (address for address in (a, b, c)), static(a, b, Endpoint(c))]:
            async with open_pool(target) as pool:
                await pool.wait_connected(3)
                assert [endpoint.address for endpoint in pool.endpoints] == [a, b, c]
                assert [await stub.who() for stub in pool.stubs(Desk)] == ["a", "b", "c"]
                assert await ask(pool, 30) == {"a": 10, "b": 10, "c": 10}


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ({"a": 1, "b": 3}, {"a": 10, "b": 30}),
        ({"a": 0.25, "b": 0.75}, {"a": 10, "b": 30}),
        ({"a": 2, "b": 1, "c": 1}, {"a": 20, "b": 10, "c": 10}),
    ],
)
async def test_weights_are_shares(
    weights: dict[str, float], shares: dict[str, int], tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Of the calls, in proportion."""
    async with open_town(tmp_path, "abc") as town:
        target = [Endpoint(address, weight) for name, weight in weights.items() for address in town.at(name)]
        async with open_pool(target) as pool:
            await pool.wait_connected(len(weights))
            assert await ask(pool, 40) == shares


async def test_what_is_listed_twice_gets_twice_as_much(tmp_path: Path, autojump_clock: MockClock) -> None:
    """It is one endpoint, however it is spelled, with the weight of both."""
    async with open_town(tmp_path, "ab") as town:
        a, b = town.at("ab")
        async with open_pool([a, b, a.replace("unix://", "unix:"), Endpoint(b, 0.5)]) as pool:
            await pool.wait_connected(2)
            assert [(each.address, each.statistics().weight) for each in pool.endpoints] == [(a, 2), (b, 1.5)]
            assert pool.statistics().connections == 2


# -- live sets ---------------------------------------------------------------------------------------------------------


async def test_a_new_set_replaces_the_old_one(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Who is new is dialled at once; who is gone gets no calls, and those that it has come to their end."""
    async with open_town(tmp_path, "abc") as town, open_pool(town.told) as pool:
        town.tell("ab")
        await pool.wait_connected(2)
        stub = pool.stub(Desk)
        held: list[tuple[str, float]] = []

        async def hold() -> None:
            held.append((await stub.hold(5), town.now()))

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(hold)
            await trio.sleep(1)
            gone = pool.endpoints[0]
            town.tell("bc")
            await trio.testing.wait_all_tasks_blocked()
            await pool.wait_connected(2)
            assert town.now() == 1
            assert town.names(pool) == "bc"
            assert await ask(pool, 20) == {"b": 10, "c": 10}
            assert town.servers["a"].statistics().in_flight == 2
            assert gone.state is trio_rpc.Connectivity.SHUTDOWN
        assert sorted(held) == [("a", 5), ("a", 5), ("b", 5), ("b", 5)]
        await trio.testing.wait_all_tasks_blocked()
        assert town.now() == 5
        assert [town.servers[name].statistics().connections for name in "abc"] == [0, 1, 1]


async def test_who_waits_is_served_by_another(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A call in line for a place belongs to no endpoint: it goes to the first place in the new set."""
    async with open_town(tmp_path, "ab") as town, open_pool(town.told, max_in_flight=1, max_connections=1) as pool:
        town.tell("a")
        await pool.connect()
        answers: list[tuple[str, float]] = []

        async def hold(seconds: float) -> None:
            answers.append((await pool.stub(Desk).hold(seconds), town.now()))

        async with trio.open_nursery() as nursery:
            for seconds in (10, 1):
                nursery.start_soon(hold, seconds)
                await trio.testing.wait_all_tasks_blocked()
            await trio.sleep(2)
            town.tell("b")
        assert answers == [("b", 3), ("a", 10)]


async def test_an_endpoint_that_is_dialled_in_vain_may_go(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Its dials end with it; nothing of it is left in what the pool tells."""
    async with open_town(tmp_path, "a") as town, open_pool(town.told) as pool:
        town.tell("ax")
        await trio.sleep(10)
        assert pool.statistics().connect_errors > 3
        town.tell("a")
        await trio.testing.wait_all_tasks_blocked()
        before = pool.statistics()
        assert (before.dialling, before.endpoints) == (0, 1)
        await trio.sleep(1000)
        assert pool.statistics().connects == before.connects
        assert await ask(pool, 3) == {"a": 3}


async def test_an_endpoint_comes_back(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Even while the calls of its first time are still under way."""
    async with open_town(tmp_path, "ab") as town, open_pool(town.told) as pool:
        town.tell("a")
        await pool.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.stub(Desk).hold, 10)
            for names in "b", "ab":
                await trio.sleep(1)
                town.tell(names)
            await trio.sleep(1)
            assert await ask(pool, 10) == {"a": 5, "b": 5}
            assert town.servers["a"].statistics().connections == 2
        await trio.testing.wait_all_tasks_blocked()
        assert [town.servers[name].statistics().connections for name in "ab"] == [1, 1]


async def test_what_stays_keeps_its_connections(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Another order, or another weight, dials nothing; the weight holds from the next call on."""
    async with open_town(tmp_path, "ab") as town, open_pool(town.told) as pool:
        town.tell("ab")
        await pool.wait_connected(2)
        assert await ask(pool, 20) == {"a": 10, "b": 10}
        a, b = town.at("ab")
        town.channel[0].send_nowait([Endpoint(b, 3), a])
        await trio.testing.wait_all_tasks_blocked()
        assert town.names(pool) == "ba"
        assert await ask(pool, 40) == {"a": 10, "b": 30}
        assert pool.statistics().connects == 2


async def test_one_endpoint_becomes_several(tmp_path: Path, autojump_clock: MockClock) -> None:
    """What was connected before there was a choice is measured from then on, like all the others."""
    async with open_town(tmp_path, "ab") as town, open_pool(town.told, balance=trio_rpc.PowerOfTwo()) as pool:
        town.tell("a")
        await pool.connect()
        town.tell("ab")
        await pool.wait_connected(2)
        for stub in pool.stubs(Desk):
            await stub.hold(1)
        assert all(endpoint.statistics().latency > 0.9 for endpoint in pool.endpoints)


# -- resolvers that fail -----------------------------------------------------------------------------------------------


async def test_an_empty_answer_changes_nothing(tmp_path: Path, autojump_clock: MockClock) -> None:
    """It is more often a fault of the registry than the truth."""
    async with open_town(tmp_path, "ab") as town, open_pool(town.told) as pool:
        town.tell("ab")
        await pool.wait_connected(2)
        town.tell("")
        await trio.sleep(10)
        assert await ask(pool, 10) == {"a": 5, "b": 5}
        town.tell("b")
        await trio.sleep(1)
        assert await ask(pool, 10) == {"b": 10}


async def test_an_empty_first_answer(tmp_path: Path, autojump_clock: MockClock) -> None:
    """With nothing to keep, it is a reason to fail for those who do not wait."""
    async with open_town(tmp_path, "a") as town, open_pool(town.told) as pool:
        town.tell("")
        with pytest.raises(ConnectError, match="has no endpoint"):
            await pool.connect()
        assert pool.state.value == "transient failure"
        with pytest.raises(ConnectError, match="has no endpoint"):
            await pool.stub(Desk, wait_for_ready=False).who()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(at, 3, partial(town.tell, "a"))
            assert await pool.stub(Desk).who() == "a"
            assert town.now() == 3


class Flaky:
    """A resolver that yields one set after the other, a second apart, and raises what is an error; the last one holds."""

    def __init__(self, *steps: Any) -> None:
        self.steps = list(steps)
        self.at: list[float] = []
        self.closed = self.refreshed = 0
        self._began = trio.current_time()

    async def __aiter__(self) -> AsyncGenerator[Any, None]:
        self.at.append(round(trio.current_time() - self._began, 6))
        try:
            while True:
                step = self.steps.pop(0)
                if isinstance(step, Exception):
                    raise step
                yield step
                await trio.sleep(1 if self.steps else math.inf)
        finally:
            self.closed += 1

    def refresh(self) -> None:
        self.refreshed += 1


async def test_a_resolver_that_raises_is_asked_anew(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """With the back-off of dials, which a set ends; the last good one stays; it is logged, and told to those who watch."""
    async with open_town(tmp_path, "ab") as town:
        down = RuntimeError("registry down")
        resolver = Flaky(town.at("a"), down, down, town.at("ab"), down, town.at("ab"))
        async with open_pool(resolver) as pool, pool.events() as events:
            shares = []
            for seconds in (0.5, 1.5, 2.5, 4, 6):
                await trio.sleep(town.began + seconds - trio.current_time())
                shares.append(await ask(pool, 10))
            assert shares == [{"a": 10}, {"a": 10}, {"a": 10}, {"a": 5, "b": 5}, {"a": 5, "b": 5}]
            assert resolver.at == [0, 2, 3.6, 5.6]
            happened = [event async for event in _so_far(events)]
        failures = [event for event in happened if event.kind == "resolver_failed"]
        assert [(event.time - town.began, event.error and event.error.__cause__) for event in failures] == [
            (1, down),
            (2, down),
            (pytest.approx(4.6), down),
        ]
        assert ["registry down" in record.getMessage() for record in caplog.records] == [True] * 3
        assert resolver.closed == len(resolver.at)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (["tcp://a"], "'tcp://a' has no valid port"),
        (["tcp://a:0"], "port 0, which is for listening"),
        ([b"tcp://a:1"], "an address is a text"),
        (7, "not iterable"),
        ([Endpoint("tls://a:1"), Endpoint("tls://a:1", hostname="b")], "two hostnames"),
    ],
)
async def test_a_set_that_cannot_be_changes_nothing(
    bad: Any, reason: str, tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told, and passed over: the iteration goes on to the next one."""
    async with open_town(tmp_path, "ab") as town:
        resolver = Flaky(town.at("a"), bad, town.at("b"))
        async with open_pool(resolver) as pool, pool.events() as events:
            for seconds, names in [(0.5, "a"), (1.5, "a"), (2.5, "b")]:
                await trio.sleep(town.began + seconds - trio.current_time())
                assert await ask(pool, 3) == {names: 3}
            failures = [event async for event in _so_far(events) if event.kind == "resolver_failed"]
            assert [reason in str(event.error) for event in failures] == [True]
            assert [reason in record.getMessage() for record in caplog.records] == [True]
        assert (resolver.at, resolver.closed) == ([0], 1)


async def test_sets_for_tls_without_tls(autojump_clock: MockClock) -> None:
    """An endpoint that does not go with the pool's ssl_context is such a set, too: nothing is sent in the clear."""
    async with trio_rpc.open_pool(static("tcp://a:1"), ssl_context=client_context()) as pool:
        with pytest.raises(PoolTimeout, match="tcp://a:1 and ssl_context do not go together: write tls://a:1"):
            await pool.stub(Desk).who()


async def test_a_failure_after_a_good_set(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Calls go on as if nothing had happened."""
    async with open_town(tmp_path, "ab") as town, open_pool(town.told) as pool:
        for names in "ab", "b":
            town.tell(names)
            await trio.sleep(1)
            town.channel[0].send_nowait(["nonsense"])
            await trio.sleep(1)
            assert await ask(pool, 10) == Counter(names * (10 // len(names)))
            await trio.sleep(100)


async def test_a_resolver_may_end(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Then its last set stays."""

    async def once() -> AsyncGenerator[Any, None]:
        yield town.at("a")
        await trio.sleep(1)
        yield town.at("ab")

    async with open_town(tmp_path, "ab") as town, open_pool(once()) as pool:
        await trio.sleep(1000)
        assert await ask(pool, 10) == {"a": 5, "b": 5}


async def test_closing_ends_the_resolver(tmp_path: Path, autojump_clock: MockClock) -> None:
    """At once, and also one that is in the middle of its work."""
    async with open_town(tmp_path, "a") as town:
        resolver = Flaky(town.at("a"))
        async with open_pool(resolver) as pool:
            await pool.connect()
        assert (resolver.closed, town.now()) == (1, 0)


async def test_the_resolver_hears_of_lost_servers(tmp_path: Path, autojump_clock: MockClock) -> None:
    """At once, and with each dial that fails, if it has a `refresh`: what it said may be out of date."""
    async with open_town(tmp_path, "ab") as town:
        resolver = Flaky(town.at("ab"))
        async with open_pool(resolver) as pool:
            await pool.wait_connected(2)
            await trio.sleep(5)
            assert resolver.refreshed == 0
            town.stop("b")
            await trio.testing.wait_all_tasks_blocked()
            failed = resolver.refreshed
            assert failed > 0
            await trio.sleep(5)
            assert resolver.refreshed > failed
            assert await ask(pool, 3) == {"a": 3}


async def _so_far(events: trio.MemoryReceiveChannel[trio_rpc.PoolEvent]) -> AsyncGenerator[trio_rpc.PoolEvent, None]:
    """What has happened up to now."""
    await trio.lowlevel.checkpoint()
    while events.statistics().current_buffer_used:
        yield events.receive_nowait()


async def test_before_the_first_answer(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Calls wait for the first set; who waits in vain learns why there is none."""
    async with open_town(tmp_path, "a") as town:
        async with open_pool(town.told) as pool, trio.open_nursery() as nursery:
            nursery.start_soon(at, 3, partial(town.tell, "a"))
            assert await pool.stub(Desk).who() == "a"
            assert town.now() == 3


@pytest.mark.parametrize("kind", ["polled", "raises", "nonsense"])
async def test_without_any_endpoint(kind: str, tmp_path: Path, autojump_clock: MockClock) -> None:
    """Who waits in vain learns why there is none; who fails fast, or only connects, at once; and then all goes well."""

    async def look() -> Any:
        if trio.current_time() - town.began < 8:
            raise OSError("registry down")
        return town.at("a")

    async with open_town(tmp_path, "a") as town:
        down = ["registry down"] if kind == "nonsense" else OSError("registry down")
        resolver: Any = Flaky(*[down] * 8, town.at("a"))
        if kind == "polled":
            resolver = Polled(look, interval=1, name="registry")
            resolver.rng = lambda: 0.5
        async with open_pool(resolver, acquire_timeout=4, connect_backoff=Backoff(factor=1, jitter=0)) as pool:
            stub = pool.stub(Desk)
            assert pool.state.value == "idle"
            with pytest.raises(ConnectError, match=r"^cannot resolve .*registry down"):
                await pool.connect()
            assert town.now() == 0
            assert pool.state.value == "transient failure"
            with pytest.raises(ConnectError, match="registry down"):
                await pool.connect()
            assert town.now() == 1
            with pytest.raises(ConnectError, match="registry down") as caught:
                await pool.stub(Desk, wait_for_ready=False).who()
            assert (town.now(), caught.value.may_have_run) == (1, False)
            with pytest.raises(PoolTimeout, match="registry down"):
                await stub.who()
            assert town.now() == 5
            assert await stub.who() == "a"
            assert town.now() == 8
            assert pool.state.value == "ready"
        assert getattr(resolver, "watchers", []) == []


async def at(seconds: float, act: Callable[[], object]) -> None:
    """Do it then."""
    await trio.sleep(seconds)
    act()


# -- what is built in, from end to end ---------------------------------------------------------------------------------


@pytest.fixture
def patient_clock() -> MockClock:
    """An autojump clock for sockets and threads of the system, whose doings take a moment of real time."""
    return MockClock(autojump_threshold=0.05)


@asynccontextmanager
async def serving(name: str, address: str, **options: Any) -> AsyncIterator[str]:
    """A server; gives the address that it got."""
    async with trio_rpc.open_server(Desk(name), address, heartbeat=QUIET, **options) as server:
        yield server.addresses[0]


class Names(trio.abc.HostnameResolver):
    """A name server with one name."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        trio.socket.set_custom_hostname_resolver(self)

    async def getaddrinfo(self, host: Any, port: Any, *_options: int, **_named: int) -> Any:
        assert host == b"desk.example.org"
        return [(trio.socket.AF_INET, trio.socket.SOCK_STREAM, 6, "", (ip, port)) for ip in self.addresses]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


async def test_a_name_moves(patient_clock: MockClock) -> None:
    """N14: new connections use the new address within the interval of 30 s; those at the old one end."""
    names = Names("127.0.0.1")
    async with serving("a", "tcp://127.0.0.1:0") as address:
        port = address.rpartition(":")[2]
        async with serving("b", f"tcp://127.0.0.2:{port}"), open_pool(f"dns://desk.example.org:{port}") as pool:
            assert await ask(pool, 4) == {"a": 4}
            names.addresses = ("127.0.0.1", "127.0.0.2")
            await trio.sleep(31)
            assert await ask(pool, 10) == {"a": 5, "b": 5}
            names.addresses = ("127.0.0.2",)
            await trio.sleep(31)
            assert await ask(pool, 4) == {"b": 4}
            assert pool.statistics().connections == 1


async def test_a_name_moves_as_its_server_dies(patient_clock: MockClock) -> None:
    """N14: a lost connection has the name looked up again at once: nobody waits for the interval."""
    names = Names("127.0.0.1")
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def serve_a(task_status: trio.TaskStatus[str]) -> None:
            with scope:
                async with serving("a", "tcp://127.0.0.1:0") as address:
                    task_status.started(address)
                    await trio.sleep_forever()

        port = (await nursery.start(serve_a)).rpartition(":")[2]
        async with serving("b", f"tcp://127.0.0.2:{port}"), open_pool(f"dns://desk.example.org:{port}") as pool:
            assert await ask(pool, 4) == {"a": 4}
            await trio.sleep(5)
            names.addresses = ("127.0.0.2",)
            began = trio.current_time()
            scope.cancel()
            with trio.fail_after(20):
                while await pool.stub(Desk).who() != "b":
                    pass
            assert trio.current_time() - began < 2


@pytest.mark.parametrize("text", [True, False])
async def test_a_file_changes(text: bool, tmp_path: Path, patient_clock: MockClock) -> None:
    """The pool follows; a bad file is told, and changes nothing."""
    path = tmp_path / "servers"
    async with open_town(tmp_path, "ab") as town:
        a, b = town.at("ab")
        path.write_text(f"{a}\n# {b}\n")
        async with open_pool(f"file://{path}" if text else watched_file(path)) as pool, pool.events() as events:
            assert await ask(pool, 4) == {"a": 4}
            for content, event, shares in [
                (f"{a}\n{b} 3\n", "joined", {"a": 5, "b": 15}),
                (f"{b}\nwhat?\n", "resolver_failed", {"a": 5, "b": 15}),
                (f"{b}\n", "left", {"b": 20}),
            ]:
                other = path.with_suffix(".new")
                other.write_text(content)
                other.rename(path)
                while (await events.receive()).kind != event:
                    pass
                await pool.wait_connected(len(shares))
                assert await ask(pool, 20) == shares


def server_context(*names: str) -> ssl.SSLContext:
    """A server's context, with a certificate for `names`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    AUTHORITY.issue_cert(*names).configure_cert(context)
    return context


def client_context() -> ssl.SSLContext:
    """A client's context."""
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    return context


async def test_certificates_are_checked_against_the_endpoints_name(patient_clock: MockClock) -> None:
    """An address in numbers may stand for a name; a certificate for another one is refused, and both are named."""
    _, context = Names("127.0.0.1"), client_context()
    async with serving("a", "tls://127.0.0.1:0", ssl_context=server_context("desk.example.org")) as address:
        port = int(address.rpartition(":")[2])
        targets: list[Any] = [
            Endpoint(address, hostname="desk.example.org"),
            [Endpoint(address, hostname="desk.example.org")],
            dns("desk.example.org", port, scheme="tls"),
            f"dns://desk.example.org:{port}",
            f"tls://desk.example.org:{port}",
        ]
        for target in targets:
            async with trio_rpc.open_pool(target, ssl_context=context) as pool:
                assert await ask(pool, 1) == {"a": 1}
        for hostname, told in [("other.example.org", rf"{address} \(other.example.org\)"), (None, "127.0.0.1")]:
            async with trio_rpc.open_pool(Endpoint(address, hostname=hostname), ssl_context=context) as pool:
                with pytest.raises(ConnectError, match=told) as caught:
                    await pool.connect()
                assert caught.value.permanent


async def test_an_endpoint_gets_another_name(patient_clock: MockClock) -> None:
    """What is dialled from then on is checked against that; what is connected has proved its own."""
    async with serving("a", "tls://127.0.0.1:0", ssl_context=server_context("desk.example.org")) as address:
        send, receive = trio.open_memory_channel[Any](10)
        send.send_nowait([Endpoint(address, hostname="other.example.org")])
        async with trio_rpc.open_pool(receive, ssl_context=client_context()) as pool:
            with pytest.raises(ConnectError, match=r"other\.example\.org"):
                await pool.stub(Desk).who()
            send.send_nowait([Endpoint(address, hostname="desk.example.org")])
            await trio.sleep(10)
            assert await ask(pool, 1) == {"a": 1}


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "kind", "complaint"),
    [
        (("a",), ValueError, "'a' is no address: write tcp://host:port"),
        (("tcp://a:0",), ValueError, r"tcp://a:0 has port 0, which is for listening: write the server's port"),
        ((7,), TypeError, "an address is a text"),
        (("tcp://a:1", 0), ValueError, "weight must be more than 0 and finite, not 0: leave out what is to get no"),
        (("tcp://a:1", -1.5), ValueError, "weight must be more than 0 and finite, not -1.5"),
        (("tcp://a:1", float("inf")), ValueError, "weight must be more than 0 and finite, not inf"),
        (("tcp://a:1", float("nan")), ValueError, "weight must be more than 0 and finite, not nan"),
        (("tcp://a:1", "2"), TypeError, "weight must be a number, not '2'"),
        (("tcp://a:1", True), TypeError, "weight must be a number, not True"),
        (("tls://a:1", 1, ""), TypeError, "hostname must be a name like 'db.example.org', or None, not ''"),
        (("tls://a:1", 1, b"a"), TypeError, "hostname must be a name"),
        (("tcp://a:1", 1, "b"), ValueError, "tcp://a:1 has no certificate to check 'b' against: write tls://"),
    ],
)
def test_bad_endpoints(arguments: tuple[Any, ...], kind: type[Exception], complaint: str) -> None:
    """One sentence that says what is wrong and what to write."""
    with pytest.raises(kind, match="^" + complaint):
        Endpoint(*arguments)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tcp://a:1", "tcp://a:1"),
        ("tls://[::1]:65535", "tls://[::1]:65535"),
        ("unix:/run/a", "unix:///run/a"),
        ("unix:@a", "unix:@a"),
    ],
)
def test_endpoints_are_values(text: str, address: str) -> None:
    """Equal if they say the same; shown as their address, of which there is one spelling."""
    endpoint = Endpoint(text, 2)
    assert {endpoint, Endpoint(address, weight=2.0)} == {endpoint}
    assert (str(endpoint), endpoint.weight, endpoint.hostname) == (address, 2.0, None)
    assert endpoint != Endpoint(text)


@pytest.mark.parametrize(
    ("target", "kind", "complaint"),
    [
        ([], ValueError, "a pool needs at least one endpoint: the list of addresses is empty"),
        (["tcp://a:1", "b"], ValueError, "'b' is no address"),
        ([["tcp://a:1"]], TypeError, "an address is a text"),
        (
            [Endpoint("tls://a:1", hostname="b"), "tls://a:1"],
            ValueError,
            "tls://a:1 is listed with two hostnames, 'b' and",
        ),
        ("dns://a", ValueError, "'dns://a' names no host and port: write dns://host:port"),
        ("file://a", ValueError, "'file://a' names no file: write file:///path"),
        (7, TypeError, "an address is a text like .*, not 7"),
    ],
)
async def test_targets_that_cannot_be_meant(target: Any, kind: type[Exception], complaint: str) -> None:
    """They are told before anything is dialled."""
    with pytest.raises(kind, match="^" + complaint):
        async with trio_rpc.open_pool(target):
            pass
