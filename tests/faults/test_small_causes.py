"""What a hostile reading of the package found: each was possible once."""

from __future__ import annotations

import contextlib
import ssl
import struct
import time
import tracemalloc
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.guarantees.kit import Lab, RawClient
from tests.scripted import ScriptedPeer, ScriptedServer, greet_and_serve
from trio_rpc import (
    Code,
    ConnectError,
    Heartbeat,
    PoolLimits,
    PoolTimeout,
    Refused,
    RemoteProtocolError,
    ServerLimits,
    method,
    open_pool,
    open_server,
)
from trio_rpc._authentication import _repeats
from trio_rpc._kept import Answer, Kept
from trio_rpc._server import Server
from trio_rpc._settings import ServerSettings
from trio_rpc.auth import reloading
from trio_rpc.testing import MemoryListener
from trio_rpc.wire import (
    CancelReceived,
    EndReceived,
    Flag,
    GoAwayReceived,
    Hello,
    ItemsReceived,
    Kind,
    PongReceived,
    Protocol,
    RequestReceived,
    ResponseReceived,
    Role,
)

QUIET = Heartbeat(interval=None)
KIB = 1024
MIB = 1024 * KIB


def frame(kind: int, request_id: int = 0, body: bytes = b"", flags: int = 0) -> bytes:
    """Any frame at all."""
    return struct.pack(">IIBB", len(body), request_id, kind, flags) + body


def begun(request_id: int, total: int = 4 * MIB) -> bytes:
    """The first frame of a request whose chunks may follow, with one byte of its payload."""
    return frame(Kind.REQUEST, request_id, struct.pack(">I", total) + b"\x08Lab.echo\x91", Flag.MORE)


def acquainted() -> tuple[Protocol, Protocol]:
    """Two sides after their HELLOs."""
    dialler, acceptor = Protocol(Role.DIALLER, Hello()), Protocol(Role.ACCEPTOR, Hello())
    acceptor.receive_data(dialler.greeting())
    dialler.receive_data(acceptor.greeting())
    return dialler, acceptor


# -- strangers ---------------------------------------------------------------------------------------------------------


def test_a_message_that_is_only_announced_takes_no_memory() -> None:
    """R13, R23: 7 KB with the beginnings of 256 requests are not to take 16 MiB, as 64 KiB of room for each did."""
    _, acceptor = acquainted()
    data = b"".join(begun(2 * number + 1) for number in range(256))
    tracemalloc.start()
    try:
        assert acceptor.receive_data(data) == []
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 0.5 * MIB


@pytest.mark.parametrize(("count", "fits"), [(16_383, True), (16_384, True), (16_385, False)])
@pytest.mark.parametrize("whole", [True, False])
def test_blobs_of_one_message_are_bounded(count: int, fits: bool, whole: bool) -> None:
    """65,535 blobs of nothing took 56 ms to be read; a quarter of that are the most that a message has."""
    _, acceptor = acquainted()
    body = struct.pack(">H", count) + bytes(4 * count) + b"\x08Lab.echo\x91\xc0"
    if whole:
        data = frame(Kind.REQUEST, 1, body, Flag.BLOBS)
    else:
        total = struct.pack(">I", len(body))
        data = frame(Kind.REQUEST, 1, total + body[:-1], Flag.BLOBS | Flag.MORE) + frame(Kind.CHUNK, 1, body[-1:])
    if not fits:
        with pytest.raises(RemoteProtocolError, match="16385 blobs, and 16384 is the most"):
            acceptor.receive_data(data)
        return
    (event,) = acceptor.receive_data(data)
    assert isinstance(event, RequestReceived)
    assert len(event.blobs) == count


async def test_a_stranger_sends_one_whole_request_and_nothing_more(autojump_clock: MockClock) -> None:
    """R23: requests that are begun right behind the HELLO, in any number, are more than the one that may be."""
    listener, asked = MemoryListener(), 0

    async def authenticate(credentials: Any, origin: object) -> None:
        nonlocal asked
        asked += 1
        await trio.sleep(3)

    async with open_server(Lab(), listener, authenticate=authenticate, heartbeat=QUIET):
        client = RawClient(await listener.connect())
        await client.send(client.protocol.greeting() + begun(1) + begun(3))
        goaway = await client.expect(GoAwayReceived)
        assert "more than one request before our HELLO" in goaway.message
        assert (goaway.code, asked) == (Code.INTERNAL, 0)
        await client.stream.aclose()


# -- floods ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pause", "fits"), [(1 / 102, True), (1 / 103, False)])
async def test_a_rhythm_that_is_announced_is_no_leave_for_a_flood(
    autojump_clock: MockClock, pause: float, fits: bool
) -> None:
    """R12: whatever interval a HELLO announces, one of less than 10 ms counts as that: 100 pings a second beside `ping_rate`."""
    listener = MemoryListener()
    async with open_server(Lab(), listener, heartbeat=QUIET):
        client = RawClient(await listener.connect(), Hello(ping_interval=1e-300))
        await client.greet()
        answered = 0
        with contextlib.suppress(trio.EndOfChannel, trio.BrokenResourceError):
            while answered < 2000:
                await client.send(client.protocol.ping(b"12345678"))
                if not isinstance(await client.event(), PongReceived):
                    break
                answered += 1
                await trio.sleep(pause)
        assert (answered == 2000) == fits
        await client.stream.aclose()


# -- what is kept ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crowds", [1, 100])
def test_forgetting_costs_no_more_than_keeping(crowds: int) -> None:
    """R23: results whose time is over all at once are forgotten in a time that grows with their number, and not with
    its square: of 100,000 that took 6 s, in which nothing else ran.
    """
    count = 60_000
    kept = Kept(ServerLimits(max_kept_results=count))
    names = [(number % crowds, "S.m", number.to_bytes(4, "big")) for number in range(count)]
    answer, began = Answer(b""), time.perf_counter()
    for name in names:
        kept.keep(name, b"", answer, 0.0)
    full = time.perf_counter()
    kept.forget_old(1e9)
    over = time.perf_counter()
    assert not len(kept)
    assert over - full < 2 * (full - began)


# -- honest peers ------------------------------------------------------------------------------------------------------


class Films:
    """Large results, and streams of large items."""

    @method
    async def poster(self, size: int) -> bytes:
        return bytes(size)

    @method
    async def film(self, pictures: int) -> AsyncGenerator[bytes, None]:
        for _ in range(pictures):
            yield bytes(256 * KIB)


async def test_a_long_stream_of_large_items_does_not_hold_others_up(autojump_clock: MockClock) -> None:
    """S18, R05: a large result goes out beside a stream whose items have no end, and not behind it, however little of both
    the peer takes at once.
    """
    listener = MemoryListener(capacity=32 * KIB)
    async with open_server(Films(), listener, heartbeat=QUIET):
        client = RawClient(await listener.connect(), Hello(max_receiving_bytes=2 * MIB, stream_window=1024 * MIB))
        await client.greet()
        await client.send(client.request("Films.film", 100))
        for _ in range(10):
            await client.expect(ItemsReceived)
        await client.send(client.request("Films.poster", 300 * KIB), client.request("Films.poster", 300 * KIB))
        items = [await client.event() for _ in range(30)]
        assert [type(item) for item in items].count(ResponseReceived) == 2
        for _ in range(100 - 10 - 28):
            await client.expect(ItemsReceived)
        await client.expect(EndReceived)
        await client.stream.aclose()


async def test_a_request_that_crosses_a_goaway_is_taken_back(autojump_clock: MockClock) -> None:
    """A request whose first part crossed the word that it is not taken is cancelled, and not left half sent: or the peer
    would wait for the rest, and give up the connection, with what still runs on it, after `frame_timeout`.
    """

    async def leaving(peer: ScriptedPeer) -> None:
        await peer.greet()
        running = await peer.expect(RequestReceived)
        while not peer.protocol.receiving_messages:
            assert not peer.protocol.receive_data(bytes(await peer.stream.receive_some()))
        await peer.send(peer.protocol.goaway(running.id))
        with trio.fail_after(1):
            cancel = await peer.expect(CancelReceived)
        assert cancel.id > running.id
        assert cancel.partial
        await peer.answer(running, "the last one")
        await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        server = ScriptedServer(nursery, leaving, greet_and_serve)
        async with open_pool(server.connect, limits=PoolLimits(max_connections=1), heartbeat=QUIET) as pool:
            async with trio.open_nursery() as callers:
                results = []

                async def call(payload: bytes) -> None:
                    results.append(await pool.call("S.m", payload))

                callers.start_soon(call, b"")
                await wait_all_tasks_blocked()
                callers.start_soon(call, bytes(MIB))
            assert sorted(results) == ["S.m", "the last one"]


def test_credentials_of_any_depth_are_looked_through() -> None:
    """X05: nesting as deep as a HELLO has room for is no way around the rate of guesses: it failed before that was asked."""
    credentials: Any = "secret"
    for _ in range(3000):
        credentials = {"a": [credentials]}
    assert _repeats("a secret is told", credentials)
    assert not _repeats("nothing is told", credentials)


# -- mistakes of those who set it up -----------------------------------------------------------------------------------


class Asking:
    """An object that would have to be awaited."""

    async def __call__(self, peer: object, method: str) -> bool:
        return True


def test_an_authorize_that_has_to_be_awaited_is_told_at_once() -> None:
    """X08: an object whose `__call__` is async is no plain function either; given BearerTokens, each call was refused by an
    internal error, and a warning told of a coroutine that nobody had awaited.
    """
    with pytest.raises(TypeError, match="authorize is asked before each call and is not awaited"):
        Server(Lab(), ServerSettings(authorize=Asking()))  # type: ignore[arg-type]


async def test_an_authorize_that_returns_a_coroutine_leaves_none_behind(autojump_clock: MockClock) -> None:
    """X08: what only shows at the call is refused, and the coroutine closed."""
    listener = MemoryListener()
    authorize: Any = lambda peer, method: Asking()(peer, method)  # noqa: E731
    async with (
        open_server(Lab(), listener, authorize=authorize, heartbeat=QUIET),
        open_pool(listener.connect, heartbeat=QUIET) as pool,
    ):
        with pytest.raises(Refused, match="internal error before the handler was entered"):
            await pool.stub(Lab).echo(1)


async def test_a_context_of_the_other_side_is_told_at_once() -> None:
    """No handshake could ever begin with it."""
    with pytest.raises(TypeError, match="this ssl_context is a client's"):
        ServerSettings(ssl_context=ssl.create_default_context())
    with pytest.raises(TypeError, match="this ssl_context is a server's"):
        async with open_pool("tls://localhost:1", ssl_context=ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)):
            pass


async def test_a_function_that_gives_a_context_of_the_other_side(autojump_clock: MockClock) -> None:
    """Calls fail at once, with advice, and do not wait for what cannot become better."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    async with open_pool("tls://127.0.0.1:1", ssl_context=lambda: context) as pool:
        with pytest.raises(ConnectError, match=r"or reloading\(..., client=True\)"):
            await pool.call("S.m")


async def test_a_function_of_credentials_that_fails_is_named(autojump_clock: MockClock) -> None:
    """What it raises is not told as if the server could not be reached."""

    def credentials() -> str:
        raise KeyError("the vault")

    listener = MemoryListener()
    async with open_server(Lab(), listener, heartbeat=QUIET):
        async with open_pool(listener.connect, credentials=credentials, heartbeat=QUIET) as pool:
            with pytest.raises(PoolTimeout) as caught:
                await pool.stub(Lab).echo(1)
    assert str(caught.value.__cause__) == "the function given as credentials failed: KeyError('the vault')"


def test_a_certificate_without_its_key_is_named(tmp_path: Path) -> None:
    """OpenSSL's own words name no file."""
    path = tmp_path / "server.pem"
    path.write_text("nothing")
    with pytest.raises(ssl.SSLError, match=r"no certificate with its private key in .*server\.pem"):
        reloading(path)
