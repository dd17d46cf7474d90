"""How much work a call is: scheduler steps, tasks, cancel scopes, system calls, readings of the clock, copies.

Nothing is timed. A count that rises is a step backwards. One that falls is good news: write it down here.
"""

from __future__ import annotations

import sys

import attrs
import pytest

from tests.counting import Side, Use, Work, work_per_unit
from tests.work import (
    Desk,
    calls,
    calls_with_deadline,
    count_items,
    crowd,
    early_visits,
    large,
    long,
    mirror_items,
    short,
    suspending_calls,
    total_items,
    visits,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the counts are those of Linux's sockets")

MIB = 1 << 20


@attrs.frozen
class Path:
    """What a unit of work costs each side, and why that much."""

    use: Use
    units: int
    client: Work
    server: Work
    why: str


# Two of the server's readings for each step of a handler, one for each run of eager calls, are `stall_warn_after`'s.

# One after the other. These are exact.
IN_TURN = {
    "a call": Path(
        calls,
        50,
        Work(steps=2, receives=1, sends=1, readings=2),
        Work(steps=1, receives=1, sends=1, readings=3),
        "the caller sends in its own step, and the reader wakes it; the handler runs in the step that reads",
    ),
    "a call with a deadline": Path(
        calls_with_deadline,
        50,
        Work(steps=2, receives=1, sends=1, readings=2),
        Work(steps=1, receives=1, sends=1, readings=4),
        "the caller's own scope, and the one that the server's reader keeps, are all that is needed",
    ),
    "a call whose handler suspends": Path(
        suspending_calls,
        50,
        Work(steps=2, receives=1, sends=1, readings=2),
        Work(steps=4, scopes=1, receives=1, sends=1, readings=8),
        "the reader, a parked task before and after it waits, the writer; a scope is renewed once its call has waited",
    ),
    "a connection with one call": Path(
        visits,
        20,
        Work(steps=9, tasks=2, scopes=3, receives=2, sends=2, others=5, readings=16),
        Work(steps=7, tasks=2, scopes=2, receives=3, sends=2, others=5, readings=12),
        "a pool's timer and its connection there, a connection and its crew here; HELLOs, a call, the end",
    ),
    "a connection with one idempotent call": Path(
        early_visits,
        20,
        Work(steps=8, tasks=2, scopes=3, receives=1, sends=1, others=5, readings=16),
        Work(steps=6, tasks=2, scopes=2, receives=2, sends=1, others=5, readings=11),
        "the request goes with the one HELLO, the result with the other",
    ),
}

# Many at once. Trio runs what is ready at the same time in a random order, and what the kernel holds depends on its
# buffers; now and then a crowd falls apart into several. So these are bounds, some room above what is usual, and it is
# enough to keep them in one of TRIES.
TRIES = 3
AT_ONCE = {
    "a call of each of 64 callers": Path(
        crowd(calls),
        10,
        Work(steps=68, receives=2, sends=3, readings=72),
        Work(steps=4, receives=2, sends=3, readings=140),
        "each caller is woken once; all else is done once for all of them, or for the half of them on the server",
    ),
    "a call of each of 64 callers whose handler suspends": Path(
        crowd(suspending_calls),
        10,
        Work(steps=68, receives=2, sends=3, readings=72),
        Work(steps=134, tasks=1, scopes=64, receives=2, sends=3, readings=330),
        "each call has a parked task, which waits once, and renews its scope; 64 stay parked, so one more may come new",
    ),
    "a stream of one item from the server": Path(
        short(count_items),
        30,
        Work(steps=4, receives=2, sends=1, readings=7),
        Work(steps=5, scopes=1, receives=1, sends=2, readings=13),
        "a call whose handler suspends; the end may leave behind the item",
    ),
    "a stream of one item from the client": Path(
        short(total_items),
        30,
        Work(steps=7, tasks=1, scopes=2, receives=1, sends=3, readings=12),
        Work(steps=7, scopes=1, receives=3, sends=1, readings=16),
        "the items have a task of their own; request, item and end may leave one by one",
    ),
    "a stream of one item each way": Path(
        short(mirror_items),
        30,
        Work(steps=10, tasks=1, scopes=1, receives=2, sends=3, readings=15),
        Work(steps=9, scopes=1, receives=3, sends=2, readings=22),
        "the two together",
    ),
    "1000 items from the server": Path(
        long(count_items),
        16,
        Work(steps=13, receives=5, sends=6, readings=27),
        Work(steps=13, receives=5, sends=6, readings=30),
        "batches of up to 256 items, written as often as others have had their turn; credit by the part of a window",
    ),
    "1000 items from the client": Path(
        long(total_items),
        16,
        Work(steps=13, receives=5, sends=6, readings=24),
        Work(steps=13, receives=5, sends=6, readings=33),
        "the same, the other way",
    ),
    "1000 items each way": Path(
        long(mirror_items),
        16,
        Work(steps=29, receives=6, sends=9, readings=58),
        Work(steps=24, receives=6, sends=9, readings=52),
        "items and credit share the sends",
    ),
    "1 MiB each way": Path(
        large(MIB),
        4,
        Work(steps=12, receives=20, sends=6, readings=32),
        Work(steps=12, receives=20, sends=6, readings=32),
        "256 KiB in a send, 64 KiB in a receive and 4 of these in a step; a step of the client is the caller's own",
    ),
}

COPIES = 1.6
"""Bytes by which memory grows for each byte of a payload that is sent and received, on either side: the one that the
receiver hands out, and what has come in and is not there yet (64 KiB of each 256). What is sent is not copied."""


@pytest.mark.parametrize("path", IN_TURN.values(), ids=IN_TURN)
def test_work_in_turn(path: Path) -> None:
    """What is done one after the other costs each side exactly this."""
    work = work_per_unit(path.use, Desk(), path.units)
    assert work[Side.CLIENT] == path.client, path.why
    assert work[Side.SERVER] == path.server, path.why


@pytest.mark.parametrize("path", AT_ONCE.values(), ids=AT_ONCE)
def test_work_at_once(path: Path) -> None:
    """What goes on at the same time costs each side at most this."""
    beyond: dict[Side, dict[str, float]] = {}
    for _ in range(TRIES):
        work = work_per_unit(path.use, Desk(), path.units)
        limits = {Side.CLIENT: path.client, Side.SERVER: path.server}
        beyond = {side: over for side, most in limits.items() if (over := work[side].beyond(most))}
        if not beyond:
            break
    assert not beyond, path.why


@pytest.mark.parametrize("size", [MIB, 16 * MIB])
def test_copies(size: int) -> None:
    """A large message is copied once, by its receiver."""
    work = work_per_unit(large(size), Desk(), 1, max_message_size=2 * size, traced=True)
    assert max(work[side].allocated for side in Side) / size <= COPIES
