"""The onion: one shape for what wraps a call, on both sides.

An interceptor is `async def interceptor(call, call_next)`: it awaits `call_next(call)`, which does the rest, and
returns a `Reply`. It may look at the call, change its metadata, answer by itself, or raise.

On the serving side `call_next` ends when the handler has ended, streams included. On the calling side it ends with
the result or, for a call whose results are a stream, as soon as that stream is open.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import attrs

__all__ = ["Call", "Handler", "Interceptor", "Reply", "compose"]


@attrs.define
class Call:
    """One call on its way in or out."""

    method: str
    """The wire name, like `Inventory.stock`."""
    args: tuple[Any, ...] = attrs.field(repr=False)
    kwargs: dict[str, Any] = attrs.field(repr=False)
    metadata: dict[str, str | bytes] = attrs.field(repr=False)
    """What travels with the request. On the calling side, what is put in here is sent."""


@attrs.define
class Reply:
    """What came of a call."""

    value: Any = attrs.field(repr=False)
    """The result; an open stream, or None for a stream that has ended."""


Handler: TypeAlias = Callable[[Call], Awaitable[Reply]]
Interceptor: TypeAlias = Callable[[Call, Handler], Awaitable[Reply]]


def compose(interceptors: Sequence[Interceptor], handler: Handler) -> Handler:
    """Wrap `handler`; the first interceptor is the outermost."""
    for interceptor in reversed(interceptors):
        handler = partial(_through, interceptor, handler)
    return handler


async def _through(interceptor: Interceptor, call_next: Handler, call: Call) -> Reply:
    reply = await interceptor(call, call_next)
    if not isinstance(reply, Reply):
        raise TypeError(
            f"interceptor {interceptor!r} returned a {type(reply).__name__}: return the Reply that call_next gave, or another one"
        )
    return reply
