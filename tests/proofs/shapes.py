"""Messages that take as long to decode as their bytes allow: one kind of value each, as many of them as one likes."""

from __future__ import annotations

import datetime as dt
import enum
import ipaddress
import struct
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict

import attrs
import msgpack

__all__ = ["JSON_SHAPES", "MSGPACK_SHAPES", "NEVER", "SHAPES", "Record", "Shape", "records"]

Shape: TypeAlias = tuple[Any, Callable[[int], Any]]
"""The type of a place, and the plain value that has so many of one kind."""


class Colour(enum.Enum):
    """An enumeration."""

    RED = "r"
    BLUE = "b"


class Access(enum.Flag):
    """A flag."""

    READ = 1
    WRITE = 2


@attrs.frozen
class Empty:
    """Everything has a default."""

    x: int = 0
    y: int = 0


@attrs.frozen
class Record:
    """What an ordinary message holds many of."""

    number: int
    name: str
    price: float
    active: bool
    tags: list[str]
    note: str | None = None


@dataclass
class Node:
    """A class that holds itself."""

    value: int = 0
    children: list[Node] = field(default_factory=list)


class Row(TypedDict, total=False):
    """A map with known keys."""

    x: float
    y: float


Wide: Any = attrs.make_class("Wide", {f"f{index}": attrs.field(type=float) for index in range(50)}, frozen=True)


def records(count: int) -> list[dict[str, Any]]:
    """So many records, as plain values."""
    return [
        {
            "number": index,
            "name": f"article {index}",
            "price": index / 7,
            "active": index % 2 == 0,
            "tags": ["new", "small"],
            "note": None,
        }
        for index in range(count)
    ]


def _many(value: Any) -> Callable[[int], Any]:
    return lambda count: [value] * count


def _keys(value: Any) -> Callable[[int], Any]:
    return lambda count: {f"{index:x}": value for index in range(count)}


def _deep(count: int) -> Any:
    value: Any = []
    for _ in range(60):
        value = [value, *[1] * (count // 60)]
    return value


TEXTS: Mapping[type, tuple[str, ...]] = {
    dt.date: ("20000101",),
    dt.time: ("00", "10:00:00.123456+01:00"),
    dt.datetime: ("2000-01-01T00", "2000-01-01T10:00:00.123456+01:30"),
    dt.timedelta: ("PT0S", "P1DT1H1M1.000001S"),
    uuid.UUID: (str(uuid.UUID(int=2**100)),),
    Decimal: ("1", "1e9", "9" * 300),
    Path: ("", "a", "a/" * 5, "a/" * 1000),
    ipaddress.IPv4Address: ("1.1.1.1",),
    ipaddress.IPv6Address: ("::", "1:2:3:4:5:6:7:8", "::ffff:1.1.1.1"),
    ipaddress.IPv4Network: ("1.1.1.1", "0.0.0.0/0"),
    ipaddress.IPv6Network: ("::", "::/0", "1:2:3:4:5:6:7:0/112"),
}


def _of_texts() -> Iterator[tuple[str, Shape]]:
    for type_, texts in TEXTS.items():
        for text in texts:
            yield f"list[{type_.__name__}] {text[:12]!r}", (list[type_], _many(text))  # type: ignore[valid-type]
        yield f"dict[str, {type_.__name__}]", (dict[str, type_], _keys(texts[0]))  # type: ignore[valid-type]


SHAPES: dict[str, Shape] = {
    "Any: small ints": (Any, _many(1)),
    "Any: large ints": (Any, _many(2**63)),
    "Any: short texts": (Any, _many("ab")),
    "Any: short texts, all different": (Any, lambda count: [f"{index:03x}" for index in range(count)]),
    "Any: short texts that are not Latin": (Any, _many("€")),
    "Any: keys, all different": (Any, _keys(1)),
    "Any: lists": (Any, _many([])),
    "Any: maps": (Any, _many({"a": 1})),
    "Any: 60 deep": (Any, _deep),
    "Any: one text": (Any, lambda count: "a€" * count),
    "Any: floats": (Any, lambda count: [(index + 1) / 7e-200 for index in range(count)]),
    "list[int]": (list[int], _many(1)),
    "list[float]: of ints": (list[float], _many(1)),
    "list[float]": (list[float], _many(0.5)),
    "list[str]": (list[str], _many("ab")),
    "list[float | str]: of ints": (list[float | str], _many(1)),
    "list[int | None]": (list[int | None], _many(None)),
    "set[int]": (set[int], lambda count: list(range(count))),
    "frozenset[str]": (frozenset[str], lambda count: [f"{index:x}" for index in range(count)]),
    "list[Colour]": (list[Colour], _many("r")),
    "list[Access]": (list[Access], _many(1)),
    "list[Literal]": (list[Literal[1, 2]], _many(1)),
    "list[tuple[int, float]]": (list[tuple[int, float]], _many([1, 1])),
    "list[dict[str, float]]": (list[dict[str, float]], _many({"a": 1})),
    "dict[str, int]": (dict[str, int], _keys(1)),
    "dict[str, float]: of ints": (dict[str, float], _keys(1)),
    "dict[int, int]": (dict[int, int], lambda count: {str(index): 1 for index in range(count)}),
    "dict[Colour, int]": (dict[Colour, int], lambda count: {"r": count}),
    "dict[tuple[int, int], int]": (
        dict[tuple[int, int], int],
        lambda count: [[[index, 1], 1] for index in range(count)],
    ),
    "list[Empty]": (list[Empty], _many({})),
    "list[Record]": (list[Record], records),
    "list[Record]: unknown keys": (list[Empty], lambda count: [{f"{index:x}": 1} for index in range(count)]),
    "list[Wide]": (list[Wide], _many({f"f{index}": 1 for index in range(50)})),
    "list[Row]": (list[Row], _many({"x": 1, "y": 1})),
    "list[Node]": (list[Node], _many({"value": 1, "children": [{}]})),
    "list[Empty | Node]": (list[Empty | Node], _many({"Empty": {}})),
    "int: a list": (int, _many(1)),
    "int: a map": (int, _keys(1)),
    "Record: a map": (Record, _keys(1)),
    **dict(_of_texts()),
}
"""What both codecs carry."""


def _chain(count: int) -> bytes:
    """Maps inside each other, each of which is as full as it may be when the next one begins."""
    out, full = [], 70_000
    for index in range(count):
        if index % full == 0:
            out.append(b"\xdf" + struct.pack(">I", min(full, count - index)))
        out.append(msgpack.packb(f"{index:x}"))
        if index % full != full - 1 or index == count - 1:
            out.append(b"\1")
    return b"".join(out)


def _packed(value: Any) -> bytes:
    return bytes(msgpack.packb(value))


MORE_THAN_THERE_IS = "Any: lists that announce more than there is"
NEVER = {MORE_THAN_THERE_IS, "int: a list", "int: a map", "Record: a map"}
"""The kinds of which no frame is accepted."""

MSGPACK_SHAPES: dict[str, Shape] = {
    "list[bytes]": (list[bytes], lambda count: _packed([b""] * count)),
    "list[bytearray]": (list[bytearray], lambda count: _packed([b""] * count)),
    "list[memoryview]": (list[memoryview], lambda count: _packed([b""] * count)),
    "list[datetime]: timestamps": (
        list[dt.datetime],
        lambda count: b"\xdd" + struct.pack(">I", count) + b"\xd6\xff\0\0\0\1" * count,
    ),
    "Any: timestamps": (Any, lambda count: b"\xdd" + struct.pack(">I", count) + b"\xd6\xff\0\0\0\1" * count),
    "Any: one key again and again": (Any, lambda count: b"\xdf" + struct.pack(">I", count) + b"\xa1a\1" * count),
    MORE_THAN_THERE_IS: (
        Any,
        lambda count: b"\xdd\0\x0f\0\0" * (count // 8) + b"\0" * count,
    ),
    "Any: maps in maps, each full of keys": (Any, _chain),
}

JSON_SHAPES: dict[str, Shape] = {
    "list[bytes]": (list[bytes], lambda count: b"[" + b'"",' * count + b'""]'),
    "Any: long floats": (Any, lambda count: b"[" + b"1.2345678901234567e-300," * count + b"1]"),
    "Any: ints beside a huge one": (Any, lambda count: b"[" + b"1," * count + b"1e300]"),
    "Any: floats beside a huge one": (Any, lambda count: b"[" + b"1.5," * count + b"1e300]"),
    "Any: floats, all huge": (Any, lambda count: b"[" + b"1e300," * count + b"1]"),
    "Any: ints of 20 digits": (Any, lambda count: b"[" + b"12345678901234567890," * count + b"1]"),
    "Any: escapes": (Any, lambda count: b'"' + rb"\n" * count + b'"'),
    "Any: pairs of surrogates": (Any, lambda count: b'"' + rb"\ud83d\ude00" * count + b'"'),
    "Any: texts full of commas": (Any, lambda count: b"[" + b'",,",' * count + b'""]'),
    "Any: white space": (Any, lambda count: b"[" + b" " * count + b"1]"),
    "Any: brackets in texts": (Any, lambda count: b"[" + b'"[",' * count + b'""]'),
    "list[float]: NaN": (list[float], lambda count: b"[" + b'"NaN",' * count + b"1]"),
}
