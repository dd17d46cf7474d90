"""R17: 100,000 calls in flight on one connection, whose handlers all wait; then all are let go at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import trio

from .parts import MIB, open_parts
from .report import Proof, Report, duration

__all__ = ["PROOF"]

AT_MOST = {"client": 800 * MIB, "server": 600 * MIB}
"""Resident bytes, at the peak."""
PATIENCE = 100.0
"""Seconds in which all must have come back."""


@dataclass(frozen=True)
class Size:
    """How much is enough."""

    calls: int


FULL, QUICK = Size(100_000), Size(3_000)


def run(quick: bool, _seed: int) -> Report:
    """Make the calls, see that all wait, and let them go."""
    return trio.run(_run, QUICK if quick else FULL)


async def _run(size: Size) -> Report:
    report = Report(["calls", "under way after", "answered after", "client, peak", "server, peak"])
    room = size.calls + 100
    async with open_parts() as parts:
        limits = {"max_in_flight": room, "max_calls": room}
        server, address = await parts.start("target", limits=limits)
        client, _ = await parts.start("caller", address=address, limits={"max_in_flight": room, "max_waiting": room})
        start, running, waiting = trio.current_time(), 0, PATIENCE
        back: dict[str, Any] = {"answered": 0, "failed": 0, "errors": []}
        with trio.move_on_after(PATIENCE):
            await client.ask("crowd", calls=size.calls)
            while running < size.calls:
                await trio.sleep(0.05)
                running = (await server.ask("statistics"))["in_flight"]
            waiting = trio.current_time() - start
            await server.ask("release")
            back = await client.ask("answered", calls=size.calls)
        seconds = trio.current_time() - start
        peaks = {"client": client.peak(), "server": server.peak()}
        shown = [f"{peak / MIB:,.0f} MiB" for peak in peaks.values()]
        report.rows.append([f"{size.calls:,}", duration(waiting), duration(seconds), *shown])
        promised = f"{size.calls:,} calls in flight on one connection"
        report.bar(
            f"{promised}: all are answered",
            f"{running:,} handlers waited at once; {back['answered']:,} answered, {back['failed']:,} failed, "
            f"in {duration(seconds)}",
            running == back["answered"] == size.calls,
        )
        for side, peak in peaks.items():
            most = AT_MOST[side]
            report.bar(f"{promised}: at most {most // MIB} MiB in the {side}", f"{peak / MIB:,.0f} MiB", peak <= most)
        report.details += back["errors"]
        parts.judge_logs(report, server)
    return report


PROOF = Proof("100,000 calls in flight on one connection: all answered, and the memory of both sides", run)
