"""TypedDicts: they travel as maps of their keys, like classes with fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args, get_origin

from ._cost import weigh
from ._forms import Form, FormOf, field_form
from ._generics import field_types
from ._misfit import Misfit, below, describe, expected, name_of, step

__all__ = ["typed_dict_form"]


def typed_dict_form(type_: Any, begun: Callable[[Form], None], form_of: FormOf) -> Form:
    """Return the form of a TypedDict; `begun` gets it before its keys are looked at."""
    cls = get_origin(type_) or type_
    name = name_of(type_)
    dumps: dict[str, Callable[[Any], Any]] = {}
    loads: dict[str, Callable[[Any], Any]] = {}
    required: set[str] = set()
    inners: dict[str, Form] = {}

    def dump(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise expected(name, value)
        for key in value:
            if key not in dumps:
                raise Misfit(f"{name} has no key {describe(key)}", f"{name} has no such key")
        return _items(value, dumps, required)

    def load(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise expected(name, value)
        return _items(value, loads, required)

    form = Form(name, dump, load, {"map"}, (dict,))
    begun(form)
    for key, declared in field_types(type_).items():
        annotation, needed = _requirement(declared, key in cls.__required_keys__)
        inner = field_form(type_, key, annotation, form_of)
        dumps[key], loads[key], inners[key] = inner.dump, inner.load, inner
        if needed:
            required.add(key)
    form.weight, form.dense = weigh((key, inner.weight, inner.dense, key in required) for key, inner in inners.items())
    return form


def _requirement(annotation: Any, needed: bool) -> tuple[Any, bool]:
    """Take `Required[...]` and its like off; with postponed annotations only they tell what is required."""
    while (origin := get_origin(annotation)) is not None:
        special = getattr(origin, "_name", None) or getattr(origin, "__name__", "")
        if special not in ("Required", "NotRequired", "ReadOnly"):
            break
        needed = {"Required": True, "NotRequired": False}.get(special, needed)
        (annotation,) = get_args(annotation)
    return annotation, needed


def _items(value: dict[Any, Any], hooks: dict[str, Callable[[Any], Any]], required: set[str]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    name = ""
    try:
        for name, hook in hooks.items():
            if name in value:
                out[name] = hook(value[name])
            elif name in required:
                raise Misfit("this required key is missing")
    except Exception as error:  # a user's own hook may raise anything
        raise below(error, step(name)) from None
    return out
