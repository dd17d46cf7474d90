"""What is measured: one table of workloads, and the setting that a workload gives to both processes of a peer.

Read by the command and by the processes of every peer, whatever is installed beside it: standard library only.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

__all__ = ["CONNECTIONS", "FAIRNESS", "MIB", "WORKLOADS", "Kind", "Setting", "Workload"]

MIB = 1 << 20
CONNECTIONS = 1000
"""Connections that the `idle` workload opens."""

Kind: TypeAlias = Literal["unary", "large", "server_stream", "client_stream", "bidi", "short", "idle", "shared_link"]
"""The method of a peer's client that is driven; see `benchmarks.peers.Peer`."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a server and a client of one peer are told; every field but `ports` is the same for both."""

    kind: Kind = "unary"
    callers: int = 1
    """Calls at once; on `connections` connections where the peer can have many calls on one, else on one each."""
    connections: int = 1
    servers: int = 1
    """Server processes that the connections are spread over."""
    ports: tuple[int, ...] = ()
    """The servers' ports on 127.0.0.1; known to clients only."""
    suspends: bool = False
    """The handler awaits one checkpoint (trio.lowlevel.checkpoint(), asyncio.sleep(0)) before it answers."""
    burn: float = 0.0
    """CPU seconds that the handler burns before it answers."""
    codec: Literal["", "json"] = ""
    """`json` where that is a choice; else the peer's own."""
    typed: bool = False
    """The payload is an instance of a class, checked on both sides (a protobuf message, an attrs class)."""
    certificate: str = ""
    """A folder with `authority.pem`, `chain.pem` and `key.pem` for localhost and 127.0.0.1: use TLS. Else none."""
    size: int = MIB
    """Bytes of a large message."""
    load: Literal["", "message", "stream"] = ""
    """What else is under way on the link that small calls share: a message of `size`, or a stream that nobody reads."""
    methods: int = 1
    """Methods that the service has; each call takes the next one."""
    endpoints: int = 1
    """Addresses (127.0.0.1, 127.0.0.2, ..., of one port) with a server and a pool each; each call takes the next one."""

    def dump(self) -> str:
        """The setting as an argument of a command line."""
        return json.dumps(asdict(self))

    @staticmethod
    def parse(text: str) -> Setting:
        """The setting from `dump()`."""
        fields = json.loads(text)
        return Setting(**{**fields, "ports": tuple(fields["ports"])})


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One row of the report's tables."""

    key: str
    title: str
    unit: str
    setting: Setting
    about: str


def _workload(key: str, title: str, unit: str, about: str, **setting: object) -> tuple[str, Workload]:
    return key, Workload(key=key, title=title, unit=unit, about=about, setting=Setting(**setting))  # type: ignore[arg-type]


WORKLOADS: dict[str, Workload] = dict(
    [
        _workload("one", "1 caller", "calls/s", "one call after the other"),
        _workload("64", "64 callers", "calls/s", "64 callers on one connection", callers=64),
        _workload("1000", "1000 callers", "calls/s", "1000 callers on one connection", callers=1000),
        _workload(
            "suspending",
            "64 callers, the handler suspends",
            "calls/s",
            "64 callers on one connection; the handler awaits one checkpoint",
            callers=64,
            suspends=True,
        ),
        _workload("large", "1 MiB echo", "MiB/s", "1 MiB of bytes there and back, one after the other", kind="large"),
        _workload("server_stream", "server streaming", "items/s", "one stream of small items", kind="server_stream"),
        _workload("client_stream", "client streaming", "items/s", "the same, from the client", kind="client_stream"),
        _workload("bidi", "bidirectional streaming", "items/s", "each item comes back", kind="bidi"),
        _workload("short", "short connections", "calls/s", "connect, one call, close", kind="short"),
        _workload("idle", "idle connections", "KiB", "memory of a connection after its only call", kind="idle"),
        _workload("json", "64 callers, JSON", "calls/s", "as 64 callers, in JSON", callers=64, codec="json"),
        _workload(
            "attrs",
            "64 callers, typed payload",
            "calls/s",
            "as 64 callers; a class in and out (attrs, a protobuf message)",
            callers=64,
            typed=True,
        ),
        _workload("tls", "64 callers, TLS", "calls/s", "as 64 callers, over TLS", callers=64, certificate="here"),
        _workload(
            "pool_one",
            "a pool of 4 connections, 1 server",
            "calls/s",
            "64 callers, 4 connections, 1 server process; the handler burns 100 us",
            callers=64,
            connections=4,
            burn=100e-6,
        ),
        _workload(
            "pool",
            "a pool of 4 connections, 2 servers",
            "calls/s",
            "64 callers, 4 connections over 2 server processes; the handler burns 100 us",
            callers=64,
            connections=4,
            servers=2,
            burn=100e-6,
        ),
    ]
)

FAIRNESS: dict[str, Workload] = dict(
    [
        _workload("shares", "1000 callers' shares", "calls/s", "1000 callers on one connection", callers=1000),
        _workload(
            "message_1",
            "1 caller beside 64 MiB messages",
            "calls/s",
            "small calls alone, then while messages of 64 MiB go both ways on the same connection",
            kind="shared_link",
            load="message",
            size=64 * MIB,
        ),
        _workload(
            "message_64",
            "64 callers beside 64 MiB messages",
            "calls/s",
            "the same with 64 callers",
            kind="shared_link",
            callers=64,
            load="message",
            size=64 * MIB,
        ),
        _workload(
            "stream_1",
            "1 caller beside an unread stream",
            "calls/s",
            "small calls alone, then beside a stream that is open on the same connection and not read",
            kind="shared_link",
            load="stream",
        ),
        _workload(
            "stream_64",
            "64 callers beside an unread stream",
            "calls/s",
            "the same with 64 callers",
            kind="shared_link",
            callers=64,
            load="stream",
        ),
    ]
)
"""What `python -m benchmarks fairness` runs."""
