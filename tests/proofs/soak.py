"""R19: 200,000 calls, 20,000 cancellations and 5,000 connections anew, between two processes: nothing of them is left.

They are done in twenty equal parts. Between two of them nothing is under way, the client has no pool, garbage is
collected on both sides, and resident memory is read as the kernel tells it: what the allocator keeps for the next time
is counted as well. After the first part, which fills caches, and after the last one all tables are counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import trio

from .census import differences
from .parts import MIB, Part, open_parts
from .report import Proof, Report, duration

__all__ = ["PROOF"]

GROWTH = MIB
SETTLE = 5.0
"""Seconds in which all must be as before."""


@dataclass(frozen=True)
class Size:
    """How much is enough."""

    parts: int
    calls: int
    cancels: int
    reconnects: int
    """In each part."""

    def of(self, what: str) -> int:
        """All of this kind."""
        return self.parts * int(getattr(self, what))


FULL, QUICK = Size(20, 10_000, 1_000, 250), Size(2, 300, 60, 20)


def run(quick: bool, seed: int) -> Report:
    """Work, part by part, and count what is left."""
    return trio.run(_run, QUICK if quick else FULL, seed, quick)


async def _run(size: Size, seed: int, quick: bool) -> Report:
    report = Report(["after part", "seconds", "client", "server", "failed"])
    async with open_parts() as parts:
        server, address = await parts.start("target", limits={})
        worker, _ = await parts.start("worker", address=address)
        await _part(worker, size, f"{seed} warm-up")
        before = [await _settled(part) for part in (worker, server)]
        memory: list[tuple[int, int]] = [(worker.memory(), server.memory())]
        after, failed, start = before, 0, trio.current_time()
        for number in range(1, size.parts + 1):
            found = await _part(worker, size, f"{seed} {number}")
            failed += found["failed"]
            report.details += found["errors"]
            after = [await _settled(part, then) for part, then in zip((worker, server), before, strict=True)]
            memory.append((worker.memory(), server.memory()))
            row = [f"{held / MIB:.2f} MiB" for held in memory[-1]]
            report.rows.append([str(number), duration(trio.current_time() - start), *row, f"{found['failed']:,}"])
        _judge(report, size, failed, memory, strict=not quick)
        differ = [
            f"{name}: {line}"
            for name, then, now in zip(("client", "server"), before, after, strict=True)
            for line in differences(then, now)
        ]
        tables = [f"{counts['tasks']} tasks, {counts['file descriptors']} file descriptors" for counts in after]
        report.bar(
            f"{_name(size)}: file descriptors, tasks and tables are exactly as before",
            f"client {tables[0]}, server {tables[1]}, {len(after[1])} tables and counts each: {len(differ)} differ",
            not differ,
        )
        report.details += differ
        parts.judge_logs(report, server)
    return report


def _name(size: Size) -> str:
    return (
        f"{size.of('calls'):,} calls, {size.of('cancels'):,} cancellations, {size.of('reconnects'):,} connections anew"
    )


async def _part(worker: Part, size: Size, seed: str) -> dict[str, Any]:
    found: dict[str, Any] = await worker.ask(
        "work", calls=size.calls, cancels=size.cancels, reconnects=size.reconnects, seed=seed
    )
    wanted = {"call": size.calls, "cancel": size.cancels, "reconnect": size.reconnects}
    if found["done"] != wanted:
        found["failed"] += 1
        found["errors"].append(f"{found['done']} done instead of {wanted}")
    return found


async def _settled(part: Part, before: dict[str, int] | None = None) -> dict[str, int]:
    """Count what it holds, once that is as before: soon, or never."""
    counts: dict[str, int] = await part.ask("census")
    with trio.move_on_after(SETTLE):
        while before is not None and counts != before:
            await trio.sleep(0.2)
            counts = await part.ask("census")
    return counts


def _judge(report: Report, size: Size, failed: int, memory: list[tuple[int, int]], *, strict: bool) -> None:
    report.bar(f"{_name(size)}: none fails otherwise than asked for", f"{failed} did", not failed)
    middle, last = memory[len(memory) // 2], memory[-1]
    grown = [(last[side] - middle[side]) / MIB for side in (0, 1)]
    report.bar(
        f"{_name(size)}: memory grows by at most 1 MiB in the second half",
        f"client {grown[0]:+.2f} MiB, server {grown[1]:+.2f} MiB",
        not strict or max(grown) * MIB <= GROWTH,
    )


PROOF = Proof(
    "200,000 calls, 20,000 cancellations, 5,000 connections anew: all as before, and memory does not grow", run
)
