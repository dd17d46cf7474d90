"""The sans-IO protocol: bytes become events here, and nothing waits.

`receive_data` takes whatever has arrived and returns the events in it; the sending methods (`_sending`) return frames
for the caller to write. Rules kept here:

* The preface and HELLO come first, and once. Until then a peer may send 16 KiB at most.
* Kind, flags and size are checked at the header, before memory is spent on the body.
* Ids have their owner's parity, grow, and are never reused.
* A message in chunks holds exactly what its first frame announced; its chunks are not small; the messages of one call
  follow each other, and only its end may cut one off. No more requests arrive at once than may be in flight, and of
  what the peer begins no more bytes than `max_receiving`.

Whether a known id is still *alive* is the connection's knowledge, not the wire's: late frames for ended calls are
ordinary, so they become events and the connection drops them; of late chunks it is told by `on_late`.

Time is the connection's knowledge as well: `on_incomplete` tells it whenever the bytes at hand end within a frame, or
within a message, and `frame` and `piece` how far these have come.

Bytes that break a rule raise RemoteProtocolError, and the connection is over: after a framing fault nothing that
follows can be trusted.

Cost. What arrives is copied once into `_rest` while its frame is incomplete, whatever pieces it comes in: time and
memory are linear in the bytes, for a peer that sends one byte at a time too. An event may keep a view of the received
buffer instead of a copy, but only of a buffer that it fills by half: nobody can make this side keep more than twice
what it counts. A chunk is not kept so: each piece of it goes at once to where it belongs in its message (`_Partial`),
whose payload and blobs are then handed on as they lie there, without another copy.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Callable

from .._errors import RemoteProtocolError
from ._bodies import (
    CANCEL,
    CREDIT,
    GOAWAY,
    MALFORMED,
    U32,
    U64,
    Message,
    as_code,
    read_message,
    read_metadata,
    read_method,
    read_prelude,
)
from ._events import (
    CancelReceived,
    CreditReceived,
    EndReceived,
    ErrorReceived,
    Event,
    GoAwayReceived,
    HelloReceived,
    PingReceived,
    PongReceived,
    RequestReceived,
    ResponseReceived,
    TooMuchReceived,
)
from ._frames import ALLOWED_FLAGS, HEADER, HEADER_SIZE, MIN_CHUNK_SIZE, Data, Flag, Kind
from ._hello import MAX_HELLO_SIZE, Hello, read_preface
from ._sending import MAX_GOAWAY_TEXT, PING_SIZE, Role, Sender

__all__ = ["Protocol"]

_MORE, _TIMEOUT, _METADATA, _BLOBS, _STREAM = map(
    int, (Flag.MORE, Flag.TIMEOUT, Flag.METADATA, Flag.BLOBS, Flag.STREAM)
)
_BLOCKS = _MORE | _METADATA | _BLOBS
_HELLO, _REQUEST, _RESPONSE, _ITEMS, _CHUNK = map(
    int, (Kind.HELLO, Kind.REQUEST, Kind.RESPONSE, Kind.ITEMS, Kind.CHUNK)
)
_REPLIES = frozenset({Kind.RESPONSE, Kind.ERROR})
_ENDS = frozenset({Kind.RESPONSE, Kind.ERROR, Kind.END})

KNOWN_METHODS = 64
SMALL = 4096
"""Bodies below this are copied out of the received buffer; that is quicker than to view them."""


MUCH = 1024 * 1024
"""Bytes of a message in chunks after which there is room for all of it."""


KEPT_SIZE = 2 * 1024 * 1024


def _keep_freed_memory() -> None:
    """Have the C library keep the memory of one large message for the next.

    glibc gives freed blocks above a threshold back, and then takes each page of a new one from the kernel: that was
    0.4 of the time of a 1 MiB message. The threshold follows the largest block that was freed so far (mallopt(3),
    M_MMAP_THRESHOLD), so one is, untouched; up to twice its size is kept from then on. Elsewhere this does nothing.
    """
    bytes(KEPT_SIZE)


_keep_freed_memory()


class _Partial:
    """A message whose chunks are still arriving.

    Payload and blobs each grow in a buffer of their own, which in the end becomes the `bytes` that is handed on: a
    BytesIO gives its contents away uncopied once they fill it. At first there is room for twice of what has arrived,
    and none for what is only announced: an empty promise costs nothing. Once much has arrived there is room for the
    rest too, in memory that is not touched before it is filled: to move 64 MiB for each eighth more held everybody up
    for 1.5 ms.
    """

    __slots__ = (
        "_buffer",
        "_have",
        "_parts",
        "_room",
        "_size",
        "_sizes",
        "counted",
        "event",
        "kind",
        "left",
        "ours",
        "total",
    )

    def __init__(self, kind: int, event: Message, total: int, sizes: tuple[int, ...], *, ours: bool) -> None:
        self.kind = kind
        self.event = event
        self.total = total
        self.ours = ours
        """It belongs to a call of this side, which has asked for it."""
        self.counted = 0
        """How much of `max_receiving` it takes."""
        self.left = sum(sizes)
        """Bytes still to come."""
        self._size, *rest = sizes
        self._sizes = rest[::-1]
        self._parts: list[bytes] = []
        self._buffer = io.BytesIO()
        self._have = self._room = 0

    def add(self, data: memoryview) -> None:
        """The next bytes of the message; no more than are left."""
        self.left -= len(data)
        while (rest := self._size - self._have) <= len(data):
            self._write(data[:rest])
            data = data[rest:]
            self._parts.append(self._buffer.getvalue())
            if not self._sizes:
                return
            self._size = self._sizes.pop()
            self._buffer = io.BytesIO()
            self._have = self._room = 0
        self._write(data)

    def _write(self, data: memoryview) -> None:
        have = self._have
        self._have += len(data)
        if self._have > self._room:
            self._make_room(have)
        self._buffer.write(data)

    def _make_room(self, have: int) -> None:
        buffer = self._buffer
        if self._have <= MUCH:
            self._room = min(self._size, 2 * self._have)
            buffer.seek(self._room - 1)
            buffer.write(b"\0")
            buffer.seek(have)
        else:
            self._room = self._size
            self._buffer = io.BytesIO(bytes(self._size))
            self._buffer.write(buffer.getbuffer()[:have])

    def finish(self) -> Message:
        """All is there: the event."""
        self.event.payload = self._parts[0]
        if not isinstance(self.event, ErrorReceived):
            self.event.blobs = self._parts[1:]
        return self.event


class Protocol(Sender):
    """One side of one connection, without its transport.

    Write `greeting()` first. Feed `receive_data` and act on the events; the first is HelloReceived, and until then
    nothing but HELLO (and, from the acceptor, GOAWAY) is accepted.
    """

    __slots__ = (
        "_chunk",
        "_chunk_left",
        "_chunk_size",
        "_frame",
        "_handled_id",
        "_methods",
        "_parity",
        "_partial",
        "_prefaced",
        "_readers",
        "_receiving",
        "_rest",
        "_rest_size",
        "_wanted",
        "is_open",
        "last_remote_id",
        "max_receiving",
        "on_incomplete",
        "on_late",
        "piece",
        "requests",
    )

    def __init__(self, role: Role, hello: Hello) -> None:
        super().__init__(role, hello)
        self.last_remote_id: int = 0
        self.is_open: Callable[[int], bool] = lambda _id: True
        """Whether a call is still alive here; the connection knows. Messages in chunks for an ended one are not kept."""
        self.on_incomplete: Callable[[], object] = _nothing
        """Told when the bytes at hand have ended within a frame, and when a part of a message in chunks has come."""
        self.on_late: Callable[[], object] = _nothing
        """Told of each chunk that is passed over. May raise RemoteProtocolError."""
        self.max_receiving: float = math.inf
        """Bytes of messages in chunks that may arrive at once, of those that the peer begins: requests, and items for
        handlers. What comes for calls of ours is bounded by these."""
        self.requests: int = 0
        """How many the peer has made."""
        self.piece: int = 0
        """How many parts of messages in chunks have come so far."""
        self._receiving = 0
        self._frame = 0
        self._handled_id = 0
        """The peer's last request before the bytes at hand: of later ones `is_open` has not heard yet."""
        self._methods: dict[bytes | memoryview, str] = {}
        self._parity = 1 if role is Role.DIALLER else 0
        self._partial: dict[int, _Partial] = {}
        self._chunk: _Partial | None = None
        """The message of the chunk that is arriving; None to pass over one whose call has ended."""
        self._chunk_left = self._chunk_size = 0
        self._readers = _DIALLING if role is Role.DIALLER else _ACCEPTING
        self._prefaced = False
        self._rest = io.BytesIO()
        self._rest_size = 0
        self._wanted = 0
        """How many bytes must be there before it is worth looking at them again."""

    def __repr__(self) -> str:
        state = "open" if self.remote is not None else "awaiting HELLO"
        return (
            f"<Protocol, {self.role.name.lower()}: {state}, ids up to {max(self.last_local_id, 0)} here and "
            f"{self.last_remote_id} there, {len(self._partial)} messages incomplete>"
        )

    @property
    def receiving_requests(self) -> bool:
        """True while a request is arriving in chunks."""
        return bool(self._partial) and any(partial.kind == _REQUEST for partial in self._partial.values())

    @property
    def receiving_messages(self) -> bool:
        """True while any message is arriving in chunks."""
        return bool(self._partial)

    @property
    def frame(self) -> tuple[int, int] | None:
        """A number for the frame that is arriving, and how many bytes of it are here; None between two frames."""
        if self._chunk_left:
            return self._frame, HEADER_SIZE + self._chunk_size - self._chunk_left
        return (self._frame, self._rest_size) if self._rest_size else None

    def forget(self, request_id: int) -> None:
        """The call has ended here: drop what has arrived of a message that will not be finished."""
        partial = self._take_out(request_id)
        if partial is self._chunk:
            self._chunk = None

    def _take_out(self, request_id: int) -> _Partial | None:
        partial = self._partial.pop(request_id, None) if self._partial else None
        if partial is not None:
            self._receiving -= partial.counted
        return partial

    # -- frames --------------------------------------------------------------------------------------------------

    def receive_data(self, data: bytes) -> list[Event]:
        """Take bytes as they came, return the events that they complete.

        Raises RemoteProtocolError at the first byte that breaks the rules; what came before it is lost with it.
        """
        is_new = True
        if self._rest_size:
            self._rest_size += len(data)
            self._rest.write(data)
            if self._rest_size < self._wanted:
                self.on_incomplete()
                return []
            data, self._rest, self._rest_size = self._rest.getvalue(), io.BytesIO(), 0
            is_new = False
        offset, size = 0, len(data)
        events: list[Event] = []
        if self._chunk_left:
            offset = min(size, self._chunk_left)
            event = self._take_chunk(memoryview(data)[:offset])
            if event is not None:
                events.append(event)
        if not self._prefaced:
            offset = read_preface(data)
            if not offset:
                self._keep(data, 0, 0)
                return []
            self._prefaced = True
        self._handled_id = self.last_remote_id
        unpack, readers, wanted = HEADER.unpack_from, self._readers, HEADER_SIZE
        limit = self.local.max_frame_size if self.remote else MAX_HELLO_SIZE  # `_limit`, a call less.
        while size - offset >= HEADER_SIZE:
            length, request_id, kind, flags = unpack(data, offset)
            read, forbidden = readers.get(kind, _NO_READER)
            if read is None or flags & forbidden or length > limit:
                raise RemoteProtocolError(self._refusal(kind, flags, length))
            start = offset + HEADER_SIZE
            end = start + length
            if end > size:
                if kind == _CHUNK:
                    self._frame += is_new or offset > 0
                    too_much = self._begin_chunk(request_id, flags, length)
                    self._take_chunk(memoryview(data)[start:])
                    return events if too_much is None else [*events, too_much]
                wanted = end - offset
                break
            body = data[start:end] if length < SMALL or length * 2 < size else memoryview(data)[start:end]
            event = read(self, kind, request_id, flags, body)
            if event is not None:
                events.append(event)
            offset = end
            if kind == _HELLO:
                readers, limit = self._readers, self._limit()
        if offset < size:
            self._frame += is_new or offset > 0
            self._keep(data, offset, wanted)
        return events

    def _keep(self, data: bytes, offset: int, wanted: int) -> None:
        """Hold on to an incomplete frame until `wanted` bytes of it are there."""
        self._rest_size = self._rest.write(memoryview(data)[offset:])
        self._wanted = wanted
        self.on_incomplete()

    def _limit(self) -> int:
        return self.local.max_frame_size if self.remote else MAX_HELLO_SIZE

    def _refusal(self, kind: int, flags: int, length: int) -> str:
        """Say what is wrong with a header."""
        if kind not in ALLOWED_FLAGS:
            return f"the peer sent a frame of unknown kind {kind}"
        name = Kind(kind).name
        if flags & ~ALLOWED_FLAGS[kind]:
            return f"the peer sent a {name} frame with flags {flags:#04x}, which it cannot have"
        if kind not in self._readers:
            return f"the peer sent a {name} frame {'after the' if self.remote else 'before its'} HELLO"
        limit, which = self._limit(), "max_frame_size" if self.remote else "before HELLO"
        return f"the peer sent a {name} frame of {length} bytes, above our limit of {limit} ({which})"

    # -- readers: one for each kind. A reader takes a whole body and returns its event, or None where none is due yet.

    def _read_hello(self, kind: int, request_id: int, flags: int, body: Data) -> Event:
        self._check_no_id(kind, request_id)
        hello = Hello.from_bytes(bytes(body))
        self._meet(hello)
        self._readers = _OPEN
        return HelloReceived(hello)

    def _read_response(self, kind: int, request_id: int, flags: int, body: Data) -> Event | None:
        # The plain one, in one step. Where there is any doubt, the general way finds out what is wrong.
        if not flags and not self._partial and request_id & 1 == self._parity and 0 < request_id <= self.last_local_id:
            return ResponseReceived(request_id, body, (), None)
        return self._read_reply(kind, request_id, flags, body)

    def _read_request(self, kind: int, request_id: int, flags: int, body: Data) -> Event | None:
        if request_id <= self.last_remote_id or request_id & 1 == self._parity:
            raise RemoteProtocolError(
                f"the peer opened request {request_id} after {self.last_remote_id}: ids grow and keep their parity"
            )
        self.last_remote_id = request_id
        self.requests += 1
        if flags & _BLOCKS:
            return self._read_message(kind, request_id, flags, body)
        try:  # The plain one, in one step.
            timeout, offset = (U64.unpack_from(body)[0] / 1e6, U64.size) if flags & _TIMEOUT else (None, 0)
            end = offset + 1 + body[offset]
            method = self._methods.get(body[offset:end]) or self._new_method(body, offset)
        except MALFORMED as exc:
            raise _malformed(kind, request_id, exc) from None
        return RequestReceived(request_id, method, body[end:], (), timeout, None, flags & _STREAM != 0)

    def _new_method(self, body: Data, offset: int) -> str:
        """A method's name that is asked for first; the last ones are kept as they stand in requests."""
        method, end = read_method(body, offset)
        if len(self._methods) >= KNOWN_METHODS:
            self._methods.clear()
        self._methods[bytes(body[offset:end])] = method
        return method

    def _read_reply(self, kind: int, request_id: int, flags: int, body: Data) -> Event | None:
        self._check_known(kind, request_id)
        if self._partial and request_id in self._partial:
            self._cut_off(kind, request_id)
        return self._read_message(kind, request_id, flags, body)

    def _read_message(self, kind: int, request_id: int, flags: int, body: Data) -> Event | None:
        if not flags & _MORE:
            try:
                return read_message(kind, request_id, flags, body, self.local)
            except MALFORMED as exc:
                raise _malformed(kind, request_id, exc) from None
        (total,) = self._fixed(U32, kind, body)
        return self._begin(kind, request_id, flags, memoryview(body)[U32.size :], total)

    def _begin(self, kind: int, request_id: int, flags: int, head: memoryview, total: int) -> Event | None:
        """The first frame of a message in chunks has come; all sizes are known from here."""
        name, limit = Kind(kind).name, self.local.max_message_size
        if total > limit:
            raise RemoteProtocolError(
                f"the peer sent a {name} of {total} bytes, above our limit of {limit} (max_message_size)"
            )
        if len(head) >= total:
            raise RemoteProtocolError(
                f"the peer announced chunks of {name} {request_id}, whose {total} bytes are there already"
            )
        if kind != _REQUEST:
            just_opened = request_id > self._handled_id and request_id & 1 != self._parity
            if not (just_opened or self.is_open(request_id)):
                self.on_late()
                return None
        elif len(self._partial) >= self.local.max_in_flight:
            requests = sum(other.kind == _REQUEST for other in self._partial.values())
            if requests >= self.local.max_in_flight:
                raise RemoteProtocolError(
                    f"the peer began more requests at once than the {self.local.max_in_flight} it may (max_in_flight)"
                )
        try:
            event, offset, sizes = read_prelude(kind, request_id, flags, head, total, self.local)
        except MALFORMED as exc:
            raise _malformed(kind, request_id, exc) from None
        partial = _Partial(kind, event, total, sizes, ours=request_id & 1 == self._parity)
        if (too_much := self._count(partial, len(head))) is not None:
            return too_much
        self._partial[request_id] = partial
        partial.add(head[offset:])
        self.piece += 1
        self.on_incomplete()
        return None

    def _count(self, partial: _Partial, size: int) -> Event | None:
        """So many bytes more have come, or are coming, of a message. The event, if that is too much for those of the peer's calls."""
        if partial.ours:
            return None
        if self._receiving + size > self.max_receiving:
            text = f"{self._receiving} bytes of incomplete messages are here already (max_receiving_bytes)"
            return TooMuchReceived(partial.event.id, partial.kind == _REQUEST, text)
        self._receiving += size
        partial.counted += size
        return None

    def _cut_off(self, kind: int, request_id: int) -> None:
        """A frame came in the middle of a message: right only for the end of a call that was stopped in an item."""
        ours = request_id & 1 == self._parity
        if not (ours and kind in _ENDS and self._partial[request_id].kind == _ITEMS):
            raise RemoteProtocolError(f"the peer sent {Kind(kind).name} {request_id} in the middle of another message")
        self._take_out(request_id)

    def _read_chunk(self, kind: int, request_id: int, flags: int, body: Data) -> Event | None:
        too_much = self._begin_chunk(request_id, flags, len(body))
        event = self._take_chunk(memoryview(body))
        return event if too_much is None else too_much

    def _begin_chunk(self, request_id: int, flags: int, length: int) -> Event | None:
        """The header of a chunk has come: all about it that can be wrong shows now."""
        partial = self._chunk = self._partial.get(request_id)
        self._chunk_left = self._chunk_size = length
        if partial is None:
            # Its call ended while it arrived: the last chunks were still under way.
            self._check_known(_CHUNK, request_id)
            self.on_late()
            return None
        last = not flags & _MORE
        if last != (length == partial.left) or length > partial.left:
            raise RemoteProtocolError(
                f"the chunks of request {request_id} do not add up to the announced {partial.total} bytes"
            )
        if not last and length < MIN_CHUNK_SIZE:
            raise RemoteProtocolError(
                f"the peer sent a chunk of {length} bytes, which is not the last and below {MIN_CHUNK_SIZE}"
            )
        too_much = self._count(partial, length)
        if too_much is not None:
            self._take_out(request_id)
            self._chunk = None
        return too_much

    def _take_chunk(self, data: memoryview) -> Event | None:
        """Some bytes of the chunk under way; the message's event if they are its last."""
        partial = self._chunk
        self._chunk_left -= len(data)
        if partial is not None:
            self.piece += 1
            partial.add(data)
            if not partial.left:
                self._chunk = None
                self._take_out(partial.event.id)
                return partial.finish()
        if partial is not None or self._chunk_left:
            self.on_incomplete()
        return None

    def _read_end(self, kind: int, request_id: int, flags: int, body: Data) -> Event:
        self._check_known(kind, request_id)
        if self._partial and request_id in self._partial:
            self._cut_off(kind, request_id)
        metadata, end = None, 0
        try:
            if flags & _METADATA:
                metadata, end = read_metadata(body, 0, self.local)
            if end != len(body):
                raise ValueError("it is too long")
        except MALFORMED as exc:
            raise _malformed(kind, request_id, exc) from None
        return EndReceived(request_id, metadata)

    def _read_credit(self, kind: int, request_id: int, flags: int, body: Data) -> Event:
        self._check_known(kind, request_id)
        size, items = self._fixed(CREDIT, kind, body, exact=True)
        if not size and not items:
            raise RemoteProtocolError(f"the peer granted no credit at all for request {request_id}")
        return CreditReceived(request_id, size, items)

    def _read_cancel(self, kind: int, request_id: int, flags: int, body: Data) -> Event:
        if request_id & 1 == self._parity:
            raise RemoteProtocolError(f"the peer cancelled request {request_id}, which is ours")
        self._check_known(kind, request_id)
        wait, leaving = self._fixed(CANCEL, kind, body, exact=True)
        if leaving > 1:
            raise RemoteProtocolError(f"the peer sent a CANCEL with leaving={leaving}, which can be 0 or 1")
        partial = self._take_out(request_id)
        unfinished = partial is not None and partial.kind == _REQUEST
        return CancelReceived(request_id, wait / 1000, bool(leaving), unfinished)

    def _read_ping(self, kind: int, request_id: int, flags: int, body: Data) -> Event:
        self._check_no_id(kind, request_id)
        if len(body) != PING_SIZE:
            raise RemoteProtocolError(self._misshapen(kind, body))
        return PingReceived(bytes(body)) if kind == Kind.PING else PongReceived(bytes(body))

    def _read_goaway(self, kind: int, request_id: int, flags: int, body: Data) -> Event:
        self._check_no_id(kind, request_id)
        last_id, code = self._fixed(GOAWAY, kind, body)
        text = str(body[GOAWAY.size : GOAWAY.size + MAX_GOAWAY_TEXT], "utf-8", "replace")
        return GoAwayReceived(last_id, as_code(code), text)

    # -- rules that several kinds share --------------------------------------------------------------------------

    def _fixed(self, layout: struct.Struct, kind: int, body: Data, *, exact: bool = False) -> tuple[int, ...]:
        if len(body) < layout.size or (exact and len(body) != layout.size):
            raise RemoteProtocolError(self._misshapen(kind, body))
        return layout.unpack_from(body)

    def _misshapen(self, kind: int, body: Data) -> str:
        return f"the peer sent a {Kind(kind).name} frame of {len(body)} bytes, which cannot be"

    def _check_no_id(self, kind: int, request_id: int) -> None:
        if request_id:
            raise RemoteProtocolError(f"the peer sent {Kind(kind).name} for request {request_id}: it belongs to none")

    def _check_known(self, kind: int, request_id: int) -> None:
        ours = request_id & 1 == self._parity
        if not 0 < request_id <= (self.last_local_id if ours else self.last_remote_id):
            raise RemoteProtocolError(f"the peer sent {Kind(kind).name} for request {request_id}, which never was")
        if not ours and kind in _REPLIES:
            raise RemoteProtocolError(f"the peer answered request {request_id}, which is its own")


def _nothing() -> None:
    """Nobody wants to know."""


_Read = Callable[[Protocol, int, int, int, Data], "Event | None"]
_Reader = tuple[_Read | None, int]
"""What reads a kind of frame, and the flags that it must not have."""
_NO_READER: _Reader = (None, 0)


def _table(**readers: _Read) -> dict[int, _Reader]:
    return {int(Kind[name]): (read, 0xFF & ~ALLOWED_FLAGS[Kind[name]]) for name, read in readers.items()}


_ACCEPTING = _table(HELLO=Protocol._read_hello)
_DIALLING = _table(HELLO=Protocol._read_hello, GOAWAY=Protocol._read_goaway)
_OPEN = _table(
    REQUEST=Protocol._read_request,
    RESPONSE=Protocol._read_response,
    ERROR=Protocol._read_reply,
    ITEMS=Protocol._read_reply,
    CHUNK=Protocol._read_chunk,
    END=Protocol._read_end,
    CREDIT=Protocol._read_credit,
    CANCEL=Protocol._read_cancel,
    PING=Protocol._read_ping,
    PONG=Protocol._read_ping,
    GOAWAY=Protocol._read_goaway,
)


def _malformed(kind: int, request_id: int, exc: Exception) -> RemoteProtocolError:
    why = exc if isinstance(exc, ValueError) else "it ends too early"
    return RemoteProtocolError(f"the peer sent a malformed {Kind(kind).name} {request_id}: {why}")
