"""The memory pipe: a stream by Trio's own checks, and bounded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
import trio.testing

from trio_rpc.testing import MemoryStream, memory_pipe


async def clogged() -> tuple[MemoryStream, MemoryStream]:
    """A pipe that is full both ways."""
    here, there = memory_pipe(8)
    await here.send_all(bytes(8))
    await there.send_all(bytes(8))
    return here, there


async def test_it_is_a_half_closeable_stream() -> None:
    """Trio's generic stream checks hold."""

    async def make() -> tuple[MemoryStream, MemoryStream]:
        return memory_pipe()

    await trio.testing.check_half_closeable_stream(make, clogged)


async def test_sending_waits_for_the_reader(autojump_clock: trio.testing.MockClock) -> None:
    """A message larger than the pipe passes as it is read, and no faster."""
    here, there = memory_pipe(4)
    received = []

    async def read_slowly() -> None:
        for _ in range(3):
            await trio.sleep(1)
            received.append(await there.receive_some())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_slowly)
        await here.send_all(b"0123456789")
        assert trio.current_time() == 2
    assert received == [b"0123", b"4567", b"89"]


async def test_without_a_bound_nothing_waits() -> None:
    """With capacity None any amount is taken at once."""
    here, there = memory_pipe(None)
    await here.send_all(bytes(1_000_000))
    assert len(await there.receive_some()) == 1_000_000


@pytest.mark.parametrize("read", [0, 3])
async def test_a_cancelled_send_leaves_a_known_prefix(read: int, autojump_clock: trio.testing.MockClock) -> None:
    """`statistics().sent` tells how much of the message was written, and just that arrives."""
    here, there = memory_pipe(4)
    received = b""
    with trio.move_on_after(1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.send_all, b"0123456789")
            if read:
                received += await there.receive_some(read)
    assert here.statistics().sent == 4 + read
    received += await there.receive_some()
    assert received == b"0123456789"[: 4 + read]


async def test_cancelled_before_it_began_nothing_is_sent_or_taken() -> None:
    """A cancelled scope leaves both ends as they were."""
    here, there = memory_pipe()
    await here.send_all(b"first")
    with trio.CancelScope() as scope:
        scope.cancel()
        await here.send_all(b"second")
    with trio.CancelScope() as scope:
        scope.cancel()
        await there.receive_some()
    assert scope.cancelled_caught
    assert await there.receive_some() == b"first"


@pytest.mark.parametrize(
    ("closing", "error"),
    [
        (lambda here, there: here.close(), trio.ClosedResourceError),
        (lambda here, there: there.close(), trio.BrokenResourceError),
        (lambda here, there: there.reset(), trio.BrokenResourceError),
    ],
)
async def test_closing_wakes_a_waiting_sender(
    closing: Callable[[MemoryStream, MemoryStream], None], error: type[Exception]
) -> None:
    """A `send_all` that waits for room ends with the error that says which end is gone."""
    here, there = await clogged()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def send() -> None:
            with pytest.raises(error):
                await here.send_all(b"more")

        await trio.testing.wait_all_tasks_blocked()
        closing(here, there)
    with pytest.raises(error):
        await here.send_all(b"more")


async def test_after_a_close_what_was_sent_is_still_read() -> None:
    """The other end reads the rest, and then the end, again and again."""
    here, there = memory_pipe()
    await here.send_all(b"last words")
    await here.aclose()
    assert [await there.receive_some(4) for _ in range(5)] == [b"last", b" wor", b"ds", b"", b""]


async def test_after_a_reset_the_rest_is_read_and_then_an_error() -> None:
    """A reset is told from an end."""
    here, there = memory_pipe()
    await here.send_all(b"last words")
    here.reset()
    assert await there.receive_some() == b"last words"
    with pytest.raises(trio.BrokenResourceError, match="reset"):
        await there.receive_some()
    with pytest.raises(trio.ClosedResourceError):
        await here.receive_some()


async def test_a_reset_of_a_closed_end_is_no_reset() -> None:
    """Who has closed has said so already: the other end sees the end."""
    here, there = memory_pipe()
    here.close()
    here.reset()
    assert await there.receive_some() == b""


async def test_half_closing() -> None:
    """After `send_eof` one direction has ended and the other goes on."""
    here, there = memory_pipe()
    await here.send_eof()
    assert await there.receive_some() == b""
    await there.send_all(b"answer")
    assert await here.receive_some() == b"answer"
    with pytest.raises(trio.ClosedResourceError, match="send_eof"):
        await here.send_all(b"question")


async def test_statistics_count_both_ways() -> None:
    """Bytes sent, received and on their way."""
    here, there = memory_pipe()
    await here.send_all(b"12345")
    await there.receive_some(2)
    mine, theirs = here.statistics(), there.statistics()
    assert (mine.sent, mine.unsent, mine.received, mine.unread) == (5, 3, 0, 0)
    assert (theirs.sent, theirs.unsent, theirs.received, theirs.unread) == (0, 0, 2, 3)


async def test_wide_items_are_counted_in_bytes() -> None:
    """A memoryview of larger items is sent whole."""
    here, there = memory_pipe(8)
    await here.send_all(memoryview(b"12345678").cast("I"))
    assert here.statistics().sent == 8
    assert await there.receive_some() == b"12345678"


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_pipe_holds_at_least_a_byte(capacity: int) -> None:
    """A pipe without room could never pass anything."""
    with pytest.raises(ValueError, match="at least 1 byte"):
        memory_pipe(capacity)
