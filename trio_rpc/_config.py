"""Every limit and default, in one table that the code, the docs and introspection read.

Times are seconds, sizes bytes; `None` switches a bound off. Each field's metadata holds its one-line meaning and
the source of its default: `describe(PoolLimits)` yields the rows that the reference page prints.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import attrs

__all__ = ["Backoff", "Heartbeat", "PoolLimits", "RetryPolicy", "ServerLimits", "describe"]

KIB = 1024
MIB = 1024 * KIB


def _setting(
    default: Any,
    doc: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float = math.inf,
    off: bool = False,
) -> Any:
    """A documented field; `off` says that None (no bound) is welcome. With a whole default only whole values are."""

    def check(_instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value is None:
            if not off:
                raise ValueError(f"{attribute.name} must be a number, not None: this bound cannot be switched off")
            return
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{attribute.name} must be a number, not {value!r}")
        if isinstance(default, int) and isinstance(value, float):  # It travels to the peer, who would not take 2.0.
            raise TypeError(f"{attribute.name} must be a whole number, not {value!r}")
        if (at_least is not None and not value >= at_least) or (above is not None and not value > above):
            bound = f"at least {at_least}" if at_least is not None else f"more than {above}"
            raise ValueError(f"{attribute.name} must be {bound}, not {value!r}")
        if value > at_most or value == math.inf:
            bound = f"at most {at_most}" if at_most < math.inf else "finite, or None for no bound" if off else "finite"
            raise ValueError(f"{attribute.name} must be {bound}, not {value!r}")

    return attrs.field(default=default, validator=check, metadata={"doc": doc, "off": off})


def describe(config: type[Any]) -> Iterator[tuple[str, Any, str]]:
    """Yield `(name, default, meaning)` for each field of one of the configuration classes."""
    for field in attrs.fields(config):
        default = field.default.factory() if isinstance(field.default, attrs.Factory) else field.default  # type: ignore[arg-type]
        yield field.name, default, field.metadata["doc"]


@attrs.frozen(kw_only=True)
class Backoff:
    """Jittered exponential delays, gRPC's formula: `min(initial * factor**n, maximum)`, times 1 +- jitter."""

    initial: float = _setting(1.0, "Delay before the second try (gRPC's connection back-off: 1 s).", at_least=0)
    factor: float = _setting(1.6, "Growth from one delay to the next (gRPC: 1.6).", at_least=1)
    maximum: float = _setting(120.0, "The longest delay before jitter (gRPC: 120 s).", at_least=0)
    jitter: float = _setting(
        0.2, "Share by which each delay is randomised either way (gRPC: 0.2).", at_least=0, at_most=1
    )


@attrs.frozen
class Heartbeat:
    """When a silent peer is pinged and when it is given up; each side tells the other in its HELLO.

    A dead peer is seen within `interval + timeout`. `interval=None` sends no pings and evicts no silent peer;
    the peer's own pings are answered all the same.
    """

    interval: float | None = _setting(10.0, "Read-idle time before a ping is sent; None sends none.", above=0, off=True)
    timeout: float = _setting(5.0, "Time for any byte to arrive after the ping left.", above=0)


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """Retries of `idempotent=True` methods after failures that may have run.

    What surely did not run is retried whatever this says, inside the call's own deadline. All attempts share
    that one deadline.
    """

    attempts: int = _setting(3, "Attempts in all, the first included (industrial default: 3).", at_least=1)
    backoff: Backoff = attrs.field(
        default=Backoff(initial=0.1, factor=2.0, maximum=1.0, jitter=0.2),
        validator=attrs.validators.instance_of(Backoff),
        metadata={"doc": "Delays between attempts: 100 ms, doubling to 1 s, +-20 %.", "off": False},
    )


@attrs.frozen(kw_only=True)
class Limits:
    """What both sides of a connection bound."""

    max_in_flight: int = _setting(
        256, "Calls at once on one connection; told to the peer for its calls to us.", at_least=1
    )
    max_frame_size: int = _setting(
        1 * MIB, "Largest frame accepted; checked at the header, before memory is spent.", at_least=16 * KIB
    )
    max_message_size: int = _setting(
        4 * MIB, "Largest message accepted, over all its chunks (gRPC's receive limit).", at_least=1 * KIB
    )
    max_metadata_size: int = _setting(8 * KIB, "Most metadata on one message (gRPC's soft limit).", at_least=0)
    stream_window: int = _setting(
        64 * KIB, "Unconsumed bytes a stream's sender may have under way (HTTP/2's 64 KiB).", at_least=1
    )
    stream_window_items: int = _setting(1024, "Unconsumed items a stream's sender may have under way.", at_least=1)
    write_timeout: float | None = _setting(
        10.0, "A write that makes no progress for so long evicts the peer (NATS: 10 s).", above=0, off=True
    )
    cancel_wait: float = _setting(
        1.0, "How long a cancelled call waits for its handler's end before it goes on.", at_least=0
    )
    max_queued_bytes: int = _setting(
        8 * MIB,
        "Bytes queued for a peer that does not read, beyond which none of its further requests is begun.",
        at_least=64 * KIB,
    )
    close_timeout: float = _setting(1.0, "Longest wait for a last flush and a tidy end of the transport.", at_least=0)


@attrs.frozen(kw_only=True)
class PoolLimits(Limits):
    """The client's bounds; see the fields."""

    min_connections: int = _setting(1, "Connections kept open, dialled in the background.", at_least=0)
    max_connections: int = _setting(
        4,
        "Most connections that take calls, those being dialled included; what goes away ends beside them.",
        at_least=1,
    )
    max_waiting: int | None = _setting(
        10_000, "Calls waiting for a place; one more raises PoolExhausted.", at_least=0, off=True
    )
    connect_timeout: float | None = _setting(5.0, "Name, TCP, TLS and HELLO together.", above=0, off=True)
    acquire_timeout: float | None = _setting(10.0, "Longest wait for a place before PoolTimeout.", at_least=0, off=True)
    idle_timeout: float | None = _setting(
        600.0, "Unused time after which a connection above the minimum is closed.", above=0, off=True
    )
    max_lifetime: float | None = _setting(
        3600.0, "Age, less up to 5 % jitter, at which a connection is replaced.", above=0, off=True
    )
    connect_backoff: Backoff = attrs.field(
        default=Backoff(),
        validator=attrs.validators.instance_of(Backoff),
        metadata={"doc": "Delays between failed dials, start to start; reset by a HELLO.", "off": False},
    )

    def __attrs_post_init__(self) -> None:
        if self.min_connections > self.max_connections:
            raise ValueError(
                f"min_connections={self.min_connections} is above max_connections={self.max_connections}: raise the one or lower the other"
            )


@attrs.frozen(kw_only=True)
class ServerLimits(Limits):
    """The server's bounds; see the fields."""

    max_connections: int | None = _setting(
        10_000, "Connections at once; further ones wait in the listen queue.", at_least=1, off=True
    )
    handshake_timeout: float | None = _setting(
        5.0, "TLS, preface, HELLO and authentication together.", above=0, off=True
    )
    max_deadline: float | None = _setting(
        None, "Longest run of any handler; a caller's longer deadline is cut to it.", above=0, off=True
    )
    max_threads: int = _setting(40, "Worker threads for `@method(thread=True)` (Trio's own default: 40).", at_least=1)
