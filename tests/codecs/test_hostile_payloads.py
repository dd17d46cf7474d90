"""Bytes from a stranger: only DecodeError comes out, soon, and little memory is spent on them."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import attrs
import msgpack
import pytest
from hypothesis import given, settings, strategies as st

from trio_rpc import DecodeError, EncodeError
from trio_rpc.codecs import MAX_CONTAINERS, MAX_DEPTH, Bounds, Json, MessagePack, adapter_for

MIB = 1024 * 1024


@attrs.frozen
class Tree:
    value: int | str | None
    children: list[Tree] = attrs.field(factory=list)
    extra: dict[int, bytes | float] = attrs.field(factory=dict)


TYPES = [Any, int, dict, list[int], Tree, Tree | None, dict[str, Tree], bytes, tuple[int, Tree] | str]

MSGPACK_JUNK = {
    "nothing": b"",
    "reserved byte": b"\xc1",
    "cut short": b"\x92\x01",
    "trailing bytes": b"\x01\x02",
    "bad UTF-8": b"\xa1\xff",
    "lone surrogate": b"\xa3\xed\xa0\x80",
    "int key": b"\x81\x01\x02",
    "float key": b"\x81\xcb\x3f\xf0\0\0\0\0\0\0\x02",
    "nil key": b"\x81\xc0\x02",
    "list key": b"\x81\x90\x02",
    "unknown extension": b"\xd4\x05\x00",
    "application extension 0": b"\xd4\x00\x00",
    "timestamp of 3 bytes": b"\xc7\x03\xff\0\0\0",
    "timestamp out of range": msgpack.packb(msgpack.Timestamp(2**60)),
    "placeholder without a buffer": b"\xd6\x01\0\0\0\0",
    "placeholder of another size": b"\xd5\x01\0\0",
    "array of 2**32-1": b"\xdd\xff\xff\xff\xff",
    "map of 2**32-1": b"\xdf\xff\xff\xff\xff",
    "text of 2**32-1": b"\xdb\xff\xff\xff\xff",
}

JSON_JUNK = {
    "nothing": b"",
    "cut short": b"[1",
    "trailing bytes": b"1 2",
    "not JSON": b"{a: 1}",
    "bad UTF-8": b'"\xff"',
    "byte order mark": b"\xef\xbb\xbf1",
    "UTF-16": "[1]".encode("utf-16"),
    "UTF-32": "[1]".encode("utf-32-le"),
    "NaN": b"[NaN]",
    "Infinity": b"Infinity",
    "-Infinity": b"-Infinity",
    "1e9999": b"[1e9999]",
    "1E+400": b"-1E+400",
    "many digits and a point": b"1" * 400 + b".5",
    "2**64": str(2**64).encode(),
    "-2**63-1": str(-(2**63) - 1).encode(),
    "4301 digits": b"1" * 4301,
    "lone surrogate, escaped": rb'"\ud800"',
    "lone surrogate, as a key": rb'{"\udfff": 1}',
    "lone surrogate, in bytes": b'"\xed\xa0\x80"',
    "string that never ends": b'["' + rb"\"" * 100_000 + b"[" * 65,
    "control character": b'"\x00"',
}


@pytest.mark.parametrize(("name", "junk"), [*(("msgpack", k) for k in MSGPACK_JUNK), *(("json", k) for k in JSON_JUNK)])
def test_junk_is_refused(name: str, junk: str) -> None:
    """W10, W11, W14, W15, W16: one documented answer for each: DecodeError, from every kind of carrier."""
    payload = (MSGPACK_JUNK if name == "msgpack" else JSON_JUNK)[junk]
    adapter = adapter_for(name)
    for decode in (adapter.codec.decode, adapter.carrier(Tree).decode, adapter.carrier(Tree).decode_many):
        for data in (payload, memoryview(payload)):
            with pytest.raises(DecodeError):
                decode(data, ())


@given(data=st.binary(max_size=300))
@settings(max_examples=300)
def test_random_bytes_raise_nothing_else(data: bytes) -> None:
    """W10: whatever the bytes and the type, the answer is a value or DecodeError."""
    for name in ("msgpack", "msgpack alone", "json"):
        for type_ in TYPES:
            try_to_decode(name, type_, data)


PLAIN: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["value", "children", "extra", "Tree", "$blob", "1"]) | st.text(), inner, max_size=4
        )
    ),
    max_leaves=15,
)


@given(value=PLAIN, cut=st.integers(0, 3))
@settings(max_examples=300)
def test_well_formed_values_of_the_wrong_type_raise_nothing_else(value: Any, cut: int) -> None:
    """W10: values that look almost right, whole and cut off."""
    packed = msgpack.packb(value)
    dumped = json.dumps(value, default=repr).encode()
    for type_ in TYPES:
        for name in ("msgpack", "msgpack alone"):
            try_to_decode(name, type_, packed[: len(packed) - cut])
        try_to_decode("json", type_, dumped[: len(dumped) - cut])


def try_to_decode(name: str, type_: Any, data: bytes) -> None:
    """Decode, and accept a refusal."""
    carrier = adapter_for(name).carrier(type_)
    for decode in (carrier.decode, carrier.decode_many):
        try:
            decode(data, ())
        except DecodeError:
            pass


def nested(name: str, depth: int, kind: str) -> bytes:
    """A payload of `depth` containers inside each other."""
    if name != "json":
        return {"list": b"\x91", "map": b"\x81\xa1a", "array16": b"\xdc\x00\x01"}[kind] * depth + b"\xc0"
    opening, closing = {"list": (b"[", b"]"), "map": (b'{"a":', b"}"), "array16": (b'["]", ', b"]")}[kind]
    return opening * depth + b"null" + closing * depth


@pytest.mark.parametrize("kind", ["list", "map"])
def test_depth_is_bounded_exactly(codec: str, kind: str) -> None:
    """W12, Rule 10: 64 containers inside each other are welcome, the 65th is refused, both ways."""
    adapter = adapter_for(codec)
    carrier = adapter.carrier(Any)
    deepest = carrier.decode(nested(codec, MAX_DEPTH, kind), ())
    assert carrier.decode(carrier.encode(deepest)[0], ()) == deepest
    with pytest.raises(DecodeError, match="nested"):
        carrier.decode(nested(codec, MAX_DEPTH + 1, kind), ())
    with pytest.raises(EncodeError, match="nested"):
        carrier.encode([deepest])


@pytest.mark.parametrize("depth", [65, 600, 1024, 1025, 100_000])
@pytest.mark.parametrize("kind", ["list", "map", "array16"])
def test_any_depth_is_refused(codec: str, depth: int, kind: str) -> None:
    """W12: the process lives on; brackets in strings deceive nobody."""
    with pytest.raises(DecodeError):
        adapter_for(codec).carrier(Any).decode(nested(codec, depth, kind), ())


def bombs() -> dict[str, tuple[str, bytes]]:
    """Small payloads that would become large."""
    full = b"\xdc\xff\xff"
    return {
        "empty maps": ("msgpack", b"\xdd" + (MIB).to_bytes(4, "big") + b"\x80" * MIB),
        "empty arrays": ("msgpack", b"\xdd" + (MIB).to_bytes(4, "big") + b"\x90" * MIB),
        "arrays of 65,535": ("msgpack", b"\x9f" + (full + b"\x80" * 65_535) * 15),
        "arrays that announce a million": ("msgpack", b"\xdd\x00\x0f\xff\xff" * 500 + b"\x00" * MIB),
        "arrays that announce 65,535": ("msgpack", full * 20_000),
        "json maps": ("json", b"[" + b"{}," * (MIB // 3) + b"{}]"),
        "json arrays": ("json", b"[" + b"[]," * (MIB // 3) + b"[]]"),
        "json openings": ("json", b"[" * MIB),
    }


@pytest.mark.parametrize("bomb", bombs())
def test_a_bomb_costs_little_memory(bomb: str) -> None:
    """W11, W13, Rule 10: at most the budget of containers, and a list as long as the payload, where it would be up to
    75 MiB.
    """
    name, payload = bombs()[bomb]
    carrier = adapter_for(name).carrier(Any)
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError):
            carrier.decode(payload, ())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12 * MIB


@pytest.mark.parametrize("make", [MessagePack, Json])
def test_the_number_of_containers_is_bounded_exactly(make: Callable[..., MessagePack | Json]) -> None:
    """W13, Rule 10: 20,000 in one message by default; one more is refused, both ways."""
    for codec, most in ((make(), MAX_CONTAINERS), (make(max_containers=3), 3)):
        most_that_fit: list[object] = [[]] * (most - 1)
        loose = make(max_containers=10**6)
        assert codec.decode(codec.encode(most_that_fit, []), ()) == most_that_fit
        with pytest.raises(EncodeError, match=f"more than {most} lists and maps"):
            codec.encode([*most_that_fit, {}], [])
        with pytest.raises(DecodeError, match=f"more than {most} lists and maps"):
            codec.decode(loose.encode([*most_that_fit, {}], []), ())


@pytest.mark.parametrize("make", [MessagePack, Json])
def test_the_depth_may_be_set(make: Callable[..., MessagePack | Json]) -> None:
    """Counted in containers."""
    codec = make(max_depth=2)
    assert codec.decode(codec.encode([[1]] * 10, []), ()) == [[1]] * 10
    with pytest.raises(DecodeError, match="nested"):
        codec.decode(make().encode([[[1]]], []), ())


def test_text_and_numbers_that_look_like_containers_are_no_bomb(codec: str) -> None:
    """Headers and brackets inside text, bytes and numbers count for nothing."""
    value = ["[{" * 50_000, "é" * 30_000, *[-(2**60) - index for index in range(2000)], *[1 / 3] * 3000]
    carrier = adapter_for(codec).carrier(Any)
    assert carrier.decode(carrier.encode(value)[0], ()) == value


def test_of_a_key_that_occurs_twice_the_last_counts() -> None:
    """W16: the same answer on both codecs."""
    assert adapter_for("msgpack").carrier(Any).decode(b"\x82\xa1a\x01\xa1a\x02", ()) == {"a": 2}
    assert adapter_for("json").carrier(Any).decode(b'{"a": 1, "a": 2}', ()) == {"a": 2}


def test_a_hundred_thousand_keys_stay_quick(codec: str) -> None:
    """W14: nothing in a decoder is quadratic; the suite's own time limit would tell."""
    value = {f"key {number}": number for number in range(100_000)}
    carrier = adapter_for(codec, Bounds(max_values=500_000)).carrier(dict[str, int])
    assert carrier.decode(carrier.encode(value)[0], ()) == value


def test_an_error_leaves_the_codec_usable(codec: str) -> None:
    """A refused value leaves nothing of itself in the next payload."""
    carrier = adapter_for(codec).carrier(Any)
    good, _ = carrier.encode([1, 2])
    for bad in (["x" * 1000, object()], [1, 2**64], {"a": {1}}):
        with pytest.raises(EncodeError):
            carrier.encode(bad)
        assert carrier.encode([1, 2])[0] == good


made: list[int] = []


@attrs.frozen
class Older:
    inner: Older | None = None
    new: int = attrs.field(default=0, validator=lambda *_: made.append(1))


def test_a_field_missing_at_every_level_does_not_multiply_the_work(codec: str) -> None:
    """What stands before it is loaded once: else twelve levels would make four thousand objects."""
    value: dict[str, Any] = {}
    for _ in range(12):
        value = {"inner": value}
    payload, _ = adapter_for(codec).carrier(Any).encode(value)
    made.clear()
    assert adapter_for(codec).carrier(Older).decode(payload, ()).inner is not None
    assert len(made) == 13
