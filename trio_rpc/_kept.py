"""What is kept of calls with an idempotency key, and what tells one of them from another: pure.

All results are kept for equally long, so the oldest is always the first that is over.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from ._config import ServerLimits
from ._errors import Code, InvalidArgument
from .wire import Outcome

if TYPE_CHECKING:
    from ._incoming import Incoming

__all__ = ["GIVEN_UP", "KEY", "PREVIOUS", "Answer", "Kept", "Name", "Result", "digest_of", "name_of"]

KEY = "idempotency-key"
"""The metadata by which a server knows a call again."""
MAX_KEY_SIZE = 256
PREVIOUS = "previous-attempts"
"""Metadata of a further attempt: how many before it may have run."""

OVERHEAD = 512
"""Bytes that a kept result is taken to need beside its content."""

Name: TypeAlias = tuple[Hashable, str, bytes]
"""Principal, method and key: what runs once."""


@attrs.frozen
class Answer:
    """What a handler's end is on the wire, for one call after another."""

    payload: bytes
    blobs: tuple[bytes, ...] = ()
    code: Code | None = None
    """Of a failure; None for a result."""
    text: str = ""
    metadata: dict[str, str | bytes] | None = None
    outcome: Outcome = Outcome.FAILED
    """Of a failure, too: its own, or that it was stopped."""

    @property
    def size(self) -> int:
        """About what it takes to keep it, in bytes."""
        metadata = sum(_length(key) + _length(value) for key, value in (self.metadata or {}).items())
        return OVERHEAD + len(self.payload) + sum(map(len, self.blobs)) + len(self.text) + metadata

    def give(self, call: Incoming) -> None:
        """Answer `call`, which it ends. Raises CodecError if its peer does not take results of this size."""
        place, call.place = call.place, None
        if place is not None:
            place.leave(None)  # How long it waited for another's handler tells nothing of the server.
        if self.metadata:
            call.reply_metadata.update(self.metadata)
        if self.code is None:
            call.send_response(self.payload, self.blobs)
        else:
            call.send_error(self.code, self.outcome, self.text, self.payload)


def _length(part: Any) -> int:
    """Of text or bytes. What else a handler has put in is refused when it is sent, and must do no harm before."""
    return len(part) if isinstance(part, str | bytes) else 0


GIVEN_UP = Answer(
    b"",
    code=Code.CANCELLED,
    outcome=Outcome.STOPPED,
    text="the handler for this idempotency key was stopped before this attempt came, and may have run in part",
)
"""For a retry: it is not its caller's decision to run anew what was stopped."""


@attrs.frozen
class Result:
    """What has come of a call, and of which arguments."""

    digest: bytes
    answer: Answer
    size: int
    until: float


class Kept:
    """The results of one server, oldest first.

    Who has more than an equal share of them makes room with its own, so that nobody's results are pushed out by another
    who has a lot.
    """

    __slots__ = ("_limits", "_parties", "_results", "size")

    def __init__(self, limits: ServerLimits) -> None:
        self._limits: ServerLimits = limits
        # A plain dict would have to look for its oldest behind all the places of those that are gone.
        self._results: OrderedDict[Name, Result] = OrderedDict()
        self._parties: dict[Hashable, OrderedDict[Name, None]] = {}
        """The same names, by whose they are."""
        self.size: int = 0
        """Bytes of all of them."""

    def __len__(self) -> int:
        return len(self._results)

    @property
    def next_end(self) -> float:
        """When the oldest is over; `inf` without one."""
        return next(iter(self._results.values())).until if self._results else math.inf

    def find(self, name: Name) -> Result | None:
        """What is kept under this name."""
        return self._results.get(name)

    def keep(self, name: Name, digest: bytes, answer: Answer, now: float) -> None:
        """Keep it, if there is room. What would not fit alone pushes nothing out."""
        limits, size = self._limits, answer.size
        if not (limits.max_kept_results and limits.result_window and size <= limits.max_kept_bytes):
            return
        self.forget(name)
        while len(self._results) >= limits.max_kept_results or self.size + size > limits.max_kept_bytes:
            self._make_room(name[0])
        self._parties.setdefault(name[0], OrderedDict())[name] = None
        self._results[name] = Result(digest, answer, size, now + limits.result_window)
        self.size += size

    def forget(self, name: Name) -> None:
        """Keep it no longer, if it is kept."""
        result = self._results.pop(name, None)
        if result is not None:
            self.size -= result.size
            own = self._parties[name[0]]
            del own[name]
            if not own:
                del self._parties[name[0]]

    def forget_old(self, now: float) -> None:
        """Forget what has been kept for long enough."""
        while self.next_end <= now:
            self._forget_oldest()

    def _make_room(self, party: Hashable) -> None:
        own = self._parties.get(party)
        if own and len(own) * len(self._parties) >= len(self._results):
            self.forget(next(iter(own)))
        else:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        self.forget(next(iter(self._results)))


def name_of(call: Incoming) -> Name:
    """Under which name a call with a key runs. Raises InvalidArgument for a key that is none."""
    value = call.metadata[KEY]
    key = value.encode() if isinstance(value, str) else value
    if not 0 < len(key) <= MAX_KEY_SIZE:
        raise InvalidArgument(f"an {KEY} has 1 to {MAX_KEY_SIZE} bytes, not {len(key)}")
    return _identity(call.connection.principal), call.method, key


def _identity(principal: Any) -> Hashable:
    """What tells one principal from another, over all its connections."""
    try:
        hash(principal)
    except TypeError:  # A dict of claims, for one.
        return (type(principal), repr(principal))
    identity: Hashable = principal
    return identity


def digest_of(codec: str, call: Incoming) -> bytes:
    """Of the arguments as they were sent; in another codec they are other bytes, and count as others."""
    digest = hashlib.blake2b(codec.encode(), digest_size=16)
    for part in (call.payload, *call.blobs):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()
