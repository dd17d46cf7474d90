"""The command line of the benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click

from .bars import OURS, bars_report, pairs_for_bars
from .growth import CURVES, growth_report, growth_svg, growth_workloads
from .plot import results_svg
from .registry import PEERS
from .report import markdown, table_of
from .results import Results
from .rounds import Options, peers_for
from .session import run_workloads
from .workloads import FAIRNESS, WORKLOADS

__all__ = ["main"]

QUICK = Options(rounds=1, seconds=0.05, warm_up=0.02, connections=20, tries=1, at_once=True)
QUICK_PEERS = ("trio_rpc", "raw-trio", "hand-asyncio")
"""What runs with the default install and nothing else."""
QUICK_WORKLOADS = (*WORKLOADS, "message_1", "stream_64")
EVERY_WORKLOAD = WORKLOADS | FAIRNESS


class Names(click.ParamType[list[str]]):
    """Names of a table, with commas between."""

    name = "names"

    def __init__(self, known: Sequence[str], what: str) -> None:
        self.known = known
        self.what = what

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        """Split and check."""
        names = [name.strip() for name in str(value).split(",") if name.strip()]
        unknown = [name for name in names if name not in self.known]
        if unknown:
            self.fail(f"{unknown[0]!r} is no {self.what}: take some of {', '.join(self.known)}")
        return names


@dataclass(frozen=True)
class Files:
    """What is written, and where."""

    json: Path | None
    markdown: Path | None
    svg: Path | None

    def write(self, results: Results, report: str, plot: str) -> None:
        """Write what was asked for."""
        for file, content in ((self.json, results.dump()), (self.markdown, report), (self.svg, plot)):
            if file:
                file.write_text(content)


def how_long(rounds: int, seconds: float) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command `options: Options`, from options of the command line with these defaults."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @click.option("--rounds", type=click.IntRange(1), default=rounds, show_default=True)
        @click.option("--seconds", type=float, default=seconds, show_default=True, help="Length of a round.")
        @click.option("--tries", type=click.IntRange(1), default=Options.tries, show_default=True, help="Of a round.")
        @click.option("--pin", is_flag=True, help="Servers on one CPU, clients on another: steadier, less like life.")
        @wraps(command)
        def wrapper(rounds: int, seconds: float, tries: int, pin: bool, **rest: Any) -> None:
            command(options=Options(rounds=rounds, seconds=seconds, tries=tries, pin=pin), **rest)

        return wrapper

    return decorate


def where_to(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command `files: Files`."""
    path = click.Path(path_type=Path, dir_okay=False)

    @click.option("--json", "json_file", type=path, help="All samples, into this file.")
    @click.option("--markdown", "markdown_file", type=path, help="The report, into this file.")
    @click.option("--svg", "svg_file", type=path, help="The plot, into this file.")
    @wraps(command)
    def wrapper(json_file: Path | None, markdown_file: Path | None, svg_file: Path | None, **rest: Any) -> None:
        command(files=Files(json_file, markdown_file, svg_file), **rest)

    return wrapper


@click.group()
def main() -> None:
    """Measure RPC libraries side by side, in environments of their own."""


@main.command(name="list")
def list_() -> None:
    """List peers and workloads."""
    for title, rows in (("peers", PEERS), ("workloads", WORKLOADS), ("fairness", FAIRNESS)):
        click.echo(f"{title}:")
        for name, row in rows.items():
            click.echo(f"  {name:16} {row.about}")


@main.command()
@click.option("--peers", type=Names(list(PEERS), "peer"), default=",".join(PEERS), show_default="all")
@click.option("--workloads", type=Names(list(EVERY_WORKLOAD), "workload"), help="[default: all but fairness]")
@click.option("--bars", is_flag=True, help="Only the pairs that the bars compare, fairness among them.")
@click.option("--quick", is_flag=True, help="Only see whether it works, all at once, in this environment.")
@click.option("--reference", type=click.Choice(list(PEERS)), help="Ratios are to this peer.  [default: grpc.aio]")
@how_long(Options.rounds, Options.seconds)
@where_to
def run(
    peers: list[str],
    workloads: list[str] | None,
    bars: bool,
    quick: bool,
    reference: str | None,
    options: Options,
    files: Files,
) -> None:
    """Run workloads with peers, and report."""
    table = dict.fromkeys(workloads or WORKLOADS, peers)
    if bars or quick:
        table = pairs_for_bars() if bars else {key: list(QUICK_PEERS) for key in QUICK_WORKLOADS}
        table = {key: [peer for peer in table[key] if peer in peers] for key in workloads or table if key in table}
    reference = reference or ("grpc.aio" if "grpc.aio" in peers and not quick else peers[0])
    measure(table, QUICK if quick else options, reference, files)


@main.command()
@click.option("--peers", type=Names(list(PEERS), "peer"), default=OURS, show_default=True)
@how_long(Options.rounds, Options.seconds)
@where_to
def fairness(peers: list[str], options: Options, files: Files) -> None:
    """Small calls beside large messages and unread streams; the shares of 1000 callers."""
    measure(dict.fromkeys(FAIRNESS, peers), options, peers[0], files)


def measure(pairs: Mapping[str, Sequence[str]], options: Options, reference: str, files: Files) -> None:
    """Run those of the pairs that can be; show each table when it is there, and write the files after each."""

    def show(results: Results, key: str) -> None:
        if options.at_once:
            click.echo(f"{EVERY_WORKLOAD[key].title}: {', '.join(results.outcomes[key].samples)}")
        else:
            click.echo(f"\n## {EVERY_WORKLOAD[key].title}\n\n{table_of(results, key, reference)}")
        files.write(results, markdown(results, reference), results_svg(results))

    able = {key: peers_for(EVERY_WORKLOAD[key], peers) for key, peers in pairs.items()}
    results = run_workloads(able, EVERY_WORKLOAD, options, show)
    if not options.at_once:
        click.echo(f"\n## The bars\n\n{bars_report(results)}")
    failures = [failure for outcome in results.outcomes.values() for failure in outcome.failures.values()]
    if failures:
        raise click.ClickException(f"{len(failures)} failed, and are not in the tables; the first: {failures[0]}")


@main.command()
@click.option("--curves", type=Names(list(CURVES), "curve"), default=",".join(CURVES), show_default="all")
@how_long(2, 1.0)
@where_to
def growth(curves: list[str], options: Options, files: Files) -> None:
    """Cost per call as the numbers of callers, connections, bytes, methods and endpoints grow."""

    def show(results: Results, _key: str) -> None:
        files.write(results, growth_report(results, OURS), growth_svg(results, OURS))

    table = growth_workloads(curves)
    results = run_workloads({key: [OURS] for key in table}, table, options, show)
    click.echo(growth_report(results, OURS))


@main.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--reference", type=click.Choice(list(PEERS)), default="grpc.aio", show_default=True)
@where_to
def report(sources: tuple[Path, ...], reference: str, files: Files) -> None:
    """Join the JSON of earlier runs (or of `growth`), and report."""
    results, *others = [Results.load(source.read_text()) for source in sources]
    for other in others:
        results.join(other)
    if set(results.outcomes) <= set(growth_workloads(list(CURVES))):
        text, plot = growth_report(results, OURS), growth_svg(results, OURS)
    else:
        text, plot = markdown(results, reference), results_svg(results)
    click.echo(text)
    files.write(results, text, plot)
