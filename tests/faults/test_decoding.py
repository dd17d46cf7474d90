"""Payloads from a hostile peer, through real calls in both directions: what is accepted, what is refused, at what price."""

from __future__ import annotations

import importlib.metadata
import json
import math
import pickle
import random
import re
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import IPv6Network
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import attrs
import msgpack
import pytest
import trio
import trio.testing
from hypothesis import given, settings, strategies as st

from tests.guarantees.kit import RawClient
from tests.proofs import fuzz
from tests.proofs.mutants import whole
from tests.scripted import ScriptedPeer, ScriptedServer
from trio_rpc import (
    Code,
    DecodeError,
    Heartbeat,
    InvalidArgument,
    Pool,
    PoolLimits,
    RemoteError,
    ServerLimits,
    method,
    open_pool,
    open_server,
)
from trio_rpc.codecs import Bounds, MessagePack, adapter_for, register
from trio_rpc.testing import MemoryListener
from trio_rpc.wire import ErrorReceived, Hello, Outcome, RequestReceived, ResponseReceived, method_block

MIB = 1024 * 1024


class WithoutMsgspec(MessagePack):
    """MessagePack as it is where msgspec is not installed."""

    name = "msgpack without msgspec"


register(WithoutMsgspec(fast=False))
CODECS = ["msgpack", WithoutMsgspec.name, "json"]
LOOSE: dict[str, Any] = {"max_depth": 256, "max_containers": 10**6, "max_values": 10**7}
TIGHT: dict[str, Any] = {"max_depth": 32, "max_containers": 64, "max_values": 1000}


def lists(depth: int) -> Any:
    """The type of so many lists inside each other."""
    type_: Any = int
    for _ in range(depth):
        type_ = list[type_]
    return type_


if TYPE_CHECKING:
    Deep: TypeAlias = list[Any]
    Deeper: TypeAlias = list[Deep]
else:
    Deep, Deeper = lists(32), lists(33)


T = TypeVar("T")


class Store:
    """Takes values and gives them back, in places of several types."""

    def __init__(self) -> None:
        self.entered = 0

    def _note(self, value: T) -> T:
        self.entered += 1
        return value

    @method
    async def anything(self, value: Any) -> Any:
        return self._note(value)

    @method
    async def deep(self, value: Deep) -> int:
        self._note(value)
        return 0

    @method
    async def give_deep(self) -> Deep:
        return nested(32)

    @method
    async def deeper(self, value: Deeper) -> Deeper:
        return self._note(value)

    @method
    async def lists(self, value: list[list[int]]) -> list[list[int]]:
        return self._note(value)

    @method
    async def numbers(self, value: list[int]) -> list[int]:
        return self._note(value)

    @method
    async def paths(self, value: list[Path]) -> int:
        return len(self._note(value))

    @method
    async def make(self, kind: str, size: int) -> Any:
        """What the client never sent."""
        return MAKERS[kind](size)

    @method
    async def make_lists(self, size: int) -> list[list[int]]:
        return [[]] * (size - 1)

    @method
    async def make_numbers(self, size: int) -> list[int]:
        return [1] * size


@asynccontextmanager
async def loopback(
    store: Store, codec: str = "msgpack", limits: PoolLimits | None = None, server_limits: ServerLimits | None = None
) -> AsyncIterator[Pool]:
    """A pool over the in-memory wire, with any codec that is registered."""
    listener = MemoryListener()
    async with (
        open_server(
            store, listener, codecs=[codec], limits=server_limits or ServerLimits(), heartbeat=Heartbeat(interval=None)
        ),
        open_pool(
            listener.connect, codec=codec, limits=limits or PoolLimits(), heartbeat=Heartbeat(interval=None)
        ) as pool,
    ):
        yield pool


def nested(depth: int) -> list[Any]:
    """So many lists inside each other."""
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


MAKERS: dict[str, Callable[[int], Any]] = {
    "max_depth": nested,
    "max_containers": lambda size: [[]] * (size - 1),
    "max_values": lambda size: [1] * size,
}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("limit", TIGHT)
async def test_a_servers_limits_hold_exactly(limit: str, codec: str, autojump_clock: trio.testing.MockClock) -> None:
    """W12, W13: N - 1 and N are welcome, and N + 1 does not reach the handler; the array of arguments counts."""
    store, most = Store(), TIGHT[limit]
    limits = ServerLimits(**{**LOOSE, limit: most})
    async with loopback(store, codec=codec, limits=PoolLimits(**LOOSE), server_limits=limits) as pool:
        typed = {"max_depth": "deep", "max_containers": "lists", "max_values": "numbers"}[limit]
        for name in ("anything", typed):
            for size in (most - 1, most):
                await pool.call(f"Store.{name}", MAKERS[limit](size - 1))
        store.entered = 0
        for name in ("anything", "deeper" if limit == "max_depth" else typed):
            with pytest.raises(InvalidArgument) as caught:
                await pool.call(f"Store.{name}", MAKERS[limit](most))
            assert not caught.value.may_have_run
            assert re.search("nested|lists and maps|max_values", str(caught.value))
        assert store.entered == 0
        assert pool.statistics().connects == 1


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("limit", TIGHT)
async def test_a_clients_limits_hold_exactly(limit: str, codec: str, autojump_clock: trio.testing.MockClock) -> None:
    """X16, W12, W13: what a server answers is held within the pool's limits in the same way, typed and untyped."""
    most = TIGHT[limit]
    limits = PoolLimits(**{**LOOSE, limit: most})
    async with loopback(Store(), codec=codec, limits=limits, server_limits=ServerLimits(**LOOSE)) as pool:
        stub = pool.stub(Store)
        calls: list[Callable[[int], Any]] = [partial(stub.make, limit)]
        typed: dict[str, list[Callable[[int], Any]]] = {
            "max_containers": [stub.make_lists],
            "max_values": [stub.make_numbers],
        }
        calls += typed.get(limit, [])
        for call in calls:
            for size in (most - 1, most):
                await call(size)
            with pytest.raises(DecodeError, match=r"nested|lists and maps|max_values") as caught:
                await call(most + 1)
            assert caught.value.may_have_run
            assert caught.value.malformed
        if limit == "max_depth":
            assert await stub.give_deep() == nested(32)
        assert pool.statistics().connects == 1


async def test_pools_and_servers_of_one_process_have_limits_of_their_own(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Carriers are shared by those that have the same limits, and by nobody else."""
    tight = ServerLimits(max_values=1000)
    async with loopback(Store(), server_limits=tight) as small, loopback(Store()) as large:
        with pytest.raises(InvalidArgument, match="max_values"):
            await small.stub(Store).numbers([1] * 1000)
        assert await large.stub(Store).numbers([1] * 1000) == [1] * 1000


class Plain:
    """A codec of a program's own, with nothing but what a codec must have."""

    name = "plain"

    def encode(self, value: object, blobs: list[Any]) -> bytes:
        return json.dumps(value).encode()

    def decode(self, data: bytes | memoryview, blobs: Any) -> object:
        return json.loads(bytes(data))


async def test_a_codec_without_limited_bounds_messages_as_it_likes(autojump_clock: trio.testing.MockClock) -> None:
    """Of the limits only what the hooks of types cost is counted beside it."""
    register(Plain())
    limits = ServerLimits(**TIGHT)
    async with loopback(Store(), codec="plain", server_limits=limits) as pool:
        assert await pool.stub(Store).anything(nested(200)) == nested(200)
        assert await pool.stub(Store).numbers([1] * 2000) == [1] * 2000
        with pytest.raises(InvalidArgument, match="max_values"):
            await pool.stub(Store).paths([Path("a")] * 40)


# -- one answer for each odd payload, in both directions ---------------------------------------------------------------

REFUSED = object()
ODD: dict[str, tuple[str, bytes, Any]] = {
    "W10: the byte that means nothing": ("msgpack", b"\xc1", REFUSED),
    "W10: cut short": ("msgpack", b"\xa5abc", REFUSED),
    "W10: bytes behind it": ("msgpack", b"\x01\x01", REFUSED),
    "W10: bad UTF-8": ("msgpack", b"\xa2\xff\xfe", REFUSED),
    "W10: a lone surrogate": ("msgpack", b"\xa3\xed\xa0\x80", REFUSED),
    "W10, W15: a timestamp of 3 bytes": ("msgpack", b"\xc7\x03\xff\0\0\0", REFUSED),
    "W10, W15: a timestamp out of range": ("msgpack", msgpack.packb(msgpack.Timestamp(2**60)), REFUSED),
    "W11: an array of 2**32 - 1": ("msgpack", b"\xdd\xff\xff\xff\xff", REFUSED),
    "W11: a map of 2**32 - 1": ("msgpack", b"\xdf\xff\xff\xff\xff", REFUSED),
    "W11: 500 arrays of a million": ("msgpack", b"\xdd\0\x0f\xff\xff" * 500, REFUSED),
    "W12: depth 65": ("msgpack", b"\x91" * 65 + b"\xc0", REFUSED),
    "W12: depth 100,000": ("msgpack", b"\x91" * 100_000 + b"\xc0", REFUSED),
    "W13: empty maps": ("msgpack", b"\xdd\0\x01\0\0" + b"\x80" * 0x10000, REFUSED),
    "W14: an int as a key": ("msgpack", b"\x81\x01\x02", REFUSED),
    "W14: a float as a key": ("msgpack", b"\x81\xcb\x3f\xf0\0\0\0\0\0\0\x02", REFUSED),
    "W14: nil as a key": ("msgpack", b"\x81\xc0\x02", REFUSED),
    "W14: a list as a key": ("msgpack", b"\x81\x90\x02", REFUSED),
    "W14: a key twice": ("msgpack", b"\x82\xa1a\x01\xa1a\x02", {"a": 2}),
    "W15: an unknown ext type": ("msgpack", b"\xd4\x05\x00", REFUSED),
    "W15: ext type 0": ("msgpack", b"\xd4\x00\x00", REFUSED),
    "W15: a placeholder without a buffer": ("msgpack", b"\xd6\x01\0\0\0\0", REFUSED),
    "W16: 4301 digits": ("json", b"1" * 4301, REFUSED),
    "W16: 2**64": ("json", str(2**64).encode(), REFUSED),
    "W16: 2**64 - 1": ("json", str(2**64 - 1).encode(), 2**64 - 1),
    "W16: NaN": ("json", b"NaN", REFUSED),
    "W16: Infinity": ("json", b"-Infinity", REFUSED),
    "W16: 1e9999": ("json", b"1e9999", REFUSED),
    "W16: 1e308": ("json", b"1e308", 1e308),
    "W16: a lone surrogate, high": ("json", rb'"\ud800"', REFUSED),
    "W16: a lone surrogate, low": ("json", rb'"a\udc00"', REFUSED),
    "W16: two high ones": ("json", rb'"\ud83d\ud83d\ude00"', REFUSED),
    "W16: two low ones": ("json", rb'"\ud83d\ude00\ude00"', REFUSED),
    "W16: a lone surrogate, in bytes": ("json", b'"\xed\xa0\x80"', REFUSED),
    "W16: a pair of surrogates": ("json", rb'"\ud83d\uDE00"', "\U0001f600"),
    "W16: what looks like a surrogate": ("json", rb'"\\ud800 \\\ud83d\ude00"', "\\ud800 \\\U0001f600"),
    "W16: a byte order mark": ("json", b"\xef\xbb\xbf1", REFUSED),
    "W16: UTF-16": ("json", "1".encode("utf-16"), REFUSED),
    "W16: a key twice": ("json", b'{"a":1,"a":2}', {"a": 2}),
    "W16: bytes behind it": ("json", b"1 2", REFUSED),
    "W12: depth 65, as JSON": ("json", b"[" * 65 + b"]" * 65, REFUSED),
    "W12: depth 100,000, as JSON": ("json", b"[" * 100_000 + b"]" * 100_000, REFUSED),
    "W13: empty maps, as JSON": ("json", b"[" + b"{}," * 20_000 + b"{}]", REFUSED),
}
"""The name, the codec, the bytes of one value, and the value; it is the only argument, or the result."""


@asynccontextmanager
async def raw_client(codec: str) -> AsyncIterator[tuple[RawClient, Store]]:
    """A client played by hand, and what it calls."""
    store, listener = Store(), MemoryListener()
    async with open_server(store, listener):
        client = RawClient(await listener.connect(), Hello(codecs=(codec,)))
        await client.greet()
        yield client, store
        await client.stream.aclose()


@pytest.mark.parametrize("case", ODD)
async def test_an_odd_payload_gets_one_answer_from_a_server(case: str, autojump_clock: trio.testing.MockClock) -> None:
    """W10, W11, W12, W13, W14, W15, W16: it is the value, or InvalidArgument for that call, which is not run."""
    codec, payload, value = ODD[case]
    opening, closing = (b"\x91", b"") if codec == "msgpack" else (b"[", b"]")
    async with raw_client(codec) as (client, store):
        _, frames = client.protocol.request(method_block("Store.anything"), opening + payload + closing)
        await client.stream.send_all(whole(frames))
        if value is REFUSED:
            error = await client.expect(ErrorReceived)
            assert (error.code, error.outcome, error.started) == (Code.INVALID_ARGUMENT, Outcome.REFUSED, False)
            assert error.message.startswith("Store.anything: ")
            assert len(error.message) < 200
            assert store.entered == 0
        else:
            response = await client.expect(ResponseReceived)
            assert adapter_for(codec).carrier(Any).decode(response.payload, ()) == value
        _, frames = client.protocol.request(
            method_block("Store.anything"), b"\x91\x01" if codec == "msgpack" else b"[1]"
        )
        await client.send(frames)
        await client.expect(ResponseReceived)


@pytest.mark.parametrize("case", ODD)
async def test_an_odd_payload_gets_the_same_answer_from_a_client(
    case: str, autojump_clock: trio.testing.MockClock
) -> None:
    """X16, W10, W16: a hostile server's result is the value, or DecodeError for that call; the next one succeeds."""
    codec, payload, value = ODD[case]

    async def script(peer: ScriptedPeer) -> None:
        await peer.greet()
        while True:
            request = await peer.expect(RequestReceived)
            await peer.stream.send_all(whole(peer.protocol.response(request.id, payload)))

    async with trio.open_nursery() as nursery:
        server = ScriptedServer(nursery, script, hello=Hello(codecs=(codec,)))
        async with open_pool(server.connect, codec=codec) as pool:
            for _ in range(2):
                if value is REFUSED:
                    with pytest.raises(DecodeError) as caught:
                        await pool.call("Store.anything", 1)
                    assert caught.value.malformed
                    assert caught.value.may_have_run
                else:
                    assert await pool.call("Store.anything", 1) == value
            assert pool.statistics().connects == 1


def test_a_misfit_of_types_is_not_malformed() -> None:
    """Only what the codec itself refuses is: the other side may have been declared otherwise in good faith."""
    for codec in CODECS:
        adapter = adapter_for(codec)
        payload, _ = adapter.carrier(Any).encode(["a"])
        for decode in (adapter.carrier(list[int]).decode, adapter.carrier(int).decode_many):
            with pytest.raises(DecodeError) as caught:
                decode(payload, ())
            assert not caught.value.malformed
            with pytest.raises(DecodeError) as caught:
                decode(b"\xc1", ())
            assert caught.value.malformed


# -- memory ------------------------------------------------------------------------------------------------------------

BOMBS: dict[str, tuple[str, bytes]] = {
    "W11: 500 arrays of a million": ("msgpack", b"\xdd\x00\x0f\xff\xff" * 500 + b"\x00" * MIB),
    "W11: 60 arrays of a million": ("msgpack", b"\xdd\x00\x0f\x00\x00" * 60 + b"\x00" * MIB),
    "W11: 7 arrays of a million": ("msgpack", b"\xdd\x00\x0f\x00\x00" * 7 + b"\x00" * MIB),
    "W11: 60 arrays of 262,144": ("msgpack", b"\xdd\x00\x04\x00\x00" * 60 + b"\x00" * MIB),
    "W11: 60 arrays of 65,536": ("msgpack", b"\xdd\x00\x01\x00\x00" * 60 + b"\x00" * 70_000),
    "W13: a map of 170,000 keys": ("msgpack", msgpack.packb({f"{index:x}": 1 for index in range(170_000)})),
    "W11: arrays of 65,535": ("msgpack", b"\xdc\xff\xff" * 20_000),
    "W13: a million empty maps": ("msgpack", b"\xdd\x00\x10\x00\x00" + b"\x80" * MIB),
    "W13: 15 x 65,535 empty maps": ("msgpack", b"\x9f" + (b"\xdc\xff\xff" + b"\x80" * 65_535) * 15),
    "W13: empty arrays": ("msgpack", b"\xdd\x00\x10\x00\x00" + b"\x90" * MIB),
    "W13: a million numbers": ("msgpack", b"\xdd\x00\x10\x00\x00" + b"\x01" * MIB),
    "W13: JSON maps": ("json", b"[" + b"{}," * (MIB // 3) + b"{}]"),
    "W13: JSON arrays": ("json", b"[" + b"[]," * (MIB // 3) + b"[]]"),
    "W13: JSON openings": ("json", b"[" * MIB),
    "W13: JSON numbers": ("json", b"[" + b"1," * (MIB // 2) + b"1]"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_before_it_is_built(bomb: str) -> None:
    """W11, W13: at most 8 MiB beside the payload, where some would take hundreds."""
    codec, payload = BOMBS[bomb]
    for carrier in (adapter_for(codec).carrier(Any), adapter_for(codec).carrier(list[list[int]])):
        tracemalloc.start()
        try:
            with pytest.raises(DecodeError):
                carrier.decode(payload, ())
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 8 * MIB, f"{peak / MIB:.1f} MiB"


COUNTED: dict[str, tuple[Any, int]] = {
    "items": ([1] * 300, 300),
    "entries": ({f"key {index}": 1 for index in range(300)}, 1500),
    "empty lists and maps": ([[], {}] * 150, 300),
    "lists in maps in lists": ([{"a": [1, 2]}] * 100, 100 * (1 + 5 + 2)),
    "texts that look like more": (['[{,:"\\', "\\", ",,,,"] * 100, 300),
    "one text": (["x" * 5000], 1),
}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("case", COUNTED)
def test_values_are_counted_alike(case: str, codec: str) -> None:
    """W13: an item is one value, an entry five, on both codecs, at N - 1, N and N + 1."""
    value, count = COUNTED[case]
    payload, _ = adapter_for(codec).carrier(Any).encode(value)
    for most in (count, count + 1):
        assert adapter_for(codec, Bounds(max_values=most)).carrier(Any).decode(payload, ()) == value
    with pytest.raises(DecodeError, match="max_values"):
        adapter_for(codec, Bounds(max_values=count - 1)).carrier(Any).decode(payload, ())


def test_numbers_beside_one_that_may_be_out_of_range_count_more() -> None:
    """W13, W16: each of them goes through a function; in a text such a number is none."""
    carrier = adapter_for("json").carrier(Any)
    numbers = b",1" * 100_000 + b"]"
    assert len(carrier.decode(b'["1e300"' + numbers, ())) == 100_001
    with pytest.raises(DecodeError, match="max_values"):
        carrier.decode(b"[1e300" + numbers, ())


@pytest.mark.parametrize("codec", ["msgpack", "json"])
def test_a_buffer_has_one_place(codec: str) -> None:
    """W13: a buffer that is named a thousand times is not copied a thousand times."""
    adapter, buffer = adapter_for(codec), bytes(100_000)
    payload, blobs = adapter.carrier(list[bytearray]).encode([bytearray(buffer)])
    doubled = {"msgpack": b"\x92" + payload[1:] * 2, "json": b"[" + payload[1:-1] + b"," + payload[1:-1] + b"]"}[codec]
    assert adapter.carrier(list[bytearray]).decode(payload, [bytes(blobs[0])]) == [buffer]
    with pytest.raises(DecodeError, match="place"):
        adapter.carrier(list[bytearray]).decode(doubled, [bytes(blobs[0])])


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_slow_to_read_counts_for_what_it_costs(codec: str) -> None:
    """W13: a MiB of paths or networks would hold the loop for a second; a MiB of texts is welcome."""
    adapter = adapter_for(codec)
    loose = adapter_for(codec, Bounds(max_values=10**8))
    for type_, most in ((Path, 20_000), (IPv6Network, 5_000)):
        payload = loose.carrier(Any).encode(["::"] * most)[0]
        assert adapter.carrier(list[str]).decode(payload, ()) == ["::"] * most
        with pytest.raises(DecodeError, match="max_values") as caught:
            adapter.carrier(list[type_]).decode(payload, ())  # type: ignore[valid-type]
        assert caught.value.malformed
        assert len(loose.carrier(list[type_]).decode(payload, ())) == most  # type: ignore[valid-type]


def test_what_is_said_of_a_hostile_value_costs_little() -> None:
    """A map of a hundred thousand keys is not sorted, and a MiB of bytes not written out, to be told of."""
    tracemalloc.start()
    try:
        for codec, payload in (("msgpack", b"\xc6\0\x10\0\0" + bytes(MIB)), ("json", b'"' + b"a" * MIB + b'"')):
            with pytest.raises(DecodeError) as caught:
                adapter_for(codec).carrier(int).decode(payload, ())
            assert len(str(caught.value)) < 200
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 * MIB


# -- what a handler returns --------------------------------------------------------------------------------------------

UNSENDABLE: dict[str, Callable[[], Any]] = {
    "an object": object,
    "a set": lambda: {1},
    "a lone surrogate": lambda: "\ud800",
    "2**64": lambda: 2**64,
    "beyond the peer's limit": lambda: "x" * 2 * MIB,
    "too deep": lambda: nested(100),
}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("case", UNSENDABLE)
async def test_a_result_that_cannot_be_sent_fails_its_own_call(
    case: str, codec: str, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W17: in words that say so, and that it ran; the connection stays."""
    monkeypatch.setitem(MAKERS, "max_depth", lambda _: UNSENDABLE[case]())
    async with loopback(Store(), codec=codec, limits=PoolLimits(max_message_size=MIB)) as pool:
        with pytest.raises(RemoteError, match="cannot be sent") as caught:
            await pool.call("Store.make", "max_depth", 0)
        assert caught.value.may_have_run
        assert await pool.call("Store.anything", 1) == 1
        assert pool.statistics().connects == 1


# -- payloads stay data ------------------------------------------------------------------------------------------------

TAGGED: dict[str, Any] = {
    "a class by its name": {"__class__": "subprocess.Popen", "args": ["true"]},
    "jsonpickle's": {"py/object": "subprocess.Popen", "py/reduce": [{"py/type": "os.system"}, ["true"]]},
    "a tag of YAML's": "!!python/object/apply:os.system ['true']",
    "attributes of Python's": {"__reduce__": ["os.system", ["true"]], "__init__": 1, "__proto__": {}},
    "a tag of an exception": {"name": "SystemExit", "args": [1], "code": 1},
}


@pytest.mark.parametrize("codec", CODECS)
async def test_payloads_that_name_classes_stay_data(codec: str, autojump_clock: trio.testing.MockClock) -> None:
    """X12: maps come back as the maps they are, and a pickle as its bytes."""
    async with loopback(Store(), codec=codec) as pool:
        for value in TAGGED.values():
            assert await pool.call("Store.anything", value) == value
        pickled = pickle.dumps(Store)
        if codec != "json":
            assert await pool.call("Store.anything", pickled) == pickled
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        data = pickle.dumps(math.sqrt, protocol)
        try:
            assert isinstance(adapter_for(codec).carrier(Any).decode(data, ()), str | int | list | dict)
        except DecodeError:
            pass


def test_the_msgpack_that_is_asked_for_and_installed_survives_an_error() -> None:
    """X19: earlier ones can crash on a hostile payload (CVE-2026-57585)."""
    [wanted] = [line for line in importlib.metadata.requires("trio-rpc") or () if line.startswith("msgpack>")]
    assert re.fullmatch(r"msgpack>=(\d+\.\d+\.\d+)", wanted)
    for version in (wanted.partition(">=")[2], importlib.metadata.version("msgpack")):
        assert tuple(map(int, version.split("."))) >= (1, 2, 1)


# -- anything at all ---------------------------------------------------------------------------------------------------


@attrs.frozen
class Order:
    """A typed place."""

    number: int
    lines: list[str | None]
    more: dict[str, float] = attrs.field(factory=dict)


@given(data=st.binary(max_size=200))
@settings(max_examples=300)
def test_any_bytes_are_a_value_or_a_declared_error(data: bytes) -> None:
    """W10, W20: and a value that came out goes in again, and comes out equal."""
    for codec in CODECS:
        for type_ in (Any, Order, list[Order], dict[str, int]):
            carrier = adapter_for(codec).carrier(type_)
            try:
                value = carrier.decode(data, ())
            except DecodeError:
                continue
            again, blobs = carrier.encode(value)
            assert (
                carrier.encode(carrier.decode(again, [bytes(blob) for blob in blobs]))[0] == again
            )  # by its bytes, as NaN equals nothing


@given(seed=st.integers(0, 2**32))
@settings(max_examples=300)
def test_any_mutant_of_a_value_is_one_or_a_declared_error(seed: int) -> None:
    """W20: the same, for bytes that are nearly right."""
    rng = random.Random(seed)
    for codec in CODECS:
        carrier = adapter_for(codec).carrier(Order)
        payload, _ = carrier.encode(Order(rng.randrange(2**40), ["a", None, "é"], {"x": rng.random()}))
        try:
            value = carrier.decode(fuzz.mutate(rng, payload), ())
        except DecodeError:
            continue
        assert carrier.decode(carrier.encode(value)[0], ()) == value or value != value


def test_a_small_run_of_the_proof_holds() -> None:
    """W20: 20,000 mutated frames and payloads, on the wire in both roles, in both codecs and where failures load."""
    finding = fuzz.fuzz(fuzz.QUICK, seed=1)
    assert finding.undeclared == []
    assert sum(finding.counts.values()) >= fuzz.QUICK - len(finding.counts)
    assert all(finding.refused[name] for name in finding.counts if "failures" not in name)
    assert finding.growth < fuzz.GROWTH
