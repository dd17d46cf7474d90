"""Items and credit of one connection's streams, by the ids of their calls; `_streams` has the halves that they go to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ._calls import Outgoing
from ._errors import Code, DecodeError
from ._faults import Faults
from ._incoming import Incoming
from ._outbox import Outbox
from ._statistics import ConnectionCounters
from ._streams import Outbound, ReceiveStream
from .wire import Bytes, CreditReceived, ItemsReceived, Protocol, TooMuchReceived, message_size

__all__ = ["Flows"]

FEW = 8
"""Streams that go on after a write, while more writes are to come. To wake all of hundreds for each would cost more than
the writing."""


class Flows:
    """A `CreditGranter` and an `ItemSender` for the streams of one connection, and what feeds them."""

    __slots__ = ("_calls", "_counters", "_faults", "_held", "_most", "_outbox", "_protocol", "_serving")

    def __init__(
        self,
        calls: Mapping[int, Outgoing],
        serving: Mapping[int, Incoming],
        outbox: Outbox,
        protocol: Protocol,
        counters: ConnectionCounters,
        most: int,
        faults: Faults,
    ) -> None:
        self._calls = calls
        self._serving = serving
        self._outbox = outbox
        self._protocol = protocol
        self._counters = counters
        self._faults = faults
        self._most = most
        """Bytes in the queue beyond which no more items are put into it."""
        self._held: dict[Outbound[Any], None] | None = None
        """Those that wait for it to become shorter, first come, first served."""

    def feed(self, event: ItemsReceived) -> None:
        """Items have arrived: hand them to their consumer. Raises RemoteProtocolError if they must not have come."""
        stream = self._receiver(event.id)
        if stream is not None:
            if event.metadata:
                stream.add_metadata(event.metadata, self._protocol.local.max_metadata_items)
            if not stream.feed(event):
                self._faults.charge_late("an item")
            return
        self._counters.late_replies += 1
        call = self._calls.get(event.id)
        if call is not None:
            # The contracts differ, which is this call's own trouble. Without credit it would never end by itself.
            call.misfit = True
            call.stop()
        self._faults.charge_late("an item")

    def overflow(self, event: TooMuchReceived) -> None:
        """An item for a handler is too much beside what is arriving already: its stream fails, behind what it has."""
        stream = self._receiver(event.id)
        if stream is not None:
            stream.end(DecodeError(event.text, code=Code.RESOURCE_EXHAUSTED))

    def _receiver(self, request_id: int) -> ReceiveStream[Any] | None:
        call = self._calls.get(request_id)
        if call is not None:
            return call.received
        serving = self._serving.get(request_id)
        return serving.inbound if serving is not None else None

    def widen(self, event: CreditReceived) -> None:
        """The peer's consumer took some: the producer may send so much more. Raises as `feed`."""
        owner = self._calls.get(event.id) or self._serving.get(event.id)
        if owner is None or owner.outbound is None or not owner.outbound.grant(event.size, event.items):
            self._faults.charge_late("credit")

    def has_room(self, outbound: Outbound[Any], request_id: int) -> bool:
        """Whether items may be put into the queue: the peer takes what it has asked for.

        Credit does not tell: a peer may give leave for more than there is memory. If not, `outbound` is told when that
        may have changed.
        """
        if not self._outbox.is_beyond(self._most, request_id):
            return True
        if self._held is None:
            self._held = {}
            self._outbox.on_room = self._tell_room
        self._held[outbound] = None
        return False

    def _tell_room(self) -> None:
        """Some of the queue was written. A few of those who wait go on: each may send all that there is room for."""
        held = self._held
        assert held is not None
        for outbound in list(held)[: FEW if self._outbox else None]:
            del held[outbound]
            outbound.resume()
        if not held:
            self._held = self._outbox.on_room = None

    def send_items(self, request_id: int, count: int, payload: bytes, blobs: Sequence[Bytes]) -> int:
        """Queue a batch of a stream's items; what it costs in credit."""
        serving = self._serving.get(request_id)
        metadata = serving.take_reply_metadata() if serving is not None else None
        frames = self._protocol.items(request_id, count, payload, blobs, metadata)
        cost = message_size(frames)
        self._outbox.put_message(request_id, frames)
        return cost

    def grant(self, request_id: int, size: int, items: int) -> None:
        """Send CREDIT for a stream whose consumer took so much."""
        if request_id in self._calls or request_id in self._serving:
            self._outbox.put_control(self._protocol.credit(request_id, size, items))
