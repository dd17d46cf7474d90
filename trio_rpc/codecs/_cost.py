"""What a message may cost to read: values, counted while it is read.

Bytes are no measure of time. One MiB can hold a million small numbers (6 ms) or a million paths (1.6 s), and who calls
chooses. So there is one budget for each message, `max_values`. The unit is an item of a list that a codec builds at
native speed: at most 65 ns. An entry of a map counts 5 (a new key is hashed, and its table grows), and what a function
of ours makes counts what that takes, as measured on CPython 3.11. Types of a program's own count `OWN`.

A message that is so short that nothing in it can reach the budget is read without counting, which is nearly every one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import TypeVar

from ._misfit import TooMuch

__all__ = [
    "ENTRY",
    "HOOK",
    "OWN",
    "SPARSE",
    "UNKNOWN",
    "charge",
    "free_size",
    "measured",
    "spending",
    "take",
    "weigh",
    "weigh_text",
]

T = TypeVar("T")

ENTRY = 5
"""What an entry of a map counts."""

HOOK = 2
"""What one call of a simple function counts."""

MADE = 12
"""What an object of a class with fields counts, beside its fields."""

SPARSE = 16
"""What it counts more if fields are missing."""

OWN = 20
"""What a value counts that a program's own function makes, or another library: a little over a microsecond."""

UNKNOWN = 25.0
"""Values that a byte may stand for, where that is not known: in a class that holds itself."""

spending: ContextVar[list[int] | None] = ContextVar("spending", default=None)
"""How many values the one message that is being read here may still have, as the one item; None: nobody counts."""


def weigh(fields: Iterable[tuple[str, int, float, bool]]) -> tuple[int, float]:
    """Return weight and density of a class; its fields have a name, a weight, a density, and may have to be there."""
    weight, least, missing, dense = MADE, 1, 0, 2.0
    for name, its_weight, its_dense, needed in fields:
        weight += 1 + its_weight
        least += (2 + len(name)) if needed else 0
        missing = missing if needed else SPARSE
        dense = max(dense, its_dense)
    return weight, max(dense, (1 + weight + missing) / least)


def weigh_text(weight: int, least: int) -> tuple[int, float]:
    """Return weight and density of what takes `least` bytes at least, its header included."""
    return weight, (2 + weight) / least


def charge(values: int) -> None:
    """Count so many values. TooMuch if the message may not have them."""
    left = spending.get()
    if left is not None:
        take(left, values)


def take(left: list[int], values: int) -> None:
    """Count so many values of a known budget."""
    left[0] -= values
    if left[0] < 0:
        raise TooMuch(
            "more values than max_values allows in one message: send them as a stream, or raise it for who reads"
        )


def free_size(values: int, dense: float) -> int:
    """Return the length of a payload up to which it cannot count so many values, whatever is in it."""
    return int(values / max(dense, ENTRY / 2))


def measured(values: int, read: Callable[[], T]) -> T:
    """Return `read()`, in which so many values may be charged."""
    token = spending.set([values])
    try:
        return read()
    finally:
        spending.reset(token)
