"""What a class's fields are annotated with, with names resolved and type variables filled in."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Generic, Protocol, TypeVar, get_args, get_origin, get_type_hints

__all__ = ["alias_value", "field_types", "fill"]


def field_types(type_: Any) -> dict[str, Any]:
    """Return the annotation of each field of a class, or of a parametrised generic like `Page[int]`.

    TypeError if a name in an annotation is not defined where the class is.
    """
    cls = get_origin(type_) or type_
    hints = _hints(cls)
    variables = _variables(type_)
    owners = {name: owner for owner in reversed(cls.__mro__) for name in _own_annotations(owner)}
    return {name: fill(hint, variables.get(owners.get(name, cls), {})) for name, hint in hints.items()}


def _hints(cls: type) -> dict[str, Any]:
    # A class inside a function may at least name itself.
    names = {cls.__name__: cls} if not hasattr(sys.modules.get(cls.__module__), cls.__name__) else None
    try:
        return get_type_hints(cls, localns=names, include_extras=True)
    except (NameError, AttributeError, SyntaxError) as error:
        raise TypeError(
            f"an annotation of {cls.__qualname__} cannot be resolved ({error}):"
            " import or define that name at the top of its module"
        ) from error


def alias_value(alias: Any) -> Any:
    """Return what a type alias stands for, names in it resolved; it may name itself."""
    holder = SimpleNamespace(__annotations__={"value": alias.__value__})
    module = vars(sys.modules[alias.__module__])
    try:
        return get_type_hints(holder, globalns=module, localns={alias.__name__: alias}, include_extras=True)["value"]
    except (NameError, AttributeError, SyntaxError) as error:
        raise TypeError(f"the type alias {alias.__name__} cannot be resolved ({error})") from error


def _own_annotations(cls: type) -> Mapping[str, Any]:
    try:
        return inspect.get_annotations(cls)
    except NameError:  # lazy annotations that need names of a function
        return {}


def _variables(type_: Any) -> dict[type, dict[Any, Any]]:
    """Return, for each class in the bases of `type_`, what its type variables stand for."""
    cls = get_origin(type_) or type_
    known = dict(zip(getattr(cls, "__parameters__", ()), get_args(type_), strict=False))
    found = {cls: known}
    for base in getattr(cls, "__orig_bases__", cls.__bases__):
        origin = get_origin(base) or base
        if origin not in (Generic, Protocol, object) and isinstance(origin, type):
            for owner, values in _variables(fill(base, known)).items():
                found.setdefault(owner, values)
    return found


def fill(hint: Any, values: Mapping[Any, Any]) -> Any:
    """Return `hint` with its type variables replaced; an unbound one becomes its bound, or Any."""
    if isinstance(hint, TypeVar):
        return values.get(hint, hint.__bound__ or Any)
    parameters = getattr(hint, "__parameters__", ())
    if not parameters or get_origin(hint) is None:
        return hint
    return hint[tuple(fill(parameter, values) for parameter in parameters)]
