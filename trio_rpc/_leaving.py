"""The end of a connection in peace: what its owner can ask for, wait for, and see of it. `_connection` has the rest."""

from __future__ import annotations

import trio

from ._calls import Outgoing
from ._errors import Code
from ._farewell import Farewell
from ._incoming import Incoming
from ._outbox import Outbox
from ._timer import Timer
from ._watch import Watch
from .wire import Outcome, Protocol

__all__ = ["GOING_AWAY", "Leaving"]

GOING_AWAY = Code.UNAVAILABLE, "this side is going away"


class Leaving:
    """The part of a `Connection` that drains; it makes the `Farewell` when that is needed."""

    __slots__ = ("_farewell", "_last_accepted", "_no_more", "draining", "going_away", "saying_goodbye")

    _farewell: Farewell | None
    _last_accepted: int
    """The last request of the peer's that is taken."""
    _no_more: tuple[Code, str]
    """What requests beyond that are told."""
    draining: bool
    going_away: bool
    saying_goodbye: bool

    # Of the connection:
    _watch: Watch
    calls: dict[int, Outgoing]
    closed: bool
    outbox: Outbox
    protocol: Protocol
    serving: dict[int, Incoming]
    timer: Timer

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
    def usable(self) -> bool:
        """True while new calls of ours may begin here."""
        return not self.going_away and not self.closed

    async def wait_quiet(self) -> None:
        """Wait until no call is under way in either direction, apart from orphans, or the connection has ended.

        While it drains, more may come until the second GOAWAY has been sent.
        """
        farewell = self._part()
        await farewell.wait_until(
            lambda: (
                self.closed
                or not (farewell.settling or self.busy_serving or any(not call.orphan for call in self.calls.values()))
            )
        )

    async def wait_closed(self) -> None:
        """Wait until the connection has ended."""
        await self._part().wait_until(lambda: self.closed)

    @trio.lowlevel.enable_ki_protection
    def drain(self, text: str) -> None:
        """Have the peer open no further calls, and lose none that it has opened. What was accepted goes on."""
        if not (self.draining or self.closed):
            self.draining = True
            self._part().drain(text)

    def _part(self) -> Farewell:
        if self._farewell is None:
            self._farewell = Farewell(self.outbox, self.protocol, self.timer, self._watch, self._on_settled)
        return self._farewell

    def _on_settled(self, last_id: int) -> None:
        """No further requests from now on, even while that GOAWAY is in the queue: their callers take them for not run."""
        self.draining = True
        self._last_accepted = last_id

    @trio.lowlevel.enable_ki_protection
    def expire(self, text: str) -> None:
        """The peer is not any more who it has shown to be: refuse what has not begun to run. What runs goes on."""
        if not self.closed:
            self._part().settle(text, Code.UNAUTHENTICATED)
            self._last_accepted = 0  # Nor what is still arriving in chunks.
            self._no_more = Code.UNAUTHENTICATED, text
            for call in list(self.serving.values()):
                if not call.started and call.scope is None:  # In line, until the peer takes what it has asked for.
                    call.send_error(Code.UNAUTHENTICATED, Outcome.REFUSED, text)

    @property
    def expired(self) -> bool:
        """`expire` was called."""
        return self._no_more is not GOING_AWAY

    def stop_serving(self, reason: str) -> None:
        """Cancel every handler of this connection; each answers its caller with RemoteCancelled.

        Where this connection drains, nothing is accepted from now on, as nobody would stop it any more.
        """
        if self.draining and not self.closed:
            self._part().settle(reason, Code.UNAVAILABLE)
        for call in list(self.serving.values()):
            call.stop(reason)
