"""A call's arguments: bound like Python binds them, sent as an array, or as a map where keywords are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from inspect import Parameter, Signature
from typing import Any, Literal, Protocol, TypeAlias

from .._errors import DecodeError, EncodeError
from ._base import MAX_VALUES, Buffer, Codec, receiving, sending
from ._cost import HOOK, charge, free_size, measured, spending
from ._fast import Fast, fast_of
from ._forms import Form, FormOf
from ._misfit import Misfit, below, expected, refusal

__all__ = ["ArgumentsCarrier", "ParameterLike"]

POSITIONAL = "*"
"""The key of the positional values where keywords are sent too; no parameter can have this name."""

Row: TypeAlias = tuple[type | None, Callable[[Any], Any]]
"""The class whose own instances need no hook, and the hook, of one place."""

Way: TypeAlias = Literal["dump", "load"]


class ParameterLike(Protocol):
    """What is asked of a parameter; `inspect.Parameter` has it."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> Any: ...
    @property
    def annotation(self) -> Any: ...
    @property
    def default(self) -> Any: ...


class ArgumentsCarrier:
    """The arguments of one method, for one codec.

    The payload is an array of the positional values, whatever way they were passed. Arguments that were not given are
    not sent: the server's defaults apply. Keyword-only ones, and those behind one that was left out, make it a map
    `{"*": [positional values], name: value}`.
    """

    def __init__(
        self,
        codec: Codec,
        form_of: FormOf,
        parameters: Iterable[ParameterLike],
        name: str,
        max_values: int = MAX_VALUES,
    ) -> None:
        parameters = list(parameters)
        self._codec = codec
        self._max_values = max_values
        self._name = name
        self._signature = Signature([Parameter(p.name, p.kind, default=p.default) for p in parameters])
        self._names: list[str] = []
        self._positional: list[Form] = []
        self._rest: tuple[str, Form] | None = None
        self._keywords: dict[str, Form] = {}
        self._other_keywords: Form | None = None
        for parameter in parameters:
            self._place(parameter, _form(parameter, form_of, name))
        self._least, self._most = self._bounds()
        self._dumps = [(form.exact, form.dump) for form in self._positional]
        self._loads = [(form.exact, form.load) for form in self._positional]
        self._free = free_size(max_values, max([HOOK, *(form.dense for form in self._forms())]))
        self._find_short_ways(self._rest, fast_of(codec))

    def _forms(self) -> list[Form]:
        others = [self._rest[1] if self._rest else None, self._other_keywords]
        return [*self._positional, *self._keywords.values(), *filter(None, others)]

    def _find_short_ways(self, rest: tuple[str, Form] | None, fast: Fast | None) -> None:
        forms = [*self._positional, *([rest[1]] if rest else [])]
        self._untyped = rest is None and all(form.untyped for form in forms)
        self._buffers = any(form.buffers for form in forms)
        self._encode = (fast.encoder(forms) if fast else None) or self._codec.encode
        self._readers = fast.readers(self._positional, self._least) if fast and self._most >= 0 else {}

    def _place(self, parameter: ParameterLike, form: Form) -> None:
        if parameter.kind is Parameter.VAR_POSITIONAL:
            self._rest = (parameter.name, form)
        elif parameter.kind is Parameter.VAR_KEYWORD:
            self._other_keywords = form
        elif parameter.kind is Parameter.KEYWORD_ONLY:
            self._keywords[parameter.name] = form
        else:
            self._names.append(parameter.name)
            self._positional.append(form)
            if parameter.kind is Parameter.POSITIONAL_OR_KEYWORD:
                self._keywords[parameter.name] = form

    def _bounds(self) -> tuple[int, int]:
        """Return how few and how many positional values alone make a call that needs no closer look."""
        variable = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        parameters = self._signature.parameters.values()
        required = [p for p in parameters if p.default is Parameter.empty and p.kind not in variable]
        if any(p.kind is Parameter.KEYWORD_ONLY for p in required):
            return 0, -1
        return len(required), len(self._positional)

    def encode(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bytes, list[Buffer]]:
        """Return payload and buffers.

        Raises:
            TypeError: as Python's own, for arguments that the method does not take.
            EncodeError: for one that does not fit its annotation, naming it and the path in it.
        """
        if kwargs or not self._least <= len(args) <= self._most:
            args, kwargs = self._bind(args, kwargs)
        blobs: list[Buffer] = []
        wire: Any = args
        try:
            if kwargs or self._buffers:
                wire = sending(lambda both: self._dump_both(*both), (args, kwargs), blobs)
            elif not self._untyped:
                wire = self._through(args, self._dumps, "dump")
        except Misfit as fault:
            raise EncodeError(fault.at("")) from fault
        try:
            return (self._codec.encode if kwargs else self._encode)(wire, blobs), blobs
        except EncodeError as error:
            raise self._blamed(wire, error) from error

    def decode(self, payload: bytes | memoryview, blobs: Sequence[bytes]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return `(args, kwargs)`. DecodeError, naming the argument and the path in it, for what does not fit."""
        if (large := len(payload) > self._free) and spending.get() is None:
            return measured(self._max_values, partial(self.decode, payload, blobs))
        if self._readers and not blobs and not large:
            try:
                return self._readers[payload[0]](payload), {}
            except Exception:  # the way below knows better, or says what is wrong
                pass
        try:
            wire = self._codec.decode(payload, blobs)
        except DecodeError as error:
            error.malformed = True
            raise
        try:
            if blobs or type(wire) is not list or not self._least <= len(wire) <= self._most:
                return receiving(self._load, wire, blobs)
            return tuple(wire if self._untyped else self._through(wire, self._loads, "load")), {}
        except Misfit as fault:
            raise refusal(fault, "") from fault
        except TypeError as error:
            raise DecodeError(str(error)) from error

    def _bind(self, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        joined = list(args)
        for name in self._names[len(args) :]:  # without a gap: 0.4 us, where `bind` takes 2.8
            if name not in kwargs or name not in self._keywords:
                break
            joined.append(kwargs[name])
        if len(joined) - len(args) == len(kwargs) and self._least <= len(joined) <= self._most:
            return tuple(joined), {}
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self._name}() {error}") from None
        return bound.args, bound.kwargs

    def _dump_both(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        positional = self._through(args, self._dumps, "dump")
        if not kwargs:
            return positional
        return {POSITIONAL: positional, **{name: self._one(name, value, "dump") for name, value in kwargs.items()}}

    def _through(self, values: Sequence[Any], rows: list[Row], way: Way) -> list[Any]:
        """Return positional values, each through the hook of its place."""
        if len(values) > len(rows) and self._rest is not None:
            charge((len(values) - len(rows)) * (HOOK + self._rest[1].weight))
            rows = [*rows, *[(None, getattr(self._rest[1], way))] * (len(values) - len(rows))]
        out: list[Any] = []
        try:
            for value in values:
                exact, hook = rows[len(out)]  # less than half the price of zip(strict=)
                out.append(value if type(value) is exact else hook(value))
        except Exception as error:  # a user's own hook may raise anything
            raise below(error, self._label(len(out))) from None
        return out

    def _load(self, wire: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, keywords = self._split(wire)
        if keywords and self._other_keywords is not None:
            charge(len(keywords) * (2 * HOOK + self._other_keywords.weight))
        if keywords or not self._least <= len(args) <= self._most:
            self._bind(args, keywords)
        values = self._through(args, self._loads, "load")
        return tuple(values), {name: self._one(name, value, "load") for name, value in keywords.items()}

    def _split(self, wire: Any) -> tuple[list[Any], dict[str, Any]]:
        if type(wire) is list:
            return wire, {}
        if type(wire) is dict and type(wire.get(POSITIONAL)) is list:
            return wire[POSITIONAL], {name: value for name, value in wire.items() if name != POSITIONAL}
        raise below(expected(f"an array, or a map with {POSITIONAL!r}", wire), "arguments")

    def _label(self, index: int) -> str:
        """Return the name of the positional argument at `index`."""
        if index < len(self._names):
            return self._names[index]
        return f"{self._rest[0] if self._rest else 'arguments'}[{index - len(self._names)}]"

    def _one(self, name: str, value: Any, way: Way) -> Any:
        form = self._keywords.get(name, self._other_keywords)
        try:
            return getattr(form, way)(value)
        except Exception as error:  # a user's own hook may raise anything
            raise below(error, name) from None

    def _blamed(self, wire: Any, error: EncodeError) -> EncodeError:
        """Return the codec's error with the name of the argument that it is about."""
        args, kwargs = (wire, {}) if not isinstance(wire, dict) else self._split(wire)
        named = [(self._label(index), value) for index, value in enumerate(args)]
        for name, value in [*named, *kwargs.items()]:
            try:
                self._codec.encode(value, [])
            except EncodeError as own:
                return EncodeError(f"{name}{own.message.removeprefix('$')}")
        return EncodeError(f"arguments{error.message.removeprefix('$')}")


def _form(parameter: ParameterLike, form_of: FormOf, name: str) -> Form:
    try:
        return form_of(parameter.annotation)
    except TypeError as error:
        raise TypeError(f"parameter {parameter.name!r} of {name}: {error}") from error
