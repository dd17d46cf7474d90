"""The bytes in `vectors.json` and on the page that specifies the wire are what is sent, and what is understood."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import msgpack
import pytest

from trio_rpc import Code, wire
from trio_rpc.wire import Flag, Hello, Kind, Outcome, Protocol, Role

HERE = Path(__file__).resolve().parent
VECTORS = json.loads((HERE / "vectors.json").read_text(encoding="utf-8"))["vectors"]
GREETINGS = [vector for vector in VECTORS if "stage" in vector]
FRAMES = [vector for vector in VECTORS if "stage" not in vector]
PAGE = HERE.parents[1] / "docs" / "reference" / "wire.md"

every_greeting = pytest.mark.parametrize("vector", GREETINGS, ids=lambda vector: vector["name"])
every_frame = pytest.mark.parametrize("vector", FRAMES, ids=lambda vector: vector["name"])


def raw(vector: dict[str, Any]) -> bytes:
    """The bytes of a vector."""
    return b"".join(plain(field) for field in vector["fields"])


def plain(value: Any) -> Any:
    """A value of the file; `{"hex": ...}` stands for bytes."""
    if isinstance(value, dict):
        if "hex" in value:
            return bytes.fromhex(value["hex"]) * value.get("times", 1)
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def described(event: wire.Event) -> dict[str, Any]:
    """An event as the file writes it, with bytes for views."""
    fields = attrs.asdict(event, recurse=False)
    for key, value in fields.items():
        if isinstance(value, memoryview | tuple):
            fields[key] = bytes(value) if isinstance(value, memoryview) else list(value)
    return {"type": type(event).__name__, **fields}


def pair(limits: dict[str, Any]) -> dict[str, Protocol]:
    """Both sides behind their HELLOs and two requests of each; both accept what `limits` says."""
    dialler, acceptor = Protocol(Role.DIALLER, Hello(**limits)), Protocol(Role.ACCEPTOR, Hello(**limits))
    acceptor.receive_data(dialler.greeting())
    dialler.receive_data(acceptor.greeting())
    for _ in range(2):
        acceptor.receive_data(dialler.request(wire.method_block("m"), b"")[1][0])
        dialler.receive_data(acceptor.request(wire.method_block("m"), b"")[1][0])
    return {"dialler": dialler, "acceptor": acceptor}


def whole(sent: Any) -> bytes:
    """All bytes of what any sending method returned."""
    if isinstance(sent, bytes):
        return sent
    first, rest = sent[1] if isinstance(sent[0], int) else sent
    return bytes(first + b"".join(b"".join(chunk) for chunk in rest or ()))


def hello_of(fields: dict[str, Any]) -> Hello:
    """A Hello from the file's keys."""
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
    return Hello(**values)


def laid_out(sender: Protocol, send: dict[str, Any]) -> bytes:
    """Do what `send` says."""
    args, options = plain(send["args"]), plain(send["options"])
    if send["call"] == "request":
        args[0] = wire.method_block(args[0])
    if send["call"] == "error":
        args[1:3] = Code(args[1]), Outcome(args[2])
    if send["call"] == "goaway" and len(args) > 1:
        args[1] = Code(args[1])
    return whole(getattr(sender, send["call"])(*args, **options))


@every_frame
def test_frames_are_laid_out_so(vector: dict[str, Any]) -> None:
    """The sending method makes these very bytes."""
    sides = pair(vector.get("limits", {}))
    assert laid_out(sides[vector["from"]], vector["send"]).hex() == raw(vector).hex()


@every_frame
def test_frames_are_read_so(vector: dict[str, Any]) -> None:
    """The other side reads these bytes as these events."""
    sides = pair(vector.get("limits", {}))
    receiver = sides["acceptor" if vector["from"] == "dialler" else "dialler"]
    assert [described(event) for event in receiver.receive_data(raw(vector))] == plain(vector["events"])


@every_greeting
def test_greetings_are_read_so(vector: dict[str, Any]) -> None:
    """The first bytes of a connection are read as these events; what a HELLO leaves out has its default."""
    receiver = Protocol(Role.ACCEPTOR if vector["from"] == "dialler" else Role.DIALLER, Hello())
    [event] = receiver.receive_data(raw(vector))
    expected = plain(vector["events"][0])
    if "hello" in expected:
        expected["hello"] = hello_of(expected["hello"])
    assert described(event) == expected


def test_greeting_is_laid_out_so() -> None:
    """The library's own HELLO has every key that has a value."""
    [vector] = [vector for vector in GREETINGS if "hello" in vector]
    assert Protocol(Role.ACCEPTOR, hello_of(vector["hello"])).greeting() == raw(vector)


def test_every_kind_and_flag_has_a_vector() -> None:
    """No kind of frame, flag, or outcome is left without an example."""
    kinds, flags, outcomes = set(), 0, set()
    for vector in FRAMES:
        for _length, _id, kind, frame_flags, _body in frames(raw(vector)):
            kinds.add(kind)
            flags |= frame_flags
        outcomes |= {event["outcome"] for event in vector["events"] if "outcome" in event}
    assert kinds | {Kind.HELLO} == set(Kind)
    assert flags | Flag.COMPRESSED == sum(Flag)
    assert outcomes == set(Outcome)


def frames(data: bytes) -> Iterator[tuple[int, int, int, int, bytes]]:
    """Take a run of frames apart, by the page's words alone."""
    while data:
        length, request_id = int.from_bytes(data[:4], "big"), int.from_bytes(data[4:8], "big")
        yield length, request_id, data[8], data[9], data[10 : 10 + length]
        data = data[10 + length :]


# -- the session on the page ---------------------------------------------------------------------------------------


def dumped() -> list[tuple[str, bytes]]:
    """The page's hex dump: who sent which bytes, in order."""
    text = PAGE.read_text(encoding="utf-8").split("<!-- session -->")[1].split("```")[1]
    turns: list[tuple[str, bytes]] = []
    for line in text.splitlines()[1:]:
        if line.endswith(":"):
            turns.append((line.removesuffix(":"), b""))
        elif line:
            piece = line.split("  ; ")[0].strip()
            data = piece[1:-1].encode() if piece.startswith("'") else bytes.fromhex(piece)
            turns[-1] = (turns[-1][0], turns[-1][1] + data)
    return turns


def session() -> Iterator[tuple[str, bytes]]:
    """What the page tells, as this library does it."""
    d = Protocol(Role.DIALLER, Hello(ping_interval=10.0, ping_timeout=5.0, instance="5f3a90c1d27e4b68"))
    a = Protocol(
        Role.ACCEPTOR,
        Hello(ping_interval=10.0, ping_timeout=5.0, services=("Inventory",), instance="c04e7712ab95d3f0"),
    )
    stock, watch, take = map(wire.method_block, ("Inventory.stock", "Inventory.watch", "Inventory.take"))
    pack = msgpack.packb
    yield "dialler", d.greeting()
    yield "acceptor", a.greeting()
    yield "dialler", whole(d.request(stock, pack(["A-1"]), timeout=1.5))
    yield "acceptor", whole(a.response(1, pack(7)))
    yield "dialler", whole(d.request(watch, pack(["A-1"]), metadata={"trace": "t1"}))
    yield "acceptor", whole(a.items(3, 2, pack([7, 6])))
    yield "dialler", d.credit(3, 7, 2)
    yield "dialler", d.cancel(3, 1.0, leaving=True)
    yield "acceptor", whole(a.error(3, Code.CANCELLED, Outcome.CANCELLED, True, "cancelled by the caller"))
    yield "dialler", whole(d.request(take, pack(["A-1", 9])))
    failure = pack({"name": "SoldOut", "coded": False, "args": ["A-1"]})
    yield "acceptor", whole(a.error(5, Code.UNKNOWN, Outcome.FAILED, True, "A-1", failure))
    yield "dialler", d.ping(b"01234567")
    yield "acceptor", a.pong(b"01234567")
    yield "acceptor", a.goaway(5, Code.OK, "closing")


def test_the_session_on_the_page_is_true() -> None:
    """Byte for byte, what the page prints is what the library sends."""
    assert dumped() == list(session())


def test_the_session_on_the_page_is_understood() -> None:
    """Both sides read what the page prints, and each frame is one event."""
    sides = {"dialler": Protocol(Role.ACCEPTOR, Hello()), "acceptor": Protocol(Role.DIALLER, Hello())}
    for reader in sides.values():
        reader.last_local_id = 5  # What it reads are answers to requests that the dump shows.
    assert [len(sides[sender].receive_data(data)) for sender, data in dumped()] == [1] * 14
