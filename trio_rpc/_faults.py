"""What a peer does that an honest one does not, and how much of it is borne.

A frame that breaks the wire's rules ends its connection at once. What is counted here breaks none of them by itself,
and costs this side work for nothing: requests that must be refused for what they are, answers to nothing, frames of
calls that have ended. The latter are ordinary up to a point, as frames cross on their way; cancelling and being
refused for lack of room are ordinary without any bound. What this side is made to answer counts like what the peer
does itself: either is a flood.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from ._allowance import Allowance
from ._config import Limits
from ._errors import Code, RemoteProtocolError
from .wire import MIN_CHUNK_SIZE, Protocol

__all__ = ["AT_FAULT", "Faults"]

AT_FAULT = frozenset({Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED, Code.PERMISSION_DENIED})
"""Refusals that a caller has brought upon itself. No room, going away and a deadline that has passed are not."""


class Faults:
    """The faults of one peer. `reject(error)` is to end its connection."""

    __slots__ = ("_bucket", "_late", "_limits", "_protocol", "_reject")

    _bucket: Allowance | None
    """Made when there is something to count: most peers have no faults."""

    def __init__(self, limits: Limits, protocol: Protocol, reject: Callable[[RemoteProtocolError], object]) -> None:
        self._limits = limits
        self._protocol = protocol
        self._reject = reject
        self._bucket = None
        self._late = 0

    def charge(self, what: str) -> None:
        """Count one fault, named by what the peer did. Raises RemoteProtocolError if that was one too many.

        For those who read, and end the connection for any such error; see `charge_aside`.
        """
        budget = self._limits.fault_budget
        if budget is None:
            return
        now = trio.current_time()
        if self._bucket is None:
            self._bucket = Allowance(budget, now)
        if not self._bucket.spend(now, self._limits.fault_rate):
            raise RemoteProtocolError(f"the peer makes too many errors (fault_budget); the last one: {what}")

    def charge_aside(self, what: str) -> None:
        """The same where nobody reads: the connection ends here."""
        try:
            self.charge(what)
        except RemoteProtocolError as exc:
            self._reject(exc)

    def charge_late(self, what: str) -> None:
        """Count a frame of a call that has ended. Raises as `charge`.

        For each call that was begun here, by either side, an honest peer can have under way the items of a window and
        the chunks of a message.
        """
        self._late += 1
        protocol, limits = self._protocol, self._limits
        calls = protocol.requests + (protocol.last_local_id + 1) // 2
        if self._late > calls * (limits.stream_window_items + limits.max_message_size // MIN_CHUNK_SIZE):
            self.charge(f"{what} of a call that has ended")

    def charge_late_chunk(self) -> None:
        """The same for a chunk."""
        self.charge_late("a part of a message")
