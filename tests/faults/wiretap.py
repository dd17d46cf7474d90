"""All that passes between a pool and a server, and all that they leave behind of it, to look for what must not be there."""

from __future__ import annotations

import json
from collections.abc import Iterator

import trio

from trio_rpc.testing import FaultyStream, MemoryListener, Recorder

__all__ = ["Wiretap", "traces"]


class Wiretap(MemoryListener):
    """A listener in memory that keeps every byte of all of its connections, both ways."""

    def __init__(self) -> None:
        super().__init__(wrap=self._listen_in)
        self.recorders: list[Recorder] = []

    def _listen_in(self, stream: trio.abc.Stream) -> trio.abc.Stream:
        self.recorders.append(Recorder())
        return FaultyStream(stream, self.recorders[-1])

    @property
    def requests(self) -> bytes:
        """What clients have sent."""
        return b"".join(chunk for recorder in self.recorders for chunk in recorder.sent)

    @property
    def answers(self) -> bytes:
        """What servers have sent."""
        return b"".join(chunk for recorder in self.recorders for chunk in recorder.received)


def traces(secret: str) -> Iterator[bytes]:
    """How a text may lie in bytes: as it is, escaped in JSON, written as a list of numbers."""
    yield secret.encode()
    yield json.dumps(secret)[1:-1].encode()
    yield repr(secret.encode())[2:-1].encode()
