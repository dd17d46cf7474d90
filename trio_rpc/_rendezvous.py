"""Which endpoint serves a routing key: pure, and the same in every process that knows the same endpoints.

Weighted rendezvous hashing (Thaler and Ravishankar, 1998; with weights: Schindelhauer and Schomaker, 2005): each
endpoint draws a lot for each key, from a hash of both, and the best lot serves it. When an endpoint leaves, its keys
alone move; when one comes, it takes its share from all and nothing else moves. A key that is asked for too much spills
over to its next best endpoint (consistent hashing with bounded loads: Mirrokni, Thorup and Zadimoghaddam, 2018).
"""

from __future__ import annotations

import math
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import TypeVar

from ._placement import NamedPlace

__all__ = ["Rendezvous"]

FEW = 8
"""Calls under way that are no overload, however small the share: with few calls in all, chance alone makes shares."""
MAX_KEYS = 4096
"""Keys whose order is kept."""
MAX_KEPT = 1 << 20
"""Endpoints in all kept orders together: 4 MiB."""


P = TypeVar("P", bound=NamedPlace)


class Rendezvous:
    """The orders in which one set of endpoints stands up for keys.

    No two have the same name; weights are above 0, and an endpoint's share of all keys is its share of all weights.
    """

    __slots__ = ("_kept", "_names", "_orders", "_weights")

    _orders: OrderedDict[str, Sequence[int]]

    def __init__(self, names_and_weights: Iterable[tuple[str, float]]) -> None:
        self._weights = dict(names_and_weights)
        self._names = list(self._weights)
        self._orders = OrderedDict()
        self._kept = min(MAX_KEYS, max(1, MAX_KEPT // max(1, len(self._names))))

    def order(self, key: str) -> Sequence[int]:
        """The indices of all endpoints, the best for the key first."""
        order = self._orders.get(key)
        if order is not None:
            self._orders.move_to_end(key)
            return order
        lots = self._lots(key)
        order = self._orders[key] = array("I", sorted(range(len(lots)), key=lots.__getitem__))
        if len(self._orders) > self._kept:
            self._orders.popitem(last=False)
        return order

    def _lots(self, key: str) -> list[float]:
        """One for each endpoint, the lowest is the best: exponentially distributed, with its weight as the rate."""
        secret = blake2b(_bytes(key), digest_size=32).digest()  # blake2b's own key has 64 bytes at most
        lots: list[float] = []
        for name, weight in self._weights.items():
            drawn = int.from_bytes(blake2b(_bytes(name), digest_size=8, key=secret).digest(), "big")
            lots.append(-math.log((drawn + 0.5) / 2**64) / weight)
        return lots

    def choose(self, key: str, candidates: Sequence[P], load_factor: float = 1.25) -> P | None:
        """The best endpoint for the key that has a free place and is not overloaded; None if none has a place.

        Overloaded is who would have more than FEW calls under way, and more than `load_factor` times its fair share of
        all, this one included. Where all free ones are, the best of them is taken. `candidates` are these endpoints or some of
        them, in any order; who is none of these is not chosen.
        """
        by_name: dict[str, P] = {}
        weights = calls = 0.0
        for candidate in candidates:
            by_name[candidate.name] = candidate
            weights += self._weights.get(candidate.name, 0.0)
            calls += candidate.in_flight
        second_best: P | None = None
        for index in self.order(key):
            name = self._names[index]
            site = by_name.get(name)
            if site is None or site.free <= 0:
                continue
            if site.in_flight < load_factor * (calls + 1) * self._weights[name] / weights:
                return site
            if second_best is None:
                second_best = site
        return second_best


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # a path may hold what is not UTF-8
