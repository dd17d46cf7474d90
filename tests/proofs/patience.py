"""N08, N19, Rule 6: healthy peers on bad lines, and beside a loop that stands still: nobody is given up, and no call is
lost.

The lines are TUN devices with a program of ours between them (tests/faults/tunnel.py); all four cases run side by side,
each in a process of its own. In each of them 8 callers call all the time on one connection, and another is idle, so
that it lives by its pings alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import trio

from tests.faults.tunnel import Conditions

from .parts import Parts, open_parts
from .report import Proof, Report, milliseconds

__all__ = ["PROOF"]

SHORT, DEFAULT = (1, 1), (10, 5)
"""Heartbeats: interval and timeout in seconds."""
RTT = Conditions(delay=0.025)
COLUMNS = ["", "calls", "failed", "given up by client", "by server", "p50", "p99", "longest", "packets"]
COLUMNS += ["lost", "twice", "overtaken"]


@dataclass(frozen=True)
class Case:
    """One line, and who stands still on it."""

    name: str
    promised: str
    conditions: Conditions
    client: tuple[int, int] = SHORT
    server: tuple[int, int] = SHORT
    stalls: str = ""


CASES = [
    Case(
        "2 % loss",
        "50 ms round trip, 2 % loss, 60 s, 1 s + 1 s on both sides: 0 false evictions",
        Conditions(delay=0.025, loss=0.02),
    ),
    Case(
        "reordering, duplicates",
        "50 ms delay, jitter 10 ms with reordering, 20 % duplicates, 60 s, 1 s + 1 s on both sides: 0 errors, 0 false evictions",
        Conditions(delay=0.05, jitter=0.01, duplicate=0.2),
    ),
    Case(
        "client stands still",
        "20 stalls of 1.5 s of the client at 1 s + 1 s, its server at the defaults: 0 evictions, 0 calls lost",
        RTT,
        server=DEFAULT,
        stalls="client",
    ),
    Case(
        "server stands still",
        "20 stalls of 1.5 s of the server at 1 s + 1 s, its client at the defaults: 0 evictions, 0 calls lost",
        RTT,
        client=DEFAULT,
        stalls="server",
    ),
]


@dataclass(frozen=True)
class Size:
    """How much is enough."""

    seconds: float
    stalls: int


FULL, QUICK = Size(60, 20), Size(3, 2)


def run(quick: bool, seed: int) -> Report:
    """Live through all cases at once."""
    return trio.run(_run, QUICK if quick else FULL, seed)


async def _run(size: Size, seed: int) -> Report:
    report, results = Report(COLUMNS), dict[str, dict[str, Any] | str]()
    async with open_parts() as parts:
        async with trio.open_nursery() as nursery:
            for case in CASES:
                nursery.start_soon(_live, parts, case, size, seed, results)
    for case in CASES:
        result = results[case.name]
        if isinstance(result, str):
            report.bar(case.promised, f"cannot be measured here: {result}", False)
        else:
            _judge(report, case, size, result)
    return report


async def _live(parts: Parts, case: Case, size: Size, seed: int, results: dict[str, dict[str, Any] | str]) -> None:
    beats = {"client": case.client, "server": case.server}
    part, why_not = await parts.start("steady", conditions=asdict(case.conditions), beats=beats, seed=seed)
    if why_not is not None:
        results[case.name] = why_not
        return
    stalls = size.stalls if case.stalls else 0
    result = await part.ask("live", seconds=size.seconds, stalls=stalls, side=case.stalls)
    there, back = await part.ask("traffic")
    results[case.name] = result | {"packets": {name: there[name] + back[name] for name in there}}


def _judge(report: Report, case: Case, size: Size, result: dict[str, Any]) -> None:
    packets = result["packets"]
    evicted = [result["evicted by the client"], result["evicted by the server"]]
    counts = [f"{packets[name]:,}" for name in ("carried", "lost", "duplicated", "overtook")]
    times = [milliseconds(time) for time in result["times"]]
    report.rows.append([case.name, f"{result['calls']:,}", str(result["failed"]), *map(str, evicted), *times, *counts])
    what = f"{size.stalls} stalls" if case.stalls else f"{size.seconds:g} s"
    text = f"{what}, {result['calls']:,} calls: {sum(evicted)} evictions, {result['failed']} calls failed"
    holds = bool(result["calls"]) and not (sum(evicted) or result["failed"] or result["lost"])
    report.bar(case.promised, f"{text}, {result['lost']} connections lost", holds)
    expected = {
        "lost": case.conditions.loss,
        "duplicated": case.conditions.duplicate,
        "overtook": case.conditions.jitter,
    }
    if any(expected.values()):
        spoilt = all(packets[name] for name, share in expected.items() if share)
        report.check(f"the line did that to {packets['carried'] + packets['lost']:,} packets", spoilt)
    report.details += result["errors"]


PROOF = Proof("bad lines, and loops that stand still: no healthy peer is given up", run)
