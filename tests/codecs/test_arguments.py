"""Arguments: bound like Python's, sent in the smallest form, and checked with their names."""

# ruff: noqa: D103 -- the functions up front are signatures and nothing else

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from trio_rpc import DecodeError, EncodeError
from trio_rpc.codecs import ArgumentsCarrier, adapter_for


@attrs.frozen
class Point:
    x: int


def one(a: Any) -> None: ...
def plain(a: dict, b: str = "b") -> None: ...  # type: ignore[type-arg]
def typed(a: int, b: list[Point], c: float = 1.0, d: str = "d") -> None: ...
def only(a: int, /, b: int = 2, *, k: str = "k") -> None: ...
def needs(*, k: str) -> None: ...
def rest(a: int, *more: Point, k: int = 0, **others: Point) -> None: ...
def anything(*args: Any, **kwargs: Any) -> None: ...
def nothing() -> None: ...
def large(data: bytes, *, tail: bytes = b"") -> None: ...


def carrier(codec: str, function: Callable[..., None]) -> ArgumentsCarrier:
    """The carrier of a function's arguments."""
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    return adapter_for(codec).arguments(parameters, name=f"Service.{function.__name__}")


CALLS: list[tuple[Callable[..., None], tuple[Any, ...], dict[str, Any], Any]] = [
    (nothing, (), {}, []),
    (one, (5,), {}, [5]),
    (one, (), {"a": 5}, [5]),
    (plain, ({"a": 1},), {}, [{"a": 1}]),
    (plain, ({}, "x"), {}, [{}, "x"]),
    (typed, (1, [Point(2)]), {}, [1, [{"x": 2}]]),
    (typed, (1,), {"b": [], "c": 2}, [1, [], 2.0]),
    (typed, (), {"d": "x", "b": [], "a": 1}, {"*": [1, []], "d": "x"}),
    (only, (1,), {}, [1]),
    (only, (1, 5), {"k": "x"}, {"*": [1, 5], "k": "x"}),
    (needs, (), {"k": "x"}, {"*": [], "k": "x"}),
    (rest, (1, Point(2), Point(3)), {}, [1, {"x": 2}, {"x": 3}]),
    (rest, (1,), {"k": 2, "p": Point(3)}, {"*": [1], "k": 2, "p": {"x": 3}}),
    (anything, (1, "a"), {"self": None}, {"*": [1, "a"], "self": None}),
]


@pytest.mark.parametrize(("function", "args", "kwargs", "wire"), CALLS)
def test_arguments_arrive_as_python_would_bind_them(
    codec: str, function: Callable[..., None], args: Any, kwargs: Any, wire: Any
) -> None:
    """An array of the values; a map only where keywords are needed; nothing is sent for what was not given."""
    arguments = carrier(codec, function)
    payload, blobs = arguments.encode(args, kwargs)
    assert (adapter_for(codec).codec.decode(payload, ()), blobs) == (wire, [])
    new_args, new_kwargs = arguments.decode(payload, ())
    signature = inspect.signature(function)
    assert signature.bind(*new_args, **new_kwargs) == signature.bind(*args, **kwargs)


MISUSES: list[tuple[Callable[..., None], tuple[Any, ...], dict[str, Any], str]] = [
    (nothing, (1,), {}, r"^Service\.nothing\(\) too many positional arguments"),
    (typed, (1,), {}, r"^Service\.typed\(\) missing a required argument: 'b'"),
    (typed, (1, []), {"a": 2}, r"multiple values for argument 'a'"),
    (typed, (1, []), {"x": 2}, r"got an unexpected keyword argument 'x'"),
    (only, (), {"a": 1}, r"'a'"),
    (needs, (), {}, r"missing a required.*argument: 'k'"),
]


@pytest.mark.parametrize(("function", "args", "kwargs", "message"), MISUSES)
def test_a_misuse_is_a_type_error_of_the_caller(
    codec: str, function: Callable[..., None], args: Any, kwargs: Any, message: str
) -> None:
    """As if the function were local; the method is named."""
    with pytest.raises(TypeError, match=message):
        carrier(codec, function).encode(args, kwargs)


@pytest.mark.parametrize(("function", "args", "kwargs", "message"), MISUSES)
def test_a_misuse_that_arrives_is_refused(
    codec: str, function: Callable[..., None], args: Any, kwargs: Any, message: str
) -> None:
    """W18: with the same words, whatever the form on the wire."""
    payload, _ = adapter_for(codec).carrier(Any).encode({"*": list(args), **kwargs} if kwargs else list(args))
    with pytest.raises(DecodeError, match=message):
        carrier(codec, function).decode(payload, ())


MISFITS: list[tuple[Callable[..., None], tuple[Any, ...], dict[str, Any], str]] = [
    (typed, ("1", []), {}, r"^a: expected int, got str '1'"),
    (typed, (1, [Point(1), Point("7")]), {}, r"^b\[1\]\.x: expected int, got str '7'"),  # type: ignore[arg-type]
    (typed, (1, []), {"c": "x"}, "^c: expected float, got str 'x'"),
    (typed, (1, []), {"d": 5}, "^d: expected str, got int 5"),
    (plain, ([],), {}, "^a: expected dict, got list"),
    (rest, (1, Point(1), Point(None)), {}, r"^more\[1\]\.x: expected int, got None"),  # type: ignore[arg-type]
    (rest, (1,), {"p": Point("")}, r"^p\.x: expected int"),  # type: ignore[arg-type]
    (needs, (), {"k": 1}, "^k: expected str, got int 1"),
]


@pytest.mark.parametrize(("function", "args", "kwargs", "message"), MISFITS)
def test_a_misfit_names_argument_and_path(
    codec: str, function: Callable[..., None], args: Any, kwargs: Any, message: str
) -> None:
    """On the caller's side before anything is sent, and on the server's before the handler is entered."""
    with pytest.raises(EncodeError, match=message):
        carrier(codec, function).encode(args, kwargs)
    plain_args, plain_kwargs = attrs.asdict(Both(args, kwargs)).values()
    payload, _ = adapter_for(codec).carrier(Any).encode({"*": plain_args, **plain_kwargs})
    with pytest.raises(DecodeError, match=message):
        carrier(codec, function).decode(payload, ())


@attrs.frozen
class Both:
    """Arguments, for `attrs.asdict` to make plain."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def test_what_the_codec_refuses_names_the_argument(codec: str) -> None:
    """Untyped arguments too."""
    for args, kwargs in (((1, {"a": [2**64]}), {}), ((1,), {"b": {"a": [2**64]}})):
        where = "^b" if kwargs else r"^args\[1\]"
        with pytest.raises(EncodeError, match=where + r"\.a\[0\]: an integer must lie"):
            carrier(codec, anything).encode(args, kwargs)
    with pytest.raises(EncodeError, match=r"^arguments: "):
        carrier(codec, anything).encode(([[]] * 15_000, [[]] * 15_000), {})


@pytest.mark.parametrize("wire", [None, 5, "a", {}, {"a": 1}, {"*": 5}, {"*": {}, "a": 1}])
def test_anything_else_is_no_arguments(codec: str, wire: Any) -> None:
    """Neither an array nor the map."""
    payload, _ = adapter_for(codec).carrier(Any).encode(wire)
    with pytest.raises(DecodeError, match=r"^arguments: expected an array, or a map with"):
        carrier(codec, one).decode(payload, ())


def test_large_buffers_of_arguments_travel_beside(codec: str) -> None:
    """Positional and keyword ones."""
    first, second = b"1" * 70_000, b"2" * 70_000
    payload, blobs = carrier(codec, large).encode((first,), {"tail": second})
    assert [id(blob) for blob in blobs] == [id(first), id(second)]
    assert len(payload) < 100
    assert carrier(codec, large).decode(payload, [first, second]) == ((first,), {"tail": second})


def test_a_parameter_that_no_codec_carries_is_told_early(codec: str) -> None:
    """With its name and its method's."""

    def bad(a: int, b: complex) -> None: ...

    with pytest.raises(TypeError, match=r"parameter 'b' of Service\.bad: no codec carries complex"):
        carrier(codec, bad)
