"""What is bounded, and by how much: every limit and default, in one table that the code, the docs and introspection read.

Times are seconds, sizes bytes; `None` switches a bound off. Each field's metadata holds its one-line meaning and
the source of its default: `describe(PoolLimits)` (`_checks`) yields the rows that the reference page prints. How pools
and servers decide within these bounds is in `_policies`.
"""

from __future__ import annotations

import math

import attrs

from ._checks import of, setting
from ._policies import Backoff

__all__ = ["KIB", "MIB", "Heartbeat", "Limits", "PoolLimits", "ServerLimits"]

KIB = 1024
MIB = 1024 * KIB


@attrs.frozen
class Heartbeat:
    """When a silent peer is pinged and when it is given up; each side tells the other in its HELLO.

    A dead peer is seen within `interval + timeout`. `interval=None` sends no pings and evicts no silent peer;
    the peer's own pings are answered all the same.
    """

    interval: float | None = setting(
        10.0, "Read-idle time before a ping is sent; None sends none.", at_least=0.01, off=True
    )
    timeout: float = setting(5.0, "Time for any byte to arrive after the ping left.", above=0)


@attrs.frozen(kw_only=True)
class Limits:
    """What both sides of a connection bound."""

    max_in_flight: int = setting(
        256, "Calls at once on one connection; told to the peer for its calls to us.", at_least=1
    )
    max_frame_size: int = setting(
        1 * MIB, "Largest frame accepted; checked at the header, before memory is spent.", at_least=16 * KIB
    )
    max_message_size: int = setting(
        4 * MIB, "Largest message accepted, over all its chunks (gRPC's receive limit).", at_least=1 * KIB
    )
    max_metadata_size: int = setting(8 * KIB, "Most metadata on one message (gRPC's soft limit).", at_least=0)
    max_metadata_items: int = setting(64, "Most entries of metadata on one message.", at_least=0)
    max_depth: int = setting(
        64, "Lists and maps inside each other in one message; a failure takes up to 22.", at_least=32, at_most=256
    )
    max_containers: int = setting(20_000, "Lists and maps in one message.", at_least=64)
    max_values: int = setting(
        300_000,
        "Values in one message, those that are slow to read counted several times; so many take some 25 ms.",
        at_least=1000,
    )
    max_receiving_bytes: int = setting(
        32 * MIB,
        "Bytes of messages that are still arriving in chunks, on one connection; told to the peer. One may always arrive.",
        at_least=1 * KIB,
    )
    frame_timeout: float | None = setting(
        10.0,
        "Time in which a frame, once begun, must be whole (of a longer one, each 64 KiB), and a message in chunks go on.",
        above=0,
        off=True,
    )
    stream_window: int = setting(
        64 * KIB, "Unconsumed bytes a stream's sender may have under way (HTTP/2's 64 KiB).", at_least=1
    )
    stream_window_items: int = setting(1024, "Unconsumed items a stream's sender may have under way.", at_least=1)
    write_timeout: float | None = setting(
        10.0, "A write that makes no progress for so long evicts the peer (NATS: 10 s).", above=0, off=True
    )
    cancel_wait: float = setting(
        1.0, "How long a cancelled call waits for its handler's end before it goes on.", at_least=0
    )
    max_queued_bytes: int = setting(
        8 * MIB,
        "Bytes queued for a peer that does not read; beyond, none of its further requests is begun, and streams to it wait.",
        at_least=64 * KIB,
    )
    close_timeout: float = setting(1.0, "Longest wait for a last flush and a tidy end of the transport.", at_least=0)
    excess_factor: int = setting(
        4,
        "Requests beyond `max_in_flight` in a row, or refused and not read, in units of it, that close a connection (Go: 4).",
        at_least=1,
    )
    fault_budget: int | None = setting(
        1000,
        "Errors of its own making that a peer has at once before it is closed (nghttp2's reset bucket: 1000).",
        at_least=1,
        off=True,
    )
    fault_rate: float = setting(33.0, "And so many a second beyond (nghttp2: 33).", at_least=0)
    ping_budget: int = setting(
        10,
        "Pings beyond the announced rhythm that a peer has at once; validating pools need 5, and 2 a second.",
        at_least=1,
    )
    ping_rate: float = setting(2.0, "And so many a second beyond.", at_least=0)

    @property
    def receiving_room(self) -> int:
        """`max_receiving_bytes`, and more where one whole message would not fit beside half of it.

        That half is for the first frames of others: those of messages that their sender holds back stand in line too.
        """
        return max(self.max_receiving_bytes, self.max_message_size + self.max_receiving_bytes // 2)


@attrs.frozen(kw_only=True)
class PoolLimits(Limits):
    """The client's bounds; see the fields. What counts connections counts those of one endpoint."""

    min_connections: int = setting(1, "Connections kept open to each endpoint, dialled in the background.", at_least=0)
    max_connections: int = setting(
        4,
        "Most connections to one endpoint that take calls, those being dialled included; what goes away ends beside them.",
        at_least=1,
    )
    autostart: bool = attrs.field(
        default=True,
        validator=of(bool),
        metadata={"doc": "Dial the minimum at once; False: with the first call, or `connect`.", "off": False},
    )
    max_waiting: int | None = setting(
        10_000, "Calls waiting for a place; one more raises PoolExhausted.", at_least=0, off=True
    )
    connect_timeout: float | None = setting(5.0, "Name, TCP, TLS and HELLO together.", above=0, off=True)
    acquire_timeout: float | None = setting(10.0, "Longest wait for a place before PoolTimeout.", at_least=0, off=True)
    spread: bool = attrs.field(
        default=True,
        validator=of(bool),
        metadata={
            "doc": "Calls go where the fewest are; False: to the oldest connection with a place, so that the others can age.",
            "off": False,
        },
    )
    priorities: int = setting(
        8, "Classes in the line: 0 is served first, and who names none is in the last.", at_least=1
    )
    idle_timeout: float | None = setting(
        600.0,
        "Unused time after which a connection above the minimum is closed; 0: as soon as nobody waits for it.",
        at_least=0,
        off=True,
    )
    max_idle: float | None = setting(
        None, "Unused time after which any connection is replaced, those of the minimum too.", above=0, off=True
    )
    validate_after: float | None = setting(
        None,
        "Silence after which a connection is pinged before a call goes on it (HikariCP: 0.5 s).",
        at_least=0,
        off=True,
    )
    validate_timeout: float = setting(5.0, "How long that ping may take (HikariCP: 5 s).", above=0)
    slow_start: float | None = setting(
        None, "Time in which a new endpoint's share of calls grows from a tenth to the whole.", above=0, off=True
    )
    max_lifetime: float | None = setting(
        3600.0, "Age, less up to 5 % jitter, at which a connection is replaced.", above=0, off=True
    )
    connect_backoff: Backoff = attrs.field(
        default=Backoff(),
        validator=of(Backoff, advice="write Backoff(initial=...)"),
        metadata={"doc": "Delays between failed dials, start to start; reset by a HELLO.", "off": False},
    )

    def __attrs_post_init__(self) -> None:
        if self.min_connections > self.max_connections:
            raise ValueError(
                f"min_connections={self.min_connections} is above max_connections={self.max_connections}: raise the one or lower the other"
            )
        if self.validate_after is not None and (self.acquire_timeout or math.inf) <= self.validate_timeout:
            raise ValueError(
                f"validate_timeout={self.validate_timeout:g} is not below acquire_timeout={self.acquire_timeout:g}: "
                "a call would give up before it could go elsewhere"
            )


@attrs.frozen(kw_only=True)
class ServerLimits(Limits):
    """The server's bounds; see the fields."""

    max_connections: int | None = setting(
        10_000, "Connections at once; further ones wait in the listen queue.", at_least=1, off=True
    )
    max_connections_per_principal: int | None = setting(
        1024,
        "Connections at once of one principal; without `authenticate`, of one host, or user of a UNIX socket.",
        at_least=1,
        off=True,
    )
    max_handshaking: int | None = setting(
        256,
        "Connections at once that have not said HELLO; further ones wait in the listen queue.",
        at_least=1,
        off=True,
    )
    backlog: int = setting(
        4096, "Connections that the listen queue holds; the kernel may clip it (somaxconn).", at_least=1
    )
    auth_failure_rate: float | None = setting(
        5.0,
        "Refused credentials a second from one host; beyond that rate each refusal is told later.",
        above=0,
        off=True,
    )
    handshake_timeout: float | None = setting(
        5.0, "TLS, preface, HELLO and authentication together.", above=0, off=True
    )
    max_deadline: float | None = setting(
        None, "Longest run of any handler; a caller's longer deadline is cut to it.", above=0, off=True
    )
    max_calls: int | None = setting(
        10_000, "Handlers at once on the whole server (reliability: 10,000).", at_least=1, off=True
    )
    max_calls_per_principal: int | None = setting(
        None, "Handlers at once for one principal; without `authenticate`, for one host.", at_least=1, off=True
    )
    max_age: float | None = setting(
        None, "Age, +-10 %, at which a connection is drained, so that clients spread anew.", above=0, off=True
    )
    max_age_grace: float | None = setting(
        None, "Time that calls on such a connection have left; None: as long as they take.", at_least=0, off=True
    )
    max_idle: float | None = setting(
        None, "Time without any call after which a connection is drained.", above=0, off=True
    )
    result_window: float = setting(
        60.0, "How long the result of a call with an idempotency key is kept for a retry.", at_least=0
    )
    max_kept_results: int = setting(10_000, "Results kept for that; beyond, the oldest are forgotten.", at_least=0)
    max_kept_bytes: int = setting(64 * MIB, "What they may take; beyond, the oldest are forgotten.", at_least=0)
    orphan_window: float = setting(
        10.0,
        "How long a handler with an idempotency key runs on for a caller who was lost and may come back.",
        at_least=0,
    )
    cancel_warn_after: float | None = setting(
        5.0, "A handler that was cancelled and still runs after so long is logged.", above=0, off=True
    )
    stall_warn_after: float | None = setting(
        0.5, "A handler that holds up the event loop for so long in one step is logged.", above=0, off=True
    )
    max_threads: int = setting(40, "Worker threads for `@method(thread=True)` (Trio's own default: 40).", at_least=1)
