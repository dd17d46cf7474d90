"""What bad peers send: faults that have a name, mutants that have none, and the honest bytes that these are made of."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.acceptance_worlds import HandPeer, octets, raw_frame
from trio_rpc.wire import HEADER_SIZE, Flag, Kind

KIB = 1024
MORE, METADATA_FLAG, BLOBS = int(Flag.MORE), int(Flag.METADATA), int(Flag.BLOBS)
HUGE = b"\xff\xff\xff\xff"

HOSTILE: dict[str, Callable[[HandPeer, int], bytes]] = {
    "no frame at all": lambda peer, id_: b"HTTP/1.1 400 Bad Request\r\n\r\n" * 20,
    "a frame of 4 GiB": lambda peer, id_: raw_frame(Kind.RESPONSE, id_, length=2**32 - 1),
    "half a frame": lambda peer, id_: raw_frame(Kind.RESPONSE, id_, b"x", length=100),
    "an unknown kind": lambda peer, id_: raw_frame(99, id_),
    "unknown flags": lambda peer, id_: raw_frame(Kind.RESPONSE, id_, b"\x00", flags=0x80),
    "a reserved flag": lambda peer, id_: raw_frame(Kind.RESPONSE, id_, b"\x00", flags=int(Flag.COMPRESSED)),
    "a second HELLO": lambda peer, id_: raw_frame(Kind.HELLO, 0, b"{}"),
    "a reply to nothing": lambda peer, id_: octets(peer.response(id_ + 100, None)),
    "a reply to its own": lambda peer, id_: octets(peer.response(2, None)),
    "a reply to the connection": lambda peer, id_: octets(peer.response(0, None)),
    "two replies": lambda peer, id_: 2 * octets(peer.response(id_, None)),
    "no payload": lambda peer, id_: raw_frame(Kind.RESPONSE, id_),
    "a payload of junk": lambda peer, id_: raw_frame(Kind.RESPONSE, id_, b"\xc1\xff{"),
    "a payload of depth": lambda peer, id_: raw_frame(Kind.RESPONSE, id_, b"\x91" * 100_000 + b"[" * 100_000),
    "the wrong type": lambda peer, id_: octets(peer.response(id_, {"not": "text"})),
    "lying metadata": lambda peer, id_: raw_frame(Kind.RESPONSE, id_, HUGE, flags=METADATA_FLAG),
    "metadata out of bounds": lambda peer, id_: raw_frame(
        Kind.RESPONSE, id_, b"\x00\x00\x00\x03\xffab", flags=METADATA_FLAG
    ),
    "lying blobs": lambda peer, id_: raw_frame(Kind.RESPONSE, id_, b"\xff\xff" + HUGE, flags=BLOBS),
    "a message of 4 GiB": lambda peer, id_: raw_frame(Kind.RESPONSE, id_, HUGE, flags=MORE),
    "a message within a message": lambda peer, id_: 2 * raw_frame(Kind.ITEMS, id_, b"\x00\x00\x10\x00", flags=MORE),
    "a chunk of nothing": lambda peer, id_: raw_frame(Kind.CHUNK, id_, b"x"),
    "too many chunks": lambda peer, id_: (
        raw_frame(Kind.RESPONSE, id_, b"\x00\x00\x00\x08", flags=MORE) + raw_frame(Kind.CHUNK, id_, bytes(100))
    ),
    "an empty ERROR": lambda peer, id_: raw_frame(Kind.ERROR, id_),
    "an unknown code": lambda peer, id_: raw_frame(Kind.ERROR, id_, b"\xc8\x00\x00\x00"),
    "an unknown outcome": lambda peer, id_: raw_frame(Kind.ERROR, id_, b"\x02\x63\x00\x00"),
    "the code OK": lambda peer, id_: raw_frame(Kind.ERROR, id_, b"\x00\x00\x00\x00"),
    "a text beyond its frame": lambda peer, id_: raw_frame(Kind.ERROR, id_, b"\x02\x00\xff\xffx"),
    "a text that is none": lambda peer, id_: raw_frame(Kind.ERROR, id_, b"\x02\x00\x00\x02\xff\xfe"),
    "a failure of junk": lambda peer, id_: raw_frame(Kind.ERROR, id_, b"\x02\x80\x00\x00\xc1\xff{"),
    "items for all": lambda peer, id_: octets(peer.items(id_, "one")),
    "no items at all": lambda peer, id_: raw_frame(Kind.ITEMS, id_, HUGE),
    "items of the wrong type": lambda peer, id_: octets(peer.items(id_, "one", 2)) + peer.protocol.end(id_),
    "items that are no list": lambda peer, id_: octets(peer.protocol.items(id_, 2, peer.encode({"a": 1}))),
    "items without credit": lambda peer, id_: 40 * octets(peer.items(id_, "x" * 10 * KIB)),
    "items behind the end": lambda peer, id_: peer.protocol.end(id_) + octets(peer.items(id_, "one")),
    "an end": lambda peer, id_: peer.protocol.end(id_),
    "a request": lambda peer, id_: peer.request("empty")[1],
    "a request of our parity": lambda peer, id_: raw_frame(Kind.REQUEST, id_, b"\x01x"),
    "a request without a name": lambda peer, id_: raw_frame(Kind.REQUEST, 2, b"\x00"),
    "a cancel of our call": lambda peer, id_: peer.protocol.cancel(id_, 1.0),
    "credit of nothing": lambda peer, id_: raw_frame(Kind.CREDIT, id_, bytes(8)),
    "credit of everything": lambda peer, id_: 3 * raw_frame(Kind.CREDIT, id_, 2 * HUGE),
    "a short ping": lambda peer, id_: raw_frame(Kind.PING, 0, b"x"),
    "pings without end": lambda peer, id_: 100 * peer.protocol.ping(bytes(8)),
    "a pong unasked": lambda peer, id_: peer.protocol.pong(b"\xff" * 8),
    "a GOAWAY of junk": lambda peer, id_: raw_frame(Kind.GOAWAY, 0, HUGE + b"\xff\xff\xfe"),
    "a GOAWAY below": lambda peer, id_: peer.protocol.goaway(0),
}
"""What a server sends in the place of its reply to request `id_`, before it closes."""


def fragments(message: bytes, size: int) -> bytes:
    """A message of one frame, laid out anew in CHUNK frames of `size` bytes."""
    kind, request_id, body = message[8], int.from_bytes(message[4:8], "big"), message[HEADER_SIZE:]
    frames = [raw_frame(kind, request_id, len(body).to_bytes(4, "big") + body[:size], flags=int(Flag.MORE))]
    for start in range(size, len(body), size):
        more = Flag.MORE if start + size < len(body) else 0
        frames.append(raw_frame(Kind.CHUNK, request_id, body[start : start + size], flags=int(more)))
    return b"".join(frames)


def short_text(text: str) -> bytes:
    """A short text as the wire has it, behind its length."""
    return bytes([len(text)]) + text.encode()


def mutate(octets: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, removed, doubled or put in."""
    mutant = bytearray(octets)
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(mutant))
        end = start + rng.randint(1, 12)
        match rng.randrange(4):
            case 0:
                mutant[start] = rng.randrange(256)
            case 1:
                del mutant[start : min(end, len(mutant) - 1)]
            case 2:
                mutant[start:start] = mutant[start:end]
            case _:
                mutant[start:start] = rng.randbytes(end - start)
    return bytes(mutant)


def a_session(peer: HandPeer) -> bytes:
    """Every kind of frame that a client sends."""
    unary, relay = peer.request("relay", 0.0, metadata={"text": "here", "raw": b"\xab"}, timeout=5.0)
    stream, converse = peer.request("converse", streaming=True)
    asks = octets(peer.items(stream, {"size": 9}))
    credit, end = peer.protocol.credit(stream, 100, 10), peer.protocol.end(stream)
    return b"".join([relay, converse, asks, peer.protocol.ping(bytes(8)), credit, end, peer.protocol.cancel(unary, 1)])


def a_reply(peer: HandPeer, ids: dict[str, int]) -> bytes:
    """Every kind of frame that a server sends."""
    items = octets(peer.items(ids["words"], "one", "two", metadata={"text": "here", "raw": b"\xab"}))
    response = octets(peer.response(ids["word"], {"a": [1, 2.5, "three"]}))
    return items + peer.protocol.ping(bytes(8)) + response + peer.protocol.end(ids["words"]) + peer.protocol.goaway(99)
