"""Options and addresses that cannot be meant: one sentence that says what, where and what to do, before anything is done."""

from __future__ import annotations

import math
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

import trio_rpc
from trio_rpc import (
    AdaptiveLimit,
    Backoff,
    CircuitBreaker,
    Code,
    ConnectError,
    Endpoint,
    Heartbeat,
    HedgePolicy,
    OutlierEjection,
    PoolLimits,
    RetryPolicy,
    RoundRobin,
    ServerLimits,
    method,
)
from trio_rpc.resolvers import Polled, dns, static
from trio_rpc.testing import MemoryListener, memory_pipe, open_loopback


class Shop:
    @method
    async def add(self, a: int, b: int) -> int:
        return a + b


class Onion:
    """An interceptor that has to be made first."""

    async def __call__(self, call: Any, call_next: Any) -> Any:
        return await call_next(call)


async def around(call: Any, call_next: Any) -> Any:
    """An interceptor."""
    return await call_next(call)


LISTENER = MemoryListener()
BOTH: list[tuple[str, Any, str]] = [
    ("heartbeat", None, "must be a Heartbeat, not None: write Heartbeat(interval=...), where None sends no pings"),
    ("heartbeat", 5, "must be a Heartbeat, not 5: write Heartbeat(interval=...)"),
    ("heartbeat", Heartbeat, "must be a Heartbeat, not the class Heartbeat: write Heartbeat()"),
    ("interceptors", around, "must be a list of async functions, not <function around at "),
    ("interceptors", around, ": write interceptors=[around]"),
    ("interceptors", None, "must be a list of async functions, not None"),
    ("interceptors", "log", "must be a list of async functions, not 'log'"),
    ("interceptors", {around}, "must be a list of async functions, not {<function"),
    ("interceptors", [around, 5], "[1] must be a function, `async def interceptor(call, call_next)`, not 5"),
    ("interceptors", [Onion], "[0] must be a function, `async def interceptor(call, call_next)`, not the class Onion"),
]
POOL: list[tuple[str, Any, str]] = [
    ("limits", ServerLimits(), "must be a PoolLimits, not a ServerLimits: a pool has PoolLimits(...), a server Ser"),
    ("limits", 4, "must be a PoolLimits, not 4"),
    ("limits", None, "must be a PoolLimits, not None"),
    ("retry", 3, "must be a RetryPolicy, not 3: write RetryPolicy(attempts=...), where 1 means no further one"),
    ("retry", HedgePolicy(), "must be a RetryPolicy, not a HedgePolicy"),
    ("codec", ["json"], "must be a text, not ['json']: a name like 'msgpack'"),
    ("codec", None, "must be a text, not None"),
    ("credentials", 7, "must be a text, a mapping, or a function that returns one of these, not int"),
    ("metadata", "key=value", "must be a mapping of texts, or None, not of type str"),
    ("metadata", {1: "secret"}, "must have texts as keys, not 1"),
    ("metadata", {"token": 42424242}, "['token'] must be a text or bytes, not of type int"),
    ("services", Shop, "Shop is a class, and objects are served: write `Shop(...)`"),
    ("services", 5, "int "),
    *BOTH,
]
DIALLED: list[tuple[str, Any, str]] = [
    ("hedge", 0.1, "must be a HedgePolicy or None, not 0.1: write HedgePolicy(delay=...)"),
    ("balance", "round_robin", "must be a PowerOfTwo, a RoundRobin or a LeastInFlight, not 'round_robin': write Power"),
    ("balance", RoundRobin, "not the class RoundRobin: write RoundRobin()"),
    ("balance", None, "LeastInFlight, not None"),
    (
        "ejection",
        True,
        "must be an OutlierEjection or None, not True: write OutlierEjection(), or None for no ejection",
    ),
    ("ejection", OutlierEjection, "not the class OutlierEjection: write OutlierEjection()"),
    ("breaker", True, "must be a CircuitBreaker or None, not True: write CircuitBreaker(), or None for no breaker"),
    ("breaker", CircuitBreaker, "not the class CircuitBreaker: write CircuitBreaker()"),
    ("health_check", True, "must be a text or None, not True: write the name of a service, like 'Inventory'"),
    ("health_check", Shop, "must be a text or None, not the class Shop"),
    ("on_connect", 5, "must be a function, `async def on_connect(peer)`, or None, not 5"),
    (
        "ssl_context",
        True,
        "must be an SSLContext, a function that returns one, or None, not True: write ssl.create_def",
    ),
    ("ssl_context", "cert.pem", "must be an SSLContext, a function that returns one, or None, not 'cert.pem': write"),
    ("ssl_context", ssl.SSLContext, "a function that returns one, or None, not the class SSLContext"),
    ("ssl_context", trio.sleep_forever, "is asked at each handshake and is not awaited: write a plain function"),
]
SERVER: list[tuple[str, Any, str]] = [
    ("limits", PoolLimits(), "must be a ServerLimits, not a PoolLimits: a pool has PoolLimits(...), a server Server"),
    ("limits", {}, "must be a ServerLimits, not {}"),
    ("adaptive", True, "must be an AdaptiveLimit or None, not True: write AdaptiveLimit(), or None for no such limit"),
    ("adaptive", AdaptiveLimit, "not the class AdaptiveLimit: write AdaptiveLimit()"),
    ("authenticate", 5, "must be a function, `async def authenticate(credentials, origin)`, or None, not 5"),
    ("authorize", ["Shop.add"], "must be a function, `def authorize(peer, method)`, or None, not ['Shop.add']"),
    ("debug", "no", "must be True or False, not 'no'"),
    ("allow_insecure", "no", "must be True or False, not 'no'"),
    ("codecs", "json", "must be a list of names, not 'json': write codecs=['json']"),
    ("codecs", None, "must be a list of names like 'msgpack', not None"),
    ("codecs", [5], "must hold names like 'msgpack', not 5"),
    ("codecs", [], "is empty, so that no client could connect: name some, like ['msgpack', 'json']"),
    (
        "ssl_context",
        True,
        "must be an SSLContext, a function that returns one, or None, not True: write ssl.create_def",
    ),
    *BOTH,
]


async def open_and_fail(opening: Any) -> None:
    """The block of something that must not open."""
    async with opening:
        raise AssertionError("opened")


async def never() -> trio.abc.Stream:
    """No pool may get as far as this."""
    raise AssertionError("dialled")


POOLS: dict[str, Callable[..., Awaitable[None]]] = {
    "open_pool": lambda **options: open_and_fail(trio_rpc.open_pool(never, **options)),
    "run_pool": lambda **options: trio_rpc.run_pool(never, **options),
}
CONNECTIONS: dict[str, Callable[..., Awaitable[None]]] = {
    "open_connection": lambda **options: open_and_fail(trio_rpc.open_connection(memory_pipe()[0], **options)),
}
SERVERS: dict[str, Callable[..., Awaitable[None]]] = {
    "open_server": lambda **options: open_and_fail(trio_rpc.open_server(Shop(), LISTENER, **options)),
    "serve": lambda **options: trio_rpc.serve(Shop(), LISTENER, **options),
    "serve_listeners": lambda **options: trio_rpc.serve_listeners(Shop(), [LISTENER], **options),
    "serve_stream": lambda **options: trio_rpc.serve_stream(Shop(), memory_pipe()[0], **options),
}


@pytest.mark.parametrize(
    ("openings", "name", "value", "complaint"),
    [
        *((POOLS | CONNECTIONS, *case) for case in POOL),
        *((POOLS, *case) for case in DIALLED),
        *((SERVERS, *case) for case in SERVER),
    ],
)
async def test_an_option_of_the_wrong_type(
    openings: dict[str, Callable[..., Awaitable[None]]], name: str, value: Any, complaint: str
) -> None:
    """Every way in names the option, what it takes, what it got and what to write; nothing is opened."""
    for opening in openings.values():
        with trio.fail_after(1), pytest.raises((TypeError, ValueError)) as caught:
            await opening(**{name: value})
        text = str(caught.value)
        assert complaint in text
        assert text.startswith(name) or name == "services"
        assert len(text) < 250
        assert "\n" not in text
        assert "42424242" not in text  # A value of metadata may be secret.


async def test_options_that_are_right() -> None:
    """What may be None is None, and a tuple is a list."""
    async with open_loopback(
        Shop(), interceptors=(around, Onion()), server_interceptors=(Onion(),), metadata={"a": "b", "c": b"d"}
    ) as pool:
        assert await pool.stub(Shop).add(1, 2) == 3
    async with (
        trio_rpc.open_server(Shop(), listener := MemoryListener(), codecs=("json",), ssl_context=None),
        trio_rpc.open_pool(listener.connect, codec="json", ejection=None, ssl_context=None) as pool,
    ):
        assert await pool.stub(Shop).add(1, 2) == 3


class Empty:
    """A service that counts for nothing as a truth value."""

    def __len__(self) -> int:
        return 0

    @method
    async def hello(self) -> str:
        return "hello"


async def test_a_service_that_is_empty_is_served_all_the_same() -> None:
    """What a pool serves is not asked whether it is true."""
    listener = MemoryListener()

    class Caller:
        @method
        async def call_back(self) -> str:
            answer: str = await trio_rpc.current_call().peer.stub(Empty).hello()
            return answer

    async with trio_rpc.open_server(Caller(), listener), trio_rpc.open_pool(listener.connect, services=Empty()) as pool:
        assert await pool.stub(Caller).call_back() == "hello"


# -- on_connect --------------------------------------------------------------------------------------------------------


async def test_an_on_connect_that_cannot_be_awaited(autojump_clock: trio.testing.MockClock) -> None:
    """It is told with the first connection, to those who wait already, and dialling again is no use."""
    seen: list[Any] = []

    def plain(peer: Any) -> Any:
        seen.append(peer)

    began = trio.current_time()
    async with open_loopback(Shop(), on_connect=plain) as pool:
        for _ in range(3):
            with pytest.raises(
                ConnectError, match=r"on_connect must be an async function: .*plain.* returned None"
            ) as caught:
                await pool.stub(Shop).add(1, 2)
            assert caught.value.permanent
            assert not caught.value.may_have_run
    assert trio.current_time() == began
    assert len(seen) == 1


async def test_a_target_that_cannot_be_awaited(autojump_clock: trio.testing.MockClock) -> None:
    """So is a function that opens no stream, or returns one at once."""
    dial: Any = lambda: memory_pipe()[0]  # noqa: E731
    for target in (dial, {"shop": dial}):
        began = trio.current_time()
        async with trio_rpc.open_pool(target) as pool:
            for _ in range(3):
                with pytest.raises(ConnectError, match=r"must be an async function that opens a stream: it returned"):
                    await pool.stub(Shop).add(1, 2)
        assert trio.current_time() == began


async def test_an_on_connect_that_is_called_like_an_async_function() -> None:
    """A lambda that returns a coroutine is as good as one."""
    seen: list[Any] = []

    async def prepare(peer: Any) -> None:
        seen.append(await peer.stub(Shop).add(1, 2))

    async with open_loopback(Shop(), on_connect=lambda peer: prepare(peer)) as pool:
        assert await pool.stub(Shop).add(1, 2) == 3
    assert seen == [3]


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "name", "value", "complaint"),
    [
        (PoolLimits, "autostart", "no", "autostart must be True or False, not 'no'"),
        (PoolLimits, "spread", None, "spread must be True or False, not None"),
        (PoolLimits, "connect_backoff", 1.0, "connect_backoff must be a Backoff, not 1.0: write Backoff(initial=...)"),
        (RetryPolicy, "backoff", 1.0, "backoff must be a Backoff, not 1.0: write Backoff(initial=...)"),
        (RetryPolicy, "backoff", Backoff, "backoff must be a Backoff, not the class Backoff: write Backoff()"),
        (RetryPolicy, "refusals", 1, "refusals must be True or False, not 1"),
        (RetryPolicy, "budget", 0.2, "budget must be a RetryBudget or None, not 0.2: write RetryBudget(ratio=...)"),
        (RetryPolicy, "throttle", 10, "throttle must be a RetryThrottle or None, not 10: write RetryThrottle(tokens="),
        (
            RetryPolicy,
            "codes",
            Code.UNAVAILABLE,
            "codes must be a set of codes, not one alone: write {Code.UNAVAILABLE}",
        ),
        (
            RetryPolicy,
            "codes",
            "UNAVAILABLE",
            "codes must be a set of codes like {Code.UNAVAILABLE}, not 'UNAVAILABLE'",
        ),
        (RetryPolicy, "codes", None, "codes must be a set of codes like {Code.UNAVAILABLE}, not None"),
        (RetryPolicy, "codes", ["UNAVAILABLE"], "codes must hold codes like Code.UNAVAILABLE, not 'UNAVAILABLE'"),
        (RetryPolicy, "codes", [14], "codes must hold codes like Code.UNAVAILABLE, not 14"),
        (CircuitBreaker, "backoff", 5, "backoff must be a Backoff, not 5: write Backoff(initial=...)"),
        (PoolLimits, "max_waiting", ["x" * 1000], "max_waiting must be a number, not ['xxx"),
    ],
)
def test_a_setting_of_the_wrong_type(make: Any, name: str, value: Any, complaint: str) -> None:
    """One short sentence, and not a page of attrs' own."""
    with pytest.raises(TypeError) as caught:
        make(**{name: value})
    assert str(caught.value).startswith(complaint)
    assert len(caught.value.args) == 1
    assert len(str(caught.value)) < 160


# -- drain -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grace", "complaint"),
    [
        ("5", "grace must be a number of seconds, or None for no bound, not '5'"),
        (True, "grace must be a number of seconds, or None for no bound, not True"),
        (-1, "grace must be at least 0, and finite, or None for no bound, not -1"),
        (math.nan, "grace must be at least 0, and finite, or None for no bound, not nan"),
        (math.inf, "grace must be at least 0, and finite, or None for no bound, not inf"),
    ],
)
async def test_a_drain_without_a_number(grace: Any, complaint: str) -> None:
    """It is told, and nothing is drained."""
    listener = MemoryListener()
    async with trio_rpc.open_server(Shop(), listener) as server, trio_rpc.open_pool(listener.connect) as pool:
        for drain in (server.drain, pool.drain):
            with pytest.raises((TypeError, ValueError)) as caught:
                await drain(grace)
            assert str(caught.value) == complaint
        assert await pool.stub(Shop).add(1, 2) == 3


async def test_a_drain_without_a_bound(autojump_clock: trio.testing.MockClock) -> None:
    """None waits for as long as the calls take, on both sides."""

    class Slow:
        @method
        async def sleep(self) -> str:
            await trio.sleep(10_000)
            return "slept"

    slept: list[str] = []
    for side in ("server", "pool"):
        listener = MemoryListener()
        heartbeat = Heartbeat(interval=None)
        async with (
            trio_rpc.open_server(Slow(), listener, heartbeat=heartbeat) as server,
            trio_rpc.open_pool(listener.connect, heartbeat=heartbeat) as pool,
            trio.open_nursery() as nursery,
        ):

            async def call(pool: trio_rpc.Pool = pool) -> None:
                slept.append(await pool.stub(Slow).sleep())

            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            await (server.drain(None) if side == "server" else pool.drain(None))
    assert slept == ["slept"] * 2


# -- where to connect to, and to listen on -----------------------------------------------------------------------------


async def sets() -> AsyncIterator[list[str]]:
    """A resolver, once it is called."""
    yield ["tcp://a:1"]


TARGETS: list[tuple[Any, str]] = [
    ("tcp://a:1,b:2", "'tcp://a:1,b:2' is more than one address: write a list of them, ['tcp://a:1', 'tcp://b:2']"),
    ("tcp://a:1, tcp://b:2", "is more than one address: write a list of them, ['tcp://a:1', 'tcp://b:2']"),
    ("tls://a:1 tcp://b:2", "is more than one address: write a list of them, ['tls://a:1', 'tcp://b:2']"),
    ("unix:///a,unix:@b", "is more than one address: write a list of them, ['unix:///a', 'unix:@b']"),
    (["tcp://a:1,b:2"], "is more than one address"),
    (
        ["tcp://a:1", "dns://b:2"],
        "'dns://b:2' is a resolver, which stands alone: open_pool('dns://b:2'), not in a list",
    ),
    (["file:///run/servers"], "'file:///run/servers' is a resolver, which stands alone"),
    ("dns://localhost:0", "'dns://localhost:0' has port 0, which is for listening: write the servers' port"),
    ("dns://a,b:7000", "'dns://a,b:7000' names no host and port: write dns://host:port"),
    ("tcp://127.0.0.1", "'tcp://127.0.0.1' has no valid port: write tcp://host:port with a port from 1 to 65535"),
    ("tcp://127.0.0.1:0", "tcp://127.0.0.1:0 has port 0, which is for listening: write the server's port"),
    ("tcp://:7000", "tcp://:7000 has no host, which is for listening: write the server's, like 127.0.0.1"),
    ("tcp://a b:7000", "'tcp://a b:7000' has no valid host: 'a b' is no name, and no address in numbers"),
    ("tcp://user@host:7000", "'user@host' is no name"),
    ("tcp://a:1:2", "'a:1' is no name"),
    ("tcp://[::1:7000", "'[::1' is no name"),
    ("unix://app.sock", "'unix://app.sock' has no whole path: write unix:///... with a path that begins with /"),
    ("unix:app.sock", "'unix:app.sock' has no whole path"),
    ([], "a pool needs at least one endpoint: the list of addresses is empty"),
    ({}, "a pool needs at least one endpoint: the mapping is empty"),
    ({"a": "tcp://a:1"}, "'a' must map to an async function that opens a stream, not to 'tcp://a:1': for addresses"),
    ({"a": 5}, "'a' must map to an async function that opens a stream, not to 5"),
    ({5: never}, "a name of an endpoint must be a text, not 5"),
    (b"tcp://a:1", "an address is a text like 'tcp://127.0.0.1:7000', not b'tcp://a:1'"),
    ([b"tcp://a:1"], "an address is a text like 'tcp://127.0.0.1:7000', not b'tcp://a:1'"),
    (sets, "sets is an async generator function, and a resolver is what it gives: write sets()"),
]


@pytest.mark.parametrize(("target", "complaint"), TARGETS)
async def test_a_target_that_cannot_be_meant(target: Any, complaint: str) -> None:
    """It is told before anything is dialled."""
    with pytest.raises((TypeError, ValueError)) as caught:
        await open_and_fail(trio_rpc.open_pool(target))
    assert complaint in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("services", "address", "complaint"),
    [
        (Shop(), [], "a server needs an address or listener: the list is empty"),
        ([], LISTENER, "nothing is served: give an object with methods under @trio_rpc.method, or several of them"),
        ((), LISTENER, "nothing is served"),
        (Shop(), "tcp://127.0.0.1", "'tcp://127.0.0.1' has no valid port: write tcp://host:port with a port from 0 to"),
        (Shop(), "tcp://127.0.0.1:0,localhost:0", "is more than one address"),
        (Shop(), "unix://app.sock", "has no whole path"),
        (Shop(), ["tcp://a b:0"], "'a b' is no name"),
        (Shop(), Endpoint("tcp://127.0.0.1:7000"), "an address is a text like 'tcp://127.0.0.1:7000', not Endpoint("),
        (Shop(), [5], "an address is a text like 'tcp://127.0.0.1:7000', not 5"),
    ],
)
async def test_a_server_that_cannot_be_meant(services: Any, address: Any, complaint: str) -> None:
    """Nothing to serve, or nowhere to: told before anything is opened."""
    with pytest.raises((TypeError, ValueError)) as caught:
        await open_and_fail(trio_rpc.open_server(services, address))
    assert complaint in str(caught.value)


async def test_what_is_no_stream() -> None:
    """Nor is a list of them."""
    not_a_stream: Any = [memory_pipe()[0]]
    for opening in (
        open_and_fail(trio_rpc.open_connection(not_a_stream)),
        trio_rpc.serve_stream(Shop(), not_a_stream),
    ):
        with pytest.raises(TypeError, match=r"^stream must be a Stream, not \["):
            await opening


@pytest.mark.parametrize("host", ["a", "my_host", "bücher.example", "127.0.0.1", "[::1]", "::1", "[fe80::1%eth0]", "*"])
def test_hosts(host: str) -> None:
    """What is a name to somebody's resolver is one to us."""
    assert str(Endpoint(f"tcp://{host}:1"))


async def inventory() -> list[str]:
    """What a resolver looks at."""
    raise AssertionError("looked")


class Maker:
    """Calls of anything, without its types."""

    endpoint: Any = Endpoint
    dns: Any = staticmethod(dns)
    polled: Any = Polled
    static: Any = staticmethod(static)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Maker.endpoint("tls://a:1", hostname="a b"), "hostname must be a name like 'db.example.org', without"),
        (lambda: Maker.endpoint("tls://a:1", hostname="a:1"), "hostname must be a name like 'db.example.org', without"),
        (
            lambda: Maker.endpoint("tls://a:1", hostname=5),
            "hostname must be a name like 'db.example.org', or None, not 5",
        ),
        (lambda: Maker.endpoint("dns://a:1"), "'dns://a:1' is a resolver, which stands alone"),
        (lambda: Maker.endpoint(5), "an address is a text like 'tcp://127.0.0.1:7000', not 5"),
        (lambda: Maker.dns("localhost:7000", 7000), "'localhost:7000' is no host name: write one like"),
        (lambda: Maker.dns("a b", 7000), "'a b' is no host name"),
        (lambda: Maker.dns(5, 7000), "host must be a name like 'db.example.org', not 5"),
        (lambda: Maker.dns("a", "7000"), "port must be a whole number, not '7000'"),
        (lambda: Maker.dns("a", 7000, interval="30"), "interval must be a number of seconds, not '30'"),
        (lambda: Maker.polled(5, interval=1), "look must be an async function that returns the whole set, not 5"),
        (lambda: Maker.polled(["tcp://a:1"], interval=1), "look must be an async function that returns the whole set"),
        (lambda: Maker.polled(inventory, interval=None), "interval must be a number of seconds, not None"),
        (lambda: Maker.polled(inventory, interval=1, timeout=True), "timeout must be a number of seconds, not True"),
        (lambda: Maker.static(), "a static set needs at least one endpoint: it would stay empty for good"),
        (lambda: Maker.static(["tcp://a:1"]), "an address is a text like 'tcp://127.0.0.1:7000', not ['tcp://a:1']"),
    ],
)
def test_endpoints_and_resolvers_that_cannot_be_meant(make: Callable[[], object], complaint: str) -> None:
    """Where they are made, and not where they are used."""
    with pytest.raises((TypeError, ValueError)) as caught:
        make()
    assert str(caught.value).startswith(complaint)
