"""Stubs: objects with a contract's methods, made from its description and typed as the contract itself."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ._contract import Shape
from ._methods import RemoteMethod, compile_contract
from ._options import CallOptions
from .codecs import Bounds

if TYPE_CHECKING:
    from ._caller import Caller

__all__ = ["make_stub"]

S = TypeVar("S")


class _Stub:
    """The parent of all stubs. Its methods come from the contract, in a subclass made for it."""

    __slots__ = ("_caller", "_options")

    _service = ""

    def __init__(self, caller: Caller, options: CallOptions) -> None:
        self._caller = caller
        self._options = options

    def __repr__(self) -> str:
        return f"<stub of {self._service} over {self._caller!r}>"

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"{self._service} has no remote method {name!r}: only methods under @trio_rpc.method in the contract can be called"
        )


_stubs: dict[tuple[Any, str, Bounds], type[_Stub]] = {}


def make_stub(caller: Caller, contract: Callable[..., S], options: CallOptions) -> S:
    """The contract's methods over `caller`; the class behind it is made once for each contract, codec and bounds."""
    key = (contract, caller.codec, caller.bounds)
    stub_class = _stubs.get(key)
    if stub_class is None:
        stub_class = _stubs[key] = _stub_class(contract, caller.codec, caller.bounds)
    return cast("S", stub_class(caller, options))


def _stub_class(contract: Any, codec: str, bounds: Bounds) -> type[_Stub]:
    spec, methods = compile_contract(contract, codec, bounds)
    namespace: dict[str, Any] = {name: _function(name, method) for name, method in methods.items()}
    namespace |= {"__slots__": (), "_service": spec.name, "__doc__": f"A stub of {spec.name}."}
    return type(f"{spec.name}Stub", (_Stub,), namespace)


def _function(name: str, method: RemoteMethod) -> Callable[..., Any]:
    """One method of a stub. It is no coroutine function of its own: it hands on what the caller's verb gives."""
    shape = method.shape
    if shape is Shape.UNARY:

        def call(self: _Stub, /, *args: Any, **kwargs: Any) -> Any:
            return self._caller.unary(method, args, kwargs, self._options)

    elif shape is Shape.CLIENT_STREAM:

        def call(self: _Stub, /, *args: Any, **kwargs: Any) -> Any:
            return self._caller.client_stream(method, args, kwargs, self._options)

    elif shape is Shape.SERVER_STREAM:

        def call(self: _Stub, /, *args: Any, **kwargs: Any) -> Any:
            return self._caller.server_stream(method, args, kwargs, self._options)

    else:

        def call(self: _Stub, /, *args: Any, **kwargs: Any) -> Any:
            return self._caller.bidi(method, args, kwargs, self._options)

    call.__name__ = name
    call.__qualname__ = method.name
    if method.spec is not None:
        call.__doc__ = method.spec.doc or None
        call.__signature__ = _with_self(method.spec.signature)  # type: ignore[attr-defined]
    return call


def _with_self(signature: Signature) -> Signature:
    """For `help()` and editors: as if the method were written in the stub's class."""
    self = Parameter("self", Parameter.POSITIONAL_ONLY)
    return signature.replace(parameters=[self, *signature.parameters.values()])
