"""Guarantee 10: streams, sentence by sentence."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing

from tests.guarantees.kit import Broken, Lab, never, numbers
from trio_rpc import Call, Handler, Interceptor, PoolLimits, RemoteError, Reply, ServerLimits, method
from trio_rpc.testing import open_loopback


class Streams(Lab):
    """Generators with scopes, nurseries and clean-ups of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks: set[trio.lowlevel.Task] = set()

    @method
    async def one_task(self, upto: int) -> AsyncGenerator[int, None]:
        """Hold a scope and a nursery open across every yield."""
        with trio.CancelScope():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep, 0)
                for number in range(upto):
                    self.tasks.add(trio.lowlevel.current_task())
                    if number % 7 == 0:
                        await trio.lowlevel.checkpoint()
                    yield number
                self.tasks.add(trio.lowlevel.current_task())

    @method
    async def own_timeout(self) -> AsyncGenerator[int, None]:
        """Give up the consumer after a second, with a scope of its own around the yield."""
        with trio.move_on_after(1) as scope:
            while True:
                yield 1
        self.note(f"own scope {scope.cancelled_caught}")
        yield 2

    @method(raises=[Broken])
    async def breaks_at_the_end(self, upto: int) -> AsyncGenerator[int, None]:
        for number in range(upto):
            yield number
        raise Broken("before STOP")

    @method(raises=[Broken])
    async def breaks_in_cleanup(self) -> AsyncGenerator[int, None]:
        try:
            while True:
                yield 1
        finally:
            raise Broken("in the clean-up")

    @method
    async def waits(self) -> AsyncGenerator[int, None]:
        yield 1
        try:
            await trio.sleep_forever()
        except BaseException as exc:
            self.note(type(exc).__name__)
            raise

    @method
    async def refuses_to_end(self) -> AsyncGenerator[int, None]:
        try:
            while True:
                yield 1
        except GeneratorExit:
            self.note("asked")
            yield 2

    @method
    async def bounded(self, upto: int) -> AsyncGenerator[int, None]:
        for number in range(upto):
            yield number
        self.note("at its end")


async def test_one_task_from_first_step_to_last(autojump_clock: trio.testing.MockClock) -> None:
    """10: scopes and nurseries may be open across yields: all steps are made in one task, which nothing else runs in."""
    service = Streams()
    async with open_loopback(service) as pool:
        async with pool.stub(Streams).one_task(500) as items:
            assert [item async for item in items] == list(range(500))
        assert len(service.tasks) == 1


async def test_its_own_scope_sees_what_is_raised_at_its_yield(autojump_clock: trio.testing.MockClock) -> None:
    """10: a generator's own timeout around its yield ends its wait for a consumer that takes nothing, and it goes on."""
    service = Streams()
    async with open_loopback(service, limits=PoolLimits(stream_window_items=5)) as pool:
        async with pool.stub(Streams).own_timeout() as items:
            await trio.sleep(3)
            assert service.log == [("own scope True", 1.0)]
            received = [item async for item in items]
    assert set(received[:-1]) == {1}
    assert received[-1] == 2


@pytest.mark.parametrize("how", ["break", "error", "cancel"])
async def test_left_early_its_finally_blocks_have_run(autojump_clock: trio.testing.MockClock, how: str) -> None:
    """S17, 10: left early, the generator at its yield gets GeneratorExit or is cancelled, and the block waits for its
    end.
    """
    lab = Lab()
    async with open_loopback(lab) as pool, trio.open_nursery() as nursery:
        error = ValueError("the body's")
        caught: BaseException | None = None
        with trio.CancelScope() as scope:
            try:
                async with pool.stub(Lab).count(cleanup=0.5) as counting:
                    await counting.receive()
                    await trio.testing.wait_all_tasks_blocked()
                    if how == "error":
                        raise error
                    if how == "cancel":
                        nursery.start_soon(trio.lowlevel.checkpoint)
                        scope.cancel()
                        await trio.sleep_forever()
            except ValueError as exc:
                caught = exc
        assert trio.current_time() == 0.5
        assert lab.log[-1] == ("cleaned", 0.5)
        assert lab.words[0] in ("GeneratorExit", "Cancelled")
        assert caught is (error if how == "error" else None)
        assert scope.cancelled_caught is (how == "cancel")
        stats = pool.statistics()
        assert (stats.in_flight, stats.orphans, stats.errors) == (0, 0, 0)


async def test_left_while_it_works_it_is_cancelled(autojump_clock: trio.testing.MockClock) -> None:
    """10: a generator that is not at its yield is cancelled where it waits."""
    service = Streams()
    async with open_loopback(service) as pool:
        async with pool.stub(Streams).waits() as items:
            await items.receive()
            await trio.testing.wait_all_tasks_blocked()
        assert service.words == ["Cancelled"]


async def test_read_to_the_end_there_is_nothing_to_do(autojump_clock: trio.testing.MockClock) -> None:
    """10: after the last item leaving is quiet: no STOP, no wait."""
    lab = Lab()
    async with open_loopback(lab) as pool:
        async with pool.stub(Lab).count(10) as counting:
            assert [int(item) async for item in counting] == list(range(10))
            with pytest.raises(trio.EndOfChannel):
                await counting.receive()
        assert lab.words == ["cleaned"]
        assert pool.statistics().late_replies == 0


@pytest.mark.parametrize("items", [12, 40])
async def test_left_while_its_last_items_wait_for_credit(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, items: int
) -> None:
    """10: a generator that has ended already, with items still unsent, is left without an error on either side."""
    service = Streams()
    async with open_loopback(service, limits=PoolLimits(stream_window_items=10)) as pool:
        async with pool.stub(Streams).bounded(items) as received:
            assert await received.receive() == 0
            await trio.testing.wait_all_tasks_blocked()
        assert (pool.statistics().errors, pool.statistics().orphans) == (0, 0)
    assert caplog.text == ""


async def test_a_failed_cleanup_is_the_bodys_note(autojump_clock: trio.testing.MockClock) -> None:
    """10: the body's exception comes out bare, with the remote clean-up's failure as its note."""
    error = ValueError("the body's")
    async with open_loopback(Streams()) as pool:
        with pytest.raises(ValueError, match="the body's") as caught:
            async with pool.stub(Streams).breaks_in_cleanup() as items:
                await items.receive()
                await trio.testing.wait_all_tasks_blocked()
                raise error
    assert caught.value is error
    assert "in the clean-up" in "".join(error.__notes__)


async def test_a_failed_cleanup_is_raised_where_nothing_else_is(autojump_clock: trio.testing.MockClock) -> None:
    """10: without an exception of the body's, it is raised at exit, and not lost."""
    async with open_loopback(Streams()) as pool:
        with pytest.raises(Broken, match="in the clean-up"):
            async with pool.stub(Streams).breaks_in_cleanup() as items:
                await items.receive()
                await trio.testing.wait_all_tasks_blocked()


async def test_the_handlers_own_error_before_stop_is_raised_at_exit(autojump_clock: trio.testing.MockClock) -> None:
    """10: a failure that came before the consumer left is raised at exit, unless `receive` has raised it."""
    async with open_loopback(Streams()) as pool:
        with pytest.raises(Broken, match="before STOP"):
            async with pool.stub(Streams).breaks_at_the_end(3) as items:
                await items.receive()
                await trio.testing.wait_all_tasks_blocked()
        async with pool.stub(Streams).breaks_at_the_end(0) as items:
            with pytest.raises(Broken, match="before STOP"):
                await items.receive()


async def test_a_generator_that_ignores_its_end(autojump_clock: trio.testing.MockClock) -> None:
    """10: a generator that yields after GeneratorExit has failed, by Python's own rule, and holds nobody up."""
    service = Streams()
    async with open_loopback(service) as pool:
        with pytest.raises(RemoteError):
            async with pool.stub(Streams).refuses_to_end() as items:
                await items.receive()
                await trio.testing.wait_all_tasks_blocked()
        assert service.words[0] == "asked"
        assert pool.statistics().in_flight == 0


async def test_receive_afterwards_and_two_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """10: `receive` after the block: ClosedResourceError; two at once: BusyResourceError for the second."""
    async with open_loopback(Streams()) as pool, trio.open_nursery() as nursery:
        async with pool.stub(Streams).waits() as items:
            assert await items.receive() == 1
            nursery.start_soon(_expects, trio.ClosedResourceError, items)
            await trio.testing.wait_all_tasks_blocked()
            await _expects(trio.BusyResourceError, items)
        await _expects(trio.ClosedResourceError, items)


async def _expects(kind: type[Exception], items: Any) -> None:
    with trio.fail_after(5), pytest.raises(kind):
        await items.receive()


async def test_a_cancelled_receive_loses_no_item(autojump_clock: trio.testing.MockClock) -> None:
    """10: a timeout around `receive` takes nothing: the next one gets the next item."""

    class Slow(Lab):
        @method
        async def ticks(self) -> AsyncGenerator[int, None]:
            for number in range(20):
                await trio.sleep(1)
                yield number

    async with open_loopback(Slow()) as pool:
        async with pool.stub(Lab).count(3) as counting:
            await trio.testing.wait_all_tasks_blocked()
            with trio.CancelScope() as scope:
                scope.cancel()
                await counting.receive()
            assert scope.cancelled_caught
            assert [int(item) async for item in counting] == [0, 1, 2]
        seen: list[int] = []
        async with pool.stub(Slow).ticks() as ticks:
            while len(seen) < 20:
                with trio.move_on_after(0.3):
                    seen.append(await ticks.receive())
        assert seen == list(range(20))


async def ticking(ticks: list[int]) -> None:
    """Count how often others have their turn."""
    while True:
        ticks[0] += 1
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("side", ["consumer", "producer"])
async def test_slow_items_let_others_run(side: str) -> None:
    """10: who works on each item for a while without ever waiting gives others a turn after a few of them."""

    def work() -> None:
        until = trio.current_time() + 0.001
        while trio.current_time() < until:
            pass

    class Working(Lab):
        @method
        async def made(self, upto: int) -> AsyncGenerator[int, None]:
            for number in range(upto):
                if side == "producer":
                    work()
                yield number

    ticks = [0]
    async with open_loopback(Working()) as pool, trio.open_nursery() as nursery:
        async with pool.stub(Working).made(200) as made:
            if side == "consumer":
                await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(ticking, ticks)
            seen = []
            async for number in made:
                seen.append(number)
                if side == "consumer":
                    work()
        nursery.cancel_scope.cancel()
    assert seen == list(range(200))
    assert ticks[0] > 20


async def test_a_cancelled_generator_of_the_callers_is_closed(autojump_clock: trio.testing.MockClock) -> None:
    """10: an async generator given to a call is closed before the call returns; a ReceiveChannel stays its owner's."""
    closed = []

    async def items() -> AsyncGenerator[int, None]:
        try:
            for number in range(10**6):
                yield number
        finally:
            closed.append(trio.current_time())

    send, receive = trio.open_memory_channel[int](10)
    async with open_loopback(Lab()) as pool:
        stub = pool.stub(Lab)
        assert await stub.first(items()) == 0
        assert closed == [0]
        await send.send(7)
        assert await stub.first(receive) == 7
        await send.send(8)
        assert await receive.receive() == 8
        with pytest.raises(ValueError, match="the body's"):
            async with stub.doubled(items()) as doubled:
                await doubled.receive()
                raise ValueError("the body's")
        assert closed == [0, 0]


async def test_the_iterables_error_comes_out_bare(autojump_clock: trio.testing.MockClock) -> None:
    """10: an iterable that raises: the call is cancelled and joined, and that very error comes out, in no group."""
    error = KeyError("the iterable's")

    async def items() -> AsyncGenerator[int, None]:
        yield 1
        await trio.sleep(1)
        raise error

    class Joins(Lab):
        @method
        async def adds(self, values: AsyncIterable[int]) -> int:
            try:
                return sum([value async for value in values])
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(0.5)
                self.note("ended")

    service = Joins()
    async with open_loopback(service) as pool:
        with pytest.raises(KeyError) as caught:
            await pool.stub(Joins).adds(items())
        assert caught.value is error
        assert service.log == [("ended", 1.5)]
        with pytest.raises(KeyError) as caught:
            async with pool.stub(Joins).doubled(items()) as doubled:
                async for _ in doubled:
                    pass
        assert caught.value is error


async def test_an_iterable_that_fails_before_its_request_has_left(autojump_clock: trio.testing.MockClock) -> None:
    """10: an iterable that raises at once costs its own call: nothing is told of a request that the peer never saw."""

    async def fails() -> AsyncIterator[int]:
        yield {0: 1}[len("at once")]

    async with open_loopback(Lab()) as pool:
        await pool.stub(Lab).echo(1)
        for _ in range(20):
            with pytest.raises(KeyError):
                await pool.stub(Lab).total(fails())
            with pytest.raises(KeyError):
                async with pool.stub(Lab).doubled(fails()) as doubled:
                    await doubled.receive()
        assert await pool.stub(Lab).echo(1) == 1
        assert pool.statistics().connects == 1


@pytest.mark.parametrize("window", [1, 10, 1024])
async def test_if_the_handler_returns_first_its_result_stands(
    autojump_clock: trio.testing.MockClock, window: int
) -> None:
    """10: the iteration is cancelled, wherever it is (at work, or waiting for credit), and the result returned."""

    async def some(upto: int) -> AsyncGenerator[int, None]:
        for number in range(upto):
            yield number

    async with open_loopback(Lab(), server_limits=ServerLimits(stream_window_items=window)) as pool:
        stub = pool.stub(Lab)
        for upto in (1, 5, 12, 40, 3000):
            assert await stub.first(some(upto)) == 0
        assert await stub.stubborn_total(some(40), 1) == "done"
        assert await stub.stubborn_total(never(), 1) == "done"


async def test_both_ways_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """10: a bidirectional stream of many items, through small windows, loses and reorders nothing."""
    limits, server_limits = PoolLimits(stream_window_items=7), ServerLimits(stream_window_items=5)
    async with open_loopback(Lab(), limits=limits, server_limits=server_limits, capacity=500) as pool:
        async with pool.stub(Lab).doubled(numbers(2000)) as doubled:
            assert [item async for item in doubled] == [2 * number for number in range(2000)]


async def _spoils(call: Call, call_next: Handler) -> Reply:
    await call_next(call)
    raise Broken("after the stream was opened")


async def _dawdles(call: Call, call_next: Handler) -> Reply:
    reply = await call_next(call)
    await trio.sleep(60)
    return reply


async def _twice(call: Call, call_next: Handler) -> Reply:
    await call_next(call)
    return await call_next(call)


@pytest.mark.parametrize(
    ("interceptor", "error"), [(_spoils, Broken), (_dawdles, trio.TooSlowError), (_twice, TypeError)]
)
@pytest.mark.parametrize("shape", ["down", "both ways"])
async def test_a_stream_whose_block_is_never_entered_is_left_too(
    autojump_clock: trio.testing.MockClock, interceptor: Interceptor, error: type[Exception], shape: str
) -> None:
    """10: if an interceptor fails once the stream is open, its handler is cancelled and joined, and its place free."""
    lab = Lab()
    async with open_loopback(lab, interceptors=[interceptor]) as pool:
        stream = pool.stub(Lab).count() if shape == "down" else pool.stub(Lab).doubled(numbers(5))
        with pytest.raises(error), trio.fail_after(1):
            async with stream:
                raise AssertionError("the block was entered")
        await trio.testing.wait_all_tasks_blocked()
        stats = pool.statistics()
        assert (stats.in_flight, stats.waiting, stats.orphans) == (0, 0, 0)
        assert lab.words.count("cleaned") == (lab.produced > 0)
