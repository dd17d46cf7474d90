"""A remote method as the calling side needs it: its wire name, and what turns values into payloads and back.

Made once for each contract and codec, then shared by all stubs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import attrs

from . import codecs
from ._contract import MethodSpec, ServiceSpec, Shape, describe_contract
from ._errors import DecodeError, EncodeError
from ._failures import Failures
from ._util import locate
from .wire import Bytes, Data, method_block

__all__ = ["RemoteMethod", "compile_contract", "untyped"]


class ArgumentsEncoder(Protocol):
    """Arguments to payload."""

    def encode(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bytes, Sequence[Bytes]]:
        """Raises TypeError as a call of the plain function would, EncodeError for values that do not fit."""
        ...


@attrs.frozen(eq=False)
class RemoteMethod:
    """One method of a contract, compiled for one codec."""

    name: str
    block: bytes
    shape: Shape
    idempotent: bool
    arguments: ArgumentsEncoder
    result: Any
    items: Any
    failures: Failures
    spec: MethodSpec | None = None

    def encode(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bytes, Sequence[Bytes]]:
        """Arguments to payload. Raises TypeError as a call of the plain function would, EncodeError with the name."""
        try:
            encoded: tuple[bytes, Sequence[Bytes]] = self.arguments.encode(args, kwargs)
        except EncodeError as exc:
            locate(exc, self.name)
            raise
        return encoded

    def encode_items(self, items: list[Any]) -> tuple[bytes, Sequence[Bytes]]:
        """A batch of the caller's items to payload. Raises EncodeError with the name."""
        try:
            encoded: tuple[bytes, Sequence[Bytes]] = self.items.encode_many(items)
        except EncodeError as exc:
            locate(exc, f"an item for {self.name}", item=True)
            raise
        return encoded

    def decode_items(self, payload: Data, blobs: Sequence[bytes]) -> list[Any]:
        """Payload to a batch of results. Raises DecodeError with the name."""
        try:
            items: list[Any] = self.result.decode_many(payload, blobs)
        except DecodeError as exc:
            locate(exc, f"an item of {self.name}", item=True)
            exc.may_have_run = True
            raise
        return items

    def split(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
        """Take the stream of items out of a call's arguments."""
        assert self.spec is not None
        return self.spec.take_stream(args, kwargs)


_compiled: dict[tuple[Any, str, codecs.Bounds], tuple[ServiceSpec, dict[str, RemoteMethod]]] = {}


def compile_contract(contract: Any, codec: str, bounds: codecs.Bounds) -> tuple[ServiceSpec, dict[str, RemoteMethod]]:
    """All methods of a contract by attribute name; messages are held within `bounds`.

    Raises TypeError for what no codec carries.
    """
    key = (contract, codec, bounds)
    if key not in _compiled:
        spec = describe_contract(contract)
        adapter = codecs.adapter_for(codec, bounds)
        _compiled[key] = spec, {name: _compile(method, adapter) for name, method in spec.methods.items()}
    return _compiled[key]


def _compile(spec: MethodSpec, adapter: codecs.Adapter) -> RemoteMethod:
    return RemoteMethod(
        name=spec.wire_name,
        block=method_block(spec.wire_name),
        shape=spec.shape,
        idempotent=spec.idempotent,
        arguments=adapter.arguments(spec.parameters, name=spec.name),
        result=adapter.carrier(spec.result),
        items=adapter.carrier(spec.stream_item) if spec.stream_parameter is not None else None,
        failures=Failures(adapter, spec.raises),
        spec=spec,
    )


class _AnyArguments:
    """Arguments without a contract: sent as they are."""

    def __init__(self, adapter: codecs.Adapter) -> None:
        self._carrier = adapter.carrier(Any)

    def encode(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bytes, Sequence[Bytes]]:
        value = {"*": list(args), **kwargs} if kwargs else list(args)
        encoded: tuple[bytes, Sequence[Bytes]] = self._carrier.encode(value)
        return encoded


def untyped(name: str, codec: str, bounds: codecs.Bounds, shape: Shape) -> RemoteMethod:
    """A method known by its wire name alone. Raises TypeError or ValueError for what is no name."""
    if not isinstance(name, str):
        raise TypeError(f"a method is named by a text like 'Inventory.stock', not by {name!r:.80}")
    adapter = codecs.adapter_for(codec, bounds)
    return RemoteMethod(
        name=name,
        block=method_block(name),
        shape=shape,
        idempotent=False,
        arguments=_AnyArguments(adapter),
        result=adapter.carrier(Any),
        items=None,
        failures=Failures(adapter, ()),
    )
