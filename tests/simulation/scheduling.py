"""The one place that touches the insides of Trio."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from trio._core import _run as scheduler

__all__ = ["repeatable"]


@contextmanager
def repeatable(seed: object) -> Iterator[None]:
    """Runs of Trio within this block are decided by `seed`.

    Tasks that are due together run in random order, on purpose; with these two switches, which Trio has for
    Hypothesis, that order depends on nothing else. Both are put back behind the block.
    """
    state = scheduler._r.getstate()
    with mock.patch.object(scheduler, "_ALLOW_DETERMINISTIC_SCHEDULING", True):
        scheduler._r.seed(str(seed))
        try:
            yield
        finally:
            scheduler._r.setstate(state)
