"""N17, P03: a rolling restart by SIGTERM: callers, in all call shapes, do not notice it."""

from __future__ import annotations

import trio

import trio_rpc

from .contract import Works
from .ledger import Executions
from .load import COLUMNS, SHAPES, Journal, Load
from .processes import ServerFailed, ServerProcess, Servers, open_servers
from .report import Proof, Report

__all__ = ["PROOF", "judge"]

SERVERS = 3
CALLERS = {"once": 16, "again": 8, "total": 4, "count": 4, "doubled": 4}
PAUSE = 0.03
"""Seconds between the end of a caller's call and its next, in the mean."""
SETTLE = 0.5
"""Seconds of calls before the first restart and after the last."""
FIND = 10.0
"""Seconds in which the pool must have found a server that listens again."""


def run(quick: bool, seed: int) -> Report:
    """Restart all servers, one after the other, many times."""
    return trio.run(_run, 1 if quick else 20, seed)


async def _run(rounds: int, seed: int) -> Report:
    report = Report(COLUMNS)
    async with open_servers([0.0] * SERVERS) as servers:
        async with trio_rpc.open_pool(servers.addresses) as pool:
            await pool.wait_connected(SERVERS)
            async with trio.open_nursery() as nursery:
                load = Load(nursery, seed)
                for shape, callers in CALLERS.items():
                    load.add(shape, SHAPES[shape], [pool.stub(Works)] * callers, pause=PAUSE)
                await trio.sleep(SETTLE)
                await _roll(servers, rounds, pool, report)
                await trio.sleep(SETTLE)
                load.stop()
            stats = pool.statistics()
        report.rows += [load.journal.row(shape) for shape in CALLERS]
        report.details.append(
            f"{stats.connects} dials, {stats.connect_errors} of them failed; {stats.lost} connections lost, "
            f"{stats.closed_going_away} closed as the server was going away; {stats.retries} calls tried again"
        )
        judge(report, load.journal, servers.executions())
        servers.judge(report)
    return report


async def _roll(servers: Servers, rounds: int, pool: trio_rpc.Pool, report: Report) -> None:
    """Restart one server after the other.

    In every second round the next one follows as soon as the last one listens, which may be before the pool has found
    it again: for moments there is no server at all. In the others it waits for the pool, so that all are in use.
    """
    found: list[float] = []
    try:
        for number in range(rounds):
            for server in servers:
                async with pool.events() as events:
                    await server.stop()
                    await server.start()
                    if number % 2 == 0:
                        found.append(await _found_again(events, server))
    except ServerFailed as failure:
        report.check(str(failure), False)
    else:
        report.check(f"{rounds} rolling restarts: each of {SERVERS} servers ended with 0 after SIGTERM", True)
        report.details.append(f"the pool had found a server again {max(found):.2f} s after it listened, at the latest")


async def _found_again(events: trio.MemoryReceiveChannel[trio_rpc.PoolEvent], server: ServerProcess) -> float:
    """Wait until the pool has a connection to a server that was started again; returns how long it took."""
    start = trio.current_time()
    with trio.move_on_after(FIND):
        async for event in events:
            if (event.kind, event.endpoint) == ("connected", server.address):
                return trio.current_time() - start
    raise ServerFailed(f"the pool did not find {server.name} again within {FIND:g} s")


def judge(report: Report, journal: Journal, executions: Executions) -> None:
    """Hold what the callers saw, and what ran, against what is promised."""
    made, errors = len(journal.begun), len(journal.errors)
    open_ = journal.begun.keys() - journal.latencies.keys() - journal.errors.keys()
    report.check(f"{made:,} calls: {errors} errors seen by callers", bool(made) and not errors)
    report.check(f"{len(open_)} calls that never came back", not open_)
    unlike_one = [key for key in journal.begun if (executions.begun[key], executions.ended[key]) != (1, 1)]
    report.check(f"each call ran to its end, once: {len(unlike_one)} did not", not unlike_one)
    journal.explain(report, executions, [*journal.errors, *open_, *unlike_one])


PROOF = Proof("rolling SIGTERM restart of 3 server processes, under load: 0 errors seen by callers", run)
