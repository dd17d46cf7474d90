"""The command line: options, signals, exit codes."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import trio

from .audit import Result
from .contract import BadPattern, Query
from .corpus import source_paths, standard_library
from .demo import run_demo
from .fleet import WorkerFailed, open_fleet
from .gateway import Gateway
from .index import compile_query
from .screen import Screen, prepare_output
from .worker import run_worker

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code, 128 + the signal's number if one ended it."""
    prepare_output()
    logging.basicConfig(level=logging.ERROR)  # the library warns of an eviction; here the demo tells of it
    if arguments[:1] == ["worker"]:
        return _work(arguments[1:])
    parser = _options()
    options = parser.parse_args(arguments)
    query = Query(options.query or "", options.regex, options.ignore_case, options.limit)
    try:
        if options.query is not None:
            compile_query(query)
        _check_sources(options.root)
    except (BadPattern, OSError) as exc:
        parser.error(str(exc))
    job = partial(run_demo, Screen(sys.stdout), options.root, options.workers, freeze=not options.no_freeze)
    if options.query is not None:
        job = partial(search_once, query, options.root, options.workers)
    return _run(job)


def _work(arguments: Sequence[str]) -> int:
    parser = _worker_options()
    options = parser.parse_args(arguments)
    if options.share > options.of:
        parser.error(f"there is no share {options.share} of {options.of}: the shares are numbered from 1")
    trio.run(run_worker, options.root, options.share, options.of)
    return 0


def _run(job: Callable[[], Awaitable[bool]]) -> int:
    """Run `job`, tell its failures in a sentence each; returns the exit code."""
    try:
        return trio.run(run_until_signal, job)
    except* WorkerFailed as group:
        print(*group.exceptions, sep="\n", file=sys.stderr)
    except* BrokenPipeError:
        # Whoever read our output has gone, as `head` does: end quietly, and let nobody complain while flushing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


async def run_until_signal(job: Callable[[], Awaitable[bool]]) -> int:
    """Run `job`, cancelled at the first SIGINT, SIGTERM or SIGHUP. Further ones change nothing: the end is bounded.

    Cancelled, and not interrupted: a KeyboardInterrupt would hit whatever line happens to run, while a cancellation
    goes through every `finally` in order, over there too. Returns the exit code.
    """
    caught: list[int] = []
    scope = trio.CancelScope()

    async def watch() -> None:
        async for number in signals:
            caught.append(number)
            scope.cancel()

    succeeded = False
    with trio.open_signal_receiver(*SIGNALS) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            with scope:
                succeeded = await job()
            nursery.cancel_scope.cancel()
    if caught:
        print(f"{signal.Signals(caught[0]).name}: stopped, and no worker is left.", file=sys.stderr)
        return 128 + caught[0]
    return 0 if succeeded else 1


async def search_once(query: Query, root: Path, count: int) -> bool:
    """Print the matches of one query, as grep does; True if every share has answered."""
    screen = Screen(sys.stdout, cut=sys.stdout.isatty())  # whoever reads a pipe wants whole lines
    notes = Screen(sys.stderr)
    async with open_fleet(root, count) as workers:
        gateway = Gateway({worker.name: worker.search for worker in workers})
        result = Result(query)
        await result.collect(gateway, partial(screen.match, indent=""))
    for lost in result.missing.values():
        notes.say((f"{lost.share} is missing: {lost.reason}", "yellow"))
    return not result.missing


def _check_sources(root: Path) -> None:
    if not source_paths(root):
        raise FileNotFoundError(f"there are no Python files below {root}: name a folder that has some with --root")


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.codesearch",
        description="Search the standard library with a process for each share of it. Without --query: the demo.",
    )
    parser.add_argument("--workers", type=_number, default=3, metavar="N", help="search services (default: 3)")
    parser.add_argument("--no-freeze", action="store_true", help="leave out the frozen worker")
    parser.add_argument("--query", metavar="TEXT", help="print the matches of one search, and end")
    parser.add_argument("--regex", action="store_true", help="TEXT is a regular expression")
    parser.add_argument("--ignore-case", action="store_true", help="upper and lower case are the same")
    parser.add_argument("--limit", type=int, metavar="N", help="stop after so many matches")
    _add_root(parser)
    return parser


def _worker_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.codesearch worker",
        description="Serve one share. Prints its address when it is ready, and ends with its standard input.",
    )
    parser.add_argument("--share", type=_number, required=True, metavar="I", help="which share, from 1")
    parser.add_argument("--of", type=_number, required=True, metavar="N", help="how many shares there are")
    _add_root(parser)
    return parser


def _add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--root", type=Path, default=standard_library(), help="the sources (default: Python's standard library)"
    )


def _number(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 64:
        raise argparse.ArgumentTypeError(f"{number} is not between 1 and 64")
    return number
