"""Large messages: whatever their number they arrive whole, and whatever their size they let others pass.

The wire is counted frame by frame on an in-memory connection that is slow on Trio's virtual clock.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import pytest
import trio
import trio.testing
from attrs import frozen

import trio_rpc
from trio_rpc import Heartbeat, PoolLimits, ServerLimits, method
from trio_rpc.testing import Delay, FaultyStream, Recorder, memory_pipe
from trio_rpc.wire import HEADER_SIZE, PREFACE, Kind

MANY, KB_300 = 1000, 300_000
LARGE = 100_000_000
MOST_CHUNKS = 3
"""Chunks of a large message that a small frame may have to wait for."""
SEND_TIME = 0.001
BEAT = 0.5


class Work:
    def __init__(self) -> None:
        self.cancelled = False

    @method
    async def echo(self, value: Any) -> Any:
        return value

    @method
    async def size(self, value: Any) -> int:
        return len(value)

    @method
    async def zeros(self, size: int) -> bytes:
        return bytes(size)

    @method
    async def text(self, size: int) -> str:
        return "x" * size

    @method
    async def hold(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.cancelled = True


@pytest.mark.parametrize("in_flight", [256, MANY])
async def test_many_large_calls_on_one_connection(in_flight: int) -> None:
    """1000 concurrent calls of 300 kB each way all come back right, those that have to wait for a place included."""
    right = []
    limits = PoolLimits(max_connections=1, max_in_flight=in_flight)
    async with (
        trio_rpc.open_server(Work(), "tcp://127.0.0.1:0", limits=ServerLimits(max_in_flight=in_flight)) as server,
        trio_rpc.open_pool(server.addresses[0], limits=limits) as pool,
    ):

        async def call(number: int) -> None:
            data = struct.pack(">I", number) * (KB_300 // 4)
            right.append(await pool.stub(Work).echo(data) == data)

        async with trio.open_nursery() as nursery:
            for number in range(MANY):
                nursery.start_soon(call, number)
        assert pool.statistics().connects == 1
    assert right == [True] * MANY


@frozen
class Frame:
    """One frame on the wire, and when its header was handed to the transport."""

    at: float
    kind: int
    id: int


async def test_a_long_message_over_a_socket() -> None:
    """It arrives as it was, each way, with small calls beside it; so does the next one, when the kernel holds less."""
    data = os.urandom(1 << 20) * 12
    sizes: dict[str, Any] = {"max_message_size": 2 * len(data)}
    async with (
        trio_rpc.open_server(Work(), "tcp://127.0.0.1:0", limits=ServerLimits(**sizes)) as server,
        trio_rpc.open_pool(server.addresses[0], limits=PoolLimits(max_connections=1, **sizes)) as pool,
    ):
        for _ in range(2):
            small, done = 0, trio.Event()
            async with trio.open_nursery() as nursery:

                async def long(done: trio.Event = done) -> None:
                    assert await pool.stub(Work).echo(data) == data
                    done.set()

                nursery.start_soon(long)
                while not done.is_set():
                    assert await pool.stub(Work).echo(small) == small
                    small += 1
            assert small > 3


def frames(recorder: Recorder) -> Iterator[Frame]:
    """All frames that were sent, read by their headers alone."""
    passages = [passage for passage in recorder.passages if passage.direction == "sending"]
    ends = iter(list(zip(accumulate(len(passage.data) for passage in passages), passages, strict=True)))
    wire = b"".join(passage.data for passage in passages)
    assert wire.startswith(PREFACE)
    offset = len(PREFACE)
    end, passage = next(ends)
    while offset < len(wire):
        length, request_id, kind, _ = struct.unpack_from(">IIBB", wire, offset)
        while end <= offset:
            end, passage = next(ends)
        yield Frame(passage.at, kind, request_id)
        offset += HEADER_SIZE + length


def chunks_before(sent: list[Frame], frame: Frame, wanted_at: float) -> int:
    """How many chunks a frame had to let pass since it was wanted, the one under way at that moment included."""
    before = [other for other in sent[: sent.index(frame)] if other.kind == Kind.CHUNK]
    begun = [chunk for chunk in before if chunk.at < wanted_at]
    assert begun, "the large message was not under way yet"
    assert sent[-1].at > frame.at + BEAT, "nor was it still under way"
    return len(before) - len(begun) + 1


@pytest.mark.parametrize("as_text", [False, True], ids=["bytes", "text"])
@pytest.mark.parametrize("sender", ["client", "server"])
async def test_a_large_message_lets_others_pass(
    sender: str, as_text: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """S19: while 100 MB are under way, a ping, a cancel and a small call wait for at most 3 chunks of them."""
    recorder, work = Recorder(), Work()
    slow = [recorder, Delay(SEND_TIME, direction="sending")]
    pipe: tuple[trio.abc.Stream, trio.abc.Stream] = memory_pipe()
    ours, theirs = pipe
    if sender == "client":
        ours = FaultyStream(ours, *slow)
    else:
        theirs = FaultyStream(theirs, *slow)
    sizes: dict[str, Any] = {"max_message_size": 2 * LARGE}
    done = []

    async def large() -> None:
        if sender == "client":
            done.append(await connection.stub(Work).size("x" * LARGE if as_text else bytes(LARGE)))
        else:
            done.append(len(await (connection.stub(Work).text if as_text else connection.stub(Work).zeros)(LARGE)))

    async with trio.open_nursery() as nursery:
        beat = Heartbeat(BEAT, 60)
        nursery.start_soon(lambda: trio_rpc.serve_stream(work, theirs, limits=ServerLimits(**sizes), heartbeat=beat))
        async with (
            trio_rpc.open_connection(ours, limits=PoolLimits(**sizes), heartbeat=beat) as connection,
            trio.open_nursery() as calls,
        ):
            cancelled = await calls.start(cancellable, connection)
            calls.start_soon(large)
            await trio.sleep(BEAT * 1.5)
            small_at = trio.current_time()
            assert await connection.call("Work.echo", "small") == "small"
            cancel_at = trio.current_time()
            cancelled.cancel()
            await trio.testing.wait_all_tasks_blocked()
    assert done == [LARGE]
    assert work.cancelled
    sent = list(frames(recorder))
    small = [frame for frame in sent if small_at <= frame.at and frame.kind in (Kind.REQUEST, Kind.RESPONSE)]
    cancel = [frame for frame in sent if cancel_at <= frame.at and frame.kind in (Kind.CANCEL, Kind.ERROR)]
    pings = [frame for frame in sent if frame.kind == Kind.PING]
    assert chunks_before(sent, small[0], small_at) <= MOST_CHUNKS
    assert chunks_before(sent, cancel[0], cancel_at) <= MOST_CHUNKS
    assert chunks_before(sent, pings[0], wanted_ping(recorder, pings[0])) <= MOST_CHUNKS


def wanted_ping(recorder: Recorder, ping: Frame) -> float:
    """When a ping was due: BEAT after the last bytes that had arrived."""
    return BEAT + max(
        passage.at
        for passage in recorder.passages
        if passage.direction == "receiving" and passage.at < ping.at - BEAT / 2
    )


async def cancellable(
    connection: trio_rpc.Pool, task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED
) -> None:
    """A call that is held there until its scope, which is handed out, is cancelled."""
    with trio.CancelScope() as scope:
        task_status.started(scope)
        await connection.stub(Work).hold()
