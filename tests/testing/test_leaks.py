"""What is left behind is found, named and located; what is only just ending is not blamed."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from trio_rpc.testing import assert_no_leaks, no_leaks

needs_descriptors = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no list of file descriptors here")


async def linger() -> None:
    """A task that stays."""
    await trio.sleep_forever()


async def test_a_clean_block() -> None:
    """Tasks that were there before and tasks that ended inside are no leaks."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(linger)
        async with no_leaks(), trio.open_nursery() as inner:
            inner.start_soon(trio.lowlevel.checkpoint)
        nursery.cancel_scope.cancel()


async def test_a_task_is_named_and_located() -> None:
    """The message tells the task, its parent, and the line where it waits, without Trio's insides."""
    async with trio.open_nursery() as nursery:
        with pytest.raises(AssertionError) as caught:
            async with no_leaks(within=0):
                nursery.start_soon(linger, name="the lingerer")
                await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    message = str(caught.value)
    assert message.startswith("1 left behind:\n- task 'the lingerer', a child of ")
    assert f"linger ({__file__}:{linger.__code__.co_firstlineno + 2})" in message
    assert "sleep_forever" not in message


async def test_what_is_ending_gets_its_time() -> None:
    """A task that needs some more checkpoints to end is no leak."""
    asked = trio.Event()

    async def slow_to_end() -> None:
        await asked.wait()
        for _ in range(20):
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        async with no_leaks():
            nursery.start_soon(slow_to_end)
            asked.set()


async def test_the_clock_stands_still(autojump_clock: trio.testing.MockClock) -> None:
    """What needs a timer to end is a leak, and looking for it does not let virtual time pass."""
    async with trio.open_nursery() as nursery:
        with pytest.raises(AssertionError, match=r"task 'trio\.sleep'"):
            async with no_leaks(within=0.02):
                nursery.start_soon(trio.sleep, 0.001)
        assert trio.current_time() == 0


@needs_descriptors
async def test_a_file_descriptor() -> None:
    """An open descriptor is told with what it is; closed again, it is none."""
    async with no_leaks():
        os.close(os.open(os.devnull, os.O_RDONLY))
    descriptor = -1
    with pytest.raises(AssertionError, match=f"file descriptor \\d+: {os.devnull}"):
        async with no_leaks(within=0):
            descriptor = os.open(os.devnull, os.O_RDONLY)
    os.close(descriptor)


@needs_descriptors
async def test_a_socket() -> None:
    """A stream that was not closed is found."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        async with AsyncExitStack() as later:
            with pytest.raises(AssertionError, match="socket:"):
                async with no_leaks(within=0):
                    await later.enter_async_context(await trio.testing.open_stream_to_socket_listener(listener))


async def test_the_error_of_the_block_comes_out() -> None:
    """A failing block is not judged as well, and its exception is the very one."""
    error = ValueError("the point of it")
    async with trio.open_nursery() as nursery:
        with pytest.raises(ValueError, match="the point of it") as caught:
            async with no_leaks(within=0):
                nursery.start_soon(linger)
                raise error
        nursery.cancel_scope.cancel()
    assert caught.value is error


@attrs.frozen
class Line:
    in_flight: int = 0
    max_in_flight: int = 256
    healthy: bool = True


@dataclass
class Waiters:
    tasks_waiting: int = 0
    peak_waiting: int = 12


@attrs.frozen
class Pool:
    """Stands for whatever has statistics."""

    shown: object

    def statistics(self) -> object:
        return self.shown


@pytest.mark.parametrize(
    "idle",
    [
        Line(),
        Waiters(),
        {"waiting": 0, "connections": 3},
        {"connections": [Line(), Line()]},
    ],
)
def test_an_idle_object(idle: object) -> None:
    """Limits, records and other numbers are no leaks."""
    assert_no_leaks(Pool(idle))


@pytest.mark.parametrize(
    ("busy", "said"),
    [
        (Line(in_flight=2), "Pool: in_flight is 2"),
        (Waiters(tasks_waiting=1), "Pool: tasks_waiting is 1"),
        ({"calls_in_flight": 4}, "Pool: calls_in_flight is 4"),
        ({"connections": [Line(), Line(in_flight=1)]}, "Pool: connections.1.in_flight is 1"),
    ],
)
def test_a_busy_object(busy: object, said: str) -> None:
    """The number that is not zero is told with its path."""
    with pytest.raises(AssertionError) as caught:
        assert_no_leaks(Pool(busy))
    assert str(caught.value) == f"1 left behind:\n- {said}"


def test_an_object_that_shows_nothing() -> None:
    """A check that could not fail is refused."""
    with pytest.raises(TypeError, match="cannot show whether something is left"):
        assert_no_leaks(Pool({"connections": 0}))


async def test_trios_own_statistics() -> None:
    """A task that waits on a lock is seen in the lock, and not once it has gone."""
    lock = trio.Lock()
    async with lock, trio.open_nursery() as nursery:
        nursery.start_soon(lock.acquire)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(AssertionError, match="Lock: tasks_waiting is 1"):
            assert_no_leaks(lock)
        nursery.cancel_scope.cancel()
    assert_no_leaks(lock)


async def test_objects_made_inside_are_watched() -> None:
    """`watch` has an object of the block checked at its end."""

    @asynccontextmanager
    async def pool(busy: int) -> AsyncIterator[Pool]:
        yield Pool({"in_flight": busy})

    async with no_leaks() as leaks, pool(0) as idle:
        assert leaks.watch(idle) is idle
    with pytest.raises(AssertionError, match="in_flight is 1"):
        async with no_leaks(within=0) as leaks, pool(1) as busy:
            leaks.watch(busy)
