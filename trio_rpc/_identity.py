"""Who a peer is, as `authenticate` has found out."""

from __future__ import annotations

import math
from typing import Any

import attrs

from ._checks import brief
from ._errors import Unauthenticated

__all__ = ["Identity", "identity_of"]


def _seconds(_instance: object, _attribute: object, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"expires_in must be a number of seconds, or None for no bound, not {brief(value)}")
    if math.isnan(value):
        raise ValueError("expires_in must be a number of seconds, or None for no bound, not nan")


@attrs.frozen
class Identity:
    """What `authenticate` may return instead of a bare principal: one that holds for a time.

    A little before that time is over, 10 s or a tenth of it, the connection is drained: a pool opens another one, for
    which its `credentials` are asked again, and its callers notice nothing. From then on further calls there are
    refused as Unauthenticated; running handlers have 10 s more to finish.
    """

    principal: Any = attrs.field(repr=False)
    """Who it is; handlers see it as `current_call().peer.principal`."""
    expires_in: float | None = attrs.field(default=None, validator=_seconds)
    """Seconds from now; None for no bound. With nothing left of it, 0 or less, the peer is refused at once."""


def identity_of(result: Any) -> Identity:
    """What `authenticate` returned, as an identity. Raises Unauthenticated if it lets nobody in."""
    if result is False:  # Of who means "no": as a principal it would let everybody in.
        raise Unauthenticated("these credentials are not accepted here")
    if not isinstance(result, Identity):
        return Identity(result)
    if result.expires_in is not None and result.expires_in <= 0:
        raise Unauthenticated("these credentials have expired")
    return result
