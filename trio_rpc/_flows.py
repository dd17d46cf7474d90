"""Items and credit of one connection's streams, by the ids of their calls; `_streams` has the halves that they go to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ._calls import Outgoing
from ._incoming import Incoming
from ._outbox import Outbox
from ._statistics import ConnectionCounters
from ._streams import ReceiveStream
from .wire import Bytes, CreditReceived, ItemsReceived, Protocol, message_size

__all__ = ["Flows"]


class Flows:
    """A `CreditGranter` and an `ItemSender` for the streams of one connection, and what feeds them."""

    __slots__ = ("_calls", "_counters", "_outbox", "_protocol", "_serving")

    def __init__(
        self,
        calls: Mapping[int, Outgoing],
        serving: Mapping[int, Incoming],
        outbox: Outbox,
        protocol: Protocol,
        counters: ConnectionCounters,
    ) -> None:
        self._calls = calls
        self._serving = serving
        self._outbox = outbox
        self._protocol = protocol
        self._counters = counters

    def feed(self, event: ItemsReceived) -> None:
        """Items have arrived: hand them to their consumer."""
        stream = self._receiver(event.id)
        if stream is not None:
            stream.feed(event)
            return
        self._counters.late_replies += 1
        call = self._calls.get(event.id)
        if call is not None:
            # The contracts differ, which is this call's own trouble. Without credit it would never end by itself.
            call.misfit = True
            call.stop()

    def _receiver(self, request_id: int) -> ReceiveStream[Any] | None:
        call = self._calls.get(request_id)
        if call is not None:
            return call.received
        serving = self._serving.get(request_id)
        return serving.inbound if serving is not None else None

    def widen(self, event: CreditReceived) -> None:
        """The peer's consumer took some: the producer may send so much more."""
        owner = self._calls.get(event.id) or self._serving.get(event.id)
        if owner is not None and owner.outbound is not None:
            owner.outbound.grant(event.size, event.items)

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
