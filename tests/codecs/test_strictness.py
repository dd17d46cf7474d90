"""A value that does not fit its place is refused on both sides, and the message says where and why."""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from typing import Any, Generic, Literal, NamedTuple, TypedDict, TypeVar
from uuid import UUID

import attrs
import pytest

from trio_rpc import DecodeError, EncodeError
from trio_rpc.codecs import Json, MessagePack, adapter_for

T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    ONE = 1


@attrs.frozen
class Point:
    x: int
    y: float = 0.0


@attrs.frozen
class Point3(Point):
    z: int = 0


@attrs.frozen
class Line:
    points: list[Point]
    labels: dict[str, int | None] = attrs.field(factory=dict)


@attrs.frozen
class Positive:
    n: int = attrs.field(validator=attrs.validators.gt(0))


class Pair(NamedTuple):
    a: int
    b: str


class Options(TypedDict):
    size: int


@attrs.frozen
class Page(Generic[T]):
    items: list[T]


@attrs.frozen
class Counted(Page[int], Generic[T]):
    names: list[T]


# What arrives as plain values -> the refusal.
REFUSED: list[tuple[Any, Any, str]] = [
    (int, "7", r"\$: expected int, got str '7'"),
    (int, True, r"\$: expected int, got bool True"),
    (int, 1.5, r"\$: expected int, got float 1.5"),
    (int, 1.0, "expected int, got float"),
    (int, None, r"\$: expected int, got None"),
    (float, "1.5", "expected float, got str '1.5'"),
    (float, True, "expected float, got bool True"),
    (str, 7, "expected str, got int 7"),
    (str, ["a"], "expected str, got list"),
    (bool, 1, "expected bool, got int 1"),
    (bool, "true", "expected bool"),
    (None, 0, "expected None, got int 0"),
    (dict, [], "expected dict, got list"),
    (list, {}, "expected list, got dict"),
    (bytes, 7, "expected bytes"),
    (bytes, {"$blob": 0}, "expected"),
    (dt.datetime, "2024-01-01", "expected datetime"),
    (dt.datetime, "soon", "expected datetime as ISO 8601 text, got str 'soon'"),
    (dt.datetime, 0, "expected datetime"),
    (dt.datetime, "0001-01-01T00:00:00+14:00", "expected datetime"),
    (dt.date, "2024-13-01", "expected date as text"),
    (dt.date, "2024-01-01T00:00:00", "expected date as text"),
    (dt.time, "25:00", "expected time as text"),
    *((dt.timedelta, text, "expected timedelta as text") for text in ("", "P", "PT", "P1DT", "1", "P99999999999D", "P1Y")),
    (dt.timedelta, 5, "expected timedelta as text, got int 5"),
    (UUID, "{12345678-1234-5678-1234-567812345678}", "expected UUID as text"),
    (UUID, "123", "expected UUID as text"),
    *((Decimal, text, "expected Decimal as text") for text in (" 1", "1_0", "one", "\u0661")),
    (Decimal, 1.5, "expected Decimal as text, got float 1.5"),
    (Colour, "blue", r"expected Colour \(one of 'red'\), got str 'blue'"),
    (Colour, 1, "expected Colour"),
    (Level, True, "expected Level"),
    (Level, "1", "expected Level"),
    (Literal["a", 1], True, "expected one of 'a', 1, got bool True"),
    (Literal["a", 1], "b", "expected one of 'a', 1, got str 'b'"),
    (Literal["a", 1], ["a"], "expected one of 'a', 1"),
    (list[int], [1, "2"], r"\$\[1\]: expected int, got str '2'"),
    (tuple[int, str], [1], r"\$: expected tuple\[int, str\]: 2 items, got 1"),
    (tuple[int, str], [1, 2], r"\$\[1\]: expected str"),
    (set[list[int]], [[1]], r"\$: its items cannot be in a set\[list\[int\]\]"),
    (dict[str, int], {"a": "b"}, r"\$\.a: expected int, got str 'b'"),
    (dict[str, int], {"not a name": None}, r"\$\['not a name'\]: expected int, got None"),
    (dict[int, int], {"1.5": 1}, r"\$\['1.5'\]: expected int as text"),
    (dict[int, int], {"01": 1}, "expected int as text"),
    (dict[int, int], {"18446744073709551616": 1}, "expected int as text"),
    (dict[Colour, int], {"blue": 1}, "expected Colour"),
    (dict[Decimal, int], {"1.0": 1, "1.00": 2}, r"\$: two of its keys are the same"),
    (dict[bool, int], {"true": 1}, "as a list of pairs"),
    (dict[bool, int], [[True]], r"\$\[0\]: expected bool and int: 2 items, got 1"),
    (int | None, "x", "expected int"),
    (int | str, 1.5, r"\$: expected int \| str, got float 1.5"),
    (Point | None, {"x": "1"}, r"\$\.x: expected int, got str '1'"),
    (Line | Point, {"x": 1}, r"\$: expected Line \| Point as \{name: value\}"),
    (Line | Point, {"Point": {"x": None}}, r"\$\.x: expected int, got None"),
    (Line | Point, {"Circle": {}}, r"expected Line \| Point"),
    (Point, {}, r"\$\.x: this required field is missing"),
    (Point, [1], "expected Point, got list"),
    (Line, {"points": [{"x": 1}, {"x": "7"}]}, r"\$\.points\[1\]\.x: expected int, got str '7'"),
    (Line, {"points": [], "labels": {"a b": 1.5}}, r"\$\.labels\['a b'\]: expected int \| None, got float 1.5"),
    (Positive, {"n": 0}, r"\$: Positive refused its fields: 'n' must be > 0: 0"),
    (Page[int], {"items": ["a"]}, r"\$\.items\[0\]: expected int"),
    (Counted[str], {"items": ["a"], "names": []}, r"\$\.items\[0\]: expected int, got str 'a'"),
    (Counted[str], {"items": [], "names": [1]}, r"\$\.names\[0\]: expected str, got int 1"),
    (Page[Page[Point]], {"items": [{"items": [{"x": ""}]}]}, r"\$\.items\[0\]\.items\[0\]\.x"),
    (Pair, {"a": 1}, r"\$\.b: this required field is missing"),
    (Options, {}, r"\$\.size: this required key is missing"),
    (Options, {"size": "1"}, r"\$\.size: expected int"),
]  # fmt: skip

# What is handed over to be sent -> the refusal.
UNSENT: list[tuple[Any, Any, str]] = [
    *((type_, value, "expected") for type_, value in [(int, "7"), (int, True), (int, 1.5), (float, "1"), (float, True)]),
    *((type_, value, "expected") for type_, value in [(str, 7), (str, b"a"), (bool, 1), (None, 0), (bytes, "a")]),
    *((type_, value, "expected") for type_, value in [(list, (1,)), (dict, [1]), (tuple, [1]), (set, [1]), (list[int], {1})]),
    (dt.datetime, dt.date(2024, 1, 1), "expected datetime, got date"),
    (dt.date, dt.datetime(2024, 1, 1), "expected date, got datetime"),
    (UUID, "12345678-1234-5678-1234-567812345678", "expected UUID, got str"),
    (Decimal, 1.5, "expected Decimal, got float 1.5"),
    (dt.timedelta, dt.timedelta.min, "smallest timedelta"),
    (Colour, "red", "expected Colour, got str 'red'"),
    (Literal["a"], "b", "expected one of 'a'"),
    (list[int], [1, 2, "x"], r"\$\[2\]: expected int, got str 'x'"),
    (list[int], [1, True], r"\$\[1\]: expected int, got bool True"),
    (set[int], {"x"}, r"\$\[0\]: expected int"),
    (tuple[int, str], (1, 2), r"\$\[1\]: expected str, got int 2"),
    (tuple[int, str], (1,), "2 items, got 1"),
    (dict[str, int], {"a": "b"}, r"\$\.a: expected int"),
    (dict[str, int], {1: 1}, r"\$\[1\]: expected str, got int 1"),
    (dict[str, Any], {1: 1}, r"\$\[1\]: "),
    (dict[Any, int], {1: 1}, r"\$\[1\]: a int key in an untyped place: annotate it"),
    (dict[int, int], {True: 1}, "expected int, got bool True"),
    (int | str, 1.5, r"expected int \| str, got float 1.5"),
    (Point | None, Colour.RED, "expected Point"),
    (Point, Point("1"), r"\$\.x: expected int, got str '1'"),  # type: ignore[arg-type]
    (Point, Point3(1), r"expected Point itself, got its subclass Point3, .* declare Point \| Point3"),
    (Point, {"x": 1}, "expected Point, got dict"),
    (Line, Line([Point(1), Point(None)]), r"\$\.points\[1\]\.x: expected int, got None"),  # type: ignore[arg-type]
    (Page[int], Page(["a"]), r"\$\.items\[0\]: expected int, got str 'a'"),
    (Pair, (1, "a"), "expected Pair, got tuple"),
    (Options, {"size": 1, "colour": 2}, "Options has no key str 'colour'"),
    (Options, {}, r"\$\.size: this required key is missing"),
    (Any, object(), r"\$: object in an untyped place"),
    (Any, {"a": [1, {2}]}, r"\$\.a\[1\]: set in an untyped place.*: annotate it with its type"),
    (Any, {"a b": Decimal(1)}, r"\$\['a b'\]: Decimal in an untyped place"),
    (Any, dt.datetime(2024, 1, 1), "datetime in an untyped place"),
    (Any, [0, 2**64], r"\$\[1\]: an integer must lie between -2\*\*63 and 2\*\*64 - 1"),
    (int, -(2**63) - 1, r"\$: an integer must lie"),
    (list[int], [2**64], r"\$\[0\]: an integer must lie"),
    (float, 2**64, "expected float"),
    (Point, Point(2**64), r"\$\.x: an integer must lie"),
    (dict[int, int], {2**64: 1}, "an integer must lie"),
    (Any, {"a": "\ud800"}, "lone surrogate"),
    (str, "\udfff", "lone surrogate"),
    (dict[str, int], {"\ud800": 1}, "lone surrogate"),
]  # fmt: skip


@pytest.mark.parametrize(("type_", "plain", "message"), REFUSED)
def test_what_arrives_is_checked(codec: str, type_: Any, plain: Any, message: str) -> None:
    """A DecodeError with the path of the first thing that does not fit."""
    adapter = adapter_for(codec)
    payload, _ = adapter.carrier(Any).encode(plain)
    with pytest.raises(DecodeError, match=message):
        adapter.carrier(type_).decode(payload, ())


@pytest.mark.parametrize(("type_", "value", "message"), UNSENT)
def test_what_is_sent_is_checked(codec: str, type_: Any, value: Any, message: str) -> None:
    """An EncodeError with the path, before anything is sent."""
    with pytest.raises(EncodeError, match=message):
        adapter_for(codec).carrier(type_).encode(value)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), {1: 2}, b"bytes", dt.datetime(2024, 1, 1, tzinfo=dt.UTC)]
)
def test_json_refuses_what_it_would_change(value: Any) -> None:
    """What JSON has no form for needs a type, so that it comes back the same."""
    with pytest.raises(EncodeError, match=r"\$\.a.*: .*annotate it"):
        adapter_for("json").carrier(Any).encode({"a": value})
    with pytest.raises(EncodeError, match="cannot be told from text"):
        adapter_for("json").carrier(float | str).encode(float("nan"))


def test_msgpack_refuses_keys_that_are_not_text() -> None:
    """In an untyped place; the message says how to annotate it."""
    carrier = adapter_for("msgpack").carrier(Any)
    with pytest.raises(DecodeError, match=r"a map key is not text: annotate the place, as in dict\[int, str\]"):
        carrier.decode(carrier.encode({1: 2})[0], ())


def test_several_values_name_the_one_that_does_not_fit(codec: str) -> None:
    """A batch is refused as a whole, with the index."""
    carrier = adapter_for(codec).carrier(Point)
    with pytest.raises(EncodeError, match=r"^\$\[1\]\.x: expected int"):
        carrier.encode_many([Point(1), Point("2")])  # type: ignore[arg-type]
    payload, _ = adapter_for(codec).carrier(Any).encode([{"x": 1}, {}])
    with pytest.raises(DecodeError, match=r"^\$\[1\]\.x: this required field is missing"):
        carrier.decode_many(payload, ())
    with pytest.raises(DecodeError, match=r"^\$: expected an array of items, got dict"):
        carrier.decode_many(carrier.encode(Point(1))[0], ())


def test_a_foreign_value_is_shown_shortly(codec: str) -> None:
    """A message never repeats more than a line of what the peer sent."""
    adapter = adapter_for(codec)
    payload, _ = adapter.carrier(Any).encode({"x": "y" * 100_000})
    with pytest.raises(DecodeError) as caught:
        adapter.carrier(Point).decode(payload, ())
    assert len(str(caught.value)) < 200


class Rude:
    """A value with a repr that raises."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


def test_a_value_with_a_bad_repr_is_refused_all_the_same(codec: str) -> None:
    """The message makes do with its type."""
    with pytest.raises(EncodeError, match="expected int, got Rude"):
        adapter_for(codec).carrier(list[int]).encode([Rude()])


def test_a_value_that_holds_itself_is_refused(codec: str) -> None:
    """Not sent, not looped over."""
    value: list[Any] = []
    value.append(value)
    for type_ in (Any, list[Any]):
        with pytest.raises(EncodeError, match="nested too deep"):
            adapter_for(codec).carrier(type_).encode(value)


class Sku(str):
    __slots__ = ()


class Empty(enum.Enum):
    pass


@attrs.frozen
class Unresolved:
    when: Missing  # type: ignore[name-defined]  # noqa: F821


@attrs.frozen
class Holder:
    ok: Holder | None
    bad: Callable[[], int]


def same_name() -> Any:
    """Another class that is named Point."""
    return attrs.make_class("Point", ["a"])


NO_FORM: list[tuple[Any, str]] = [
    (Callable[[], int], "no codec carries"),
    (complex, "no codec carries complex: use plain values, an attrs class"),
    (type, "no codec carries type"),
    (Sku, "it is a subclass of str: use NewType"),
    (list[Sku], "no codec carries Sku"),
    ("Point", "it is a name that has not been resolved"),
    (list["Point"], "it is a name that has not been resolved"),
    (AsyncIterator[int], "a stream can only be a whole parameter"),
    (ValueError, "exceptions are raised: name it under raises="),
    (Empty, "the enum Empty has no members"),
    (Unresolved, "an annotation of Unresolved cannot be resolved .*Missing.*: import or define that name"),
    (Holder, "field 'bad' of Holder: no codec carries"),
    (Point | same_name(), r"two members of Point \| Point are both named Point"),
]


@pytest.mark.parametrize(("type_", "message"), NO_FORM)
def test_a_type_that_no_codec_carries_is_told_early(codec: str, type_: Any, message: str) -> None:
    """A TypeError when the type is declared, each time, with what to write instead."""
    for _ in range(2):
        with pytest.raises(TypeError, match=message):
            adapter_for(codec).carrier(type_)


@pytest.mark.parametrize("made", [MessagePack(), Json()])
def test_codecs_refuse_in_their_own_words_only(made: MessagePack | Json) -> None:
    """EncodeError alone leaves `encode`, with no adapter in front."""
    for value in (object(), {"a": {1, 2}}, 2**70, "\ud800", {"\ud800": 1}, 1j):
        with pytest.raises(EncodeError):
            made.encode(value, [])
