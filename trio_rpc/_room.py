"""How many connections a server has let in, and whether there is room for one more.

They are counted from the moment they were accepted, before their tasks have taken a step, until these have ended: so
no limit is overshot by those who come together. Before its HELLO a connection is a stranger's, of whom fewer are borne.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

import trio

from ._config import ServerLimits
from ._errors import Overloaded

__all__ = ["Room", "Visit"]


class Room:
    """The room of one server.

    Attributes:
        most: connections at once; None for no bound.
        inside: those that were let in and have not ended, the strangers among them.
        strangers: those that have not said HELLO.
    """

    def __init__(self, limits: ServerLimits) -> None:
        self.most: int | None = limits.max_connections
        self.inside: int = 0
        self.strangers: int = 0
        self.parties: dict[Hashable, int] = {}
        """How many connections each principal has, or without one each host."""
        self.most_of_one: int | None = limits.max_connections_per_principal
        self._most_strangers = limits.max_handshaking
        self._changed = trio.lowlevel.ParkingLot()
        self._next: deque[object] = deque()
        """Who was accepted before there was room; first come, first served."""

    @property
    def is_free(self) -> bool:
        """Whether the limits allow for one more stranger."""
        return (self.most is None or self.inside < self.most) and (
            self._most_strangers is None or self.strangers < self._most_strangers
        )

    def enter(self) -> Visit:
        """One more is inside, a stranger, whether or not there is room."""
        return Visit(self)

    def changed(self) -> None:
        """Wake all who wait for anything of this."""
        self._changed.unpark_all()

    async def wait_change(self) -> None:
        """Wait until something of this has changed."""
        await self._changed.park()

    async def wait_free(self) -> None:
        """Wait until it is worth while to accept one more. Several may find that it is, at once."""
        while not self.is_free or self._next:
            await self._changed.park()

    async def wait_turn(self) -> None:
        """Wait until one may enter who has been accepted; without a checkpoint if there is room.

        Each listener looks before it accepts, which then takes its time: when it has somebody, another one may have
        taken the last place. Who finds it so is the first when there is room again, before whatever is accepted then.
        So listeners take turns, and all that is beyond the limits is one unserved connection at each.
        """
        if self.is_free and not self._next:
            return
        me = object()
        self._next.append(me)
        try:
            while not self.is_free or self._next[0] is not me:
                await self._changed.park()
        finally:
            self._next.remove(me)
            self._changed.unpark_all()  # They run when we have entered, or will not.


class Visit:
    """One connection's stay, from the moment it was accepted."""

    __slots__ = ("_party", "_room", "_stranger")

    def __init__(self, room: Room) -> None:
        self._room = room
        self._stranger = True
        self._party: Hashable = None
        room.inside += 1
        room.strangers += 1

    def claim(self, party: Hashable) -> None:
        """Count it for its principal, or its host. Raises Overloaded, which invites to come again, if these are too many.

        Once, by a stranger that the server is about to answer.
        """
        room = self._room
        if room.most_of_one is None:
            return
        count = room.parties.get(party, 0)
        if count >= room.most_of_one:
            raise Overloaded(f"{count} connections of this client are open already (max_connections_per_principal)")
        room.parties[party] = count + 1
        self._party = party

    def greeted(self) -> None:
        """It is no stranger any more."""
        if self._stranger:
            self._stranger = False
            self._room.strangers -= 1
            self._room.changed()

    def end(self) -> None:
        """Its task has ended. Once."""
        room = self._room
        room.inside -= 1
        if self._party is not None:
            left = room.parties.pop(self._party) - 1
            if left:
                room.parties[self._party] = left
            self._party = None
        self.greeted()
        room.changed()
