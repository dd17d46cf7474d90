"""Guarantee 4: errors say whether the work may have run, and what surely did not run is tried again."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import trio
import trio.testing

from tests.guarantees.kit import Lab, RawClient, numbers
from tests.scripted import ScriptedPeer, ScriptedServer
from trio_rpc import (
    Code,
    ConnectError,
    ConnectionLost,
    Draining,
    EncodeError,
    Heartbeat,
    InvalidArgument,
    Overloaded,
    PermissionDenied,
    PoolClosed,
    PoolExhausted,
    PoolLimits,
    PoolTimeout,
    Refused,
    RemoteError,
    RetryPolicy,
    ServerLimits,
    Unimplemented,
    method,
    open_connection,
    open_pool,
    open_server,
)
from trio_rpc.testing import Cut, Delay, FaultyStream, Freeze, MemoryListener, memory_pipe, open_loopback
from trio_rpc.wire import ErrorReceived, GoAwayReceived, Hello, Outcome, RequestReceived, method_block


class Flaky(Lab):
    """Every handler counts its runs; `hook` may end the connection under it."""

    runs = 0

    def _run(self) -> None:
        self.runs += 1
        self.hook()

    @method
    async def once(self) -> int:
        self._run()
        await trio.sleep(0.001)
        return self.runs

    @method(idempotent=True)
    async def again(self) -> int:
        self._run()
        await trio.sleep(0.001)
        return self.runs

    @method(idempotent=True)
    async def items(self, upto: int) -> AsyncGenerator[int, None]:
        for number in range(upto):
            yield number
        await trio.sleep(0.001)
        self._run()

    @method(idempotent=True)
    async def collect(self, values: AsyncIterable[int]) -> int:
        self._run()
        return sum([value async for value in values])

    @method
    async def raises_ours(self, which: int) -> None:
        self.runs += 1
        raise (Draining, Overloaded, Unimplemented, NotImplementedError, PoolTimeout, Refused)[which]("the handler's")

    @method
    async def declared(self) -> None:
        raise NotImplementedError


class Anything:
    """Takes whatever can be sent; `started` names the handlers that ran."""

    def __init__(self) -> None:
        self.started: list[str] = []

    @method
    async def takes(self, value: Any) -> None:
        self.started.append("takes")

    @method
    async def total(self, values: AsyncIterable[Any]) -> int:
        self.started.append("total")
        return len([value async for value in values])

    @method
    async def mirror(self, values: AsyncIterable[Any]) -> AsyncGenerator[Any, None]:
        self.started.append("mirror")
        async for value in values:
            yield value


async def test_what_was_never_written_did_not_run(autojump_clock: trio.testing.MockClock) -> None:
    """4: a call that finds no connection says so: it did not run."""

    async def refuse() -> trio.abc.Stream:
        raise ConnectError("nobody is there")

    limits = PoolLimits(acquire_timeout=3, max_waiting=1)
    async with open_pool(refuse, limits=limits) as pool, trio.open_nursery() as nursery:
        nursery.start_soon(_raises, PoolTimeout, False, partial(pool.call, "Lab.echo", 1))
        await trio.testing.wait_all_tasks_blocked()
        await _raises(PoolExhausted, False, partial(pool.call, "Lab.echo", 2))


async def _raises(kind: type[Exception], may_have_run: bool, call: Any) -> BaseException:
    with pytest.raises(kind) as caught:
        await call()
    assert type(caught.value) is kind
    assert caught.value.may_have_run is may_have_run  # type: ignore[attr-defined]
    return caught.value


async def test_what_was_written_may_have_run_and_the_rest_goes_elsewhere(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """S12, 4: at a loss, the call that the transport had may have run; the one still in the queue is made elsewhere,
    unseen.
    """
    lab, freeze = Flaky(), Freeze(direction="sending")
    listener = MemoryListener(wrap=lambda stream: FaultyStream(stream, freeze))
    results: list[int] = []
    async with open_server(lab, listener), open_pool(listener.connect) as pool:
        stub = pool.stub(Flaky)
        await stub.echo(0)
        async with trio.open_nursery() as nursery:

            async def queued() -> None:
                results.append(await stub.once())

            freeze.freeze()
            nursery.start_soon(_raises, ConnectionLost, True, stub.once)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(queued)
            await trio.testing.wait_all_tasks_blocked()
            freeze.frozen = False  # For the next connection; this one's write stays where it is.
            await trio.aclose_forcefully(listener.connections[0])
        assert (results, lab.runs, pool.statistics().retries) == ([1], 1, 1)


async def test_a_written_prefix_counts_as_written(autojump_clock: trio.testing.MockClock) -> None:
    """4: a request of which only the first bytes have left may have run, as far as this side can tell."""
    async with open_loopback(Lab(), wrap=lambda stream: FaultyStream(stream, Cut(3000, direction="sending"))) as pool:
        await _raises(ConnectionLost, True, partial(pool.stub(Lab).echo, "x" * 20_000))


async def test_refusals_did_not_run_and_are_final(autojump_clock: trio.testing.MockClock) -> None:
    """4: what the dispatch refuses before the handler is entered did not run, and is not tried again."""
    lab = Flaky()
    async with open_loopback(lab, authorize=lambda _peer, name: name != "Lab.count") as pool:
        await _raises(Unimplemented, False, partial(pool.call, "Lab.nothing"))
        await _raises(Unimplemented, False, pool.stub(Flaky).declared)
        await _raises(InvalidArgument, False, partial(pool.call, "Lab.sleep", "soon"))
        with pytest.raises(PermissionDenied) as caught:
            async with pool.stub(Lab).count() as counting:
                await counting.receive()
        assert not caught.value.may_have_run
        assert (pool.statistics().retries, lab.runs, lab.log) == (0, 0, [])


@pytest.mark.parametrize("which", range(6))
async def test_our_own_errors_out_of_a_handler_are_remote_errors(
    autojump_clock: trio.testing.MockClock, which: int
) -> None:
    """4: an RpcError or NotImplementedError that escapes a handler ran, says so, and is not taken for a refusal."""
    lab = Flaky()
    async with open_loopback(lab) as pool:
        await _raises(RemoteError, True, partial(pool.stub(Flaky).raises_ours, which))
        assert (lab.runs, pool.statistics().retries) == (1, 0)


@pytest.mark.parametrize(("name", "runs", "attempts"), [("again", 3, 3), ("again", 1, 1), ("once", 1, 3)])
async def test_what_may_have_run_is_retried_only_if_idempotent(
    autojump_clock: trio.testing.MockClock, name: str, runs: int, attempts: int
) -> None:
    """S15, 4: after a loss an idempotent method is tried again, as often as the policy says; any other is not."""
    lab, listener = Flaky(), MemoryListener()
    lab.hook = lambda: listener.connections[-1].close()  # type: ignore[attr-defined]
    policy = RetryPolicy(attempts=attempts)
    async with open_server(lab, listener), open_pool(listener.connect, retry=policy) as pool:
        await _raises(ConnectionLost, True, getattr(pool.stub(Flaky), name))
        await trio.sleep(60)
    assert lab.runs == runs


async def test_a_retry_may_succeed(autojump_clock: trio.testing.MockClock) -> None:
    """4: the caller of an idempotent method sees only the attempt that succeeded; for unary and stream alike."""
    lab, listener = Flaky(), MemoryListener()

    def close_twice() -> None:
        if lab.runs % 3:
            listener.connections[-1].close()  # type: ignore[attr-defined]

    lab.hook = close_twice
    async with open_server(lab, listener), open_pool(listener.connect) as pool:
        assert await pool.stub(Flaky).again() == 3
        async with pool.stub(Flaky).items(0) as items:
            assert [item async for item in items] == []
    assert lab.runs == 6


async def test_a_stream_is_retried_only_while_nothing_has_come(autojump_clock: trio.testing.MockClock) -> None:
    """4: a consumer that has seen items is told of the loss: the stream does not begin anew behind its back."""
    lab, listener = Flaky(), MemoryListener()
    lab.hook = lambda: listener.connections[-1].close()  # type: ignore[attr-defined]
    async with open_server(lab, listener), open_pool(listener.connect) as pool:
        seen: list[int] = []
        with pytest.raises(ConnectionLost) as caught:
            async with pool.stub(Flaky).items(3) as items:
                async for item in items:
                    seen.append(item)  # noqa: PERF401 - what came before the error is the point
        assert (seen, lab.runs, caught.value.may_have_run) == ([0, 1, 2], 1, True)


async def test_a_client_stream_is_retried_only_while_no_item_was_taken(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """4: items that were taken are gone, so their call is not made again; one without is."""
    lab, listener = Flaky(), MemoryListener()
    lab.hook = lambda: lab.runs == 1 and listener.connections[-1].close()  # type: ignore[attr-defined]

    async def slow_numbers() -> AsyncGenerator[int, None]:
        await trio.sleep(30)
        yield 4

    async with open_server(lab, listener), open_pool(listener.connect) as pool:
        with trio.fail_after(60):
            await _raises(ConnectionLost, True, lambda: pool.stub(Flaky).collect(numbers(3)))
        lab.runs = 0
        assert await pool.stub(Flaky).collect(slow_numbers()) == 4
        assert lab.runs == 2


@pytest.mark.parametrize("shape", ["total", "mirror"])
@pytest.mark.parametrize("item", [object(), "x" * 100_000], ids=["type", "size"])
async def test_an_item_that_cannot_be_sent_may_have_run(
    autojump_clock: trio.testing.MockClock, shape: str, item: object
) -> None:
    """4: the handler runs already when an item turns out to be unfit; an argument is found out before."""
    lab, limits = Anything(), ServerLimits(max_message_size=64 * 1024)

    async def items() -> AsyncGenerator[Any, None]:
        yield 1
        await trio.sleep(1)
        yield item

    async with open_loopback(lab, server_limits=limits) as pool:
        stub = pool.stub(Anything)
        calls: dict[str, Any] = {"total": stub.total, "mirror": partial(_read, stub.mirror)}
        await _raises(EncodeError, True, partial(calls[shape], items()))
        await _raises(EncodeError, False, partial(stub.takes, item))
    assert lab.started == [shape]


async def _read(stream: Any, items: AsyncGenerator[Any, None]) -> None:
    async with stream(items) as back:
        async for _ in back:
            pass


@pytest.mark.parametrize("end", ["timeout", "close"])
async def test_a_later_attempt_that_never_left_does_not_hide_an_earlier_one(
    autojump_clock: trio.testing.MockClock, end: str
) -> None:
    """4: `may_have_run` is true if any attempt may have run, though the last one found no connection at all."""
    lab, listener = Flaky(), MemoryListener()
    up = True

    def go_down() -> None:
        nonlocal up
        up = False
        listener.connections[-1].close()  # type: ignore[attr-defined]

    async def connect() -> trio.abc.Stream:
        if up:
            return await listener.connect()
        raise ConnectError("down")

    lab.hook = go_down
    expected = PoolTimeout if end == "timeout" else PoolClosed
    async with open_server(lab, listener), open_pool(connect) as pool, trio.open_nursery() as nursery:
        await pool.connect()
        nursery.start_soon(_raises, expected, True, pool.stub(Flaky).again)
        nursery.start_soon(_stream_raises, expected, pool)
        await trio.sleep(1)
        if end == "close":
            await pool.aclose()


async def _stream_raises(kind: type[Exception], pool: Any) -> None:
    with pytest.raises(kind) as caught:
        async with pool.stub(Flaky).items(0) as items:
            await items.receive()
    assert caught.value.may_have_run  # type: ignore[attr-defined]


async def _scripted(peer: ScriptedPeer, codes: list[Code], times: list[float]) -> None:
    await peer.greet()
    for code in codes:
        request = await peer.expect(RequestReceived)
        times.append(trio.current_time())
        await peer.refuse(request, code)
    while True:
        try:
            event = await peer.event()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            return
        if isinstance(event, RequestReceived):
            times.append(trio.current_time())
            await peer.answer(event, "at last")


async def test_overload_is_retried_with_back_off_inside_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    """4: Overloaded surely did not run: it is tried again, idempotent or not, later and later."""
    ours, theirs = memory_pipe()
    times: list[float] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_scripted, ScriptedPeer(theirs, Hello()), [Code.RESOURCE_EXHAUSTED] * 3, times)
        async with open_connection(ours) as pool:
            assert await pool.stub(Lab).echo(1) == "at last"
    waits = [later - earlier for earlier, later in pairwise(times)]
    assert waits == pytest.approx([0.1, 0.2, 0.4], rel=0.21)


async def test_retries_share_the_callers_deadline(autojump_clock: trio.testing.MockClock) -> None:
    """4: what surely did not run is tried again inside the caller's deadline, longer than it would wait for a place."""
    ours, theirs = memory_pipe()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_scripted, ScriptedPeer(theirs, Hello()), [Code.RESOURCE_EXHAUSTED] * 999, [])
        async with open_connection(ours, limits=PoolLimits(acquire_timeout=3)) as pool:
            with pytest.raises(trio.TooSlowError), trio.fail_after(5):
                await pool.stub(Lab).echo(1)
            assert trio.current_time() == 5
            nursery.cancel_scope.cancel()


async def test_retries_without_a_deadline_end_too(autojump_clock: trio.testing.MockClock) -> None:
    """4: a caller without a deadline is told after the patience of `acquire_timeout`, and that it did not run."""
    ours, theirs = memory_pipe()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_scripted, ScriptedPeer(theirs, Hello()), [Code.RESOURCE_EXHAUSTED] * 999, [])
        async with open_connection(ours, limits=PoolLimits(acquire_timeout=5)) as pool:
            await _raises(Overloaded, False, partial(pool.stub(Lab).echo, 1))
            assert 3 < trio.current_time() <= 5
            nursery.cancel_scope.cancel()


async def test_only_the_dispatch_says_not_started(autojump_clock: trio.testing.MockClock) -> None:
    """4: on the wire, each error frame tells whether the handler was entered."""
    listener = MemoryListener()
    async with open_server(Flaky(), listener):
        client = RawClient(await listener.connect())
        await client.greet()
        cases = [
            (client.request("Lab.nothing"), False, Outcome.REFUSED),
            (client.request("Lab.sleep", "soon"), False, Outcome.REFUSED),
            (client.request("Lab.raises_ours", 0), True, Outcome.FAILED),
            (client.request("Lab.sleep", 60, 0, timeout=1), True, Outcome.EXPIRED),
        ]
        for frame, started, outcome in cases:
            await client.send(frame)
            error = await client.expect(ErrorReceived)
            assert (error.started, error.outcome) == (started, outcome)
        await client.stream.aclose()


async def test_a_pool_closed_under_an_unsent_call_knows_that_it_did_not_run() -> None:
    """4 and 8: a call taken back by `aclose` did not run; that the writer wakes in the same tick does not matter."""
    lab = Flaky()
    outcomes: set[bool] = set()
    for _ in range(40):
        lab.runs = 0
        async with open_loopback(lab) as pool, trio.open_nursery() as nursery:
            await pool.connect()

            async def call() -> None:
                error: PoolClosed | None = None
                try:
                    await pool.stub(Flaky).once()
                except PoolClosed as exc:  # Else its result has won the race, which the scheduler decides.
                    error = exc
                if error is not None:
                    if "was closed" in error.message:  # It had begun already.
                        outcomes.add(error.may_have_run)
                    assert error.may_have_run or not lab.runs

            nursery.start_soon(call)
            nursery.start_soon(pool.aclose)
    assert False in outcomes


async def test_what_comes_behind_a_goodbye_is_not_run(autojump_clock: trio.testing.MockClock) -> None:
    """4: GOAWAY tells the peer what did not run; so nothing of that is begun while GOAWAY is still on its way out."""
    lab = Lab()
    answers: list[Any] = []

    async def calls_back_late(peer: ScriptedPeer) -> None:
        await peer.greet()
        await peer.answer(await peer.expect(RequestReceived), None)
        await trio.sleep(10.2)  # The idle connection says goodbye after 10 s, and half a second later that arrives.
        await peer.send(peer.protocol.request(method_block("Lab.sleep"), b"\x91\x00")[1])
        while data := await peer.stream.receive_some():
            answers.extend(peer.protocol.receive_data(bytes(data)))

    async with trio.open_nursery() as nursery:
        connect = ScriptedServer(nursery, calls_back_late).connect

        async def dial() -> trio.abc.Stream:
            return FaultyStream(await connect(), Delay(0.5, direction="sending"))

        limits = PoolLimits(min_connections=0, idle_timeout=10, close_timeout=5)
        async with open_pool(dial, limits=limits, services=lab, heartbeat=Heartbeat(interval=None)) as pool:
            await pool.call("Any.thing")
            await trio.sleep(20)
    goodbye, refusal = answers
    assert isinstance(goodbye, GoAwayReceived)
    assert isinstance(refusal, ErrorReceived)
    assert (goodbye.last_id, refusal.id, refusal.outcome, lab.log) == (0, 2, Outcome.REFUSED, [])
