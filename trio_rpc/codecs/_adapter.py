"""Typed values to payloads and back, for one codec."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import cattrs

from .._errors import DecodeError, EncodeError
from ._arguments import ArgumentsCarrier, ParameterLike
from ._base import Buffer, Codec, get, receiving, sending
from ._containers import each
from ._converter import Types
from ._forms import Form, as_is
from ._misfit import expected, misfit
from ._records import Fields

__all__ = ["Adapter", "Carrier", "adapter_for"]

T = TypeVar("T")


class Carrier:
    """The values of one type, for one codec.

    Errors name the path to what does not fit, beginning at `$`. Buffers of 64 KiB and more are handed out beside the
    payload, uncopied: the caller must not change them until they are written.
    """

    def __init__(self, codec: Codec, form: Form) -> None:
        self._codec = codec
        self._form = form
        self._simple = form.untyped or form.exact is not None

    def encode(self, value: Any) -> tuple[bytes, list[Buffer]]:
        """Return payload and buffers. EncodeError if the value is not of the type, or cannot be sent."""
        blobs: list[Buffer] = []
        form = self._form
        if type(value) is not form.exact and form.dump is not as_is:
            value = self._dump(form.dump, value, blobs)
        return self._codec.encode(value, blobs), blobs

    def decode(self, payload: bytes | memoryview, blobs: Sequence[bytes]) -> Any:
        """Return the value. DecodeError if the payload is not well-formed, breaks a limit, or is not of the type."""
        value = self._codec.decode(payload, blobs)
        form = self._form
        if type(value) is form.exact or form.load is as_is:
            return value
        return self._load(form.load, value, blobs)

    def encode_many(self, values: Sequence[Any]) -> tuple[bytes, list[Buffer]]:
        """Return one payload for several values, and their buffers; errors as in `encode`."""
        blobs: list[Buffer] = []
        form = self._form
        wire = list(values) if form.untyped else self._dump(lambda them: each(them, form.dump), values, blobs)
        return self._codec.encode(wire, blobs), blobs

    def decode_many(self, payload: bytes | memoryview, blobs: Sequence[bytes]) -> list[Any]:
        """Return what `encode_many` was given; errors as in `decode`."""
        wire = self._codec.decode(payload, blobs)
        if type(wire) is not list:
            raise DecodeError(expected("an array of items", wire).at("$"))
        form = self._form
        return wire if form.untyped else self._load(lambda them: each(them, form.load), wire, blobs)

    def _dump(self, hook: Callable[[Any], T], value: Any, blobs: list[Buffer]) -> T:
        try:
            return sending(hook, value, blobs)
        except Exception as error:  # a user's own hook may raise anything
            raise EncodeError(misfit(error).at("$")) from error

    def _load(self, hook: Callable[[Any], T], value: Any, blobs: Sequence[bytes]) -> T:
        try:
            return receiving(hook, value, blobs)
        except Exception as error:  # a user's own hook may raise anything
            raise DecodeError(misfit(error).at("$")) from error


class Adapter:
    """Types for one codec. Carriers are made once for each type and kept."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self._types = Types(codec)
        self._carriers: dict[int, Carrier] = {}

    @property
    def converter(self) -> cattrs.Converter:
        """Where a program registers hooks for types of its own, before their first use."""
        return self._types.converter

    def carrier(self, type_: Any) -> Carrier:
        """Return the carrier of a type. TypeError, with a sentence that says what to write instead, if there is none."""
        form = self._types.form_of(type_)
        if (known := self._carriers.get(id(form))) is None:  # a carrier keeps its form, so that the id stays its own
            known = self._carriers.setdefault(id(form), Carrier(self.codec, form))
        return known

    def fields(self, cls: type) -> Fields:
        """Return the fields of an attrs class or dataclass, apart from the class. TypeError as in `carrier`."""
        return Fields(cls, self._types.form_of)

    def arguments(self, parameters: Iterable[ParameterLike], *, name: str) -> ArgumentsCarrier:
        """Return the carrier of a method's arguments; `name` is the method's, for messages. TypeError as in `carrier`."""
        return ArgumentsCarrier(self.codec, self._types.form_of, parameters, name)


_adapters: dict[str, Adapter] = {}


def adapter_for(name: str) -> Adapter:
    """Return the one adapter of the codec of that name. LookupError if there is none."""
    try:
        return _adapters[name]
    except KeyError:
        return _adapters.setdefault(name, Adapter(get(name)))
