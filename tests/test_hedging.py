"""A call that is made more than once before its first answer is there: who wins, and what becomes of the others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import trio_rpc
from tests.scripted import Script, ScriptedPeer, ScriptedServer, watchdog
from trio_rpc import (
    Backoff,
    Code,
    ConnectionLost,
    HedgePolicy,
    InvalidArgument,
    PoolClosed,
    PoolLimits,
    PoolTimeout,
    RemoteError,
    RetryBudget,
    RetryPolicy,
    RetryThrottle,
    current_call,
    method,
)
from trio_rpc._calls import LOST_RACE
from trio_rpc.testing import MemoryListener, cancel_at_every_checkpoint, no_leaks
from trio_rpc.wire import RequestReceived

QUIET = trio_rpc.Heartbeat(interval=None)
EVERY_SECOND = HedgePolicy(delay=1, attempts=3)
POLICY = RetryPolicy(backoff=Backoff(initial=2, factor=2, maximum=10, jitter=0))
PLENTY = RetryPolicy(backoff=POLICY.backoff, budget=None)


class Oracle:
    """Asked the same wherever it is."""

    @method(idempotent=True)
    async def ask(self) -> str:
        raise NotImplementedError

    @method
    async def move(self) -> str:
        raise NotImplementedError


Answer = Callable[[], Awaitable[object]]


@attrs.define(eq=False)
class Host(Oracle):
    """One of several servers: what it does with each call in turn, the last thing with all further ones."""

    name: str
    answers: list[Answer]
    begun: list[float] = attrs.field(factory=list)
    """When its handlers began."""
    ended: list[float] = attrs.field(factory=list)
    """When they ended, whichever way."""
    metadata: list[dict[str, str | bytes]] = attrs.field(factory=list)

    async def _serve(self) -> str:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.begun.append(trio.current_time())
        self.metadata.append(dict(current_call().metadata))
        try:
            await answer()
        finally:
            self.ended.append(trio.current_time())
        return self.name

    @method(idempotent=True)
    async def ask(self) -> str:
        return await self._serve()

    @method
    async def move(self) -> str:
        return await self._serve()


def after(seconds: float) -> Answer:
    """Answer then."""

    async def answer() -> None:
        await trio.sleep(seconds)

    return answer


def fails(code: Code = Code.UNAVAILABLE, *, after: float = 0, pushback: str | None = None) -> Answer:
    """Fail then."""

    async def answer() -> None:
        await trio.sleep(after)
        if pushback is not None:
            current_call().reply_metadata["retry-pushback-ms"] = pushback
        raise RemoteError("no", code=code)

    return answer


def stubborn(seconds: float) -> Answer:
    """Take so long to end when it is cancelled."""

    async def answer() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(seconds)

    return answer


never = trio.sleep_forever
at_once = after(0)


@attrs.define
class Hosts:
    """Servers a, b, c and a pool over all of them, which takes the first of those that are equal."""

    hosts: list[Host]
    pool: trio_rpc.Pool
    servers: list[trio_rpc.Server]
    listeners: list[MemoryListener]

    @property
    def oracle(self) -> Oracle:
        return self.pool.stub(Oracle)

    @property
    def begun(self) -> list[tuple[str, float]]:
        """Which handlers began when, in order."""
        return sorted(((host.name, time) for host in self.hosts for time in host.begun), key=lambda each: each[::-1])

    @property
    def ended(self) -> dict[str, list[float]]:
        return {host.name: host.ended for host in self.hosts}

    async def cut(self, name: str, when: float) -> None:
        """Lose the connection there."""
        await trio.sleep_until(when)
        await trio.aclose_forcefully(self.listeners["abcdefgh".index(name)].connections[-1])

    def counts(self) -> tuple[int, int, int]:
        """Hedges, retries, and those that were not made."""
        stats = self.pool.statistics()
        return stats.hedges, stats.retries, stats.throttled


@asynccontextmanager
async def open_hosts(
    *answers: Answer | list[Answer],
    hedge: HedgePolicy | None = EVERY_SECOND,
    server_limits: trio_rpc.ServerLimits = trio_rpc.ServerLimits(),  # noqa: B008 - frozen
    **options: Any,
) -> AsyncIterator[Hosts]:
    """One server for each of these answers, or lists of them, and a pool over all that has connected to each."""
    options = {"retry": PLENTY, "balance": trio_rpc.LeastInFlight(), "heartbeat": QUIET, **options}
    hosts = [
        Host(name, list(own) if isinstance(own, list) else [own])
        for name, own in zip("abcdefgh", answers, strict=False)
    ]
    listeners = [MemoryListener() for _ in hosts]
    targets = {host.name: listener.connect for host, listener in zip(hosts, listeners, strict=True)}
    async with watchdog(), AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(trio_rpc.open_server(host, listener, heartbeat=QUIET, limits=server_limits))
            for host, listener in zip(hosts, listeners, strict=True)
        ]
        async with trio_rpc.open_pool(targets, hedge=hedge, **options) as pool:
            pool.rng = lambda: 0.0
            await pool.wait_connected(len(hosts))
            yield Hosts(hosts, pool, servers, listeners)


# -- when there is one more --------------------------------------------------------------------------------------------


async def test_an_answer_in_time_is_not_hedged(autojump_clock: MockClock) -> None:
    """One call, one handler; nothing comes later."""
    async with open_hosts(after(0.9), at_once) as world:
        assert await world.oracle.ask() == "a"
        await trio.sleep(10)
        assert world.begun == [("a", 0)]
        assert (world.counts(), world.pool.statistics().requests) == ((0, 0, 0), 1)


async def test_the_first_answer_wins(autojump_clock: MockClock) -> None:
    """The next copy goes elsewhere after the delay; the loser's handler stops."""
    async with open_hosts(never, after(0.5)) as world:
        assert await world.oracle.ask() == "b"
        assert trio.current_time() == 1.5
        await wait_all_tasks_blocked()
        assert (world.begun, world.ended) == ([("a", 0), ("b", 1)], {"a": [1.5], "b": [1.5]})
        stats = world.pool.statistics()
        assert (stats.in_flight, stats.errors, stats.requests, world.counts()) == (0, 0, 1, (1, 0, 0))


async def test_the_earlier_copy_may_win(autojump_clock: MockClock) -> None:
    """Which was begun first says nothing."""
    async with open_hosts(after(1.5), never) as world:
        assert await world.oracle.ask() == "a"
        await wait_all_tasks_blocked()
        assert (trio.current_time(), world.ended["b"]) == (1.5, [1.5])


async def test_a_copy_after_each_delay(autojump_clock: MockClock) -> None:
    """Each to another endpoint, up to the number of attempts."""
    async with open_hosts(never, never, after(1.5), never) as world:
        assert await world.oracle.ask() == "c"
        assert world.begun == [("a", 0), ("b", 1), ("c", 2)]
        assert (trio.current_time(), world.counts()) == (3.5, (2, 0, 0))


@pytest.mark.parametrize(("asked", "made"), [(1, 1), (2, 2), (5, 5), (9, 5)])
async def test_attempts_are_five_at_most(autojump_clock: MockClock, asked: int, made: int) -> None:
    """A larger number acts as five, as in gRPC."""
    async with open_hosts(*[never] * 7, hedge=HedgePolicy(delay=1, attempts=asked)) as world:
        with trio.move_on_after(20):
            await world.oracle.ask()
        assert [time for _, time in world.begun] == list(range(made))


async def test_without_a_delay_all_are_begun_at_once(autojump_clock: MockClock) -> None:
    """For those who can afford it."""
    async with open_hosts(after(3), after(2), after(1), hedge=HedgePolicy(delay=0, attempts=3)) as world:
        assert await world.oracle.ask() == "c"
        assert [time for _, time in world.begun] == [0, 0, 0]
        assert trio.current_time() == 1


async def test_hedges_say_how_many_may_have_run_before(autojump_clock: MockClock) -> None:
    """The first says nothing."""
    async with open_hosts(never, never, at_once) as world:
        await world.oracle.ask()
        said = [metadata for host in world.hosts for metadata in host.metadata]
        assert said == [{}, {"previous-attempts": "1"}, {"previous-attempts": "2"}]


async def test_what_must_not_run_twice_is_not_hedged(autojump_clock: MockClock) -> None:
    """Whatever the pool is set to."""
    async with open_hosts(after(5), at_once) as world:
        assert await world.oracle.move() == "a"
        assert (trio.current_time(), world.counts()) == (5, (0, 0, 0))


@pytest.mark.parametrize(("pools", "stubs", "winner"), [(EVERY_SECOND, None, "a"), (None, EVERY_SECOND, "b")])
async def test_a_stub_decides_for_itself(
    autojump_clock: MockClock, pools: HedgePolicy | None, stubs: HedgePolicy | None, winner: str
) -> None:
    """Both ways."""
    async with open_hosts(after(5), at_once, hedge=pools) as world:
        assert await world.pool.stub(Oracle, hedge=stubs).ask() == winner


async def test_where_there_is_one_endpoint_it_is_hedged_there(autojump_clock: MockClock) -> None:
    """Another handler of the same server may be faster still."""
    async with open_hosts([never, at_once]) as world:
        assert await world.oracle.ask() == "a"
        assert (trio.current_time(), world.begun) == (1, [("a", 0), ("a", 1)])


# -- failures ----------------------------------------------------------------------------------------------------------


async def test_a_failure_that_others_may_not_have_sends_the_next_at_once(autojump_clock: MockClock) -> None:
    """And the one after it a delay later."""
    async with open_hosts(fails(after=0.25), never, after(0.5)) as world:
        assert await world.oracle.ask() == "c"
        assert world.begun == [("a", 0), ("b", 0.25), ("c", 1.25)]
        assert world.pool.statistics().errors == 0


@pytest.mark.parametrize("code", [Code.NOT_FOUND, Code.UNKNOWN, Code.INTERNAL])
async def test_a_failure_that_all_would_have_ends_the_call(autojump_clock: MockClock, code: Code) -> None:
    """The others are stopped, and it comes out."""
    async with open_hosts(never, fails(code, after=0.5), never) as world:
        with pytest.raises(RemoteError) as caught:
            await world.oracle.ask()
        assert (caught.value.code, caught.value.attempts, trio.current_time()) == (code, 2, 1.5)
        await wait_all_tasks_blocked()
        assert (world.ended["a"], world.hosts[2].begun) == ([1.5], [])
        assert world.pool.statistics().errors == 1


async def test_codes_of_the_retry_policy_are_what_others_may_not_have(autojump_clock: MockClock) -> None:
    """The same ones that are worth a retry."""
    policy = RetryPolicy(codes={Code.INTERNAL}, budget=None)
    async with open_hosts(fails(Code.INTERNAL), at_once, retry=policy) as world:
        assert await world.oracle.ask() == "b"
        assert trio.current_time() == 0


async def test_if_all_fail_the_last_error_comes_out(autojump_clock: MockClock) -> None:
    """With a note for each of the others, in the order in which they failed."""
    async with open_hosts(fails(after=5), fails(after=1), fails(after=1.5)) as world:
        with pytest.raises(RemoteError) as caught:
            await world.oracle.ask()
        assert (trio.current_time(), caught.value.peer, caught.value.attempts) == (5, "a", 3)
        assert caught.value.__notes__ == ["attempt 1, at b: RemoteError: no", "attempt 2, at c: RemoteError: no"]
        assert (world.pool.statistics().errors, world.counts()) == (1, (2, 0, 0))


async def test_a_lost_connection_is_such_a_failure(autojump_clock: MockClock) -> None:
    """It may have run there, which does no harm."""
    async with open_hosts(never, at_once) as world, trio.open_nursery() as nursery:
        nursery.start_soon(world.cut, "a", 0.5)
        assert await world.oracle.ask() == "b"
        assert trio.current_time() == 0.5


async def test_what_is_lost_everywhere_may_have_run(autojump_clock: MockClock) -> None:
    """The last error says so, and where the call has been."""
    async with (
        open_hosts(never, never, hedge=HedgePolicy(delay=1, attempts=2)) as world,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(world.cut, "a", 2)
        nursery.start_soon(world.cut, "b", 3)
        with pytest.raises(ConnectionLost) as caught:
            await world.oracle.ask()
        assert (caught.value.may_have_run, caught.value.peer, caught.value.attempts) == (True, "b", 2)
        assert [note.split(":")[0] for note in caught.value.__notes__] == ["attempt 1, at a"]


@pytest.mark.parametrize(("text", "next_at"), [("0", 0), ("300", 0.3), ("2500", 2.5)])
async def test_push_back_puts_the_next_copy_off(autojump_clock: MockClock, text: str, next_at: float) -> None:
    """To then, exactly; and the one after it comes a delay later."""
    async with open_hosts(fails(pushback=text), never, at_once) as world:
        assert await world.oracle.ask() == "c"
        assert world.begun == [("a", 0), ("b", next_at), ("c", next_at + 1)]


@pytest.mark.parametrize("text", ["-1", "soon"])
async def test_push_back_may_be_the_end_of_hedges(autojump_clock: MockClock, text: str) -> None:
    """No further copy; those under way go on."""
    async with open_hosts(after(5), fails(after=0.5, pushback=text), at_once) as world:
        assert await world.oracle.ask() == "a"
        assert (trio.current_time(), world.begun) == (5, [("a", 0), ("b", 1)])
    async with open_hosts(fails(pushback=text), at_once) as world:
        with pytest.raises(RemoteError) as caught:
            await world.oracle.ask()
        assert (caught.value.attempts, caught.value.retry_after) == (1, None)


async def test_push_back_ends_what_was_still_to_come(autojump_clock: MockClock) -> None:
    """Once those under way have failed as well, nothing is waited for, and nothing begun."""
    async with open_hosts(fails(after=1.75), fails(after=0.5, pushback="-1"), at_once) as world:
        with pytest.raises(RemoteError):
            await world.oracle.ask()
        assert (trio.current_time(), world.begun) == (1.75, [("a", 0), ("b", 1)])


async def test_who_has_no_room_is_hedged_elsewhere_at_once(autojump_clock: MockClock) -> None:
    """As after any failure that others may not have."""
    limits = trio_rpc.ServerLimits(max_calls=1)
    async with open_hosts(after(9), at_once, server_limits=limits) as world, trio.open_nursery() as nursery:
        oracle = world.pool.stub(Oracle, routing_key=await _key_for(world, "a"))
        nursery.start_soon(world.pool.endpoints[0].stub(Oracle).move)
        await trio.sleep(0.5)
        assert await oracle.ask() == "b"
        assert (trio.current_time(), world.counts()) == (0.5, (1, 0, 0))
        nursery.cancel_scope.cancel()


async def _key_for(world: Hosts, name: str) -> str:
    """A routing key whose calls go there first."""
    for number in range(100):
        endpoint = next(each for each in world.pool.endpoints if each.address == name)
        before = endpoint.statistics().in_flight
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.pool.stub(Oracle, routing_key=str(number), hedge=None, cancel_wait=0).move)
            await wait_all_tasks_blocked()
            found = endpoint.statistics().in_flight > before
            nursery.cancel_scope.cancel()
        if found:
            return str(number)
    raise AssertionError("no key leads there")


async def test_what_surely_did_not_run_is_replaced(autojump_clock: MockClock) -> None:
    """By one that is no hedge: at once the first time, and there are as many hedges left as before."""
    asked: list[tuple[str, float, Any]] = []

    def script(name: str, code: Code | None) -> Script:
        async def play(peer: ScriptedPeer) -> None:
            await peer.greet()
            request = await peer.expect(RequestReceived)
            asked.append((name, trio.current_time(), request.metadata))
            if code is not None:
                await peer.refuse(request, code)
            await trio.sleep_forever()

        return play

    async with watchdog(), trio.open_nursery() as nursery:
        scripts = {"a": script("a", Code.UNAVAILABLE), "b": script("b", None), "c": script("c", None)}
        targets = {name: ScriptedServer(nursery, play).connect for name, play in scripts.items()}
        hedge = HedgePolicy(delay=1, attempts=2)
        options: Any = {"balance": trio_rpc.LeastInFlight(), "heartbeat": QUIET, "limits": PoolLimits(cancel_wait=0)}
        async with trio_rpc.open_pool(targets, hedge=hedge, **options) as pool:
            pool.rng = lambda: 0.0
            await pool.wait_connected(3)
            with trio.move_on_after(10):
                await pool.stub(Oracle).ask()
            stats = pool.statistics()
        nursery.cancel_scope.cancel()
    assert asked == [("a", 0, None), ("b", 0, None), ("c", 1, {"previous-attempts": "1"})]
    assert (stats.hedges, stats.retries, stats.throttled) == (1, 1, 0)


async def test_where_nobody_has_room_a_call_waits_until_somebody_has(autojump_clock: MockClock) -> None:
    """Once the hedges are used up: in the pauses of the retry policy, as any call does."""
    limits = trio_rpc.ServerLimits(max_calls=1)
    async with open_hosts(after(3), after(3), hedge=HedgePolicy(delay=1, attempts=2), server_limits=limits) as world:
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(world.oracle.move)
            await trio.sleep(0.5)
            assert await world.oracle.ask() in "ab"
        # Refused at both at 0.5; then after 2 s, still; then after 4 more.
        assert trio.current_time() == 0.5 + 2 + 4 + 3
        assert world.counts() == (1, 2, 0)


async def test_a_refusal_that_is_final_ends_the_call(autojump_clock: MockClock) -> None:
    """Others would refuse it as well."""

    class Wrong:
        @method(idempotent=True)
        async def ask(self, more: int) -> str:
            raise NotImplementedError

    Wrong.__name__ = "Oracle"
    async with open_hosts(never, never) as world:
        with pytest.raises(InvalidArgument):
            await world.pool.stub(trio_rpc.service(name="Oracle")(Wrong)).ask(1)
        assert (trio.current_time(), world.counts()) == (0, (0, 0, 0))


# -- losers ------------------------------------------------------------------------------------------------------------


async def test_a_stubborn_loser_delays_nobody(autojump_clock: MockClock) -> None:
    """Its place is taken until its handler has ended, and the winner does not wait for that."""
    async with open_hosts(stubborn(0.7), at_once) as world:
        assert await world.oracle.ask() == "b"
        assert trio.current_time() == 1
        assert [each.statistics().in_flight for each in world.pool.endpoints] == [1, 0]
        await trio.sleep(0.6)
        assert world.pool.statistics().in_flight == 1
        await trio.sleep(0.2)
        stats = world.pool.statistics()
        assert (stats.in_flight, stats.orphans, world.ended["a"]) == (0, 0, [1.7])


async def test_a_loser_that_will_not_end_becomes_an_orphan(autojump_clock: MockClock) -> None:
    """After `cancel_wait`: counted, and its place kept all the same."""
    async with open_hosts(stubborn(5), at_once) as world:
        await world.oracle.ask()
        for seconds, orphans, in_flight in [(0.9, 0, 1), (0.2, 1, 1), (4, 0, 0)]:
            await trio.sleep(seconds)
            stats = world.pool.statistics()
            assert (stats.orphans, stats.in_flight) == (orphans, in_flight)


@pytest.mark.parametrize(("stubbornness", "closed_at"), [(0.7, 1.7), (5, 2)])
async def test_a_pool_that_closes_joins_losers(
    autojump_clock: MockClock, stubbornness: float, closed_at: float
) -> None:
    """Within their `cancel_wait`."""
    async with open_hosts(stubborn(stubbornness), at_once) as world:
        await world.oracle.ask()
        await world.pool.aclose()
        assert trio.current_time() == closed_at


async def test_a_pool_that_closes_ends_the_call(autojump_clock: MockClock) -> None:
    """And all its copies; it may have run."""
    async with open_hosts(stubborn(0.5), stubborn(0.2)) as world, trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(PoolClosed) as caught:
                await world.oracle.ask()
            assert caught.value.may_have_run

        nursery.start_soon(ask)
        await trio.sleep(1.5)
        await world.pool.aclose()
        assert world.ended == {"a": [2], "b": [1.7]}


async def test_a_pool_that_closes_between_two_copies_ends_the_call(autojump_clock: MockClock) -> None:
    """There is nothing under way that could be stopped, and the timer will not come any more."""
    async with open_hosts(fails(pushback="60000")) as world, trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(PoolClosed) as caught:
                await world.oracle.ask()
            assert (caught.value.may_have_run, caught.value.attempts, trio.current_time()) == (True, 2, 1)

        nursery.start_soon(ask)
        await trio.sleep(1)
        await world.pool.aclose()


# -- cancellation and deadlines ----------------------------------------------------------------------------------------


async def test_a_cancelled_caller_joins_all_copies(autojump_clock: MockClock) -> None:
    """After its block nothing of them runs."""
    async with open_hosts(stubborn(0.3), stubborn(0.6), stubborn(0.1)) as world:
        with trio.move_on_at(2.5) as scope:
            await world.oracle.ask()
        assert scope.cancelled_caught
        assert (trio.current_time(), world.ended) == (3.1, {"a": [2.8], "b": [3.1], "c": [2.6]})
        assert world.pool.statistics().in_flight == 0


async def test_a_cancelled_caller_waits_no_longer_than_for_any_call(autojump_clock: MockClock) -> None:
    """`cancel_wait` is for all copies together, as all were cancelled at once."""
    async with open_hosts(stubborn(9), stubborn(9)) as world:
        with trio.move_on_at(1.5):
            await world.pool.stub(Oracle, cancel_wait=0.5).ask()
        assert (trio.current_time(), world.pool.statistics().orphans) == (2, 2)


async def test_a_result_that_won_against_the_cancellation_is_returned(autojump_clock: MockClock) -> None:
    """The terminal frame decides, as for any call."""

    async def answers_all_the_same() -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(2)

    async with open_hosts(never, answers_all_the_same) as world:
        results = []
        with trio.move_on_at(2.5):
            results.append(await world.oracle.ask())
        assert (results, trio.current_time()) == (["b"], 3)


async def test_a_failure_that_won_against_the_cancellation_is_raised(autojump_clock: MockClock) -> None:
    """It is the handler's own."""

    async def fails_all_the_same() -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(2)
        raise RemoteError("no", code=Code.NOT_FOUND)

    async with open_hosts(never, fails_all_the_same) as world:
        with pytest.raises(RemoteError, match="no"), trio.move_on_at(2.5):
            await world.oracle.ask()
        assert trio.current_time() == 3


async def test_a_result_counts_for_more_than_a_failure_beside_it(autojump_clock: MockClock) -> None:
    """Whichever of them came first, where both have won against the cancellation; and all copies are counted."""

    def ends(*, failing: bool) -> Answer:
        async def answer() -> None:
            with trio.CancelScope(shield=True):
                await trio.sleep(2)
            if failing:
                raise RemoteError("no", code=Code.NOT_FOUND)

        return answer

    async with open_hosts([ends(failing=True)] * 2, [ends(failing=False), ends(failing=True)]) as world:
        oracle, results = world.pool.stub(Oracle, cancel_wait=9), []
        with trio.move_on_at(1.5):
            results.append(await oracle.ask())
        assert results == ["b"]
        with pytest.raises(RemoteError) as caught, trio.move_on_after(1.5):
            await oracle.ask()
        assert caught.value.attempts == 2


async def test_one_deadline_spans_all_copies(autojump_clock: MockClock) -> None:
    """It passes for all of them at once."""
    async with open_hosts(never, never, never) as world:
        with pytest.raises(trio.TooSlowError), trio.fail_after(2.5):
            await world.oracle.ask()
        assert trio.current_time() == 2.5
        assert world.ended == {"a": [2.5], "b": [2.5], "c": [2.5]}


async def test_what_is_late_already_is_not_sent(autojump_clock: MockClock) -> None:
    """As for any call."""
    async with open_hosts(at_once) as world:
        with trio.move_on_after(0) as scope:
            await world.oracle.ask()
        assert (scope.cancelled_caught, world.begun) == (True, [])


@pytest.mark.parametrize("moment", ["suspending", "waking"])
async def test_cancelled_anywhere_it_leaves_nothing(autojump_clock: MockClock, moment: Any) -> None:
    """Neither a handler nor a place, whichever checkpoint it is."""
    answers = [[after(3)], [fails(after=0.5)], [after(1)]]
    async with open_hosts(*answers) as world:

        async def check() -> None:
            await wait_all_tasks_blocked()
            assert world.pool.statistics().in_flight == 0
            assert [len(host.begun) for host in world.hosts] == [len(host.ended) for host in world.hosts]

        async def scenario() -> None:
            await world.oracle.ask()
            await world.oracle.ask()

        assert await cancel_at_every_checkpoint(scenario, check, moment=moment) == 2


async def test_cancelled_at_any_time_it_leaves_nothing(autojump_clock: MockClock) -> None:
    """With any number of copies under way, and in the very moment in which something else happens to them."""
    for eighths in range(33):
        async with open_hosts(after(4), fails(after=0.5), stubborn(0.25)) as world:
            with trio.move_on_at(eighths / 8):
                await world.oracle.ask()
            await trio.sleep(0.25)
            await wait_all_tasks_blocked()
            assert world.pool.statistics().in_flight == 0
            assert [len(host.begun) for host in world.hosts] == [len(host.ended) for host in world.hosts]


async def test_a_hedged_call_leaves_nothing(autojump_clock: MockClock) -> None:
    """Once its losers have ended."""
    async with open_hosts(stubborn(0.5), fails(), at_once) as world:
        await world.oracle.ask()
        await trio.sleep(1)  # What stays for the next call has come by now.
        async with no_leaks():
            await world.oracle.ask()
            await trio.sleep(1)


# -- what hedges may cost ----------------------------------------------------------------------------------------------


async def test_a_spent_budget_is_the_end_of_hedges(autojump_clock: MockClock) -> None:
    """The copies under way go on."""
    policy = RetryPolicy(budget=RetryBudget(ratio=0, per_second=0.1))
    async with open_hosts(after(5), after(5), at_once, retry=policy) as world:
        assert await world.oracle.ask() == "a"
        assert world.begun == [("a", 0), ("b", 1)]
        assert world.counts() == (1, 0, 1)


async def test_retries_and_hedges_draw_on_one_budget(autojump_clock: MockClock) -> None:
    """What the ones have spent the others lack."""
    policy = RetryPolicy(backoff=POLICY.backoff, budget=RetryBudget(ratio=0, per_second=0.1))
    async with open_hosts(fails(), fails(), retry=policy) as world:
        with pytest.raises(RemoteError) as retried:
            await world.pool.stub(Oracle, hedge=None).ask()
        with pytest.raises(RemoteError) as hedged:
            await world.oracle.ask()
        assert (retried.value.attempts, hedged.value.attempts) == (2, 1)
        assert hedged.value.__notes__ == ["not tried again: the retry budget is spent"]


async def test_the_throttle_holds_hedges_until_a_call_succeeds(autojump_clock: MockClock) -> None:
    """Five failures leave five tokens of ten, which is not enough; one success makes it 5.1, which is."""
    policy = RetryPolicy(attempts=1, throttle=RetryThrottle(tokens=10, ratio=0.1), budget=None)
    answers = [*[fails()] * 5, after(3), after(3), after(3)]
    async with open_hosts(answers, retry=policy) as world:
        plain = world.pool.stub(Oracle, hedge=None)
        for _ in range(5):
            with pytest.raises(RemoteError):
                await plain.ask()
        await world.oracle.ask()
        assert world.counts() == (0, 0, 1)
        await world.oracle.ask()
        assert world.counts() == (2, 0, 1)


async def test_a_hedge_waits_in_no_line(autojump_clock: MockClock) -> None:
    """Where there is no place for it at once, more load would help nobody."""
    limits = PoolLimits(max_connections=1, max_in_flight=1)
    async with open_hosts([after(2.5), at_once], limits=limits) as world:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.oracle.ask)
            await trio.sleep(0.5)
            assert await world.oracle.move() == "a"
            assert trio.current_time() == 2.5
        assert (world.begun, world.counts()) == ([("a", 0), ("a", 2.5)], (0, 0, 0))


async def test_hedges_go_elsewhere_even_where_more_is_under_way(autojump_clock: MockClock) -> None:
    """What is slow at one place may be so for a reason that is there."""
    async with (
        open_hosts(never, never, hedge=HedgePolicy(delay=1, attempts=2)) as world,
        trio.open_nursery() as nursery,
    ):
        for _ in range(3):
            nursery.start_soon(world.pool.endpoints[1].stub(Oracle).move)
        await wait_all_tasks_blocked()
        with trio.move_on_after(3):
            await world.oracle.ask()
        assert [len(host.begun) for host in world.hosts] == [1, 4]
        nursery.cancel_scope.cancel()


async def test_a_pool_that_drains_goes_on_hedging(autojump_clock: MockClock) -> None:
    """It takes no new calls; a further copy belongs to one that it has taken."""
    async with open_hosts(after(3), at_once) as world, trio.open_nursery() as nursery:
        nursery.start_soon(_drain_at, world, 0.5)
        assert await world.oracle.ask() == "b"
        assert trio.current_time() == 1


async def _drain_at(world: Hosts, when: float) -> None:
    await trio.sleep_until(when)
    await world.pool.drain(10)


async def test_a_copy_that_waited_in_line_may_fail(autojump_clock: MockClock) -> None:
    """Like any other; nothing else is waited for then."""
    limits = PoolLimits(max_connections=1, max_in_flight=1)
    once = HedgePolicy(delay=1, attempts=1)
    async with open_hosts([after(2), fails()], limits=limits, hedge=once) as world, trio.open_nursery() as nursery:
        nursery.start_soon(world.oracle.move)
        await trio.sleep(0.1)
        with pytest.raises(RemoteError):
            await world.oracle.ask()
        assert trio.current_time() == 2


async def test_only_the_first_copy_goes_with_the_hello(autojump_clock: MockClock) -> None:
    """A later one says that it is one, which not every peer may take before it has said how much it takes."""
    early: list[Any] = []

    async def loses(peer: ScriptedPeer) -> None:
        await peer.greet()
        await peer.expect(RequestReceived)

    async def hesitates(peer: ScriptedPeer) -> None:
        await peer.event()
        with trio.move_on_after(1):
            early.append(await peer.event())
        await peer.stream.send_all(peer.protocol.greeting())
        await peer.serve()

    async with watchdog(), trio.open_nursery() as nursery:
        server = ScriptedServer(nursery, loses, hesitates)
        limits = PoolLimits(max_connections=1, connect_backoff=Backoff(initial=0, jitter=0))
        async with trio_rpc.open_pool(server.connect, hedge=EVERY_SECOND, heartbeat=QUIET, limits=limits) as pool:
            assert await pool.stub(Oracle).ask() == "Oracle.ask"
    assert early == []


async def test_the_first_copy_waits_in_line_like_any_call(autojump_clock: MockClock) -> None:
    """The delay begins once it is sent; what it may wait is bounded as ever."""
    limits = PoolLimits(max_connections=1, max_in_flight=1, acquire_timeout=3)
    async with open_hosts([after(2), after(0.5), never], limits=limits) as world:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.oracle.move)
            await trio.sleep(0.1)
            assert await world.oracle.ask() == "a"
            assert trio.current_time() == 2.5
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(world.oracle.move)
                await trio.sleep(0.1)
                with pytest.raises(PoolTimeout) as caught:
                    await world.oracle.ask()
                assert (caught.value.attempts, caught.value.may_have_run, trio.current_time()) == (1, False, 5.6)
                scope.cancel()
        assert world.pool.statistics().waiting == 0


async def test_a_copy_in_line_leaves_it_when_its_caller_goes(autojump_clock: MockClock) -> None:
    """Nothing is sent for somebody who is not there."""
    limits = PoolLimits(max_connections=1, max_in_flight=1)
    async with open_hosts([after(2), at_once], limits=limits) as world, trio.open_nursery() as nursery:
        nursery.start_soon(world.oracle.move)
        await trio.sleep(0.1)
        with trio.move_on_after(1):
            await world.oracle.ask()
        assert (trio.current_time(), world.pool.statistics().waiting) == (1.1, 0)
        await trio.sleep(5)
        assert world.begun == [("a", 0)]


# -- in company --------------------------------------------------------------------------------------------------------


async def test_a_hedged_call_that_loses_a_race_is_not_joined(autojump_clock: MockClock) -> None:
    """Who raced it against others goes on at once; its handlers stop all the same."""
    async with open_hosts(stubborn(0.5), stubborn(0.5)) as world:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(world.oracle.ask)
                await trio.sleep(1.5)
                scope.cancel(LOST_RACE)
        assert (trio.current_time(), world.pool.statistics().in_flight) == (1.5, 2)
        await trio.sleep(0.5)
        await wait_all_tasks_blocked()
        assert (world.ended, world.pool.statistics().in_flight) == ({"a": [2], "b": [2]}, 0)


async def test_the_winners_metadata_is_given(autojump_clock: MockClock) -> None:
    """And not that of those which failed."""

    async def signed() -> None:
        current_call().reply_metadata["by"] = "b"

    async def signed_and_fails() -> None:
        current_call().reply_metadata["by"] = "a"
        await fails()()

    async with open_hosts(signed_and_fails, signed) as world:
        metadata: dict[str, str | bytes] = {}
        await world.pool.stub(Oracle, reply_metadata=metadata).ask()
        assert metadata == {"by": "b"}


async def test_a_peer_may_be_hedged(autojump_clock: MockClock) -> None:
    """A server that calls back has the same options."""

    class Front:
        @method
        async def ask_back(self) -> str:
            oracle: Oracle = current_call().peer.stub(Oracle, hedge=EVERY_SECOND)
            return await oracle.ask()

    client, listener = Host("client", [never, after(0.5)]), MemoryListener()
    async with (
        watchdog(),
        trio_rpc.open_server(Front(), listener, heartbeat=QUIET),
        trio_rpc.open_pool(listener.connect, services=client, heartbeat=QUIET) as pool,
    ):
        assert await pool.stub(Front).ask_back() == "client"
        assert (trio.current_time(), client.begun) == (1.5, [0, 1])
        await wait_all_tasks_blocked()
        assert client.ended == [1.5, 1.5]


async def test_a_call_that_waits_for_its_first_connection_is_hedged(autojump_clock: MockClock) -> None:
    """It goes right behind the HELLO, as an idempotent call may; the delay begins there."""
    host, listener = Host("a", [never, at_once]), MemoryListener()
    async with (
        watchdog(),
        trio_rpc.open_server(host, listener, heartbeat=QUIET),
        trio_rpc.open_pool(listener.connect, hedge=EVERY_SECOND, heartbeat=QUIET) as pool,
    ):
        assert await pool.stub(Oracle).ask() == "a"
        assert (trio.current_time(), host.begun) == (1, [0, 1])


async def test_over_sockets_losers_are_stopped_at_once() -> None:
    """Their connections have nothing else to write, and write this."""
    hosts = [Host("a", [never]), Host("b", [after(0.05)])]
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(trio_rpc.open_server(host, "tcp://127.0.0.1:0")) for host in hosts]
        targets = [address for server in servers for address in server.addresses]
        options: Any = {"hedge": HedgePolicy(delay=0.05), "balance": trio_rpc.LeastInFlight()}
        pool = await stack.enter_async_context(trio_rpc.open_pool(targets, **options))
        pool.rng = lambda: 0.0
        await pool.wait_connected(2)
        with trio.fail_after(5):
            assert await pool.stub(Oracle).ask() == "b"
            while pool.statistics().in_flight:  # noqa: ASYNC110 - nobody tells of it
                await trio.sleep(0.01)
        assert [len(host.ended) for host in hosts] == [1, 1]
