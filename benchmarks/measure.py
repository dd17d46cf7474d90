"""What is measured inside a client's process: a window of calls, their latencies, CPU and memory on both sides.

A round of calls has a warm-up, then a window. Each caller keeps its own latencies, so that the shares of many callers
can be compared; the clock is read once between two calls, and a call that began in the window counts. A round of a
stream is one run of as many items as fill the window, by the rate of a short one before it. Standard library only.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .workloads import Setting

__all__ = ["Client", "Command", "Latencies", "Meter", "Sample", "Window", "answer_commands", "cpu_of", "rss_of"]

now = time.perf_counter
TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Command:
    """One round, as the command line asks for it."""

    seconds: float
    """Length of the window."""
    warm_up: float
    """Seconds before it."""
    connections: int
    """Connections to open, for `idle`."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What one round gave. Times in seconds, memory in bytes; None where it does not apply."""

    count: int
    """Calls, items or connections."""
    elapsed: float
    rate: float = 0.0
    """Per second: calls, items, or MiB."""
    p50: float | None = None
    p99: float | None = None
    client_cpu: float | None = None
    """CPU per call or item."""
    server_cpu: float | None = None
    worst_share: float | None = None
    """The worst caller's p99 over the median caller's."""
    slowdown: float | None = None
    """p99 beside other load over p99 alone."""
    server_memory: float | None = None
    """Resident bytes per connection."""
    client_memory: float | None = None


@dataclass
class Client:
    """What the drivers of a client know: the setting, and whose CPU and memory counts as the server's."""

    setting: Setting
    server_pids: list[int]


def cpu_of(pid: int) -> float:
    """CPU seconds of a process, all threads, user and system; in steps of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def rss_of(pid: int) -> int:
    """Resident bytes of a process."""
    with open(f"/proc/{pid}/smaps_rollup") as lines:
        for line in lines:
            if line.startswith("Rss:"):
                return int(line.split()[1]) * 1024
    raise ValueError(f"process {pid} shows no resident memory")


class Meter:
    """CPU and the clock, from `start()` to `stop()`."""

    def __init__(self, client: Client) -> None:
        self._pids = client.server_pids
        self.elapsed = self.client_cpu = self.server_cpu = 0.0

    def start(self) -> None:
        """Begin."""
        self.client_cpu, self.server_cpu, self.elapsed = time.process_time(), self._servers(), now()

    def stop(self) -> None:
        """End: what was points in time are differences now."""
        self.elapsed = now() - self.elapsed
        self.client_cpu = time.process_time() - self.client_cpu
        self.server_cpu = self._servers() - self.server_cpu

    def _servers(self) -> float:
        return sum(map(cpu_of, self._pids))

    def sample(self, count: int, per_unit: float = 1.0, **more: Any) -> Sample:
        """What was measured, over so many calls or items, each worth `per_unit` in the rate."""
        count = max(count, 1)
        return Sample(
            count=count,
            elapsed=self.elapsed,
            rate=count * per_unit / self.elapsed,
            client_cpu=self.client_cpu / count,
            server_cpu=self.server_cpu / count,
            **more,
        )


Latencies = list[float]


@dataclass
class Window:
    """The measured stretch of a round of calls. The first caller that sees it open starts the meter."""

    meter: Meter
    opens: float
    closes: float
    latencies: list[Latencies] = field(default_factory=list)
    """One list for each caller."""
    _started: bool = False

    @classmethod
    def of(cls, client: Client, command: Command) -> Window:
        """A window that opens after the warm-up."""
        opens = now() + command.warm_up
        return cls(Meter(client), opens, opens + command.seconds)

    def caller(self) -> Latencies:
        """The list that one more caller appends its latencies to."""
        self.latencies.append([])
        return self.latencies[-1]

    def start(self) -> None:
        """Called by every caller as it begins to measure; only the first one counts."""
        if not self._started:
            self._started = True
            self.meter.start()

    def sample(self, per_call: float = 1.0) -> Sample:
        """Called after the last caller has ended."""
        self.meter.stop()
        together = sorted(latency for latencies in self.latencies for latency in latencies)
        return self.meter.sample(
            len(together),
            per_call,
            p50=quantile(together, 0.5),
            p99=quantile(together, 0.99),
            worst_share=worst_share(self.latencies, self.meter.elapsed),
        )


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """The value below which this share of the (sorted) values lies; None of none."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else None


def worst_share(latencies: Sequence[Latencies], elapsed: float) -> float | None:
    """The worst caller's p99 over the median caller's; None for a single one. One that never had an answer counts as
    having waited all the time.
    """
    if len(latencies) < 2:
        return None
    tails = sorted(quantile(sorted(of_one), 0.99) or elapsed for of_one in latencies)
    return tails[-1] / tails[len(tails) // 2]


def stream_length(short_run: int, elapsed: float, seconds: float) -> int:
    """Items that will take about `seconds`, as a short run was that quick; rather fewer for a very slow peer."""
    return max(short_run, int(short_run / elapsed * seconds))


def memory_sample(client: Client, before: tuple[int, int], connections: int, elapsed: float) -> Sample:
    """Resident memory per connection on both sides, since `before` (see `memory_now`)."""
    ours, theirs = memory_now(client)
    return Sample(
        count=connections,
        elapsed=elapsed,
        client_memory=(ours - before[0]) / connections,
        server_memory=(theirs - before[1]) / connections,
    )


def memory_now(client: Client) -> tuple[int, int]:
    """Resident bytes: this process, and the servers together."""
    return rss_of(os.getpid()), sum(map(rss_of, client.server_pids))


def answer_commands(drive: Callable[[Command], Sample]) -> None:
    """Be a client process: one answer for each command on stdin, until it ends."""
    print("READY", flush=True)
    for line in sys.stdin:
        try:
            answer: dict[str, Any] = asdict(drive(Command(**json.loads(line))))
        except BaseException as error:
            traceback.print_exc()
            first = first_of(error)
            answer = {"error": f"{type(first).__name__}: {first}"[:300]}
            if not isinstance(error, Exception):
                raise
        print("RESULT", json.dumps(answer), flush=True)


def first_of(error: BaseException) -> BaseException:
    """The first exception that a group stands for."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
