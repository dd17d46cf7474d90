"""The command line; see the package."""

from __future__ import annotations

import argparse
import sys
import time

from .plants import PLANTS, planted
from .running import command, find_failures, run_plan, run_seed, shrink


def main(arguments: list[str]) -> int:
    """Run what is asked for; returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seed", type=int, help="live through one seed and print its events")
    what.add_argument("--seeds", type=_range, metavar="A-B", help="live through all of these and print those that fail")
    parser.add_argument("--shrink", action="store_true", help="with --seed: leave out the steps that are not needed")
    parser.add_argument("--jobs", type=int, default=1, help="with --seeds: processes (default: 1)")
    parser.add_argument("--plant", choices=PLANTS, help="have this bug in the library, to see that it is found")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        return replay(options.seed, options.plant, shrinking=options.shrink)
    return run_range(options.seeds, options.plant, options.jobs)


def _range(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def replay(seed: int, plant: str | None, *, shrinking: bool) -> int:
    """Print all that happens in one seed."""
    with planted(plant):
        report = run_seed(seed)
        if shrinking and report.failures:
            report = run_plan(shrink(report.plan))
    print(report.journal)
    print(f"seed {seed}, digest {report.journal.digest}: {'FAILED' if report.failures else 'passed'}")
    for failure in report.failures:
        print(failure)
    return bool(report.failures)


def run_range(seeds: range, plant: str | None, jobs: int) -> int:
    """Print the seeds that fail, each with the command that replays it."""
    started, failed = time.monotonic(), 0
    for seed, failure in find_failures(seeds, plant, jobs):
        failed += 1
        print(f"FAILED: {command(seed, plant)}\n    {failure.splitlines()[0]}", flush=True)
    seconds = time.monotonic() - started
    rate = 60 * len(seeds) / seconds
    print(f"{len(seeds)} seeds, {failed} failed, {seconds:.1f} s, {rate:.0f} a minute in {jobs} process(es)")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
