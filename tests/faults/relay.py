"""A line between two network devices with the faults of a real one: a program, started by tunnel.py.

Usage: `python relay.py FIRST SECOND CONDITIONS SEED`: two file descriptors of TUN devices, and the conditions as a JSON
object. It carries packets until its standard input ends, and then says on its standard output what it has done to
them. Which packets it does it to is drawn from the seed, for each direction by itself.
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
import random
import selectors
import sys
import time
from typing import Any

MOST = 65536
"""Bytes of a packet, at most."""
MAX_WAITING = 10_000
"""Packets on their way; those beyond are lost, as in any queue that is full."""


class Line:
    """The way of packets to one device."""

    def __init__(self, target: int, conditions: dict[str, float], rng: random.Random) -> None:
        self.done = {"carried": 0, "lost": 0, "duplicated": 0, "overtook": 0}
        self._target = target
        self._delay, self._jitter = conditions["delay"], conditions["jitter"]
        self._loss, self._duplicate = conditions["loss"], conditions["duplicate"]
        self._rng = rng
        self._waiting: list[tuple[float, int, bytes]] = []
        self._numbers = itertools.count()
        self._last = -1

    def take(self, packet: bytes, now: float) -> None:
        """A packet begins its way: once, twice or not at all."""
        if self._rng.random() < self._loss or len(self._waiting) >= MAX_WAITING:
            self.done["lost"] += 1
            return
        copies = 2 if self._rng.random() < self._duplicate else 1
        self.done["duplicated"] += copies - 1
        for _ in range(copies):
            due = now + max(0.0, self._delay + self._rng.uniform(-self._jitter, self._jitter))
            heapq.heappush(self._waiting, (due, next(self._numbers), packet))

    def deliver(self, now: float) -> float | None:
        """Let arrive what is due; when the next is."""
        while self._waiting and self._waiting[0][0] <= now:
            _, number, packet = heapq.heappop(self._waiting)
            self.done["carried"] += 1
            self.done["overtook"] += number < self._last
            self._last = max(self._last, number)
            try:
                os.write(self._target, packet)
            except OSError:  # The device is down, or its queue is full.
                self.done["lost"] += 1
        return self._waiting[0][0] if self._waiting else None


def carry(first: int, second: int, conditions: dict[str, float], seed: int) -> list[dict[str, int]]:
    """Carry packets until the standard input ends; returns what became of those to the second, and to the first."""
    lines = {
        first: Line(second, conditions, random.Random(f"{seed} there")),
        second: Line(first, conditions, random.Random(f"{seed} back")),
    }
    with selectors.DefaultSelector() as selector:
        for descriptor in (*lines, sys.stdin.fileno()):
            os.set_blocking(descriptor, False)
            selector.register(descriptor, selectors.EVENT_READ)
        due: list[float] = []
        while True:
            wait = max(0.0, min(due) - time.monotonic()) if due else None
            for key, _ in selector.select(wait):
                line = lines.get(key.fd)
                if line is None:
                    return [line.done for line in lines.values()]
                take_all(key.fd, line)
            now = time.monotonic()
            due = [when for line in lines.values() if (when := line.deliver(now)) is not None]


def take_all(descriptor: int, line: Line) -> None:
    """Take what a device has to send."""
    while True:
        try:
            packet = os.read(descriptor, MOST)
        except OSError:  # There is none just now, or the device is down.
            return
        line.take(packet, time.monotonic())


def main(first: str, second: str, conditions: str, seed: str) -> None:
    """Say on standard output that it carries, and what it has done."""
    print(json.dumps("carrying"), flush=True)
    parsed: dict[str, Any] = json.loads(conditions)
    print(json.dumps(carry(int(first), int(second), parsed, int(seed))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
