"""Resolvers written as text."""

from __future__ import annotations

from urllib.parse import unquote

from .._address import Address
from .._tls import ContextSource
from ._dns import dns
from ._file import watched_file
from ._polled import Polled

__all__ = ["resolver_for"]


def resolver_for(text: str, ssl_context: ContextSource | None = None) -> Polled | None:
    """The resolver that `dns://host:port` or `file:///path` means; None for a text that means none.

    With an `ssl_context` the endpoints of `dns://` are `tls`. Raises ValueError, with an example of what to write.
    """
    scheme, _, rest = text.partition("://")
    if scheme == "dns":
        return _dns(text, rest.removeprefix("/"), ssl_context)  # dns:///host:port is what gRPC writes.
    if scheme == "file":
        if not rest.startswith("/") or not rest.strip("/"):
            raise ValueError(f"{text!r} names no file: write file:///path")
        return watched_file(unquote(rest))
    return None


def _dns(text: str, place: str, ssl_context: ContextSource | None) -> Polled:
    try:
        name = Address.parse(f"tcp://{place}")
    except ValueError:
        name = Address("tcp")
    if not name.host:
        raise ValueError(f"{text!r} names no host and port: write dns://host:port")
    if not name.port:
        raise ValueError(f"{text!r} has port 0, which is for listening: write the servers' port")
    return dns(name.host, name.port, scheme="tcp" if ssl_context is None else "tls")
