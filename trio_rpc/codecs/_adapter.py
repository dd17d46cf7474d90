"""Typed values to payloads and back, for one codec."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import cattrs

from .._errors import DecodeError
from ._arguments import ArgumentsCarrier, ParameterLike
from ._base import MAX_VALUES, Bounds, Buffer, Codec, get, receiving, sending
from ._containers import array_form
from ._converter import Types
from ._cost import free_size, measured, spending
from ._fast import fast_of
from ._forms import Form
from ._misfit import refusal, unsendable
from ._records import Fields

__all__ = ["Adapter", "Carrier", "adapter_for"]


class Carrier:
    """The values of one type, for one codec.

    Errors name the path to what does not fit, beginning at `$`. Buffers of 64 KiB and more are handed out beside the
    payload, uncopied: the caller must not change them until they are written.
    """

    def __init__(self, codec: Codec, form: Form, max_values: int = MAX_VALUES) -> None:
        self._codec = codec
        self._max_values = max_values
        self._form = form  # whose id names this carrier
        self._exact, self._dump, self._load = form.exact, form.dump, form.load
        self._untyped, self._buffers = form.untyped, form.buffers
        self._items = array_form("an array of items", form, (object,), list)
        self._free = free_size(max_values, self._items.dense)
        fast = fast_of(codec)
        self._encode = (fast.encoder([form]) if fast else None) or codec.encode
        self._read, self._read_many = (fast.reader(form), fast.reader(self._items)) if fast else (None, None)

    def encode(self, value: Any) -> tuple[bytes, list[Buffer]]:
        """Return payload and buffers. EncodeError if the value is not of the type, or cannot be sent."""
        blobs: list[Buffer] = []
        if type(value) is not self._exact and not self._untyped:
            try:
                value = sending(self._dump, value, blobs) if self._buffers else self._dump(value)
            except Exception as error:  # a user's own hook may raise anything
                raise unsendable(error, "$") from error
        return self._encode(value, blobs), blobs

    def decode(self, payload: bytes | memoryview, blobs: Sequence[bytes]) -> Any:
        """Return the value. DecodeError if the payload is not well-formed, breaks a limit, or is not of the type."""
        if (large := len(payload) > self._free) and spending.get() is None:
            return measured(self._max_values, partial(self.decode, payload, blobs))
        if self._read is not None and not blobs and not large:
            try:
                return self._read(payload)
            except Exception:  # the way below knows better, or says what is wrong
                pass
        try:
            value = self._codec.decode(payload, blobs)
        except DecodeError as error:
            error.malformed = True
            raise
        if type(value) is self._exact or self._untyped:
            return value
        try:
            return receiving(self._load, value, blobs) if blobs else self._load(value)
        except Exception as error:  # a user's own hook may raise anything
            raise refusal(error, "$") from error

    def encode_many(self, values: Sequence[Any]) -> tuple[bytes, list[Buffer]]:
        """Return one payload for several values, and their buffers; errors as in `encode`."""
        blobs: list[Buffer] = []
        try:
            wire = sending(self._items.dump, values, blobs)
        except Exception as error:  # a user's own hook may raise anything
            raise unsendable(error, "$") from error
        return self._encode(wire, blobs), blobs

    def decode_many(self, payload: bytes | memoryview, blobs: Sequence[bytes]) -> list[Any]:
        """Return what `encode_many` was given; errors as in `decode`."""
        if (large := len(payload) > self._free) and spending.get() is None:
            return measured(self._max_values, partial(self.decode_many, payload, blobs))
        if self._read_many is not None and not blobs and not large:
            try:
                items: list[Any] = self._read_many(payload)
                return items
            except Exception:  # the way below knows better, or says what is wrong
                pass
        try:
            wire = self._codec.decode(payload, blobs)
        except DecodeError as error:
            error.malformed = True
            raise
        try:
            return receiving(self._items.load, wire, blobs)
        except Exception as error:  # a user's own hook may raise anything
            raise refusal(error, "$") from error


class Adapter:
    """Types for one codec. Carriers are made once for each type and kept."""

    def __init__(self, codec: Codec, *, max_values: int = MAX_VALUES) -> None:
        self.codec = codec
        self._max_values = max_values
        self._types = Types(codec)
        self._carriers: dict[int, Carrier] = {}

    def limited(self, bounds: Bounds) -> Adapter:
        """Return an adapter for messages within these bounds. Hooks that a program registers hold for both."""
        limit = getattr(self.codec, "limited", None)
        other = copy.copy(self)
        other.codec = self.codec if limit is None else limit(bounds)
        other._max_values = bounds.max_values
        other._carriers = {}
        return other

    @property
    def converter(self) -> cattrs.Converter:
        """Where a program registers hooks for types of its own, before their first use."""
        return self._types.converter

    def carrier(self, type_: Any) -> Carrier:
        """Return the carrier of a type. TypeError, with a sentence that says what to write instead, if there is none."""
        form = self._types.form_of(type_)
        if (known := self._carriers.get(id(form))) is None:  # a carrier keeps its form, so that the id stays its own
            known = self._carriers.setdefault(id(form), Carrier(self.codec, form, self._max_values))
        return known

    def fields(self, cls: type) -> Fields:
        """Return the fields of an attrs class or dataclass, apart from the class. TypeError as in `carrier`."""
        return Fields(cls, self._types.form_of, self._max_values)

    def arguments(self, parameters: Iterable[ParameterLike], *, name: str) -> ArgumentsCarrier:
        """Return the carrier of a method's arguments; `name` is the method's, for messages. TypeError as in `carrier`."""
        return ArgumentsCarrier(self.codec, self._types.form_of, parameters, name, self._max_values)


_DEFAULT = Bounds()
_adapters: dict[tuple[str, Bounds], Adapter] = {}


def adapter_for(name: str, bounds: Bounds = _DEFAULT) -> Adapter:
    """Return the one adapter of the codec of that name within these bounds. LookupError if there is no such codec.

    The default bounds leave the codec as it was registered.
    """
    try:
        return _adapters[name, bounds]
    except KeyError:
        made = Adapter(get(name)) if bounds == _DEFAULT else adapter_for(name).limited(bounds)
        return _adapters.setdefault((name, bounds), made)
