"""The addresses of a name."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from typing import Literal

import trio

from .._address import is_host
from .._endpoint import Endpoint
from ._polled import Polled

__all__ = ["dns"]


def dns(
    host: str,
    port: int,
    *,
    interval: float = 30.0,
    scheme: Literal["tcp", "tls"] = "tcp",
    family: int = socket.AF_UNSPEC,
    timeout: float = 30.0,
) -> Polled:
    """Resolve a name to one endpoint for each of its A and AAAA records, again and again.

    Trio's own `getaddrinfo` is asked, so the system's configuration holds (/etc/hosts among it), and so does a custom
    hostname resolver. New connections go to a changed set within `interval`; after a failed dial or a lost connection
    within a second. A name that is not found is a failure: the last answer stays.

    This is for names that stand for many servers. For one server with several addresses write `tcp://host:port`: that
    takes the address that answers first.

    Args:
        host: the name. With `tls` the certificates are checked against it.
        port: the one port of them all.
        interval: seconds between lookups.
        scheme: `tcp`, or `tls`.
        family: `socket.AF_INET` or `AF_INET6` for records of one kind only.
        timeout: seconds for one lookup; the system's own bound may be lower.

    Raises:
        ValueError: for a host, port, scheme or time that cannot be.
    """
    if not isinstance(host, str):
        raise TypeError(f"host must be a name like 'db.example.org', not {host!r:.80}")
    if not is_host(host):
        raise ValueError(f"{host!r} is no host name: write one like 'db.example.org', and the port apart")
    if isinstance(port, bool) or not isinstance(port, int):
        raise TypeError(f"port must be a whole number, not {port!r:.80}")
    if not 0 < port < 65536:
        raise ValueError(f"{port!r} is no port: write the server's, from 1 to 65535")
    if scheme not in ("tcp", "tls"):
        raise ValueError(f"scheme must be 'tcp' or 'tls', not {scheme!r}")
    # Without the dot that ends a complete name: certificates are made out without it.
    make = partial(_endpoint, scheme, host.removesuffix(".") if scheme == "tls" else None)
    name = f"dns://[{host}]:{port}" if ":" in host else f"dns://{host}:{port}"
    return Polled(partial(_look_up, host, port, family, make), interval=interval, timeout=timeout, name=name)


async def _look_up(host: str, port: int, family: int, make: Callable[..., Endpoint]) -> list[Endpoint]:
    entries = await trio.socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
    # Sorted, as servers of names rotate their answers, and without twins, which would be weights.
    addresses = {entry[4] for entry in entries}
    return [make(*address) for address in sorted(addresses)]


def _endpoint(scheme: str, hostname: str | None, host: str, port: int, _flow: int = 0, scope: int = 0) -> Endpoint:
    zone = f"%{scope}" if scope and "%" not in host else ""
    text = f"{scheme}://[{host}{zone}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
    return Endpoint(text, hostname=hostname)
