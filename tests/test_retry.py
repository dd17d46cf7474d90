"""What is tried again, when, and what the error says of all the attempts together."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgpack
import pytest
import trio
from trio.testing import MockClock

import trio_rpc
from tests.scripted import Script, ScriptedPeer, ScriptedServer, greet_and_serve, watchdog
from trio_rpc import (
    Backoff,
    Code,
    ConnectionLost,
    Draining,
    Overloaded,
    PoolLimits,
    PoolTimeout,
    RemoteCancelled,
    RetryPolicy,
    RpcError,
    method,
)
from trio_rpc.testing import MemoryListener
from trio_rpc.wire import CancelReceived, EndReceived, ItemsReceived, Outcome, RequestReceived

QUIET = trio_rpc.Heartbeat(interval=None)
POLICY = RetryPolicy(attempts=3, backoff=Backoff(initial=2, factor=2, maximum=10, jitter=0))
NO_JITTER = Backoff(jitter=0)
LIMITS = PoolLimits(connect_backoff=Backoff(initial=0, jitter=0), acquire_timeout=100, max_connections=1)
"""No pause between dials: every second that passes is the retry's."""


class Ledger:
    """A contract; the server is a script."""

    @method
    async def post(self, amount: int) -> str:
        raise NotImplementedError

    @method(idempotent=True)
    async def balance(self) -> str:
        raise NotImplementedError

    @method
    def changes(self) -> AsyncGenerator[int, None]:
        raise NotImplementedError

    @method(idempotent=True)
    def history(self) -> AsyncGenerator[int, None]:
        raise NotImplementedError

    @method
    async def load(self, amounts: AsyncIterable[int]) -> str:
        raise NotImplementedError

    @method(idempotent=True)
    def reconvert(self, amounts: AsyncIterable[int]) -> AsyncGenerator[int, None]:
        raise NotImplementedError

    @method
    def convert(self, amounts: AsyncIterable[int]) -> AsyncGenerator[int, None]:
        raise NotImplementedError


Call = Callable[[Ledger], Any]


async def post(ledger: Ledger) -> Any:
    """A call that must not run twice."""
    return await ledger.post(1)


async def balance(ledger: Ledger) -> Any:
    """A call that may."""
    return await ledger.balance()


async def changes(ledger: Ledger) -> Any:
    """A stream that must not run twice."""
    async with ledger.changes() as items:
        return [item async for item in items]


async def history(ledger: Ledger) -> Any:
    """A stream that may."""
    async with ledger.history() as items:
        return [item async for item in items]


# -- what a server may do with a request -------------------------------------------------------------------------------


def answers(*steps: Callable[[ScriptedPeer, RequestReceived], Any]) -> Script:
    """Greet, take one request for each step and do with it what the step says; then serve well."""

    async def script(peer: ScriptedPeer) -> None:
        await peer.greet()
        for step in steps:
            await step(peer, await peer.expect(RequestReceived))
        await serve_well(peer)

    return script


async def serve_well(peer: ScriptedPeer) -> None:
    """Streams get the items 1 and 2, other calls "done", when all of their items have come."""
    open_requests: dict[int, RequestReceived] = {}
    while True:
        event = await peer.event()
        if isinstance(event, RequestReceived):
            open_requests[event.id] = event
        if isinstance(event, EndReceived) or (isinstance(event, RequestReceived) and not event.streaming):
            await fulfil(peer, open_requests.pop(event.id))


async def fulfil(peer: ScriptedPeer, request: RequestReceived) -> None:
    """Answer the way the method's shape wants it."""
    if request.method in ("Ledger.changes", "Ledger.history", "Ledger.convert"):
        await give(peer, request, 1, 2)
        await peer.send(peer.protocol.end(request.id))
    else:
        await peer.answer(request, "done")


async def give(peer: ScriptedPeer, request: RequestReceived, *items: int) -> None:
    """Send a batch of items."""
    await peer.send(peer.protocol.items(request.id, len(items), msgpack.packb(items)))


async def drains(peer: ScriptedPeer, request: RequestReceived) -> None:
    """Refuse it with a GOAWAY below its id, and close: it surely did not run."""
    await peer.send(peer.protocol.goaway(request.id - 2 if request.id > 2 else 0))
    raise trio.EndOfChannel


async def refuses(peer: ScriptedPeer, request: RequestReceived) -> None:
    """Refuse it alone: this side is going away."""
    await peer.refuse(request, Code.UNAVAILABLE)


async def overloaded(peer: ScriptedPeer, request: RequestReceived) -> None:
    """Refuse it for lack of room."""
    await peer.refuse(request, Code.RESOURCE_EXHAUSTED)


async def vanishes(_peer: ScriptedPeer, _request: RequestReceived) -> None:
    """Close without an answer: it may have run."""
    raise trio.EndOfChannel


async def stops(peer: ScriptedPeer, request: RequestReceived) -> None:
    """Stop the handler in the middle: it ran."""
    await peer.send(peer.protocol.error(request.id, Code.CANCELLED, Outcome.STOPPED, True, "stopped"))


async def fails(peer: ScriptedPeer, request: RequestReceived) -> None:
    """The handler's own failure, with the very code that a refusal has."""
    await peer.send(peer.protocol.error(request.id, Code.RESOURCE_EXHAUSTED, Outcome.FAILED, True, "full"))


async def starts_and_vanishes(peer: ScriptedPeer, request: RequestReceived) -> None:
    """Give one item of a stream, then close."""
    await give(peer, request, 1)
    await vanishes(peer, request)


@asynccontextmanager
async def open_ledger(
    *scripts: Script, limits: PoolLimits = LIMITS, retry: RetryPolicy = POLICY
) -> AsyncIterator[tuple[Ledger, trio_rpc.Pool]]:
    """A pool whose connections are played by these scripts, in turn; the last one for all further ones."""
    async with watchdog(), trio.open_nursery() as nursery:
        server = ScriptedServer(nursery, *scripts)
        async with trio_rpc.open_pool(server.connect, limits=limits, retry=retry, heartbeat=QUIET) as pool:
            yield pool.stub(Ledger), pool


# -- transparent retries -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [post, balance, changes, history])
@pytest.mark.parametrize("first", [drains, refuses])
async def test_what_was_refused_is_sent_again_at_once(autojump_clock: MockClock, call: Call, first: Any) -> None:
    """Unnoticed by the caller, whatever the method, the shape and the policy."""
    async with open_ledger(answers(first), answers(), retry=RetryPolicy(attempts=1)) as (ledger, pool):
        assert await call(ledger) in ("done", [1, 2])
        assert trio.current_time() == 0
        stats = pool.statistics()
        assert (stats.retries, stats.errors, stats.requests) == (1, 0, 1)


@pytest.mark.parametrize("call", [post, changes])
async def test_overload_is_waited_out(autojump_clock: MockClock, call: Call) -> None:
    """With the policy's back-off, and more often than its attempts, which are for what may have run."""
    async with open_ledger(answers(*[overloaded] * 5)) as (ledger, pool):
        assert await call(ledger) in ("done", [1, 2])
        assert trio.current_time() == 2 + 4 + 8 + 10 + 10
        assert pool.statistics().retries == 5


@pytest.mark.parametrize("call", [post, changes])
async def test_overload_has_an_end(autojump_clock: MockClock, call: Call) -> None:
    """Within the time that a caller would wait for a place: then the refusal comes out, and nothing has run."""
    async with open_ledger(answers(*[overloaded] * 100)) as (ledger, pool):
        with pytest.raises(Overloaded) as caught:
            await call(ledger)
        assert not caught.value.may_have_run
        assert 90 <= trio.current_time() <= 100
        assert (pool.statistics().errors, pool.statistics().requests) == (1, 1)


@pytest.mark.parametrize("call", [post, changes])
async def test_the_callers_deadline_is_over_all_attempts(autojump_clock: MockClock, call: Call) -> None:
    """Whatever is being waited for between them."""
    async with open_ledger(answers(*[overloaded] * 100)) as (ledger, pool):
        with pytest.raises(trio.TooSlowError), trio.fail_after(7):
            await call(ledger)
        assert trio.current_time() == 7
        assert pool.statistics().in_flight == 0


async def test_each_attempt_carries_what_is_left_of_the_deadline(autojump_clock: MockClock) -> None:
    """The remote deadline is the caller's, and does not begin anew."""
    left: list[float | None] = []

    async def noted(peer: ScriptedPeer, request: RequestReceived) -> None:
        left.append(request.timeout)
        await overloaded(peer, request)

    async with open_ledger(answers(noted, noted, noted)) as (ledger, _pool):
        with trio.fail_after(60):
            await post(ledger)
    assert left == pytest.approx([60, 58, 54], abs=0.001)


@pytest.mark.parametrize("code", [Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED, Code.PERMISSION_DENIED])
async def test_other_refusals_are_final(autojump_clock: MockClock, code: Code) -> None:
    """Trying again would not help."""

    async def refused(peer: ScriptedPeer, request: RequestReceived) -> None:
        await peer.refuse(request, code)

    async with open_ledger(answers(refused)) as (ledger, pool):
        with pytest.raises(trio_rpc.Refused) as caught:
            await balance(ledger)
        assert (caught.value.code, caught.value.may_have_run, pool.statistics().retries) == (code, False, 0)


async def test_what_was_never_written_is_sent_elsewhere(autojump_clock: MockClock) -> None:
    """A request that waits behind a stuck write when its connection dies."""
    resume = trio.Event()

    async def deaf(peer: ScriptedPeer) -> None:
        await peer.greet()
        await resume.wait()

    async with open_ledger(deaf, answers(), limits=LIMITS) as (ledger, pool), trio.open_nursery() as nursery:
        await pool.wait_connected()

        async def large() -> None:
            with pytest.raises(ConnectionLost) as caught:
                await pool.call("Ledger.blob", b"x" * 1_000_000)
            assert caught.value.may_have_run, "a prefix had been written"

        nursery.start_soon(large)
        await trio.sleep(1)
        nursery.start_soon(_later, 1, resume.set)
        assert await post(ledger) == "done"
        assert trio.current_time() == 2


async def _later(seconds: float, function: Callable[[], None]) -> None:
    await trio.sleep(seconds)
    function()


# -- retries by policy -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("call", "error"), [(post, ConnectionLost), (changes, ConnectionLost)])
async def test_what_may_have_run_is_not_run_again(autojump_clock: MockClock, call: Call, error: type[RpcError]) -> None:
    """Unless the contract says that this does no harm."""
    async with open_ledger(answers(vanishes), answers()) as (ledger, pool):
        with pytest.raises(error) as caught:
            await call(ledger)
        assert caught.value.may_have_run
        assert (pool.statistics().retries, pool.statistics().errors) == (0, 1)


@pytest.mark.parametrize("call", [balance, history])
@pytest.mark.parametrize("fault", [vanishes, stops])
async def test_idempotent_calls_are_tried_again(autojump_clock: MockClock, call: Call, fault: Any) -> None:
    """After what may have run, as often and with the delays that the policy says."""
    scripts = [answers(fault), answers(fault), answers()] if fault is vanishes else [answers(fault, fault)]
    async with open_ledger(*scripts) as (ledger, pool):
        assert await call(ledger) in ("done", [1, 2])
        assert trio.current_time() == 2 + 4
        assert (pool.statistics().retries, pool.statistics().errors) == (2, 0)


@pytest.mark.parametrize("call", [balance, history])
@pytest.mark.parametrize("attempts", [1, 2, 3])
async def test_attempts_have_an_end(autojump_clock: MockClock, call: Call, attempts: int) -> None:
    """The last one's error comes out."""
    policy = RetryPolicy(attempts=attempts, backoff=POLICY.backoff)
    async with open_ledger(answers(vanishes), retry=policy) as (ledger, pool):
        with pytest.raises(ConnectionLost):
            await call(ledger)
        assert trio.current_time() == {1: 0, 2: 2, 3: 6}[attempts]
        assert (pool.statistics().retries, pool.statistics().errors) == (attempts - 1, 1)


async def test_delays_are_jittered_by_the_pools_own_numbers(autojump_clock: MockClock) -> None:
    """So that many callers do not come back in step."""
    policy = RetryPolicy(backoff=Backoff(initial=2, factor=2, maximum=10, jitter=0.5))
    async with open_ledger(answers(stops, stops), retry=policy) as (ledger, pool):
        await pool.wait_connected()
        draws = deque([0.0, 1.0])
        pool.rng = lambda: draws.popleft() if draws else 0.5
        await balance(ledger)
        assert trio.current_time() == 2 * 0.5 + 4 * 1.5


async def test_a_stub_may_have_its_own_policy(autojump_clock: MockClock) -> None:
    """Instead of the pool's."""
    async with open_ledger(answers(vanishes), answers()) as (_ledger, pool):
        with pytest.raises(ConnectionLost):
            await balance(pool.stub(Ledger, retry=RetryPolicy(attempts=1)))


async def test_a_handlers_own_failure_is_never_tried_again(autojump_clock: MockClock) -> None:
    """Whatever code it chose: it ran, and that is its answer."""
    async with open_ledger(answers(fails)) as (ledger, pool):
        with pytest.raises(trio_rpc.RemoteError) as caught:
            await balance(ledger)
        assert caught.value.code is Code.RESOURCE_EXHAUSTED
        assert pool.statistics().retries == 0


# -- the truth about all attempts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [balance, history])
@pytest.mark.parametrize(
    ("steps", "error", "may_have_run"),
    [
        ([overloaded] * 100, Overloaded, False),
        ([stops] + [overloaded] * 100, Overloaded, True),
        ([overloaded, stops, stops, stops], RemoteCancelled, True),
    ],
)
async def test_may_have_run_is_told_of_all_attempts(
    autojump_clock: MockClock, call: Call, steps: Sequence[Any], error: type[RpcError], may_have_run: bool
) -> None:
    """It is true if any of them may have run, whatever became of the last."""
    async with open_ledger(answers(*steps)) as (ledger, _pool):
        with pytest.raises(error) as caught:
            await call(ledger)
        assert caught.value.may_have_run is may_have_run


@pytest.mark.parametrize("call", [balance, history])
async def test_a_retry_that_finds_no_place_may_have_run_before(autojump_clock: MockClock, call: Call) -> None:
    """The pool's own error knows of the attempt that came before it."""

    async def gone(_peer: ScriptedPeer) -> None:
        """Nobody greets any more."""

    async with open_ledger(answers(vanishes), gone, limits=PoolLimits(connect_backoff=NO_JITTER)) as (ledger, pool):
        with pytest.raises(PoolTimeout) as caught:
            await call(ledger)
        assert caught.value.may_have_run
        assert pool.statistics().errors == 1


# -- streams -----------------------------------------------------------------------------------------------------------


async def test_a_stream_that_has_begun_is_not_begun_again(autojump_clock: MockClock) -> None:
    """Even of an idempotent method: what was received stands, then the error comes."""
    async with open_ledger(answers(starts_and_vanishes), answers()) as (ledger, pool):
        received = []
        with pytest.raises(ConnectionLost) as caught:
            async with ledger.history() as items:
                async for item in items:
                    received.append(item)  # noqa: PERF401 - what came before the error counts
        assert received == [1]
        assert caught.value.may_have_run
        assert pool.statistics().retries == 0


async def test_a_restarted_stream_is_joined_when_left(autojump_clock: MockClock) -> None:
    """Leaving its block between two attempts ends the matter."""
    async with open_ledger(answers(overloaded), answers()) as (ledger, pool):
        async with ledger.changes():
            await trio.sleep(1)
        await trio.sleep(10)
        stats = pool.statistics()
        assert (stats.in_flight, stats.waiting, stats.retries) == (0, 0, 1)


def late_items(taken: list[int], *, after: float) -> AsyncGenerator[int, None]:
    """Two items, the first after some time."""

    async def items() -> AsyncGenerator[int, None]:
        for number in (1, 2):
            await trio.sleep(after)
            taken.append(number)
            yield number

    return items()


async def load(ledger: Ledger, items: AsyncIterable[int]) -> Any:
    """A stream of the caller's."""
    return await ledger.load(items)


async def convert(ledger: Ledger, items: AsyncIterable[int]) -> Any:
    """A stream each way."""
    async with ledger.convert(items) as results:
        return [result async for result in results]


@pytest.mark.parametrize("call", [load, convert])
async def test_a_client_stream_moves_on_while_nothing_was_taken(autojump_clock: MockClock, call: Any) -> None:
    """All its items go to the connection that takes it, each once."""
    taken: list[int] = []
    async with open_ledger(answers(drains), answers()) as (ledger, pool):
        assert await call(ledger, late_items(taken, after=1)) in ("done", [1, 2])
        assert (taken, pool.statistics().retries, trio.current_time()) == ([1, 2], 1, 2)


@pytest.mark.parametrize("call", [load, convert])
async def test_items_that_come_between_two_attempts_wait(autojump_clock: MockClock, call: Any) -> None:
    """The first one is kept for the next call; nothing is lost or asked for twice."""
    taken: list[int] = []
    async with open_ledger(answers(overloaded)) as (ledger, pool):
        assert await call(ledger, late_items(taken, after=1.5)) in ("done", [1, 2])
        assert (taken, pool.statistics().retries, trio.current_time()) == ([1, 2], 1, 3.5)


@pytest.mark.parametrize("call", [load, convert])
async def test_a_client_stream_that_gave_an_item_is_not_begun_again(autojump_clock: MockClock, call: Any) -> None:
    """Its items are gone: the refusal comes out."""

    async def takes_one_and_refuses(peer: ScriptedPeer, request: RequestReceived) -> None:
        await peer.expect(ItemsReceived)
        await refuses(peer, request)

    taken: list[int] = []
    async with open_ledger(answers(takes_one_and_refuses), answers()) as (ledger, pool):
        with pytest.raises(Draining) as caught:
            await call(ledger, late_items(taken, after=1))
        assert not caught.value.may_have_run
        assert (taken, pool.statistics().retries) == ([1], 0)


@pytest.mark.parametrize("call", [load, convert])
async def test_an_iterable_that_fails_between_two_attempts_is_told_at_once(
    autojump_clock: MockClock, call: Any
) -> None:
    """There is no call to be stopped, and none is begun."""

    async def failing() -> AsyncGenerator[int, None]:
        await trio.sleep(1)
        if trio.current_time() == 1:
            raise KeyError("mine")
        yield 1

    async with open_ledger(answers(overloaded), answers()) as (ledger, pool):
        with pytest.raises(KeyError):
            await call(ledger, failing())
        assert trio.current_time() == 1
        assert pool.statistics().in_flight == 0


async def test_an_iterable_that_failed_is_not_asked_for_again(autojump_clock: MockClock) -> None:
    """Even for an idempotent method: the end of its call is our own wish, and no reason for another."""

    async def failing() -> AsyncGenerator[int, None]:
        await trio.sleep(1)
        if trio.current_time() >= 1:
            raise KeyError("mine")
        yield 1

    async def joins(peer: ScriptedPeer, request: RequestReceived) -> None:
        await peer.expect(CancelReceived)
        await peer.send(peer.protocol.error(request.id, Code.CANCELLED, Outcome.CANCELLED, True, "as you wish"))

    async with open_ledger(answers(joins)) as (ledger, pool):
        with pytest.raises(KeyError):
            async with ledger.reconvert(failing()) as results:
                await trio.sleep(10)
                await results.receive()
        stats = pool.statistics()
        assert (stats.retries, stats.in_flight) == (0, 0)


async def test_a_good_server_needs_no_retry(autojump_clock: MockClock) -> None:
    """The scripts' measure: every shape, once."""
    async with open_ledger(greet_and_serve) as (ledger, pool):
        assert await post(ledger) == "Ledger.post"
        assert pool.statistics().retries == 0


async def test_a_peers_stream_between_two_attempts_learns_that_there_is_none(autojump_clock: MockClock) -> None:
    """A connection's peer has no other: the consumer is told at once, as the server's timer may end before the pause."""

    class Feed:
        @method(idempotent=True)
        async def items(self) -> AsyncGenerator[int, None]:
            await trio.sleep(1000)
            yield 0

    class Register:
        peer: Any = None

        @method
        async def here(self) -> None:
            self.peer = trio_rpc.current_call().peer

    register, listener = Register(), MemoryListener()

    async def consume() -> None:
        with pytest.raises(trio_rpc.PoolClosed) as caught:
            async with register.peer.stub(Feed).items() as items:
                await items.receive()
        assert caught.value.may_have_run
        assert trio.current_time() == 1

    async with watchdog(), trio.open_nursery() as nursery:
        async with (
            trio_rpc.open_server(register, listener, heartbeat=QUIET),
            trio_rpc.open_pool(listener.connect, services=Feed(), heartbeat=QUIET) as pool,
        ):
            await pool.stub(Register).here()
            nursery.start_soon(consume)
            await trio.sleep(1)
