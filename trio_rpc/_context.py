"""What a handler may know about the call it serves: `current_call()`."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Protocol

__all__ = ["CallContext", "current_call"]


class CallContext(Protocol):
    """The call that the current task serves. The same object throughout the call."""

    @property
    def peer(self) -> Any:
        """Who calls, a `trio_rpc.Peer`; its `stub` calls back over the same connection."""
        ...

    @property
    def metadata(self) -> dict[str, str | bytes]:
        """What the caller sent along."""
        ...

    @property
    def reply_metadata(self) -> dict[str, str | bytes]:
        """What goes back with the next frame of the reply; fill it before returning or yielding."""
        ...

    @property
    def method(self) -> str:
        """The wire name, like `Inventory.stock`."""
        ...

    @property
    def id(self) -> int:
        """The request id, unique on this connection."""
        ...

    @property
    def active(self) -> bool:
        """False once the handler has ended, which tasks that outlive it can tell by this."""
        ...


CURRENT: ContextVar[CallContext] = ContextVar("trio_rpc.current_call")


def current_call() -> CallContext:
    """The call being served. Raises LookupError outside of any.

    What a handler calls locally, in its own task or in tasks that it starts, sees that handler's call.
    """
    try:
        return CURRENT.get()
    except LookupError:
        raise LookupError(
            "no remote call is being served in this task: current_call() works inside a handler only"
        ) from None
