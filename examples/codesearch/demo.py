"""The demo: searches, an early stop, a deadline, a frozen worker, its recovery, and a summary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import trio

from .audit import PlainScan, Result
from .contract import Match, Query, ShareStats
from .fleet import HEARTBEAT, Worker, open_fleet
from .gateway import Gateway
from .screen import Screen, counted, duration, shown

QUERIES = [
    Query("Monty Python"),
    Query("yield from self"),
    Query("deadlock", ignore_case=True),
    Query(r"class \w*Timeout\w*", regex=True),
    Query(r"# *(XXX|FIXME|TODO)\b", regex=True),
]
BROAD = Query("self", limit=500)
"""Nearly every file has it: a search that is stopped long before its end."""
COSTLY = Query(r"(\w+)\s*=\s*\1\b\s*\+", regex=True)
"""`x = x + 1`, where `x += 1` would do. No index helps with it: every line of every file is looked at, slowly."""
DEADLINE = 0.15
"""Seconds for COSTLY, which takes several times as long."""
FAMILIAR = QUERIES[2]
"""What is searched with a worker frozen, without it, and when it is back."""
RECOVERY = 5.0
"""Seconds in which a worker has to be back after it was woken."""
SHOWN = 3
"""Matches printed of each search."""


async def run_demo(screen: Screen, root: Path, count: int, *, freeze: bool) -> bool:
    """Show it all; True if every search was answered as it should be, and no process is left."""
    screen.say((f"Code search: {counted(count, 'process', 'processes')} over {root}", "bold"))
    screen.say("  each is a service that reads and indexes its share of the files ...")
    began = trio.current_time()
    async with open_fleet(root, count) as workers:
        demo = Demo(screen, workers)
        await demo.introduce(trio.current_time() - began)
        for query in QUERIES:
            await demo.search(query)
        await demo.stop_early()
        await demo.meet_a_deadline()
        if freeze:
            await demo.freeze_a_worker()
        right = await demo.sum_up(root)
    codes = [worker.process.returncode for worker in workers]
    screen.say(("  processes   ", "dim"), f"all ended, with exit codes {', '.join(map(str, codes))}")
    if right and not any(codes):
        screen.say(("Every search was answered as it should be.", "bold green"))
        return True
    screen.say(("Not everything went as it should: see above.", "bold red"))
    return False


class Demo:
    """The scenes, and what is kept of each for the summary."""

    def __init__(self, screen: Screen, workers: Sequence[Worker]) -> None:
        self._screen = screen
        self._workers = workers
        self._gateway = Gateway({worker.name: worker.search for worker in workers})
        self._results: list[Result] = []
        self._faults: list[str] = []
        self._stopped = 0

    async def introduce(self, seconds: float) -> None:
        """Who is there, and what each has indexed."""
        stats = await self._gateway.stats()
        header = ("share", "pid", "files", "lines", "MB", "trigrams", "indexed in")
        self._screen.table(header, [_row(entry) for entry in stats])
        files = sum(entry.files for entry in stats)
        self._screen.say(f"  {files:,} files, ready after {duration(seconds)}")
        self._expect(len(stats) == len(self._workers), "not every worker has told its statistics")

    async def search(self, query: Query, title: str = "Search", *, missing: Sequence[str] = ()) -> Result:
        """One search, some of its matches, and how long it took."""
        self._screen.heading(f"{title}: {shown(query)}")
        result = await self._collect(query)
        rest = len(result.matches) - SHOWN
        if rest > 0:
            self._screen.say(f"  and {rest:,} more")
        for lost in result.missing.values():
            self._screen.say((f"  {lost.share} is missing: {lost.reason}", "yellow"))
        self._screen.say((f"  {_tally(result)}", "dim"))
        self._expect(sorted(result.missing) == sorted(missing), f"{shown(query)}: the wrong shares were missing")
        return result

    async def stop_early(self) -> None:
        """A search that has enough after a moment: the others' work ends with it."""
        before = await self._gateway.stats()
        result = await self.search(BROAD, "Enough is enough")
        if result.enough is None:
            return  # a small tree: there was no more than that
        after = await self._gateway.stats()
        self._screen.say(f"  stopped at {result.enough.limit}; the workers' own counters say:")
        self._tell_stopped(before, after)

    async def meet_a_deadline(self) -> None:
        """A scope of the caller's, here, is the workers' deadline, there."""
        self._screen.heading(f"A deadline that crosses the network: {duration(DEADLINE)} for {shown(COSTLY)}")
        before = await self._gateway.stats()
        result = await self._collect(COSTLY, within=DEADLINE)
        after = await self._gateway.stats()
        self._screen.say((f"  {_tally(result)}", "dim"))
        if not result.out_of_time:
            self._screen.say("  done before its deadline: these are few files")
            return
        told = ", ".join(duration(entry.seconds_left) for entry in after)
        self._screen.say(f"  our scope ended it after {duration(result.seconds)}; the workers' own counters say:")
        self._tell_stopped(before, after)
        self._screen.say(f"  each had been told how long it had (a little longer, so that ours fires first): {told}")
        untold = [entry.share for entry in after if entry.seconds_left is None]
        self._expect(not untold, f"{', '.join(untold)} did not know of the deadline")

    async def freeze_a_worker(self) -> None:
        """One worker stops dead, is given up, is done without, and comes back."""
        victim = self._workers[len(self._workers) // 2]
        self._screen.heading(f"SIGSTOP: {victim.name} (pid {victim.process.pid}) freezes, its connection stays open")
        victim.freeze()
        try:
            result = await self.search(FAMILIAR, "A search, just now", missing=[victim.name])
            silence = f"{HEARTBEAT.interval:g} s + {HEARTBEAT.timeout:g} s of silence"
            self._screen.say(f"  given up {duration(result.missing_after)} after it froze (allowed: {silence})")
            await self.search(FAMILIAR, "Meanwhile", missing=[victim.name])
        finally:
            victim.thaw()
        self._screen.heading(f"SIGCONT: {victim.name} goes on")
        began = trio.current_time()
        with trio.move_on_after(RECOVERY):
            await victim.pool.wait_connected()
        self._screen.say(f"  connected again after {duration(trio.current_time() - began)}")
        await self.search(FAMILIAR, "With everybody")

    async def sum_up(self, root: Path) -> bool:
        """The closing table; True if all went as it should."""
        names = [worker.name for worker in self._workers]
        began = trio.current_time()
        # In a thread, because it takes a while: the heartbeats go on, and Ctrl-C works.
        faults = await trio.to_thread.run_sync(_check, root, names, self._results, abandon_on_cancel=True)
        self._screen.heading(
            f"Summary, checked against a plain scan of all files in {duration(trio.current_time() - began)}"
        )
        header = ("search", "matches", "shares", "first match", "in all", "answer")
        rows = [self._row(result, fault) for result, fault in zip(self._results, faults, strict=True)]
        self._screen.table(header, rows)
        self._screen.say()
        self._tell_totals()
        for fault in self._faults:
            self._screen.say((f"  not as it should be: {fault}", "bold red"))
        return not self._faults and not any(faults)

    def _row(self, result: Result, fault: str | None) -> tuple[str, ...]:
        of = len(self._workers)
        whole = "timed out" if result.out_of_time else "stopped" if result.enough else "whole"
        return (
            shown(result.query),
            f"{len(result.matches):,}",
            f"{of - len(result.missing)}/{of}",
            duration(result.first_after),
            duration(result.seconds),
            fault or ("partial" if result.missing else whole),
        )

    def _tell_totals(self) -> None:
        pools = [worker.pool.statistics() for worker in self._workers]
        latencies = sorted(result.first_after for result in self._results if result.first_after is not None)
        median = duration(latencies[len(latencies) // 2]) if latencies else "-"
        opened = sum(pool.connects - pool.connect_errors - pool.dialling for pool in pools)
        totals = {
            "searches": f"{len(self._results)}, {sum(bool(result.missing) for result in self._results)} of them partial",
            "matches": f"{sum(len(result.matches) for result in self._results):,}",
            "first match": f"after {median} (median)",
            "cancelled": f"{self._stopped} searches of workers, {sum(pool.orphans for pool in pools)} of them left behind",
            "evictions": f"{sum(pool.evicted for pool in pools)}",
            "reconnects": f"{opened - len(pools)}",
        }
        for name, value in totals.items():
            self._screen.say((f"  {name:12}", "dim"), value)

    def _tell_stopped(self, before: Sequence[ShareStats], after: Sequence[ShareStats]) -> None:
        """What the workers counted meanwhile, in their own processes."""
        for old, new in zip(before, after, strict=True):
            stopped, read = new.stopped - old.stopped, new.files_read - old.files_read
            state = "stopped" if stopped else "done" if new.started > old.started else "not begun, so done"
            self._screen.say(
                f"    {new.share}: {state} after {read:,} of {new.files:,} files, {new.running} running now"
            )
            self._stopped += stopped
            self._expect(new.running == 0, f"{new.share} was still searching for a caller who had left")

    async def _collect(self, query: Query, *, within: float = math.inf) -> Result:
        result = Result(query)
        self._results.append(result)

        def show(match: Match) -> None:
            if len(result.matches) <= SHOWN:
                self._screen.match(match)

        await result.collect(self._gateway, show, within=within)
        return result

    def _expect(self, truth: bool, otherwise: str) -> None:
        if not truth:
            self._faults.append(otherwise)


def _row(entry: ShareStats) -> tuple[str, ...]:
    numbers = (f"{entry.files:,}", f"{entry.lines:,}", f"{entry.size / 1e6:.1f}", f"{entry.trigrams:,}")
    return (entry.share, str(entry.pid), *numbers, duration(entry.build_seconds))


def _tally(result: Result) -> str:
    first = f"the first after {duration(result.first_after)}, " if result.matches else ""
    return f"{counted(len(result.matches), 'match', 'matches')}, {first}all of it after {duration(result.seconds)}"


def _check(root: Path, shares: Sequence[str], results: Sequence[Result]) -> list[str | None]:
    scan = PlainScan(root, shares)
    return [scan.fault_of(result) for result in results]
