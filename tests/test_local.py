"""An object's own methods have a stub's call interface: awaited, streamed in blocks, and nothing runs on behind."""

from __future__ import annotations

import inspect
import threading
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Coroutine
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from trio_rpc import method


class Contract:
    @method(thread=True)
    def hash(self, text: str) -> tuple[str, int]:
        raise NotImplementedError


class Service(Contract):
    """Everything that can be called; `log` tells how generators end."""

    def __init__(self) -> None:
        self.log: list[str] = []

    @method
    async def double(self, number: int) -> int:
        return 2 * number

    @method
    def version(self) -> str:
        return "1"

    @method
    def forward(self, number: int) -> Coroutine[Any, Any, int]:
        return self.double(number)

    @method
    def hash(self, text: str) -> tuple[str, int]:
        return text[::-1], threading.get_ident()

    @method
    async def count(self, upto: int = 1000) -> AsyncGenerator[int, None]:
        try:
            for number in range(upto):
                yield number
        except BaseException as exc:
            self.log.append(type(exc).__name__)
            raise
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
            self.log.append("cleaned")

    @method
    async def slow(self) -> AsyncGenerator[int, None]:
        yield 0
        try:
            await trio.sleep_forever()
        except BaseException as exc:
            self.log.append(type(exc).__name__)
            raise

    @method
    async def failing(self, good: int) -> AsyncGenerator[int, None]:
        for number in range(good):
            yield number
        raise KeyError("mine")

    @method
    async def messy(self) -> AsyncGenerator[int, None]:
        try:
            yield 0
            yield 1
        finally:
            raise OSError("clean-up")

    @method
    def relay(self, upto: int) -> AsyncIterator[int]:
        return self._relay(upto)

    async def _relay(self, upto: int) -> AsyncGenerator[int, None]:
        async with self.count(upto) as numbers:
            async for number in numbers:
                yield 10 * number

    @method
    async def total(self, numbers: AsyncIterable[int], limit: int = 10**9) -> int:
        total = 0
        async for number in numbers:
            total += number
            if total > limit:
                break
        return total

    @method
    async def stubborn(self, numbers: AsyncIterable[int]) -> int:
        try:
            async for _ in numbers:
                pass
            return 0
        finally:
            self.log.append("handler ended")

    @method
    async def doubled(self, numbers: AsyncIterable[int]) -> AsyncGenerator[int, None]:
        try:
            async for number in numbers:
                yield 2 * number
        finally:
            self.log.append("doubled ended")


@pytest.fixture
def service() -> Service:
    """A fresh one."""
    return Service()


async def items(log: list[str], upto: int = 3, *, fail: bool = False) -> AsyncGenerator[int, None]:
    """Offer some items to a client stream, and write down the end."""
    try:
        for number in range(upto):
            yield number
        if fail:
            raise KeyError("items")
    finally:
        log.append("items closed")


# -- one answer --------------------------------------------------------------------------------------------------------


async def test_every_method_is_awaited(service: Service) -> None:
    """Also a plain `def`, one that returns a coroutine, and one in a worker thread, which the contract asked for."""
    assert await service.double(2) == 4
    assert await service.version() == "1"
    assert await service.forward(3) == 6
    text, thread = await service.hash("abc")
    assert text == "cba"
    assert thread != threading.get_ident()
    assert await Service.double(service, number=4) == 8


async def test_every_call_is_a_checkpoint(service: Service) -> None:
    """As on the wire: cancelled before it began, it does not run."""
    for call in (service.double, service.forward):
        with trio.testing.assert_checkpoints():
            await call(1)
    with trio.testing.assert_checkpoints():
        await service.version()
    with trio.CancelScope() as scope:
        scope.cancel()
        await service.version()
    assert scope.cancelled_caught


async def test_calls_look_like_the_functions(service: Service) -> None:
    """Names, docstrings and signatures are kept, for people and for tools."""
    assert service.double.__name__ == "double"
    assert str(inspect.signature(service.double)) == "(number: 'int') -> 'int'"
    assert inspect.iscoroutinefunction(service.version)


async def test_arguments_that_do_not_fit(service: Service) -> None:
    """A TypeError with the method's name, like any call's; for streams before the block is entered."""
    with pytest.raises(TypeError, match=r"Service.double\(\) missing a required argument: 'number'"):
        await service.double()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match=r"Service.count\(\) got an unexpected keyword argument 'to'"):
        service.count(to=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match=r"Service.total\(\) takes an async iterable as 'numbers', not list"):
        await service.total([1])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def test_slots_and_super() -> None:
    """Attrs makes such classes twice, and `super()` still means the right one."""

    @attrs.define
    class Base:
        factor: int

        @method
        async def scale(self, number: int) -> int:
            return self.factor * number

        @method
        async def numbers(self) -> AsyncGenerator[int, None]:
            yield self.factor

    @attrs.define
    class Derived(Base):
        @method
        async def scale(self, number: int) -> int:
            return 1 + await super().scale(number)

        @method
        async def numbers(self) -> AsyncGenerator[int, None]:
            async with super().numbers() as numbers:
                async for number in numbers:
                    yield number
            yield 0

    assert not hasattr(Derived(3), "__dict__")
    assert await Derived(3).scale(2) == 7
    async with Derived(3).numbers() as numbers:
        assert [number async for number in numbers] == [3, 0]


# -- a stream of results -----------------------------------------------------------------------------------------------


async def test_a_stream_is_read_to_its_end(service: Service, autojump_clock: trio.testing.MockClock) -> None:
    """Iterated or received one by one; the end is EndOfChannel, again and again."""
    async with service.count(3) as numbers:
        assert isinstance(numbers, trio.abc.ReceiveChannel)
        assert [number async for number in numbers] == [0, 1, 2]
        for _ in range(2):
            with pytest.raises(trio.EndOfChannel):
                await numbers.receive()
    async with service.relay(3) as numbers:
        assert [number async for number in numbers] == [0, 10, 20]
    assert service.log == ["cleaned"] * 2


@pytest.mark.parametrize("how", ["break", "raise", "cancel", "aclose"])
async def test_leaving_early_ends_the_generator(
    how: str, service: Service, autojump_clock: trio.testing.MockClock
) -> None:
    """At its yield it gets GeneratorExit, or the Cancelled of scopes around; its clean-up is waited for."""
    start = trio.current_time()
    error = ValueError("body")
    caught: BaseException | None = None
    scope = trio.CancelScope()
    channels: list[trio.abc.ReceiveChannel[int]] = []
    try:
        with scope:
            async with service.count() as numbers:
                channels.append(numbers)
                assert await numbers.receive() == 0
                assert await numbers.receive() == 1
                await trio.testing.wait_all_tasks_blocked()
                if how == "raise":
                    raise error
                if how == "cancel":
                    scope.cancel()
                    await numbers.receive()
                elif how == "aclose":
                    await numbers.aclose()
                    assert service.log[-1] == "cleaned"
    except ValueError as exc:
        caught = exc
    assert caught is (error if how == "raise" else None)
    assert scope.cancelled_caught is (how == "cancel")
    assert service.log == ["Cancelled" if how == "cancel" else "GeneratorExit", "cleaned"]
    assert trio.current_time() == start + 1
    with pytest.raises(trio.ClosedResourceError):
        await channels[0].receive()


async def test_leaving_while_the_generator_waits_elsewhere(service: Service) -> None:
    """It is not at its yield, so what it waits for is cancelled."""
    async with service.slow() as numbers:
        await numbers.receive()
        await trio.testing.wait_all_tasks_blocked()
    assert service.log == ["Cancelled"]


async def test_left_at_once_a_generator_does_not_begin(service: Service) -> None:
    """Nothing was asked of it."""
    async with service.count():
        pass
    assert service.log == []


async def test_errors_of_the_generator_come_with_receive(service: Service) -> None:
    """Bare, behind its last item, once; then the stream has ended."""
    async with service.failing(1) as numbers:
        assert await numbers.receive() == 0
        with pytest.raises(KeyError, match="mine"):
            await numbers.receive()
        with pytest.raises(trio.EndOfChannel):
            await numbers.receive()
    with pytest.raises(KeyError, match="mine"):
        async with service.failing(2) as numbers:
            async for _ in numbers:
                pass


async def test_an_error_that_nobody_received_is_raised_at_exit(service: Service) -> None:
    """No error is lost."""
    with pytest.raises(KeyError, match="mine"):
        async with service.failing(0):
            await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(OSError, match="clean-up"):
        async with service.messy() as numbers:
            await numbers.receive()


@pytest.mark.parametrize("call", ["failing", "messy"])
async def test_the_bodys_error_comes_first(call: str, service: Service) -> None:
    """Bare and the very object; the generator's is its note."""
    error = ValueError("body")
    with pytest.raises(ValueError, match="body") as caught:
        async with service.failing(0) if call == "failing" else service.messy():
            await trio.testing.wait_all_tasks_blocked()
            raise error
    assert caught.value is error
    expected = {"failing": "Service.failing failed as well: KeyError: 'mine'"}
    assert error.__notes__ == [expected.get(call, "Service.messy failed as well: OSError: clean-up")]


async def test_the_bodys_groups_are_not_touched(service: Service) -> None:
    """A group that the body raises stays that group."""
    group = ExceptionGroup("mine", [ValueError("a"), ExceptionGroup("inner", [KeyError("b")])])
    with pytest.raises(ExceptionGroup) as caught:
        async with service.slow():
            raise group
    assert caught.value is group


async def test_an_outer_cancellation_reaches_a_shielded_body(
    service: Service, autojump_clock: trio.testing.MockClock
) -> None:
    """The generator is cancelled, the shielded body goes on, and the cancellation comes out behind it."""
    with trio.move_on_after(1) as scope:
        async with service.slow() as numbers:
            assert await numbers.receive() == 0
            with trio.CancelScope(shield=True):
                await trio.sleep(2)
            assert service.log == ["Cancelled"]
    assert scope.cancelled_caught


async def test_exits_do_not_wait_to_be_received() -> None:
    """KeyboardInterrupt and SystemExit in a generator end the block, bare."""

    class Quitting:
        @method
        async def quit(self) -> AsyncGenerator[int, None]:
            raise SystemExit(3)
            yield 0  # type: ignore[unreachable]

    with pytest.raises(SystemExit):
        async with Quitting().quit():
            await trio.sleep_forever()


async def test_one_receiver_at_a_time(service: Service) -> None:
    """A second task is told so, and a waiting one learns of the end."""
    async with service.slow() as numbers:
        await numbers.receive()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_closed, numbers)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await numbers.receive()
            await numbers.aclose()


async def expect_closed(numbers: trio.abc.ReceiveChannel[int]) -> None:
    """Wait for an item that does not come."""
    with pytest.raises(trio.ClosedResourceError):
        await numbers.receive()


async def test_closing_waits_for_the_end_even_when_cancelled(
    service: Service, autojump_clock: trio.testing.MockClock
) -> None:
    """As when the block is left: nothing of the generator runs on."""
    async with service.count() as numbers:
        await numbers.receive()
        with trio.CancelScope() as scope:
            scope.cancel()
            await numbers.aclose()
        assert scope.cancelled_caught
        assert service.log == ["GeneratorExit", "cleaned"]


async def test_entering_is_a_checkpoint(service: Service) -> None:
    """Cancelled before it began, a stream does not begin."""
    with trio.CancelScope() as scope:
        scope.cancel()
        async with service.count():
            pytest.fail("entered")
    assert scope.cancelled_caught


async def test_a_cancellation_is_no_failure(service: Service) -> None:
    """The body's error comes out as it is, though the generator was cancelled from outside."""
    error = ValueError("body")
    with pytest.raises(ValueError, match="body"), trio.CancelScope() as scope:
        async with service.slow() as numbers:
            await numbers.receive()
            scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()
            raise error
    assert not hasattr(error, "__notes__")


async def test_a_cancelled_receive_loses_nothing(service: Service, autojump_clock: trio.testing.MockClock) -> None:
    """The item is there for the next one."""
    received: list[int] = []
    async with service.count(5) as numbers:
        for _ in range(20):
            with trio.CancelScope() as scope:
                scope.cancel()
                received.append(await numbers.receive())
        assert received == []
        assert [number async for number in numbers] == [0, 1, 2, 3, 4]


async def test_items_wait_for_the_consumer(autojump_clock: trio.testing.MockClock) -> None:
    """The generator runs one item ahead, no more; a deadline of its own across yields fires on time."""

    class Limited:
        made = 0

        @method
        async def items(self) -> AsyncGenerator[str, None]:
            with trio.move_on_after(2.5):
                for name in "abcdef":
                    self.made += 1
                    yield name
            yield f"late at {trio.current_time() - start}"

    limited = Limited()
    start = trio.current_time()
    received: list[str] = []
    async with limited.items() as names:
        async for name in names:
            await trio.sleep(1)
            received.append(name)
            assert limited.made <= len(received) + 1
    assert received == ["a", "b", "c", "d", "late at 2.5"]


# -- a stream of items -------------------------------------------------------------------------------------------------


async def test_items_of_a_generator(service: Service) -> None:
    """It is iterated to its end, and closed when the call returns."""
    assert await service.total(items(service.log, 4)) == 6
    assert service.log == ["items closed"]
    assert await service.total(limit=0, numbers=items(service.log, 1000)) == 1
    assert service.log == ["items closed"] * 2


async def test_items_of_a_channel_stay_the_callers(service: Service) -> None:
    """The call ends with the handler, and the channel is open still."""
    send, receive = trio.open_memory_channel[int](9)
    with send, receive:
        for number in range(1, 6):
            send.send_nowait(number)
        assert await service.total(receive, limit=2) == 3
        assert receive.statistics().open_receive_channels == 1


async def test_a_failing_iterable_ends_the_call(service: Service) -> None:
    """The handler is cancelled and has ended, and the iterable's error comes out bare."""
    with pytest.raises(KeyError, match="items"):
        await service.stubborn(items(service.log, fail=True))
    assert service.log == ["items closed", "handler ended"]


async def test_a_failing_handler_ends_the_iteration(service: Service) -> None:
    """Its error comes out bare, and the generator is closed."""

    class Refusing:
        @method
        async def refuse(self, numbers: AsyncIterable[int]) -> None:
            async for number in numbers:
                raise ValueError(f"refused {number}")

    with pytest.raises(ValueError, match="refused 0"):
        await Refusing().refuse(items(service.log, 1000))
    assert service.log == ["items closed"]


async def test_a_failing_clean_up_of_the_items() -> None:
    """It is the note of the handler's error, and is raised where there is none."""

    class Picky:
        @method
        async def first(self, numbers: AsyncIterable[int], refuse: bool) -> int:
            async for number in numbers:
                if refuse:
                    raise ValueError("refused")
                return number
            return -1

    async def messy() -> AsyncGenerator[int, None]:
        try:
            yield 0
            yield 1
        finally:
            raise OSError("clean-up")

    with pytest.raises(ValueError, match="refused") as caught:
        await Picky().first(messy(), refuse=True)
    assert caught.value.__notes__ == ["the stream 'numbers' failed as well: OSError: clean-up"]
    with pytest.raises(OSError, match="clean-up"):
        await Picky().first(messy(), refuse=False)


async def test_a_cancelled_call_ends_both(service: Service) -> None:
    """Handler and iteration have ended when the cancellation comes out."""

    async def endless() -> AsyncGenerator[int, None]:
        try:
            yield 1
            await trio.sleep_forever()
        finally:
            service.log.append("endless closed")

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.stubborn, endless())
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught
    assert sorted(service.log) == ["endless closed", "handler ended"]


async def test_both_ways(service: Service) -> None:
    """Items in, results out; leaving early ends both sides."""
    async with service.doubled(items(service.log)) as numbers:
        assert [number async for number in numbers] == [0, 2, 4]
    assert sorted(service.log) == ["doubled ended", "items closed"]
    service.log.clear()
    async with service.doubled(items(service.log, 1000)) as numbers:
        assert await numbers.receive() == 0
    assert sorted(service.log) == ["doubled ended", "items closed"]


async def test_both_ways_with_a_failing_iterable(service: Service) -> None:
    """The generator is cancelled, and the consumer receives the iterable's error."""
    async with service.doubled(items(service.log, 1, fail=True)) as numbers:
        await numbers.receive()
        with pytest.raises(KeyError, match="items"):
            await numbers.receive()
    assert sorted(service.log) == ["doubled ended", "items closed"]
