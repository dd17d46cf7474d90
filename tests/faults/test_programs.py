"""Programs that Hypothesis writes: whatever peers, networks and servers do, what is promised of calls holds.

`PROGRAMS=10000 python3.11 dev.py pytest tests/faults/test_programs.py` lives through more of them.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings

from tests.faults.programs import failures, programs
from tests.simulation.plan import Plan
from tests.simulation.plants import PLANTS, planted

MOST = int(os.environ.get("PROGRAMS", "200"))
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]


@pytest.mark.timeout(300 + MOST)
@given(programs())
@settings(max_examples=MOST, suppress_health_check=SLOW)
def test_whatever_happens(program: Plan) -> None:
    """S01, S02, X16, W20: one outcome for each call, nothing is left, and once all is calm the next call succeeds."""
    found = failures(program)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_bug_is_found(plant: str) -> None:
    """A place that is not given back, and responses that get each other's ids."""
    with planted(plant):
        options = settings(max_examples=2000, phases=[Phase.generate], suppress_health_check=SLOW)
        find(programs(), lambda program: bool(failures(program)), settings=options)  # Else it raises NoSuchExample.
