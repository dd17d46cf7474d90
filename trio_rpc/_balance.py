"""Which of many endpoints a call goes to: pure decisions, with the clock and randomness passed in.

A policy is asked once for each call, so it looks at few candidates and makes no objects. What it needs of a candidate
is a `Candidate`; where nothing is free, nothing is chosen.

Weights say how much an endpoint can bear beside the others. With turns they are its share of calls; where the load
decides, they are its share of the calls under way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from ._placement import NamedPlace
from ._policies import Balance, LeastInFlight, PowerOfTwo, RoundRobin

__all__ = ["Candidate", "Load", "Policy", "load_for", "policy_of", "ramp"]

SMALLEST_SHARE = 0.1
"""What a newcomer gets at once of its weight (Envoy's `min_weight_percent`: 10 %)."""
UNKNOWN = 1000.0
"""Seconds that an endpoint without any answer is taken for once it has calls; it fades like a latency."""
FEW = 16
"""So many candidates are all looked at by the least in flight."""
CHOICES = 4
TRIES = 8
"""Draws of a candidate by its weight, before all are looked at to do it in one."""
IN_A_ROW = 5
"""Failures in a row that are believed at once, as by ejection and circuit breakers."""
MOST_KEPT = 0.9
"""Of a latency above the latest answer, however short the time between the two."""
MUCH_LONGER = 3.0
"""Than its answers take: what a call must have waited for before its passed deadline speaks against the endpoint."""
LONG = 1.0
"""The same in seconds, for an endpoint that has not answered yet."""
JITTER = 1e-6
"""Of its weight: what parts those whose turn it is equally, so that not every client begins with the same one."""


def ramp(weight: float, since: float, now: float, slow_start: float | None) -> float:
    """The weight of an endpoint that has taken calls since `since`: from a tenth to the whole, within `slow_start`.

    Envoy's slow start, with its aggression of 1.
    """
    if slow_start is None or now - since >= slow_start:
        return weight
    return weight * max(SMALLEST_SHARE, (now - since) / slow_start)


class Load:
    """How long an endpoint takes to answer: a moving average that believes bad news at once and good news slowly.

    Finagle's and Linkerd's peak EWMA. A latency above the average replaces it; one below pulls it down, the more the
    longer it is since the last. Without news it fades, so that a slow endpoint is tried again; by one call, as from
    then on it fades anew until there is an answer.

    A faster answer takes back at least a tenth of what the average is above it. By time alone the worst moment of the
    last 10 s would stand for an endpoint however many calls it has answered since, and on a busy machine all have such
    moments. Simulated: 400 calls a second to three servers of which one takes ten times as long, and stalls of 20 ms
    that befall one or other of them twice a second: 3.2 % of the calls went to the slow one by time alone, 0.3 % so.

    Failures are a share of the calls, with the same decay, that counts as `failure_penalty`; the fifth in a row makes
    it the whole. If each did, one failed call in 10,000 would keep the endpoint idle for a minute while the others do
    its work: measured with three of them, busy to 58 %, that makes the callers' p99 nearly three times as long. All
    times are seconds.
    """

    __slots__ = (
        "_answers",
        "_average",
        "_decay",
        "_failed",
        "_failing",
        "_failure_penalty",
        "_idle_at",
        "_late_at",
        "_sampled_at",
        "_usual",
    )

    _answers: float
    _failing: float
    _failed: int
    _sampled_at: float | None
    _idle_at: float
    _usual: float | None
    """What answers take, without peaks."""
    _late_at: float

    def __init__(self, decay: float, failure_penalty: float) -> None:
        self._decay, self._failure_penalty = decay, failure_penalty
        self._answers = self._failing = self._average = 0.0
        self._failed = 0
        self._sampled_at = self._usual = None
        self._idle_at = self._late_at = -math.inf

    def note_success(self, latency: float, now: float) -> None:
        """A call was answered after `latency`."""
        self._usual = latency if self._usual is None else self._usual + (latency - self._usual) / 8
        kept = self._kept(now)
        self._failed, self._failing = 0, self._failing * kept
        if latency < self._answers:
            latency += (self._answers - latency) * min(kept, MOST_KEPT)
        self._take(latency, now)

    def note_failure(self, now: float) -> None:
        """A call failed, however fast: that never makes an endpoint look better."""
        self._failed += 1
        self._failing = 1.0 if self._failed >= IN_A_ROW else 1.0 - (1.0 - self._failing) * self._kept(now)
        self._take(self._answers, now)

    def note_cancelled(self, elapsed: float, now: float) -> None:
        """A call was given up without an answer; it says something if that would have been a slow one."""
        if elapsed > self._average:
            self._take(elapsed, now)

    def is_too_late(self, elapsed: float, now: float) -> bool:
        """Whether a call that had no answer for so long, when its deadline passed, is a failure of the endpoint.

        One deadline often spans a block of many calls, and then says nothing of those that had only just begun. And
        all that end in one instant are one observation.
        """
        if elapsed <= (LONG if self._usual is None else MUCH_LONGER * self._usual) or now == self._late_at:
            return False
        self._late_at = now
        return True

    def _kept(self, now: float) -> float:
        """What time has left of the past."""
        return 0.0 if self._sampled_at is None else math.exp((self._sampled_at - now) / self._decay)

    def _take(self, answers: float, now: float) -> None:
        self._answers = answers
        self._average = answers + self._failing * max(0.0, self._failure_penalty - answers)
        self._sampled_at = now

    def latency(self, now: float) -> float:
        """The average as of now; 0 while there was no answer."""
        return 0.0 if self._sampled_at is None else self._average * math.exp((self._sampled_at - now) / self._decay)

    def cost(self, in_flight: int, now: float) -> float:
        """The time that a further call would take, if those under way went one by one.

        Nothing for who has not answered yet and has nothing to do, so that newcomers are tried; a lot for who has
        not answered yet but has calls.
        """
        since = self._sampled_at
        if not in_flight:
            self._idle_at = now
            return self._average * math.exp((since - now) / self._decay) if since is not None else 0.0
        if self._idle_at == -math.inf:
            self._idle_at = now
        if since is None:
            return UNKNOWN * math.exp((self._idle_at - now) / self._decay) * in_flight
        return self._average * math.exp((max(since, self._idle_at) - now) / self._decay) * (in_flight + 1)


class Candidate(NamedPlace, Protocol):
    """What is asked of an endpoint to balance; weights are above 0."""

    @property
    def load(self) -> Load:
        """What is known of its latency."""
        ...

    def weight_at(self, now: float, /) -> float:
        """Its weight, slow start included."""
        ...


C = TypeVar("C", bound=Candidate)


class Policy(Protocol):
    """One way to balance."""

    def choose(self, candidates: Sequence[C], now: float, rng: Callable[[], float]) -> C | None:
        """The candidate for one more call, which has a free place; None if none has. `rng` yields numbers in [0, 1)."""
        ...


def policy_of(balance: Balance) -> Policy:
    """What does as this setting says, for one pool."""
    match balance:
        case LeastInFlight():
            return FewestCalls()
        case RoundRobin():
            return Turns()
        case PowerOfTwo():
            return TwoChoices()


def load_for(balance: Balance) -> Load:
    """What watches one endpoint's latency, as this setting says."""
    power = balance if isinstance(balance, PowerOfTwo) else PowerOfTwo()
    return Load(power.decay, power.failure_penalty)


class Draw:
    """Random indices of candidates, in proportion to their weights."""

    __slots__ = ("_heaviest",)

    _heaviest: float

    def __init__(self) -> None:
        self._heaviest = 0.0

    def index(self, candidates: Sequence[Candidate], now: float, rng: Callable[[], float]) -> int:
        """One index.

        By rejection: an even draw stands with a chance of its weight by that of the heaviest one seen, which with
        equal weights is certain. Where hardly any stands, because weights differ much or the heaviest has left, all
        are looked at.
        """
        count = len(candidates)
        for _ in range(TRIES):
            index = int(rng() * count)
            weight = candidates[index].weight_at(now)
            if weight >= self._heaviest:
                self._heaviest = weight
                return index
            if rng() * self._heaviest < weight:
                return index
        return self._by_all(candidates, now, rng)

    def another(self, index: int, candidates: Sequence[Candidate], now: float, rng: Callable[[], float]) -> int:
        """One index that is not this one. There are at least two candidates."""
        other = self.index(candidates, now, rng)
        if other != index:
            return other
        other = int(rng() * (len(candidates) - 1))
        return other + 1 if other >= index else other

    def _by_all(self, candidates: Sequence[Candidate], now: float, rng: Callable[[], float]) -> int:
        total = heaviest = 0.0
        for candidate in candidates:
            weight = candidate.weight_at(now)
            total += weight
            heaviest = max(heaviest, weight)
        self._heaviest = heaviest
        left = rng() * total
        for index, candidate in enumerate(candidates):
            left -= candidate.weight_at(now)
            if left < 0:
                return index
        return len(candidates) - 1


class TwoChoices:
    """The cheaper of two that are drawn at random, which is nearly as even as the cheapest of all (Mitzenmacher, 1996).

    And better where many clients choose, as these do not all run to the one that was the best a moment ago. Cheap is
    a low cost for its weight. All are looked at only if neither of the two has a free place.
    """

    __slots__ = ("_draw",)

    def __init__(self) -> None:
        self._draw = Draw()

    def choose(self, candidates: Sequence[C], now: float, rng: Callable[[], float]) -> C | None:
        """As `Policy` says."""
        if len(candidates) < 2:
            return candidates[0] if candidates and candidates[0].free > 0 else None
        index = self._draw.index(candidates, now, rng)
        one, other = candidates[index], candidates[self._draw.another(index, candidates, now, rng)]
        if one.free > 0:
            return other if other.free > 0 and _price(other, now) < _price(one, now) else one
        return other if other.free > 0 else _cheapest(candidates, now)


def _price(candidate: Candidate, now: float) -> float:
    return candidate.load.cost(candidate.in_flight, now) / candidate.weight_at(now)


def _cheapest(candidates: Sequence[C], now: float) -> C | None:
    best: C | None = None
    lowest = math.inf
    for candidate in candidates:
        if candidate.free > 0:
            price = _price(candidate, now)
            if best is None or price < lowest:
                best, lowest = candidate, price
    return best


class FewestCalls:
    """The one with the fewest calls under way for its weight; of equals a random one.

    Of more than FEW, the best of CHOICES that are drawn, and all only if none of these has a free place.
    """

    __slots__ = ("_draw",)

    def __init__(self) -> None:
        self._draw = Draw()

    def choose(self, candidates: Sequence[C], now: float, rng: Callable[[], float]) -> C | None:
        """As `Policy` says."""
        count = len(candidates)
        best: C | None = None
        lowest = math.inf
        if count > FEW:
            for _ in range(CHOICES):
                best, lowest = _fewer(candidates[self._draw.index(candidates, now, rng)], best, lowest, now)
            if best is not None:
                return best
        start = self._draw.index(candidates, now, rng) if count else 0
        for index in range(start - count, start):  # from the drawn one, once around
            best, lowest = _fewer(candidates[index], best, lowest, now)
            if not lowest:  # there is nothing below
                break
        return best


def _fewer(candidate: C, best: C | None, lowest: float, now: float) -> tuple[C | None, float]:
    """The better one of two, the first of equals, and how many calls it has for its weight."""
    if candidate.free > 0:
        calls = candidate.in_flight / candidate.weight_at(now)
        if best is None or calls < lowest:
            return candidate, calls
    return best, lowest


class Turns:
    """Each in its turn, as often as its weight says and spread evenly: nginx's smooth weighted round robin.

    With every choice each candidate earns its weight, and the richest is chosen and pays for all. Over a cycle (as
    many choices as the weights' sum, if they are whole numbers) each is chosen exactly as often as its weight. One
    without a free place misses its turns.
    """

    __slots__ = ("_earned",)

    _earned: dict[str, float]

    def __init__(self) -> None:
        self._earned = {}

    def choose(self, candidates: Sequence[C], now: float, rng: Callable[[], float]) -> C | None:
        """As `Policy` says."""
        best: C | None = None
        most = -math.inf
        total = 0.0
        earned = self._earned
        for candidate in candidates:
            if candidate.free <= 0:
                continue
            name, weight = candidate.name, candidate.weight_at(now)
            before = earned.get(name)
            now_earned = earned[name] = weight + (rng() * JITTER * weight if before is None else before)
            total += weight
            if now_earned > most:
                best, most = candidate, now_earned
        if best is not None:
            earned[best.name] = most - total
            if len(earned) > 2 * len(candidates):
                self._forget(candidates)
        return best

    def _forget(self, candidates: Sequence[Candidate]) -> None:
        """Drop those that have left; not at each choice, as a candidate may be left out for one call."""
        here = {candidate.name for candidate in candidates}
        self._earned = {name: earned for name, earned in self._earned.items() if name in here}
