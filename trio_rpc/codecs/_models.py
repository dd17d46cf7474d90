"""Models of pydantic and Structs of msgspec, where the program has imported those libraries itself.

Each travels by its own library's rules for JSON, strictly, so that aliases, validators and serialisers hold.
"""

from __future__ import annotations

import inspect
import json
import sys
from typing import Any, get_origin

from ._cost import OWN, charge
from ._forms import EVERY_KIND, Form
from ._misfit import Misfit, expected, name_of, step

__all__ = ["is_model", "is_struct", "model_form", "struct_form"]


MANY = 100
"""Errors in one model of which the first is looked for."""


def _is_a(type_: Any, library: str, base: str) -> bool:
    # A class that derives from a library's class exists only after the program has imported that library.
    parent = getattr(sys.modules.get(library), base, None)
    cls = get_origin(type_) or type_
    return parent is not None and inspect.isclass(cls) and issubclass(cls, parent)


def is_model(type_: Any) -> bool:
    """Whether `type_` is a pydantic model."""
    return _is_a(type_, "pydantic", "BaseModel")


def is_struct(type_: Any) -> bool:
    """Whether `type_` is a msgspec Struct; parametrised generics count."""
    return _is_a(type_, "msgspec", "Struct")


def model_form(type_: Any) -> Form:
    """Return the form of a pydantic model."""
    name = type_.__name__
    invalid = sys.modules["pydantic"].ValidationError

    def dump(value: Any) -> Any:
        if type(value) is not type_:
            raise expected(name, value)
        return value.model_dump(mode="json", by_alias=True, round_trip=True, warnings="error")

    def load(value: Any) -> Any:
        text = json.dumps(value)
        charge(OWN + len(text) * 3 // 4)  # where each of its values is an error, too
        try:
            return type_.model_validate_json(text, strict=True)
        except invalid as error:
            raise _pydantic_misfit(name, error) from None

    kinds = EVERY_KIND if _is_a(type_, "pydantic", "RootModel") else {"map"}
    return Form(name, dump, load, kinds, (type_,), weight=5 * OWN, dense=5 * OWN)


def _pydantic_misfit(name: str, error: Any) -> Misfit:
    if (count := error.error_count()) > MANY:  # to be told of one, all would be made
        return Misfit(f"{name}: {count} of its values do not fit")
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    fault = Misfit(f"{name}: {first['msg']}")
    fault.steps = [f"[{part}]" if isinstance(part, int) else step(part) for part in reversed(first["loc"])]
    return fault


def struct_form(type_: Any) -> Form:
    """Return the form of a msgspec Struct."""
    library = sys.modules["msgspec"]
    cls = get_origin(type_) or type_
    name = name_of(type_)

    def dump(value: Any) -> Any:
        if type(value) is not cls:
            raise expected(name, value)
        wire = library.to_builtins(value, str_keys=True)
        load(wire)  # a Struct does not check what is assigned to its fields
        return wire

    def load(value: Any) -> Any:
        try:
            return library.convert(value, type_, str_keys=True)
        except library.ValidationError as error:
            raise _msgspec_misfit(error) from None

    return Form(name, dump, load, {"map", "array"}, (cls,), weight=2 * OWN, dense=2 * OWN)


def _msgspec_misfit(error: Exception) -> Misfit:
    text, _, path = str(error).partition(" - at `$")
    fault = Misfit(text)
    fault.steps = [path.rstrip("`")] if path else []
    return fault
