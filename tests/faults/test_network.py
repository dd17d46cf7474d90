"""Bad networks: real sockets between two machines that are namespaces, or through a proxy that spoils what passes.

What needs no network of its own is shown elsewhere: stopped and killed peers in test_processes, dials and names in
test_happy_eyeballs and test_endpoints, a peer that speaks something else in test_bad_input.

Bounds in real time are held by the best of a few tries where they are short; what is raised is held in every try.
"""

from __future__ import annotations

import itertools
import ssl
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Any, TypeVar

import pytest
import trio
import trustme

import trio_rpc
from tests.faults.namespaces import SERVER, Direction, Names, Pair, Unavailable, open_nat, open_pair
from tests.faults.proxy import Proxy, open_proxy, reset
from tests.faults.tunnel import Conditions, open_tunnel
from tests.faults.watched import cut, open_watched
from tests.guarantees.kit import RawClient
from tests.test_processes import served
from trio_rpc import (
    Backoff,
    ConnectError,
    ConnectionLost,
    Heartbeat,
    PeerUnresponsive,
    PoolLimits,
    RpcError,
    ServerLimits,
    method,
)

T = TypeVar("T")

BEAT = Heartbeat(0.5, 0.5)
SILENCE = 0.5 + 0.5 + 0.3
"""From a fault to the error: interval, timeout, and some time to act."""
PORT = 7000
PATIENCE = 20
"""Real seconds for what takes a few."""
AT_ONCE = 0.05
QUICK = Backoff(initial=0.02, maximum=0.02)
TRIES = 5


class Service:
    """`runs` and `running` tell what its handlers have done."""

    def __init__(self) -> None:
        self.runs = self.running = 0

    @method
    async def echo(self, value: Any) -> Any:
        return value

    @method
    async def sleep(self, seconds: float) -> float:
        self.running += 1
        try:
            await trio.sleep(seconds)
        finally:
            self.running -= 1
        return seconds

    @method
    async def text(self, size: int) -> str:
        return "x" * size

    @method
    async def size(self, data: bytes) -> int:
        self.runs += 1
        return len(data)

    @method
    async def once(self) -> None:
        self.runs += 1

    @method(idempotent=True)
    async def again(self) -> None:
        self.runs += 1

    @method
    async def count(self, upto: int) -> AsyncGenerator[str, None]:
        for number in range(upto):
            yield str(number).rjust(1000)


Between = tuple[trio_rpc.Server, Service, trio_rpc.Pool]


@contextmanager
def or_skip(opening: AbstractContextManager[T]) -> Iterator[T]:
    """Skip the test where the machine cannot do it, with the reason."""
    with ExitStack() as stack:
        try:
            opened = stack.enter_context(opening)
        except Unavailable as exc:
            pytest.skip(str(exc))
        yield opened


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two machines."""
    with or_skip(open_pair()) as pair:
        yield pair


@asynccontextmanager
async def service_on(
    pair: Pair, heartbeat: Heartbeat = BEAT, port: int = PORT, *, names: Sequence[str] = (), **options: Any
) -> AsyncIterator[Between]:
    """A server on the one machine, and a pool on the other, which knows it by its name; both at this heartbeat."""
    service = Service()
    with trio.fail_after(PATIENCE), Names({SERVER: names or [pair.server.ip]}).known():
        async with AsyncExitStack() as stack:
            with pair.server.sockets():
                address = f"tcp://{pair.server.ip}:{port}"
                opening = trio_rpc.open_server(service, address, heartbeat=heartbeat, allow_insecure=True)
                server = await stack.enter_async_context(opening)
            stack.enter_context(pair.client.sockets())
            pool = await stack.enter_async_context(
                trio_rpc.open_pool(f"tcp://{SERVER}:{port}", heartbeat=heartbeat, **options)
            )
            if pool.statistics().dialling:  # While these are the run's sockets and names.
                await pool.connect()
            yield server, service, pool


@asynccontextmanager
async def service_behind_proxy(
    authority: trustme.CA | None = None,
    heartbeat: Heartbeat = BEAT,
    limits: PoolLimits = PoolLimits(connect_backoff=QUICK),  # noqa: B008 - frozen
    server_limits: ServerLimits = ServerLimits(),  # noqa: B008 - frozen
) -> AsyncIterator[tuple[Service, Proxy, trio_rpc.Pool]]:
    """A server and a pool on this machine, and a proxy between them; at this heartbeat on both sides."""
    service, scheme, contexts = Service(), "tcp" if authority is None else "tls", secured(authority)
    async with (
        trio_rpc.open_server(
            service,
            f"{scheme}://127.0.0.1:0",
            ssl_context=contexts[0],
            limits=server_limits,
            heartbeat=heartbeat,
        ) as server,
        open_proxy("127.0.0.1", int(server.addresses[0].rpartition(":")[2])) as proxy,
    ):
        address = proxy.address.replace("tcp", scheme)
        async with trio_rpc.open_pool(address, ssl_context=contexts[1], limits=limits, heartbeat=heartbeat) as pool:
            await pool.connect()
            yield service, proxy, pool


def secured(authority: trustme.CA | None) -> tuple[ssl.SSLContext | None, ssl.SSLContext | None]:
    """The contexts of a server and of its clients; none without an authority."""
    if authority is None:
        return None, None
    server, client = (ssl.SSLContext(kind) for kind in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT))
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    return server, client


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that nobody tells."""
    with trio.fail_after(PATIENCE / 2):
        while not condition():  # noqa: ASYNC110 - there is no event
            await trio.sleep(0.005)


async def best_of(attempt: Callable[[], Awaitable[float]], bound: float) -> None:
    """Hold a bound in one of a few tries."""
    taken: list[float] = []
    while len(taken) < TRIES:
        taken.append(await attempt())
        if taken[-1] <= bound:
            return
    raise AssertionError(f"never within {bound} s: {taken}")


async def fails(failures: list[ConnectionLost], pool: trio_rpc.Pool, name: str, *args: Any) -> None:
    """Make a call that ends with its connection."""
    with pytest.raises(ConnectionLost) as caught:
        await pool.call(name, *args)
    failures.append(caught.value)


@asynccontextmanager
async def calling(pool: trio_rpc.Pool, callers: int = 1) -> AsyncIterator[list[float]]:
    """Small calls all the time, each of which must succeed; how long they took."""
    taken: list[float] = []

    async def call(value: int) -> None:
        while True:
            start = trio.current_time()
            assert await pool.call("Service.echo", value) == value
            taken.append(trio.current_time() - start)
            await trio.sleep(0.02)

    async with trio.open_nursery() as nursery:
        for value in range(callers):
            nursery.start_soon(call, value)
        yield taken
        nursery.cancel_scope.cancel()


# -- lines that are cut ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["both", "to_server", "to_client"])
async def test_what_is_lost_on_the_way_is_noticed_on_both_sides(pair: Pair, direction: Direction) -> None:
    """N03, N04, N05: whichever direction loses everything, both sides give the connection up in interval + timeout,
    with calls in flight and without.

    Who gives up first resets the connection: an orderly end would wait in its kernel, behind a ping that nobody
    acknowledges, and the other side would go on for another interval.
    """
    with pair.names(), trio.fail_after(PATIENCE):
        async with open_watched(pair, PORT, BEAT, calls=0) as idle, open_watched(pair, PORT + 1, BEAT, calls=5) as busy:
            at = await cut(pair, direction, [idle, busy], 0.55)  # Right behind a ping, which is the worst moment.
    for watched in (idle, busy):
        losses = watched.client_losses + watched.server_losses
        assert [0.5 <= loss.at - at <= SILENCE for loss in losses] == [True, True], (at, losses)
        assert any(loss.by_silence for loss in losses)


async def test_a_line_that_is_lost_under_bulk_is_noticed_too(pair: Pair) -> None:
    """N03: acknowledgements of bulk, which delay the verdict on a slow line, have ended with the line."""
    pair.client.set_rate(2000)
    failures: list[ConnectionLost] = []
    async with service_on(pair) as (server, _, pool):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails, failures, pool, "Service.size", bytes(3 << 20))
            await trio.sleep(1.6)
            at = trio.current_time()
            pair.drop("both", PORT)
        assert 0.3 <= trio.current_time() - at <= SILENCE
        await until(lambda: server.statistics().connections == 0)
        assert trio.current_time() - at <= SILENCE
    assert isinstance(failures[0], PeerUnresponsive)


@pytest.mark.parametrize("side", ["client", "server"])
async def test_a_cable_that_is_pulled_for_a_moment_costs_nothing(pair: Pair, side: str) -> None:
    """N04, N05: link down and up within 0.5 s: TCP mends it, and no call fails."""
    async with service_on(pair, Heartbeat(1, 1)) as (server, _, pool), calling(pool) as answers:
        machine = pair.client if side == "client" else pair.server
        await until(lambda: len(answers) > 5)
        machine.set_link("down")
        await trio.sleep(0.45)
        machine.set_link("up")
        before = len(answers)
        await until(lambda: len(answers) > before + 5)
        assert max(answers) > 0.4
        statistics = pool.statistics()
        assert (statistics.connects, statistics.errors, server.statistics().evicted) == (1, 0, 0)


# -- ends that come from the middle ------------------------------------------------------------------------------------


async def test_a_reset_between_frames_is_seen_at_once() -> None:
    """N06: each call in flight fails within 50 ms, and may have run; the next call is on another connection."""

    async def attempt() -> float:
        async with service_behind_proxy() as (service, proxy, pool):
            failures: list[ConnectionLost] = []
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(fails, failures, pool, "Service.sleep", 30)
                await until(lambda: service.running == 5)
                at = trio.current_time()
                proxy.reset()
            took = trio.current_time() - at
            assert [failure.may_have_run for failure in failures] == [True] * 5
            assert await pool.call("Service.echo", "again") == "again"
            await until(lambda: service.running == 0)
        return took

    await best_of(attempt, AT_ONCE)


@pytest.mark.parametrize("end", ["reset_after", "close_after"])
@pytest.mark.parametrize("size", [0, 9, 11, 100, 40_000, 99_000])
async def test_a_result_that_is_cut_off_is_no_result(end: str, size: int) -> None:
    """N06, N07: RST or FIN in the middle of a frame: the call fails, and no part of its result is handed out."""

    async def attempt() -> float:
        failures: list[ConnectionLost] = []
        async with service_behind_proxy() as (_, proxy, pool):
            assert await pool.call("Service.echo", "ready") == "ready"
            setattr(proxy.to_client, end, proxy.to_client.passed + size)
            await fails(failures, pool, "Service.text", 100_000)
            took = trio.current_time() - proxy.to_client.ended_at
        assert failures[0].may_have_run
        return took

    await best_of(attempt, AT_ONCE)


@pytest.mark.parametrize("end", ["reset_after", "close_after"])
@pytest.mark.parametrize("size", [9, 11, 40_000, 99_000])
async def test_a_request_that_is_cut_off_is_not_run(end: str, size: int) -> None:
    """N06, N07: RST or FIN in the middle of a request: no handler is entered, and the call fails at once."""
    failures: list[ConnectionLost] = []
    async with service_behind_proxy() as (service, proxy, pool):
        assert await pool.call("Service.echo", "ready") == "ready"
        setattr(proxy.to_server, end, proxy.to_server.passed + size)
        with trio.fail_after(2):
            await fails(failures, pool, "Service.size", bytes(100_000))
        assert await pool.call("Service.size", b"again") == 5
        assert (failures[0].may_have_run, service.runs) == (True, 1)


async def test_items_that_were_whole_are_kept() -> None:
    """N06: of a stream that is reset, the consumer gets whole items, in order and without a gap, then the error."""
    async with service_behind_proxy() as (_, proxy, pool):
        items: list[str] = []
        proxy.to_client.reset_after = 50_000
        with pytest.raises(ConnectionLost):
            async with pool.stream("Service.count", 100) as stream:
                async for item in stream:
                    items.append(item)  # noqa: PERF401 - the stream ends with an error
        assert items == [str(number).rjust(1000) for number in range(len(items))]
        assert len(items) < 50


async def test_a_client_that_shuts_its_writing_side_has_gone() -> None:
    """N07: half-close is an end: the server cancels what it does for that client, and closes its own side too."""
    service = Service()
    async with trio_rpc.open_server(service, "tcp://127.0.0.1:0") as server:
        stream = await trio.open_tcp_stream("127.0.0.1", int(server.addresses[0].rpartition(":")[2]))
        client = RawClient(stream)
        await client.greet()
        await client.send(client.request("Service.sleep", 30))
        await until(lambda: service.running == 1)
        await stream.send_eof()
        with trio.fail_after(1):
            assert await client.closed()
        await until(lambda: (service.running, server.statistics().connections) == (0, 0))
        await stream.aclose()


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("ahead", [True, False], ids=["just before the call", "just after it"])
async def test_a_middlebox_ends_an_idle_connection_as_a_call_begins(pair: Pair, side: str, ahead: bool) -> None:
    """N22: what is said not to have run has not, nothing else ran twice, and idempotent calls succeed."""

    def kill() -> None:
        machine, port = (pair.client, "dport") if side == "client" else (pair.server, "sport")
        machine.kill_sockets(f"{port} = :{PORT}")

    async with service_on(pair, limits=PoolLimits(connect_backoff=QUICK)) as (_, service, pool):
        try:
            kill()
        except Unavailable as exc:
            pytest.skip(str(exc))
        for name in ("once", "again") * 4:
            await trio.sleep(0.05)
            await until(lambda: pool.statistics().connections == 1)
            before, failure = service.runs, None
            try:
                async with trio.open_nursery() as nursery:
                    if ahead:
                        kill()
                    nursery.start_soon(pool.stub(Service).again if name == "again" else pool.stub(Service).once)
                    if not ahead:
                        await trio.lowlevel.checkpoint()
                        kill()
            except* ConnectionLost as group:
                (failure,) = group.exceptions
            await trio.sleep(0.05)
            ran = service.runs - before
            if name == "again":
                assert (failure, ran >= 1) == (None, True)
            elif failure is None:
                assert ran == 1
            else:
                assert isinstance(failure, ConnectionLost)
                assert ran <= failure.may_have_run


# -- lines that are bad ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conditions", "heartbeat"),
    [
        pytest.param(Conditions(delay=0.05, jitter=0.01, duplicate=0.2), Heartbeat(1, 1), id="N08"),
        pytest.param(Conditions(delay=0.005, loss=0.05), Heartbeat(), id="N09"),
    ],
)
async def test_a_bad_line_costs_time_and_no_call(conditions: Conditions, heartbeat: Heartbeat) -> None:
    """N08, N09: delay, reordering and duplicates, or loss: every call is answered, and nobody is given up."""
    with or_skip(open_tunnel(conditions)) as tunnel:
        async with service_on(tunnel, heartbeat) as (server, _, pool), calling(pool, 5) as answers:
            for _ in range(3):
                assert await pool.call("Service.size", bytes(100_000)) == 100_000
            await until(lambda: len(answers) > 100)
            assert min(answers) >= 2 * (conditions.delay - conditions.jitter)
            statistics = pool.statistics()
            assert (statistics.errors, statistics.lost, server.statistics().evicted) == (0, 0, 0)
        assert (pool.statistics().in_flight, server.statistics().in_flight) == (0, 0)
    done = tunnel.to_server
    assert (done.lost > 0) == (conditions.loss > 0)
    assert (done.duplicated > 0) == (done.overtook > 0) == (conditions.duplicate > 0)


async def test_bulk_on_a_slow_line_starves_no_heartbeat(pair: Pair) -> None:
    """N10: a ping that waits in the sender's own kernel, behind bulk that moves, condemns nobody; in either direction.

    1 MiB at 256 kbit/s takes half a minute; this is a sixth of it, and still longer than interval and timeout.
    """
    beat, size, limits = Heartbeat(1, 1), 300_000, PoolLimits(max_connections=1)
    with or_skip(open_pair()) as other:
        for machine in (pair.client, other.server):
            machine.set_rate(512)
        async with (
            service_on(pair, beat, limits=limits) as (up_server, _, up),
            service_on(other, beat, limits=limits) as (down_server, _, down),
            trio.open_nursery() as nursery,
        ):
            start = trio.current_time()
            for pool, call in (
                (up, partial(up.call, "Service.size", bytes(size))),
                (down, partial(down.call, "Service.text", size)),
            ):
                nursery.start_soon(call)
                assert await pool.call("Service.echo", "quick") == "quick"
        assert trio.current_time() - start > 4
        for pool, server in ((up, up_server), (down, down_server)):
            assert (pool.statistics().connects, pool.statistics().evicted, server.statistics().evicted) == (1, 0, 0)


async def test_a_write_that_goes_on_slowly_is_not_stuck(pair: Pair) -> None:
    """N10: the kernel takes more only once much has gone: acknowledgements are progress too, heartbeat or not."""
    pair.client.set_rate(256)
    limits = PoolLimits(max_connections=1, write_timeout=1.0)
    async with service_on(pair, Heartbeat(interval=None), limits=limits) as (_, _service, pool):
        assert await pool.call("Service.size", bytes(130_000)) == 130_000
        assert (pool.statistics().connects, pool.statistics().evicted) == (1, 0)


async def test_a_drip_of_single_bytes_is_correct() -> None:
    """N11: both ways, in slices of one byte: calls and streams are what they are, only slower."""
    async with service_behind_proxy(heartbeat=Heartbeat()) as (_, proxy, pool):
        for way in (proxy.to_server, proxy.to_client):
            way.slice, way.slice_delay = 1, 0.0001  # Which is a millisecond.
        value = {"text": "ä" * 100, "list": list(range(200))}
        with trio.fail_after(PATIENCE):
            assert await pool.call("Service.echo", value) == value
            async with pool.stream("Service.count", 1) as stream:
                assert [item.strip() async for item in stream] == ["0"]
        assert (pool.statistics().connects, pool.statistics().lost) == (1, 0)


def flipping(place: int) -> Callable[[bytes], bytes]:
    """Flips one bit of the byte that passes at this place, counted from now."""
    passed = 0

    def flip(data: bytes) -> bytes:
        nonlocal passed
        offset, passed = place - passed, passed + len(data)
        if not 0 <= offset < len(data):
            return data
        return data[:offset] + bytes([data[offset] ^ 1 << place % 8]) + data[offset + 1 :]

    return flip


@pytest.mark.parametrize("way", ["to_server", "to_client"])
@pytest.mark.parametrize("place", [0, 3, 5, 30])
async def test_flipped_bits_under_tls_end_the_connection(way: str, place: int) -> None:
    """N12: a record's own checksum finds each of them: the call fails as its connection does, and the next one is well."""
    async with service_behind_proxy(trustme.CA()) as (_, proxy, pool):
        assert await pool.call("Service.echo", "well") == "well"
        failures: list[ConnectionLost] = []
        getattr(proxy, way).corrupt = flipping(place)
        with trio.fail_after(PATIENCE / 4):
            await fails(failures, pool, "Service.echo", "to be spoilt")
        assert await pool.call("Service.echo", "well") == "well"
        assert proxy.accepted == 2


HEADER = 10
"""Bytes of a frame's header: length, id, kind, flags."""


async def test_flipped_bits_without_tls_never_hang() -> None:
    """N12: plaintext has no checksum: what TCP's own lets pass is a wrong value at worst, and an error in a header."""
    outcomes: dict[str, Counter[str]] = {"header": Counter(), "payload": Counter()}

    async def spoil(way: str, place: int) -> None:
        limits, server_limits = PoolLimits(frame_timeout=1.0), ServerLimits(frame_timeout=1.0)
        async with service_behind_proxy(limits=limits, server_limits=server_limits) as (_, proxy, pool):
            getattr(proxy, way).corrupt = flipping(place)
            try:
                outcome = str(await pool.call("Service.echo", "value") == "value")
            except RpcError as exc:
                outcome = type(exc).__name__
            outcomes["header" if place < HEADER else "payload"][outcome] += 1
            getattr(proxy, way).corrupt = bytes
            with trio.fail_after(PATIENCE / 4):
                assert await pool.call("Service.echo", "well") == "well"

    with trio.fail_after(PATIENCE / 2):
        async with trio.open_nursery() as nursery:
            for way in ("to_server", "to_client"):
                for place in range(25):
                    nursery.start_soon(spoil, way, place)
    assert outcomes["header"].total() == 2 * HEADER
    assert outcomes["header"]["ConnectionLost"] >= HEADER
    assert outcomes["header"]["False"] == 0, outcomes  # True is that of another attempt, as the first was not run.


async def test_a_router_that_forgets_idle_connections() -> None:
    """N13: a heartbeat shorter than its memory keeps the connection; a longer one finds out, in interval + timeout."""
    with or_skip(open_nat(expiry=2)) as pair:
        async with (
            service_on(pair, BEAT) as (_, _s, often),
            service_on(pair, Heartbeat(3, 0.5), PORT + 1) as (_, _s, rare),
        ):
            start = trio.current_time()
            async with rare.events() as events:
                assert 3.4 <= await next_of(events, "lost") - start < 3.8
            for pool, connects in ((often, 1), (rare, 2)):
                assert await pool.call("Service.echo", "there") == "there"
                assert (pool.statistics().connects, pool.statistics().evicted) == (connects, connects - 1)


# -- ways that do not lead there ---------------------------------------------------------------------------------------


async def test_an_address_that_swallows_everything_costs_a_quarter_second(pair: Pair) -> None:
    """N15: of two addresses the first is a black hole: the second is tried after 250 ms, and taken."""
    pair.server.ip_batch("addr add 10.77.0.3/24 dev eth0")
    pair.server.rules("ip daddr 10.77.0.3 drop")
    limits = PoolLimits(autostart=False)
    async with service_on(pair, names=["10.77.0.3", pair.server.ip], limits=limits) as (_, _service, pool):
        start = trio.current_time()
        await pool.connect()
        assert 0.25 <= trio.current_time() - start < 1
        assert await pool.call("Service.echo", "through") == "through"


@pytest.mark.parametrize(
    ("rule", "message", "least"),
    [
        pytest.param("reject with tcp reset", "Connection refused", 0.0, id="refused"),
        pytest.param("drop", "did not answer within 0.4 s", 0.4, id="walled off"),
    ],
)
async def test_a_server_that_cannot_be_reached(pair: Pair, rule: str, message: str, least: float) -> None:
    """N18: refused at once; behind a wall, by `connect_timeout`; and found once the wall is gone."""
    pair.server.rules(f"tcp dport {PORT} {rule}")
    limits = PoolLimits(connect_timeout=0.4, connect_backoff=Backoff(initial=0.1, maximum=0.1), autostart=False)
    async with service_on(pair, limits=limits) as (_, service, pool):
        start = trio.current_time()
        with pytest.raises(ConnectError, match=message) as caught:
            await pool.connect()
        assert least <= trio.current_time() - start < least + 0.2
        assert not caught.value.may_have_run
        pair.heal()
        await pool.call("Service.once")
        assert service.runs == 1


async def test_a_client_without_ports_goes_on_when_there_are_some(pair: Pair) -> None:
    """R04: EADDRNOTAVAIL is a ConnectError, and nothing ran; dials keep the back-off's distance, with jitter."""
    pair.client.set_ports(40_000, 40_009)
    limits = PoolLimits(
        connect_backoff=Backoff(initial=0.1, factor=2.0, maximum=0.4, jitter=0.5), acquire_timeout=0.2, autostart=False
    )
    async with service_on(pair, limits=limits) as (_, service, pool):
        with pair.client.sockets():
            hoard = [trio.socket.socket() for _ in range(10)]
            for taken in hoard:
                await taken.connect((pair.server.ip, PORT))
        async with pool.events() as events:
            with pytest.raises(ConnectError, match="Cannot assign requested address") as caught:
                await pool.connect()
            assert not caught.value.may_have_run
            with pytest.raises(trio_rpc.PoolTimeout, match="Cannot assign requested address") as late:
                await pool.call("Service.once")
            assert (late.value.may_have_run, service.runs) == (False, 0)
            failed = [await next_of(events, "connect_failed") for _ in range(5)]
        gaps = [round(later - earlier, 4) for earlier, later in itertools.pairwise(failed)]
        assert min(gaps) >= 0.05
        assert len(set(gaps)) == len(gaps), gaps
        for taken in hoard:
            reset(trio.SocketStream(taken))
        await until(lambda: pool.statistics().connections == 1)
        await pool.call("Service.once")
        assert service.runs == 1


async def next_of(events: trio.MemoryReceiveChannel[trio_rpc.PoolEvent], kind: str) -> float:
    """When the next event of this kind was."""
    async for event in events:
        if event.kind == kind:
            return event.time
    raise AssertionError("there are no more events")


# -- time --------------------------------------------------------------------------------------------------------------


async def test_our_own_stall_evicts_nobody_and_deadlines_pass() -> None:
    """N19: a loop that stood still for far longer than interval + timeout: deadlines that passed fire, and the rest
    lives.
    """
    async with served() as (_, address), trio_rpc.open_pool(address, heartbeat=BEAT) as pool:
        await pool.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.call, "Work.sleep", 2.5)
            with trio.move_on_after(0.6) as deadline:
                nursery.start_soon(stall, 0.51, 1.5)  # As a ping has left.
                await pool.call("Work.sleep", 30)
            assert deadline.cancelled_caught
        assert (pool.statistics().connects, pool.statistics().evicted) == (1, 0)


async def stall(after: float, seconds: float) -> None:
    """Hold up the whole loop."""
    await trio.sleep(after)
    time.sleep(seconds)  # noqa: ASYNC251 - that is the fault


@pytest.mark.parametrize("hours", [1, -1])
async def test_the_wall_clock_means_nothing(hours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """N20: it jumps by an hour with calls in flight: deadlines, heartbeats and the pool go by the monotonic clock."""
    real = time.time
    async with service_behind_proxy() as (service, _, pool):
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.call, "Service.sleep", 0.8)
            with trio.move_on_after(0.6) as deadline:
                await until(lambda: service.running == 1)
                monkeypatch.setattr(time, "time", lambda: real() + 3600 * hours)
                await pool.call("Service.sleep", 30)
            assert deadline.cancelled_caught
            assert 0.5 <= trio.current_time() - start < 2
        assert (pool.statistics().connects, pool.statistics().lost) == (1, 0)
