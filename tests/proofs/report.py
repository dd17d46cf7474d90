"""What a proof has found: figures in a table, and sentences that hold or do not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["Check", "Proof", "Report", "duration", "milliseconds", "percentile"]


@dataclass(frozen=True)
class Check:
    """One sentence, with its figure, and whether it is as it must be."""

    sentence: str
    holds: bool
    promised: str = ""
    """What was promised, where that is one line of the table in the reliability page; `sentence` is what was measured."""


@dataclass
class Report:
    """What one proof has found."""

    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    details: list[str] = field(default_factory=list)
    """What a reader needs to find the cause of a failure."""

    def check(self, sentence: str, holds: bool) -> None:
        """Add a sentence that must hold."""
        self.checks.append(Check(sentence, holds))

    def bar(self, promised: str, measured: str, holds: bool) -> None:
        """Add a promise that has a line of its own in the reliability page."""
        self.checks.append(Check(measured, holds, promised))

    @property
    def holds(self) -> bool:
        """True if everything holds; nothing at all proves nothing."""
        return bool(self.checks) and all(check.holds for check in self.checks)

    def show(self, console: Console) -> None:
        """Print the figures and what follows from them."""
        table = Table(*self.columns)
        for column in table.columns[1:]:
            column.justify = "right"
        for row in self.rows:
            table.add_row(*row)
        console.print(table)
        for check in self.checks:
            verdict = "[green]holds[/]" if check.holds else "[bold red]FAILS[/]"
            promised = f"{check.promised}: " if check.promised else ""
            console.print(f"{verdict}: {escape(promised + check.sentence)}", soft_wrap=True)
        for detail in self.details:
            console.print(detail, style="dim", markup=False, soft_wrap=True)


@dataclass(frozen=True)
class Proof:
    """One entry of the command's table: `run(quick, seed)` does it."""

    about: str
    run: Callable[[bool, int], Report]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them do not exceed. Raises IndexError for no values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def milliseconds(seconds: float) -> str:
    """A latency, for a table."""
    return f"{seconds * 1000:.1f} ms"


def duration(seconds: float) -> str:
    """A longer time, for a table."""
    return f"{seconds:,.1f} s"
