"""Every named fault does what its name says, at the second and at the byte."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Literal

import pytest
import trio
import trio.testing

from trio_rpc.testing import (
    Cut,
    Delay,
    Drop,
    Fault,
    FaultyStream,
    Freeze,
    MemoryStream as Pipe,
    Passage,
    Recorder,
    Trickle,
    memory_pipe,
)

Clock = trio.testing.MockClock


def faulty_pipe(*faults: Fault) -> tuple[FaultyStream, Pipe]:
    """A stream with the faults, and the far end of it."""
    here, there = memory_pipe()
    return FaultyStream(here, *faults), there


async def arrivals(stream: trio.abc.ReceiveStream) -> list[tuple[float, bytes]]:
    """When each chunk arrived, until nothing more has come for an hour."""
    chunks: list[tuple[float, bytes]] = []
    with trio.CancelScope() as scope:
        while not chunks or chunks[-1][1]:
            scope.deadline = trio.current_time() + 3600
            chunks.append(await stamped(stream))
    return chunks


async def stamped(stream: trio.abc.ReceiveStream) -> tuple[float, bytes]:
    """The next chunk, and when it came."""
    data = bytes(await stream.receive_some())
    return trio.current_time(), data


async def never(operation: Callable[[], Awaitable[object]]) -> bool:
    """Whether `operation` still waits after an hour."""
    with trio.move_on_after(3600) as scope:
        await operation()
    return scope.cancelled_caught


@pytest.mark.parametrize("faults", [(), (Freeze(), Recorder(), Delay(0), Trickle(4096, 0), Drop(), Cut(10**9))])
async def test_faults_that_are_off_leave_a_stream(faults: tuple[Fault, ...], autojump_clock: Clock) -> None:
    """Trio's generic checks hold through all faults at once."""

    async def make() -> tuple[FaultyStream, FaultyStream]:
        here, there = memory_pipe()
        return FaultyStream(here, *faults), FaultyStream(there, *faults)

    async def clogged() -> tuple[FaultyStream, FaultyStream]:
        here, there = memory_pipe(8)
        await here.send_all(bytes(8))
        await there.send_all(bytes(8))
        return FaultyStream(here, *faults), FaultyStream(there, *faults)

    await trio.testing.check_half_closeable_stream(make, clogged)


Way = Literal["sending", "receiving"]
WAYS: list[Way] = ["sending", "receiving"]


async def passes(fault: Fault, way: Way, chunks: list[bytes]) -> list[tuple[float, bytes]]:
    """Send the chunks, the fault being in their way at the sender or at the receiver: what arrives when."""
    faulty, plain = faulty_pipe(fault)
    sender, receiver = (faulty, plain) if way == "sending" else (plain, faulty)
    found: list[tuple[float, bytes]] = []
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def receive() -> None:
            found.extend(await arrivals(receiver))

        for chunk in chunks:
            await trio.testing.wait_all_tasks_blocked()
            await sender.send_all(chunk)
        await trio.testing.wait_all_tasks_blocked()
        await sender.send_eof()
    return found


@pytest.mark.parametrize("way", WAYS)
async def test_delay(way: Way, autojump_clock: Clock) -> None:
    """Each chunk comes `seconds` later, and so does the end."""
    assert await passes(Delay(0.5), way, [b"one"]) == [(0.5, b"one"), (1.0, b"")]


@pytest.mark.parametrize("way", WAYS)
async def test_trickle(way: Way, autojump_clock: Clock) -> None:
    """Two bytes now, two each second."""
    found = await passes(Trickle(2, interval=1), way, [b"12345"])
    assert found == [(0, b"12"), (1, b"34"), (2, b"5"), (3, b"")]


@pytest.mark.parametrize("way", WAYS)
async def test_drop(way: Way, autojump_clock: Clock) -> None:
    """What follows the third byte is lost, the end as well."""
    assert await passes(Drop(after=3), way, [b"12", b"34", b"56"]) == [(0, b"12"), (0, b"3")]


@pytest.mark.parametrize("fault", [Delay(9), Drop(0), Cut(0), Trickle(1, 9), Freeze(frozen=True), Recorder()])
@pytest.mark.parametrize("way", WAYS)
async def test_a_fault_leaves_the_other_direction_alone(fault: Fault, way: Way, autojump_clock: Clock) -> None:
    """A fault of one direction is not noticed in the other."""
    other: Way = "receiving" if way == "sending" else "sending"
    one_way = type(fault)(**{**settings(fault), "direction": other})
    assert await passes(one_way, way, [b"one"]) == [(0, b"one"), (0, b"")]


def settings(fault: Fault) -> dict[str, object]:
    """What a fault was made with."""
    names = {"seconds", "after", "size", "interval", "frozen"}
    return {name: getattr(fault, name) for name in names if hasattr(fault, name)}


async def test_a_delayed_chunk_survives_an_impatient_reader(autojump_clock: Clock) -> None:
    """Who gives up waiting loses nothing, and does not start the delay again."""
    stream, far = faulty_pipe(Delay(2.5))
    await far.send_all(b"late")
    for _ in range(2):
        with trio.move_on_after(1):
            await stream.receive_some()
    assert await stream.receive_some(3) == b"lat"
    assert trio.current_time() == 2.5
    assert await stream.receive_some() == b"e"
    assert trio.current_time() == 2.5


async def test_drop_now(autojump_clock: Clock) -> None:
    """A switch opens the black hole at once: for what is sent, and for a receive that already waits."""
    drop = Drop()
    stream, far = faulty_pipe(drop)
    await stream.send_all(b"before")
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def receive() -> None:
            assert await never(stream.receive_some)

        await trio.testing.wait_all_tasks_blocked()
        drop.now()
        await stream.send_all(b"after")
        await far.send_all(b"into the void")
        await far.aclose()
    assert far.statistics().received == 0
    assert stream.stream.statistics().sent == 6  # type: ignore[attr-defined]


async def test_a_black_hole_drains(autojump_clock: Clock) -> None:
    """What it swallows does not push back on the sender."""
    stream, far = faulty_pipe(Drop(after=0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.receive_some)
        await far.send_all(bytes(1_000_000))
        far.reset()
        assert await never(trio.sleep_forever)
        nursery.cancel_scope.cancel()
    assert trio.current_time() == 3600


@pytest.mark.parametrize(("size", "raises"), [(9, False), (10, False), (11, True)])
async def test_cut_while_sending(size: int, raises: bool, autojump_clock: Clock) -> None:
    """Exactly ten bytes arrive, then both sides find the connection broken."""
    stream, far = faulty_pipe(Cut(after=10))
    with pytest.raises(trio.BrokenResourceError) if raises else nullcontext():
        await stream.send_all(bytes(size))
    with pytest.raises(trio.BrokenResourceError):
        await stream.send_all(bytes(2))
    assert await far.receive_some() == bytes(10)
    for attempt in (far.receive_some, stream.receive_some):
        with pytest.raises(trio.BrokenResourceError):
            await attempt()


async def test_cut_while_receiving(autojump_clock: Clock) -> None:
    """The tenth byte is handed out, the eleventh never; a sender that waits at the time is broken too."""
    here, far = memory_pipe(4)
    stream = FaultyStream(here, Cut(after=10, direction="receiving"))
    received = b""
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def send_too_much() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await stream.send_all(bytes(5))

        @nursery.start_soon
        async def far_side() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await far.send_all(bytes(20))

        with pytest.raises(trio.BrokenResourceError):
            while True:
                received += await stream.receive_some()
    assert received == bytes(10)


async def test_a_receive_that_ends_at_the_cut_resets_at_once(autojump_clock: Clock) -> None:
    """The far side learns of the cut right away, and what had passed is brought home through the other faults."""
    stream, far = faulty_pipe(Delay(1, direction="receiving"), Cut(after=4))
    await far.send_all(b"12345")
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def far_side() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await far.receive_some()
            assert trio.current_time() == 0

        assert await stamped(stream) == (1, b"1234")


async def test_a_reset_ends_an_operation_inside_a_fault(autojump_clock: Clock) -> None:
    """`reset()` reaches a task that waits in a fault, as well as the far side."""
    stream, far = faulty_pipe(Freeze(frozen=True))
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def receive() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()

        await trio.testing.wait_all_tasks_blocked()
        await stream.reset()
    with pytest.raises(trio.BrokenResourceError):
        await far.receive_some()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda pipe: FaultyStream(pipe),
        lambda pipe: trio.SSLStream(pipe, ssl.create_default_context(), server_hostname="example.org"),
    ],
)
async def test_a_reset_goes_through_to_the_wire(wrap: Callable[[Pipe], trio.abc.Stream]) -> None:
    """Whatever stands between the faults and the wire, the far side gets a reset, not an end."""
    here, far = memory_pipe()
    await FaultyStream(wrap(here)).reset()
    with pytest.raises(trio.BrokenResourceError):
        await far.receive_some()


async def test_a_cut_resets_a_real_socket() -> None:
    """Over TCP the far side gets a reset, not an end."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        client = await trio.testing.open_stream_to_socket_listener(listener)
        server = await listener.accept()
        async with server, FaultyStream(client, Cut(after=2)) as stream:
            await stream.send_all(b"12")
            with pytest.raises(trio.BrokenResourceError):
                while await server.receive_some():
                    pass


async def test_freeze_and_thaw(autojump_clock: Clock) -> None:
    """Nothing passes while it is frozen, nothing is lost, and what already waited to receive is stalled too."""
    freeze = Freeze()
    stream, far = faulty_pipe(freeze)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def receive() -> None:
            assert await stamped(stream) == (5, b"stalled")

        await trio.testing.wait_all_tasks_blocked()
        freeze.freeze()
        await far.send_all(b"stalled")

        @nursery.start_soon
        async def send() -> None:
            await stream.send_all(b"later")
            assert trio.current_time() == 5

        await trio.sleep(5)
        freeze.thaw()
        assert await stamped(far) == (5, b"later")


async def test_frozen_again(autojump_clock: Clock) -> None:
    """A second freeze stalls as the first did."""
    freeze = Freeze()
    stream, far = faulty_pipe(freeze)
    await far.send_all(b"x")
    for _ in range(2):
        freeze.freeze()
        assert await never(stream.receive_some)
        freeze.thaw()
    assert await stamped(stream) == (7200, b"x")


async def test_wide_items_are_counted_in_bytes(autojump_clock: Clock) -> None:
    """To a fault, a memoryview of larger items is the bytes that it is."""
    stream, far = faulty_pipe(Drop(after=6))
    await stream.send_all(memoryview(b"12345678").cast("I"))
    assert await far.receive_some() == b"123456"


async def test_one_freeze_for_many_streams(autojump_clock: Clock) -> None:
    """A switch that is given to several streams acts on all of them, and each keeps its own bytes."""
    freeze = Freeze(frozen=True)
    pairs = [faulty_pipe(freeze) for _ in range(3)]
    for number, (_, far) in enumerate(pairs):
        await far.send_all(b"%d" % number)
    for stream, _ in pairs:
        assert await never(stream.receive_some)
    freeze.thaw()
    assert [await stream.receive_some() for stream, _ in pairs] == [b"0", b"1", b"2"]


async def test_a_fault_counts_for_each_stream(autojump_clock: Clock) -> None:
    """One `Drop` given to two streams lets each pass its own bytes."""
    drop = Drop(after=1)
    for stream, far in [faulty_pipe(drop), faulty_pipe(drop)]:
        await stream.send_all(b"12")
        assert await far.receive_some() == b"1"


@pytest.mark.parametrize("fault", [Freeze(frozen=True), Delay(9), Drop(after=0, direction="receiving")])
async def test_closing_wakes_who_waits_in_a_fault(fault: Fault, autojump_clock: Clock) -> None:
    """`aclose` gives ClosedResourceError to a task that no byte would ever wake."""
    stream, far = faulty_pipe(fault)
    await far.send_all(b"x")
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def receive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_some()

        await trio.testing.wait_all_tasks_blocked()
        await stream.aclose()
    assert trio.current_time() == 0


async def test_two_tasks_in_a_fault_collide(autojump_clock: Clock) -> None:
    """A second sender is told so although the first has not reached the stream inside."""
    stream, _ = faulty_pipe(Freeze(frozen=True))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, b"first")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await stream.send_all(b"second")
        nursery.cancel_scope.cancel()


async def test_the_recorder(autojump_clock: Clock) -> None:
    """Each chunk with its time and direction; the end is none."""
    recorder = Recorder()
    stream, far = faulty_pipe(recorder, Delay(1))
    await stream.send_all(b"ping")
    await far.send_all(b"pong!")
    await stream.receive_some()
    await far.aclose()
    await stream.receive_some()
    assert recorder.passages == [Passage(0, "sending", b"ping"), Passage(2, "receiving", b"pong!")]
    assert (recorder.sent, recorder.bytes_sent) == ([b"ping"], 4)
    assert (recorder.received, recorder.bytes_received) == ([b"pong!"], 5)
    recorder.clear()
    assert recorder.sent == []


async def test_the_order_of_faults(autojump_clock: Clock) -> None:
    """The last fault is the nearest to the wire: a recorder sees what those before it let through."""
    outer, inner = Recorder(), Recorder()
    stream, _ = faulty_pipe(outer, Drop(after=2), inner)
    await stream.send_all(b"123")
    assert (outer.sent, inner.sent) == ([b"123"], [b"12"])


async def test_a_fault_of_ones_own(autojump_clock: Clock) -> None:
    """A subclass of Fault wraps a direction."""

    class Shout(Fault):
        def receiving(
            self, receive: Callable[[int | None], Awaitable[bytes]], reset: Callable[[], Awaitable[None]]
        ) -> Callable[[int | None], Awaitable[bytes]]:
            async def shouting(max_bytes: int | None) -> bytes:
                return (await receive(max_bytes)).upper()

            return shouting

    stream, far = faulty_pipe(Shout())
    await far.send_all(b"hello")
    assert await stream.receive_some() == b"HELLO"


async def test_no_half_close_where_there_is_none() -> None:
    """`send_eof` over a stream that cannot be half closed is an error that says so."""

    class Whole(trio.abc.Stream):
        async def send_all(self, data: bytes | bytearray | memoryview) -> None: ...
        async def wait_send_all_might_not_block(self) -> None: ...
        async def receive_some(self, max_bytes: int | None = None) -> bytes: ...  # type: ignore[empty-body]
        async def aclose(self) -> None: ...

    with pytest.raises(TypeError, match="cannot be half closed"):
        await FaultyStream(Whole()).send_eof()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Delay(-1),
        lambda: Drop(after=-1),
        lambda: Cut(after=-1),
        lambda: Trickle(0, interval=1),
        lambda: Freeze(direction="up"),  # type: ignore[arg-type]
    ],
)
def test_settings_are_checked(make: Callable[[], Fault]) -> None:
    """A setting that makes no sense is a ValueError at once."""
    with pytest.raises(ValueError, match="must be"):
        make()
