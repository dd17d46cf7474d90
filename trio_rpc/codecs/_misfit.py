"""How a value that does not fit is told: what was expected, what came, and where."""

from __future__ import annotations

import re
import reprlib
from typing import Any

from .._errors import DecodeError, EncodeError
from ._base import INT_MAX, INT_MIN

__all__ = [
    "Misfit",
    "TooMuch",
    "below",
    "describe",
    "expected",
    "in_range",
    "misfit",
    "name_of",
    "refusal",
    "step",
    "unsendable",
]

SHOWN = 80
"""Characters of a foreign value, or steps of a path, that a message repeats."""

_KEYS = re.compile(r"\[[^0-9\]].*\]")
"""Steps of a path by keys that are no names."""

_short = reprlib.Repr()
_short.maxstring = _short.maxother = SHOWN
_short.maxlong = 40
_short.maxlevel = 3


class Misfit(Exception):
    """A value and its place do not go together. Internal: carriers turn it into EncodeError or DecodeError."""

    def __init__(self, text: str, outline: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.outline = outline or text
        """The text without the value in it."""
        self.steps: list[str] = []

    def at(self, root: str) -> str:
        """Return the sentence, led by the path from `root`."""
        return f"{root}{self._path()}: {self.text}"

    def outlined_at(self, root: str) -> str:
        """Return the sentence without the value in it."""
        return f"{root}{_KEYS.sub('[...]', self._path())}: {self.outline}"

    def _path(self) -> str:
        steps = self.steps[::-1]
        if len(steps) > SHOWN:
            steps = [*steps[:10], " ... ", *steps[-10:]]
        return "".join(steps)


class TooMuch(Misfit):
    """A message holds more than its reader allows, whatever the type of its place."""


def describe(value: Any) -> str:
    """Return `str '7'`: the type and a bounded, harmless repr."""
    if value is None:
        return "None"
    if isinstance(value, dict | bytes | bytearray) and len(value) > SHOWN:  # reprlib would sort them, or write it all
        return f"{type(value).__name__} of {len(value)}"
    try:
        text = _short.repr(value)[:SHOWN]
    except Exception:  # a foreign repr may do anything
        return type(value).__name__
    return f"{type(value).__name__} {text}"


def expected(what: str, value: Any) -> Misfit:
    """Return the Misfit `expected int, got str '7'`."""
    return Misfit(f"expected {what}, got {describe(value)}", f"expected {what}, got {type(value).__name__}")


def in_range(value: int) -> int:
    """Return an integer that every codec carries; Misfit beyond 64 bits."""
    if INT_MIN <= value <= INT_MAX:
        return value
    raise Misfit("an integer must lie between -2**63 and 2**64 - 1: send a larger one as text")


def misfit(error: Exception) -> Misfit:
    """Return `error` as a Misfit."""
    if isinstance(error, Misfit):
        return error
    if isinstance(error, RecursionError):
        return Misfit("nested too deeply")
    try:
        text = str(error)[:200]
    except Exception:
        text = ""
    name = type(error).__name__
    return Misfit(f"{name}: {text}" if text else name, name)


def below(error: Exception, where: str) -> Misfit:
    """Return `error` as a Misfit that happened one step further down."""
    fault = misfit(error)
    fault.steps.append(where)
    return fault


def refusal(error: Exception, root: str) -> DecodeError:
    """Return what is raised for a payload that a hook refused, its path led by `root`."""
    fault = misfit(error)
    told = DecodeError(fault.at(root))
    told.outline = fault.outlined_at(root)
    told.malformed = isinstance(fault, TooMuch)
    return told


def unsendable(error: Exception, root: str) -> EncodeError:
    """Return what is raised for a value that cannot be sent."""
    fault = misfit(error)
    told = EncodeError(fault.at(root))
    told.outline = fault.outlined_at(root)
    return told


def step(key: object) -> str:
    """Return the path step of a map's key: `.name`, or `['any other']`."""
    if isinstance(key, str) and key.isidentifier() and len(key) <= SHOWN:
        return f".{key}"
    text = describe(key).partition(" ")[2] if key is not None else "None"
    return f"[{text}]"


def name_of(type_: Any) -> str:
    """Return a type's name as its author would write it."""
    if type_ is None or type_ is type(None):
        return "None"
    if isinstance(type_, type) and not hasattr(type_, "__args__"):
        return type_.__name__
    arguments = getattr(type_, "__args__", None)
    origin = getattr(type_, "__origin__", None)
    if arguments and isinstance(origin, type):
        inner = ", ".join("..." if argument is ... else name_of(argument) for argument in arguments)
        return f"{origin.__name__}[{inner}]"
    return str(type_).replace("typing.", "")
