"""A set that stays as it is."""

from __future__ import annotations

from collections.abc import AsyncIterator

import attrs
import trio

from .._endpoint import Endpoint, endpoints
from ._polled import Resolver

__all__ = ["static"]


@attrs.frozen(repr=False)
class _Static:
    found: tuple[Endpoint, ...]

    def __repr__(self) -> str:
        return ", ".join(map(str, self.found))

    def __aiter__(self) -> AsyncIterator[tuple[Endpoint, ...]]:
        return _Once(self.found)


class _Once(AsyncIterator[tuple[Endpoint, ...]]):
    """Yields one set and then waits for ever: it stays the latest one."""

    def __init__(self, found: tuple[Endpoint, ...]) -> None:
        self._found: tuple[Endpoint, ...] | None = found

    async def __anext__(self) -> tuple[Endpoint, ...]:
        await trio.lowlevel.checkpoint()
        found, self._found = self._found, None
        if found is None:
            await trio.sleep_forever()
        return found


def static(*values: str | Endpoint) -> Resolver:
    """Resolve to these endpoints, for good.

    Raises:
        ValueError, TypeError: as `Endpoint`.
    """
    if not values:
        raise ValueError("a static set needs at least one endpoint: it would stay empty for good")
    return _Static(endpoints(values))
