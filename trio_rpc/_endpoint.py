"""Endpoints: the addresses that a pool connects to, as lists and resolvers give them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import attrs

from ._address import Address, is_host

__all__ = ["Endpoint", "Endpoints", "endpoints"]


def _address(text: Any) -> str:
    """The one spelling of an address, by which pools tell endpoints apart."""
    if isinstance(text, str) and text.startswith(("dns://", "file://")):
        raise ValueError(f"{text!r} is a resolver, which stands alone: open_pool({text!r}), not in a list or Endpoint")
    address = Address.parse(text, least_port=1)
    if address.scheme != "unix" and not address.port:
        raise ValueError(f"{address} has port 0, which is for listening: write the server's port (server.addresses)")
    if address.scheme != "unix" and not address.host:
        raise ValueError(f"{address} has no host, which is for listening: write the server's, like 127.0.0.1")
    return str(address)


def _weight(number: float) -> float:
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise TypeError(f"weight must be a number, not {number!r:.80}")
    if not 0 < number < math.inf:
        raise ValueError(f"weight must be more than 0 and finite, not {number!r}: leave out what is to get no calls")
    return float(number)


def _check_hostname(endpoint: Endpoint, _attribute: object, name: Any) -> None:
    if name is None:
        return
    if not isinstance(name, str) or not name:
        raise TypeError(f"hostname must be a name like 'db.example.org', or None, not {name!r:.80}")
    if not is_host(name):
        raise ValueError(f"hostname must be a name like 'db.example.org', without a port, not {name!r:.80}")
    if endpoint.address.startswith("tcp:"):  # Who gives a name expects it to be checked.
        raise ValueError(f"{endpoint.address} has no certificate to check {name!r} against: write tls://")


@attrs.frozen
class Endpoint:
    """One server's address, and what a pool is to know of it.

    Attributes:
        address: `tcp://host:port`, `tls://host:port`, `unix:///path` or `unix:@name`.
        weight: its share of the calls in proportion to the weights of the others. More than 0, and finite.
        hostname: the name that a TLS certificate is checked against, in place of the address's host. For an address
            in numbers whose certificate is made out to a name.

    Raises:
        ValueError: for a text that is no address, for port 0, without a host, for a weight out of bounds, for a hostname without TLS.
        TypeError: for values of other types.
    """

    address: str = attrs.field(converter=_address)
    weight: float = attrs.field(default=1.0, converter=_weight)
    hostname: str | None = attrs.field(default=None, validator=_check_hostname)

    def __str__(self) -> str:
        return self.address


Endpoints = Iterable[str | Endpoint]
"""A whole set: what lists hold, and what a resolver yields."""


def endpoints(values: str | Endpoint | Endpoints) -> tuple[Endpoint, ...]:
    """Read a set of addresses and endpoints; one alone stands for a set of one.

    The order stays. What is listed twice is one endpoint with the weight of both together, so that it gets the calls
    of two; but one address with two hostnames is a contradiction.

    Raises:
        ValueError, TypeError: the first value that is no endpoint, in the words of `Endpoint`.
    """
    found: dict[str, Endpoint] = {}
    # Of bytes each would be taken for an address.
    for value in [values] if isinstance(values, str | bytes | Endpoint) else values:
        new = value if isinstance(value, Endpoint) else Endpoint(value)
        old = found.get(new.address)
        if old is not None and old.hostname != new.hostname:
            names = f"{old.hostname!r} and {new.hostname!r}"
            raise ValueError(f"{new.address} is listed with two hostnames, {names}: a connection has one")
        found[new.address] = new if old is None else attrs.evolve(old, weight=old.weight + new.weight)
    return tuple(found.values())
