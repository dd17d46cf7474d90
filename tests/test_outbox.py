"""What is written, in which order, by the one task that writes."""

from __future__ import annotations

import math
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given, strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_rpc._outbox import BATCH_SIZE, BURST_SIZE, Outbox
from trio_rpc.wire import (
    CHUNK_SIZE,
    Bytes,
    CancelReceived,
    EndReceived,
    Flag,
    Frames,
    Hello,
    ItemsReceived,
    Kind,
    Protocol,
    RequestReceived,
    Role,
    method_block,
)

BLOCK = method_block("Any.thing")


@attrs.define
class Wire:
    """Takes one write at a time, when told to; a slow one takes each of them in parts."""

    outbox: Outbox
    slow: bool = True
    writes: list[bytes] = attrs.field(factory=list)
    stuck: bool = False
    _go_on: trio.Event = attrs.field(factory=trio.Event)

    async def send(self, buffers: list[Bytes]) -> None:
        """Note what one batch holds; then wait, if it is stuck."""
        self.writes.append(b"".join(buffers))
        if self.slow:
            self.outbox.progressed()
        await trio.lowlevel.checkpoint()
        while self.stuck:
            await self._go_on.wait()

    def go_on(self) -> None:
        """Let this write, and all further ones, end."""
        self.stuck = False
        self._go_on.set()

    @property
    def received(self) -> bytes:
        """All bytes so far."""
        return b"".join(self.writes)


@asynccontextmanager
async def open_wire(*, stuck: bool = False, slow: bool = True) -> AsyncIterator[tuple[Outbox, Wire]]:
    """A running outbox; if stuck, its writer is in the middle of writing a first frame, `start`."""
    outbox = Outbox()
    wire = Wire(outbox, slow=slow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run, wire.send)
        if stuck:
            wire.stuck = True
            outbox.put(b"start")
            await wait_all_tasks_blocked()
            wire.writes.clear()
        yield outbox, wire
        wire.go_on()
        outbox.finish()


def protocols() -> tuple[Protocol, Protocol]:
    """A caller and its peer that have said HELLO."""
    caller, peer = Protocol(Role.DIALLER, Hello()), Protocol(Role.ACCEPTOR, Hello())
    peer.receive_data(caller.greeting())
    caller.receive_data(peer.greeting())
    return caller, peer


def request(caller: Protocol, payload: bytes = b"", **options: Any) -> tuple[int, Frames]:
    """A request, as the connection lays it out."""
    return caller.request(BLOCK, payload, **options)


async def test_one_tick_is_one_write() -> None:
    """All that was put before the writer's turn goes out joined."""
    async with open_wire() as (outbox, wire):
        await wait_all_tasks_blocked()
        for frame in (b"a", b"b", b"c"):
            outbox.put(frame)
        await wait_all_tasks_blocked()
        assert wire.writes == [b"abc"]


async def test_control_frames_go_first() -> None:
    """Ahead of all that was put before them."""
    async with open_wire(stuck=True) as (outbox, wire):
        outbox.put(b"small")
        outbox.put_control(b"ping")
        outbox.put_control(b"pong")
        wire.go_on()
        await wait_all_tasks_blocked()
        assert wire.writes == [b"pingpongsmall"]


async def test_large_messages_take_turns() -> None:
    """A chunk of each, with whatever is small or urgent in between; each message keeps its own order."""

    def chunks(name: bytes, count: int) -> Frames:
        rest: list[list[Bytes]] = [[name, b"%d" % n] for n in range(1, count + 1)]
        return _header(count) + name + b"0", iter(rest)

    async with open_wire(stuck=True) as (outbox, wire):
        outbox.put_message(1, chunks(b"x", 3))
        outbox.put_message(3, chunks(b"y", 2))
        outbox.put(b"small")
        wire.go_on()
        await wait_all_tasks_blocked()
        bare = [write.replace(_header(3), b"").replace(_header(2), b"") for write in wire.writes]
        assert list(filter(None, bare)) == [b"x0y0smallx1", b"y1", b"x2", b"y2", b"x3"]
        assert outbox.queued_bytes == 0
        assert not outbox


def of_ids(data: bytes) -> list[int]:
    """The ids of the frames, in order, repetitions left out."""
    ids: list[int] = []
    while data:
        length, request_id = struct.unpack_from(">II", data)
        if ids[-1:] != [request_id]:
            ids.append(request_id)
        data = data[10 + length :]
    return ids


async def test_what_is_begun_goes_on_while_others_wait_to_begin() -> None:
    """R08, N10: each batch has a chunk of the message that the peer waits for, whoever else is in line to begin."""
    caller, _ = protocols()
    async with open_wire(stuck=True) as (outbox, wire):
        begun, frames = request(caller, bytes(1_000_000))
        outbox.put_message(begun, frames)
        for _ in range(30):
            outbox.put(request(caller, bytes(20_000))[1][0])
        others = [request(caller, bytes(100_000)) for _ in range(3)]
        for other in others:
            outbox.put_message(*other)
        wire.go_on()
        await wait_all_tasks_blocked()
        first = next(n for n, write in enumerate(wire.writes) if others[0][0] in of_ids(write))
        assert first >= 3
        assert all(begun in of_ids(write) for write in wire.writes[:first])


async def test_no_more_large_messages_side_by_side_than_the_peer_takes() -> None:
    """Chunks of a further one follow when one of them has ended; what is small passes, and a single one always goes."""
    caller, peer = protocols()
    async with open_wire(stuck=True) as (outbox, wire):
        outbox.most_at_once = 500_000
        for size in (200_000, 200_000, 200_000, 900_000, 100):
            outbox.put_message(*request(caller, b"x" * size))
        assert outbox.queued_bytes > 1_500_000
        wire.go_on()
        await wait_all_tasks_blocked()
        ids = of_ids(wire.received)
        assert ids[:7] == [1, 3, 5, 7, 9, 1, 3]
        assert ids[ids.index(7, 6) :] == [7]
        events = peer.receive_data(wire.received)
        assert [event.id for event in events if isinstance(event, RequestReceived)] == [9, 1, 3, 5, 7]
        assert (outbox.queued_bytes, len(outbox)) == (0, 0)


async def test_a_large_message_that_is_held_back_is_taken_back_unsent() -> None:
    """With the items of its stream; and room that others leave is not lost by it."""
    caller, _peer = protocols()
    async with open_wire(stuck=True) as (outbox, wire):
        outbox.most_at_once = 300_000
        first, second, third = (request(caller, b"x" * 250_000, streaming=number == 1) for number in range(3))
        outbox.put_message(*first)
        ticket = outbox.put_message(*second)
        outbox.put_message(second[0], caller.items(second[0], 1, b"item"))
        outbox.put_message(*third)
        size = outbox.queued_bytes
        assert outbox.withdraw(second[0], ticket, streaming=True)
        assert outbox.queued_bytes <= size - 250_000
        wire.go_on()
        await wait_all_tasks_blocked()
        assert of_ids(wire.received) == [1, 5, 1, 5]
        assert (outbox.queued_bytes, len(outbox)) == (0, 0)


async def test_who_stops_in_the_middle_leaves_its_room_to_others() -> None:
    """A call that ends while its message is under way lets the next one begin."""
    caller, _peer = protocols()
    async with open_wire(stuck=True) as (outbox, wire):
        outbox.most_at_once = 300_000
        for _ in range(2):
            outbox.put_message(*request(caller, b"x" * 250_000))
        wire.go_on()
        while not wire.writes:
            await trio.lowlevel.checkpoint()
        outbox.stop_sending(1)
        assert outbox.large is not None
        assert outbox.large.ids == [3]
        await wait_all_tasks_blocked()
        assert of_ids(wire.received) == [1, 3, 1, 3]
        assert (outbox.queued_bytes, len(outbox)) == (0, 0)


async def test_room_is_left_to_the_next_while_others_go_on() -> None:
    """Of what may be under way side by side, as much as was stopped is free."""
    caller, _peer = protocols()
    outbox = Outbox()
    outbox.most_at_once = 500_000
    for _ in range(3):
        outbox.put_message(*request(caller, b"x" * 200_000))
    assert outbox.large is not None
    assert outbox.large.ids == [1, 3]
    outbox.stop_sending(1)
    assert outbox.large.ids == [3, 5]


async def test_what_is_stopped_before_it_began_does_not_begin() -> None:
    """An item of a call that was cancelled meanwhile: behind the CANCEL, the peer would wait for its chunks in vain."""
    caller, peer = protocols()
    peer.is_open = lambda _request_id: True
    request_id, frames = request(caller, streaming=True)
    peer.receive_data(frames[0])
    async with open_wire(stuck=True) as (outbox, wire):
        outbox.put_message(request_id, caller.items(request_id, 1, b"x" * 250_000))
        assert outbox.stop_sending(request_id)
        outbox.put_control(caller.cancel(request_id, 1.0))
        assert outbox.queued_bytes == 0
        wire.go_on()
        await wait_all_tasks_blocked()
        (event,) = peer.receive_data(wire.received)
        assert isinstance(event, CancelReceived)
        assert not peer.receiving_messages


@pytest.mark.parametrize("listener", ["on_room", "on_progress"])
async def test_room_that_comes_from_what_is_stopped_is_told(listener: str) -> None:
    """Also if that was all that the writer had left, when it let others have their turn: no further write will tell."""
    caller, _peer = protocols()
    outbox = Outbox()
    written = 0
    told: list[int] = []

    async def take(buffers: list[Bytes]) -> None:
        nonlocal written
        written += sum(map(len, buffers))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run, take)
        await wait_all_tasks_blocked()
        outbox.put_message(*request(caller, bytes(4_000_000)))
        while not written:
            await trio.lowlevel.checkpoint()
        assert outbox.is_beyond(1_000_000, 1)
        setattr(outbox, listener, lambda: told.append(outbox.queued_bytes))
        outbox.stop_sending(1)
        await wait_all_tasks_blocked()
        assert told == [0]
        outbox.finish()


def _header(count: int) -> bytes:
    """The start of a first frame that announces a message's total size."""
    return b"\0" * 10 + bytes([0, 0, 0, 2 * count])


async def test_a_quick_transport_takes_several_chunks_at_once() -> None:
    """Until it has to wait for the first time; from then on one goes out at a time."""
    caller, _peer = protocols()
    async with open_wire(slow=False) as (outbox, wire):
        outbox.put_message(*request(caller, b"x" * 1_000_000))
        await wait_all_tasks_blocked()
        assert [len(write) // CHUNK_SIZE for write in wire.writes if write] == [4, 4, 4, 3]
        wire.writes.clear()
        wire.slow = True
        outbox.put_message(*request(caller, b"x" * 1_000_000))
        await wait_all_tasks_blocked()
        assert [len(write) // CHUNK_SIZE for write in wire.writes if write] == [4] + [1] * 11 + [0]


async def test_a_transport_that_takes_everything_lets_others_run() -> None:
    """A message of 4 MB is not one step of the writer: other tasks have a turn every BURST_SIZE bytes."""
    caller, _peer = protocols()
    outbox = Outbox()
    written = turns = 0

    async def take(buffers: list[Bytes]) -> None:
        nonlocal written
        written += sum(map(len, buffers))

    async with trio.open_nursery() as nursery:
        outbox.put_message(*request(caller, bytes(4_000_000)))
        outbox.finish()
        nursery.start_soon(outbox.run, take)
        while written < 4_000_000:
            turns += 1
            await trio.lowlevel.checkpoint()
    assert turns >= 4_000_000 // (BURST_SIZE * 2)


async def test_messages_of_one_call_keep_their_order() -> None:
    """A small item does not overtake the large one before it."""
    caller, peer = protocols()
    request_id, frames = request(caller, streaming=True)
    large, small = b"L" * 300_000, b"s"
    async with open_wire() as (outbox, wire):
        outbox.put_message(request_id, frames)
        for item in (large, small, large, small):
            outbox.put_message(request_id, caller.items(request_id, 1, item))
        await wait_all_tasks_blocked()
        events = peer.receive_data(wire.received)
        assert [len(event.payload) for event in events[1:]] == [300_000, 1, 300_000, 1]  # type: ignore[union-attr]


async def test_a_small_call_passes_a_large_one() -> None:
    """It waits for a chunk and not for the message."""
    caller, peer = protocols()
    async with open_wire(stuck=True) as (outbox, wire):
        outbox.put_message(*request(caller, b"L" * 3_000_000))
        wire.go_on()
        while len(wire.writes) < 3:
            await trio.lowlevel.checkpoint()
        small_id, frames = request(caller)
        outbox.put_message(small_id, frames)
        writes = len(wire.writes)
        await wait_all_tasks_blocked()
        events = peer.receive_data(b"".join(wire.writes[: writes + 1]))
        assert [event.id for event in events if isinstance(event, RequestReceived)] == [small_id]


async def test_a_batch_is_bounded() -> None:
    """Small frames beyond it wait for the next write, so that what is urgent can pass."""
    frame = b"f" * 1000
    async with open_wire(stuck=True) as (outbox, wire):
        for _ in range(400):
            outbox.put(frame)
        assert outbox.queued_bytes == 400_000
        wire.go_on()
        while not wire.writes:
            await trio.lowlevel.checkpoint()
        outbox.put_control(b"ping")
        await wait_all_tasks_blocked()
        assert all(len(write) <= BATCH_SIZE + 1000 + 4 for write in wire.writes)
        assert wire.received.index(b"ping") < 400_000, "in between"
        assert wire.received.count(b"f") == 400_000


# -- taking back -------------------------------------------------------------------------------------------------------


async def test_what_was_not_taken_can_be_withdrawn() -> None:
    """It never leaves; its neighbours do, and their tickets stand."""
    caller, peer = protocols()
    async with open_wire(stuck=True) as (outbox, wire):
        calls = [request(caller) for _ in range(3)]
        tickets = [outbox.put_message(*call) for call in calls]
        assert outbox.withdraw(calls[1][0], tickets[1])
        wire.go_on()
        await wait_all_tasks_blocked()
        events = peer.receive_data(wire.received)
        assert [event.id for event in events] == [calls[0][0], calls[2][0]]  # type: ignore[union-attr]
        assert not any(outbox.withdraw(call[0], ticket) for call, ticket in zip(calls, tickets, strict=True))


async def test_a_large_request_is_withdrawn_whole() -> None:
    """With all its chunks; once a part of it is gone it cannot be taken back, but what is left can be left out."""
    caller, _peer = protocols()
    async with open_wire(stuck=True) as (outbox, wire):
        first, second = request(caller, b"1" * 500_000), request(caller, b"2" * 500_000)
        tickets = [outbox.put_message(*call) for call in (first, second)]
        assert outbox.withdraw(first[0], tickets[0])
        wire.go_on()
        while len(wire.writes) < 2:
            await trio.lowlevel.checkpoint()
        assert not outbox.withdraw(second[0], tickets[1])
        outbox.stop_sending(second[0])
        await wait_all_tasks_blocked()
        assert b"1" not in wire.received
        assert 0 < wire.received.count(b"2") < 500_000
        assert outbox.queued_bytes == 0


async def test_a_streaming_request_takes_its_items_along() -> None:
    """Items of a request that never came would break the peer's rules; other calls' items stay."""
    caller, peer = protocols()
    async with open_wire(stuck=True) as (outbox, wire):
        kept, gone = (request(caller, streaming=True) for _ in range(2))
        outbox.put_message(*kept)
        ticket = outbox.put_message(*gone)
        for call_id in (gone[0], kept[0], gone[0]):
            outbox.put_message(call_id, caller.items(call_id, 1, b"item"))
        assert outbox.withdraw(gone[0], ticket, streaming=True)
        wire.go_on()
        await wait_all_tasks_blocked()
        assert {event.id for event in peer.receive_data(wire.received)} == {kept[0]}  # type: ignore[union-attr]


# -- time --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 300_000])
async def test_the_time_left_is_that_of_writing(autojump_clock: MockClock, size: int) -> None:
    """A request that had to wait is stamped anew, large ones too; one without a deadline is not touched."""
    caller, peer = protocols()
    async with open_wire(stuck=True) as (outbox, wire):
        outbox.deadline_of = {1: 10.0, 5: 24.0}.__getitem__
        outbox.put_message(*request(caller, b"x" * size, timeout=10))
        outbox.put_message(*request(caller))
        await trio.sleep(4)
        outbox.put_message(*request(caller, timeout=20))
        wire.go_on()
        await wait_all_tasks_blocked()
        events = peer.receive_data(wire.received)
        left = {event.id: event.timeout for event in events if isinstance(event, RequestReceived)}
        assert left == pytest.approx({1: 6, 3: None, 5: 20}, abs=1e-5)


async def test_a_deadline_that_passed_in_the_queue_is_none_left(autojump_clock: MockClock) -> None:
    """Never a negative time, nor a huge one."""
    caller, peer = protocols()
    async with open_wire(stuck=True) as (outbox, wire):
        outbox.deadline_of = {1: 1.0}.__getitem__
        outbox.put_message(*request(caller, timeout=1))
        await trio.sleep(60)
        wire.go_on()
        await wait_all_tasks_blocked()
        (event,) = peer.receive_data(wire.received)
        assert isinstance(event, RequestReceived)
        assert event.timeout == 0


async def test_progress_is_told(autojump_clock: MockClock) -> None:
    """Since when a write has been under way, and when a control frame has left."""
    left: list[float] = []
    async with open_wire(stuck=True) as (outbox, wire):
        assert outbox.progressed_at == 0
        outbox.put_control(b"ping", lambda: left.append(trio.current_time()))
        await trio.sleep(3)
        assert outbox.progressed_at == 0
        assert not left
        wire.go_on()
        await wait_all_tasks_blocked()
        assert (outbox.progressed_at or "no write") == "no write"
        assert left == [3]


async def test_a_frame_behind_what_a_flush_left_has_not_left_with_it() -> None:
    """Where one step could not send all, the rest is told of as it leaves, and what was put behind it later."""
    left: list[str] = []
    writes: list[tuple[bytes, list[str]]] = []
    outbox = Outbox()
    outbox.send_now = lambda data: len(data) // 2

    async def send(buffers: list[Bytes]) -> None:
        writes.append((b"".join(buffers), left.copy()))
        await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        outbox.begin(lambda: nursery.start_soon(outbox.run, send))
        outbox.cork(trio.current_time())
        outbox.put_control(b"pong", lambda: left.append("pong"))
        outbox.flush()
        outbox.put_control(b"ping", lambda: left.append("ping"))
        await wait_all_tasks_blocked()
        outbox.finish()
    assert (writes, left) == ([(b"ng", []), (b"ping", ["pong"])], ["pong", "ping"])


async def test_finish_writes_what_is_queued() -> None:
    """Then the writer returns; without anything queued, at once."""
    outbox = Outbox()
    wire = Wire(outbox)
    outbox.put(b"last")
    outbox.put_control(b"words")
    outbox.finish()
    with trio.fail_after(1):
        await outbox.run(wire.send)
    assert wire.writes == [b"wordslast"]


async def test_the_repr_tells_what_waits() -> None:
    """How much of each kind."""
    outbox = Outbox()
    outbox.put(b"12345")
    outbox.put_control(b"x")
    assert repr(outbox) == "<Outbox: 1 control and 1 small frames (5 bytes), 0 large messages>"
    assert len(outbox) == 2


Step = tuple[str, int]
steps = st.lists(
    st.tuples(st.sampled_from(["small", "large", "control", "withdraw", "stop", "tick"]), st.integers(0, 200_000)),
    max_size=25,
)


@given(steps)
def test_any_history_reads_well(history: list[Step]) -> None:
    """Whatever is put, taken back and stopped: the peer sees no broken rule, and all that was kept arrives once."""

    async def main() -> None:
        caller, peer = protocols()
        expected: dict[int, int] = {}
        tickets: list[tuple[int, int]] = []
        stopped: set[int] = set()
        async with open_wire() as (outbox, wire):
            for kind, number in history:
                if kind in ("small", "large"):
                    size = number % 100 if kind == "small" else number
                    request_id, frames = request(caller, b"x" * size)
                    tickets.append((request_id, outbox.put_message(request_id, frames)))
                    expected[request_id] = size
                elif kind == "control":
                    outbox.put_control(caller.ping(b"12345678"))
                elif kind == "tick":
                    for _ in range(number % 3):
                        await trio.lowlevel.checkpoint()
                elif tickets:
                    request_id, ticket = tickets[number % len(tickets)]
                    if kind == "withdraw" and outbox.withdraw(request_id, ticket):
                        expected.pop(request_id, None)
                    elif kind == "stop" and ticket < outbox.taken:
                        outbox.stop_sending(request_id)
                        stopped.add(request_id)
            await wait_all_tasks_blocked()
            assert (len(outbox), outbox.queued_bytes) == (0, 0)
            events = peer.receive_data(wire.received)
        arrived = {event.id: len(event.payload) for event in events if isinstance(event, RequestReceived)}
        assert arrived.items() <= expected.items()
        assert expected.keys() - arrived.keys() <= stopped

    trio.run(main)


class Model:
    """One connection's outbox beside a list of what its peer is to see of each id."""

    def __init__(self, most_at_once: int) -> None:
        self.caller, self.peer = protocols()
        self.peer.is_open = lambda _request_id: True  # Handlers that take their time, cancelled or not.
        self.outbox = Outbox()
        self.outbox.most_at_once = most_at_once
        self.expected: dict[int, list[int]] = {}
        """The sizes of each call's messages, in order; those that were left out may be missing at the end."""
        self.stopped: set[int] = set()
        self.streaming: set[int] = set()
        self.tickets: dict[int, int] = {}
        self.received: dict[int, list[int]] = {}
        self.cancelled: set[int] = set()
        self._wire = bytearray()
        self._totals: dict[int, int] = {}
        self._under_way: dict[int, int] = {}
        """Sizes of the messages of which the peer has had a chunk, and not the last one."""

    def request(self, size: int, *, streaming: bool) -> None:
        request_id, frames = request(self.caller, b"x" * size, streaming=streaming)
        self.tickets[request_id] = self.outbox.put_message(request_id, frames)
        self.expected[request_id] = [size]
        if streaming:
            self.streaming.add(request_id)

    def item(self, number: int, size: int) -> None:
        open_streams = sorted(self.streaming)
        if open_streams:
            request_id = open_streams[number % len(open_streams)]
            self.outbox.put_message(request_id, self.caller.items(request_id, 1, b"i" * size))
            self.expected[request_id].append(size)

    def end(self, number: int) -> None:
        open_streams = sorted(self.streaming)
        if open_streams:
            request_id = open_streams[number % len(open_streams)]
            self.outbox.put_message(request_id, (self.caller.end(request_id), None))
            self.expected[request_id].append(-1)
            self.streaming.discard(request_id)

    def give_up(self, number: int) -> None:
        """As a call that is cancelled: taken back if it can be, else stopped and cancelled."""
        ids = sorted(self.expected.keys() - self.stopped)
        if not ids:
            return
        request_id = ids[number % len(ids)]
        self.streaming.discard(request_id)
        if self.outbox.withdraw(request_id, self.tickets[request_id], streaming=True):
            del self.expected[request_id]
        else:
            self.stopped.add(request_id)
            self.outbox.stop_sending(request_id)
            self.outbox.put_control(self.caller.cancel(request_id, 0.0))

    def receive(self, data: Bytes) -> None:
        """Some bytes reach the peer: each frame must be right, and no more under way than the peer bears."""
        self._wire += data
        while len(self._wire) >= 4 and len(self._wire) >= (size := 10 + int.from_bytes(self._wire[:4], "big")):
            frame = bytes(self._wire[:size])
            del self._wire[:size]
            self._note_size(frame)
            self._note_events(frame)
            assert len(self._under_way) <= 1 or sum(self._under_way.values()) <= self.outbox.most_at_once

    def _note_size(self, frame: bytes) -> None:
        _, request_id, kind, flags = struct.unpack_from(">IIBB", frame)
        if kind == Kind.CHUNK:
            self._under_way[request_id] = self._totals[request_id]
        elif flags & Flag.MORE:
            self._totals[request_id] = int.from_bytes(frame[10:14], "big")

    def _note_events(self, frame: bytes) -> None:
        for event in self.peer.receive_data(frame):
            if isinstance(event, RequestReceived | ItemsReceived | CancelReceived):
                self._under_way.pop(event.id, None)
            if isinstance(event, RequestReceived | ItemsReceived):
                self.received.setdefault(event.id, []).append(len(event.payload))
            elif isinstance(event, EndReceived):
                self.received.setdefault(event.id, []).append(-1)
            elif isinstance(event, CancelReceived):
                self.cancelled.add(event.id)

    def check(self) -> None:
        """All has arrived, in order; of what was stopped, a beginning."""
        assert (len(self.outbox), self.outbox.queued_bytes, self.outbox.large) == (0, 0, None)
        assert self.received.keys() <= self.expected.keys()
        for request_id, sizes in self.expected.items():
            arrived = self.received.get(request_id, [])
            assert arrived == (sizes[: len(arrived)] if request_id in self.stopped else sizes)
        assert self.cancelled == self.stopped
        assert not self.peer.receiving_messages, "the peer would wait for the rest"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["call", "open", "item", "item", "end", "give up", "ping", "write", "flush", "cork"]),
            st.integers(0, 7),
            st.sampled_from([0, 50, 20_000, 65_000, 66_000, 140_000, 300_000]),
        ),
        max_size=40,
    ),
    st.sampled_from([1, 150_000, 400_000, 10**9]),
)
def test_streams_in_any_history_read_well(history: list[tuple[str, int, int]], most_at_once: int) -> None:
    """Many messages of each id, large and small, some given up in the middle; each write and each flush takes a part."""

    async def main() -> None:
        model = Model(most_at_once)
        outbox = model.outbox
        room = 0

        def send_now(data: Bytes) -> int:
            taken = min(len(data), room)
            model.receive(data[:taken])
            return taken

        writes, go_on = trio.open_memory_channel[None](math.inf)

        async def send(buffers: list[Bytes]) -> None:
            outbox.progressed()
            await go_on.receive()
            for buffer in buffers:
                model.receive(buffer)

        outbox.send_now = send_now
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outbox.run, send)
            await wait_all_tasks_blocked()
            for kind, number, size in history:
                if kind in ("call", "open"):
                    model.request(size, streaming=kind == "open")
                elif kind == "item":
                    model.item(number, size)
                elif kind == "end":
                    model.end(number)
                elif kind == "give up":
                    model.give_up(number)
                elif kind == "ping":
                    outbox.put_control(model.caller.ping(b"12345678"))
                elif kind == "write":
                    writes.send_nowait(None)
                    await wait_all_tasks_blocked()
                elif kind == "flush":
                    room = size
                    outbox.flush()
                else:
                    outbox.cork(trio.current_time())
                assert outbox.queued_bytes >= 0
            outbox.flush()
            for _ in range(200):
                writes.send_nowait(None)
            await wait_all_tasks_blocked()
            model.check()
            outbox.finish()

    trio.run(main)
