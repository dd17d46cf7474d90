"""Plots as SVG, written by hand: bars, and lines on logarithmic axes. No library, and small differences in a diff."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal, Protocol

__all__ = ["Bar", "BarPanel", "Line", "LinePanel", "figure"]

WIDTH = 330
GAP = 20
COLUMNS = 3
ROW = 17
LABELS = 105
VALUES = 62
PLOT_HEIGHT = 190
STYLE = """
text { font: 11px system-ui, sans-serif; fill: #333 }
.title { font-weight: 600; font-size: 13px }
.small { font-size: 10px; fill: #666 }
.end { text-anchor: end } .middle { text-anchor: middle }
.own { fill: #16803c } .peer { fill: #7c93b2 } .limit { fill: #d5d5cf }
.grid { stroke: #e4e4e0; fill: none }
.line0 { stroke: #16803c; fill: none; stroke-width: 2 } .line1 { stroke: #b45309; fill: none; stroke-width: 2 }
.dot0 { fill: #16803c } .dot1 { fill: #b45309 }
"""


class Panel(Protocol):
    """A part of a figure."""

    @property
    def height(self) -> int:
        """Of what is drawn; the width is WIDTH."""
        ...

    def draw(self) -> Iterator[str]:
        """Elements, from (0, 0) on."""
        ...


@dataclass(frozen=True)
class Bar:
    """A bar and its label, and a text for its value."""

    label: str
    value: float
    text: str
    kind: Literal["own", "peer", "limit"]


@dataclass(frozen=True)
class BarPanel:
    """Horizontal bars from zero."""

    title: str
    unit: str
    bars: Sequence[Bar]

    @property
    def height(self) -> int:
        return 30 + ROW * len(self.bars)

    def draw(self) -> Iterator[str]:
        yield text(0, 14, self.title, "title")
        yield text(WIDTH, 14, self.unit, "small end")
        room = WIDTH - LABELS - VALUES
        longest = max((bar.value for bar in self.bars), default=1.0)
        for i, bar in enumerate(self.bars):
            y = 26 + i * ROW
            width = max(room * bar.value / longest, 0.5)
            yield text(LABELS - 6, y + 11, bar.label, "end")
            yield f'<rect x="{LABELS}" y="{y}" width="{width:.1f}" height="{ROW - 4}" class="{bar.kind}"/>'
            yield text(LABELS + width + 5, y + 11, bar.text, "small")


@dataclass(frozen=True)
class Line:
    """A labelled line."""

    label: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class LinePanel:
    """Lines on two logarithmic axes, with a grid line at each power of ten."""

    title: str
    unit: str
    axis: str
    lines: Sequence[Line]

    @property
    def height(self) -> int:
        return PLOT_HEIGHT + 62

    def draw(self) -> Iterator[str]:
        points = [point for line in self.lines for point in line.points if min(point) > 0]
        across, up = Scale.over([x for x, _ in points]), Scale.over([y for _, y in points])
        yield text(0, 14, self.title, "title")
        yield text(WIDTH, 14, self.unit, "small end")
        yield from self._grid(across, up)
        for i, line in enumerate(self.lines):
            places = [(40 + across.at(x) * (WIDTH - 60), self._down(up, y)) for x, y in line.points if min(x, y) > 0]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            yield f'<polyline points="{path}" class="line{i}"/>'
            yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" class="dot{i}"/>' for x, y in places)
            yield f'<rect x="{40 + i * 70}" y="{self.height - 9}" width="10" height="3" class="dot{i}"/>'
            yield text(54 + i * 70, self.height - 4, line.label, "small")

    def _down(self, up: Scale, value: float) -> float:
        return 30 + (1 - up.at(value)) * PLOT_HEIGHT

    def _grid(self, across: Scale, up: Scale) -> Iterator[str]:
        for power in up.powers():
            y = self._down(up, 10.0**power)
            yield f'<path d="M40 {y:.1f} H{WIDTH - 20}" class="grid"/>'
            yield text(36, y + 4, short(10.0**power), "small end")
        for power in across.powers():
            x = 40 + across.at(10.0**power) * (WIDTH - 60)
            yield f'<path d="M{x:.1f} 30 V{30 + PLOT_HEIGHT}" class="grid"/>'
            yield text(x, 30 + PLOT_HEIGHT + 13, short(10.0**power), "small middle")
        yield text(WIDTH - 20, self.height - 4, self.axis, "small end")


@dataclass(frozen=True)
class Scale:
    """Values -> 0 to 1, by their logarithms; from a whole power of ten to another."""

    low: int
    high: int

    @classmethod
    def over(cls, values: Sequence[float]) -> Scale:
        """A scale that holds these values."""
        logs = [math.log10(value) for value in values] or [0.0]
        low = math.floor(min(logs))
        return cls(low, max(math.ceil(max(logs) - 1e-9), low + 1))

    def at(self, value: float) -> float:
        """Where a value stands."""
        return (math.log10(value) - self.low) / (self.high - self.low)

    def powers(self) -> Iterable[int]:
        """The powers of ten in it."""
        return range(self.low, self.high + 1)


def short(value: float) -> str:
    """A power of ten, in few letters."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:g}{letter}"
    return f"{value:g}"


def text(x: float, y: float, content: str, kind: str = "") -> str:
    """A text element."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(content)}</text>'


def figure(panels: Sequence[Panel]) -> str:
    """The panels, in rows of COLUMNS, on white."""
    elements, y = [], GAP
    for start in range(0, len(panels), COLUMNS):
        row = panels[start : start + COLUMNS]
        for i, panel in enumerate(row):
            content = "\n".join(panel.draw())
            elements.append(f'<g transform="translate({GAP + i * (WIDTH + GAP)} {y})">\n{content}\n</g>')
        y += max(panel.height for panel in row) + GAP
    width = GAP + min(len(panels), COLUMNS) * (WIDTH + GAP)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" width="{width}" height="{y}">'
    background = f'<rect width="{width}" height="{y}" rx="6" fill="#fff"/>'
    return "\n".join([head, f"<style>{STYLE}</style>", background, *elements, "</svg>"]) + "\n"
