"""What both sides know of a service and its methods."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from inspect import Parameter
from typing import Any

import attrs

from ._annotations import item_type
from ._method import Shape

__all__ = ["MethodSpec", "ServiceSpec"]


@attrs.frozen(eq=False)
class MethodSpec:
    """One method as both sides see it; annotations are resolved, with type variables replaced."""

    name: str
    """The attribute's name, `"stock"`."""
    wire_name: str
    """The name on the wire, `"Inventory.stock"`."""
    shape: Shape
    signature: inspect.Signature
    """What the caller writes: without `self`, the stream parameter included."""
    stream_parameter: Parameter | None
    """The parameter that is a stream of items, if there is one."""
    result: Any
    """The type of the result, or of each item where results are a stream."""
    idempotent: bool
    raises: tuple[type[Exception], ...]
    """The contract's exception classes, and those that overrides add."""
    thread: bool
    """A plain `def` that runs in a worker thread."""
    unlimited: bool
    """Served outside of all admission limits."""
    limit: int | None
    """How many of its calls a server runs at once."""
    is_async: bool
    """False for a plain `def`."""
    implemented: bool
    """False for a declaration, which is not run: it answers Unimplemented."""
    doc: str
    """The docstring, cleaned, or ""."""
    handler: Callable[..., Any] | None = None
    """The user's function, bound to the served object; None in the description of a contract."""

    parameters: tuple[Parameter, ...] = attrs.field(
        init=False,
        default=attrs.Factory(
            lambda self: tuple(p for p in self.signature.parameters.values() if p is not self.stream_parameter),
            takes_self=True,
        ),
    )
    """Those that travel in the request: all but the stream."""
    stream_item: Any = attrs.field(
        init=False,
        default=attrs.Factory(
            lambda self: item_type(self.stream_parameter.annotation) if self.stream_parameter else None, takes_self=True
        ),
    )
    """The type of each item of the stream parameter; None where there is no such parameter."""
    _stream_index: int | None = attrs.field(
        init=False, default=attrs.Factory(lambda self: _place(self.stream_parameter, self.signature), takes_self=True)
    )
    """The place of the stream among the positional parameters; None where it is keyword-only, or not there."""

    def take_stream(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
        """Split a call's arguments into those that travel in the request, and the stream.

        Raises:
            TypeError: the stream is not given.
        """
        assert self.stream_parameter is not None
        name, index = self.stream_parameter.name, self._stream_index
        if index is not None and len(args) > index:
            return (*args[:index], *args[index + 1 :]), kwargs, args[index]
        if name not in kwargs or self.stream_parameter.kind is Parameter.POSITIONAL_ONLY:
            raise TypeError(f"{self.name}() missing a required argument: {name!r}")
        return args, {key: value for key, value in kwargs.items() if key != name}, kwargs[name]

    def put_stream(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], stream: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Undo `take_stream`: the arguments to call the handler with."""
        assert self.stream_parameter is not None
        index = self._stream_index
        if index is not None and len(args) >= index:
            return (*args[:index], stream, *args[index:]), kwargs
        return args, {**kwargs, self.stream_parameter.name: stream}


@attrs.frozen(eq=False)
class ServiceSpec:
    """A contract: its wire name, and its methods by attribute name, in the order of definition."""

    name: str
    version: str
    methods: Mapping[str, MethodSpec]


def _place(stream: Parameter | None, signature: inspect.Signature) -> int | None:
    positional = (p for p in signature.parameters.values() if p.kind is not Parameter.KEYWORD_ONLY)
    return next((index for index, parameter in enumerate(positional) if parameter is stream), None)
