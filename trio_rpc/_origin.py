"""Where a connection comes from, as far as it can be known without asking the peer: its address, its TLS certificate
and, over a UNIX socket, the process behind it.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Mapping
from ipaddress import IPv6Address, ip_address
from typing import Any

import attrs
import trio

__all__ = ["Origin", "ProcessCredentials", "host_of", "origin_of"]

_UCRED = struct.Struct("iII")
"""Linux's struct ucred (unix(7)): pid, uid, gid."""


@attrs.frozen(kw_only=True)
class ProcessCredentials:
    """The process at the other end of a UNIX socket, as the kernel recorded it when the socket was connected.

    For processes of other user namespaces, the ids are those that the kernel shows for them here.
    """

    pid: int
    """Its process id; 0 if it is in another pid namespace. It may have ended since, and the id be another's by now."""
    uid: int
    """Its effective user id."""
    gid: int
    """Its effective group id."""


@attrs.frozen(kw_only=True)
class Origin:
    """Where a connection comes from; `str(origin)` is its address. Nothing of it is the peer's own word."""

    address: str
    """The other end, like `tcp://10.0.0.7:51234`."""
    certificate: Mapping[str, Any] | None = attrs.field(default=None, repr=False)
    """Its TLS certificate as `ssl.SSLSocket.getpeercert()` gives it; None without one that was verified."""
    tls: str | None = None
    """The TLS version, like `TLSv1.3`; None on a plain transport."""
    process: ProcessCredentials | None = None
    """Over a UNIX socket, on Linux: the process there. Elsewhere None."""

    def __str__(self) -> str:
        return self.address


def origin_of(stream: trio.abc.Stream, address: str) -> Origin:
    """What there is to know of the other end of a stream."""
    if not isinstance(stream, trio.SSLStream):
        return Origin(address=address, process=_process_of(stream))
    return Origin(
        address=address,
        certificate=stream.getpeercert() or None,  # Of one that was not verified an empty mapping.
        tls=stream.version(),
        process=_process_of(stream.transport_stream),
    )


def _process_of(stream: trio.abc.Stream) -> ProcessCredentials | None:
    sock: Any = getattr(stream, "socket", None)
    if sys.platform != "linux" or getattr(sock, "family", None) != socket.AF_UNIX:
        return None
    try:
        pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    except OSError:  # It was closed.
        return None
    return ProcessCredentials(pid=pid, uid=uid, gid=gid)


def host_of(origin: Origin) -> str:
    """Who is one and the same to what is counted for each host: an address without its port, or a user of this machine.

    Of IPv6 the first 64 bits, as whoever has one address of such a network has them all (RFC 6177).
    """
    if origin.process is not None:
        return f"user {origin.process.uid}"
    host, colon, port = origin.address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdecimal():
        return origin.address
    try:
        ip = ip_address(host.strip("[]"))
    except ValueError:
        return host
    if not isinstance(ip, IPv6Address):
        return host
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(IPv6Address(int(ip) >> 64 << 64))
