"""Annotations, looked at twice.

At the decorator only what is at the head of an annotation matters (is it an AsyncIterable?), and much of what it
names may not exist yet. So `head` looks names up where it can, and goes by the bare word where it cannot.

At `serve` and `stub` every name must be found, and `resolve` looks in this order: what the class and the functions
around the decorator knew by then (classes made inside a function), the module's globals, the builtins, and last the
imports under the module's own `if TYPE_CHECKING:`, which are carried out then, one by one, as needed. A name that is
defined under `if TYPE_CHECKING:` in any other way cannot be found, nor can a local one defined after the method.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib.util
import inspect
import pkgutil
import sys
import typing
from collections import ChainMap
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
)
from typing import Annotated, Any, Generic, Protocol, TypeVar, Union, get_args, get_origin

__all__ = ["captured_names", "head", "item_type", "resolve", "substitute", "type_arguments"]

# What a bare word stands for when it cannot be looked up, because its import is under `if TYPE_CHECKING:`.
_WORDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Coroutine, Generator, Iterator)
}


def captured_names(function: Callable[..., Any]) -> dict[str, Any]:
    """Names that the annotations' text needs and that only the blocks around the decorator know, as they are now.

    Values are taken and not frames, which would keep everything alive that the enclosing function ever held.
    """
    names: set[str] = set()
    for text in inspect.get_annotations(function).values():
        if isinstance(text, str) and (tree := _parse(text)) is not None:
            names.update(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
    missing = {name for name in names if name not in function.__globals__ and not hasattr(builtins, name)}
    found: dict[str, Any] = {}
    frame = inspect.currentframe() if missing else None
    while frame is not None and frame.f_code.co_name != "<module>":
        # The caller of the enclosing function is no block around us: only frames that the name tells of are.
        if function.__qualname__.startswith(f"{frame.f_code.co_qualname}."):
            known = frame.f_locals
            found = {name: known[name] for name in missing if name in known} | found
        frame = frame.f_back
    return found


def head(annotation: Any, function: Callable[..., Any], known: Mapping[str, Any]) -> Any:
    """The class at an annotation's head, `AsyncIterable` for `AsyncIterable[int]`; None where it cannot be told yet."""
    if isinstance(annotation, str):
        tree = _parse(annotation)
        names = ChainMap({**known}, inspect.unwrap(function).__globals__, {**vars(builtins)})
        annotation = None if tree is None else _look_up(tree, names)
    return _origin(annotation)


def item_type(stream: Any) -> Any:
    """The T of `AsyncIterable[T]`, of `AsyncGenerator[T, None]` or of an alias of them; Any where it is not said."""
    stream = getattr(stream, "__value__", stream)
    if get_origin(stream) is Annotated:
        return item_type(get_args(stream)[0])
    return next(iter(get_args(stream)), Any)


def _origin(annotation: Any) -> Any:
    try:
        annotation = getattr(annotation, "__value__", annotation)  # `type Levels = AsyncIterable[Level]`
    except NameError:
        return None
    if get_origin(annotation) is Annotated:
        return _origin(annotation.__origin__)
    return get_origin(annotation) or annotation


def _parse(text: str) -> ast.expr | None:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        return None  # told when it is resolved


def _look_up(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """What the expression's head names, or the class that its last word stands for."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        tree = _parse(node.value)
        return None if tree is None else _look_up(tree, names)
    if isinstance(node, ast.Subscript):
        found = _look_up(node.value, names)
        if found is Annotated and isinstance(node.slice, ast.Tuple):
            return _look_up(node.slice.elts[0], names)
        return found
    if isinstance(node, ast.Name):
        return names[node.id] if node.id in names else _WORDS.get(node.id)
    if isinstance(node, ast.Attribute):
        return getattr(_look_up(node.value, names), node.attr, _WORDS.get(node.attr))
    return None


def resolve(function: Callable[..., Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The annotations with every name found, `Annotated` kept.

    Raises:
        TypeError: a name is not found anywhere; the sentence says which, and what to do.
    """
    function = inspect.unwrap(function)
    names = dict(known)
    while True:
        try:
            return typing.get_type_hints(function, function.__globals__, names, include_extras=True)
        except NameError as exc:
            if exc.name is None or exc.name in names:
                raise TypeError(f"{function.__qualname__}: its annotations cannot be resolved: {exc}") from exc
            names[exc.name] = _import_for_typing(function, exc.name)
        except Exception as exc:  # whatever the annotations' own code raises
            raise TypeError(
                f"{function.__qualname__}: its annotations cannot be resolved: {type(exc).__name__}: {exc}"
            ) from exc


def _import_for_typing(function: Callable[..., Any], name: str) -> Any:
    """Carry out the import of `name` that the function's module keeps under `if TYPE_CHECKING:`."""
    source = _typing_imports(function.__module__).get(name)
    where = f"{function.__qualname__}: {name!r} in its annotations"
    if source is None:
        raise TypeError(
            f"{where} is not known at run time: define or import it at the top of module {function.__module__}"
        )
    try:
        return _carry_out(name, *source)
    except Exception as exc:  # an import runs the imported module's own code
        raise TypeError(f"{where} is imported for type checkers only, and that import fails: {exc}") from exc


def _carry_out(name: str, module: str, attribute: str | None) -> Any:
    # Safe, for these names stand in the source of the user's own module: none of them has come over the wire.
    if attribute is None:
        whole = pkgutil.resolve_name(f"{module}:")
        return whole if name != module.partition(".")[0] else sys.modules[name]  # `import a.b` binds a
    try:
        return pkgutil.resolve_name(f"{module}:{attribute}")
    except AttributeError:
        return pkgutil.resolve_name(f"{module}.{attribute}")  # `from package import submodule`


@functools.lru_cache(maxsize=128)
def _typing_imports(module_name: str) -> dict[str, tuple[str, str | None]]:
    """What a module's `if TYPE_CHECKING:` blocks bind by importing: `{name: (module, attribute or None)}`."""
    try:
        module = sys.modules[module_name]
        tree = ast.parse(inspect.getsource(module))
    except (KeyError, OSError, TypeError, SyntaxError):
        return {}  # no source, no such imports
    package = (module.__spec__.parent if module.__spec__ else module.__package__) or ""
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and _is_type_checking(node.test)]
    return {name: source for block in blocks for node in block.body for name, source in _bindings(node, package)}


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test).rpartition(".")[2] == "TYPE_CHECKING"


def _bindings(node: ast.stmt, package: str) -> Iterator[tuple[str, tuple[str, str | None]]]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.asname or alias.name.partition(".")[0], (alias.name, None)
    elif isinstance(node, ast.ImportFrom):
        base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
        for alias in node.names:
            yield alias.asname or alias.name, (base, alias.name)


def type_arguments(contract: Any) -> dict[type, dict[Any, Any]]:
    """What each generic ancestor's type variables stand for, seen from a class or a parametrised generic.

    A variable that is left open stands for its default, its bound, the union of its constraints, or Any.
    """
    origin: type = get_origin(contract) or contract
    own = {variable: _fallback(variable) for variable in getattr(origin, "__parameters__", ())}
    own.update(zip(own, get_args(contract), strict=False))
    found = {origin: own}
    # Not by getattr: a class without generic bases would show its parent's.
    for base in vars(origin).get("__orig_bases__", origin.__bases__):
        if get_origin(base) not in (Generic, Protocol):
            found = type_arguments(substitute(base, own)) | found
    return found


def substitute(annotation: Any, arguments: Mapping[Any, Any]) -> Any:
    """The annotation with what its type variables stand for in their place; those not given fall back as above."""
    if isinstance(annotation, TypeVar):
        return arguments.get(annotation, _fallback(annotation))
    variables = getattr(annotation, "__parameters__", ())
    if not variables or get_origin(annotation) is None:  # a bare class lists its own variables
        return annotation
    return annotation[tuple(arguments.get(variable, _fallback(variable)) for variable in variables)]


def _fallback(variable: Any) -> Any:
    if not isinstance(variable, TypeVar):
        return variable
    default = getattr(variable, "__default__", None)  # Python 3.13
    if default is not None and getattr(variable, "has_default", bool)():
        return default
    if variable.__constraints__:
        return Union[variable.__constraints__]  # noqa: UP007 -- made from a tuple
    bound = variable.__bound__
    return Any if bound is None or isinstance(bound, typing.ForwardRef) else bound
