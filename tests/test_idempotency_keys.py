"""Idempotency keys: a call that is made again joins the handler that is already running, or gets what came of it."""

from __future__ import annotations

import contextlib
import gc
import tracemalloc
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

import attrs
import msgpack
import pytest
import trio
import trio.testing
from trio.testing import MockClock

import trio_rpc
from tests.guarantees.kit import RawClient
from tests.scripted import ScriptedPeer, ScriptedServer, watchdog
from trio_rpc import (
    AdaptiveLimit,
    Code,
    ConnectionLost,
    InvalidArgument,
    RemoteError,
    RetryPolicy,
    Server,
    ServerLimits,
    codecs,
    current_call,
    method,
    open_pool,
    open_server,
)
from trio_rpc._kept import Answer, Kept
from trio_rpc.testing import MemoryListener, cancel_at_every_checkpoint, no_leaks, open_loopback
from trio_rpc.wire import ErrorReceived, Hello, HelloReceived, Outcome, ResponseReceived, method_block

KEY = "idempotency-key"
Moment = Literal["suspending", "waking"]
MOMENTS: tuple[Moment, ...] = ("suspending", "waking")
QUIET = trio_rpc.Heartbeat(interval=None)


class Twin(codecs.MessagePack):
    """Another codec, with the same bytes."""

    name = "twin of msgpack"


codecs.register(Twin())


class Declined(Exception):
    """What the bank declares."""


class Bank:
    """Counts its runs, so that a result tells which of them it is of. `log` holds what ended how, and when."""

    def __init__(self) -> None:
        self.runs = 0
        self.running = 0
        self.most_running = 0
        self.log: list[tuple[str, float]] = []
        self.context: Any = None
        self.last_step: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint

    def note(self, what: str) -> None:
        self.log.append((what, round(trio.current_time(), 6)))

    @method
    async def pay(self, amount: int, seconds: float = 1.0, cleanup: float = 0.0) -> int:
        """Return the number of this run after some time; cancelled, take `cleanup` seconds to end."""
        self.runs += 1
        number = self.runs
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self.context = current_call()
        try:
            await trio.sleep(seconds)
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await trio.sleep(cleanup)
                await self.last_step()
            self.note("cancelled")
            raise
        finally:
            self.running -= 1
        self.note("done")
        return number

    @method
    async def pay_for(self, scan: bytes, seconds: float) -> int:
        return await self.pay(len(scan), seconds)

    @method(idempotent=True)
    async def settle(self, amount: int, seconds: float) -> int:
        return await self.pay(amount, seconds)

    @method
    async def refund(self, amount: int) -> int:
        return await self.pay(amount)

    @method
    def balance(self) -> int:
        self.runs += 1
        return self.runs

    @method(thread=True)
    def audit(self) -> int:
        self.runs += 1
        return self.runs

    @method
    async def statement(self, size: int, seconds: float = 0.0) -> bytes:
        """Notice no cancellation, and return."""
        self.runs += 1
        with trio.CancelScope(shield=True):
            await trio.sleep(seconds)
        current_call().reply_metadata["page"] = str(self.runs)
        return bytes([self.runs]) * size

    @method
    async def deposit(self, front: bytes, back: bytes) -> int:
        self.runs += 1
        return self.runs

    @method(raises=[Declined])
    async def fail(self, how: str) -> int:
        self.runs += 1
        if how == "declared":
            raise Declined(f"run {self.runs}")
        if how == "on purpose":
            raise RemoteError(f"run {self.runs}", code=Code.NOT_FOUND)
        if how == "group":
            raise ExceptionGroup("both", [Declined(f"run {self.runs}"), RemoteError("other")])
        if how == "unsendable":
            return "no number"  # type: ignore[return-value]
        raise ZeroDivisionError(f"run {self.runs}")

    @method
    async def stubborn(self, seconds: float) -> int:
        """Notice no cancellation, and return."""
        self.runs += 1
        with trio.CancelScope(shield=True):
            await trio.sleep(seconds)
        return self.runs

    @method(raises=[Declined])
    async def sour(self, seconds: float) -> int:
        """Fail in answer to a cancellation."""
        self.runs += 1
        try:
            await trio.sleep(seconds)
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
            raise Declined("in its clean-up") from None
        return self.runs

    @method
    async def ends_at(self, seconds: float) -> float:
        """The deadline as it is after `seconds`."""
        await trio.sleep(seconds)
        return trio.current_effective_deadline()

    @method
    async def relay(self) -> None:
        """A call of another server, which takes no notice of being cancelled."""
        async with open_loopback(Bank()) as pool:
            try:
                await pool.stub(Bank, cancel_wait=50).stubborn(99.0)
            finally:
                self.note("relayed")

    @method
    async def is_protected(self) -> bool:
        return trio.lowlevel.currently_ki_protected()

    @method
    async def interrupt(self) -> None:
        raise KeyboardInterrupt

    @method
    async def watch(self) -> AsyncGenerator[int, None]:
        self.runs += 1
        yield self.runs

    @method
    async def total(self, amounts: AsyncIterable[int]) -> int:
        self.runs += 1
        return self.runs

    @method
    async def ring(self) -> int:
        """Call back with a key."""
        caller: Bank = current_call().peer.stub(Bank, metadata={KEY: "k"})
        return await caller.pay(1, 0.0)

    @method
    async def undone(self) -> int:
        raise NotImplementedError


class Client(RawClient):
    """A client whose frames are written by hand, in virtual time."""

    async def call(
        self,
        name: str,
        *args: Any,
        key: str | bytes = "k",
        timeout: float | None = None,
        previous: str | None = None,
    ) -> int:
        """Send a request with a key, which may say that it is a retry; its id."""
        metadata = {KEY: key} if previous is None else {KEY: key, "previous-attempts": previous}
        request_id, frames = self.protocol.request(
            method_block(f"Bank.{name}"), msgpack.packb(list(args)), timeout=timeout, metadata=metadata
        )
        await self.send(frames)
        await trio.testing.wait_all_tasks_blocked()
        return request_id

    async def result(self) -> Any:
        """The value of the next event, which must be a result."""
        return msgpack.unpackb((await self.expect(ResponseReceived)).payload)

    async def error(self) -> tuple[Code, Outcome, bool]:
        """Code, outcome and whether it was started of the next event, which must be an error."""
        event = await self.expect(ErrorReceived)
        return event.code, event.outcome, event.started

    async def lose(self) -> None:
        """Break the connection."""
        await trio.aclose_forcefully(self.stream)


CANCELLED = (Code.CANCELLED, Outcome.CANCELLED, True)
EXPIRED = (Code.DEADLINE_EXCEEDED, Outcome.EXPIRED, True)
MISUSED = (Code.INVALID_ARGUMENT, Outcome.REFUSED, False)


@attrs.define
class World:
    """A server, and as many connections to it as a test likes."""

    bank: Bank
    server: Server
    listener: MemoryListener

    async def client(self) -> Client:
        client = Client(await self.listener.connect())
        await client.greet()
        return client

    async def clients(self, count: int) -> list[Client]:
        return [await self.client() for _ in range(count)]


@asynccontextmanager
async def world(limits: ServerLimits = ServerLimits(), **options: Any) -> AsyncIterator[World]:  # noqa: B008 - frozen
    """A server without heartbeats, in memory and in virtual time; nothing may be left of it."""
    bank, listener = Bank(), MemoryListener()
    async with (
        watchdog(),
        no_leaks(),
        open_server(bank, listener, limits=limits, heartbeat=QUIET, **options) as server,
    ):
        yield World(bank, server, listener)


def keyed(pool: trio_rpc.Pool, key: str | bytes = "k") -> Bank:
    """A stub whose calls have this key."""
    return pool.stub(Bank, metadata={KEY: key})


# -- joining -------------------------------------------------------------------------------------------------------


async def test_a_hundred_at_once_are_one_run(autojump_clock: MockClock) -> None:
    """Each gets the one result, at the one time."""
    results = []
    async with world() as w, open_pool(w.listener.connect) as pool, trio.open_nursery() as nursery:

        async def call() -> None:
            results.append((await keyed(pool).pay(5), trio.current_time()))

        for _ in range(100):
            nursery.start_soon(call)
    assert results == [(1, 1.0)] * 100
    assert (w.bank.runs, w.server.statistics().joined) == (1, 99)


async def test_one_who_comes_later_on_another_connection_joins(autojump_clock: MockClock) -> None:
    """The handler is the server's, not the connection's; the second answer comes with the first."""
    async with world() as w:
        first, second = await w.clients(2)
        await first.call("pay", 5, 2.0)
        await trio.sleep(1.5)
        await second.call("pay", 5, 2.0)
        assert (await first.result(), await second.result(), trio.current_time()) == (1, 1, 2.0)


@pytest.mark.parametrize("name", ["balance", "audit"])
async def test_every_form_of_unary_handler(name: str) -> None:
    """A plain function and one in a worker thread run once, too."""
    async with open_loopback(Bank()) as pool:
        assert [await getattr(keyed(pool), name)() for _ in range(3)] == [1, 1, 1]
        assert await pool.stub(Bank).balance() == 2


async def test_another_key_another_method_and_no_key_are_others(autojump_clock: MockClock) -> None:
    """What runs once is named by method and key; a text is its UTF-8 bytes."""
    async with open_loopback(Bank()) as pool:
        assert await keyed(pool, "k").pay(5) == 1
        assert await keyed(pool, "l").pay(5) == 2
        assert await keyed(pool, "k").refund(5) == 3
        assert await pool.stub(Bank).pay(5) == 4
        assert await keyed(pool, b"k").pay(5) == 1
        assert await keyed(pool, "ö").pay(5) == await keyed(pool, "ö".encode()).pay(5) == 5


@pytest.mark.parametrize(
    ("principals", "runs"), [(("ann", "bob", "ann"), [1, 2, 1]), (({"id": 1}, {"id": 2}, {"id": 1}), [1, 2, 1])]
)
async def test_each_principal_has_its_own_keys(
    autojump_clock: MockClock, principals: Sequence[Any], runs: list[int]
) -> None:
    """Nobody gets what another one has paid for; principals that are equal, over all connections, are one."""
    given = iter(principals)
    async with world(authenticate=lambda *_: next(given)) as w:
        results = []
        for client in await w.clients(3):
            await client.call("pay", 5)
            results.append(await client.result())
    assert results == runs


async def test_the_handler_runs_in_the_first_calls_context(autojump_clock: MockClock) -> None:
    """It sees the first call, which stays active when its connection is gone, until the handler has ended."""
    async with world() as w:
        first, second = await w.clients(2)
        request_id = await first.call("pay", 5, 2.0)
        await trio.sleep(1)
        await second.call("pay", 5, 2.0)
        await first.lose()
        await trio.testing.wait_all_tasks_blocked()
        call = w.bank.context
        assert (call.id, call.method, call.metadata[KEY], call.active) == (request_id, "Bank.pay", "k", True)
        assert await second.result() == 1
        assert not call.active


async def test_interceptors_wrap_the_run(autojump_clock: MockClock) -> None:
    """They see one call, as there is one."""
    seen = []

    async def interceptor(call: trio_rpc.Call, call_next: trio_rpc.Handler) -> trio_rpc.Reply:
        seen.append(call.args)
        return await call_next(call)

    async with open_loopback(Bank(), server_interceptors=[interceptor]) as pool:
        assert await keyed(pool).pay(5) == await keyed(pool).pay(5) == 1
    assert seen == [(5,)]


async def test_who_waits_for_another_keeps_no_arguments(autojump_clock: MockClock) -> None:
    """They are compared and dropped: twenty times 60 KB are not held until the end."""
    async with world() as w:
        clients = await w.clients(20)
        await clients[0].call("pay_for", bytes(60_000), 9.0)
        tracemalloc.start()
        try:
            for client in clients[1:]:
                await client.call("pay_for", bytes(60_000), 9.0)
            gc.collect()
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert held < 600_000
        assert [await client.result() for client in clients] == [1] * 20


class Steps(trio.abc.Instrument):
    """Counts the steps of all tasks."""

    taken = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.taken += 1


async def test_calls_with_a_key_make_the_others_no_slower() -> None:
    """A method that does not suspend is still run at once, by the task that has read the request."""
    async with open_loopback(Bank()) as pool:

        async def steps() -> int:
            steps = Steps()
            trio.lowlevel.add_instrument(steps)
            for _ in range(10):
                await pool.stub(Bank).balance()
            trio.lowlevel.remove_instrument(steps)
            return steps.taken

        await steps()
        before, after = [await steps() for _ in range(5)], []
        for number in range(5):
            for key in range(30):
                await keyed(pool, f"{number}, {key}").balance()
            after.append(await steps())
        assert max(after) < min(before) + 5


# -- what is kept --------------------------------------------------------------------------------------------------


async def test_a_result_is_kept_for_its_window(autojump_clock: MockClock) -> None:
    """To the second: then it is forgotten, and memory with it, though nobody asks."""
    async with world(ServerLimits(result_window=60)) as w:
        client = await w.client()
        await client.call("pay", 5, 1.0)
        assert await client.result() == 1
        await trio.sleep(59.999)
        await client.call("pay", 5, 1.0)
        assert (await client.result(), trio.current_time()) == (1, 60.999)
        await trio.sleep_until(60.9995)
        stats = w.server.statistics()
        assert (stats.kept_results, stats.replayed) == (1, 1)
        await trio.sleep_until(61.001)
        assert w.server.statistics().kept_results == 0
        await client.call("pay", 5, 1.0)
        assert await client.result() == 2


async def test_large_results_and_reply_metadata_are_kept_too(autojump_clock: MockClock) -> None:
    """With blobs beside the payload, and whatever the handler told beside its result."""
    async with open_loopback(Bank()) as pool:
        replies: list[dict[str, str | bytes]] = [{}, {}]
        stubs = [pool.stub(Bank, metadata={KEY: "k"}, reply_metadata=reply) for reply in replies]
        assert [await stub.statement(200_000) for stub in stubs] == [b"\1" * 200_000] * 2
        assert replies == [{"page": "1"}] * 2


@pytest.mark.parametrize("how", ["declared", "on purpose", "group", "unsendable", "by accident"])
async def test_failures_are_kept_as_results_are(autojump_clock: MockClock, how: str) -> None:
    """The very same frame, the error id included: it did run, and failed."""
    async with world() as w:
        client = await w.client()
        frames = []
        for _ in range(2):
            await client.call("fail", how)
            frames.append(await client.expect(ErrorReceived))
        first, second = (attrs.evolve(frame, id=0, payload=bytes(frame.payload)) for frame in frames)
        assert first == second
        assert (first.outcome, first.started, w.bank.runs) == (Outcome.FAILED, True, 1)


class Careless:
    """Tells beside its result what no metadata can be."""

    @method
    async def run(self, ending: str) -> int:
        current_call().reply_metadata["number"] = 5  # type: ignore[assignment]
        if ending == "failure":
            raise RemoteError("no")
        return 1


@pytest.mark.parametrize(("ending", "said"), [("result", "cannot be sent: metadata must map str"), ("failure", "no")])
async def test_reply_metadata_that_is_none_costs_its_own_call(
    autojump_clock: MockClock, ending: str, said: str
) -> None:
    """As without a key: each attempt is told, and the server goes on."""
    async with watchdog(), open_loopback(Careless()) as pool:
        for _ in range(2):
            with pytest.raises(RemoteError, match=said):
                await pool.stub(Careless, idempotency_key="k").run(ending)
        assert pool.statistics().in_flight == 0


async def test_a_kept_failure_is_raised_as_it_was(autojump_clock: MockClock) -> None:
    """A declared exception comes out as itself, each time."""
    async with open_loopback(Bank()) as pool:
        for _ in range(2):
            with pytest.raises(Declined, match="run 1"):
                await keyed(pool).fail("declared")
        for _ in range(2):
            with pytest.raises(RemoteError) as caught:
                await keyed(pool, "l").fail("on purpose")
            assert (caught.value.code, caught.value.message) == (Code.NOT_FOUND, "run 2")


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        (ServerLimits(), "abcd"),
        (ServerLimits(max_kept_results=2), "cd"),
        (ServerLimits(max_kept_results=0), ""),
        (ServerLimits(result_window=0), ""),
        (ServerLimits(max_kept_bytes=25_000), "cd"),
        (ServerLimits(max_kept_bytes=9_999), ""),
    ],
)
async def test_the_oldest_are_forgotten_beyond_the_bounds(limits: ServerLimits, kept: str) -> None:
    """By count and by bytes; what was asked for again is no younger for that."""
    async with open_loopback(Bank(), server_limits=limits) as pool:
        results = {key: await keyed(pool, key).statement(10_000) for key in "abcd"}
        if kept:
            await keyed(pool, kept[0]).statement(10_000)
        again = {key: await keyed(pool, key).statement(10_000) for key in reversed("abcd")}
    assert "".join(key for key in "abcd" if again[key] == results[key]) == kept


async def test_what_is_larger_than_all_room_pushes_nothing_out() -> None:
    """It is not kept, and the others are."""
    async with open_loopback(Bank(), server_limits=ServerLimits(max_kept_bytes=20_000)) as pool:
        small = await keyed(pool, "small").statement(10)
        large = await keyed(pool, "large").statement(30_000)
        assert await keyed(pool, "small").statement(10) == small
        assert await keyed(pool, "large").statement(30_000) != large


async def test_a_result_too_large_for_one_peer_is_still_good_for_another() -> None:
    """Each is told what it can take."""
    async with world() as w:
        small, large = Client(await w.listener.connect(), Hello(max_message_size=1024)), await w.client()
        await small.greet()
        await small.call("statement", 5000)
        assert await small.error() == (Code.RESOURCE_EXHAUSTED, Outcome.FAILED, True)
        await large.call("statement", 5000)
        assert await large.result() == b"\1" * 5000


async def test_nobody_pushes_out_what_is_kept_for_another(autojump_clock: MockClock) -> None:
    """A principal with many keys costs itself its room, and nobody else a second run."""
    names = iter(["ann", "bob"])
    async with world(ServerLimits(max_kept_results=5), authenticate=lambda *_: next(names)) as w:
        ann, bob = await w.clients(2)
        await ann.call("pay", 5, 0.0, key="mine")
        assert await ann.result() == 1
        for number in range(6):
            await bob.call("pay", 5, 0.0, key=str(number))
            await bob.result()
        await ann.call("pay", 5, 0.0, key="mine", previous="1")
        assert await ann.result() == 1


def test_what_is_kept_anew_takes_room_once() -> None:
    """A run that a later one with the same key has replaced."""
    kept = Kept(ServerLimits())
    for text in ("first", "other"):
        kept.keep((None, "Bank.pay", b"k"), b"digest", Answer(b"", text=text), 0.0)
    assert (len(kept), kept.size) == (1, Answer(b"", text="other").size)


# -- refusals ------------------------------------------------------------------------------------------------------


async def test_other_arguments_are_refused(autojump_clock: MockClock) -> None:
    """While it runs and afterwards: a key that is used twice by mistake must not get another call's result."""
    async with world() as w:
        client, other = await w.clients(2)
        await client.call("pay", 5, 1.0)
        await other.call("pay", 6, 1.0)
        assert await other.error() == MISUSED
        assert await client.result() == 1
        await other.call("pay", 5)
        assert await other.error() == MISUSED
        await other.call("pay", 5, 1.0)
        assert await other.result() == 1
        assert w.bank.runs == 1


@pytest.mark.parametrize(("front", "back"), [(100_000, 100_001), (100_001, 99_999), (100_000, 99_999)])
async def test_other_large_arguments_are_others(front: int, back: int) -> None:
    """Also where they travel beside the payload; and where they differ only in which one ends where."""
    async with open_loopback(Bank()) as pool:
        assert await keyed(pool).deposit(bytes(100_000), bytes(100_000)) == 1
        with pytest.raises(InvalidArgument, match="other arguments"):
            await keyed(pool).deposit(bytes(front), bytes(back))
        assert await keyed(pool).deposit(bytes(100_000), bytes(100_000)) == 1


@pytest.mark.parametrize("codec", ["json", Twin.name])
async def test_another_codec_has_other_arguments(codec: str) -> None:
    """Also where they happen to be the same bytes: the result would not be."""
    async with (
        world(codecs=["msgpack", codec]) as w,
        open_pool(w.listener.connect) as ours,
        open_pool(w.listener.connect, codec=codec) as theirs,
    ):
        assert await keyed(ours).balance() == 1
        with pytest.raises(InvalidArgument, match="other arguments"):
            await keyed(theirs).balance()


@pytest.mark.parametrize(
    ("key", "said"),
    [("", "not 0"), ("x" * 257, "not 257"), (b"x" * 257, "not 257"), ("ö" * 129, "not 258")],
)
async def test_what_is_no_key(key: str | bytes, said: str) -> None:
    """Refused, and not run without one."""
    async with open_loopback(Bank()) as pool:
        with pytest.raises(InvalidArgument, match=rf"idempotency-key has 1 to 256 bytes, {said}"):
            await keyed(pool, key).balance()
        assert await keyed(pool, "x" * 256).balance() == 1


async def test_streams_take_no_key() -> None:
    """There is no one result to keep."""
    bank = Bank()
    async with open_loopback(bank) as pool:
        with pytest.raises(InvalidArgument, match=r"Bank\.watch has a stream"):
            async with keyed(pool).watch() as numbers:
                await numbers.receive()
        with pytest.raises(InvalidArgument, match=r"Bank\.total has a stream"):
            await keyed(pool).total(amounts())
    assert bank.runs == 0


async def amounts() -> AsyncGenerator[int, None]:
    """A stream of the caller's."""
    yield 1


async def test_those_called_back_keep_no_keys() -> None:
    """The call is refused, and not run as if it had none."""
    callee = Bank()
    async with open_loopback(Bank(), callbacks=callee) as pool:
        with pytest.raises(RemoteError):
            await pool.stub(Bank).ring()
    assert callee.runs == 0


async def test_what_is_refused_keeps_nothing(autojump_clock: MockClock) -> None:
    """Arguments that do not fit, a method that is none, an authorisation that is missing: the key is still free."""
    allowed = False
    async with world(authorize=lambda _peer, name: allowed or name != "Bank.pay") as w:
        client = await w.client()
        await client.call("pay", 5)
        assert await client.error() == (Code.PERMISSION_DENIED, Outcome.REFUSED, False)
        allowed = True
        await client.call("pay", "five")
        assert await client.error() == MISUSED
        await client.call("undone")
        assert await client.error() == (Code.UNIMPLEMENTED, Outcome.REFUSED, False)
        await client.call("pay", 5)
        assert await client.result() == 1


async def test_who_may_not_call_may_not_join(autojump_clock: MockClock) -> None:
    """A result is not told to those who could not have asked for it."""
    asked = iter([True, False, False])
    async with world(authorize=lambda *_: next(asked)) as w:
        first, second = await w.clients(2)
        await first.call("pay", 5)
        await second.call("pay", 5)
        assert await second.error() == (Code.PERMISSION_DENIED, Outcome.REFUSED, False)
        assert await first.result() == 1
        await second.call("pay", 5)
        assert await second.error() == (Code.PERMISSION_DENIED, Outcome.REFUSED, False)


# -- cancelling ----------------------------------------------------------------------------------------------------


async def test_one_of_two_cancels(autojump_clock: MockClock) -> None:
    """It is answered at once, and the handler goes on for the other."""
    async with world() as w:
        first, second = await w.clients(2)
        request_id = await first.call("pay", 5, 2.0, 1.0)
        await second.call("pay", 5, 2.0, 1.0)
        await trio.sleep(1)
        await first.send(first.protocol.cancel(request_id, 1.0))
        assert (await first.error(), trio.current_time()) == (CANCELLED, 1.0)
        assert (await second.result(), trio.current_time()) == (1, 2.0)
        assert w.bank.log == [("done", 2.0)]


async def test_the_last_one_that_cancels_is_told_of_the_end(autojump_clock: MockClock) -> None:
    """The handler is cancelled, and has ended when the last terminal frame comes; a later call runs anew."""
    async with world() as w:
        first, second = await w.clients(2)
        ids = [await client.call("pay", 5, 9.0, 0.5) for client in (first, second)]
        await trio.sleep(1)
        await first.send(first.protocol.cancel(ids[0], 1.0))
        assert (await first.error(), trio.current_time()) == (CANCELLED, 1.0)
        await trio.sleep(1)
        await second.send(second.protocol.cancel(ids[1], 1.0))
        assert (await second.error(), trio.current_time()) == (CANCELLED, 2.5)
        assert w.bank.log == [("cancelled", 2.5)]
        assert w.server.statistics().kept_results == 0
        await first.call("pay", 5, 9.0, 0.5)
        assert (await first.result(), w.bank.runs) == (2, 2)


async def test_leaving_a_scope_joins_the_handler(autojump_clock: MockClock) -> None:
    """As with any call: after the block nothing of it runs."""
    async with world() as w, open_pool(w.listener.connect) as pool:
        with trio.move_on_after(1) as scope:
            await keyed(pool).pay(5, 9.0, 0.5)
        assert scope.cancelled_caught
        assert (w.bank.running, w.bank.log) == (0, [("cancelled", 1.5)])


async def test_a_result_that_wins_the_race_is_told_and_kept(autojump_clock: MockClock) -> None:
    """A handler that returns in spite of its cancellation has a result like any other."""
    async with world() as w:
        client = await w.client()
        request_id = await client.call("stubborn", 2.0)
        await trio.sleep(1)
        await client.send(client.protocol.cancel(request_id, 9.0))
        assert (await client.result(), trio.current_time()) == (1, 2.0)
        await client.call("stubborn", 2.0)
        assert (await client.result(), trio.current_time()) == (1, 2.0)


async def test_a_failure_in_the_clean_up_is_told_and_not_kept(autojump_clock: MockClock) -> None:
    """It is for those who cancelled; who came meanwhile, or comes later, has a run of its own."""
    async with world() as w:
        first, second = await w.clients(2)
        request_id = await first.call("sour", 3.0)
        await trio.sleep(1)
        await first.send(first.protocol.cancel(request_id, 9.0))
        await second.call("sour", 3.0)
        event = await first.expect(ErrorReceived)
        assert (event.outcome, event.message, trio.current_time()) == (Outcome.FAILED, "in its clean-up", 2.0)
        assert (await second.result(), trio.current_time()) == (2, 5.0)


async def test_those_who_come_while_it_is_ending_share_the_next_run(autojump_clock: MockClock) -> None:
    """Never two at a time: they wait for the end, and then one begins for all of them."""
    async with world() as w:
        first, *others = await w.clients(4)
        request_id = await first.call("pay", 5, 3.0, 1.0)
        await trio.sleep(1)
        await first.send(first.protocol.cancel(request_id, 9.0))
        await trio.sleep(0.5)
        ids = [await other.call("pay", 5, 3.0, 1.0) for other in others]
        await others[0].send(others[0].protocol.cancel(ids[0], 9.0))
        assert (await first.error(), trio.current_time()) == (CANCELLED, 2.0)
        assert await others[0].error() == CANCELLED
        assert [(await other.result(), trio.current_time()) for other in others[1:]] == [(2, 5.0)] * 2
        assert (w.bank.most_running, w.bank.runs) == (1, 2)


async def test_who_goes_in_the_very_step_in_which_the_next_run_would_begin(autojump_clock: MockClock) -> None:
    """Nothing is begun for one whose loss is noticed then. Trio runs the tasks of a step in any order, so: many times."""
    async with world() as w, trio.open_nursery() as nursery:

        async def last_step() -> None:
            nursery.start_soon(second.lose)
            for _ in range(2):  # In the first the stream is closed, in the second the server reads that it is.
                await trio.lowlevel.checkpoint()

        w.bank.last_step = last_step
        for number in range(30):
            first, second = await w.clients(2)
            request_id = await first.call("pay", number, 3.0, 1.0, key=str(number))
            await trio.sleep(1)
            await first.send(first.protocol.cancel(request_id, 9.0))
            await trio.sleep(0.5)
            await second.call("pay", number, 3.0, 1.0, key=str(number))
            assert await first.error() == CANCELLED
            await first.lose()
        assert w.bank.runs == 30


async def test_nested_calls_are_joined_within_the_callers_patience(autojump_clock: MockClock) -> None:
    """The handler is told how long its caller waits, although it runs in no task of that call's."""
    async with world() as w:
        client = await w.client()
        request_id = await client.call("relay")
        await trio.sleep(1)
        await client.send(client.protocol.cancel(request_id, 10.0))
        await client.event()
        assert w.bank.log == [("relayed", 9.0)]


# -- deadlines -----------------------------------------------------------------------------------------------------


async def test_the_deadline_is_the_latest_of_its_joiners(autojump_clock: MockClock) -> None:
    """One whose time is over is told so; the handler sees the later deadline once another has joined."""
    async with world() as w:
        first, second = await w.clients(2)
        await first.call("ends_at", 2.0, timeout=1.0)
        await trio.sleep(0.5)
        await second.call("ends_at", 2.0, timeout=3.0)
        assert (await first.error(), trio.current_time()) == (EXPIRED, 1.06)
        assert (await second.result(), trio.current_time()) == (3.56, 2.0)


async def test_one_with_less_time_takes_none_from_the_others(autojump_clock: MockClock) -> None:
    """The later of two may have the earlier deadline."""
    async with world() as w:
        first, second = await w.clients(2)
        await first.call("ends_at", 2.0, timeout=3.0)
        await second.call("ends_at", 2.0, timeout=1.0)
        assert (await second.error(), trio.current_time()) == (EXPIRED, 1.06)
        assert (await first.result(), trio.current_time()) == (3.06, 2.0)


async def test_the_last_deadline_ends_the_run(autojump_clock: MockClock) -> None:
    """As with any call; and who came first, and had more time, but has cancelled, does not hold it."""
    async with world() as w:
        first, second = await w.clients(2)
        request_id = await first.call("pay", 5, 9.0, 0.5)
        await second.call("pay", 5, 9.0, 0.5, timeout=2.0)
        await first.send(first.protocol.cancel(request_id, 1.0))
        assert await first.error() == CANCELLED
        assert (await second.error(), trio.current_time()) == (EXPIRED, 2.56)
        assert w.bank.log == [("cancelled", 2.56)]


async def test_max_deadline_counts_from_the_runs_begin(autojump_clock: MockClock) -> None:
    """Joining makes no handler run for longer than the server allows any."""
    async with world(ServerLimits(max_deadline=3)) as w:
        first, second = await w.clients(2)
        await first.call("pay", 5, 9.0)
        await trio.sleep(2)
        await second.call("pay", 5, 9.0)
        cut = (Code.DEADLINE_EXCEEDED, Outcome.STOPPED, True)
        assert (await first.error(), trio.current_time()) == (cut, 3.0)
        assert (await second.error(), trio.current_time()) == (cut, 3.0)
        assert w.bank.log == [("cancelled", 3.0)]


# -- lost connections ----------------------------------------------------------------------------------------------


async def test_a_retry_joins_what_its_lost_connection_left(autojump_clock: MockClock) -> None:
    """By hand, through two pools: the caller learns that it may have run, and that it has."""
    async with world() as w, open_pool(w.listener.connect, retry=RetryPolicy(attempts=1)) as old:
        await old.connect()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def cut() -> None:
                await trio.sleep(1)
                await w.listener.connections[0].aclose()

            with pytest.raises(ConnectionLost) as caught:
                await keyed(old).pay(5, 3.0)
        assert caught.value.may_have_run
        await trio.sleep(1)
        async with open_pool(w.listener.connect) as new:
            assert (await keyed(new).pay(5, 3.0), trio.current_time()) == (1, 3.0)
        assert w.bank.runs == 1


async def test_a_stub_with_a_key_retries_by_itself(autojump_clock: MockClock) -> None:
    """What may have run is made again, although it is not idempotent: it joins, and nobody notices."""
    async with world() as w, open_pool(w.listener.connect) as pool, trio.open_nursery() as nursery:
        await pool.connect()

        @nursery.start_soon
        async def cut() -> None:
            for number in range(2):
                await trio.sleep(1)
                await w.listener.connections[number].aclose()

        stub = pool.stub(Bank, idempotency_key="k")
        assert (await stub.pay(5, 3.0), trio.current_time()) == (1, 3.0)
        assert (w.bank.runs, pool.statistics().retries) == (1, 2)


@pytest.mark.parametrize("name", ["pay", "settle"])
async def test_a_stub_with_a_key_retries_in_a_pool_that_drains(autojump_clock: MockClock, name: str) -> None:
    """It has begun before the drain, and the drain waits for it."""
    results: list[int] = []
    async with world() as w, open_pool(w.listener.connect, heartbeat=QUIET) as pool, trio.open_nursery() as nursery:

        async def call() -> None:
            results.append(await getattr(pool.stub(Bank, idempotency_key="k"), name)(5, 3.0))

        nursery.start_soon(call)
        await trio.sleep(1)
        nursery.start_soon(pool.drain, 60)
        await trio.sleep(1)
        await trio.aclose_forcefully(w.listener.connections[-1])
    assert (results, w.bank.runs) == ([1], 1)


async def test_a_retry_that_comes_after_the_end_gets_the_result(autojump_clock: MockClock) -> None:
    """What nobody was there to be told is kept all the same."""
    async with world() as w:
        client, again = await w.clients(2)
        await client.call("pay", 5, 3.0)
        await client.lose()
        await trio.sleep(5)
        await again.call("pay", 5, 3.0)
        assert (await again.result(), trio.current_time()) == (1, 5.0)


async def test_over_tcp() -> None:
    """A socket's end is noticed in another way."""
    bank = Bank()
    async with no_leaks(), open_server(bank, "tcp://127.0.0.1:0", heartbeat=QUIET) as server:
        port = int(server.addresses[0].rpartition(":")[2])
        first, second = [Client(await trio.open_tcp_stream("127.0.0.1", port)) for _ in range(2)]
        for client in (first, second):
            await client.greet()
        await first.call("pay", 5, 1.0)
        await trio.sleep(0.3)
        await first.lose()
        await trio.sleep(0.3)
        stats = server.statistics()
        assert (stats.connections, stats.keyed_in_flight) == (1, 1)
        await second.call("pay", 5, 1.0)
        assert await second.result() == 1
        await second.lose()


@pytest.mark.parametrize(("timeout", "ends"), [(None, 11.0), (4.0, 4.06), (40.0, 11.0)])
async def test_the_orphan_window_ends(autojump_clock: MockClock, timeout: float | None, ends: float) -> None:
    """Nobody came back in time, or the caller's deadline is over anyway: the handler is cancelled, and a call runs anew."""
    async with world(ServerLimits(orphan_window=10)) as w:
        client, again = await w.clients(2)
        await client.call("pay", 5, 99.0, timeout=timeout)
        await trio.sleep(1)
        await client.lose()
        await trio.testing.wait_all_tasks_blocked()
        assert w.server.statistics().keyed_in_flight == 1
        await trio.sleep(12)
        assert w.bank.log == [("cancelled", ends)]
        assert w.server.statistics().keyed_in_flight == 0
        await again.call("pay", 5, 99.0)
        assert await again.result() == 2


async def test_without_an_orphan_window_a_lost_connection_cancels(autojump_clock: MockClock) -> None:
    """As for calls without a key."""
    async with world(ServerLimits(orphan_window=0)) as w:
        client = await w.client()
        await client.call("pay", 5, 99.0)
        await trio.sleep(1)
        await client.lose()
        await trio.sleep(1)
        assert w.bank.log == [("cancelled", 1.0)]


async def test_who_joins_takes_a_lost_ones_place(autojump_clock: MockClock) -> None:
    """The retry is the same caller: when it cancels, nobody is left to come back, and the handler is cancelled."""
    async with world() as w:
        client, again = await w.clients(2)
        await client.call("pay", 5, 99.0, 0.5)
        await client.lose()
        await trio.sleep(1)
        request_id = await again.call("pay", 5, 99.0, 0.5)
        await trio.sleep(20)
        await again.send(again.protocol.cancel(request_id, 1.0))
        assert (await again.error(), trio.current_time()) == (CANCELLED, 21.5)


async def test_who_joined_before_the_loss_was_noticed_takes_it_too(autojump_clock: MockClock) -> None:
    """A server may hear of a broken connection long after the caller has come again."""
    async with world() as w:
        client, again = await w.clients(2)
        await client.call("pay", 5, 99.0, 0.5)
        request_id = await again.call("pay", 5, 99.0, 0.5)
        await trio.sleep(1)
        await client.lose()
        await trio.testing.wait_all_tasks_blocked()
        await again.send(again.protocol.cancel(request_id, 1.0))
        assert (await again.error(), trio.current_time()) == (CANCELLED, 1.5)


async def test_who_was_there_before_does_not(autojump_clock: MockClock) -> None:
    """The later one is lost, the earlier one cancels, and need not wait for the window that the other still has."""
    async with world(ServerLimits(orphan_window=10)) as w:
        other, client, again = await w.clients(3)
        request_id = await other.call("pay", 5, 99.0, 0.5)
        await client.call("pay", 5, 99.0, 0.5)
        await trio.sleep(1)
        await client.lose()
        await trio.sleep(1)
        await other.send(other.protocol.cancel(request_id, 1.0))
        assert (await other.error(), trio.current_time()) == (CANCELLED, 2.0)
        await trio.sleep(8)
        await again.call("pay", 5, 99.0, 0.5)
        assert (await again.result(), trio.current_time()) == (1, 99.0)


async def test_who_has_cancelled_takes_nobodys_place(autojump_clock: MockClock) -> None:
    """A later one cancels, then the earlier one is lost: it has its window."""
    async with world(ServerLimits(orphan_window=10)) as w:
        client, other = await w.clients(2)
        await client.call("pay", 5, 99.0)
        request_id = await other.call("pay", 5, 99.0)
        await trio.sleep(1)
        await other.send(other.protocol.cancel(request_id, 1.0))
        assert await other.error() == CANCELLED
        await client.lose()
        await trio.sleep(11)
        assert w.bank.log == [("cancelled", 11.0)]


async def test_lost_while_the_end_is_awaited(autojump_clock: MockClock) -> None:
    """One cancels, and goes before the handler has ended: that is cancelled all the same."""
    async with world() as w:
        client = await w.client()
        request_id = await client.call("pay", 5, 99.0, 5.0)
        await client.send(client.protocol.cancel(request_id, 1.0))
        await trio.sleep(1)
        await client.lose()
        await trio.sleep(5)
        assert w.bank.log == [("cancelled", 5.0)]


async def test_a_result_that_comes_after_the_loss_is_told_nobody_and_kept(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """One that cancelled and was lost, and could not have taken the result anyway: that is no trouble any more."""
    async with world(ServerLimits(cancel_warn_after=None)) as w:
        client, again = Client(await w.listener.connect(), Hello(max_message_size=1024)), await w.client()
        await client.greet()
        request_id = await client.call("statement", 5000, 5.0)
        await client.send(client.protocol.cancel(request_id, 9.0))
        await trio.sleep(1)
        await client.lose()
        await trio.sleep(5)
        stats = w.server.statistics()
        assert (stats.in_flight, stats.kept_results, stats.connections) == (0, 1, 1)
        await again.call("statement", 5000, 5.0)
        assert (await again.result(), trio.current_time()) == (b"\1" * 5000, 6.0)
    assert not caplog.records


# -- places, drain, the end ----------------------------------------------------------------------------------------


async def test_a_place_is_taken_until_the_run_has_ended(autojump_clock: MockClock) -> None:
    """Who connects, calls and goes, again and again, piles no handlers up."""
    async with world(ServerLimits(max_calls=2, orphan_window=10)) as w:
        for key in "ab":
            client = await w.client()
            await client.call("pay", 5, 99.0, 1.0, key=key)
            await client.lose()
        await trio.testing.wait_all_tasks_blocked()
        assert w.server.statistics().in_flight == 2
        client = await w.client()
        await client.call("balance", key="c")
        assert await client.error() == (Code.RESOURCE_EXHAUSTED, Outcome.REFUSED, False)
        await trio.sleep(10.5)
        await client.call("balance", key="c")
        assert await client.error() == (Code.RESOURCE_EXHAUSTED, Outcome.REFUSED, False)
        await trio.sleep(1)
        await client.call("balance", key="c")
        assert await client.result() == 3
        assert w.server.statistics().in_flight == 0


async def test_waiting_for_another_tells_an_adaptive_limit_nothing(autojump_clock: MockClock) -> None:
    """What is answered from what was kept says nothing of the server's speed."""
    adaptive = AdaptiveLimit(initial=1, minimum=1)
    async with world(adaptive=adaptive) as w:
        client = await w.client()
        await client.call("pay", 5)
        await client.result()
        limit = w.server.statistics().adaptive_limit
        for _ in range(100):
            await trio.sleep(0.02)
            await client.call("pay", 5)
            assert await client.result() == 1
        assert w.server.statistics().adaptive_limit == limit


async def test_draining_waits_for_a_run_that_nobody_waits_for(autojump_clock: MockClock) -> None:
    """It was accepted, so it is finished."""
    async with world() as w:
        client = await w.client()
        await client.call("pay", 5, 3.0)
        await trio.sleep(1)
        await client.lose()
        await w.server.drain(grace=10)
        assert (w.bank.log, trio.current_time()) == ([("done", 3.0)], 3.0)


async def test_at_the_graces_end_runs_are_cancelled(autojump_clock: MockClock) -> None:
    """With and without joiners; these are told that the server stopped it, when it has ended."""
    async with world() as w:
        lost, *others = await w.clients(3)
        await lost.call("pay", 5, 99.0, 0.25, key="lost")
        for other in others:
            await other.call("pay", 5, 99.0, 0.5)
        await lost.lose()

        async def stopped(client: Client) -> None:
            while not isinstance(event := await client.event(), ErrorReceived):
                pass
            assert (event.code, event.outcome, event.started) == (Code.CANCELLED, Outcome.STOPPED, True)
            assert trio.current_time() == 2.5
            await client.lose()

        async with trio.open_nursery() as nursery:
            for other in others:
                nursery.start_soon(stopped, other)
            await w.server.drain(grace=2)
        assert w.bank.log == [("cancelled", 2.25), ("cancelled", 2.5)]


async def test_what_the_server_stops_has_ended_when_it_says_so(autojump_clock: MockClock) -> None:
    """A connection that has become too old takes its handlers with it, and is no lost one."""
    async with world(ServerLimits(max_age=5, max_age_grace=1)) as w:
        client = await w.client()
        await client.call("pay", 5, 99.0, 0.5)
        while not isinstance(event := await client.event(), ErrorReceived):
            pass
        assert (event.outcome, w.bank.running) == (Outcome.STOPPED, 0)
        assert trio.current_time() < 8


async def test_what_the_server_stopped_is_not_begun_again_by_a_retry(autojump_clock: MockClock) -> None:
    """Not even if its connection ended before the handler did, and nobody could be told: no caller has decided so."""
    limits = ServerLimits(max_age=5, max_age_grace=1, cancel_wait=1, close_timeout=1)
    async with world(limits) as w:
        first = await w.client()
        await first.call("pay", 5, 99.0, 4.0)
        assert await first.closed()
        assert w.bank.running == 1
        second = await w.client()
        await second.call("pay", 5, 99.0, 4.0, previous="1")
        assert await second.error() == (Code.CANCELLED, Outcome.STOPPED, True)
        assert (w.bank.runs, w.bank.running) == (1, 0)


async def test_after_the_grace_nothing_is_begun(autojump_clock: MockClock) -> None:
    """Not even for a client that has only just said HELLO: it learns that its call did not run."""
    async with world(ServerLimits(cancel_wait=5)) as w:
        busy = await w.client()
        await busy.call("stubborn", 3.0, key="busy")
        late = Client(await w.listener.connect())
        await trio.sleep(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(w.server.drain, 0)
            await trio.sleep(1)
            await late.greet()
            request_id = await late.call("pay", 5)
            while not isinstance(event := await late.event(), ErrorReceived):
                pass
            assert (event.id, event.code, event.outcome) == (request_id, Code.UNAVAILABLE, Outcome.REFUSED)
            await late.lose()
            await busy.lose()
        assert w.bank.runs == 1


async def test_leaving_the_server_leaves_no_run(autojump_clock: MockClock) -> None:
    """However the handler takes it: the block ends with the last of them."""
    bank, listener = Bank(), MemoryListener()
    async with no_leaks():
        async with open_server(bank, listener, heartbeat=QUIET):
            for key in "ab":
                client = Client(await listener.connect())
                await client.greet()
                await client.call("pay", 5, 99.0, 7.0, key=key)
                await client.lose()
        assert bank.log == [("cancelled", 7.0)] * 2


async def test_a_ctrl_c_meets_the_handler_and_no_step_of_ours() -> None:
    """Handlers are not protected from it; one that lands there is the program's."""
    bank = Bank()
    async with open_loopback(bank) as pool:
        assert not await keyed(pool).is_protected()
    with pytest.raises(BaseExceptionGroup) as caught:
        async with open_loopback(bank) as pool:
            with contextlib.suppress(trio_rpc.RpcError):
                await keyed(pool).interrupt()
            await trio.sleep_forever()
    assert caught.group_contains(KeyboardInterrupt)


# -- anywhere ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("callers", [1, 3])
async def test_all_cancelled_at_every_checkpoint(autojump_clock: MockClock, callers: int, moment: Moment) -> None:
    """Whenever all callers are cancelled: nothing runs any more, and the key is free again, or has the result."""
    keys = iter(range(1_000_000))
    key = ""
    async with world() as w, open_pool(w.listener.connect) as pool:

        async def call() -> None:
            nonlocal key
            key = str(next(keys))
            w.bank.runs = 0
            async with trio.open_nursery() as nursery:
                for _ in range(callers):
                    nursery.start_soon(keyed(pool, key).pay, 5, 0.02, 0.01)

        async def check() -> None:
            assert (w.bank.running, w.bank.runs <= 1) == (0, True)
            stats, calls = w.server.statistics(), pool.statistics()
            assert (stats.keyed_in_flight, stats.in_flight, calls.in_flight, calls.orphans) == (0, 0, 0, 0)
            expected = w.bank.runs + (not stats.kept_results)
            assert await keyed(pool, key).pay(5, 0.02, 0.01) == expected
            await trio.sleep(100)  # It is forgotten.

        assert await cancel_at_every_checkpoint(call, check, spawned=True, moment=moment) > callers
        assert w.bank.most_running == 1


@pytest.mark.parametrize("moment", MOMENTS)
async def test_one_cancelled_at_every_checkpoint(autojump_clock: MockClock, moment: Moment) -> None:
    """Whenever one of two is cancelled, before or behind the other: the other gets the result of the only run."""
    keys = iter(range(1_000_000))
    key = ""
    async with world() as w, open_pool(w.listener.connect) as pool, trio.open_nursery() as others:
        results: list[int] = []

        async def other(delay: float) -> None:
            await trio.sleep(delay)
            results.append(await keyed(pool, key).pay(5, 0.02))

        async def call() -> None:
            nonlocal key
            key = str(next(keys))
            w.bank.runs = 0
            results.clear()
            for delay in (0, 0.01):
                others.start_soon(other, delay)
            await trio.lowlevel.checkpoint()
            await keyed(pool, key).pay(5, 0.02)

        async def check() -> None:
            await trio.sleep(1)
            assert (results, w.bank.runs) == ([1, 1], 1)

        assert await cancel_at_every_checkpoint(call, check, moment=moment) == 2


@pytest.mark.parametrize("moment", MOMENTS)
async def test_the_whole_world_cancelled_at_every_checkpoint(autojump_clock: MockClock, moment: Moment) -> None:
    """Whenever server, pool and callers are cancelled together: nothing of them is left."""
    banks: list[Bank] = []

    async def scenario() -> None:
        bank, listener = Bank(), MemoryListener()
        banks.append(bank)
        async with (
            open_server(bank, listener, heartbeat=QUIET),
            open_pool(listener.connect, heartbeat=QUIET) as pool,
            trio.open_nursery() as nursery,
        ):
            for _ in range(2):
                nursery.start_soon(keyed(pool).pay, 5, 0.02, 0.01)

    async def check() -> None:
        assert (banks[-1].running, banks[-1].runs <= 1) == (0, True)

    async with no_leaks():
        assert await cancel_at_every_checkpoint(scenario, check, spawned=True, moment=moment) > 10


async def test_lost_at_any_time(autojump_clock: MockClock) -> None:
    """The first caller's connection breaks before, during or after the run: the retry gets the one result."""
    async with world() as w:
        for number in range(12):
            w.bank.runs = 0
            first, second = await w.clients(2)
            await first.call("pay", number, 0.05, key=str(number))
            await trio.sleep(number / 100)
            await first.lose()
            await second.call("pay", number, 0.05, key=str(number))
            assert (await second.result(), w.bank.runs) == (1, 1)
            await second.lose()


# -- who is who ----------------------------------------------------------------------------------------------------


async def test_each_server_and_each_pool_has_its_own_instance(autojump_clock: MockClock) -> None:
    """Said in HELLO: the same on all connections of one, another one for another, or after a restart."""
    told: list[set[str]] = []

    async def script(peer: ScriptedPeer) -> None:
        told[-1].add((await peer.expect(HelloReceived)).hello.instance)

    async with watchdog(), trio.open_nursery() as nursery:
        target = ScriptedServer(nursery, script)
        for _ in range(2):
            told.append(set())
            async with open_pool(target.connect):
                await trio.sleep(60)
        assert len(target.dialled_at) > 4
    assert [len(instances) for instances in told] == [1, 1]
    assert not told[0] & told[1]

    instances = []
    for _ in range(2):
        async with world() as w:
            clients = await w.clients(2)
            instances.append({client.protocol.remote.instance for client in clients if client.protocol.remote})
            assert instances[-1] == {w.server.instance}
    assert not instances[0] & instances[1]
