"""The preface and HELLO: what each side tells the other before anything else.

HELLO is a JSON object, so that it needs no negotiated codec and a person can read it off the wire. Unknown keys are
ignored: that is how later versions add to it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import attrs

from .._errors import LocalProtocolError, RemoteProtocolError
from .._text import is_readable
from ._frames import MAGIC, PREFACE, VERSION

__all__ = ["LEAST_FRAME_SIZE", "MAX_HELLO_SIZE", "Hello", "read_preface"]

LEAST_FRAME_SIZE = 1024
"""Every peer takes frames of this size, whatever its HELLO says."""
MAX_HELLO_SIZE = 16 * 1024
"""All that a peer may send before it is known."""
REMEMBERED = 64
"""HELLOs of peers that are remembered: those of one kind all say the same, and share what was read of it."""
REMEMBERED_SIZE = 1024
"""Longer HELLOs are read each time."""


@attrs.frozen(kw_only=True)
class Hello:
    """One side's introduction. Sizes in bytes, times in seconds."""

    codecs: tuple[str, ...] = ("msgpack",)
    """From the dialler: the codecs it can speak, best first. From the acceptor: the one it chose."""
    max_in_flight: int = 256
    """Calls that this side is willing to run at once for the other."""
    max_frame_size: int = 1024 * 1024
    max_message_size: int = 4 * 1024 * 1024
    max_metadata_size: int = 8 * 1024
    max_metadata_items: int = 64
    max_receiving_bytes: int = 32 * 1024 * 1024
    """Bytes of messages that may be incomplete here at once; a single one may always be."""
    stream_window: int = 64 * 1024
    """Initial credit, in bytes, of every stream that the other side sends."""
    stream_window_items: int = 1024
    ping_interval: float | None = None
    """How often this side may ping after silence, or None: the other side must allow that many."""
    ping_timeout: float = 0.0
    credentials: Mapping[str, Any] | None = attrs.field(default=None, repr=False)
    services: tuple[str, ...] = ()
    """Names of the services that this side offers the other."""
    product: str = "trio_rpc"
    instance: str = ""
    """Which server or pool this is, as against others at the same address; random. Empty where a peer does not say."""

    def __attrs_post_init__(self) -> None:
        # No frame is larger than a message: with this said once, one comparison at the header holds both limits.
        object.__setattr__(self, "max_frame_size", min(self.max_frame_size, self.max_message_size))

    def to_bytes(self) -> bytes:
        """The body of a HELLO frame. Raises LocalProtocolError if no peer would accept it."""
        return self._body

    @functools.cached_property
    def _body(self) -> bytes:
        fields = {key: value for key, value in attrs.asdict(self, recurse=False).items() if value is not None}
        try:
            body = json.dumps(fields, separators=(",", ":"), allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as exc:
            raise LocalProtocolError(f"the credentials in a HELLO must be plain JSON values: {exc}") from None
        if len(body) > MAX_HELLO_SIZE:
            raise LocalProtocolError(
                f"a HELLO of {len(body)} bytes is more than the {MAX_HELLO_SIZE} that a peer accepts: "
                "send smaller credentials, or offer fewer services"
            )
        return body

    @classmethod
    def from_bytes(cls, body: bytes) -> Hello:
        """Read a peer's HELLO. Raises RemoteProtocolError naming the field that is wrong."""
        hello = _remembered.get(body)
        if hello is None:
            hello = _read(body)
            if len(body) <= REMEMBERED_SIZE and hello.credentials is None:
                if len(_remembered) >= REMEMBERED:
                    _remembered.clear()
                _remembered[body] = hello
        return hello


_remembered: dict[bytes, Hello] = {}


def _read(body: bytes) -> Hello:
    try:
        raw = json.loads(body.decode())
    except (ValueError, RecursionError):
        raise RemoteProtocolError("the peer's HELLO is not a JSON object in UTF-8") from None
    if not isinstance(raw, dict):
        raise RemoteProtocolError(f"the peer's HELLO must be a JSON object, not {type(raw).__name__}")
    known: dict[str, Any] = {}
    for name, (check, wanted) in _FIELDS.items():
        if name in raw and raw[name] is not None:
            if not check(raw[name]):
                value = "" if name == "credentials" else f"={str(raw[name])[:40]!r}"  # It may be a secret all the same.
                raise RemoteProtocolError(f"the peer's HELLO has {name}{value}: expected {wanted}")
            known[name] = tuple(raw[name]) if isinstance(raw[name], list) else raw[name]
    return Hello(**known)


def _whole(least: int) -> tuple[Any, str]:
    return lambda v: type(v) is int and least <= v <= 2**53, f"a whole number of at least {least}"


def _seconds(v: Any) -> bool:
    return type(v) in (int, float) and 0 <= v <= 1e9


def _short(v: Any) -> bool:
    return isinstance(v, str) and len(v) <= 255 and is_readable(v)  # They stand in logs and in messages.


def _texts(v: Any) -> bool:
    return isinstance(v, list) and len(v) <= 10_000 and all(map(_short, v))


_FIELDS: dict[str, tuple[Any, str]] = {
    "codecs": (lambda v: _texts(v) and v, "a list of codec names"),
    "max_in_flight": _whole(1),
    "max_frame_size": _whole(LEAST_FRAME_SIZE),
    "max_message_size": _whole(LEAST_FRAME_SIZE),
    "max_metadata_size": _whole(0),
    "max_metadata_items": _whole(0),
    "max_receiving_bytes": _whole(1),
    "stream_window": _whole(1),
    "stream_window_items": _whole(1),
    "ping_interval": (_seconds, "seconds"),
    "ping_timeout": (_seconds, "seconds"),
    "credentials": (lambda v: isinstance(v, dict), "an object"),
    "services": (_texts, "a list of service names"),
    "product": (_short, "a short text"),
    "instance": (_short, "a short text"),
}


def read_preface(data: bytes) -> int:
    """Check the first bytes of all; return how many of `data` they took, 0 while they are not whole.

    Raises RemoteProtocolError at the first byte that is wrong, and names what the peer seems to speak instead.
    """
    head = data[: len(MAGIC)]
    if head != MAGIC[: len(head)]:
        raise RemoteProtocolError(f"the peer does not speak trio_rpc: {_guess(data)}")
    if len(data) < len(PREFACE):
        return 0
    version = data[len(MAGIC)]
    if version != VERSION:
        raise RemoteProtocolError(f"the peer speaks version {version} of the wire; this side speaks {VERSION}")
    return len(PREFACE)


def _guess(data: bytes) -> str:
    """Name what the peer seems to speak instead, from its first bytes."""
    if data[:5] == b"HTTP/" or data.split(b" ", 1)[0] in _HTTP_METHODS:
        return "it speaks HTTP"
    if data[:2] in {b"\x16\x03", b"\x15\x03"}:
        return "it speaks TLS: use that on both sides (tls://), or on neither"
    return f"it began with {data[:16]!r}"


_HTTP_METHODS = {b"GET", b"POST", b"PUT", b"PATCH", b"HEAD", b"OPTIONS", b"DELETE", b"CONNECT", b"PRI"}
