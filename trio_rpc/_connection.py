"""One connection: events into awaited calls, both ways.

Three roles with one owner each: the crew's leader reads, the writer writes, the timer watches. None of them waits for
a handler, a consumer or another call:

1. Only the writer waits to send (see `_outbox`). If it fails, the reader first takes what has already arrived.
2. The reader awaits only `receive_some`. Completing a call, feeding a stream, granting credit are synchronous.
3. Whatever ends the connection goes through `lose`, once: every call in flight fails in that very tick with one
   chained cause, every handler is cancelled with the connection's scope.
4. Nothing of it is raised into its owner's nursery, apart from KeyboardInterrupt and the owner's own cancellation:
   the owner gives it a nursery of its own, within `Contained`.

A connection is symmetric. Who dialled decides the parity of ids and nothing else.

Here is the way of a call, and the tables of both sides. What a call need not know has its own place: the stream that
carries the frames (`_carrier`), items and credit (`_flows`), saying no (`_refusals`), what a bad peer may do (`_faults`),
pings (`_watch`), and how a connection comes to its end in peace (`_leaving`, `_farewell`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextvars import Context
from typing import Any

import trio

from ._admission import Admission, Place
from ._calls import Outgoing
from ._carrier import Carrier
from ._conduct import Conduct, stalled
from ._config import Heartbeat, Limits
from ._context import CallContext
from ._crew import RUN_CALLS, Crew
from ._errors import Code, ConnectionLost, EncodeError, PeerUnresponsive, RemoteProtocolError, RpcError
from ._faults import AT_FAULT, Faults
from ._flows import Flows
from ._incoming import Incoming, Served
from ._leaving import GOING_AWAY, Leaving
from ._logs import limited
from ._outbox import FULL, Outbox
from ._refusals import Refusals, excessive, is_full, unknown
from ._statistics import ConnectionCounters
from ._streams import ReceiveStream
from ._text import shown
from ._timer import Timer
from ._util import locate
from ._watch import Watch
from .wire import (
    MAX_ID,
    Bytes,
    CancelReceived,
    CreditReceived,
    EndReceived,
    ErrorReceived,
    Event,
    GoAwayReceived,
    Hello,
    ItemsReceived,
    Metadata,
    Outcome,
    PingReceived,
    PongReceived,
    Protocol,
    RequestReceived,
    ResponseReceived,
    Role,
    TooMuchReceived,
)

__all__ = ["Connection"]

log = limited(logging.getLogger("trio_rpc.connection"))

MANY = 256
"""Events that are acted on without a turn for other tasks. 64 KiB can hold 6,500."""
MOST_GOAWAYS = 2
"""That is what a drain needs."""


class Connection(Leaving):
    """One stream to one peer, after the HELLOs. Owned by a pool, a server, or `open_connection`."""

    __slots__ = (
        "__weakref__",
        "_admission",
        "_carrier",
        "_crew",
        "_crowd",
        "_early",
        "_excess",
        "_freed",
        "_goaways",
        "_max_deadline",
        "_methods",
        "_now",
        "_peer",
        "_refusals",
        "_scope",
        "_turn_began",
        "_watch",
        "address",
        "base_context",
        "begun",
        "calls",
        "cause",
        "closed",
        "conduct",
        "counters",
        "expires_at",
        "faults",
        "flows",
        "limits",
        "make_peer",
        "max_calls",
        "observe",
        "opened_at",
        "outbox",
        "party",
        "principal",
        "protocol",
        "remote",
        "room_watchers",
        "screen",
        "serving",
        "stream",
        "timer",
        "used_at",
    )

    # Made when they are needed, as most connections are idle for most of the time.
    _crew: Crew | None
    _scope: trio.CancelScope | None
    _refusals: Refusals | None
    _early: list[Event] | None
    """Events that came right behind the HELLO, or that are left of many that came together."""
    begun: Callable[[Connection, float], object] | None
    """Told of each call of ours as it takes its place."""
    observe: Callable[[Outgoing], object] | None
    """Told of each call of ours as it leaves its place: it has ended, or was taken back unsent."""
    make_peer: Callable[[Connection], Any] | None
    """Makes what handlers see as their caller, when one asks for it."""
    conduct: Conduct | None
    """What looks after handlers that do not end, or hold up the loop."""
    principal: Any
    """Who the peer has shown to be."""
    party: Hashable
    """Whom the peer's calls are counted for, where a limit is each caller's own."""
    expires_at: float | None
    """When the principal ceases to hold, if ever."""
    screen: Callable[[Connection, str], tuple[Code, str] | None] | None
    """Why the peer may not even know whether there is such a method; None if it may."""
    _peer: Any
    opened_at: float
    used_at: float
    _now: float
    """When the bytes arrived that are being acted on."""
    _turn_began: float
    """When this turn of many events that came together began; later than `_now` while there are several."""
    _freed: int
    """Calls of ours that left their places since `_tell_room`, which is due once for all that arrived together."""
    _crowd: int
    """How many calls of ours the last bytes ended."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        protocol: Protocol,
        *,
        limits: Limits,
        heartbeat: Heartbeat,
        timer: Timer,
        methods: Mapping[str, Served],
        base_context: Context,
        counters: ConnectionCounters,
        address: str,
        max_deadline: float | None = None,
        admission: Admission | None = None,
    ) -> None:
        self.remote: Hello = protocol.local
        """What the peer said of itself; until it has, what we say."""
        self.max_calls: int = limits.max_in_flight
        """How many calls of ours may be in flight at once: the smaller of our limit and the peer's."""
        self.stream: trio.abc.Stream = stream
        self.protocol: Protocol = protocol
        protocol.is_open = self._is_open
        protocol.max_receiving = limits.receiving_room
        self.limits: Limits = limits
        self.timer: Timer = timer
        self.base_context: Context = base_context
        self.counters: ConnectionCounters = counters
        self.address: str = address
        self.outbox: Outbox = Outbox(self._deadline_of)
        self.make_peer = self.conduct = self.principal = self.party = self.expires_at = self.screen = self._peer = None
        self.calls: dict[int, Outgoing] = {}
        self.serving: dict[int, Incoming] = {}
        self.faults: Faults = Faults(limits, protocol, self._reject)
        """What the peer does that breaks no rule, and that no honest peer does."""
        protocol.on_late = self.faults.charge_late_chunk
        self.flows: Flows = Flows(
            self.calls, self.serving, self.outbox, protocol, counters, limits.max_queued_bytes, self.faults
        )
        """The streams of both."""
        self._now = self._turn_began = self.opened_at = self.used_at = trio.current_time()
        self.closed: bool = False
        self.cause: RpcError | None = None
        """Why the connection ended, once it has."""
        self.going_away: bool = False
        """No further calls of ours: the peer drains, or this connection retires."""
        self.draining: bool = False
        """We drain: the peer is to open no further calls. Those that cross the word of it are taken all the same."""
        self.saying_goodbye: bool = False
        """`finish` was called."""
        self.room_watchers: list[Callable[[Connection], object]] = []
        """Told when a call of ours has left its place, and at the end."""
        self.begun = self.observe = None
        self._watch = Watch(self.outbox, protocol, timer, heartbeat, limits=limits, evict=self.evict)
        self._methods = methods
        self._max_deadline = max_deadline
        self._admission = admission if admission is not None else Admission()
        self._carrier = Carrier(stream, self.outbox, self._watch, limits=limits, address=address, lose=self._lose_by)
        self._crew = self._scope = self._early = self._farewell = self._refusals = None
        self._excess = self._freed = self._crowd = self._goaways = 0
        self._last_accepted, self._no_more = MAX_ID, GOING_AWAY

    def __repr__(self) -> str:
        state = (
            "closed" if self.closed else "going away" if self.going_away else "draining" if self.draining else "open"
        )
        return f"<Connection to {self.address}: {state}, {len(self.calls)} calls in flight, {len(self.serving)} served>"

    @property
    def peer(self) -> Any:
        """What handlers see as their caller; most never ask."""
        if self._peer is None and self.make_peer is not None:
            self._peer = self.make_peer(self)
        return self._peer

    @property
    def heard_at(self) -> float:
        """When the peer last gave a sign of life."""
        return self._watch.heard_at

    @property
    def free(self) -> int:
        """Places left for calls of ours."""
        return 0 if self.going_away or self.closed else self.max_calls - len(self.calls)

    # -- life ------------------------------------------------------------------------------------------------------

    def meet(self, early: list[Event]) -> None:
        """The peer's HELLO has come, and these events right behind it."""
        assert self.protocol.remote is not None
        self.remote = self.protocol.remote
        self.max_calls = min(self.limits.max_in_flight, self.remote.max_in_flight)
        self.outbox.most_at_once = self.remote.max_receiving_bytes // 2  # The other half is for first frames.
        self._early = early or None
        self._now = self._watch.heard()

    def miss(self, exc: BaseException) -> None:
        """There was no HELLO. What was sent right behind ours may have run, unless the peer has turned us away."""
        if isinstance(exc, RpcError) and not exc.may_have_run:
            self._on_goaway(GoAwayReceived(0, Code.UNAVAILABLE, exc.message))
        text = exc.message if isinstance(exc, RpcError) else "the peer's HELLO did not come"
        self._lose_by(text, exc if isinstance(exc, Exception) else None)

    @trio.lowlevel.enable_ki_protection
    async def run(self, nursery: trio.Nursery, *, on_open: Callable[[], object] | None = None) -> None:
        """Serve both directions until the connection ends. The nursery is its own, and its scope the connection's.

        At the end the transport is closed at once: the peer does not wait for our handlers' clean-up, which only the
        end of the nursery waits for. Over a socket this task is the reader, elsewhere the writer (see `_carrier`): so
        a connection over a socket that has had no calls costs one task.
        """
        self._scope = nursery.cancel_scope
        carrier = self._carrier
        try:
            if self._methods:
                self._crew = self._make_crew(nursery)
                self.outbox.on_progress = self._crew.resume
                self._watch.is_busy = self._crew.is_busy
            self._watch.start()
            if carrier.is_socket:
                carrier.begin(nursery, on_open, flush=self._early is None)
                if self._crew is not None and self._early is not None:  # The crew flushes once it has nothing to do.
                    events, self._early = self._early, None
                    self._handle(events)
                await (self._read_on() if self._crew is None else self._crew.run())
                if not self.closed:  # The crew goes on without this task.
                    await trio.sleep_forever()
            else:
                if self._crew is not None:
                    self._crew.start()
                else:
                    nursery.start_soon(self._read_on, name="trio_rpc connection reader")
                if on_open is not None:
                    on_open()
                await carrier.write()
        finally:
            self._lose_by("the connection was closed by its owner")
            await carrier.aclose()

    def _make_crew(self, nursery: trio.Nursery) -> Crew:
        is_socket = self._carrier.is_socket
        return Crew(
            nursery,
            self._read,
            self._carrier.is_clogged,
            # A handler may have taken long since then: what a call of ours says of its deadline needs the time.
            flush=lambda: self.outbox.flush(None if self.calls else self._now),
            keep_deadline=is_socket,
            now=lambda: max(self._now, self._turn_began),
            stall_after=math.inf if self.conduct is None else self.conduct.stall_after,
            stalled=stalled,
            run_calls=RUN_CALLS if is_socket else FULL,  # Elsewhere only the writer's turn sends a full batch.
        )

    def lose(self, cause: RpcError) -> None:
        """End the connection now: fail all calls in flight, cancel all handlers. Idempotent and synchronous."""
        if self.closed:
            return
        self.closed = True
        self.cause = cause
        self._last_accepted = 0  # A request may be arriving in this very moment: begun, nobody would end it any more.
        self._watch.stop()
        if self._farewell is not None:
            self._farewell.stop()
        busy = bool(self.serving)
        now = trio.current_time()
        calls = list(self.calls.values())
        self.calls.clear()
        for call in calls:
            if call.orphan:
                self.counters.orphans -= 1
            self.counters.usage_seconds += now - call.started_at
            call.lose(cause)
            if self.observe is not None:
                self.observe(call)
        for serving in self.serving.values():
            serving.ended = True
            if serving.started:
                serving.watch_end()
            else:
                serving.cut_off()
        self.serving.clear()
        self.outbox.close()
        is_over = self._carrier.close() and not busy
        if self._scope is not None and not is_over:
            self._scope.cancel()
        for watcher in self.room_watchers:
            watcher(self)

    def evict(self, text: str, *, tell: bool = False) -> None:
        """Give the peer up: it is unresponsive. `tell` it why, if there is hope that it hears."""
        self.counters.evicted += 1
        log.warning("evicting %s: %s", self.address, text)
        if tell:
            self._leave_word(text)
        else:
            self._carrier.abandon()
        self.lose(PeerUnresponsive(f"the peer is unresponsive: {text}", peer=self.address))

    def finish(self) -> None:
        """Say goodbye, write what is queued, and end the connection: soon, and within `close_timeout` at the latest."""
        if self.closed or self.saying_goodbye:
            return
        assert self._scope is not None
        self.saying_goodbye = self.going_away = True
        if self._methods or self.serving:  # Else the transport's end tells the peer all that there is to tell.
            self._part().settle("closing", Code.OK)
        if self._carrier.is_socket and self.outbox.idle:
            self._lose_by("the connection was closed on this side")
        else:
            self._scope.deadline = trio.current_time() + self.limits.close_timeout
            self.outbox.finish()

    def retire(self) -> None:
        """Begin no further calls here; those in flight go on."""
        self.going_away = True
        self._tell_room()

    # -- reading ---------------------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def _read_on(self) -> None:
        """Read where nothing is served; elsewhere the crew does it."""
        while await self._read():
            self.outbox.flush(self._now)

    async def _read(self) -> bool:
        """Take the next bytes and act on them; False at the end. Awaited by one task at a time."""
        if self._early:
            return await self._read_early(self._early)
        try:
            data = await self.stream.receive_some()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            if not self.closed:
                self._lose_by("the connection broke", exc)
            return False
        except Exception as exc:  # A stream of the program's own may fail in any way. `Contained` will log it.
            self._lose_by("the stream failed", exc)
            raise
        if not data:
            self._lose_by("the peer closed the connection")
            return False
        self._now = self._watch.heard()
        self.outbox.cork(self._now)  # Who reads flushes before it reads again: `_read_on`, or the crew's leader.
        try:
            events = self.protocol.receive_data(bytes(data))
        except RemoteProtocolError as exc:
            self._reject(exc)
            return False
        if len(events) > MANY:
            self._early, events = events[MANY:], events[:MANY]
            self._turn_began = math.nextafter(self._now, math.inf)
        return self._handle(events)

    async def _read_early(self, events: list[Event]) -> bool:
        """Act on what is here already, MANY at a time, and give other tasks a turn between: they are `_early` until then."""
        if len(events) > MANY:
            await trio.lowlevel.checkpoint()
            if self.closed:
                return False
        if len(events) > MANY or self._turn_began > self._now:
            self._turn_began = math.nextafter(trio.current_time(), math.inf)
        self.outbox.cork(self._now)
        self._early = events[MANY:] or None
        return self._handle(events[:MANY])

    def _handle(self, events: list[Event]) -> bool:
        try:
            for event in events:
                _ON[type(event)](self, event)
        except RemoteProtocolError as exc:
            self._reject(exc)
        self._crowd = self._freed
        if self._freed:
            self._freed = 0
            self._tell_room()
        return not self.closed

    def _lose_by(self, text: str, exc: BaseException | None = None) -> None:
        cause = ConnectionLost(text, peer=self.address)
        cause.__cause__ = exc
        self.lose(cause)

    def _reject(self, exc: RemoteProtocolError) -> None:
        """The peer broke the wire's rules: tell it once, as well as can be, and end."""
        exc.peer = self.address
        log.warning("closing the connection to %s: %s", self.address, shown(exc.message, 160))
        self._leave_word(exc.message)
        self._lose_by(exc.message, exc)

    def _leave_word(self, text: str) -> None:
        """Why this connection ends, to be told as its last."""
        if self.outbox.progressed_at is None:  # Else a frame is half written, and nothing can be said any more.
            said = MAX_ID if self._farewell is None else self._farewell.last_id
            last_id = min(self.protocol.last_remote_id, said)  # It never rises.
            self._carrier.goodbye = self.protocol.goaway(last_id, Code.INTERNAL, text)

    # One method for each event. All synchronous.

    def _on_request(self, event: RequestReceived) -> None:
        if event.id > self._last_accepted:
            self._refuse_going_away(event.id)
            return
        served = self._methods.get(event.method)
        most = self.limits.max_in_flight
        if len(self.serving) >= most and is_full(most, self.serving.values(), served):
            self._excess += 1
            self.counters.refused += 1
            self._refuse(event.id, Code.RESOURCE_EXHAUSTED, excessive(self.limits, self._excess))
            self.faults.charge("a call beyond max_in_flight")
            return
        if event.timeout == 0:  # First, or who may not know of a method could tell that there is one.
            self.counters.expired += 1
            self._refuse(event.id, Code.DEADLINE_EXCEEDED, "the deadline had passed on arrival", Outcome.EXPIRED)
            return
        if served is None:
            denied = None if self.screen is None else self.screen(self, event.method)
            self._refuse(event.id, *(denied or (Code.UNIMPLEMENTED, unknown(event.method, self._methods))))
            return
        self._excess = 0
        admission = self._admission
        place: Place = admission
        if served.limit is None and admission.running < admission.most:
            admission.running += 1
        else:
            found = admission.admit(event.method, served.limit, self.party)
            if isinstance(found, str):
                self.counters.refused += 1
                self._refuse(event.id, Code.RESOURCE_EXHAUSTED, found)
                return
            place = found
        call = Incoming(self, served, event, place)
        self.serving[event.id] = call
        self.counters.served += 1
        if event.timeout is not None or self._max_deadline is not None:
            call.set_deadline(event.timeout, self._now, self._watch.rtt, self._max_deadline)
        if event.streaming:
            call.receive(self.flows, self.limits)
        assert self._crew is not None
        self._crew.backlog.append(call)

    def _refuse(self, request_id: int, code: Code, text: str, outcome: Outcome = Outcome.REFUSED) -> None:
        """Answer what never became a call here."""
        if self._refusals is None:
            self._refusals = Refusals(self.outbox, self.protocol, self.limits)
        self._refusals.refuse(request_id, code, text, outcome)
        if not self.busy_serving:  # It may have been the last request that was still arriving.
            self._tell_room()
        if code in AT_FAULT:
            self.faults.charge(text)

    def _refuse_going_away(self, request_id: int) -> None:
        """No more requests are accepted. Those that crossed the word of it are no more than may be in flight."""
        if self.closed:
            return
        self._refuse(request_id, *self._no_more)
        self._excess += 1
        if self._excess > self.limits.max_in_flight:
            self.faults.charge("a call beyond the last id of our GOAWAY")

    def _on_too_much(self, event: TooMuchReceived) -> None:
        if not event.request:
            self.flows.overflow(event)
        elif event.id > self._last_accepted:
            self._refuse_going_away(event.id)
        else:
            self.counters.refused += 1
            self._refuse(event.id, Code.RESOURCE_EXHAUSTED, event.text)

    def _on_terminal(self, event: ResponseReceived | ErrorReceived | EndReceived) -> None:
        call = self.calls.pop(event.id, None)
        if call is None:
            self.counters.late_replies += 1
            if self.going_away:  # It may have crossed a GOAWAY, which has ended that call here.
                self.faults.charge_late("a reply")
            else:
                self.faults.charge("a reply to a call that has ended")
            return
        if call.orphan:
            self.counters.orphans -= 1
        self.counters.usage_seconds += self._now - call.started_at
        if self.outbox.large:
            self.outbox.stop_sending(call.id)
        call.finish(event)
        if self.observe is not None:
            self.observe(call)
        self._freed += 1

    def _on_end(self, event: EndReceived) -> None:
        call = self.calls.get(event.id)
        if call is not None:
            if event.metadata and call.received is not None:
                call.received.add_metadata(event.metadata, self.limits.max_metadata_items)
            self._on_terminal(event)
            return
        serving = self.serving.get(event.id)
        if serving is None or serving.inbound is None or not serving.inbound.end(trio.EndOfChannel()):
            self.faults.charge_late("an END")

    def _is_open(self, request_id: int) -> bool:
        return request_id in self.calls or request_id in self.serving

    def _on_cancel(self, event: CancelReceived) -> None:
        call = self.serving.get(event.id)
        if call is not None and not call.by_caller:
            call.cancel(event.wait, event.leaving)
        elif event.partial:
            self._refuse(event.id, Code.CANCELLED, "cancelled by the caller", Outcome.CANCELLED)
        else:
            self.faults.charge_late("a CANCEL")

    def _on_ping(self, event: PingReceived) -> None:
        # To a peer that drains, the answer says that no request is still to come. So it does not overtake any.
        self._watch.answer(event.data, self.remote.ping_interval, in_turn=self.going_away)

    def _on_pong(self, event: PongReceived) -> None:
        if not self._watch.answered(event.data):
            self.faults.charge("a PONG that answers no PING")

    def _on_goaway(self, event: GoAwayReceived) -> None:
        self.going_away = True
        self._goaways += 1
        if self._goaways > MOST_GOAWAYS:
            self.faults.charge("one more GOAWAY")
        for request_id in [id_ for id_ in self.calls if id_ > event.last_id]:
            refusal = ErrorReceived(request_id, Code.UNAVAILABLE, Outcome.REFUSED, False, event.message, b"", None)
            call = self.calls[request_id]
            taken_back = self.outbox.withdraw(request_id, call.ticket, streaming=call.outbound is not None)
            if not taken_back and self.outbox.stop_sending(request_id):  # Else the peer would wait for what is left.
                self.outbox.put_control(self.protocol.cancel(request_id, 0.0))
            self._on_terminal(refusal)
        self._tell_room()

    def _tell_room(self) -> None:
        self.used_at = self._now
        if self._farewell is not None:
            self._farewell.tell()
        for watcher in self.room_watchers:
            watcher(self)

    def end_serving(self, call: Incoming) -> None:
        """The handler has ended: only now is its slot free."""
        call.ended = True
        place, call.place = call.place, None
        if place is not None:
            place.leave(call)
        call.coroutine = call.scope = None
        call.context = self.base_context  # Its own one holds the call: a cycle, and work for the garbage collector.
        if call.inbound is not None:
            call.inbound.close()
        self.serving.pop(call.id, None)
        if call.watched and self.conduct is not None:
            self.conduct.ended(call)
        if call.by_caller:
            self.outbox.stop_sending(call.id)
        self.protocol.forget(call.id)
        if not self.serving:
            self.used_at = self._now
            if self.room_watchers or self._farewell is not None:
                self._tell_room()

    # -- calls of ours ---------------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection  # Between cork and flush, a Ctrl-C would leave the frames of others in the queue.
    def start_call(
        self,
        method: bytes,
        payload: bytes,
        blobs: Sequence[Bytes],
        deadline: float,
        now: float,
        metadata: Metadata | None,
        cancel_wait: float,
        parent: CallContext | None = None,
        *,
        streaming: bool = False,
        received: ReceiveStream[Any] | None = None,
    ) -> Outgoing:
        """Queue a request and enter it in the table, in one step. Raises EncodeError with nothing queued."""
        protocol = self.protocol
        try:
            request_id, frames = protocol.request(
                method, payload, blobs, None if deadline == math.inf else deadline - now, metadata, streaming
            )
        except EncodeError as exc:
            locate(exc, str(method[1:], "utf-8"))
            raise
        call = self.calls[request_id] = Outgoing(self, request_id, deadline, now, cancel_wait, parent)
        if received is not None:
            call.received = received
            received.attach(self.flows, request_id)
        self.counters.calls += 1
        if self.begun is not None:
            self.begun(self, now)
        if len(self.calls) == 1 and self._crowd < 2:  # A single caller: others would have been woken with it.
            self.outbox.cork(now)
            call.ticket = self.outbox.put_message(request_id, frames)
            self.outbox.flush(now)
        else:
            call.ticket = self.outbox.put_message(request_id, frames)
        if protocol.exhausted:
            self._run_out()
        return call

    def _run_out(self) -> None:
        """Few ids are left for calls of ours. Who dialled retires this connection, and has others.

        Who was dialled has no other: it drains, so that its peer comes anew, and what is under way may still call back.
        """
        if self.protocol.role is Role.DIALLER:
            self.retire()
        else:
            self.drain("few call ids are left")

    def _deadline_of(self, request_id: int) -> float:
        call = self.calls.get(request_id)
        return math.inf if call is None else call.deadline

    def withdraw(self, call: Outgoing) -> bool:
        """Take back a request that the writer has not taken. True: it never left, and its place is free."""
        streaming = call.outbound is not None
        if (
            call.id not in self.calls
            or call.stopping
            or not self.outbox.withdraw(call.id, call.ticket, streaming=streaming)
        ):
            return False
        if call.outbound is not None:
            call.outbound.stop()  # Its items are still being asked for, and must not be sent without their request.
        call.stopping = True
        del self.calls[call.id]
        if self.observe is not None:
            self.observe(call)
        self._tell_room()
        return True

    def ping(self, answered: Callable[[float], object]) -> None:
        """Ask the peer for a sign of life: `answered(seconds)` is told its round trip; never, if the connection ends first.

        Pings that are asked for while one is under way go out as one behind it, and never more often than any peer
        allows: about two a second, after the first few.
        """
        if not self.closed:
            self._watch.ping(answered)

    def note_orphan(self) -> None:
        """A call was given up whose handler has not ended; its place stays taken."""
        self.counters.orphans += 1
        if self._farewell is not None:
            self._farewell.tell()


_ON: dict[type, Callable[[Connection, Any], None]] = {
    RequestReceived: Connection._on_request,
    ResponseReceived: Connection._on_terminal,
    ErrorReceived: Connection._on_terminal,
    ItemsReceived: lambda connection, event: connection.flows.feed(event),
    EndReceived: Connection._on_end,
    CreditReceived: lambda connection, event: connection.flows.widen(event),
    CancelReceived: Connection._on_cancel,
    PingReceived: Connection._on_ping,
    PongReceived: Connection._on_pong,
    GoAwayReceived: Connection._on_goaway,
    TooMuchReceived: Connection._on_too_much,
}
