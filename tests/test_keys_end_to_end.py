"""The stub option `idempotency_key`, over real servers and a pool, through outages: what runs once, and who is told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import trio_rpc
from tests.scripted import watchdog
from trio_rpc import (
    Backoff,
    Code,
    ConnectError,
    ConnectionLost,
    HedgePolicy,
    PoolLimits,
    RemoteCancelled,
    RemoteError,
    RetryPolicy,
    ServerLimits,
    method,
)
from trio_rpc.testing import Drop, FaultyStream, MemoryListener, cancel_at_every_checkpoint, no_leaks

Moment = Literal["suspending", "waking"]
MOMENTS: tuple[Moment, ...] = ("suspending", "waking")
QUIET = trio_rpc.Heartbeat(interval=None)
RETRY = RetryPolicy(backoff=Backoff(initial=0.5, factor=1, maximum=0.5, jitter=0))
LIMITS = PoolLimits(max_connections=1, connect_backoff=Backoff(initial=0.25, factor=1, maximum=0.25, jitter=0))
KEEPING = ServerLimits()


class Sold(Exception):
    """What the contract names."""


class Till:
    """The contract. A sale must not run twice; a quote may."""

    @method(raises=[Sold])
    async def sell(self, seconds: float, fails: str = "") -> str:
        raise NotImplementedError

    @method(idempotent=True)
    async def quote(self, seconds: float) -> str:
        raise NotImplementedError


@attrs.define(eq=False)
class Shop(Till):
    """A server at an address that outlives it, and the way there."""

    name: str
    nursery: trio.Nursery
    runs: list[str]
    """Where a handler was entered, for all shops together."""
    limits: ServerLimits = KEEPING
    reachable: bool = True
    cleanup: float = 0
    """How long a cancelled handler takes to end."""
    running: int = 0
    listener: MemoryListener = attrs.field(factory=MemoryListener)
    dropped: list[Drop] = attrs.field(factory=list)
    """One for each connection, to swallow what comes from the server."""
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    server: trio_rpc.Server | None = None

    async def open(self) -> None:
        """Start the server, as another process would be."""
        self.listener, self._scope = MemoryListener(), trio.CancelScope()
        await self.nursery.start(self._serve)

    async def _serve(self, task_status: trio.TaskStatus[None]) -> None:
        with self._scope:
            async with trio_rpc.open_server(self, self.listener, heartbeat=QUIET, limits=self.limits) as self.server:
                task_status.started()
                await trio.sleep_forever()

    async def kill(self) -> None:
        """End the server; its connections break before anything can be said on them."""
        await self.cut()
        self._scope.cancel()

    async def restart(self, after: float) -> None:
        """Kill it, and start another one at the same address."""
        await self.kill()
        await trio.sleep(after)
        await self.open()

    async def cut(self) -> None:
        """Break what is connected."""
        for stream in self.listener.connections:
            await trio.aclose_forcefully(stream)

    async def dial(self) -> trio.abc.Stream:
        """What the pool does."""
        if not self.reachable:
            raise ConnectError("no way there")
        self.dropped.append(Drop(direction="receiving"))
        stream = FaultyStream(await self.listener.connect(), self.dropped[-1])
        self.listener.connections[-1] = stream
        return stream

    async def _work(self, seconds: float) -> str:
        self.runs.append(self.name)
        self.running += 1
        try:
            await trio.sleep(seconds)
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await trio.sleep(self.cleanup)
            raise
        finally:
            self.running -= 1
        return self.name

    @method(raises=[Sold])
    async def sell(self, seconds: float, fails: str = "") -> str:
        """Take so long; then succeed, or fail in one of two ways."""
        await self._work(seconds)
        if fails == "declared":
            raise Sold("already")
        if fails:
            raise RemoteError("no", code=Code.NOT_FOUND)
        return self.name

    @method(idempotent=True)
    async def quote(self, seconds: float) -> str:
        """The same, as often as one likes."""
        return await self._work(seconds)


@attrs.define
class Street:
    """Shops by name, and a pool of all of them."""

    pool: trio_rpc.Pool
    shops: dict[str, Shop]
    runs: list[str]
    nursery: trio.Nursery

    @property
    def shop(self) -> Shop:
        return self.shops["a"]

    def keyed(self, key: str = "k", **options: Any) -> Till:
        """A stub whose calls have this key."""
        return self.pool.stub(Till, idempotency_key=key, **options)

    def at(self, when: float, step: Callable[[], Any]) -> None:
        """Do this then."""
        self.nursery.start_soon(_at, when, step)


async def _at(when: float, step: Callable[[], Any]) -> None:
    await trio.sleep_until(when)
    result = step()
    if result is not None:
        await result


@asynccontextmanager
async def street(names: str = "a", *, limits: ServerLimits = KEEPING, **options: Any) -> AsyncIterator[Street]:
    """Shops of these names, all of them connected; the pool takes the first of those that are equal."""
    runs: list[str] = []
    async with watchdog(), no_leaks(), trio.open_nursery() as nursery:
        shops = {name: Shop(name, nursery, runs, limits) for name in names}
        for shop in shops.values():
            await shop.open()
        options = {"retry": RETRY, "limits": LIMITS, "balance": trio_rpc.LeastInFlight(), **options}
        sites = {name: shop.dial for name, shop in shops.items()}
        async with trio_rpc.open_pool(sites, heartbeat=QUIET, **options) as pool:
            pool.rng = lambda: 0.0
            await pool.wait_connected(len(names))
            yield Street(pool, shops, runs, nursery)
        nursery.cancel_scope.cancel()


# -- the same server ---------------------------------------------------------------------------------------------------


async def test_a_call_that_was_cut_joins_its_own_run(autojump_clock: MockClock) -> None:
    """The second attempt waits for the handler that the first one began."""
    async with street() as there:
        there.at(1, there.shop.cut)
        assert await there.keyed().sell(3) == "a"
        assert (trio.current_time(), there.runs, there.pool.statistics().retries) == (3, ["a"], 1)


async def test_without_a_key_it_would_not_be_made_again(autojump_clock: MockClock) -> None:
    """What the key is for."""
    async with street() as there:
        there.at(1, there.shop.cut)
        with pytest.raises(ConnectionLost) as caught:
            await there.pool.stub(Till).sell(3)
        assert (caught.value.may_have_run, caught.value.attempts, trio.current_time()) == (True, 1, 1)


async def test_its_failure_tells_of_both_attempts(autojump_clock: MockClock) -> None:
    """It is the answer of the only run."""
    async with street() as there:
        there.at(1, there.shop.cut)
        with pytest.raises(RemoteError, match="no") as caught:
            await there.keyed().sell(3, "on purpose")
        assert (caught.value.code, caught.value.attempts, caught.value.may_have_run) == (Code.NOT_FOUND, 2, True)
        assert caught.value.__notes__[0].startswith("attempt 1, at a: ConnectionLost:")
        assert there.runs == ["a"]


async def test_what_the_contract_names_tells_of_them_too(autojump_clock: MockClock) -> None:
    """By its notes: it is no error of ours, and has no `attempts`."""
    async with street() as there:
        there.at(1, there.shop.cut)
        with pytest.raises(Sold, match="already") as caught:
            await there.keyed().sell(3, "declared")
        assert caught.value.__notes__[0].startswith("attempt 1, at a: ConnectionLost:")
        assert there.runs == ["a"]


async def test_what_ended_in_the_outage_was_kept(autojump_clock: MockClock) -> None:
    """The handler goes on while nobody can come, and its result waits for who asks for it."""
    async with street() as there:
        away_until(there, 4.9)
        assert await there.keyed().sell(3) == "a"
        assert (trio.current_time(), there.runs) == (5, ["a"])
        assert there.shop.server is not None
        assert there.shop.server.statistics().replayed == 1


async def test_an_answer_that_was_lost_is_given_again(autojump_clock: MockClock) -> None:
    """The server has told it, and nobody has heard it."""
    async with street() as there:
        there.shop.dropped[0].now()
        there.at(2, there.shop.cut)
        assert await there.keyed().sell(1) == "a"
        assert (trio.current_time(), there.runs) == (2.5, ["a"])


async def test_cut_more_than_once(autojump_clock: MockClock) -> None:
    """As often as the policy has attempts; then the last loss comes out, and the handler had its one run."""
    async with street() as there:
        for when in (1, 2, 3):
            there.at(when, there.shop.cut)
        with pytest.raises(ConnectionLost) as caught:
            await there.keyed().sell(6)
        assert (trio.current_time(), caught.value.attempts, caught.value.may_have_run) == (3, 3, True)
        await trio.sleep(6)
        assert await there.keyed().sell(6) == "a"
        assert (trio.current_time(), there.runs) == (9, ["a"])


async def test_one_deadline_spans_both_attempts(autojump_clock: MockClock) -> None:
    """When it passes the handler is cancelled, whichever attempt waits for it."""
    async with street() as there:
        there.at(1, there.shop.cut)
        with trio.move_on_after(2):
            await there.keyed().sell(9)
        assert (trio.current_time(), there.runs, there.shop.running) == (2, ["a"], 0)


# -- another server ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("away", "told"), [(0, 1.5), (1.9, 3)])
async def test_a_server_that_was_restarted_does_not_run_it_again(
    autojump_clock: MockClock, away: float, told: float
) -> None:
    """Its successor at the same address knows no keys: the caller learns how the first attempt ended."""
    async with street() as there:
        there.at(1, lambda: there.shop.restart(away))
        with pytest.raises(ConnectionLost) as caught:
            await there.keyed().sell(9)
        assert (caught.value.may_have_run, caught.value.attempts) == (True, 1)
        assert "another server by now" in caught.value.__notes__[-1]
        assert (trio.current_time(), there.runs) == (told, ["a"])


async def test_a_server_that_stays_away(autojump_clock: MockClock) -> None:
    """The same, once the call has waited for it as long as for any place."""
    async with street("ab") as there:
        there.at(1, there.shop.kill)
        with pytest.raises(ConnectionLost) as caught:
            await there.keyed().sell(9)
        assert (caught.value.may_have_run, there.runs, trio.current_time()) == (True, ["a"], 11.5)


async def test_who_fails_fast_does_not_wait_for_it(autojump_clock: MockClock) -> None:
    """As soon as there is no way there."""
    async with street("ab") as there:
        there.at(1, there.shop.kill)
        with pytest.raises(ConnectionLost) as caught:
            await there.keyed(wait_for_ready=False).sell(9)
        assert (caught.value.may_have_run, there.runs, trio.current_time()) == (True, ["a"], 1.5)


async def test_only_the_same_endpoint_is_tried(autojump_clock: MockClock) -> None:
    """Though another one is idle."""
    async with street("ab") as there:
        there.at(1, there.shops["a"].cut)
        assert await there.keyed().sell(3) == "a"
        assert there.runs == ["a"]


async def test_what_surely_did_not_run_goes_anywhere(autojump_clock: MockClock) -> None:
    """No server knows it yet."""
    async with (
        street("ab", limits=ServerLimits(max_calls=1)) as there,
        trio_rpc.open_pool({"a": there.shop.dial}, heartbeat=QUIET) as other,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(other.stub(Till).quote, 5)
        await wait_all_tasks_blocked()
        assert await there.keyed().sell(1) == "b"
        assert (trio.current_time(), there.runs) == (1.5, ["a", "b"])


async def test_an_idempotent_call_had_better_go_back_too(autojump_clock: MockClock) -> None:
    """And goes elsewhere if that cannot be: it may run twice."""
    async with street("ab") as there:
        there.at(1, there.shop.kill)
        assert await there.keyed().quote(3) == "b"
        assert (there.runs, trio.current_time()) == (["a", "b"], 4.5)
    async with street("ab") as there:
        there.at(trio.current_time() + 1, there.shop.cut)
        assert await there.keyed().quote(3) == "a"
        assert there.runs == ["a"]


# -- and hedging -------------------------------------------------------------------------------------------------------


async def test_a_call_with_a_key_is_not_hedged(autojump_clock: MockClock) -> None:
    """At another server it would run twice, and at the same one it would join itself."""
    async with street("ab", hedge=HedgePolicy(delay=1)) as there:
        assert await there.keyed().quote(5) == "a"
        assert (there.runs, there.pool.statistics().hedges, trio.current_time()) == (["a"], 0, 5)
        assert await there.keyed("l", hedge=HedgePolicy(delay=0)).quote(5) == "a"
        assert there.runs == ["a", "a"]


# -- what a key cannot do ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("window", "cleanup", "told"), [(2, 0, 5), (2, 3, 6), (0, 0, 5), (0, 5, 6)])
async def test_a_run_that_was_given_up_is_not_begun_again_by_a_retry(
    autojump_clock: MockClock, window: float, cleanup: float, told: float
) -> None:
    """The server has stopped it, as nobody came: it ran in part. A call that is the caller's own decision runs anew."""
    async with street(limits=ServerLimits(orphan_window=window)) as there:
        there.shop.cleanup = cleanup
        away_until(there, 4.9)
        with pytest.raises(RemoteCancelled) as caught:
            await there.keyed().sell(9)
        assert (caught.value.may_have_run, caught.value.attempts, there.runs) == (True, 2, ["a"])
        assert caught.value.__notes__[0].startswith("attempt 1, at a: ConnectionLost:")
        assert trio.current_time() == told
        assert await there.keyed().sell(1) == "a"
        assert there.runs == ["a", "a"]


async def test_what_is_begun_anew_is_as_good_as_new(autojump_clock: MockClock) -> None:
    """Its own retry joins it, and its result is kept, whatever became of the run before."""
    async with street(limits=ServerLimits(orphan_window=2)) as there:
        away_until(there, 4.9)
        with pytest.raises(RemoteCancelled):
            await there.keyed().sell(9)
        there.at(6, there.shop.cut)
        assert [await there.keyed().sell(3) for _ in range(2)] == ["a", "a"]
        assert (trio.current_time(), there.runs) == (8, ["a", "a"])


async def test_what_may_run_twice_is_begun_again(autojump_clock: MockClock) -> None:
    """For an idempotent method the key saves work, and no more."""
    async with street(limits=ServerLimits(orphan_window=2)) as there:
        away_until(there, 4.9)
        assert await there.keyed().quote(4) == "a"
        assert (trio.current_time(), there.runs) == (9, ["a", "a"])


async def test_what_was_kept_is_forgotten(autojump_clock: MockClock) -> None:
    """A retry that comes later than the window runs it again: this is as long as a key lasts."""
    async with street(limits=ServerLimits(result_window=5)) as there:
        away_until(there, 9.9)
        assert await there.keyed().sell(2) == "a"
        assert (trio.current_time(), there.runs) == (12, ["a", "a"])


def away_until(there: Street, when: float) -> None:
    """The network fails after a second, until then."""
    there.at(1, there.shop.cut)
    there.at(1, lambda: setattr(there.shop, "reachable", False))
    there.at(when, lambda: setattr(there.shop, "reachable", True))


async def test_an_interceptor_may_take_the_key_away(autojump_clock: MockClock) -> None:
    """Then the server has never heard of it, and the call is made once."""

    async def plain(call: trio_rpc.Call, call_next: trio_rpc.Handler) -> trio_rpc.Reply:
        return await call_next(attrs.evolve(call, metadata={"by": "me"}))

    async with street(interceptors=[plain]) as there:
        there.at(1, there.shop.cut)
        with pytest.raises(ConnectionLost) as caught:
            await there.keyed().sell(3)
        assert (caught.value.attempts, there.runs) == (1, ["a"])


# -- anywhere ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", MOMENTS)
async def test_cancelled_at_every_checkpoint(autojump_clock: MockClock, moment: Moment) -> None:
    """Before the cut, between the attempts, and in the second: nothing runs any more, and nothing has run twice."""
    keys = iter(range(1000))
    async with street() as there:

        async def scenario() -> None:
            there.runs.clear()
            there.at(trio.current_time() + 1, there.shop.cut)
            assert await there.keyed(str(next(keys))).sell(3) == "a"

        async def check() -> None:
            await trio.sleep(20)  # Who was cancelled between two attempts has told nobody: that takes the window.
            await wait_all_tasks_blocked()
            assert (there.shop.running, there.pool.statistics().in_flight, len(there.runs) <= 1) == (0, 0, True)

        assert await cancel_at_every_checkpoint(scenario, check, moment=moment) == 3


async def test_cancelled_at_any_time(autojump_clock: MockClock) -> None:
    """The same, by the clock: in each state of the outage."""
    async with street() as there:
        for quarter in range(1, 17):
            there.runs.clear()
            start = trio.current_time()
            there.at(start + 1, there.shop.cut)
            there.at(start + 1, lambda: setattr(there.shop, "reachable", False))
            there.at(start + 2, lambda: setattr(there.shop, "reachable", True))
            with trio.move_on_after(quarter / 4):
                await there.keyed(str(quarter)).sell(3)
            await trio.sleep(20)
            assert (there.shop.running, there.pool.statistics().in_flight, len(there.runs)) == (0, 0, 1)


async def test_cut_at_any_time(autojump_clock: MockClock) -> None:
    """On its way there, in the run, on its way back: one run, and its result."""
    async with street() as there:
        for eighth in range(12):
            there.runs.clear()
            there.at(trio.current_time() + eighth / 8, there.shop.cut)
            assert await there.keyed(str(eighth)).sell(1) == "a"
            assert len(there.runs) == 1
            await trio.sleep(1)
