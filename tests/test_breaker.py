"""Pure decisions of a pool: when an endpoint gets no calls at all, and when it is tried again."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trio_rpc import Backoff
from trio_rpc._breaker import Breaker, Circuit
from trio_rpc._policies import CircuitBreaker

STEADY = Backoff(initial=5, factor=2, maximum=300, jitter=0)
IN_A_ROW = CircuitBreaker(backoff=STEADY)
BY_SHARE = CircuitBreaker(consecutive=None, failure_share=0.5, backoff=STEADY)

CLOSED, HALF_OPEN, OPEN = Circuit.CLOSED, Circuit.HALF_OPEN, Circuit.OPEN


def breaker_of(config: CircuitBreaker, draw: float = 0.5) -> Breaker:
    """One whose random numbers are all the same."""
    return Breaker(config, lambda: draw)


def call(breaker: Breaker, failed: bool | None, now: float) -> Circuit | None:
    """A call that ends at once."""
    breaker.begin(now)
    return breaker.note(failed, now, now)


def open_at(now: float, config: CircuitBreaker = IN_A_ROW, draw: float = 0.5) -> Breaker:
    """One that five failures have opened just now."""
    breaker = breaker_of(config, draw)
    assert [call(breaker, True, now) for _ in range(5)] == [None] * 4 + [OPEN]
    return breaker


@pytest.mark.parametrize(
    ("config", "ends", "state"),
    [
        (IN_A_ROW, [True] * 4, CLOSED),
        (IN_A_ROW, [True] * 5, OPEN),
        (IN_A_ROW, [True, True, None, True, None, True, True], OPEN),  # None says nothing
        (IN_A_ROW, [True] * 4 + [False] + [True] * 4, CLOSED),
        (BY_SHARE, [True] * 4, CLOSED),  # fewer than five calls
        (BY_SHARE, [True] * 5, OPEN),
        (BY_SHARE, [False, True, False, True, True], OPEN),
        (BY_SHARE, [False, True, False, True, False], CLOSED),
        (BY_SHARE, [False] * 6 + [True] * 5, CLOSED),
        (BY_SHARE, [False] * 6 + [True] * 6, OPEN),
        (CircuitBreaker(consecutive=None), [True] * 99, CLOSED),
        (CircuitBreaker(failure_share=1, min_calls=7), [False] + [True] * 5, OPEN),  # whichever comes first
    ],
)
def test_what_opens_it(config: CircuitBreaker, ends: Sequence[bool | None], state: Circuit) -> None:
    """Failures in a row, or a share of at least five calls."""
    breaker = breaker_of(config)
    changes = [call(breaker, failed, 1.0) for failed in ends]
    assert breaker.state(1) is state
    assert breaker.allows(1) == (state is CLOSED)
    assert changes == [None] * (len(ends) - 1) + [OPEN if state is OPEN else None]


@pytest.mark.parametrize(
    ("failures_at", "state"),
    [
        ([0, 0, 0, 27, 27], OPEN),
        ([0, 0, 0, 30, 30], CLOSED),  # the first three are forgotten
        ([0, 10, 20, 27, 29], OPEN),
        ([0, 3, 6, 9, 30, 32, 33], OPEN),  # those of 6, 9 and later are five
        ([0, 3, 6, 9, 30, 35], CLOSED),
        ([0, 0, 0, 0, 1e12], CLOSED),
        ([3, 3, 3, 3, 300], CLOSED),
    ],
)
def test_the_share_is_of_a_sliding_window(failures_at: Sequence[float], state: Circuit) -> None:
    """Of 30 s, which slides by 3 s at a time."""
    breaker = breaker_of(BY_SHARE)
    for now in failures_at:
        call(breaker, True, now)
    assert breaker.state(failures_at[-1]) is state


def test_old_successes_are_forgotten_too() -> None:
    """An endpoint that worked well until it broke down is not called for long."""
    breaker = breaker_of(BY_SHARE)
    for _ in range(1000):
        call(breaker, False, 0)
    changes = [call(breaker, True, 31.0) for _ in range(5)]
    assert changes[-1] is OPEN


def test_open_half_open_closed() -> None:
    """Nothing for five seconds, then one call; its success closes the circuit."""
    breaker = open_at(100)
    assert breaker.next_at == 105
    assert (breaker.state(104.999), breaker.allows(104.999)) == (OPEN, False)
    assert (breaker.state(105), breaker.allows(105)) == (HALF_OPEN, True)
    breaker.begin(106)
    assert (breaker.state(107), breaker.allows(107)) == (HALF_OPEN, False)
    assert breaker.note(False, 108, 106) is CLOSED
    assert (breaker.state(108), breaker.allows(108)) == (CLOSED, True)
    assert [call(breaker, True, 109) for _ in range(4)] == [None] * 4  # and all begins anew
    assert call(breaker, True, 109) is OPEN
    assert breaker.next_at == 114


def test_a_window_begins_anew_too() -> None:
    """The failures that opened the circuit do not open it again."""
    breaker = open_at(0, BY_SHARE)
    assert call(breaker, False, 5) is CLOSED
    assert [call(breaker, True, 5) for _ in range(4)] == [None] * 4


def test_failed_probes_double_the_time() -> None:
    """From 5 s to 300 s, counted from the failure."""
    breaker, now, waits = open_at(0), 0.0, []
    for _ in range(8):
        assert breaker.next_at is not None
        waits.append(breaker.next_at - now)
        now = breaker.next_at + 1
        assert call(breaker, True, now) is OPEN
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300]


@pytest.mark.parametrize(("draw", "wait"), [(0.0, 4.0), (0.5, 5.0), (0.75, 5.5)])
def test_the_time_has_jitter(draw: float, wait: float) -> None:
    """A fifth either way, so that not all clients probe at once."""
    assert open_at(0, CircuitBreaker(), draw).next_at == pytest.approx(wait)


def test_a_probe_that_says_nothing_makes_room_for_the_next() -> None:
    """Nothing else changes."""
    breaker = open_at(0)
    breaker.begin(6)
    assert not breaker.allows(6)
    assert breaker.note(None, 7, 6) is None
    assert (breaker.state(7), breaker.allows(7)) == (HALF_OPEN, True)
    assert call(breaker, False, 8) is CLOSED


@pytest.mark.parametrize("failed", [True, False, None])
def test_an_old_call_says_nothing_of_a_new_time(failed: bool | None) -> None:
    """One that began before the circuit opened neither opens nor closes it, and lets no second probe go."""
    breaker = open_at(10)
    assert breaker.note(failed, 11, 9) is None
    assert breaker.next_at == 15
    breaker.begin(15)
    assert breaker.note(failed, 16, 9) is None
    assert not breaker.allows(16)
    assert breaker.note(False, 17, 15) is CLOSED
    for _ in range(9):
        assert breaker.note(failed, 18, 9) is None
    assert breaker.state(18) is CLOSED


@pytest.mark.parametrize("failed", [True, False, None])
def test_a_call_that_did_not_ask_is_no_probe(failed: bool | None) -> None:
    """Whether it began before the probe or beside it."""
    breaker = open_at(10)
    breaker.begin(12)
    breaker.begin(15)
    breaker.begin(16)
    for began in (12, 16):
        assert breaker.note(failed, 17, began) is None
    assert (breaker.state(17), breaker.allows(17)) == (HALF_OPEN, False)
    assert breaker.note(False, 18, 15.001) is CLOSED  # the time goes on within one step


def test_a_probe_counts_if_another_call_begins_at_the_same_time() -> None:
    """A clock may be coarse."""
    breaker = open_at(10)
    breaker.begin(15)
    breaker.begin(15)
    assert breaker.note(False, 16, 15) is CLOSED


@pytest.mark.parametrize(("backoff", "patience"), [(STEADY, 5), (Backoff(initial=60), 60), (Backoff(initial=0), 5)])
def test_a_probe_that_does_not_end_makes_room_for_the_next(backoff: Backoff, patience: float) -> None:
    """After as long as the circuit was open. Its own end says nothing by then."""
    breaker = open_at(0, CircuitBreaker(backoff=backoff))
    breaker.begin(100)
    assert breaker.next_at == 100 + patience
    assert (breaker.state(99.9 + patience), breaker.allows(99.9 + patience)) == (HALF_OPEN, False)
    assert (breaker.state(100 + patience), breaker.allows(100 + patience)) == (HALF_OPEN, True)
    breaker.begin(200)
    assert breaker.note(True, 201, 100) is None
    assert (breaker.state(201), breaker.allows(201)) == (HALF_OPEN, False)
    assert breaker.note(False, 202, 200) is CLOSED


class Calls(RuleBasedStateMachine):
    """Callers who ask before they call, some who do not, and calls that end in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = breaker_of(CircuitBreaker(consecutive=1, backoff=Backoff(initial=5, factor=1, jitter=0)))
        self.now = 0.0
        self.under_way: list[float] = []
        self.probe: float | None = None

    @rule(seconds=st.sampled_from([0.1, 1, 5, 40]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(asks=st.sampled_from([True, True, False]))
    def call(self, asks: bool) -> None:
        self.now += 0.001  # nothing takes no time at all
        allowed = self.breaker.allows(self.now)
        if asks and not allowed:
            return
        self.breaker.begin(self.now)
        if allowed and self.breaker.state(self.now) is HALF_OPEN:
            assert self.probe not in self.under_way or self.now - (self.probe or 0) >= 5
            self.probe = self.now
        self.under_way.append(self.now)

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), failed=st.sampled_from([True, False, None]))
    def end(self, data: st.DataObject, failed: bool | None) -> None:
        self.now += 0.001
        began = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
        state = self.breaker.state(self.now)
        change = self.breaker.note(failed, self.now, began)
        if state is HALF_OPEN and began == self.probe:
            assert change is {True: OPEN, False: CLOSED, None: None}[failed]
        elif state is not CLOSED:
            assert change is None
        assert self.breaker.state(self.now) is (change or state)

    @invariant()
    def one_probe_at_a_time(self) -> None:
        state = self.breaker.state(self.now)
        probing = self.probe in self.under_way and self.now - (self.probe or 0) < 5
        assert self.breaker.allows(self.now) == (state is CLOSED or (state is HALF_OPEN and not probing))


Calls.TestCase.settings = settings(stateful_step_count=30, max_examples=100)
TestCalls = Calls.TestCase
