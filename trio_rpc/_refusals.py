"""How one connection answers requests that never become calls here, and how many of them it bears.

An honest peer keeps to the limit that it was told in the HELLO, and reads what it is answered. Another one is not to
be answered for ever: its connection is closed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

from ._config import Limits
from ._errors import Code, RemoteProtocolError
from ._incoming import Incoming, Served
from ._outbox import Outbox
from .wire import Outcome, Protocol

__all__ = ["Refusals", "excessive", "is_full", "unknown"]


class Refusals:
    """Says no, and counts how often that was not read."""

    __slots__ = ("_most", "_outbox", "_owed", "_protocol")

    def __init__(self, outbox: Outbox, protocol: Protocol, limits: Limits) -> None:
        self._outbox = outbox
        self._protocol = protocol
        self._most = limits.excess_factor * limits.max_in_flight
        self._owed = 0
        """Those that the transport has not taken yet."""

    def refuse(self, request_id: int, code: Code, text: str, outcome: Outcome) -> None:
        """Answer ahead of others, as no frame of that id can be in the queue. Raises RemoteProtocolError if it is too much."""
        self._owed += 1
        if self._owed > self._most:
            raise RemoteProtocolError("the peer goes on sending requests, and does not read that they are refused")
        self._protocol.forget(request_id)  # Its items may have begun to arrive right behind it.
        frame, _ = self._protocol.error(request_id, code, outcome, False, text)
        self._outbox.put_control(frame, self._left)

    def _left(self) -> None:
        self._owed -= 1


def excessive(limits: Limits, in_a_row: int) -> str:
    """Why a request beyond `max_in_flight` is refused, `in_a_row` of them with none between that was taken.

    Raises RemoteProtocolError if these are too many.
    """
    most = limits.max_in_flight
    if in_a_row > limits.excess_factor * most:
        raise RemoteProtocolError("the peer goes on sending requests far beyond max_in_flight")
    return f"{most} calls are running on this connection already (max_in_flight)"


def is_full(most: int, serving: Collection[Incoming], served: Served | None) -> bool:
    """Whether `most` calls run already; those of methods without limits count apart, up to the same number."""
    exempt = sum(call.served.limit == math.inf for call in serving)
    is_exempt = served is not None and served.limit == math.inf
    return (exempt if is_exempt else len(serving) - exempt) >= most


def unknown(name: str, known: Iterable[str]) -> str:
    """Why there is no such method, and what there is instead."""
    service, dot, _ = name.rpartition(".")
    services = sorted({other.rpartition(".")[0] for other in known})
    if not dot:
        return f"there is no method {name[:80]!r} here: write it as Service.method"
    if service not in services:
        return f"there is no service {service[:80]!r} here: it serves {', '.join(services)[:200] or 'nothing'}"
    return f"there is no method {name[:80]!r} here"
