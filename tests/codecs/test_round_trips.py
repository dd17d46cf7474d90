"""The same value comes out as went in, on both codecs."""

from __future__ import annotations

import datetime as dt
import enum
import ipaddress
import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence, Set as AbstractSet
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final, Generic, Literal, NamedTuple, NewType, NotRequired, TypedDict, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import pytest
from hypothesis import given, strategies as st
from typing_extensions import TypeAliasType

from trio_rpc.codecs import adapter_for

T = TypeVar("T")
K = TypeVar("K")
Sku = NewType("Sku", str)
Json = TypeAliasType("Json", "bool | int | float | str | list[Json] | dict[str, Json] | None")

UTC = dt.UTC
NOON = dt.datetime(2024, 7, 1, 12, 0, 0, 123456)
ID = UUID("12345678-1234-5678-1234-567812345678")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Mixed(enum.Enum):
    ONE = 1
    TEXT = "text"
    PAIR = (1, 2)


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Mood(enum.StrEnum):
    GOOD = "good"


@attrs.frozen
class Point:
    x: int
    y: float = 0.5


@attrs.frozen
class Circle:
    radius: int


@attrs.define
class Order:
    id: UUID
    at: dt.datetime
    price: Decimal
    colour: Colour
    points: list[Point] = attrs.field(factory=list)
    _secret: bytes = b""
    note: str | None = attrs.field(default=None, kw_only=True)


@attrs.frozen
class Node:
    value: int
    left: Node | None = None
    others: dict[str, Node] = attrs.field(factory=dict)


@attrs.frozen
class Page(Generic[T]):
    items: list[T]
    first: T | None = None


@attrs.frozen
class Named(Page[int], Generic[T]):
    names: dict[str, T] = attrs.field(factory=dict)


@dataclass
class Data:
    a: int
    b: list[Point] = field(default_factory=list)


@dataclass(frozen=True)
class Box(Generic[K, T]):
    key: K
    value: T


class Pair(NamedTuple):
    a: int
    b: dt.date = dt.date(2024, 1, 1)


class Options(TypedDict):
    size: int
    until: NotRequired[dt.datetime]


CASES: list[tuple[Any, Any]] = [
    (Any, {"a": [1, None, True, 1.5, "ä\u0000\U0001f600"], "": {}}),
    (object, [[], {}, -1]),
    (None, None),
    *((bool, value) for value in (True, False)),
    *((int, value) for value in (0, -1, 2**63, 2**64 - 1, -(2**63))),
    *((float, value) for value in (0.1, -0.0, 1e308, math.inf, -math.inf, math.nan)),
    *((str, value) for value in ("", "plain", "ä\u0000\U0001f600", '"\\/', "$blob")),
    *((bytes, value) for value in (b"", b"\x00\xff" * 10)),
    (bytearray, bytearray(b"ab")),
    (memoryview, memoryview(b"ab")),
    *((dt.datetime, value) for value in (NOON, NOON.replace(microsecond=0), dt.datetime.min, dt.datetime.max)),
    *((dt.datetime, value.replace(tzinfo=UTC)) for value in (NOON, dt.datetime(1, 1, 1), dt.datetime(9999, 12, 31))),
    (dt.date, dt.date(2024, 2, 29)),
    *((dt.time, value) for value in (dt.time(1, 2, 3, 4), dt.time(1, 2, tzinfo=UTC))),
    *(
        (dt.timedelta, dt.timedelta(**{unit: number}))
        for unit in ("days", "seconds", "microseconds")
        for number in (0, 1, -1)
    ),
    (dt.timedelta, dt.timedelta.max),
    (UUID, ID),
    *((Decimal, Decimal(text)) for text in ("1.50", "-0", "1E+30", "Infinity", "0.1")),
    (Path, Path("/a/b")),
    (ipaddress.IPv4Address, ipaddress.ip_address("127.0.0.1")),
    (ipaddress.IPv6Network, ipaddress.ip_network("2001:db8::/32")),
    *((Colour, value) for value in Colour),
    *((Level, value) for value in Level),
    *((Mixed, value) for value in Mixed),
    *((Access, value) for value in (Access.READ, Access.READ | Access.WRITE, Access(0))),
    (Mood, Mood.GOOD),
    *((Literal["a", 1, True, None], value) for value in ("a", 1, True, None)),
    (Literal[Colour.RED, b"x"], Colour.RED),
    (Literal[Colour.RED, b"x"], b"x"),
    (Sku, Sku("A-1")),
    (Annotated[int, ["not hashable"]], 3),
    (list[Annotated[int, ["not hashable"]]], [3]),
    (Final[int], 3),
    (list, [1, "a"]),
    (list[int], []),
    (list[int], [1, 2]),
    (list[Point], [Point(1), Point(2, 2.5)]),
    (list[bytes], [b"a", b""]),
    (list[float], [1.0, math.inf]),
    (Sequence[int], [1, 2]),
    (Collection[int], [1, 2]),
    (deque[int], deque([1, 2])),
    (tuple, (1, "a")),
    (tuple[()], ()),
    (tuple[int, ...], (1, 2, 3)),
    (tuple[int, Point, str], (1, Point(1), "a")),
    (set[int], {1, 2}),
    (set[Point], {Point(1), Point(2)}),
    (frozenset[str], frozenset({"a"})),
    (AbstractSet[str], {"a"}),
    (set[frozenset[int]], {frozenset({1}), frozenset()}),
    (dict, {"a": 1}),
    (dict[str, Any], {"a": [1]}),
    (dict[Any, int], {"a": 1}),
    (dict[str, int], {"a": 1}),
    (Mapping[str, Point], {"a": Point(1)}),
    (dict[int, str], {1: "a", -5: "b"}),
    (dict[UUID, int], {ID: 1}),
    (dict[Colour, int], {Colour.RED: 1, Colour.BLUE: 2}),
    (dict[Level, int], {Level.HIGH: 1}),
    (dict[dt.date, int], {dt.date(2024, 1, 1): 1}),
    (dict[dt.datetime, int], {NOON: 1, NOON.replace(tzinfo=UTC): 2}),
    (dict[Decimal, int], {Decimal("1.5"): 1}),
    (dict[Literal["a", "b"], int], {"a": 1}),
    (dict[bool, int], {True: 1, False: 0}),
    (dict[float, int], {1.5: 1, math.inf: 2}),
    (dict[bytes, int], {b"a": 1}),
    (dict[tuple[int, str], Point], {(1, "a"): Point(1)}),
    (dict[Point, int], {Point(1): 1}),
    (dict[int | str, int], {1: 1, "1": 2}),
    (dict[str | None, int], {"a": 1, None: 2}),
    (int | None, None),
    (int | None, 5),
    *((int | float | str | bool | None, value) for value in (1, 1.0, "1", True, None, math.inf)[:-1]),
    *((float | None, value) for value in (math.nan, -math.inf, 1.5)),
    *((bytes | str, value) for value in (b"a", "a", "YQ==")),
    *((UUID | str, value) for value in (ID, str(ID), "a")),
    *(
        (dt.datetime | dt.date | str, value)
        for value in (NOON, NOON.replace(tzinfo=UTC), dt.date(2024, 1, 1), "2024-01-01")
    ),
    *((Point | Circle, value) for value in (Point(1), Circle(1))),
    *((Point | Circle | None | int, value) for value in (Point(1), Circle(1), None, 1)),
    *((Point | dict[str, int], value) for value in (Point(1), {"x": 1}, {"Point": 1})),
    *((list[int] | dict[str, int] | None, value) for value in ([1], {"a": 1}, None)),
    *((list[int] | set[int], value) for value in ([1], {1})),
    *((list[int] | list[str], value) for value in ([1], ["a"])),
    *((Page[int] | Page[str], value) for value in (Page([1]), Page(["a"]))),
    *((Colour | str, value) for value in (Colour.RED, "red")),
    *((Literal["auto"] | int, value) for value in ("auto", 1)),
    *((Options | Point, value) for value in ({"size": 1}, Point(1))),
    (list[Point | Circle], [Point(1), Circle(2)]),
    (Order, Order(ID, NOON, Decimal("9.90"), Colour.RED, [Point(1)], b"s", note="n")),
    (Node, Node(1, Node(2, Node(3)), {"a": Node(4)})),
    (Page[int], Page([1, 2], 3)),
    (Page[Point], Page([Point(1)], Point(2))),
    (Page[Page[int]], Page([Page([1])])),
    (Page, Page([1, "a"], None)),
    (Named[str], Named([1], 2, {"a": "b"})),
    (Named[Point], Named([1], 2, {"a": Point(1)})),
    (Data, Data(1, [Point(1)])),
    (Box[str, Point], Box("a", Point(1))),
    (Pair, Pair(1)),
    (list[Pair], [Pair(1, dt.date(2025, 1, 1))]),
    (Options, {"size": 1}),
    (Options, {"size": 1, "until": NOON}),
    (Json, {"a": [1, None, {"b": 1.5}], "c": "x"}),
]


def there_and_back(codec: str, type_: Any, value: Any) -> Any:
    """What the other side gets."""
    carrier = adapter_for(codec).carrier(type_)
    payload, blobs = carrier.encode(value)
    return carrier.decode(payload, [bytes(blob) for blob in blobs])


def shape(value: Any) -> str:
    """Everything that may differ between equal values: types, signs of zero, NaN, time zones. Order of sets does not count."""
    if isinstance(value, set | frozenset):
        return f"{type(value).__name__} {sorted(map(repr, value))}"
    if isinstance(value, memoryview):
        return f"memoryview {bytes(value)!r}"
    return f"{type(value).__name__} {value!r}"


@pytest.mark.parametrize(("type_", "value"), CASES)
def test_the_same_value_comes_back(codec: str, type_: Any, value: Any) -> None:
    """Equal, and of the same type, down to the last digit."""
    assert shape(there_and_back(codec, type_, value)) == shape(value)


@pytest.mark.parametrize("zone", [dt.timezone(dt.timedelta(hours=2)), ZoneInfo("Europe/Berlin")])
@pytest.mark.parametrize("type_", [dt.datetime, dt.datetime | None, dict[dt.datetime, int]])
def test_aware_datetimes_come_back_in_utc(codec: str, type_: Any, zone: dt.tzinfo) -> None:
    """The same moment, in UTC, as a value and as a key."""
    moment = NOON.replace(tzinfo=zone)
    sent = {moment: 1} if type_ == dict[dt.datetime, int] else moment
    back = there_and_back(codec, type_, sent)
    result = next(iter(back)) if isinstance(back, dict) else back
    assert (result, result.tzinfo) == (moment, UTC)


@pytest.mark.parametrize("value", [0, 5, -(2**63), 2**64 - 1])
def test_an_int_is_welcome_for_a_float(codec: str, value: int) -> None:
    """It arrives as a float, in unions without int as well."""
    for type_ in (float, float | None, list[float]):
        back = there_and_back(codec, type_, [value] if type_ == list[float] else value)
        number = back[0] if isinstance(back, list) else back
        assert (type(number), number) == (float, float(value))


@pytest.mark.parametrize("value", [b"ab", bytearray(b"ab"), memoryview(b"ab"), memoryview(b"a-b-")[::2]])
def test_any_buffer_is_welcome_for_bytes(codec: str, value: Any) -> None:
    """It arrives as bytes."""
    assert there_and_back(codec, bytes, value) == b"ab"


def test_untyped_places_on_msgpack_carry_bytes_and_moments() -> None:
    """MessagePack has both natively."""
    value = {"b": b"\x00\xff", "at": NOON.replace(tzinfo=UTC)}
    assert there_and_back("msgpack", Any, value) == value


def test_unknown_keys_are_ignored_and_defaults_apply(codec: str) -> None:
    """So that either side may be newer."""
    adapter = adapter_for(codec)
    payload, _ = adapter.carrier(Any).encode({"x": 1, "new": [2]})
    assert adapter.carrier(Point).decode(payload, ()) == Point(1)
    assert adapter.carrier(Page[int]).decode(adapter.carrier(Any).encode({"items": []})[0], ()) == Page([])


@pytest.mark.parametrize("type_", [Point | Circle, list[Point | Circle]])
def test_the_tag_of_a_class_is_its_name(codec: str, type_: Any) -> None:
    """A union of classes says which one it is."""
    adapter = adapter_for(codec)
    value = [Circle(1)] if type_ == list[Point | Circle] else Circle(1)
    wire = adapter.carrier(Any).decode(adapter.carrier(type_).encode(value)[0], ())
    assert wire in ({"Circle": {"radius": 1}}, [{"Circle": {"radius": 1}}])


def test_several_values_share_one_payload(codec: str) -> None:
    """A batch of a stream's items is one array, buffers included."""
    carrier = adapter_for(codec).carrier(Point | bytes)
    values = [Point(1), b"small", b"x" * 70_000, Point(2)]
    payload, blobs = carrier.encode_many(values)
    assert carrier.decode_many(payload, [bytes(blob) for blob in blobs]) == values


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


@given(value=JSON_VALUES)
def test_plain_values_come_back(value: Any) -> None:
    """Whatever JSON has goes through untyped places of both codecs."""
    for codec in ("msgpack", "msgpack alone", "json"):
        assert shape(there_and_back(codec, Any, value)) == shape(value)


def is_comparable(moment: dt.datetime) -> bool:
    """Python holds a local time that a clock change repeats or leaves out for unequal to any in another zone."""
    return moment.tzinfo is None or moment == moment.astimezone(UTC)


ZONES: Any = st.none() | st.just(UTC) | st.timezones()
TYPED: dict[Any, st.SearchStrategy[Any]] = {
    dt.datetime: st.datetimes(dt.datetime(2, 1, 1), dt.datetime(9998, 1, 1), timezones=ZONES).filter(is_comparable),
    dt.timedelta: st.timedeltas(dt.timedelta(days=-999_999_998)),
    dt.date: st.dates(),
    dt.time: st.times(),
    Decimal: st.decimals(allow_nan=False),
    float: st.floats(allow_nan=False),
    bytes: st.binary(),
    dict[int, bytes]: st.dictionaries(st.integers(-(2**63), 2**64 - 1), st.binary()),
    set[float]: st.sets(st.floats(allow_nan=False)),
    tuple[UUID, str | int | None]: st.tuples(st.uuids(), st.none() | st.text() | st.integers(-(2**63), 2**64 - 1)),
    Page[Point | Circle]: st.builds(
        Page, st.lists(st.builds(Circle, st.integers(0, 9)) | st.builds(Point, st.integers(0, 9)))
    ),
}


@pytest.mark.parametrize("type_", TYPED)
@given(data=st.data())
def test_typed_values_come_back(type_: Any, data: st.DataObject) -> None:
    """Equal on both codecs."""
    value = data.draw(TYPED[type_])
    for codec in ("msgpack", "msgpack alone", "json"):
        assert there_and_back(codec, type_, value) == value
