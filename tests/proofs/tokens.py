"""X02: how long a refusal takes does not tell how much of a token was right.

Two wrong tokens, one in its first byte and one in its last, are given in random order, each to a server's
`authenticate`, and the medians of their times are compared. As the same measure must be able to find a difference, a
comparison that stops at the first wrong byte is measured beside it.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable

from trio_rpc import Origin, Unauthenticated
from trio_rpc.auth import BearerTokens

from .report import Proof, Report

__all__ = ["PROOF"]

TOKEN = "Zm9vYmFyYmF6cXV4LXRoZS1sb25nZXN0LXRva2Vu"
WRONG = {"first byte": "X" + TOKEN[1:], "last byte": TOKEN[:-1] + "X"}
TIMES = 20_000
BOUND = 0.02
HERE = Origin(address="tcp://127.0.0.1:1")

Refuse = Callable[[str], None]


def run(quick: bool, seed: int) -> Report:
    """Time refusals, and compare."""
    report = Report(("token", "wrong in its", "refusals", "median"))
    times = TIMES // 20 if quick else TIMES
    found = {name: _measure(refuse, times, random.Random(seed)) for name, refuse in _ways().items()}
    for name, medians in found.items():
        report.rows += [(name, where, f"{times:,}", f"{median * 1e9:,.0f} ns") for where, median in medians.items()]
    report.check("both are refused in the same words", len({_words(token) for token in WRONG.values()}) == 1)
    if not quick:  # On a few, and on a busy machine, the times of the small version say nothing.
        ours, naive = (_difference(medians) for medians in found.values())
        promised = f"a token that is wrong in its first or its last byte: medians differ by less than {BOUND:.0%}"
        report.bar(promised, f"{ours:.2%}, {times:,} times each", ours < BOUND)
        report.check(f"a comparison that stops at the first wrong byte is found out: {naive:.1%}", naive > BOUND)
    return report


def _ways() -> dict[str, Refuse]:
    tokens = BearerTokens({TOKEN: "anne", "another": "bert"})

    def ours(token: str) -> None:
        try:
            tokens({"token": token}, HERE).send(None)
        except Unauthenticated:
            return
        raise AssertionError("it was let in")

    def naive(token: str) -> None:
        for given, right in zip(token, TOKEN, strict=True):
            if given != right:
                return
        raise AssertionError("it was let in")

    return {"BearerTokens": ours, "byte by byte": naive}


def _words(token: str) -> str:
    try:
        BearerTokens({TOKEN: "anne"})({"token": token}, HERE).send(None)
    except Unauthenticated as exc:
        return str(exc)
    raise AssertionError("it was let in")


def _measure(refuse: Refuse, times: int, rng: random.Random) -> dict[str, float]:
    """The median time of each wrong token; in pairs, so that both meet the same moments of the machine."""
    taken: dict[str, list[float]] = {where: [] for where in WRONG}
    order = list(WRONG.items())
    gc.disable()
    try:
        for _ in range(times):
            rng.shuffle(order)
            for where, token in order:
                start = time.perf_counter()
                refuse(token)
                taken[where].append(time.perf_counter() - start)
    finally:
        gc.enable()
    return {where: statistics.median(values) for where, values in taken.items()}


def _difference(medians: dict[str, float]) -> float:
    first, last = medians.values()
    return abs(first - last) / min(first, last)


PROOF = Proof("bearer tokens: the time of a refusal does not tell how much of the token was right", run)
