"""Floods of what breaks no rule by itself: each is borne up to its budget, and no further; honest peers never come near.

Everything is in memory and in virtual time, so a budget's rate is told by the clock exactly.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.guarantees.kit import Lab, RawClient, numbers
from tests.scripted import ScriptedPeer, ScriptedServer, greet_and_serve
from trio_rpc import (
    Code,
    ConnectionLost,
    Heartbeat,
    PermissionDenied,
    PoolLimits,
    RemoteProtocolError,
    Server,
    ServerLimits,
    Unimplemented,
    open_pool,
    open_server,
)
from trio_rpc._allowance import Allowance
from trio_rpc._faults import Faults
from trio_rpc.testing import MemoryListener, open_loopback
from trio_rpc.wire import (
    MIN_CHUNK_SIZE,
    ErrorReceived,
    GoAwayReceived,
    Hello,
    Kind,
    PongReceived,
    Protocol,
    RequestReceived,
    ResponseReceived,
    Role,
    method_block,
)

QUIET = Heartbeat(interval=None)
KIB = 1024


def frame(kind: int, request_id: int = 0, body: bytes = b"", flags: int = 0) -> bytes:
    """Any frame at all."""
    return struct.pack(">IIBB", len(body), request_id, kind, flags) + body


@asynccontextmanager
async def served(**limits: Any) -> AsyncIterator[tuple[RawClient, Server, Lab]]:
    """A client that is played by hand and has said HELLO, and beside it a good one, whom it must not hurt."""
    lab, listener = Lab(), MemoryListener(capacity=None)
    async with (
        open_server(lab, listener, limits=ServerLimits(**limits), heartbeat=QUIET) as server,
        open_pool(listener.connect, heartbeat=QUIET) as pool,
    ):
        assert await pool.stub(Lab).echo(0) == 0
        client = RawClient(await listener.connect())
        await client.greet()
        yield client, server, lab
        await client.stream.aclose()
        assert await pool.stub(Lab).echo("unharmed") == "unharmed"
        assert (pool.statistics().connects, pool.statistics().lost) == (1, 0)


async def is_alive(client: RawClient) -> bool:
    """Whether the server still answers; if not, it has closed, and said why."""
    try:
        await client.send(client.protocol.ping(b"12345678"))
        while not isinstance(event := await client.event(), PongReceived):
            if isinstance(event, GoAwayReceived) and event.code is Code.INTERNAL:
                assert "too many errors (fault_budget)" in event.message
        return True
    except (trio.EndOfChannel, trio.BrokenResourceError):
        return False


# -- faults, one by one ------------------------------------------------------------------------------------------------

Fault = Callable[[RawClient], bytes]


def malformed(client: RawClient) -> bytes:
    """A payload that is no value."""
    return client.protocol.request(method_block("Lab.echo"), b"\xc1")[1][0]


FAULTS: dict[str, Fault] = {
    "R11: a method that does not exist": lambda client: client.request("Lab.nothing"),
    "R11: a service that does not exist": lambda client: client.request("Nothing.at_all"),
    "R11: arguments that do not fit": lambda client: client.request("Lab.sleep", "long"),
    "R11: a payload that does not decode": malformed,
    "R12: a PONG for no PING": lambda client: client.protocol.pong(b"87654321"),
    "R11: a key for a stream": lambda client: client.protocol.request(
        method_block("Lab.count"), b"\x90", metadata={"idempotency-key": "k"}
    )[1][0],
}


@pytest.mark.parametrize(("count", "fits"), [(9, True), (10, True), (11, False)])
@pytest.mark.parametrize("name", FAULTS)
async def test_faults_are_counted(autojump_clock: MockClock, name: str, count: int, fits: bool) -> None:
    """R10, R11, R12, Rule 9: `fault_budget` faults at once are borne, whatever they are; one more closes the
    connection.
    """
    async with served(fault_budget=10, fault_rate=0) as (client, _, _):
        for _ in range(count):
            await client.send(FAULTS[name](client))
        assert await is_alive(client) == fits


@pytest.mark.parametrize(("count", "fits"), [(9, True), (10, True), (11, False)])
async def test_items_that_do_not_decode_are_counted(autojump_clock: MockClock, count: int, fits: bool) -> None:
    """R11, W10: an item that its codec refuses is a fault as well, though the handler is running; one of a wrong type
    is not.
    """
    async with served(fault_budget=10, fault_rate=0) as (client, _, _):
        for _ in range(count):
            for payload in (b"\x91\xa1x", b"\x91\xc1"):
                await client.send(client.request("Lab.total", streaming=True))
                await client.send(client.protocol.items(client.protocol.last_local_id, 1, payload))
                await wait_all_tasks_blocked()
        assert await is_alive(client) == fits


@pytest.mark.parametrize(("pause", "fits"), [(0.5, True), (0.4, False)])
async def test_faults_are_forgotten_at_a_rate(autojump_clock: MockClock, pause: float, fits: bool) -> None:
    """R11: `fault_rate` a second are borne for ever, and not more."""
    async with served(fault_budget=10, fault_rate=2) as (client, _, _):
        alive = True
        for _ in range(100):
            await client.send(client.request("Lab.nothing"))
            alive = alive and await is_alive(client)
            if not alive:
                break
            await trio.sleep(pause)
        assert alive == fits


async def test_faults_need_not_be_counted(autojump_clock: MockClock) -> None:
    """R11: `fault_budget=None` bears any number."""
    async with served(fault_budget=None) as (client, _, _):
        for _ in range(3000):
            await client.send(client.request("Lab.nothing"), client.protocol.pong(b"87654321"))
            await client.expect(ErrorReceived)
        assert await is_alive(client)


async def test_who_is_denied_again_and_again(autojump_clock: MockClock) -> None:
    """R11, Rule 9: refusals by `authorize` count as well; the calls of others on that connection are lost with it."""
    lab, listener = Lab(), MemoryListener()
    limits = ServerLimits(fault_budget=10, fault_rate=0)
    async with (
        open_server(lab, listener, limits=limits, authorize=lambda _peer, name: name != "Lab.echo") as server,
        open_pool(listener.connect) as pool,
    ):
        for _ in range(10):
            with pytest.raises(PermissionDenied):
                await pool.stub(Lab).echo(1)
        assert pool.statistics().lost == 0
        with pytest.raises((PermissionDenied, ConnectionLost)):
            await pool.stub(Lab).echo(1)
        await wait_all_tasks_blocked()
        assert pool.statistics().lost == 1
        assert server.statistics().in_flight == 0


@pytest.mark.parametrize("name", ["full", "expired", "cancelled", "draining"])
async def test_what_an_honest_peer_meets_costs_nothing(autojump_clock: MockClock, name: str) -> None:
    """R10, R16: no room, a deadline that has passed, cancelling inside the limits, and drain are no faults."""
    async with served(fault_budget=1, fault_rate=0, max_in_flight=8, max_calls=1) as (client, server, _):
        if name == "full":
            await client.send(client.request("Lab.sleep", 60))
        if name == "draining":
            list(server._connections)[1].drain("draining")
            await trio.sleep(2)
        for _ in range(100 if name != "draining" else 8):
            if name == "cancelled":
                await client.send(
                    client.request("Lab.sleep", 60), client.protocol.cancel(client.protocol.last_local_id, 1)
                )
            else:
                await client.send(client.request("Lab.echo", 1, timeout=0.0 if name == "expired" else None))
            await wait_all_tasks_blocked()
        assert await is_alive(client)


# -- frames of calls that have ended -----------------------------------------------------------------------------------

LATE = {
    "CANCEL": frame(Kind.CANCEL, 1, bytes(5)),
    "END": frame(Kind.END, 1),
    "CREDIT": frame(Kind.CREDIT, 1, b"\0\0\0\1\0\0\0\1"),
    "ITEMS": frame(Kind.ITEMS, 1, b"\0\0\0\1\x91\x01"),
    "CHUNK": frame(Kind.CHUNK, 1, b"x"),
    "ITEMS in chunks": frame(Kind.ITEMS, 1, b"\0\0\0\xff\0\0\0\1\x91\x01", 0x01),
}
EACH = 4 + 64 * KIB // MIN_CHUNK_SIZE
"""Late frames that each call excuses, with the limits below."""


@pytest.mark.parametrize(("beyond", "fits"), [(-1, True), (0, True), (1, False)])
@pytest.mark.parametrize("kind", LATE)
async def test_late_frames_are_counted(autojump_clock: MockClock, kind: str, beyond: int, fits: bool) -> None:
    """S07, R10: for each call that was begun, what can be under way when it ends; what is beyond is a fault."""
    limits = {"stream_window_items": 4, "max_message_size": 64 * KIB, "fault_budget": 5, "fault_rate": 0}
    async with served(**limits) as (client, _, _):
        for _ in range(2):
            await client.send(client.request("Lab.echo", 1))
            await client.expect(ResponseReceived)
        await client.stream.send_all(LATE[kind] * (2 * EACH + 5 + beyond))
        assert await is_alive(client) == fits


async def test_ids_that_were_left_out_excuse_nothing(autojump_clock: MockClock) -> None:
    """S07: an id far ahead is one call, and not all those before it."""
    limits = {"stream_window_items": 4, "max_message_size": 64 * KIB, "fault_budget": 5, "fault_rate": 0}
    async with served(**limits) as (client, _, _):
        client.protocol.last_local_id = 999_999
        await client.send(client.request("Lab.echo", 1))
        await client.expect(ResponseReceived)
        await client.stream.send_all(frame(Kind.CANCEL, 1_000_001, bytes(5)) * (EACH + 6))
        assert not await is_alive(client)


OF_AN_OPEN_CALL = {
    "CANCEL": frame(Kind.CANCEL, 1, bytes(5)),
    "END": frame(Kind.END, 1),
    "CREDIT": frame(Kind.CREDIT, 1, b"\0\0\0\1\0\0\0\0"),
}


@pytest.mark.parametrize("kind", OF_AN_OPEN_CALL)
async def test_frames_of_an_open_call_are_no_way_around(autojump_clock: MockClock, kind: str) -> None:
    """S07, R10: a second CANCEL, a second END, credit for what was never sent: counted like those of an ended call."""
    limits = {"stream_window_items": 4, "max_message_size": 64 * KIB, "fault_budget": 5, "fault_rate": 0}
    async with served(**limits) as (client, _, lab):
        await client.send(client.request("Lab.stubborn_total", 60, streaming=True))
        await wait_all_tasks_blocked()
        await client.stream.send_all(OF_AN_OPEN_CALL[kind] * (1 + EACH + 5))
        assert (await is_alive(client)) == (kind != "CREDIT")
        if kind != "CREDIT":
            await client.stream.send_all(OF_AN_OPEN_CALL[kind])
            assert not await is_alive(client)
        assert not lab.log


@pytest.mark.parametrize(("window", "items"), [(1000, 10**6), (10**6, 10)])
async def test_credit_is_never_more_than_the_window(autojump_clock: MockClock, window: int, items: int) -> None:
    """R05, R11: who grants more than it was sent gets no more for it."""
    lab, listener = Lab(), MemoryListener(capacity=None)
    async with open_server(lab, listener, heartbeat=QUIET):
        client = RawClient(await listener.connect(), Hello(stream_window=window, stream_window_items=items))
        await client.greet()
        request = client.protocol.request(method_block("Lab.count"), b"\x93\xcd\x27\x10\x00\x64")[1][0]  # 10,000 of 100
        await client.send(request)
        await wait_all_tasks_blocked()
        assert 8 <= lab.produced <= 25
        await client.send(client.protocol.credit(1, 2**32 - 1, 2**32 - 1))
        await wait_all_tasks_blocked()
        assert 16 <= lab.produced <= 50
        await client.stream.aclose()


async def test_late_items_of_a_stream_that_was_left_are_ordinary(autojump_clock: MockClock) -> None:
    """S17, S07: a consumer that leaves, a hundred times, with a whole window under way each time, loses nothing."""
    limits = PoolLimits(fault_budget=1, fault_rate=0, max_connections=1)
    async with open_loopback(Lab(), limits=limits, server_limits=ServerLimits(fault_budget=1, fault_rate=0)) as pool:
        for _ in range(100):
            async with pool.stub(Lab).count() as stream:
                assert await stream.receive() == "0"
            assert await pool.stub(Lab).first(numbers(2000)) == 0
        assert (pool.statistics().connects, pool.statistics().lost) == (1, 0)


async def test_replies_that_cross_a_goaway_are_ordinary(autojump_clock: MockClock) -> None:
    """S14, S05: a call above the last id of a GOAWAY has ended here, and may be refused by the peer as well."""

    async def leaving(peer: ScriptedPeer) -> None:
        await peer.greet()
        requests = [await peer.expect(RequestReceived) for _ in range(20)]
        await peer.stream.send_all(peer.protocol.goaway(requests[0].id, Code.UNAVAILABLE, "bye"))
        for request in requests[1:]:
            await peer.refuse(request, Code.UNAVAILABLE)
        await peer.answer(requests[0], "the last one")
        await peer.event()

    results: list[Any] = []
    async with trio.open_nursery() as nursery:
        server = ScriptedServer(nursery, leaving, greet_and_serve)
        limits = PoolLimits(fault_budget=1, fault_rate=0, max_connections=1)
        async with open_pool(server.connect, limits=limits, heartbeat=QUIET) as pool:
            await pool.connect()
            async with trio.open_nursery() as callers:

                async def call() -> None:
                    results.append(await pool.call("Lab.echo"))

                for _ in range(20):
                    callers.start_soon(call)
            assert sorted(results) == ["Lab.echo"] * 19 + ["the last one"]


# -- pings, GOAWAYs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "fits"), [(6, True), (7, True), (8, False)])
async def test_pings_at_once(autojump_clock: MockClock, count: int, fits: bool) -> None:
    """R12: `ping_budget` of them at once are answered, and one more closes the connection."""
    async with served(ping_budget=7, ping_rate=0.5) as (client, _, _):
        await client.send(*[client.protocol.ping(b"12345678")] * count)
        if fits:
            for _ in range(count):
                await client.expect(PongReceived)
        else:
            assert await client.closed()


@pytest.mark.parametrize(("pause", "fits"), [(2.0, True), (1.9, False)])
async def test_pings_at_a_rate(autojump_clock: MockClock, pause: float, fits: bool) -> None:
    """R12: `ping_rate` a second are answered for ever, and not more."""
    async with served(ping_budget=3, ping_rate=0.5) as (client, _, _):
        answered = 0
        with contextlib.suppress(trio.EndOfChannel, trio.BrokenResourceError):
            while answered < 200:
                await client.send(client.protocol.ping(b"12345678"))
                if not isinstance(await client.event(), PongReceived):
                    break
                answered += 1
                await trio.sleep(pause)
        assert (answered == 200) == fits


@pytest.mark.parametrize("leaving", [False, True])
async def test_owed_pongs_are_bounded(autojump_clock: MockClock, leaving: bool) -> None:
    """R12, X16: to who pings and does not read, going away or not, 16 PONGs are owed, however many pings are allowed."""
    lab, listener = Lab(), MemoryListener(capacity=2 * KIB)
    limits = ServerLimits(ping_budget=1000, write_timeout=None)
    async with open_server(lab, listener, limits=limits, heartbeat=QUIET):
        client = RawClient(await listener.connect())
        await client.greet()
        if leaving:
            await client.send(client.protocol.goaway(0))
        await client.send(client.request("Lab.echo", "x" * 8000))
        await wait_all_tasks_blocked()
        for _ in range(16):
            await client.send(client.protocol.ping(b"12345678"))
        await wait_all_tasks_blocked()
        assert repr(client.stream).startswith("<MemoryStream open")
        await client.send(client.protocol.ping(b"12345678"))
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BrokenResourceError):
            await client.send(client.protocol.ping(b"12345678"))
        await client.stream.aclose()


@pytest.mark.parametrize(("count", "fits"), [(2 + 2, True), (2 + 3, True), (2 + 4, False)])
async def test_goaways_beyond_a_drains_two(autojump_clock: MockClock, count: int, fits: bool) -> None:
    """R12, X16: two GOAWAYs are what a drain needs; each further one is a fault."""
    async with served(fault_budget=3, fault_rate=0) as (client, _, _):
        for _ in range(count):
            await client.send(client.protocol.goaway(2**32 - 1))
        assert await is_alive(client) == fits


async def test_an_invented_pong_tells_no_round_trip(autojump_clock: MockClock) -> None:
    """R12: what a peer invents as an answer does not become the measured round trip, nor end anybody's wait."""
    async with served() as (client, server, _):
        connection = list(server._connections)[1]
        await client.send(client.protocol.pong(struct.pack(">d", -1e9)))
        assert await is_alive(client)
        assert connection._watch.rtt == 0


# -- calls beyond the limits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factor", "beyond", "fits"), [(1, 3, True), (1, 4, True), (1, 5, False), (3, 12, True), (3, 13, False)]
)
async def test_calls_beyond_the_limit(autojump_clock: MockClock, factor: int, beyond: int, fits: bool) -> None:
    """R16, Rule 8: those beyond `max_in_flight` are refused at once; `excess_factor` times as many, and not one more."""
    async with served(max_in_flight=4, excess_factor=factor, fault_budget=None) as (client, _, lab):
        for _ in range(4 + beyond):
            await client.send(client.request("Lab.sleep", 60))
        refused = 0
        with trio.move_on_after(1), contextlib.suppress(trio.EndOfChannel):
            while isinstance(error := await client.event(), ErrorReceived):
                assert (error.code, error.started) == (Code.RESOURCE_EXHAUSTED, False)
                refused += 1
        assert trio.current_time() == (1 if fits else 0)
        if fits:
            assert (refused, lab.running) == (beyond, 4)
        else:
            assert await client.closed()


async def test_calls_beyond_the_limit_between_good_ones(autojump_clock: MockClock) -> None:
    """R16, R10: one that is taken now and then does not make the others cheap: each beyond the limit is a fault, too."""
    async with served(max_in_flight=2, fault_budget=20, fault_rate=0) as (client, _, _):
        await client.send(client.request("Lab.sleep", 600))
        sent = 0
        with pytest.raises((trio.BrokenResourceError, trio.EndOfChannel)):
            for _ in range(100):
                await client.send(client.request("Lab.sleep", 1))
                for _ in range(3):
                    await client.send(client.request("Lab.echo", 1))
                    sent += 1
                await trio.sleep(2)
                while not isinstance(await client.event(), ResponseReceived):
                    pass
        assert sent == 21


async def test_rapid_reset(autojump_clock: MockClock) -> None:
    """R10, Rule 8: request and CANCEL, again and again, at handlers that do not stop: never more of them than allowed."""
    async with served(max_in_flight=8) as (client, server, lab):
        most = sent = 0
        with contextlib.suppress(trio.BrokenResourceError):
            while sent < 200:
                await client.send(client.request("Lab.sleep", 60, 600))
                sent += 1
                await wait_all_tasks_blocked()
                await client.send(client.protocol.cancel(client.protocol.last_local_id, 0))
                most = max(most, lab.running)
        assert sent == 8 + 4 * 8 + 1
        assert most == 8
        assert await client.closed()
        assert trio.current_time() < 1
        assert lab.running <= 8
        assert server.statistics().connections == 2  # Until its handlers have ended.
        await trio.sleep(601)
        assert (lab.running, server.statistics().connections) == (0, 1)


async def test_streams_that_are_begun_and_never_finished(autojump_clock: MockClock) -> None:
    """R13: of 1000 uploads that send nothing, as many run as may; the others are refused, and a deadline ends them all."""
    async with served(max_in_flight=256, max_deadline=30.0, excess_factor=10, fault_budget=None) as (client, server, _):
        for _ in range(1000):
            await client.send(client.request("Lab.total", streaming=True))
        for _ in range(744):
            error = await client.expect(ErrorReceived)
            assert (error.code, error.started) == (Code.RESOURCE_EXHAUSTED, False)
        assert server.statistics().in_flight == 256
        for _ in range(256):
            error = await client.expect(ErrorReceived)
            assert (error.code, error.started, trio.current_time()) == (Code.DEADLINE_EXCEEDED, True, 30.0)


async def test_calls_behind_our_goaway(autojump_clock: MockClock) -> None:
    """R11: what can have crossed the GOAWAY is refused for nothing; who goes on with calls is closed."""
    async with served(max_in_flight=4, fault_budget=3, fault_rate=0) as (client, server, _):
        connection = list(server._connections)[1]
        connection.drain("draining")
        await trio.sleep(2)
        for _ in range(4 + 3):
            await client.send(client.request("Lab.echo", 1))
        assert await is_alive(client)
        await client.send(client.request("Lab.echo", 1))
        assert not await is_alive(client)


# -- the decisions, alone ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("most", "rate", "spent_at", "taken"),
    [
        (3, 0, [0, 0, 0, 0], [True, True, True, False]),
        (1, 2, [0, 0.5, 1.0, 1.4], [True, True, True, False]),
        (2, 1, [0, 0, 100, 100, 100], [True, True, True, True, False]),
    ],
)
def test_an_allowance(most: float, rate: float, spent_at: list[float], taken: list[bool]) -> None:
    """R10: so many at once, so many a second; what is not used does not add up beyond the first."""
    allowance = Allowance(most, 0.0)
    assert [allowance.spend(now, rate) for now in spent_at] == taken


async def test_a_fault_aside_ends_the_connection_itself(autojump_clock: MockClock) -> None:
    """R11: where nobody reads, the error is not raised into whoever was about to answer."""
    ended: list[RemoteProtocolError] = []
    faults = Faults(PoolLimits(fault_budget=1, fault_rate=0), Protocol(Role.DIALLER, Hello()), ended.append)
    faults.charge("one")
    faults.charge_aside("two")
    assert "the last one: two" in str(ended[0])
    with pytest.raises(RemoteProtocolError, match="the last one: three"):
        faults.charge("three")


async def test_version_skew_in_small_doses_is_borne(autojump_clock: MockClock) -> None:
    """R11: with the defaults, 1000 calls at once of a method that is not there cost no more than themselves."""
    async with open_loopback(Lab(), limits=PoolLimits(max_connections=1)) as pool:

        async def ask() -> None:
            with pytest.raises(Unimplemented):
                await pool.call("Lab.of_tomorrow")

        async with trio.open_nursery() as nursery:
            for _ in range(1000):
                nursery.start_soon(ask)
        assert (pool.statistics().connects, pool.statistics().lost) == (1, 0)
