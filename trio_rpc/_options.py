"""What a stub, and so each of its calls, does differently from its pool."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs

from ._config import RetryPolicy

__all__ = ["CallOptions"]


@attrs.frozen
class CallOptions:
    """What one stub does differently from its pool."""

    metadata: dict[str, str | bytes]
    retry: RetryPolicy
    cancel_wait: float
    wait_for_ready: bool = False
    reply_metadata: dict[str, str | bytes] | None = None

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
            if not isinstance(value, _OPTIONS[name]):
                raise TypeError(f"the stub's option {name} cannot be {value!r:.80}")
            if name == "cancel_wait" and not 0 <= value < math.inf:
                raise ValueError(f"the stub's option cancel_wait must be at least 0, and finite, not {value!r}")
        merged = dict(changes)
        if "metadata" in merged:
            merged["metadata"] = {**self.metadata, **merged["metadata"]}
        return attrs.evolve(self, **merged)


_OPTIONS: dict[str, Any] = {
    "metadata": Mapping,
    "retry": RetryPolicy,
    "cancel_wait": (int, float),
    "wait_for_ready": bool,
    "reply_metadata": dict,
}
