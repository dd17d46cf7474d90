"""The sending half of the protocol: what this side says, laid out within what the peer said it accepts.

Nothing is ever laid out that would break one of the peer's limits: what is too large is an EncodeError and costs its
own call; had it been sent, it would have cost the connection. Until the peer's HELLO is known, our own limits stand for
its limits.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

from .._errors import Code, EncodeError, LocalProtocolError
from ._bodies import CANCEL, CREDIT, ERROR, GOAWAY, U32
from ._frames import (
    CHUNK_SIZE,
    HEADER,
    MAX_BLOBS,
    MAX_ID,
    MAX_PLAIN_PRELUDE,
    MAX_SIZE,
    PREFACE,
    STARTED,
    Bytes,
    Flag,
    Frames,
    Kind,
    Metadata,
    Outcome,
    blob_block,
    control,
    message,
    metadata_block,
    plain_request,
    text_block,
    timeout_block,
)
from ._hello import Hello

__all__ = ["MAX_GOAWAY_TEXT", "PING_SIZE", "Role", "Sender"]

PING_SIZE = 8
MAX_ERROR_TEXT = 8 * 1024
MAX_GOAWAY_TEXT = 512
RESERVE = 1024
"""Ids left when a connection is to retire: more calls than can be on their way to it."""

_TIMEOUT, _METADATA, _BLOBS, _STREAM = map(int, (Flag.TIMEOUT, Flag.METADATA, Flag.BLOBS, Flag.STREAM))
_REQUEST, _RESPONSE, _ERROR, _ITEMS, _END = map(int, (Kind.REQUEST, Kind.RESPONSE, Kind.ERROR, Kind.ITEMS, Kind.END))

_NAMES = {_RESPONSE: "result", _ERROR: "failure", _ITEMS: "batch of items"}


class Role(enum.Enum):
    """Who opened the transport. It decides the parity of ids: odd for the dialler, even for the acceptor."""

    DIALLER = 1
    ACCEPTOR = 2


class Sender:
    """Lays out frames; see `Protocol`."""

    __slots__ = (
        "_max_frame",
        "_max_message",
        "_max_metadata",
        "_max_metadata_items",
        "_plain_size",
        "chunk_size",
        "last_local_id",
        "local",
        "remote",
        "role",
    )

    def __init__(self, role: Role, hello: Hello) -> None:
        self.role: Role = role
        self.local: Hello = hello
        """What this side says of itself. An acceptor may replace it once it knows its peer, before its greeting."""
        self.remote: Hello | None = None
        """What the peer said of itself, None until then."""
        self.last_local_id = -1 if role is Role.DIALLER else 0
        self.chunk_size: int = 0
        """Size from which a message is sent in chunks, and of each chunk."""
        self._heed(hello)

    def _meet(self, remote: Hello) -> None:
        """The peer's HELLO has come."""
        self.remote = remote
        self._heed(remote)

    def _heed(self, hello: Hello) -> None:
        """Keep within these limits from now on."""
        self._max_message = min(hello.max_message_size, MAX_SIZE)
        self._max_frame = hello.max_frame_size
        self._max_metadata = hello.max_metadata_size
        self._max_metadata_items = hello.max_metadata_items
        self.chunk_size = min(CHUNK_SIZE, self._max_frame)
        self._plain_size = self.chunk_size - MAX_PLAIN_PRELUDE

    def greeting(self) -> bytes:
        """The preface and our HELLO. Raises LocalProtocolError if it is larger than any peer accepts."""
        return PREFACE + control(Kind.HELLO, 0, self.local.to_bytes())

    @property
    def exhausted(self) -> bool:
        """True near the end of the ids: open another connection, this one must retire."""
        return self.last_local_id > MAX_ID - RESERVE

    # -- messages ------------------------------------------------------------------------------------------------

    def request(
        self,
        method: bytes,
        payload: bytes,
        blobs: Sequence[Bytes] = (),
        timeout: float | None = None,
        metadata: Metadata | None = None,
        streaming: bool = False,
    ) -> tuple[int, Frames]:
        """Lay out a request under a fresh id. `method` is a `method_block`.

        Raises EncodeError if it is larger than the peer accepts, LocalProtocolError without ids; no id is used then.
        """
        flags, prelude = (_STREAM if streaming else 0), method
        request_id = self.last_local_id + 2
        if not (blobs or metadata) and len(payload) <= self._plain_size and request_id <= MAX_ID:
            self.last_local_id = request_id
            return request_id, (plain_request(request_id, flags, timeout, method, payload), None)
        if blobs:
            flags, prelude = flags | _BLOBS, self._blob_block(blobs) + prelude
        if metadata:
            flags, prelude = flags | _METADATA, self._metadata(metadata) + prelude
        if timeout is not None:
            flags, prelude = flags | _TIMEOUT, timeout_block(timeout) + prelude
        if blobs or len(prelude) + len(payload) > self.chunk_size:
            self._check_size("request", prelude, payload, blobs)
        if request_id > MAX_ID:
            raise LocalProtocolError("this connection has used up its request ids; open another one")
        self.last_local_id = request_id
        return request_id, message(_REQUEST, request_id, flags, prelude, payload, blobs, chunk_size=self.chunk_size)

    def response(
        self, request_id: int, payload: bytes, blobs: Sequence[Bytes] = (), metadata: Metadata | None = None
    ) -> Frames:
        """Lay out a result: terminal. Raises EncodeError if it is larger than the peer accepts."""
        if not (blobs or metadata) and len(payload) <= self._plain_size:  # As `message` would, in one step.
            return HEADER.pack(len(payload), request_id, _RESPONSE, 0) + payload, None
        return self._reply(_RESPONSE, request_id, b"", payload, blobs, metadata)

    def items(
        self,
        request_id: int,
        count: int,
        payload: bytes,
        blobs: Sequence[Bytes] = (),
        metadata: Metadata | None = None,
    ) -> Frames:
        """Lay out a batch of `count` items. Raises EncodeError if it is larger than the peer accepts."""
        return self._reply(_ITEMS, request_id, U32.pack(count), payload, blobs, metadata)

    def error(
        self,
        request_id: int,
        code: Code,
        outcome: Outcome,
        started: bool,
        text: str,
        payload: bytes = b"",
        metadata: Metadata | None = None,
    ) -> Frames:
        """Lay out a failure: terminal. What the peer would not accept is cut or left out; it is never an error."""
        raw = text_block(text, min(MAX_ERROR_TEXT, self.chunk_size // 2))
        fields = ERROR.pack(code, outcome | (STARTED if started else 0), len(raw)) + raw
        for metadata_ in (metadata, None):
            try:
                return self._reply(_ERROR, request_id, fields, payload, (), metadata_)
            except EncodeError:
                continue
        return self._reply(_ERROR, request_id, fields, b"", (), None)

    def _reply(
        self,
        kind: int,
        request_id: int,
        fields: bytes,
        payload: bytes,
        blobs: Sequence[Bytes],
        metadata: Metadata | None,
    ) -> Frames:
        flags, prelude = 0, fields
        if blobs:
            flags, prelude = _BLOBS, self._blob_block(blobs) + prelude
        if metadata:
            flags, prelude = flags | _METADATA, self._metadata(metadata) + prelude
        if blobs or len(prelude) + len(payload) > self.chunk_size:
            self._check_size(_NAMES[kind], prelude, payload, blobs)
        return message(kind, request_id, flags, prelude, payload, blobs, chunk_size=self.chunk_size)

    # -- single frames -------------------------------------------------------------------------------------------

    def end(self, request_id: int, metadata: Metadata | None = None) -> bytes:
        """The end of our items; from the handler's side, of the call. Raises EncodeError for its metadata alone."""
        if metadata:
            body = self._metadata(metadata)
            self._check_size("stream's end", body, b"", ())
            return HEADER.pack(len(body), request_id, _END, _METADATA) + body
        return HEADER.pack(0, request_id, _END, 0)

    def credit(self, request_id: int, size: int, items: int) -> bytes:
        """Allow the peer to send so many more bytes and items."""
        return control(Kind.CREDIT, request_id, CREDIT.pack(min(size, MAX_SIZE), min(items, MAX_SIZE)))

    def cancel(self, request_id: int, wait: float, *, leaving: bool = False) -> bytes:
        """Stop a call of ours; we wait `wait` seconds for its terminal frame. `leaving`: its stream is unwanted."""
        return control(Kind.CANCEL, request_id, CANCEL.pack(int(min(wait * 1000, MAX_SIZE)), leaving))

    def ping(self, data: bytes) -> bytes:
        """Ask for a sign of life; these eight bytes come back in the PONG."""
        if len(data) != PING_SIZE:
            raise LocalProtocolError(f"a ping carries {PING_SIZE} bytes, not {len(data)}")
        return control(Kind.PING, 0, data)

    def pong(self, data: bytes) -> bytes:
        """Answer a ping."""
        return control(Kind.PONG, 0, data)

    def goaway(self, last_id: int, code: Code = Code.OK, text: str = "") -> bytes:
        """Take no requests above `last_id` any more."""
        return control(Kind.GOAWAY, 0, GOAWAY.pack(last_id, code) + text_block(text, MAX_GOAWAY_TEXT))

    # -- what the peer accepts -----------------------------------------------------------------------------------

    def _metadata(self, metadata: Metadata) -> bytes:
        try:
            block = metadata_block(metadata)
        except (ValueError, TypeError) as exc:
            raise EncodeError(f"metadata must map str to str or bytes: {exc}", code=Code.INVALID_ARGUMENT) from None
        if len(block) > self._max_metadata:
            raise _too_large("metadata", len(block), self._max_metadata, "max_metadata_size; send less")
        if len(metadata) > self._max_metadata_items:
            hint = "max_metadata_items; send fewer"
            raise _too_large("metadata", len(metadata), self._max_metadata_items, hint, unit="entries")
        return block

    def _blob_block(self, blobs: Sequence[Bytes]) -> bytes:
        if len(blobs) > MAX_BLOBS:
            raise _too_large("a message", len(blobs), MAX_BLOBS, "send less at once", unit="blobs")
        return blob_block(blobs)

    def _check_size(self, what: str, prelude: bytes, payload: bytes, blobs: Sequence[Bytes]) -> None:
        """Asked only for what might be too large: `chunk_size` is below every limit."""
        if len(prelude) + U32.size > self._max_frame:
            # A prelude is never cut: its reader has to know every size before the chunks come.
            hint = "max_frame_size; send less metadata or fewer blobs"
            raise _too_large(f"the prelude of a {what}", len(prelude), self._max_frame - U32.size, hint)
        size = len(prelude) + len(payload) + sum(map(len, blobs))
        if size > self._max_message:
            hint = "max_message_size; send less at once, use a stream, or raise the peer's limit"
            raise _too_large(f"a {what}", size, self._max_message, hint)


def _too_large(what: str, size: int, limit: int, hint: str, *, unit: str = "bytes") -> EncodeError:
    text = f"{what} of {size} {unit} is more than the {limit} that the peer accepts ({hint})"
    return EncodeError(text, code=Code.RESOURCE_EXHAUSTED)
