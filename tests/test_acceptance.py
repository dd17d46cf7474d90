"""The acceptance list: gRPC's interop cases, adapted, each on both codecs, plain and under TLS, over real sockets.

A case carries its number and name in the list. Its docstring says what gRPC's case is, and what ours is. What is shown
by other tests, as it needs hours of virtual time, names them in SHOWN_BY; what has no counterpart says why in NOT_OURS,
and the host name of 42 where there is no TLS.
"""

from __future__ import annotations

import ast
import itertools
import logging
import random
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
from attrs import frozen

import trio_rpc
from tests.acceptance_hostility import HOSTILE, a_reply, a_session, fragments, mutate, short_text
from tests.acceptance_service import Ask, Interop, Words, pattern
from tests.acceptance_worlds import HOST, HandPeer, Transport, World, octets, open_world, raw_frame
from trio_rpc import Backoff, Code, Heartbeat, PoolLimits, RpcError, ServerLimits
from trio_rpc.testing import Freeze, Trickle, no_leaks
from trio_rpc.wire import (
    HEADER_SIZE,
    CreditReceived,
    ErrorReceived,
    Flag,
    GoAwayReceived,
    Kind,
    Outcome,
    RequestReceived,
)

T = TypeVar("T")

CODECS = ("msgpack", "json")
KIB = 1024
LAST_NUMBER = 67
SPECIAL_TEXT = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"

Scenario = Callable[[World], Awaitable[None]]


@frozen
class Item:
    """One case of the list; `options` are those of its world."""

    number: int
    name: str
    scenario: Scenario
    transports: Sequence[Transport]
    options: Mapping[str, Any]


ITEMS: list[Item] = []


def item(
    number: int, name: str, *, transports: Sequence[Transport] = ("tcp", "tls"), **options: Any
) -> Callable[[Scenario], Scenario]:
    """Put a scenario on the list."""

    def enter(scenario: Scenario) -> Scenario:
        ITEMS.append(Item(number, name, scenario, transports, options))
        return scenario

    return enter


async def each(values: Iterable[T]) -> AsyncGenerator[T, None]:
    """These, as a stream."""
    for value in values:
        yield value


async def each_and_wait(*values: T) -> AsyncGenerator[T, None]:
    """These, and never the end."""
    for value in values:
        yield value
    await trio.sleep_forever()


async def collect(items: trio.abc.ReceiveChannel[T]) -> list[T]:
    """All that still comes."""
    return [item async for item in items]


# -- calls of every shape ----------------------------------------------------------------------------------------------


@item(1, "empty_unary")
async def empty_unary(world: World) -> None:
    """gRPC: an empty message each way. Ours: no argument, and None comes back."""
    assert await world.stub.empty() is None  # type: ignore[func-returns-value]


@item(2, "large_unary")
async def large_unary(world: World) -> None:
    """gRPC: 271,828 bytes up, 314,159 down. Ours: the same, exact to the byte; both travel beside the payload."""
    assert await world.stub.exchange(pattern(271_828), 314_159) == pattern(314_159)


@item(5, "client_streaming")
async def client_streaming(world: World) -> None:
    """gRPC: four sizes up, half-close, their sum down. Ours: the same."""
    assert await world.stub.total(each(map(pattern, (27_182, 8, 1_828, 45_904)))) == 74_922


@item(7, "server_streaming")
async def server_streaming(world: World) -> None:
    """gRPC: four sizes asked for, four bodies in that order, status OK. Ours: the same, and EndOfChannel is the OK."""
    sizes = [31_415, 9, 2_653, 58_979]
    async with world.stub.produce(sizes) as bodies:
        assert [await bodies.receive() for _ in sizes] == [pattern(size) for size in sizes]
        with pytest.raises(trio.EndOfChannel):
            await bodies.receive()


@item(9, "ping_pong")
async def ping_pong(world: World) -> None:
    """gRPC: four requests, each sent once the reply before it has come. Ours: the same, from a memory channel."""
    send, asks = trio.open_memory_channel[Ask](0)
    async with world.stub.converse(asks) as replies:
        for up, down in ((27_182, 31_415), (8, 9), (1_828, 2_653), (45_904, 58_979)):
            await send.send(Ask(down, pattern(up)))
            assert await replies.receive() == pattern(down)
        await send.aclose()
        assert await collect(replies) == []
    await asks.aclose()


@item(10, "empty_stream")
async def empty_stream(world: World) -> None:
    """gRPC: open, half-close, no message either way, OK. Ours: the same."""
    async with world.stub.converse(each([])) as replies:
        assert await collect(replies) == []


# -- metadata and status -----------------------------------------------------------------------------------------------

METADATA: dict[str, str | bytes] = {"x-test-initial": "test_initial_metadata_value", "x-test-bin": b"\xab\xab\xab"}


@item(11, "custom_metadata")
async def custom_metadata(world: World) -> None:
    """gRPC: a text key comes back in the head, a binary one in the trailer. Ours: the same on a stream, whose head is
    its first item; a unary reply is one frame and carries both.
    """
    back: dict[str, str | bytes] = {}
    await world.pool.stub(Interop, metadata=METADATA, reply_metadata=back).exchange(b"", 0)
    assert back == METADATA

    back.clear()
    send, asks = trio.open_memory_channel[Ask](0)
    async with world.pool.stub(Interop, metadata=METADATA, reply_metadata=back).converse(asks) as replies:
        await send.send(Ask(1))
        await replies.receive()
        assert back == {"x-test-initial": "test_initial_metadata_value"}
        await send.aclose()
        assert await collect(replies) == []
        assert back == METADATA
    await asks.aclose()


async def fails_with(world: World, text: str) -> None:
    """Both shapes fail with code 2 and exactly this text, after what came before the failure."""
    with pytest.raises(trio_rpc.RemoteError) as unary:
        await world.stub.fail(text)
    with pytest.raises(trio_rpc.RemoteError) as bidi:
        async with world.stub.fail_talking(each_and_wait(text)) as texts:
            assert await texts.receive() == text
            await texts.receive()
    for caught in (unary, bidi):
        assert (caught.value.code, caught.value.message) == (Code.UNKNOWN, text)
        assert caught.value.may_have_run


@item(12, "status_code_and_message")
async def status_code_and_message(world: World) -> None:
    """gRPC: the server answers code 2 with a text, unary and bidi. Ours: the handler raises RemoteError with both."""
    await fails_with(world, "test status message")


@item(13, "special_status_message")
async def special_status_message(world: World) -> None:
    """gRPC: white space and characters in and beyond the BMP stay as they are. Ours: the same, unary and bidi."""
    await fails_with(world, SPECIAL_TEXT)


async def is_unimplemented(call: Callable[[], Awaitable[object]]) -> None:
    """The call is refused with code 12, and surely has not run."""
    with pytest.raises(trio_rpc.Unimplemented) as caught:
        await call()
    assert caught.value.code is Code.UNIMPLEMENTED
    assert not caught.value.may_have_run


@item(14, "unimplemented_method")
async def unimplemented_method(world: World) -> None:
    """gRPC: status 12. Ours: Unimplemented, also for a method that the contract declares and the server left so."""
    await is_unimplemented(lambda: world.pool.call("Interop.missing"))
    await is_unimplemented(world.stub.undone)


@item(15, "unimplemented_service")
async def unimplemented_service(world: World) -> None:
    """gRPC: status 12. Ours: Unimplemented."""
    await is_unimplemented(lambda: world.pool.call("Missing.empty"))


# -- cancellation and deadlines ----------------------------------------------------------------------------------------


@item(16, "cancel_after_begin")
async def cancel_after_begin(world: World) -> None:
    """gRPC: cancelled before any request, status 1. Ours: Trio's own Cancelled goes on, after the handler has seen one;
    on the wire the call ends with code 1.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.stub.total, each_and_wait())
        await world.until(lambda: world.service.running)
        nursery.cancel_scope.cancel()
    assert world.service.endings == ["Cancelled"]

    async with world.hand_client() as peer:
        request_id, request = peer.request("total", streaming=True)
        await peer.send(request)
        await world.until(lambda: world.service.running)
        await peer.send(peer.protocol.cancel(request_id, 1.0))
        error = await peer.expect(ErrorReceived)
    assert (error.code, error.outcome, error.started) == (Code.CANCELLED, Outcome.CANCELLED, True)


@item(17, "cancel_after_first_response")
async def cancel_after_first_response(world: World) -> None:
    """gRPC: a bidi call, cancelled after one reply, status 1. Ours: as 16; and while the handler's end is not
    acknowledged, its id and its place stay taken.
    """
    with trio.CancelScope() as scope:
        async with world.stub.converse(each_and_wait(Ask(31_415, pattern(27_182)))) as replies:
            assert await replies.receive() == pattern(31_415)
            scope.cancel()
            await replies.receive()
    assert scope.cancelled_caught
    assert world.service.endings == ["Cancelled"]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.pool.stub(Interop, cancel_wait=0).hold, True)
        await world.until(lambda: world.service.running)
        nursery.cancel_scope.cancel()
    assert (world.pool.statistics().orphans, world.pool.statistics().in_flight) == (1, 1)
    for _ in range(3):
        await world.stub.exchange(b"", 0)
    assert len(set(world.service.ids)) == len(world.service.ids)
    world.service.release.set()
    await world.until(lambda: world.pool.statistics().in_flight == 0)
    assert world.pool.statistics().orphans == 0


@item(18, "timeout_on_sleeping_server")
async def timeout_on_sleeping_server(world: World) -> None:
    """gRPC: a deadline of 1 ms, the server sleeps, status 4. Ours: Trio's TooSlowError; with a deadline long enough for
    the handler to begin, it is cancelled by it, and the server's own answer is code 4.
    """
    with pytest.raises(trio.TooSlowError), trio.fail_after(0.001):
        await world.stub.hold()
    world.service.endings.clear()
    with pytest.raises(trio.TooSlowError), trio.fail_after(0.4):
        await world.stub.hold()
    assert world.service.endings == ["Cancelled"]

    async with world.hand_client() as peer:
        await peer.send(peer.request("hold", timeout=0.1)[1])
        error = await peer.expect(ErrorReceived)
    assert (error.code, error.outcome, error.started) == (Code.DEADLINE_EXCEEDED, Outcome.EXPIRED, True)


@item(37, "cancel_before_start")
async def cancel_before_start(world: World) -> None:
    """gRPC: a call cancelled before it starts never reaches the server. Ours: the same; nothing is sent."""
    served = world.server.statistics().served
    with trio.CancelScope() as scope:
        scope.cancel()
        await world.stub.exchange(b"", 0)
    assert scope.cancelled_caught
    await world.stub.exchange(b"", 0)
    assert world.server.statistics().served == served + 1


@item(38, "cancel_after_first_send")
async def cancel_after_first_send(world: World) -> None:
    """gRPC: cancelled when one message has been sent. Ours: the handler has taken one item, and sees Cancelled."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.stub.total, each_and_wait(b"first"))
        await world.until(lambda: world.service.taken)
        nursery.cancel_scope.cancel()
    assert (world.service.taken, world.service.endings) == (1, ["Cancelled"])


@item(39, "cancel_after_head")
async def cancel_after_head(world: World) -> None:
    """gRPC: cancelled when the reply's head has arrived. Ours: a head has no frame of its own, it comes with the first
    item; the block is left there, and joins the handler.
    """
    back: dict[str, str | bytes] = {}
    with trio.CancelScope() as scope:
        stub = world.pool.stub(Interop, metadata={"head": "here"}, reply_metadata=back)
        async with stub.converse(each_and_wait(Ask(9))) as replies:
            await replies.receive()
            assert back == {"head": "here"}
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert world.service.endings == ["Cancelled"]


@item(40, "timeout_not_reached")
async def timeout_not_reached(world: World) -> None:
    """gRPC: a deadline is set, and the call is done before it. Ours: the same, and that deadline does not strike what
    the same connection serves afterwards.
    """
    with trio.fail_after(0.3):
        await world.stub.exchange(b"", 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.stub.hold)
        await trio.sleep(0.5)
        world.service.release.set()
    assert world.service.endings == ["returned", "returned"]


@item(
    41,
    "simultaneous_timeouts",
    limits=PoolLimits(max_connections=1, max_in_flight=2000),
    server_limits=ServerLimits(max_in_flight=2000),
)
async def simultaneous_timeouts(world: World) -> None:
    """gRPC: thousands of deadlines expire at once on one channel. Ours: 2,000 on one connection; every caller gets its
    own scope back, every handler ends, and the connection goes on.
    """
    deadline = trio.current_time() + 3.0
    late: list[int] = []

    async def wait_in_vain(number: int) -> None:
        with trio.CancelScope(deadline=deadline) as scope:
            await world.stub.hold()
        assert scope.cancelled_caught
        late.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(2000):
            nursery.start_soon(wait_in_vain, number)
    assert len(late) == 2000
    await world.until(lambda: world.service.running == world.pool.statistics().in_flight == 0)
    assert set(world.service.endings) == {"Cancelled"}
    assert world.service.peak > 256  # All 2,000, unless the machine is too slow to begin them in time.
    assert await world.stub.exchange(b"", 9) == pattern(9)
    assert world.pool.statistics().connects == 1


@item(63, "expired_on_arrival")
async def expired_on_arrival(world: World) -> None:
    """gRPC: a request whose deadline has passed is not handled. Ours: the handler never starts, and the answer says so;
    a caller that is late already does not even send.
    """
    async with world.hand_client() as peer:
        await peer.send(peer.request("hold", timeout=-1.0)[1])
        error = await peer.expect(ErrorReceived)
    assert (error.code, error.outcome, error.started) == (Code.DEADLINE_EXCEEDED, Outcome.EXPIRED, False)

    served = world.server.statistics().served
    with pytest.raises(trio.TooSlowError), trio.fail_at(trio.current_time() - 1):
        await world.stub.hold()
    await world.stub.empty()
    assert world.server.statistics().served == served + 1
    assert world.service.begun == 0


@item(64, "nested_deadline")
async def nested_deadline(world: World) -> None:
    """gRPC: a nested call gets what is left of the deadline, not the original. Ours: the same, with nothing said."""
    with trio.fail_after(5):
        left = await world.stub.relay(0.5)
    assert 2 < left < 4.75  # 4.5 and the slack of two hops, which is 0.05 s each unless the machine stumbles.


# -- flow --------------------------------------------------------------------------------------------------------------


@item(
    19,
    "concurrent_large_unary",
    limits=PoolLimits(max_connections=1, max_in_flight=1000),
    server_limits=ServerLimits(max_in_flight=1000),
)
async def concurrent_large_unary(world: World) -> None:
    """gRPC: 1,000 large calls in parallel on one channel. Ours: a tenth of the size, each of its own, all correct."""
    correct: list[int] = []

    async def one(number: int) -> None:
        assert await world.stub.exchange(pattern(27_182 - number), 31_415 - number) == pattern(31_415 - number)
        correct.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(1000):
            nursery.start_soon(one, number)
    assert sorted(correct) == list(range(1000))
    assert world.pool.statistics().connects == 1


@item(20, "client_pushback")
async def client_pushback(world: World) -> None:
    """gRPC: a sender faster than the reader blocks. Ours: the caller's generator stands still once the window of 64 KiB
    and one batch are under way, and goes on when the handler takes items.
    """
    made = 0

    async def bodies() -> AsyncGenerator[bytes, None]:
        nonlocal made
        for _ in range(1000):
            made += 1
            yield pattern(KIB)

    world.service.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        results: list[int] = []

        async def call() -> None:
            results.append(await world.stub.total(bodies()))

        nursery.start_soon(call)
        assert await world.standstill(lambda: made) <= 192
        world.service.gate.set()
    assert results == [1000 * KIB]


@item(21, "server_pushback")
async def server_pushback(world: World) -> None:
    """gRPC: the same in the other direction. Ours: the handler's generator stands still until the consumer takes."""
    async with world.stub.produce([KIB] * 1000) as bodies:
        assert await world.standstill(lambda: world.service.made) <= 192
        assert await collect(bodies) == [pattern(KIB)] * 1000


@item(33, "max_streams", server_limits=ServerLimits(max_in_flight=1), limits=PoolLimits(max_connections=1))
async def max_streams(world: World) -> None:
    """gRPC: SETTINGS lower the limit to one stream, ten calls succeed one by one. Ours: a limit is said once, in HELLO;
    ten calls at once all succeed by queueing in the pool, and none is refused.
    """
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(world.stub.exchange, b"", 9)
    assert (world.service.begun, world.service.peak) == (10, 1)
    assert world.pool.statistics().queued == 9
    assert world.server.statistics().refused == 0


@item(34, "padding", limits=PoolLimits(stream_window=4 * KIB))
async def padding(world: World) -> None:
    """gRPC: the padding of DATA frames counts for flow control, and must be granted again. Ours: there is no padding;
    what costs credit and is no item is metadata, here 25 windows of it.
    """
    async with world.stub.produce([5] * 100, KIB) as bodies:
        assert await collect(bodies) == [pattern(5)] * 100


async def dribble(peer: HandPeer, count: int, window: int) -> None:
    """Answer with a stream of large items in small fragments, as far as the credit goes."""
    request_id = (await peer.requests("words"))["words"]
    credit = window
    for _ in range(count):
        while credit <= 0:
            credit += (await peer.expect(CreditReceived)).size
        message = octets(peer.items(request_id, "x" * 4 * KIB))
        credit -= len(message) - HEADER_SIZE
        await peer.send(fragments(message, KIB))
    await peer.send(peer.protocol.end(request_id))
    await peer.wait_closed()


@item(35, "no_padding")
async def no_padding(world: World) -> None:
    """gRPC: a reply dribbled in DATA frames of 5 bytes does not use up the window. Ours: items in CHUNK frames of 1 KiB,
    the smallest that the wire allows, over several windows; and a stream that is received 5 bytes, or 1 byte, at a time.
    """
    limits = PoolLimits(stream_window=KIB)
    async with (
        world.hand_server(lambda peer: dribble(peer, 20, KIB)) as target,
        world.open_pool(target, limits=limits) as pool,
        pool.stub(Words).words() as texts,
    ):
        assert await collect(texts) == ["x" * 4 * KIB] * 20

    for size in (5, 1):
        trickle = Trickle(size, 0, direction="receiving")
        async with (
            world.open_pool(partial(world.connect, trickle), limits=limits) as pool,
            pool.stub(Interop).produce([100] * 30) as bodies,
        ):
            assert await collect(bodies) == [pattern(100)] * 30


@item(44, "server_speaks_first")
async def server_speaks_first(world: World) -> None:
    """gRPC: the server replies before the client has sent a message. Ours: an item comes back first, and only then does
    the caller's iterable make its own.
    """
    send, names = trio.open_memory_channel[str](0)
    async with world.stub.greet(names) as lines:
        assert await lines.receive() == "who is there?"
        await send.send("Ada")
        assert await lines.receive() == "hello, Ada"
        await send.aclose()
        assert await collect(lines) == []
    await names.aclose()


# -- endurance ---------------------------------------------------------------------------------------------------------


def grown(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """What there is more of now than before, with both numbers."""
    return {name: (before[name], count) for name, count in after.items() if count > before[name]}


async def mixed_calls(stub: Interop) -> None:
    """A call, a stream left early, and a call cancelled while it runs."""
    assert await stub.exchange(pattern(2_718), 3_141) == pattern(3_141)
    async with stub.produce([100] * 1000) as bodies:
        await bodies.receive()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stub.hold)
        await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


@item(22, "rpc_soak", limits=PoolLimits(max_connections=1))
async def rpc_soak(world: World) -> None:
    """gRPC: many calls on one channel. Ours: 300 of them, a third left early or cancelled; tasks, descriptors and calls
    do not grow, and every call costs one id.
    """
    for _ in range(10):
        await mixed_calls(world.stub)
    before, first = world.footprint(), len(world.service.ids)
    for _ in range(100):
        await mixed_calls(world.stub)
    await world.until(lambda: not grown(before, world.footprint()))
    ids = world.service.ids[first:]
    assert ids == sorted(set(ids))
    assert ids[-1] - ids[0] < 2 * 300
    assert world.pool.statistics().connects == 1


@item(23, "channel_soak")
async def channel_soak(world: World) -> None:
    """gRPC: a new channel for each call. Ours: 60 pools, one after the other; no task or socket stays, on either side."""
    async with world.open_pool() as pool:
        await pool.stub(Interop).empty()
    await world.until(lambda: world.server.statistics().connections == 1)
    before, accepted = world.footprint(), world.server.statistics().accepted
    for _ in range(60):
        async with world.open_pool() as pool:
            await pool.stub(Interop).exchange(pattern(2_718), 3_141)
    await world.until(lambda: not grown(before, world.footprint()))
    assert world.server.statistics().accepted == accepted + 60


@item(24, "long_lived_channel", heartbeat=Heartbeat(0.02, 5), limits=PoolLimits(max_connections=1))
async def long_lived_channel(world: World) -> None:
    """gRPC: a channel lives long, with pauses between calls. Ours: the pauses hold several heartbeats each, and it is
    the same connection after them, with nothing added.
    """
    await world.stub.exchange(b"", 9)
    before = world.footprint()
    for _ in range(8):
        await trio.sleep(0.1)
        assert await world.stub.exchange(b"", 9) == pattern(9)
    await world.until(lambda: not grown(before, world.footprint()))
    assert (world.pool.statistics().connects, world.pool.statistics().lost) == (1, 0)


# -- resets, pings, limits ---------------------------------------------------------------------------------------------


async def reset(world: World, first: Callable[[HandPeer, int], bytes]) -> list[Any]:
    """A stream whose server sends `first` and then ends it; what its consumer got. Neighbour and connection live."""

    async def speak(peer: HandPeer) -> None:
        ids = await peer.requests("words", "word")
        stopped = peer.protocol.error(ids["words"], Code.ABORTED, Outcome.STOPPED, True, "reset")
        await peer.send(first(peer, ids["words"]), stopped, peer.response(ids["word"], "neighbour"))
        await peer.send(peer.response((await peer.requests("word"))["word"], "still here"))
        await peer.wait_closed()

    got: list[Any] = []

    async def neighbour() -> None:
        assert await pool.stub(Words).word() == "neighbour"

    limits = PoolLimits(max_connections=1)
    async with world.hand_server(speak) as target, world.open_pool(target, limits=limits) as pool:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(neighbour)
            with pytest.raises(trio_rpc.RemoteCancelled, match="reset") as caught:
                async with pool.stub(Words).words() as items:
                    async for item in items:
                        got.append(item)  # noqa: PERF401 - what came before the failure counts
        assert (caught.value.code, caught.value.may_have_run) == (Code.ABORTED, True)
        assert await pool.stub(Words).word() == "still here"
        assert (pool.statistics().connects, pool.statistics().lost) == (1, 0)
    return got


@item(29, "rst_after_header")
async def rst_after_header(world: World) -> None:
    """gRPC: RST_STREAM right after the head. Ours: an ERROR frame as the first of the reply; there is no other head."""
    assert await reset(world, lambda _peer, _id: b"") == []


@item(30, "rst_during_data")
async def rst_during_data(world: World) -> None:
    """gRPC: RST_STREAM in the middle of a message. Ours: an ERROR frame where a large item's next chunk should be."""

    def first_half(peer: HandPeer, request_id: int) -> bytes:
        whole = octets(peer.items(request_id, "one")), octets(peer.items(request_id, "x" * 200 * KIB))
        first, chunks = peer.items(request_id, "x" * 200 * KIB)
        assert chunks is not None
        half = first + b"".join(map(bytes, next(chunks)))
        assert len(half) < len(whole[1])
        return whole[0] + half

    assert await reset(world, first_half) == ["one"]


@item(31, "rst_after_data")
async def rst_after_data(world: World) -> None:
    """gRPC: RST_STREAM after the messages and before the status. Ours: the items arrive, then the failure."""
    assert await reset(world, lambda peer, id_: octets(peer.items(id_, "one", "two"))) == ["one", "two"]


@item(32, "ping")
async def ping(world: World) -> None:
    """gRPC: the server pings at four points of a call, none unanswered at its end. Ours: the same, from either side."""

    async def speak(peer: HandPeer) -> None:
        await peer.ping()
        request_id = (await peer.requests("words"))["words"]
        await peer.ping()
        await peer.send(peer.items(request_id, "one"))
        await peer.ping()
        await peer.send(peer.items(request_id, "two"), peer.protocol.end(request_id))
        await peer.ping()
        await peer.take_pongs()
        answered.set()
        await peer.wait_closed()

    answered = trio.Event()
    async with world.hand_server(speak) as target, world.open_pool(target) as pool:
        async with pool.stub(Words).words() as items:
            assert await collect(items) == ["one", "two"]
        await answered.wait()

    async with world.hand_client() as peer:
        await peer.ping()
        request_id, request = peer.request("converse", streaming=True)
        await peer.send(request)
        await peer.ping()
        await peer.send(peer.items(request_id, {"size": 9}))
        await peer.ping()
        await peer.send(peer.protocol.end(request_id))
        await peer.ping()
        await peer.take_pongs()


@item(42, "wrong_host_name", transports=["tls"])
async def wrong_host_name(world: World) -> None:
    """gRPC: a certificate for another host is refused. Ours: at once and for good, with the reason; on plain TCP nobody
    proves a name, so there is nothing to run there.
    """
    target = world.server.addresses[0].replace(HOST, "localhost")
    async with world.open_pool(target) as pool:
        with trio.fail_after(5), pytest.raises(trio_rpc.ConnectError, match="localhost") as caught:
            await pool.stub(Interop).empty()
    assert caught.value.permanent
    assert not caught.value.may_have_run
    assert world.service.begun == 0


@item(
    43,
    "large_metadata",
    limits=PoolLimits(max_metadata_size=64 * KIB),
    server_limits=ServerLimits(max_metadata_size=64 * KIB),
)
async def large_metadata(world: World) -> None:
    """gRPC: a metadata value of 63 KiB passes. Ours: once both sides have raised the limit. At the default of 8 KiB it
    is not sent at all, and a peer that sends it nevertheless loses its connection.
    """
    large: dict[str, str | bytes] = {"large": "m" * 63 * KIB}
    back: dict[str, str | bytes] = {}
    await world.pool.stub(Interop, metadata=large, reply_metadata=back).exchange(b"", 0)
    assert back == large

    async with open_world(world.codec, world.transport) as ordinary:
        with pytest.raises(trio_rpc.EncodeError, match="max_metadata_size") as caught:
            await ordinary.pool.stub(Interop, metadata=large).exchange(b"", 0)
        assert (caught.value.code, caught.value.may_have_run) == (Code.RESOURCE_EXHAUSTED, False)
        async with ordinary.hand_client() as peer:
            block = short_text("large") + b"\0" + (63 * KIB).to_bytes(4, "big") + b"m" * 63 * KIB
            request = len(block).to_bytes(4, "big") + block + short_text("Interop.empty") + peer.encode([])
            await peer.send(raw_frame(Kind.REQUEST, 1, request, flags=int(Flag.METADATA)))
            assert "metadata" in (await peer.expect(GoAwayReceived)).message
        await ordinary.stub.empty()


# -- bad peers ---------------------------------------------------------------------------------------------------------

AT_ONCE = PoolLimits(max_connections=1, connect_backoff=Backoff(initial=0), acquire_timeout=5)


async def answer_well(peer: HandPeer) -> None:
    """Serve as one should: each call gets its result, or one item and the end."""
    while True:
        request = await peer.expect(RequestReceived)
        if request.method == "Words.words":
            await peer.send(peer.items(request.id, "good"), peer.protocol.end(request.id))
        else:
            await peer.send(peer.response(request.id, "good"))


async def call_and_stream(pool: trio_rpc.Pool) -> list[object]:
    """The outcome of a call and of a stream at once: anything but an RpcError comes out."""
    words = pool.stub(Words)
    outcomes: dict[str, object] = {}

    async def stream() -> list[str]:
        async with words.words() as items:
            return await collect(items)

    async def note(name: str, call: Callable[[], Awaitable[object]]) -> None:
        try:
            outcomes[name] = await call()
        except RpcError as exc:
            outcomes[name] = exc

    async with trio.open_nursery() as nursery:
        nursery.start_soon(note, "word", words.word)
        nursery.start_soon(note, "words", stream)
    return [outcomes["word"], outcomes["words"]]


async def survives(world: World, evil: Callable[[HandPeer, dict[str, int]], bytes]) -> None:
    """A pool whose server does evil once, and dies, fails its calls with errors of ours; the next ones are well."""
    servers = itertools.count()

    async def speak(peer: HandPeer) -> None:
        if next(servers) == 0:
            await peer.send(evil(peer, await peer.requests("word", "words")))
        else:
            await answer_well(peer)

    async with world.hand_server(speak) as target, world.open_pool(target, limits=AT_ONCE) as pool:
        with trio.fail_after(5):
            for outcome in await call_and_stream(pool):
                # The server had both requests: who cannot tell what became of them must not deny that they ran.
                if isinstance(outcome, trio_rpc.ConnectionLost | trio_rpc.DecodeError):
                    assert outcome.may_have_run
            while await call_and_stream(pool) != ["good", ["good"]]:
                pass  # The dying connection may take one more call down with it.


def against(victim: str, evil: Callable[[HandPeer, int], bytes]) -> Callable[[HandPeer, dict[str, int]], bytes]:
    """Evil done to the call of one method."""
    return lambda peer, ids: evil(peer, ids[victim])


@item(45, "hostile_server")
async def hostile_server(world: World) -> None:
    """gRPC: a hostile peer's frames never crash the client. Ours: each kind of fault that we can name, on a unary call
    and on a stream; what comes of it is an RpcError (or a result), and the pool lives on.
    """
    for name, evil in HOSTILE.items():
        for victim in ("word", "words"):
            try:
                await survives(world, against(victim, evil))
            except BaseException as exc:
                exc.add_note(f"in answer to {victim!r}: {name}")
                raise


@item(46, "fuzzed_frames")
async def fuzzed_frames(world: World) -> None:
    """gRPC: fuzzed frames crash neither side. Ours: 30 mutants of a good session for the server, 30 of a good reply for
    the pool, the same in every run; both serve on, and the log tells of no crash.
    """
    rng = random.Random(f"{world.codec} {world.transport}")
    for _ in range(30):
        async with world.hand_client() as peer:
            with trio.move_on_after(0.02):
                try:
                    await peer.send(mutate(a_session(peer), rng))
                    while await peer.stream.receive_some():
                        pass
                except trio.BrokenResourceError:
                    pass  # The server has closed, as it may.
    assert await world.stub.exchange(b"", 9) == pattern(9)
    await world.until(lambda: world.server.statistics().connections == 1)
    for _ in range(30):
        await survives(world, lambda peer, ids: mutate(a_reply(peer, ids), rng))


@item(28, "goaway")
async def goaway(world: World) -> None:
    """gRPC: GOAWAY comes with the first call's reply, and the second call goes over a new connection. Ours: the same, and
    the caller is unaware of it; the old connection was not lost, but left.
    """
    connections = itertools.count(1)

    async def speak(peer: HandPeer) -> None:
        number = next(connections)
        request_id = (await peer.requests("word"))["word"]
        farewell = [peer.protocol.goaway(request_id, Code.UNAVAILABLE, "enough")] if number == 1 else []
        await peer.send(peer.response(request_id, f"from {number}"), *farewell)
        await peer.wait_closed()
        left.append(number)

    left: list[int] = []
    async with world.hand_server(speak) as target, world.open_pool(target, limits=AT_ONCE) as pool:
        words = pool.stub(Words)
        assert [await words.word(), await words.word()] == ["from 1", "from 2"]
        await world.until(lambda: left == [1] and pool.statistics().closed_going_away)
        stats = pool.statistics()
        assert (stats.connects, stats.closed_going_away, stats.lost, stats.errors) == (2, 1, 0, 0)


@item(47, "too_many_pings")
async def too_many_pings(world: World) -> None:
    """gRPC: the third ping that comes too early ends the connection, calls in flight fail with 14, and the client pings
    half as often from then on. Ours: HELLO tells each side's rhythm, so who keeps to it pings never too often, and has
    nothing to change; a flood, from either side, ends the connection, and what is in flight there fails with 14.
    """
    async with world.hand_client() as peer:
        await peer.send(peer.request("hold")[1])
        await world.until(lambda: world.service.running)
        await peer.send(*[peer.protocol.ping(bytes(8))] * 100)
        assert "too_many_pings" in (await peer.expect(GoAwayReceived)).message
        await peer.wait_closed()
    await world.until(lambda: world.service.endings == ["Cancelled"])

    connections, goodbyes = itertools.count(), list[str]()

    async def speak(peer: HandPeer) -> None:
        if next(connections):
            await answer_well(peer)
        await peer.requests("word")
        await peer.send(*[peer.protocol.ping(bytes(8))] * 100)
        goodbyes.append((await peer.expect(GoAwayReceived)).message)

    async with world.hand_server(speak) as target, world.open_pool(target, limits=AT_ONCE) as pool:
        with pytest.raises(trio_rpc.ConnectionLost, match="too_many_pings") as caught:
            await pool.stub(Words).word()
        assert (caught.value.code, caught.value.may_have_run) == (Code.UNAVAILABLE, True)
        await world.until(lambda: goodbyes)
        assert "too_many_pings" in goodbyes[0]
        assert await pool.stub(Words).word() == "good"


@item(50, "silent_peer")
async def silent_peer(world: World) -> None:
    """gRPC: a peer that falls silent is closed by keepalive, its calls fail with 14. Ours: within `interval + timeout`,
    with how long it was silent; the call on the other connection does not notice.
    """
    freezers: list[Freeze] = []

    async def connect() -> trio.abc.Stream:
        freezers.append(Freeze())
        return await world.connect(freezers[-1])

    failures: list[trio_rpc.PeerUnresponsive] = []

    async def hold(pool: trio_rpc.Pool) -> None:
        try:
            await pool.stub(Interop).hold()
        except trio_rpc.PeerUnresponsive as exc:
            failures.append(exc)

    limits = PoolLimits(min_connections=2, max_connections=2)
    async with world.open_pool(connect, heartbeat=Heartbeat(0.3, 0.3), limits=limits) as pool:
        await pool.wait_connected(2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold, pool)
            nursery.start_soon(hold, pool)
            await world.until(lambda: world.service.running == 2)
            freezers[0].freeze()
            frozen_at = trio.current_time()
            await world.until(lambda: failures)
            assert trio.current_time() - frozen_at < 0.6 + 1.0
            world.service.release.set()
        assert len(failures) == 1
        assert pool.statistics().evicted == 1
    assert (failures[0].code, failures[0].may_have_run) == (Code.UNAVAILABLE, True)
    assert re.search(r"no sign of life for \d+\.\d s", failures[0].message)
    await world.until(lambda: world.service.running == 0)


async def flood(peer: HandPeer, pause: float) -> None:
    """Open and cancel 10,000 calls without reading an answer, or as many as the server takes."""
    with trio.fail_after(60):
        try:
            for _ in range(100):
                calls = [peer.request("hold", True) for _ in range(100)]
                cancels = [peer.protocol.cancel(request_id, 0) for request_id, _ in calls]
                if pause:
                    await peer.send(*(request for _, request in calls))
                    await trio.sleep(pause)
                    await peer.send(*cancels)
                else:
                    await peer.send(*(request + cancel for (_, request), cancel in zip(calls, cancels, strict=True)))
        except trio.BrokenResourceError:
            pass  # It has had enough.


@item(67, "reset_flood", server_limits=ServerLimits(max_in_flight=64), limits=PoolLimits(max_connections=1))
async def reset_flood(world: World) -> None:
    """gRPC: 10,000 streams opened and reset at once ("rapid reset") must not run more handlers than the limit. Ours: a
    slot is free when its handler has ended, so neither a flood by hand nor an honest nursery that cancels 10,000 calls
    gets beyond the cap; the flood loses its connection, the nursery nothing.
    """
    async with world.hand_client() as peer:
        await flood(peer, 0)
        assert world.service.peak <= 64
    async with world.hand_client() as peer:
        await flood(peer, 0.01)
        await peer.wait_closed()  # Although handlers of this connection are running still.
    assert (world.service.peak, world.service.running) == (64, 64)
    assert await world.stub.exchange(b"", 9) == pattern(9)
    world.service.release.set()
    await world.until(lambda: world.server.statistics().connections == 1 and not world.service.running)

    world.service.peak, world.service.release = 0, trio.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(10_000):
            nursery.start_soon(world.stub.hold)
        await world.until(lambda: world.service.running == 64)
        nursery.cancel_scope.cancel()
    assert (world.service.peak, world.service.running) == (64, 0)
    assert (world.pool.statistics().connects, world.pool.statistics().lost) == (1, 0)
    await world.until(lambda: world.pool.statistics().in_flight == 0)  # On a slow machine some have been given up.


# -- the items that have no case here ----------------------------------------------------------------------------------

COMPRESSION = "nothing is compressed: the wire has a flag reserved for it, and no algorithm yet"
NOT_OURS = {
    3: COMPRESSION,
    4: COMPRESSION,
    6: COMPRESSION,
    8: COMPRESSION,
    26: "credentials are a connection's, said once, in HELLO: a call has none of its own",
    65: "there are counters of connections and calls, and no list of them yet that a peer could ask for",
    66: "there is no reflection yet: who calls has the contract, or knows the method's name",
}
SHOWN_BY: dict[int, Sequence[str]] = {
    25: (
        "test_idempotency_keys.py::test_a_hundred_at_once_are_one_run",
        "test_idempotency_keys.py::test_a_result_is_kept_for_its_window",
    ),
    27: ("test_transports.py::test_credentials", "test_transports.py::test_credentials_that_are_refused"),
    36: ("test_many_peers.py::test_a_peer_that_closes_every_connection",),
    48: (
        "test_ages.py::test_a_connection_is_drained_at_its_age",
        "test_ages.py::test_calls_on_an_old_connection_have_the_grace",
        "test_ages.py::test_callers_do_not_notice_the_age",
    ),
    49: (
        "test_ages.py::test_an_idle_connection_is_drained",
        "test_ages.py::test_a_stream_is_a_call_for_as_long_as_it_lasts",
    ),
    51: (
        "test_retry.py::test_the_throttles_tokens",
        "test_retry.py::test_the_throttle_holds_from_the_fifth_failure_on",
    ),
    52: ("test_retry.py::test_push_back_says_when", "test_retry.py::test_push_back_says_never"),
    53: (
        "test_retry.py::test_what_was_refused_is_sent_again_at_once",
        "test_retry.py::test_further_attempts_say_how_many_may_have_run",
    ),
    54: ("test_retry.py::test_more_than_five_attempts_act_as_five",),
    55: ("test_retry.py::test_one_deadline_spans_all_attempts", "test_hedging.py::test_one_deadline_spans_all_copies"),
    56: (
        "test_hedging.py::test_a_failure_that_others_may_not_have_sends_the_next_at_once",
        "test_hedging.py::test_the_first_answer_wins",
    ),
    57: (
        "test_many_peers.py::test_one_of_ten_fails_all_its_calls",
        "test_many_peers.py::test_a_tenth_is_ejected_at_most",
    ),
    58: (
        "test_many_peers.py::test_where_all_are_bad_all_are_picked_from",
        "test_many_peers.py::test_in_a_panic_the_ejected_are_picked_too",
    ),
    59: ("test_happy_eyeballs.py::test_the_first_address_that_answers_is_taken",),
    60: ("test_many_peers.py::test_whom_an_outage_concerns",),
    61: (
        "test_health.py::test_health_flips_routing",
        "test_health.py::test_without_a_health_service_a_server_is_healthy",
    ),
    62: (
        "test_many_peers.py::test_three_servers_are_replaced",
        "guarantees/test_09_drain.py::test_a_restart_is_not_noticed",
    ),
}

# -- the table, run ----------------------------------------------------------------------------------------------------

CASES = [
    pytest.param(item, codec, transport, id=f"{item.number}-{item.name}-{codec}-{transport}")
    for item in sorted(ITEMS, key=lambda item: item.number)
    for codec in CODECS
    for transport in item.transports
]


def test_every_item_has_its_place() -> None:
    """No number is missing, and none is there twice: it has a case, or tests elsewhere, or a reason why not."""
    numbers = [*(item.number for item in ITEMS), *SHOWN_BY, *NOT_OURS]
    assert sorted(numbers) == list(range(1, LAST_NUMBER + 1))


@pytest.mark.parametrize("number", SHOWN_BY)
def test_what_is_shown_elsewhere_is_there(number: int) -> None:
    """Each of the tests that an item names exists, in the file that it names."""
    for name in SHOWN_BY[number]:
        file, _, function = name.partition("::")
        module = ast.parse((Path(__file__).parent / file).read_text(encoding="utf-8"))
        assert function in {
            node.name for node in module.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }


@pytest.mark.parametrize(("item", "codec", "transport"), CASES)
async def test_item(item: Item, codec: str, transport: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """The item holds in this world, in bounded time, with nothing left behind and no crash in the log."""
    with trio.fail_after(30):
        async with no_leaks():
            async with open_world(codec, transport, **item.options) as world:
                await item.scenario(world)
    crashes = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert crashes == []
