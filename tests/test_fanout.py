"""Calls side by side: results and failures, exact times, who is cancelled and who waits for whom."""

from __future__ import annotations

import math
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

import trio_rpc
from tests.guarantees.kit import Broken, Lab, never, press_control_c
from trio_rpc import (
    DecodeError,
    PoolLimits,
    Unimplemented,
    call_all,
    first_success,
    gather,
    method,
    open_pool,
    open_server,
    quorum,
)
from trio_rpc._fanout import _Fan
from trio_rpc.testing import MemoryListener, cancel_at_every_checkpoint, no_leaks, open_loopback

Call = Callable[[], Awaitable[Any]]


class Scene:
    """Local calls that take some seconds, and what happened to them and when."""

    def __init__(self) -> None:
        self.began: list[tuple[Any, float]] = []
        self.ended: list[tuple[Any, float]] = []
        self.running = self.peak = 0

    def call(self, name: Any, seconds: float, error: BaseException | None = None, *, cleanup: float = 0.0) -> Call:
        """A call that takes `seconds` and returns its name or raises; cancelled, it takes `cleanup` seconds to end."""
        return partial(self.run, name, seconds, error, cleanup)

    async def run(self, name: Any, seconds: float, error: BaseException | None = None, cleanup: float = 0.0) -> Any:
        self.began.append((name, trio.current_time()))
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            await trio.sleep(seconds)
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await trio.sleep(cleanup)
            raise
        finally:
            self.running -= 1
            self.ended.append((name, trio.current_time()))
        if error is not None:
            raise error
        return name


def mixed(*calls: Call) -> list[Call]:
    """Calls of various types, which a type checker would not take for a list of calls by itself."""
    return list(calls)


def errors(*names: str) -> list[ValueError]:
    """Failures that can be told from each other."""
    return [ValueError(name) for name in names]


def leaves(caught: pytest.ExceptionInfo[Any]) -> list[BaseException]:
    """What a group that was raised holds."""
    assert type(caught.value) is ExceptionGroup
    return list(caught.value.exceptions)


# -- all of them -------------------------------------------------------------------------------------------------------


async def test_all_results_are_in_the_order_of_the_calls(autojump_clock: trio.testing.MockClock) -> None:
    """They run at once, and it takes as long as the longest."""
    scene = Scene()
    assert await call_all([scene.call("a", 3), scene.call("b", 1), scene.call("c", 2)]) == ["a", "b", "c"]
    assert (trio.current_time(), scene.peak) == (3, 3)


@pytest.mark.parametrize(
    ("limit", "begin"),
    [
        (1, [0, 3, 4, 6, 7]),
        (2, [0, 0, 1, 3, 3]),
        (3, [0, 0, 0, 1, 2]),
        (None, [0, 0, 0, 0, 0]),
    ],
)
@pytest.mark.parametrize("gathering", [False, True])
async def test_a_limit(
    autojump_clock: trio.testing.MockClock, limit: int | None, begin: list[float], gathering: bool
) -> None:
    """No more than that are under way at once; each begins when there is room, in order."""
    scene = Scene()
    seconds = [3, 1, 2, 1, 1]
    if gathering:
        results = await gather(lambda index: scene.run(index, seconds[index]), range(5), limit=limit)
    else:
        results = await call_all([scene.call(index, seconds[index]) for index in range(5)], limit=limit)
    assert results == [0, 1, 2, 3, 4]
    assert scene.peak == min(limit or 5, 5)
    assert [when for _, when in sorted(scene.began)] == begin


async def test_the_first_failure_comes_out_bare_and_the_rest_is_joined(autojump_clock: trio.testing.MockClock) -> None:
    """No group around a single failure; whoever is cancelled has ended, and who has not begun does not begin."""
    scene = Scene()
    [error] = errors("b")
    calls = [scene.call("a", 9, cleanup=2), scene.call("b", 1, error), scene.call("c", 9)]
    with pytest.raises(ValueError, match="b") as caught:
        await call_all(calls, limit=2)
    assert caught.value is error
    assert (scene.ended, sorted(scene.began)) == ([("b", 1), ("a", 3)], [("a", 0), ("b", 0)])


async def test_remote_calls_beside_a_failure_are_joined_as_any(autojump_clock: trio.testing.MockClock) -> None:
    """The handler's half second of clean-up is waited for, as a nursery would."""
    lab = Lab()
    async with open_loopback(lab) as pool:
        stub = pool.stub(Lab, retry=trio_rpc.RetryPolicy(attempts=1))
        [error] = errors("here")
        with pytest.raises(ValueError, match="here"):
            await call_all(mixed(partial(stub.sleep, 60, cleanup=0.5), Scene().call("b", 1, error)))
        assert (lab.log, trio.current_time()) == ([("ended", 1.5)], 1.5)


async def test_several_failures_are_a_group_in_the_order_of_the_calls(autojump_clock: trio.testing.MockClock) -> None:
    """Those of the same moment, and those out of the clean-up of what was cancelled."""
    [a, b, c] = errors("a", "b", "c")
    moment = trio.Event()

    async def fails_at_the_moment(error: Exception) -> None:
        await moment.wait()
        raise error

    async def fails_in_its_cleanup() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise a

    async def call_it() -> None:
        await trio.sleep(1)
        moment.set()
        await trio.sleep(1)

    calls = mixed(fails_in_its_cleanup, partial(fails_at_the_moment, b), partial(fails_at_the_moment, c), call_it)
    with pytest.raises(ExceptionGroup, match="3 calls failed") as caught:
        await call_all(calls)
    assert leaves(caught) == [a, b, c]


async def test_a_call_that_fails_with_a_group_fails_once(autojump_clock: trio.testing.MockClock) -> None:
    """Its group is that call's failure, without what was cancelled in it."""
    scene = Scene()
    [a, b] = errors("a", "b")

    async def nursery() -> None:
        async with trio.open_nursery() as inner:
            inner.start_soon(scene.call("a", 1, a))
            inner.start_soon(trio.sleep_forever)

    async def fails_while_cancelled() -> None:
        async with trio.open_nursery() as inner:
            inner.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise b

    with pytest.raises(ExceptionGroup) as caught:
        await call_all([nursery, fails_while_cancelled])
    assert [type(leaf) for leaf in leaves(caught)] == [ExceptionGroup, ExceptionGroup]
    assert [leaf.exceptions for leaf in leaves(caught) if isinstance(leaf, ExceptionGroup)] == [(a,), (b,)]


async def test_items_are_taken_when_their_turn_has_come(autojump_clock: trio.testing.MockClock) -> None:
    """A long iterable is not taken beforehand."""
    scene = Scene()
    taken: list[tuple[int, float]] = []

    def items() -> Iterator[int]:
        for number in range(4):
            taken.append((number, trio.current_time()))
            yield number

    assert await gather(lambda number: scene.run(number, 1), items(), limit=2) == [0, 1, 2, 3]
    assert [when for _, when in taken] == [0, 0, 0, 1]


async def test_what_the_iterable_raises_stops_the_calls(autojump_clock: trio.testing.MockClock) -> None:
    """It comes out bare, when they have ended."""
    scene = Scene()

    def items() -> Iterator[str]:
        yield "a"
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        await gather(lambda name: scene.run(name, 9, cleanup=1), items(), limit=5)
    assert (scene.running, scene.began) == (0, [])


@pytest.mark.parametrize("empty", [lambda: call_all([]), lambda: gather(trio.sleep, [], limit=1)])
async def test_nothing_to_do_is_a_checkpoint(empty: Callable[[], Awaitable[list[None]]]) -> None:
    """The result is an empty list, and a cancellation is noticed."""
    assert await empty() == []
    with trio.CancelScope() as scope:
        scope.cancel()
        await empty()
    assert scope.cancelled_caught
    with trio.testing.assert_checkpoints():
        await empty()


# -- the first ---------------------------------------------------------------------------------------------------------


async def test_the_first_result_wins(autojump_clock: trio.testing.MockClock) -> None:
    """Failures before it do not count, and local losers have ended."""
    scene = Scene()
    [error] = errors("quick")
    calls = [scene.call("slow", 9, cleanup=1), scene.call("quick", 1, error), scene.call("good", 2)]
    assert await first_success(calls) == "good"
    assert (trio.current_time(), scene.running) == (3, 0)


@pytest.mark.parametrize(
    ("calls", "delay", "begin", "end"),
    [
        pytest.param([9, 9, 1], 2, [0, 2, 4], 5, id="one after the other"),
        pytest.param([1.5, 9, 9], 2, [0], 1.5, id="not needed"),
        pytest.param([-1, 9, 0.5], 2, [0, 1, 3], 3.5, id="at once after a failure"),
        pytest.param([-3, -1, 9, 9, 1], 2, [0, 2, 3, 3, 5], 6, id="one for each failure"),
        pytest.param([-1, -1, 1], 5, [0, 1, 2], 3, id="only by failures"),
        pytest.param([3, 2, 1], 0, [0, 0, 0], 1, id="no delay"),
    ],
)
async def test_staggered_starts(
    autojump_clock: trio.testing.MockClock, calls: list[float], delay: float, begin: list[float], end: float
) -> None:
    """Each begins `delay` after the one before, or in the place of one that has failed (here: a negative time)."""
    scene = Scene()
    todo = [
        scene.call(index, abs(seconds), ValueError(str(index)) if seconds < 0 else None)
        for index, seconds in enumerate(calls)
    ]
    assert calls[await first_success(todo, delay=delay)] > 0
    assert ([when for _, when in scene.began], trio.current_time()) == (begin, end)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("delay", [None, 5])
async def test_if_all_fail_all_failures_come_out(
    autojump_clock: trio.testing.MockClock, count: int, delay: float | None
) -> None:
    """In the order of the calls, and as a group in any case."""
    scene = Scene()
    failures = errors(*"abc"[:count])
    calls = [scene.call(index, 3 - index, error) for index, error in enumerate(failures)]
    with pytest.raises(ExceptionGroup, match=f"all {count} calls failed") as caught:
        await first_success(calls, delay=delay)
    assert leaves(caught) == failures


async def test_a_stubborn_loser_delays_nobody(autojump_clock: trio.testing.MockClock) -> None:
    """The winner goes on at once; the loser is told, keeps its place until it has ended, and is no orphan."""
    lab = Lab()
    async with open_loopback(lab, limits=PoolLimits(cancel_wait=5)) as pool:
        stub = pool.stub(Lab)
        losers = [
            partial(stub.sleep, 60, cleanup=2),
            partial(stub.stubborn, 4),
            partial(stub.stubborn_total, never(), 3),
        ]
        assert await first_success([*losers, partial(stub.sleep, 1)]) == "slept"
        assert (trio.current_time(), lab.log) == (1, [("ended", 1)])
        assert (pool.statistics().in_flight, pool.statistics().orphans) == (3, 0)
        await trio.sleep(10)
        assert lab.log == [("ended", 1), *(("ended", 3),) * 2, ("ended", 4)]
        assert (pool.statistics().in_flight, pool.statistics().late_replies) == (0, 0)


@pytest.mark.parametrize(("cancel_wait", "gone_at"), [(9, 3), (1, 2), (0, 1)])
async def test_the_pool_joins_losers_before_it_is_gone(
    autojump_clock: trio.testing.MockClock, cancel_wait: float, gone_at: float
) -> None:
    """Who leaves the pool's block right after the race waits for them, at most `cancel_wait`."""
    lab = Lab()
    async with open_server(lab, listener := MemoryListener()):
        async with open_pool(listener.connect, limits=PoolLimits(cancel_wait=cancel_wait)) as pool:
            stub = pool.stub(Lab)
            await first_success([partial(stub.sleep, 60, cleanup=2), partial(stub.sleep, 1)])
        assert trio.current_time() == gone_at


async def test_a_loser_that_was_in_the_line_leaves_it(autojump_clock: trio.testing.MockClock) -> None:
    """It never had a place, and nothing of it is sent."""
    lab = Lab()
    async with open_loopback(lab, limits=PoolLimits(max_in_flight=1, max_connections=1)) as pool:
        stub = pool.stub(Lab)
        await stub.echo(0)
        assert await first_success([partial(stub.sleep, 1), partial(stub.sleep, 1)]) == "slept"
        assert (pool.statistics().waiting, len(lab.log), trio.current_time()) == (0, 1, 1)


async def test_a_losing_call_that_had_waited_in_the_line_goes_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """Also if it got its place only after a wait."""
    lab = Lab()
    async with open_loopback(lab, limits=PoolLimits(max_in_flight=1, max_connections=1, cancel_wait=9)) as pool:
        stub = pool.stub(Lab)
        await stub.echo(0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stub.sleep, 1)
            await trio.testing.wait_all_tasks_blocked()
            assert await first_success(mixed(partial(stub.stubborn, 5), Scene().call("here", 2))) == "here"
            assert (trio.current_time(), pool.statistics().in_flight) == (2, 1)
        await trio.sleep(10)
        assert lab.log == [("ended", 1), ("ended", 6)]


@pytest.mark.parametrize("error", [None, ValueError("the block's own")])
async def test_losing_streams_go_at_once(autojump_clock: trio.testing.MockClock, error: Exception | None) -> None:
    """The block of a stream is left without a wait; what it raises is not hidden by its end."""
    lab = Lab()
    seen: list[BaseException] = []
    async with open_loopback(lab) as pool:
        stub = pool.stub(Lab)

        async def watch() -> None:
            try:
                async with stub.count(cleanup=0.5) as counting:
                    try:
                        await counting.receive()
                        await trio.sleep_forever()
                    finally:
                        if error is not None:
                            raise error
            except BaseException as exc:
                seen.append(exc)
                raise

        assert await first_success(mixed(watch, partial(stub.sleep, 1))) == "slept"
        assert trio.current_time() == 1
        assert [type(exc) for exc in seen] == [trio.Cancelled if error is None else ValueError]
        await trio.sleep(2)
        assert lab.words[-1] == "cleaned"


async def test_a_nested_race_is_no_shortcut_for_its_caller(autojump_clock: trio.testing.MockClock) -> None:
    """A handler's losers are joined by its pool, and not by the handler's own caller."""
    behind, log = Lab(), []

    async with open_loopback(behind) as inner:
        stub = inner.stub(Lab)

        class Front:
            @method
            async def race(self) -> str:
                winner: str = await first_success([partial(stub.sleep, 60, cleanup=0.5), partial(stub.sleep, 1)])
                log.append(trio.current_time())
                return winner

        async with open_loopback(Front()) as pool:
            assert await pool.stub(Front).race() == "slept"
            assert log == [1] == [trio.current_time()]
    assert behind.log == [("ended", 1), ("ended", 1.5)]


# -- a quorum ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("calls", "needed", "winners", "end"),
    [
        ([3, 1, 2], 1, [1], 1),
        ([3, 1, 2], 2, [1, 2], 2),
        ([3, 1, 2], 3, [1, 2, 0], 3),
        ([3, -1, 2], 2, [2, 0], 3),
        ([-9, 1, -9, 2], 2, [1, 3], 2),
    ],
)
async def test_a_quorum(
    autojump_clock: trio.testing.MockClock, calls: list[float], needed: int, winners: list[int], end: float
) -> None:
    """The first results, with the indexes of their calls, as they came; failures that leave enough do not count."""
    scene = Scene()
    todo = [
        scene.call(f"call {index}", abs(seconds), ValueError(str(index)) if seconds < 0 else None)
        for index, seconds in enumerate(calls)
    ]
    assert await quorum(todo, needed) == [(index, f"call {index}") for index in winners]
    assert (trio.current_time(), scene.running) == (end, 0)


async def test_no_more_than_needed(autojump_clock: trio.testing.MockClock) -> None:
    """Results of one and the same moment do not add to it."""
    moment = trio.Event()

    async def call_it() -> None:
        await trio.sleep(1)
        moment.set()
        await trio.sleep(1)

    assert len(await quorum([moment.wait, moment.wait, moment.wait, call_it], 2)) == 2


@pytest.mark.parametrize(
    ("calls", "needed", "failed", "end"),
    [
        ([-3, -1, -2], 1, [0, 1, 2], 3),
        ([9, -1, -2], 2, [1, 2], 2),
        ([9, -1, 9], 3, [1], 1),
        ([1, 9, -3, -2], 3, [2, 3], 3),
    ],
)
async def test_no_quorum(
    autojump_clock: trio.testing.MockClock, calls: list[float], needed: int, failed: list[int], end: float
) -> None:
    """It fails as soon as there cannot be enough any more, with all failures, in the order of the calls."""
    scene = Scene()
    todo = [
        scene.call(index, abs(seconds), ValueError(str(index)) if seconds < 0 else None)
        for index, seconds in enumerate(calls)
    ]
    text = f"{len(failed)} of {len(calls)} calls failed, and {needed} had to succeed"
    with pytest.raises(ExceptionGroup, match=text) as caught:
        await quorum(todo, needed)
    assert [str(leaf) for leaf in leaves(caught)] == [str(index) for index in failed]
    assert (trio.current_time(), scene.running) == (end, 0)


@pytest.mark.parametrize("enough", [True, False])
async def test_nobody_waits_for_those_outside_of_the_quorum(
    autojump_clock: trio.testing.MockClock, enough: bool
) -> None:
    """Neither once there are enough, nor once there cannot be."""
    lab, scene = Lab(), Scene()
    async with open_loopback(lab, limits=PoolLimits(cancel_wait=9)) as pool:
        stub = pool.stub(Lab)
        error = None if enough else ValueError("no")
        calls = mixed(partial(stub.stubborn, 5), scene.call("a", 1, error), scene.call("b", 2, error))
        try:
            assert await quorum(calls, 2) == [(1, "a"), (2, "b")]
        except* ValueError:
            assert not enough
        assert trio.current_time() == 2
        await trio.sleep(9)
    assert lab.log == [("ended", 5)]


# -- what stops everything ---------------------------------------------------------------------------------------------

HELPERS: dict[str, Callable[[list[Call]], Awaitable[Any]]] = {
    "call_all": call_all,
    "call_all, limited": lambda calls: call_all(calls, limit=len(calls)),
    "gather": lambda calls: gather(lambda call: call(), calls, limit=9),
    "first_success": first_success,
    "first_success, staggered": lambda calls: first_success(calls, delay=0.001),
    "quorum": lambda calls: quorum(calls, len(calls)),
}


@pytest.fixture(params=HELPERS)
def helper(request: pytest.FixtureRequest) -> Callable[[list[Call]], Awaitable[Any]]:
    """Each of them in turn."""
    return HELPERS[request.param]


async def test_a_cancellation_from_outside_joins_everything(
    helper: Callable[[list[Call]], Awaitable[Any]], autojump_clock: trio.testing.MockClock
) -> None:
    """Local calls and remote handlers have ended when Trio's own Cancelled comes out, bare."""
    lab, scene = Lab(), Scene()
    async with open_loopback(lab) as pool:
        seen: list[BaseException] = []
        with trio.move_on_after(1) as scope:
            try:
                await helper([partial(pool.stub(Lab).sleep, 60, cleanup=0.5), scene.call("here", 60, cleanup=0.25)])
            except BaseException as exc:
                seen.append(exc)
                raise
        assert scope.cancelled_caught
        assert [type(exc) for exc in seen] == [trio.Cancelled]
        assert (lab.log, scene.ended) == ([("ended", 1.5)], [("here", 1.25)])


async def test_a_result_that_won_against_the_cancellation_is_returned(
    helper: Callable[[list[Call]], Awaitable[Any]], autojump_clock: trio.testing.MockClock
) -> None:
    """As for a single call: what the handler returned in spite of CANCEL is the result."""
    result = None
    async with open_loopback(Lab()) as pool:
        with trio.move_on_after(1) as scope:
            result = await helper([partial(pool.stub(Lab).stubborn, 1.5)])
    assert (str(result).count("done"), scope.cancelled_caught) == (1, False)


async def test_a_failure_that_won_against_the_cancellation_is_raised(autojump_clock: trio.testing.MockClock) -> None:
    """Where one failure is everybody's, it is not lost behind the cancellation."""
    async with open_loopback(Lab()) as pool:
        with pytest.raises(Broken), trio.move_on_after(1):
            await call_all(mixed(partial(pool.stub(Lab).breaks, 60), trio.sleep_forever))


async def test_a_failure_does_not_hide_a_cancellation(autojump_clock: trio.testing.MockClock) -> None:
    """Where others might still have succeeded, it is the cancellation that keeps them from it."""
    async with open_loopback(Lab()) as pool:
        calls = mixed(partial(pool.stub(Lab).breaks, 60), trio.sleep_forever)
        for race in (first_success(calls), quorum(calls, 1)):
            with trio.move_on_after(1) as scope:
                await race
            assert scope.cancelled_caught


async def test_a_cancelled_caller_starts_nothing(
    helper: Callable[[list[Call]], Awaitable[Any]], autojump_clock: trio.testing.MockClock
) -> None:
    """As with a single call: already expired, nothing is sent."""
    scene = Scene()
    with trio.CancelScope() as scope:
        scope.cancel()
        await helper([scene.call("a", 1), scene.call("b", 1)])
    assert (scope.cancelled_caught, scene.began) == (True, [])


async def test_wherever_it_is_cancelled_nothing_is_left(helper: Callable[[list[Call]], Awaitable[Any]]) -> None:
    """At any checkpoint of any of its tasks, falling asleep or waking: no task, place, handler or orphan."""
    lab, scene = Lab(), Scene()
    limits = PoolLimits(max_in_flight=2, max_connections=1)
    async with no_leaks(), open_loopback(lab, limits=limits) as pool:
        stub = pool.stub(Lab)
        await stub.echo(0)

        async def scenario() -> None:
            await helper([partial(stub.sleep, 0.002), scene.call("here", 0.001), partial(stub.echo, "quick")])

        async def check() -> None:
            with trio.fail_after(5):
                while lab.running or pool.statistics().in_flight:  # The pool may still be joining losers.
                    await trio.lowlevel.checkpoint()
            stats = pool.statistics()
            assert (scene.running, stats.waiting, stats.orphans, stats.lost) == (0, 0, 0, 0)
            assert await stub.echo("alive") == "alive"

        assert await cancel_at_every_checkpoint(scenario, check, spawned=True) >= 5
        await cancel_at_every_checkpoint(scenario, check, spawned=True, moment="waking")


class Urgent(BaseException):
    """Like a KeyboardInterrupt that a call raises."""


async def test_what_is_no_failure_goes_through_at_once(
    helper: Callable[[list[Call]], Awaitable[Any]], autojump_clock: trio.testing.MockClock
) -> None:
    """Bare, and nobody waits for remote handlers before."""
    lab, scene = Lab(), Scene()
    async with open_loopback(lab) as pool:
        with pytest.raises(Urgent):
            await helper([partial(pool.stub(Lab).sleep, 60, cleanup=0.5), scene.call("here", 1, Urgent())])
        assert trio.current_time() == pytest.approx(1, abs=0.002)
        await trio.sleep(1)
        assert lab.running == 0


async def test_what_is_no_failure_is_lost_behind_nothing(
    helper: Callable[[list[Call]], Awaitable[Any]], autojump_clock: trio.testing.MockClock
) -> None:
    """Neither behind a result of the same moment, nor behind a cancellation from outside."""
    moment, scene = trio.Event(), Scene()

    async def fails() -> None:
        try:
            await moment.wait()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
            raise Urgent

    async def works() -> None:
        await moment.wait()
        await trio.sleep(0.5)

    async def call_it() -> None:
        await trio.sleep(1)
        moment.set()
        await trio.sleep_forever()

    with pytest.raises(Urgent), trio.move_on_after(5):
        await helper([fails, scene.call("cancelled first", 60)])
    with pytest.raises(Urgent):
        await helper([fails, works, call_it])


def test_control_c_goes_through_at_once(helper: Callable[[list[Call]], Awaitable[Any]]) -> None:
    """It reaches the caller's own task, which waits: it comes out bare, before the handlers have ended."""
    lab = Lab()
    out_at: list[float] = []

    async def main() -> None:
        async with open_loopback(lab) as pool, trio.open_nursery() as nursery:
            nursery.start_soon(press_control_c)
            try:
                await helper([partial(pool.stub(Lab).sleep, 60, cleanup=0.5)])
            except KeyboardInterrupt:
                out_at.append(trio.current_time())
                await trio.sleep(1)
                raise

    with pytest.raises(BaseException) as caught:
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert isinstance(caught.value, KeyboardInterrupt) or caught.group_contains(KeyboardInterrupt)
    assert (out_at, lab.log) == ([1], [("ended", 1.5)])


def test_control_c_between_two_lines(
    helper: Callable[[list[Call]], Awaitable[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may come while one of our own tasks writes down that its call has ended: everything is stopped all the same."""
    interrupts = [True]

    class Interrupted(dict[int, trio.CancelScope]):
        def __delitem__(self, index: int) -> None:
            if interrupts:
                interrupts.pop()
                signal.raise_signal(signal.SIGINT)
            super().__delitem__(index)

    start = _Fan.start_all

    async def start_all(fan: _Fan[Any], calls: Any) -> None:
        fan._scopes = Interrupted()
        await start(fan, calls)

    monkeypatch.setattr(_Fan, "start_all", start_all)
    monkeypatch.setattr(_Fan, "start_staggered", lambda fan, calls, _delay: start_all(fan, calls))
    with pytest.raises(KeyboardInterrupt):
        trio.run(helper, mixed(partial(trio.sleep, 0), trio.sleep_forever))
    assert not interrupts


colour: ContextVar[str] = ContextVar("colour")


async def test_each_call_runs_in_a_copy_of_the_callers_context(
    helper: Callable[[list[Call]], Awaitable[Any]], autojump_clock: trio.testing.MockClock
) -> None:
    """It sees what its caller has set, and nobody sees what it sets; one that begins later does not either."""
    seen: list[str] = []

    async def paint() -> None:
        seen.append(colour.get())
        colour.set("red")
        await trio.sleep(1)
        raise ValueError

    colour.set("blue")
    with pytest.raises((ValueError, ExceptionGroup)):
        await helper([paint, paint])
    assert (seen, colour.get()) == (["blue"] * 2, "blue")


# -- mistakes ----------------------------------------------------------------------------------------------------------


async def stock(sku: str) -> int:
    """Somebody's async function."""
    return len(sku)


async def stream() -> AsyncGenerator[str, None]:
    """Somebody's async iterable."""
    yield "A"


MISTAKES: list[tuple[Callable[[], Awaitable[Any]], type[Exception], str]] = [
    (
        lambda: call_all([stock("A"), stock("B")]),  # type: ignore[list-item]
        TypeError,
        r"call_all makes the calls itself, and was given one that is made already \(stock\): write `partial\(",
    ),
    (lambda: first_success([partial(stock, "A"), stock("B")]), TypeError, "first_success makes the calls itself"),  # type: ignore[list-item]
    (lambda: quorum([stock("B")], 1), TypeError, "quorum makes the calls itself"),  # type: ignore[list-item]
    (lambda: gather(stock("A"), ["A"], limit=1), TypeError, "gather makes the calls itself"),  # type: ignore[arg-type]
    (lambda: call_all(stock), TypeError, "call_all takes a list of calls, not function: write `call_all"),  # type: ignore[arg-type]
    (lambda: call_all(["A"]), TypeError, "call_all takes async functions, not 'A'"),  # type: ignore[list-item]
    (lambda: gather(stock, stream(), limit=1), TypeError, "gather takes a plain iterable of items, not an async one"),  # type: ignore[arg-type]
    (lambda: call_all([lambda: 5]), TypeError, "returned int, which cannot be awaited: give an async function"),  # type: ignore[list-item, return-value]
    (lambda: first_success([lambda: 5, trio.sleep_forever]), TypeError, "returned int, which"),  # type: ignore[list-item, return-value]
    (lambda: first_success([]), ValueError, "first_success has nothing to call"),
    (lambda: first_success([partial(stock, "A")], delay=-1), ValueError, "delay must be at least 0 seconds"),
    (lambda: first_success([partial(stock, "A")], delay=math.nan), ValueError, "delay must be at least 0 seconds"),
    (lambda: quorum([partial(stock, "A")] * 2, 3), ValueError, "cannot get 3 results of 2 calls"),
    (lambda: quorum([], 0), ValueError, "needed must be at least 1, not 0"),
    (lambda: quorum([partial(stock, "A")], True), TypeError, "needed must be a whole number, not True"),
    (lambda: call_all([], limit=0), ValueError, "limit must be at least 1, not 0"),
    (lambda: gather(stock, "AB", limit=1.5), TypeError, "limit must be a whole number, not 1.5"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("mistake", "kind", "sentence"), MISTAKES)
async def test_mistakes(mistake: Callable[[], Awaitable[Any]], kind: type[Exception], sentence: str) -> None:
    """Each is told in a sentence, and no coroutine is left that nobody has awaited."""
    with pytest.raises(kind, match=sentence):
        await mistake()


async def test_over_stubs(autojump_clock: trio.testing.MockClock) -> None:
    """What it is for: a method of one stub or of many, and their failures as they are."""
    async with open_loopback(Lab()) as pool:
        stubs = [pool.stub(Lab)] * 3
        assert await gather(stubs[0].echo, [1, 2, 3], limit=2) == [1, 2, 3]
        assert await call_all([partial(stub.echo, "A-1") for stub in stubs]) == ["A-1"] * 3
        with pytest.RaisesGroup(DecodeError, Unimplemented):
            await first_success([partial(pool.call, "Lab.count"), partial(pool.call, "Lab.nothing")])
