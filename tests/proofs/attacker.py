"""Hostile clients, in a process of their own."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import trio

from trio_rpc.wire import MAX_ID, ErrorReceived, Kind

from .attacks import ATTACKS, attack
from .hoards import HOARDS, hoard
from .parts import answer_commands, run_part
from .raw import GREETING, MORE, Raw, address_of, cancel, frame, open_raw, request

RATE = 12_000
"""Requests a second: those that took a server of grpc.aio's down to a tenth."""
BATCH = 120
"""In one send."""


def _unfinished(request_id: int) -> bytes:
    """The first part of a large request, and the word that the rest will not come."""
    part = struct.pack(">I", 100_000) + b"\x0bTarget.take\x91\xc5" + bytes(100)
    return frame(Kind.REQUEST, request_id, part, flags=MORE) + cancel(request_id)


def _earlier(request_id: int) -> bytes:
    """The cancellation of what was sent a batch ago."""
    return cancel(request_id - 2 * BATCH) if request_id > 2 * BATCH else b""


FLOODS: dict[str, Callable[[int], bytes]] = {
    "a call and its cancellation": lambda id_: request(id_, "sleep", 30) + cancel(id_),
    "a call, cancelled 10 ms later": lambda id_: request(id_, "sleep", 30) + _earlier(id_),
    "a call that ignores its cancellation": lambda id_: request(id_, "stubborn", 1) + _earlier(id_),
    "a large call, cancelled before it is whole": _unfinished,
    "a call of no method": lambda id_: request(id_, "nothing"),
    "a call that cannot be decoded": lambda id_: frame(Kind.REQUEST, id_, b"\x0bTarget.echo\xc1"),
    "a call, not cancelled": lambda id_: request(id_, "sleep", 30),
}
"""What is sent again and again, with growing ids."""


class Attacker:
    """Many at once.

    Args:
        target: whom.
    """

    def __init__(self, target: str) -> None:
        self.target = address_of(target)

    async def hostile(self, count: int, seed: int, at_once: int) -> dict[str, Any]:
        """So many hostile connections, of all kinds in turn. Returns what the server answered, and did wrong."""
        codes: Counter[str] = Counter()
        wrong: list[str] = []
        numbers = iter(range(count))
        names = list(ATTACKS)

        async def keep_attacking() -> None:
            for number in numbers:
                rng = Random(f"{seed} {number}")
                if said := await attack(names[number % len(names)], rng, self.target, number, codes):
                    wrong.append(said)

        async with trio.open_nursery() as nursery:
            for _ in range(at_once):
                nursery.start_soon(keep_attacking)
        return {"codes": dict(codes), "wrong": wrong[:10], "wrongs": len(wrong)}

    async def churn(self, count: int, at_once: int) -> None:
        """Connect and close, so often: without a word, behind a HELLO, behind a call, in turn; by FIN or by RST."""
        numbers = iter(range(count))

        async def keep_coming() -> None:
            for number in numbers:
                async with open_raw(self.target, number) as raw:
                    said = number % 3
                    if said:
                        await raw.send(GREETING + (request(1, "echo", "x") if said == 2 else b""))
                        await raw.events()
                    if number % 2:
                        raw.reset()

        async with trio.open_nursery() as nursery:
            for _ in range(at_once):
                nursery.start_soon(keep_coming)

    async def flood(self, what: str, seconds: float, *, paced: bool) -> dict[str, Any]:
        """Send one thing again and again, from one connection: at RATE, or as fast as it is taken. All answers are read.

        Returns how much was sent, when the server cut the connection (None: it did not), and what it said.
        """
        make, sent = FLOODS[what], 0
        start = trio.current_time()
        async with open_raw(self.target) as raw, trio.open_nursery() as nursery:
            await raw.send(GREETING)
            await raw.events()
            codes: Counter[str] = Counter()
            nursery.start_soon(self._read_on, raw, codes)
            while not raw.ended and trio.current_time() < start + seconds and 2 * sent < MAX_ID - 2 * BATCH:
                await raw.send(b"".join(make(2 * number + 1) for number in range(sent, sent + BATCH)))
                sent += BATCH
                await trio.sleep_until(start + sent / RATE if paced else 0)
            taken = trio.current_time() - start
            nursery.cancel_scope.cancel()
        return {
            "sent": sent,
            "rate": sent / taken,
            "cut": taken if raw.ended else None,
            "said": raw.goaway,
            "codes": dict(codes),
        }

    async def _read_on(self, raw: Raw, codes: Counter[str]) -> None:
        while not raw.ended:
            for event in await raw.events():
                codes[event.code.name if isinstance(event, ErrorReceived) else type(event).__name__] += 1

    async def hoard(self, each: int, seconds: float, kinds: list[str] | None = None) -> None:
        """So many connections of each kind that have the server keep as much as it will, for so long."""
        async with trio.open_nursery() as nursery:
            for number in range(each):  # All kinds in turn, as a server may take few of one address.
                for kind in kinds or HOARDS:
                    nursery.start_soon(hoard, kind, self.target, number)
            await trio.sleep(seconds)
            nursery.cancel_scope.cancel()


async def main(target: str) -> None:
    """Attack as the proof says, until the input ends."""
    attacker = Attacker(target)
    commands = (attacker.hostile, attacker.churn, attacker.flood, attacker.hoard)
    await answer_commands({command.__name__: command for command in commands})


if __name__ == "__main__":
    run_part(main)
