"""The command line of the proofs."""

from __future__ import annotations

import time

import click
from rich.console import Console

from . import kill, line, restart, seeds, slow
from .report import Proof

__all__ = ["PROOFS", "main"]

PROOFS: dict[str, Proof] = {
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
def main(names: tuple[str, ...], quick: bool, seed: int) -> None:
    """Rerun what is promised about many servers, print the figures, and say whether they hold: all, or NAMES."""
    console = Console()
    if not console.is_terminal:
        console.width = FILE_WIDTH
    failed = []
    for name in names or PROOFS:
        console.print(f"\n[bold]{name}[/]: {PROOFS[name].about}", soft_wrap=True)
        start = time.perf_counter()
        try:
            report = PROOFS[name].run(quick, seed)
        except Exception:
            console.print_exception()  # The others are still to be seen.
            failed.append(name)
            continue
        except BaseExceptionGroup as group:
            if group.subgroup(KeyboardInterrupt):
                raise KeyboardInterrupt from None
            raise
        report.show(console)
        console.print(f"{name}: {time.perf_counter() - start:.1f} s", highlight=False)
        if not report.holds:
            failed.append(name)
    if failed:
        raise click.ClickException(f"does not hold: {', '.join(failed)}")
