"""Guarantee 1: cancelling a call stops its handler, and waits until it has ended."""

from __future__ import annotations

import signal
from collections.abc import AsyncGenerator

import pytest
import trio
import trio.testing

from tests.guarantees.kit import Broken, Lab, never, numbers, press_control_c
from trio_rpc import DecodeError, PoolLimits, current_call, method, open_pool, open_server
from trio_rpc._outbox import Outbox
from trio_rpc.testing import FaultyStream, Freeze, cancel_at_every_checkpoint, open_loopback


async def test_the_handler_has_ended_when_the_block_is_left(autojump_clock: trio.testing.MockClock) -> None:
    """1: after the block nothing of the call runs; the clean-up's half second is waited for."""
    lab = Lab()
    async with open_loopback(lab) as pool:
        with trio.move_on_after(1) as scope:
            await pool.stub(Lab).sleep(60, cleanup=0.5)
        assert (lab.running, lab.log, trio.current_time()) == (0, [("ended", 1.5)], 1.5)
    assert scope.cancelled_caught


async def test_the_wait_is_bounded_and_an_orphan_keeps_its_slot(autojump_clock: trio.testing.MockClock) -> None:
    """P08, 1: after `cancel_wait` the caller goes on; the orphan is counted, and its place is free when it has ended."""
    lab = Lab()
    limits = PoolLimits(max_in_flight=1, max_connections=1, cancel_wait=1)
    async with open_loopback(lab, limits=limits) as pool:
        with trio.move_on_after(1):
            await pool.stub(Lab).sleep(60, cleanup=5)
        assert (trio.current_time(), lab.running) == (2, 1)
        stats = pool.statistics()
        assert (stats.orphans, stats.in_flight) == (1, 1)
        await pool.stub(Lab).echo(1)  # Waits for the one place.
        assert trio.current_time() == 6
        stats = pool.statistics()
        assert (stats.orphans, stats.in_flight) == (0, 0)


@pytest.mark.parametrize("queues", [False, True])
async def test_the_wait_is_bounded_for_who_was_in_the_line_too(
    autojump_clock: trio.testing.MockClock, queues: bool
) -> None:
    """1: a call that had to wait for its place is given up after `cancel_wait` as any other, whoever stopped it."""

    class Sluggish:
        @method
        async def tick(self) -> AsyncGenerator[int, None]:
            try:
                yield 1
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(60)

    async with open_loopback(Sluggish(), limits=PoolLimits(cancel_wait=1)) as pool:
        if not queues:
            await pool.connect()
        with pytest.raises(DecodeError, match="a stream of items came where one result is expected"):
            await pool.call("Sluggish.tick")
        assert trio.current_time() <= 2


async def test_an_orphans_id_is_never_reused(autojump_clock: trio.testing.MockClock) -> None:
    """1: calls made while an orphan lives, and after, have ids of their own, and get their own results."""
    lab = Lab()
    async with open_loopback(lab, limits=PoolLimits(cancel_wait=0)) as pool:
        stub = pool.stub(Lab)
        ids = [await stub.call_id()]
        with trio.move_on_after(1):
            await stub.sleep(60, cleanup=1)
        ids.append(await stub.call_id())
        await trio.sleep(2)
        ids.append(await stub.call_id())
    assert len(set(ids)) == 3
    assert ids[1] - ids[0] == 4  # The orphan's is in between.


async def test_cancel_wait_may_be_chosen_for_one_stub(autojump_clock: trio.testing.MockClock) -> None:
    """1: a stub's own `cancel_wait` is the bound of its calls."""
    lab = Lab()
    async with open_loopback(lab) as pool:
        with trio.move_on_after(1):
            await pool.stub(Lab, cancel_wait=3).sleep(60, cleanup=10)
        assert trio.current_time() == 4


async def test_a_result_that_won_is_returned(autojump_clock: trio.testing.MockClock) -> None:
    """S01, 1: the terminal frame decides: what the handler returned in spite of CANCEL is the call's result."""
    result = None
    async with open_loopback(Lab()) as pool:
        with trio.move_on_after(1) as scope:
            result = await pool.stub(Lab).stubborn(1.5)
    assert (result, scope.cancelled_caught) == ("done", False)


async def test_a_client_streams_result_that_won_is_returned(autojump_clock: trio.testing.MockClock) -> None:
    """1: the same where the caller's items were still being waited for: their end does not hide the result."""
    result = None
    async with open_loopback(Lab()) as pool:
        with trio.move_on_after(1) as scope:
            result = await pool.stub(Lab).stubborn_total(never(), 1.5)
    assert (result, scope.cancelled_caught) == ("done", False)


async def test_the_handlers_own_failure_is_raised(autojump_clock: trio.testing.MockClock) -> None:
    """1: an error out of the handler's clean-up is raised to the caller, and not lost behind the cancellation."""
    async with open_loopback(Lab()) as pool:
        with pytest.raises(Broken, match="in its clean-up"), trio.move_on_after(1):
            await pool.stub(Lab).breaks(60)


async def test_otherwise_trios_own_cancelled_goes_on(autojump_clock: trio.testing.MockClock) -> None:
    """1: what the caller sees is a bare trio.Cancelled, and the scope that it belongs to catches it."""
    seen: list[BaseException] = []
    async with open_loopback(Lab()) as pool:
        for call in (pool.stub(Lab).sleep(60), pool.stub(Lab).total(never())):
            with trio.move_on_after(1) as scope:
                try:
                    await call
                except BaseException as exc:
                    seen.append(exc)
                    raise
            assert scope.cancelled_caught
    assert [type(exc) for exc in seen] == [trio.Cancelled] * 2


@pytest.mark.parametrize("streaming", [False, True])
async def test_an_unsent_call_is_taken_back(autojump_clock: trio.testing.MockClock, streaming: bool) -> None:
    """S08, 1: a call that the transport never had is withdrawn: no join, no CANCEL, and nothing of it is sent later."""
    lab, freeze = Lab(), Freeze(direction="sending")
    async with (
        open_loopback(lab, wrap=lambda stream: FaultyStream(stream, freeze)) as pool,
        trio.open_nursery() as nursery,
    ):
        stub = pool.stub(Lab)
        await stub.echo(0)
        freeze.freeze()
        nursery.start_soon(stub.echo, "it keeps the writer busy")
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(1) as scope:
            await (stub.total(numbers(5)) if streaming else stub.sleep(60))
        assert (scope.cancelled_caught, trio.current_time(), pool.statistics().in_flight) == (True, 1, 1)
        freeze.thaw()
        assert await stub.echo(1) == 1
        stats = pool.statistics()
        assert (lab.log, stats.lost, stats.orphans, stats.in_flight) == ([], 0, 0, 0)


class Nested(Lab):
    """Its `outer` calls `sleep` of a Lab behind it, in one way or another."""

    def __init__(self, behind: Lab) -> None:
        super().__init__()
        self.behind = behind
        self.nursery: trio.Nursery | None = None
        self.left_at = 0.0

    @method
    async def outer(self, cleanup: float) -> None:
        try:
            await self.behind.sleep(60, cleanup)
        finally:
            self.note("outer ended")

    @method
    async def spawn(self) -> None:
        """Leave a task behind that makes a call of its own later, then sleep."""
        assert self.nursery is not None
        self.nursery.start_soon(self.later)
        await trio.sleep_forever()

    async def later(self) -> None:
        call = current_call()
        await trio.sleep(2)
        assert not call.active
        with trio.move_on_after(5):
            await self.behind.sleep(60, 0.5)
        self.left_at = trio.current_time()


async def test_nested_joins_stay_inside_four_fifths(autojump_clock: trio.testing.MockClock) -> None:
    """1: the edge to the handler that ignores cancellation gives up at 0.8 of its caller's wait, so only it is orphaned."""
    leaf = Lab()
    async with open_loopback(leaf) as inner:
        middle = Nested(inner.stub(Lab))
        async with open_loopback(middle) as pool:
            with trio.move_on_after(1):
                await pool.stub(Nested).outer(cleanup=5)
            assert (trio.current_time(), middle.log) == (1.8, [("outer ended", 1.8)])
            assert (pool.statistics().orphans, inner.statistics().orphans) == (0, 1)
            await trio.sleep(5)
            assert inner.statistics().orphans == 0


async def test_a_task_that_outlives_its_handler_joins_in_full(autojump_clock: trio.testing.MockClock) -> None:
    """1: the bound of a cancelled caller's patience binds its handler, and not the tasks that go on after it."""
    leaf = Lab()
    async with open_loopback(leaf) as inner:
        middle = Nested(inner.stub(Lab))
        async with open_loopback(middle) as pool, trio.open_nursery() as middle.nursery:
            with trio.move_on_after(1):
                await pool.stub(Nested).spawn()
        assert leaf.log == [("ended", middle.left_at)]


def _raise(error: Exception) -> int:
    raise error


async def test_without_patience_nobody_waits(autojump_clock: trio.testing.MockClock) -> None:
    """1: `cancel_wait=0` abandons at once, whichever way the call is ended."""

    async def fails() -> AsyncGenerator[int, None]:
        await trio.sleep(1)
        yield _raise(ValueError("the iterable's own"))

    lab = Lab()
    async with open_loopback(lab, limits=PoolLimits(cancel_wait=0)) as pool:
        stub = pool.stub(Lab)
        with trio.move_on_after(1):
            await stub.sleep(60, cleanup=1)
        assert trio.current_time() == 1
        with pytest.raises(ValueError, match="the iterable's own"):
            await stub.stubborn_total(fails(), 7)
        assert trio.current_time() == 2
        with trio.move_on_after(1):
            async with stub.count(cleanup=5) as counting:
                await counting.receive()
                await trio.sleep_forever()
        assert trio.current_time() == 3
        await trio.sleep(10)


async def test_outside_cancellation_joins_before_the_streams_are_closed(autojump_clock: trio.testing.MockClock) -> None:
    """P12, 1: a scope around the whole pool cancels and joins its calls while the pool's I/O goes on."""
    lab = Lab()
    with trio.move_on_after(1) as scope:
        async with open_loopback(lab) as pool:
            try:
                await pool.stub(Lab).sleep(60, cleanup=0.5)
            finally:
                lab.note("left")
    assert (scope.cancelled_caught, lab.log) == (True, [("ended", 1.5), ("left", 1.5)])


async def test_wherever_a_call_is_cancelled_nothing_is_left() -> None:
    """1: cancelled at any checkpoint, asleep or just waking, a call leaves no handler, place or orphan behind."""
    lab = Lab()
    async with open_loopback(lab, limits=PoolLimits(max_in_flight=1, max_connections=1)) as pool:
        stub = pool.stub(Lab)

        async def scenario() -> None:
            assert await stub.sleep(0.001) == "slept"
            assert await stub.total(numbers(3)) == 3
            async with stub.count(100) as counting:
                assert await counting.receive() == "0"

        async def check() -> None:
            stats = pool.statistics()
            assert (lab.running, stats.in_flight, stats.waiting, stats.orphans, stats.lost) == (0, 0, 0, 0, 0)
            assert await stub.echo("alive") == "alive"
            assert pool.statistics().connects == 1

        assert await cancel_at_every_checkpoint(scenario, check) >= 5
        await cancel_at_every_checkpoint(scenario, check, moment="waking")
        await cancel_at_every_checkpoint(scenario, check, spawned=True)


def test_a_keyboard_interrupt_is_not_joined() -> None:
    """1: somebody who presses Ctrl-C gets out at once; the handler is told all the same."""
    lab = Lab()
    out_at: list[float] = []

    async def main() -> None:
        async with open_loopback(lab) as pool, trio.open_nursery() as nursery:
            nursery.start_soon(press_control_c)
            try:
                await pool.stub(Lab).sleep(60, cleanup=0.5)
            except KeyboardInterrupt:
                out_at.append(trio.current_time())
                await trio.sleep(1)
                raise

    with pytest.raises(BaseException) as caught:
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert isinstance(caught.value, KeyboardInterrupt) or caught.group_contains(KeyboardInterrupt)
    assert (out_at, lab.log) == ([1], [("ended", 1.5)])


def test_a_keyboard_interrupt_leaves_no_frame_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """1: wherever Ctrl-C arrives while a request is put in the queue, the calls of others are written."""
    put = Outbox.put
    interrupts: list[bool] = []

    def press_control_c(outbox: Outbox, frame: bytes) -> int:
        ticket = put(outbox, frame)
        if interrupts:
            interrupts.pop()
            signal.raise_signal(signal.SIGINT)
        return ticket

    async def main() -> None:
        async with open_server(Lab(), "tcp://127.0.0.1:0") as server, open_pool(server.addresses[0]) as pool:
            await pool.connect()
            interrupts.append(True)
            with pytest.raises(KeyboardInterrupt):
                await pool.stub(Lab).sleep(60)
            with trio.fail_after(5):
                assert await pool.stub(Lab).echo(1) == 1

    monkeypatch.setattr(Outbox, "put", press_control_c)
    trio.run(main)
    assert not interrupts


async def test_a_nested_call_that_waited_for_a_place_is_nested_all_the_same(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """1: whoever gives it the place, it stays inside four fifths of what the caller of its own handler will wait."""
    leaf = Lab()
    async with open_loopback(leaf, limits=PoolLimits(max_in_flight=1, max_connections=1)) as inner:
        middle = Nested(inner.stub(Lab, cancel_wait=5))
        async with open_loopback(middle) as pool, trio.open_nursery() as nursery:
            nursery.start_soon(inner.stub(Lab).sleep, 0.5)
            await trio.sleep(0.1)
            with trio.move_on_after(0.9):
                await pool.stub(Nested).outer(cleanup=5)
            assert (trio.current_time(), middle.log) == (1.8, [("outer ended", 1.8)])
            assert (pool.statistics().orphans, inner.statistics().orphans) == (0, 1)
