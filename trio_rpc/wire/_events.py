"""What the wire hands up: one small class for each thing that a peer can say.

Payloads stay opaque; blobs are already cut out of the message, each its own `bytes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import attrs

from .._errors import Code
from ._frames import Data, Outcome
from ._hello import Hello

__all__ = [
    "CancelReceived",
    "CreditReceived",
    "EndReceived",
    "ErrorReceived",
    "Event",
    "GoAwayReceived",
    "HelloReceived",
    "ItemsReceived",
    "PingReceived",
    "PongReceived",
    "RequestReceived",
    "ResponseReceived",
    "TooMuchReceived",
]

ReceivedMetadata: TypeAlias = "dict[str, str | bytes]"


@attrs.define
class HelloReceived:
    """The peer introduced itself; nothing else comes before."""

    hello: Hello


@attrs.define
class RequestReceived:
    """A whole request. `timeout` is what was left of the caller's deadline when it was written, None if endless."""

    id: int
    method: str
    payload: Data = attrs.field(repr=False)
    blobs: Sequence[bytes] = attrs.field(repr=False)
    timeout: float | None
    metadata: ReceivedMetadata | None = attrs.field(repr=False)
    streaming: bool


@attrs.define
class ResponseReceived:
    """The result of a unary call: its terminal frame."""

    id: int
    payload: Data = attrs.field(repr=False)
    blobs: Sequence[bytes] = attrs.field(repr=False)
    metadata: ReceivedMetadata | None = attrs.field(repr=False)


@attrs.define
class ErrorReceived:
    """A call ended without a result: its terminal frame."""

    id: int
    code: Code
    outcome: Outcome
    started: bool
    message: str
    payload: Data = attrs.field(repr=False)
    metadata: ReceivedMetadata | None = attrs.field(repr=False)


@attrs.define
class ItemsReceived:
    """One batch of a stream's items, from caller or handler. `size` is what it costs in credit."""

    id: int
    count: int
    payload: Data = attrs.field(repr=False)
    blobs: Sequence[bytes] = attrs.field(repr=False)
    size: int
    metadata: ReceivedMetadata | None = attrs.field(repr=False)


@attrs.define
class TooMuchReceived:
    """A message in chunks began for which there is no room; all of it is passed over.

    `request`: it is a request, to be refused. Else it is an item for a handler, whose stream cannot go on.
    """

    id: int
    request: bool
    text: str


@attrs.define
class EndReceived:
    """No more items from that side. From the handler's side it is the call's terminal frame."""

    id: int
    metadata: ReceivedMetadata | None = attrs.field(repr=False)


@attrs.define
class CreditReceived:
    """The peer consumed so much of a stream that we send."""

    id: int
    size: int
    items: int


@attrs.define
class CancelReceived:
    """The caller wants its call stopped, and waits `wait` seconds for the handler's end.

    `partial`: its request had not arrived whole and never will; it needs its terminal frame all the same.
    """

    id: int
    wait: float
    leaving: bool
    partial: bool


@attrs.define
class PingReceived:
    """Answer it with `Protocol.pong(data)`."""

    data: bytes


@attrs.define
class PongReceived:
    """The echo of our own ping."""

    data: bytes


@attrs.define
class GoAwayReceived:
    """The peer takes no request of ours above `last_id`; those at or below it are finished."""

    last_id: int
    code: Code
    message: str


Event: TypeAlias = (
    HelloReceived
    | RequestReceived
    | ResponseReceived
    | ErrorReceived
    | ItemsReceived
    | EndReceived
    | CreditReceived
    | CancelReceived
    | PingReceived
    | PongReceived
    | GoAwayReceived
    | TooMuchReceived
)
