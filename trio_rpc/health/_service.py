"""The contract, and the implementation that is told what to say."""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator, Mapping

import trio

import trio_rpc

__all__ = ["Health", "HealthService", "Status"]

MAX_LISTED = 100
"""The most entries of one `list`, as in gRPC."""


class Status(enum.StrEnum):
    """What is known of one service. Each travels as its name."""

    UNKNOWN = "UNKNOWN"
    """It is not known yet."""
    SERVING = "SERVING"
    """It takes calls."""
    NOT_SERVING = "NOT_SERVING"
    """It is there, and calls had better go elsewhere."""
    SERVICE_UNKNOWN = "SERVICE_UNKNOWN"
    """There is no such service here, which may change: said by `watch` alone."""


class Health:
    """The contract. Its wire name is `Health`."""

    @trio_rpc.method(idempotent=True, unlimited=True)
    async def check(self, service: str = "") -> Status:
        """The status of one service; "" for the server as a whole.

        Raises:
            RemoteError: with code NOT_FOUND: there is no such service here.
        """
        raise NotImplementedError

    @trio_rpc.method(idempotent=True, unlimited=True)
    def watch(self, service: str = "") -> AsyncGenerator[Status, None]:
        """The status now, and again whenever it has changed; SERVICE_UNKNOWN while there is no such service here.

        A change that is undone before the watcher has taken it is not told. Once the server shuts down the stream ends
        behind its last status, so that a drain need not wait for it.
        """
        raise NotImplementedError

    @trio_rpc.method(idempotent=True, unlimited=True)
    async def list(self) -> dict[str, Status]:
        """All services and their statuses, by name; the first 100 if there are more."""
        raise NotImplementedError


class HealthService(Health):
    """Serves what `set` was told. For one event loop: call it from its tasks.

    Args:
        statuses: where to begin. "", the server as a whole, is SERVING if it is not given.
    """

    def __init__(self, statuses: Mapping[str, Status] | None = None) -> None:
        self._statuses: dict[str, Status] = {"": Status.SERVING}
        self._over = False
        self._changed = trio.Event()
        for service, status in (statuses or {}).items():
            self.set(service, status)

    def __repr__(self) -> str:
        return f"<HealthService: {', '.join(f'{name!r} {status}' for name, status in self._statuses.items())}>"

    def set(self, service: str, status: Status) -> None:
        """Say how a service is, and tell those who watch it. After `shut_down` it changes nothing.

        Raises:
            TypeError: the service is no text.
            ValueError: the status is none, or it is SERVICE_UNKNOWN, which is for services that were never set.
        """
        if not isinstance(service, str):
            raise TypeError(f'a service is named by a text like "Inventory", or "" for all, not by {service!r:.80}')
        if status not in _SETTABLE:
            raise ValueError(
                f"the health of {service!r} cannot be set to {status!r:.80}: take Status.SERVING or the like"
            )
        if not self._over:
            self._statuses[service] = Status(status)
            self._tell()

    def shut_down(self) -> None:
        """All services are NOT_SERVING from now on, which ends the streams of those who watch. Idempotent.

        Call it before `server.drain`, so that watching callers have gone elsewhere when it begins.
        """
        self._over = True
        self._statuses = dict.fromkeys(self._statuses, Status.NOT_SERVING)
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # -- what is served --------------------------------------------------------------------------------------------

    @trio_rpc.method
    async def check(self, service: str = "") -> Status:
        """The status of one service."""
        if service not in self._statuses:
            raise trio_rpc.RemoteError(f"there is no service {service[:80]!r} here", code=trio_rpc.Code.NOT_FOUND)
        return self._statuses[service]

    @trio_rpc.method
    async def watch(self, service: str = "") -> AsyncGenerator[Status, None]:
        """The status now, and on each change."""
        told: Status | None = None
        while True:
            changed = self._changed
            status = self._statuses.get(service, Status.SERVICE_UNKNOWN)
            if status is not told:
                yield status
                told = status
            elif self._over:
                return
            else:
                await changed.wait()

    @trio_rpc.method
    async def list(self) -> dict[str, Status]:
        """All services and their statuses."""
        names = sorted(self._statuses)[:MAX_LISTED]
        return {name: self._statuses[name] for name in names}


_SETTABLE = frozenset(Status) - {Status.SERVICE_UNKNOWN}
