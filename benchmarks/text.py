"""Numbers and tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

__all__ = ["Row", "number", "table", "times"]

Row: TypeAlias = Sequence[str]


def number(value: float | None, digits: int = 0) -> str:
    """A number, with a dash for none."""
    return "-" if value is None else f"{value:,.{digits}f}"


def times(value: float | None) -> str:
    """A ratio, with the digits that matter."""
    return "-" if value is None else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def table(head: Row, rows: Iterable[Row]) -> str:
    """A table; the first column is of words, the others of numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
