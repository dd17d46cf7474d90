"""Mistakes that the decorator can see, each told in a sentence that says what to write instead."""

from __future__ import annotations

import functools
import inspect
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterator,
    Mapping,
    Sequence,
)
from inspect import Parameter
from types import FunctionType
from typing import Any

__all__ = ["STREAM_RESULTS", "check_subject", "is_async_iterable", "is_asynchronous", "mistakes", "wrapped"]

STREAM_RESULTS = (AsyncGenerator, AsyncIterator)
_ITERATORS = (AsyncGenerator, AsyncIterator, AsyncIterable, Generator, Iterator)
_VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)

_WRONG_SUBJECTS: list[tuple[type | tuple[type, ...], str]] = [
    (classmethod, "is a classmethod, and calls go to an object: write `def {name}(self, ...)` under @method alone"),
    (staticmethod, "is a staticmethod, and calls go to an object: write `def {name}(self, ...)` under @method alone"),
    (
        (property, functools.cached_property),
        "is a property, and a remote value must be awaited: write `async def {name}(self)` under @method",
    ),
    (type, "is a class: put @method on the functions in it (and @service on the class, to name it)"),
]


def check_subject(subject: Any) -> None:
    """Refuse what is no plain function."""
    if isinstance(subject, FunctionType):
        return
    inner = getattr(subject, "fget", None) or getattr(subject, "func", None) or subject
    name = getattr(inner, "__qualname__", repr(subject))
    for wrong, complaint in _WRONG_SUBJECTS:
        if isinstance(subject, wrong):
            raise TypeError(f"{name} {complaint.format(name=name.rpartition('.')[2])}")
    raise TypeError(
        f"@method takes a function defined in a class, not {name} (a {type(subject).__name__}): write `def` or `async def` under it"
    )


def wrapped(member: object) -> object:
    """What a member of a class has under a decorator that methods cannot have, else None."""
    if isinstance(member, classmethod | staticmethod):
        return member.__func__
    if isinstance(member, property):
        return member.fget
    return member.func if isinstance(member, functools.cached_property) else None


def mistakes(
    function: Callable[..., Any], heads: Mapping[str, Any], raises: Any, thread: bool | None, limit: Any
) -> Iterator[str]:
    parameters = list(inspect.signature(function).parameters.values())
    yield from _self_mistakes(parameters)
    yield from _parameter_mistakes(parameters[1:], heads)
    yield from _result_mistakes(function, heads.get("return"))
    yield from _option_mistakes(function, heads, raises, thread)
    if limit is not None and (type(limit) is not int or limit < 1):
        yield f"limit={limit!r} is no number of calls: write 1 or more, or leave it out"


def _self_mistakes(parameters: list[Parameter]) -> Iterator[str]:
    first = parameters[0] if parameters else None
    if (
        first is None
        or first.kind is Parameter.KEYWORD_ONLY
        or (first.name != "self" and first.annotation is not Parameter.empty)
    ):
        yield "its first parameter must be the object: write `self` before the others"


def _parameter_mistakes(parameters: list[Parameter], heads: Mapping[str, Any]) -> Iterator[str]:
    for parameter in parameters:
        name, kind = parameter.name, heads.get(parameter.name)
        if parameter.kind in _VARIADIC:
            yield f"`{parameter}` cannot be carried, for it names no parameters: write a list or a dict instead"
        if parameter.annotation is Parameter.empty:
            yield f"parameter {name!r} has no type: annotate it, as `{name}: str` or, for anything, `{name}: object`"
        if kind is not AsyncIterable and is_async_iterable(kind):
            yield f"parameter {name!r} is a stream: annotate it as `AsyncIterable[...]`, which callers can give in any form"
        if kind is AsyncIterable and parameter.default is not Parameter.empty:
            yield f"parameter {name!r} is a stream, which is always given: leave out its default"
    streams = [parameter.name for parameter in parameters if heads.get(parameter.name) is AsyncIterable]
    if len(streams) > 1:
        yield f"{streams[0]!r} and {streams[1]!r} are both streams, and a call carries one: make them one stream of a union"


def _result_mistakes(function: Callable[..., Any], result: Any) -> Iterator[str]:
    if inspect.isgeneratorfunction(function):
        yield "it is a plain generator: write `async def`, and annotate it as `AsyncGenerator[..., None]`"
    elif inspect.iscoroutinefunction(function):
        if result in _ITERATORS:
            yield (
                "it is annotated as a generator, but is `async def` without `yield`: "
                "write `def` where it is only declared, or `yield` in it"
            )
        elif is_async_iterable(result):
            yield "a stream cannot be a result: annotate it as `AsyncGenerator[..., None]`, and `yield` in it"
    elif result is Awaitable:
        yield "nothing tells what is awaited: write `async def`, or annotate it as `Coroutine[Any, Any, ...]`"
    elif result in (Generator, Iterator):
        yield "a plain generator cannot be a result: annotate it as `AsyncGenerator[..., None]`, or return a list"
    elif result not in STREAM_RESULTS and (
        is_async_iterable(result) or (inspect.isasyncgenfunction(function) and result is not None)
    ):
        yield "it gives a stream: annotate it as `AsyncGenerator[..., None]`"


def _option_mistakes(
    function: Callable[..., Any], heads: Mapping[str, Any], raises: Any, thread: bool | None
) -> Iterator[str]:
    if not isinstance(raises, Sequence) or not all(isinstance(e, type) and issubclass(e, Exception) for e in raises):
        yield f"raises={raises!r} is no list of exception classes: write `raises=[SomeError]` (they derive from Exception)"
    asynchronous = is_asynchronous(function, heads)
    if thread and (asynchronous or heads.get("return") in STREAM_RESULTS):
        yield "thread=True is for a plain `def` that returns its result: leave it out, or write `def`"
    streams = [name for name, kind in heads.items() if kind is AsyncIterable and name != "return"]
    if streams and not asynchronous and heads.get("return") not in STREAM_RESULTS:
        yield f"a plain `def` cannot iterate the stream {streams[0]!r}: write `async def`"


def is_asynchronous(function: Callable[..., Any], heads: Mapping[str, Any]) -> bool:
    """Whether a call gives a coroutine or an async generator: `async def`, also behind a decorator's wrapper."""
    inner = inspect.unwrap(function)
    return (
        inspect.iscoroutinefunction(inner)
        or inspect.isasyncgenfunction(inner)
        or (inner is function and heads.get("return") is Coroutine)
    )


def is_async_iterable(kind: Any) -> bool:
    """Whether a class is iterated with `async for`."""
    return isinstance(kind, type) and hasattr(kind, "__aiter__")
