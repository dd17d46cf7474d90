"""The bytes: one fixed header, twelve kinds of frame, and how a message is laid out in them.

Theory. A *frame* is a ten-byte header and a body. A *message* is the body of one frame or, where it is large, of a
first frame marked MORE and of the CHUNK frames behind it. The body of a message is a *prelude* of binary fields that
a relay can read without any codec, then the *payload*, which only the two ends' codec understands, then *blobs*:
large byte strings that the payload refers to by number, carried as they are.

Everything here is pure: values in, bytes out; `_bodies` is its mirror. `docs/reference/wire.md` is the specification,
and the numbers below are its numbers.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, TypeAlias

__all__ = [
    "ALLOWED_FLAGS",
    "CHUNK_SIZE",
    "HEADER",
    "HEADER_SIZE",
    "MAGIC",
    "MAX_BLOBS",
    "MAX_ID",
    "MAX_METHOD_SIZE",
    "MAX_PLAIN_PRELUDE",
    "MAX_SIZE",
    "MIN_CHUNK_SIZE",
    "PREFACE",
    "STARTED",
    "VERSION",
    "Bytes",
    "Data",
    "Flag",
    "Frames",
    "Kind",
    "Metadata",
    "Outcome",
    "blob_block",
    "control",
    "frame_id",
    "is_timed_request",
    "message",
    "message_size",
    "metadata_block",
    "method_block",
    "plain_request",
    "restamp",
    "text_block",
    "timeout_block",
]

Bytes: TypeAlias = bytes | bytearray | memoryview
"""What may be sent. A memoryview must be flat: its length is its number of bytes."""
Data: TypeAlias = bytes | memoryview
"""What arrives."""
Metadata: TypeAlias = Mapping[str, str | bytes]

MAGIC: Final = b"\x89TRPC\r\n"
"""Like PNG's signature: a byte that is no ASCII, so text protocols differ at once, and a CR LF that mangling breaks."""
VERSION: Final = 1
PREFACE: Final = MAGIC + bytes([VERSION])

HEADER: Final = struct.Struct(">IIBB")
"""length of the body, request id (0 for the connection itself), kind, flags."""
HEADER_SIZE: Final = HEADER.size

MAX_ID: Final = 0xFFFF_FFFF
MAX_SIZE: Final = 0xFFFF_FFFF
"""Of anything whose size is told in 32 bits, whatever a peer says that it accepts."""
MAX_METHOD_SIZE: Final = 255
MAX_BLOBS: Final = 0x4000
"""Of one message; so many empty ones take 12 ms to be read, and of 64 KiB each they are a gigabyte."""

CHUNK_SIZE: Final = 64 * 1024
"""A message beyond this travels in chunks of this size: 5 ms on a 100 Mbit/s link, so that others pass soon."""
MIN_CHUNK_SIZE: Final = 1024
"""What every chunk but the last holds at least: else a message could be cut into pieces that cost more than it does."""
FIRST_PART: Final = 16 * 1024
"""Payload bytes in the first frame of a chunked message; small, as they are joined with other small frames."""


class Kind(enum.IntEnum):
    """What a frame is."""

    HELLO = 1
    REQUEST = 2
    RESPONSE = 3
    ERROR = 4
    ITEMS = 5
    END = 6
    CREDIT = 7
    CANCEL = 8
    PING = 9
    PONG = 10
    GOAWAY = 11
    CHUNK = 12


class Flag(enum.IntFlag):
    """What a frame's body holds; the blocks stand in the order of their bits."""

    MORE = 0x01
    """The message goes on in CHUNK frames of the same id. On a first frame the body starts with the total size."""
    TIMEOUT = 0x02
    """REQUEST: the time left for the call."""
    METADATA = 0x04
    """A metadata block."""
    BLOBS = 0x08
    """A table of blob sizes; the blobs themselves stand behind the payload."""
    STREAM = 0x10
    """REQUEST: ITEMS and END from the caller will follow."""
    COMPRESSED = 0x20
    """Reserved: a payload compressed by a negotiated algorithm."""


class Outcome(enum.IntEnum):
    """Why a call ended without its result. `started` travels beside it."""

    FAILED = 0
    """The handler raised."""
    REFUSED = 1
    """Declined before the handler was entered."""
    STOPPED = 2
    """The serving side stopped the handler of its own accord: drain, its max_deadline, its own scope."""
    EXPIRED = 3
    """The caller's own deadline ran out at the serving side."""
    CANCELLED = 4
    """The answer to a CANCEL: the handler has ended."""


STARTED: Final = 0x80

_ANY_MESSAGE = Flag.MORE | Flag.METADATA
ALLOWED_FLAGS: Final[dict[int, int]] = dict.fromkeys(map(int, Kind), 0) | {
    # As plain numbers: the inverse of an IntFlag knows only its own bits, and would let unknown ones through.
    int(Kind.REQUEST): int(_ANY_MESSAGE | Flag.TIMEOUT | Flag.BLOBS | Flag.STREAM),
    int(Kind.RESPONSE): int(_ANY_MESSAGE | Flag.BLOBS),
    int(Kind.ERROR): int(_ANY_MESSAGE),
    int(Kind.ITEMS): int(_ANY_MESSAGE | Flag.BLOBS),
    int(Kind.END): int(Flag.METADATA),
    int(Kind.CHUNK): int(Flag.MORE),
}
"""Any other bit is a protocol error: a flag changes how the body reads, so none may be ignored."""

_U16: Final = struct.Struct(">H")
_U32: Final = struct.Struct(">I")
_U64: Final = struct.Struct(">Q")

TIMEOUT_SIZE: Final = _U64.size
MAX_PLAIN_PRELUDE: Final = TIMEOUT_SIZE + 1 + MAX_METHOD_SIZE
"""What may stand before the payload of a request without metadata and blobs."""
FAR: Final = 1e12
"""Seconds beyond which no timeout makes a difference; what is more, infinity too, is sent as this."""
_TIMED_HEADER: Final = struct.Struct(HEADER.format + "Q")
_MORE, _TIMEOUT = int(Flag.MORE), int(Flag.TIMEOUT)
_REQUEST, _CHUNK = int(Kind.REQUEST), int(Kind.CHUNK)

Frames: TypeAlias = tuple[bytes, Iterator[list[Bytes]] | None]
"""A message ready to go: its first frame, and an iterator over its chunks (header, slices), or None."""


def timeout_block(seconds: float) -> bytes:
    """The time left, in whole microseconds, rounded up so that a caller's timer is never the later one."""
    return _U64.pack(_microseconds(seconds))


def _microseconds(seconds: float) -> int:
    return max(0, int(min(seconds, FAR) * 1e6) + 1)


def method_block(name: str) -> bytes:
    """The length-prefixed method name; made once per stub method."""
    raw = name.encode()
    if not 0 < len(raw) <= MAX_METHOD_SIZE:
        raise ValueError(f"a method name takes 1 to {MAX_METHOD_SIZE} bytes of UTF-8; {name[:40]!r} takes {len(raw)}")
    return bytes([len(raw)]) + raw


def metadata_block(metadata: Metadata) -> bytes:
    """Keys are text; values text (type 0) or bytes (type 1). ValueError or TypeError for anything else."""
    parts = [b""]
    for key, value in metadata.items():
        raw_key, raw, type_ = _text(key, "a key"), *((value, 1) if isinstance(value, bytes) else (_text(value, key), 0))
        if not 0 < len(raw_key) <= 255:
            raise ValueError(f"a key takes 1 to 255 bytes of UTF-8; {key[:40]!r} takes {len(raw_key)}")
        parts += bytes([len(raw_key)]), raw_key, bytes([type_]), _U32.pack(len(raw)), raw
    parts[0] = _U32.pack(sum(map(len, parts)))
    return b"".join(parts)


def _text(value: object, what: str) -> bytes:
    if isinstance(value, str):
        return value.encode()
    raise TypeError(f"{what[:40]!r} is a {type(value).__name__}")


def text_block(text: str, limit: int) -> bytes:
    """At most `limit` bytes of UTF-8, cut between two characters; what UTF-8 cannot say is escaped."""
    raw = text.encode("utf-8", "backslashreplace")
    return raw if len(raw) <= limit else raw[:limit].decode("utf-8", "ignore").encode()


def control(kind: int, request_id: int, body: bytes = b"") -> bytes:
    """A frame without payload: HELLO, CREDIT, CANCEL, PING, PONG, GOAWAY, or an END without metadata."""
    return HEADER.pack(len(body), request_id, kind, 0) + body


def message(
    kind: int,
    request_id: int,
    flags: int,
    prelude: bytes,
    payload: bytes,
    blobs: Sequence[Bytes] = (),
    *,
    chunk_size: int = CHUNK_SIZE,
) -> Frames:
    """Lay out a message as one frame, or as a first frame and its chunks.

    `prelude` holds the blocks that `flags` announces, apart from the total size, and the kind's own fields. It goes
    into the first frame whole, so that a reader knows every size before the chunks come.
    """
    total = len(prelude) + len(payload) + (sum(map(len, blobs)) if blobs else 0)
    if total <= chunk_size:
        body = b"".join([prelude, payload, *blobs]) if blobs else prelude + payload
        return HEADER.pack(total, request_id, kind, flags) + body, None
    first = payload[: max(0, min(FIRST_PART, chunk_size - 4 - len(prelude)))]
    body = _U32.pack(total) + prelude + first
    rest = _chunks(request_id, [memoryview(payload)[len(first) :], *[memoryview(blob) for blob in blobs]], chunk_size)
    return HEADER.pack(len(body), request_id, kind, flags | _MORE) + body, rest


def plain_request(request_id: int, flags: int, timeout: float | None, method: bytes, payload: bytes) -> bytes:
    """What `message` lays out for a small request without metadata and blobs, in one step: twice as quick."""
    size = len(method) + len(payload)
    if timeout is None:
        return HEADER.pack(size, request_id, _REQUEST, flags) + method + payload
    microseconds = int(timeout * 1e6) + 1 if 0.0 < timeout < FAR else _microseconds(timeout)
    head = _TIMED_HEADER.pack(size + TIMEOUT_SIZE, request_id, _REQUEST, flags | _TIMEOUT, microseconds)
    return head + method + payload


def message_size(frames: Frames) -> int:
    """What a message costs in credit: the size of its body over all its frames, without headers."""
    first, rest = frames
    return len(first) - HEADER_SIZE if rest is None else int(_U32.unpack_from(first, HEADER_SIZE)[0])


def blob_block(blobs: Sequence[Bytes]) -> bytes:
    """How many blobs, and the size of each."""
    return _U16.pack(len(blobs)) + b"".join([_U32.pack(len(blob)) for blob in blobs])


def _chunks(request_id: int, buffers: Sequence[memoryview], chunk_size: int) -> Iterator[list[Bytes]]:
    """Cut `buffers` into CHUNK frames without copying; all but the last are marked MORE."""
    left = sum(map(len, buffers))
    waiting = [buffer for buffer in reversed(buffers) if len(buffer)]
    while left:
        size = min(chunk_size, left)
        left -= size
        parts: list[Bytes] = [HEADER.pack(size, request_id, _CHUNK, _MORE if left else 0)]
        while size:
            part = waiting.pop()
            if len(part) > size:
                waiting.append(part[size:])
                part = part[:size]
            parts.append(part)
            size -= len(part)
        yield parts


def frame_id(frame: bytes) -> int:
    """The id that a frame belongs to."""
    return int(HEADER.unpack_from(frame)[1])


def is_timed_request(frame: bytes) -> bool:
    """True for a request that says how much time is left."""
    return len(frame) >= HEADER_SIZE and frame[HEADER_SIZE - 2] == _REQUEST and frame[HEADER_SIZE - 1] & _TIMEOUT != 0


def restamp(frame: bytes, seconds: float) -> bytes:
    """The same request with another time left: it has waited to be written."""
    flags = frame[HEADER_SIZE - 1]
    start = HEADER_SIZE + (4 if flags & _MORE else 0)
    return frame[:start] + timeout_block(seconds) + frame[start + TIMEOUT_SIZE :]
