"""What `open_pool` and `serve` were told, but for where to connect to or to listen; looked at before anything is done."""

from __future__ import annotations

import inspect
import ssl
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, TypeAlias

import attrs

from ._authentication import Authenticate
from ._authorization import Authorize
from ._call import Interceptor
from ._checks import brief, of
from ._config import Heartbeat, PoolLimits, ServerLimits
from ._credentials import Credentials, checked
from ._peer import Peer
from ._policies import (
    AdaptiveLimit,
    Balance,
    CircuitBreaker,
    HedgePolicy,
    LeastInFlight,
    OutlierEjection,
    PowerOfTwo,
    RetryPolicy,
    RoundRobin,
)
from ._tls import ContextSource, check_side
from .wire import Metadata

__all__ = ["CODECS", "Authenticate", "PoolSettings", "Prepare", "ServerSettings", "check_context"]

Prepare = Callable[[Peer], Awaitable[object]]
"""`on_connect(peer)`: awaited for each new connection before calls go there."""

CODECS = ("msgpack", "json")
"""What clients may speak unless told otherwise."""

Attribute: TypeAlias = "attrs.Attribute[Any]"


def check_context(value: object, *, server_side: bool) -> None:
    """Raise TypeError for what can be no `ssl_context`: None, a context, or a plain function that returns one."""
    if isinstance(value, ssl.SSLContext):
        check_side(value, server_side=server_side)
    if value is None or isinstance(value, ssl.SSLContext):
        return
    if isinstance(value, type) or not callable(value):
        raise TypeError(
            f"ssl_context must be an SSLContext, a function that returns one, or None, not {brief(value)}: "
            "write ssl.create_default_context(...)"
        )
    if inspect.iscoroutinefunction(value):
        raise TypeError("ssl_context is asked at each handshake and is not awaited: write a plain function")


def _context(_instance: object, _attribute: object, value: Any) -> None:
    check_context(value, server_side=True)


def _function(example: str) -> Callable[[object, Attribute, Any], None]:
    """None, or what can be called like the example."""

    def check(_instance: object, attribute: Attribute, value: Any) -> None:
        if value is not None and not callable(value):
            raise TypeError(f"{attribute.name} must be a function, `{example}`, or None, not {brief(value)}")

    return check


def _interceptors(_instance: object, attribute: Attribute, value: Any) -> None:
    name = attribute.name
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        advice = f": write {name}=[{getattr(value, '__name__', '...')}]" if callable(value) else ""
        raise TypeError(f"{name} must be a list of async functions, not {brief(value)}{advice}")
    for index, item in enumerate(value):
        if isinstance(item, type) or not callable(item):
            raise TypeError(
                f"{name}[{index}] must be a function, `async def interceptor(call, call_next)`, not {brief(item)}"
            )


def _codecs(_instance: object, _attribute: object, value: Any) -> None:
    if isinstance(value, str):
        raise TypeError(f"codecs must be a list of names, not {brief(value)}: write codecs=[{value!r:.80}]")
    if isinstance(value, bytes) or not isinstance(value, Collection):
        raise TypeError(f"codecs must be a list of names like 'msgpack', not {brief(value)}")
    if not value:
        raise ValueError(f"codecs is empty, so that no client could connect: name some, like {list(CODECS)}")
    for name in value:
        if not isinstance(name, str):
            raise TypeError(f"codecs must hold names like 'msgpack', not {brief(name)}")


def _metadata(_instance: object, attribute: Attribute, value: Any) -> None:
    """Without the values: they may be secret."""
    if value is None:
        return
    if not isinstance(value, Mapping):
        raise TypeError(f"{attribute.name} must be a mapping of texts, or None, not of type {type(value).__name__}")
    for key, item in value.items():
        if not isinstance(key, str):
            raise TypeError(f"{attribute.name} must have texts as keys, not {brief(key)}")
        if not isinstance(item, str | bytes):
            raise TypeError(f"{attribute.name}[{key!r:.80}] must be a text or bytes, not of type {type(item).__name__}")


def _credentials(_instance: object, _attribute: object, value: Any) -> None:
    checked(value)


_HEARTBEAT = of(Heartbeat, advice="write Heartbeat(interval=...), where None sends no pings")
_SIDES = "a pool has PoolLimits(...), a server ServerLimits(...)"


@attrs.frozen(kw_only=True)
class PoolSettings:
    """The options of `open_pool`; it says what each means. Raises TypeError or ValueError, which names the option."""

    codec: str = attrs.field(default="msgpack", validator=of(str, advice="a name like 'msgpack'"))
    limits: PoolLimits = attrs.field(factory=PoolLimits, validator=of(PoolLimits, advice=_SIDES))
    heartbeat: Heartbeat = attrs.field(factory=Heartbeat, validator=_HEARTBEAT)
    retry: RetryPolicy = attrs.field(
        factory=RetryPolicy,
        validator=of(RetryPolicy, advice="write RetryPolicy(attempts=...), where 1 means no further one"),
    )
    hedge: HedgePolicy | None = attrs.field(
        default=None, validator=of(HedgePolicy, none=True, advice="write HedgePolicy(delay=...)")
    )
    balance: Balance = attrs.field(
        factory=PowerOfTwo,
        validator=of(
            PowerOfTwo, RoundRobin, LeastInFlight, advice="write PowerOfTwo(), RoundRobin() or LeastInFlight()"
        ),
    )
    ejection: OutlierEjection | None = attrs.field(
        factory=OutlierEjection,
        validator=of(OutlierEjection, none=True, advice="write OutlierEjection(), or None for no ejection"),
    )
    breaker: CircuitBreaker | None = attrs.field(
        default=None, validator=of(CircuitBreaker, none=True, advice="write CircuitBreaker(), or None for no breaker")
    )
    health_check: str | None = attrs.field(
        default=None, validator=of(str, none=True, advice="write the name of a service, like 'Inventory'")
    )
    on_connect: Prepare | None = attrs.field(default=None, validator=_function("async def on_connect(peer)"))
    credentials: Credentials = attrs.field(default=None, validator=_credentials, repr=False)
    metadata: Metadata | None = attrs.field(default=None, validator=_metadata, repr=False)
    services: object = ()
    interceptors: Sequence[Interceptor] = attrs.field(default=(), validator=_interceptors)
    redial: bool = True

    def __attrs_post_init__(self) -> None:
        if self.health_check is not None and self.limits.max_in_flight < 2:
            raise ValueError(
                "health_check needs a place on each connection for itself: set max_in_flight to 2 or more, not 1"
            )


@attrs.frozen(kw_only=True)
class ServerSettings:
    """The options of `serve`; it says what each means. Raises TypeError or ValueError, which names the option."""

    limits: ServerLimits = attrs.field(factory=ServerLimits, validator=of(ServerLimits, advice=_SIDES))
    heartbeat: Heartbeat = attrs.field(factory=Heartbeat, validator=_HEARTBEAT)
    ssl_context: ContextSource | None = attrs.field(default=None, validator=_context)
    authenticate: Authenticate | None = attrs.field(
        default=None, validator=_function("async def authenticate(credentials, origin)")
    )
    authorize: Authorize | None = attrs.field(default=None, validator=_function("def authorize(peer, method)"))
    allow_insecure: bool = attrs.field(default=False, validator=of(bool))
    interceptors: Sequence[Interceptor] = attrs.field(default=(), validator=_interceptors)
    debug: bool = attrs.field(default=False, validator=of(bool))
    codecs: Collection[str] = attrs.field(default=CODECS, validator=_codecs)
    adaptive: AdaptiveLimit | None = attrs.field(
        default=None, validator=of(AdaptiveLimit, none=True, advice="write AdaptiveLimit(), or None for no such limit")
    )
