"""What is told of a value of the wrong type: one sentence, the same for every setting and option."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import attrs

__all__ = ["check_type", "checked_grace", "of", "shown"]


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
    raise TypeError(f"{name} must be {wanted}, not {shown(value)}{advice and ': '}{advice}")


def shown(value: object) -> str:
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
        raise TypeError(f"grace must be a number of seconds, or None for no bound, not {shown(grace)}")
    if not 0 <= grace < math.inf:
        raise ValueError(f"grace must be at least 0, and finite, or None for no bound, not {grace!r}")
    return grace
