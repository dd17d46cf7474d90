"""JSON: the codec for other languages and for people; strict UTF-8, nothing beyond the standard."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any, NoReturn

from .._errors import DecodeError, EncodeError
from ._base import INT_MAX, MAX_CONTAINERS, MAX_DEPTH, Buffer
from ._misfit import Misfit, below, in_range, misfit, step

__all__ = ["Json"]

_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
_NUMBERS = bytes({43: 43, 69: 101, 101: 101}.get(code, 48 if 48 <= code <= 57 else 32) for code in range(256))
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_KEYS = frozenset({str})
_HALF = INT_MAX // 2  # no need to look at a number below it
_SLOPE = dict(zip(b"[{]}", (1, 1, -1, -1), strict=True))


def _constant(text: str) -> NoReturn:
    raise Misfit(f"{text} is not JSON")


def _integer(text: str) -> int:
    return in_range(int(text) if len(text) <= 20 else INT_MAX + 1)


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise Misfit("a number is out of range")
    return value


_plain = json.JSONDecoder(parse_constant=_constant)
_careful = json.JSONDecoder(parse_constant=_constant, parse_int=_integer, parse_float=_float)
_write = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")).encode


def _is_large_number_in(data: bytes) -> bool:
    """Whether a number may be out of range: all digits become 0, and what is long is found at memory speed."""
    numbers = data.translate(_NUMBERS)
    return b"0000000000000000000" in numbers or b"e000" in numbers or b"e+000" in numbers


def _read(decoder: json.JSONDecoder, text: str) -> Any:
    """Return `decoder.decode(text)`, without its search for white space at both ends where there is none."""
    if text[:1] > " ":
        value, end = decoder.raw_decode(text)
        if end == len(text):
            return value
    return decoder.decode(text)


class Json:
    """The `json` codec.

    Refused, both ways: NaN and Infinity as numbers, integers beyond 64 bits, lone surrogates, anything but UTF-8
    without a byte order mark. Of a key that occurs twice the last one counts. Untyped places carry what JSON has.
    """

    name = "json"

    def __init__(self, *, max_depth: int = MAX_DEPTH, max_containers: int = MAX_CONTAINERS) -> None:
        self._max_depth = max_depth
        self._max_containers = max_containers
        self._cheap = min(max_depth, max_containers)

    def encode(self, value: object, blobs: list[Buffer]) -> bytes:
        """Return the payload: compact, UTF-8."""
        try:
            if self._survey(value, 0) > self._max_containers:
                raise Misfit(f"more than {self._max_containers} lists and maps in one message")
            return _write(value).encode()
        except UnicodeEncodeError as error:
            raise EncodeError("$: text with a lone surrogate cannot be sent: decode it properly first") from error
        except Exception as error:  # whatever a value provokes is the fault of that value
            raise EncodeError(misfit(error).at("$")) from error

    def decode(self, data: bytes | memoryview, blobs: Sequence[bytes]) -> object:
        """Return the value. Placeholders of buffers are resolved by the typed places that expect bytes."""
        try:
            data = bytes(data)
            text = str(data, "utf-8")
            if data.count(b"[") + data.count(b"{") > self._cheap:
                self._check_shape(data)
            value = _read(_careful if _is_large_number_in(data) else _plain, text)
            if "\\u" in text and _SURROGATE.search(text):
                _write(value).encode()  # only whole pairs survive this
        except Exception as error:  # whatever foreign bytes provoke is the fault of those bytes
            raise DecodeError(f"$: not JSON that is accepted here: {misfit(error).text}") from error
        return value

    def _check_shape(self, data: bytes) -> None:
        """Bound depth and number of containers before any of them is built."""
        skeleton = _STRINGS.sub(b"", data).translate(None, _NO_BRACKET)
        if skeleton.count(b"[") + skeleton.count(b"{") > self._max_containers:
            raise Misfit(f"more than {self._max_containers} lists and maps in one message")
        if max(accumulate(map(_SLOPE.__getitem__, skeleton)), default=0) > self._max_depth:
            raise Misfit(f"nested more than {self._max_depth} deep")

    def _survey(self, value: Any, depth: int) -> int:
        """Return the number of containers; Misfit for what JSON would carry as something else, or not at all."""
        items: Iterable[tuple[Any, Any]]
        name: Callable[[Any], str]
        if isinstance(value, dict):
            items, name = value.items(), step
            if not _KEYS.issuperset(map(type, value)):
                _check_keys(value)
        elif isinstance(value, list | tuple):
            items, name = enumerate(value), _index
        else:
            _check_leaf(value)
            return 0
        if depth >= self._max_depth:
            raise Misfit("nested too deeply")
        total = 1
        for key, item in items:
            kind = type(item)
            if kind is str or kind is bool or item is None or (kind is int and -_HALF < item < _HALF):
                continue
            try:
                total += self._survey(item, depth + 1)
            except Misfit as fault:
                raise below(fault, name(key)) from None
        return total


def _index(index: object) -> str:
    return f"[{index}]"


def _check_keys(value: dict[Any, Any]) -> None:
    for key in value:
        if not isinstance(key, str):
            fault = Misfit(f"a {type(key).__name__} key in an untyped place: annotate it, as in dict[int, str]")
            raise below(fault, step(key))


def _check_leaf(value: Any) -> None:
    if value is None or isinstance(value, str | bool):
        return
    if isinstance(value, int):
        in_range(value)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise Misfit(f"{value} in an untyped place is not JSON: annotate it as float")
    else:
        raise Misfit(f"{type(value).__name__} in an untyped place is not JSON: annotate it with its type")
