"""Pure decisions of a pool with many endpoints: which one a call goes to."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence

import attrs
import pytest
from hypothesis import given, strategies as st

from trio_rpc._balance import Load, Policy, load_for, policy_of, ramp
from trio_rpc._policies import Balance, LeastInFlight, PowerOfTwo, RoundRobin
from trio_rpc._rendezvous import Rendezvous

BALANCES: list[Balance] = [LeastInFlight(), RoundRobin(), PowerOfTwo()]


@attrs.define
class Place:
    """One endpoint, as its pool sees it."""

    name: str
    free: int = 1000
    in_flight: int = 0
    weight: float = 1.0
    load: Load = attrs.field(factory=lambda: Load(decay=10, failure_penalty=5))

    def weight_at(self, _now: float) -> float:
        return self.weight


def places(*weights: float) -> list[Place]:
    """Idle endpoints called a, b, c..."""
    return [Place(name, weight=weight) for name, weight in zip("abcdefghijklmnopqrstuvwxyz", weights, strict=False)]


def chosen(policy: Policy, among: Sequence[Place], times: int, rng: Callable[[], float] | None = None) -> str:
    """The names of so many choices, in order."""
    rng = rng or random.Random(1).random
    picks = [policy.choose(among, 0.0, rng) for _ in range(times)]
    return "".join(pick.name for pick in picks if pick is not None)


def shares(names: str) -> dict[str, float]:
    """How often each name comes, as a share."""
    return {name: count / len(names) for name, count in Counter(names).items()}


# -- what all policies have in common ----------------------------------------------------------------------------------


@given(
    st.sampled_from(BALANCES),
    st.lists(st.tuples(st.integers(-1, 2), st.integers(0, 9), st.floats(0.01, 100)), max_size=40),
    st.randoms(use_true_random=False),
)
def test_a_free_place_is_found_if_there_is_one(
    balance: Balance, rows: list[tuple[int, int, float]], rng: random.Random
) -> None:
    """Whatever is free, in flight and weighed: only one with room is chosen, and none only if none has any."""
    among = [Place(str(number), *row) for number, row in enumerate(rows)]
    policy = policy_of(balance)
    for _ in range(3):
        pick = policy.choose(among, 0.0, rng.random)
        assert pick in [place for place in among if place.free > 0] if pick else all(p.free <= 0 for p in among)


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("count", [1000, 17, 3])
def test_the_last_free_place_is_found(balance: Balance, count: int) -> None:
    """However many are full, and whichever the random ones are."""
    among = [*(Place(str(number), free=0) for number in range(count)), Place("x", in_flight=99)]
    for draw in (0.0, 0.5, 0.999999):
        assert chosen(policy_of(balance), among, 1, itertools.repeat(draw).__next__) == "x"


@pytest.mark.parametrize("balance", BALANCES)
def test_not_every_client_begins_with_the_same_endpoint(balance: Balance) -> None:
    """A thousand clients that start at once, with one call each, spread these."""
    first = "".join(
        chosen(policy_of(balance), places(1, 1, 1, 1), 1, random.Random(seed).random) for seed in range(1000)
    )
    assert all(0.2 < share < 0.3 for share in shares(first).values())
    assert len(shares(first)) == 4


# -- the least in flight -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(3, 1), (2, 1), (4, 1)], "b"),
        ([(3, 1), (2, 0.5), (4, 2)], "c"),  # for their weights: 3, 4 and 2
        ([(1, 1), (0, 0.01), (1, 100)], "b"),  # nothing is less than nothing
        ([(9, 1)], "a"),
    ],
)
def test_the_fewest_calls_for_the_weight(rows: list[tuple[int, float]], expected: str) -> None:
    """Whichever is looked at first."""
    among = [Place(name, 1, *row) for name, row in zip("abc", rows, strict=False)]
    for draw in (0.0, 0.4, 0.8):
        assert chosen(policy_of(LeastInFlight()), among, 1, itertools.repeat(draw).__next__) == expected


@pytest.mark.parametrize("weights", [(1, 1, 1), (6, 3, 1), (1, 1, 98), (0.001, 0.002, 0.003)])
def test_idle_endpoints_are_drawn_by_their_weights(weights: tuple[float, ...]) -> None:
    """Where nothing else parts them; also after a much heavier one has left."""
    policy = policy_of(LeastInFlight())
    chosen(policy, places(*weights, 1000), 10)
    drawn = shares(chosen(policy, places(*weights), 20_000))
    assert drawn == {
        name: pytest.approx(weight / sum(weights), abs=0.01) for name, weight in zip("abc", weights, strict=True)
    }


@attrs.define
class Watched(Place):
    """An endpoint that tells when it is looked at."""

    seen: list[str] = attrs.field(factory=list)

    def weight_at(self, _now: float) -> float:
        self.seen.append(self.name)
        return self.weight


@pytest.mark.parametrize(("balance", "most"), [(LeastInFlight(), 4), (PowerOfTwo(), 2)])
def test_of_many_endpoints_a_few_are_looked_at(balance: Balance, most: int) -> None:
    """A call costs the same in a pool of any size."""
    seen: list[str] = []
    among = [Watched(str(number), in_flight=number + 1, seen=seen) for number in range(1000)]
    policy, rng = policy_of(balance), random.Random(1)
    policy.choose([Watched("a heavy one that leaves", weight=1e6, seen=seen), Watched("another")], 0.0, rng.random)
    policy.choose(among, 0.0, rng.random)  # this one may look at all, to learn that it has left
    for _ in range(100):
        seen.clear()
        policy.choose(among, 0.0, rng.random)
        assert len(set(seen)) <= most


def test_one_heavy_among_many() -> None:
    """Where nearly every even draw is rejected, the shares are right all the same."""
    among = [Place("f", weight=1), *(Place("l", weight=1) for _ in range(49)), Place("h", weight=50)]
    drawn = shares(chosen(policy_of(LeastInFlight()), among, 6000))
    assert drawn == {
        "f": pytest.approx(0.01, abs=0.003),
        "l": pytest.approx(0.49, abs=0.02),
        "h": pytest.approx(0.5, abs=0.02),
    }


# -- turns -------------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=8),
    st.sampled_from([0.25, 1.0, 64.0]),
    st.randoms(use_true_random=False),
)
def test_turns_are_exact_over_each_cycle(weights: list[int], unit: float, rng: random.Random) -> None:
    """Each endpoint is chosen exactly as often as its weight says, whatever the unit, cycle after cycle."""
    among = places(*(weight * unit for weight in weights))
    policy = policy_of(RoundRobin())
    for _ in range(3):
        counts = Counter(chosen(policy, among, sum(weights), rng.random))
        assert counts == {place.name: weight for place, weight in zip(among, weights, strict=True)}


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=8), st.integers(1, 200))
def test_turns_never_fall_far_behind(weights: list[float], choices: int) -> None:
    """With any weights, after any number of choices, each endpoint is less than one cycle's worth off its share."""
    among = places(*weights)
    counts = Counter(chosen(policy_of(RoundRobin()), among, choices))
    for place in among:
        assert abs(counts[place.name] - choices * place.weight / sum(weights)) < len(among)


def test_turns_are_spread() -> None:
    """The heavy one's are not taken in one go."""
    names = chosen(policy_of(RoundRobin()), places(5, 1, 1), 70)
    assert "aaaaa" not in names
    assert "bb" not in names
    assert max(len(run) for run in names.replace("c", "b").split("b")) == 4


def test_who_is_full_misses_turns() -> None:
    """And does not catch up on them later."""
    policy, among = policy_of(RoundRobin()), places(1, 1, 1)
    among[0].free = 0
    assert Counter(chosen(policy, among, 100)) == {"b": 50, "c": 50}
    among[0].free = 1
    assert Counter(chosen(policy, among, 9)) == {"a": 3, "b": 3, "c": 3}


def test_turns_go_on_where_endpoints_come_and_go() -> None:
    """Who stays keeps its place, who comes is served within the cycle; who left may come again."""
    policy, among = policy_of(RoundRobin()), places(*[1] * 26)
    chosen(policy, among, 26)
    assert sorted(chosen(policy, among[:2], 2)) == ["a", "b"]
    chosen(policy, among[:2], 100)
    assert sorted(chosen(policy, among, 26)) == sorted("abcdefghijklmnopqrstuvwxyz")


# -- latency -----------------------------------------------------------------------------------------------------------

Step = tuple[str, float, float]
E = math.exp(-1)


@pytest.mark.parametrize(
    ("steps", "in_flight", "now", "cost"),
    [
        ([("ok", 0.1, 0)], 0, 0, 0.1),
        ([("ok", 0.1, 0)], 3, 0, 0.4),  # behind three others
        ([("ok", 0.1, 0), ("ok", 0.3, 0)], 0, 0, 0.3),  # slower: at once
        ([("ok", 0.3, 0), ("ok", 0.1, 0)], 0, 0, 0.28),  # faster: a tenth of the excess, however little time has passed
        ([("ok", 0.3, 0), ("ok", 0.1, 10)], 0, 10, 0.1 + 0.2 * E),
        ([("ok", 0.3, 0), ("ok", 0.1, 1e9)], 0, 1e9, 0.1),
        ([("ok", 0.1, 0)], 0, 10, 0.1 * E),  # without news it fades
        ([("ok", 0.1, 0)], 0, 1e9, 0),
        ([("failed", 0, 0)], 0, 0, 5),
        ([("ok", 0.1, 0), ("failed", 0, 0)], 0, 0, 0.1),  # one alone: gradually
        ([("ok", 0.1, 0), ("failed", 0, 0.001)], 0, 0.001, 0.1 + 4.9 * -math.expm1(-0.0001)),  # of many: hardly
        ([("ok", 0.1, 0), ("failed", 0, 10)], 0, 10, 5 - 4.9 * E),  # of few: a lot
        ([("ok", 0.1, 0), *[("failed", 0, 0)] * 4], 0, 0, 0.1),
        ([("ok", 0.1, 0), *[("failed", 0, 0)] * 5], 0, 0, 5),  # five in a row: at once
        ([("ok", 0.1, 0), *[("failed", 0, 0)] * 4, ("ok", 0.1, 0), *[("failed", 0, 0)] * 4], 0, 0, 0.1),
        ([("ok", 9, 0), *[("failed", 0, 10)] * 5], 0, 10, 9),  # a failure never lowers it
        ([("failed", 0, 0)], 0, 20, 5 * E * E),
        ([("ok", 0.1, 0), ("cancelled", 0.3, 0)], 0, 0, 0.3),
        ([("ok", 0.3, 0), ("cancelled", 0.1, 10)], 0, 0, 0.3),  # it says only that it was no quicker
        ([("cancelled", 0.3, 0)], 0, 0, 0.3),
        ([], 0, 0, 0),  # a newcomer
    ],
)
def test_what_a_call_costs(steps: list[Step], in_flight: int, now: float, cost: float) -> None:
    """Exact figures of the peak-sensitive average, with a decay of 10 s and a penalty of 5 s."""
    load = load_for(PowerOfTwo())
    for kind, latency, when in steps:
        match kind:
            case "ok":
                load.note_success(latency, when)
            case "failed":
                load.note_failure(when)
            case _:
                load.note_cancelled(latency, when)
    assert load.cost(in_flight, now) == pytest.approx(cost)


def test_a_newcomer_is_tried_by_one_call() -> None:
    """Then it costs more than any that has answered; not for ever, as that one call may be a long stream."""
    load = load_for(PowerOfTwo())
    assert load.latency(100) == load.cost(0, 100) == 0
    assert load.cost(1, 100) == load_for(PowerOfTwo()).cost(1, 100) == 1000
    assert load.cost(2, 110) == pytest.approx(2000 * E)
    assert load.cost(1, 300) < 0.001


def test_a_slow_endpoint_is_tried_again_by_one_call() -> None:
    """Its latency has faded while it had nothing to do, but counts again as soon as it has something to do."""
    load = load_for(PowerOfTwo())
    load.note_success(2.0, 0)
    for now in (100, 200):
        assert load.cost(0, now) < 0.001
        assert load.cost(1, now) == pytest.approx(4)
        assert load.cost(1, now + 10) == pytest.approx(4 * E)
    assert load.latency(200) < 0.001


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=20))
def test_the_average_lies_among_the_latencies(samples: list[tuple[float, float]]) -> None:
    """And is never below the latest."""
    load, now = load_for(PowerOfTwo()), 0.0
    for latency, pause in samples:
        now += pause
        load.note_success(latency, now)
        assert latency <= load.cost(0, now) <= max(latency for latency, _ in samples)


@pytest.mark.parametrize(
    ("age", "slow_start", "expected"),
    [(0, 100, 0.2), (9, 100, 0.2), (25, 100, 0.5), (100, 100, 2), (150, 100, 2), (0, None, 2), (-1, 100, 0.2)],
)
def test_a_newcomers_weight_rises(age: float, slow_start: float | None, expected: float) -> None:
    """From a tenth of the whole, evenly."""
    assert ramp(2.0, 50.0, 50.0 + age, slow_start) == pytest.approx(expected)


# -- the power of two choices ------------------------------------------------------------------------------------------


def answered(*latencies: float | None, weights: Sequence[float] = ()) -> list[Place]:
    """Endpoints that have answered once after so long, at 0 s; None: not yet."""
    among = places(*(weights or [1] * len(latencies)))
    for place, latency in zip(among, latencies, strict=True):
        if latency is not None:
            place.load.note_success(latency, 0.0)
    return among


def test_the_cheaper_of_two() -> None:
    """Of three, the dearest is never chosen, and the cheapest whenever it is drawn."""
    drawn = shares(chosen(policy_of(PowerOfTwo()), answered(0.1, 0.2, 0.3), 3000))
    assert drawn == {"a": pytest.approx(2 / 3, abs=0.03), "b": pytest.approx(1 / 3, abs=0.03)}


@pytest.mark.parametrize(
    ("in_flight", "weights", "expected"),
    [
        ((0, 0), (1, 1), "a"),  # 0.1 against 0.5 s
        ((3, 0), (1, 1), "a"),  # 0.4 against 0.5 s
        ((5, 0), (1, 1), "b"),  # 0.6 against 0.5 s
        ((5, 0), (2, 1), "a"),  # it can bear twice as much
        ((0, 1), (0.1, 1), "ab"),  # 1 against 1
    ],
)
def test_latency_calls_and_weight(in_flight: tuple[int, int], weights: tuple[float, float], expected: str) -> None:
    """The cost is the latency times the calls, over the weight."""
    among = answered(0.1, 0.5, weights=weights)
    for place, calls in zip(among, in_flight, strict=True):
        place.in_flight = calls
    assert set(chosen(policy_of(PowerOfTwo()), among, 100)) == set(expected)


def test_where_two_are_full_the_cheapest_of_all() -> None:
    """Only then are all looked at."""
    among = answered(0.1, 0.2, 0.4, 0.3, 0.5)
    among[0].free = among[1].free = 0
    assert chosen(policy_of(PowerOfTwo()), among, 1, itertools.repeat(0.0).__next__) == "d"


def test_newcomers_are_tried_first_and_then_left_until_they_answer() -> None:
    """Each gets one call."""
    policy, rng, among = policy_of(PowerOfTwo()), random.Random(1).random, answered(0.1, None)
    picks = ""
    for _ in range(50):
        place = policy.choose(among, 0.0, rng)
        assert place is not None
        picks += place.name
        place.in_flight += 1
    assert picks == "b" + "a" * 49


def test_fast_errors_attract_nothing() -> None:
    """An endpoint that fails each call in no time loses its traffic after five, and for a minute."""
    policy, rng, among, now = policy_of(PowerOfTwo()), random.Random(1).random, answered(0.1, 0.1), 0.0
    failed = 0
    for _ in range(6000):
        now += 0.01
        place = policy.choose(among, now, rng)
        if place is among[0]:
            among[0].load.note_success(0.1, now)
        else:
            failed += 1
            among[1].load.note_failure(now)
    assert failed <= 6


# -- a small world of queues -------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Server:
    """One server that handles `weight` calls at a time, each for about `service` seconds, and the client's view of it."""

    name: str
    service: float
    load: Load
    weight: float = 1.0
    queue: deque[float] = attrs.field(factory=deque)
    """When its calls began; those at the head are being handled."""
    free: int = 1_000_000
    served: int = 0

    @property
    def in_flight(self) -> int:
        return len(self.queue)

    def weight_at(self, _now: float) -> float:
        return self.weight


def latencies(balance: Balance, servers: list[Server], rate: float, calls: int) -> list[float]:
    """What each of so many calls took, shortest first. They come at random; each server works through its queue."""
    rng, policy, now = random.Random(1), policy_of(balance), 0.0
    order = itertools.count()
    events: list[tuple[float, int, Server | None]] = [(0.0, next(order), None)]
    took: list[float] = []

    def begin(server: Server) -> None:
        heapq.heappush(events, (now + server.service * rng.uniform(0.8, 1.2), next(order), server))

    while len(took) < calls:
        now, _, server = heapq.heappop(events)
        if server is None:
            heapq.heappush(events, (now + rng.expovariate(rate), next(order), None))
            server = policy.choose(servers, now, rng.random)
            assert server is not None
            server.queue.append(now)
            if len(server.queue) <= server.weight:
                begin(server)
            continue
        took.append(now - server.queue.popleft())
        server.served += 1
        server.load.note_success(took[-1], now)
        if len(server.queue) >= server.weight:
            begin(server)
    return sorted(took)


def p99(balance: Balance, *services: float) -> float:
    """Of 10,000 calls, 100 a second, to servers with these service times."""
    servers = [Server(str(number), service, load_for(balance)) for number, service in enumerate(services)]
    return latencies(balance, servers, 100, 10_000)[9_900]


def test_one_slow_server_of_three_hardly_shows() -> None:
    """With one ten times slower, the client's p99 is at most doubled by the power of two choices, not so by turns."""
    equal, slow = (0.005, 0.005, 0.005), (0.005, 0.005, 0.05)
    assert p99(PowerOfTwo(), *slow) <= 2 * p99(PowerOfTwo(), *equal)
    assert p99(RoundRobin(), *slow) > 20 * p99(RoundRobin(), *equal)
    assert p99(LeastInFlight(), *slow) > 5 * p99(LeastInFlight(), *equal)


@pytest.mark.parametrize("balance", BALANCES)
def test_under_load_weights_are_shares(balance: Balance) -> None:
    """Nine servers of one worker and one of ten, busy to 90 %: the big one bears its half, and nobody queues for long.

    Of two that are drawn evenly it would be one in a fifth of all cases.
    """
    servers = [Server(str(n), 0.01, load_for(balance), weight) for n, weight in enumerate([10, *[1] * 9])]
    took = latencies(balance, servers, rate=0.9 * 1900, calls=10_000)
    assert servers[0].served / 10_000 == pytest.approx(10 / 19, abs=0.06)
    assert took[9_900] < 0.04


# -- routing keys ------------------------------------------------------------------------------------------------------

KEYS = [f"key {number}" for number in range(2000)]
weighted = st.dictionaries(st.text(max_size=5), st.floats(0.1, 10), min_size=1, max_size=8)


def homes(weights: dict[str, float], keys: Sequence[str] = KEYS) -> dict[str, str]:
    """Which endpoint serves each key."""
    names, rendezvous = list(weights), Rendezvous(weights.items())
    return {key: names[rendezvous.order(key)[0]] for key in keys}


@given(weighted, st.data())
def test_only_the_keys_of_who_left_move(weights: dict[str, float], data: st.DataObject) -> None:
    """For the others the order of all that stay is the same; to come is the same thing backwards."""
    gone = data.draw(st.sampled_from(sorted(weights)))
    names, before = list(weights), Rendezvous(weights.items())
    rest = {name: weight for name, weight in weights.items() if name != gone}
    stayed, after = list(rest), Rendezvous(rest.items())
    for key in KEYS[:50]:
        assert [names[i] for i in before.order(key) if names[i] != gone] == [stayed[i] for i in after.order(key)]


@given(weighted, st.data())
def test_a_heavier_endpoint_only_gains(weights: dict[str, float], data: st.DataObject) -> None:
    """When a weight grows, no key moves but to that endpoint."""
    grown = data.draw(st.sampled_from(sorted(weights)))
    before, after = homes(weights, KEYS[:50]), homes({**weights, grown: weights[grown] * 2}, KEYS[:50])
    assert all(after[key] in (before[key], grown) for key in before)


@pytest.mark.parametrize("weights", [{"a": 1, "b": 1, "c": 1, "d": 1}, {"a": 6, "b": 3, "c": 1}, {"a": 0.1, "b": 0.3}])
def test_keys_are_shared_by_weight(weights: dict[str, float]) -> None:
    """To within a few hundredths, with 2000 keys."""
    counts = Counter(homes(weights).values())
    for name, weight in weights.items():
        assert counts[name] / len(KEYS) == pytest.approx(weight / sum(weights.values()), abs=0.03)


def test_every_process_agrees() -> None:
    """The order depends on names, weights and key alone; a change of it would move all keys of running systems."""
    rendezvous = Rendezvous((f"tcp://10.0.0.{number}:80", number) for number in range(1, 6))
    assert {key[:6]: list(rendezvous.order(key)) for key in ("", "user 7", "ключ", "\udcff", "x" * 1000)} == {
        "": [4, 3, 0, 2, 1],
        "user 7": [2, 1, 0, 3, 4],
        "ключ": [2, 0, 4, 1, 3],
        "\udcff": [4, 0, 2, 3, 1],
        "xxxxxx": [4, 2, 1, 3, 0],
    }


def test_old_keys_are_forgotten_without_a_change() -> None:
    """What is kept is bounded; what was dropped comes out as before."""
    rendezvous = Rendezvous([("a", 1), ("b", 2), ("c", 3)])
    before = [list(rendezvous.order(key)) for key in KEYS]
    for number in range(5000):
        rendezvous.order(f"other {number}")
    assert [list(rendezvous.order(key)) for key in KEYS] == before


def keyed(*rows: tuple[int, int], among: str = "abc") -> tuple[Rendezvous, list[Place], str]:
    """Three endpoints with equal weights, their `(free, in flight)` in the order in which they stand up for the key "k"."""
    rendezvous = Rendezvous([("a", 1), ("b", 1), ("c", 1)])
    order = "".join("abc"[index] for index in rendezvous.order("k"))
    return rendezvous, [Place(name, *row) for name, row in zip(order, rows, strict=True) if name in among], order


@pytest.mark.parametrize(
    ("rows", "load_factor", "expected"),
    [
        ([(9, 0), (9, 0), (9, 0)], 1.25, 0),
        ([(0, 5), (9, 5), (9, 5)], 1.25, 1),  # the best is full
        ([(9, 5), (9, 5), (9, 5)], 1.25, 0),  # 5 of a fair share of 5 1/3
        ([(9, 7), (9, 5), (9, 5)], 1.25, 0),  # 7 < 1.25 * 6
        ([(9, 7), (9, 5), (9, 4)], 1.25, 0),  # 7 < 1.25 * 5 2/3, the new one counted
        ([(9, 8), (9, 5), (9, 5)], 1.25, 1),  # 8 > 1.25 * 6 1/3
        ([(9, 8), (9, 5), (9, 5)], 2.0, 0),
        ([(9, 90), (9, 0), (9, 0)], math.inf, 0),
        ([(9, 8), (0, 1), (0, 1)], 1.25, 0),  # beyond, but nobody else is free
        ([(9, 90), (9, 91), (0, 0)], 1.25, 0),
        ([(0, 1), (0, 1), (0, 1)], 1.25, None),
    ],
)
def test_a_hot_key_spills_over(rows: list[tuple[int, int]], load_factor: float, expected: int | None) -> None:
    """To the next best endpoint, once the best has a quarter more than its fair share."""
    rendezvous, among, order = keyed(*rows)
    for candidates in (among, among[::-1]):
        pick = rendezvous.choose("k", candidates, load_factor)
        assert (pick.name if pick else None) == (order[expected] if expected is not None else None)


@pytest.mark.parametrize(("in_flight", "stays"), [(14, True), (15, False)])
def test_a_fair_share_is_by_weight(in_flight: int, stays: bool) -> None:
    """The heavy one may have three quarters of what is under way, and a quarter of that more."""
    rendezvous = Rendezvous([("heavy", 3), ("light", 1)])
    key = next(key for key in KEYS if not rendezvous.order(key)[0])
    pick = rendezvous.choose(key, [Place("heavy", 9, in_flight), Place("light", 9, 0)])
    assert pick is not None
    assert (pick.name == "heavy") is stays


def test_a_key_goes_to_the_best_of_those_that_are_left() -> None:
    """Endpoints may be left out, and strangers are not chosen."""
    rendezvous, among, order = keyed((9, 0), (9, 0), (9, 0))
    first = rendezvous.choose("k", among[1:])
    assert first is not None
    assert first.name == order[1]
    assert rendezvous.choose("k", [Place("stranger")]) is None
    assert rendezvous.choose("k", []) is None
