"""What happens at the same time, on a virtual clock: races, closing, waiting, ids, and what must not leak between calls."""

from __future__ import annotations

import random
import struct
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from functools import partial
from itertools import combinations_with_replacement
from typing import Any, NamedTuple

import pytest
import trio
import trio.testing
from hypothesis import given, settings, strategies as st
from trio.testing import MockClock

import trio_rpc
from tests.guarantees.kit import Lab, RawClient, never, numbers
from tests.scripted import ScriptedPeer, ScriptedServer, watchdog
from trio_rpc import Heartbeat, PoolLimits, RpcError, ServerLimits, current_call, method
from trio_rpc.testing import Delay, FaultyStream, MemoryListener, Recorder, Trickle, no_leaks, open_loopback
from trio_rpc.wire import (
    CHUNK_SIZE,
    HEADER_SIZE,
    MAX_ID,
    PREFACE,
    ErrorReceived,
    Hello,
    Kind,
    Protocol,
    RequestReceived,
    ResponseReceived,
    Role,
)

QUIET = Heartbeat(interval=None)
STEP = 0.01
RESERVE = 1024
"""A connection retires that many ids before the last."""


class Frame(NamedTuple):
    """One frame, read by its header alone; `end` is where the next one begins."""

    kind: Kind
    id: int
    size: int
    end: int


def frames(data: bytes) -> list[Frame]:
    """All frames in what one side has sent from its first byte on, the last one perhaps incomplete."""
    assert data.startswith(PREFACE)
    end, found = len(PREFACE), []
    while end + HEADER_SIZE <= len(data):
        size, request_id, kind, _ = struct.unpack_from(">IIBB", data, end)
        end += HEADER_SIZE + size
        found.append(Frame(Kind(kind), request_id, size, end))
    return found


# -- cancellations, deadlines and results ------------------------------------------------------------------------------


@pytest.mark.parametrize("cancel_wait", [0.0, 1.0])
async def test_a_cancellation_races_the_response(autojump_clock: MockClock, cancel_wait: float) -> None:
    """S01, Rule 3: at every step around the response's arrival: one outcome, its own value, and no id or place kept."""
    rng = random.Random(1)
    outcomes: list[str] = []

    async def serve(peer: ScriptedPeer) -> None:
        await peer.greet()
        while True:
            event = await peer.event()
            if isinstance(event, RequestReceived):
                for _ in range(rng.randrange(8)):
                    await trio.lowlevel.checkpoint()
                await peer.answer(event, event.id)

    async def call(pool: trio_rpc.Pool, scope: trio.CancelScope) -> None:
        before = len(outcomes)
        with scope:
            value = await pool.call("Lab.echo")
            outcomes.append("value")
            assert value % 2 == 1
            assert value not in values
            values.add(value)
        if scope.cancelled_caught:
            outcomes.append("cancelled")
        assert len(outcomes) == before + 1

    values: set[int] = set()
    async with watchdog(), trio.open_nursery() as nursery:
        limits = PoolLimits(cancel_wait=cancel_wait, max_connections=1)
        async with trio_rpc.open_pool(ScriptedServer(nursery, serve).connect, limits=limits, heartbeat=QUIET) as pool:
            await pool.wait_connected()
            for _ in range(300):
                scope = trio.CancelScope()
                async with trio.open_nursery() as calls:
                    calls.start_soon(call, pool, scope)
                    for _ in range(rng.randrange(16)):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
            await trio.sleep(5)
            stats = pool.statistics()
            assert (stats.in_flight, stats.orphans, stats.waiting, stats.late_replies) == (0, 0, 0, 0)
            assert (stats.connects, stats.lost) == (1, 0)
    assert len(outcomes) == 300
    assert set(outcomes) == {"value", "cancelled"}


async def test_a_deadline_races_the_result(autojump_clock: MockClock) -> None:
    """S02: a value or the caller's own TooSlowError, never both and never neither, with the deadline beside the result."""
    lab, ends = Lab(), []
    async with watchdog(), open_loopback(lab, limits=PoolLimits(max_connections=1)) as pool:
        await pool.wait_connected()
        for number in range(200):
            late = (number - 100) / 1e6 if number % 2 else 0.0
            ends.append("")
            try:
                with trio.fail_after(1 + late):
                    assert await pool.stub(Lab).sleep(1) == "slept"
                    ends[-1] += "value"
            except trio.TooSlowError:
                ends[-1] += "too slow"
            assert lab.running == 0
        assert set(ends) == {"value", "too slow"}
        assert len(lab.log) == 200
        stats = pool.statistics()
        assert (stats.in_flight, stats.orphans, stats.connects, stats.lost) == (0, 0, 1, 0)


# -- ids ---------------------------------------------------------------------------------------------------------------


def begin_ids_at(monkeypatch: pytest.MonkeyPatch, role: Role, last_id: int) -> None:
    """Let a side's connections begin as if this had been the last id that they used."""
    begin = Protocol.__init__

    def begin_late(self: Protocol, its_role: Role, hello: Hello) -> None:
        begin(self, its_role, hello)
        if its_role is role:
            self.last_local_id = last_id

    monkeypatch.setattr(Protocol, "__init__", begin_late)


@pytest.mark.parametrize("boundary", [2**31 - 41, MAX_ID - RESERVE - 40], ids=["2**31", "2**32"])
async def test_callers_do_not_notice_that_ids_run_out(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, boundary: int
) -> None:
    """S04: no id comes twice on a connection; near the last one it retires by itself, with what is under way on it."""
    begin_ids_at(monkeypatch, Role.DIALLER, boundary)
    seen: list[int] = []
    async with watchdog(), no_leaks(), open_loopback(Lab(), limits=PoolLimits(max_connections=1)) as pool:
        stub = pool.stub(Lab)

        async def calls() -> None:
            for _ in range(20):
                seen.append(await stub.call_id())
                assert await stub.total(numbers(3)) == 3
                async with stub.count(3) as items:
                    assert [item async for item in items] == ["0", "1", "2"]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stub.sleep, 100)
            for _ in range(3):
                nursery.start_soon(calls)
        stats = pool.statistics()
        assert (stats.errors, stats.lost, stats.in_flight) == (0, 0, 0)
        if boundary > 2**31:
            assert stats.connects > 5
            assert max(seen) <= MAX_ID
        else:
            assert stats.connects == 1
            assert min(seen) < 2**31 < max(seen)
            assert len(set(seen)) == 60


class Nester(Lab):
    """Calls its caller back, one call after the other, all within one call."""

    @method
    async def ring(self, times: int) -> int:
        back = current_call().peer.stub(Lab)
        return len([await back.echo(number) for number in range(times)])


async def test_a_servers_ids_may_run_out_too(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """S04: its own calls back are as unaware: the connection is replaced, and what is under way on it may still call."""
    begin_ids_at(monkeypatch, Role.ACCEPTOR, MAX_ID - RESERVE - 41)
    async with watchdog(), no_leaks():
        async with open_loopback(Nester(), limits=PoolLimits(max_connections=1), callbacks=Lab()) as pool:
            for _ in range(20):
                assert await pool.stub(Nester).ring(10) == 10
                await trio.sleep(2)
            stats = pool.statistics()
            assert (stats.errors, stats.lost, stats.in_flight) == (0, 0, 0)
            assert stats.connects > 1


# -- what crosses ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def raw_client(lab: Lab, **limits: Any) -> AsyncIterator[RawClient]:
    """A server, and a client that is played by hand, behind its HELLO."""
    listener = MemoryListener()
    async with trio_rpc.open_server(lab, listener, heartbeat=QUIET, limits=ServerLimits(**limits)):
        client = RawClient(await listener.connect())
        await client.greet()
        yield client
        await client.stream.aclose()


async def test_an_id_in_use_is_not_used_again(autojump_clock: MockClock) -> None:
    """S06: the second request with it closes the connection, and the handler has run once."""
    lab = Lab()
    async with raw_client(lab) as client:
        request = client.request("Lab.sleep", 60)
        await client.send(request)
        await trio.testing.wait_all_tasks_blocked()
        await client.send(request)
        assert await client.closed()
        await trio.testing.wait_all_tasks_blocked()
        assert (lab.log, trio.current_time()) == ([("ended", 0)], 0)


async def test_a_cancellation_of_a_finished_call_says_nothing(autojump_clock: MockClock) -> None:
    """S07: it has crossed the answer, as any honest client's may: it is ignored, however often, and is no fault."""
    async with raw_client(Lab()) as client:
        await client.send(client.request("Lab.echo", 1))
        await client.expect(ResponseReceived)
        for _ in range(50):
            await client.send(client.request("Lab.echo", 1), client.protocol.cancel(client.protocol.last_local_id, 1))
            await client.send(client.protocol.cancel(1, 1))
            assert isinstance(await client.event(), ResponseReceived | ErrorReceived)
        await client.send(client.request("Lab.echo", 2))
        await client.expect(ResponseReceived)


Step = tuple[str, int, int]
"""A shape, when it begins, and after how long it is cancelled, in steps of the line."""
STEPS = st.tuples(
    st.sampled_from(["sleep", "large", "total", "doubled", "count"]), st.integers(0, 12), st.integers(0, 8)
)


@given(st.lists(STEPS, min_size=1, max_size=8), st.sampled_from([100, 1000, 20_000]))
@settings(max_examples=60)
def test_nothing_overtakes_its_request(steps: list[Step], at_once: int) -> None:
    """S08, S09: read from the bytes: a call that was taken back left none, and no frame comes before its request."""
    trio.run(cancel_on_a_slow_line, steps, at_once, clock=MockClock(autojump_threshold=0))


async def cancel_on_a_slow_line(steps: list[Step], at_once: int) -> None:
    """Live through these calls on a line that takes some bytes at a time, and look at what the client has sent."""
    recorder, lab, listener = Recorder(), Lab(), MemoryListener(capacity=100)
    slow = Trickle(at_once, STEP, direction="sending")
    listener.wrap = lambda stream: FaultyStream(stream, slow, recorder)
    async with watchdog(), trio_rpc.open_server(lab, listener, heartbeat=QUIET) as server:
        async with trio_rpc.open_pool(
            listener.connect, heartbeat=QUIET, limits=PoolLimits(max_connections=1, cancel_wait=60)
        ) as pool:
            await pool.wait_connected()
            async with trio.open_nursery() as nursery:
                for step in steps:
                    nursery.start_soon(cancelled_call, pool.stub(Lab), step)
            assert await pool.stub(Lab).echo("alive") == "alive"
            stats = pool.statistics()
            assert (stats.in_flight, stats.orphans, stats.lost, stats.connects) == (0, 0, 0, 1)
        served = server.statistics().served
    sent = frames(b"".join(recorder.sent))
    requests = [frame.id for frame in sent if frame.kind is Kind.REQUEST]
    assert len(requests) == len(set(requests)) == served
    begun, cancelled = {0}, set()
    for frame in sent:
        if frame.kind is Kind.REQUEST:
            begun.add(frame.id)
        assert frame.id in begun
        if frame.kind is Kind.CANCEL:
            assert frame.id not in cancelled
            cancelled.add(frame.id)


async def cancelled_call(stub: Lab, step: Step) -> None:
    """One call, which is cancelled in the middle of something."""
    shape, begins, lasts = step
    await trio.sleep(begins * STEP)
    with trio.move_on_after(lasts * STEP + STEP / 2):
        match shape:
            case "sleep":
                await stub.sleep(3 * STEP)
            case "large":
                await stub.echo("x" * 50_000)
            case "total":
                await stub.total(numbers(100))
            case "doubled":
                async with stub.doubled(never()) as items:
                    await items.receive()
            case _:
                async with stub.count() as items:
                    await items.receive()


async def test_what_arrives_as_its_connection_ends_takes_no_place(autojump_clock: MockClock) -> None:
    """R10, Rule 8: a request in the very moment in which its sender is given up is not begun, and holds nothing for
    ever.
    """
    listener = MemoryListener()
    beat = Heartbeat(interval=1, timeout=1)
    async with trio_rpc.open_server(Lab(), listener, heartbeat=beat) as server:
        for number in range(60):
            client = RawClient(await listener.connect())
            await client.greet()
            await trio.sleep(2)
            for _ in range(number % 6):
                await trio.lowlevel.checkpoint()
            with suppress(trio.BrokenResourceError):
                await client.send(client.request("Lab.sleep", 1))
            await client.stream.aclose()
            await trio.sleep(5)
            assert (server.statistics().in_flight, server.statistics().connections) == (0, 0)
        assert 0 < server.statistics().evicted < 60


# -- closing -----------------------------------------------------------------------------------------------------------


class Site:
    """A server and a pool over memory, and the ways in which they can come to their end."""

    def __init__(self, listener: MemoryListener) -> None:
        self.listener = listener
        self.scope = trio.CancelScope()
        self.server: trio_rpc.Server
        self.pool: trio_rpc.Pool

    async def open(self, nursery: trio.Nursery) -> None:
        """Begin with both, in a nursery."""
        await nursery.start(self._serve)
        self.pool = await nursery.start(partial(trio_rpc.run_pool, self.listener.connect, heartbeat=QUIET))

    async def _serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        with self.scope:
            async with trio_rpc.open_server(Lab(), self.listener, heartbeat=QUIET) as self.server:
                task_status.started()
                await trio.sleep_forever()

    async def end(self, how: str) -> None:
        """One side closes, drains, is cancelled, or loses its transport."""
        match how:
            case "pool closes":
                await self.pool.aclose()
            case "pool drains":
                await self.pool.drain(1)
            case "server drains":
                await self.server.drain(1)
            case "server is cancelled":
                self.scope.cancel()
            case _:
                for stream in self.listener.connections:
                    await stream.reset()  # type: ignore[attr-defined]


ENDS = ["pool closes", "pool drains", "server drains", "server is cancelled", "reset"]


@pytest.mark.parametrize("state", ["connecting", "idle", "busy", "draining"])
@pytest.mark.parametrize(("one", "other"), [*combinations_with_replacement(ENDS, 2)])
async def test_both_sides_end_at_once(autojump_clock: MockClock, one: str, other: str, state: str) -> None:
    """S10: at the same moment, while connecting or in a drain, and once more: nothing hangs, and nothing is left."""
    async with watchdog(), no_leaks(), trio.open_nursery() as nursery:
        fault = Delay(0.5 if state == "connecting" else 0.0)
        site = Site(MemoryListener(wrap=lambda stream: FaultyStream(stream, fault)))
        await site.open(nursery)
        outcomes: list[object] = []
        if state != "connecting":
            await site.pool.wait_connected()
        for _ in range(3 * (state != "idle")):
            nursery.start_soon(one_outcome, site.pool, outcomes)
        await trio.sleep(0.3)
        if state == "draining":
            nursery.start_soon(site.end, "server drains")
            await trio.sleep(0.3)
        began = trio.current_time()
        async with trio.open_nursery() as ends:
            ends.start_soon(site.end, one)
            ends.start_soon(site.end, other)
        for how in (one, other, "pool closes", "server drains"):
            await site.end(how)
        assert trio.current_time() - began < 5
        site.scope.cancel()
    assert len(outcomes) == 3 * (state != "idle")


async def one_outcome(pool: trio_rpc.Pool, outcomes: list[object]) -> None:
    """A call that would take long: what became of it."""
    try:
        outcomes.append(await pool.stub(Lab).sleep(2))
    except RpcError as exc:
        outcomes.append(exc)


# -- calls within calls ------------------------------------------------------------------------------------------------


class There:
    """The server's side of a call that goes to and fro."""

    @method
    async def bounce(self, times: int) -> int:
        back = current_call().peer.stub(Here)
        return 1 + await back.bounce(times - 1) if times else 0


class Here:
    """The client's side of it."""

    def __init__(self) -> None:
        self.pool: trio_rpc.Pool

    @method
    async def bounce(self, times: int) -> int:
        return 1 + await self.pool.stub(There).bounce(times - 1) if times else 0


@pytest.mark.parametrize("whose", ["the client's", "the server's", "the client's for calls back"])
async def test_calls_within_calls_at_one_place(autojump_clock: MockClock, whose: str) -> None:
    """S16: there and back fits into one place each way; once more does not, and is told in a bounded time: no deadlock."""
    here = Here()
    server_limits = ServerLimits(max_in_flight=1) if whose == "the server's" else ServerLimits()
    limits = PoolLimits(max_connections=1, acquire_timeout=3, max_in_flight=256 if whose == "the server's" else 1)
    async with watchdog(), open_loopback(There(), callbacks=here, limits=limits, server_limits=server_limits) as pool:
        here.pool = pool
        assert await pool.stub(There).bounce(1) == 1
        began = trio.current_time()
        with pytest.raises(trio_rpc.RemoteError):
            await pool.stub(There).bounce(2)
        assert trio.current_time() - began == pytest.approx(3)
        with trio.move_on_after(1) as scope:
            await pool.stub(There).bounce(2)
        assert scope.cancelled_caught
        assert await pool.stub(There).bounce(1) == 1
        stats = pool.statistics()
        assert (stats.in_flight, stats.waiting, stats.serving, stats.orphans, stats.lost) == (0, 0, 0, 0, 0)


# -- streams -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leaves", ["the block", "by an error", "by its scope"])
async def test_a_consumer_that_stops_early_is_gone_in_a_round_trip(autojump_clock: MockClock, leaves: str) -> None:
    """S17: half a round trip later its producer is told, and has ended; the other half brings the word of that back."""
    lab = Lab()
    async with watchdog(), open_loopback(lab, wrap=lambda stream: FaultyStream(stream, Delay(0.5))) as pool:
        await pool.wait_connected()
        await pool.stub(Lab).echo(1)
        left = 0.0
        with trio.CancelScope() as scope:
            try:
                async with pool.stub(Lab).count() as items:
                    assert await items.receive() == "0"
                    left = trio.current_time()
                    if leaves == "by an error":
                        raise KeyError("mine")
                    if leaves == "by its scope":
                        scope.cancel()
                        await items.receive()
            except KeyError:
                assert leaves == "by an error"
        assert scope.cancelled_caught == (leaves == "by its scope")
        assert lab.words[-1] == "cleaned"
        assert lab.log[-1][1] == pytest.approx(left + 0.5)
        assert trio.current_time() == pytest.approx(left + 1)


class Halting(Lab):
    @method(raises=[ValueError])
    async def halts(self, after: int) -> AsyncGenerator[int, None]:
        for number in range(after):
            yield number
        raise ValueError("here it ends")


@pytest.mark.parametrize("after", [0, 1, 7, 8, 9, 1000])
async def test_a_producer_fails_after_so_many_items(autojump_clock: MockClock, after: int) -> None:
    """S17: its consumer gets each of them, around the window's size as well, and then the error, once."""
    limits = PoolLimits(stream_window_items=8)
    async with watchdog(), open_loopback(Halting(), limits=limits) as pool:
        received = []
        with pytest.raises(ValueError, match="here it ends"):
            async with pool.stub(Halting).halts(after) as items:
                async for item in items:
                    received.append(item)
                    await trio.lowlevel.checkpoint()
        assert received == list(range(after))


MIB = 1024 * 1024
PIPE = 64 * 1024


class Bulky(Lab):
    @method
    async def text(self, size: int) -> str:
        return "x" * size


async def test_tiny_calls_pass_large_responses(autojump_clock: MockClock) -> None:
    """S19: beside seven responses of 1 MiB at a time, a tiny one waits for three chunks of them at most.

    Beyond `max_queued_bytes` of results that are not read yet, nothing further is begun, tiny or not.
    """
    recorder, listener = Recorder(direction="receiving"), MemoryListener(capacity=PIPE)
    listener.wrap = lambda stream: FaultyStream(stream, Delay(STEP, direction="receiving"), recorder)
    asked: list[int] = []

    async def large(stub: Bulky) -> None:
        while len(asked) < 100:
            assert len(await stub.text(MIB)) == MIB

    async with watchdog(), trio_rpc.open_server(Bulky(), listener, heartbeat=QUIET):
        limits = PoolLimits(max_connections=1)
        async with trio_rpc.open_pool(listener.connect, heartbeat=QUIET, limits=limits) as pool:
            stub = pool.stub(Bulky)
            async with trio.open_nursery() as nursery:
                for _ in range(7):
                    nursery.start_soon(large, stub)
                    await trio.sleep(3 * STEP)
                for _ in range(100):
                    await trio.sleep(2 * STEP)
                    asked.append(recorder.bytes_received)
                    assert await stub.echo("tiny") == "tiny"
    answers = [
        frame for frame in frames(b"".join(recorder.received)) if frame.kind is Kind.RESPONSE and frame.size < 99
    ]
    passed = [frame.end - at for frame, at in zip(answers, asked, strict=True)]
    on_the_line = 2 * PIPE  # In the pipe, and in the hand of who delays it.
    assert max(passed) < 3 * (CHUNK_SIZE + HEADER_SIZE) + on_the_line


# -- what stays with its call ------------------------------------------------------------------------------------------

WHO: ContextVar[str] = ContextVar("WHO", default="nobody")
SECRET = "because-of-7261"


class Watcher(Lab):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    @method
    async def who(self, name: str, wait: float) -> str:
        """Whom this handler finds in its context; it leaves another name there."""
        found = WHO.get()
        WHO.set(name)
        if wait:
            await trio.sleep(wait)
        return f"{found}, {WHO.get()}"

    @method
    async def wait(self) -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled as exc:
            self.seen.append(f"{exc!r} {exc.reason}")
            raise


async def test_what_is_a_calls_own_stays_with_it(autojump_clock: MockClock) -> None:
    """S20: no variable of a caller, of a handler or of an earlier call is seen by another one; nor why it was
    cancelled.
    """
    recorder, watcher = Recorder(), Watcher()
    async with watchdog(), open_loopback(watcher, wrap=lambda stream: FaultyStream(stream, recorder)) as pool:
        stub = pool.stub(Watcher)

        async def call(name: str, wait: float) -> None:
            WHO.set(f"the caller of {name}")
            assert await stub.who(name, wait) == f"nobody, {name}"
            assert WHO.get() == f"the caller of {name}"

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(call, str(number), number % 3)
        assert WHO.get() == "nobody"
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stub.wait)
                await trio.sleep(1)
                scope.cancel(reason=SECRET)
        with pytest.raises(trio.TooSlowError) as caught, trio.fail_after(1):
            await stub.wait()
        assert SECRET not in repr(caught.value.__cause__) + repr(caught.value.__context__)
        assert len(watcher.seen) == 2
        assert SECRET not in "".join(watcher.seen)
        assert SECRET.encode() not in b"".join(recorder.sent)
        assert await stub.echo(1) == 1
