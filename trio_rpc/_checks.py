"""Settings and options: what each may be, and what is told of a value that it may not be: one sentence, the same for all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import attrs

__all__ = ["brief", "check_type", "checked_grace", "describe", "of", "setting"]


def of(*kinds: type, none: bool = False, advice: str = "") -> Callable[[object, attrs.Attribute[Any], Any], None]:
    """An attrs validator: the field holds an instance of one of `kinds`; or None, if `none`. See `check_type`."""

    def check(_instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        check_type(attribute.name, value, *kinds, none=none, advice=advice)

    return check


def check_type(name: str, value: object, *kinds: type, none: bool = False, advice: str = "") -> None:
    """Raise TypeError unless `value` is an instance of one of `kinds`: what it must be, what it is, and the `advice`."""
    if isinstance(value, kinds) or (none and value is None):
        return
    names = [_a(kind) for kind in kinds] + ["None"] * none
    wanted = f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]
    if isinstance(value, type) and issubclass(value, kinds):
        advice = f"write {value.__name__}()"
    raise TypeError(f"{name} must be {wanted}, not {brief(value)}{advice and ': '}{advice}")


def brief(value: object) -> str:
    """A value as a message shows it. Of one of our settings the class alone: all its fields would hide the point."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return _a(type(value)) if attrs.has(type(value)) else f"{value!r:.80}"


def _a(kind: type) -> str:
    if kind is bool:
        return "True or False"
    name = "text" if kind is str else kind.__name__
    return f"an {name}" if name.startswith((*"AEIOU", "SSL")) else f"a {name}"


def checked_grace(grace: float | None) -> float:
    """The seconds that a drain gives; None, for no bound, is infinity. Raises TypeError or ValueError."""
    if grace is None:
        return math.inf
    if isinstance(grace, bool) or not isinstance(grace, int | float):
        raise TypeError(f"grace must be a number of seconds, or None for no bound, not {brief(grace)}")
    if not 0 <= grace < math.inf:
        raise ValueError(f"grace must be at least 0, and finite, or None for no bound, not {grace!r}")
    return grace


def setting(
    default: Any,
    doc: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float = math.inf,
    off: bool = False,
) -> Any:
    """A documented field; `off` says that None (no bound) is welcome. With a whole default only whole values are."""

    def check(_instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value is None:
            if not off:
                raise ValueError(f"{attribute.name} must be a number, not None: this bound cannot be switched off")
            return
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{attribute.name} must be a number, not {value!r:.80}")
        if isinstance(default, int) and isinstance(value, float):  # It travels to the peer, who would not take 2.0.
            raise TypeError(f"{attribute.name} must be a whole number, not {value!r}")
        if (at_least is not None and not value >= at_least) or (above is not None and not value > above):
            bound = f"at least {at_least}" if at_least is not None else f"more than {above}"
            raise ValueError(f"{attribute.name} must be {bound}, not {value!r}")
        if value > at_most or value == math.inf:
            bound = f"at most {at_most}" if at_most < math.inf else "finite, or None for no bound" if off else "finite"
            raise ValueError(f"{attribute.name} must be {bound}, not {value!r}")

    return attrs.field(default=default, validator=check, metadata={"doc": doc, "off": off})


def describe(config: type[Any]) -> Iterator[tuple[str, Any, str]]:
    """Yield `(name, default, meaning)` for each field of one of the configuration classes."""
    for field in attrs.fields(config):
        default = field.default.factory() if isinstance(field.default, attrs.Factory) else field.default  # type: ignore[arg-type]
        yield field.name, default, field.metadata["doc"]
