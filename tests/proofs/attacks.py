"""What hostile connections send, and what must come of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import trio

from trio_rpc import Code, RemoteProtocolError
from trio_rpc.wire import PREFACE, ErrorReceived, Kind, ResponseReceived

from .raw import GREETING, MORE, Raw, cancel, frame, open_raw, request

__all__ = ["ATTACKS", "Attack", "attack"]

CUT, ANSWERED, LEFT = "cut", "answered", "left"
DECLARED = {
    Code.CANCELLED,
    Code.INVALID_ARGUMENT,
    Code.DEADLINE_EXCEEDED,
    Code.RESOURCE_EXHAUSTED,
    Code.UNIMPLEMENTED,
    Code.UNAVAILABLE,
}
"""What a server may answer to nonsense. INTERNAL or UNKNOWN would be a failure inside it."""
CUT_WITHIN = 5.0
"""Seconds in which an offender must be cut, or answered: one, on an idle machine, and those who attack share this one."""
HUGE = b"\xff\xff\xff\xff"


@dataclass(frozen=True)
class Attack:
    """One way to be hostile.

    Attributes:
        make: what is sent, behind a good HELLO: in one piece with it, or once the server's has come.
        end: `cut`: the server must end the connection. `answered`: it must answer all `requests`. `left`: we end it.
    """

    make: Callable[[Random], bytes]
    end: str
    requests: int = 0
    greets: bool = True


def _junk(rng: Random) -> bytes:
    return rng.randbytes(rng.randint(1, 2000))


def _hello(body: bytes) -> bytes:
    return PREFACE + frame(Kind.HELLO, 0, body)


def _sent(*frames: bytes) -> Callable[[Random], bytes]:
    return lambda _rng: b"".join(frames)


def _mutant(rng: Random) -> bytes:
    """Honest traffic, a few bytes of which are others; what comes of it is anybody's guess."""
    data = bytearray(GREETING + b"".join(request(number, "echo", "x") for number in range(1, 9, 2)))
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def _payload(*payloads: bytes) -> Callable[[Random], bytes]:
    """Requests of `echo` with these payloads."""
    name = b"\x0bTarget.echo"
    bodies = [frame(Kind.REQUEST, 2 * index + 1, name + payload) for index, payload in enumerate(payloads)]
    return _sent(*bodies)


def _half(rng: Random) -> bytes:
    whole = request(1, "echo", "x" * 500)
    return whole[: rng.randrange(1, len(whole))]


def _storm(name: str, calls: int) -> Callable[[Random], bytes]:
    ids = range(1, 2 * calls, 2)
    return _sent(*(request(id_, name, 5) + cancel(id_) for id_ in ids))


BAD_PAYLOADS = (
    b"\xc1",
    b"\x91",
    b"\x91\xdb" + HUGE,
    b"\xdd" + HUGE,
    b"\x91" * 1000,
    b"\x91\xa1\xff",
    b"\x81\x01\x02",
    b"",
)
ATTACKS: dict[str, Attack] = {
    "random bytes": Attack(lambda rng: b"\x00" + _junk(rng), CUT, greets=False),
    "random bytes behind a HELLO": Attack(lambda rng: HUGE + rng.randbytes(100), CUT),
    "HTTP": Attack(lambda _rng: b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", CUT, greets=False),
    "a TLS hello": Attack(
        lambda rng: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(32), CUT, greets=False
    ),
    "another version": Attack(lambda _rng: PREFACE[:-1] + b"\x09" + GREETING[len(PREFACE) :], CUT, greets=False),
    "a HELLO that is no JSON": Attack(lambda rng: _hello(b"{" + rng.randbytes(40)), CUT, greets=False),
    "a HELLO of wrong types": Attack(lambda _rng: _hello(b'{"codecs": 7, "max_in_flight": -1}'), CUT, greets=False),
    "a HELLO of depth": Attack(lambda _rng: _hello(b"[" * 10_000), CUT, greets=False),
    "a HELLO of 1 GiB": Attack(lambda _rng: PREFACE + frame(Kind.HELLO, 0, length=2**30), CUT, greets=False),
    "no codec in common": Attack(lambda _rng: _hello(b'{"codecs": ["pickle"]}'), CUT, greets=False),
    "a call before HELLO": Attack(lambda _rng: PREFACE + request(1, "echo", "x"), CUT, greets=False),
    "a frame of 4 GiB": Attack(_sent(frame(Kind.REQUEST, 1, length=2**32 - 1)), CUT),
    "a frame above the limit": Attack(_sent(frame(Kind.REQUEST, 1, length=2**20 + 1)), CUT),
    "a message of 4 GiB": Attack(_sent(frame(Kind.REQUEST, 1, HUGE + b"\x0bTarget.echo", flags=MORE)), CUT),
    "an unknown kind": Attack(lambda rng: frame(rng.randint(20, 255), 1), CUT),
    "unknown flags": Attack(_sent(frame(Kind.REQUEST, 1, b"\x01x", flags=0x80)), CUT),
    "a second HELLO": Attack(_sent(GREETING[len(PREFACE) :]), CUT),
    "a reply to the server": Attack(_sent(frame(Kind.RESPONSE, 1, b"\xc0")), CUT),
    "an id twice": Attack(_sent(2 * request(1, "sleep", 5)), CUT),
    "an id of the server's": Attack(_sent(request(2, "echo", "x")), CUT),
    "a chunk of nothing": Attack(_sent(frame(Kind.CHUNK, 1, bytes(2000))), CUT),
    "lying blobs": Attack(_sent(frame(Kind.REQUEST, 1, b"\xff\xff" + HUGE, flags=8)), CUT),
    "lying metadata": Attack(_sent(frame(Kind.REQUEST, 1, HUGE + b"\x01x", flags=4)), CUT),
    "half of something, then a reset": Attack(_half, LEFT),
    "mutants": Attack(_mutant, LEFT, greets=False),
    "payloads of junk": Attack(_payload(*BAD_PAYLOADS), ANSWERED, len(BAD_PAYLOADS)),
    "unknown methods": Attack(
        lambda rng: b"".join(request(2 * n + 1, rng.choice(["__class__", "nope", "echo.x"])) for n in range(20)),
        ANSWERED,
        20,
    ),
    "a cancel storm": Attack(_storm("sleep", 100), ANSWERED, 100),
    "calls, then a reset": Attack(_sent(*(request(id_, "sleep", 5) for id_ in range(1, 41, 2))), LEFT),
    "streams that do not end": Attack(_sent(*(request(id_, "total", streaming=True) for id_ in range(1, 41, 2))), LEFT),
}
"""By name."""


async def attack(name: str, rng: Random, target: tuple[str, int], number: int, codes: Counter[str]) -> str:
    """Attack once. Returns "" or, in one sentence, what the server did and must not."""
    chosen = ATTACKS[name]
    async with open_raw(target, number) as raw:
        await _speak(raw, chosen, rng)
        if chosen.end == LEFT:
            with trio.move_on_after(rng.choice([0, 0.05])):
                await raw.events()
            raw.reset()
            return ""
        with trio.move_on_after(CUT_WITHIN):
            try:
                answered = await _listen(raw, chosen.requests, codes)
            except RemoteProtocolError as exc:
                return f"{name}: the server broke the wire's rules: {exc}"
            if chosen.end == CUT:
                return "" if raw.ended else f"{name}: the connection goes on"
            return (
                "" if answered == chosen.requests else f"{name}: {answered} answers to {chosen.requests}; {raw.goaway}"
            )
    return f"{name}: not {chosen.end} within {CUT_WITHIN:g} s"


async def _speak(raw: Raw, chosen: Attack, rng: Random) -> None:
    data = chosen.make(rng)
    if chosen.greets and chosen.end != ANSWERED and rng.random() < 0.5:  # Before its HELLO it takes one call at most.
        data = GREETING + data
    elif chosen.greets:
        await raw.send(GREETING)
        await raw.events()
    if rng.random() < 0.2:
        cut = rng.randrange(len(data))
        await raw.send(data[:cut])
        await trio.lowlevel.checkpoint()
        data = data[cut:]
    await raw.send(data)


async def _listen(raw: Raw, requests: int, codes: Counter[str]) -> int:
    """Read on to the end, or until so many answers have come; returns how many did."""
    answered = 0
    while not raw.ended and (not requests or answered < requests):
        for event in await raw.events():
            if isinstance(event, ErrorReceived):
                codes[event.code.name] += 1
            answered += isinstance(event, ErrorReceived | ResponseReceived)
    return answered
