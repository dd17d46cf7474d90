"""How a body reads: the mirror of `_frames`.

Each reader takes a body and where to begin in it, and returns what it read and where that ends. A prelude stands whole
in a message's first frame, so it is read when that has come; payload and blobs may lie across many frames.

What does not fit raises one of MALFORMED: bytes from a stranger are never trusted, and the one caller, `_protocol`,
makes a RemoteProtocolError of any of them.
"""

from __future__ import annotations

import struct
from itertools import accumulate, pairwise
from typing import TypeAlias

from .._errors import Code
from ._events import ErrorReceived, ItemsReceived, RequestReceived, ResponseReceived
from ._frames import MAX_BLOBS, STARTED, Data, Flag, Kind, Outcome
from ._hello import Hello

__all__ = [
    "CANCEL",
    "CREDIT",
    "ERROR",
    "GOAWAY",
    "MALFORMED",
    "U32",
    "U64",
    "Message",
    "as_code",
    "read_message",
    "read_metadata",
    "read_method",
    "read_prelude",
]

U32 = struct.Struct(">I")
U64 = struct.Struct(">Q")
CREDIT = struct.Struct(">II")
"""bytes, items."""
CANCEL = struct.Struct(">IB")
"""wait in milliseconds, leaving."""
ERROR = struct.Struct(">BBH")
"""code, outcome and started, length of the text."""
GOAWAY = struct.Struct(">IB")
"""last id, code; the text fills the rest."""

MALFORMED = (ValueError, IndexError, struct.error)
"""What the readers raise: a ValueError says what is wrong, the other two that the body ends too early."""

_U16 = struct.Struct(">H")
_TIMEOUT, _METADATA, _BLOBS, _STREAM = map(int, (Flag.TIMEOUT, Flag.METADATA, Flag.BLOBS, Flag.STREAM))
_REQUEST, _RESPONSE, _ITEMS = map(int, (Kind.REQUEST, Kind.RESPONSE, Kind.ITEMS))
_CODES = {int(code): code for code in Code}

Message: TypeAlias = RequestReceived | ResponseReceived | ItemsReceived | ErrorReceived


def as_code(number: int) -> Code:
    """The code of that number; UNKNOWN for one that only a later version knows."""
    return _CODES.get(number, Code.UNKNOWN)


def read_prelude(
    kind: int, request_id: int, flags: int, head: Data, total: int, local: Hello
) -> tuple[Message, int, tuple[int, ...]]:
    """Read what stands before the payload in the first frame of a message whose size is `total`.

    `local`: what this side says that it accepts. Returns the event, with payload and blobs still to be put in, where the payload begins, and the sizes of payload
    and blobs.
    """
    offset, timeout, metadata = 0, None, None
    blobs: tuple[int, ...] = ()
    if flags & _TIMEOUT:
        timeout, offset = U64.unpack_from(head)[0] / 1e6, U64.size
    if flags & _METADATA:
        metadata, offset = read_metadata(head, offset, local)
    if flags & _BLOBS:
        blobs, offset = _read_blob_sizes(head, offset)
    event: Message
    if kind == _REQUEST:
        method, offset = read_method(head, offset)
        event = RequestReceived(request_id, method, b"", (), timeout, metadata, bool(flags & _STREAM))
    elif kind == _RESPONSE:
        event = ResponseReceived(request_id, b"", (), metadata)
    elif kind == _ITEMS:
        (count,) = U32.unpack_from(head, offset)
        offset += U32.size
        if not count:
            raise ValueError("it has no items")
        event = ItemsReceived(request_id, count, b"", (), total, metadata)
    else:
        code, outcome, started, text, offset = _read_error(head, offset)
        event = ErrorReceived(request_id, code, outcome, started, text, b"", metadata)
    payload = total - offset - sum(blobs)
    if payload < 0:
        raise ValueError("its blobs are larger than itself")
    return event, offset, (payload, *blobs)


def read_message(kind: int, request_id: int, flags: int, body: Data, local: Hello) -> Message:
    """Read a message that is whole in one frame."""
    event, offset, (payload, *blobs) = read_prelude(kind, request_id, flags, body, len(body), local)
    event.payload = body[offset : offset + payload]
    if blobs and not isinstance(event, ErrorReceived):
        ends = accumulate(blobs, initial=offset + payload)
        event.blobs = [bytes(body[start:end]) for start, end in pairwise(ends)]
    return event


def read_method(body: Data, offset: int) -> tuple[str, int]:
    """The method's name."""
    start = offset + 1
    end = start + body[offset]
    if end > len(body) or end == start:
        raise ValueError("it has no whole method name")
    return str(body[start:end], "utf-8"), end


def _read_error(body: Data, offset: int) -> tuple[Code, Outcome, bool, str, int]:
    """Code, outcome, whether the handler was entered, text."""
    number, outcome, length = ERROR.unpack_from(body, offset)
    start = offset + ERROR.size
    end = start + length
    if end > len(body):
        raise ValueError("its text is cut short")
    kind, started = Outcome(outcome & ~STARTED), bool(outcome & STARTED)
    if started and kind is Outcome.REFUSED:
        raise ValueError("a call that was refused cannot have been started")
    return as_code(number) or Code.UNKNOWN, kind, started, str(body[start:end], "utf-8"), end


def read_metadata(body: Data, offset: int, local: Hello) -> tuple[dict[str, str | bytes], int]:
    """The metadata block; ValueError if it is larger, its own length included, or has more entries than `local` allows."""
    (size,) = U32.unpack_from(body, offset)
    offset += U32.size
    limit, entries_left = local.max_metadata_size, local.max_metadata_items
    if size + U32.size > limit:
        raise ValueError(f"metadata of {size + U32.size} bytes is above our limit of {limit} (max_metadata_size)")
    end = offset + size
    if end > len(body):
        raise ValueError("its metadata is cut short")
    metadata: dict[str, str | bytes] = {}
    while offset < end:
        entries_left -= 1
        if entries_left < 0:  # Entries and not keys: one key a thousand times is as much work.
            raise ValueError(f"its metadata has more than our limit of {local.max_metadata_items} (max_metadata_items)")
        key, type_, start, offset = _read_entry(body, offset)
        if offset > end or type_ > 1 or not key:
            raise ValueError("its metadata has an entry that does not fit")
        metadata[key] = bytes(body[start:offset]) if type_ else str(body[start:offset], "utf-8")
    return metadata, end


def _read_entry(body: Data, offset: int) -> tuple[str, int, int, int]:
    """Key, type of the value, and where the value begins and ends, which may be beyond the block."""
    start = offset + 1
    end = start + body[offset]
    (length,) = U32.unpack_from(body, end + 1)
    value = end + 1 + U32.size
    return str(body[start:end], "utf-8"), body[end], value, value + length


def _read_blob_sizes(body: Data, offset: int) -> tuple[tuple[int, ...], int]:
    """The size of each blob."""
    (count,) = _U16.unpack_from(body, offset)
    if count > MAX_BLOBS:
        raise ValueError(f"it has {count} blobs, and {MAX_BLOBS} is the most")
    offset += _U16.size
    return struct.unpack_from(f">{count}I", body, offset), offset + U32.size * count
