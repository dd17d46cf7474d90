"""From an accepted stream to a connection: TLS, HELLO, and who it is that comes in.

Until then a peer is a stranger: it gets little memory and little time, and learns little.
"""

from __future__ import annotations

import logging
import math
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import copy_context
from typing import Any

import trio

from ._admission import Admission, party_of
from ._connection import Connection
from ._errors import ConnectError, ConnectionFailed, RpcError, Unauthenticated
from ._handshake import answer, introduction
from ._incoming import Served
from ._peer import Peer
from ._settings import ServerSettings
from ._statistics import ConnectionCounters, ServerCounters
from ._timer import Timer
from ._tls import start_tls, why
from .wire import Hello, Protocol, Role

__all__ = ["Reception"]

log = logging.getLogger("trio_rpc.server")


class Reception:
    """Makes connections of streams, or turns them away.

    Attributes:
        under_way: those who have not said HELLO yet.
    """

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
        on_room: Callable[[], object],
    ) -> None:
        self.under_way: int = 0
        self.limits = settings.limits
        self.heartbeat = settings.heartbeat
        self._ssl_context = settings.ssl_context
        self._authenticate = settings.authenticate
        self._codecs = tuple(settings.codecs)
        self._names = tuple(names)
        self._methods = methods
        self._instance = instance
        self._timer = timer
        self._admission = admission
        self._counters = counters
        self._connection_counters = connection_counters
        self._on_room = on_room
        self._base_context = copy_context()

    async def welcome(self, stream: trio.abc.Stream, address: str, scope: trio.CancelScope) -> Connection | None:
        """Shake hands, within `handshake_timeout`, which `scope` holds meanwhile. None: it came to nothing."""
        timeout = self.limits.handshake_timeout
        if timeout is not None:
            scope.deadline = trio.current_time() + timeout
        self.under_way += 1
        try:
            connection = await self._shake_hands(stream, address)
            scope.deadline = math.inf
            return connection
        except trio.Cancelled:
            if scope.cancel_called:
                self._note_refused(address, f"no HELLO within {timeout:g} s (handshake_timeout)")
            raise
        except (RpcError, OSError, ssl.SSLError) as exc:
            self._note_refused(address, str(exc) or type(exc).__name__)
        except Exception:
            self._counters.refused_connections += 1
            log.exception("the handshake with %s failed inside", address)
        finally:
            self.under_way -= 1
            self._on_room()
        return None

    def _note_refused(self, address: str, reason: str) -> None:
        self._counters.refused_connections += 1
        log.info("no connection with %s: %.300s", address, reason)

    async def _shake_hands(self, stream: trio.abc.Stream, address: str) -> Connection:
        try:
            stream = await self._secure(stream)
            principal: list[Any] = []
            protocol = Protocol(Role.ACCEPTOR, self._hello(""))
            greeting, early = await answer(stream, protocol, lambda hello: self._admit(hello, address, principal))
            connection = self._make_connection(stream, protocol, address, principal[0])
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
            return await start_tls(stream, self._ssl_context, server_side=True)
        except trio.BrokenResourceError as exc:
            raise ConnectionFailed(f"TLS handshake failed: {why(exc)}") from exc

    async def _admit(self, hello: Hello, address: str, principal: list[Any]) -> Hello:
        """Choose a codec, check the credentials; what it raises is told to the peer."""
        codec = next((name for name in hello.codecs if name in self._codecs), None)
        if codec is None:
            theirs, ours = ", ".join(hello.codecs)[:80], ", ".join(self._codecs)
            raise ConnectError(f"no codec in common: the client speaks {theirs}, this server {ours}", permanent=True)
        result = None
        if self._authenticate is not None:
            result = await self._check_credentials(hello.credentials or {}, address)
        principal.append(result)
        return self._hello(codec)

    async def _check_credentials(self, credentials: Mapping[str, Any], address: str) -> Any:
        assert self._authenticate is not None
        try:
            principal = self._authenticate(credentials, address)
            return await principal if isinstance(principal, Awaitable) else principal
        except Unauthenticated:
            raise
        except Exception as exc:
            log.exception("authenticate failed for %s", address)
            raise Unauthenticated("the credentials could not be checked") from exc

    def _hello(self, codec: str) -> Hello:
        return introduction(codec, self.limits, self.heartbeat, self._names, self._instance)

    def _make_connection(self, stream: trio.abc.Stream, protocol: Protocol, address: str, principal: Any) -> Connection:
        codec = protocol.local.codecs[0]
        connection = Connection(
            stream,
            protocol,
            limits=self.limits,
            heartbeat=self.heartbeat,
            timer=self._timer,
            methods=self._methods[codec],
            base_context=self._base_context,
            counters=self._connection_counters,
            address=address,
            max_deadline=self.limits.max_deadline,
            admission=self._admission,
        )
        if self.limits.max_calls_per_principal is not None:
            connection.party = party_of(principal, address)
        connection.principal, connection.make_peer = principal, self._make_peer
        return connection

    def _make_peer(self, connection: Connection) -> Peer:
        codec = connection.protocol.local.codecs[0]
        return Peer(connection, codec=codec, timer=self._timer, limits=self.limits, principal=connection.principal)
