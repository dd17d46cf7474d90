"""How one type travels: the pair of functions between its values and plain values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, TypeAlias

import attrs

from ._cost import HOOK, OWN, UNKNOWN
from ._misfit import expected, name_of

__all__ = ["EVERY_KIND", "KIND_OF", "Form", "FormOf", "Key", "Parts", "as_is", "field_form", "plain"]

Hook: TypeAlias = Callable[[Any], Any]

KIND_OF: dict[type, str] = {type(None): "null", bool: "bool", int: "int", float: "float", str: "str", bytes: "bytes"}
KIND_OF |= {list: "array", dict: "map"}
EVERY_KIND = frozenset({*KIND_OF.values(), "datetime"})


def as_is(value: Any) -> Any:
    """Return the value: what an untyped place does."""
    return value


@attrs.frozen
class Key:
    """How a type travels as a map's key: as text. `weight` is what `load` counts, as a form's."""

    dump: Hook
    load: Hook
    weight: int = HOOK


def _classes_in(exact: type | None) -> frozenset[type]:
    return frozenset() if exact is None else frozenset({exact})


@attrs.frozen(eq=False)
class Parts:
    """What a form is made of, for whoever can do the work of all its hooks at once.

    Attributes:
        kind: what its plain value is; "optional" is None or that of its one part.
        forms: its parts: a list's item, a map's item (keys are text), a tuple's items, the values of the fields.
        build: makes the value: of a list of items, or of the values of all fields; None if the list is the value.
        names: of the fields.
    """

    kind: Literal["list", "map", "tuple", "optional", "fields"]
    forms: Sequence[Form]
    build: Callable[..., Any] | None = None
    names: Sequence[str] = ()


@attrs.define(eq=False)
class Form:
    """How one type travels.

    Attributes:
        name: the type's name, for messages and for the tags of unions.
        dump: value -> plain value; Misfit if the value is not of the type.
        load: plain value -> value; Misfit likewise.
        kinds: what its plain values can be, out of `EVERY_KIND`; a union tells its members apart by it.
        runtime: the classes of its values.
        exact: a class whose own instances pass both hooks unchanged, so that the call may be spared.
        unchanged: all such classes: a union may have several.
        scalar: whether it is what every codec has natively, and so never needs a tag.
        buffers: whether a large buffer may lie in its values, so that `dump` must know where to put it.
        key: how it travels as a map's key, or None if it does not.
        parts: what it is made of, if that is all there is to say about it.
        kept: all classes whose own instances `load` leaves as they are, whatever `dump` does with them.
        weight: what one call of `load` counts in values, without the items of lists and maps, which they count themselves.
        dense: the most values that a byte of its payload may count.
    """

    name: str
    dump: Hook
    load: Hook
    kinds: Collection[str]
    runtime: tuple[type, ...] = ()
    exact: type | None = None
    scalar: bool = False
    buffers: bool = True
    key: Key | None = None
    parts: Parts | None = None
    unchanged: frozenset[type] = attrs.Factory(lambda self: _classes_in(self.exact), takes_self=True)
    kept: frozenset[type] = attrs.Factory(lambda self: self.unchanged, takes_self=True)
    weight: int = OWN
    dense: float = UNKNOWN

    @property
    def untyped(self) -> bool:
        """Whether anything goes here."""
        return self.dump is as_is


FormOf: TypeAlias = Callable[[Any], Form]
"""Gives the form of a type; TypeError if it has none."""


def plain(name: str, type_: type) -> Form:
    """Return the form of a class whose instances every codec has; subclasses are welcome on the way out."""

    def dump(value: Any) -> Any:
        if isinstance(value, type_):
            return value
        raise expected(name, value)

    def load(value: Any) -> Any:
        if type(value) is type_:
            return value
        raise expected(name, value)

    kinds = {KIND_OF[type_]}
    return Form(name, dump, load, kinds, (type_,), exact=type_, scalar=True, buffers=False, weight=0, dense=1)


def field_form(type_: Any, name: str, annotation: Any, form_of: FormOf) -> Form:
    """Return the form of one field's annotation. TypeError, with the field's name, if it has none."""
    try:
        return form_of(annotation)
    except TypeError as error:
        raise TypeError(f"field {name!r} of {name_of(type_)}: {error}") from error
