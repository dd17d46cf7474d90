"""The other side of one connection, as something to call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import trio

from ._call import Interceptor
from ._caller import Caller
from ._config import Limits, PoolLimits
from ._connection import Connection
from ._errors import PoolClosed
from ._origin import Origin, ProcessCredentials, origin_of
from ._placement import Route
from ._policies import RetryPolicy
from ._target import Target
from ._timer import Timer
from ._waiting import WaitingLine
from .wire import Metadata

__all__ = ["Peer"]


class Peer(Target):
    """The other side of one connection: who it is, and its methods.

    A handler finds its caller as `current_call().peer` and calls back with `peer.stub(Callbacks)`. Calls beyond the
    limit wait in line, as in a pool; when the connection ends they fail.

    Attributes:
        address: the other end, like `tcp://10.0.0.7:51234`.
        principal: what `authenticate` returned for it, or None.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        codec: str,
        timer: Timer,
        limits: Limits,
        principal: Any = None,
        acquire_timeout: float | None = 10.0,
        max_waiting: int | None = 10_000,
        retry: RetryPolicy | None = None,
        metadata: Metadata | None = None,
        interceptors: Sequence[Interceptor] = (),
    ) -> None:
        self._line = WaitingLine(
            timer,
            lambda: (f"all places of {connection!r} are taken", None),
            max_waiting=max_waiting,
            acquire_timeout=acquire_timeout,
            priorities=PoolLimits().priorities,
        )
        super().__init__(
            Caller(
                describe=self.__repr__,
                pick=self._pick,
                join=self._line.join,
                codec=codec,
                timer=timer,
                retry=retry or RetryPolicy(),
                limits=limits,
                acquire_timeout=acquire_timeout,
                metadata=metadata,
                interceptors=interceptors,
            )
        )
        self.principal: Any = principal
        self._origin: Origin | None = None
        self._connection = connection
        connection.room_watchers.append(self._on_room)

    def __repr__(self) -> str:
        return f"<Peer {self.address}: {len(self._connection.calls)} calls in flight, {len(self._line)} waiting>"

    @property
    def address(self) -> str:
        """The other end's address."""
        return self._connection.address

    @property
    def services(self) -> tuple[str, ...]:
        """Names of the services that it offers us."""
        return self._connection.remote.services

    @property
    def origin(self) -> Origin:
        """Where the connection comes from, or goes to, as far as that is known without asking the peer."""
        if self._origin is None:
            self._origin = origin_of(self._connection.stream, self._connection.address)
        return self._origin

    @property
    def certificate(self) -> Mapping[str, Any] | None:
        """The peer's TLS certificate as `ssl.SSLSocket.getpeercert()` gives it; None without one that was verified."""
        return self.origin.certificate

    @property
    def tls(self) -> str | None:
        """The TLS version in use, like `TLSv1.3`, or None on a plain transport."""
        return self.origin.tls

    @property
    def process(self) -> ProcessCredentials | None:
        """The process at the other end of a UNIX socket, on Linux; elsewhere None."""
        return self.origin.process

    def _pick(self, _route: Route | None) -> Connection | None:
        if not self._connection.usable:
            raise self._closed()
        return self._connection if not len(self._line) and self._connection.free > 0 else None

    def _closed(self) -> Exception:
        error = PoolClosed(f"the connection to {self.address} takes no more calls")
        error.__cause__ = self._connection.cause
        return error

    def _on_room(self, connection: Connection) -> None:
        if connection.usable:
            while self._line.count and connection.free > 0:
                self._line.admit_first(connection, trio.current_time())
        else:
            self._line.fail_all(self._closed)
            for stream in list(self._caller.restarting):
                stream.begin_anew()  # And fails: the timer that was to do it may end before, with the server.
