"""R19, R21: 50,000 hostile connections, of thirty kinds, beside somebody honest; then 50,000 that only come and go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import trio

from tests.faults.scarcity import MemoryGroup

from .attacks import ATTACKS, DECLARED
from .census import left_behind
from .parts import MIB, Part, Parts, open_parts
from .report import Proof, Report, duration, milliseconds

__all__ = ["PROOF", "open_scene", "settled", "tell_victim"]

AT_ONCE = 64
GROWTH = 20 * MIB
LINES = 11
SETTLE = 5.0
"""Seconds in which what is left of the attacks must be gone."""
NO_ADDRESS_LIMIT = {"max_connections_per_principal": None}


@dataclass(frozen=True)
class Size:
    """How much is enough."""

    connections: int
    warm_up: int
    baseline: float
    """Seconds of the victim's calls without an attack."""


FULL, QUICK = Size(50_000, 3_000, 5.0), Size(len(ATTACKS) * 8, len(ATTACKS) * 2, 0.5)
COLUMNS = ["", "connections", "seconds", "a second", "victim's calls", "errors", "p50", "p99", "longest"]


@dataclass(frozen=True)
class Scene:
    """The server, the one who looks on, and the others."""

    parts: Parts
    server: Part
    victim: Part
    attacker: Part


async def open_scene(parts: Parts, group: MemoryGroup | None = None, **limits: Any) -> Scene:
    """Start all three; the victim calls from now on."""
    server, address = await parts.start("target", group=group, limits=limits)
    victim, _ = await parts.start("caller", address=address)
    attacker, _ = await parts.start("attacker", target=address)
    await victim.ask("look_on")
    return Scene(parts, server, victim, attacker)


async def settled(scene: Scene) -> dict[str, Any]:
    """Wait until nobody but the victim is left, and for no longer than `SETTLE`; the server's statistics then."""
    stats: dict[str, Any] = await scene.server.ask("statistics")
    with trio.move_on_after(SETTLE):
        while True:
            stats = await scene.server.ask("statistics")
            if stats["connections"] == 1 and not stats["handshaking"] and stats["in_flight"] <= 1:
                break
            await trio.sleep(0.1)
    return stats


def tell_victim(seen: dict[str, Any]) -> list[str]:
    """The victim's part of a row."""
    times = [milliseconds(seen[which]) for which in ("p50", "p99", "longest")]
    return [f"{seen['calls']:,}", f"{seen['failed']:,}", *times]


def run(quick: bool, seed: int) -> Report:
    """Attack, and hold the server and the victim against what is promised."""
    return trio.run(_run, QUICK if quick else FULL, seed)


async def _run(size: Size, seed: int) -> Report:
    report = Report(COLUMNS)
    async with open_parts() as parts:
        scene = await open_scene(parts, **NO_ADDRESS_LIMIT)
        await trio.sleep(size.baseline)
        alone = await scene.victim.ask("report")
        report.rows.append(["alone", "1", duration(size.baseline), "-", *tell_victim(alone)])
        await _attack(scene, report, size, seed, alone)
        await _churn(scene, report, size, alone)
        parts.judge_logs(report, scene.server)
    return report


async def _calm(scene: Scene, before: dict[str, int] | None = None) -> tuple[int, dict[str, int]]:
    """The server's memory and tables, with nobody but the victim there, once nothing is left behind: soon, or never.

    Even the victim rests: who has called has left a task that is parked for the next call, or has not, by chance.
    """
    await scene.victim.ask("rest")
    await scene.attacker.ask("churn", count=3, at_once=1)  # The interpreter keeps alive what the last one left.
    await settled(scene)
    counted: dict[str, int] = await scene.server.ask("census")
    with trio.move_on_after(SETTLE):
        while before is not None and left_behind(before, counted):
            await trio.sleep(0.5)
            counted = await scene.server.ask("census")
    await scene.server.ask("collect")
    memory = scene.server.memory()
    await scene.victim.ask("look_on")
    return memory, counted


async def _attack(scene: Scene, report: Report, size: Size, seed: int, alone: dict[str, Any]) -> None:
    attacker, victim = scene.attacker, scene.victim
    await attacker.ask("hostile", count=size.warm_up, seed=0, at_once=AT_ONCE)
    memory, tables = await _calm(scene)
    await victim.ask("report")
    lines, start = len(scene.server.complaints.splitlines()), trio.current_time()
    found = await attacker.ask("hostile", count=size.connections, seed=seed, at_once=AT_ONCE)
    seconds = trio.current_time() - start
    seen = await victim.ask("report")
    lines = len(scene.server.complaints.splitlines()) - lines
    row = [f"{size.connections:,}", duration(seconds), f"{size.connections / seconds:,.0f}"]
    report.rows.append(["hostile", *row, *tell_victim(seen)])
    grown, left = await _calm(scene, tables)
    _judge(report, size, found, f"{len(ATTACKS)} kinds of attack, in {duration(seconds)}")
    _judge_victim(report, f"{size.connections:,} hostile connections", seen, alone)
    _judge_rest(report, f"{size.connections:,} hostile connections", grown - memory, left_behind(tables, left))
    report.bar(
        f"{size.connections:,} hostile connections: at most 10 lines a second in the server's log, and one that counts the rest",
        f"{lines} in {duration(seconds)}",
        lines <= LINES * (seconds + 1),
    )


def _judge(report: Report, size: Size, found: dict[str, Any], measured: str) -> None:
    """The answers to the attackers themselves."""
    undeclared = sorted(found["codes"].keys() - {code.name for code in DECLARED})
    report.bar(
        f"{size.connections:,} hostile connections: only declared errors",
        f"{measured}: {found['wrongs']} answered or ended otherwise than declared"
        + (f", with {', '.join(undeclared)}" if undeclared else ""),
        not found["wrongs"] and not undeclared,
    )
    told = ", ".join(f"{number:,} {code}" for code, number in sorted(found["codes"].items()))
    report.details += [f"answers: {told}", *found["wrong"]]


def _judge_victim(report: Report, name: str, seen: dict[str, Any], alone: dict[str, Any]) -> None:
    report.bar(
        f"{name}: another client's calls do not fail",
        f"{seen['calls']:,} calls, {seen['failed']} errors, {seen['lost']} connections lost; "
        f"p99 {milliseconds(seen['p99'])}, alone {milliseconds(alone['p99'])}",
        bool(seen["calls"]) and not seen["failed"] and not seen["lost"],
    )
    report.details += seen["errors"]


def _judge_rest(report: Report, name: str, grown: int, differ: list[str]) -> None:
    report.bar(f"{name}: the server grows by at most 20 MiB", f"{grown / MIB:+.1f} MiB", grown <= GROWTH)
    report.bar(
        f"{name}: no file descriptor, task or table entry is left behind",
        f"{len(differ)} counts are higher afterwards",
        not differ,
    )
    report.details += differ


async def _churn(scene: Scene, report: Report, size: Size, alone: dict[str, Any]) -> None:
    """Those who only come and go."""
    await scene.attacker.ask("churn", count=size.warm_up, at_once=AT_ONCE)
    memory, tables = await _calm(scene)
    await scene.victim.ask("report")
    start = trio.current_time()
    await scene.attacker.ask("churn", count=size.connections, at_once=AT_ONCE)
    seconds = trio.current_time() - start
    seen = await scene.victim.ask("report")
    row = [f"{size.connections:,}", duration(seconds), f"{size.connections / seconds:,.0f}"]
    report.rows.append(["churn", *row, *tell_victim(seen)])
    grown, left = await _calm(scene, tables)
    name = f"{size.connections:,} connections that come and go"
    _judge_victim(report, name, seen, alone)
    _judge_rest(report, name, grown - memory, left_behind(tables, left))


PROOF = Proof(
    "50,000 hostile connections, and 50,000 that come and go: only declared errors, and nobody else notices", run
)
