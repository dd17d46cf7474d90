"""Valid traffic to be mutated, and what it is fed to: the wire in both roles, both codecs, and what loads failures."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import attrs

from trio_rpc import Code
from trio_rpc._failures import Failures
from trio_rpc.codecs import Adapter, MessagePack, adapter_for
from trio_rpc.wire import Frames, Hello, Outcome, Protocol, Role, method_block

from .shapes import TEXTS, Colour, Empty, Node, Record, Row, records

__all__ = ["Feed", "Source", "payload_sources", "whole", "wire_sources"]

Feed: TypeAlias = Callable[[bytes], object]


@dataclass(frozen=True)
class Source:
    """Samples of one kind, each with what takes its mutants; `share` of all mutants are made of them."""

    name: str
    share: int
    samples: Sequence[tuple[bytes, Feed]]


# -- the wire ----------------------------------------------------------------------------------------------------------

HELLO = Hello(
    codecs=("msgpack", "json"), max_frame_size=64 * 1024, max_message_size=256 * 1024, credentials={"t": "secret"}
)
METADATA: dict[str, str | bytes] = {"trace": "t1", "raw": b"\x00\xff"}


def _protocol(role: Role) -> Protocol:
    """One side, behind the HELLOs; a dialler has made three requests."""
    protocol = Protocol(role, HELLO)
    other = Role.ACCEPTOR if role is Role.DIALLER else Role.DIALLER
    protocol.greeting()
    protocol.receive_data(Protocol(other, HELLO).greeting())
    if role is Role.DIALLER:
        for streaming in (False, True, False):
            protocol.request(method_block("Lab.echo"), b"\x91\x01", streaming=streaming)
    return protocol


def _take(role: Role) -> Feed:
    def feed(data: bytes) -> None:
        protocol = _protocol(role)
        middle = len(data) // 2
        protocol.receive_data(data[:middle])
        protocol.receive_data(data[middle:])

    return feed


def _greet(role: Role) -> Feed:
    def feed(data: bytes) -> None:
        Protocol(role, HELLO).receive_data(data)

    return feed


def whole(frames: Frames) -> bytes:
    """A message in one piece, its chunks included."""
    first, chunks = frames
    return b"".join([first, *(part for chunk in chunks or () for part in chunk)])


def _joined(*frames: Frames | bytes) -> bytes:
    return b"".join(frame if isinstance(frame, bytes) else whole(frame) for frame in frames)


def _from_dialler() -> Iterator[bytes]:
    def request(*args: Any, **kwargs: Any) -> Frames:
        return client.request(method_block("Lab.echo"), *args, **kwargs)[1]

    client = _fresh_dialler()
    yield _joined(request(b"\x91\x01"))
    yield _joined(request(b"\x91\xa3abc", timeout=1.5, metadata=METADATA))
    yield _joined(request(b"\x91\xd6\x01\0\0\0\0", [bytes(3000)]))
    yield _joined(request(b"\x91\xc6\0\1\x86\xa0" + bytes(100_000)))
    client = _fresh_dialler()
    stream = _joined(request(b"\x90", streaming=True))
    yield stream + _joined(client.items(1, 2, b"\x92\x01\x02"), client.credit(1, 100, 2), client.end(1))
    yield stream + _joined(client.cancel(1, 1.0), client.ping(b"12345678"), client.goaway(7, Code.OK, "closing"))


def _fresh_dialler() -> Protocol:
    client = Protocol(Role.DIALLER, HELLO)
    client.greeting()
    client.receive_data(Protocol(Role.ACCEPTOR, HELLO).greeting())
    return client


def _from_acceptor() -> Iterator[bytes]:
    server = _protocol(Role.ACCEPTOR)
    yield _joined(server.response(1, b"\x93\x01\x02\x03"), server.response(5, b"\xc0", metadata=METADATA))
    yield _joined(server.response(1, b"\xd6\x01\0\0\0\0", [bytes(3000)]))
    yield _joined(server.response(1, b"\xc6\0\1\x86\xa0" + bytes(100_000)))
    yield _joined(server.items(3, 2, b"\x92\x01\x02"), server.items(3, 1, b"\x91\xa1a"), server.end(3, METADATA))
    yield _joined(server.error(1, Code.NOT_FOUND, Outcome.FAILED, True, "no such article", b"\x81\xa4name\xa1x"))
    yield _joined(server.error(1, Code.UNAVAILABLE, Outcome.REFUSED, False, "draining"))
    yield _joined(server.ping(b"12345678"), server.pong(b"12345678"), server.credit(3, 1000, 5))


def wire_sources() -> list[Source]:
    """Everything that a connection reads."""
    acceptor, dialler = _protocol(Role.ACCEPTOR), _protocol(Role.DIALLER)
    hello = {role: Protocol(role, HELLO).greeting() for role in Role}
    goaways = [acceptor.goaway(2**32 - 1, Code.OK, "closing"), dialler.goaway(4, Code.INTERNAL, "x" * 200)]
    return [
        Source("frames of a dialler", 12, [(data, _take(Role.ACCEPTOR)) for data in _from_dialler()]),
        Source("frames of an acceptor", 12, [(data, _take(Role.DIALLER)) for data in _from_acceptor()]),
        Source(
            "HELLO", 3, [(hello[Role.DIALLER], _greet(Role.ACCEPTOR)), (hello[Role.ACCEPTOR], _greet(Role.DIALLER))]
        ),
        Source("GOAWAY", 3, [(data, _take(role)) for data in goaways for role in Role]),
    ]


# -- payloads ----------------------------------------------------------------------------------------------------------


class Sold(Exception):
    """A failure without fields."""


@attrs.define(eq=False)
class Short(Exception):
    """A failure with fields."""

    article: str
    missing: int = 1
    parts: list[Empty] = attrs.field(factory=list)


@dataclass
class Everything:
    """One field of nearly every kind."""

    colour: Colour | None
    data: bytes
    pairs: dict[int, float]
    either: Empty | Node
    row: Row
    both: tuple[int, str]
    seen: set[int] = field(default_factory=set)
    rest: Any = None


def _values() -> list[tuple[Any, Any]]:
    everything = Everything(Colour.RED, b"\0\xff", {1: 0.5, -2: 1e300}, Empty(1, 2), {"x": 1.0}, (1, "é"), {3, 4})
    texts = [
        (type_, adapter_for("msgpack").carrier(type_).decode(_packed(text), ())) for type_, (text, *_) in TEXTS.items()
    ]
    plain: dict[str, Any] = {
        "a": [1, -1, 2**63, 1.5, None, True, "text", {"b": []}],
        "long": "x" * 300,
        "many": list(range(40)),
    }
    return [
        (Any, plain),
        (list[int], [0, -1, 2**64 - 1]),
        (list[float], [0.0, -1.5, 1e-300]),
        (dict[str, int], {"a": 1, "é": 2}),
        (Everything, everything),
        (Node, Node(1, [Node(2), Node(3, [Node(4)])])),
        (list[Record], [Record(**row) for row in records(3)]),
        *texts,
    ]  # fmt: skip


def _packed(text: str) -> bytes:
    payload, _ = adapter_for("msgpack").carrier(Any).encode(text)
    return bytes(payload)


def _both(adapter: Adapter, type_: Any) -> Feed:
    carrier = adapter.carrier(type_)

    def feed(data: bytes) -> None:
        carrier.decode(data, ())

    return feed


def _call(number: int, record: Record, *, tags: list[str] | None = None, **rest: float) -> None:
    """What a method looks like."""


def _samples(adapter: Adapter) -> Iterator[tuple[bytes, Feed]]:
    for type_, value in _values():
        yield adapter.carrier(type_).encode(value)[0], _both(adapter, type_)
    parameters = inspect.signature(_call, eval_str=True).parameters.values()
    arguments = adapter.arguments(parameters, name="_call")
    row = Record(**records(1)[0])
    for args, kwargs in (((1, row), {}), ((1, row), {"tags": ["a"], "x": 1.0})):
        yield arguments.encode(args, kwargs)[0], lambda data: arguments.decode(data, ())
    blob = [bytes(70_000)]
    file = adapter.carrier(list[bytes])
    yield file.encode(blob)[0], lambda data: file.decode(data, blob)


def _failures(adapter: Adapter) -> Iterator[tuple[bytes, Feed]]:
    failures = Failures(adapter, [Sold, Short, ExceptionGroup])
    noted = Sold("A-1", 7)
    noted.add_note("a note")
    group = ExceptionGroup("several", [Sold("A-2"), ExceptionGroup("more", [Short("A-3", 2, [Empty(1)])])])
    for exc in (noted, Short("A-1", 3, [Empty()]), group, ValueError("secret")):
        _, _, payload = failures.dump(exc, error_id="00")
        yield payload, lambda data: failures.load(2, "text", data, "tcp://peer:1")


def payload_sources() -> list[Source]:
    """Everything that a codec reads, and that becomes typed values."""
    adapters = {name: adapter_for(name) for name in ("msgpack", "json")}
    adapters["msgpack without msgspec"] = Adapter(MessagePack(fast=False))
    sources = []
    for name, adapter in adapters.items():
        sources.append(Source(f"{name}: values", 18, list(_samples(adapter))))
        sources.append(Source(f"{name}: failures", 5, list(_failures(adapter))))
    return sources
