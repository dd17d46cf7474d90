"""Who is measured: name -> module, environment, and the workloads that it can do. Imports none of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .workloads import FAIRNESS, WORKLOADS

__all__ = ["PEERS", "Entry"]

EVERY = frozenset(WORKLOADS)
POOLS = frozenset({"pool", "pool_one"})


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One peer, not yet imported."""

    about: str
    """For the legend: the library, its runtime, what is special."""
    group: Literal["own", "peer", "limit"]
    module: str
    """Below `benchmarks`; it has `peer`, see `benchmarks.peers`."""
    environment: str
    """A name of `benchmarks.environments`."""
    variant: str = ""
    """Handed to the module's `peer`."""
    workloads: frozenset[str] = field(default=EVERY)


def _own(variant: str, environment: str, about: str) -> Entry:
    workloads = EVERY | frozenset(FAIRNESS)
    return Entry(
        about=about,
        group="own",
        module="peers.own",
        environment=environment,
        variant=variant,
        workloads=workloads,
    )


OWN: dict[str, Entry] = {
    "trio_rpc": _own("", "trio-rpc", "this library, default install"),
    "trio_rpc+fast": _own("", "trio-rpc-fast", "this library with the `fast` extra (msgspec)"),
}

THREADS = frozenset({"one", "64", "1000", "large", "short", "idle", "tls"}) | POOLS
ASYNC = THREADS | {"suspending"}
STREAMS = frozenset({"server_stream", "client_stream", "bidi"})


def _peer(about: str, module: str, environment: str, workloads: frozenset[str], variant: str = "") -> Entry:
    return Entry(
        about=about,
        group="peer",
        module=f"peers.{module}",
        environment=environment,
        variant=variant,
        workloads=workloads,
    )


GRPC = ASYNC | STREAMS | {"attrs"}  # its messages are typed
HTTP = ASYNC | STREAMS | {"json"}

# Foreign libraries: `peers/<name>.py` each. Their modules' docstrings say what makes the comparison fair.
FOREIGN: dict[str, Entry] = {
    "grpc.aio": _peer("grpcio (C core) on asyncio", "grpc_aio", "grpc", GRPC),
    "grpclib": _peer("grpclib on asyncio", "grpclib", "grpc", GRPC),
    "grpclib+uvloop": _peer("grpclib on uvloop", "grpclib", "grpc", GRPC, "uvloop"),
    "purerpc": _peer("purerpc on Trio", "purerpc", "purerpc", GRPC),
    "rpyc": _peer("RPyC, a thread and a connection per caller", "rpyc", "rpyc", THREADS | STREAMS),
    "pyro5": _peer(
        "Pyro5, a thread and a connection per caller", "pyro5", "pyro5", THREADS | {"server_stream", "json"}
    ),
    "zerorpc": _peer("zerorpc: gevent, ZeroMQ", "zerorpc", "zerorpc", ASYNC - {"tls"} | {"server_stream"}),
    "aiohttp": _peer("aiohttp on asyncio, JSON, 64 connections", "aiohttp", "aiohttp", HTTP),
    "aiohttp+uvloop": _peer("aiohttp on uvloop, JSON, 64 connections", "aiohttp", "aiohttp", HTTP, "uvloop"),
    "httpx": _peer(
        "httpx, hypercorn on Trio, JSON, HTTP/2 where callers are many", "httpx_hypercorn", "httpx", HTTP - {"bidi"}
    ),
}

RAW = ("one", "64", "1000", "large", "short", "idle")
SMALL = (*RAW, "server_stream")


def _limit(module: str, about: str, *workloads: str, variant: str = "") -> Entry:
    return Entry(
        about=about,
        group="limit",
        module=f"limits.{module}",
        environment="limits",
        variant=variant,
        workloads=frozenset(workloads),
    )


# Hand-written: what is reachable.
LIMITS: dict[str, Entry] = {
    "raw-trio": _limit("raw_trio", "bytes echoed by a Trio SocketStream, a connection for each caller; no RPC", *RAW),
    "hand-asyncio": _limit(
        "hand_asyncio", "a hand-written asyncio.Protocol, handlers inline", *SMALL, variant="asyncio"
    ),
    "hand-uvloop": _limit("hand_asyncio", "the same on uvloop", *SMALL, variant="uvloop"),
    "prototype": _limit(
        "prototype", "the least that an RPC on Trio could be, with msgspec; no guarantees", *SMALL, "suspending"
    ),
}

PEERS: dict[str, Entry] = {**OWN, **FOREIGN, **LIMITS}
