"""Unions: by runtime type on the way out, by the kind of plain value on the way in, by a tag where that is ambiguous.

`int | str | None` and `Order | None` travel bare. A member that could be mistaken for another one (two classes,
`UUID | str`) makes every member that codecs do not have natively travel as `{name: value}`; a class's is its own name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from ._cost import HOOK, OWN
from ._forms import KIND_OF, Form, Parts
from ._misfit import Misfit, expected

__all__ = ["union_form"]

Hooks = list[Callable[[Any], Any]]


def union_form(members: list[Form]) -> Form:
    """Return the form of a union. TypeError if two members would get the same tag."""
    if untyped := next((member for member in members if member.untyped), None):
        return untyped
    name = " | ".join(member.name for member in members)
    tagged = _tagged(name, members)
    outgoing, incoming = _outgoing(members, tagged), _incoming(name, members, tagged)
    _welcome_numbers(outgoing, incoming, [member for member in members if float in member.runtime])

    unchanged = frozenset(kind for member in members if member.scalar for kind in member.unchanged)

    def dump(value: Any) -> Any:
        if type(value) in unchanged:
            return value
        for type_ in type(value).__mro__:
            if type_ in outgoing:
                return _first(name, outgoing[type_], value)
        raise expected(name, value)

    def load(value: Any) -> Any:
        if type(value) in unchanged:
            return value
        return _first(name, incoming.get(KIND_OF.get(type(value), "datetime"), []), value)

    runtime = tuple(type_ for member in members for type_ in member.runtime)
    kinds = {"map", *incoming} if tagged else {*incoming}
    scalar, buffers = all(member.scalar for member in members), any(member.buffers for member in members)
    form = Form(name, dump, load, kinds, runtime, scalar=scalar, buffers=buffers, unchanged=unchanged)
    tries = max(map(len, incoming.values()), default=1) - 1
    form.weight = HOOK + max(member.weight for member in members) + 3 * OWN * tries
    form.dense = max(HOOK + form.weight, *(member.dense for member in members)) if tries else _densest(members)
    some = [member for member in members if member.exact is not type(None)]
    if len(some) == 1 and not tagged:
        form.parts = Parts("optional", some)
    return form


def _densest(members: list[Form]) -> float:
    """Return the density of a union whose members are told apart by their kind: a look at that comes to each."""
    return max(member.dense * (1 + HOOK / (1 + member.weight)) for member in members)


def _first(name: str, hooks: Hooks, value: Any) -> Any:
    """Return what the first hook that takes the value makes of it; of a single hook the error keeps its path."""
    if len(hooks) == 1:
        return hooks[0](value)
    for hook in hooks:
        try:
            return hook(value)
        except Misfit:
            continue
    raise expected(name, value)


def _tagged(name: str, members: list[Form]) -> dict[str, Form]:
    """Return the members that travel with their name, by it."""
    compound = [member for member in members if not member.scalar]
    seen = [kind for member in members for kind in member.kinds]
    if not any(seen.count(kind) > 1 for member in compound for kind in member.kinds):
        return {}
    tagged = {member.name: member for member in compound}
    if len(tagged) < len(compound):
        names = [member.name for member in compound]
        twice = next(tag for tag in names if names.count(tag) > 1)
        raise TypeError(f"two members of {name} are both named {twice}, and the name is their tag: rename one of them")
    return tagged


def _outgoing(members: list[Form], tagged: dict[str, Form]) -> dict[type, Hooks]:
    hooks: dict[type, Hooks] = defaultdict(list)
    for member in members:
        for type_ in member.runtime:
            hooks[type_].append(_with_tag(member) if member.name in tagged else member.dump)
    return hooks


def _with_tag(member: Form) -> Callable[[Any], Any]:
    return lambda value: {member.name: member.dump(value)}


def _incoming(name: str, members: list[Form], tagged: dict[str, Form]) -> dict[str, Hooks]:
    hooks: dict[str, Hooks] = defaultdict(list)
    for member in members:
        for kind in member.kinds:
            if member.name not in tagged:
                hooks[kind].append(member.load)
    if tagged:
        hooks["map"] = [_by_tag(name, tagged)]
    return hooks


def _by_tag(name: str, tagged: dict[str, Form]) -> Callable[[Any], Any]:
    def load(value: Any) -> Any:
        if type(value) is dict and len(value) == 1:
            ((tag, inner),) = value.items()
            if tag in tagged:
                return tagged[tag].load(inner)
        raise expected(f"{name} as {{name: value}}", value)

    return load


def _welcome_numbers(outgoing: dict[type, Hooks], incoming: dict[str, Hooks], floats: list[Form]) -> None:
    """Where a float is a member and an int is not, an int is welcome for it; and a float may have to travel as text."""
    if not floats or "float" not in incoming:
        return
    outgoing.setdefault(int, outgoing[float])
    incoming.setdefault("int", incoming["float"])
    if floats[0].exact is float:
        return
    if "str" not in incoming:
        incoming["str"] = incoming["float"]
    else:
        outgoing[float] = [_finite(hook) for hook in outgoing[float]]


def _finite(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def dump(value: Any) -> Any:
        wire = hook(value)
        if isinstance(wire, str):
            raise Misfit(f"{value} cannot be told from text here: annotate the place as float alone")
        return wire

    return dump
