"""When a silent peer is pinged and given up: tables of moments for the pure decision, then whole connections."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import trio_rpc
from tests.scripted import ScriptedPeer, ScriptedServer, watchdog
from trio_rpc import Heartbeat, PeerUnresponsive, PoolLimits, method
from trio_rpc._heartbeat import LOOKS, Action, Crossing, Vigil
from trio_rpc._outbox import Outbox
from trio_rpc._timer import Timer
from trio_rpc._watch import Watch
from trio_rpc.testing import Drop, FaultyStream, Freeze, open_loopback
from trio_rpc.wire import Hello, PingReceived, Protocol, RequestReceived, Role

WAIT, PING, EVICT = Action.WAIT, Action.PING, Action.EVICT
HEARTBEAT = Heartbeat(interval=10, timeout=5)
Moment = tuple[float, object]
"""When, and what happens then: "heard", "left" (the ping), or `(lateness, verdict)` of a `decide`."""


def decide(verdict: Action, lateness: float = 0.0, progressed_at: float | None = None) -> object:
    """One question and the answer that it is to get."""
    return (verdict, lateness, progressed_at)


EVICTED = [decide(WAIT)] * LOOKS + [decide(EVICT)]
"""The last looks before an eviction, all in the same moment: whatever has arrived is read in between."""


def at(moment: float, *events: object) -> list[Moment]:
    """Several things at one time."""
    return [(moment, event) for event in events]


@pytest.mark.parametrize(
    "story",
    [
        pytest.param(at(9.9, decide(WAIT)) + at(10, decide(PING)), id="pinged at the interval"),
        pytest.param(at(8, "heard") + at(10, decide(WAIT)) + at(18, decide(PING)), id="any byte is life"),
        pytest.param(at(10, decide(PING), "left") + at(15, *EVICTED), id="evicted a timeout later"),
        pytest.param(at(10, decide(PING), "left") + at(14.9, decide(WAIT)), id="not before"),
        pytest.param(
            at(10, decide(PING), "left") + at(14, "heard") + at(15, decide(WAIT)) + at(24, decide(PING)),
            id="an answer begins anew",
        ),
        pytest.param(
            at(10, decide(PING), "left") + at(15, decide(WAIT), decide(WAIT), "heard", decide(WAIT)),
            id="an answer that is read at the last moment counts",
        ),
        pytest.param(
            at(10, decide(PING)) + at(12, "left") + at(15, decide(WAIT)) + at(17, *EVICTED),
            id="the timeout runs from the ping's leaving",
        ),
        pytest.param(
            at(10, decide(PING)) + at(15, decide(WAIT, progressed_at=14)) + at(19, decide(WAIT, progressed_at=14)),
            id="while other bytes leave the ping may be late",
        ),
        pytest.param(
            at(10, decide(PING), "left") + at(20, decide(PING, lateness=5), "left") + at(25, *EVICTED),
            id="our own lateness gives one more ping",
        ),
        pytest.param(
            at(10, decide(PING), "left")
            + at(20, decide(PING, lateness=5), "left")
            + at(30, decide(WAIT, lateness=5), *EVICTED[1:]),
            id="but only one",
        ),
        pytest.param(
            at(10, decide(PING), "left")
            + at(20, decide(PING, lateness=5), "left")
            + at(21, "heard")
            + at(31, decide(PING), "left")
            + at(41, decide(PING, lateness=5)),
            id="until the peer was heard again",
        ),
        pytest.param(
            at(10, decide(PING), "left") + at(15.2, decide(WAIT, lateness=0.2)), id="a little lateness is ordinary"
        ),
    ],
)
def test_the_vigil(story: Sequence[Moment]) -> None:
    """Each story: what happens when, and what the vigil says to it."""
    vigil = Vigil(HEARTBEAT, 0.0)
    for now, event in story:
        if event == "heard":
            vigil.heard(now)
        elif event == "left":
            vigil.left(now)
        else:
            assert isinstance(event, tuple)
            verdict, lateness, progressed_at = event
            assert vigil.decide(now, lateness, progressed_at) is verdict, f"at {now}"


@pytest.mark.parametrize(
    ("acknowledged", "expected"),
    [
        pytest.param([100], [False], id="no progress"),
        pytest.param([101, 101, 150], [True, False, True], id="progress, a pause, progress"),
        pytest.param([1100, 1100], [True, False], id="it has arrived since the last look"),
        pytest.param([1099, 1100, 1200], [True, True, False], id="what goes on behind it counts for nothing"),
    ],
)
def test_the_crossing(acknowledged: Sequence[int], expected: Sequence[bool]) -> None:
    """N10: a ping with 1000 bytes under way, of which it is the last, after 100 that have arrived."""
    crossing = Crossing(100, 1000)
    assert [crossing.goes_on(count) for count in acknowledged] == expected


def test_a_ping_on_its_way_has_its_time_anew() -> None:
    """N10: from the verdict that found it so; and the last looks are due again."""
    vigil = Vigil(HEARTBEAT, 0.0)
    assert vigil.decide(10, 0) is PING
    vigil.left(10)
    assert [vigil.decide(15, 0) for _ in range(LOOKS + 1)] == [WAIT] * LOOKS + [EVICT]
    vigil.still_leaving(15)
    assert vigil.due() == 20
    assert [vigil.decide(20, 0) for _ in range(LOOKS + 1)] == [WAIT] * LOOKS + [EVICT]


def test_due_tells_when_to_ask() -> None:
    """Never so early that the answer would be to wait, when nothing happens in between."""
    vigil = Vigil(HEARTBEAT, 100.0)
    assert vigil.due() == 110
    vigil.heard(103)
    assert vigil.due() == 113
    assert vigil.decide(113, 0) is PING
    assert vigil.due() == 118
    assert vigil.due(progressed_at=115) == 120
    vigil.left(116)
    assert vigil.due(progressed_at=119) == 121


def test_a_ping_that_leaves_late_does_not_count_for_the_next() -> None:
    """The transport took it after the peer had been heard: the next one has its own moment."""
    vigil = Vigil(HEARTBEAT, 0.0)
    assert vigil.decide(10, 0) is PING
    vigil.heard(11)
    vigil.left(12)
    assert vigil.decide(21, 0) is PING
    assert vigil.due() == 26


# -- whole connections -------------------------------------------------------------------------------------------------


class Nurse:
    @method
    async def wait(self, seconds: float) -> float:
        await trio.sleep(seconds)
        return seconds


async def test_the_server_gives_up_a_silent_client(autojump_clock: MockClock) -> None:
    """At `interval + timeout` of its own; the handlers of that client are cancelled."""
    hole, ended = Drop(direction="sending"), []

    class Patient:
        @method
        async def wait(self) -> None:
            try:
                await trio.sleep_forever()
            finally:
                ended.append(trio.current_time())

    async with watchdog(), trio.open_nursery() as nursery:
        async with open_loopback(
            Patient(), server_heartbeat=HEARTBEAT, wrap=lambda stream: FaultyStream(stream, hole)
        ) as pool:
            nursery.start_soon(_swallow_loss, pool)
            await trio.sleep(1)
            hole.now()
            await trio.sleep(30)
            assert ended == [pytest.approx(15, abs=0.01)]


async def _swallow_loss(pool: trio_rpc.Pool) -> None:
    with pytest.raises(trio_rpc.ConnectionLost):
        await pool.call("Patient.wait")


async def test_a_ping_is_answered_while_handlers_run(autojump_clock: MockClock) -> None:
    """A peer that only computes for long is alive, on both sides."""
    async with open_loopback(Nurse(), heartbeat=HEARTBEAT, server_heartbeat=Heartbeat(interval=3, timeout=1)) as pool:
        assert await pool.stub(Nurse).wait(100) == 100
        assert pool.statistics().evicted == 0


async def test_one_silence_one_ping(autojump_clock: MockClock) -> None:
    """The pings come at the interval and no more often; each answer is a full interval of peace."""
    pings: list[float] = []

    async def count(peer: ScriptedPeer) -> None:
        await peer.greet()
        while True:
            event = await peer.event()
            if isinstance(event, PingReceived):
                pings.append(trio.current_time())
                await peer.send(peer.protocol.pong(event.data))

    async with watchdog(), trio.open_nursery() as nursery:
        async with trio_rpc.open_pool(ScriptedServer(nursery, count).connect, heartbeat=HEARTBEAT):
            await trio.sleep(45)
    assert pings == pytest.approx([10, 20, 30, 40], abs=0.01)


async def test_any_byte_spares_the_ping(autojump_clock: MockClock) -> None:
    """A peer that sends something every 9 s is never asked."""

    async def chatter(peer: ScriptedPeer) -> None:
        await peer.greet()
        request = await peer.expect(RequestReceived)
        for _ in range(5):
            await trio.sleep(9)
            await peer.send(peer.protocol.credit(request.id, 1, 1))
        await peer.answer(request, "done")
        await peer.expect(RequestReceived)

    async with watchdog(), trio.open_nursery() as nursery:
        async with trio_rpc.open_pool(ScriptedServer(nursery, chatter).connect, heartbeat=HEARTBEAT) as pool:
            assert await pool.call("Any.thing") == "done"


@pytest.mark.parametrize(("pause", "evicted"), [(4.0, 0), (20.0, 1)])
async def test_a_stall_shorter_than_the_timeout_is_survived(
    autojump_clock: MockClock, pause: float, evicted: int
) -> None:
    """And a longer one is not."""
    stall = Freeze(direction="receiving")
    async with (
        watchdog(),
        open_loopback(
            Nurse(), heartbeat=Heartbeat(interval=10, timeout=5), wrap=lambda stream: FaultyStream(stream, stall)
        ) as pool,
    ):
        await pool.stub(Nurse).wait(1)
        outcome: object = None
        async with trio.open_nursery() as nursery:

            async def caller() -> None:
                nonlocal outcome
                try:
                    outcome = await pool.stub(Nurse).wait(30)
                except PeerUnresponsive as exc:
                    outcome = type(exc)

            nursery.start_soon(caller)
            await trio.sleep(9)
            stall.freeze()
            await trio.sleep(pause)
            stall.thaw()
        assert outcome == (PeerUnresponsive if evicted else 30)
        assert pool.statistics().evicted == evicted


async def test_our_own_stall_evicts_nobody() -> None:
    """N19, Rule 6: a loop that was busy for longer than `interval + timeout` first reads what has arrived: real time."""
    beat = Heartbeat(interval=0.1, timeout=0.1)
    async with open_loopback(Nurse(), heartbeat=beat) as pool:
        await pool.stub(Nurse).wait(0.01)
        for _ in range(3):
            time.sleep(0.4)  # noqa: ASYNC251 - the blocked loop is what is tested
            await trio.sleep(0.15)
        assert await pool.stub(Nurse).wait(0.01) == 0.01
        assert (pool.statistics().evicted, pool.statistics().connects) == (0, 1)


# -- pings that somebody waits for -------------------------------------------------------------------------------------


class Line:
    """A watch, and what it has sent; a peer's watch, which counts that. What it asks is answered when `answer` says so."""

    def __init__(self, nursery: trio.Nursery, heartbeat: Heartbeat = Heartbeat(interval=None)) -> None:  # noqa: B008 - frozen
        self.pings: list[tuple[float, bytes]] = []
        self.told: list[tuple[str, float, float]] = []
        self.timer = Timer()
        self.outbox = Outbox()
        self.watch = self._watch(heartbeat, Outbox(), self.sent)
        self.peer = self._watch(Heartbeat(interval=None), self.outbox, lambda _data: None)
        nursery.start_soon(self.timer.run)

    def _watch(self, heartbeat: Heartbeat, outbox: Outbox, send: Callable[[bytes], object]) -> Watch:
        def send_now(data: Any) -> int:
            send(bytes(data))
            return len(data)

        outbox.send_now = send_now
        outbox.begin(lambda: None)
        protocol = Protocol(Role.DIALLER, Hello())
        return Watch(
            outbox, protocol, self.timer, heartbeat, limits=PoolLimits(write_timeout=None), evict=lambda _text: None
        )

    def sent(self, data: bytes) -> None:
        self.pings.append((trio.current_time(), data[-8:]))
        self.peer.answer(data[-8:], None)
        self.outbox.flush()

    def ask(self, name: str) -> None:
        """Ask for a ping; `told` has when that was answered, and its round trip."""
        self.watch.ping(lambda rtt: self.told.append((name, trio.current_time(), rtt)))

    def answer(self) -> None:
        """The PONG of the latest ping arrives."""
        self.watch.answered(self.pings[-1][1])


async def test_a_ping_that_is_asked_for(autojump_clock: MockClock) -> None:
    """It goes out at once, its answer is told once, and who asks meanwhile is told of the next one's answer."""
    async with trio.open_nursery() as nursery:
        line = Line(nursery)
        line.ask("first")
        await trio.sleep(2)
        line.ask("second")
        line.ask("third")
        assert [when for when, _ in line.pings] == [0]
        line.answer()
        assert line.told == [("first", 2, 2)]
        assert [when for when, _ in line.pings] == [0, 2]
        await trio.sleep(1)
        line.answer()
        line.answer()
        assert line.told[1:] == [("second", 3, 1), ("third", 3, 1)]
        nursery.cancel_scope.cancel()


async def test_pings_are_never_more_than_a_peer_allows(autojump_clock: MockClock) -> None:
    """However often they are asked for, and however fast they are answered; and each asker is told in the end."""
    async with trio.open_nursery() as nursery:
        line = Line(nursery)
        for number in range(1000):  # Ten seconds in all. The peer raises RemoteProtocolError for too many.
            line.ask(str(number))
            line.answer()
            await trio.sleep(0.01)
        await trio.sleep(1)
        line.answer()
        assert [name for name, _, _ in line.told] == [str(number) for number in range(1000)]
        assert 20 < len(line.pings) <= 5 + 2 * 11
        nursery.cancel_scope.cancel()


async def test_two_pings_of_one_moment_have_two_answers(autojump_clock: MockClock) -> None:
    """One that is asked for is not answered by the answer to the heartbeat's; and after the end nobody is told."""
    async with trio.open_nursery() as nursery:
        line = Line(nursery, Heartbeat(interval=10, timeout=5))
        line.watch.start()
        await trio.sleep(10)
        await trio.testing.wait_all_tasks_blocked()
        line.ask("first")
        (beat, asked) = line.pings
        assert beat[0] == asked[0] == 10
        line.watch.answered(beat[1])
        assert line.told == []
        line.watch.answered(asked[1])
        assert len(line.told) == 1
        line.ask("second")
        line.watch.stop()
        line.answer()
        assert len(line.told) == 1
        nursery.cancel_scope.cancel()
