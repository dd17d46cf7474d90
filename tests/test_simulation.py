"""The whole system under seeded faults, on a virtual clock: what must hold for every seed. See `tests.simulation`."""

from __future__ import annotations

import pytest

from tests.simulation.plants import PLANTS
from tests.simulation.running import command, find_failures, run_seed

BLOCK = 50


@pytest.mark.parametrize("first", range(1, 301, BLOCK))
def test_seeds(first: int) -> None:
    """S01, S02, S15, Rule 3: one outcome for each call, nothing runs twice that may not, all works again, nothing is
    left: for each seed.
    """
    failures = [f"{command(seed)}\n{failure}" for seed, failure in find_failures(range(first, first + BLOCK))]
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_bug_is_found(plant: str) -> None:
    """Within a thousand seeds: a place that is not given back, and responses that get each other's ids."""
    assert next(find_failures(range(1, 1001), plant), None) is not None


def test_a_seed_is_one_run() -> None:
    """The same seed gives the same events at the same times, and another one others."""
    digests = {seed: run_seed(seed).journal.digest for seed in range(1, 21)}
    assert digests == {seed: run_seed(seed).journal.digest for seed in digests}
    assert len(set(digests.values())) == len(digests)
