"""Pure decisions of a pool with many endpoints: which of them are left out for a while, as they fail more than the others."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, strategies as st

from trio_rpc._ejection import Ejector, Tally, panics
from trio_rpc._policies import OutlierEjection

BY_SHARE = OutlierEjection(consecutive=None, deviations=None)
BY_DEVIATION = OutlierEjection(consecutive=None, failure_share=None)
IN_A_ROW = OutlierEjection(failure_share=None, deviations=None)


class World:
    """Endpoints by their numbers, their judge, and the time."""

    def __init__(self, count: int, config: OutlierEjection) -> None:
        self.ejector = Ejector(config)
        self.tallies = [Tally() for _ in range(count)]
        self.now = 0.0

    def note(self, which: int, failed: bool, times: int = 1) -> bool:
        """So many calls that end there now; whether the last ejects it."""
        tally, everyone = self.tallies[which], self.tallies
        return [self.ejector.note(tally, failed, self.now, everyone) for _ in range(times)][-1]

    def serve(self, calls: int, *bad: int) -> None:
        """So many calls at each endpoint that is not ejected; all fail at the bad ones, none elsewhere."""
        for which in set(range(len(self.tallies))) - set(self.out):
            self.note(which, which in bad, calls)

    def sweep(self, at: float) -> list[int]:
        """Who is ejected by the sweep at this time."""
        self.now = at
        return [self.tallies.index(tally) for tally in self.ejector.sweep(self.tallies, at)]

    @property
    def out(self) -> list[int]:
        """Who is ejected now."""
        return [which for which, tally in enumerate(self.tallies) if self.ejector.ejected(tally, self.now)]


@pytest.mark.parametrize("config", [BY_SHARE, OutlierEjection(consecutive=None)])
def test_one_of_ten_fails_all(config: OutlierEjection) -> None:
    """Ejected for 30 s; bad again, for 60 s. A second bad one stays all the while, as one is a tenth (3a, item 57)."""
    world = World(10, config)
    world.serve(50, 3)
    assert world.sweep(10) == [3]
    for now in (20, 30):
        world.serve(50, 7)
        assert world.sweep(now) == []
        assert world.out == [3]
    world.now = 39.999
    assert world.out == [3]
    world.serve(50)
    assert world.sweep(40) == []
    assert world.out == []
    world.serve(50, 3)
    assert world.sweep(50) == [3]
    for now in (60, 70, 80, 90, 100):
        world.serve(50, 7)
        assert world.sweep(now) == []
    world.now = 109.999
    assert world.out == [3]
    world.now = 110
    assert world.out == []


def test_the_second_bad_one_has_its_turn() -> None:
    """Once the first is back, and fails no more."""
    world = World(10, BY_SHARE)
    world.serve(50, 3, 7)
    assert world.sweep(10) == [3]
    world.sweep(40)
    world.serve(50, 7)
    assert world.sweep(50) == [7]


@pytest.mark.parametrize(
    ("config", "out"),
    [
        (OutlierEjection(consecutive=None), 1),
        (OutlierEjection(consecutive=None, max_share=0.3), 3),
        (OutlierEjection(consecutive=None, max_share=1), 10),
    ],
)
def test_all_are_bad(config: OutlierEjection, out: int) -> None:
    """No more than the cap are ejected; where few are left, that is a panic, and all are picked from (3a, item 58)."""
    world = World(10, config)
    world.serve(50, *range(10))
    assert len(world.sweep(10)) == out
    assert panics(10 - len(world.out), 10, config.panic) == (out == 10)


@pytest.mark.parametrize(
    ("left", "total", "panic", "expected"),
    [
        (0, 1, 0.5, True),
        (1, 2, 0.5, False),
        (1, 3, 0.5, True),
        (4, 10, 0.5, True),
        (5, 10, 0.5, False),
        (0, 10, 0, False),  # switched off
        (9, 10, 1, True),
    ],
)
def test_panic(left: int, total: int, panic: float, expected: bool) -> None:
    """Below the share, not at it."""
    assert panics(left, total, panic) is expected


@pytest.mark.parametrize(
    ("count", "max_share", "most"),
    [(1, 1, 0), (2, 0, 1), (2, 0.1, 1), (9, 0.2, 1), (10, 0.2, 2), (100, 0.29, 29), (3, 1, 3)],
)
def test_the_cap(count: int, max_share: float, most: int) -> None:
    """One may always be ejected, but of several; otherwise a share, rounded down."""
    world = World(count, OutlierEjection(max_share=max_share))
    world.serve(5, *range(count))
    assert len(world.out) == most


@given(
    st.builds(
        OutlierEjection,
        max_share=st.floats(0, 1),
        min_endpoints=st.integers(1, 3),
        consecutive=st.none() | st.integers(1, 4),
        failure_share=st.none() | st.floats(0.1, 1),
        deviations=st.none() | st.floats(0.1, 3),
        failure_calls=st.integers(1, 5),
        deviations_calls=st.integers(1, 5),
    ),
    st.integers(1, 12),
    st.randoms(use_true_random=False),
)
def test_never_more_than_the_cap(config: OutlierEjection, count: int, rng: random.Random) -> None:
    """Whatever fails, and whenever it is swept; and each ejection ends within the longest time."""
    world = World(count, config)
    for _ in range(60):
        world.now += rng.choice([0, 1, 10, 100])
        if rng.random() < 0.2:
            world.sweep(world.now)
        world.note(rng.randrange(count), rng.random() < 0.7, rng.randrange(1, 5))
        assert len(world.out) <= (max(1, config.max_share * count) if count > 1 else 0)
    world.now += config.max_time
    assert world.out == []


@pytest.mark.parametrize(
    ("ends", "ejects"),
    [
        ([True] * 4, False),
        ([True] * 5, True),
        ([True] * 4 + [False] + [True] * 4, False),
        ([False] * 100 + [True] * 5, True),
    ],
)
def test_failures_in_a_row_eject_at_once(ends: list[bool], ejects: bool) -> None:
    """Five, with no success among them; `note` tells so of the last one."""
    world = World(2, IN_A_ROW)
    assert [world.note(0, failed) for failed in ends] == [False] * (len(ends) - 1) + [ejects]
    assert world.out == ([0] if ejects else [])


def test_the_time_out_grows_and_shrinks() -> None:
    """By the base time with each ejection, to the longest; one step back with each sweep that saw it in use throughout."""
    world = World(2, IN_A_ROW)
    lasted: list[float] = []
    for _ in range(12):
        assert world.note(0, True, 5)
        lasted.append(world.tallies[0].until - world.now)
        world.now += lasted[-1]
    assert lasted == [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300]
    for _ in range(4):  # the first of these saw it ejected
        world.sweep(world.now + 10)
    assert world.note(0, True, 5)
    assert world.tallies[0].until - world.now == 300
    world.now += 300
    for _ in range(100):
        world.sweep(world.now + 10)
    assert world.note(0, True, 5)
    assert world.tallies[0].until - world.now == 30


def test_three_healthy_sweeps_take_three_steps_back() -> None:
    """An ejection within the interval spoils the sweep behind it."""
    world = World(2, IN_A_ROW)
    for _ in range(4):
        world.note(0, True, 5)
        world.now = world.tallies[0].until
    for steps, seconds in [(1, 150), (2, 150), (4, 90)]:
        for _ in range(steps):
            world.sweep(world.now + 10)
        world.note(0, True, 5)
        assert world.tallies[0].until - world.now == seconds
        world.now = world.tallies[0].until


def test_what_ends_while_ejected_does_not_count() -> None:
    """It was begun before, and so says nothing new: the ejection is not made longer, and ends with a clean slate."""
    world = World(10, OutlierEjection())
    assert world.note(0, True, 5)
    world.now = 29
    assert not world.note(0, True, 503)
    world.now = 30
    assert not world.note(0, True, 4)
    assert world.out == []


def test_an_ejection_begins_with_a_clean_slate() -> None:
    """Failures in a row that did not eject by themselves are not counted on when it is over."""
    world = World(10, OutlierEjection(consecutive=60))
    world.serve(50, 0)
    assert world.sweep(10) == [0]
    world.now = 40
    assert not world.note(0, True, 59)
    assert world.note(0, True)


def test_who_is_spared_by_the_cap_is_not_ejected_by_one_failure() -> None:
    """Once there is room again, it takes as many in a row as ever."""
    world = World(2, IN_A_ROW)
    assert world.note(0, True, 5)
    assert not world.note(1, True, 5)
    world.now = 30
    assert not world.note(1, True, 4)
    assert world.note(1, True)


def test_a_sweep_leaves_running_ejections_alone() -> None:
    """What was counted before the ejection does not make it longer."""
    world = World(10, OutlierEjection(consecutive=20, max_share=1))
    world.now = 5
    for failed, times in [(True, 19), (False, 1), (True, 19), (False, 1), (True, 10_000)]:
        world.note(0, failed, times)
    assert world.out == [0]
    world.serve(50)
    assert world.sweep(10) == []
    world.now = 35
    assert world.out == []


def test_an_ejection_can_be_ended_early() -> None:
    """By somebody who knows better, like a health check; the next one is longer all the same."""
    world = World(10, OutlierEjection())
    world.note(0, True, 5)
    world.now = 7
    world.ejector.restore(world.tallies[0], world.now)
    assert world.out == []
    world.note(0, True, 5)
    world.now = 66.999
    assert world.out == [0]


@pytest.mark.parametrize(
    ("config", "rows", "expected"),
    [
        # a share of failures: 85 % of at least 50 calls, where 5 endpoints have as many
        (BY_SHARE, [(7, 43), *[(50, 0)] * 4], [0]),
        (BY_SHARE, [(8, 42), *[(50, 0)] * 4], []),
        (BY_SHARE, [(0, 49), *[(50, 0)] * 5], []),
        (BY_SHARE, [(0, 50), *[(50, 0)] * 3, (49, 0)], []),
        (OutlierEjection(consecutive=None, deviations=None, failure_share=1), [(0, 50), *[(50, 0)] * 4], [0]),
        # deviations: 1.9 of them below the mean, of at least 100 calls
        (BY_DEVIATION, [(50, 50), *[(100, 0)] * 4], [0]),
        (BY_DEVIATION, [(49, 50), *[(100, 0)] * 5], []),
        (OutlierEjection(consecutive=None, failure_share=None, deviations=1), [(50, 50), *[(100, 0)] * 4], [0]),
        (OutlierEjection(consecutive=None, failure_share=None, deviations=1), [(50, 50), *[(100, 0)] * 3, (99, 0)], []),
        (BY_DEVIATION, [(50, 50), (60, 40), *[(100, 0)] * 3], []),  # two of five: 1.3 deviations
        (BY_DEVIATION, [*[(0, 100)] * 9, (100, 0)], []),  # all are bad but one
        (BY_DEVIATION, [(999, 1), *[(1000, 0)] * 9], []),  # 3 deviations, but one failure is chance
        (BY_DEVIATION, [(98, 2), *[(100, 0)] * 9], [0]),
        # the worst first, where the cap allows one
        (OutlierEjection(consecutive=None, deviations=None), [(5, 95), (50, 0), (0, 99), *[(100, 0)] * 7], [2]),
    ],
)
def test_who_is_an_outlier(config: OutlierEjection, rows: list[tuple[int, int]], expected: list[int]) -> None:
    """At the thresholds, and next to them."""
    world = World(len(rows), config)
    for which, (successes, failures) in enumerate(rows):
        for failed, times in ((False, successes), (True, failures)):
            if times:
                world.note(which, failed, times)
    assert world.sweep(10) == expected


def test_counts_are_of_one_interval() -> None:
    """What a sweep has looked at is not looked at again."""
    world = World(10, BY_SHARE)
    world.serve(49, 0)
    assert world.sweep(10) == []
    world.serve(49, 0)
    assert world.sweep(20) == []


def test_chance_ejects_nobody() -> None:
    """Ten endpoints whose every hundredth call fails, at random, for 200 sweeps: fewer than one in twenty ejects."""
    world, rng = World(10, BY_DEVIATION), random.Random(1)
    ejected = 0
    for number in range(200):
        for tally in world.tallies:
            failures = sum(rng.random() < 0.01 for _ in range(1000))
            tally.successes, tally.failures = 1000 - failures, failures
        ejected += len(world.sweep(10.0 * number))
    assert ejected < 10
