"""Objects taken apart and put together without their `__init__`: exceptions, whose constructors may do anything."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs

from .._errors import DecodeError
from ._base import MAX_VALUES
from ._classes import declared, dump_fields, dump_rows, fields_of, load_fields
from ._cost import measured
from ._forms import FormOf
from ._misfit import Misfit, below, refusal, step, unsendable

__all__ = ["Fields", "bare_exception", "is_free", "put"]


class Fields:
    """The fields of an object that is rebuilt without its `__init__`: an exception's.

    Attributes:
        parameters: the names of those that `__init__` takes, in its order.
    """

    def __init__(self, type_: Any, form_of: FormOf, max_values: int = MAX_VALUES) -> None:
        self._max_values = max_values
        self.parameters: tuple[str, ...] = tuple(name for name, parameter, _ in declared(type_) if parameter)
        self._fields = [attrs.evolve(field, parameter=field.name) for field in fields_of(type_, form_of)]
        self._rows = dump_rows(self._fields)

    def dump(self, value: object) -> dict[str, Any]:
        """Return all its fields as plain values. EncodeError if one does not fit its annotation."""
        try:
            return dump_fields(self._rows, value)
        except Misfit as fault:
            raise unsendable(fault, "$") from fault

    def load(self, wire: object) -> dict[str, Any]:
        """Return the values of all fields, defaults included. DecodeError if one is missing or does not fit."""
        try:
            found = measured(
                self._max_values, partial(load_fields, self._fields, wire if isinstance(wire, dict) else {})
            )
        except Misfit as fault:
            raise refusal(fault, "$") from fault
        for field in self._fields:
            if field.name not in found and field.default:
                found[field.name] = _made(field.name, field.default)
        return found


def _made(name: str, default: Callable[[], Any]) -> Any:
    try:
        return default()
    except Exception as error:  # a factory may raise anything
        raise DecodeError(below(error, step(name)).at("$")) from error


def bare_exception(cls: type[Exception], args: tuple[Any, ...]) -> Exception | None:
    """Return an instance made by the built-in ancestor alone: no code of the class, or of another library, runs."""
    base = next(ancestor for ancestor in cls.__mro__ if ancestor.__module__ == "builtins")
    make: Any = base.__new__
    begin: Any = base.__init__  # type: ignore[misc]  # of the built-in class, on purpose
    for given in (args, ()):
        try:
            exc = make(cls, *given)
        except Exception:  # some built-in classes insist on the arguments that they know
            continue
        try:
            begin(exc, *given)
        except Exception:  # likewise; without it, only what the class keeps beside its arguments is missing
            pass
        if not isinstance(exc, cls):
            return None
        put(exc, "args", args)
        return exc
    return None


def put(exc: Exception, name: str, value: Any) -> None:
    """Set an attribute; nothing of the class runs."""
    try:
        object.__setattr__(exc, name, value)  # a frozen class refuses the ordinary way
    except (AttributeError, TypeError):
        pass  # a property without a setter: it computes the value itself


def is_free(cls: type, name: str) -> bool:
    """Whether a public instance attribute of this name would hide no method and run no setter of the class."""
    known = inspect.getattr_static(cls, name, None)
    return not (name.startswith("_") or callable(known) or hasattr(known, "__get__"))
