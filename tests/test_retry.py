"""What is tried again, when, and what the error says of all the attempts together."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import msgpack
import pytest
import trio
from trio.testing import MockClock

import trio_rpc
from tests.scripted import Script, ScriptedPeer, ScriptedServer, greet_and_serve, watchdog
from trio_rpc import (
    Backoff,
    CircuitBreaker,
    Code,
    ConnectionLost,
    Draining,
    Overloaded,
    PoolLimits,
    PoolTimeout,
    RemoteCancelled,
    RemoteError,
    RetryBudget,
    RetryPolicy,
    RetryThrottle,
    RpcError,
    method,
)
from trio_rpc._budget import Deposits, Throttle
from trio_rpc.testing import MemoryListener
from trio_rpc.wire import CancelReceived, EndReceived, Hello, ItemsReceived, Outcome, RequestReceived

QUIET = trio_rpc.Heartbeat(interval=None)
POLICY = RetryPolicy(attempts=3, backoff=Backoff(initial=2, factor=2, maximum=10, jitter=0))
NO_JITTER = Backoff(jitter=0)
LIMITS = PoolLimits(connect_backoff=Backoff(initial=0, jitter=0), acquire_timeout=100, max_connections=1)
"""No pause between dials: every second that passes is the retry's."""


class OutOfMoney(Exception):
    """Named by the contract, with a code that is worth another attempt where the contract names nothing."""

    code = Code.UNAVAILABLE


class Ledger:
    """A contract; the server is a script."""

    @method
    async def post(self, amount: int) -> str:
        raise NotImplementedError

    @method(idempotent=True, raises=[OutOfMoney])
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
Step = Callable[[ScriptedPeer, RequestReceived], Any]


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


def ends(code: Code, outcome: Outcome, *, payload: Any = None, pushback: str | bytes | None = None) -> Step:
    """End it with an error of this kind, which may say when the server wants to see it again."""

    async def step(peer: ScriptedPeer, request: RequestReceived) -> None:
        started = outcome is not Outcome.REFUSED
        metadata = None if pushback is None else {"retry-pushback-ms": pushback}
        content = msgpack.packb(payload)
        await peer.send(peer.protocol.error(request.id, code, outcome, started, "by the script", content, metadata))

    return step


def notes(step: Step, requests: list[RequestReceived]) -> Step:
    """The same, and keep what was asked."""

    async def noting(peer: ScriptedPeer, request: RequestReceived) -> None:
        requests.append(request)
        await step(peer, request)

    return noting


async def gives(peer: ScriptedPeer, request: RequestReceived) -> None:
    """Answer well."""
    await fulfil(peer, request)


unavailable = ends(Code.UNAVAILABLE, Outcome.FAILED)


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
    """S14: unnoticed by the caller, whatever the method, the shape and the policy."""
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


async def test_a_handlers_own_failure_is_its_answer(autojump_clock: MockClock) -> None:
    """Unless the policy names its code: it ran, and would answer the same."""
    async with open_ledger(answers(fails)) as (ledger, pool):
        with pytest.raises(trio_rpc.RemoteError) as caught:
            await balance(ledger)
        assert caught.value.code is Code.RESOURCE_EXHAUSTED
        assert pool.statistics().retries == 0


@pytest.mark.parametrize("call", [balance, history])
async def test_a_handler_that_took_too_long_is_not_tried_again(autojump_clock: MockClock, call: Call) -> None:
    """The server's `max_deadline` has cut it, and would again."""
    async with open_ledger(answers(ends(Code.DEADLINE_EXCEEDED, Outcome.STOPPED))) as (ledger, pool):
        with pytest.raises(RemoteCancelled):
            await call(ledger)
        assert pool.statistics().retries == 0


@pytest.mark.parametrize("call", [balance, history])
async def test_codes_of_the_policy_are_worth_another_attempt(autojump_clock: MockClock, call: Call) -> None:
    """By default UNAVAILABLE, which a handler says of what it depends on."""
    async with open_ledger(answers(unavailable, unavailable)) as (ledger, pool):
        assert await call(ledger) in ("done", [1, 2])
        assert (trio.current_time(), pool.statistics().retries) == (2 + 4, 2)


@pytest.mark.parametrize("call", [post, changes])
async def test_codes_are_for_idempotent_methods(autojump_clock: MockClock, call: Call) -> None:
    """The handler ran, and what it has done before it failed may not be done twice."""
    async with open_ledger(answers(unavailable)) as (ledger, pool):
        with pytest.raises(RemoteError):
            await call(ledger)
        assert pool.statistics().retries == 0


async def test_a_stub_may_have_its_own_codes(autojump_clock: MockClock) -> None:
    """Those that its caller knows to pass by themselves."""
    aborted = ends(Code.ABORTED, Outcome.FAILED)
    policy = RetryPolicy(attempts=3, backoff=POLICY.backoff, codes={Code.ABORTED})
    async with open_ledger(answers(aborted, unavailable)) as (_ledger, pool):
        with pytest.raises(RemoteError, match="by the script") as caught:
            await pool.stub(Ledger, retry=policy).balance()
        assert (caught.value.code, caught.value.attempts) == (Code.UNAVAILABLE, 2)


async def test_what_the_contract_names_is_an_answer(autojump_clock: MockClock) -> None:
    """Whatever its code: the caller asked for it by name."""
    named = ends(Code.UNAVAILABLE, Outcome.FAILED, payload={"name": "OutOfMoney", "args": ["none"], "coded": True})
    async with open_ledger(answers(named)) as (ledger, pool):
        with pytest.raises(OutOfMoney):
            await balance(ledger)
        assert pool.statistics().retries == 0


async def test_a_refusal_that_a_handler_passes_on_has_run(autojump_clock: MockClock) -> None:
    """It was told by another server that this did not run there; here it did."""

    class Front:
        @method(raises=[Overloaded])
        async def ask(self) -> None:
            raise NotImplementedError

    passed_on = ends(Code.RESOURCE_EXHAUSTED, Outcome.FAILED, payload={"name": "Overloaded", "args": ["full"]})
    async with open_ledger(answers(passed_on)) as (_ledger, pool):
        with pytest.raises(Overloaded) as caught:
            await pool.stub(Front).ask()
        assert caught.value.may_have_run
        assert pool.statistics().retries == 0


@pytest.mark.parametrize(("asked", "made"), [(4, 4), (5, 5), (9, 5)])
async def test_more_than_five_attempts_act_as_five(autojump_clock: MockClock, asked: int, made: int) -> None:
    """As in gRPC: more of them are no policy, but an outage's second half."""
    policy = RetryPolicy(attempts=asked, backoff=Backoff(initial=1, factor=1, maximum=1, jitter=0))
    async with open_ledger(answers(*[unavailable] * 100), retry=policy) as (ledger, _pool):
        with pytest.raises(RemoteError) as caught:
            await balance(ledger)
        assert (caught.value.attempts, trio.current_time()) == (made, made - 1)


async def test_one_deadline_spans_all_attempts(autojump_clock: MockClock) -> None:
    """Each is told what is left of it, and the caller's scope ends the pause between two."""
    requests: list[RequestReceived] = []
    step = notes(unavailable, requests)
    async with open_ledger(answers(*[step] * 100)) as (ledger, pool):
        with pytest.raises(trio.TooSlowError), trio.fail_after(5):
            await balance(ledger)
        assert trio.current_time() == 5
        assert [request.timeout for request in requests] == pytest.approx([5, 3], abs=0.001)
        assert pool.statistics().in_flight == 0


# -- push-back ---------------------------------------------------------------------------------------------------------

JITTERED = RetryPolicy(attempts=3, backoff=Backoff(initial=2, factor=2, maximum=10, jitter=1))
FAILURES = {
    "a handler's failure": (Code.UNAVAILABLE, Outcome.FAILED),
    "one with another code": (Code.RESOURCE_EXHAUSTED, Outcome.FAILED),
    "a handler that was stopped": (Code.CANCELLED, Outcome.STOPPED),
    "overload": (Code.RESOURCE_EXHAUSTED, Outcome.REFUSED),
    "going away": (Code.UNAVAILABLE, Outcome.REFUSED),
}


@pytest.mark.parametrize(("text", "pause"), [("0", 0), ("250", 0.25), (b"1500", 1.5)])
@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("call", [balance, history])
async def test_push_back_says_when(
    autojump_clock: MockClock, call: Call, failure: tuple[Code, Outcome], text: str | bytes, pause: float
) -> None:
    """To the millisecond, whatever the policy's delays are."""
    async with open_ledger(answers(ends(*failure, pushback=text)), retry=JITTERED) as (ledger, pool):
        assert await call(ledger) in ("done", [1, 2])
        assert (trio.current_time(), pool.statistics().retries) == (pause, 1)


@pytest.mark.parametrize("text", ["-1", "x", "", "1.5", "+5", "99999999999", "\u00b2", b"\xff"])
@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("call", [balance, history])
async def test_push_back_says_never(
    autojump_clock: MockClock, call: Call, failure: tuple[Code, Outcome], text: str | bytes
) -> None:
    """By what is negative, or cannot be read; even where it surely did not run."""
    async with open_ledger(answers(*[ends(*failure, pushback=text)] * 2), retry=JITTERED) as (ledger, pool):
        for scope in (trio.CancelScope(), trio.move_on_after(100)):
            with scope, pytest.raises(RpcError) as caught:
                await call(ledger)
            assert (caught.value.retry_after, pool.statistics().retries, trio.current_time()) == (None, 0, 0)


@pytest.mark.parametrize("call", [balance, history])
async def test_who_was_put_off_learns_at_once_that_the_pool_is_closed(autojump_clock: MockClock, call: Call) -> None:
    """However long the server wants to be left alone: there will be no other attempt."""
    ended: list[float] = []
    async with open_ledger(answers(ends(Code.UNAVAILABLE, Outcome.FAILED, pushback="3600000"))) as (ledger, pool):

        async def wait() -> None:
            with trio.move_on_after(9999), pytest.raises(trio_rpc.PoolClosed) as caught:
                await call(ledger)
            ended.append(trio.current_time())
            assert caught.value.may_have_run

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(1)
            await pool.aclose()
    assert ended == [1]


async def test_push_back_begins_the_ladder_anew(autojump_clock: MockClock) -> None:
    """What the server knows better than the ladder ends the ladder's growth."""
    policy = RetryPolicy(attempts=5, backoff=POLICY.backoff)
    steps = [stops, stops, ends(Code.UNAVAILABLE, Outcome.FAILED, pushback="250"), stops]
    async with open_ledger(answers(*steps), retry=policy) as (ledger, _pool):
        await balance(ledger)
        assert trio.current_time() == 2 + 4 + 0.25 + 2


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
async def test_push_back_is_told(autojump_clock: MockClock, failure: tuple[Code, Outcome]) -> None:
    """To a caller whose policy does not wait for it, or whose method may not run twice."""
    async with open_ledger(answers(*[ends(*failure, pushback="200000")] * 2)) as (ledger, _pool):
        for call in (balance, post):
            with pytest.raises(RpcError) as caught:
                await call(ledger)
            assert caught.value.retry_after == 200


def signed(code: Code | None, **metadata: str) -> Step:
    """End a call with an error, or well, and tell this beside it."""

    async def step(peer: ScriptedPeer, request: RequestReceived) -> None:
        if code is None:
            await peer.send(peer.protocol.response(request.id, msgpack.packb("done"), (), dict(metadata)))
        else:
            content = msgpack.packb(None)
            await peer.send(peer.protocol.error(request.id, code, Outcome.FAILED, True, "no", content, dict(metadata)))

    return step


@pytest.mark.parametrize(("last", "given"), [(None, {"by": "3"}), (Code.UNAVAILABLE, {"by": "3"})])
async def test_what_came_with_the_last_attempt_is_given(
    autojump_clock: MockClock, last: Code | None, given: dict[str, str]
) -> None:
    """And not what came with those before it, be it a result or an error in the end."""
    lost = [signed(Code.UNAVAILABLE, by="1", only="1"), signed(Code.UNAVAILABLE, by="2")]
    metadata: dict[str, str | bytes] = {}
    async with open_ledger(answers(*lost, signed(last, by="3"))) as (_ledger, pool):
        with suppress(RemoteError):
            await balance(pool.stub(Ledger, reply_metadata=metadata))
    assert metadata == given


# -- what retries may cost ---------------------------------------------------------------------------------------------


def test_calls_deposit_a_part_of_a_retry() -> None:
    """And nothing more is drawn than that."""
    deposits = Deposits(RetryBudget(ratio=0.2, per_second=0, window=10), 0, 0)
    drawn = [deposits.draw(calls, 0) for calls in range(1, 21)]
    assert [number for number, paid in enumerate(drawn, 1) if paid] == [5, 10, 15, 20]


def test_some_retries_a_second_are_free() -> None:
    """Ten seconds' worth of them may be made at once; then there are as many again ten seconds later."""
    deposits = Deposits(RetryBudget(ratio=0, per_second=2, window=10), 0, 0)
    assert [deposits.draw(0, 5) for _ in range(21)] == [True] * 20 + [False]
    assert not deposits.draw(0, 14.9)
    assert [deposits.draw(0, 15) for _ in range(21)] == [True] * 20 + [False]


def test_deposits_live_for_a_window() -> None:
    """What was not drawn by then is lost."""
    for now, paid in [(9.9, True), (11.1, False)]:
        deposits = Deposits(RetryBudget(ratio=1, per_second=0, window=10), 0, 0)
        assert deposits.draw(2, 0.5)
        assert deposits.draw(2, now) is paid


def test_each_look_begins_a_new_stretch() -> None:
    """What came since the last one is not spread over what was before."""
    deposits = Deposits(RetryBudget(ratio=1, per_second=0, window=10), 0, 0)
    for _ in range(9):
        assert deposits.draw(100, 100)
    assert [deposits.draw(110, 101) for _ in range(20)].count(True) == pytest.approx(10, abs=1)


@pytest.mark.parametrize(("elapsed", "calls", "retries"), [(100, 100, 10), (9.9, 100, 100), (5, 10, 10), (1e6, 100, 0)])
def test_calls_since_the_last_look_are_spread_evenly(elapsed: float, calls: int, retries: int) -> None:
    """An hour without a failure leaves no hoard behind: only what the window's part of its calls deposits."""
    deposits = Deposits(RetryBudget(ratio=1, per_second=0, window=10), 0, 0)
    assert [deposits.draw(calls, elapsed) for _ in range(calls)].count(True) == pytest.approx(retries, abs=1)


def test_the_throttles_tokens() -> None:
    """Of ten, five failures leave five, which is not more than half; a success brings a tenth, and from none it takes 51."""
    throttle = Throttle(RetryThrottle(tokens=10, ratio=0.1))
    held = []
    for _ in range(5):
        throttle.note_failure()
        held.append(throttle.holds)
    assert held == [False] * 4 + [True]
    throttle.note_success()
    assert (throttle.tokens, throttle.holds) == (5.1, False)
    for _ in range(10):
        throttle.note_failure()
    assert throttle.tokens == 0
    for success in range(1, 52):
        throttle.note_success()
        assert throttle.holds is (success < 51)
    for _ in range(100):
        throttle.note_success()
    assert throttle.tokens == 10


@pytest.mark.parametrize("call", [balance, history])
async def test_a_spent_budget_ends_the_call(autojump_clock: MockClock, call: Call) -> None:
    """With the error that it has, and a word about that."""
    policy = RetryPolicy(attempts=2, backoff=POLICY.backoff, budget=RetryBudget(ratio=0.5, per_second=0))
    made = []
    async with open_ledger(answers(*[stops] * 100), retry=policy) as (ledger, pool):
        for _ in range(4):
            with pytest.raises(RemoteCancelled) as caught:
                await call(ledger)
            made.append(caught.value.attempts)
            spent = "not tried again: the retry budget is spent"
            assert (spent in getattr(caught.value, "__notes__", [])) is (caught.value.attempts == 1)
        assert made == [1, 2, 1, 2]
        assert (pool.statistics().retries, pool.statistics().throttled) == (2, 2)


async def test_a_stubs_policy_draws_on_the_pools_budget(autojump_clock: MockClock) -> None:
    """There is one for all, whatever the stub's own says."""
    empty = RetryPolicy(budget=RetryBudget(ratio=0, per_second=0))
    async with open_ledger(answers(*[stops] * 100), retry=empty) as (_ledger, pool):
        with pytest.raises(RemoteCancelled):
            await pool.stub(Ledger, retry=RetryPolicy(budget=None)).balance()
        assert (pool.statistics().retries, pool.statistics().throttled) == (0, 1)


@pytest.mark.parametrize("call", [post, changes])
async def test_what_did_not_run_is_replaced_once_for_nothing(autojump_clock: MockClock, call: Call) -> None:
    """Whatever the budget says; from then on it costs as much as any."""
    policy = RetryPolicy(budget=RetryBudget(ratio=0, per_second=0))
    async with open_ledger(answers(refuses, gives, refuses, refuses), retry=policy) as (ledger, pool):
        assert await call(ledger) in ("done", [1, 2])
        with pytest.raises(Draining) as caught:
            await call(ledger)
        assert (caught.value.attempts, caught.value.may_have_run) == (2, False)
        assert caught.value.__notes__[-1] == "not tried again: the retry budget is spent"
        assert (pool.statistics().retries, pool.statistics().throttled, trio.current_time()) == (2, 1, 0)


async def test_overload_is_paid_for_from_the_first_time_on(autojump_clock: MockClock) -> None:
    """Who has no room for a call has no room for its double either."""
    policy = RetryPolicy(budget=RetryBudget(ratio=0, per_second=0))
    async with open_ledger(answers(overloaded), retry=policy) as (ledger, pool):
        with pytest.raises(Overloaded, match="by the script"):
            await post(ledger)
        assert (pool.statistics().retries, pool.statistics().throttled) == (0, 1)


@pytest.mark.parametrize("call", [balance, history])
async def test_the_throttle_holds_from_the_fifth_failure_on(autojump_clock: MockClock, call: Call) -> None:
    """Of ten tokens; once enough calls have had results there are retries again."""
    policy = RetryPolicy(attempts=2, backoff=POLICY.backoff, throttle=RetryThrottle(tokens=10, ratio=0.1))
    steps = [stops] * 5 + [gives] * 10 + [stops] + [gives] * 11 + [stops, gives]
    async with open_ledger(answers(*steps), retry=policy) as (ledger, pool):
        ends: list[RpcError] = []
        for _ in range(3):
            with pytest.raises(RemoteCancelled) as caught:
                await call(ledger)
            ends.append(caught.value)
        assert [error.attempts for error in ends] == [2, 2, 1]
        assert ends[-1].__notes__ == ["not tried again: the throttle holds retries back: 5 tokens are left"]
        for _ in range(10):
            await call(ledger)
        with pytest.raises(RemoteCancelled):  # The failure itself takes the tenth success's token.
            await call(ledger)
        for _ in range(11):
            await call(ledger)
        assert pool.statistics().retries == 2
        await call(ledger)
        assert (pool.statistics().retries, pool.statistics().throttled) == (3, 2)


async def test_what_did_not_run_is_none_of_the_throttles_business(autojump_clock: MockClock) -> None:
    """A server that goes away is no failure of a handler."""
    policy = RetryPolicy(attempts=2, backoff=POLICY.backoff, throttle=RetryThrottle(tokens=4, ratio=0.1))
    steps = [*[refuses, refuses, gives] * 5, stops, stops, stops, refuses, refuses, gives]
    async with open_ledger(answers(*steps), retry=policy) as (ledger, pool):
        for _ in range(5):
            await post(ledger)
        assert pool.statistics().retries == 10
        for attempts in (2, 1):
            with pytest.raises(RemoteCancelled) as caught:
                await balance(ledger)
            assert caught.value.attempts == attempts
        await post(ledger)
        assert (pool.statistics().retries, pool.statistics().throttled) == (13, 1)


@pytest.mark.parametrize("name", ["balance", "history", "load", "convert"])
async def test_results_of_all_shapes_fill_the_throttle(autojump_clock: MockClock, name: str) -> None:
    """A stream's is its end."""
    policy = RetryPolicy(attempts=2, backoff=POLICY.backoff, throttle=RetryThrottle(tokens=4, ratio=2))
    async with open_ledger(answers(stops, stops), answers(stops), retry=policy) as (ledger, pool):
        with pytest.raises(RemoteCancelled):
            await balance(ledger)
        calls: dict[str, Any] = {"balance": balance, "history": history}
        shapes: dict[str, Any] = {"load": load, "convert": convert}
        await (calls[name](ledger) if name in calls else shapes[name](ledger, late_items([], after=0)))
        pool.recycle()
        await balance(ledger)
        assert (pool.statistics().retries, pool.statistics().throttled) == (2, 0)


async def test_a_server_that_wants_no_retry_counts_for_the_throttle(autojump_clock: MockClock) -> None:
    """Even where there would have been none."""
    policy = RetryPolicy(attempts=2, backoff=POLICY.backoff, throttle=RetryThrottle(tokens=4, ratio=0.1))
    never = ends(Code.NOT_FOUND, Outcome.FAILED, pushback="-1")
    async with open_ledger(answers(never, stops), retry=policy) as (ledger, pool):
        with pytest.raises(RemoteError):
            await post(ledger)
        with pytest.raises(RemoteCancelled):
            await balance(ledger)
        assert pool.statistics().throttled == 1


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


@pytest.mark.parametrize("call", [balance, history])
async def test_earlier_attempts_are_told(autojump_clock: MockClock, call: Call) -> None:
    """A note for each, in order; and their number, which is one where there was one."""
    async with open_ledger(answers(stops, overloaded, unavailable, stops)) as (ledger, _pool):
        with pytest.raises(RemoteCancelled) as caught:
            await call(ledger)
        where = "at ScriptedServer.connect"
        assert caught.value.attempts == 4
        assert caught.value.__notes__ == [
            f"attempt 1, {where}: RemoteCancelled: stopped",
            f"attempt 2, {where}: Overloaded: by the script",
            f"attempt 3, {where}: RemoteError: by the script",
        ]
    async with open_ledger(answers(fails)) as (ledger, _pool):
        with pytest.raises(RemoteError) as single:
            await call(ledger)
        assert (single.value.attempts, hasattr(single.value, "__notes__")) == (1, False)


async def test_of_many_attempts_the_latest_are_told(autojump_clock: MockClock) -> None:
    """And how many are not."""
    policy = RetryPolicy(backoff=Backoff(initial=1, factor=1, maximum=1, jitter=0))
    async with open_ledger(answers(*[overloaded] * 200), retry=policy) as (ledger, _pool):
        with pytest.raises(Overloaded) as caught:
            await post(ledger)
        assert (caught.value.attempts, len(caught.value.__notes__)) == (101, 17 - 1)
        assert caught.value.__notes__[0] == "of 85 earlier attempts nothing is told"
        assert caught.value.__notes__[-1].startswith("attempt 100,")


@pytest.mark.parametrize("call", [balance, history])
async def test_further_attempts_say_how_many_may_have_run(autojump_clock: MockClock, call: Call) -> None:
    """Those that replace one that surely did not run say no more than that one did."""
    requests: list[RequestReceived] = []
    steps = [notes(step, requests) for step in (refuses, stops, refuses, stops, gives)]
    async with open_ledger(answers(*steps)) as (ledger, _pool):
        await call(ledger)
    assert [request.metadata for request in requests] == [None, None, *[{"previous-attempts": n} for n in "112"]]


# -- elsewhere ---------------------------------------------------------------------------------------------------------


class Places:
    """Servers in memory by name, each with the scripts of its connections, and which of them were asked."""

    def __init__(self, nursery: trio.Nursery, **scripts: Sequence[Script]) -> None:
        self.seen: list[str] = []
        self.servers = {
            name: ScriptedServer(nursery, *[self._noting(name, script) for script in own], hello=Hello(instance=name))
            for name, own in scripts.items()
        }

    def _noting(self, name: str, script: Script) -> Script:
        async def noting(peer: ScriptedPeer) -> None:
            receive = peer.event

            async def event() -> Any:
                received = await receive()
                if isinstance(received, RequestReceived):
                    self.seen.append(name)
                return received

            peer.event = event  # type: ignore[method-assign]
            await script(peer)

        return noting


@asynccontextmanager
async def open_places(
    *, retry: RetryPolicy = POLICY, limits: PoolLimits = LIMITS, **scripts: Sequence[Script]
) -> AsyncIterator[tuple[trio_rpc.Pool, list[str]]]:
    """A pool of these servers, all of them connected, whose calls take turns."""
    async with watchdog(), trio.open_nursery() as nursery:
        places = Places(nursery, **scripts)
        sites = {name: server.connect for name, server in places.servers.items()}
        async with trio_rpc.open_pool(
            sites, limits=limits, retry=retry, balance=trio_rpc.RoundRobin(), heartbeat=QUIET
        ) as pool:
            await pool.wait_connected(len(sites))
            yield pool, places.seen


@pytest.mark.parametrize("fault", [stops, unavailable, overloaded, refuses, vanishes])
@pytest.mark.parametrize("call", [balance, history])
async def test_each_attempt_goes_where_none_was_yet(autojump_clock: MockClock, call: Call, fault: Step) -> None:
    """As long as there is such a place; then anywhere."""
    bad = [answers(fault)]
    async with open_places(a=bad, b=bad, c=[answers()]) as (pool, seen):
        await call(pool.stub(Ledger))
        assert sorted(seen) == sorted(set(seen))
        assert "c" in seen


async def test_where_all_have_failed_any_will_do(autojump_clock: MockClock) -> None:
    """There is no other place: better one that has failed than none."""
    async with open_places(a=[answers(stops)], b=[answers(stops)]) as (pool, seen):
        await balance(pool.stub(Ledger))
        assert sorted(seen[:2]) == ["a", "b"]
        assert len(seen) == 3


# -- idempotency keys --------------------------------------------------------------------------------------------------


async def test_the_key_goes_with_each_attempt(autojump_clock: MockClock) -> None:
    """Beside whatever else the stub sends along."""
    requests: list[RequestReceived] = []
    steps = [notes(step, requests) for step in (refuses, vanishes)]
    async with open_places(a=[answers(*steps)]) as (pool, _seen):
        with pytest.raises(ConnectionLost):
            await pool.stub(Ledger, metadata={"by": "me"}, retry=RetryPolicy(attempts=1), idempotency_key="k").post(1)
    assert [request.metadata for request in requests] == [{"by": "me", "idempotency-key": "k"}] * 2


async def test_a_key_lets_what_may_have_run_go_back(autojump_clock: MockClock) -> None:
    """To the very server that may have run it, and knows the key; whatever other servers there are."""
    once = [answers(vanishes), answers()]
    for _ in range(5):
        async with open_places(a=once, b=once) as (pool, seen):
            assert await pool.stub(Ledger, idempotency_key="k").post(1) == "done"
            assert seen in (["a", "a"], ["b", "b"])
            assert pool.statistics().retries == 1


async def test_a_key_is_of_no_use_with_another_server(autojump_clock: MockClock) -> None:
    """At the same address: it would run the call again. The caller learns what it would have learnt without a key."""
    async with watchdog(), trio.open_nursery() as nursery:
        servers = [
            ScriptedServer(nursery, answers(step), hello=Hello(instance=name))
            for name, step in [("old", vanishes), ("new", gives)]
        ]
        left = deque(servers)

        async def connect() -> trio.abc.Stream:
            return await left.popleft().connect()

        async with trio_rpc.open_pool({"a": connect}, limits=LIMITS, retry=POLICY, heartbeat=QUIET) as pool:
            with pytest.raises(ConnectionLost) as caught:
                await pool.stub(Ledger, idempotency_key="k").post(1)
        assert (caught.value.may_have_run, caught.value.attempts) == (True, 1)
        assert caught.value.__notes__ == [
            "not tried again: a is another server by now, which would not know that this call may have run"
        ]


async def test_a_key_waits_for_its_server_as_for_any_place(autojump_clock: MockClock) -> None:
    """Then the first error comes out, and not that there was no place."""

    async def gone(_peer: ScriptedPeer) -> None:
        """Nobody greets any more."""

    async with watchdog(), trio.open_nursery() as nursery:
        servers = Places(nursery, a=[answers(vanishes), gone], b=[answers()]).servers
        sites = {name: server.connect for name, server in servers.items()}
        limits = PoolLimits(connect_backoff=NO_JITTER, acquire_timeout=30, max_connections=1)
        async with trio_rpc.open_pool(
            sites, limits=limits, retry=POLICY, balance=trio_rpc.RoundRobin(), heartbeat=QUIET
        ) as pool:
            await pool.wait_connected(2)
            stub = pool.endpoints[0].stub(Ledger, idempotency_key="k")
            with pytest.raises(ConnectionLost) as caught:
                await stub.post(1)
        assert caught.value.may_have_run
        assert trio.current_time() == 2 + 30
        assert "acquire_timeout" in caught.value.__notes__[-1]


@pytest.mark.parametrize("step", [stops, unavailable])
async def test_a_key_does_not_undo_an_answer(autojump_clock: MockClock, step: Step) -> None:
    """A handler that has failed, or was stopped, will not have another run for its key."""
    async with open_places(a=[answers(step)]) as (pool, seen):
        with pytest.raises(RpcError):
            await pool.stub(Ledger, idempotency_key="k").post(1)
        assert seen == ["a"]


async def test_the_first_error_is_what_a_key_falls_back_on(autojump_clock: MockClock) -> None:
    """It went back once, and then there was no way back any more."""

    async def garbles(peer: ScriptedPeer, _request: RequestReceived) -> None:
        await peer.stream.send_all(bytes(100))

    async def gone(_peer: ScriptedPeer) -> None:
        """Nobody greets any more."""

    limits = PoolLimits(connect_backoff=NO_JITTER, max_connections=1)
    async with open_places(a=[answers(vanishes), answers(garbles), gone], limits=limits) as (pool, _seen):
        with pytest.raises(ConnectionLost, match="the peer closed the connection") as caught:
            await pool.stub(Ledger, idempotency_key="k").post(1)
        assert caught.value.attempts == 2
        assert caught.value.__notes__[0].startswith("attempt 2, at a: ConnectionLost:")


async def test_a_key_is_nothing_to_a_server_without_a_name(autojump_clock: MockClock) -> None:
    """It could not be told from its successor."""
    async with open_ledger(answers(vanishes), answers()) as (_ledger, pool):
        with pytest.raises(ConnectionLost):
            await pool.stub(Ledger, idempotency_key="k").post(1)
        assert pool.statistics().retries == 0


async def test_an_idempotent_call_with_a_key_had_better_go_back(autojump_clock: MockClock) -> None:
    """There its first run's result may be waiting; if there is no way back, elsewhere will do."""
    once = [answers(vanishes), answers()]
    for key in ("k", None):
        async with open_places(a=once, b=once) as (pool, seen):
            await balance(pool.stub(Ledger, idempotency_key=key))
            assert (seen[0] == seen[1]) is (key is not None)


async def test_an_idempotent_call_with_a_key_goes_on_elsewhere(autojump_clock: MockClock) -> None:
    """If its server does not come back."""

    async def once(peer: ScriptedPeer) -> None:
        await answers(vanishes)(peer)

    async def gone(_peer: ScriptedPeer) -> None:
        """Nobody greets any more."""

    async with watchdog(), trio.open_nursery() as nursery:
        servers = {name: ScriptedServer(nursery, once, gone) for name in "ab"}
        sites = {name: server.connect for name, server in servers.items()}
        limits = PoolLimits(connect_backoff=NO_JITTER, max_connections=1)
        async with trio_rpc.open_pool(sites, limits=limits, retry=POLICY, heartbeat=QUIET) as pool:
            await pool.wait_connected(2)
            with pytest.raises(RpcError) as caught:
                await pool.stub(Ledger, idempotency_key="k").balance()
        assert {note.split(":")[0] for note in caught.value.__notes__[:2]} in (
            {"attempt 1, at a", "attempt 2, at b"},
            {"attempt 1, at b", "attempt 2, at a"},
        )


@pytest.mark.parametrize("name", ["changes", "load", "convert"])
async def test_streams_have_no_keys(autojump_clock: MockClock, name: str) -> None:
    """And that is said before anything is sent."""
    async with open_ledger(answers()) as (_ledger, pool):
        stub = pool.stub(Ledger, idempotency_key="k")
        call: Any = stub.changes if name == "changes" else partial(getattr(stub, name), late_items([], after=0))
        with pytest.raises(
            TypeError, match=rf"Ledger\.{name} is a stream, and an idempotency key is for unary methods"
        ):
            if name == "load":
                await call()
            else:
                call()
        assert pool.statistics().requests == 0


# -- what calls say of their endpoints ---------------------------------------------------------------------------------


async def ignores(_peer: ScriptedPeer, _request: RequestReceived) -> None:
    """Leave it without an answer."""


async def obeys(peer: ScriptedPeer, request: RequestReceived) -> None:
    """Run until it is cancelled."""
    await peer.expect(CancelReceived)
    await peer.send(peer.protocol.error(request.id, Code.CANCELLED, Outcome.CANCELLED, True, "as you wish"))


NAMED = {"name": "OutOfMoney", "args": ["none"]}
BAD_CODES = {2, 4, 8, 13, 14, 15}


@pytest.mark.parametrize(
    ("step", "failed"),
    [
        *((ends(code, Outcome.FAILED), code in BAD_CODES) for code in Code if code is not Code.OK),
        (gives, False),
        (vanishes, True),
        (overloaded, True),
        (refuses, False),
        (stops, False),
        (obeys, False),
        (ends(Code.DEADLINE_EXCEEDED, Outcome.STOPPED), True),
        (ends(Code.INVALID_ARGUMENT, Outcome.REFUSED), False),
        (ends(Code.INTERNAL, Outcome.REFUSED), True),
        (ends(Code.UNKNOWN, Outcome.FAILED, payload=NAMED), False),
        (ends(Code.UNKNOWN, Outcome.FAILED, payload={"name": ""}), True),
        (ends(Code.UNKNOWN, Outcome.FAILED, payload={"members": [NAMED, NAMED]}), False),
        (ends(Code.UNKNOWN, Outcome.FAILED, payload={"members": [NAMED, {"name": ""}]}), True),
    ],
)
async def test_what_counts_against_an_endpoint(autojump_clock: MockClock, step: Step, failed: bool) -> None:
    """What its callers are not to blame for, and is no answer: by a breaker that the first such call opens."""
    async with watchdog(), trio.open_nursery() as nursery:
        connect = ScriptedServer(nursery, answers(step)).connect
        breaker = CircuitBreaker(consecutive=1)
        async with trio_rpc.open_pool(
            {"a": connect}, limits=LIMITS, breaker=breaker, retry=RetryPolicy(attempts=1), heartbeat=QUIET
        ) as pool:
            with suppress(RpcError, OutOfMoney, ExceptionGroup), trio.move_on_after(5) as scope:
                if step is obeys:
                    nursery.start_soon(_later, 1, scope.cancel)
                await balance(pool.stub(Ledger))
            assert pool.endpoints[0].statistics().circuit == ("open" if failed else "closed")


INTERNAL = ends(Code.INTERNAL, Outcome.FAILED)


@pytest.mark.parametrize(("step", "silent"), [(refuses, True), (stops, True), (obeys, True), (gives, False)])
async def test_what_says_nothing_of_an_endpoint(autojump_clock: MockClock, step: Step, silent: bool) -> None:
    """It does not part two failures in a row, as a success does."""
    breaker, once = CircuitBreaker(consecutive=2), RetryPolicy(attempts=1, budget=RetryBudget(ratio=0, per_second=0))
    async with watchdog(), trio.open_nursery() as nursery:
        connect = ScriptedServer(nursery, answers(INTERNAL, step, *[INTERNAL] * 2)).connect
        targets = {"a": connect}
        async with trio_rpc.open_pool(targets, limits=LIMITS, breaker=breaker, retry=once, heartbeat=QUIET) as pool:
            for number in range(3):
                with suppress(RpcError), trio.CancelScope() as scope:
                    if number == 1 and step is obeys:
                        nursery.start_soon(_later, 1, scope.cancel)
                    await post(pool.stub(Ledger))
            assert pool.endpoints[0].statistics().circuit == ("open" if silent else "closed")


async def test_an_endpoint_that_is_too_slow_for_its_callers_fails(autojump_clock: MockClock) -> None:
    """A deadline that passes is told by no server, as the caller's scope fires first."""
    async with watchdog(), trio.open_nursery() as nursery:
        connect = ScriptedServer(nursery, answers(obeys)).connect
        breaker = CircuitBreaker(consecutive=1)
        async with trio_rpc.open_pool({"a": connect}, limits=LIMITS, breaker=breaker, heartbeat=QUIET) as pool:
            with trio.move_on_after(5):
                await post(pool.stub(Ledger))
            assert pool.endpoints[0].statistics().circuit == "open"


async def test_what_never_left_says_nothing_of_its_endpoint(autojump_clock: MockClock) -> None:
    """Its connection is lost with others on it, which say enough."""
    resume = trio.Event()

    async def deaf(peer: ScriptedPeer) -> None:
        await peer.greet()
        await resume.wait()

    async with watchdog(), trio.open_nursery() as nursery:
        connect = ScriptedServer(nursery, deaf, answers()).connect
        breaker = CircuitBreaker(consecutive=2)
        async with trio_rpc.open_pool({"a": connect}, limits=LIMITS, breaker=breaker, heartbeat=QUIET) as pool:
            await pool.wait_connected()

            async def large() -> None:
                with pytest.raises(ConnectionLost):
                    await pool.call("Ledger.blob", b"x" * 1_000_000)

            nursery.start_soon(large)
            await trio.sleep(1)
            nursery.start_soon(_later, 1, resume.set)
            assert await post(pool.stub(Ledger)) == "done"
            assert pool.endpoints[0].statistics().circuit == "closed"


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


async def test_nobody_waits_for_a_stream_left_between_two_attempts(autojump_clock: MockClock) -> None:
    """However long the server has put off the next one: draining ends with what is under way."""
    async with open_ledger(answers(ends(Code.UNAVAILABLE, Outcome.FAILED, pushback="3600000"))) as (ledger, pool):
        with trio.move_on_after(1):
            await history(ledger)
        await pool.drain(grace=100)
        assert trio.current_time() == 1


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
