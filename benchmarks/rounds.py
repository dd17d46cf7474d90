"""Interleaved rounds: A B C, A B C, A B C, so that a slow drift of the machine meets all peers alike.

Only the peer whose turn it is works; the others wait for their next command. A round is disturbed when other processes
used more than DISTURBED of one CPU meanwhile; it is repeated, a few times, and if the machine does not calm down the
last one counts and is marked.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from .measure import TICK, Command, Sample
from .processes import PeerFailed, Running, start_peer
from .registry import PEERS
from .workloads import CONNECTIONS, Setting, Workload

__all__ = ["Options", "Outcome", "estimate", "measure_workload", "peers_for"]

DISTURBED = 0.15


@dataclass(frozen=True, kw_only=True)
class Options:
    """How long and how often."""

    rounds: int = 3
    seconds: float = 1.5
    warm_up: float = 0.4
    connections: int = CONNECTIONS
    tries: int = 5
    """How often a disturbed round is run, at most."""
    pin: bool = False
    at_once: bool = False
    """All peers and workloads at the same time, in the environment that runs this: for a check that they work."""


@dataclass
class Outcome:
    """What a workload gave: for each peer its samples, one for each round, or why it has none."""

    samples: dict[str, list[Sample]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    disturbed: dict[str, int] = field(default_factory=dict)
    """Rounds that other processes disturbed, to the end."""


def peers_for(workload: Workload, names: Sequence[str]) -> list[str]:
    """Those of the peers that can do it."""
    return [name for name in names if workload.key in PEERS[name].workloads]


def estimate(pairs: int, options: Options) -> float:
    """Seconds that so many pairs of peer and workload will take on a quiet machine."""
    a_round = options.seconds + options.warm_up + 0.3
    return pairs * (options.rounds * a_round + 1.0)


async def measure_workload(
    workload: Workload, names: Sequence[str], options: Options, certificate: str = ""
) -> Outcome:
    """Start the peers, run the rounds, end the peers."""
    setting = workload.setting
    if setting.certificate:
        setting = replace(setting, certificate=certificate)
    outcome = Outcome()
    async with all_running(names, setting, options, outcome) as running:
        for _ in range(1 if setting.kind == "idle" else options.rounds):
            for peer in list(running):
                try:
                    sample, quiet = await quiet_round(peer, options)
                except PeerFailed as failure:
                    outcome.failures[peer.name] = str(failure)
                    running.remove(peer)
                else:
                    outcome.samples.setdefault(peer.name, []).append(sample)
                    outcome.disturbed[peer.name] = outcome.disturbed.get(peer.name, 0) + (not quiet)
    return outcome


@asynccontextmanager
async def all_running(
    names: Sequence[str], setting: Setting, options: Options, outcome: Outcome
) -> AsyncIterator[list[Running]]:
    """Run the processes of all peers for the length of a block. Those that do not start are noted and left out."""
    done = trio.Event()
    running: dict[str, Running] = {}

    async def keep(name: str, task_status: trio.TaskStatus[None]) -> None:
        try:
            async with start_peer(name, setting, pin=options.pin, here=options.at_once) as peer:
                running[name] = peer
                task_status.started()
                await done.wait()
        except PeerFailed as failure:
            outcome.failures[name] = str(failure)
            task_status.started()

    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as starting:
            for name in names:
                starting.start_soon(nursery.start, keep, name)
        yield [running[name] for name in names if name in running]
        done.set()


async def quiet_round(peer: Running, options: Options) -> tuple[Sample, bool]:
    """One round, repeated while it is disturbed; says whether the last try was quiet."""
    command = Command(options.seconds, options.warm_up, options.connections)
    attempt = 0
    while True:
        start, busy, ours = time.monotonic(), busy_seconds(), own_seconds(peer)
        sample = await peer.round(command)
        others = (busy_seconds() - busy) - (own_seconds(peer) - ours)
        quiet = others <= DISTURBED * (time.monotonic() - start)
        attempt += 1
        if quiet or attempt >= options.tries:
            return sample, quiet
        await trio.sleep(2 * attempt - 1)


def busy_seconds() -> float:
    """CPU seconds that the whole machine has worked, or has been kept from working by its host."""
    user, nice, system, _idle, _wait, irq, soft_irq, steal = Path("/proc/stat").read_text().split()[1:9]
    return sum(map(int, (user, nice, system, irq, soft_irq, steal))) / TICK


def own_seconds(peer: Running) -> float:
    """CPU seconds of the peer's processes and of this one."""
    return peer.cpu() + time.process_time()
