"""The reliability page's table: what was promised, what was measured, and whether it holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks.results import machine

from .report import Proof, Report

__all__ = ["TABLE", "markdown", "rows_in", "rows_of"]

TABLE = Path(__file__).resolve().parents[2] / "docs" / "measured" / "reliability.md"
HEAD = ["promised", "measured", "holds", "again with"]
TOLD = ("trio", "attrs", "msgpack")
"""Packages whose versions may matter."""
Row = Sequence[str]


def markdown(proofs: Mapping[str, Proof], rows: Mapping[str, Sequence[Row]]) -> str:
    """The whole file: the machine, then the rows of each proof, in the order of the proofs."""
    versions = ", ".join(f"{name} {version(name)}" for name in TOLD)
    heading = (
        f"Measured on {', '.join(machine().values())}; {versions}; loopback, servers and clients on the same machine."
    )
    lines = [HEAD, ["---"] * len(HEAD), *(row for name in proofs for row in rows.get(name, ()))]
    return heading + "\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def rows_of(name: str, proof: Proof, report: Report | None) -> list[Row]:
    """A row for each promise that a report tells apart, and one for all else; None: the proof broke down."""
    if report is None:
        return [_row(name, _sentence(proof.about), "it could not be measured", holds=False)]
    bars = [check for check in report.checks if check.promised]
    rest = [check for check in report.checks if not check.promised]
    rows = [_row(name, _sentence(bar.promised), bar.sentence, holds=bar.holds) for bar in bars]
    if rest or not bars:
        promised = "(beside that)" if bars else _sentence(proof.about)
        measured = "; ".join(dict.fromkeys(check.sentence for check in rest)) or "nothing was measured"
        rows.append(_row(name, promised, measured, holds=bool(rest) and all(check.holds for check in rest)))
    return rows


def _row(name: str, promised: str, measured: str, *, holds: bool) -> Row:
    return [promised.replace("|", "/"), measured.replace("|", "/"), "yes" if holds else "**no**", f"`prove {name}`"]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def rows_in(text: str) -> dict[str, list[Row]]:
    """The rows of a file that `markdown` made, by the names of their proofs: what is not measured again stays."""
    found: dict[str, list[Row]] = {}
    for row in _cells(text):
        name = row[-1].removeprefix("`prove ").removesuffix("`")
        found.setdefault(name, []).append(row)
    return found


def _cells(text: str) -> Iterator[Row]:
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == len(HEAD) and cells[-1].startswith("`prove "):
            yield cells
