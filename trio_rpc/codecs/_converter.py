"""Types to forms: one cattrs converter for each codec, with the strict hooks of this package in it.

cattrs dispatches, and holds the hooks that a program registers for types of its own. The hooks for all other types
are ours, because those that cattrs generates name no path on the way out, and on the way in either name none or
collect every error there is: hundreds of thousands of exceptions for one hostile message.
"""

from __future__ import annotations

import enum
import inspect
import pathlib
import types
import typing
from collections import abc, deque
from collections.abc import Callable
from typing import Annotated, Any, Final, ForwardRef, Literal, NewType, TypeVar, Union, get_args, get_origin

import attrs
import cattrs

from ._base import Codec
from ._choices import enum_form, literal_form
from ._classes import class_form, has_fields
from ._containers import array_form, map_form, tuple_form
from ._forms import EVERY_KIND, Form, plain
from ._generics import alias_value, fill
from ._misfit import name_of
from ._models import is_model, is_struct, model_form, struct_form
from ._scalars import scalar_forms
from ._unions import union_form

__all__ = ["Types"]

_ARRAYS: dict[Any, tuple[tuple[type, ...], Callable[[list[Any]], Any]]] = {
    list: ((list,), list),
    set: ((set,), set),
    frozenset: ((frozenset,), frozenset),
    deque: ((deque,), deque),
    abc.Sequence: ((list, tuple), list),
    abc.MutableSequence: ((list,), list),
    abc.Collection: ((list, tuple, set, frozenset), list),
    abc.Set: ((set, frozenset), set),
    abc.MutableSet: ((set,), set),
}
_MAPS = (dict, abc.Mapping, abc.MutableMapping)
_STREAMS = (abc.Iterator, abc.Generator, abc.AsyncIterable, abc.AsyncIterator, abc.AsyncGenerator)
_WRAPPERS = (Annotated, Final)


@attrs.frozen(eq=False)
class _Dump:
    """Our answer to cattrs for `type_`, or, where it asks by class only, for the class of the value."""

    types: Types
    type_: Any = None

    def __call__(self, value: Any) -> Any:
        return self.types.form_of(type(value) if self.type_ is None else self.type_).dump(value)


@attrs.frozen(eq=False)
class _Load:
    """Our answer to cattrs on the way in."""

    types: Types

    def __call__(self, value: Any, type_: Any) -> Any:
        return self.types.form_of(type_).load(value)


class Types:
    """The forms of all types for one codec.

    Attributes:
        converter: hooks that are registered here before the first use of a type win over ours.
    """

    def __init__(self, codec: Codec) -> None:
        native: frozenset[type] = getattr(codec, "native", frozenset())
        placeholder = getattr(codec, "placeholder", lambda index: {"$blob": index})
        self.scalars = scalar_forms(native, placeholder)
        self.scalars[dict] = attrs.evolve(plain("dict", dict), scalar=False, dense=2)
        self.converter = cattrs.Converter(detailed_validation=False)
        self._forms: dict[Any, Form] = {}
        self._install()

    def _install(self) -> None:
        load = _Load(self)
        self.converter.register_unstructure_hook_factory(lambda _: True, lambda type_: _Dump(self, type_))
        self.converter.register_structure_hook_factory(lambda _: True, lambda _: load)
        # cattrs has hooks of its own by class for these, which would come first
        for type_ in (bytes, str, int, float, enum.Enum, pathlib.Path):
            self.converter.register_unstructure_hook(type_, _Dump(self))
            self.converter.register_structure_hook(type_, load)

    def form_of(self, type_: Any) -> Form:
        """Return the form of a type. TypeError, with a sentence that says what to write instead, if it has none."""
        try:
            return self._forms[type_]
        except KeyError:
            pass
        except TypeError:  # not hashable: metadata of Annotated may be anything
            return _Build(self).form_of(type_)
        build = _Build(self)
        form = build.form_of(type_)
        # Only now: forms that refer to one that failed halfway must not be found again.
        self._forms |= build.forms
        return form


class _Build:
    """The forms that belong to one new type; a class may refer to itself."""

    def __init__(self, types_: Types) -> None:
        self._types = types_
        self._converter = types_.converter
        self.forms: dict[Any, Form] = {}

    def form_of(self, type_: Any) -> Form:
        try:
            if (known := self.forms.get(type_)) is None:
                known = self.forms[type_] = self._registered(type_)
        except TypeError:
            if _is_hashable(type_):
                raise
            return self._make(type_)
        return known

    def _registered(self, type_: Any) -> Form:
        """Prefer hooks that the program has registered with the converter."""
        dump = self._converter.get_unstructure_hook(type_, cache_result=False)
        load = self._converter.get_structure_hook(type_, cache_result=False)
        own_dump, own_load = not isinstance(dump, _Dump), not isinstance(load, _Load)
        if not own_dump and not own_load:
            return self._make(type_)
        ours = None if own_dump and own_load else self._make(type_)
        return Form(
            name_of(type_),
            dump if own_dump or ours is None else ours.dump,
            (lambda value: load(value, type_)) if own_load or ours is None else ours.load,
            EVERY_KIND,
            (get_origin(type_) or type_,) if inspect.isclass(get_origin(type_) or type_) else (),
        )

    def _make(self, type_: Any) -> Form:
        if _is_hashable(type_) and (scalar := self._types.scalars.get(type_)):
            return scalar
        origin = get_origin(type_)
        if (inner := _unwrapped(type_)) is not type_:
            return self._alias(type_, inner)
        if origin is Literal:
            return literal_form(type_, self.form_of)
        if origin is Union or origin is types.UnionType:
            return _union(type_, self.form_of)
        if inspect.isclass(type_) and issubclass(type_, enum.Enum):
            return enum_form(type_)
        if has_fields(type_):
            return class_form(type_, lambda form: self.forms.update({type_: form}), self.form_of)
        if is_model(type_):
            return model_form(type_)
        if is_struct(type_):
            return struct_form(type_)
        return self._collection(type_, origin or type_, get_args(type_))

    def _alias(self, type_: Any, inner: Any) -> Form:
        """Return the form of what `type_` is a name for; a `type` statement's may be part of itself."""
        if not _is_hashable(type_):
            return self.form_of(inner)

        def dump(value: Any) -> Any:
            return form.dump(value)

        def load(value: Any) -> Any:
            return form.load(value)

        late = self.forms[type_] = Form(name_of(type_), dump, load, EVERY_KIND)
        form = self.form_of(inner)
        return form if form is not late else _refuse(type_)

    def _collection(self, type_: Any, origin: Any, arguments: tuple[Any, ...]) -> Form:
        name = name_of(type_)
        if origin is tuple:
            return self._tuple(type_, name, arguments)
        if not _is_hashable(origin) or (origin not in _ARRAYS and origin not in _MAPS):
            return _refuse(type_)
        forms = [self.form_of(argument) for argument in arguments or (Any, Any)]
        if origin in _MAPS:
            return map_form(name, forms[0], forms[1])
        accepted, build = _ARRAYS[origin]
        return array_form(name, forms[0], accepted, build)

    def _tuple(self, type_: Any, name: str, arguments: tuple[Any, ...]) -> Form:
        if type_ in (tuple, typing.Tuple):  # noqa: UP006 -- the old spelling may be what came in
            arguments = (Any, ...)
        if len(arguments) == 2 and arguments[1] is ...:
            return array_form(name, self.form_of(arguments[0]), (tuple,), tuple)
        return tuple_form(name, [self.form_of(argument) for argument in arguments])


def _is_hashable(type_: Any) -> bool:
    try:
        hash(type_)
    except TypeError:
        return False
    return True


def _unwrapped(type_: Any) -> Any:
    """Return what an annotation is another name for, or itself."""
    if type_ is inspect.Parameter.empty:
        return Any
    if isinstance(type_, NewType):
        return type_.__supertype__
    if isinstance(type_, TypeVar):
        return fill(type_, {})
    origin = get_origin(type_)
    if origin in _WRAPPERS:
        return get_args(type_)[0]
    for alias in (type_, origin):
        if hasattr(alias, "__value__"):  # a `type` statement, of Python's or of typing_extensions'
            values = dict(zip(alias.__type_params__, get_args(type_), strict=False))
            return fill(alias_value(alias), values)
    return type_


def _union(type_: Any, form_of: Callable[[Any], Form]) -> Form:
    return union_form([form_of(member) for member in get_args(type_)])


def _refuse(type_: Any) -> Form:
    name = name_of(type_)
    origin = get_origin(type_) or type_
    if isinstance(type_, str | ForwardRef):
        advice = "it is a name that has not been resolved: import or define it at the top of the module"
    elif origin in _STREAMS:
        advice = "a stream can only be a whole parameter (AsyncIterable) or a whole result (an async generator)"
    elif inspect.isclass(origin) and issubclass(origin, BaseException):
        advice = "exceptions are raised: name it under raises=[...]"
    elif inspect.isclass(origin) and issubclass(origin, str | int | float | bytes | list | dict):
        advice = f"it is a subclass of {origin.__mro__[1].__name__}: use NewType, or that class itself"
    else:
        advice = (
            "use plain values, an attrs class, a dataclass, a TypedDict or an enum,"
            " or register hooks for it with trio_rpc.codecs.adapter_for(codec).converter"
        )
    raise TypeError(f"no codec carries {name}: {advice}")
