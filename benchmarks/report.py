"""Results as Markdown: an overview of all peers and workloads, and a table for each workload."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .bars import bars_report
from .environments import ENVIRONMENTS
from .registry import PEERS
from .results import Metric, Results
from .text import Row, number, table, times
from .workloads import FAIRNESS, WORKLOADS

__all__ = ["markdown", "overview", "table_of"]

TITLES = WORKLOADS | FAIRNESS
ALSO_TOLD = {"attrs", "cattrs", "msgspec", "trio-rpc"}
"""Packages whose versions matter, beside those that the environments name."""


def peers_in(results: Results) -> list[str]:
    """The peers that gave something, in the order of the registry."""
    ran = {peer for outcome in results.outcomes.values() for peer in outcome.samples}
    return [peer for peer in PEERS if peer in ran]


def markdown(results: Results, reference: str) -> str:
    """The whole report."""
    parts = [heading(results), "## The bars", bars_report(results), "## Overview", overview(results, reference)]
    parts += [f"## {TITLES[key].title}\n\n{table_of(results, key, reference)}" for key in results.outcomes]
    return "\n\n".join(parts) + "\n"


def heading(results: Results) -> str:
    """Machine, method and versions."""
    options = results.options
    versions = ", ".join(f"{name} {version}" for name, version in told_versions(results).items())
    return (
        f"Measured {results.started} UTC on {', '.join(results.machine.values())}; loopback"
        f"{', servers and clients pinned to a CPU each' if options.pin else ''}. "
        f"{options.rounds} interleaved rounds of {options.seconds:g} s: medians, and medians of the rounds' ratios.\n\n"
        f"Versions: {versions}."
    )


def told_versions(results: Results) -> dict[str, str]:
    """The packages that a reader asks for."""
    pins = {pin for environment in ENVIRONMENTS.values() for pin in environment}
    named = {re.split(r"[=\[]", pin)[0].lower() for pin in pins} | ALSO_TOLD
    told = {}
    for installed in results.versions.values():
        told.update({name: version for name, version in installed.items() if name.lower() in named})
    return dict(sorted(told.items()))


def overview(results: Results, reference: str) -> str:
    """One line for each peer, one column for each workload that has a rate: the rate, and its ratio to `reference`."""
    keys = [key for key, workload in WORKLOADS.items() if key in results.outcomes and workload.setting.kind != "idle"]
    head = ["", *(f"{TITLES[key].title}, {TITLES[key].unit}" for key in keys)]
    rows = []
    for peer in peers_in(results):
        cells = ((results.median(key, peer), results.ratio(key, peer, reference)) for key in keys)
        rows.append([peer, *(f"{number(rate)} ({times(ratio)})" if rate else "-" for rate, ratio in cells)])
    return f"(In brackets: times {reference}.)\n\n{table(head, rows)}" if rows else "Nothing was measured."


def table_of(results: Results, key: str, reference: str) -> str:
    """The table of one workload, with what failed below it."""
    columns = memory_columns if TITLES[key].setting.kind == "idle" else rate_columns
    head, rows = without_empty(*columns(results, key, reference))
    outcome = results.outcomes[key]
    notes = [f"{peer}: {count} disturbed rounds are in it." for peer, count in outcome.disturbed.items() if count]
    notes += [f"No result: {failure}" for failure in outcome.failures.values()]
    return "\n\n".join([table(head, rows), *notes])


def without_empty(head: Row, rows: Sequence[Row]) -> tuple[Row, Sequence[Row]]:
    """Leave out the columns that no row has a value for."""
    used = [i for i in range(len(head)) if i == 0 or any(row[i] != "-" for row in rows)]
    return [head[i] for i in used], [[row[i] for i in used] for row in rows]


def rate_columns(results: Results, key: str, reference: str) -> tuple[Row, Sequence[Row]]:
    """Rate and spread, ratio, latencies, CPU."""
    head = [
        "",
        TITLES[key].unit,
        "lowest to highest",
        f"x {reference}",
        "p50 us",
        "p99 us",
        "CPU s per 10k (client + server)",
        "worst / median caller",
        "p99 / p99 alone",
    ]
    return head, [[peer, *rate_cells(results, key, peer, reference)] for peer in results.outcomes[key].samples]


def rate_cells(results: Results, key: str, peer: str, reference: str) -> Row:
    """The numbers of one peer."""
    rates = results.values(key, peer)

    def micro(metric: Metric) -> str:
        seconds = results.median(key, peer, metric)
        return number(seconds and seconds * 1e6)

    samples = results.samples(key, peer)
    client, server = (
        sorted(getattr(sample, side) or 0.0 for sample in samples)[len(samples) // 2] * 1e4
        for side in ("client_cpu", "server_cpu")
    )
    return [
        number(results.median(key, peer)),
        f"{number(min(rates))} to {number(max(rates))}",
        times(results.ratio(key, peer, reference)),
        micro("p50"),
        micro("p99"),
        f"{client + server:.3f} ({client:.3f} + {server:.3f})",
        times(results.median(key, peer, "worst_share")),
        times(results.median(key, peer, "slowdown")),
    ]


def memory_columns(results: Results, key: str, reference: str) -> tuple[Row, Sequence[Row]]:
    """Resident memory of a connection on either side."""
    head = ["", "server, KiB", "client, KiB", f"server, x {reference}"]
    rows = []
    for peer in results.outcomes[key].samples:
        server, client = (results.median(key, peer, side) or 0.0 for side in ("server_memory", "client_memory"))
        ratio = results.ratio(key, peer, reference, "server_memory")
        rows.append([peer, number(server / 1024, 1), number(client / 1024, 1), times(ratio)])
    return head, rows
