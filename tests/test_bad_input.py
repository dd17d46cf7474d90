"""Bad input ends in one clear error that says what and where, and nothing else is hurt.

Each case names what a user would look for in the message: the method, the path of the value, the limit, the address.
While it happens a neighbour's call is in flight on the same connection (or, where that one is bound to end, on another
one of the same server or pool), and succeeds.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgpack
import pytest
import trio
import trio.testing
from attrs import frozen

import trio_rpc
from tests.scripted import ScriptedPeer, ScriptedServer, greet_and_serve
from trio_rpc import (
    ConnectError,
    ConnectionLost,
    DecodeError,
    EncodeError,
    InvalidArgument,
    PoolLimits,
    RemoteError,
    RemoteProtocolError,
    Unimplemented,
    method,
    service,
)
from trio_rpc.testing import MemoryListener, open_loopback
from trio_rpc.wire import (
    PREFACE,
    VERSION,
    ErrorReceived,
    Event,
    GoAwayReceived,
    Hello,
    Kind,
    PongReceived,
    Protocol,
    RequestReceived,
    Role,
    method_block,
)


@frozen
class Item:
    sku: str
    quantity: int


class Shop:
    def __init__(self) -> None:
        self.entered = 0
        self.released = trio.Event()

    @method
    async def hold(self) -> str:
        """The neighbour's call."""
        await self.released.wait()
        return "held"

    @method
    async def add(self, a: int, b: int = 1) -> int:
        self.entered += 1
        return a + b

    @method
    async def put(self, items: list[Item]) -> int:
        self.entered += 1
        return len(items)

    @method
    async def zeros(self, size: int) -> bytes:
        return bytes(size)

    @method
    async def anything(self, value: Any = None) -> Any:
        self.entered += 1
        return value

    @method
    async def wrong(self) -> int:
        return "text"  # type: ignore[return-value]

    @method
    async def unsendable(self) -> Any:
        return object()

    @method
    async def undone(self) -> int:
        raise NotImplementedError

    @method
    async def count(self) -> AsyncGenerator[int, None]:
        number = 0
        while True:
            yield number
            number += 1

    @method
    async def two_and_text(self) -> AsyncGenerator[int, None]:
        yield 1
        yield 2
        yield "text"  # type: ignore[misc]

    @method
    async def total(self, numbers: AsyncIterable[int]) -> int:
        self.entered += 1
        return sum([number async for number in numbers])

    def hidden(self) -> int:
        """Not a @method."""
        self.entered += 1
        return 1

    async def _private(self) -> int:
        self.entered += 1
        return 1


@service(name="Shop")
class OtherShop:
    """What somebody else takes the same service for."""

    @method
    async def add(self, a: str) -> str:
        raise NotImplementedError

    @method
    async def zeros(self, size: int) -> list[int]:
        raise NotImplementedError

    @method
    def count(self) -> AsyncGenerator[list[str], None]:
        raise NotImplementedError

    @method
    async def total(self, numbers: AsyncIterable[str]) -> int:
        raise NotImplementedError


async def several(*items: Any) -> AsyncGenerator[Any, None]:
    """A stream of these."""
    for item in items:
        yield item


async def collect(block: Any) -> list[Any]:
    """All items of a stream."""
    async with block as items:
        return [item async for item in items]


MIB = 1024 * 1024

# What is done, what is raised, what its message says, whether it may have run (None: the error is plain Python's).
Case = tuple[Callable[[Any], Any], type[Exception], list[str], bool | None]
CASES: dict[str, Case] = {
    # Told by this side, from the contract, with nothing sent.
    "wrong type": (lambda p: p.stub(Shop).add("7"), EncodeError, ["Shop.add: a: expected int, got str '7'"], False),
    "wrong field": (
        lambda p: p.stub(Shop).put([Item("a", 1), Item("b", "x")]),  # type: ignore[arg-type]
        EncodeError,
        ["Shop.put: items[1].quantity: expected int, got str 'x'"],
        False,
    ),
    "missing argument": (lambda p: p.stub(Shop).add(), TypeError, ["add() missing a required argument: 'a'"], None),
    "too many arguments": (lambda p: p.stub(Shop).add(1, 2, 3), TypeError, ["add() too many positional"], None),
    "unknown keyword": (
        lambda p: p.stub(Shop).add(1, c=3),
        TypeError,
        ["add() got an unexpected keyword", "'c'"],
        None,
    ),
    "too large to send": (
        lambda p: p.stub(Shop).anything("x" * 5 * MIB),
        EncodeError,
        ["Shop.anything: a request of 52429", "more than the 4194304 that the peer accepts (max_message_size"],
        False,
    ),
    "too much metadata": (
        lambda p: p.stub(Shop, metadata={"key": "x" * 9000}).add(1),
        EncodeError,
        ["Shop.add: metadata of 90", "more than the 8192 that the peer accepts (max_metadata_size"],
        False,
    ),
    "metadata of another type": (
        lambda p: p.stub(Shop, metadata={"key": 5}).add(1),
        EncodeError,
        ["Shop.add: metadata must map str to str or bytes: 'key'"],
        False,
    ),
    "number too large": (
        lambda p: p.stub(Shop).anything(2**64),
        EncodeError,
        ["Shop.anything: value: an integer must lie between -2**63 and 2**64 - 1"],
        False,
    ),
    "no plain value": (
        lambda p: p.call("Shop.anything", {"a": [object()]}),
        EncodeError,
        ["Shop.anything: ", ": object in an untyped place", "annotate it with its type"],
        False,
    ),
    "lone surrogate": (
        lambda p: p.stub(Shop).anything("\ud800"),
        EncodeError,
        ["Shop.anything: value: text with a lone surrogate cannot be sent"],
        False,
    ),
    "wrong item": (
        lambda p: p.stub(Shop).total(several(1, 2, "x")),
        EncodeError,
        ["an item for Shop.total: $: expected int, got str 'x'"],
        True,
    ),
    "no stream": (lambda p: p.stub(Shop).total([1]), TypeError, ["Shop.total streams its items from", "list"], None),
    "no name": (lambda p: p.call(""), ValueError, ["a method name takes 1 to 255 bytes"], None),
    "long name": (lambda p: p.call("Shop." + "x" * 300), ValueError, ["1 to 255 bytes", "'Shop.xxx", "305"], None),
    "no text as name": (lambda p: p.call(5), TypeError, ["named by a text like 'Inventory.stock', not by 5"], None),
    "unknown attribute": (
        lambda p: p.stub(Shop).hidden(),
        AttributeError,
        ["Shop has no remote method 'hidden'", "@trio_rpc.method"],
        None,
    ),
    "unknown option": (lambda p: p.stub(Shop, retries=3).add(1), TypeError, ["no option retries", "retry"], None),
    # Refused by the other side, with nothing run.
    "argument of another contract": (
        lambda p: p.stub(OtherShop).add("1"),
        InvalidArgument,
        ["Shop.add: a: expected int, got str '1'"],
        False,
    ),
    "call without a contract": (
        lambda p: p.call("Shop.put", [{"sku": "a", "quantity": 1}, {"sku": "b", "quantity": "x"}]),
        InvalidArgument,
        ["Shop.put: items[1].quantity: expected int, got str 'x'"],
        False,
    ),
    "missing field": (
        lambda p: p.call("Shop.put", [{"sku": "a"}]),
        InvalidArgument,
        ["Shop.put: items[0].quantity: ", "missing"],
        False,
    ),
    "missing argument there": (lambda p: p.call("Shop.add"), InvalidArgument, ["Shop.add: ", "missing", "'a'"], False),
    "unknown keyword there": (
        lambda p: p.call("Shop.add", 1, c=1),
        InvalidArgument,
        ["Shop.add: add() got an unexpected keyword argument 'c'"],
        False,
    ),
    "unknown method": (lambda p: p.call("Shop.nope"), Unimplemented, ["there is no method 'Shop.nope' here"], False),
    "unknown service": (
        lambda p: p.call("Shopp.add", 1),
        Unimplemented,
        ["there is no service 'Shopp' here: it serves Shop"],
        False,
    ),
    "method without a service": (
        lambda p: p.call("add", 1),
        Unimplemented,
        ["there is no method 'add' here: write it as Service.method"],
        False,
    ),
    "undecorated": (lambda p: p.call("Shop.hidden"), Unimplemented, ["'Shop.hidden'"], False),
    "private": (lambda p: p.call("Shop._private"), Unimplemented, ["'Shop._private'"], False),
    "Python's own": (lambda p: p.call("Shop.__init__"), Unimplemented, ["'Shop.__init__'"], False),
    "declared only": (
        lambda p: p.stub(Shop).undone(),
        Unimplemented,
        ["Shop.undone is declared here, and not implemented"],
        False,
    ),
    "unknown stream": (lambda p: collect(p.stream("Shop.nope")), Unimplemented, ["'Shop.nope'"], False),
    "client stream without one": (
        lambda p: p.call("Shop.total"),
        InvalidArgument,
        ["Shop.total: numbers: expected a stream of items, got none"],
        False,
    ),
    # It ran, and its result or items are no good.
    "result of another contract": (
        lambda p: p.stub(OtherShop).zeros(3),
        DecodeError,
        ["the result of Shop.zeros: $: expected list"],
        True,
    ),
    "wrong result": (
        lambda p: p.stub(Shop).wrong(),
        RemoteError,
        ["the result of Shop.wrong cannot be sent: $: expected int, got str"],
        True,
    ),
    "unsendable result": (
        lambda p: p.stub(Shop).unsendable(),
        RemoteError,
        ["the result of Shop.unsendable cannot be sent: $: object in an untyped place"],
        True,
    ),
    "result too large": (
        lambda p: p.stub(Shop).zeros(5 * MIB),
        RemoteError,
        ["the result of Shop.zeros cannot be sent: a result of 52428", "4194304", "(max_message_size"],
        True,
    ),
    "item of another contract": (
        lambda p: collect(p.stub(OtherShop).count()),
        DecodeError,
        ["an item of Shop.count: $: expected list", "got int 0"],
        True,
    ),
    "wrong item there": (
        lambda p: collect(p.stub(Shop).two_and_text()),
        RemoteError,
        ["an item of Shop.two_and_text cannot be sent: $: expected int, got str"],
        True,
    ),
    "item that the handler does not expect": (
        lambda p: p.stub(OtherShop).total(several("1")),
        RemoteError,
        ["an item for Shop.total: $: expected int, got str '1'"],
        True,
    ),
    "call of a stream": (
        lambda p: p.call("Shop.count"),
        DecodeError,
        ["Shop.count: a stream of items came where one result is expected", "stream()"],
        True,
    ),
    "stream of a call": (
        lambda p: collect(p.stream("Shop.add", 1)),
        DecodeError,
        ["Shop.add: one result came where a stream of items is expected", "call()"],
        True,
    ),
}


@pytest.mark.parametrize("codec", ["msgpack", "json"])
@pytest.mark.parametrize("case", CASES)
async def test_a_bad_call_is_one_clear_error(
    case: str, codec: str, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """W17, W18: the error says what and where and whether it may have run; a neighbour on the same connection is not
    hurt.
    """
    do, kind, texts, may_have_run = CASES[case]
    shop = Shop()
    held = []
    limits = PoolLimits(max_connections=1)
    async with open_loopback(shop, codec=codec, limits=limits) as pool, trio.open_nursery() as nursery:

        async def neighbour() -> None:
            held.append(await pool.stub(Shop).hold())

        nursery.start_soon(neighbour)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(1), pytest.raises(kind) as caught:
            await do(pool)
        assert type(caught.value) is kind
        for text in texts:
            assert text in str(caught.value)
        assert len(str(caught.value)) < 300
        assert getattr(caught.value, "may_have_run", None) == may_have_run
        if may_have_run is False:
            assert not shop.entered
        assert await pool.stub(Shop).add(2, 3) == 5
        shop.released.set()
        with trio.fail_after(1):
            await trio.testing.wait_all_tasks_blocked()
        assert held == ["held"]
        assert (pool.statistics().connects, pool.statistics().in_flight) == (1, 0)
    assert not [record for record in caplog.records if record.exc_info]  # no traceback: nothing failed inside


# -- raw peers ---------------------------------------------------------------------------------------------------------


def frame(kind: int, request_id: int, body: bytes = b"", flags: int = 0, length: int | None = None) -> bytes:
    """Any frame at all; `length` may lie."""
    return struct.pack(">IIBB", len(body) if length is None else length, request_id, kind, flags) + body


def request(request_id: int, name: str, payload: bytes) -> bytes:
    """A small request."""
    return frame(Kind.REQUEST, request_id, method_block(name) + payload)


HELLO = PREFACE + frame(Kind.HELLO, 0, Hello().to_bytes())
OVERSIZE = 0x10  # 16 MiB and some: a body that nobody accepts

# What a client says, and what it is told before the connection ends.
FOREIGN_CLIENTS: dict[str, tuple[bytes, str]] = {
    "HTTP": (b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n", "it speaks HTTP"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "it speaks HTTP"),
    "TLS": (bytes.fromhex("160301020001"), "it speaks TLS: use that on both sides (tls://), or on neither"),
    "something else": (b"EHLO example.org\r\n", "it began with b'EHLO example.org'"),
    "another version": (PREFACE[:-1] + b"\x09", f"the peer speaks version 9 of the wire; this side speaks {VERSION}"),
    "no HELLO": (PREFACE + request(1, "Shop.add", b"\x91\x01"), "a REQUEST frame before its HELLO"),
    "HELLO that is no JSON": (PREFACE + frame(Kind.HELLO, 0, b"\xff"), "HELLO is not a JSON object"),
    "HELLO of another shape": (PREFACE + frame(Kind.HELLO, 0, b"[]"), "must be a JSON object, not list"),
    "HELLO with a wrong field": (
        PREFACE + frame(Kind.HELLO, 0, b'{"max_in_flight": "many"}'),
        "max_in_flight='many': expected a whole number of at least 1",
    ),
    "HELLO that is too large": (PREFACE + frame(Kind.HELLO, 0, length=17_000), "17000 bytes, above our limit of 16384"),
    "no common codec": (
        PREFACE + frame(Kind.HELLO, 0, Hello(codecs=("pickle",)).to_bytes()),
        "no codec in common: the client speaks pickle, this server msgpack, json",
    ),
}
ROGUE_CLIENTS: dict[str, tuple[bytes, str]] = {
    "unknown kind": (frame(99, 1), "unknown kind 99"),
    "unknown flag": (frame(Kind.PING, 0, bytes(8), flags=0x40), "a PING frame with flags 0x40"),
    "frame too large": (
        frame(Kind.REQUEST, 1, length=OVERSIZE * MIB),
        f"{OVERSIZE * MIB} bytes, above our limit of {MIB} (max_frame_size)",
    ),
    "message too large": (
        frame(Kind.REQUEST, 1, struct.pack(">I", 100 * MIB) + method_block("Shop.add"), flags=0x01),
        f"a REQUEST of {100 * MIB} bytes, above our limit of {4 * MIB} (max_message_size)",
    ),
    "cut short": (frame(Kind.REQUEST, 1, b"\x40Shop"), "a malformed REQUEST 1"),
    "second HELLO": (HELLO[len(PREFACE) :], "a HELLO frame after the HELLO"),
    "id of the wrong parity": (request(2, "Shop.add", b"\x91\x01"), "request 2"),
    "id used twice": (request(3, "Shop.hold", b"\x90") * 2, "request 3 after 3"),
    "answer to nothing": (frame(Kind.RESPONSE, 2), "RESPONSE for request 2, which never was"),
    "short PING": (frame(Kind.PING, 0, bytes(3)), "a PING frame of 3 bytes"),
}


async def frames_until_end(stream: trio.abc.Stream, protocol: Protocol) -> list[Event]:
    """All that the other side says before it closes."""
    events: list[Event] = []
    async for data in stream:
        events += protocol.receive_data(bytes(data))
    return events


async def acquainted(stream: trio.abc.Stream) -> Protocol:
    """Exchange the HELLOs."""
    protocol = Protocol(Role.DIALLER, Hello())
    await stream.send_all(HELLO)
    protocol.receive_data(bytes(await stream.receive_some()))
    return protocol


@asynccontextmanager
async def shop_and_neighbour(
    caplog: pytest.LogCaptureFixture,
) -> AsyncIterator[Callable[[], Awaitable[trio.abc.Stream]]]:
    """Serve a shop in memory, with a call in flight that must succeed afterwards; yield how to connect."""
    shop, listener, held = Shop(), MemoryListener(), []
    caplog.set_level(logging.INFO)
    async with (
        trio_rpc.open_server(shop, listener) as server,
        trio_rpc.open_pool(listener.connect) as pool,
        trio.open_nursery() as nursery,
    ):

        async def neighbour() -> None:
            held.append(await pool.stub(Shop).hold())

        nursery.start_soon(neighbour)
        await trio.testing.wait_all_tasks_blocked()
        yield listener.connect
        await trio.testing.wait_all_tasks_blocked()
        assert (server.statistics().connections, server.statistics().in_flight) == (1, 1)
        shop.released.set()
        await trio.testing.wait_all_tasks_blocked()
        assert held == ["held"]
        assert pool.statistics().connects == 1
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("case", [*FOREIGN_CLIENTS, *ROGUE_CLIENTS])
async def test_a_bad_client_is_told_and_closed(
    case: str, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """W01, W03, W07, W08, W09, W19, S06, X13, Rule 11: it gets a GOAWAY that says what was wrong, and the end; the log
    has one line on it; a neighbour is served.
    """
    foreign = case in FOREIGN_CLIENTS
    data, text = FOREIGN_CLIENTS[case] if foreign else ROGUE_CLIENTS[case]
    async with shop_and_neighbour(caplog) as connect:
        async with await connect() as stream:
            protocol = Protocol(Role.DIALLER, Hello()) if foreign else await acquainted(stream)
            await stream.send_all(data)
            with trio.fail_after(1):
                events = await frames_until_end(stream, protocol)
        assert isinstance(events[-1], GoAwayReceived)
        assert text in events[-1].message
    assert [record.getMessage() for record in caplog.records].count(caplog.records[-1].getMessage()) == 1
    assert len([record for record in caplog.records if text in record.getMessage()]) == 1


@pytest.mark.parametrize(
    ("name", "payload", "text"),
    [
        ("Shop.add", b"\xc1", "Shop.add: "),
        ("Shop.add", b"\x91", "Shop.add: "),
        ("Shop.add", b"\x91\x01\x01", "Shop.add: "),
        ("Shop.add", b"\x91\xa1\xff", "Shop.add: "),
        ("Shop.add", b"\xa3abc", "Shop.add: "),
        ("Shop.put", b"\x91" * 1100 + b"\x90", "Shop.put: "),
    ],
    ids=["no msgpack", "cut short", "trailing bytes", "bad UTF-8", "no array", "too deep"],
)
async def test_a_bad_payload_costs_its_own_call(
    name: str, payload: bytes, text: str, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """W10, W12: a payload that the codec refuses is InvalidArgument for that call; its connection goes on."""
    async with shop_and_neighbour(caplog) as connect:
        async with await connect() as stream:
            protocol = await acquainted(stream)
            await stream.send_all(request(1, name, payload) + frame(Kind.PING, 0, b"12345678"))
            events: list[Event] = []
            protocol.request(method_block(name), payload)
            with trio.fail_after(1):
                while not {ErrorReceived, PongReceived} <= set(map(type, events)):
                    events += protocol.receive_data(bytes(await stream.receive_some()))
        error = next(event for event in events if isinstance(event, ErrorReceived))
        assert (error.code, error.started) == (trio_rpc.Code.INVALID_ARGUMENT, False)
        assert error.message.startswith(text)
        assert len(error.message) < 200


async def sent_instead(data: bytes, peer: ScriptedPeer) -> None:
    """The script of a server that says this as its first words, and waits for the client to go."""
    await peer.stream.send_all(data)
    await frames_until_end(peer.stream, peer.protocol)


async def silence(peer: ScriptedPeer) -> None:
    """The script of a server that hears out and never answers."""
    await frames_until_end(peer.stream, peer.protocol)


async def hangs_up(peer: ScriptedPeer) -> None:
    """The script of a server that takes the HELLO and closes."""
    await peer.event()


GOODBYE = PREFACE + Protocol(Role.ACCEPTOR, Hello()).goaway(0, trio_rpc.Code.UNAVAILABLE, "closed on Sundays")
SERVERS_WITHOUT_HELLO: dict[str, tuple[Callable[[ScriptedPeer], Awaitable[None]], str, bool]] = {
    "HTTP": (lambda p: sent_instead(b"HTTP/1.1 400 Bad Request\r\n\r\n", p), "it speaks HTTP", True),
    "TLS": (lambda p: sent_instead(bytes.fromhex("15030100020246"), p), "it speaks TLS: use that on both sides", True),
    "SSH": (lambda p: sent_instead(b"SSH-2.0-OpenSSH_9.2\r\n", p), "it began with b'SSH-2.0-OpenSSH_'", True),
    "version": (lambda p: sent_instead(PREFACE[:-1] + b"\x09", p), "version 9 of the wire; this side speaks 1", True),
    "frame": (lambda p: sent_instead(PREFACE + frame(Kind.PONG, 0, bytes(8)), p), "PONG frame before its HELLO", True),
    "large": (
        lambda p: sent_instead(PREFACE + frame(Kind.HELLO, 0, length=17_000), p),
        "above our limit of 16384",
        True,
    ),
    "goodbye": (lambda p: sent_instead(GOODBYE, p), "refused the connection: closed on Sundays", False),
    "end": (hangs_up, "closed the connection before its HELLO", False),
    "silence": (silence, "did not answer within 5 s (connect_timeout)", False),
}


@pytest.mark.parametrize("case", SERVERS_WITHOUT_HELLO)
async def test_a_server_that_speaks_something_else(case: str, autojump_clock: trio.testing.MockClock) -> None:
    """W07, N21, X16: it is one ConnectError that names the target and what came; the pool goes on, and finds the right
    one later.
    """
    script, text, permanent = SERVERS_WITHOUT_HELLO[case]
    async with trio.open_nursery() as nursery:
        server = ScriptedServer(nursery, script, greet_and_serve)
        async with trio_rpc.open_pool(server.connect, limits=PoolLimits(acquire_timeout=None)) as pool:
            with trio.fail_after(6), pytest.raises(ConnectError) as caught:
                await pool.connect()
            assert text in str(caught.value)
            assert str(caught.value).count("ScriptedServer.connect") == 1
            assert (caught.value.permanent, caught.value.may_have_run) == (permanent, False)
            await pool.wait_connected()
            assert await pool.call("Shop.add") == "Shop.add"


def result(value: Any) -> Callable[[Protocol, RequestReceived], bytes]:
    """Answer a request with this payload."""
    return lambda protocol, call: protocol.response(call.id, value)[0]


ROGUE_SERVERS: dict[str, tuple[Callable[[Protocol, RequestReceived], bytes], str]] = {
    "unknown kind": (lambda _, call: frame(99, call.id), "unknown kind 99"),
    "frame too large": (lambda _, call: frame(Kind.RESPONSE, call.id, length=OVERSIZE * MIB), "(max_frame_size)"),
    "answer to nothing": (lambda _, call: frame(Kind.RESPONSE, call.id + 2), "which never was"),
    "malformed error": (lambda _, call: frame(Kind.ERROR, call.id, b"\xff"), "a malformed ERROR 1"),
    "second HELLO": (lambda _, call: HELLO[len(PREFACE) :], "a HELLO frame after the HELLO"),
    "junk": (lambda _, call: b"\xff" * 64, "unknown kind 255"),
    "request of the wrong parity": (lambda _, call: request(1, "Shop.add", b"\x90"), "request 1"),
}


@pytest.mark.parametrize("case", ROGUE_SERVERS)
async def test_a_rogue_server_costs_its_connection(case: str, autojump_clock: trio.testing.MockClock) -> None:
    """S05, X16: its calls are lost with the reason; it is told; the same pool's next call succeeds on a new connection."""
    answer, text = ROGUE_SERVERS[case]
    told: list[Event] = []

    async def rogue(peer: ScriptedPeer) -> None:
        await peer.greet()
        call = await peer.expect(RequestReceived)
        await peer.send(answer(peer.protocol, call))
        told.extend(await frames_until_end(peer.stream, peer.protocol))

    async with trio.open_nursery() as nursery:
        server = ScriptedServer(nursery, rogue, greet_and_serve)
        async with trio_rpc.open_pool(server.connect) as pool:
            with trio.fail_after(1), pytest.raises(ConnectionLost) as caught:
                await pool.call("Shop.add", 1)
            assert type(caught.value) is ConnectionLost
            assert text in str(caught.value)
            assert "ScriptedServer.connect" in str(caught.value)
            assert isinstance(caught.value.__cause__, RemoteProtocolError)
            assert caught.value.may_have_run
            assert await pool.call("Shop.add", 1) == "Shop.add"
    assert isinstance(told[-1], GoAwayReceived)
    assert text in told[-1].message


@pytest.mark.parametrize(
    ("answer", "kind", "texts"),
    [
        (result(b"\xc1"), DecodeError, ["the result of Shop.add: $: "]),
        (result(b"\xa3abc"), DecodeError, ["the result of Shop.add: $: expected int, got str 'abc'"]),
        (result(msgpack.packb(1) * 2), DecodeError, ["the result of Shop.add: $: "]),
        (lambda _, call: frame(Kind.END, call.id), DecodeError, ["Shop.add: a stream of items came"]),
    ],
    ids=["no msgpack", "wrong type", "trailing bytes", "no result"],
)
async def test_a_bad_result_costs_its_own_call(
    answer: Callable[[Protocol, RequestReceived], bytes],
    kind: type[Exception],
    texts: list[str],
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A result that cannot be read fails its call, which ran; the neighbour's, on the same connection, succeeds."""
    results = []

    async def server_side(peer: ScriptedPeer) -> None:
        await peer.greet()
        neighbour = await peer.expect(RequestReceived)
        await peer.send(answer(peer.protocol, await peer.expect(RequestReceived)))
        await trio.sleep(1)
        await peer.answer(neighbour, 7)
        await peer.serve()

    async with trio.open_nursery() as nursery:
        server = ScriptedServer(nursery, server_side)
        async with trio_rpc.open_pool(server.connect) as pool, trio.open_nursery() as calls:

            async def neighbour() -> None:
                results.append(await pool.call("Shop.add", 1))

            calls.start_soon(neighbour)
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(0.5), pytest.raises(kind) as caught:
                await pool.stub(Shop).add(1)
            assert all(text in str(caught.value) for text in [*texts, "ScriptedServer.connect"])
            assert caught.value.may_have_run  # type: ignore[attr-defined]
    assert results == [7]
