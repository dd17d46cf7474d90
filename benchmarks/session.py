"""A run from its environments to its results."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import trio
import trustme

from .environments import EnvironmentFailed, prepare, versions
from .peers import HOST
from .registry import PEERS
from .results import Results, machine
from .rounds import Options, estimate, measure_workload
from .workloads import Workload

__all__ = ["note", "prepared", "run_workloads"]

AT_ONCE = 4
"""Workloads side by side, where nothing is timed."""


def run_workloads(
    pairs: Mapping[str, Sequence[str]],
    table: Mapping[str, Workload],
    options: Options,
    show: Callable[[Results, str], None],
) -> Results:
    """Run each workload of `pairs`, with its peers; `show(results, key)` after each."""
    results = Results(options, machine=machine())
    able = {key: list(peers) for key, peers in pairs.items()}
    if not options.at_once:
        there = prepared({peer for peers in able.values() for peer in peers}, results)
        able = {key: [peer for peer in peers if peer in there] for key, peers in able.items()}
    count = sum(map(len, able.values()))
    note(f"{count} pairs of peer and workload: about {estimate(count, options) / 60:.1f} minutes on a quiet machine")
    with certificate_folder() as certificate:

        async def measure(key: str) -> None:
            results.outcomes[key] = await measure_workload(table[key], able[key], options, certificate)
            show(results, key)

        try:
            trio.run(all_at_once if options.at_once else one_by_one, measure, [key for key in able if able[key]])
        except BaseExceptionGroup as group:
            if group.subgroup(KeyboardInterrupt):
                raise KeyboardInterrupt from None
            raise
    return results


async def one_by_one(measure: Callable[[str], Awaitable[None]], keys: Sequence[str]) -> None:
    """For results that are worth something."""
    for key in keys:
        await measure(key)


async def all_at_once(measure: Callable[[str], Awaitable[None]], keys: Sequence[str]) -> None:
    """For a quick look whether everything works."""
    limiter = trio.CapacityLimiter(AT_ONCE)

    async def limited(key: str) -> None:
        async with limiter:
            await measure(key)

    async with trio.open_nursery() as nursery:
        for key in keys:
            nursery.start_soon(limited, key)


def prepared(peers: Iterable[str], results: Results) -> set[str]:
    """Make the peers' environments, and note what is in them. Returns the peers whose environment could be made."""
    there = set(peers)
    for environment in {PEERS[peer].environment for peer in PEERS if peer in there}:
        try:
            prepare(environment)
            results.versions[environment] = versions(environment)
        except EnvironmentFailed as failure:
            note(str(failure))
            there -= {peer for peer in there if PEERS[peer].environment == environment}
    return there


@contextmanager
def certificate_folder() -> Iterator[str]:
    """A folder with `authority.pem`, `chain.pem` and `key.pem` for TLS; fresh, and gone after the block."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", HOST)
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        authority.cert_pem.write_to_path(f"{folder}/authority.pem")
        certificate.private_key_pem.write_to_path(f"{folder}/key.pem")
        for pem in certificate.cert_chain_pems:
            pem.write_to_path(f"{folder}/chain.pem", append=True)
        yield folder


def note(text: str) -> None:
    """Say something that is not part of the report."""
    print(f"benchmarks: {text}", file=sys.stderr, flush=True)
