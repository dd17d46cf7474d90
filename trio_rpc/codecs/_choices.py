"""Values out of a few: enums, flags and literals."""

from __future__ import annotations

import enum
from typing import Any, get_args

from ._cost import HOOK, weigh_text
from ._forms import Form, FormOf, Key
from ._misfit import expected

__all__ = ["enum_form", "literal_form"]


def enum_form(type_: type[enum.Enum]) -> Form:
    """Return the form of an enum: its values where all are text or all whole numbers, else its names."""
    members = list(type_)
    kinds = {type(member.value) for member in members}
    if issubclass(type_, enum.Flag):
        return _flag_form(type_)
    if not members:
        raise TypeError(f"the enum {type_.__name__} has no members: annotate with one that has")
    by_name = kinds not in ({str}, {int})
    wire: dict[Any, enum.Enum] = {member.name if by_name else member.value: member for member in members}
    what = str if by_name else members[0].value.__class__

    def dump(value: Any) -> Any:
        if isinstance(value, type_):
            return value.name if by_name else value.value
        raise expected(type_.__name__, value)

    def load(value: Any) -> enum.Enum:
        if type(value) is what and value in wire:
            return wire[value]
        raise expected(f"{type_.__name__} ({_choices(wire)})", value)

    texts = {str(key): member for key, member in wire.items()}

    def load_key(text: Any) -> enum.Enum:
        if isinstance(text, str) and text in texts:
            return texts[text]
        raise expected(f"{type_.__name__} ({_choices(texts)})", text)

    kind = "str" if what is str else "int"
    key = Key(lambda value: str(dump(value)), load_key, weight=HOOK)
    form = Form(type_.__name__, dump, load, {kind}, (type_,), buffers=False, key=key)
    form.weight, form.dense = weigh_text(HOOK, least=1)
    return form


def _choices(options: Any) -> str:
    shown = ", ".join(repr(option) for option in list(options)[:10])
    return f"one of {shown}{', ...' if len(options) > 10 else ''}"


def _flag_form(type_: type[enum.Flag]) -> Form:
    def dump(value: Any) -> int:
        if isinstance(value, type_):
            return int(value.value)
        raise expected(type_.__name__, value)

    def load(value: Any) -> enum.Flag:
        try:
            return type_(value if type(value) is int else None)
        except (ValueError, TypeError):
            raise expected(type_.__name__, value) from None

    form = Form(type_.__name__, dump, load, {"int"}, (type_,), buffers=False)
    form.weight, form.dense = weigh_text(2 * HOOK, least=1)
    return form


def literal_form(type_: Any, form_of: FormOf) -> Form:
    """Return the form of `Literal[...]`: the plain values of its options, and nothing else."""
    options = get_args(type_)
    forms = [form_of(type(option)) for option in options]
    outgoing_: dict[Any, Any] = {}
    incoming_: dict[Any, Any] = {}
    for option, form in zip(options, forms, strict=True):
        wire = form.dump(option)
        outgoing_[type(option), option] = wire
        incoming_[type(wire), wire] = option

    def dump(value: Any) -> Any:
        return _pick(outgoing_, value, options)

    def load(value: Any) -> Any:
        return _pick(incoming_, value, options)

    kinds = {kind for form in forms for kind in form.kinds}
    runtime = tuple(dict.fromkeys(type(option) for option in options))
    scalar = all(form.scalar for form in forms)
    form = Form(f"Literal[{', '.join(map(repr, options))}]", dump, load, kinds, runtime, scalar=scalar, buffers=False)
    if {type(option) for option in options} == {str}:
        form.key = Key(dump, load, weight=HOOK)
    form.weight, form.dense = weigh_text(HOOK, least=1)
    return form


def _pick(table: dict[Any, Any], value: Any, options: tuple[Any, ...]) -> Any:
    try:
        return table[type(value), value]
    except (KeyError, TypeError):
        raise expected(_choices(options), value) from None
