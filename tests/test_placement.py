"""Pure decisions of a pool: which connection, how many more, how long to wait."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given, strategies as st

from trio_rpc import Backoff
from trio_rpc._backoff import delay_before
from trio_rpc._placement import dials_wanted, least_in_flight


@attrs.frozen
class Place:
    name: str
    free: int
    in_flight: int


@pytest.mark.parametrize(
    ("places", "chosen"),
    [
        ([], None),
        ([Place("full", 0, 4)], None),
        ([Place("full", 0, 1), Place("free", 1, 3)], "free"),
        ([Place("busy", 1, 3), Place("idle", 4, 0)], "idle"),
        ([Place("older", 4, 0), Place("younger", 4, 0)], "older"),
        ([Place("overdrawn", -1, 0), Place("free", 1, 9)], "free"),
        ([Place("roomier", 100, 2), Place("less to do", 1, 1)], "less to do"),
    ],
)
def test_the_place_with_the_fewest_calls(places: list[Place], chosen: str | None) -> None:
    """The oldest of equals, so that surplus connections fall idle; None when all are full."""
    place = least_in_flight(places, lambda: 0.5)
    assert (place.name if place is not None else None) == chosen


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=4, max_size=4), st.integers(17, 10_000))
def test_of_many_places_the_best_of_a_few(draws: list[float], count: int) -> None:
    """In a large pool a call looks at four random places; the one with the fewest calls gets it."""
    places = [Place(str(index), 1, index + 1) for index in range(count)]
    looked_at = [int(draw * count) for draw in draws]
    place = least_in_flight(places, iter(draws).__next__)
    assert place is places[min(looked_at)]


def test_of_many_places_the_last_free_one_is_found() -> None:
    """However few of many are free, and whichever the random ones are."""
    places = [*(Place("full", 0, 4) for _ in range(500)), Place("free", 1, 9)]
    assert least_in_flight(places, lambda: 0.0) is places[-1]


@pytest.mark.parametrize(
    ("ready", "dialling", "waiting", "least", "most", "failing", "wanted"),
    [
        (0, 0, 0, 0, 4, False, 0),  # nobody asks
        (0, 0, 9, 0, 4, False, 1),  # somebody does
        (0, 1, 9, 0, 4, False, 0),  # one at a time
        (1, 0, 9, 0, 4, False, 1),
        (4, 0, 9, 0, 4, False, 0),  # never above the maximum
        (0, 0, 0, 3, 4, False, 3),  # the minimum side by side
        (1, 1, 0, 3, 4, False, 1),  # those on their way count
        (2, 1, 9, 3, 4, False, 0),
        (3, 0, 0, 3, 4, False, 0),
        (3, 0, 1, 3, 4, False, 1),
        (0, 0, 0, 3, 4, True, 1),  # a probe, while dials fail
        (0, 1, 9, 3, 4, True, 0),
        (0, 0, 0, 0, 4, True, 0),
        (0, 0, 1, 0, 4, True, 1),
        (4, 0, 1, 0, 4, True, 0),
    ],
)
def test_how_many_to_dial(
    ready: int, dialling: int, waiting: int, least: int, most: int, failing: bool, wanted: int
) -> None:
    """The minimum at once, beyond it one at a time while somebody waits, and one in all while dials fail."""
    assert (
        dials_wanted(ready=ready, dialling=dialling, waiting=waiting, least=least, most=most, failing=failing) == wanted
    )


counts = st.integers(0, 6)


@given(counts, counts, counts, counts, counts, st.booleans())
def test_dialling_keeps_its_bounds(
    ready: int, dialling: int, waiting: int, least: int, more: int, failing: bool
) -> None:
    """Never above the maximum, never below nothing; and whoever waits with room to grow is not forgotten."""
    most = max(1, least + more)
    wanted = dials_wanted(ready=ready, dialling=dialling, waiting=waiting, least=least, most=most, failing=failing)
    assert wanted >= 0
    assert wanted == 0 or ready + dialling + wanted <= most
    assert wanted or dialling or not waiting or ready >= most


@pytest.mark.parametrize(
    ("backoff", "delays"),
    [
        (Backoff(jitter=0), [1, 1.6, 2.56, 4.096]),
        (Backoff(initial=0.1, factor=2, maximum=0.3, jitter=0), [0.1, 0.2, 0.3, 0.3]),
        (Backoff(initial=0, jitter=0.2), [0, 0, 0, 0]),
        (Backoff(initial=5, factor=1, jitter=0), [5, 5, 5, 5]),
    ],
)
def test_delays_grow_to_their_maximum(backoff: Backoff, delays: list[float]) -> None:
    """By the factor, from the initial one."""
    assert [delay_before(attempt, backoff, lambda: 0.5) for attempt in (2, 3, 4, 5)] == pytest.approx(delays)


@pytest.mark.parametrize(("draw", "delay"), [(0.0, 8.0), (0.25, 9.0), (0.5, 10.0), (1.0, 12.0)])
def test_jitter_is_a_share_either_way(draw: float, delay: float) -> None:
    """N16: applied behind the maximum, as gRPC does."""
    backoff = Backoff(initial=100, maximum=10, jitter=0.2)
    assert delay_before(2, backoff, lambda: draw) == pytest.approx(delay)


@given(st.integers(2, 10**9), st.floats(0, 1, exclude_max=True), st.floats(0, 1))
def test_no_delay_is_negative_or_endless(attempt: int, draw: float, jitter: float) -> None:
    """However long it has gone on."""
    assert 0 <= delay_before(attempt, Backoff(jitter=jitter), lambda: draw) <= 240
