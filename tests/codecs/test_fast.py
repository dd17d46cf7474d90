"""msgspec in front of the default path: the same bytes, values and refusals, whoever does the work."""

from __future__ import annotations

import enum
import inspect
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar
from uuid import UUID

import attrs
import msgpack
import pytest
from hypothesis import given, settings, strategies as st

from trio_rpc import DecodeError, EncodeError
from trio_rpc.codecs import BLOB_SIZE, MAX_CONTAINERS, Adapter, Buffer, MessagePack

pytest.importorskip("msgspec")

T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Odd(str, enum.Enum):  # noqa: UP042 -- whose members are one text, and have another one as their value
    def __new__(cls, text: str) -> Odd:
        self = str.__new__(cls, text)
        self._value_ = text.upper()
        return self

    A = "a"


@attrs.frozen
class Point:
    x: int
    y: float = 0.5


@attrs.define(kw_only=True)
class Shape:
    name: str
    points: list[Point]
    parent: Point | None = None
    _hidden: bytes = attrs.field(default=b"", alias="hidden")


def twice(number: int) -> int:
    """A converter."""
    return number * 2


@attrs.frozen(cache_hash=True)
class Checked:
    n: int = attrs.field(validator=attrs.validators.gt(0))
    doubled: int = attrs.field(default=0, converter=twice)
    total: int = attrs.field(init=False, default=7)


@attrs.define(init=False)
class Custom:
    b: int
    a: str

    def __init__(self, a: str, b: int) -> None:
        self.a, self.b = a.strip(), b


@dataclass
class Data:
    id: UUID
    price: Decimal
    colour: Colour
    level: Level | None
    tags: dict[str, list[int]]
    pair: tuple[int, Point]

    def __post_init__(self) -> None:
        self.price = abs(self.price)


@attrs.frozen
class Page(Generic[T]):
    items: list[T]
    more: frozenset[int] = frozenset()


class Pair(NamedTuple):
    a: int
    b: str = "b"


@attrs.frozen
class Node:
    value: int
    inner: Node | None = None


INTS = st.integers(-(2**63), 2**64 - 1) | st.sampled_from([b * s for s in (1, -1) for b in (2**7, 2**8, 2**31, 2**63)])
FLOATS = st.floats() | INTS
POINTS = st.builds(Point, INTS, FLOATS)
DATA = st.builds(
    Data,
    st.uuids(),
    st.decimals(allow_nan=False),
    st.just(Colour.RED),
    st.none() | st.just(Level.LOW),
    st.dictionaries(st.text(), st.lists(INTS, max_size=3), max_size=3),
    st.tuples(INTS, POINTS),
)
SHAPES = st.builds(
    Shape, name=st.text(), points=st.lists(POINTS, max_size=3), parent=st.none() | POINTS, hidden=st.binary()
)

# Types that msgspec carries, with their values.
CARRIED: dict[Any, st.SearchStrategy[Any]] = {
    int: INTS,
    float: FLOATS,
    bool: st.booleans(),
    str: st.text(),
    None: st.none(),
    bytes: st.binary() | st.binary().map(bytearray) | st.binary().map(lambda data: memoryview(data)),
    bytearray: st.binary().map(bytearray),
    UUID: st.uuids(),
    Path: st.text(alphabet="ab/.").map(Path),
    Colour: st.just(Colour.RED),
    Literal["a", "b"]: st.sampled_from(["a", "b"]),
    int | None: st.none() | INTS,
    list[int]: st.lists(INTS),
    list[str | None]: st.lists(st.none() | st.text()),
    set[int]: st.sets(INTS),
    deque[float]: st.lists(FLOATS).map(deque),
    tuple[int, str, Point]: st.tuples(INTS, st.text(), POINTS),
    tuple[int, ...]: st.lists(INTS).map(tuple),
    dict[str, int]: st.dictionaries(st.text(), INTS),
    Mapping[str, Point]: st.dictionaries(st.text(), POINTS, max_size=3),
    Sequence[Sequence[int]]: st.lists(st.lists(INTS, max_size=3), max_size=3),
    Point: POINTS,
    Shape: SHAPES,
    Checked: st.builds(Checked, st.integers(1, 99), st.integers(0, 99)),
    Custom: st.builds(Custom, st.text(), INTS),
    Data: DATA,
    Page[Point]: st.builds(Page, st.lists(POINTS, max_size=3), st.frozensets(INTS)),
    Pair: st.builds(Pair, INTS, st.text()),
    Point | None: st.none() | POINTS,
}
LEFT_ALONE = [Any, dict, list, dict[str, Any], list[Any], int | str, Point | Pair, Node, dict[int, str], Page[Node]]

fast, plain = Adapter(MessagePack(fast=True)), Adapter(MessagePack(fast=False))


def outcome(function: Callable[[], Any]) -> str:
    """What comes of it: the value with its types to the last digit, or the refusal word for word."""
    try:
        value = function()
    except (EncodeError, DecodeError) as error:
        return f"{type(error).__name__}: {error}"
    return f"{type(value).__name__} {memoryview(value).tolist() if isinstance(value, memoryview) else value!r}"


def assert_alike(type_: Any, payload: bytes) -> None:
    """Both ways make the same of a payload, whole or in a view, as one value and as several."""
    ways = [(adapter.carrier(type_), adapter) for adapter in (fast, plain)]
    for data in (payload, memoryview(payload)):
        one, other = (outcome(lambda: carrier.decode(data, ())) for carrier, _ in ways)  # noqa: B023 -- used at once
        assert one == other
        one, other = (outcome(lambda: carrier.decode_many(data, ())) for carrier, _ in ways)  # noqa: B023
        assert one == other


class Watched(MessagePack):
    """Counts what the default path is asked to do."""

    def __init__(self) -> None:
        self.asked = 0
        super().__init__(fast=True)

    def encode(self, value: object, blobs: list[Buffer]) -> bytes:
        self.asked += 1
        return super().encode(value, blobs)

    def decode(self, data: bytes | memoryview, blobs: Sequence[bytes]) -> object:
        self.asked += 1
        return super().decode(data, blobs)


@pytest.mark.parametrize("type_", [*CARRIED, *LEFT_ALONE])
@given(data=st.data())
@settings(max_examples=20)
def test_it_is_used_where_the_types_allow_and_nowhere_else(type_: Any, data: st.DataObject) -> None:
    """For the types of this table the default path has nothing to do; for the others it does everything."""
    codec = Watched()
    carrier = Adapter(codec).carrier(type_)
    if type_ in CARRIED:
        value = data.draw(CARRIED[type_])
        carrier.decode(carrier.encode(value)[0], ())
        carrier.decode_many(carrier.encode_many([value])[0], ())
        assert codec.asked == 0
    else:
        with pytest.raises(DecodeError):
            carrier.decode(b"\xc1", ())
        with pytest.raises(EncodeError):
            carrier.encode(object())
        assert codec.asked >= 1


@pytest.mark.parametrize("type_", CARRIED)
@given(data=st.data())
@settings(max_examples=40)
def test_bytes_and_values_are_the_same(type_: Any, data: st.DataObject) -> None:
    """Of one value and of several."""
    value = data.draw(CARRIED[type_])
    payload, blobs = fast.carrier(type_).encode(value)
    assert (payload, blobs) == plain.carrier(type_).encode(value)
    many = fast.carrier(type_).encode_many([value, value])
    assert many == plain.carrier(type_).encode_many([value, value])
    assert_alike(type_, payload)
    assert_alike(type_, many[0])


ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | INTS.filter(lambda n: n < 2**64) | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["x", "y", "a", "b", "n", "id", "items", "new"]) | INTS, inner, max_size=4)
    ),
    max_leaves=10,
)


@pytest.mark.parametrize("type_", CARRIED)
@given(data=st.data())
@settings(max_examples=40)
def test_what_one_refuses_the_other_refuses_with_the_same_words(type_: Any, data: st.DataObject) -> None:
    """Payloads that were changed a little, and any others."""
    payload = bytearray(plain.carrier(type_).encode(data.draw(CARRIED[type_]))[0])
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.integers(0, len(payload)))
        payload[where : where + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    assert_alike(type_, bytes(payload))
    anything = data.draw(ANYTHING)
    assert_alike(type_, msgpack.packb(anything, default=repr))
    assert outcome(lambda: fast.carrier(type_).encode(anything)) == outcome(
        lambda: plain.carrier(type_).encode(anything)
    )


POINT = b"\x82\xa1x\x01\xa1y\xcb" + bytes(8)
ODD_PAYLOADS = {
    "a required field is missing": (Point, b"\x80"),
    "a field with a default is missing": (Point, b"\x81\xa1x\x01"),
    "an unknown key": (Point, b"\x83" + POINT[1:] + b"\xa1z\x01"),
    "an unknown key that is no text": (Point, b"\x83" + POINT[1:] + b"\x01\x01"),
    "an unknown key with bad UTF-8 below it": (Point, b"\x83" + POINT[1:] + b"\xa1z\xa1\xff"),
    "an unknown key with an extension below it": (Point, b"\x83" + POINT[1:] + b"\xa1z\xd4\x05\x00"),
    "an unknown key with depth below it": (Point, b"\x83" + POINT[1:] + b"\xa1z" + b"\x91" * 65 + b"\xc0"),
    "a key as bytes": (Point, b"\x82\xc4\x01x\x01\xa1y\x01"),
    "a field twice": (Point, b"\x83" + POINT[1:] + b"\xa1x\x02"),
    "a field twice, first wrong": (Point, b"\x82\xa1x\xc0\xa1x\x02"),
    "another order": (Point, b"\x82\xa1y\x01\xa1x\x02"),
    "trailing bytes": (Point, POINT + b"\x00"),
    "a 32-bit float": (Point, b"\x82\xa1x\x01\xa1y\xca\x3f\x80\0\0"),
    "an int in more bytes than it needs": (Point, b"\x82\xa1x\xd3\0\0\0\0\0\0\0\1\xa1y\x01"),
    "a whole float for an int": (int, b"\xcb\x3f\xf0\0\0\0\0\0\0"),
    "a bool for an int": (list[int], b"\x92\x01\xc3"),
    "an int for a bool": (bool, b"\x01"),
    "bytes for text": (str, b"\xc4\x01a"),
    "text for bytes": (bytes, b"\xa1a"),
    "a placeholder without its buffer": (bytes, b"\xd6\x01\0\0\0\0"),
    "a timestamp for text": (str, b"\xd6\xff\0\0\0\0"),
    "a lone surrogate": (str, b"\xa3\xed\xa0\x80"),
    "a key twice": (dict[str, int], b"\x82\xa1a\x01\xa1a\x02"),
    "an array where a map belongs": (Point, b"\x92\x01\x02"),
    "a validator's no": (Checked, msgpack.packb({"n": 0, "doubled": 1})),
    "too many for a set": (set[int], b"\xdd\xff\xff\xff\xff"),
    "a huge map": (dict[str, int], b"\xdf\xff\xff\xff\xff"),
    "nothing": (int, b""),
}


@pytest.mark.parametrize("case", ODD_PAYLOADS)
def test_odd_payloads_are_taken_alike(case: str) -> None:
    """Each that the two libraries see differently by themselves, or might."""
    assert_alike(*ODD_PAYLOADS[case])


class Text(str):
    __slots__ = ()


class Numbers(list[int]):
    def __iter__(self) -> Any:
        return iter([1, 2])


REORDERED = OrderedDict(a=1, b=2)
REORDERED.move_to_end("a")
ODD_FIELDS: list[tuple[Any, Any]] = [("a", "1"), (Odd.A, Level.LOW), (1, 1), ("", 2**64)]
ODD_VALUES: list[tuple[Any, Any]] = [
    *((str, value) for value in (Odd.A, Text("a"), "\ud800", b"a", UUID(int=1))),
    *((int, value) for value in (Level.LOW, True, 2**64, -(2**63) - 1, 1.0)),
    *((float, value) for value in (Level.LOW, 2**64, True, "1")),
    *((list[int], value) for value in (Numbers(), [Level.LOW], [True], (1,), [2**64])),
    *((list[str], value) for value in ([Odd.A], ["\ud800"], {"a"})),
    *((dict[str, int], value) for value in (REORDERED, {Odd.A: 1}, {"a": Level.LOW}, {1: 1}, {"\ud800": 1})),
    *((bytes, value) for value in (memoryview(bytes(8)).cast("I"), memoryview(b"abcd")[::2], "a")),
    *((bytes, value) for value in (bytes(BLOB_SIZE - 1), bytes(BLOB_SIZE), bytearray(BLOB_SIZE))),
    *((Shape, Shape(name=name, points=[Point(x)])) for name, x in ODD_FIELDS),
    (Shape, Shape(name="", points=[], hidden=bytes(BLOB_SIZE))),
    (Page[int], Page([1], {2})),  # type: ignore[arg-type]
    (list[Point], [Point(1)] * (MAX_CONTAINERS + 1)),
    (list[Point], [Point(1)] * 5000),
]  # fmt: skip


@pytest.mark.parametrize(("type_", "value"), ODD_VALUES)
def test_odd_values_are_sent_alike(type_: Any, value: Any) -> None:
    """Subclasses, what msgspec would encode as something else, what is out of range, too much or large."""

    def encoded(adapter: Adapter) -> Any:
        payload, blobs = adapter.carrier(type_).encode(value)
        return payload, [id(blob) for blob in blobs]

    assert outcome(lambda: encoded(fast)) == outcome(lambda: encoded(plain))


def typed(a: int, b: Point, c: str = "c", *, k: list[int] | None = None) -> None: ...  # noqa: D103
def rest(a: Point, *more: int) -> None: ...  # noqa: D103


@given(args=st.tuples(INTS, POINTS) | st.tuples(INTS, POINTS, st.text()), k=st.none() | st.lists(INTS), cut=st.binary())
def test_arguments_are_the_same(args: Any, k: Any, cut: bytes) -> None:
    """However many there are, and misfits too."""
    carriers = [
        adapter.arguments(inspect.signature(typed, eval_str=True).parameters.values(), name="typed")
        for adapter in (fast, plain)
    ]
    for kwargs in ({}, {"k": k}):
        payload, other = (outcome(lambda: carrier.encode(args, kwargs)) for carrier in carriers)  # noqa: B023
        assert payload == other
        data, _ = carriers[1].encode(args, kwargs)
        for payload_ in (data, data + cut, cut, data[: len(cut)], b"\x93" + data[1:], b"\x91\x01"):
            one, other = (outcome(lambda: carrier.decode(payload_, ())) for carrier in carriers)  # noqa: B023
            assert one == other


def test_arguments_without_limit_come_back() -> None:
    """`*args` go the default way."""
    carrier = fast.arguments(inspect.signature(rest, eval_str=True).parameters.values(), name="rest")
    assert carrier.decode(carrier.encode((Point(1), 2, 3), {})[0], ()) == ((Point(1), 2, 3), {})


@pytest.mark.parametrize("limits", [{"max_depth": 2}, {"max_containers": 10}])
def test_limits_of_the_codec_hold(limits: dict[str, int]) -> None:
    """A codec of lower limits has the same ones with msgspec."""
    for count in (1, 3, 4, 9, 10, 20):
        payload = msgpack.packb([[[1]]] * count)
        outcomes = []
        for with_msgspec in (True, False):
            carrier = Adapter(MessagePack(**limits, fast=with_msgspec)).carrier(list[list[list[int]]])
            outcomes.append((
                outcome(lambda: carrier.encode([[[1]]] * count)),  # noqa: B023
                outcome(lambda: carrier.decode(payload, ())),  # noqa: B023
            ))  # fmt: skip
        assert outcomes[0] == outcomes[1]


def test_which_one_is_in_use_can_be_seen() -> None:
    """In the codec's repr."""
    assert "msgspec" in repr(MessagePack())
    assert "msgspec" not in repr(MessagePack(fast=False))
