"""W11, W13: what decoding costs: the bounds on ordinary messages, and the worst frame that is accepted, or refused."""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

import msgpack
from rich.markup import escape

from trio_rpc import DecodeError
from trio_rpc.codecs import Adapter, Bounds, Carrier, Json, MessagePack

from .report import Proof, Report, milliseconds
from .shapes import JSON_SHAPES, MSGPACK_SHAPES, NEVER, SHAPES, Record, records

__all__ = ["PROOF", "accepted"]

FRAME = 1024 * 1024 - 64
"""The largest frame that is accepted by default, with room for what stands before the payload."""
SLOWEST = 0.03
"""Seconds of the loop that one frame may take."""
REFUSED = 0.06
"""The same, for one that is refused: maps in maps are only counted when the inner ones are there."""
DEAREST = 1.10
"""What the bounds may add to an ordinary message."""
ORDINARY = {"100 B": 1, "1 KiB": 12, "64 KiB": 800}
"""Records in an ordinary message."""
Found: TypeAlias = tuple[float, float, str, str, int, Callable[[], float]]
"""Seconds that the largest frame that is accepted takes, and one that is refused; codec, kind, and values in the first;
what measures the first again, if it took long."""
LOOSE = Bounds(max_depth=256, max_containers=10**9, max_values=10**9)
STEPS = 8
ROUNDS = 25
"""Of ordinary messages."""
TIMES = 5
"""That each frame is decoded."""
LONG = 0.8 * SLOWEST
"""What takes so long is visited again, between the others like it: a minute in which the machine is slow hits all."""
VISITS = 5

CODECS: dict[str, Callable[..., Any]] = {
    "msgpack": MessagePack,
    "msgpack without msgspec": lambda **bounds: MessagePack(**bounds, fast=False),
    "json": Json,
}


def run(quick: bool, _seed: int) -> Report:
    """Measure both."""
    report = Report(["codec", "what", "values", "accepted", "refused"])
    rounds, every, times, shown = (5, 20, 1, 3) if quick else (ROUNDS, 1, TIMES, 15)
    ratios = [ratio for name, make in CODECS.items() for ratio in _compare(report, name, make, rounds)]
    found = [row for name, make in CODECS.items() for row in _search(name, make, every, times)]
    if not quick:
        found = _visited_again(found)
    found.sort(key=lambda row: row[:5], reverse=True)
    for seconds, refused, name, shape, count, _ in found[:shown]:
        report.rows.append([name, escape(shape), f"{count:,}", milliseconds(seconds), milliseconds(refused)])
    never = {kind for *_, kind, count, _again in found if not count}
    report.check(f"{len(found)} kinds of frames: some are accepted of each, where the type fits", never <= NEVER)
    if not quick:  # A few, on a busy machine, say nothing of times.
        _judge(report, ratios, found)
    report.details.append("Processor time; of frames the median, with garbage collected as it comes.")
    return report


def _judge(report: Report, ratios: list[float], found: list[Found]) -> None:
    added = f"{min(ratios) - 1:+.0%} to {max(ratios) - 1:+.0%}, on both codecs and three sizes"
    report.bar("on ordinary messages the bounds cost at most 10 %", added, max(ratios) <= DEAREST)
    worst, (dearest, codec, kind) = found[0][0], max(row[1:4] for row in found)
    what = f"{milliseconds(worst)}, the worst of {len(found)} kinds of frames on both codecs"
    report.bar("the worst frame of 1 MiB that is accepted holds the loop for at most 30 ms", what, worst <= SLOWEST)
    what = f"{milliseconds(dearest)}, {codec}, {kind}"
    report.bar("the worst that is refused: at most 60 ms", what, dearest <= REFUSED)


def _compare(report: Report, name: str, make: Callable[..., Any], rounds: int) -> Iterator[float]:
    """Decode ordinary messages within the bounds, and with bounds that nothing reaches, in turn; yield the ratios."""
    bound, free = Adapter(make()), Adapter(make()).limited(LOOSE)
    for size, count in ORDINARY.items():
        carriers = bound.carrier(list[Record]), free.carrier(list[Record])
        payload = bound.codec.encode(records(count), [])
        costs: tuple[list[float], list[float]] = [], []
        for _ in range(rounds):
            for carrier, cost in zip(carriers, costs, strict=True):
                cost.append(_repeated(carrier, payload, max(1, 400 // count)))
        ratio = min(costs[0]) / min(costs[1])  # what others do on the machine only adds to it
        report.details.append(f"{name}, {size} of records: the bounds cost {ratio - 1:+.1%}")
        yield ratio


def _repeated(carrier: Carrier, payload: bytes, times: int) -> float:
    start = time.thread_time()
    for _ in range(times):
        carrier.decode(payload, ())
    return time.thread_time() - start


def _search(name: str, make: Callable[..., Any], every: int, times: int) -> Iterator[Found]:
    """For each kind of value yield what the largest frame of it that is accepted takes, and one that is refused."""
    bound, encode = Adapter(make()), _json if name == "json" else _msgpack
    shapes = {**SHAPES, **(JSON_SHAPES if name == "json" else MSGPACK_SHAPES)}
    for title, (type_, value) in list(shapes.items())[::every]:
        carrier, make_payload = bound.carrier(type_), partial(_payload, encode, value)
        count, payload = _largest(make_payload)
        refused = 0.0
        if not accepted(carrier, payload):
            refused = _median(carrier, payload, times)
            count, payload = _most(carrier, make_payload, count)
        seconds = _median(carrier, payload, times)
        again = partial(_median, carrier, payload if seconds > LONG else b"", times)
        yield seconds, refused, name, title, count, again


def _visited_again(found: list[Found]) -> list[Found]:
    """The same, with medians of several visits for what took long."""
    visits = [[row[0]] for row in found]
    for _ in range(VISITS - 1):
        for row, times in zip(found, visits, strict=True):
            if row[0] > LONG:
                times.append(row[-1]())
    return [(statistics.median(times), *row[1:]) for row, times in zip(found, visits, strict=True)]


def _msgpack(value: Any) -> bytes:
    return bytes(msgpack.packb(value))


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _payload(encode: Callable[[Any], bytes], value: Callable[[int], Any], count: int) -> bytes:
    plain = value(count)
    return plain if isinstance(plain, bytes) else encode(plain)


def _largest(make: Callable[[int], bytes]) -> tuple[int, bytes]:
    """Return how many of the value go into a frame, and these."""
    each = max(1.0, (len(make(2000)) - len(make(1000))) / 1000)
    count = int(FRAME / each)
    while len(payload := make(count)) > FRAME:  # longer keys the more there are
        count = int(count * min(0.995, FRAME / len(payload)))
    return count, payload


def _most(carrier: Carrier, make: Callable[[int], bytes], refused: int) -> tuple[int, bytes]:
    """Return about how many are accepted, and these."""
    least, found = 0, make(0)
    for _ in range(STEPS):
        middle = (least + refused) // 2
        if accepted(carrier, payload := make(middle)):
            least, found = middle, payload
        else:
            refused = middle
    return least, found


def accepted(carrier: Carrier, payload: bytes) -> bool:
    """Whether it decodes."""
    try:
        carrier.decode(payload, ())
    except DecodeError:
        return False
    return True


def _median(carrier: Carrier, payload: bytes, times: int) -> float:
    costs = []
    gc.collect()
    for _ in range(times):
        start = time.thread_time()
        accepted(carrier, payload)
        costs.append(time.thread_time() - start)
    return statistics.median(costs)


PROOF = Proof("what bounds cost ordinary messages (10 %), and the worst frame of 1 MiB (30 ms), on both codecs", run)
