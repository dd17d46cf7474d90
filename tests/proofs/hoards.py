"""Hostile connections that have the server keep as much as it will: each takes all that one connection is given."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Callable, Iterator

import msgpack
import trio

from trio_rpc.wire import Hello, Kind

from .raw import GREETING, MORE, STREAM, Raw, frame, open_raw, request

__all__ = ["HOARDS", "hoard"]

CHUNK = 64 * 1024
PIECE = 16 * 1024
"""In one send."""


def _ids(told: Hello) -> range:
    """Of as many calls as one connection may have at once."""
    return range(1, 2 * told.max_in_flight, 2)


async def results(told: Hello) -> AsyncIterator[bytes]:
    """R05: results, none of which is read."""
    for id_ in _ids(told):
        yield request(id_, "large", min(told.max_message_size, 2**20) - 100)


async def late(told: Hello) -> AsyncIterator[bytes]:
    """R05: the same of handlers that have all been begun before the first result is there."""
    for id_ in _ids(told):
        yield request(id_, "late", told.max_message_size - 100)


async def calls(told: Hello) -> AsyncIterator[bytes]:
    """R17: as many calls as there may be."""
    for id_ in _ids(told):
        yield request(id_, "wait", id_)


async def streams(told: Hello) -> AsyncIterator[bytes]:
    """R13: streams that do not end, each with as much in its buffer as it may have."""
    payload = bytes(msgpack.packb([bytes(told.stream_window - 100)]))
    item = frame(Kind.ITEMS, 0, struct.pack(">I", 1) + payload)
    for id_ in _ids(told):
        yield request(id_, "leave", streaming=True) + item[:4] + struct.pack(">I", id_) + item[8:]


async def kept(told: Hello) -> AsyncIterator[bytes]:
    """R23: arguments as large as they may be, a window of items, and one more item that is as large; none is taken."""
    data = bytes(msgpack.packb(bytes(told.max_message_size - 100)))
    piece = struct.pack(">I", 1) + bytes(msgpack.packb([bytes(told.stream_window - 100)]))
    item = struct.pack(">I", 1) + b"\x91" + data
    for id_ in _ids(told):
        for part in _whole(Kind.REQUEST, id_, b"\x0bTarget.keep\x91" + data, STREAM):
            yield part
        yield frame(Kind.ITEMS, id_, piece)
        for part in _whole(Kind.ITEMS, id_, item):
            yield part


def _whole(kind: Kind, id_: int, body: bytes, flags: int = 0) -> Iterator[bytes]:
    """A large message in chunks."""
    yield frame(kind, id_, struct.pack(">I", len(body)) + body[:1024], flags=flags | MORE)
    for start in range(1024, len(body), CHUNK):
        more = MORE if start + CHUNK < len(body) else 0
        yield frame(Kind.CHUNK, id_, body[start : start + CHUNK], flags=more)


async def halves(told: Hello) -> AsyncIterator[bytes]:
    """R14: messages as large as they may be, the last chunk of none of which comes."""
    largest = told.max_message_size
    head = b"\x0bTarget.take\x91\xc6" + struct.pack(">I", largest - 100)
    for id_ in _ids(told):
        yield frame(Kind.REQUEST, id_, struct.pack(">I", largest) + head, flags=MORE)
        for _ in range(largest // CHUNK - 1):
            yield frame(Kind.CHUNK, id_, bytes(CHUNK), flags=MORE)


async def frames(told: Hello) -> AsyncIterator[bytes]:
    """R08: one frame as large as it may be, but for its last byte."""
    size = told.max_frame_size
    yield frame(Kind.REQUEST, 1, b"\x0bTarget.take" + bytes(size - 20), length=size)


HOARDS: dict[str, Callable[[Hello], AsyncIterator[bytes]]] = {
    "results that nobody reads": results,
    "results that come late, and that nobody reads": late,
    "streams that do not end": streams,
    "calls that do not end": calls,
    "arguments and items that nobody takes": kept,
    "large messages but for their ends": halves,
    "large frames but for their ends": frames,
}


async def hoard(kind: str, target: tuple[str, int], number: int) -> None:
    """Take all that a connection of this kind may, and keep it; come again where it is cut. Until it is cancelled."""
    while True:
        try:
            async with open_raw(target, number) as raw:
                await raw.send(GREETING)
                await raw.events()
                if raw.protocol.remote is not None:
                    async for data in HOARDS[kind](raw.protocol.remote):
                        for start in range(0, len(data), PIECE):
                            await raw.send(data[start : start + PIECE])
                        if raw.ended:
                            break
                    else:
                        await _watch(raw, reads="nobody reads" not in kind)
        except OSError:
            pass  # No room for another one at present.
        await trio.sleep(0.1)


async def _watch(raw: Raw, *, reads: bool) -> None:
    """Wait for the end."""
    while not raw.ended:
        if reads:
            await raw.events()
        else:
            await trio.sleep(1)
            await raw.send(frame(Kind.PING, 0, bytes(8)))
