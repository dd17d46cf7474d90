"""Resolvers written as text."""

from __future__ import annotations

import ssl
from urllib.parse import unquote

from .._address import Address
from ._dns import dns
from ._file import watched_file
from ._polled import Polled

__all__ = ["resolver_for"]


def resolver_for(text: str, ssl_context: ssl.SSLContext | None = None) -> Polled | None:
    """The resolver that `dns://host:port` or `file:///path` means; None for a text that means none.

    With an `ssl_context` the endpoints of `dns://` are `tls`. Raises ValueError, with an example of what to write.
    """
    scheme, _, rest = text.partition("://")
    if scheme == "dns":
        try:
            name = Address.parse(f"tcp://{rest.removeprefix('/')}")  # dns:///host:port is what gRPC writes.
            return dns(name.host, name.port, scheme="tcp" if ssl_context is None else "tls")
        except ValueError:
            raise ValueError(f"{text!r} names no host and port: write dns://host:port") from None
    if scheme == "file":
        if not rest.startswith("/") or not rest.strip("/"):
            raise ValueError(f"{text!r} names no file: write file:///path")
        return watched_file(unquote(rest))
    return None
