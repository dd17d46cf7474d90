"""The frames of the hand-written limits: length, id and kind in nine bytes, then a body in MessagePack, or raw."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Literal

__all__ = ["BLOB", "CALL", "CREDIT", "END", "HEADER", "ITEMS", "STREAM", "Codec", "Splitter", "codec", "packer"]

HEADER = struct.Struct("<IIB")
HEADER_SIZE = HEADER.size
CALL, BLOB, STREAM, ITEMS, END, CREDIT = range(1, 7)
"""A call or its answer; the same with a raw body; a stream's request, items, end; and the consumer's credit."""

Codec = tuple[Callable[[Any], bytes], Callable[[Any], Any]]
Frame = tuple[int, int, Any]


def codec(name: Literal["msgpack", "msgspec"]) -> Codec:
    """A codec's encode and decode."""
    if name == "msgspec":
        import msgspec  # noqa: PLC0415 -- not in every environment

        return msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode
    import msgpack  # noqa: PLC0415

    return msgpack.Packer().pack, msgpack.unpackb


def packer(encode: Callable[[Any], bytes]) -> Callable[[int, int, Any], bytes]:
    """`pack(id, kind, value)` -> a frame."""
    header = HEADER.pack

    def pack(number: int, kind: int, value: Any) -> bytes:
        body = encode(value)
        return header(len(body), number, kind) + body

    return pack


class Splitter:
    """Bytes as they come -> whole frames, decoded; a raw body is a view of the buffer that came."""

    __slots__ = ("_decode", "_rest", "missing")

    def __init__(self, decode: Callable[[Any], Any]) -> None:
        self._decode = decode
        self._rest: bytes | bytearray | memoryview = b""
        self.missing = 0
        """Bytes that the last frame lacks, if its header is there; a reader may receive them in place."""

    def take(self) -> bytes | bytearray | memoryview:
        """Give the unfinished frame away; it comes back whole through `feed`."""
        rest, self._rest, self.missing = self._rest, b"", 0
        return rest

    def feed(self, data: bytes | bytearray) -> list[Frame]:
        """Take what was received; returns `(id, kind, value)` for each frame that is whole now."""
        if self._rest:
            data = bytes(self._rest) + data
        self.missing = 0
        unpack, decode, frames = HEADER.unpack_from, self._decode, []
        size, at, view = len(data), 0, memoryview(data)
        while size - at >= HEADER_SIZE:
            length, number, kind = unpack(data, at)
            start = at + HEADER_SIZE
            end = start + length
            if end > size:
                self.missing = end - size
                break
            frames.append((number, kind, view[start:end] if kind == BLOB else decode(view[start:end])))
            at = end
        self._rest = data[at:] if at < size else b""
        return frames
