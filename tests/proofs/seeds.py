"""The simulation, over many seeds; and that it would find a bug."""

from __future__ import annotations

import time

from tests.simulation.plants import PLANTS
from tests.simulation.running import command, find_failures

from .report import Proof, Report, duration

__all__ = ["PROOF"]

SEEDS, QUICK_SEEDS = 10_000, 50
WITHIN = 1000
"""Seeds in which a planted bug must be found."""
JOBS = 2


def run(quick: bool, _seed: int) -> Report:
    """Live through the seeds from 0 on, and through some with each planted bug until one fails."""
    report = Report(["bug", "seeds", "failed", "time", "a minute"])
    seeds, start = range(QUICK_SEEDS if quick else SEEDS), time.perf_counter()
    failures = list(find_failures(seeds, None, JOBS))
    _row(report, "none", len(seeds), len(failures), time.perf_counter() - start)
    report.check(f"{len(seeds):,} seeds: {len(failures)} failed", not failures)
    report.details += [f"{command(seed, None)}: {what.splitlines()[0]}" for seed, what in failures[:5]]
    for bug in PLANTS:
        start = time.perf_counter()
        found = next(find_failures(range(WITHIN), bug), None)
        tried = WITHIN if found is None else found[0] + 1
        _row(report, bug, tried, found is not None, time.perf_counter() - start)
        where = "not found" if found is None else f"found by seed {found[0]}"
        report.check(f"with the bug {bug} planted, {where} ({WITHIN} may be tried)", found is not None)
    return report


def _row(report: Report, bug: str, seeds: int, failed: int, seconds: float) -> None:
    report.rows.append([bug, f"{seeds:,}", str(int(failed)), duration(seconds), f"{60 * seeds / seconds:,.0f}"])


PROOF = Proof("the simulation: 10,000 seeds without a failure, and planted bugs are found within 1000", run)
