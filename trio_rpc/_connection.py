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
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextvars import Context
from functools import partial
from typing import Any

import trio

from ._admission import Admission, Place
from ._calls import Incoming, Outgoing, Served
from ._config import Heartbeat, Limits
from ._context import CallContext
from ._crew import RUN_CALLS, Crew
from ._errors import (
    Code,
    ConnectionLost,
    EncodeError,
    PeerUnresponsive,
    RemoteProtocolError,
    RpcError,
)
from ._outbox import FULL, Outbox
from ._sockets import SocketStream
from ._statistics import ConnectionCounters
from ._streams import ReceiveStream
from ._timer import Moment, Timer
from ._util import locate
from ._watch import Watch
from .wire import (
    MAX_ID,
    Bytes,
    CancelReceived,
    CreditReceived,
    Data,
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
    message_size,
)

__all__ = ["Connection", "Contained"]

log = logging.getLogger("trio_rpc.connection")

MIN_SLACK = 0.05
"""A handler's scope fires this much (or two round trips) after its caller's, so that the caller's fires first."""
DEADLINE_STEP = 0.01
"""A handler's scope fires at a multiple of this, so that calls with like deadlines share one and a kept scope need not
be set anew for each of them, at 1.5 us each time."""
SLICE_SIZE = 16 * 1024
"""What a stream that is no socket is given at once: one TLS record, 2 s on a link of 8 KiB/s."""
SETTLE_TIME = 1.0
"""The longest wait, in seconds, for the answer to a drain's PING; two round trips, if these take longer."""
QUEUE_FACTOR = 4
"""Requests refused as Overloaded without a pause, or refused and not read, in units of `max_in_flight`, before the
connection is closed: an honest peer keeps to the limit it was told."""


class Connection:
    """One stream to one peer, after the HELLOs. Owned by a pool, a server, or `open_connection`."""

    __slots__ = (
        "__weakref__",
        "_admission",
        "_crew",
        "_crowd",
        "_early",
        "_excess",
        "_freed",
        "_goodbye",
        "_last_accepted",
        "_max_deadline",
        "_methods",
        "_now",
        "_nursery",
        "_owed_refusals",
        "_peer",
        "_quiet",
        "_scope",
        "_settled",
        "_settling",
        "_watch",
        "address",
        "base_context",
        "calls",
        "cause",
        "closed",
        "counters",
        "draining",
        "going_away",
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
        "saying_goodbye",
        "serving",
        "stream",
        "timer",
        "used_at",
    )

    # Made when they are needed, as most connections are idle for most of the time.
    _crew: Crew | None
    _scope: trio.CancelScope | None
    _nursery: trio.Nursery | None
    _quiet: trio.lowlevel.ParkingLot | None
    _settling: Moment | None
    """When the second GOAWAY goes out at the latest; None before the first and after the second."""
    _early: list[Event] | None
    """Events that came right behind the HELLO."""
    make_peer: Callable[[Connection], Any] | None
    """Makes what handlers see as their caller, when one asks for it."""
    principal: Any
    """Who the peer has shown to be."""
    party: Hashable
    """Whom the peer's calls are counted for, where a limit is each caller's own."""
    _peer: Any
    _now: float
    """When the bytes arrived that are being acted on."""
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
        self.limits: Limits = limits
        self.timer: Timer = timer
        self.base_context: Context = base_context
        self.counters: ConnectionCounters = counters
        self.address: str = address
        self.outbox: Outbox = Outbox()
        self.outbox.deadline_of = self._deadline_of
        self.make_peer = self.principal = self.party = self._peer = None
        self.calls: dict[int, Outgoing] = {}
        self.serving: dict[int, Incoming] = {}
        now = self._now = trio.current_time()
        self.opened_at: float = now
        self.used_at: float = now
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
        self.observe: Callable[[Outgoing], object] | None = None
        """Told of each call of ours as it leaves its place: it has ended, or was taken back unsent."""
        self._watch = Watch(
            self.outbox, protocol, timer, heartbeat, write_timeout=limits.write_timeout, evict=self.evict
        )
        self._methods = methods
        self._max_deadline = max_deadline
        self._admission = admission if admission is not None else Admission()
        self._crew = self._scope = self._nursery = self._quiet = self._early = self._settling = None
        self._settled = False
        self._excess = self._owed_refusals = self._freed = self._crowd = 0
        self._last_accepted = MAX_ID
        self._goodbye = b""

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
    def in_flight(self) -> int:
        """Calls of ours that have not ended, orphans included."""
        return len(self.calls)

    @property
    def busy(self) -> bool:
        """True while any call is under way, in either direction."""
        return bool(self.calls) or self.busy_serving

    @property
    def busy_serving(self) -> bool:
        """True while a call of the peer's runs here, or its request is still arriving in chunks."""
        return bool(self.serving or self.protocol.receiving_requests)

    @property
    def heard_at(self) -> float:
        """When the peer last gave a sign of life."""
        return self._watch.heard_at

    @property
    def usable(self) -> bool:
        """True while new calls of ours may begin here."""
        return not self.going_away and not self.closed

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
        end of the nursery waits for. `lose` itself does it for a socket; other streams, which have to be awaited for
        it, are closed by this task, which is their writer. Over a socket this task is the reader instead, and there
        is a writer once a write has to wait, or comes from many tasks: so an idle connection costs one task.
        """
        self._scope, self._nursery = nursery.cancel_scope, nursery
        is_socket = isinstance(self.stream, SocketStream)
        try:
            if self._methods:
                self._crew = Crew(
                    nursery,
                    self._read,
                    self._is_clogged,
                    # A handler may have taken long since then: what a call of ours says of its deadline needs the time.
                    flush=lambda: self.outbox.flush(None if self.calls else self._now),
                    keep_deadline=is_socket,
                    now=lambda: self._now,
                    run_calls=RUN_CALLS if is_socket else FULL,  # Elsewhere only the writer's turn sends a full batch.
                )
                self.outbox.on_progress = self._crew.resume
            self._watch.start()
            if isinstance(self.stream, SocketStream):
                self._begin_on_socket(self.stream, on_open)
                await (self._read_on() if self._crew is None else self._crew.run())
                if not self.closed:  # The crew goes on without this task.
                    await trio.sleep_forever()
            else:
                self._begin_on_stream(nursery, on_open)
                await self._write()
        finally:
            await self._end()

    def _begin_on_socket(self, stream: SocketStream, on_open: Callable[[], object] | None) -> None:
        stream.on_progress = self.outbox.progressed
        self.outbox.send_now = stream.socket.send
        if on_open is not None:
            on_open()
        self.outbox.begin(self._start_writer, flush=self._early is None)
        if self._crew is not None and self._early is not None:  # The crew flushes once it has nothing to do.
            events, self._early = self._early, None
            self._handle(events)

    def _begin_on_stream(self, nursery: trio.Nursery, on_open: Callable[[], object] | None) -> None:
        if self._crew is not None:
            self._crew.start()
        else:
            nursery.start_soon(self._read_on, name="trio_rpc connection reader")
        if on_open is not None:
            on_open()

    def _start_writer(self) -> None:
        """In a clean context, and not in that of whoever happened to write first."""
        assert self._nursery is not None
        Context().run(partial(self._nursery.start_soon, self._write, name="trio_rpc connection writer"))

    async def _end(self) -> None:
        """Lose what is not lost yet, and close the transport; bounded, and never an error."""
        self.lose(ConnectionLost("the connection was closed by its owner", peer=self.address))
        if isinstance(self.stream, SocketStream):
            return  # That has closed it.
        try:
            if self._goodbye:
                with (
                    trio.CancelScope(shield=True, deadline=trio.current_time() + self.limits.close_timeout),
                    contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError),
                ):
                    await self.stream.send_all(self._goodbye)
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(self.stream)

    def lose(self, cause: RpcError) -> None:
        """End the connection now: fail all calls in flight, cancel all handlers. Idempotent and synchronous."""
        if self.closed:
            return
        self.closed = True
        self.cause = cause
        self._watch.stop()
        self._forget_settling()
        busy, alone = bool(self.serving), False
        now = trio.current_time()
        calls, self.calls = self.calls, {}
        for call in calls.values():
            if call.orphan:
                self.counters.orphans -= 1
            self.counters.usage_seconds += now - call.started_at
            call.finish(None, self._lost_error(call, cause))
            if self.observe is not None:
                self.observe(call)
        for serving in self.serving.values():
            serving.ended = True
            if not serving.started:
                serving.cut_off()
        self.serving.clear()
        self._tell_quiet()
        self.outbox.close()
        if isinstance(self.stream, SocketStream):
            self._close_socket(self.stream)  # It wakes the reader, whom the scope would have to cancel, at more cost.
            alone = not busy and self._nursery is not None and not self._nursery.child_tasks
        if self._scope is not None and not alone:
            self._scope.cancel()
        for watcher in self.room_watchers:
            watcher(self)

    def _close_socket(self, stream: SocketStream) -> None:
        if self._goodbye:
            with contextlib.suppress(OSError):
                stream.socket.send(self._goodbye)
        stream.close()

    def evict(self, text: str) -> None:
        """Give the peer up: it is unresponsive."""
        self.counters.evicted += 1
        log.warning("evicting %s: %s", self.address, text)
        self.lose(PeerUnresponsive(f"the peer is unresponsive: {text}", peer=self.address))

    def _lost_error(self, call: Outgoing, cause: RpcError) -> RpcError:
        """One cause, told to each call with that call's own `may_have_run`."""
        kind = type(cause) if isinstance(cause, ConnectionLost) else ConnectionLost
        error = kind(cause.message, may_have_run=call.written, peer=self.address)
        error.__cause__ = cause if cause.__cause__ is None else cause.__cause__
        return error

    def finish(self) -> None:
        """Say goodbye, write what is queued, and end the connection: soon, and within `close_timeout` at the latest."""
        if self.closed or self.saying_goodbye:
            return
        assert self._scope is not None
        self.saying_goodbye = self.going_away = True
        if self._methods or self.serving:  # Else the transport's end tells the peer all that there is to tell.
            self.settle("closing", Code.OK)
        if isinstance(self.stream, SocketStream) and self.outbox.idle:
            self._lose_closed()
        else:
            self._scope.deadline = trio.current_time() + self.limits.close_timeout
            self.outbox.finish()

    async def wait_quiet(self) -> None:
        """Wait until no call is under way in either direction, apart from orphans, or the connection has ended.

        While it drains, more may come until the second GOAWAY has been sent.
        """
        while not self.closed and (
            self._settling is not None or self.busy_serving or any(not call.orphan for call in self.calls.values())
        ):
            if self._quiet is None:
                self._quiet = trio.lowlevel.ParkingLot()
            await self._quiet.park()

    async def wait_closed(self) -> None:
        """Wait until the connection has ended."""
        while not self.closed:
            if self._quiet is None:
                self._quiet = trio.lowlevel.ParkingLot()
            await self._quiet.park()

    def _tell_quiet(self) -> None:
        if self._quiet is not None:
            self._quiet.unpark_all()

    def retire(self) -> None:
        """Begin no further calls here; those in flight go on."""
        self.going_away = True
        self._tell_room()

    @trio.lowlevel.enable_ki_protection
    def drain(self, text: str = "draining", code: Code = Code.UNAVAILABLE) -> None:
        """Have the peer open no further calls, and lose none that it has opened. What was accepted goes on.

        The first GOAWAY says so, and takes nothing back: its last id is the highest there is. A PING follows, which
        the peer answers behind all requests that it had queued by then. So when the answer comes, all that crossed
        the GOAWAY is here, and the second one says which was the last. Who does not answer gets it after SETTLE_TIME.
        """
        if self.draining or self.closed:
            return
        self.draining = True
        now = trio.current_time()
        longest = max(SETTLE_TIME, 2 * self._watch.rtt)
        self._settling = self.timer.at(now + longest, lambda _lateness: self.settle(text, code))
        self.outbox.cork(now)
        self.outbox.put_control(self.protocol.goaway(MAX_ID, code, text))
        self._watch.ping(lambda _rtt: self.settle(text, code))
        self.outbox.flush()

    @trio.lowlevel.enable_ki_protection
    def settle(self, text: str = "draining", code: Code = Code.UNAVAILABLE) -> None:
        """Take no further requests, from now on: the last GOAWAY. What was accepted goes on.

        What comes later is refused even while GOAWAY is in the queue: its caller will take it for not run.
        """
        if self._settled or self.closed:
            return
        self.draining = self._settled = True
        self._forget_settling()
        self._last_accepted = self.protocol.last_remote_id
        self.outbox.cork(trio.current_time())
        self.outbox.put_control(self.protocol.goaway(self._last_accepted, code, text))
        self.outbox.flush()
        self._tell_quiet()

    def _forget_settling(self) -> None:
        if self._settling is not None:
            self.timer.forget(self._settling)
            self._settling = None

    def stop_serving(self, reason: str) -> None:
        """Cancel every handler of this connection; each answers its caller with RemoteCancelled.

        Where this connection drains, nothing is accepted from now on, as nobody would stop it any more.
        """
        if self.draining:
            self.settle(reason)
        for call in list(self.serving.values()):
            call.stop(reason)

    # -- reading ---------------------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def _read_on(self) -> None:
        """Read where nothing is served; elsewhere the crew does it."""
        while await self._read():
            self.outbox.flush(self._now)

    async def _read(self) -> bool:
        """Take the next bytes and act on them; False at the end. Awaited by one task at a time."""
        if self._early:
            events, self._early = self._early, None
            return self._handle(events)
        try:
            data = await self.stream.receive_some()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            if not self.closed:
                self._lose_by("the connection broke", exc)
            return False
        if not data:
            self._lose_by("the peer closed the connection", None)
            return False
        self._now = self._watch.heard()
        self.outbox.cork(self._now)  # Who reads flushes before it reads again: `_read_on`, or the crew's leader.
        try:
            return self._handle(self.protocol.receive_data(bytes(data)))
        except RemoteProtocolError as exc:
            self._reject(exc)
            return False

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

    def _lose_by(self, text: str, exc: BaseException | None) -> None:
        cause = ConnectionLost(text, peer=self.address)
        cause.__cause__ = exc
        self.lose(cause)

    def _reject(self, exc: RemoteProtocolError) -> None:
        """The peer broke the wire's rules: tell it once, as well as can be, and end."""
        exc.peer = self.address
        log.warning("closing the connection to %s: %s", self.address, exc.message[:200])
        if self.outbox.progressed_at is None:  # Else a frame is half written, and nothing can be said any more.
            last_id = min(self.protocol.last_remote_id, self._last_accepted)  # It never rises.
            self._goodbye = self.protocol.goaway(last_id, Code.INTERNAL, exc.message)
        cause = ConnectionLost(exc.message, peer=self.address)
        cause.__cause__ = exc
        self.lose(cause)

    # One method for each event. All synchronous.

    def _on_request(self, event: RequestReceived) -> None:
        if event.id > self._last_accepted:
            self._refuse(event.id, Code.UNAVAILABLE, "this side is going away")
            return
        served = self._methods.get(event.method)
        if len(self.serving) >= self.limits.max_in_flight and self._is_full(served):
            self._refuse_excess(event.id)
            return
        if served is None:
            self._refuse(event.id, Code.UNIMPLEMENTED, _unknown(event.method, self._methods))
            return
        if event.timeout == 0:
            self.counters.expired += 1
            self._refuse(event.id, Code.DEADLINE_EXCEEDED, "the deadline had passed on arrival", Outcome.EXPIRED)
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
        self._set_deadline(call, event.timeout)
        if event.streaming:
            call.inbound = ReceiveStream(
                event.id, self.limits.stream_window, self.limits.stream_window_items, _undecoded
            )
            call.inbound.attach(self, event.id)
        assert self._crew is not None
        self._crew.backlog.append(call)

    def _is_full(self, served: Served | None) -> bool:
        """Whether there are `max_in_flight` calls; those of methods without limits count apart, up to the same number."""
        most = self.limits.max_in_flight
        exempt = sum(call.served.limit == math.inf for call in self.serving.values())
        is_exempt = served is not None and served.limit == math.inf
        return (exempt if is_exempt else len(self.serving) - exempt) >= most

    def _set_deadline(self, call: Incoming, timeout: float | None) -> None:
        if timeout is None and self._max_deadline is None:
            return
        now = self._now
        if timeout is not None:
            call.expires = now + timeout
            rtt = self._watch.rtt
            latest = call.expires + (2 * rtt if rtt > MIN_SLACK / 2 else MIN_SLACK)
            call.deadline = math.ceil(latest / DEADLINE_STEP) * DEADLINE_STEP
        if self._max_deadline is not None and now + self._max_deadline < call.deadline:
            call.deadline, call.cut = now + self._max_deadline, True

    def _refuse(self, request_id: int, code: Code, text: str, outcome: Outcome = Outcome.REFUSED) -> None:
        """Answer what never became a call here; ahead of others, as no frame of that id can be in the queue."""
        self._owed_refusals += 1
        if self._owed_refusals > QUEUE_FACTOR * self.limits.max_in_flight:
            raise RemoteProtocolError("the peer goes on sending requests, and does not read that they are refused")
        self.protocol.forget(request_id)  # Its items may have begun to arrive right behind it.
        frame, _ = self.protocol.error(request_id, code, outcome, False, text)
        self.outbox.put_control(frame, self._refusal_left)
        if not self.busy_serving:  # It may have been the last request that was still arriving.
            self._tell_room()

    def _refusal_left(self) -> None:
        self._owed_refusals -= 1

    def _refuse_excess(self, request_id: int) -> None:
        self._excess += 1
        self.counters.refused += 1
        if self._excess > QUEUE_FACTOR * self.limits.max_in_flight:
            raise RemoteProtocolError("the peer goes on sending requests far beyond max_in_flight")
        text = f"{self.limits.max_in_flight} calls are running on this connection already (max_in_flight)"
        self._refuse(request_id, Code.RESOURCE_EXHAUSTED, text)

    def _on_terminal(self, event: ResponseReceived | ErrorReceived | EndReceived) -> None:
        call = self.calls.pop(event.id, None)
        if call is None:
            self.counters.late_replies += 1
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

    def _on_items(self, event: ItemsReceived) -> None:
        stream = self._receiving_stream(event.id)
        if stream is not None:
            stream.feed(event)
            return
        self.counters.late_replies += 1
        call = self.calls.get(event.id)
        if call is not None:
            # The contracts differ, which is this call's own trouble. Without credit it would never end by itself.
            call.misfit = True
            call.stop()

    def _on_end(self, event: EndReceived) -> None:
        call = self.calls.get(event.id)
        if call is not None:
            if event.metadata and call.received is not None:
                call.received.metadata.update(event.metadata)
            self._on_terminal(event)
            return
        serving = self.serving.get(event.id)
        if serving is not None and serving.inbound is not None:
            serving.inbound.end(trio.EndOfChannel())

    def _is_clogged(self) -> bool:
        """The peer does not take what it has asked for; begin no more for it meanwhile, but go on reading.

        The largest message is not counted: however long it is under way, small calls pass it.
        """
        queued, most = self.outbox.queued_bytes, self.limits.max_queued_bytes
        return queued > most and queued - self.outbox.largest > most

    def _is_open(self, request_id: int) -> bool:
        return request_id in self.calls or request_id in self.serving

    def _receiving_stream(self, request_id: int) -> ReceiveStream[Any] | None:
        call = self.calls.get(request_id)
        if call is not None:
            return call.received
        serving = self.serving.get(request_id)
        return serving.inbound if serving is not None else None

    def _on_credit(self, event: CreditReceived) -> None:
        owner = self.calls.get(event.id) or self.serving.get(event.id)
        if owner is not None and owner.outbound is not None:
            owner.outbound.grant(event.size, event.items)

    def _on_cancel(self, event: CancelReceived) -> None:
        call = self.serving.get(event.id)
        if call is not None:
            call.cancel(event.wait, event.leaving)
        elif event.partial:
            self._refuse(event.id, Code.CANCELLED, "cancelled by the caller", Outcome.CANCELLED)

    def _on_ping(self, event: PingReceived) -> None:
        # To a peer that drains, the answer says that no request is still to come. So it does not overtake any.
        self._watch.answer(event.data, self.remote.ping_interval, in_turn=self.going_away)

    def _on_pong(self, event: PongReceived) -> None:
        self._watch.answered(event.data)

    def _on_goaway(self, event: GoAwayReceived) -> None:
        self.going_away = True
        for request_id in [id_ for id_ in self.calls if id_ > event.last_id]:
            refusal = ErrorReceived(request_id, Code.UNAVAILABLE, Outcome.REFUSED, False, event.message, b"", None)
            call = self.calls[request_id]
            self.outbox.withdraw(request_id, call.ticket, streaming=call.outbound is not None)
            self._on_terminal(refusal)
        self._tell_room()

    def _tell_room(self) -> None:
        self.used_at = self._now
        if self._quiet is not None:
            self._quiet.unpark_all()
        for watcher in self.room_watchers:
            watcher(self)

    # -- writing ---------------------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def _write(self) -> None:
        """The one task that waits to send. After an error the reader may still take what has arrived, for a bounded time."""
        try:
            await self.outbox.run(self._send_to_socket if isinstance(self.stream, SocketStream) else self._send)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            if self.closed:
                return
            await trio.sleep(self.limits.close_timeout)
            self._lose_by("the connection broke while sending", exc)
            return
        if self.closed:
            return
        try:
            if not isinstance(self.stream, SocketStream):
                await self.stream.aclose()
        except Exception:  # A stream of the user's may fail in any way; it must not end its pool or server.
            log.warning("the stream to %s failed while closing", self.address, exc_info=True)
        self._lose_closed()

    def _lose_closed(self) -> None:
        self.lose(ConnectionLost("the connection was closed on this side", peer=self.address))

    async def _send(self, buffers: list[Bytes]) -> None:
        """Send a batch. Progress shows within it, so that a slow link is not taken for a stuck one."""
        self._watch.writing()
        for buffer in buffers:
            view = memoryview(buffer)
            for start in range(0, len(view), SLICE_SIZE):
                await self.stream.send_all(view[start : start + SLICE_SIZE])
                self.outbox.progressed()

    async def _send_to_socket(self, buffers: list[Bytes]) -> None:
        """The same; the socket tells of its progress."""
        assert isinstance(self.stream, SocketStream)
        self._watch.writing()
        await self.stream.send_buffers(buffers)

    def send_items(self, request_id: int, count: int, payload: bytes, blobs: Sequence[Bytes]) -> int:
        """Queue a batch of a stream's items; what it costs in credit."""
        serving = self.serving.get(request_id)
        metadata = serving.take_reply_metadata() if serving is not None else None
        frames = self.protocol.items(request_id, count, payload, blobs, metadata)
        cost = message_size(frames)
        self.outbox.put_message(request_id, frames)
        return cost

    def grant(self, request_id: int, size: int, items: int) -> None:
        """Send CREDIT for a stream whose consumer took so much."""
        if request_id in self.calls or request_id in self.serving:
            self.outbox.put_control(self.protocol.credit(request_id, size, items))

    def send_response(self, call: Incoming, payload: bytes, blobs: Sequence[Bytes]) -> None:
        """Answer a call with its result. Raises EncodeError, and leaves the call open, if it is too large."""
        frames = self.protocol.response(call.id, payload, blobs, call.take_reply_metadata())
        self._end_serving(call)
        self.outbox.put_message(call.id, frames)

    def send_end(self, call: Incoming) -> None:
        """End a call's stream of items: its terminal frame."""
        frame = self.protocol.end(call.id, call.take_reply_metadata())
        self._end_serving(call)
        self.outbox.put_message(call.id, (frame, None))

    def send_error(self, call: Incoming, code: Code, outcome: Outcome, text: str, payload: bytes = b"") -> None:
        """End a call with a failure. Only a call whose handler was never entered is told as not started."""
        frames = self.protocol.error(call.id, code, outcome, call.started, text, payload, call.take_reply_metadata())
        self._end_serving(call)
        self.outbox.put_message(call.id, frames)

    def _end_serving(self, call: Incoming) -> None:
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
        if call.by_caller:
            self.outbox.stop_sending(call.id)
        self.protocol.forget(call.id)
        if not self.serving:
            self.used_at = self._now
            if self.room_watchers or self._quiet is not None:
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
            received.attach(self, request_id)
        self.counters.calls += 1
        if len(self.calls) == 1 and self._crowd < 2:  # A single caller: others would have been woken with it.
            self.outbox.cork(now)
            call.ticket = self.outbox.put_message(request_id, frames)
            self.outbox.flush(now)
        else:
            call.ticket = self.outbox.put_message(request_id, frames)
        if protocol.exhausted:
            self.retire()
        return call

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

    def send_cancel(self, call: Outgoing, wait: float, leaving: bool) -> None:
        """Tell the peer to stop a call. What is left of its request is not sent any more."""
        self.outbox.stop_sending(call.id)
        self.outbox.put_control(self.protocol.cancel(call.id, wait, leaving=leaving))

    def send_end_of_items(self, call: Outgoing) -> None:
        """Half-close: no more items from the caller's side of this call."""
        if not call.ended and not call.stopping:
            self.outbox.put_message(call.id, (self.protocol.end(call.id), None))

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
        self._tell_quiet()


class Contained:
    """A block that nothing in a connection raises out of, apart from what is its owner's: it is logged instead."""

    __slots__ = ("_address",)

    def __init__(self, address: str) -> None:
        self._address = address

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> bool:
        if exc is None:
            return False
        ours, rest = _split(exc, (KeyboardInterrupt, trio.Cancelled))
        if rest is not None:
            log.error("connection to %s failed inside", self._address, exc_info=rest)
        if ours is None or ours is exc:
            return ours is None
        raise ours from None


def _split(
    exc: BaseException, kinds: tuple[type[BaseException], ...]
) -> tuple[BaseException | None, BaseException | None]:
    if isinstance(exc, BaseExceptionGroup):
        return exc.split(kinds)
    return (exc, None) if isinstance(exc, kinds) else (None, exc)


def _unknown(name: str, known: Iterable[str]) -> str:
    """Why there is no such method, and what there is instead."""
    service, dot, _ = name.rpartition(".")
    services = sorted({other.rpartition(".")[0] for other in known})
    if not dot:
        return f"there is no method {name[:80]!r} here: write it as Service.method"
    if service not in services:
        return f"there is no service {service[:80]!r} here: it serves {', '.join(services)[:200] or 'nothing'}"
    return f"there is no method {name[:80]!r} here"


def _undecoded(payload: Data, blobs: Sequence[bytes]) -> list[Any]:
    raise EncodeError("this method takes no stream")


_ON: dict[type, Callable[[Connection, Any], None]] = {
    RequestReceived: Connection._on_request,
    ResponseReceived: Connection._on_terminal,
    ErrorReceived: Connection._on_terminal,
    ItemsReceived: Connection._on_items,
    EndReceived: Connection._on_end,
    CreditReceived: Connection._on_credit,
    CancelReceived: Connection._on_cancel,
    PingReceived: Connection._on_ping,
    PongReceived: Connection._on_pong,
    GoAwayReceived: Connection._on_goaway,
}
