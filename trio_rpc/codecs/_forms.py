"""How one type travels: the pair of functions between its values and plain values."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, TypeAlias

import attrs

from ._misfit import expected

__all__ = ["EVERY_KIND", "KIND_OF", "Form", "FormOf", "Key", "as_is", "plain"]

Hook: TypeAlias = Callable[[Any], Any]

KIND_OF: dict[type, str] = {type(None): "null", bool: "bool", int: "int", float: "float", str: "str", bytes: "bytes"}
KIND_OF |= {list: "array", dict: "map"}
EVERY_KIND = frozenset({*KIND_OF.values(), "datetime"})


def as_is(value: Any) -> Any:
    """Return the value: what an untyped place does."""
    return value


@attrs.frozen
class Key:
    """How a type travels as a map's key: as text."""

    dump: Hook
    load: Hook


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
        scalar: whether it is what every codec has natively, and so never needs a tag.
        key: how it travels as a map's key, or None if it does not.
    """

    name: str
    dump: Hook
    load: Hook
    kinds: Collection[str]
    runtime: tuple[type, ...] = ()
    exact: type | None = None
    scalar: bool = False
    key: Key | None = None

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

    return Form(name, dump, load, {KIND_OF[type_]}, (type_,), exact=type_, scalar=True)
