"""A network in memory, with weather: latency, trickles, stalls of either direction, resets, and black holes.

A `Host` has a name, at which one server after another may listen. A `Path` leads from one client to one host; what
passes there meets its weather, which each direction has of its own. A `Link` is one connection on a path: two `Pipe`s
with an `End` at either side. Nothing here is random and nothing is a task: who receives waits until it is due.
"""

from __future__ import annotations

import errno
import math
from collections import deque

import attrs
import trio
from trio.lowlevel import ParkingLot, checkpoint

from .journal import Journal

__all__ = ["End", "Host", "Link", "Listener", "Path", "Weather"]


@attrs.define
class Weather:
    """What bytes meet on their way in one direction."""

    latency: float = 0.0
    most: int | None = None
    """Bytes that arrive at once ..."""
    pause: float = 0.0
    """... and the seconds until the next ones do."""
    frozen_until: float = 0.0


class Pipe:
    """One direction of one connection: what is under way."""

    def __init__(self, link: Link, name: str, weather: Weather, capacity: int) -> None:
        self.link = link
        self.name = name
        self.weather = weather
        self.room = capacity
        self.changed = ParkingLot()
        self.parcels: deque[tuple[float, bytes]] = deque()
        """What was sent, with the times of arrival; b"" is the end."""
        self.pausing_until = 0.0
        self.left: int | None = None
        """Bytes that still arrive, before the connection is cut."""
        self.lost = False
        """A black hole: nothing arrives any more, nor does the end."""
        self.closed_by_sender = self.closed_by_receiver = self.refused = self.broken = False

    async def send(self, data: memoryview) -> None:
        """Send all of it, as there is room."""
        await checkpoint()
        while len(data):
            if self.closed_by_sender:
                raise trio.ClosedResourceError("this end is closed")
            if self.broken or self.refused:
                raise trio.BrokenResourceError("the other end is gone")
            if self.room:
                taken, data = bytes(data[: self.room]), data[self.room :]
                self.room -= len(taken)
                self._put(taken)
            else:
                await self.changed.park()

    def inject(self, data: bytes) -> None:
        """Bytes of somebody in the middle, behind what is under way."""
        if not (self.closed_by_sender or self.broken):
            self._put(data)

    def end(self) -> None:
        """The sender closes."""
        if not self.closed_by_sender:
            self.closed_by_sender = True
            self._put(b"")

    def abandon(self) -> None:
        """The receiver closes; the sender learns of it unless that, too, is lost."""
        self.closed_by_receiver = True
        self.refused = not self.link.opposite(self).lost
        self.changed.unpark_all()

    def break_(self) -> None:
        """The connection was reset."""
        self.broken = True
        self.parcels.clear()
        self.changed.unpark_all()

    def _put(self, data: bytes) -> None:
        self.parcels.append((trio.current_time() + self.weather.latency, data))
        self.changed.unpark_all()

    async def receive(self, most: int | None) -> bytes:
        """What arrives next, at most so many bytes; b"" at the end."""
        if self._due() <= trio.current_time():
            await checkpoint()
        while (due := self._due()) > trio.current_time():
            if due == math.inf:
                await self.changed.park()
            else:
                with trio.move_on_at(due):
                    await self.changed.park()
        if self.left == 0:
            self.link.reset()
            raise trio.BrokenResourceError("the connection was cut")
        return self._take(most)

    def _due(self) -> float:
        if self.closed_by_receiver:
            raise trio.ClosedResourceError("this end is closed")
        if self.broken:
            raise trio.BrokenResourceError("the connection was reset")
        if self.lost or not self.parcels:
            return math.inf
        return max(self.parcels[0][0], self.pausing_until, self.weather.frozen_until)

    def _take(self, most: int | None) -> bytes:
        due, parcel = self.parcels.popleft()
        size = min(bound for bound in (len(parcel), self.weather.most, self.left, most) if bound is not None)
        if size < len(parcel) or not parcel:  # The end stays for whoever asks again.
            self.parcels.appendleft((due, parcel[size:]))
        if self.left is not None:
            self.left -= size
        self.room += size
        self.pausing_until = trio.current_time() + self.weather.pause
        self.changed.unpark_all()
        self.link.journal.note("bytes", self.name, size)
        return parcel[:size]


class Link:
    """One connection."""

    def __init__(self, name: str, weather: tuple[Weather, Weather], capacity: int, journal: Journal) -> None:
        self.name = name
        self.journal = journal
        there = Pipe(self, f"{name}>", weather[0], capacity)
        back = Pipe(self, f"{name}<", weather[1], capacity)
        self.pipes = there, back
        self.ends = End(there, back), End(back, there)

    def opposite(self, pipe: Pipe) -> Pipe:
        """The other direction."""
        there, back = self.pipes
        return back if pipe is there else there

    def reset(self) -> None:
        """Break the connection, for both sides, now."""
        there, back = self.pipes
        if not there.broken:
            self.journal.note("reset", self.name)
            there.break_()
            back.break_()


class End(trio.abc.Stream):
    """A stream: one side of a connection."""

    def __init__(self, outgoing: Pipe, incoming: Pipe) -> None:
        self._outgoing, self._incoming = outgoing, incoming

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of it."""
        await self._outgoing.send(memoryview(data))

    async def wait_send_all_might_not_block(self) -> None:
        """There is always hope."""
        await checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What has arrived."""
        return await self._incoming.receive(max_bytes)

    def reset(self) -> None:
        """Break the connection, for both sides."""
        self._outgoing.link.reset()

    async def aclose(self) -> None:
        """Close: the other side receives the end."""
        self._outgoing.end()
        self._incoming.abandon()
        await checkpoint()


class Listener(trio.abc.Listener[End]):
    """Where a server takes its connections from, for as long as it lives."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._waiting: deque[Link] = deque()
        self._changed = ParkingLot()
        self.links: list[Link] = []
        """All connections so far."""

    def arrive(self, link: Link) -> None:
        """A client has connected."""
        self.links.append(link)
        self._waiting.append(link)
        self._changed.unpark_all()

    async def accept(self) -> End:
        """The next connection."""
        await checkpoint()
        while not self._waiting:
            await self._changed.park()
        return self._waiting.popleft().ends[1]

    async def aclose(self) -> None:
        """Stop listening; whoever was not accepted is reset."""
        if self._host.listener is self:
            self._host.listener = None
        while self._waiting:
            self._waiting.popleft().reset()
        await checkpoint()


class Host:
    """A place in the network where at most one server listens at a time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.listener: Listener | None = None
        self.silent_until = 0.0
        """Dials are neither taken nor refused."""
        self.refusing_until = 0.0
        self.changed = ParkingLot()

    def refuse(self, seconds: float, *, silent: bool) -> None:
        """Take no connections for so long: refuse them, or say nothing at all."""
        until = trio.current_time() + seconds
        self.refusing_until, self.silent_until = (0.0, until) if silent else (until, 0.0)
        self.changed.unpark_all()

    def listen(self) -> Listener:
        """Listen in the place of whoever has listened here."""
        self.listener = Listener(self)
        return self.listener


class Path:
    """The way from one client to one host."""

    def __init__(self, name: str, host: Host, capacity: int, journal: Journal) -> None:
        self.name = name
        self.host = host
        self.weather = Weather(), Weather()
        self.links: list[Link] = []
        self._capacity = capacity
        self._journal = journal

    async def dial(self) -> End:
        """Open a connection. Raises OSError if nobody listens there."""
        await trio.sleep(self.weather[0].latency + self.weather[1].latency)
        while trio.current_time() < self.host.silent_until:
            with trio.move_on_at(self.host.silent_until):
                await self.host.changed.park()
        if self.host.listener is None or trio.current_time() < self.host.refusing_until:
            self._journal.note("refused", self.name)
            raise OSError(errno.ECONNREFUSED, f"{self.host.name} refuses")
        link = Link(f"{self.name}#{len(self.links)}", self.weather, self._capacity, self._journal)
        self.links.append(link)
        self.host.listener.arrive(link)
        self._journal.note("connected", link.name)
        return link.ends[0]

    def set_weather(self, latency: float, most: int | None = None, pause: float = 0.0) -> None:
        """Let this be the weather, in both directions."""
        for weather in self.weather:
            weather.latency, weather.most, weather.pause = latency, most, pause

    def freeze(self, directions: tuple[int, ...], seconds: float) -> None:
        """Let nothing pass for so long, in these directions (0 there, 1 back)."""
        for direction in directions:
            self.weather[direction].frozen_until = trio.current_time() + seconds

    def lose(self, directions: tuple[int, ...]) -> None:
        """Let nothing arrive any more of what the connections there are carry in these directions."""
        for link in self.links:
            for direction in directions:
                link.pipes[direction].lost = True

    def cut(self, after: int) -> None:
        """Break each connection there is when so many more bytes have arrived in either direction."""
        for link in self.links:
            for pipe in link.pipes:
                pipe.left = after
        self._stir()

    def calm(self) -> None:
        """Let all pass that is not lost."""
        for weather in self.weather:
            weather.frozen_until = 0.0
        for link in self.links:
            for pipe in link.pipes:
                pipe.left = None
        self._stir()

    def _stir(self) -> None:
        for link in self.links:
            for pipe in link.pipes:
                pipe.changed.unpark_all()
