"""How fast one host learns that its credentials are wrong: a pure decision.

Each host has a bucket of refusals that are told at once, and so many a second beyond; further ones are told when it is
their turn. Nothing of this delays who has the right credentials: they are looked at first, whoever shares the address.

Those who wait hold their connections meanwhile, which are few before HELLO for the whole server. So of one host no more
wait than get their turn in time; whoever comes on top of that is cut off without a word.
"""

from __future__ import annotations

from collections import OrderedDict

from ._allowance import Allowance

__all__ = ["HOSTS", "Guesses"]

HOSTS = 1024
"""Hosts that are remembered; beyond, those are forgotten that have not failed for longest."""


class Guesses:
    """The refusals of each host. `rate`: how many a second, and how many at once; None: as many as come."""

    __slots__ = ("_buckets", "_rate")

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._buckets: OrderedDict[str, Allowance] = OrderedDict()
        """The last one is who failed last."""

    def __len__(self) -> int:
        return len(self._buckets)

    def delay(self, host: str, now: float, most: float) -> float | None:
        """After how many seconds one more refusal may be told; None if not before `most`: then it is not to be told."""
        if self._rate is None:
            return 0.0
        bucket = self._buckets.get(host) or Allowance(max(1.0, self._rate), now)  # One is always in it.
        delay = bucket.delay(now, self._rate)
        if delay >= most:
            return None
        bucket.spend(now, self._rate)
        self._buckets[host] = bucket
        self._buckets.move_to_end(host)
        if len(self._buckets) > HOSTS:
            self._buckets.popitem(last=False)
        return delay
