"""Three servers, one of which is ten times slower: what each way of balancing makes of it.

The calls come at random moments, at the same ones for every way and whatever has become of the calls before them, and
latency counts from the moment at which a call was due: a caller who waits for a slow answer does not hide what others
would have seen. The ways take turns, a short round each, so that a busy moment of the machine meets all of them.

A tail is the machine's as much as ours: where other programs keep a fast server waiting, it is a slow one. So a round
that they disturb is repeated, as the benchmarks do, but not for ever.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeAlias

import trio

from benchmarks.rounds import DISTURBED, busy_seconds
from trio_rpc import LeastInFlight, PowerOfTwo, RoundRobin, open_pool

from .contract import Works
from .processes import Servers, open_servers
from .report import Proof, Report, milliseconds, percentile

__all__ = ["PROOF"]

FAST, SLOW = 0.005, 0.05
"""Seconds that a handler sleeps."""
RATE = 400
"""Calls a second: two in flight in the mean, while all are fast."""
AT_MOST = 2.0
"""What one slow server may do to the 99th percentile."""
Balance: TypeAlias = LeastInFlight | RoundRobin | PowerOfTwo
WAYS: dict[str, Balance] = {
    "P2C + peak EWMA": PowerOfTwo(),
    "round robin": RoundRobin(),
    "least in flight": LeastInFlight(),
}
COLUMNS = ["", "calls", *(f"{what}, {servers}" for what in ("p50", "p99") for servers in ("equal", "one slow"))]
COLUMNS += ["p99, slow / equal", "calls as slow"]
Latencies: TypeAlias = defaultdict[tuple[str, bool], list[float]]


@dataclass(frozen=True)
class Size:
    """How much is enough."""

    rounds: int
    seconds: float
    spare: int
    """Further rounds, in place of disturbed ones."""


FULL, QUICK = Size(5, 3.0, 20), Size(1, 0.3, 0)


def run(quick: bool, seed: int) -> Report:
    """Measure each way with three equal servers and with a slow one among them."""
    return trio.run(_run, QUICK if quick else FULL, seed)


async def _run(size: Size, seed: int) -> Report:
    report, disturbed, spare = Report(COLUMNS), 0, size.spare
    latencies: Latencies = defaultdict(list)
    async with open_servers([FAST, FAST, FAST, SLOW]) as servers:
        first, second, third, slow = servers.addresses
        for number, (way, balance), third_one in product(range(size.rounds), WAYS.items(), (third, slow)):
            while True:
                start, others = trio.current_time(), others_seconds(servers)
                times = await _round([first, second, third_one], balance, size.seconds, f"{seed} {number}")
                quiet = others_seconds(servers) - others <= DISTURBED * (trio.current_time() - start)
                if quiet or not spare:
                    break
                spare -= 1
            latencies[way, third_one is slow] += times
            disturbed += not quiet
        for way in WAYS:
            _judge(report, way, latencies, strict=size is FULL)
        servers.judge(report)
    rounds = size.rounds * len(WAYS) * 2
    report.details.append(f"{disturbed} of {rounds} rounds were disturbed by other programs")
    return report


def others_seconds(servers: Servers) -> float:
    """CPU seconds that other programs have taken from the machine."""
    return busy_seconds() - time.process_time() - sum(server.cpu() for server in servers)


async def _round(addresses: Sequence[str], balance: Balance, seconds: float, seed: str) -> list[float]:
    """Call for so long, with a new pool, which knows nothing of the servers yet. Returns the latencies."""
    times: list[float] = []
    rng = random.Random(seed)
    async with open_pool(addresses, balance=balance) as pool:
        await pool.wait_connected(len(addresses))
        stub = pool.stub(Works)

        async def call(due: float) -> None:
            await stub.paced()
            times.append(trio.current_time() - due)

        async with trio.open_nursery() as nursery:
            due = trio.current_time()
            end = due + seconds
            while (due := due + rng.expovariate(RATE)) < end:
                await trio.sleep_until(due)
                nursery.start_soon(call, due)
    return times


def _judge(report: Report, way: str, latencies: Latencies, *, strict: bool) -> None:
    """Report on one way; where it is not `strict`, there are too few calls to hold their tail against anything."""
    equal, one_slow = latencies[way, False], latencies[way, True]
    p50s = [percentile(times, 0.5) for times in (equal, one_slow)]
    p99s = [percentile(times, 0.99) for times in (equal, one_slow)]
    ratio = p99s[1] / p99s[0]
    share = sum(time >= SLOW for time in one_slow) / len(one_slow)
    times = [milliseconds(time) for time in (*p50s, *p99s)]
    report.rows.append([way, f"{len(equal) + len(one_slow):,}", *times, f"{ratio:.1f}", f"{share:.1%}"])
    if not strict:
        report.check(f"{way}: measured", bool(equal and one_slow))
    elif way == "P2C + peak EWMA":
        report.check(f"{way}: the p99 with one slow is {ratio:.1f} times that of three equal", ratio <= AT_MOST)
    elif way == "round robin":
        report.check(f"{way}: it is {ratio:.1f} times, which is not", ratio > AT_MOST)


PROOF = Proof("three servers, one of them 10x slower: its share of the callers' p99, by way of balancing", run)
