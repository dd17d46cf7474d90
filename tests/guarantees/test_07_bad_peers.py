"""Guarantee 7: a bad peer costs its own connection, at most."""

from __future__ import annotations

import logging
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.guarantees.kit import Lab, RawClient
from tests.scripted import ScriptedPeer
from trio_rpc import (
    ConnectionLost,
    Heartbeat,
    PoolLimits,
    Server,
    ServerLimits,
    method,
    open_connection,
    open_pool,
    open_server,
)
from trio_rpc.testing import MemoryListener, memory_pipe, open_loopback
from trio_rpc.wire import ErrorReceived, Hello, Kind, Outcome, ResponseReceived, method_block

HEADER = struct.Struct(">IIBB")
LIMITS = ServerLimits(max_in_flight=4, max_frame_size=16 * 1024, max_message_size=64 * 1024, handshake_timeout=5)


def frame(kind: int, request_id: int = 0, body: bytes = b"", flags: int = 0, length: int | None = None) -> bytes:
    """Any frame at all."""
    return HEADER.pack(len(body) if length is None else length, request_id, kind, flags) + body


@asynccontextmanager
async def bad_and_good() -> AsyncIterator[tuple[RawClient, Lab, Server]]:
    """A client played by hand; and beside it, on another connection, one that must not notice any of it."""
    lab, listener = Lab(), MemoryListener()
    quiet = Heartbeat(interval=None)
    async with (
        open_server(lab, listener, limits=LIMITS, heartbeat=quiet) as server,
        open_pool(listener.connect, heartbeat=quiet) as pool,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(pool.stub(Lab).sleep, 100)
        await pool.stub(Lab).echo(0)
        client = RawClient(await listener.connect())
        yield client, lab, server
        await client.stream.aclose()
        assert await pool.stub(Lab).echo("unharmed") == "unharmed"
        assert (pool.statistics().connects, pool.statistics().lost) == (1, 0)
        nursery.cancel_scope.cancel()


BEFORE_HELLO = {
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00",
    "noise": bytes(range(255, 0, -1)) * 50,
    "another version": b"\x00" * 64,
}

AFTER_HELLO = {
    "a frame above the limit, at its header": frame(Kind.REQUEST, 1, length=2**32 - 1),
    "an unknown kind": frame(99, 1),
    "a flag that means nothing": frame(Kind.END, 1, flags=0x80),
    "an even id": frame(Kind.REQUEST, 2, b"\x01a\x90"),
    "an answer to nothing": frame(Kind.RESPONSE, 2, b"\xc0"),
    "items of no request": frame(Kind.ITEMS, 7, b"\0\0\0\1\x91\0"),
    "a cancel of no request": frame(Kind.CANCEL, 9, b"\0\0\0\0\0"),
    "credit of nothing": frame(Kind.CREDIT, 0, b"\0" * 8),
    "a request with no name": frame(Kind.REQUEST, 1, b"\0"),
    "a name that is no UTF-8": frame(Kind.REQUEST, 1, b"\x02\xff\xff\x90"),
    "a message that announces too much": frame(Kind.REQUEST, 1, b"\xff\xff\xff\xff\x01a\x90", flags=1),
    "a short ping": frame(Kind.PING, 0, b"123"),
    "a second HELLO": frame(Kind.HELLO, 0, Hello().to_bytes()),
}


@pytest.mark.parametrize("name", BEFORE_HELLO)
async def test_who_is_no_client_is_closed(autojump_clock: trio.testing.MockClock, name: str) -> None:
    """W01, W07, 7: whatever speaks something else is closed at its first bytes."""
    async with bad_and_good() as (client, _, server):
        await client.stream.send_all(BEFORE_HELLO[name])
        with trio.fail_after(1), pytest.raises((trio.BrokenResourceError, trio.EndOfChannel)):
            while await client.stream.receive_some():
                pass
            raise trio.EndOfChannel
        await trio.testing.wait_all_tasks_blocked()
        assert server.statistics().refused_connections == 1


async def test_who_says_nothing_is_closed(autojump_clock: trio.testing.MockClock) -> None:
    """R06, Rule 14, 7: the handshake has a bound in time, and one byte now and then does not extend it."""
    async with bad_and_good() as (client, _, server):
        assert server.statistics().connections == 1
        for byte in client.protocol.greeting()[:4]:
            await client.stream.send_all(bytes([byte]))
            await trio.sleep(1)
        assert server.statistics().handshaking == 1
        await trio.sleep(1.1)
        assert (server.statistics().handshaking, server.statistics().refused_connections) == (0, 1)


@pytest.mark.parametrize("name", AFTER_HELLO)
async def test_who_breaks_the_rules_is_closed(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """W03, W08, W09, W19, S07, 7: a frame or state fault ends that connection at once, cancels its handlers, and logs
    one line.
    """
    async with bad_and_good() as (client, lab, server):
        await client.greet()
        caplog.clear()
        if "2" not in name and AFTER_HELLO[name][8] != Kind.REQUEST:
            await client.send(client.request("Lab.sleep", 60))
            await trio.testing.wait_all_tasks_blocked()
            assert lab.running == 2
        with caplog.at_level(logging.WARNING):
            await client.send(AFTER_HELLO[name])
            assert await client.closed()
        await trio.testing.wait_all_tasks_blocked()
        assert (trio.current_time(), lab.running, server.statistics().connections) == (0, 1, 1)
        assert len(caplog.records) == 1


async def test_items_beyond_the_credit_are_a_broken_rule(autojump_clock: trio.testing.MockClock) -> None:
    """7: who sends a stream's items without credit is closed, before they fill memory."""
    async with bad_and_good() as (client, lab, _):
        await client.greet()
        await client.send(client.request("Lab.stubborn_total", 60, streaming=True))
        sent = 0
        with pytest.raises(trio.BrokenResourceError):
            while sent < 100:
                await client.send(frame(Kind.ITEMS, 1, b"\0\0\0\1" + b"\xc4\xff" + b"x" * 8000))
                await trio.testing.wait_all_tasks_blocked()
                sent += 1
        assert 8 <= sent <= 10
        assert not lab.log


async def test_a_handler_that_takes_long_to_end_holds_no_broken_connection_open(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """7: the transport is closed at once, though a handler's clean-up goes on for a minute."""
    async with bad_and_good() as (client, lab, server):
        await client.greet()
        await client.send(client.request("Lab.sleep", 60, 60), client.request("Lab.stubborn", 60))
        await trio.testing.wait_all_tasks_blocked()
        await client.send(frame(99))
        assert await client.closed()
        assert (trio.current_time(), lab.running, server.statistics().connections) == (0, 2, 2)
        await trio.sleep(61)
        assert (lab.running, server.statistics().connections) == (1, 1)


async def test_a_slot_is_held_until_the_handler_has_ended(autojump_clock: trio.testing.MockClock) -> None:
    """R10, Rule 8, 7: rapid reset: a request that is cancelled at once takes its place until its handler has really
    ended.
    """
    async with bad_and_good() as (client, lab, server):
        await client.greet()
        for _ in range(4):
            await client.send(client.request("Lab.sleep", 60, 10))
        await trio.testing.wait_all_tasks_blocked()
        for request_id in (1, 3, 5, 7):
            await client.send(client.protocol.cancel(request_id, 0))
        await client.send(client.request("Lab.echo", 1))
        error = await client.expect(ErrorReceived)
        assert (error.id, error.outcome, error.started) == (9, Outcome.REFUSED, False)
        assert (lab.running, server.statistics().in_flight) == (5, 5)
        await trio.sleep(11)
        for _ in range(4):
            assert (await client.expect(ErrorReceived)).outcome is Outcome.CANCELLED
        await client.send(client.request("Lab.echo", 1))
        await client.expect(ResponseReceived)


async def test_who_goes_on_far_beyond_the_limit_is_closed(autojump_clock: trio.testing.MockClock) -> None:
    """R16, 7: refusals are bounded as well: four times `max_in_flight` without a pause, and the connection is closed."""
    async with bad_and_good() as (client, lab, _):
        await client.greet()
        for _ in range(4):
            await client.send(client.request("Lab.sleep", 60))
        refused = 0
        await client.send(client.request("Lab.echo", 1))
        while isinstance(await client.event(), ErrorReceived):
            refused += 1
            await client.send(client.request("Lab.echo", 1))
        assert await client.closed()
        assert refused == 16
        await trio.testing.wait_all_tasks_blocked()
        assert lab.running == 1


async def test_a_flood_of_pings_is_closed(autojump_clock: trio.testing.MockClock) -> None:
    """R12, 7: pings far beyond what the HELLO announced end the connection; a patient pinger is answered."""
    async with bad_and_good() as (client, _, _):
        await client.greet()
        for _ in range(30):
            await trio.sleep(0.5)
            await client.send(client.protocol.ping(b"12345678"))
            await client.event()
        await client.send(*[client.protocol.ping(b"12345678")] * 50)
        assert await client.closed()


async def test_an_honest_nursery_may_cancel_thousands(autojump_clock: trio.testing.MockClock) -> None:
    """R10, 7: cancelling costs nothing inside the announced limits: 2,000 calls at once, again and again."""
    lab = Lab()
    limits = PoolLimits(max_in_flight=256, max_connections=1, max_waiting=None)
    async with open_loopback(lab, limits=limits) as pool:
        await pool.connect()
        for _ in range(3):
            with trio.move_on_after(1):
                async with trio.open_nursery() as nursery:
                    for _ in range(2000):
                        nursery.start_soon(pool.stub(Lab).sleep, 60)
            assert lab.running == 0
        stats = pool.statistics()
        assert (stats.lost, stats.in_flight, stats.waiting, stats.orphans, stats.connects) == (0, 0, 0, 0, 1)
        assert await pool.stub(Lab).echo(1) == 1


BAD_SERVERS = {
    "a frame above the limit": frame(Kind.RESPONSE, 1, length=2**31),
    "an answer to its own request": frame(Kind.RESPONSE, 2, b"\xc0"),
    "an answer to what was never asked": frame(Kind.RESPONSE, 99, b"\xc0"),
    "noise": b"\xff" * 100,
}


@pytest.mark.parametrize("name", BAD_SERVERS)
async def test_a_bad_server_costs_its_own_connection(autojump_clock: trio.testing.MockClock, name: str) -> None:
    """S05, X16, 7: the calling side keeps the same rules: its calls there end as ConnectionLost, with the broken rule
    as cause.
    """
    ours, theirs = memory_pipe()

    async def misbehave() -> None:
        peer = ScriptedPeer(theirs, Hello())
        await peer.greet()
        await peer.event()
        await theirs.send_all(BAD_SERVERS[name])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(misbehave)
        async with open_connection(ours) as pool:
            with pytest.raises(ConnectionLost, match="the peer") as caught:
                await pool.stub(Lab).echo(1)
    assert "RemoteProtocolError" in repr(caught.value.__cause__)


async def test_a_payload_that_does_not_decode_costs_its_own_call(autojump_clock: trio.testing.MockClock) -> None:
    """W10, 7: where only the payload is bad, the connection and its other calls go on."""
    async with bad_and_good() as (client, _, _):
        await client.greet()
        await client.send(frame(Kind.REQUEST, 1, b"\x08Lab.echo\xc1\xc1"))
        client.protocol.last_local_id = 1
        error = await client.expect(ErrorReceived)
        assert (error.outcome, error.started) == (Outcome.REFUSED, False)
        await client.send(client.request("Lab.echo", 1))
        await client.expect(ResponseReceived)


class Plain(Lab):
    @method
    async def crash(self) -> None:
        raise MemoryError("secret")


async def test_a_reset_does_not_end_the_server(autojump_clock: trio.testing.MockClock) -> None:
    """Rule 1, 7: a connection that breaks at any moment, even in the HELLO, ends itself and not the server."""
    async with bad_and_good() as (client, _, server):
        await client.stream.send_all(client.protocol.greeting()[:7])
        await trio.testing.wait_all_tasks_blocked()
        client.stream.reset()  # type: ignore[attr-defined]
        await trio.testing.wait_all_tasks_blocked()
        assert server.statistics().refused_connections == 1


async def test_a_handlers_worst_costs_its_own_call(autojump_clock: trio.testing.MockClock) -> None:
    """P07, 7: a MemoryError of one handler is that call's failure."""
    async with open_loopback(Plain()) as pool:
        with pytest.raises(Exception, match=r"error id|internal|failed"):
            await pool.stub(Plain).crash()
        assert await pool.stub(Plain).echo(1) == 1
        assert pool.statistics().connects == 1


async def test_two_listeners_both_go_on_after_the_limit(autojump_clock: trio.testing.MockClock) -> None:
    """7: at `max_connections` accepting rests; when there is room again, it goes on at every address."""
    first, second = MemoryListener(), MemoryListener()
    limits = ServerLimits(max_connections=1)
    async with open_server(Lab(), [first, second], limits=limits):
        for _ in range(2):
            clients = [RawClient(await listener.connect()) for listener in (first, second)]
            async with trio.open_nursery() as nursery:
                for client in clients:
                    nursery.start_soon(_greet_and_leave, client)
        for listener in (first, second, first, second):
            with trio.fail_after(10):
                await _greet_and_leave(RawClient(await listener.connect()))


async def _greet_and_leave(client: RawClient) -> None:
    await client.greet()
    await trio.sleep(1)
    await client.stream.aclose()


def _unknown(client: RawClient) -> bytes:
    return client.request("Lab.nothing")


def _cut_short(client: RawClient) -> bytes:
    """A request in chunks that is cancelled behind the first of them."""
    request_id, (first, _) = client.protocol.request(method_block("Lab.echo"), b"x" * 40_000)
    return first + client.protocol.cancel(request_id, 1)


def _cancelled(client: RawClient) -> bytes:
    """A request that is cancelled before it can be begun, as the answers to others fill the queue."""
    return client.request("Lab.echo", "x" * 100) + client.protocol.cancel(client.protocol.last_local_id, 1)


@pytest.mark.parametrize("flood", [_unknown, _cut_short, _cancelled])
async def test_who_does_not_read_the_refusals_is_closed(
    autojump_clock: trio.testing.MockClock, flood: Callable[[RawClient], bytes]
) -> None:
    """R05, 7: what is answered without a handler is bounded as well, where nobody takes the answers."""
    limits = ServerLimits(max_in_flight=16, max_queued_bytes=64 * 1024, write_timeout=None)
    lab, listener = Lab(), MemoryListener(capacity=4 * 1024)
    async with open_server(lab, listener, limits=limits, heartbeat=Heartbeat(interval=None)):
        client = RawClient(await listener.connect())
        await client.greet()
        for _ in range(8):
            await client.send(client.request("Lab.echo", "x" * 30_000))
        sent = 0
        with pytest.raises(trio.BrokenResourceError):
            while sent < 2000:
                await client.send(flood(client))
                sent += 1
        await client.stream.aclose()
