"""MessagePack: the default codec, exact for bytes and aware datetimes."""

from __future__ import annotations

import copy
import datetime as dt
import struct
import types
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import msgpack

from .._errors import DecodeError
from ._base import BLOB_SIZE, MAX_CONTAINERS, MAX_DEPTH, MAX_VALUES, Bounds, Buffer, flat
from ._cost import ENTRY, free_size, spending, take
from ._fast import INSTALLED, Fast
from ._misfit import Misfit, TooMuch, below, in_range, misfit, step, unsendable

__all__ = ["MessagePack"]

BLOB_EXT = 1
"""The ext type that stands for a large buffer; its four bytes are the buffer's index, big-endian."""

KEPT_PACKER = BLOB_SIZE
"""A packer keeps the memory of its largest message: one that wrote more than this is not kept."""

_HEADERS = bytes([*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF])
"""Every first byte of an array or a map."""

SHORT = 4096
"""Bytes up to which neither what may be announced nor the number of values is worth a look."""

ROOM = 1024 * 1024
"""Items that may be announced in all, before it is known that they are there: each takes 8 bytes at once."""

_LEAVES = (bool, str, float, bytes, bytearray, memoryview, type(None), msgpack.ExtType)


def _own_depth() -> int:
    """Return how deep an unpacker goes before its own StackError, or 0 where that is no fixed number."""
    if isinstance(msgpack.Unpacker.skip, types.FunctionType):
        return 0  # msgpack's pure-Python form recurses: its depth is what the caller's stack leaves
    low, high = 1, 1 << 14
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _nests(middle) else (low, middle - 1)
    return low if low < 1 << 14 else 0


def _nests(depth: int) -> bool:
    try:
        msgpack.unpackb(b"\x91" * depth + b"\xc0")
    except msgpack.StackError:
        return False
    return True


_OWN_DEPTH = _own_depth()


class MessagePack:
    """The `msgpack` codec.

    Untyped places carry bytes as bytes and aware datetimes as Timestamps (they come back in UTC). Map keys are
    text; of a key that occurs twice the last one counts. Both directions hold the same limits.

    Where msgspec is installed it does the work of those forms that it does just so: same bytes, same values, and the
    same refusals. `fast=False` leaves it out; the `repr` tells.
    """

    name = "msgpack"
    native: frozenset[type] = frozenset({bytes, dt.datetime})

    def __init__(
        self,
        *,
        max_depth: int = MAX_DEPTH,
        max_containers: int = MAX_CONTAINERS,
        max_values: int = MAX_VALUES,
        fast: bool = INSTALLED,
    ) -> None:
        self._max_depth = max_depth
        self._max_containers = max_containers
        self._max_values = max_values
        self._cheap = min(max_depth, max_containers)
        self._free = free_size(max_values, 1)
        self._short = min(SHORT, self._free)
        self._prefix = b"\x91" * max(0, _OWN_DEPTH - max_depth)
        # Packers are lent: each call takes one out, so that threads never share one, and one that raised (its
        # buffer holds half a message) is simply not put back. list.pop and list.append are atomic.
        self._packers: list[msgpack.Packer] = []
        self.fast: Fast | None = Fast(self.encode, max_depth, max_containers, _containers) if fast else None

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {'msgspec where the types allow, else msgpack' if self.fast else 'msgpack'}>"

    def limited(self, bounds: Bounds) -> MessagePack:
        """Return the same codec with these bounds."""
        other = copy.copy(self)
        MessagePack.__init__(
            other,
            max_depth=bounds.max_depth,
            max_containers=bounds.max_containers,
            max_values=bounds.max_values,
            fast=self.fast is not None,
        )
        return other

    def placeholder(self, index: int) -> object:
        """Return what stands in the payload for `blobs[index]`."""
        return msgpack.ExtType(BLOB_EXT, struct.pack(">I", index))

    def encode(self, value: object, blobs: list[Buffer]) -> bytes:
        """Return the payload; buffers of 64 KiB and more that are in an untyped place join `blobs`, uncopied."""
        try:
            try:
                packer = self._packers.pop()
            except IndexError:
                packer = msgpack.Packer(datetime=True, autoreset=True)
            data: bytes = packer.pack(value)
            if len(data) <= KEPT_PACKER:
                self._packers.append(packer)
            size = len(data)
            # `_containers` in place: two calls less in every message of more than 64 bytes
            if size > self._cheap and (size > BLOB_SIZE or size - len(data.translate(None, _HEADERS)) > self._cheap):
                return self._within_limits(value, data, blobs)
            return data
        except Exception as error:  # whatever a value provokes is the fault of that value
            raise unsendable(_explain(value, error), "$") from error

    def decode(self, data: bytes | memoryview, blobs: Sequence[bytes]) -> object:
        """Return the value; a placeholder becomes its buffer, and every buffer must have one."""
        try:
            if (size := len(data)) > self._cheap:
                if type(data) is not bytes:
                    data = bytes(data)
                if size > self._short or size - len(data.translate(None, _HEADERS)) > self._cheap:
                    return self._unpack(data, blobs, self._hooks(data))
            if blobs:
                return self._unpack(data, blobs, {})
            value: object = msgpack.unpackb(data, timestamp=3, ext_hook=_no_ext)
            return value
        except Exception as error:  # whatever foreign bytes provoke is the fault of those bytes
            raise DecodeError(_refusal(error)) from error

    def _within_limits(self, value: object, data: bytes, blobs: list[Buffer]) -> bytes:
        """Return the payload, with its large buffers taken out; Misfit if it holds or nests too many containers."""
        if len(data) > BLOB_SIZE and (lifted := self._lift(value, blobs)) is not value:
            data = msgpack.packb(lifted, datetime=True)
        if _containers(data) > self._cheap:
            self._check_count(data, self._hooks(data, reading=False))
        return data

    def _unpack(self, data: bytes | memoryview, blobs: Sequence[bytes], hooks: dict[str, Any]) -> object:
        used: set[int] = set()

        def blob(code: int, body: bytes) -> bytes:
            if code != BLOB_EXT or len(body) != 4:
                _no_ext(code, body)
            index: int = struct.unpack(">I", body)[0]
            if index >= len(blobs):
                raise Misfit(f"buffer {index} did not come with the message")
            if index in used:  # it would be copied for each of its places, and there may be a hundred thousand
                raise Misfit(f"buffer {index} has two places in the message")
            used.add(index)
            return blobs[index]

        value = msgpack.unpackb(data, timestamp=3, ext_hook=blob, **hooks)
        if len(used) != len(blobs):
            raise Misfit(f"{len(blobs) - len(used)} of {len(blobs)} buffers have no place in the message")
        return value

    def _hooks(self, data: bytes, *, reading: bool = True) -> dict[str, Any]:
        """Check depth, and return the hooks that count containers and values where there may be too many."""
        headers = _containers(data)
        if headers > self._max_depth or headers * len(data) > ROOM:
            self._check_depth(data)
        if reading and self._is_counted(data):
            return self._value_hooks(spending.get() or [self._max_values], len(data))
        if headers <= self._max_containers:
            return {}
        left = iter(range(self._max_containers))

        def budget(container: Any) -> Any:
            if next(left, None) is None:
                raise self._too_many()
            return container

        return {"list_hook": budget, "object_hook": budget}

    def _is_counted(self, data: bytes) -> bool:
        """Whether its values are to be counted: whether they may be too many, with what becomes of them or without."""
        return len(data) > self._free or spending.get() is not None

    def _value_hooks(self, values: list[int], size: int) -> dict[str, Any]:
        """Return the hooks that count containers and what is in them, and refuse one that announces more than may be."""
        left = iter(range(self._max_containers))

        def items(found: list[Any]) -> list[Any]:
            if next(left, None) is None:
                raise self._too_many()
            take(values, len(found))
            return found

        def entries(found: dict[str, Any]) -> dict[str, Any]:
            if next(left, None) is None:
                raise self._too_many()
            take(values, ENTRY * len(found))
            return found

        most = {"max_array_len": min(size, values[0]), "max_map_len": min(size, values[0] // ENTRY)}
        return {"list_hook": items, "object_hook": entries, **most}

    def _too_many(self) -> Misfit:
        return TooMuch(f"more than {self._max_containers} lists and maps in one message (max_containers)")

    def _check_depth(self, data: bytes) -> None:
        """Walk the bytes without building anything; refuse them if they nest too deeply or are no whole message.

        One-element arrays in front use up the unpacker's own stack, all but `max_depth` of it. As this walk also
        finds arrays that announce more than there is, no memory is ever taken for those.
        """
        if not self._prefix:
            _walk_depth(msgpack.unpackb(data, strict_map_key=False, ext_hook=msgpack.ExtType), self._max_depth)
            return
        unpacker = msgpack.Unpacker(max_buffer_size=len(self._prefix) + len(data))
        unpacker.feed(self._prefix + data)
        unpacker.skip()

    def _check_count(self, data: bytes, hooks: dict[str, Any]) -> None:
        if hooks:
            msgpack.unpackb(data, strict_map_key=False, timestamp=0, ext_hook=msgpack.ExtType, **hooks)

    def _lift(self, value: Any, blobs: list[Buffer]) -> Any:
        """Return `value` with placeholders for its large buffers, or `value` itself if it has none."""
        if isinstance(value, memoryview):
            value = flat(value)
        if isinstance(value, bytes | bytearray | memoryview):
            if len(value) < BLOB_SIZE:
                return value
            blobs.append(value)
            return self.placeholder(len(blobs) - 1)
        if isinstance(value, dict):
            return _changed(value, {key: self._lift(item, blobs) for key, item in value.items()}, dict.values)
        if isinstance(value, list | tuple) and not isinstance(value, msgpack.ExtType):
            return _changed(value, [self._lift(item, blobs) for item in value], iter)
        return value


def _containers(data: bytes | memoryview) -> int:
    """Return how many bytes look like a container's header, at memory speed.

    Text and numbers hold such bytes too, so that is an upper bound, which small messages never reach.
    """
    data = bytes(data)
    return len(data) - len(data.translate(None, _HEADERS))


def _changed(old: Any, new: Any, items: Callable[[Any], Any]) -> Any:
    same = all(one is other for one, other in zip(items(old), items(new), strict=True))
    return old if same else new


def _no_ext(code: int, body: bytes) -> NoReturn:
    raise Misfit(f"extension type {code} ({len(body)} bytes) is not known here")


def _walk_depth(value: Any, max_depth: int) -> None:
    level = [value]
    for _ in range(max_depth + 1):
        level = [item for item in level if isinstance(item, list | dict)]
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
        if not level:
            return
    raise Misfit(f"nested more than {max_depth} deep (max_depth)")


def _refusal(error: Exception) -> str:
    if isinstance(error, msgpack.StackError | RecursionError):
        return "$: nested too deeply"
    if isinstance(error, msgpack.OutOfData):
        return "$: not a whole MessagePack value: it ends too early"
    if "exceeds max_array_len" in str(error) or "exceeds max_map_len" in str(error):
        return "$: more values than there are bytes for them, or than max_values allows in one message: send them as a stream, or raise it for who reads"
    if "strict_map_key" in str(error):
        return "$: a map key is not text: annotate the place, as in dict[int, str], on both sides"
    return f"$: not a MessagePack value that is accepted here: {misfit(error).text}"


def _explain(value: object, error: Exception) -> Exception:
    """Return what is wrong with a value that the packer refused, with the path of the culprit."""
    try:
        _find(value, 0)
    except Misfit as fault:
        return fault
    return Misfit("nested too deeply") if isinstance(error, msgpack.StackError) else error


def _find(value: Any, depth: int) -> None:
    """Raise the Misfit of the first thing in `value` that MessagePack does not carry."""
    if depth > 2 * MAX_DEPTH:
        raise Misfit("nested too deeply")
    if isinstance(value, dict):
        for key, item in value.items():
            _find_below(key, step(key), depth)
            _find_below(item, step(key), depth)
    elif isinstance(value, list | tuple) and not isinstance(value, msgpack.ExtType):
        for index, item in enumerate(value):
            _find_below(item, f"[{index}]", depth)
    else:
        _check_leaf(value)


def _find_below(value: Any, where: str, depth: int) -> None:
    try:
        _find(value, depth + 1)
    except Misfit as fault:
        raise below(fault, where) from None


def _check_leaf(value: Any) -> None:
    if isinstance(value, str):
        _check_text(value)
    elif isinstance(value, int):
        in_range(value)
    elif isinstance(value, dt.datetime):
        if value.utcoffset() is None:
            raise Misfit("a naive datetime in an untyped place: annotate it as datetime, or give it a time zone")
    elif not isinstance(value, _LEAVES):
        raise Misfit(f"{type(value).__name__} in an untyped place: annotate it with its type")


def _check_text(value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Misfit("text with a lone surrogate cannot be sent: decode it properly first") from None
