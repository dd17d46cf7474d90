"""R23: a server that has 300 MiB of memory and no more, and clients who have it keep as much as it will.

Several kinds of them at the same time: results that nobody reads, streams that do not end, calls that do not end, large
messages and large frames of which the last bytes do not come. Once with the defaults, and one connection of each kind;
and once with limits that were chosen for so little memory, many connections of each, and two kinds more that 300 MiB
cannot bear with the defaults: large arguments and items that are kept, and large results that come all at once. As no
kind gets many places among the others, these two have all of them once more. Whoever is cut comes again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import trio

from tests.faults.scarcity import MemoryGroup, Unavailable, memory_limit

from .hoards import HOARDS
from .hostile import Scene, open_scene, settled, tell_victim
from .parts import MIB, PartFailed, open_parts
from .report import Proof, Report, milliseconds

__all__ = ["PROOF"]

MEMORY = 300 * MIB
GREEDIEST = ["results that come late, and that nobody reads", "arguments and items that nobody takes"]
"""What one connection may keep by these with the defaults is more than that: `max_in_flight` times `max_message_size`."""
KIB = 1024
CHOSEN = {
    "max_connections": 100,
    "max_connections_per_principal": 10,
    "max_calls": 200,
    "max_calls_per_principal": 20,
    "max_in_flight": 16,
    "max_frame_size": 64 * KIB,
    "max_message_size": 128 * KIB,
    "max_receiving_bytes": 128 * KIB,
    "max_queued_bytes": 256 * KIB,
    "stream_window": 16 * KIB,
}
"""The worked example of the security page. No host may take all places or all connections."""


@dataclass(frozen=True)
class Size:
    """How much is enough."""

    seconds: float
    many: int
    alone: bool
    """Whether the greediest have all places, once more: beside others each gets a few."""


FULL, QUICK = Size(15.0, 40, alone=True), Size(1.5, 4, alone=False)


def run(quick: bool, _seed: int) -> Report:
    """Try it with the defaults, then with limits that were chosen for it."""
    return trio.run(_run, QUICK if quick else FULL)


async def _run(size: Size) -> Report:
    report = Report(
        [
            "limits",
            "hostile connections",
            "it is to keep",
            "peak",
            "refused",
            "victim's calls",
            "errors",
            "p50",
            "p99",
            "longest",
        ]
    )
    some = [kind for kind in HOARDS if kind not in GREEDIEST]
    chosen = [list(HOARDS), *([kind] for kind in GREEDIEST if size.alone)]
    for name, each, kinds, limits in (
        ("defaults", 1, some, {}),
        *(("chosen for 300 MiB", size.many, kinds, CHOSEN) for kinds in chosen),
    ):
        try:
            with memory_limit(MEMORY) as group:
                await _attack(report, name, each, kinds, size, limits, group)
        except Unavailable as exc:
            report.check(f"not shown here: {exc}", True)
            break
    return report


async def _attack(
    report: Report, name: str, each: int, kinds: list[str], size: Size, limits: dict[str, Any], group: MemoryGroup
) -> None:
    async with open_parts() as parts:
        scene = await open_scene(parts, group, **limits)
        try:
            await trio.sleep(size.seconds / 5)
            alone = await scene.victim.ask("report")
            await scene.attacker.ask("hoard", each=each, kinds=kinds, seconds=size.seconds)
            seen = await scene.victim.ask("report")
            refused = await _refused(scene)
        except PartFailed as exc:
            report.bar(f"{MEMORY // MIB} MiB, limits: {name}: the server lives", str(exc), False)
            return
        count = len(kinds) * each
        what = kinds[0] if len(kinds) == 1 else "all it will"
        row = [name, f"{count:,}", what, f"{group.peak / MIB:.0f} MiB", refused, *tell_victim(seen)]
        report.rows.append(row)
        report.bar(
            f"A server in {MEMORY // MIB} MiB, limits: {name}; {count} connections that have it keep {what}",
            f"at most {group.peak / MIB:.0f} MiB; refused or cut: {refused}; another client: {seen['calls']:,} calls, "
            f"{seen['failed']} errors, p99 {milliseconds(seen['p99'])}, alone {milliseconds(alone['p99'])}",
            scene.server.is_alive and not seen["failed"] and not seen["lost"] and bool(seen["calls"]),
        )
        report.details += seen["errors"]
        parts.judge_logs(report, scene.server)


async def _refused(scene: Scene) -> str:
    """What it did not bear."""
    stats = await settled(scene)
    return f"{stats['refused']:,} calls, {stats['refused_connections']:,} connections, {stats['evicted']:,} evicted"


PROOF = Proof("a server that has 300 MiB, and clients who have it keep as much as it will: it refuses, and lives", run)
