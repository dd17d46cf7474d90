"""Values that hold no other values: numbers, text, bytes, moments, identifiers, enums and literals."""

from __future__ import annotations

import base64
import datetime as dt
import enum
import ipaddress
import math
import pathlib
import re
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any, get_args

from ._base import BLOB_SIZE, INT_MAX, INT_MIN, flat, incoming, outgoing
from ._forms import EVERY_KIND, Form, FormOf, Key, as_is, plain
from ._misfit import Misfit, expected, in_range

__all__ = ["enum_form", "literal_form", "scalar_forms"]

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


_ANY = Form("Any", as_is, as_is, EVERY_KIND, buffers=False, key=Key(_text_only, _text_only))


def _none() -> Form:
    def check(value: Any) -> None:
        if value is not None:
            raise expected("None", value)

    return Form("None", check, check, {"null"}, (type(None),), exact=type(None), scalar=True, buffers=False)


def _bool() -> Form:
    def check(value: Any) -> bool:
        if value is True or value is False:
            return value
        raise expected("bool", value)

    return Form("bool", check, check, {"bool"}, (bool,), exact=bool, scalar=True, buffers=False)


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
    form.key = Key(lambda value: str(in_range(int(dump(value)))), load_key)
    return form


def _real(value: Any) -> float:
    if isinstance(value, float):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and INT_MIN <= value <= INT_MAX:
        return float(value)
    raise expected("float", value)


def _float() -> Form:
    return Form("float", _real, _real, {"float"}, (float,), exact=float, scalar=True, buffers=False)


def _float_as_text() -> Form:
    """The form where numbers are finite: the three values that are not travel as text."""

    def dump(value: Any) -> float | str:
        number = _real(value)
        if math.isfinite(number):
            return number
        return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"

    def load(value: Any) -> float:
        return _NOT_FINITE[value] if isinstance(value, str) and value in _NOT_FINITE else _real(value)

    return Form("float", dump, load, {"float"}, (float,), scalar=True, buffers=False)


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
    return Form("datetime", dump, load, kinds, (dt.datetime,), buffers=False, key=Key(key, load_key))


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
    return Form(type_.__name__, dump, load, kinds, runtime, scalar=native and type_ is bytes)


def _base64(value: Any, name: str) -> bytes:
    try:
        return base64.b64decode(value if isinstance(value, str) else None, validate=True)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise expected(f"{name} as base64 text", value) from None


def _blob(value: dict[Any, Any]) -> bytes:
    blobs = incoming.get()
    index = value.get("$blob")
    if len(value) != 1 or type(index) is not int or not 0 <= index < len(blobs):
        raise expected("the number of a buffer that came with the message", value)
    return blobs[index]


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

    return Form(type_.__name__, dump, load, {"str"}, (type_,), buffers=False, key=Key(dump, load))


def _read_uuid(text: str) -> uuid.UUID:
    value = uuid.UUID(text)
    if str(value) != text.lower():
        raise ValueError(text)  # braces, "urn:uuid:" and missing hyphens are other spellings
    return value


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
    pathlib.Path: (str, pathlib.Path),
    pathlib.PurePath: (str, pathlib.PurePath),
    pathlib.PurePosixPath: (str, pathlib.PurePosixPath),
    ipaddress.IPv4Address: (str, ipaddress.IPv4Address),
    ipaddress.IPv6Address: (str, ipaddress.IPv6Address),
    ipaddress.IPv4Network: (str, ipaddress.IPv4Network),
    ipaddress.IPv6Network: (str, ipaddress.IPv6Network),
}


def enum_form(type_: type[enum.Enum]) -> Form:
    """Return the form of an enum: its values where all are text or all whole numbers, else its names."""
    members = list(type_)
    kinds = {type(member.value) for member in members}
    if issubclass(type_, enum.Flag):
        return _flag_form(type_)
    if not members:
        raise TypeError(f"the enum {type_.__name__} has no members: annotate with one that has")
    by_name = kinds not in ({str}, {int})
    wire: dict[Any, enum.Enum] = {member.name if by_name else member.value: member for member in members}
    what = str if by_name else members[0].value.__class__

    def dump(value: Any) -> Any:
        if isinstance(value, type_):
            return value.name if by_name else value.value
        raise expected(type_.__name__, value)

    def load(value: Any) -> enum.Enum:
        if type(value) is what and value in wire:
            return wire[value]
        raise expected(f"{type_.__name__} ({_choices(wire)})", value)

    texts = {str(key): member for key, member in wire.items()}

    def load_key(text: Any) -> enum.Enum:
        if isinstance(text, str) and text in texts:
            return texts[text]
        raise expected(f"{type_.__name__} ({_choices(texts)})", text)

    kind = "str" if what is str else "int"
    key = Key(lambda value: str(dump(value)), load_key)
    return Form(type_.__name__, dump, load, {kind}, (type_,), buffers=False, key=key)


def _choices(options: Any) -> str:
    shown = ", ".join(repr(option) for option in list(options)[:10])
    return f"one of {shown}{', ...' if len(options) > 10 else ''}"


def _flag_form(type_: type[enum.Flag]) -> Form:
    def dump(value: Any) -> int:
        if isinstance(value, type_):
            return int(value.value)
        raise expected(type_.__name__, value)

    def load(value: Any) -> enum.Flag:
        try:
            return type_(value if type(value) is int else None)
        except (ValueError, TypeError):
            raise expected(type_.__name__, value) from None

    return Form(type_.__name__, dump, load, {"int"}, (type_,), buffers=False)


def literal_form(type_: Any, form_of: FormOf) -> Form:
    """Return the form of `Literal[...]`: the plain values of its options, and nothing else."""
    options = get_args(type_)
    forms = [form_of(type(option)) for option in options]
    outgoing_: dict[Any, Any] = {}
    incoming_: dict[Any, Any] = {}
    for option, form in zip(options, forms, strict=True):
        wire = form.dump(option)
        outgoing_[type(option), option] = wire
        incoming_[type(wire), wire] = option

    def dump(value: Any) -> Any:
        return _pick(outgoing_, value, options)

    def load(value: Any) -> Any:
        return _pick(incoming_, value, options)

    kinds = {kind for form in forms for kind in form.kinds}
    runtime = tuple(dict.fromkeys(type(option) for option in options))
    scalar = all(form.scalar for form in forms)
    form = Form(f"Literal[{', '.join(map(repr, options))}]", dump, load, kinds, runtime, scalar=scalar, buffers=False)
    if {type(option) for option in options} == {str}:
        form.key = Key(dump, load)
    return form


def _pick(table: dict[Any, Any], value: Any, options: tuple[Any, ...]) -> Any:
    try:
        return table[type(value), value]
    except (KeyError, TypeError):
        raise expected(_choices(options), value) from None
