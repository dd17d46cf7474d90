"""Guarantee 2: deadlines are ambient."""

from __future__ import annotations

import math
import time

import pytest
import trio
import trio.testing

from tests.guarantees.kit import Lab, RawClient, numbers
from tests.scripted import ScriptedPeer
from trio_rpc import (
    Code,
    Heartbeat,
    Peer,
    PoolLimits,
    RemoteCancelled,
    ServerLimits,
    current_call,
    method,
    open_connection,
    open_pool,
    open_server,
)
from trio_rpc.testing import Delay, FaultyStream, Freeze, MemoryListener, Recorder, memory_pipe, open_loopback
from trio_rpc.wire import ErrorReceived, Hello, Outcome, RequestReceived, ResponseReceived

SLACK = 0.05
STEP = 0.01
"""A handler's deadline is put off to the next multiple of this."""


def about(seconds: object, *, hops: int = 1) -> object:
    """Right to a step for each server on the way."""
    return pytest.approx(seconds, abs=hops * STEP + 1e-5)


async def test_what_is_left_of_the_deadline_travels(autojump_clock: trio.testing.MockClock) -> None:
    """2: the handler's scope has what was left when the request was written, and a slack of 50 ms; without, none."""
    async with open_loopback(Lab()) as pool:
        stub = pool.stub(Lab)
        with trio.fail_after(10):
            await trio.sleep(3)
            assert await stub.time_left() == about(7 + SLACK)
        assert await stub.time_left() == math.inf


async def test_time_in_the_line_and_in_the_queue_is_not_given_twice(autojump_clock: trio.testing.MockClock) -> None:
    """2: what travels is measured at the time of writing, after any wait for a place or for the transport."""
    freeze = Freeze(direction="sending")
    limits = PoolLimits(max_in_flight=2, max_connections=1)
    async with open_loopback(Lab(), limits=limits, wrap=lambda stream: FaultyStream(stream, freeze)) as pool:
        left: list[float] = []
        stub = pool.stub(Lab)
        await stub.echo(0)

        async def ask() -> None:
            with trio.fail_after(20):
                left.append(await stub.time_left())

        async with trio.open_nursery() as nursery:
            freeze.freeze()
            nursery.start_soon(stub.echo, "the writer sits in this one")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(ask)  # Waits in the connection's queue.
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(ask)  # Waits in the pool's line.
            await trio.sleep(5)
            freeze.thaw()
        assert left == about([15 + SLACK] * 2)


class Middle(Lab):
    def __init__(self, behind: Lab) -> None:
        super().__init__()
        self.behind = behind

    @method
    async def nested(self, shielded: bool) -> float:
        left: list[float] = []
        await trio.sleep(2)
        with trio.CancelScope(shield=shielded):
            left.append(await self.behind.time_left())
        return left[0]


@pytest.mark.parametrize(("shielded", "expected"), [(False, 8 + 2 * SLACK), (True, math.inf)])
async def test_nested_calls_inherit_what_is_left(
    autojump_clock: trio.testing.MockClock, shielded: bool, expected: float
) -> None:
    """2: a handler's own calls inherit the rest of its caller's time; those of a shielded clean-up do not."""
    async with open_loopback(Lab()) as inner, open_loopback(Middle(inner.stub(Lab))) as pool:
        with trio.fail_after(10):
            assert await pool.stub(Middle).nested(shielded) == about(expected, hops=2)


class Expiry:
    """Tells when its handler expires; `ask` and `hang` have the caller's side do something."""

    def __init__(self) -> None:
        self.hung = trio.Event()

    @method
    async def tell(self) -> float:
        return trio.current_effective_deadline()

    @method
    async def ask(self) -> float:
        peer: Peer = current_call().peer
        return await peer.stub(Expiry).tell()

    @method
    async def wait(self) -> None:
        self.hung.set()
        await trio.sleep_forever()

    @method
    async def hang(self) -> None:
        await current_call().peer.stub(Expiry).wait()

    @method
    def block(self) -> None:
        time.sleep(0.2)


async def test_a_handler_that_blocks_gives_nobody_time() -> None:
    """2: a nested call that waits to be written while another handler blocks its server travels with what is left."""
    ours = Expiry()
    async with (
        open_server(Expiry(), "tcp://127.0.0.1:0") as server,
        open_pool(server.addresses[0], services=[ours], limits=PoolLimits(max_connections=1)) as pool,
        trio.open_nursery() as nursery,
    ):
        stub = pool.stub(Expiry)
        nursery.start_soon(stub.hang)  # So that nobody is a single caller, whose requests are written at once.
        await ours.hung.wait()

        async def ask() -> None:
            with trio.fail_after(5) as scope:
                assert await stub.ask() - scope.deadline < 2 * (SLACK + STEP) + 0.1

        for _ in range(5):  # The two arrive together, in either order.
            async with trio.open_nursery() as both:
                both.start_soon(ask)
                both.start_soon(stub.block)
        nursery.cancel_scope.cancel()


async def test_over_a_slow_wire_the_slack_is_two_round_trips(autojump_clock: trio.testing.MockClock) -> None:
    """2: the caller's scope fires first there too; the handlers' side learns of the distance from its pings."""
    beat, slow = Heartbeat(interval=1), Delay(0.2)
    async with open_loopback(Lab(), server_heartbeat=beat, wrap=lambda stream: FaultyStream(stream, slow)) as pool:
        await pool.wait_connected()
        await trio.sleep(5)
        with trio.fail_after(10):
            left = await pool.stub(Lab).time_left()
    assert left == about(10 + 2 * 0.4)


@pytest.mark.parametrize("shape", ["unary", "client_stream", "server_stream", "bidi"])
@pytest.mark.parametrize("how", ["passed", "cancelled"])
async def test_already_expired_nothing_is_sent(autojump_clock: trio.testing.MockClock, shape: str, how: str) -> None:
    """S03, 2: with no time left nothing is sent, and Trio raises what is due: bare, in the task that called."""
    lab, recorder = Lab(), Recorder(direction="sending")
    async with open_loopback(lab, wrap=lambda stream: FaultyStream(stream, recorder)) as pool:
        stub = pool.stub(Lab)
        await stub.echo(0)
        recorder.clear()
        raised: list[type] = []
        with trio.CancelScope(deadline=trio.current_time() if how == "passed" else math.inf) as scope:
            if how == "cancelled":
                scope.cancel()
            try:
                match shape:
                    case "unary":
                        await stub.sleep(1)
                    case "client_stream":
                        await stub.total(numbers(3))
                    case "server_stream":
                        async with stub.count() as counting:
                            await counting.receive()
                    case "bidi":
                        async with stub.doubled(numbers(3)) as doubled:
                            await doubled.receive()
            except BaseException as exc:
                raised.append(type(exc))
                raise
        assert (scope.cancelled_caught, raised) == (True, [trio.Cancelled])
        assert (recorder.passages, lab.log) == ([], [])
        assert await stub.echo("alive") == "alive"
        assert pool.statistics().connects == 1


async def test_expired_on_arrival_is_not_started(autojump_clock: trio.testing.MockClock) -> None:
    """2: a request whose time has run out while it waited behind others on the server is not begun."""
    lab, listener = Lab(), MemoryListener()
    lab.hook = lambda: autojump_clock.jump(3)
    async with open_server(lab, listener):
        client = RawClient(await listener.connect())
        await client.greet()
        await client.send(client.request("Lab.echo", 1), client.request("Lab.echo", 2))  # Fills the crew.
        await client.expect(ResponseReceived)
        await client.expect(ResponseReceived)
        await client.send(client.request("Lab.run_hook"), client.request("Lab.sleep", 0, 0, timeout=2))
        await client.expect(ResponseReceived)
        error = await client.expect(ErrorReceived)
        assert (error.code, error.outcome, error.started) == (Code.DEADLINE_EXCEEDED, Outcome.EXPIRED, False)
        await client.stream.aclose()
    assert lab.log == []


async def test_the_callers_scope_fires_first(autojump_clock: trio.testing.MockClock) -> None:
    """2: at the deadline the caller's own scope cancels the call, and the handler ends by that."""
    lab = Lab()
    async with open_loopback(lab) as pool:
        with pytest.raises(trio.TooSlowError), trio.fail_after(2):
            await pool.stub(Lab).sleep(60)
        assert lab.log == [("ended", 2.0)]


async def test_the_servers_timer_is_a_second_line(autojump_clock: trio.testing.MockClock) -> None:
    """2: where no CANCEL arrives, the handler's own timer ends it, with slack after the caller's."""
    lab, freeze = Lab(), Freeze(direction="sending")
    async with open_loopback(lab, wrap=lambda stream: FaultyStream(stream, freeze)) as pool:
        await pool.stub(Lab).echo(0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.testing.wait_all_tasks_blocked)
            with trio.move_on_after(2):
                nursery.start_soon(_freeze_at, 1, freeze)
                await pool.stub(Lab).sleep(60)
        assert [when for _, when in lab.log] == about([2 + SLACK])
        freeze.thaw()


async def _freeze_at(when: float, freeze: Freeze) -> None:
    await trio.sleep_until(when)
    freeze.freeze()


async def test_a_moved_deadline_ends_as_a_remote_cancellation(autojump_clock: trio.testing.MockClock) -> None:
    """2: the caller's deadline is read once; where the user moves it later, the server's timer is told, not a hang."""
    lab = Lab()
    async with open_loopback(lab) as pool, trio.open_nursery() as nursery:
        with trio.CancelScope(deadline=2) as scope:

            async def move() -> None:
                await trio.sleep(1)
                scope.deadline = math.inf

            nursery.start_soon(move)
            with pytest.raises(RemoteCancelled) as caught:
                await pool.stub(Lab).sleep(60)
            assert (caught.value.code, caught.value.may_have_run, lab.running) == (Code.DEADLINE_EXCEEDED, True, 0)
    assert trio.current_time() == about(2 + SLACK)


async def _answer_early(peer: ScriptedPeer) -> None:
    await peer.greet()
    request = await peer.expect(RequestReceived)
    text = "a server whose clock is fast"
    await peer.send(peer.protocol.error(request.id, Code.DEADLINE_EXCEEDED, Outcome.EXPIRED, True, text))
    with pytest.raises(trio.EndOfChannel):
        while True:
            await peer.event()


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("streaming", [False, True])
async def test_a_server_that_is_early_is_slept_out(
    autojump_clock: trio.testing.MockClock, moved: bool, streaming: bool
) -> None:
    """2: if the server's timer fires first, the caller sleeps until its own scope fires; if that was moved, it is told."""
    ours, theirs = memory_pipe()
    outcome = ""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_answer_early, ScriptedPeer(theirs, Hello()))
        async with open_connection(ours) as pool:
            with trio.CancelScope(deadline=2) as scope:
                nursery.start_soon(_move, scope, moved)
                try:
                    if streaming:
                        async with pool.stub(Lab).count() as counting:
                            await counting.receive()
                    else:
                        await pool.stub(Lab).sleep(60)
                except RemoteCancelled as exc:
                    outcome = exc.code.name
    assert (scope.cancelled_caught, outcome) == ((False, "DEADLINE_EXCEEDED") if moved else (True, ""))
    assert trio.current_time() == 2


async def _move(scope: trio.CancelScope, moved: bool) -> None:
    await trio.sleep(1)
    if moved:
        scope.deadline = 100


async def test_the_server_may_cut_deadlines(autojump_clock: trio.testing.MockClock) -> None:
    """2: `max_deadline` bounds a handler whose caller is more patient, who is told RemoteCancelled, with the code."""
    lab = Lab()
    async with open_loopback(lab, server_limits=ServerLimits(max_deadline=5)) as pool:
        for patience in (math.inf, 60):
            start = trio.current_time()
            with trio.fail_after(patience), pytest.raises(RemoteCancelled, match="max_deadline") as caught:
                await pool.stub(Lab).sleep(600)
            assert trio.current_time() - start == 5
            assert (caught.value.code, caught.value.may_have_run) == (Code.DEADLINE_EXCEEDED, True)
        with pytest.raises(trio.TooSlowError), trio.fail_after(3):
            await pool.stub(Lab).sleep(600)
    assert lab.running == 0


async def test_no_timeout_is_invented(autojump_clock: trio.testing.MockClock) -> None:
    """2: without a scope of the user's a call takes as long as its handler."""
    async with open_loopback(Lab(), limits=PoolLimits(acquire_timeout=1, connect_timeout=1)) as pool:
        assert await pool.stub(Lab).sleep(1_000_000) == "slept"
    assert trio.current_time() == 1_000_000


async def test_a_handlers_own_timeout_is_its_failure(autojump_clock: trio.testing.MockClock) -> None:
    """2 and 5: a TooSlowError out of a handler is not the caller's deadline."""

    class Hasty(Lab):
        @method(raises=[trio.TooSlowError])
        async def hasty(self) -> None:
            with trio.fail_after(1):
                await trio.sleep(60)

    async with open_loopback(Hasty()) as pool:
        with trio.fail_after(30) as scope, pytest.raises(trio.TooSlowError):
            await pool.stub(Hasty).hasty()
    assert (trio.current_time(), scope.cancelled_caught) == (1, False)
