"""Classes with fields: attrs, dataclasses, NamedTuples and TypedDicts. They travel as maps of their fields.

Unknown keys of a map are ignored (the other side may be newer), a missing field without a default is an error.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Iterator
from typing import Any, get_args, get_origin

import attrs

from ._forms import Form, FormOf, as_is
from ._generics import field_types
from ._misfit import Misfit, below, describe, expected, name_of, step

__all__ = ["Field", "class_form", "declared", "dump_fields", "fields_of", "has_fields", "load_fields"]


@attrs.frozen
class Field:
    """One field of a class.

    Attributes:
        name: its name in Python and on the wire.
        parameter: its name in `__init__`, or "" if it is not there.
        default: makes its value where none came, or None if one must come.
    """

    name: str
    parameter: str
    form: Form
    default: Callable[[], Any] | None


def _is_named_tuple(type_: Any) -> bool:
    """Whether `type_` is a class made by NamedTuple."""
    return inspect.isclass(type_) and issubclass(type_, tuple) and hasattr(type_, "_fields")


def has_fields(type_: Any) -> bool:
    """Whether `class_form` knows this type; parametrised generics of such classes count."""
    cls = get_origin(type_) or type_
    if not inspect.isclass(cls):
        return False
    return attrs.has(cls) or dataclasses.is_dataclass(cls) or _is_named_tuple(cls) or typing.is_typeddict(cls)


def declared(cls: Any) -> Iterator[tuple[str, str, Callable[[], Any] | None]]:
    """Yield `(name, parameter, default)` of each field."""
    if attrs.has(cls):
        for field in attrs.fields(cls):
            yield field.name, (field.alias or field.name) if field.init else "", _attrs_default(field)
    elif dataclasses.is_dataclass(cls):
        for part in dataclasses.fields(cls):
            yield part.name, part.name if part.init else "", _dataclass_default(part)
    else:
        for name in cls._fields:
            default = cls._field_defaults.get(name, attrs.NOTHING)
            yield name, name, None if default is attrs.NOTHING else functools.partial(as_is, default)


def _attrs_default(field: attrs.Attribute[Any]) -> Callable[[], Any] | None:
    default: Any = field.default
    if default is attrs.NOTHING:
        return None
    if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
        return functools.partial(default.factory, None) if default.takes_self else default.factory
    return functools.partial(as_is, default)


def _dataclass_default(field: dataclasses.Field[Any]) -> Callable[[], Any] | None:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory
    return None if field.default is dataclasses.MISSING else functools.partial(as_is, field.default)


def fields_of(type_: Any, form_of: FormOf) -> list[Field]:
    """Return the fields of an attrs class, dataclass or NamedTuple, each with its form.

    TypeError, with the field's name, if one has none.
    """
    cls = get_origin(type_) or type_
    types = field_types(type_)
    if attrs.has(cls):  # `attrs.field(type=...)` is no annotation
        types = {field.name: field.type for field in attrs.fields(cls) if field.type} | types
    return [
        Field(name, parameter, _field_form(type_, name, types.get(name, Any), form_of), default)
        for name, parameter, default in declared(cls)
    ]


def _field_form(type_: Any, name: str, annotation: Any, form_of: FormOf) -> Form:
    try:
        return form_of(annotation)
    except TypeError as error:
        raise TypeError(f"field {name!r} of {name_of(type_)}: {error}") from error


def class_form(type_: Any, begun: Callable[[Form], None], form_of: FormOf) -> Form:
    """Return the form of a class with fields.

    `begun` gets it before its fields are looked at, so that a class may hold itself.
    """
    cls = get_origin(type_) or type_
    if typing.is_typeddict(cls):
        return _typed_dict_form(type_, begun, form_of)
    name = name_of(type_)
    fields: list[Field] = []

    def load(value: Any) -> Any:
        if type(value) is not dict:
            raise expected(name, value)
        arguments = load_fields(fields, value)
        try:
            return cls(**arguments)
        except Exception as error:  # validators and the like may raise anything
            raise Misfit(f"{name} refused its fields: {_reason(error)}") from error

    def dump(value: Any) -> dict[str, Any]:
        if type(value) is not cls:
            raise _wrong_class(cls, name, value)
        return dump_fields(fields, value)

    form = Form(name, dump, load, {"map"}, (cls,))
    begun(form)
    fields.extend(field for field in fields_of(type_, form_of) if field.parameter)
    return form


def _reason(error: Exception) -> str:
    text = str(error.args[0]) if error.args else type(error).__name__
    return text[:200]


def dump_fields(fields: list[Field], value: Any) -> dict[str, Any]:
    """Return the fields of `value` as a map of plain values."""
    out: dict[str, Any] = {}
    name = ""
    try:
        for field in fields:
            name, form = field.name, field.form
            item = getattr(value, name)
            out[name] = item if type(item) is form.exact else form.dump(item)
    except Exception as error:  # a user's own hook may raise anything
        raise below(error, step(name)) from None
    return out


def _wrong_class(cls: type, name: str, value: Any) -> Misfit:
    if isinstance(value, cls):
        return Misfit(
            f"expected {name} itself, got its subclass {type(value).__name__}, whose own fields would be lost:"
            f" declare {name} | {type(value).__name__}"
        )
    return expected(name, value)


def load_fields(fields: list[Field], value: dict[Any, Any]) -> dict[str, Any]:
    """Return the values of those fields that are in a map of plain values, by their parameters."""
    out: dict[str, Any] = {}
    name = ""
    try:
        for field in fields:
            name = field.name
            if name in value:
                item, form = value[name], field.form
                out[field.parameter or name] = item if type(item) is form.exact else form.load(item)
            elif field.default is None:
                raise Misfit("this required field is missing")
    except Exception as error:  # a user's own hook may raise anything
        raise below(error, step(name)) from None
    return out


def _typed_dict_form(type_: Any, begun: Callable[[Form], None], form_of: FormOf) -> Form:
    cls = get_origin(type_) or type_
    name = name_of(type_)
    forms: dict[str, Form] = {}
    required: set[str] = set()

    def dump(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise expected(name, value)
        for key in value:
            if key not in forms:
                raise Misfit(f"{name} has no key {describe(key)}")
        return _typed_items(value, {key: form.dump for key, form in forms.items()}, required)

    def load(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise expected(name, value)
        return _typed_items(value, {key: form.load for key, form in forms.items()}, required)

    form = Form(name, dump, load, {"map"}, (dict,))
    begun(form)
    for key, declared in field_types(type_).items():
        annotation, needed = _requirement(declared, key in cls.__required_keys__)
        forms[key] = _field_form(type_, key, annotation, form_of)
        if needed:
            required.add(key)
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


def _typed_items(value: dict[Any, Any], hooks: dict[str, Callable[[Any], Any]], required: set[str]) -> dict[str, Any]:
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
