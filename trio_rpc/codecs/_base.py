"""The codec protocol: plain values to bytes and back, with large buffers beside the bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Protocol, TypeAlias, TypeVar

import attrs

from .._config import Limits

__all__ = [
    "BLOB_SIZE",
    "INT_MAX",
    "INT_MIN",
    "MAX_CONTAINERS",
    "MAX_DEPTH",
    "MAX_VALUES",
    "Bounds",
    "Buffer",
    "Codec",
    "flat",
    "get",
    "incoming",
    "names",
    "outgoing",
    "receiving",
    "register",
    "sending",
]

T = TypeVar("T")
Buffer: TypeAlias = bytes | bytearray | memoryview

BLOB_SIZE = 64 * 1024
"""Bytes from which a buffer travels beside the payload, uncopied: one frame's worth of a stream window."""

_DEFAULTS = Limits()

MAX_DEPTH: int = _DEFAULTS.max_depth
"""Containers inside containers. Honest messages stay below 20; code that walks a value recursively survives 64."""

MAX_CONTAINERS: int = _DEFAULTS.max_containers
"""Lists and maps in one message. 1 MiB of empty maps is a million objects (75 MiB, 0.1 s); 20,000 cost some 2 ms."""

MAX_VALUES: int = _DEFAULTS.max_values
"""Values in one message, each for what it costs to read; see `_cost`. 1 MiB of paths would take 1.6 s."""


@attrs.frozen
class Bounds:
    """What one message may hold, whatever its bytes: see the settings of these names in `Limits`."""

    max_depth: int = MAX_DEPTH
    max_containers: int = MAX_CONTAINERS
    max_values: int = MAX_VALUES

    @classmethod
    def of(cls, limits: Limits) -> Bounds:
        """Return those of a connection's limits."""
        return cls(limits.max_depth, limits.max_containers, limits.max_values)


INT_MIN, INT_MAX = -(2**63), 2**64 - 1
"""What every codec carries as an integer; beyond it nothing is sent."""


class Codec(Protocol):
    """Plain values <-> bytes. Plain: None, bool, int, float, str, list, tuple (comes back a list), dict with str keys.

    A codec may have three more attributes. `native`, a frozenset out of `{bytes, datetime}`, names what it carries
    besides; such values are then handed to it as they are, elsewhere they become text first (base64, ISO 8601).
    `placeholder(index)` makes the plain value that stands for `blobs[index]`; without it that is `{"$blob": index}`.
    `limited(bounds)` returns the same codec with other bounds, for the pools and servers whose `Limits` say so; one
    without it bounds messages as it likes, and of `max_values` only what is counted beside it holds: what the hooks of
    types cost.

    Codecs are shared by all connections of a process, of every thread.
    """

    @property
    def name(self) -> str:
        """What peers call it when they negotiate."""
        ...

    def encode(self, value: object, blobs: list[Buffer]) -> bytes:
        """Return the payload. `EncodeError`, and nothing else, for a value that it cannot carry.

        `blobs` already holds the buffers whose placeholders are in `value`; a codec with native bytes appends others.
        """
        ...

    def decode(self, data: bytes | memoryview, blobs: Sequence[bytes]) -> object:
        """Return the value. `DecodeError`, and nothing else, for bytes that are not well-formed or break a limit."""
        ...


# The buffers of the one message that is being encoded or decoded here; neither ever waits. Thus the hooks of places
# typed bytes reach them, however deep they lie.
outgoing: ContextVar[list[Buffer] | None] = ContextVar("outgoing", default=None)
incoming: ContextVar[list[bytes | None]] = ContextVar("incoming")
"""Each becomes None when its place has been found: a buffer in two places would be copied for each of a million."""


def flat(view: memoryview) -> Buffer:
    """Return a view whose length is its number of bytes, without a copy where that is possible."""
    if not view.c_contiguous:
        return bytes(view)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def sending(hook: Callable[[Any], T], value: Any, blobs: list[Buffer]) -> T:
    """Return `hook(value)`; large buffers in it join `blobs`."""
    token = outgoing.set(blobs)
    try:
        return hook(value)
    finally:
        outgoing.reset(token)


def receiving(hook: Callable[[Any], T], value: Any, blobs: Sequence[bytes]) -> T:
    """Return `hook(value)`; placeholders in it find their buffers in `blobs`."""
    if not blobs:
        return hook(value)
    token = incoming.set(list(blobs))
    try:
        return hook(value)
    finally:
        incoming.reset(token)


_codecs: dict[str, Codec] = {}


def register(codec: Codec) -> None:
    """Make a codec available by its name. ValueError if another one has that name."""
    known = _codecs.setdefault(codec.name, codec)
    if known is not codec:
        raise ValueError(f"a codec named {codec.name!r} is registered already: give yours another name")


def get(name: str) -> Codec:
    """Return the codec of that name. LookupError, with the known names, if there is none."""
    try:
        return _codecs[name]
    except KeyError:
        raise LookupError(
            f"no codec is named {name!r}: choose one of {', '.join(_codecs)}, or register() yours"
        ) from None


def names() -> tuple[str, ...]:
    """Return the names of all registered codecs, built-in ones first."""
    return tuple(_codecs)
