"""How one connection comes to its end in peace: it says that it takes no further requests, and loses none that crossed
the word of it; and others wait until all is done.

The word is two GOAWAYs. The first one takes nothing back: its last id is the highest there is. A PING follows, which
the peer answers behind all requests that it had queued by then. So when the answer comes, all that crossed the GOAWAY
is here, and the second one says which was the last. Who does not answer gets that after SETTLE_TIME.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from ._errors import Code
from ._outbox import Outbox
from ._timer import Moment, Timer
from ._watch import Watch
from .wire import MAX_ID, Protocol

__all__ = ["SETTLE_TIME", "Farewell"]

SETTLE_TIME = 1.0
"""The longest wait, in seconds, for the answer to a drain's PING; two round trips, if these take longer."""


class Farewell:
    """The two GOAWAYs of one connection, each sent once, and who waits for what comes after.

    `settled(last_id)` is told of the second, as it is queued. It is made when it is needed.
    """

    __slots__ = ("_lot", "_moment", "_outbox", "_over", "_protocol", "_settled", "_timer", "_watch", "last_id")

    _moment: Moment | None
    """When the second GOAWAY goes out at the latest; None before the first and after the second."""

    def __init__(
        self, outbox: Outbox, protocol: Protocol, timer: Timer, watch: Watch, settled: Callable[[int], object]
    ) -> None:
        self._outbox = outbox
        self._protocol = protocol
        self._timer = timer
        self._watch = watch
        self._settled = settled
        self._lot = trio.lowlevel.ParkingLot()
        self._moment = None
        self._over = False
        """Nothing more is said."""
        self.last_id: int = MAX_ID
        """The last request that the peer was told to be accepted."""

    @property
    def settling(self) -> bool:
        """Whether requests may still come that the second GOAWAY will include."""
        return self._moment is not None

    def drain(self, text: str) -> None:
        """Send the first GOAWAY; the second follows by itself."""
        now = trio.current_time()
        longest = max(SETTLE_TIME, 2 * self._watch.rtt)
        self._moment = self._timer.at(now + longest, lambda _lateness: self.settle(text, Code.UNAVAILABLE))
        self._outbox.cork(now)
        self._outbox.put_control(self._protocol.goaway(MAX_ID, Code.UNAVAILABLE, text))
        self._watch.ping(lambda _rtt: self.settle(text, Code.UNAVAILABLE))
        self._outbox.flush()

    @trio.lowlevel.enable_ki_protection
    def settle(self, text: str, code: Code) -> None:
        """Send the second GOAWAY, unless it was sent, with or without the first one."""
        if self._over:
            return
        self.stop()
        last_id = self.last_id = self._protocol.last_remote_id
        self._settled(last_id)
        self._outbox.cork(trio.current_time())
        self._outbox.put_control(self._protocol.goaway(last_id, code, text))
        self._outbox.flush()

    async def wait_until(self, over: Callable[[], bool]) -> None:
        """Wait until this is true, of what `tell` is called for."""
        while not over():
            await self._lot.park()

    def tell(self) -> None:
        """Something has changed that others may wait for."""
        self._lot.unpark_all()

    def stop(self) -> None:
        """The connection has ended: nothing more is said, and the timer keeps nothing of it."""
        self._over = True
        if self._moment is not None:
            self._timer.forget(self._moment)
            self._moment = None
        self.tell()
