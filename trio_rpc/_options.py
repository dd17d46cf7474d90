"""What a stub, and so each of its calls, does differently from its pool."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypedDict

import attrs

from ._kept import KEY
from ._policies import HedgePolicy, RetryPolicy

__all__ = ["CallOptions", "StubOptions"]


class StubOptions(TypedDict, total=False):
    """The options of `stub`, for type checkers and editors; `Target.stub` says what each means."""

    metadata: Mapping[str, str | bytes]
    retry: RetryPolicy
    hedge: HedgePolicy | None
    cancel_wait: float
    acquire_timeout: float | None
    wait_for_ready: bool | None
    priority: int | None
    routing_key: str | None
    idempotency_key: str | None
    reply_metadata: dict[str, str | bytes]


@attrs.frozen
class CallOptions:
    """What one stub does differently from its pool."""

    metadata: dict[str, str | bytes] = attrs.field(repr=False)
    retry: RetryPolicy
    cancel_wait: float
    acquire_timeout: float | None = None
    """Longest wait for a place on a connection; None: as long as the caller's own deadline allows."""
    hedge: HedgePolicy | None = None
    wait_for_ready: bool | None = None
    """True: wait for a connection whatever `acquire_timeout` says; False: fail at once while none can be had."""
    priority: int | None = None
    """The class in the line, 0 first; None: the last."""
    routing_key: str | None = attrs.field(default=None, repr=False)
    """Calls of one key go to one endpoint, for as long as it is there and has room."""
    idempotency_key: str | None = attrs.field(default=None, repr=False)
    """A second call of one key gets the first one's result, and does not run again."""
    reply_metadata: dict[str, str | bytes] | None = attrs.field(default=None, repr=False)

    @property
    def patience(self) -> float | None:
        """Longest wait for a place, all told; None for no bound but the caller's own."""
        return None if self.wait_for_ready else self.acquire_timeout

    def with_(self, changes: Mapping[str, Any]) -> CallOptions:
        """A copy with some options changed; metadata is added to. Raises TypeError for an unknown option."""
        if not changes:
            return self
        unknown = set(changes) - _OPTIONS.keys()
        if unknown:
            raise TypeError(
                f"a stub has no option {', '.join(sorted(unknown))}: it takes {', '.join(sorted(_OPTIONS))}"
            )
        for name, value in changes.items():
            if not isinstance(value, _OPTIONS[name]) or (isinstance(value, bool) and name != "wait_for_ready"):
                raise TypeError(f"the stub's option {name} cannot be {value!r:.80}")
            if name in _NOT_NEGATIVE and value is not None and not 0 <= value < math.inf:
                raise ValueError(f"the stub's option {name} must be at least 0, and finite, not {value!r}")
        merged = dict(changes)
        if "metadata" in merged:
            merged["metadata"] = {**self.metadata, **merged["metadata"]}
        if merged.get("idempotency_key") is not None:  # Here, so that no call has to look whether it has one.
            merged["metadata"] = {**merged.get("metadata", self.metadata), KEY: merged["idempotency_key"]}
        return attrs.evolve(self, **merged)


_NONE = type(None)
_OPTIONS: dict[str, Any] = {
    "metadata": Mapping,
    "retry": RetryPolicy,
    "hedge": (HedgePolicy, _NONE),
    "cancel_wait": (int, float),
    "acquire_timeout": (int, float, _NONE),
    "wait_for_ready": (bool, _NONE),
    "priority": (int, _NONE),
    "routing_key": (str, _NONE),
    "idempotency_key": (str, _NONE),
    "reply_metadata": dict,
}
_NOT_NEGATIVE = {"cancel_wait", "acquire_timeout", "priority"}
