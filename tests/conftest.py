"""What holds for every test."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import settings

# The same examples on every run and machine: a failure seen once can be seen again. `--hypothesis-profile=explore`
# looks for new ones.
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.register_profile("explore", max_examples=1000, deadline=None, print_blob=True)
settings.load_profile("repeatable")

# A shell that starts us in the background has Ctrl-C ignored, and Trio heeds it only as Python has it by default.
signal.signal(signal.SIGINT, signal.default_int_handler)


def children() -> set[str]:
    """The ids of this process's children, zombies included; nothing where the system does not tell."""
    found: set[str] = set()
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a worker thread may end before its file is read
            found.update(path.read_text().split())
    return found


@pytest.fixture(autouse=True)
def no_process_left_behind() -> Iterator[None]:
    """Fail a test that ends before the processes that it started."""
    before = children()
    yield
    left = children() - before
    assert not left, f"this test left processes behind: {sorted(left)}"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a test that a stray Cancelled leaves: pytest-trio takes it for its own and lets the test pass."""
    test = getattr(item, "obj", None)
    if not inspect.iscoroutinefunction(test):
        return

    @functools.wraps(test)
    async def guarded(**fixtures: Any) -> None:
        try:
            await test(**fixtures)
        except trio.Cancelled as exc:
            if trio.current_effective_deadline() == -math.inf:
                raise
            raise AssertionError("a Cancelled that belongs to nobody came out of the test") from exc

    item.obj = guarded  # type: ignore[attr-defined]
