"""Bugs planted on purpose, to see that they are found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

from trio_rpc._calls import Outgoing
from trio_rpc._connection import Connection
from trio_rpc._outbox import Outbox
from trio_rpc.wire._frames import HEADER, HEADER_SIZE, Kind

__all__ = ["PLANTS", "planted"]


def _forgotten_slot() -> mock._patch[object]:
    """The place of a call that was taken back before it was sent stays taken."""
    withdraw = Connection.withdraw

    def forgetful(self: Connection, call: Outgoing) -> bool:
        withdrawn = withdraw(self, call)
        if withdrawn:
            self.calls[call.id] = call
        return withdrawn

    return mock.patch.object(Connection, "withdraw", forgetful)


def _swapped_ids() -> mock._patch[object]:
    """Two responses that leave in one batch get each other's ids."""
    take_frames = Outbox._take_frames

    def swapping(self: Outbox) -> list[bytes]:
        frames = take_frames(self)
        responses = [
            place for place, frame in enumerate(frames) if frame and HEADER.unpack_from(frame)[2] == Kind.RESPONSE
        ]
        for one, other in zip(responses[::2], responses[1::2], strict=False):
            frames[one], frames[other] = (
                _with_id_of(frames[one], frames[other]),
                _with_id_of(frames[other], frames[one]),
            )
        return frames

    return mock.patch.object(Outbox, "_take_frames", swapping)


def _with_id_of(frame: bytes, other: bytes) -> bytes:
    length, _, kind, flags = HEADER.unpack_from(frame)
    return HEADER.pack(length, HEADER.unpack_from(other)[1], kind, flags) + frame[HEADER_SIZE:]


PLANTS: dict[str, Callable[[], mock._patch[object]]] = {"forgotten-slot": _forgotten_slot, "swapped-ids": _swapped_ids}


@contextmanager
def planted(name: str | None) -> Iterator[None]:
    """Have this bug in the library for the length of a block; None for none."""
    if name is None:
        yield
    else:
        with PLANTS[name]():
            yield
