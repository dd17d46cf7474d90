"""The `fast` extra: msgspec in front of the default path, where both are known to agree.

A form whose parts are plain (numbers, text, bytes, what travels as one of these, lists, maps with text keys, tuples,
`X | None`, classes with fields) gets a mirror: a type from which msgspec makes a decoder that accepts no more than the
form's own `load`. A class is mirrored by a Struct that refuses unknown keys, and its instances are made by the very
call that the default path uses, so that converters, validators and an `__init__` of one's own run as they always do.
What msgspec refuses (whatever the reason: a missing field that has a default, a key of a newer peer, a bad value) goes
the default way, which accepts it, or says in its own words what is wrong.

On the way out the value goes through the form's `dump` as ever; msgspec only writes the plain value that comes of it.
Untyped places are left alone: msgspec would write sets, UUIDs or dataclasses that the default path refuses, and read
maps with keys that are no text. JSON as well: msgspec writes 1e16 where Python writes 1e+16.

Measured for a call that takes and returns an attrs class of three fields, one a list of eight numbers: all its codec
work, of both sides, takes 3.1 us instead of 5.1 us; for `(str, int) -> int` 0.8 us instead of 1.35 us.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import GenericAlias
from typing import Any, TypeAlias

import attrs

from ._base import Buffer, Codec
from ._forms import Form, Hook, Parts
from ._misfit import Misfit

try:
    import msgspec as _msgspec
except ImportError:  # the extra is not installed
    msgspec: Any = None
else:
    msgspec = _msgspec

__all__ = ["INSTALLED", "Fast", "fast_of"]

INSTALLED = msgspec is not None

Encode: TypeAlias = Callable[[Any, list[Buffer]], bytes]
Payload: TypeAlias = bytes | memoryview
Read: TypeAlias = Callable[[Payload], Any]

_EXACT = (int, str, float, bool, type(None))
_KINDS = {"str": str, "int": int, "bytes": bytes}


@attrs.frozen
class _Mirror:
    """What msgspec decodes, what makes the value of that (None: it is the value), and how deep that nests."""

    type: Any
    thaw: Hook | None = None
    depth: int = 0


class Fast:
    """Quick readers and writers for the forms of one codec.

    Args:
        encode: the default path, for what msgspec does not take.
        max_depth: forms that nest more deeply are left to the default path, ...
        max_containers: ... and so are payloads that may hold more lists and maps, ...
        containers: ... of which this returns an upper bound.
    """

    def __init__(
        self, encode: Encode, max_depth: int, max_containers: int, containers: Callable[[Payload], int]
    ) -> None:
        if not INSTALLED:
            raise ImportError("msgspec is not installed: install trio-rpc[fast], or leave `fast` out")
        self._encode = encode
        self._max_depth = max_depth
        self._most = max_containers
        self._containers = containers
        self._write = msgspec.msgpack.Encoder().encode
        self._mirrors: dict[Form, _Mirror | None] = {}

    def encoder(self, forms: Sequence[Form]) -> Encode | None:
        """Return what encodes plain values that the `dump` of these forms made, alone or in one list.

        None if it could not be sure of each of them.
        """
        mirrors = [self._mirror(form) for form in forms]
        if not all(mirror and mirror.depth < self._max_depth for mirror in mirrors):
            return None
        write, most, containers, default = self._write, self._most, self._containers, self._encode

        def encode(value: Any, blobs: list[Buffer]) -> bytes:
            if not blobs:
                try:
                    data: bytes = write(value)
                    if len(data) <= most or containers(data) <= most:
                        return data
                except Exception:  # the default path knows better, or says what is wrong
                    pass
            return default(value, blobs)

        return encode

    def reader(self, form: Form) -> Read | None:
        """Return what decodes a payload without buffers straight into a value; it raises where it is not sure."""
        return self._reader(self._mirror(form))

    def readers(self, forms: Sequence[Form], least: int) -> dict[int, Read]:
        """Return a reader for each number of positional arguments, by the first byte of the payload."""
        found = {}
        for count in range(least, min(len(forms), 15) + 1):
            if read := self._reader(self._made(_tuple_of(forms[:count]))):
                found[0x90 | count] = read
        return found

    def _reader(self, mirror: _Mirror | None) -> Read | None:
        if mirror is None or mirror.depth > self._max_depth:
            return None
        decode, thaw = msgspec.msgpack.Decoder(mirror.type).decode, mirror.thaw
        most, containers = self._most, self._containers

        def read(payload: Payload) -> Any:
            if len(payload) > most and containers(payload) > most:
                raise Misfit("this may hold too many lists and maps")
            value = decode(payload)
            return value if thaw is None else thaw(value)

        return read

    def _mirror(self, form: Form) -> _Mirror | None:
        """Return the mirror of a form, or None if it has none; a class that holds itself has none."""
        try:
            return self._mirrors[form]
        except KeyError:
            self._mirrors[form] = None
            mirror = self._mirrors[form] = self._made(form)
            return mirror

    def _made(self, form: Form) -> _Mirror | None:
        if form.scalar and form.exact in _EXACT:
            return _Mirror(form.exact)
        if form.parts is None:
            (kind, *others) = form.kinds
            return _Mirror(_KINDS[kind], form.load) if kind in _KINDS and not others else None
        mirrors = []
        for part in form.parts.forms:
            if (mirror := self._mirror(part)) is None:
                return None
            mirrors.append(mirror)
        type_, thaw = _OF_KIND[form.parts.kind](form.parts, mirrors)
        deeper = form.parts.kind != "optional"
        return _Mirror(type_, thaw, max((mirror.depth for mirror in mirrors), default=0) + deeper)


def fast_of(codec: Codec) -> Fast | None:
    """Return the codec's own, if it has one."""
    fast = getattr(codec, "fast", None)
    return fast if isinstance(fast, Fast) else None


def _tuple_of(forms: Sequence[Form]) -> Form:
    return Form("arguments", tuple, tuple, {"array"}, (tuple,), parts=Parts("tuple", forms))


def _list(parts: Parts, mirrors: list[_Mirror]) -> tuple[Any, Hook | None]:
    (mirror,) = mirrors
    thaw, build = mirror.thaw, parts.build
    type_ = GenericAlias(list, (mirror.type,))
    if thaw is None:
        return type_, build
    if build is None:
        return type_, lambda values: [thaw(value) for value in values]
    return type_, lambda values: build([thaw(value) for value in values])


def _map(_: Parts, mirrors: list[_Mirror]) -> tuple[Any, Hook | None]:
    (mirror,) = mirrors
    thaw = mirror.thaw
    hook = None if thaw is None else lambda value: {key: thaw(item) for key, item in value.items()}
    return GenericAlias(dict, (str, mirror.type)), hook


def _optional(_: Parts, mirrors: list[_Mirror]) -> tuple[Any, Hook | None]:
    (mirror,) = mirrors
    thaw = mirror.thaw
    hook = None if thaw is None else lambda value: None if value is None else thaw(value)
    return mirror.type | None, hook


def _tuple(_: Parts, mirrors: list[_Mirror]) -> tuple[Any, Hook | None]:
    hooks = _hooks(mirrors)
    hook = (lambda values: tuple(_thawed(values, hooks))) if hooks else None
    return GenericAlias(tuple, tuple(mirror.type for mirror in mirrors)), hook


def _fields(parts: Parts, mirrors: list[_Mirror]) -> tuple[Any, Hook | None]:
    fields = [(name, mirror.type) for name, mirror in zip(parts.names, mirrors, strict=True)]
    struct = msgspec.defstruct("Mirror", fields, forbid_unknown_fields=True, gc=False)
    values_of, make, hooks = msgspec.structs.astuple, parts.build or tuple, _hooks(mirrors)
    if not hooks:
        return struct, lambda mirrored: make(*values_of(mirrored))
    return struct, lambda mirrored: make(*_thawed(values_of(mirrored), hooks))


def _hooks(mirrors: list[_Mirror]) -> list[tuple[int, Hook]]:
    return [(index, mirror.thaw) for index, mirror in enumerate(mirrors) if mirror.thaw is not None]


def _thawed(values: Iterable[Any], hooks: list[tuple[int, Hook]]) -> list[Any]:
    out = list(values)
    for index, thaw in hooks:
        out[index] = thaw(out[index])
    return out


_OF_KIND = {"list": _list, "map": _map, "tuple": _tuple, "optional": _optional, "fields": _fields}
