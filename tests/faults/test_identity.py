"""Who a peer is: where it comes from, credentials that are wrong, expire or are revoked, and who may call what."""

from __future__ import annotations

import itertools
import json
import logging
import os
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trio
import trio.testing
import trustme

import trio_rpc
from tests.guarantees.kit import Lab, RawClient
from tests.scripted import watchdog
from trio_rpc import (
    Backoff,
    Code,
    Heartbeat,
    Identity,
    Origin,
    PermissionDenied,
    PoolLimits,
    ProcessCredentials,
    RemoteCancelled,
    RemoteProtocolError,
    Server,
    ServerLimits,
    Unauthenticated,
    Unimplemented,
    current_call,
    method,
    open_pool,
    open_server,
)
from trio_rpc._address import Address
from trio_rpc._guesses import HOSTS, Guesses
from trio_rpc._origin import host_of
from trio_rpc.auth import BearerTokens
from trio_rpc.testing import MemoryListener, memory_pipe, no_leaks, open_loopback
from trio_rpc.wire import (
    MAX_ID,
    PREFACE,
    ErrorReceived,
    GoAwayReceived,
    Hello,
    ItemsReceived,
    Outcome,
    PingReceived,
    ResponseReceived,
    method_block,
)

SILENT = Heartbeat(interval=None)
SECRET = "planted-Zugangswort-0815"
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="SO_PEERCRED is Linux's")


@trio_rpc.service(name="Desk")
class Desk(Lab):
    """Tells who calls."""

    @method
    async def who(self) -> Any:
        return current_call().peer.principal

    @method
    async def stock(self) -> int:
        raise NotImplementedError


def now() -> float:
    """The virtual time."""
    return round(trio.current_time(), 6)


def same_for_all(result: Any) -> Callable[[Mapping[str, Any], Origin], Any]:
    """An `authenticate` that lets everybody in."""
    return lambda _credentials, _origin: result


def by_token(credentials: Mapping[str, Any], origin: Origin) -> Any:
    """The token is the principal; what begins with "bad" is none."""
    token = credentials.get("token")
    if token is None or token.startswith("bad"):
        raise Unauthenticated("a valid token is needed")
    return token


@asynccontextmanager
async def a_server(authenticate: Any, **options: Any) -> AsyncIterator[tuple[Desk, Server, MemoryListener]]:
    """A server in memory, without heartbeats."""
    desk, listener = Desk(), MemoryListener()
    async with (
        watchdog(),
        open_server(desk, listener, authenticate=authenticate, heartbeat=SILENT, **options) as server,
    ):
        yield desk, server, listener


async def a_client(listener: MemoryListener, token: str = "anne") -> RawClient:
    """A connection by hand that has said HELLO."""
    client = RawClient(await listener.connect(), Hello(credentials={"token": token}))
    await client.greet()
    return client


def a_pool(listener: MemoryListener, credentials: Any = "anne", **limits: Any) -> Any:
    """A pool of one connection, whose back-off is exact."""
    some: dict[str, Any] = {"max_connections": 1, "connect_backoff": Backoff(initial=1, factor=2, jitter=0), **limits}
    return open_pool(listener.connect, credentials=credentials, limits=PoolLimits(**some), heartbeat=SILENT)


# -- where a connection comes from -------------------------------------------------------------------------------------

AUTHORITY = trustme.CA()


def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """For a server, and for a client that has a certificate."""
    ours, theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    AUTHORITY.issue_cert("127.0.0.1").configure_cert(ours)
    AUTHORITY.issue_cert("worker.example.org").configure_cert(theirs)
    for context in (ours, theirs):
        AUTHORITY.configure_trust(context)
    ours.verify_mode = ssl.CERT_REQUIRED
    return ours, theirs


@pytest.mark.parametrize(
    "place",
    [
        "tcp://127.0.0.1:0",
        "tls://127.0.0.1:0",
        pytest.param("unix://{folder}/app.sock", marks=LINUX),
        pytest.param("unix:@trio-rpc-origin-{pid}", marks=LINUX),
    ],
)
async def test_an_origin_is_what_can_be_known_without_asking(place: str, tmp_path: Path) -> None:
    """`authenticate`, and handlers by their peer, are told the address, the certificate, the TLS and the process."""
    given: list[Origin] = []
    peers: list[trio_rpc.Peer] = []

    class Looks:
        @method
        async def look(self) -> None:
            peers.append(current_call().peer)

    def authenticate(credentials: Mapping[str, Any], origin: Origin) -> None:
        given.append(origin)

    async def on_connect(peer: trio_rpc.Peer) -> None:
        peers.append(peer)

    ours, theirs = contexts() if place.startswith("tls") else (None, None)
    address = place.format(folder=tmp_path, pid=os.getpid())
    async with (
        open_server(Looks(), address, authenticate=authenticate, ssl_context=ours) as server,
        open_pool(server.addresses[0], ssl_context=theirs, on_connect=on_connect) as pool,
    ):
        await pool.stub(Looks).look()
        [origin], [outwards, inwards] = given, peers
        assert inwards.origin == origin
        assert inwards.address == str(origin) == origin.address
        assert (inwards.certificate, inwards.tls, inwards.process) == (origin.certificate, origin.tls, origin.process)
        assert origin.address.startswith(place[:5])
        assert (origin.tls is not None) == (outwards.tls is not None) == place.startswith("tls")
        names = (origin.certificate or {}).get("subjectAltName", ())
        assert list(names) == ([("DNS", "worker.example.org")] if theirs else [])
        me = ProcessCredentials(pid=os.getpid(), uid=os.geteuid(), gid=os.getegid())
        assert (origin.process, outwards.process) == ((me, me) if place.startswith("unix") else (None, None))
    assert inwards.origin == origin, "it is kept when the connection has ended"


async def test_an_origin_without_a_socket() -> None:
    """Other streams have an address that says what they are."""
    given: list[Origin] = []
    async with open_loopback(Desk(), authenticate=lambda _, origin: given.append(origin)) as pool:
        assert await pool.stub(Desk).who() is None
    assert given == [Origin(address="MemoryStream")]


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (Origin(address="tcp://10.0.0.7:51234"), "10.0.0.7"),
        (Origin(address="tls://10.0.0.7:443"), "10.0.0.7"),
        (Origin(address="tcp://[2001:db8:1:2:3:4:5:6]:1"), "2001:db8:1:2::"),
        (Origin(address="tcp://[2001:db8:1:2:ffff::9]:1"), "2001:db8:1:2::"),
        (Origin(address="tcp://[::ffff:10.0.0.7]:1"), "10.0.0.7"),
        (Origin(address="unix:(unnamed)"), "unix:(unnamed)"),
        (Origin(address="unix:(unnamed)", process=ProcessCredentials(pid=1, uid=7, gid=7)), "user 7"),
        (Origin(address="MemoryStream"), "MemoryStream"),
    ],
)
def test_whom_failures_are_counted_for(origin: Origin, host: str) -> None:
    """X05: a host, whatever its port; of IPv6 the network that one customer has; on one machine the user."""
    assert host_of(origin) == host


# -- credentials that are refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize("credentials", [None, {}, {"token": "bad"}, {"user": "anne"}])
async def test_a_stranger_learns_nothing(autojump_clock: trio.testing.MockClock, credentials: Any) -> None:
    """X01: without a valid token a peer is told that one is needed, and no more; then the connection is closed."""
    async with a_server(by_token) as (_desk, server, listener):
        client = RawClient(await listener.connect(), Hello(credentials=credentials))
        request = client.protocol.greeting()  # And one call right behind it, which must not run.
        _, frames = client.protocol.request(method_block("Desk.echo"), msgpack.packb([1]))
        await client.stream.send_all(request + frames[0])
        data = b""
        while more := await client.stream.receive_some():
            data += more
        assert data.startswith(PREFACE)
        assert b"Desk" not in data
        assert b"trio_rpc" not in data[len(PREFACE) :]
        await trio.testing.wait_all_tasks_blocked()
        [goaway] = client.protocol.receive_data(data)
        assert goaway == GoAwayReceived(0, Code.UNAUTHENTICATED, "a valid token is needed")
        assert (server.statistics().served, server.statistics().refused_connections) == (0, 1)
        assert now() == 0


@pytest.mark.parametrize("wrong", ["Xesame-open", "sesame-opeX", "sesame-ope", "sesame-open ", "", "sesame-öpen"])
async def test_wrong_tokens_have_one_error(autojump_clock: trio.testing.MockClock, wrong: str) -> None:
    """X02: whichever part of a token is wrong, the refusal is the same."""
    async with a_server(BearerTokens({"sesame-open": "ali"})) as (_, _, listener):
        async with a_pool(listener, wrong) as pool:
            with pytest.raises(Unauthenticated, match=r"^a valid token is needed \(peer .*\)$") as caught:
                await pool.stub(Desk).who()
            assert not caught.value.may_have_run
        async with a_pool(listener, "sesame-open") as pool:
            assert await pool.stub(Desk).who() == "ali"


async def test_a_handshake_that_was_recorded(autojump_clock: trio.testing.MockClock) -> None:
    """X03: it is good for another connection unless the scheme has a time or counts; a bare token has neither."""
    used: set[str] = set()

    def signed(credentials: Mapping[str, Any], origin: Origin) -> Identity:
        if credentials.get("nonce") in used:
            raise Unauthenticated("this was used before")
        if "nonce" in credentials:
            used.add(credentials["nonce"])
        return Identity("anne", expires_in=credentials.get("until", 1e9) - trio.current_time())

    async def replay(greeting: bytes) -> str:
        client = RawClient(await listener.connect())
        await client.stream.send_all(greeting)
        event = await client.event()
        return event.message if isinstance(event, GoAwayReceived) else "let in"

    bare, dated, counted = (
        RawClient(memory_pipe()[0], Hello(credentials=credentials)).protocol.greeting()
        for credentials in ({}, {"until": 100}, {"nonce": "1"})
    )
    async with a_server(signed) as (_desk, _server, listener):
        assert [await replay(greeting) for greeting in (bare, dated, counted)] == ["let in"] * 3
        assert [await replay(greeting) for greeting in (bare, counted)] == ["let in", "this was used before"]
        await trio.sleep(100)
        assert [await replay(greeting) for greeting in (bare, dated)] == ["let in", "these credentials have expired"]


class Database(Exception):
    """A failure of the user's own."""


async def sleeps(credentials: Mapping[str, Any], origin: Origin) -> None:
    """It waits for ever."""
    await trio.sleep_forever()


def fails(exc: BaseException) -> Callable[[Mapping[str, Any], Origin], Any]:
    """It raises this."""

    def authenticate(credentials: Mapping[str, Any], origin: Origin) -> Any:
        raise exc

    return authenticate


def looks_up(credentials: Mapping[str, Any], origin: Origin) -> Any:
    """It fails with the token as its text."""
    return {}[credentials["token"]]


def echoes(credentials: Mapping[str, Any], origin: Origin) -> Any:
    """It tells what was wrong, secret and all."""
    raise Unauthenticated(f"no such token: {credentials['token']}")


async def waits_and_fails(credentials: Mapping[str, Any], origin: Origin) -> Any:
    """It raises from a nursery."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        await trio.lowlevel.checkpoint()
        fails(Database(credentials["token"]))(credentials, origin)


@pytest.mark.parametrize(
    ("authenticate", "told"),
    [
        (fails(Database("away")), "the credentials could not be checked"),
        (fails(trio_rpc.ConnectionLost("the directory is away")), "the credentials could not be checked"),
        (fails(PermissionDenied("not you")), "the credentials could not be checked"),
        (fails(SystemExit(3)), "the credentials could not be checked"),
        (
            fails(BaseExceptionGroup("several", [Database("away"), GeneratorExit()])),
            "the credentials could not be checked",
        ),
        (looks_up, "the credentials could not be checked"),
        (waits_and_fails, "the credentials could not be checked"),
        (same_for_all(False), "these credentials are not accepted here"),
        (same_for_all(Identity("anne", expires_in=0)), "these credentials have expired"),
        (same_for_all(Identity("anne", expires_in=-5.0)), "these credentials have expired"),
        (echoes, f"no such token: {SECRET}"),
    ],
)
async def test_an_authenticate_that_lets_nobody_in(
    authenticate: Any, told: str, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """X01, X10: whatever it raises, and False, is Unauthenticated; the token is in no log, whatever the exception says."""
    caplog.set_level(logging.DEBUG)
    async with a_server(authenticate) as (_, server, listener), a_pool(listener, SECRET) as pool:
        with pytest.raises(Unauthenticated) as caught:
            await pool.stub(Desk).who()
        assert caught.value.message == told
        assert now() == 0
        assert server.statistics().refused_connections == 1
    for record in caplog.records:
        if record.name != "trio_rpc.pool":  # The client's own log may tell it what the server said.
            assert SECRET not in logging.Formatter().format(record)
    assert any("MemoryStream" in record.getMessage() for record in caplog.records)


async def sleeps_beside_others(credentials: Mapping[str, Any], origin: Origin) -> None:
    """So do several of its tasks."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        await trio.sleep_forever()


@pytest.mark.parametrize("authenticate", [sleeps, sleeps_beside_others])
async def test_an_authenticate_that_takes_too_long(
    authenticate: Any, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Rule 14: what it awaits is bounded by `handshake_timeout`; whoever waits for it is turned away then."""
    async with a_server(authenticate, limits=ServerLimits(handshake_timeout=3)) as (_, server, listener):
        client = RawClient(await listener.connect())
        await client.stream.send_all(client.protocol.greeting())
        assert await client.closed()
        assert now() == 3
        await trio.testing.wait_all_tasks_blocked()
        assert server.statistics().refused_connections == 1
    assert caplog.records == [], "nothing has gone wrong"


async def test_none_is_a_principal() -> None:
    """An `authenticate` that returns nothing lets everybody in, as nobody in particular."""
    async with open_loopback(Desk(), authenticate=same_for_all(None)) as pool:
        assert await pool.stub(Desk).who() is None


async def test_a_pool_recovers_once_its_credentials_are_good(autojump_clock: trio.testing.MockClock) -> None:
    """Refused credentials fail each call at once; the pool goes on asking for better ones, with back-off, by itself."""
    given = "bad"
    dialled: list[float] = []

    async def credentials() -> str:
        dialled.append(now())
        return given

    async with a_server(by_token) as (_, _, listener), a_pool(listener, credentials) as pool:
        for _ in range(2):
            with pytest.raises(Unauthenticated):
                await pool.stub(Desk).who()
            assert now() == 0
        await trio.sleep(3.5)  # Dials at 0, 1 and 3; the next one at 7.
        given = "anne"
        with pytest.raises(Unauthenticated):
            await pool.stub(Desk).who()
        assert now() == 3.5
        await trio.sleep(3.5)
        assert await pool.stub(Desk).who() == "anne"
        assert dialled == [0, 1, 3, 7]


# -- how fast one learns that they are wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "at_once"), [(5.0, 5), (1.0, 1), (0.5, 1), (2.5, 2)])
def test_a_bucket_of_refusals(rate: float, at_once: int) -> None:
    """X05: as many at once as there may be in a second, at N-1, N and N+1; then one each time that one is there."""
    guesses = Guesses(rate)
    assert [guesses.delay("host", 100.0, 9.0) for _ in range(at_once)] == [0.0] * at_once
    beyond = guesses.delay("host", 100.0, 9.0)
    assert beyond == pytest.approx((at_once + 1) / rate - max(1, 1 / rate))
    assert beyond is not None
    assert beyond > 0
    assert guesses.delay("another", 100.0, 9.0) == 0
    assert guesses.delay("host", 100.0 + 2 * at_once / rate, 9.0) == 0, "it has filled again"


def test_refusals_without_a_rate() -> None:
    """X05: None is no bound."""
    guesses = Guesses(None)
    assert {guesses.delay("host", 0.0, 5.0) for _ in range(10_000)} == {0.0}
    assert len(guesses) == 0


def test_refusals_that_would_be_told_too_late() -> None:
    """X05: no more wait than get their turn in time; those who are cut off make nobody wait longer."""
    guesses = Guesses(5)
    delays = [guesses.delay("host", 0.0, 2.0) for _ in range(1000)]
    told = [delay for delay in delays if delay is not None]
    assert len(told) == 5 + 9
    assert told[-1] == pytest.approx(1.8)
    assert guesses.delay("host", 0.1, 2.0) == pytest.approx(1.9)


def test_hosts_are_forgotten() -> None:
    """X05: what is remembered is bounded; who failed last is remembered longest."""
    guesses = Guesses(1)
    for number in range(HOSTS + 1):
        assert guesses.delay(f"host {number}", 0.0, 9.0) == 0
    assert len(guesses) == HOSTS
    assert guesses.delay(f"host {HOSTS}", 0.0, 9.0) == 1
    assert guesses.delay("host 1", 0.0, 9.0) == 1
    assert guesses.delay("host 0", 0.0, 9.0) == 0, "it was forgotten, and so is another one now"
    assert [guesses.delay(f"host {number}", 0.0, 9.0) for number in (1, 2)] == [2, 0]


async def test_bad_tokens_are_told_later_and_good_ones_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """X05: ten wrong tokens together are refused at 5 a second beyond the first five; a good one meanwhile is let in."""
    refused_at: list[float] = []

    async def guess(listener: MemoryListener) -> None:
        client = RawClient(await listener.connect(), Hello(credentials={"token": "bad"}))
        await client.stream.send_all(client.protocol.greeting())
        goaway = await client.expect(GoAwayReceived)
        assert goaway.code is Code.UNAUTHENTICATED
        refused_at.append(now())
        assert await client.closed()

    async with a_server(by_token) as (_, _, listener), trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(guess, listener)
        await trio.sleep(0.1)
        await a_client(listener)
        assert now() == 0.1
    assert refused_at == [0, 0, 0, 0, 0, 0.2, 0.4, 0.6, 0.8, 1]


async def test_a_flood_of_bad_tokens_does_not_fill_the_server(autojump_clock: trio.testing.MockClock) -> None:
    """X05: of a thousand of them at once few are made to wait, the others are cut off, and honest clients come in."""
    most = 0

    async def guess(listener: MemoryListener) -> None:
        client = RawClient(await listener.connect(), Hello(credentials={"token": "bad"}))
        await client.stream.send_all(client.protocol.greeting())
        assert await client.closed()

    async with (
        a_server(by_token, limits=ServerLimits(max_handshaking=256)) as (_, server, listener),
        trio.open_nursery() as nursery,
    ):
        for _ in range(1000):
            nursery.start_soon(guess, listener)
        for _ in range(40):
            await trio.sleep(0.1)
            most = max(most, server.statistics().handshaking)
            client = await a_client(listener)
            await client.stream.aclose()
        assert 10 < most <= 30
    assert now() <= 5


async def test_another_host_is_not_delayed() -> None:
    """X05: each host has its own bucket."""
    failed: list[str] = []

    async def guess(source: str, address: str) -> None:
        host, _, port = address[6:].rpartition(":")
        stream = await trio.open_tcp_stream(host, int(port), local_address=source)
        client = RawClient(stream, Hello(credentials={"token": "bad"}))
        await client.stream.send_all(client.protocol.greeting())
        await client.expect(GoAwayReceived)
        await stream.aclose()
        failed.append(source)

    async with open_server(Desk(), "tcp://127.0.0.1:0", authenticate=by_token) as server:
        async with trio.open_nursery() as nursery:
            for _ in range(12):
                nursery.start_soon(guess, "127.0.0.2", server.addresses[0])
            while failed.count("127.0.0.2") < 5:  # noqa: ASYNC110 - the refusals are the only events
                await trio.sleep(0.001)
            await guess("127.0.0.1", server.addresses[0])
            assert failed.count("127.0.0.2") < 12


# -- credentials that expire -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lifetime", "used_for"), [(100.0, 90.0), (1000.0, 990.0), (3.0, 2.7)])
async def test_an_honest_pool_notices_nothing(
    lifetime: float, used_for: float, autojump_clock: trio.testing.MockClock
) -> None:
    """X04: a little before the credentials expire, by 10 s or a tenth, the pool gets fresh ones; no call fails for it."""
    asked: list[float] = []

    def credentials() -> str:
        asked.append(now())
        return f"token {len(asked)}"

    def authenticate(credentials: Mapping[str, Any], origin: Origin) -> Identity:
        return Identity(credentials["token"], expires_in=lifetime)

    async with a_server(authenticate) as (_, server, listener):
        async with a_pool(listener, credentials, max_lifetime=None) as pool:
            whos = set()
            for step in range(1, 301):
                whos.add(await pool.stub(Desk).who())
                await trio.sleep(step * used_for / 80 - now())
            stats = pool.statistics()
            assert (stats.errors, stats.retries, stats.timeouts) == (0, 0, 0)
        assert asked == pytest.approx([0, used_for, 2 * used_for, 3 * used_for])
        assert whos == {"token 1", "token 2", "token 3", "token 4"}
        assert server.statistics().closed_expired == 0, "the pool was faster each time"


async def test_what_runs_when_credentials_expire(autojump_clock: trio.testing.MockClock) -> None:
    """X04: handlers have 10 s more; then they are cancelled, and their callers told, and the connection ends."""
    async with a_server(same_for_all(Identity("anne", 100))) as (desk, server, listener):
        async with a_pool(listener, idle_timeout=None) as pool, trio.open_nursery() as nursery:
            stub = pool.stub(Desk)

            async def call(seconds: float, ends: float) -> None:
                try:
                    assert await stub.sleep(seconds) == "slept"
                except RemoteCancelled:
                    assert seconds > 20
                assert now() == ends

            await trio.sleep(89)
            nursery.start_soon(call, 5, 94)
            nursery.start_soon(call, 20.5, 109.5)
            nursery.start_soon(call, 500, 110)
            await trio.sleep(1.5)
            assert server.statistics().connections == 2, "another one is there, and in use"
            assert await stub.who() == "anne"
            await trio.sleep(10)
            assert server.statistics().closed_expired == 1
        assert desk.running == 0


async def test_who_does_not_leave_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    """X04: until the second GOAWAY calls are taken, then they are sent elsewhere, and from the expiry on refused."""
    async with a_server(same_for_all(Identity("anne", 100))) as (desk, server, listener):
        client = await a_client(listener)
        await trio.sleep(80)
        await client.send(client.request("Desk.sleep", 22))
        first = await client.expect(GoAwayReceived)
        assert (now(), first.last_id, first.code) == (90, MAX_ID, Code.UNAVAILABLE)
        assert first.message == "the credentials of this connection are about to expire"
        await client.expect(PingReceived)
        await client.send(client.request("Desk.echo", 1))
        assert (await client.expect(ResponseReceived)).payload == msgpack.packb(1)
        second = await client.expect(GoAwayReceived)
        assert (now(), second.last_id) == (91, 3)
        expired = "the credentials of this connection have expired"
        for at, code, text in (
            (99, Code.UNAVAILABLE, "this side is going away"),
            (100, Code.UNAUTHENTICATED, expired),
            (101.5, Code.UNAUTHENTICATED, expired),
        ):
            await trio.sleep_until(at)
            await trio.testing.wait_all_tasks_blocked()
            await client.send(client.request("Desk.echo", 1))
            error = await client.expect(ErrorReceived)
            assert (error.code, error.outcome, error.started) == (code, Outcome.REFUSED, False)
            assert error.message == text
        assert (await client.expect(ResponseReceived)).id == 1
        assert now() == 102
        assert await client.closed()
        assert now() == 103, "close_timeout"
        assert [what for what, _ in desk.log] == ["ended"]
        assert server.statistics().closed_expired == 1


async def test_an_expired_connection_beside_a_drain(autojump_clock: trio.testing.MockClock) -> None:
    """X04: a connection that is drained already, by its age or the server, expires all the same, and only once."""
    limits = ServerLimits(max_age=50)
    async with a_server(same_for_all(Identity("anne", 100)), limits=limits) as (_, server, listener):
        server.rng = lambda: 0.5
        client = await a_client(listener)
        await client.send(client.request("Desk.sleep", 500))
        await trio.sleep(99)
        assert server.statistics().closed_age == 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(server.drain, grace=1000))
            await trio.sleep(2)
            await client.send(client.request("Desk.echo", 1))
            codes = []
            while True:
                event = await client.event()
                if isinstance(event, ErrorReceived):
                    codes.append((now(), event.code))
                if len(codes) == 2:
                    break
            assert codes == [(101, Code.UNAUTHENTICATED), (110, Code.CANCELLED)]
            await client.stream.aclose()
        assert server.statistics().closed_expired == 1


async def test_a_connection_that_ends_before_it_expires(autojump_clock: trio.testing.MockClock) -> None:
    """Nothing is left of it: no timer, no task."""
    async with a_server(same_for_all(Identity("anne", 100))) as (_, server, listener):
        await trio.testing.wait_all_tasks_blocked()
        async with no_leaks():
            client = await a_client(listener)
            await client.stream.aclose()
            await trio.sleep(1)
        await trio.sleep(1000)
        assert server.statistics().closed_expired == 0


# -- credentials that are revoked --------------------------------------------------------------------------------------


async def test_a_principal_is_revoked(autojump_clock: trio.testing.MockClock) -> None:
    """X04: its next call on any connection is refused and does not run; what runs may finish; others go on."""
    principals = iter([{"name": "anne"}, {"name": "anne"}, {"name": "bert"}])
    async with a_server(lambda *_: next(principals)) as (_desk, server, listener):
        clients = [await a_client(listener) for _ in range(3)]
        for client in clients:
            await client.send(client.request("Desk.sleep", 5))
        await trio.sleep(1)
        assert server.revoke({"name": "anne"}) == 2
        assert server.revoke({"name": "anne"}) == 0, "they are being seen off already"
        for client in clients[:2]:
            await client.send(client.request("Desk.echo", 1))
        for client in clients[:2]:
            goaway = await client.expect(GoAwayReceived)
            text = "the credentials of this connection were revoked"
            assert goaway == GoAwayReceived(1, Code.UNAUTHENTICATED, text)
            error = await client.expect(ErrorReceived)
            assert (error.code, error.outcome, error.message) == (Code.UNAUTHENTICATED, Outcome.REFUSED, text)
            assert now() == 1
        for client in clients[:2]:
            assert (await client.expect(ResponseReceived)).id == 1
        assert now() == 5
        await clients[2].send(clients[2].request("Desk.echo", 1))
        assert (await clients[2].expect(ResponseReceived)).id == 1
        assert (await clients[2].expect(ResponseReceived)).id == 3
        assert all([await client.closed() for client in clients[:2]])
        await trio.testing.wait_all_tasks_blocked()
        assert (now(), server.statistics().connections) == (6, 1)
        assert server.statistics().closed_expired == 2


@pytest.mark.parametrize(("grace", "ends"), [(0, 1), (3, 4), (None, 501), (10, 11)])
async def test_how_long_what_runs_may_go_on(
    grace: float | None, ends: float, autojump_clock: trio.testing.MockClock
) -> None:
    """`revoke(..., grace=...)` bounds the handlers that run, as a drain does."""
    async with a_server(same_for_all("anne")) as (desk, server, listener):
        client = await a_client(listener)
        await client.send(client.request("Desk.sleep", 501))
        await trio.sleep(1)
        assert server.revoke("anne", grace=grace) == 1
        await client.expect(GoAwayReceived)
        assert isinstance(await client.event(), ErrorReceived if grace is not None else ResponseReceived)
        assert desk.log == [("ended", ends)]


@pytest.mark.parametrize("grace", [-1, "soon", True, float("nan")])
async def test_a_grace_that_cannot_be(grace: Any) -> None:
    """It is told, and nobody is revoked."""
    async with a_server(same_for_all("anne")) as (_, server, listener):
        client = await a_client(listener)
        with pytest.raises((TypeError, ValueError), match="grace must be"):
            server.revoke("anne", grace=grace)
        await client.send(client.request("Desk.echo", 1))
        await client.expect(ResponseReceived)


async def test_a_request_in_chunks_is_no_way_around(autojump_clock: trio.testing.MockClock) -> None:
    """X04: what is not whole when its principal is revoked does not run any more."""
    async with a_server(same_for_all("anne"), limits=ServerLimits(frame_timeout=None)) as (_desk, server, listener):
        client = await a_client(listener)
        _, (first, chunks) = client.protocol.request(method_block("Desk.echo"), msgpack.packb([bytes(200_000)]))
        assert chunks
        await client.stream.send_all(first)
        await trio.sleep(1)
        assert server.revoke("anne") == 1
        await client.expect(GoAwayReceived)
        await client.stream.send_all(b"".join(b"".join(chunk) for chunk in chunks))
        error = await client.expect(ErrorReceived)
        assert (error.id, error.code, error.outcome) == (1, Code.UNAUTHENTICATED, Outcome.REFUSED)
        assert server.statistics().served == 0


async def test_calls_in_line_are_no_way_around(autojump_clock: trio.testing.MockClock) -> None:
    """X04: who does not read its answers keeps calls from being begun; they do not run once it does."""
    limits = ServerLimits(max_queued_bytes=64 * 1024, write_timeout=None)
    async with a_server(same_for_all("anne"), limits=limits) as (desk, server, listener):
        client = await a_client(listener)
        for _ in range(8):
            await client.send(client.request("Desk.echo", "x" * 60_000))
        await trio.sleep(1)
        await client.send(client.request("Desk.sleep", 0))
        await trio.sleep(1)
        assert (server.statistics().served, desk.log) == (9, [])
        assert server.revoke("anne") == 1
        events = [await client.event() for _ in range(10)]  # An end for each call, and the GOAWAY.
        refused = {event.id: event for event in events if isinstance(event, ErrorReceived)}
        assert not refused[17].started
        assert (refused[17].code, refused[17].outcome) == (Code.UNAUTHENTICATED, Outcome.REFUSED)
        await trio.sleep(1)
        assert desk.log == []


async def test_a_fault_after_it_takes_back_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """X04: what runs was accepted, and the last word of a connection that breaks the rules then does not deny it."""
    async with a_server(same_for_all("anne")) as (_desk, server, listener):
        client = await a_client(listener)
        await client.send(client.request("Desk.sleep", 5))
        await trio.sleep(1)
        assert server.revoke("anne") == 1
        assert (await client.expect(GoAwayReceived)).last_id == 1
        await client.stream.send_all(b"\xff" * 16)
        last = await client.expect(GoAwayReceived)
        assert (last.last_id, last.code) == (1, Code.INTERNAL)
        assert await client.closed()


async def test_revoked_while_coming_in(autojump_clock: trio.testing.MockClock) -> None:
    """X04: who was looked at before, and is let in only now, is turned away; the one that comes after is not."""

    async def slowly(credentials: Mapping[str, Any], origin: Origin) -> str:
        await trio.sleep(2)
        return "anne"

    async with a_server(slowly) as (_, server, listener), trio.open_nursery() as nursery:
        client = RawClient(await listener.connect())
        await client.stream.send_all(client.protocol.greeting())
        nursery.start_soon(a_client, listener, "another")
        await trio.sleep(1)
        assert server.revoke("bert") == 0
        assert server.revoke("anne") == 0, "it is no connection yet"
        await trio.sleep(0.5)
        late = await a_client(listener)
        assert await client.closed()
        assert server.statistics().connections == 1
        await late.send(late.request("Desk.who"))
        await late.expect(ResponseReceived)


async def test_revoked_after_what_was_answered_is_not_read(autojump_clock: trio.testing.MockClock) -> None:
    """X04: a peer that does not take the HELLO, and so is no connection yet, does not slip through."""
    ours, theirs = memory_pipe(capacity=8)
    listener: MemoryListener
    async with a_server(same_for_all("anne")) as (_, server, listener), trio.open_nursery() as nursery:
        listener_send = listener._send
        await listener_send.send(theirs)
        client = RawClient(ours)
        nursery.start_soon(client.stream.send_all, client.protocol.greeting())
        await trio.sleep(1)
        assert server.statistics().handshaking == 1
        assert server.revoke("anne") == 0
        assert await client.closed()
        assert server.statistics().connections == 0
        nursery.cancel_scope.cancel()


async def test_a_pool_whose_principal_is_revoked(autojump_clock: trio.testing.MockClock) -> None:
    """X04: its next call is Unauthenticated and did not run, at once; with a new token it goes on by itself."""
    tokens, given = BearerTokens({"old": "anne", "other": "bert"}), "old"
    async with a_server(tokens) as (_desk, server, listener), a_pool(listener, lambda: given) as pool:
        async with a_pool(listener, "other") as untouched:
            assert [await pool.stub(Desk).who(), await untouched.stub(Desk).who()] == ["anne", "bert"]
            await trio.sleep(10)
            [gone] = tokens.replace({"new": "carl", "other": "bert"})
            assert server.revoke(gone) == 1
            with pytest.raises(Unauthenticated) as caught:
                await pool.stub(Desk).who()
            assert not caught.value.may_have_run
            assert now() == 10
            given = "new"
            await trio.sleep(1)
            assert await pool.stub(Desk).who() == "carl"
            assert await untouched.stub(Desk).who() == "bert"
            assert untouched.statistics().connects == 1


async def test_a_revoked_pool_with_fresh_credentials_notices_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """X04: calls that cross the revocation did not run, and go on elsewhere with what the provider gives by then."""
    numbers = itertools.count()
    async with (
        a_server(by_token) as (_, server, listener),
        a_pool(listener, lambda: f"token {next(numbers)}") as pool,
        trio.open_nursery() as nursery,
    ):

        async def call() -> None:
            for _ in range(100):
                await pool.stub(Desk).who()
                await trio.sleep(0.1)

        for _ in range(5):
            nursery.start_soon(call)
        for number in range(5):
            await trio.sleep(1.7)
            assert server.revoke(f"token {number}") == 1
    assert pool.statistics().errors == 0


# -- who may call what -------------------------------------------------------------------------------------------------


def nothing_for_strangers(peer: trio_rpc.Peer, name: str) -> bool:
    """An `authorize` that asks the peer."""
    if peer.principal == "crash":
        raise Database("away")
    return bool(peer.principal == "anne")


@pytest.mark.parametrize("timeout", [None, 5.0])
@pytest.mark.parametrize("name", ["Desk.echo", "Desk.count", "Desk.stock", "Desk.nothing", "Nothing.echo", "echo", "."])
@pytest.mark.parametrize(
    ("principal", "code", "text"),
    [
        ("bert", Code.PERMISSION_DENIED, "not allowed to call {name}"),
        ("crash", Code.INTERNAL, "internal error before the handler was entered (error id "),
    ],
)
async def test_who_is_denied_learns_nothing_of_the_method(
    principal: str,
    code: Code,
    text: str,
    name: str,
    timeout: float | None,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """X08: the answer is the same whether the method exists, is only declared, or is not there; nothing runs."""
    async with a_server(by_token, authorize=nothing_for_strangers) as (_, _, listener):
        client = await a_client(listener, principal)
        await client.send(client.request(name, 1, timeout=timeout))
        error = await client.expect(ErrorReceived)
        assert (error.code, error.outcome, error.started) == (code, Outcome.REFUSED, False)
        assert error.message.startswith(text.format(name=name))
        assert len(error.message) == len(text.format(name=name)) + (17 if principal == "crash" else 0)
        client = await a_client(listener, "anne")
        await client.send(client.request(name, 1, timeout=timeout))
        event = await client.event()
        known = {"Desk.echo": ResponseReceived, "Desk.count": ItemsReceived}
        assert isinstance(event, known.get(name, ErrorReceived))
        if isinstance(event, ErrorReceived):
            assert event.code is Code.UNIMPLEMENTED


@pytest.mark.parametrize("name", ["Desk.echo", "Desk.nothing"])
async def test_expired_on_arrival_is_told_first(name: str, autojump_clock: trio.testing.MockClock) -> None:
    """X08: a deadline that has passed is no way to find out what exists."""
    async with a_server(by_token, authorize=nothing_for_strangers) as (_, _, listener):
        client = await a_client(listener, "bert")
        await client.send(client.request(name, 1, timeout=-1.0))
        assert (await client.expect(ErrorReceived)).code is Code.DEADLINE_EXCEEDED


class Base:
    """Methods that are not the contract's."""

    inherited_value = 7

    def inherited(self) -> int:
        raise AssertionError("reached")


class Vault(Base):
    """One method is served, and there is much beside it."""

    secret = "attribute"

    @method
    async def look(self) -> str:
        return "looked"

    @property
    def shown(self) -> str:
        raise AssertionError("reached")

    async def _private(self) -> str:
        raise AssertionError("reached")

    async def undecorated(self) -> str:
        raise AssertionError("reached")

    async def __call__(self) -> str:
        raise AssertionError("reached")


@pytest.mark.parametrize(
    "name",
    [
        *(
            "Vault._private",
            "Vault.undecorated",
            "Vault.secret",
            "Vault.shown",
            "Vault.inherited",
            "Vault.inherited_value",
        ),
        *(
            "Vault.__class__",
            "Vault.__init__",
            "Vault.__call__",
            "Vault.__dict__",
            "Vault.look.__self__",
            "Vault.look.__func__",
        ),
        *("Vault", "Vault.", ".look", "look", ".", "Base.inherited", "vault.look", "Vault.Look", "Vault.LOOK"),
        *("Vault.look ", " Vault.look", "Vault..look", "Vault.look\0", "Vault/look", "Vault:look", "Vault.look()"),
        "Vault.l\u043e\u043ek",  # Cyrillic o
        "\uff36ault.look",  # fullwidth V
        "Vault.lo\u200bok",  # zero width space
        "Vault.\u2113ook",  # script small l, which NFKC makes an l
    ],
)
async def test_only_registered_names_are_reached(name: str, autojump_clock: trio.testing.MockClock) -> None:
    """X09: names are looked up whole and as they are; whatever else an object has is not there."""
    async with watchdog(), open_loopback(Vault()) as pool:
        with pytest.raises(Unimplemented) as caught:
            await pool.call(name)
        assert not caught.value.may_have_run
        assert await pool.call("Vault.look") == "looked"


# -- who may listen ----------------------------------------------------------------------------------------------------

HERE_ALONE = ["127.0.0.1", "127.8.8.8", "localhost", "[::1]", "[::ffff:127.0.0.1]"]
BEYOND = ["0.0.0.0", "", "[::]", "[::ffff:0.0.0.0]", "[::ffff:10.1.2.3]", "10.1.2.3", "host.example.org", "localhost."]


@pytest.mark.parametrize("host", HERE_ALONE)
def test_addresses_of_this_machine_alone(host: str) -> None:
    """X14: only loopback is taken for safe."""
    assert Address.parse(f"tcp://{host}:0").is_local


@pytest.mark.parametrize("host", BEYOND)
async def test_addresses_that_others_reach(host: str) -> None:
    """X14: without TLS, authentication or an explicit word they are refused before anything is opened."""
    with pytest.raises(ValueError, match="can be reached from other machines without TLS or authentication"):
        async with open_server(Desk(), ["tcp://127.0.0.1:0", f"tcp://{host}:0"]):
            raise AssertionError("opened")


def has_ipv6() -> bool:
    """Whether this machine has a loopback address of IPv6."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


IPV6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")


def listener_at(family: int, host: str) -> trio.SocketListener:
    """A listener of the user's own."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((host, 0))
        sock.listen(5)
        return trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    except BaseException:
        sock.close()
        raise


@pytest.mark.parametrize(
    ("family", "host", "options", "opens"),
    [
        (socket.AF_INET, "127.0.0.1", {}, True),
        (socket.AF_INET, "0.0.0.0", {}, False),
        pytest.param(socket.AF_INET6, "::1", {}, True, marks=IPV6),
        pytest.param(socket.AF_INET6, "::", {}, False, marks=IPV6),
        pytest.param(socket.AF_INET6, "::ffff:127.0.0.1", {}, True, marks=IPV6),
        pytest.param(socket.AF_INET6, "::ffff:0.0.0.0", {}, False, marks=IPV6),
        (socket.AF_INET, "0.0.0.0", {"authenticate": by_token}, True),
        (socket.AF_INET, "0.0.0.0", {"allow_insecure": True}, True),
        (socket.AF_INET, "0.0.0.0", {"ssl_context": contexts()[0]}, True),
    ],
)
async def test_listeners_that_others_reach(family: int, host: str, options: dict[str, Any], opens: bool) -> None:
    """X14: a listener of one's own is asked where it is bound, and refused just so."""
    async with listener_at(family, host) as listener:
        if opens:
            async with open_server(Desk(), listener, **options):
                pass
        else:
            with pytest.raises(ValueError, match="can be reached from other machines without TLS or authentication"):
                async with open_server(Desk(), [MemoryListener(), listener], **options):
                    raise AssertionError("opened")
            assert listener.socket.fileno() != -1, "it is open still: it was not the server's"


# -- several identities ------------------------------------------------------------------------------------------------


async def test_pools_never_mix_identities() -> None:
    """X18: pools of one process at one address, with like settings, have each its own connections and principal."""
    ours, theirs = contexts()
    other = ssl.create_default_context()
    AUTHORITY.configure_trust(other)
    AUTHORITY.issue_cert("other.example.org").configure_cert(other)

    def authenticate(credentials: Mapping[str, Any], origin: Origin) -> Any:
        assert origin.certificate is not None
        return [credentials.get("token"), origin.certificate["subjectAltName"][0][1]]

    async with open_server(Desk(), "tls://127.0.0.1:0", authenticate=authenticate, ssl_context=ours) as server:
        address = server.addresses[0]
        async with (
            open_pool(address, ssl_context=theirs, credentials="a") as first,
            open_pool(address, ssl_context=theirs, credentials="b") as second,
            open_pool(address, ssl_context=theirs) as third,
            open_pool(address, ssl_context=other, credentials="a") as fourth,
            trio.open_nursery() as nursery,
        ):

            async def call(pool: trio_rpc.Pool, expected: list[Any]) -> None:
                for _ in range(20):
                    assert await pool.stub(Desk).who() == expected

            for _ in range(3):
                nursery.start_soon(call, first, ["a", "worker.example.org"])
                nursery.start_soon(call, second, ["b", "worker.example.org"])
                nursery.start_soon(call, third, [None, "worker.example.org"])
                nursery.start_soon(call, fourth, ["a", "other.example.org"])


async def test_what_others_say_is_not_remembered_for_oneself() -> None:
    """X18: a HELLO is made once for like settings, and credentials are not part of that."""
    seen: list[Any] = []

    def authenticate(credentials: Mapping[str, Any], origin: Origin) -> None:
        seen.append(dict(credentials))

    for credentials in ("a", None, {"token": "b", "extra": 1}, None):
        async with open_loopback(Desk(), authenticate=authenticate, credentials=credentials) as pool:
            await pool.stub(Desk).who()
    assert seen == [{"token": "a"}, {}, {"token": "b", "extra": 1}, {}]


def test_credentials_of_the_wrong_form_are_not_shown() -> None:
    """X15: what is refused as no mapping may be a token all the same."""
    body = json.dumps({"codecs": ["msgpack"], "credentials": SECRET}).encode()
    with pytest.raises(RemoteProtocolError, match="the peer's HELLO has credentials: expected an object") as caught:
        Hello.from_bytes(body)
    assert SECRET not in str(caught.value)


async def test_no_repr_shows_credentials(caplog: pytest.LogCaptureFixture) -> None:
    """X15: neither those of a HELLO, nor those of a pool, nor what is logged of them."""
    caplog.set_level(logging.DEBUG)
    hello = Hello(credentials={"token": SECRET})
    given: list[Any] = []

    def authenticate(credentials: Mapping[str, Any], origin: Origin) -> str:
        given.append(origin)
        return "anne"

    async with open_loopback(Desk(), authenticate=authenticate, credentials=SECRET) as pool:
        await pool.stub(Desk).who()
        shown = [hello, Hello.from_bytes(hello.to_bytes()), pool, *pool.endpoints, *given, pool.statistics()]
        shown.append(pool._hub.settings)
    assert SECRET not in "".join(map(repr, shown)) + "".join(map(str, shown)) + caplog.text
