"""From decorated classes to descriptions: shapes, names, options, types, and mistakes told early."""

# mypy: disable-error-code="empty-body"

from __future__ import annotations

import abc
import concurrent.futures
import decimal
import fractions
import functools
import importlib
import inspect
import sys
import typing
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, Protocol, TypeVar

import attrs
import pytest

from trio_rpc import method, service
from trio_rpc._contract import Method, MethodSpec, ServiceSpec, Shape, describe_contract, describe_services

if TYPE_CHECKING:
    import collections.abc as only_for_checkers
    from collections.abc import AsyncIterable as HiddenIterable, AsyncIterator as HiddenIterator
    from concurrent import futures
    from decimal import Decimal as Money
    from fractions import Fraction

    from missing_package import Missing  # type: ignore[import-not-found]  # pyright: ignore[reportMissingImports]
    from trio import MemoryReceiveChannel

    Unknown = int | str

T = TypeVar("T")
K = TypeVar("K", bound=str)
V = TypeVar("V", int, bytes)


@attrs.frozen
class Level:
    sku: str
    quantity: int


class OutOfStock(Exception):
    pass


class Damaged(Exception):
    pass


class Inventory:
    @method(idempotent=True)
    async def stock(self, sku: str) -> int:
        """How many there are."""
        raise NotImplementedError

    @method(raises=[OutOfStock])
    async def reserve(self, sku: str, quantity: int = 1) -> str:
        raise NotImplementedError

    @method
    def version(self) -> str:
        raise NotImplementedError

    @method
    def watch(self, sku: str) -> AsyncGenerator[Level, None]:
        raise NotImplementedError

    @method
    async def restock(self, levels: AsyncIterable[Level], dry: bool = False) -> int:
        raise NotImplementedError

    @method
    def audit(self, claims: AsyncIterable[Level]) -> AsyncIterator[str]:
        raise NotImplementedError

    @method
    async def _secret(self) -> None:
        raise NotImplementedError

    async def undecorated(self) -> None: ...


class Warehouse(Inventory):
    @method(raises=[Damaged])
    async def reserve(self, sku: str, quantity: int = 2, *, note: str = "") -> str:
        return "ticket"

    @method
    async def watch(self, sku: str) -> AsyncGenerator[Level, None]:
        yield Level(sku, 1)


def served(*services: object) -> dict[str, dict[str, MethodSpec]]:
    """What objects offer, by service and method."""
    return {spec.name: dict(spec.methods) for spec in describe_services(list(services))}


def only(cls: type) -> MethodSpec:
    """The description of a class's one method."""
    [spec] = describe_contract(cls).methods.values()
    return spec


def contract(*functions: Callable[..., Any], bases: tuple[type, ...] = (), **options: Any) -> type:
    """A class made of one or several functions."""
    return type("Made", bases, {function.__name__: method(**options)(function) for function in functions})


# -- what a contract says ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "parameters", "stream_item", "result"),
    [
        ("stock", Shape.UNARY, {"sku": str}, None, int),
        ("reserve", Shape.UNARY, {"sku": str, "quantity": int}, None, str),
        ("version", Shape.UNARY, {}, None, str),
        ("watch", Shape.SERVER_STREAM, {"sku": str}, None, Level),
        ("restock", Shape.CLIENT_STREAM, {"dry": bool}, Level, int),
        ("audit", Shape.BIDI, {}, Level, str),
    ],
)
@pytest.mark.parametrize("cls", [Inventory, Warehouse])
def test_shapes_and_types(
    cls: type, name: str, shape: Shape, parameters: dict[str, type], stream_item: type | None, result: type
) -> None:
    """Signatures become shapes and resolved types, under the contract's name, seen from either class."""
    spec = describe_contract(cls).methods[name]
    assert (spec.name, spec.wire_name, spec.shape) == (name, f"Inventory.{name}", shape)
    assert {p.name: p.annotation for p in spec.parameters if p.name != "note"} == parameters
    assert (spec.stream_item, spec.result) == (stream_item, result)
    assert spec.handler is None


def test_only_decorated_public_methods_are_reachable() -> None:
    """X09: private and undecorated functions are in no description, in order of definition."""
    expected = ["stock", "reserve", "version", "watch", "restock", "audit"]
    assert list(describe_contract(Inventory).methods) == expected
    assert list(served(Warehouse())["Inventory"]) == expected


def test_an_implementation_is_served_under_its_contract() -> None:
    """Options are inherited and added to, handlers are bound, declarations are not implemented."""
    warehouse = Warehouse()
    methods = served(warehouse)["Inventory"]
    assert methods["stock"].idempotent is True
    assert methods["reserve"].idempotent is False
    assert methods["reserve"].raises == (OutOfStock, Damaged)
    assert [name for name, spec in methods.items() if spec.implemented] == ["reserve", "watch"]
    assert [name for name, spec in methods.items() if not spec.is_async] == ["version", "audit"]
    assert methods["stock"].doc == "How many there are."
    handler = methods["watch"].handler
    assert handler is not None
    assert inspect.isasyncgen(handler("A-1"))


def test_an_override_may_add_parameters_and_defaults() -> None:
    """The override's defaults and optional parameters count, the contract itself stays as it was."""
    assert str(served(Warehouse())["Inventory"]["reserve"].signature) == (
        "(sku: str, quantity: int = 2, *, note: str = '') -> str"
    )
    assert str(describe_contract(Inventory).methods["reserve"].signature) == "(sku: str, quantity: int = 1) -> str"


def test_the_contracts_types_travel() -> None:
    """An override's wider arguments and narrower results do not change what is on the wire."""

    class Clinic:
        @method
        async def treat(self, pet: int) -> int | str: ...

    class Hospital(Clinic):
        @method
        async def treat(self, pet: int | str) -> str:
            return ""

    [spec] = served(Hospital())["Clinic"].values()
    assert spec.parameters[0].annotation is int
    assert spec.result == int | str


def test_the_description_of_a_contract_is_kept() -> None:
    """Stubs are cheap: a contract is described once."""
    assert describe_contract(Inventory) is describe_contract(Inventory)
    assert describe_contract(Store[int]) is describe_contract(Store[int])


# -- which class is the contract ---------------------------------------------------------------------------------------


def test_service_names_the_nearest_contract() -> None:
    """`@service` makes a contract of a class that has ancestors, and gives name and version."""

    class Base:
        @method
        async def ping(self) -> None: ...

    @service(name="shop.Counter", version="2")
    class Counter(Base):
        @method
        async def total(self) -> int: ...

    class Impl(Counter):
        @method
        async def extra(self) -> int:
            return 1

    [spec] = describe_services(Impl())
    assert (spec.name, spec.version) == ("shop.Counter", "2")
    assert [m.wire_name for m in spec.methods.values()] == [
        "shop.Counter.ping",
        "shop.Counter.total",
        "shop.Counter.extra",
    ]
    assert describe_contract(Base).name == "Base"


def test_one_object_of_several_contracts() -> None:
    """It is served under each; what both declare is in both, with each contract's own options."""

    class Health:
        @method(idempotent=True)
        async def check(self) -> bool: ...

    @service
    class Admin:
        @method
        async def check(self) -> bool: ...

        @method
        async def stop(self) -> None: ...

    class Both(Health, Admin):
        @method
        async def check(self) -> bool:
            return True

    services = served(Both())
    assert {name: list(methods) for name, methods in services.items()} == {
        "Health": ["check"],
        "Admin": ["check", "stop"],
    }
    assert [services[name]["check"].idempotent for name in ("Health", "Admin")] == [True, False]
    assert services["Admin"]["check"].implemented
    with pytest.raises(TypeError, match=r"Both belongs to several contracts \(Health, Admin\): make a stub of each"):
        describe_contract(Both)

    class More(Both):
        @method
        async def extra(self) -> None: ...

    with pytest.raises(
        TypeError, match=r"More.extra belongs to no one contract of More: declare it in Health or Admin"
    ):
        describe_services(More())
    assert [spec.name for spec in describe_services(service(More)())] == ["More"]


def test_protocols_and_abstract_classes_are_contracts() -> None:
    """Empty bodies are declarations there, whatever they promise to return."""

    class Quotes(Protocol):
        @method
        async def price(self, symbol: str) -> float: ...

        @method
        async def reset(self) -> None: ...

    class Base(abc.ABC):
        @method
        @abc.abstractmethod
        async def reset(self) -> None: ...

    class Impl(Quotes):
        @method
        async def price(self, symbol: str) -> float: ...

        @method
        async def reset(self) -> None: ...

    assert describe_contract(Base).methods["reset"].implemented is False
    assert [spec.implemented for spec in describe_contract(Quotes).methods.values()] == [False, False]
    assert [spec.implemented for spec in served(Impl())["Quotes"].values()] == [False, True]
    with pytest.raises(TypeError, match="abstract"):
        Base()  # type: ignore[abstract]


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (Warehouse(), "a stub is made of a contract class, not of an object of Warehouse"),
        (lambda: Inventory(), "not of a function"),
        (Level, "Level has no methods to call: decorate them with @method"),
        (list[int], "list has no methods"),
    ],
)
def test_what_is_no_contract(wrong: Any, complaint: str) -> None:
    """A stub needs a class with methods."""
    with pytest.raises(TypeError, match=complaint):
        describe_contract(wrong)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (Inventory, r"Inventory is a class, and objects are served: write `Inventory\(...\)`"),
        ([Warehouse(), Warehouse], "Warehouse is a class"),
        (Level("A-1", 1), "Level has no methods"),
        ([Warehouse(), Inventory()], "Inventory and Warehouse would both be served as 'Inventory': give one of them"),
    ],
)
def test_what_cannot_be_served(wrong: Any, complaint: str) -> None:
    """Objects are served, each contract once."""
    with pytest.raises(TypeError, match=complaint):
        describe_services(wrong)


def test_one_service_or_several() -> None:
    """One object, a list, a tuple, nothing, and an object that is itself a list."""

    class Listed(list[int]):
        @method
        async def total(self) -> int:
            return sum(self)

    def names(services: object) -> list[str]:
        return [spec.name for spec in describe_services(services)]

    assert names(Warehouse()) == ["Inventory"]
    assert names((Warehouse(), Listed([1]))) == ["Inventory", "Listed"]
    assert names(Listed([1, 2])) == ["Listed"]
    assert names([]) == []


@pytest.mark.parametrize("options", [{"name": 1}, {"version": 2}])
def test_service_options_are_strings(options: Any) -> None:
    """Names and versions travel as text."""
    with pytest.raises(TypeError, match="must be a string"):
        service(**options)


def test_service_names_are_words() -> None:
    """A name is what `pool.call` can be given."""
    with pytest.raises(ValueError, match="'my shop' is no service name"):
        service(name="my shop")
    with pytest.raises(TypeError, match="@service takes a class"):
        service(lambda: None)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]


# -- overrides ---------------------------------------------------------------------------------------------------------


class Contract:
    @method(idempotent=True, thread=True, unlimited=True)
    def call(self, a: int, b: int = 0, *, c: int = 0) -> int:
        raise NotImplementedError


def test_thread_is_inherited() -> None:
    """An override that says nothing has the contract's options."""

    class Impl(Contract):
        @method
        def call(self, a: int, b: int = 0, *, c: int = 0) -> int:
            return a

    [spec] = served(Impl())["Contract"].values()
    assert (spec.thread, spec.idempotent, spec.is_async) == (True, True, False)


def test_limits_are_inherited_and_added() -> None:
    """What a contract leaves open, its implementation may say; a stub's method has neither."""

    class Admitted:
        @method(unlimited=True)
        async def health(self) -> int: ...
        @method
        async def work(self) -> int: ...
        @method
        async def more(self) -> int: ...

    class Impl(Admitted):
        @method
        async def health(self) -> int:
            return 1

        @method(limit=3)
        async def work(self) -> int:
            return 1

    methods = served(Impl())["Admitted"]
    assert {name: (spec.unlimited, spec.limit) for name, spec in methods.items()} == {
        "health": (True, None),
        "work": (False, 3),
        "more": (False, None),
    }


def test_limited_and_unlimited() -> None:
    """Whoever says which: the two contradict each other, and neither is ignored."""
    parent = type("Parent", (), {"call": method(unlimited=True)(Overrides.same)})
    impl = type("Impl", (parent,), {"call": method(limit=3)(Overrides.same)})
    for cls in (impl, type("Both", (), {"call": method(unlimited=True, limit=3)(Overrides.same)})):
        with pytest.raises(TypeError, match=r"Overrides.same is unlimited, and has limit=3: leave out one of them"):
            describe_contract(cls)


class Overrides:
    """Functions to override `Contract.call` with."""

    def renamed(self: Any, sku: int, b: int = 0, *, c: int = 0) -> int: ...
    def swapped(self: Any, b: int, a: int = 0, *, c: int = 0) -> int: ...
    def shorter(self: Any, a: int, *, c: int = 0) -> int: ...
    def without_keyword(self: Any, a: int, b: int = 0) -> int: ...
    def required(self: Any, a: int, b: int, *, c: int = 0) -> int: ...
    def longer(self: Any, a: int, b: int = 0, *, c: int = 0, d: int) -> int: ...
    def streaming(self: Any, a: int, b: int = 0, *, c: int = 0) -> AsyncGenerator[int, None]: ...
    def same(self: Any, a: int, b: int = 0, *, c: int = 0) -> int: ...
    def positional(self: Any, a: int, b: int = 0, extra: str = "", *, c: int = 0) -> int: ...
    def unnamed(self: Any, a: int, /, b: int = 0, *, c: int = 0) -> int: ...
    async def asynchronous(self: Any, a: int, b: int = 0, *, c: int = 0) -> int: ...


@pytest.mark.parametrize(
    ("function", "options", "complaint"),
    [
        (Overrides.renamed, {}, "parameter 'a', which it drops, renames or moves"),
        (Overrides.unnamed, {}, "parameter 'a', which it drops, renames or moves"),
        (Overrides.swapped, {}, "parameter 'a', which it drops, renames or moves"),
        (Overrides.shorter, {}, "parameter 'b', which it drops, renames or moves"),
        (Overrides.without_keyword, {}, "parameter 'c', which it drops, renames or moves"),
        (Overrides.required, {}, "parameter 'b' from optional to required"),
        (Overrides.longer, {}, "the parameters by 'd', which needs a default"),
        (Overrides.streaming, {}, "the call from unary to server stream"),
        (Overrides.same, {"idempotent": False}, "idempotent from True to False"),
        (Overrides.same, {"thread": False}, "thread from True to False"),
        (Overrides.same, {"unlimited": False}, "unlimited from True to False"),
    ],
)
def test_overrides_never_change(function: Callable[..., Any], options: Any, complaint: str) -> None:
    """What an override changes is told, with both names."""
    impl = type("Impl", (Contract,), {"call": method(**options)(function)})
    with pytest.raises(TypeError, match=rf"{function.__name__} changes {complaint}, as Contract.call says it"):
        describe_services(impl())


def test_an_override_adds_a_positional_parameter() -> None:
    """It comes behind those of the contract, and before the keyword-only ones."""
    impl = type("Impl", (Contract,), {"call": method(Overrides.positional)})
    [spec] = served(impl())["Contract"].values()
    assert [p.name for p in spec.parameters] == ["a", "b", "extra", "c"]


def test_an_async_override_of_a_threaded_method() -> None:
    """A coroutine cannot run in a worker thread."""
    impl = type("Impl", (Contract,), {"call": method(Overrides.asynchronous)})
    with pytest.raises(TypeError, match="asynchronous is async, and its contract says thread=True"):
        describe_services(impl())


def test_an_override_without_the_decorator() -> None:
    """It would be reachable by accident or not at all: it is refused, on both sides."""

    class Impl(Inventory):
        async def stock(self, sku: str) -> int:
            return 1

    sentence = r"Impl.stock overrides the method Inventory.stock, and is none itself: decorate it with @method"
    with pytest.raises(TypeError, match=sentence):
        describe_services(Impl())
    with pytest.raises(TypeError, match=sentence):
        describe_contract(Impl)


# -- declarations ------------------------------------------------------------------------------------------------------


class Bodies:
    """Pairs of a body and what it is, which the name tells."""

    def declared_bare(self) -> int:
        raise NotImplementedError

    async def declared_with_text(self) -> int:
        """Say why."""
        raise NotImplementedError(f"{self!r} leaves this to others")

    def declared_from_none(self) -> int:
        raise NotImplementedError("no") from None

    async def declared_ellipsis(self) -> int: ...

    async def declared_docstring(self) -> int:  # pyright: ignore[reportReturnType]
        """Nothing but this."""

    def declared_closure(self) -> object:
        raise NotImplementedError(lambda: self)

    async def declared_stream(self) -> AsyncGenerator[int, None]:
        raise NotImplementedError
        yield 1  # type: ignore[unreachable]

    async def implemented_nothing(self) -> None: ...

    async def implemented_pass(self) -> None:
        pass

    async def implemented_unannotated(self):  # type: ignore[no-untyped-def]
        return

    async def implemented_none(self) -> int | None:
        return await self.implemented_nothing()  # type: ignore[func-returns-value]

    async def implemented_empty_stream(self) -> AsyncGenerator[int, None]:
        return
        yield 1  # type: ignore[unreachable]

    def implemented_guard(self) -> int:
        if id(self):
            raise NotImplementedError
        return 1

    def implemented_caught(self) -> int:
        try:
            raise NotImplementedError("caught")
        except NotImplementedError:
            return 1

    def implemented_other(self) -> int:
        raise ValueError("not implemented")

    def implemented_first(self) -> int:
        print("first")
        raise NotImplementedError

    def implemented_choice(self) -> int:
        raise NotImplementedError if id(self) else ValueError


@pytest.mark.parametrize("name", [name for name in vars(Bodies) if not name.startswith("__")])
def test_declarations_are_told_from_implementations(name: str) -> None:
    """Only a body that does nothing but raise NotImplementedError, or nothing where a result is promised."""
    spec = only(contract(vars(Bodies)[name]))
    assert spec.implemented is name.startswith("implemented")


# -- types -------------------------------------------------------------------------------------------------------------


class Store(Generic[T]):
    @method
    async def get(self, key: str) -> T | None:
        raise NotImplementedError

    @method
    def scan(self, keys: AsyncIterable[T]) -> AsyncGenerator[list[T], None]:
        raise NotImplementedError


class Keyed(Store[tuple[K, T]], Generic[K, T]):
    pass


class IntStore(Keyed[K, int]):
    @method
    async def get(self, key: str) -> tuple[K, int] | None:
        return None


class Plain:
    @method
    async def choose(self, value: V, notes: dict[K, K]) -> Annotated[list[V], "kept"]:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("seen", "name", "item", "result"),
    [
        (Store[int], "get", None, int | None),
        (Store[int], "scan", int, list[int]),
        (Store, "scan", Any, list[Any]),
        (Keyed[str, bytes], "scan", tuple[str, bytes], list[tuple[str, bytes]]),
        (IntStore[str], "get", None, tuple[str, int] | None),
        (IntStore, "scan", tuple[str, int], list[tuple[str, int]]),
        (Plain, "choose", None, Annotated[list[int | bytes], "kept"]),
    ],
)
def test_type_variables_are_replaced(seen: Any, name: str, item: Any, result: Any) -> None:
    """By the arguments of the contract and of its bases; else by bound, constraints or Any."""
    spec = describe_contract(seen).methods[name]
    assert (spec.stream_item, spec.result) == (item, result)


def test_objects_of_parametrised_classes() -> None:
    """`Store[int]()` remembers its argument."""
    assert served(Store[int]())["Store"]["get"].result == int | None


MODERN = """
from __future__ import annotations
from collections.abc import AsyncIterable
from trio_rpc import method

type Numbers = AsyncIterable[int]

class Store[T]:
    @method
    async def put(self, values: Numbers, extra: T | None) -> list[T]: ...

    @method
    async def echo[U: str](self, value: U) -> U: ...
"""


@pytest.mark.skipif(sys.version_info < (3, 12), reason="type parameters are of Python 3.12")
def test_type_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`class Store[T]` and `type Numbers = ...` mean what TypeVar and an assignment mean."""
    (tmp_path / "modern_contract.py").write_text(MODERN)
    monkeypatch.syspath_prepend(tmp_path)
    methods = describe_contract(importlib.import_module("modern_contract").Store[int]).methods
    assert (methods["put"].shape, methods["put"].stream_item) == (Shape.CLIENT_STREAM, int)
    assert (methods["put"].parameters[0].annotation, methods["put"].result) == (int | None, list[int])
    assert methods["echo"].result is str


class Lazy:
    """Its annotations are text, and partly imported for type checkers only."""

    @method
    async def fraction(self, value: Fraction) -> list[Money]: ...

    @method
    async def submodule(self, future: futures.Future[int]) -> Lazy: ...

    @method
    def stream(self, levels: only_for_checkers.AsyncIterable[Later]) -> only_for_checkers.AsyncGenerator[Later]:
        raise NotImplementedError

    @method
    async def nested(self, values: list[dict[str, Later]]) -> None: ...


class Later:
    pass


def test_names_are_found_late() -> None:
    """Forward references and TYPE_CHECKING imports are resolved when they are needed."""
    methods = describe_contract(Lazy).methods
    assert methods["fraction"].parameters[0].annotation is fractions.Fraction
    assert methods["fraction"].result == list[decimal.Decimal]
    assert methods["submodule"].parameters[0].annotation == concurrent.futures.Future[int]
    assert methods["submodule"].result is Lazy
    assert (methods["stream"].shape, methods["stream"].stream_item, methods["stream"].result) == (
        Shape.BIDI,
        Later,
        Later,
    )
    assert methods["nested"].parameters[0].annotation == list[dict[str, Later]]


def test_names_of_enclosing_functions_are_found() -> None:
    """A contract and its types may be local."""

    class Local:
        pass

    class Contract:
        class Inner:
            pass

        @method
        async def call(self, value: Local) -> list[Inner]: ...

        @method(idempotent=True)
        async def itself(self) -> Contract: ...

    methods = describe_contract(Contract).methods
    assert methods["call"].parameters[0].annotation is Local
    assert methods["call"].result == list[Contract.Inner]
    assert methods["itself"].result is Contract


def test_names_of_mere_callers_are_not() -> None:
    """Only the blocks around a class count, as for any name in Python."""

    def make() -> type:
        class Contract:
            @method
            async def call(self, value: Elsewhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821  # pyright: ignore[reportUndefinedVariable]

        return Contract

    def caller() -> type:
        Elsewhere = int  # noqa: F841, N806
        return make()

    with pytest.raises(TypeError, match="'Elsewhere' in its annotations is not known at run time"):
        describe_contract(caller())


class Unresolved:
    """Annotations that name nothing."""

    def unknown(self: Any, value: Unknown) -> None: ...
    def missing(self: Any, value: Missing) -> None: ...
    def broken(self: Any, value: typing.Optional[1, 2]) -> None: ...  # type: ignore[valid-type]  # pyright: ignore  # noqa: UP045, PGH003


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (
            Unresolved.unknown,
            r"unknown: 'Unknown' in its annotations is not known at run time: define or import it at the top of",
        ),
        (
            Unresolved.missing,
            r"missing: 'Missing' in its annotations is imported for type checkers only, and that import fails",
        ),
        (Unresolved.broken, r"broken: its annotations cannot be resolved: TypeError"),
    ],
)
def test_names_that_cannot_be_found(function: Callable[..., Any], complaint: str) -> None:
    """The sentence has the method, the name, and what to do."""
    with pytest.raises(TypeError, match=complaint):
        describe_contract(contract(function))


Stream = AsyncIterable[int]


def test_streams_under_other_names() -> None:
    """An alias, `Annotated` and a typing name are seen through; a decorator's wrapper keeps what is inside."""

    def logged(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return wrapper

    class Aliases:
        @method
        async def alias(self, values: Stream) -> None: ...

        @method
        async def annotated(self, values: Annotated[typing.AsyncIterable[int], "doc"]) -> None: ...

        @method
        async def quoted(self, values: "AsyncIterable[int]") -> None: ...  # noqa: UP037

        @method
        @logged
        async def wrapped(self, values: AsyncIterable[int]) -> None: ...

    specs = describe_contract(Aliases).methods.values()
    assert [(s.shape, s.stream_item, s.is_async) for s in specs] == [(Shape.CLIENT_STREAM, int, True)] * 4


def test_a_plain_def_may_return_a_coroutine() -> None:
    """Its result is what the coroutine ends with."""

    class Forwarding:
        @method
        def call(self) -> Coroutine[Any, Any, int]:
            raise NotImplementedError

    spec = only(Forwarding)
    assert (spec.result, spec.is_async) == (int, True)


def test_no_result_type_is_any() -> None:
    """A missing result annotation promises nothing."""

    class Loose:
        @method
        async def call(self):  # type: ignore[no-untyped-def]
            return 1

    assert only(Loose).result is Any


# -- mistakes ----------------------------------------------------------------------------------------------------------


def no_self(sku: str) -> int:
    """Lack `self`."""
    return len(sku)


class Mistakes:
    """One mistake each, but for the last."""

    def keyword_self(*, self: Any) -> int: ...
    async def two_streams(self: Any, a: AsyncIterable[int], b: AsyncIterable[int]) -> int: ...
    async def untyped(self: Any, sku) -> int: ...  # type: ignore[no-untyped-def]
    async def variadic(self: Any, *args: int) -> int: ...
    async def keywords(self: Any, **options: int) -> int: ...
    async def stream_default(self: Any, levels: AsyncIterable[int] = ...) -> int: ...  # pyright: ignore[reportArgumentType]
    async def iterator_parameter(self: Any, levels: AsyncIterator[int]) -> int: ...
    async def channel_parameter(self: Any, levels: MemoryReceiveChannel[int]) -> int: ...
    async def hidden_parameter(self: Any, levels: HiddenIterable[int]) -> int: ...
    def hidden_result(self: Any) -> HiddenIterator[int]: ...
    def plain_with_stream(self: Any, levels: AsyncIterable[int]) -> int: ...
    async def coroutine_of_generator(self: Any) -> AsyncGenerator[int, None]: ...
    async def coroutine_of_iterator(self: Any) -> AsyncIterator[int]: ...
    async def coroutine_of_sync(self: Any) -> Generator[int, None, None]: ...
    async def async_iterable(self: Any) -> AsyncIterable[int]:
        yield 1

    def plain_generator(self: Any) -> Iterator[int]:
        yield 1

    def plain_iterator(self: Any) -> Iterator[int]: ...
    def plain_iterable(self: Any) -> AsyncIterable[int]: ...
    def awaitable(self: Any) -> typing.Awaitable[int]: ...
    async def wrong_annotation(self: Any) -> int:  # type: ignore[misc]  # pyright: ignore[reportInvalidReturnType]
        yield 1  # pyright: ignore[reportReturnType]

    async def good(self: Any) -> int: ...


@pytest.mark.parametrize("wrapper", [classmethod, staticmethod, property, functools.cached_property])
def test_a_method_under_another_decorator(wrapper: Callable[[Any], Any]) -> None:
    """Put the wrong way round, the decorators hide a method from us; it is told as the right way round is."""
    members = {"good": wrapper(method(Mistakes.good)), "other": method(Mistakes.good)}
    hidden = type("Hidden", (), members)
    with pytest.raises(TypeError, match=r"good is a .*under @method"):
        describe_services(hidden())
    with pytest.raises(TypeError, match=r"good is a .*under @method"):
        describe_contract(type("Heir", (hidden,), {}))


@pytest.mark.parametrize(
    ("subject", "options", "complaint"),
    [
        (classmethod(Mistakes.good), {}, "good is a classmethod.*write `def good"),
        (staticmethod(Mistakes.good), {}, "good is a staticmethod.*write `def good"),
        (property(Mistakes.good), {}, "good is a property.*write `async def good"),
        (functools.cached_property(Mistakes.good), {}, "good is a property"),
        (Level, {}, "Level is a class: put @method on the functions in it"),
        (functools.partial(Mistakes.good, 1), {}, "takes a function defined in a class, not Mistakes.good"),
        (print, {}, "takes a function defined in a class, not print"),
        (method(Mistakes.good), {}, r"takes a function defined in a class, not Mistakes.good \(a Method\)"),
        (lambda: 0, {}, "<lambda>: its first parameter must be the object: write `self`"),
        (no_self, {}, "its first parameter must be the object"),
        (Mistakes.keyword_self, {}, "its first parameter must be the object"),
        (Mistakes.two_streams, {}, "'a' and 'b' are both streams"),
        (Mistakes.untyped, {}, "parameter 'sku' has no type: annotate it, as `sku: str`"),
        (Mistakes.variadic, {}, r"`\*args: 'int'` cannot be carried.*write a list or a dict"),
        (Mistakes.keywords, {}, r"`\*\*options: 'int'` cannot be carried"),
        (Mistakes.stream_default, {}, "'levels' is a stream, which is always given: leave out its default"),
        (Mistakes.iterator_parameter, {}, "'levels' is a stream: annotate it as `AsyncIterable"),
        (Mistakes.plain_with_stream, {}, "a plain `def` cannot iterate the stream 'levels': write `async def`"),
        (Mistakes.coroutine_of_generator, {}, "is `async def` without `yield`: write `def` where it is only declared"),
        (Mistakes.coroutine_of_iterator, {}, "is `async def` without `yield`"),
        (Mistakes.coroutine_of_sync, {}, "is `async def` without `yield`"),
        (Mistakes.async_iterable, {}, "it gives a stream: annotate it as `AsyncGenerator"),
        (Mistakes.plain_generator, {}, "it is a plain generator: write `async def`"),
        (Mistakes.plain_iterator, {}, "a plain generator cannot be a result"),
        (Mistakes.plain_iterable, {}, "it gives a stream: annotate it as `AsyncGenerator"),
        (Mistakes.awaitable, {}, "nothing tells what is awaited: write `async def`"),
        (Mistakes.wrong_annotation, {}, "it gives a stream: annotate it as `AsyncGenerator"),
        (Mistakes.good, {"thread": True}, "thread=True is for a plain `def`"),
        (Overrides.streaming, {"thread": True}, "thread=True is for a plain `def`"),
        (Mistakes.good, {"raises": OutOfStock}, r"is no list of exception classes: write `raises=\[SomeError\]`"),
        (Mistakes.good, {"raises": [OutOfStock()]}, "is no list of exception classes"),
        (Mistakes.good, {"raises": [int]}, "is no list of exception classes"),
        (Mistakes.good, {"raises": [KeyboardInterrupt]}, "is no list of exception classes"),
        (Mistakes.good, {"raises": "OutOfStock"}, "is no list of exception classes"),
    ],
)
def test_mistakes_are_told_at_the_decorator(subject: Any, options: Any, complaint: str) -> None:
    """Each in a sentence that says what to write instead."""
    with pytest.raises(TypeError, match=complaint):
        method(**options)(subject)


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (Mistakes.channel_parameter, "'levels' is a stream: annotate it as `AsyncIterable"),
        (Mistakes.hidden_parameter, "'levels' is a stream: annotate it as `AsyncIterable"),
        (Mistakes.hidden_result, "it gives a stream: annotate it as `AsyncGenerator"),
    ],
)
def test_streams_that_the_decorator_could_not_see(function: Callable[..., Any], complaint: str) -> None:
    """Under TYPE_CHECKING, and under another name: told as soon as names are resolved."""
    with pytest.raises(TypeError, match=complaint):
        describe_contract(contract(function))


# -- the descriptor ----------------------------------------------------------------------------------------------------


def test_a_method_describes_itself() -> None:
    """What the decorator was told, and what functools.wraps keeps."""
    stock = vars(Inventory)["stock"]
    assert isinstance(stock, Method)
    assert getattr(Inventory, "stock") is stock  # noqa: B009 -- the checkers see a function there
    assert (stock.name, stock.shape, stock.raises, stock.idempotent, stock.thread) == (
        "stock",
        Shape.UNARY,
        (),
        True,
        None,
    )
    assert stock.declaration
    assert (stock.__name__, stock.__qualname__, stock.__doc__) == ("stock", "Inventory.stock", "How many there are.")
    assert list(inspect.signature(stock).parameters) == ["self", "sku"]
    assert repr(stock) == "<Method Inventory.stock: unary>"


def test_an_alias_is_served_by_its_own_name() -> None:
    """The method itself keeps the name that it was given first."""
    stock = vars(Inventory)["stock"]
    alias = type("Alias", (), {"available": stock})
    assert only(alias).wire_name == "Alias.available"
    assert stock.name == "stock"


def test_a_method_may_be_added_to_a_class_later() -> None:
    """Then it has no `__set_name__`, and works all the same."""

    class Grown:
        pass

    Grown.call = method(Mistakes.good)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    assert only(Grown).wire_name == "Grown.call"


# -- the stream among the arguments ------------------------------------------------------------------------------------


class Placed:
    @method
    async def first(self, s: AsyncIterable[int], a: int = 0) -> None: ...

    @method
    async def last(self, a: int, s: AsyncIterable[int], /) -> None: ...

    @method
    async def keyword(self, a: int = 0, *, s: AsyncIterable[int]) -> None: ...


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "rest", "restored"),
    [
        ("first", ("S",), {}, ((), {}), (("S",), {})),
        ("first", ("S", 1), {}, ((1,), {}), (("S", 1), {})),
        ("first", (), {"s": "S", "a": 1}, ((), {"a": 1}), (("S",), {"a": 1})),
        ("last", (1, "S"), {}, ((1,), {}), ((1, "S"), {})),
        ("keyword", (1,), {"s": "S"}, ((1,), {}), ((1,), {"s": "S"})),
        ("keyword", (), {"s": "S"}, ((), {}), ((), {"s": "S"})),
    ],
)
def test_the_stream_is_taken_out_and_put_back(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], rest: Any, restored: Any
) -> None:
    """The request carries the other arguments; the handler gets all of them in their places."""
    spec = describe_contract(Placed).methods[name]
    *others, stream = spec.take_stream(args, kwargs)
    assert (tuple(others), stream) == (rest, "S")
    args, kwargs = rest
    assert spec.put_stream(args, kwargs, "S") == restored


@pytest.mark.parametrize(("name", "kwargs"), [("first", {"a": 1}), ("keyword", {}), ("last", {"s": "S"})])
def test_a_stream_that_is_not_given(name: str, kwargs: dict[str, Any]) -> None:
    """It is a missing argument like any other."""
    with pytest.raises(TypeError, match=rf"{name}\(\) missing a required argument: 's'"):
        describe_contract(Placed).methods[name].take_stream((), kwargs)


def test_descriptions_cannot_be_changed() -> None:
    """Both sides share them."""
    spec: ServiceSpec = describe_contract(Inventory)
    with pytest.raises(TypeError):
        spec.methods["other"] = spec.methods["stock"]  # type: ignore[index]  # pyright: ignore[reportIndexIssue]
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        spec.name = "Other"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
