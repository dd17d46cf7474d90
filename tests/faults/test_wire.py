"""Faults of frames and states, in both directions: each costs its own connection, at most, and at once.

Everything is in memory and in virtual time. Beside a bad peer there is a good one, who must not notice.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import trio_rpc
from tests.guarantees.kit import Lab, RawClient
from tests.scripted import ScriptedPeer, ScriptedServer, greet_and_serve
from trio_rpc import (
    Code,
    ConnectError,
    ConnectionLost,
    EncodeError,
    Heartbeat,
    Overloaded,
    PeerUnresponsive,
    PoolLimits,
    RemoteError,
    Server,
    ServerLimits,
    open_pool,
    open_server,
)
from trio_rpc._arrival import Arrival
from trio_rpc._heartbeat import LOOKS
from trio_rpc.testing import FaultyStream, MemoryListener, Trickle, open_loopback
from trio_rpc.wire import (
    CHUNK_SIZE,
    MIN_CHUNK_SIZE,
    PREFACE,
    ErrorReceived,
    GoAwayReceived,
    Hello,
    HelloReceived,
    Kind,
    Outcome,
    PongReceived,
    Protocol,
    RequestReceived,
    ResponseReceived,
    Role,
    method_block,
)

QUIET = Heartbeat(interval=None)
MORE, METADATA = 0x01, 0x04
KIB, MIB = 1024, 1024 * 1024


def frame(kind: int, request_id: int = 0, body: bytes = b"", flags: int = 0, length: int | None = None) -> bytes:
    """Any frame at all; `length` may lie."""
    return struct.pack(">IIBB", len(body) if length is None else length, request_id, kind, flags) + body


def echo_in_chunks(client: RawClient, size: int) -> tuple[bytes, list[bytes]]:
    """A request of so many bytes: its first frame, and its chunks."""
    payload = b"\x91\xc6" + struct.pack(">I", size) + bytes(size)
    _, (first, rest) = client.protocol.request(method_block("Lab.echo"), payload)
    assert rest is not None
    return first, [b"".join(parts) for parts in rest]


@asynccontextmanager
async def served(**limits: Any) -> AsyncIterator[tuple[RawClient, Server, Lab]]:
    """A client that is played by hand and has said HELLO, and beside it a good one, whom it must not hurt."""
    lab, listener = Lab(), MemoryListener(capacity=None)
    settings = ServerLimits(**limits)
    async with (
        open_server(lab, listener, limits=settings, heartbeat=QUIET) as server,
        open_pool(listener.connect, heartbeat=QUIET) as pool,
    ):
        assert await pool.stub(Lab).echo(0) == 0
        client = RawClient(await listener.connect())
        await client.greet()
        yield client, server, lab
        await client.stream.aclose()
        assert await pool.stub(Lab).echo("unharmed") == "unharmed"
        assert (pool.statistics().connects, pool.statistics().lost) == (1, 0)


async def why_closed(client: RawClient) -> str:
    """Read to the end; what the server said at last, in a GOAWAY."""
    told = ""
    with trio.fail_after(100):
        while True:
            try:
                event = await client.event()
            except trio.EndOfChannel:
                return told
            if isinstance(event, GoAwayReceived):
                told = event.message


# -- metadata ----------------------------------------------------------------------------------------------------------


def many(count: int) -> dict[str, str]:
    """So many entries."""
    return {f"key-{number}": "" for number in range(count)}


@pytest.mark.parametrize(
    ("most", "count", "fits"), [(3, 2, True), (3, 3, True), (3, 4, False), (0, 0, True), (0, 1, False)]
)
async def test_more_entries_of_metadata_than_the_peer_takes_are_not_sent(
    autojump_clock: MockClock, most: int, count: int, fits: bool
) -> None:
    """R15: HELLO tells `max_metadata_items`; one more is an EncodeError, with nothing sent and nothing lost."""
    listener = MemoryListener()
    async with (
        open_server(Lab(), listener, limits=ServerLimits(max_metadata_items=most)),
        open_pool(listener.connect, limits=PoolLimits(max_metadata_items=7)) as pool,
    ):
        assert await pool.stub(Lab).echo(1) == 1
        if fits:
            assert await pool.stub(Lab, metadata=many(count)).echo(2) == 2
        else:
            with pytest.raises(EncodeError, match=f"metadata of {count} entries is more than the {most} ") as caught:
                await pool.stub(Lab, metadata=many(count)).echo(2)
            assert (caught.value.code, caught.value.may_have_run) == (Code.RESOURCE_EXHAUSTED, False)
        assert await pool.stub(Lab).echo(3) == 3
        assert pool.statistics().connects == 1


@pytest.mark.parametrize(
    ("keys", "fits"), [(list("ab"), True), (list("abc"), True), (list("abcd"), False), (["a"] * 4, False)]
)
async def test_more_entries_of_metadata_than_we_take(autojump_clock: MockClock, keys: list[str], fits: bool) -> None:
    """R15: who sends more entries than it was told is closed, and no handler is entered; one key twice makes two."""
    async with served(max_metadata_items=3) as (client, _, lab):
        block = b"".join(bytes([1]) + key.encode() + b"\0" + bytes(4) for key in keys)
        body = struct.pack(">I", len(block)) + block + method_block("Lab.run_hook") + b"\x90"
        entered: list[None] = []
        lab.hook = lambda: entered.append(None)
        client.protocol.last_local_id = 1
        await client.send(frame(Kind.REQUEST, 1, body, METADATA))
        if fits:
            await client.expect(ResponseReceived)
        else:
            assert "more than our limit of 3 (max_metadata_items)" in await why_closed(client)
        assert len(entered) == fits


def test_who_says_nothing_of_metadata_takes_64_entries() -> None:
    """R15: `max_metadata_items` is left out of a HELLO by peers that do not know it."""
    assert Hello.from_bytes(b"{}").max_metadata_items == 64


# -- time --------------------------------------------------------------------------------------------------------------


async def drip(stream: trio.abc.Stream, data: bytes, size: int, pause: float) -> float:
    """Send pieces of `size`, one each `pause` seconds; when the other side was seen to have closed, or `inf`."""
    for start in range(0, len(data), size):
        try:
            await stream.send_all(data[start : start + size])
        except trio.BrokenResourceError:
            return trio.current_time()
        await trio.sleep(pause)
    return float("inf")


@pytest.mark.parametrize(
    "what", [0, 5, 30], ids=["from its header", "with half of the header", "with some of the body"]
)
async def test_a_frame_that_comes_too_slowly(autojump_clock: MockClock, what: int) -> None:
    """R08: one byte a second: closed `frame_timeout` after the frame's first byte, and told why."""
    async with served(frame_timeout=10.0) as (client, server, _):
        data = client.request("Lab.echo", "x" * 200)
        began = trio.current_time()
        if what:
            await client.stream.send_all(data[:what])
        assert await drip(client.stream, data[what:], 1, 1.0) == began + 11
        assert server.statistics().evicted == 1
        assert "a frame that it began 10.0 s ago is not whole (frame_timeout)" in await why_closed(client)


@pytest.mark.parametrize(("pause", "fits"), [(9.9, True), (10.0, True), (10.1, False)])
async def test_a_frame_has_its_whole_time(autojump_clock: MockClock, pause: float, fits: bool) -> None:
    """R08: whole within `frame_timeout` it is taken, again and again; each frame has its own time."""
    async with served(frame_timeout=10.0) as (client, _, _):
        for _ in range(3 if fits else 1):
            data = client.request("Lab.echo", 1)
            await client.stream.send_all(data[:-1])
            await trio.sleep(pause)
            if fits:
                await client.stream.send_all(data[-1:])
                await client.expect(ResponseReceived)
            else:
                with pytest.raises(trio.BrokenResourceError):
                    await client.stream.send_all(data[-1:])


async def test_frames_that_follow_each_other_are_not_taken_for_one(autojump_clock: MockClock) -> None:
    """R08: each read ends within a frame, for a minute, and each frame is whole in a second."""
    async with served(frame_timeout=2.0) as (client, _, _):
        data = b"".join(client.request("Lab.echo", number) for number in range(60))
        size = len(data) // 60
        await client.stream.send_all(data[: size // 2])
        for start in range(size // 2, len(data), size):
            await trio.sleep(1)
            await client.stream.send_all(data[start : start + size])
        for _ in range(60):
            await client.expect(ResponseReceived)


@pytest.mark.parametrize(("rate", "fits"), [(7 * KIB, True), (6 * KIB, False)])
async def test_a_large_frame_on_a_slow_link(autojump_clock: MockClock, rate: int, fits: bool) -> None:
    """R08, N10: of a frame beyond 64 KiB each 64 KiB have `frame_timeout`: a slow link is no fault."""
    async with served(frame_timeout=10.0) as (client, _, _):
        name = method_block("Lab.echo")
        payload = b"\x91\xc6" + struct.pack(">I", 256 * KIB) + bytes(256 * KIB)
        client.protocol.last_local_id = 1
        closed_at = await drip(client.stream, frame(Kind.REQUEST, 1, name + payload), rate, 1.0)
        assert (closed_at == float("inf")) == fits
        if fits:
            await client.expect(ResponseReceived)


@pytest.mark.parametrize(("pause", "fits"), [(9.9, True), (10.0, True), (10.1, False)])
async def test_a_message_in_chunks_has_to_go_on(autojump_clock: MockClock, pause: float, fits: bool) -> None:
    """R08, R13: between two chunks there is no more than `frame_timeout`; other frames do not stand in for them."""
    async with served(frame_timeout=10.0) as (client, _, _):
        first, chunks = echo_in_chunks(client, 300 * KIB)
        for piece in [first, *chunks]:
            try:
                await client.stream.send_all(piece)
                await trio.sleep(pause / 2)
                await client.send(client.request("Lab.echo", 1))
                await trio.sleep(pause / 2)
            except trio.BrokenResourceError:
                break
        if fits:
            while not (isinstance(event := await client.event(), ResponseReceived) and event.id == 1):
                pass
        else:
            assert "has not gone on for 10.0 s (frame_timeout)" in await why_closed(client)


async def test_an_honest_peer_on_a_slow_link(autojump_clock: MockClock) -> None:
    """R08, N10: at 32 KiB/s, large messages both ways beside a flood of small ones take minutes, and nobody is given up."""

    def slow(stream: trio.abc.Stream) -> trio.abc.Stream:
        return FaultyStream(stream, Trickle(4 * KIB, interval=0.125))

    async with (
        open_loopback(Lab(), wrap=slow, limits=PoolLimits(max_connections=1)) as pool,
        trio.open_nursery() as nursery,
    ):

        async def talk() -> None:
            while True:
                await pool.stub(Lab).echo("x" * 2000)

        for _ in range(100):
            nursery.start_soon(talk)
        async with trio.open_nursery() as callers:
            for _ in range(3):
                callers.start_soon(pool.stub(Lab).echo, bytes(600 * KIB))
        nursery.cancel_scope.cancel()
        assert trio.current_time() > 60
        assert (pool.statistics().connects, pool.statistics().lost) == (1, 0)


async def test_no_bound_on_slow_frames(autojump_clock: MockClock) -> None:
    """R08: `frame_timeout=None` waits for ever."""
    async with served(frame_timeout=None) as (client, _, _):
        assert await drip(client.stream, client.request("Lab.echo", 1), 1, 100.0) == float("inf")
        await client.expect(ResponseReceived)


async def test_our_own_lateness_is_not_the_peers(mock_clock: MockClock) -> None:
    """R08, Rule 6: bytes that came while this side stood still are read before anybody is given up."""
    async with served(frame_timeout=10.0) as (client, server, _):
        data = client.request("Lab.echo", 1)
        await client.stream.send_all(data[:-1])
        await wait_all_tasks_blocked()
        await client.stream.send_all(data[-1:])
        mock_clock.jump(30)  # In this very step: no other task has run since.
        await client.expect(ResponseReceived)
        assert server.statistics().evicted == 0


async def test_who_is_busy_does_not_blame_the_peer(autojump_clock: MockClock) -> None:
    """R08, Rule 6: while handlers keep the reader from reading, what has come meanwhile is not missed."""
    async with served(frame_timeout=10.0) as (client, server, lab):
        lab.hook = lambda: autojump_clock.jump(3)
        first, chunks = echo_in_chunks(client, 100 * KIB)
        await client.stream.send_all(first)
        await wait_all_tasks_blocked()
        await client.stream.send_all(b"".join(client.request("Lab.run_hook") for _ in range(6)))
        await trio.lowlevel.checkpoint()
        await client.stream.send_all(b"".join(chunks))
        for _ in range(7):
            await client.expect(ResponseReceived)
        assert trio.current_time() == 18
        assert server.statistics().evicted == 0


async def test_a_slow_server(autojump_clock: MockClock) -> None:
    """R08, X16: the same from the other side: the call is lost, and may have run."""

    async def slow(peer: ScriptedPeer) -> None:
        await peer.greet()
        request = await peer.expect(RequestReceived)
        data, _ = peer.protocol.response(request.id, b"\xda\x01\x00" + b"x" * 256)
        await drip(peer.stream, data, 1, 1.0)

    async with trio.open_nursery() as nursery:
        server = ScriptedServer(nursery, slow, greet_and_serve)
        limits = PoolLimits(frame_timeout=3.0)
        async with open_pool(server.connect, limits=limits, heartbeat=QUIET) as pool:
            with pytest.raises(PeerUnresponsive, match="is not whole") as caught:
                await pool.call("Lab.echo")
            assert (trio.current_time(), caught.value.may_have_run) == (3.0, True)
            assert await pool.call("Lab.echo") == "Lab.echo"


@attrs.define
class Coming:
    """What an `Arrival` asks of the protocol."""

    frame: tuple[int, int] | None = None
    piece: int = 0
    receiving_messages: bool = False


Step = tuple[float, str, Any]
"""When; what happens: the state changes and is noted, or is looked at; the change, or lateness and verdict."""

GIVEN_UP = "given up"


@pytest.mark.parametrize(
    "story",
    [
        pytest.param([(0, "note", {"frame": (1, 5)}), (10, "look", [0] * LOOKS + [GIVEN_UP])], id="a frame"),
        pytest.param([(0, "note", {"frame": (1, 5)}), (9, "look", [10.0])], id="not before"),
        pytest.param(
            [(0, "note", {"frame": (1, 5)}), (9, "note", {"frame": (1, 9)}), (10, "look", [0] * LOOKS + [GIVEN_UP])],
            id="more of it is no new one",
        ),
        pytest.param(
            [(0, "note", {"frame": (1, 5)}), (9, "note", {"frame": (2, 5)}), (10, "look", [19.0])], id="another frame"
        ),
        pytest.param([(0, "note", {"frame": (1, CHUNK_SIZE)}), (10, "look", [20.0])], id="64 KiB are as long again"),
        pytest.param(
            [(0, "note", {"frame": (1, 5)}), (5, "change", {"frame": None}), (10, "look", [float("inf")])], id="whole"
        ),
        pytest.param(
            [
                (0, "note", {"frame": (1, 5)}),
                (10, "look", [0, 0]),
                (10, "change", {"frame": None}),
                (10, "look", [float("inf")]),
            ],
            id="read at the last moment",
        ),
        pytest.param(
            [(0, "note", {"frame": (1, 5)}), (16, "late look", [26.0]), (26, "look", [0] * (LOOKS - 1) + [GIVEN_UP])],
            id="our own lateness gives as long again, once",
        ),
        pytest.param(
            [(0, "note", {"piece": 1, "receiving_messages": True}), (10, "look", [0] * LOOKS + [GIVEN_UP])],
            id="a message",
        ),
        pytest.param(
            [
                (0, "note", {"piece": 1, "receiving_messages": True}),
                (9, "note", {"piece": 2}),
                (10, "look", [19.0]),
                (12, "note", {"frame": (1, 5)}),
                (19, "look", [0] * LOOKS + [GIVEN_UP]),
            ],
            id="a message goes on, and is not helped by a frame",
        ),
    ],
)
def test_when_an_arrival_is_given_up(story: list[Step]) -> None:
    """R08: the moments of it, as a table. A verdict of 0 stands for a look in the same moment, once others had their
    turn.
    """
    coming = Coming()
    arrival = Arrival(coming, 10.0)  # type: ignore[arg-type]
    for now, what, data in story:
        if what in ("note", "change"):
            for name, value in data.items():
                setattr(coming, name, value)
            if what == "note":
                arrival.note(now)
            continue
        for expected in data:
            verdict = arrival.look(now, 6.0 if what == "late look" else 0.0)
            if expected == GIVEN_UP:
                assert isinstance(verdict, str)
            else:
                assert verdict == (expected or now)


# -- before our HELLO --------------------------------------------------------------------------------------------------


def behind_hello(client: RawClient, what: str) -> bytes:
    """What a client sends right behind its HELLO."""
    request = client.request("Lab.echo", 1)
    return {
        "nothing": b"",
        "one request": request,
        "one and a half": request + client.request("Lab.echo", 1)[:-1],
        "two requests": request + client.request("Lab.echo", 1),
        "a request and its cancel": request + client.protocol.cancel(1, 1),
        "a ping": client.protocol.ping(b"12345678"),
        "a goaway": client.protocol.goaway(0),
    }[what]


@pytest.mark.parametrize(
    ("what", "fits"),
    [
        ("nothing", True),
        ("one request", True),
        ("one and a half", True),
        ("two requests", False),
        ("a request and its cancel", False),
        ("a ping", False),
        ("a goaway", False),
    ],
)
async def test_one_request_may_come_before_our_hello(autojump_clock: MockClock, what: str, fits: bool) -> None:
    """X17, W09: who is not known yet may send one request right behind its HELLO, and nothing else."""
    lab, listener = Lab(), MemoryListener()
    asked: list[object] = []

    async def authenticate(credentials: object, _origin: object) -> str:
        asked.append(credentials)
        return "somebody"

    async with open_server(lab, listener, authenticate=authenticate, allow_insecure=True, heartbeat=QUIET) as server:
        client = RawClient(await listener.connect())
        await client.stream.send_all(client.protocol.greeting() + behind_hello(client, what))
        if fits:
            await client.expect(HelloReceived)
            await client.stream.send_all(client.request("Lab.echo", 1)[:1])
        else:
            assert "more than one request before our HELLO" in await why_closed(client)
        assert len(asked) == fits
        await wait_all_tasks_blocked()
        assert server.statistics().refused_connections == (not fits)
        await client.stream.aclose()


NOISE = {
    "noise": bytes(range(255, 0, -1)) * 4112,
    "HTTP": b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 170_000,
    "a HELLO that is too large": PREFACE + frame(Kind.HELLO, 0, b" " * MIB),
    "something behind the HELLO": PREFACE + frame(Kind.HELLO, 0, b"{}") + b"x" * MIB,
}


class CountingListener(MemoryListener):
    """Counts what is read of the streams that it gives out."""

    read = 0

    async def accept(self) -> Any:
        stream = await super().accept()
        receive_some = stream.receive_some

        async def counted(max_bytes: int | None = None) -> bytes:
            data = bytes(await receive_some(max_bytes))
            self.read += len(data)
            return data

        stream.receive_some = counted  # type: ignore[method-assign]
        return stream


@pytest.mark.parametrize("what", NOISE)
async def test_a_stranger_is_read_no_further_than_16_kib(autojump_clock: MockClock, what: str) -> None:
    """W01, X17: of a megabyte that is no HELLO, 16 KiB are read, and the connection is closed."""
    listener = CountingListener(capacity=None)
    async with open_server(Lab(), listener, heartbeat=QUIET) as server:
        client = RawClient(await listener.connect())
        await client.stream.send_all(NOISE[what])
        await wait_all_tasks_blocked()
        assert server.statistics().refused_connections == 1
        assert 0 < listener.read <= 16 * KIB
        await client.stream.aclose()


# -- states ------------------------------------------------------------------------------------------------------------

EMPTY = {
    Kind.HELLO: "a HELLO frame after the HELLO",
    Kind.REQUEST: "a malformed REQUEST",
    Kind.RESPONSE: "never was",
    Kind.ERROR: "never was",
    Kind.ITEMS: "a malformed ITEMS",
    Kind.END: None,
    Kind.CREDIT: "a CREDIT frame of 0 bytes",
    Kind.CANCEL: "a CANCEL frame of 0 bytes",
    Kind.PING: "a PING frame of 0 bytes",
    Kind.PONG: "a PONG frame of 0 bytes",
    Kind.GOAWAY: "a GOAWAY frame of 0 bytes",
    Kind.CHUNK: None,
}


@pytest.mark.parametrize("kind", EMPTY)
async def test_frames_without_a_body(autojump_clock: MockClock, kind: Kind) -> None:
    """W02: of each kind: a broken rule, or a frame of an ended call, which is dropped and counted."""
    async with served(fault_budget=5, stream_window_items=10, max_message_size=64 * KIB) as (client, _, _):
        await client.send(client.request("Lab.echo", 1))
        await client.expect(ResponseReceived)
        belongs_to = 0 if kind in (Kind.HELLO, Kind.PING, Kind.PONG, Kind.GOAWAY) else 3 if kind is Kind.REQUEST else 1
        if (text := EMPTY[kind]) is not None:
            await client.send(frame(kind, 2 if kind in (Kind.RESPONSE, Kind.ERROR) else belongs_to))
            assert text in await why_closed(client)
            return
        for _ in range(10 + 64 + 5):
            await client.send(frame(kind, 1))
        await client.send(client.request("Lab.echo", 1))
        await client.expect(ResponseReceived)


@pytest.mark.parametrize("cut", [1, 9, 10, 15, -1])
async def test_an_end_within_a_frame(autojump_clock: MockClock, cut: int) -> None:
    """W04: a connection that ends within a header or a body loses its call, which may have run; nothing is decoded."""

    async def torn(peer: ScriptedPeer) -> None:
        await peer.greet()
        request = await peer.expect(RequestReceived)
        await peer.stream.send_all(peer.protocol.response(request.id, b"\xa7partial")[0][:cut])

    async with trio.open_nursery() as nursery:
        server = ScriptedServer(nursery, torn, greet_and_serve)
        async with open_pool(server.connect, heartbeat=QUIET) as pool:
            with pytest.raises(ConnectionLost, match="the peer closed the connection") as caught:
                await pool.call("Lab.echo")
            assert caught.value.may_have_run
            assert await pool.call("Lab.echo") == "Lab.echo"


@pytest.mark.parametrize("cut", [1, 9, 10, 15, -1])
async def test_a_client_that_ends_within_a_frame(autojump_clock: MockClock, cut: int) -> None:
    """W04: no part of a request is decoded, and its handler is not entered."""
    async with served() as (client, server, lab):
        entered: list[None] = []
        lab.hook = lambda: entered.append(None)
        await client.stream.send_all(client.request("Lab.run_hook")[:cut])
        await client.stream.aclose()
        await wait_all_tasks_blocked()
        assert not entered
        assert server.statistics().connections == 1


async def test_a_thousand_frames_at_once(autojump_clock: MockClock) -> None:
    """W06: all are handled, and other tasks have a turn after each 256 of them."""
    async with served(max_in_flight=4000) as (client, _, _):
        turns = 0

        async def take_turns() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        counts = []
        for data in (b"", frame(Kind.END, 1) * 6400):
            async with trio.open_nursery() as nursery:
                await client.send(client.request("Lab.echo", 1))
                await client.expect(ResponseReceived)
                turns = 0
                nursery.start_soon(take_turns)
                await client.stream.send_all(data + client.request("Lab.echo", 2))
                await client.expect(ResponseReceived)
                counts.append(turns)
                nursery.cancel_scope.cancel()
        assert counts[1] - counts[0] >= 20
        await client.stream.send_all(b"".join(client.request("Lab.echo", number) for number in range(1000)))
        for _ in range(1000):
            await client.expect(ResponseReceived)


async def test_a_half_close_is_a_close(autojump_clock: MockClock) -> None:
    """N07: who shuts its writing side has left: its handlers are cancelled, and nothing more is answered."""
    async with served() as (client, server, lab):
        await client.send(client.request("Lab.sleep", 5))
        await wait_all_tasks_blocked()
        await client.stream.send_eof()  # type: ignore[attr-defined]
        assert await client.closed()
        assert trio.current_time() == 0
        await wait_all_tasks_blocked()
        assert (lab.running, server.statistics().connections) == (0, 1)


# -- messages in chunks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("beyond", "fits"), [(-1, True), (0, True), (1, False)])
async def test_what_arrives_in_chunks_is_bounded_together(autojump_clock: MockClock, beyond: int, fits: bool) -> None:
    """R13, R14, R23: of `max_receiving_bytes` of incomplete requests, the one that goes beyond is refused, not run.

    Where these are few, there is room for a whole message beside half of them: 400 KiB here.
    """
    async with served(max_receiving_bytes=160 * KIB, max_message_size=320 * KIB) as (client, _, _):
        first, chunks = echo_in_chunks(client, 300 * KIB)
        await client.stream.send_all(first)
        for chunk in chunks[:-1]:
            await client.stream.send_all(chunk)
        here = len(first) - 14 + sum(len(chunk) - 10 for chunk in chunks[:-1])
        # Another one, in a first frame and a chunk, which together fill what is left.
        room = 400 * KIB - here + beyond
        name = method_block("Lab.echo")
        total = room + 5 * KIB
        head = name + b"\x91\xc6" + struct.pack(">I", total - len(name) - 6)
        await client.stream.send_all(frame(Kind.REQUEST, 3, struct.pack(">I", total) + head, MORE))
        client.protocol.last_local_id = 3
        await client.stream.send_all(frame(Kind.CHUNK, 3, bytes(room - len(head)), MORE))
        await client.stream.send_all(client.protocol.ping(b"12345678"))
        if not fits:
            error = await client.expect(ErrorReceived)
            assert (error.id, error.code, error.outcome, error.started) == (
                3,
                Code.RESOURCE_EXHAUSTED,
                Outcome.REFUSED,
                False,
            )
            assert "(max_receiving_bytes)" in error.message
        await client.expect(PongReceived)
        await client.send(client.protocol.cancel(1, 1))  # So there is room again.
        assert (await client.expect(ErrorReceived)).id == 1
        await client.stream.send_all(frame(Kind.CHUNK, 3, bytes(5 * KIB)))
        if fits:
            assert (await client.expect(ResponseReceived)).id == 3
        await client.send(client.request("Lab.echo", 1))
        await client.expect(ResponseReceived)


async def test_an_item_that_is_too_much_fails_its_own_call(autojump_clock: MockClock) -> None:
    """R13, R14: the handler's stream ends with RESOURCE_EXHAUSTED behind the items that had come; the others go on."""
    async with served(max_receiving_bytes=160 * KIB, max_message_size=320 * KIB) as (client, _, _):
        first, chunks = echo_in_chunks(client, 300 * KIB)
        await client.stream.send_all(first + b"".join(chunks[:-1]))
        await client.send(client.request("Lab.total", streaming=True))
        await client.send(client.protocol.items(3, 2, b"\x92\x01\x02"))
        _, rest = frames = client.protocol.items(3, 1, b"\x91\xc6" + struct.pack(">I", 200 * KIB) + bytes(200 * KIB))
        assert rest is not None
        await client.stream.send_all(frames[0] + b"".join(b"".join(parts) for parts in rest))
        error = await client.expect(ErrorReceived)
        assert (error.id, error.code, error.started) == (3, Code.RESOURCE_EXHAUSTED, True)
        await client.stream.send_all(chunks[-1])
        assert (await client.expect(ResponseReceived)).id == 1


async def test_a_message_in_chunks_has_its_total_checked_at_the_first_frame(autojump_clock: MockClock) -> None:
    """R14: the sum is bounded before the end flag, and no chunk may be so small that it costs more than it brings."""
    async with served(max_message_size=64 * KIB, max_frame_size=16 * KIB) as (client, _, _):
        client.protocol.last_local_id = 1
        name = method_block("Lab.echo")
        await client.send(frame(Kind.REQUEST, 1, struct.pack(">I", 64 * KIB) + name, MORE))
        await client.send(frame(Kind.CHUNK, 1, bytes(MIN_CHUNK_SIZE - 1), MORE))
        assert f"a chunk of {MIN_CHUNK_SIZE - 1} bytes" in await why_closed(client)
    async with served(max_message_size=64 * KIB, max_frame_size=16 * KIB) as (client, _, _):
        await client.send(frame(Kind.REQUEST, 1, struct.pack(">I", 64 * KIB + 1) + name, MORE))
        assert "above our limit of 65536 (max_message_size)" in await why_closed(client)


# -- hostile servers ---------------------------------------------------------------------------------------------------

Misbehaviour = Callable[[Protocol, int], bytes]
OF_A_SERVER: dict[str, tuple[Misbehaviour, str]] = {
    "a frame above the limit": (lambda _, id_: frame(Kind.RESPONSE, id_, length=2**32 - 1), "max_frame_size"),
    "an unknown kind": (lambda _, id_: frame(77, id_), "unknown kind 77"),
    "reserved bits": (lambda _, id_: frame(Kind.RESPONSE, id_, flags=0xE0), "flags 0xe0"),
    "an answer that was never asked for": (lambda _, id_: frame(Kind.RESPONSE, id_ + 2, b"\xc0"), "never was"),
    "an answer to id 0": (lambda _, __: frame(Kind.RESPONSE, 0, b"\xc0"), "never was"),
    "an answer to its own": (lambda _, __: frame(Kind.RESPONSE, 2, b"\xc0"), "never was"),
    "another HELLO": (lambda p, _: frame(Kind.HELLO, 0, p.local.to_bytes()), "HELLO frame after the HELLO"),
    "a request of our parity": (lambda _, id_: frame(Kind.REQUEST, id_ + 2, b"\x01a\x90"), "keep their parity"),
    "metadata of 65 entries": (
        lambda _, id_: frame(Kind.RESPONSE, id_, struct.pack(">I", 65 * 7) + (b"\x01a\0" + bytes(4)) * 65, METADATA),
        "max_metadata_items",
    ),
    "metadata above the limit": (
        lambda _, id_: frame(Kind.RESPONSE, id_, struct.pack(">I", 9000) + bytes(9000), METADATA),
        "max_metadata_size",
    ),
    "a result above the limit": (
        lambda _, id_: frame(Kind.RESPONSE, id_, struct.pack(">I", 5 * MIB) + b"\xc6", MORE),
        "max_message_size",
    ),
    "chunks that do not add up": (
        lambda _, id_: frame(Kind.RESPONSE, id_, struct.pack(">I", 5000) + b"x", MORE) + frame(Kind.CHUNK, id_, b"x"),
        "do not add up",
    ),
    "a flood of pings": (lambda p, _: p.ping(b"12345678") * 20, "too_many_pings"),
    "a flood of pongs": (lambda p, _: p.pong(b"12345678") * 1001, "a PONG that answers no PING"),
    "endless GOAWAYs": (lambda p, _: p.goaway(2**32 - 1, Code.UNAVAILABLE, "x" * 500) * 1003, "one more GOAWAY"),
}


@pytest.mark.parametrize("case", OF_A_SERVER)
async def test_a_hostile_server_costs_its_own_connection(autojump_clock: MockClock, case: str) -> None:
    """X16, W03, W08, W09, W19, R12, R14, R15: a client holds its server to the same rules, and goes elsewhere."""
    misbehave, text = OF_A_SERVER[case]

    async def hostile(peer: ScriptedPeer) -> None:
        await peer.greet()
        request = await peer.expect(RequestReceived)
        await peer.stream.send_all(misbehave(peer.protocol, request.id))
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        server = ScriptedServer(nursery, hostile, greet_and_serve)
        async with open_pool(server.connect, heartbeat=QUIET) as pool:
            with trio.fail_after(1), pytest.raises(ConnectionLost) as caught:
                await pool.call("Lab.echo")
            assert text in str(caught.value)
            assert caught.value.may_have_run
            assert await pool.call("Lab.echo") == "Lab.echo"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("repeats", "fits"), [(9, True), (10, True), (11, False)])
async def test_answers_that_come_again(autojump_clock: MockClock, repeats: int, fits: bool) -> None:
    """S05, X16: a second answer is dropped and counted; `fault_budget` of them are borne, and one more is not."""

    async def repeating(peer: ScriptedPeer) -> None:
        await peer.greet()
        request = await peer.expect(RequestReceived)
        answer, _ = peer.protocol.response(request.id, b"\x01")
        await peer.stream.send_all(answer * (1 + repeats))
        await peer.serve()

    async with trio.open_nursery() as nursery:
        server = ScriptedServer(nursery, repeating, greet_and_serve)
        limits = PoolLimits(fault_budget=10, fault_rate=0)
        async with open_pool(server.connect, limits=limits, heartbeat=QUIET) as pool:
            assert await pool.call("Lab.echo") == 1
            await wait_all_tasks_blocked()
            assert pool.statistics().lost == (not fits)
            assert await pool.call("Lab.echo") == "Lab.echo"
            assert pool.statistics().late_replies == repeats


HELLOS_OF_A_SERVER = {
    "too large": (frame(Kind.HELLO, 0, length=16 * KIB + 1), "above our limit of 16384"),
    "endless": (frame(Kind.HELLO, 0, b"{" + b" " * 16_000) * 9, "not a JSON object"),
    "a name with an escape": (frame(Kind.HELLO, 0, b'{"product": "a\\u001b[2J"}'), "expected a short text"),
    "a service with a newline": (frame(Kind.HELLO, 0, b'{"services": ["a\\nb"]}'), "expected a list of service names"),
    "too many services": (frame(Kind.HELLO, 0, b'{"services": [' + b'"",' * 5000 + b'""]}'), None),
    "deep": (frame(Kind.HELLO, 0, b"[" * 16_000), "not a JSON object"),
    "a request": (frame(Kind.REQUEST, 2, b"\x01a\x90"), "before its HELLO"),
}


@pytest.mark.parametrize("case", HELLOS_OF_A_SERVER)
async def test_a_hostile_servers_hello(autojump_clock: MockClock, case: str) -> None:
    """X16, W07: it is one ConnectError in a sentence, nothing ran, and there is no endless dialling."""
    data, text = HELLOS_OF_A_SERVER[case]

    async def hostile(peer: ScriptedPeer) -> None:
        await peer.stream.send_all(PREFACE + data)
        await peer.event()

    async with trio.open_nursery() as nursery:
        server = ScriptedServer(nursery, hostile)
        async with open_pool(server.connect, heartbeat=QUIET, limits=PoolLimits(acquire_timeout=None)) as pool:
            if text is None:
                await pool.connect()
            else:
                with trio.fail_after(1), pytest.raises(ConnectError) as caught:
                    await pool.connect()
                assert text in str(caught.value)
                assert (caught.value.permanent, caught.value.may_have_run) == (True, False)
        nursery.cancel_scope.cancel()


# -- words of a peer ---------------------------------------------------------------------------------------------------

NASTY = "a\x1b[2Jb\rc\x00d\u202ee\x9bf\u2028g"
CLEAN = "a\\x1b[2Jb\\rc\\x00d\\u202ee\\x9bf\\u2028g"


def refuse(p: Protocol, id_: int, text: str) -> bytes:
    """The handler was not entered."""
    return p.error(id_, Code.RESOURCE_EXHAUSTED, Outcome.REFUSED, False, text)[0]


def stop(p: Protocol, id_: int, text: str) -> bytes:
    """The handler was stopped."""
    return p.error(id_, Code.CANCELLED, Outcome.STOPPED, True, text)[0]


def fail(p: Protocol, id_: int, text: str) -> bytes:
    """The handler failed."""
    return p.error(id_, Code.INTERNAL, Outcome.FAILED, True, text)[0]


def leave(p: Protocol, _id: int, text: str) -> bytes:
    """The server goes away."""
    return frame(Kind.GOAWAY, 0, struct.pack(">IB", 0, Code.UNAVAILABLE) + text.encode())


@pytest.mark.parametrize("way", [refuse, stop, fail, leave])
@pytest.mark.parametrize("size", [1, 20_000])
async def test_words_of_a_server_are_bounded_and_escaped(
    autojump_clock: MockClock, way: Callable[[Protocol, int, str], bytes], size: int
) -> None:
    """X11, X16: control characters of a server's reach no terminal by way of an exception; nor do 20,000 words."""

    async def hostile(peer: ScriptedPeer) -> None:
        await peer.greet()
        request = await peer.expect(RequestReceived)
        await peer.stream.send_all(way(peer.protocol, request.id, NASTY + "\nsecond line" + "." * size))
        await peer.event()

    async with trio.open_nursery() as nursery:
        server = ScriptedServer(nursery, hostile)
        async with open_pool(server.connect, heartbeat=QUIET) as pool:
            retry = trio_rpc.RetryPolicy(attempts=1, refusals=False)
            with pytest.raises(trio_rpc.RpcError) as caught:
                await pool.stub(Lab, retry=retry).echo(1)
            message = caught.value.message
            assert message.startswith(CLEAN + "\nsecond line")
            assert len(message) < 5000
            kind: type[Exception] = RemoteError if way is fail else Overloaded if way is refuse else trio_rpc.RpcError
            assert isinstance(caught.value, kind)
        nursery.cancel_scope.cancel()


async def test_words_instead_of_a_hello_are_bounded_and_escaped(autojump_clock: MockClock) -> None:
    """X11, X16: the same for a server that refuses the connection."""

    async def hostile(peer: ScriptedPeer) -> None:
        await peer.event()
        await peer.stream.send_all(PREFACE + leave(peer.protocol, 0, NASTY + "." * 9000))

    async with trio.open_nursery() as nursery:
        server = ScriptedServer(nursery, hostile)
        async with open_pool(server.connect, heartbeat=QUIET) as pool:
            with pytest.raises(ConnectError) as caught:
                await pool.connect()
            assert f"refused the connection: {CLEAN}" in caught.value.message
            assert len(caught.value.message) < 700


def test_the_other_role_reads_the_same() -> None:
    """W08: what a dialler may not send, an acceptor may not either."""
    for role, other in ((Role.DIALLER, Role.ACCEPTOR), (Role.ACCEPTOR, Role.DIALLER)):
        reader, writer = Protocol(role, Hello()), Protocol(other, Hello())
        reader.receive_data(writer.greeting())
        for kind in (0, 13, 99, 255):
            with pytest.raises(trio_rpc.RemoteProtocolError, match="unknown kind"):
                reader.receive_data(frame(kind))
