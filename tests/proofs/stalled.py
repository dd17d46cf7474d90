"""R05: a reader that stops with 500 MiB due: what the server keeps for it meanwhile, and how soon it is let go of.

Four such readers, one after the other: bytes by hand that ask for 500 results of 1 MiB and read nothing of them; the
same for 500 items of one stream, with leave for all of them, and for 500 streams, an item of each; and an honest client
that is stopped by SIGSTOP while its 500 results are on their way.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import TypeAlias

import trio

from trio_rpc.wire import Hello, Protocol, Role

from .parts import MIB, Part, Parts, open_parts
from .raw import GREETING, address_of, open_raw, request
from .report import Proof, Report, duration

__all__ = ["PROOF"]

GROWTH = 64 * MIB
PATIENCE = 20.0
AT_ONCE = 1000
"""Calls in flight, so that all may be due at once: the default is 256."""


@dataclass(frozen=True)
class Size:
    """How much is enough."""

    due: int
    size: int
    write_timeout: float
    slack: float
    """Seconds beyond."""


FULL, QUICK = Size(500, MIB, 10.0, 1.0), Size(120, MIB, 1.0, 10.0)


@asynccontextmanager
async def results(_parts: Parts, address: str, size: Size) -> AsyncIterator[None]:
    """Ask for results."""
    async with open_raw(address_of(address)) as raw:
        await raw.send(GREETING)
        await raw.events()
        await raw.send(b"".join(request(2 * number + 1, "large", size.size) for number in range(size.due)))
        yield


@asynccontextmanager
async def items(_parts: Parts, address: str, size: Size) -> AsyncIterator[None]:
    """Ask for one stream, with a window that is larger than all of it."""
    greeting = Protocol(Role.DIALLER, Hello(stream_window=2**40, stream_window_items=2**20)).greeting()
    async with open_raw(address_of(address)) as raw:
        await raw.send(greeting)
        await raw.events()
        await raw.send(request(1, "larges", size.due, size.size))
        yield


@asynccontextmanager
async def streams(_parts: Parts, address: str, size: Size) -> AsyncIterator[None]:
    """Ask for many streams, of whose windows each item is many times larger."""
    async with open_raw(address_of(address)) as raw:
        await raw.send(GREETING)
        await raw.events()
        await raw.send(b"".join(request(2 * number + 1, "larges", 10, size.size) for number in range(size.due)))
        yield


@asynccontextmanager
async def stopped(parts: Parts, address: str, size: Size) -> AsyncIterator[None]:
    """Be stopped when the first result has come."""
    client, _ = await parts.start("caller", address=address, limits={"max_in_flight": AT_ONCE})
    try:
        await client.ask("demand", calls=size.due, size=size.size)
        yield
    finally:
        await client.kill()


Way: TypeAlias = Callable[[Parts, str, Size], AbstractAsyncContextManager[None]]
WAYS: dict[str, Way] = {
    "results, never read": results,
    "items of one stream, never read": items,
    "streams, never read": streams,
    "results of a client under SIGSTOP": stopped,
}


def run(quick: bool, _seed: int) -> Report:
    """Stall in each way."""
    return trio.run(_run, QUICK if quick else FULL)


async def _run(size: Size) -> Report:
    report = Report(["", "due", "server before", "its peak", "let go of after"])
    for name, way in WAYS.items():
        async with open_parts() as parts:
            limits = {"max_in_flight": AT_ONCE, "write_timeout": size.write_timeout}
            server, address = await parts.start("target", limits=limits)
            await server.ask("collect")
            before, start = server.forget_peak(), trio.current_time()
            async with way(parts, address, size):
                gone = await _gone(server)
                seconds, grown = trio.current_time() - start, server.peak() - before
            due = f"{size.due} x {size.size // MIB} MiB"
            after = duration(seconds) if gone else "-"
            report.rows.append([name, due, f"{before / MIB:.0f} MiB", f"+{grown / MIB:.1f} MiB", after])
            promised = f"{size.due} {name}"
            report.bar(f"{promised}: the server grows by at most 64 MiB", f"+{grown / MIB:.1f} MiB", grown <= GROWTH)
            most = size.write_timeout + size.slack
            measured = f"after {duration(seconds)}" if gone else f"not within {PATIENCE:g} s"
            report.bar(f"{promised}: evicted within {most:g} s", measured, gone and seconds <= most)
            parts.judge_logs(report, server)
    return report


async def _gone(server: Part) -> bool:
    """Wait until the server has given the reader up, and has nothing under way for it. False if it does not."""
    with trio.move_on_after(PATIENCE):
        while True:
            stats = await server.ask("statistics")
            if stats["evicted"] and not stats["connections"] and not stats["in_flight"]:
                return True
            await trio.sleep(0.05)
    return False


PROOF = Proof("a reader that stops with 500 x 1 MiB due: the server's memory, and how soon it is evicted", run)
