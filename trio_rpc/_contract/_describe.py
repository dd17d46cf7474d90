"""Which class is the contract, and what it says: from classes to `ServiceSpec`.

The contract of a class is its most basic ancestor with methods, or the nearest with `@service`. The contract's name
is the wire name, and its types are what travels: a server decodes and encodes by the contract's annotations, not by
those of the method that overrides it, because its callers know no other. (A contract that answers `Cat | Dog` tags
what it sends; an override that is sure to answer `Cat` must tag it all the same.)

An override may add (exceptions, optional parameters, an option that the contract leaves open) and never change.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Iterable, Iterator
from types import MappingProxyType, MethodType
from typing import Any, TypeVar, get_args, get_origin, overload

import attrs

from ._annotations import head, item_type, resolve, substitute, type_arguments
from ._method import Method
from ._mistakes import STREAM_RESULTS, check_subject, is_async_iterable, wrapped
from ._overrides import merged_options, widened
from ._spec import MethodSpec, ServiceSpec

__all__ = ["describe_contract", "describe_services", "service"]

C = TypeVar("C", bound=type)

_MARK = "__trio_rpc_service__"


@attrs.frozen
class _Mark:
    """What `@service` leaves in a class's own namespace, where copies of the class (attrs with slots) keep it."""

    name: str | None
    version: str


@overload
def service(cls: C, /) -> C: ...
@overload
def service(*, name: str | None = None, version: str = "") -> Callable[[C], C]: ...
def service(cls: Any = None, /, *, name: str | None = None, version: str = "") -> Any:
    """Make a class a contract of its own, whatever its ancestors are.

    Args:
        cls: the class, when used without options.
        name: the wire name, a word or several with dots between; the class's name if not given.
        version: told to the peer; it decides nothing.

    Raises:
        TypeError: the decorated thing is no class, or an option is no string.
        ValueError: the name is no name.
    """
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name must be a string, not {name!r}")
    if not isinstance(version, str):
        raise TypeError(f"version must be a string, not {version!r}: write version={str(version)!r}")
    if name is not None and not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f"name={name!r} is no service name: write a word, or several with dots between")

    def mark(decorated: C) -> C:
        if not isinstance(decorated, type):
            raise TypeError(f"@service takes a class, not {decorated!r}: put @method on functions")
        setattr(decorated, _MARK, _Mark(name, version))
        return decorated

    return mark if cls is None else mark(cls)


def describe_contract(contract: Any) -> ServiceSpec:
    """What a stub of this class offers.

    Args:
        contract: a class (Protocols and abstract classes too) or a parametrised generic like `Store[int]`.

    Raises:
        TypeError: it is no such thing, has no methods, belongs to several contracts, an override changes what its
            contract says, or an annotation cannot be resolved.
    """
    cls = get_origin(contract) or contract
    if not isinstance(cls, type):
        kind = "a function" if callable(contract) else f"an object of {type(contract).__name__}"
        raise TypeError(f"a stub is made of a contract class, not of {kind}: write `stub(Inventory)`")
    return _describe_contract(contract)


@functools.lru_cache(maxsize=512)
def _describe_contract(contract: Any) -> ServiceSpec:
    view = _View(contract)
    specs = view.services(None)
    if len(specs) > 1:
        names = ", ".join(spec.name for spec in specs)
        raise TypeError(
            f"{view.cls.__name__} belongs to several contracts ({names}): "
            "make a stub of each, or decorate it with @service to make it one"
        )
    return specs[0]


def describe_services(services: object) -> list[ServiceSpec]:
    """What one object or several offer, with bound handlers; an object of several contracts is served under each.

    Raises:
        TypeError: a class is given instead of an object, an object has no methods, two services have one name, an
            override lacks `@method` or changes what its contract says, or an annotation cannot be resolved.
    """
    specs: dict[str, tuple[ServiceSpec, object]] = {}
    for served in _objects(services):
        view = _View(_made_from(served))
        for spec in view.services(served):
            if spec.name in specs:
                other = type(specs[spec.name][1]).__name__
                raise TypeError(
                    f"{view.cls.__name__} and {other} would both be served as {spec.name!r}: "
                    "give one of them its own name with @service(name=...)"
                )
            specs[spec.name] = spec, served
    return [spec for spec, _ in specs.values()]


def _objects(services: object) -> Iterator[object]:
    collection = isinstance(services, list | tuple | set | frozenset) and not _method_names(type(services))
    several: Iterable[object] = services if collection else [services]  # type: ignore[assignment]
    for served in several:
        cls = get_origin(served) or served
        if isinstance(cls, type):
            raise TypeError(f"{cls.__name__} is a class, and objects are served: write `{cls.__name__}(...)`")
        yield served


def _made_from(served: object) -> Any:
    """The class of an object, or the `Store[int]` that it was made by, where typing has left that on it."""
    alias = inspect.getattr_static(served, "__orig_class__", None)
    return alias if get_origin(alias) is type(served) else type(served)


def _own_methods(cls: type) -> dict[str, Method]:
    return {name: m for name, m in vars(cls).items() if isinstance(m, Method) and not name.startswith("_")}


def _own_method(cls: type, name: str) -> Method | None:
    """One of these; in one step, as a class may have ten thousand."""
    own = vars(cls).get(name)
    return own if isinstance(own, Method) and not name.startswith("_") else None


def _has_method(cls: type, name: str) -> bool:
    return any(_own_method(ancestor, name) is not None for ancestor in cls.__mro__)


def _method_names(cls: type) -> list[str]:
    """All names that are methods anywhere, the most basic class's first."""
    return list(dict.fromkeys(name for ancestor in reversed(cls.__mro__) for name in _own_methods(ancestor)))


class _View:
    """What one class, or parametrised generic, makes of its ancestors' methods."""

    def __init__(self, alias: Any) -> None:
        self.alias = alias
        self.cls: type = get_origin(alias) or alias
        _check_members(self.cls)
        self.arguments = type_arguments(alias)
        self.contracts = _contracts(self.cls)

    def services(self, served: object | None) -> list[ServiceSpec]:
        """One description for each contract."""
        methods: dict[type, dict[str, MethodSpec]] = {contract: {} for contract in self.contracts}
        for name in _method_names(self.cls):
            for contract in self._owners(name):
                methods[contract][name] = self._method(contract, name, served)
        return [
            ServiceSpec(_wire_name(contract), _version(contract), MappingProxyType(methods[contract]))
            for contract in self.contracts
        ]

    def _owners(self, name: str) -> list[type]:
        """The contracts that a method belongs to: those that have it, else the one that its class is made from."""
        having = [contract for contract in self.contracts if _has_method(contract, name)]
        if having:
            return having
        first = next(ancestor for ancestor in reversed(self.cls.__mro__) if _own_method(ancestor, name) is not None)
        owners = [contract for contract in self.contracts if contract in first.__mro__]
        if len(owners) != 1:
            names = " or ".join(contract.__name__ for contract in self.contracts)
            raise TypeError(
                f"{first.__qualname__}.{name} belongs to no one contract of {self.cls.__name__}: declare it in {names}, "
                f"or decorate {self.cls.__name__} with @service"
            )
        return owners

    def _method(self, contract: type, name: str, served: object | None) -> MethodSpec:
        found = _found(self.cls, name)
        promised = self._promised(contract, name)
        options = merged_options(self._chain(contract, name))
        if options.thread and found.is_async:
            raise TypeError(f"{found.__qualname__} is async, and its contract says thread=True: write a plain `def`")
        signature = self._signature(promised)
        if found is not promised:
            signature = widened(signature, self._signature(found), found, promised)
        stream = signature.parameters[promised.stream_parameter] if promised.stream_parameter else None
        return MethodSpec(
            name=name,
            wire_name=f"{_wire_name(contract)}.{name}",
            shape=promised.shape,
            signature=signature,
            stream_parameter=stream,
            result=_result(promised, signature.return_annotation),
            idempotent=bool(options.idempotent),
            raises=options.raises,
            thread=bool(options.thread),
            unlimited=bool(options.unlimited),
            limit=options.limit,
            is_async=found.is_async,
            implemented=not found.declaration,
            doc=inspect.getdoc(found.function) or inspect.getdoc(promised.function) or "",
            handler=None if served is None else MethodType(found.function, served),
        )

    def _promised(self, contract: type, name: str) -> Method:
        """What the contract says, or for a method that an implementation adds, the first that says it."""
        if _has_method(contract, name):
            return _found(contract, name)
        return self._chain(contract, name)[0]

    def _chain(self, contract: type, name: str) -> list[Method]:
        """The methods of that name that have to do with the contract, the most basic first."""
        related = [
            ancestor
            for ancestor in reversed(self.cls.__mro__)
            if ancestor in contract.__mro__ or contract in ancestor.__mro__
        ]
        chain = [own for ancestor in related if (own := _own_method(ancestor, name)) is not None]
        found = _found(self.cls, name)
        return chain if found in chain else [*chain, found]

    def _signature(self, described: Method) -> inspect.Signature:
        """Without `self`, resolved, and seen from this class."""
        hints = resolve(described.function, _scope(described))
        owners = (a for a in self.cls.__mro__ if described in vars(a).values()) if any(self.arguments.values()) else ()
        arguments = next((self.arguments[a] for a in owners), {})
        hints = {name: substitute(hint, arguments) for name, hint in hints.items()}
        raw = inspect.signature(described.function)
        parameters = [p.replace(annotation=hints[p.name]) for p in list(raw.parameters.values())[1:]]
        signature = raw.replace(parameters=parameters, return_annotation=hints.get("return", Any))
        _check_shape(described, signature)
        return signature


def _check_members(cls: type) -> None:
    """Refuse `@method` under `@classmethod` and the like: such a method would be served by nobody, without a word."""
    for ancestor in cls.__mro__:
        for member in vars(ancestor).values():
            if isinstance(wrapped(member), Method):
                check_subject(member)


def _found(cls: type, name: str) -> Method:
    """What Python finds on an object of the class."""
    owner = next(ancestor for ancestor in cls.__mro__ if name in vars(ancestor))
    found = vars(owner)[name]
    if not isinstance(found, Method):
        first = next(ancestor for ancestor in reversed(cls.__mro__) if name in _own_methods(ancestor))
        raise TypeError(
            f"{owner.__qualname__}.{name} overrides the method {first.__qualname__}.{name}, and is none itself: "
            "decorate it with @method"
        )
    return found


def _contracts(cls: type) -> list[type]:
    """The nearest ancestors with `@service`, and the most basic ones with methods that none of those derive from."""
    if not _method_names(cls):
        raise TypeError(f"{cls.__qualname__} has no methods to call: decorate them with @method")
    named = [ancestor for ancestor in cls.__mro__ if _MARK in vars(ancestor)]
    nearest = [a for a in named if not any(a in other.__mro__[1:] for other in named)]
    owners = [ancestor for ancestor in cls.__mro__ if _own_methods(ancestor)]
    basic = [
        a
        for a in owners
        if not any(other in a.__mro__[1:] for other in [*owners, *nearest]) and not any(a in n.__mro__ for n in nearest)
    ]
    return [ancestor for ancestor in cls.__mro__ if ancestor in nearest or ancestor in basic]


def _wire_name(contract: type) -> str:
    mark: _Mark | None = vars(contract).get(_MARK)
    return (mark and mark.name) or contract.__name__


def _version(contract: type) -> str:
    mark: _Mark | None = vars(contract).get(_MARK)
    return mark.version if mark else ""


def _scope(described: Method) -> dict[str, Any]:
    """Names that are not the module's: the class, type parameters (`class Store[T]`), and those of blocks around."""
    owner = described.owner
    variables = (*getattr(owner, "__type_params__", ()), *getattr(described.function, "__type_params__", ()))
    names = {variable.__name__: variable for variable in variables}
    return names | ({} if owner is None else {owner.__name__: owner}) | described.known_names


def _result(described: Method, annotation: Any) -> Any:
    """What the caller gets: each item of a stream, what a coroutine ends with, or the plain result."""
    if described.shape.streams_out:
        return item_type(annotation)
    if head(annotation, described.function, {}) is Coroutine:
        return next(iter(get_args(annotation)[2:]), Any)
    return annotation


def _check_shape(described: Method, signature: inspect.Signature) -> None:
    """What the decorator took for a stream, or did not, must be one, or none, now that every name is known."""
    heads = {p.name: head(p.annotation, described.function, {}) for p in signature.parameters.values()}
    for name, kind in heads.items():
        if name != described.stream_parameter and is_async_iterable(kind):
            raise TypeError(f"{described.__qualname__}: {name!r} is a stream: annotate it as `AsyncIterable[...]`")
    result = head(signature.return_annotation, described.function, {})
    hidden = result not in (*STREAM_RESULTS, Any) if described.shape.streams_out else is_async_iterable(result)
    if hidden:
        raise TypeError(f"{described.__qualname__}: it gives a stream: annotate it as `AsyncGenerator[..., None]`")
