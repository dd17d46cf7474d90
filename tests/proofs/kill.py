"""P01, S15: kill -9, again and again: nothing idempotent is lost, nothing else runs twice, and `may_have_run=False` is
the truth.

Three groups of callers. The idempotent ones retry by the pool's own policy. The others must not run twice, which also
judges each attempt that the pool tried again since it surely had not run. Callers bound to one server see that server's
failures undiluted: with little patience for a new connection, and with bulk in the way, so that some of their calls
are still unwritten when the connection is lost: every second server is frozen for a moment before it is killed.
"""

from __future__ import annotations

import random
import signal
from collections import Counter
from dataclasses import dataclass
from itertools import count

import trio

import trio_rpc

from .contract import Works
from .ledger import Executions
from .load import COLUMNS, Journal, Load, again, bulk, once
from .processes import Servers, open_servers
from .report import Proof, Report

__all__ = ["PROOF", "judge_claims"]

SERVERS = 3
CALLERS = {"idempotent": 48, "not idempotent": 16}
BOUND_CALLERS = {"bound": 4, "bound, bulk": 3}
"""For each server."""
OTHERS = ("not idempotent", *BOUND_CALLERS)
PAUSE = 0.02
"""Seconds between the end of a caller's call and its next, in the mean."""
IMPATIENT = 0.05
"""Seconds that a bound caller waits for a connection."""
FROZEN = 0.1
"""Seconds for which calls pile up before a server that stands still, and is then killed."""


@dataclass(frozen=True)
class Size:
    """How much is enough."""

    kills: int
    calls: int
    """Idempotent ones."""


FULL, QUICK = Size(20, 20_000), Size(3, 200)


def run(quick: bool, seed: int) -> Report:
    """Kill one server after the other, and start it again, until there have been enough kills and enough calls."""
    return trio.run(_run, QUICK if quick else FULL, random.Random(seed), seed)


async def _run(size: Size, rng: random.Random, seed: int) -> Report:
    report = Report(COLUMNS)
    async with open_servers([0.0] * SERVERS) as servers:
        async with trio_rpc.open_pool(servers.addresses) as pool, trio_rpc.open_pool(servers.addresses) as other:
            for each in (pool, other):
                await each.wait_connected(SERVERS)
            async with trio.open_nursery() as nursery:
                load = Load(nursery, seed)
                load.add("idempotent", again, [pool.stub(Works)] * CALLERS["idempotent"], pause=PAUSE)
                load.add("not idempotent", once, [other.stub(Works)] * CALLERS["not idempotent"], pause=PAUSE)
                bound = other.stubs(Works, acquire_timeout=IMPATIENT)
                load.add("bound", once, bound * BOUND_CALLERS["bound"], pause=PAUSE)
                load.add("bound, bulk", bulk, bound * BOUND_CALLERS["bound, bulk"], pause=PAUSE)
                kills = await _kill(servers, size, rng, load.journal)
                load.stop()
            stats, others = pool.statistics(), other.statistics()
        report.rows += [load.journal.row(group) for group in (*CALLERS, *BOUND_CALLERS)]
        report.details.append(
            f"{stats.lost + others.lost} connections lost; {stats.retries} attempts to repeat idempotent calls, "
            f"{others.retries} to repeat others that surely had not run"
        )
        report.check(f"{kills} times a server was killed, one at a time, and started again", kills >= size.kills)
        _judge(report, size, load.journal, servers.executions())
        servers.judge(report)
    return report


async def _kill(servers: Servers, size: Size, rng: random.Random, journal: Journal) -> int:
    """Roll over the servers, with time to recover, and without; every second one dies with a backlog before it.

    Returns how many kills it took until there were enough of them and enough calls.
    """
    for number in count(1):
        server = servers[number % len(servers)]
        await trio.sleep(rng.uniform(0.2, 2))
        if number % 2:
            server.signal(signal.SIGSTOP)
            await trio.sleep(FROZEN)
        await server.kill()
        await trio.sleep(rng.uniform(0, 0.5))
        await server.start()
        if number >= size.kills and len(journal.of("idempotent")) >= size.calls:
            return number
    raise AssertionError("the numbers have no end")


def _judge(report: Report, size: Size, journal: Journal, executions: Executions) -> None:
    calls = journal.of("idempotent")
    lost = [key for key in calls if key not in journal.latencies or not executions.ended[key]]
    report.check(f"{len(calls):,} idempotent calls: {len(lost)} lost", len(calls) >= size.calls and not lost)
    repeated = sum(executions.begun[key] > 1 for key in calls)
    report.details.append(f"{repeated} idempotent calls ran more than once")

    others = [key for group in OTHERS for key in journal.of(group)]
    twice = [key for key in others if executions.begun[key] > 1]
    report.check(f"{len(others):,} calls that are not idempotent: {len(twice)} ran twice", bool(others) and not twice)
    untold = [key for key in others if key in journal.latencies and not executions.ended[key]]
    report.check(f"{len(untold)} of them were answered and had not run", not untold)
    surprises = [key for key, error in journal.errors.items() if not isinstance(error, trio_rpc.RpcError)]
    open_ = [key for key in journal.begun if key not in journal.latencies and key not in journal.errors]
    report.check(
        f"{len(open_)} calls never came back, {len(surprises)} with a wrong answer", not open_ and not surprises
    )
    wrong = judge_claims(report, journal, executions)
    journal.explain(report, executions, [*lost, *twice, *untold, *surprises, *open_, *wrong])


def judge_claims(report: Report, journal: Journal, executions: Executions) -> list[str]:
    """Hold what errors say about themselves against the ledger. Returns the keys whose errors were wrong."""
    claims: Counter[str] = Counter()
    wrong, ran = [], 0
    for key, error in journal.errors.items():
        if not isinstance(error, trio_rpc.RpcError):
            continue
        claims[f"{type(error).__name__}, {'may have run' if error.may_have_run else 'did not run'}"] += 1
        if error.may_have_run:
            ran += executions.begun[key] > 0
        elif executions.begun[key]:
            wrong.append(key)
    told = sum(number for claim, number in claims.items() if claim.endswith("did not run"))
    report.check(
        f"{told:,} errors with may_have_run=False: {len(wrong)} of these calls had run", bool(told) and not wrong
    )
    report.details.append(
        f"the errors: {', '.join(f'{number} {claim}' for claim, number in claims.most_common())}; "
        f"of those that may have run, {ran} had"
    )
    return wrong


PROOF = Proof("rolling kill -9 of 3 server processes: nothing idempotent lost, nothing else run twice", run)
