"""JSON: the codec for other languages and for people; strict UTF-8, nothing beyond the standard."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any, NoReturn

from .._errors import DecodeError, EncodeError
from ._base import INT_MAX, MAX_CONTAINERS, MAX_DEPTH, MAX_VALUES, Bounds, Buffer
from ._cost import ENTRY, free_size, spending, take
from ._misfit import Misfit, TooMuch, below, in_range, misfit, step, unsendable

__all__ = ["Json"]

CAREFUL = 3
"""What each value counts more where a number may be out of range: where one has 19 digits, or an exponent of three."""

_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
_NUMBERS = bytes({43: 43, 69: 101, 101: 101}.get(code, 48 if 48 <= code <= 57 else 32) for code in range(256))
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_LONE_SURROGATE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]"
)
_KEYS = frozenset({str})
_HALF = INT_MAX // 2  # no need to look at a number below it
_SLOPE = dict(zip(b"[{]}", (1, 1, -1, -1), strict=True))


def _constant(text: str) -> NoReturn:
    raise Misfit(f"{text} is not JSON")


def _integer(text: str) -> int:
    if len(text) < 19:
        return int(text)
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


def _skeleton(data: bytes) -> bytes:
    """Return a text of JSON with a quote for each string, and without white space.

    At memory speed: no string is looked into. Of what is no JSON, and is refused later, it says nothing.
    """
    bare = data.replace(rb"\\", b"").replace(rb"\"", b"")
    return b'"'.join(bare.split(b'"')[::2]).translate(None, b" \t\n\r")


def _count(data: bytes) -> int:
    """Return how many values there are if no string holds brackets, commas or colons, and no list or map is empty."""
    return data.count(b",") + (ENTRY - 1) * data.count(b":") + data.count(b"[") + data.count(b"{")


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

    def __init__(
        self, *, max_depth: int = MAX_DEPTH, max_containers: int = MAX_CONTAINERS, max_values: int = MAX_VALUES
    ) -> None:
        self._max_depth = max_depth
        self._max_containers = max_containers
        self._max_values = max_values
        self._free = free_size(max_values, 1)
        self._cheap = min(max_depth, max_containers)

    def limited(self, bounds: Bounds) -> Json:
        """Return the same codec with these bounds."""
        other = copy.copy(self)
        Json.__init__(
            other, max_depth=bounds.max_depth, max_containers=bounds.max_containers, max_values=bounds.max_values
        )
        return other

    def encode(self, value: object, blobs: list[Buffer]) -> bytes:
        """Return the payload: compact, UTF-8."""
        try:
            if self._survey(value, 0) > self._max_containers:
                raise Misfit(f"more than {self._max_containers} lists and maps in one message (max_containers)")
            return _write(value).encode()
        except UnicodeEncodeError as error:
            raise EncodeError("$: text with a lone surrogate cannot be sent: decode it properly first") from error
        except Exception as error:  # whatever a value provokes is the fault of that value
            raise unsendable(error, "$") from error

    def decode(self, data: bytes | memoryview, blobs: Sequence[bytes]) -> object:
        """Return the value. Placeholders of buffers are resolved by the typed places that expect bytes."""
        try:
            data = bytes(data)
            text = str(data, "utf-8")
            if len(data) > self._free or spending.get() is not None:
                self._check_values(data)
            if data.count(b"[") + data.count(b"{") > self._cheap:
                self._check_shape(data)
            value = _read(self._decoder_for(data), text)
            if "\\u" in text and _SURROGATE.search(text):
                _check_pairs(text)
        except Exception as error:  # whatever foreign bytes provoke is the fault of those bytes
            raise DecodeError(f"$: not JSON that is accepted here: {misfit(error).text}") from error
        return value

    def _decoder_for(self, data: bytes) -> json.JSONDecoder:
        if not _is_large_number_in(data):
            return _plain
        if len(data) > self._free:  # where each number goes through a function of ours, that is worth a second look
            if not _is_large_number_in(_skeleton(data)):
                return _plain
            take(spending.get() or [self._max_values], CAREFUL * (data.count(b",") + 1))
        return _careful

    def _check_shape(self, data: bytes) -> None:
        """Bound depth and number of containers before any of them is built."""
        skeleton = _skeleton(data).translate(None, _NO_BRACKET)
        if skeleton.count(b"[") + skeleton.count(b"{") > self._max_containers:
            raise TooMuch(f"more than {self._max_containers} lists and maps in one message (max_containers)")
        if max(accumulate(map(_SLOPE.__getitem__, skeleton)), default=0) > self._max_depth:
            raise TooMuch(f"nested more than {self._max_depth} deep (max_depth)")

    def _check_values(self, data: bytes) -> None:
        """Bound the number of values before any of them is built."""
        values = spending.get() or [self._max_values]
        count = _count(data)
        if count > values[0]:
            skeleton = _skeleton(data)
            count = _count(skeleton) - skeleton.count(b"[]") - skeleton.count(b"{}")
        take(values, count)

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


def _check_pairs(text: str) -> None:
    if _LONE_SURROGATE.search(text.replace("\\\\", "")):
        raise Misfit("text with a lone surrogate")


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
