"""What a block must not leave behind: tasks, file descriptors, calls."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import fields as dataclass_fields, is_dataclass
from pathlib import Path
from types import FrameType
from typing import Protocol, TypeVar

import attrs
import trio

__all__ = ["HasStatistics", "LeakWatch", "assert_no_leaks", "no_leaks"]

DESCRIPTORS = Path("/proc/self/fd")
BUSY_WORDS = ("in_flight", "waiting")
"""A number in `statistics()` whose name holds one of these must be zero when nothing is going on ..."""
NOT_NOW = ("max_", "peak_", "total_")
"""... unless it begins with one of these: a limit or a record says nothing of the present."""


class HasStatistics(Protocol):
    """Anything with `statistics()`: a pool, a server, one of Trio's own channels or locks."""

    def statistics(self) -> object:
        """A mapping, or an attrs or dataclass object."""


S = TypeVar("S", bound=HasStatistics)


class LeakWatch:
    """What `no_leaks` yields: tell it of objects made inside its block."""

    def __init__(self, objects: Iterable[HasStatistics]) -> None:
        self.objects: list[HasStatistics] = list(objects)

    def watch(self, watched: S) -> S:
        """Have `watched.statistics()` checked when the block ends; returns `watched`."""
        self.objects.append(watched)
        return watched


def assert_no_leaks(*objects: HasStatistics) -> None:
    """Assert that nothing is in flight or waiting in these pools, servers, channels or locks.

    Looks, in `statistics()` and in what is nested in it, at every number whose name contains `in_flight` or
    `waiting` (but not those that begin with `max_`, `peak_` or `total_`). An object that has none is a TypeError:
    such a check could not fail.
    """
    _fail_if([line for watched in objects for line in _busy(watched)])


@asynccontextmanager
async def no_leaks(*objects: HasStatistics, within: float = 0.5) -> AsyncGenerator[LeakWatch, None]:
    """Assert that after the block no task, no file descriptor and no call is left that was not there before.

    Tasks are all of this Trio run, whoever started them; descriptors are those of the process, where the system tells
    them (on Linux). `objects` are checked as by `assert_no_leaks`. What is just ending gets checkpoints, for at most
    `within` seconds of real time: Trio's clock does not move on by that, so under an autojump clock whatever needs a
    timer to end is a leak. If the block raises, its exception comes out and nothing is checked.
    """
    watch = LeakWatch(objects)
    tasks, descriptors = _tasks(), _descriptors()
    yield watch

    def remaining() -> list[str]:
        lines = [_describe_task(task) for task in _tasks() if task not in tasks]
        opened = sorted(_descriptors().items() - descriptors.items())
        lines += [f"file descriptor {number}: {target}" for number, target in opened]
        return lines + [line for watched in watch.objects for line in _busy(watched)]

    # Only checkpoints: they let tasks end and sockets be heard without letting an autojump clock jump.
    give_up = time.monotonic() + within
    while (left := remaining()) and time.monotonic() < give_up:
        await trio.lowlevel.checkpoint()
    _fail_if(left)


def _fail_if(left: list[str]) -> None:
    if left:
        raise AssertionError("\n".join([f"{len(left)} left behind:", *(f"- {line}" for line in left)]))


def _tasks() -> dict[trio.lowlevel.Task, None]:
    """Every living task of this run (the calling one too), parents first; a dict, for its order."""
    root = trio.lowlevel.current_root_task()
    assert root is not None, "in a task there is a root task"
    found: dict[trio.lowlevel.Task, None] = {}
    todo = [root]
    while todo:
        task = todo.pop()
        found[task] = None
        todo += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return found


def _describe_task(task: trio.lowlevel.Task) -> str:
    parent = task.parent_nursery.parent_task.name if task.parent_nursery is not None else None
    where = "".join(f"\n    {line}" for line in _stack(task))
    return f"task {task.name!r}, a child of {parent!r}, waits in{where}"


def _stack(task: trio.lowlevel.Task) -> Iterator[str]:
    """Where the task waits, outermost first, without the insides of Trio."""
    for frame, line in task.iter_await_frames():
        if not _inside_trio(frame):
            yield f"{frame.f_code.co_qualname} ({frame.f_code.co_filename}:{line})"


def _inside_trio(frame: FrameType) -> bool:
    module = str(frame.f_globals.get("__name__", ""))
    return module == "trio" or module.startswith("trio.")


def _descriptors() -> dict[int, str]:
    """The open file descriptors and what they are, where the system tells."""
    found: dict[int, str] = {}
    # The listing's own descriptor is in the listing, and gone when we look at it.
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        numbers = os.listdir(DESCRIPTORS)
        for number in numbers:
            with contextlib.suppress(FileNotFoundError):
                found[int(number)] = os.readlink(DESCRIPTORS / number)
    return found


def _busy(watched: HasStatistics) -> Iterator[str]:
    counts = list(_counts(watched.statistics()))
    if not counts:
        words = " or ".join(BUSY_WORDS)
        raise TypeError(
            f"{watched!r}.statistics() has no number named {words}: it cannot show whether something is left"
        )
    for path, count in counts:
        if count:
            yield f"{type(watched).__name__}: {path} is {count}"


def _counts(value: object, path: str = "") -> Iterator[tuple[str, int]]:
    """Yield every number that says how much is going on, with its path."""
    for name, inner in _children(value):
        inner_path = f"{path}.{name}" if path else name
        if isinstance(inner, int) and any(word in name for word in BUSY_WORDS) and not name.startswith(NOT_NOW):
            yield inner_path, inner
        else:
            yield from _counts(inner, inner_path)


def _children(value: object) -> Iterable[tuple[str, object]]:
    if isinstance(value, Mapping):
        return [(str(key), inner) for key, inner in value.items()]
    if isinstance(value, list | tuple):
        return [(str(index), inner) for index, inner in enumerate(value)]
    kind = type(value)
    if kind is trio.lowlevel.Task:
        return []  # a lock's statistics name its owner: from there all of the run would be in reach
    if attrs.has(kind):
        return [(field.name, getattr(value, field.name)) for field in attrs.fields(kind)]
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclass_fields(value)]
    return []
