"""How quick we mean to be: each bar with its must and its aim, and what a run says to it.

A bar compares two peers in the same rounds, or a peer with a number. The pairs that the bars need are `PAIRS`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .results import Metric, Results
from .text import number, table, times

__all__ = ["BARS", "OURS", "Bar", "bars_report", "pairs_for_bars"]

OURS = "trio_rpc"
GRPC = "grpc.aio"


@dataclass(frozen=True, kw_only=True)
class Bar:
    """`peer` is to reach `must`, and better `aim`, in `metric`: times `against`, or in `unit` where there is none."""

    workload: str
    title: str
    peer: str = OURS
    against: str = ""
    of: str = ""
    """The workload that `against` has its value from, if not this one."""
    metric: Metric = "rate"
    must: float | None = None
    aim: float | None = None
    at_most: bool = False
    """The value shall be low."""
    unit: str = "x"
    scale: float = 1.0
    """What one unit is in the metric."""

    def measured(self, results: Results) -> float | None:
        """The value, in the bar's unit."""
        if self.against:
            return results.ratio(self.workload, self.peer, self.against, self.metric, of=self.of)
        value = results.median(self.workload, self.peer, self.metric)
        return None if value is None else value / self.scale

    def verdict(self, value: float | None) -> str:
        """Met, or missed by how much."""
        if value is None:
            return "not measured"
        for wanted, missed in ((self.must, "MISSED"), (self.aim, "aim missed")):
            if wanted is not None and self.shortfall(value, wanted) > 0:
                return f"{missed} by {self.shortfall(value, wanted):.0%}"
        return "met" if self.aim is None else "aim met"

    def shortfall(self, value: float, wanted: float) -> float:
        """The share that is lacking; 0 or less if none is."""
        return value / wanted - 1 if self.at_most else 1 - value / wanted


def _against_grpc(workload: str, title: str, must: float, aim: float, **more: object) -> Bar:
    return Bar(workload=workload, title=f"{title}: over {GRPC}", against=GRPC, must=must, aim=aim, **more)  # type: ignore[arg-type]


def _over(workload: str, title: str, peer: str, must: float | None, aim: float | None = None) -> Bar:
    return Bar(workload=workload, title=f"{title}: over {peer}", against=peer, must=must, aim=aim)


BARS = (
    _against_grpc("one", "1 caller", 4.0, 5.0),
    _over("one", "1 caller", "rpyc", 1.0),
    _over("one", "1 caller", "pyro5", None, 1.0),
    _over("one", "1 caller", "raw-trio", 0.7, 0.8),
    _against_grpc("64", "64 callers", 15, 20),
    _over("64", "64 callers", "aiohttp", 8),
    _over("64", "64 callers", "purerpc", 20),
    _over("64", "64 callers", "prototype", 0.6),
    _over("64", "64 callers", "hand-uvloop", 0.5, 0.7),
    Bar(
        workload="64",
        title=f"64 callers: CPU per call of {GRPC} over ours",
        peer=GRPC,
        against=OURS,
        metric="cpu",
        must=15,
        aim=25,
    ),
    _against_grpc("1000", "1000 callers", 15, 22),
    Bar(
        workload="1000",
        title="1000 callers: p99",
        metric="p99",
        must=25,
        at_most=True,
        unit="ms",
        scale=1e-3,
    ),
    Bar(workload="1000", title="1000 callers: worst p99 / median p99", metric="worst_share", must=3, at_most=True),
    _against_grpc("suspending", "64 callers, handler suspends", 9, 12),
    _against_grpc("large", "1 MiB echo", 3, 4),
    _over("large", "1 MiB echo", "aiohttp", 1),
    _against_grpc("server_stream", "server streaming", 30, 60),
    _over("server_stream", "server streaming", "aiohttp", 6),
    _against_grpc("short", "short connections", 4.5, 5.5),
    _over("short", "short connections", "pyro5", 0.75, 0.9),
    Bar(
        workload="idle",
        title="idle connection: server memory",
        metric="server_memory",
        must=12,
        aim=9,
        at_most=True,
        unit="KiB",
        scale=1024,
    ),
    Bar(
        workload="idle",
        title=f"idle connection: server memory over {GRPC}",
        against=GRPC,
        metric="server_memory",
        must=0.7,
        at_most=True,
    ),
    Bar(workload="attrs", title=f"typed payload: over {GRPC}", against=GRPC, must=10),
    Bar(
        workload="attrs",
        title=f"typed payload, with `fast`: over {GRPC}",
        peer="trio_rpc+fast",
        against=GRPC,
        aim=15,
    ),
    _against_grpc("tls", "64 callers, TLS", 10, 15),
    Bar(
        workload="pool",
        title="2 server processes over one, handler of 100 us",
        against=OURS,
        of="pool_one",
        must=1.7,
        aim=1.85,
    ),
    *(
        Bar(
            workload=f"{load}_{callers}",
            title=f"{callers} caller{'s' * (callers > 1)} beside {what}: p99 over p99 alone",
            metric="slowdown",
            must=5,
            at_most=True,
        )
        for load, what in (("message", "64 MiB messages"), ("stream", "an unread stream"))
        for callers in (1, 64)
    ),
    Bar(
        workload="shares",
        title="1000 callers' shares: worst p99 / median p99",
        metric="worst_share",
        must=3,
        at_most=True,
    ),
)


def pairs_for_bars() -> dict[str, list[str]]:
    """Workload -> the peers that its bars compare."""
    pairs: dict[str, list[str]] = {}
    for workload, peer in _sides():
        peers = pairs.setdefault(workload, [])
        if peer not in peers:
            peers.append(peer)
    return pairs


def _sides() -> Iterator[tuple[str, str]]:
    for bar in BARS:
        yield bar.workload, bar.peer
        if bar.against:
            yield bar.of or bar.workload, bar.against


def bars_report(results: Results) -> str:
    """For each bar whose peers were in the run: what was measured, and whether that is enough."""
    rows = []
    for bar in BARS:
        if results.asked(bar.workload, bar.peer) and results.asked(bar.of or bar.workload, bar.against or bar.peer):
            value = bar.measured(results)
            rows.append([bar.title, *(_cell(bar, limit) for limit in (value, bar.must, bar.aim)), bar.verdict(value)])
    return table(["bar", "measured", "must", "aim", "verdict"], rows)


def _cell(bar: Bar, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{times(value)}x" if bar.unit == "x" else f"{number(value, 1)} {bar.unit}"
