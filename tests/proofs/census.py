"""What a process holds: file descriptors, tasks, and every object of the library with what its tables hold.

Nothing is named here that could be forgotten: the garbage collector knows all objects, and each one's own attributes
are looked at. So "exactly as before" is an equation of two of these counts.
"""

from __future__ import annotations

import gc
import os
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

import trio

__all__ = ["census", "differences", "left_behind"]

LIBRARY = "trio_rpc"
TABLES = (dict, list, set, deque)
REMEMBERED = {"trio_rpc.wire.Hello", "trio_rpc.PoolLimits", "trio_rpc.ServerLimits", "trio_rpc.Heartbeat"}
"""Kept on purpose: the HELLOs of peers, 64 at most, and our own last ones by what they were made from."""


def census() -> dict[str, int]:
    """Collect garbage, then count."""
    gc.collect()
    counts: Counter[str] = Counter()
    for found in gc.get_objects():
        kind = type(found)
        name = f"{kind.__module__}.{kind.__qualname__}"
        if name.partition(".")[0] == LIBRARY and name not in REMEMBERED:
            counts[name] += 1
            for attribute, table in _tables(found):
                counts[f"{name}.{attribute}"] += sum(not _forgotten(entry) for entry in table)
    counts["tasks"] = trio.lowlevel.current_statistics().tasks_living
    counts["file descriptors"] = len(os.listdir("/proc/self/fd"))
    return dict(counts)


def _tables(found: object) -> Iterator[tuple[str, Any]]:
    names = {name for kind in type(found).__mro__ for name in getattr(kind, "__slots__", ())}
    names |= getattr(found, "__dict__", {}).keys()
    for name in names:
        value = getattr(found, name, None) if isinstance(name, str) and not name.startswith("__") else None
        if isinstance(value, TABLES):
            yield name, value


def _forgotten(entry: object) -> bool:
    """True for a timer's moment that keeps nothing: of those it lets a few hundred be until they are due."""
    return isinstance(entry, list) and len(entry) == 3 and entry[2] is None


def left_behind(before: dict[str, int], after: dict[str, int]) -> list[str]:
    """What there is more of than before."""
    return differences(before, {name: max(before.get(name, 0), after.get(name, 0)) for name in before.keys() | after})


def differences(before: dict[str, int], after: dict[str, int]) -> list[str]:
    """What is not as before."""
    return [
        f"{name}: {before.get(name, 0)} before, {after.get(name, 0)} after"
        for name in sorted(before.keys() | after.keys())
        if before.get(name, 0) != after.get(name, 0)
    ]
