"""Several ways to be let in."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from trio_rpc import Origin, Unauthenticated

__all__ = ["any_of"]

REFUSAL = "these credentials are not accepted here"


def any_of(
    *ways: Callable[[Mapping[str, Any], Origin], Any],
) -> Callable[[Mapping[str, Any], Origin], Awaitable[Any]]:
    """An `authenticate` that asks several of them in turn: the first that does not raise Unauthenticated decides.

    Whatever else one raises refuses, and the rest is not asked: one that cannot tell must not open another way in.

    Raises:
        TypeError: without any, or for what is no function.
    """
    if not ways or not all(map(callable, ways)):
        raise TypeError("any_of needs functions like `authenticate(credentials, origin)`, one or more")

    async def authenticate(credentials: Mapping[str, Any], origin: Origin) -> Any:
        for way in ways:
            try:
                principal = way(credentials, origin)
                principal = await principal if inspect.isawaitable(principal) else principal
            except Unauthenticated:
                continue
            if principal is not False:
                return principal
        raise Unauthenticated(REFUSAL)

    return authenticate
