"""Lists, tuples, sets and maps of other forms.

Each loop remembers where it is only by what it has built so far, so that a path costs nothing until it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from ._cost import ENTRY, HOOK, charge
from ._forms import Form, Key, Parts
from ._misfit import Misfit, below, expected, step

__all__ = ["array_form", "map_form", "tuple_form"]


def array_form(name: str, item: Form, accepted: tuple[type, ...], build: Callable[[list[Any]], Any]) -> Form:
    """Return the form of a collection of any length, which travels as an array.

    Where the classes of all items say that none needs its hook, no loop runs in Python.
    """
    dump_item, load_item = item.dump, item.load
    same, known, passes = item.untyped, bool(item.unchanged), item.unchanged.issuperset
    kept, keeps, price = bool(item.kept), item.kept.issuperset, 1 + item.weight

    def dump(value: Any) -> Any:
        fits = isinstance(value, accepted)
        if not fits:
            raise expected(name, value)
        if same or (known and passes(map(type, value))):
            return value if type(value) is list else list(value)
        return each(value, dump_item)

    def load(value: Any) -> Any:
        if type(value) is not list:
            raise expected(name, value)
        if not (same or (kept and keeps(map(type, value)))):
            charge(len(value) * price)
            value = each(value, load_item)
        if build is list:
            return value
        charge(2 * len(value))
        try:
            return build(value)
        except TypeError as error:
            raise Misfit(f"its items cannot be in a {name}: {error}") from None

    exact = list if same and accepted == (list,) else None
    parts = Parts("list", [item], None if build is list else build)
    form = Form(name, dump, load, {"array"}, accepted, exact=exact, buffers=item.buffers, parts=parts)
    form.weight, form.dense = (HOOK, max(item.dense, 2)) if build is list else (4 * HOOK, max(item.dense, 1) + 2)
    return form


def each(values: Collection[Any], hook: Callable[[Any], Any]) -> list[Any]:
    """Return the list of `hook(value)`; a misfit learns its index."""
    out: list[Any] = []
    try:
        for value in values:
            out.append(hook(value))  # noqa: PERF401 -- its length is the index of the one that failed
    except Exception as error:  # a user's own hook may raise anything
        raise below(error, f"[{len(out)}]") from None
    return out


def tuple_form(name: str, items: list[Form]) -> Form:
    """Return the form of a tuple of fixed length."""
    dumps, loads = [item.dump for item in items], [item.load for item in items]

    def dump(value: Any) -> list[Any]:
        if not isinstance(value, tuple):
            raise expected(name, value)
        return _one_by_one(value, dumps)

    def load(value: Any) -> tuple[Any, ...]:
        if type(value) is not list:
            raise expected(name, value)
        return tuple(_one_by_one(value, loads))

    def _one_by_one(values: Collection[Any], hooks: list[Callable[[Any], Any]]) -> list[Any]:
        if len(values) != len(hooks):
            raise Misfit(f"expected {name}: {len(hooks)} items, got {len(values)}")
        out: list[Any] = []
        try:
            for value, hook in zip(values, hooks, strict=True):
                out.append(hook(value))
        except Exception as error:  # a user's own hook may raise anything
            raise below(error, f"[{len(out)}]") from None
        return out

    buffers, parts = any(item.buffers for item in items), Parts("tuple", items)
    form = Form(name, dump, load, {"array"}, (tuple,), buffers=buffers, parts=parts)
    form.weight = 8 * HOOK + sum(2 + item.weight for item in items)
    form.dense = max([1 + form.weight / (1 + len(items)), *(item.dense for item in items)])
    return form


def map_form(name: str, key: Form, item: Form) -> Form:
    """Return the form of a mapping: a map if the keys have a text, else an array of pairs."""
    if key.key is None:
        return _pairs_form(name, key, item)
    plain_keys = key.exact is str or key.untyped
    return _map_form(name, key.key, item, {str} if plain_keys else set())


def _map_form(name: str, key: Key, item: Form, plain_keys: set[type]) -> Form:
    dump_item, load_item = item.dump, item.load
    same, passes = item.untyped, item.unchanged.issuperset
    keeps, price = item.kept.issuperset, HOOK + key.weight + item.weight

    def whole(value: Any, items_pass: Callable[[Iterable[type]], bool]) -> bool:
        """Whether nothing in it needs a hook."""
        return plain_keys.issuperset(map(type, value)) and (same or items_pass(map(type, value.values())))

    def dump(value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise expected(name, value)
        if type(value) is dict and whole(value, passes):
            return value
        return _entries(value, key.dump, dump_item)

    def load(value: Any) -> Any:
        if type(value) is not dict:
            raise expected(name, value)
        if whole(value, keeps):
            return value
        charge(len(value) * price)
        return _entries(value, key.load, load_item)

    parts = Parts("map", [item]) if plain_keys else None
    form = Form(name, dump, load, {"map"}, (dict, Mapping), buffers=item.buffers, parts=parts)
    form.weight, form.dense = 2 * HOOK, max(item.dense, (ENTRY + price) / 2)
    return form


def _entries(value: Mapping[Any, Any], on_key: Callable[[Any], Any], on_item: Callable[[Any], Any]) -> dict[Any, Any]:
    out: dict[Any, Any] = {}
    name: object = ""
    try:
        for name, item in value.items():
            out[on_key(name)] = on_item(item)
    except Exception as error:  # a user's own hook may raise anything
        raise below(error, step(name)) from None
    if len(out) != len(value):
        raise Misfit("two of its keys are the same")
    return out


def _pairs_form(name: str, key: Form, item: Form) -> Form:
    pair = tuple_form(f"{key.name} and {item.name}", [key, item])

    def dump(value: Any) -> list[Any]:
        if not isinstance(value, Mapping):
            raise expected(name, value)
        return each(value.items(), pair.dump)

    def load(value: Any) -> dict[Any, Any]:
        if type(value) is not list:
            raise expected(f"{name} as a list of pairs", value)
        charge(len(value) * (HOOK + pair.weight))
        try:
            return dict(each(value, pair.load))
        except TypeError as error:
            raise Misfit(f"its keys cannot be in a dict: {error}") from None

    return Form(
        name, dump, load, {"array"}, (dict, Mapping), buffers=pair.buffers, weight=HOOK, dense=pair.dense + HOOK
    )
