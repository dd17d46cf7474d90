"""What a client says of itself in its HELLO: a token, a mapping, or a function that gives one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from ._errors import ConnectError, RpcError
from ._text import described
from .wire import Hello

__all__ = ["Credentials", "checked", "resolve"]

Credentials: TypeAlias = Mapping[str, Any] | str | Callable[[], Any] | None
"""A function may be async; it is asked at each dial, so that tokens can be rotated."""


async def resolve(credentials: Credentials) -> Mapping[str, Any] | None:
    """A token, a mapping, or a function of either kind (for rotation: asked at each dial)."""
    if callable(credentials):
        try:
            credentials = credentials()
            if isinstance(credentials, Awaitable):
                credentials = await credentials
        except RpcError:
            raise
        except Exception as exc:
            raise ConnectError(f"the function given as credentials failed: {described(exc)}") from exc
    try:
        return _fields(credentials)
    except TypeError as exc:
        raise ConnectError(str(exc), permanent=True) from None


def _fields(credentials: Any) -> dict[str, Any] | None:
    """Credentials as a HELLO carries them."""
    if isinstance(credentials, str):
        return {"token": credentials}
    if credentials is None:
        return None
    if isinstance(credentials, Mapping):
        return dict(credentials)
    kind = type(credentials).__name__
    raise TypeError(f"credentials must be a text, a mapping, or a function that returns one of these, not {kind}")


def checked(credentials: Credentials) -> Credentials:
    """Tell at once what no peer would take, and not at each dial; a function is asked then."""
    if credentials is None or callable(credentials):
        return credentials
    fields = _fields(credentials)
    Hello(credentials=fields).to_bytes()
    return fields
