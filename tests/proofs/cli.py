"""The command line of the proofs."""

from __future__ import annotations

import time

import click
from rich.console import Console

from . import (
    crowd,
    dead,
    decoding,
    fuzz,
    hostile,
    idle,
    kill,
    line,
    memory,
    patience,
    reset,
    restart,
    seeds,
    slow,
    soak,
    stalled,
    tokens,
)
from .report import Proof, Report
from .table import TABLE, markdown, rows_in, rows_of

__all__ = ["PROOFS", "main"]

PROOFS: dict[str, Proof] = {
    "dead": dead.PROOF,
    "patience": patience.PROOF,
    "idle": idle.PROOF,
    "crowd": crowd.PROOF,
    "fuzz": fuzz.PROOF,
    "decoding": decoding.PROOF,
    "hostile": hostile.PROOF,
    "stalled": stalled.PROOF,
    "reset": reset.PROOF,
    "soak": soak.PROOF,
    "memory": memory.PROOF,
    "tokens": tokens.PROOF,
    "restart": restart.PROOF,
    "kill": kill.PROOF,
    "slow": slow.PROOF,
    "line": line.PROOF,
    "seeds": seeds.PROOF,
}
FILE_WIDTH = 160
"""Columns where nobody says how many there are."""


@click.command(epilog="NAMES: " + "; ".join(f"{name}: {proof.about}" for name, proof in PROOFS.items()))
@click.argument("names", nargs=-1, type=click.Choice(list(PROOFS)))
@click.option("--quick", is_flag=True, help="A small version of each, in a few seconds.")
@click.option("--seed", type=int, default=1, show_default=True, help="For every random choice of ours.")
@click.option("--table", is_flag=True, help="Write what was found into the table of the reliability page.")
def main(names: tuple[str, ...], quick: bool, seed: int, table: bool) -> None:
    """Rerun what is promised, print the figures, and say whether they hold: all, or NAMES."""
    if quick and table:
        raise click.UsageError("the page shows whole measurements: leave out --quick or --table")
    console = Console()
    if not console.is_terminal:
        console.width = FILE_WIDTH
    reports = {name: _run(console, name, quick, seed) for name in names or PROOFS}
    if table:
        rows = rows_in(TABLE.read_text()) if TABLE.exists() else {}
        rows |= {name: rows_of(name, PROOFS[name], report) for name, report in reports.items()}
        TABLE.write_text(markdown(PROOFS, rows))
        console.print(f"\nwritten: {TABLE}", soft_wrap=True)
    failed = [name for name, report in reports.items() if report is None or not report.holds]
    if failed:
        raise click.ClickException(f"does not hold: {', '.join(failed)}")


def _run(console: Console, name: str, quick: bool, seed: int) -> Report | None:
    """Run one, and show what it found; None if it broke down: the others are still to be seen."""
    console.print(f"\n[bold]{name}[/]: {PROOFS[name].about}", soft_wrap=True)
    start = time.perf_counter()
    try:
        report = PROOFS[name].run(quick, seed)
    except Exception:
        console.print_exception()
        return None
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    report.show(console)
    console.print(f"{name}: {time.perf_counter() - start:.1f} s", highlight=False)
    return report
