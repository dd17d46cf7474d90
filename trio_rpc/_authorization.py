"""Who may call what: `authorize` is asked for each call, before anything else of it is looked at.

It is asked for methods that do not exist as well, so that who is denied cannot tell by the answer which there are.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

from ._connection import Connection
from ._crew import holds
from ._errors import Code, PermissionDenied, Refused
from ._failures import NOT_ENTERED, neutral
from ._logs import limited, log_failure
from ._text import shown

__all__ = ["Authorize", "check_authorize", "permit", "screen"]

log = limited(logging.getLogger("trio_rpc.server"))

Authorize = Callable[[Any, str], bool]
"""`authorize(peer, method)`: whether this peer may call this method."""

SYNCHRONOUS = (
    "authorize is asked before each call and is not awaited: write a plain function that returns True or False, "
    "and look up what it needs in authenticate, which may be async"
)


def check_authorize(authorize: Authorize | None) -> None:
    """Raise TypeError for a function that would have to be awaited."""
    if inspect.iscoroutinefunction(authorize) or inspect.iscoroutinefunction(getattr(authorize, "__call__", None)):  # noqa: B004
        raise TypeError(SYNCHRONOUS)


def permit(authorize: Authorize, peer: Any, method: str) -> None:
    """Raise PermissionDenied unless the peer may call it; TypeError, or what `authorize` raises, if it does not say."""
    allowed: Any = authorize(peer, method)
    if inspect.isawaitable(allowed):  # Which would count as a yes.
        if inspect.iscoroutine(allowed):
            allowed.close()
        raise TypeError(SYNCHRONOUS)
    if not allowed:
        raise PermissionDenied(f"not allowed to call {method}")


def screen(authorize: Authorize, connection: Connection, method: str) -> tuple[Code, str] | None:
    """What a call of a method that does not exist is told by `authorize`; None if its caller may know that."""
    try:
        permit(authorize, connection.peer, method)
    except Refused as exc:
        return exc.code, exc.message
    except BaseException as exc:
        if holds(exc, KeyboardInterrupt):
            raise
        return Code.INTERNAL, neutral(log_failure(log, shown(method), connection.address, exc), NOT_ENTERED)
    return None
