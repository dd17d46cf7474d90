"""From an accepted stream to a connection: TLS, HELLO, and who it is that comes in.

Until then a peer is a stranger: it gets little memory and little time, and learns little.
"""

from __future__ import annotations

import logging
import math
import ssl
from collections.abc import Hashable, Mapping, Sequence
from contextvars import copy_context
from functools import partial
from typing import Any

import trio

from ._admission import Admission, party_of
from ._authentication import Authentication
from ._authorization import screen
from ._conduct import Conduct
from ._connection import Connection
from ._errors import ConnectError, ConnectionFailed, RpcError, Unauthenticated
from ._handshake import answer, introduction
from ._incoming import Served
from ._logs import limited
from ._origin import host_of, origin_of
from ._peer import Peer
from ._room import Visit
from ._settings import ServerSettings
from ._statistics import ConnectionCounters, ServerCounters
from ._text import shown
from ._timer import Timer
from ._tls import check_side, context_from, start_tls, why
from .wire import Hello, Protocol, Role

__all__ = ["Reception"]

log = limited(logging.getLogger("trio_rpc.server"))


class Guest:
    """A stranger, until it is a connection of the server's."""

    __slots__ = ("address", "expires_at", "party", "principal", "revoked", "scope", "visit")

    def __init__(self, address: str, scope: trio.CancelScope, visit: Visit) -> None:
        self.address: str = address
        self.scope: trio.CancelScope = scope
        self.visit: Visit = visit
        self.principal: Any = None
        self.party: Hashable = None
        self.expires_at: float | None = None
        self.revoked: list[object] = []
        """Principals that were revoked meanwhile."""


class Reception:
    """Makes connections of streams, or turns them away."""

    def __init__(
        self,
        settings: ServerSettings,
        *,
        names: Sequence[str],
        methods: Mapping[str, Mapping[str, Served]],
        instance: str,
        timer: Timer,
        admission: Admission,
        counters: ServerCounters,
        connection_counters: ConnectionCounters,
    ) -> None:
        self.limits = settings.limits
        self.heartbeat = settings.heartbeat
        self._ssl_context = settings.ssl_context
        self._authentication = (
            None
            if settings.authenticate is None
            else Authentication(settings.authenticate, self.limits.auth_failure_rate)
        )
        self._screen = None if settings.authorize is None else partial(screen, settings.authorize)
        self.conduct = Conduct(self.limits, timer)
        self._guests: dict[Guest, None] = {}
        self._codecs = tuple(settings.codecs)
        self._names = tuple(names)
        self._methods = methods
        self._instance = instance
        self._timer = timer
        self._admission = admission
        self._counters = counters
        self._connection_counters = connection_counters
        self._base_context = copy_context()

    async def welcome(
        self, stream: trio.abc.Stream, address: str, scope: trio.CancelScope, visit: Visit
    ) -> Connection | None:
        """Shake hands, within `handshake_timeout`, which `scope` holds meanwhile. None: it came to nothing."""
        timeout = self.limits.handshake_timeout
        if timeout is not None:
            scope.deadline = trio.current_time() + timeout
        guest = Guest(address, scope, visit)
        self._guests[guest] = None
        try:
            connection = await self._shake_hands(stream, guest)
            scope.deadline = math.inf
            return connection
        except trio.Cancelled:
            if scope.cancel_called:
                self._note_refused(address, f"no HELLO within {timeout:g} s (handshake_timeout)")
            raise
        except Unauthenticated:
            self._counters.refused_connections += 1  # It has been logged, with more care.
        except (RpcError, OSError, ssl.SSLError) as exc:
            self._note_refused(address, str(exc) or type(exc).__name__)
        except Exception:
            self._counters.refused_connections += 1
            log.warning("the handshake with %s failed inside", address, exc_info=True)
        finally:
            del self._guests[guest]
            visit.greeted()
        return None

    def _note_refused(self, address: str, reason: str) -> None:
        self._counters.refused_connections += 1
        log.info("no connection with %s: %s", address, shown(reason, 160))

    def revoke(self, principal: object) -> None:
        """Turn away who comes in as this principal just now, on credentials that were looked at before."""
        for guest in self._guests:
            guest.revoked.append(principal)

    async def _shake_hands(self, stream: trio.abc.Stream, guest: Guest) -> Connection:
        try:
            stream = await self._secure(stream)
            protocol = Protocol(Role.ACCEPTOR, self._hello(""))
            greeting, early = await answer(stream, protocol, partial(self._admit, stream, guest))
            if guest.principal in guest.revoked:  # Since they were looked at: the answer may have taken its time.
                raise ConnectionFailed("its credentials were revoked during the handshake")
            connection = self._make_connection(stream, protocol, guest)
            connection.meet(early)
            if greeting:
                connection.outbox.put_control(greeting)
            return connection
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise

    async def _secure(self, stream: trio.abc.Stream) -> trio.abc.Stream:
        if self._ssl_context is None:
            return stream
        try:
            context = context_from(self._ssl_context)
            check_side(context, server_side=True)
            return await start_tls(stream, context, server_side=True)
        except trio.BrokenResourceError as exc:
            raise ConnectionFailed(f"TLS handshake failed: {why(exc)}") from exc

    async def _admit(self, stream: trio.abc.Stream, guest: Guest, hello: Hello) -> Hello:
        """Choose a codec, check the credentials and how many it has connected with; what it raises is told to the peer."""
        codec = next((name for name in hello.codecs if name in self._codecs), None)
        if codec is None:
            theirs, ours = ", ".join(hello.codecs)[:80], ", ".join(self._codecs)
            raise ConnectError(f"no codec in common: the client speaks {theirs}, this server {ours}", permanent=True)
        origin = origin_of(stream, guest.address)
        if self._authentication is not None:
            identity = await self._authentication.identify(hello.credentials or {}, origin, guest.scope.deadline)
            guest.principal = identity.principal
            if identity.expires_in is not None:
                guest.expires_at = trio.current_time() + identity.expires_in
        guest.party = party_of(guest.principal, host_of(origin))
        guest.visit.claim(guest.party)
        return self._hello(codec)

    def _hello(self, codec: str) -> Hello:
        return introduction(codec, self.limits, self.heartbeat, self._names, self._instance)

    def _make_connection(self, stream: trio.abc.Stream, protocol: Protocol, guest: Guest) -> Connection:
        codec, principal = protocol.local.codecs[0], guest.principal
        connection = Connection(
            stream,
            protocol,
            limits=self.limits,
            heartbeat=self.heartbeat,
            timer=self._timer,
            methods=self._methods[codec],
            base_context=self._base_context,
            counters=self._connection_counters,
            address=guest.address,
            max_deadline=self.limits.max_deadline,
            admission=self._admission,
        )
        if self.limits.max_calls_per_principal is not None:
            connection.party = guest.party
        connection.principal, connection.make_peer = principal, self._make_peer
        connection.conduct = self.conduct
        connection.expires_at, connection.screen = guest.expires_at, self._screen
        return connection

    def _make_peer(self, connection: Connection) -> Peer:
        codec = connection.protocol.local.codecs[0]
        return Peer(connection, codec=codec, timer=self._timer, limits=self.limits, principal=connection.principal)
