"""Classes with fields: attrs, dataclasses, NamedTuples and TypedDicts. They travel as maps of their fields.

Unknown keys of a map are ignored (the other side may be newer), a missing field without a default is an error.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias, get_origin

import attrs

from ._cost import SPARSE, charge, weigh
from ._forms import Form, FormOf, Parts, as_is, field_form
from ._generics import field_types
from ._misfit import Misfit, below, expected, name_of, step
from ._typed_dicts import typed_dict_form

__all__ = [
    "Field",
    "class_form",
    "declared",
    "dump_fields",
    "dump_rows",
    "fields_of",
    "has_fields",
    "load_fields",
]

Row: TypeAlias = tuple[str, type | None, Callable[[Any], Any]]
"""A field's name, the class whose own instances need no hook, and the hook: what a loop unpacks in one step."""


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
        Field(name, parameter, field_form(type_, name, types.get(name, Any), form_of), default)
        for name, parameter, default in declared(cls)
    ]


def class_form(type_: Any, begun: Callable[[Form], None], form_of: FormOf) -> Form:
    """Return the form of a class with fields.

    `begun` gets it before its fields are looked at, so that a class may hold itself.
    """
    cls = get_origin(type_) or type_
    if typing.is_typeddict(cls):
        return typed_dict_form(type_, begun, form_of)
    record = _Record(cls, name_of(type_))
    form = Form(record.name, record.dump, record.load, {"map"}, (cls,))
    begun(
        form
    )  # its weight and density, too, are those of a class that is not known, for what refers to it from within
    record.learn([field for field in fields_of(type_, form_of) if field.parameter])
    form.buffers = any(field.form.buffers for field in record.fields)
    form.weight, form.dense = weigh(
        (field.name, field.form.weight, field.form.dense, field.default is None) for field in record.fields
    )
    form.parts = Parts(
        "fields", [field.form for field in record.fields], record.make, [field.name for field in record.fields]
    )
    return form


class _Record:
    """The two hooks of a class with fields.

    A field whose value needs no hook costs one look at its class, in a loop over tuples: measured, such a loop is
    within 0.1 us of code generated for the class. An instance is made from positional values where the class takes
    its fields in their order: 0.2 us less for three fields.
    """

    def __init__(self, cls: Any, name: str) -> None:
        self.cls = cls
        self.name = name
        self.fields: list[Field] = []
        self._dumps: list[Row] = []
        self._loads: list[Row] = []
        self.make: Callable[..., Any] = cls

    def learn(self, fields: list[Field]) -> None:
        """Complete the hooks."""
        self.fields = fields
        self._dumps = dump_rows(fields)
        self._loads = [(field.name, field.form.exact, field.form.load) for field in fields]
        if not _takes_in_order(self.cls, [field.parameter for field in fields]):
            self.make = lambda *values: self.cls(**self._named(values))

    def dump(self, value: Any) -> dict[str, Any]:
        """Return the fields as a map of plain values."""
        if type(value) is not self.cls:
            raise _wrong_class(self.cls, self.name, value)
        return dump_fields(self._dumps, value)

    def load(self, value: Any) -> Any:
        """Return an instance made of a map of plain values."""
        if type(value) is not dict:
            raise expected(self.name, value)
        values: list[Any] = []
        name = ""
        try:
            for name, exact, load in self._loads:
                item = value[name]
                values.append(item if type(item) is exact else load(item))
        except Exception as error:  # a user's own hook may raise anything
            if name in value:
                raise below(error, step(name)) from None
            return self._load_sparse(value, values)
        try:
            return self.make(*values)
        except Exception as error:  # validators and the like may raise anything
            raise self._refused(error) from error

    def _load_sparse(self, value: dict[Any, Any], values: list[Any]) -> Any:
        """Go on behind `values`, as a field is missing. Nothing is loaded twice: in nested maps that would double."""
        charge(SPARSE)
        arguments = self._named(values) | load_fields(self.fields[len(values) :], value)
        try:
            return self.cls(**arguments)
        except Exception as error:  # validators and the like may raise anything
            raise self._refused(error) from error

    def _named(self, values: Iterable[Any]) -> dict[str, Any]:
        return {field.parameter: value for field, value in zip(self.fields, values, strict=False)}

    def _refused(self, error: Exception) -> Misfit:
        text = str(error.args[0]) if error.args else type(error).__name__
        return Misfit(f"{self.name} refused its fields: {text[:200]}")


def _takes_in_order(cls: Any, parameters: list[str]) -> bool:
    """Whether an instance can be made from positional values."""
    try:
        known = list(inspect.signature(cls).parameters.values())
    except (TypeError, ValueError):
        return False
    taken = [parameter.name for parameter in known if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    return taken[: len(parameters)] == parameters == [parameter.name for parameter in known[: len(parameters)]]


def dump_rows(fields: list[Field]) -> list[Row]:
    """Return what `dump_fields` asks for."""
    return [(field.name, field.form.exact, field.form.dump) for field in fields]


def dump_fields(rows: list[Row], value: Any) -> dict[str, Any]:
    """Return the fields of `value` as a map of plain values."""
    out: dict[str, Any] = {}
    name = ""
    try:
        for name, exact, dump in rows:
            item = getattr(value, name)
            out[name] = item if type(item) is exact else dump(item)
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
