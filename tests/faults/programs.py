"""Programs for the simulation that Hypothesis writes, and shrinks: calls, faults, and peers that send anything at all.

A program is a plan of `tests.simulation`, with three more kinds of step: bytes of somebody in the middle, a stranger
who connects to the server, and a rogue in whose hands the pool's next connection ends. All that a world holds its plan
to is held here too: one outcome for each call, only declared errors, what was acknowledged has run, nothing runs twice
that may not, no table, place or task is left, and once all is calm a new call succeeds soon.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, cast

import attrs
import trio
from hypothesis import strategies as st

from tests.acceptance_worlds import raw_frame
from tests.simulation.network import End, Host, Path
from tests.simulation.plan import Call, Client, Close, Cut, Drain, Freeze, Kill, Lose, Plan, Server, Slow, Step, Tend
from tests.simulation.running import run_plan
from tests.simulation.world import World
from trio_rpc import Backoff, Heartbeat, LeastInFlight, PoolLimits, RetryPolicy, ServerLimits
from trio_rpc._address import Address
from trio_rpc.wire import PREFACE, Flag, Hello, Kind, method_block

__all__ = ["failures", "programs"]

BEAT = Heartbeat(interval=1, timeout=1)
QUICK = Backoff(initial=0.1, maximum=1, jitter=0.2)
SPAN = 40
"""Tenths of a second in which all steps begin."""

# -- steps -------------------------------------------------------------------------------------------------------------

Saying: TypeAlias = tuple[Any, ...]
"""What is said, and with which numbers; `said` has the bytes."""
Leaving: TypeAlias = Literal["closes", "resets", "stays"]


@attrs.frozen
class Inject:
    """Bytes that nobody has sent come between those of the connections there are, in this direction."""

    at: float
    direction: int
    data: bytes


@attrs.frozen
class Stranger:
    """Somebody connects to the server, says this, and goes or stays; he reads what comes, or does not."""

    at: float
    sayings: Sequence[Saying]
    reads: bool
    leaving: Leaving


@attrs.frozen
class Rogue:
    """The connections there are break, and the next one ends with somebody who is no server of ours."""

    at: float
    sayings: Sequence[Saying]
    reads: bool
    leaving: Leaving


def said(saying: Saying) -> bytes:
    """The bytes."""
    match saying:
        case ("hello",):
            return PREFACE + raw_frame(Kind.HELLO, 0, Hello(codecs=("msgpack", "json")).to_bytes())
        case ("request", request_id, name):
            return raw_frame(Kind.REQUEST, request_id, method_block(f"Simulated.{name}") + b"\x90")
        case ("upload", request_id):
            body = method_block("Simulated.total") + b"\x94\x00\x00\x00\xc0"
            return raw_frame(Kind.REQUEST, request_id, body, flags=Flag.STREAM)
        case ("part", request_id, announced):
            body = struct.pack(">I", announced) + method_block("Simulated.ping")
            return raw_frame(Kind.REQUEST, request_id, body, flags=Flag.MORE)
        case ("about", kind, request_id, body):
            return raw_frame(kind, request_id, body)
        case ("half", kind, announced):
            return raw_frame(kind, 1, b"\x01", length=announced)
        case ("many", kind, count):
            return raw_frame(kind, 0, bytes(8)) * int(count)
        case ("go away", last_id):
            return raw_frame(Kind.GOAWAY, 0, struct.pack(">IB", last_id, 14))
        case _:
            return bytes(saying[1])


# -- what Hypothesis draws ---------------------------------------------------------------------------------------------

times = st.integers(0, SPAN).map(lambda tenths: tenths / 10)
seconds = st.sampled_from([0.0, 0.1, 0.5, 2.0])
ids = st.sampled_from([0, 1, 2, 3, 5, 2**32 - 1])
kinds = st.sampled_from(list(Kind)) | st.integers(0, 255)
sayings: st.SearchStrategy[Saying] = st.one_of(
    st.tuples(st.just("request"), ids, st.sampled_from(["ping", "once", "nothing", "count"])),
    st.tuples(st.just("upload"), ids),
    st.tuples(st.just("part"), ids, st.sampled_from([0, 100, 2**20, 2**32 - 1])),
    st.tuples(st.just("about"), kinds, ids, st.binary(max_size=12)),
    st.tuples(st.just("half"), kinds, st.sampled_from([2, 100, 16_384, 2**32 - 1])),
    st.tuples(st.just("many"), st.sampled_from([Kind.PING, Kind.PONG, Kind.END]), st.sampled_from([1, 30, 3000])),
    st.tuples(st.just("go away"), ids),
    st.tuples(st.just("bytes"), st.binary(max_size=24)),
)
speeches = st.one_of(
    st.lists(sayings, max_size=3),
    st.lists(sayings, max_size=6).map(lambda rest: [("hello",), *rest]),
)
leavings: st.SearchStrategy[Leaving] = st.sampled_from(["closes", "resets", "stays"])
hostile = st.one_of(
    # Longer than any frame may be, so that it is no honest frame: who is in the middle could say anything.
    st.builds(Inject, times, st.integers(0, 1), st.binary(max_size=12).map(lambda data: b"\xff" + data)),
    st.builds(Stranger, times, speeches, st.booleans(), leavings),
    st.builds(Rogue, times, speeches, st.booleans(), leavings),
)
directions = st.sampled_from([(0,), (1,), (0, 1)])
here = st.just(0)
honest: st.SearchStrategy[Step] = st.one_of(
    st.builds(Freeze, times, here, here, directions, st.sampled_from([0.5, 3.0, 20.0])),
    st.builds(Slow, times, here, here, seconds, st.sampled_from([None, 1, 10, 50]), st.just(0.01), st.just(2.0)),
    st.builds(Lose, times, here, here, directions),
    st.builds(Cut, times, here, here, st.sampled_from([0, 1, 5, 20, 50, 200])),
    st.builds(Drain, times, here, st.sampled_from([0.0, 0.5, 10.0]), st.sampled_from([None, 0.0, 1.0])),
    st.builds(Kill, times, here, st.sampled_from([0.0, 0.1, 1.0])),
    st.builds(Tend, times, here, st.sampled_from(["recycle", "check"]), seconds),
    st.builds(Close, times, here, st.sampled_from([None, 0.0, 2.0])),
)


@st.composite
def calls(draw: st.DrawFn, number: int) -> Call:
    """One call; no two deadlines are equal, as Trio has no order for those that is the same in each run."""
    deadline = draw(st.none() | times)
    return Call(
        at=draw(times),
        number=number,
        client=0,
        shape=draw(st.sampled_from(["once", "again", "decline", "count", "total", "double"])),
        takes=draw(seconds),
        cleanup=draw(seconds),
        items=draw(st.sampled_from([0, 1, 5, 30])),
        size=draw(st.sampled_from([0, 10, 300, 30_000])),
        deadline=None if deadline is None else deadline + number * 1e-7,
        cancelled_after=draw(st.none() | seconds),
        leaves_after=draw(st.sampled_from([None, None, 0, 1, 3])),
        spoilt_after=draw(st.sampled_from([None, None, 0, 4])),
        keyed=False,
        hedge=None,
        wait_for_ready=draw(st.sampled_from([None, True, False])),
        priority=None,
        routing_key=None,
    )


@st.composite
def programs(draw: st.DrawFn) -> Plan:
    """One server, one pool, some calls, some faults, and some who mean no good."""
    numbers = range(1, 1 + draw(st.integers(0, 6)))
    steps = [*(draw(calls(number)) for number in numbers), *draw(st.lists(honest, max_size=3))]
    extra = draw(st.lists(hostile, max_size=4))
    return Plan(
        seed=0,
        codec=draw(st.sampled_from(["msgpack", "json"])),
        servers=(Server(_server_limits(), BEAT, None),),
        clients=(_client(draw),),
        steps=cast("tuple[Step, ...]", (*steps, *extra)),
    )


def _server_limits() -> ServerLimits:
    return ServerLimits(max_in_flight=8, handshake_timeout=1, write_timeout=2, max_frame_size=16 * 1024)


def _client(draw: st.DrawFn) -> Client:
    limits = PoolLimits(
        min_connections=draw(st.integers(0, 1)),
        max_connections=draw(st.integers(1, 2)),
        max_in_flight=draw(st.integers(1, 4)),
        connect_timeout=0.5,
        acquire_timeout=5,
        write_timeout=2,
        max_frame_size=16 * 1024,
        stream_window_items=draw(st.sampled_from([1, 8])),
        cancel_wait=draw(st.sampled_from([0.0, 0.5])),
        connect_backoff=QUICK,
    )
    return Client(
        servers=(0,),
        resolved=False,
        limits=limits,
        heartbeat=BEAT,
        retry=RetryPolicy(attempts=draw(st.integers(1, 3)), backoff=QUICK),
        hedge=None,
        balance=LeastInFlight(),
        ejection=None,
        breaker=None,
        checks_health=False,
        prepares=False,
        serves=draw(st.booleans()),
        capacity=draw(st.sampled_from([200, 64 * 1024])),
        latency=0.0,
    )


# -- the interpreter ---------------------------------------------------------------------------------------------------


class HostileWorld(World):
    """A world with strangers and rogues in it."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._rogues: deque[Rogue] = deque()
        self._stays: set[trio.CancelScope] = set()

    async def _dial(self, address: Address, *options: Any) -> End:
        if not self._rogues:
            return await super()._dial(address, *options)
        rogue, host = self._rogues.popleft(), Host("rogue")
        listener = host.listen()
        ours = await Path("rogue", host, 64 * 1024, self.journal).dial()
        self._receive(rogue, await listener.accept())
        return ours

    async def _act(self, step: Any) -> None:
        if not isinstance(step, Inject | Stranger | Rogue):
            await super()._act(step)
            return
        await trio.sleep(step.at)
        self.journal.note(step)
        path = self._paths[0, 0]
        match step:
            case Inject():
                for link in path.links:
                    link.pipes[step.direction].inject(step.data)
            case Stranger():
                try:
                    stream = await Path("stranger", path.host, 1000, self.journal).dial()
                except OSError:
                    return
                self._receive(step, stream)
            case Rogue():
                self._rogues.append(step)
                for link in path.links:
                    link.reset()

    def _receive(self, guest: Stranger | Rogue, stream: End) -> None:
        self._sites[0].nursery.start_soon(self._play, guest, stream)  # He may stay for longer than all steps take.

    async def _play(self, guest: Stranger | Rogue, stream: End) -> None:
        """Say all that is to be said, then go, or stay until all is calm."""
        async with stream:
            with trio.CancelScope() as stay:
                self._stays.add(stay)
                async with trio.open_nursery() as nursery:
                    if guest.reads:
                        nursery.start_soon(_read, stream)
                    try:
                        for saying in guest.sayings:
                            await stream.send_all(said(saying))
                            await trio.sleep(0.01)
                    except trio.BrokenResourceError:
                        pass  # The other side has had enough.
                    if guest.leaving == "stays":
                        await trio.sleep_forever()
                    nursery.cancel_scope.cancel()
            if guest.leaving == "resets":
                stream.reset()

    def _calm(self) -> None:
        super()._calm()
        self._rogues.clear()
        for stay in self._stays:
            stay.cancel()


async def _read(stream: End) -> None:
    try:
        while await stream.receive_some():
            pass
    except trio.BrokenResourceError:
        pass


def failures(program: Plan) -> list[str]:
    """Live through a program; what did not hold."""
    return run_plan(program, HostileWorld).failures
