"""R10, R11: rapid reset: one client makes 12,000 calls a second, only to cancel them, or to be refused; others want to
be served.

What an honest client cannot do is cut within a second: calls beyond `max_in_flight` that go on and on, errors of its
own making. Cancelling inside the announced limits is what an honest nursery does that is left with 10,000 calls in it,
and is not: there the promise is that it takes no more than its own places, and that others do not fail.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import trio

from .hostile import Scene, open_scene, settled, tell_victim
from .parts import open_parts
from .report import Proof, Report, milliseconds

__all__ = ["PROOF"]

LEGAL, FORBIDDEN = False, True


@dataclass(frozen=True)
class Size:
    """How much is enough."""

    seconds: float
    """Of each look at the victim, and of each flood that is not cut."""
    cut_within: float
    """Seconds."""


@dataclass(frozen=True)
class Flood:
    """One way, at 12,000 a second or as fast as the server takes it, and whether it is to be cut."""

    what: str
    paced: bool
    cut: bool


FLOODS = (
    Flood("a call and its cancellation", paced=True, cut=LEGAL),
    Flood("a call and its cancellation", paced=False, cut=FORBIDDEN),
    Flood("a call, cancelled 10 ms later", paced=True, cut=LEGAL),
    Flood("a large call, cancelled before it is whole", paced=True, cut=LEGAL),
    Flood("a call that ignores its cancellation", paced=True, cut=FORBIDDEN),
    Flood("a call, not cancelled", paced=True, cut=FORBIDDEN),
    Flood("a call of no method", paced=True, cut=FORBIDDEN),
    Flood("a call that cannot be decoded", paced=True, cut=FORBIDDEN),
)
FULL, QUICK = Size(4.0, 1.0), Size(0.4, 10.0)
COLUMNS = ["again and again", "sent", "a second", "ended", "victim's calls", "errors", "p50", "p99", "longest"]


def run(quick: bool, _seed: int) -> Report:
    """Flood in each way."""
    return trio.run(_run, QUICK if quick else FULL)


async def _run(size: Size) -> Report:
    report = Report(COLUMNS)
    async with open_parts() as parts:
        scene = await open_scene(parts)
        await trio.sleep(size.seconds)
        alone = await scene.victim.ask("report")
        report.rows.append(["(nobody)", "-", "-", "-", *tell_victim(alone)])
        for flood in FLOODS:
            await _flood(scene, report, flood, size, alone)
        parts.judge_logs(report, scene.server)
    return report


async def _flood(scene: Scene, report: Report, flood: Flood, size: Size, alone: dict[str, Any]) -> None:
    name = f"{flood.what}, {'12,000 a second' if flood.paced else 'as fast as it goes'}"
    seconds = max(size.seconds, size.cut_within) if flood.cut else size.seconds
    found = await scene.attacker.ask("flood", what=flood.what, seconds=seconds, paced=flood.paced)
    during = await scene.victim.ask("report")
    await settled(scene)
    await scene.victim.ask("report")
    await trio.sleep(size.seconds)
    after = await scene.victim.ask("report")
    ended = "not cut" if found["cut"] is None else f"cut after {found['cut']:.2f} s"
    row = [name, f"{found['sent']:,}", f"{found['rate']:,.0f}", ended]
    report.rows.append([*row, *tell_victim(during)])
    failed = during["failed"] + after["failed"]
    victim = (
        f"{during['calls'] + after['calls']:,} calls of another client, {failed} errors, p99 {milliseconds(during['p99'])}, "
        f"afterwards {milliseconds(after['p99'])}, before all {milliseconds(alone['p99'])}"
    )
    if flood.cut:
        is_cut = found["cut"] is not None and found["cut"] <= size.cut_within
        promised = f"{name}: cut within {size.cut_within:g} s, and nobody else's calls fail"
        report.bar(promised, f"{ended}; {victim}", is_cut and not failed)
    else:
        report.bar(f"{name}: nobody else's calls fail", f"{ended}; {victim}", not failed)
    report.details.append(f"{name}: {found['codes']} {found['said']}")
    report.details += during["errors"] + after["errors"]


PROOF = Proof(
    "rapid reset and its kin, 12,000 a second from one client: it is cut, or bears its cost; others are served", run
)
