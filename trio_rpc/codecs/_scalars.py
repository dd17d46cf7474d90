"""Values that hold no other values: numbers, text, bytes, moments and identifiers."""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import math
import pathlib
import re
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from ._base import BLOB_SIZE, INT_MAX, INT_MIN, flat, incoming, outgoing
from ._cost import HOOK, charge, weigh_text
from ._forms import EVERY_KIND, Form, Key, as_is, plain
from ._misfit import Misfit, expected, in_range

__all__ = ["scalar_forms"]

_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,19})")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?(?:Infinity|s?NaN[0-9]*)")
_DURATION = re.compile(
    r"(-)?P(?:(\d{1,10})D)?(?:T(?:(\d{1,10})H)?(?:(\d{1,10})M)?(?:(\d{1,16})(?:\.(\d{1,6}))?S)?)?", re.ASCII
)
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def scalar_forms(native: frozenset[type], placeholder: Callable[[int], object]) -> dict[Any, Form]:
    """Return the forms of all scalar types, for a codec with these native types."""
    forms: dict[Any, Form] = {type_: _text_form(type_, *functions) for type_, functions in _TEXT.items()}
    forms |= {Any: _ANY, object: _ANY, None: _none(), type(None): _none(), bool: _bool(), int: _int(), str: _str()}
    forms[float] = _float() if bytes in native else _float_as_text()
    forms[dt.datetime] = _datetime(dt.datetime in native)
    for type_, convert in (bytes, bytes), (bytearray, bytearray), (memoryview, memoryview):
        forms[type_] = _bytes(type_, convert, bytes in native, placeholder)
    return forms


def _text_only(key: Any) -> str:
    if isinstance(key, str):
        return key
    raise Misfit(f"a {type(key).__name__} key in an untyped place: annotate it, as in dict[int, str]")


_ANY = Form("Any", as_is, as_is, EVERY_KIND, buffers=False, key=Key(_text_only, _text_only), weight=0, dense=2)


def _none() -> Form:
    def check(value: Any) -> None:
        if value is not None:
            raise expected("None", value)

    form = Form("None", check, check, {"null"}, (type(None),), exact=type(None), scalar=True, buffers=False)
    form.weight, form.dense = 0, 1
    return form


def _bool() -> Form:
    def check(value: Any) -> bool:
        if value is True or value is False:
            return value
        raise expected("bool", value)

    return Form("bool", check, check, {"bool"}, (bool,), exact=bool, scalar=True, buffers=False, weight=0, dense=1)


def _str() -> Form:
    form = plain("str", str)
    form.key = Key(form.dump, form.load)
    return form


def _int() -> Form:
    form = plain("int", int)

    def dump(value: Any) -> int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise expected("int", value)

    def load_key(text: Any) -> int:
        if isinstance(text, str) and _INTEGER.fullmatch(text) and INT_MIN <= (value := int(text)) <= INT_MAX:
            return value
        raise expected("int as text", text)

    form.dump = dump
    form.key = Key(lambda value: str(in_range(int(dump(value)))), load_key, weight=5)
    return form


def _real(value: Any) -> float:
    if isinstance(value, float):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and INT_MIN <= value <= INT_MAX:
        return float(value)
    raise expected("float", value)


def _float() -> Form:
    form = Form("float", _real, _real, {"float"}, (float,), exact=float, scalar=True, buffers=False)
    form.weight, form.dense = HOOK, 2 + HOOK
    return form


def _float_as_text() -> Form:
    """The form where numbers are finite: the three values that are not travel as text."""

    def dump(value: Any) -> float | str:
        number = _real(value)
        if math.isfinite(number):
            return number
        return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"

    def load(value: Any) -> float:
        return _NOT_FINITE[value] if isinstance(value, str) and value in _NOT_FINITE else _real(value)

    return Form(
        "float",
        dump,
        load,
        {"float"},
        (float,),
        scalar=True,
        buffers=False,
        kept=frozenset({float}),
        weight=HOOK,
        dense=2 + HOOK,
    )


def _datetime(native: bool) -> Form:
    """Aware moments come back equal, in UTC; naive ones stay naive, and always travel as text."""

    def key(value: Any) -> str:
        if not isinstance(value, dt.datetime):
            raise expected("datetime", value)
        if value.utcoffset() is None:
            return value.replace(tzinfo=None).isoformat()
        return value.astimezone(dt.UTC).isoformat()

    def dump(value: Any) -> Any:
        if native and isinstance(value, dt.datetime) and value.utcoffset() is not None:
            return value
        return key(value)

    def load_key(text: Any) -> dt.datetime:
        try:
            if not isinstance(text, str) or len(text) <= len("2000-01-01"):
                raise ValueError
            value = dt.datetime.fromisoformat(text)
            return value if value.tzinfo is None else value.astimezone(dt.UTC)
        except (ValueError, OverflowError):
            raise expected("datetime as ISO 8601 text", text) from None

    def load(value: Any) -> dt.datetime:
        return value if type(value) is dt.datetime else load_key(value)

    kinds = {"str", "datetime"} if native else {"str"}
    form = Form("datetime", dump, load, kinds, (dt.datetime,), buffers=False, key=Key(key, load_key, weight=6))
    form.kept = frozenset({dt.datetime}) if native else frozenset()
    form.weight, form.dense = weigh_text(6, least=5 if native else 10)
    return form


def _bytes(type_: type, convert: Callable[[Any], Any], native: bool, placeholder: Callable[[int], object]) -> Form:
    def dump(value: Any) -> Any:
        if not isinstance(value, bytes | bytearray | memoryview):
            raise expected(type_.__name__, value)
        if isinstance(value, memoryview):
            value = flat(value)
        if len(value) >= BLOB_SIZE and (blobs := outgoing.get()) is not None:
            blobs.append(value)
            return placeholder(len(blobs) - 1)
        return value if native else base64.b64encode(value).decode()

    def load(value: Any) -> Any:
        if type(value) is bytes:
            return convert(value)
        if native:
            raise expected(type_.__name__, value)
        return convert(_blob(value) if isinstance(value, dict) else _base64(value, type_.__name__))

    kinds = {"bytes"} if native else {"str", "map"}
    runtime = (bytes, bytearray, memoryview) if type_ is bytes else (type_,)
    form = Form(type_.__name__, dump, load, kinds, runtime, scalar=native and type_ is bytes)
    form.weight, form.dense = weigh_text((HOOK if native else 8) + (14 if type_ is memoryview else 0), least=1)
    return form


def _base64(value: Any, name: str) -> bytes:
    try:
        return base64.b64decode(value if isinstance(value, str) else None, validate=True)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise expected(f"{name} as base64 text", value) from None


def _blob(value: dict[Any, Any]) -> bytes:
    blobs = incoming.get([])
    index = value.get("$blob")
    if len(value) != 1 or type(index) is not int or not 0 <= index < len(blobs) or (blob := blobs[index]) is None:
        raise expected("the number of a buffer that came with the message, and has one place", value)
    blobs[index] = None
    return blob


def _text_form(type_: type, write: Callable[[Any], str], read: Callable[[str], Any]) -> Form:
    def dump(value: Any) -> str:
        if isinstance(value, type_) and not isinstance(value, dt.datetime):
            return write(value)
        raise expected(type_.__name__, value)

    def load(text: Any) -> Any:
        if not isinstance(text, str):
            raise expected(f"{type_.__name__} as text", text)
        try:
            return read(text)
        except (ValueError, OverflowError, ArithmeticError):
            raise expected(f"{type_.__name__} as text", text) from None

    weight, least = _COSTS[type_]
    form = Form(type_.__name__, dump, load, {"str"}, (type_,), buffers=False, key=Key(dump, load, weight))
    form.weight, form.dense = weigh_text(weight, least)
    return form


def _read_uuid(text: str) -> uuid.UUID:
    value = uuid.UUID(text)
    if str(value) != text.lower():
        raise ValueError(text)  # braces, "urn:uuid:" and missing hyphens are other spellings
    return value


def _in_parts(text: str) -> str:
    """Return the text of a path, when its parts have been counted: each becomes a text of its own."""
    if (parts := text.count("/")) > 10:
        charge(2 * parts)
    return text


def _read_decimal(text: str) -> Decimal:
    if not _DECIMAL.fullmatch(text):
        raise ValueError(text)
    return Decimal(text)


def _write_duration(value: dt.timedelta) -> str:
    sign, span = ("-", -value) if value < dt.timedelta() and value != dt.timedelta.min else ("", value)
    if span.days < 0:
        raise Misfit("the smallest timedelta of all has no text")
    fraction = f".{span.microseconds:06d}".rstrip("0") if span.microseconds else ""
    return f"{sign}P{span.days}DT{span.seconds}{fraction}S"


def _read_duration(text: str) -> dt.timedelta:
    match = _DURATION.fullmatch(text)
    if match is None or text[-1] in "PT":
        raise ValueError(text)
    sign, days, hours, minutes, seconds, fraction = match.groups()
    span = dt.timedelta(
        days=int(days or 0),
        hours=int(hours or 0),
        minutes=int(minutes or 0),
        seconds=int(seconds or 0),
        microseconds=int((fraction or "").ljust(6, "0")),
    )
    return -span if sign else span


_TEXT: dict[type, tuple[Callable[[Any], str], Callable[[str], Any]]] = {
    dt.date: (dt.date.isoformat, dt.date.fromisoformat),
    dt.time: (dt.time.isoformat, dt.time.fromisoformat),
    dt.timedelta: (_write_duration, _read_duration),
    uuid.UUID: (str, _read_uuid),
    Decimal: (str, _read_decimal),
    pathlib.Path: (str, lambda text: pathlib.Path(_in_parts(text))),
    pathlib.PurePath: (str, lambda text: pathlib.PurePath(_in_parts(text))),
    pathlib.PurePosixPath: (str, lambda text: pathlib.PurePosixPath(_in_parts(text))),
    ipaddress.IPv4Address: (str, ipaddress.IPv4Address),
    ipaddress.IPv6Address: (str, ipaddress.IPv6Address),
    ipaddress.IPv4Network: (str, ipaddress.IPv4Network),
    ipaddress.IPv6Network: (str, ipaddress.IPv6Network),
}


_COSTS: dict[type, tuple[int, int]] = {
    dt.date: (2, 9),
    dt.time: (3, 3),
    dt.timedelta: (28, 4),
    uuid.UUID: (28, 37),
    Decimal: (8, 2),
    pathlib.Path: (28, 1),
    pathlib.PurePath: (28, 1),
    pathlib.PurePosixPath: (28, 1),
    ipaddress.IPv4Address: (28, 8),
    ipaddress.IPv6Address: (60, 3),
    ipaddress.IPv4Network: (80, 8),
    ipaddress.IPv6Network: (110, 3),
}
"""What one value counts, in units of 65 ns, and how few bytes it takes with its header."""
