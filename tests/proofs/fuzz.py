"""W20, W10: mutated traffic, in process: whatever arrives, only declared errors come out, soon, and nothing is kept."""

from __future__ import annotations

import gc
import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.proofs.mutants import Feed, Source, payload_sources, wire_sources
from trio_rpc import DecodeError, RemoteProtocolError

from .report import Proof, Report, duration, milliseconds

__all__ = ["PROOF", "Finding", "fuzz", "mutate"]

MUTANTS = 1_000_000
QUICK = 20_000
PROCESSES = 2
GROWTH = 20 * 1024 * 1024
"""Bytes of memory that all of it may add, in either process."""
SLOWEST = 0.03
"""Seconds of the loop that one of them may take."""
DECLARED = (DecodeError, RemoteProtocolError)


def mutate(rng: random.Random, data: bytes) -> bytes:
    """Change, insert, cut out or double 1 to 4 pieces of it."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, how = rng.randint(0, len(out)), rng.randrange(5)
        if how <= 1 and at < len(out):  # twice as often, as it leaves all lengths as they are
            out[at] = rng.choice(TELLING) if how else rng.randrange(256)
        elif how == 2:
            out.insert(at, rng.randrange(256))
        elif how == 3:
            del out[at : at + rng.randint(1, 4)]
        else:
            out[at:at] = out[at : at + rng.randint(1, 16)]
    return bytes(out)


TELLING = bytes([0x00, 0x01, 0x22, 0x5B, 0x5C, 0x7B, 0x7F, 0x80, 0x90, 0xC0, 0xC1, 0xD4, 0xD9, 0xDD, 0xDF, 0xE0, 0xFF])
"""Bytes with a meaning: zeros, limits, and the headers and brackets of both codecs."""


@dataclass
class Finding:
    """What one process has seen."""

    counts: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    undeclared: list[str] = field(default_factory=list)
    longest: dict[str, float] = field(default_factory=dict)
    growth: int = 0
    seconds: float = 0.0


def fuzz(count: int, seed: int) -> Finding:
    """Feed so many mutants, from every source in turn."""
    rng, found = random.Random(seed), Finding()
    sources = [*wire_sources(), *payload_sources()]
    _feed_all(sources, max(1, count // 10), rng, Finding())  # Caches fill, and the allocator takes what it needs.
    gc.collect()
    before, start = _memory(), time.perf_counter()
    _feed_all(sources, count, rng, found)
    found.seconds = time.perf_counter() - start
    gc.collect()
    found.growth = _memory() - before
    return found


def _feed_all(sources: Sequence[Source], count: int, rng: random.Random, found: Finding) -> None:
    total = sum(source.share for source in sources)
    for source in sources:
        for _ in range(max(1, round(count * source.share / total))):
            sample, feed = rng.choice(source.samples)
            _feed_one(source.name, feed, mutate(rng, sample), found)


def _feed_one(name: str, feed: Feed, mutant: bytes, found: Finding) -> None:
    found.counts[name] += 1
    start = time.thread_time()
    try:
        feed(mutant)
    except DECLARED:
        found.refused[name] += 1
    except Exception as exc:
        found.undeclared.append(f"{name}: {type(exc).__name__}: {exc!s:.100} for {mutant[:200]!r}")
    taken = time.thread_time() - start
    if taken > found.longest.get(name, 0.0):
        found.longest[name] = taken


def _memory() -> int:
    """Bytes of memory that this process has resident, or 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except OSError:
        return 0


def _in_processes(count: int, seed: int) -> list[Finding]:
    context = multiprocessing.get_context("spawn")
    with context.Pool(PROCESSES) as pool:
        return pool.starmap(fuzz, [(count // PROCESSES, seed + number) for number in range(PROCESSES)])


def run(quick: bool, seed: int) -> Report:
    """Feed them, and judge what came out."""
    start = time.perf_counter()
    findings = [fuzz(QUICK, seed)] if quick else _in_processes(MUTANTS, seed)
    return judge(findings, time.perf_counter() - start)


def judge(findings: Sequence[Finding], seconds: float) -> Report:
    """The figures of all processes, and whether they hold."""
    report = Report(["what is mutated", "mutants", "refused", "longest"])
    counts, refused = _sum(finding.counts for finding in findings), _sum(finding.refused for finding in findings)
    longest = {name: max(finding.longest.get(name, 0.0) for finding in findings) for name in counts}
    for name in counts:
        share = f"{refused[name] / counts[name]:.0%}"
        report.rows.append([name, f"{counts[name]:,}", share, milliseconds(longest[name])])
    total, undeclared = sum(counts.values()), [line for finding in findings for line in finding.undeclared]
    growth = max(finding.growth for finding in findings)
    measured = f"{total:,} mutants, {len(undeclared)} undeclared exceptions, in {duration(seconds)}"
    report.bar("whatever arrives, only declared errors come out", measured, total > 0 and not undeclared)
    report.bar("memory: at most 20 MiB more", f"{growth / 1024**2:.1f} MiB", growth <= GROWTH)
    worst = max(longest.values())
    report.bar("no mutant holds the loop for 30 ms", f"{milliseconds(worst)} of processor time", worst <= SLOWEST)
    busy = sum(finding.seconds for finding in findings)
    report.details.append(
        f"{total / busy:,.0f} a second on one core; {duration(seconds)} with {len(findings)} processes"
    )
    report.details.extend(undeclared[:20])
    return report


def _sum(counters: Iterable[Counter[str]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for counter in counters:
        total.update(counter)
    return total


PROOF = Proof("1,000,000 mutated frames and payloads, in process: only declared errors, no memory kept", run)
