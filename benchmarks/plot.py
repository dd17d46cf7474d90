"""The results of a run as a figure: a panel of bars for each workload."""

from __future__ import annotations

from .registry import PEERS
from .results import Results
from .svg import Bar, BarPanel, figure
from .workloads import WORKLOADS

__all__ = ["results_svg"]


def results_svg(results: Results) -> str:
    """Rates, the quickest first; for idle connections the server's memory, the smallest first."""
    return figure([panel_of(results, key) for key in WORKLOADS if key in results.outcomes])


def panel_of(results: Results, key: str) -> BarPanel:
    """One workload."""
    memory = WORKLOADS[key].setting.kind == "idle"
    values = {
        peer: results.median(key, peer, "server_memory" if memory else "rate") or 0.0
        for peer in results.outcomes[key].samples
    }
    if memory:
        values = {peer: value / 1024 for peer, value in values.items()}
    ordered = sorted(values, key=values.__getitem__, reverse=not memory)
    bars = [Bar(peer, values[peer], f"{values[peer]:,.{int(memory)}f}", PEERS[peer].group) for peer in ordered]
    unit = "KiB of server memory: less is better" if memory else WORKLOADS[key].unit
    return BarPanel(WORKLOADS[key].title, unit, bars)
