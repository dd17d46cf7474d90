"""N01, N02, N03, N04, P01, P02, Rule 5: peers that die: how long it takes the other side to notice.

Stopped and killed processes are watched from here, on either side of their connections. Where packets are lost, both
sides are here, each with a socket on its own machine (see tests/faults/namespaces.py), and both are watched.

A time is that from the fault on. One try is one fault of its own, at its own moment between two heartbeats: they divide
the interval evenly. It hits a connection without calls and one with calls in flight, and each of the two counts. Their
last byte has always been a heartbeat's. All tries of one kind of fault run side by side, apart from the kills, which
the others would disturb.

A fault's moment is taken before the kernel is told to drop, so the time that this takes counts against us. A server is
looked at every 10 ms where it has no handler to be cancelled.
"""

from __future__ import annotations

import logging
import math
import random
import signal
import statistics
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, get_args

import trio

import trio_rpc
from tests.faults.namespaces import Direction, Pair, Unavailable, open_pair
from tests.faults.watched import Loss, Naps, Watched, cut, open_watched, watch_client, watch_server
from trio_rpc import Heartbeat

from .parts import Part, Parts, open_parts, until
from .report import Proof, Report

__all__ = ["PROOF", "Findings"]

INTERVAL = 1.0
SHORT, DEFAULT = Heartbeat(INTERVAL, 1), Heartbeat()
LEAST, MOST = 1.0, 2.3
"""Seconds, at 1 s + 1 s: the last byte came at most an interval before the fault, and at once before it at least."""
MOST_BY_DEFAULT = 15.5
MOST_KILLED = 0.05
CALLS: Final = (0, 5)
"""In flight on the one and the other connection of a try."""
FIRST_PORT = 20_000
GROUPS = 3
"""The tries of one direction begin in so many groups, so that their commands to the kernel do not delay each other."""
DROPPED: dict[Direction, str] = {
    "both": "all packets dropped",
    "to_server": "packets to the server dropped",
    "to_client": "packets to the client dropped",
}
FAULTS = ["server stopped", "client stopped", *DROPPED.values(), "server killed", "client killed"]
COLUMNS = ["fault", "heartbeat", "watched side", "seen", "min", "median", "max"]


@dataclass(frozen=True)
class Size:
    """How much is enough."""

    tries: int
    victims: int
    """Processes that are stopped; each of them several times."""
    by_default: bool
    """Whether the default heartbeat is tried, which takes 15 s."""
    slack: float
    """Seconds that are granted to a busy machine, where nothing is measured."""


FULL, QUICK = Size(20, 5, True, 0.0), Size(2, 2, False, 3.0)


@dataclass
class Findings:
    """Seconds from fault to notice, by fault, heartbeat and watched side; and how many there had to be."""

    seconds: defaultdict[tuple[str, Heartbeat, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    due: defaultdict[tuple[str, Heartbeat, str], int] = field(default_factory=lambda: defaultdict(int))

    def note(self, fault: str, beat: Heartbeat, side: str, at: float, losses: Sequence[Loss], due: int) -> None:
        """Note what one side saw of one fault."""
        self.seconds[fault, beat, side] += [loss.at - at for loss in losses]
        self.due[fault, beat, side] += due

    def rows(self) -> list[list[str]]:
        """What a table says about them."""
        rows = []
        for fault, beat, side in sorted(self.due, key=lambda key: (key[1] == DEFAULT, FAULTS.index(key[0]), key[2])):
            seconds = self.seconds[fault, beat, side]
            shown = [f"{function(seconds):.3f} s" for function in (min, statistics.median, max)] if seconds else []
            seen = f"{len(seconds)} of {self.due[fault, beat, side]}"
            rows.append([fault, f"{beat.interval:g} s + {beat.timeout:g} s", side, seen, *shown])
        return rows

    def judge(
        self, report: Report, promised: str, faults: Sequence[str], beat: Heartbeat, least: float, most: float
    ) -> None:
        """Hold all that was found of some faults against what is promised."""
        keys = [key for key in self.due if key[0] in faults and key[1] == beat]
        seconds = [taken for key in keys for taken in self.seconds[key]]
        due = sum(self.due[key] for key in keys)
        within = sum(least <= taken <= most for taken in seconds)
        span = f"{min(seconds):.3f} to {max(seconds):.3f} s" if seconds else "nothing was seen"
        report.bar(promised, f"{within} of {due} within, {span}", within == due > 0)


def run(quick: bool, seed: int) -> Report:
    """Kill, stop and cut off peers, and watch the others."""
    logger = logging.getLogger("trio_rpc.connection")
    level = logger.level
    logger.setLevel(logging.ERROR)  # Each eviction is a warning.
    try:
        return trio.run(_run, QUICK if quick else FULL, random.Random(seed))
    finally:
        logger.setLevel(level)


async def _run(size: Size, rng: random.Random) -> Report:
    report, found = Report(COLUMNS), Findings()
    async with open_parts() as parts:
        for _ in range(size.tries):
            await _kill_server(parts, found, rng)
            await _kill_client(parts, found, rng)
        async with trio.open_nursery() as nursery:
            waits = [INTERVAL + (number + rng.uniform(0.1, 0.6)) / size.tries for number in range(size.tries)]
            for victim in range(size.victims):
                nursery.start_soon(_stop_server, parts, found, SHORT, waits[victim :: size.victims])
                nursery.start_soon(_stop_client, parts, found, SHORT, waits[victim :: size.victims])
            if size.by_default:  # At the worst moment, right behind the last byte.
                nursery.start_soon(_stop_server, parts, found, DEFAULT, [0.0])
                nursery.start_soon(_stop_client, parts, found, DEFAULT, [0.0])
            try:
                # A run of its own, as a run's sockets are made on one machine at a time.
                await trio.to_thread.run_sync(_cut_off, found, waits, size)
            except Unavailable as exc:
                report.check(f"what lost packets do cannot be measured here: {exc}", False)
    report.rows += found.rows()
    _judge(report, found, size)
    return report


def _judge(report: Report, found: Findings, size: Size) -> None:
    most = MOST + size.slack
    text = "at 1 s + 1 s, on both sides: seen in 1.0 to 2.3 s, 20 of 20, idle and with calls"
    for faults, what in (
        (["server stopped", "client stopped"], "SIGSTOP"),
        ([DROPPED["both"]], "packets dropped both ways"),
        ([DROPPED["to_server"], DROPPED["to_client"]], "packets dropped one way, either one"),
    ):
        found.judge(report, f"{what} {text}", faults, SHORT, LEAST, most)
    if size.by_default:
        text = "the same by default (10 s + 5 s), right behind the last byte: seen within 15.5 s"
        found.judge(report, text, FAULTS, DEFAULT, 0.0, MOST_BY_DEFAULT + size.slack)
    text = "kill -9, of either side: the other knows within 50 ms, 20 of 20, idle and with calls"
    found.judge(report, text, ["server killed", "client killed"], SHORT, 0.0, MOST_KILLED + size.slack)


# -- processes ---------------------------------------------------------------------------------------------------------


async def _kill_server(parts: Parts, found: Findings, rng: random.Random) -> None:
    part, address = await parts.start("napper")
    await _watch_from_client(part, address, "server killed", signal.SIGKILL, found, SHORT, rng.uniform(0.1, 0.3))
    await part.kill()


async def _kill_client(parts: Parts, found: Findings, rng: random.Random) -> None:
    async with _servers(SHORT) as servers:
        part = await _client_of(parts, servers)
        await _watch_from_servers(part, servers, "client killed", signal.SIGKILL, found, SHORT, rng.uniform(0.1, 0.3))
        await part.kill()


async def _stop_server(parts: Parts, found: Findings, beat: Heartbeat, waits: Sequence[float]) -> None:
    part, address = await parts.start("napper")
    for wait in waits:
        await _watch_from_client(part, address, "server stopped", signal.SIGSTOP, found, beat, wait)
        part.signal(signal.SIGCONT)


async def _stop_client(parts: Parts, found: Findings, beat: Heartbeat, waits: Sequence[float]) -> None:
    async with _servers(beat) as servers:
        part = await _client_of(parts, servers)
        for wait in waits:
            await _watch_from_servers(part, servers, "client stopped", signal.SIGSTOP, found, beat, wait)
            part.signal(signal.SIGCONT)


async def _watch_from_client(
    part: Part, address: str, fault: str, number: int, found: Findings, beat: Heartbeat, wait: float
) -> None:
    """Connect, wait, send the server a signal, and see how long its clients take."""
    losses: list[Loss] = []
    at = math.nan
    async with AsyncExitStack() as stack:
        pools = [await stack.enter_async_context(trio_rpc.open_pool(address, heartbeat=beat)) for _ in CALLS]
        with trio.move_on_after(_patience(beat)):
            async with trio.open_nursery() as nursery:
                for pool, calls in zip(pools, CALLS, strict=True):
                    await pool.connect()
                    await nursery.start(watch_client, pool, [pool.stub(Naps).nap] * calls, losses)
                await trio.sleep(wait)
                at = trio.current_time()
                part.signal(number)
    found.note(fault, beat, "client", at, losses, len(CALLS))


Servers = list[tuple[trio_rpc.Server, Naps]]


@asynccontextmanager
async def _servers(beat: Heartbeat) -> AsyncIterator[Servers]:
    """A server for each connection of a client, so that each can be seen to go."""
    async with AsyncExitStack() as stack:
        servers: Servers = []
        for _ in CALLS:
            naps = Naps()
            opening = trio_rpc.open_server(naps, "tcp://127.0.0.1:0", heartbeat=beat)
            servers.append((await stack.enter_async_context(opening), naps))
        yield servers


async def _client_of(parts: Parts, servers: Servers) -> Part:
    calls = {server.addresses[0]: count for (server, _), count in zip(servers, CALLS, strict=True)}
    part, _ = await parts.start("napper", calls=calls)
    return part


async def _watch_from_servers(
    part: Part, servers: Servers, fault: str, number: int, found: Findings, beat: Heartbeat, wait: float
) -> None:
    """Have the client connect, wait, send it a signal, and see how long its servers take."""
    losses: list[Loss] = []
    at = math.nan
    with trio.move_on_after(_patience(beat)):
        await until(lambda: _calls(servers) == CALLS, pause=0.01)
        await trio.sleep(wait)
        at = trio.current_time()
        part.signal(number)
        async with trio.open_nursery() as nursery:
            for server, naps in servers:
                nursery.start_soon(watch_server, server, naps, losses)
    found.note(fault, beat, "server", at, losses, len(CALLS))


def _calls(servers: Servers) -> tuple[int, ...]:
    """How many each client has under way; -1 for one that is not there."""
    return tuple(naps.napping if server.statistics().connections else -1 for server, naps in servers)


def _patience(beat: Heartbeat) -> float:
    """Seconds after which a fault counts as not seen."""
    return 3 * ((beat.interval or 0.0) + beat.timeout) + 5


# -- packets -----------------------------------------------------------------------------------------------------------


def _cut_off(found: Findings, waits: Sequence[float], size: Size) -> None:
    with open_pair() as pair:
        trio.run(_cut_all, pair, found, waits, size)


async def _cut_all(pair: Pair, found: Findings, waits: Sequence[float], size: Size) -> None:
    """Cut off connections of two machines, each pair of them by itself."""
    ports = iter(range(FIRST_PORT, FIRST_PORT + 1000))
    async with AsyncExitStack() as stack:
        stack.enter_context(pair.names())
        tries: list[tuple[Direction, Heartbeat, float, float]] = [
            (direction, SHORT, wait, 1.5 * (number % GROUPS))
            for direction in get_args(Direction)
            for number, wait in enumerate(waits)
        ]
        if size.by_default:
            tries += [(direction, DEFAULT, 0.0, 0.0) for direction in get_args(Direction)]
        watched = [
            [await stack.enter_async_context(open_watched(pair, next(ports), beat, calls=calls)) for calls in CALLS]
            for _, beat, _, _ in tries
        ]
        async with trio.open_nursery() as nursery:
            for (direction, beat, wait, delay), both in zip(tries, watched, strict=True):
                nursery.start_soon(_cut, pair, found, direction, both, beat, wait, delay)


async def _cut(
    pair: Pair,
    found: Findings,
    direction: Direction,
    watched: list[Watched],
    beat: Heartbeat,
    wait: float,
    delay: float,
) -> None:
    await trio.sleep(delay)
    at = math.nan
    with trio.move_on_after(_patience(beat)):
        at = await cut(pair, direction, watched, wait)
    for side in ("client", "server"):
        losses = [loss for each in watched for loss in (each.client_losses if side == "client" else each.server_losses)]
        found.note(DROPPED[direction], beat, side, at, losses, len(watched))


PROOF = Proof("stopped, killed and cut off peers: how soon the other side knows, on both sides", run)
