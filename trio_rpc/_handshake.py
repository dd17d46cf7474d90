"""The HELLOs: from a fresh transport to two sides that know each other.

A connection is ready after the HELLO round trip and not on TCP accept: with TLS 1.3 a server's refusal of the
client's certificate shows only at the client's first read. What may go before that, right behind the dialler's HELLO,
is one small idempotent request; see `WaitingLine.admit_early`.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable

import trio

from ._config import Heartbeat, Limits
from ._errors import (
    Code,
    ConnectError,
    ConnectionFailed,
    ProtocolError,
    Refused,
    RemoteProtocolError,
    RpcError,
    Unauthenticated,
)
from ._sockets import SocketStream
from ._text import readable, shown
from ._tls import is_final, why
from .wire import PREFACE, Bytes, Event, GoAwayReceived, Hello, HelloReceived, Protocol, RequestReceived

__all__ = ["answer", "greet", "introduction"]

STRANGERS_SIZE = 16 * 1024
"""Bytes that are taken at once from whom we do not know yet (reliability: 16 KiB before authentication)."""

MAX_WORDS = 512
"""Characters of what a server says instead of HELLO."""

_BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError)


@functools.lru_cache(maxsize=64)
def introduction(
    codec: str, limits: Limits, heartbeat: Heartbeat, services: tuple[str, ...], instance: str = ""
) -> Hello:
    """What either side says of itself; the dialler adds its credentials. Made once, and once made into bytes.

    `instance`: random, one for each server and each pool, so that the other side can tell whether two connections lead
    to the same: only there is what it remembers of a call, like the result kept for an idempotency key.
    """
    return Hello(
        codecs=(codec,),
        max_in_flight=limits.max_in_flight,
        max_frame_size=limits.max_frame_size,
        max_message_size=limits.max_message_size,
        max_metadata_size=limits.max_metadata_size,
        max_metadata_items=limits.max_metadata_items,
        max_receiving_bytes=limits.max_receiving_bytes,
        stream_window=limits.stream_window,
        stream_window_items=limits.stream_window_items,
        ping_interval=heartbeat.interval,
        ping_timeout=heartbeat.timeout,
        services=services,
        instance=instance,
    )


async def greet(stream: trio.abc.Stream, protocol: Protocol, address: str, early: Bytes = b"") -> list[Event]:
    """The dialler's side: say HELLO, and right behind it `early`; await the answer. Returns what came right behind.

    Raises ConnectError, or Unauthenticated if the credentials were refused; `may_have_run` is about `early`.
    """
    try:
        await stream.send_all(protocol.greeting() + early)
        events = await _first_events(stream, protocol)
    except ProtocolError as exc:
        raise ConnectError(f"{address}: {exc.message}", peer=address, permanent=True) from exc
    except _BROKEN as exc:
        # With TLS 1.3 it is here that a client learns what the server thinks of its certificate.
        final = is_final(exc)
        text = f"TLS with {address} failed" if final else f"{address} broke the connection before its HELLO"
        text = f"{text}: {why(exc)}"
        raise ConnectError(text, may_have_run=bool(early) and not final, peer=address, permanent=final) from exc
    if not events:
        text = f"{address} closed the connection before its HELLO; does it expect TLS, or a client certificate?"
        raise ConnectError(text, may_have_run=bool(early), peer=address)
    first = events.pop(0)
    if isinstance(first, GoAwayReceived):
        raise _refusal(first, address)
    assert isinstance(first, HelloReceived)
    _check_codec(first.hello.codecs[0], protocol.local.codecs, bool(early), address)
    return events


def _check_codec(chosen: str, offered: tuple[str, ...], early: bool, address: str) -> None:
    """What was not offered is no choice: payloads would be read as what they are not."""
    if chosen not in offered:
        text = f"{address} chose the codec {shown(chosen)}, and we offered {', '.join(offered)}"
        raise ConnectError(text, may_have_run=early, peer=address, permanent=True)


def _refusal(goaway: GoAwayReceived, address: str) -> RpcError:
    text = readable(goaway.message, MAX_WORDS)
    if goaway.code in (Code.UNAUTHENTICATED, Code.PERMISSION_DENIED):
        return Unauthenticated(text, peer=address)
    permanent = goaway.code not in (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED)  # Come again later.
    return ConnectError(f"{address} refused the connection: {text}", peer=address, permanent=permanent)


async def answer(
    stream: trio.abc.Stream, protocol: Protocol, admit: Callable[[Hello], Awaitable[Hello]]
) -> tuple[bytes, list[Event]]:
    """The acceptor's side: await HELLO, let `admit` judge it, answer. Returns the events that came right behind.

    That may be one request, and nothing more: who is unknown is to cost little. Our own HELLO is returned unsent then,
    and goes with the first that is written, which may be the request's result. Two system calls and a turn of the other
    side are saved by that, 7 % of a connection with one call.
    `admit` returns what to answer, or raises a Refused or ConnectError, which the peer is told.
    Raises ConnectionFailed or Refused.
    """
    try:
        # The dialler speaks first: by now it may well have. A try costs less than a turn of the scheduler.
        data = stream.receive_at_once(STRANGERS_SIZE) if isinstance(stream, SocketStream) else None
        events = protocol.receive_data(data) if data else []
        if not events:
            events = await _first_events(stream, protocol)
        if not events:
            raise ConnectionFailed("the peer closed the connection before its HELLO")
        first = events.pop(0)
        assert isinstance(first, HelloReceived)
        one = all(isinstance(event, RequestReceived) for event in events) and len(events) <= 1
        if not one or protocol.receiving_messages:
            raise RemoteProtocolError("the peer sent more than one request before our HELLO")
        protocol.local = await admit(first.hello)
        greeting = protocol.greeting()
        if events:
            return greeting, events
        await stream.send_all(greeting)
    except (RemoteProtocolError, Refused, ConnectError) as exc:
        await _say_no(stream, protocol, exc)
        raise
    except _BROKEN as exc:
        raise ConnectionFailed(f"the connection broke during HELLO: {why(exc)}") from exc
    return b"", events


async def _say_no(stream: trio.abc.Stream, protocol: Protocol, exc: RpcError) -> None:
    # UNAVAILABLE invites to come again.
    final = isinstance(exc, ConnectError) and exc.permanent
    code = Code.FAILED_PRECONDITION if final else exc.code
    try:
        await stream.send_all(PREFACE + protocol.goaway(0, code, exc.message))
    except _BROKEN:
        return  # It is gone already, and has lost nothing by it.


async def _first_events(stream: trio.abc.Stream, protocol: Protocol) -> list[Event]:
    """Read until the first whole frames are there; [] if the stream ends before."""
    while True:
        data = await stream.receive_some(STRANGERS_SIZE)
        if not data:
            return []
        events = protocol.receive_data(bytes(data))
        if events:
            return events
