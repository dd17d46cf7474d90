"""Growth: what a call costs as one number grows by powers of ten, and all else stays as it is.

Cost is CPU, client and server apart, and not time: it tells what grows, whatever else the machine does. Each point is a
workload of its own, so a point is measured like any other workload.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .results import Metric, Results
from .svg import Line, LinePanel, figure
from .text import number, table
from .workloads import MIB, Setting, Workload

__all__ = ["CURVES", "growth_report", "growth_svg", "growth_workloads"]

TENS = (1, 10, 100, 1000, 10_000)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What grows, where it is measured, and the setting of each point."""

    key: str
    title: str
    axis: str
    points: tuple[int, ...]
    setting: Callable[[int], Setting]
    expected: str
    """What a reader should see, and why."""

    def workloads(self) -> Iterator[tuple[int, Workload]]:
        """Each point, and its workload."""
        for point in self.points:
            title = f"{self.title}: {point:,}"
            yield (
                point,
                Workload(
                    key=f"{self.key}_{point}",
                    title=title,
                    unit="calls/s",
                    setting=self.setting(point),
                    about=self.title,
                ),
            )


CURVES: dict[str, Curve] = {
    curve.key: curve
    for curve in (
        Curve(
            key="callers",
            title="callers on one connection",
            axis="callers",
            points=TENS,
            setting=lambda callers: Setting(callers=callers),
            expected="falls from the first callers on, as they share wake-ups and writes; then stays flat",
        ),
        Curve(
            key="connections",
            title="connections of a pool, 64 callers",
            axis="connections",
            points=TENS,
            setting=lambda connections: Setting(callers=64, connections=connections),
            expected="rises until each caller has a connection of its own and shares nothing; then stays flat",
        ),
        Curve(
            key="bytes",
            title="bytes in a message, 1 caller",
            axis="bytes",
            points=(10, 100, 1000, 10_000, 100_000, MIB, 10 * MIB, 64 * MIB),
            setting=lambda size: Setting(kind="large", size=size),
            expected="flat while the call itself costs more than its bytes; then in step with the bytes",
        ),
        Curve(
            key="methods",
            title="methods of the service, 64 callers",
            axis="methods",
            points=TENS,
            setting=lambda methods: Setting(callers=64, methods=methods),
            expected="flat: a method is found by one look into a dict",
        ),
        Curve(
            key="endpoints",
            title="endpoints with a pool each, 64 callers",
            axis="endpoints",
            points=(1, 10, 100),
            setting=lambda endpoints: Setting(callers=64, endpoints=endpoints),
            expected="rises until each caller has an endpoint of its own, as with connections; then stays flat",
        ),
    )
}


def growth_workloads(keys: list[str]) -> dict[str, Workload]:
    """The workloads of these curves, by their keys."""
    return {workload.key: workload for key in keys for _, workload in CURVES[key].workloads()}


SIDES: tuple[tuple[str, Metric], ...] = (("client", "client_cpu"), ("server", "server_cpu"))


def costs(results: Results, curve: Curve, peer: str, side: Metric) -> list[tuple[float, float]]:
    """Points of a curve that were measured: what grew, and microseconds of CPU per call on that side."""
    points = []
    for point, workload in curve.workloads():
        cost = results.median(workload.key, peer, side)
        if cost is not None:
            points.append((float(point), cost * 1e6))
    return points


def growth_report(results: Results, peer: str) -> str:
    """A table for each curve."""
    parts = []
    for curve in CURVES.values():
        client, server = (dict(costs(results, curve, peer, side)) for _, side in SIDES)
        if client:
            rows = [
                [number(point), number(cost, 1), number(server.get(point), 1), number(cost + server[point], 1)]
                for point, cost in client.items()
            ]
            head = [curve.axis, "client, CPU us per call", "server", "together"]
            parts.append(
                f"## {curve.title[0].upper()}{curve.title[1:]}\n\nExpected: {curve.expected}.\n\n{table(head, rows)}"
            )
    return "\n\n".join(parts) + "\n"


def growth_svg(results: Results, peer: str) -> str:
    """A panel for each curve."""
    panels = [
        LinePanel(
            curve.title,
            "CPU us per call",
            curve.axis,
            [Line(name, costs(results, curve, peer, side)) for name, side in SIDES],
        )
        for curve in CURVES.values()
        if costs(results, curve, peer, "client_cpu")
    ]
    return figure(panels)
