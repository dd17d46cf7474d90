"""`@method`: what makes a function callable from elsewhere, and what it says about itself.

The descriptor knows one function and the options beside it. What a whole class serves, and under which name, is
`_contract`'s to say. How a method is called on a local object is `_local`'s, which registers itself here, so that
this module needs no event loop.
"""

from __future__ import annotations

import enum
import functools
import inspect
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Sequence,
)
from contextlib import AbstractAsyncContextManager
from types import MethodType
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, overload

from ._annotations import captured_names, head
from ._declarations import is_declaration
from ._mistakes import STREAM_RESULTS, check_subject, is_asynchronous, mistakes

if TYPE_CHECKING:
    from trio.abc import ReceiveChannel

__all__ = ["Method", "Shape", "method", "set_local_interface"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Shape(enum.Enum):
    """Which sides of a call are streams."""

    UNARY = "unary"
    """Arguments in, one result out."""
    SERVER_STREAM = "server stream"
    """An async generator: arguments in, many results out."""
    CLIENT_STREAM = "client stream"
    """A parameter annotated `AsyncIterable[T]`: many items in, one result out."""
    BIDI = "bidirectional"
    """Both."""

    @property
    def streams_in(self) -> bool:
        """Whether one parameter is a stream."""
        return self in (Shape.CLIENT_STREAM, Shape.BIDI)

    @property
    def streams_out(self) -> bool:
        """Whether the result is a stream."""
        return self in (Shape.SERVER_STREAM, Shape.BIDI)

    @classmethod
    def of(cls, *, streams_in: bool, streams_out: bool) -> Shape:
        """The shape with these streams."""
        if streams_out:
            return cls.BIDI if streams_in else cls.SERVER_STREAM
        return cls.CLIENT_STREAM if streams_in else cls.UNARY


class Method:
    """A function that may be called from elsewhere. Made by `@method`.

    Taken from an object it has the very call interface that a stub has; taken from the class it is this description.

    Attributes:
        name: the attribute's name in its class.
        function: the function as it was written.
        shape: one of `Shape`.
        is_async: whether calling the function gives something to await or to iterate; False for a plain `def`.
        stream_parameter: the name of the parameter that is a stream, or None.
        raises: the exception classes named here; `describe_contract` adds those of the methods it overrides.
        idempotent: True or False where it is said here, None where it is left to the contract.
        thread: likewise.
        unlimited: likewise.
        limit: how many of its calls a server runs at once, or None.
        known_names: names in the annotations' text that only the blocks around the decorator knew.
    """

    __name__: str
    __qualname__: str

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        raises: Sequence[type[Exception]] = (),
        idempotent: bool | None = None,
        thread: bool | None = None,
        unlimited: bool | None = None,
        limit: int | None = None,
    ) -> None:
        check_subject(function)
        functools.update_wrapper(self, function)
        self.function = function
        self.name = function.__name__
        self.owner: type | None = None
        self.known_names = captured_names(function)
        annotations = inspect.get_annotations(inspect.unwrap(function))
        heads = {name: head(annotation, function, self.known_names) for name, annotation in annotations.items()}
        for mistake in mistakes(function, heads, raises, thread, limit):
            raise TypeError(f"{function.__qualname__}: {mistake}")
        self.is_async = is_asynchronous(function, heads)
        self.raises = tuple(raises)
        self.idempotent = idempotent
        self.thread = thread
        self.unlimited = unlimited
        self.limit = limit
        self.stream_parameter = next(
            (name for name in heads if name != "return" and heads[name] is AsyncIterable), None
        )
        streams_out = not inspect.iscoroutinefunction(function) and heads.get("return") in STREAM_RESULTS
        self.shape = Shape.of(
            streams_in=self.stream_parameter is not None,
            streams_out=streams_out or inspect.isasyncgenfunction(function),
        )

    def __set_name__(self, owner: type, name: str) -> None:
        # An alias in another class does not rename; a class made twice (attrs with slots) is the later one.
        self.name = name if self.owner is None else self.name
        self.owner = owner

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self if instance is None else MethodType(self.local, instance)

    def __call__(self, instance: object, /, *args: Any, **kwargs: Any) -> Any:
        """`Inventory.stock(inventory, "A-1")` is `inventory.stock("A-1")`, as for any function in a class."""
        return self.local(instance, *args, **kwargs)

    def __repr__(self) -> str:
        return f"<Method {self.__qualname__}: {self.shape.value}>"

    @property
    def __closure__(self) -> tuple[Any, ...] | None:
        """The function's own cells: where attrs corrects `__class__`, which zero-argument `super()` reads."""
        return self.function.__closure__

    @functools.cached_property
    def local(self) -> Callable[..., Any]:
        """The function with a stub's call interface, not yet bound to an object."""
        return _local_interface[-1](self)

    @functools.cached_property
    def declaration(self) -> bool:
        """Whether the body does nothing but raise NotImplementedError, or nothing at all where that is no result."""
        return is_declaration(self.function, self.owner)


_local_interface: list[Callable[[Method], Callable[..., Any]]] = []


def set_local_interface(make: Callable[[Method], Callable[..., Any]]) -> None:
    """Say how a method is called on a local object: `make(method)` gives a function that takes the object first."""
    _local_interface.append(make)


# --- the decorator ---------------------------------------------------------------------------------------------------


class _Decorator(Protocol):
    """`@method(...)` with options: the same three types as without."""

    # The first and the last overlap; the checkers take the first that fits, which is the one meant.
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[P, AsyncIterator[T]], /
    ) -> Callable[P, AbstractAsyncContextManager[ReceiveChannel[T]]]: ...
    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Callable[P, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Callable[P, Coroutine[Any, Any, R]]: ...


@overload
def method(  # type: ignore[overload-overlap]
    function: Callable[P, AsyncIterator[T]], /
) -> Callable[P, AbstractAsyncContextManager[ReceiveChannel[T]]]: ...
@overload
def method(function: Callable[P, Coroutine[Any, Any, R]], /) -> Callable[P, Coroutine[Any, Any, R]]: ...
@overload
def method(function: Callable[P, R], /) -> Callable[P, Coroutine[Any, Any, R]]: ...
@overload
def method(
    *,
    raises: Sequence[type[Exception]] = (),
    idempotent: bool | None = None,
    thread: bool | None = None,
    unlimited: bool | None = None,
    limit: int | None = None,
) -> _Decorator: ...
def method(
    function: Callable[..., Any] | None = None,
    /,
    *,
    raises: Sequence[type[Exception]] = (),
    idempotent: bool | None = None,
    thread: bool | None = None,
    unlimited: bool | None = None,
    limit: int | None = None,
) -> Any:
    """Let a function of a class be called from elsewhere; alone, or with options.

    An `async def` answers once, an async generator is a stream of results, and a parameter annotated
    `AsyncIterable[T]` a stream of items. A plain `def` runs inline in the event loop, so it must not block.

    Options given in a contract hold for the methods that override it; those may add to them, never change them.

    Args:
        function: the function, when used without options.
        raises: exception classes that keep their type on the way to the caller.
        idempotent: running it twice does no harm, so a call that may have run is retried.
        thread: run a plain `def` in a worker thread.
        unlimited: serve it however busy the server is: its calls are outside of all admission limits. For what an
            operator needs most when a server is overloaded, like a health check; never for work.
        limit: how many of its calls a server runs at once; one more is refused as Overloaded, and did not run.

    Raises:
        TypeError: the function cannot be a method; the sentence says what to write instead.
    """
    make = functools.partial(
        Method, raises=raises, idempotent=idempotent, thread=thread, unlimited=unlimited, limit=limit
    )
    return make if function is None else make(function)
