"""What `open_pool` was told, but for where to connect to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import attrs

from ._call import Interceptor
from ._config import (
    Balance,
    CircuitBreaker,
    Heartbeat,
    HedgePolicy,
    OutlierEjection,
    PoolLimits,
    PowerOfTwo,
    RetryPolicy,
)
from ._credentials import Credentials
from ._peer import Peer
from .wire import Metadata

__all__ = ["PoolSettings", "Prepare"]

Prepare = Callable[[Peer], Awaitable[object]]
"""`on_connect(peer)`: awaited for each new connection before calls go there."""


@attrs.frozen(kw_only=True)
class PoolSettings:
    """The options of `open_pool`; it says what each means."""

    codec: str = "msgpack"
    limits: PoolLimits = attrs.Factory(PoolLimits)
    heartbeat: Heartbeat = attrs.Factory(Heartbeat)
    retry: RetryPolicy = attrs.Factory(RetryPolicy)
    hedge: HedgePolicy | None = None
    balance: Balance = attrs.Factory(PowerOfTwo)
    ejection: OutlierEjection | None = attrs.Factory(OutlierEjection)
    breaker: CircuitBreaker | None = None
    health_check: str | None = None
    on_connect: Prepare | None = None
    credentials: Credentials = None
    metadata: Metadata | None = None
    services: object = ()
    interceptors: Sequence[Interceptor] = ()
    redial: bool = True

    def __attrs_post_init__(self) -> None:
        if self.health_check is not None and self.limits.max_in_flight < 2:
            raise ValueError(
                "health_check needs a place on each connection for itself: set max_in_flight to 2 or more, not 1"
            )
