"""Addresses: their text, and how to dial them.

`tcp://host:port`, `tls://host:port`, `unix:///path`, `unix:@abstract`. Without a host it is for listening; a wildcard
means this machine to who dials it.
"""

from __future__ import annotations

import errno
import functools
import ipaddress
import os
import re
import socket
import ssl

import attrs
import trio
from trio.lowlevel import wait_writable

from ._errors import ConnectError
from ._sockets import SocketStream, own
from ._text import shown
from ._tls import ContextSource, check_side, context_from, is_final, start_tls, why

__all__ = ["Address", "dial", "is_host", "is_loopback", "peer_name"]


@attrs.frozen
class Address:
    """One parsed address."""

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, text: str, *, least_port: int = 0) -> Address:
        """Read an address. Raises ValueError, with an example of what to write, for anything else.

        `least_port` is only told: 0 where it means any free one, 1 where a server is to be reached.
        """
        if not isinstance(text, str):
            raise TypeError(f"an address is a text like 'tcp://127.0.0.1:7000', not {text!r:.80}")
        scheme, found, rest = text.partition(":")
        if several := _several(text):
            raise ValueError(f"{text!r} is more than one address: write a list of them, {several}")
        if scheme == "unix" and found:
            return cls("unix", path=_socket_path(text, rest.removeprefix("//")))
        if scheme not in ("tcp", "tls") or not rest.startswith("//"):
            raise ValueError(
                f"{text!r} is no address: write tcp://host:port, tls://host:port, unix:///path or unix:@name"
            )
        host, colon, port = rest[2:].rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535 or "/" in host:
            raise ValueError(
                f"{text!r} has no valid port: write {scheme}://host:port with a port from {least_port} to 65535"
            )
        if host and not is_host(host):
            raise ValueError(f"{text!r} has no valid host: {host!r} is no name, and no address in numbers")
        return cls(scheme, host, int(port))

    def __str__(self) -> str:
        if self.scheme == "unix":
            return f"unix:{self.path}" if self.path.startswith("@") else f"unix://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """True if only this machine can reach it."""
        if self.scheme == "unix" or self.host == "localhost":
            return True
        return is_loopback(self.host)

    @property
    def unix_path(self) -> str:
        """What the kernel calls it: abstract names begin with a NUL."""
        return "\0" + self.path[1:] if self.path.startswith("@") else self.path


def is_loopback(host: str) -> bool:
    """Whether an address in numbers is this machine's own, and reached from nowhere else; False for a name."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback


def is_host(text: str) -> bool:
    """Whether a text may be a host's name, or its address in numbers (without brackets)."""
    if ":" in text:
        try:
            return ipaddress.ip_address(text).version == 6
        except ValueError:
            return False
    return not _NOT_IN_HOSTS.search(text)


_NOT_IN_HOSTS = re.compile(r"[\s\x00-\x20\x7f/?#@,;\[\]]|^$")
_NEXT_ADDRESS = re.compile(r"[\s,;]+(?=(?:tcp|tls)://|unix:)")
"""What stands between two addresses in one text."""


def _several(text: str) -> list[str]:
    """The addresses, if a text has more than one; with `tcp://a:1,b:2` as well, which other libraries take."""
    parts = _NEXT_ADDRESS.split(text)
    scheme = text.partition("://")[0]
    if len(parts) == 1 and scheme in ("tcp", "tls"):
        rest = text.partition("://")[2]
        parts = [f"{scheme}://{part.strip()}" for part in rest.split(",") if part.strip()]
    return parts if len(parts) > 1 else []


def _socket_path(text: str, path: str) -> str:
    if path in ("", "@", "/"):
        raise ValueError(f"{text!r} names no socket: write unix:///run/app.sock or unix:@name")
    if path[0] not in "/@":
        raise ValueError(f"{text!r} has no whole path: write unix:///... with a path that begins with /, or unix:@name")
    return path


async def dial(address: Address, ssl_context: ContextSource | None, hostname: str | None = None) -> trio.abc.Stream:
    """Open a transport: name, TCP and TLS. Raises ConnectError. The caller bounds the time.

    A name that stands for several addresses is tried by happy eyeballs (RFC 6555, as Trio does it): the next address
    when one has failed, or has not answered for 250 ms; the first that answers is taken.

    `hostname` is what a certificate is checked against; without it, the host of the address.
    """
    if address.scheme == "tls" and ssl_context is None:
        ssl_context = ssl.create_default_context()
    context = None if ssl_context is None else context_from(ssl_context)
    if context is not None:
        try:
            check_side(context, server_side=False)
        except TypeError as exc:  # The next one will be no other.
            raise ConnectError(f"cannot connect to {address}: {exc}", peer=str(address), permanent=True) from exc
    try:
        stream = await _connect(address)
    except OSError as exc:
        raise ConnectError(f"cannot connect to {address}: {_reason(exc)}", peer=str(address)) from exc
    return stream if context is None else await _secure(stream, address, context, hostname)


async def _connect(address: Address) -> SocketStream:
    if address.scheme == "unix":
        sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            await sock.connect(address.unix_path)
        except BaseException:
            sock.close()
            raise
    elif (family := _literal(address.host)) is not None:
        return await _connect_at_once(family, address)
    else:
        sock = (await trio.open_tcp_stream(address.host, address.port)).socket
    return SocketStream(own(sock))


@functools.lru_cache(maxsize=1024)
def _literal(host: str) -> socket.AddressFamily | None:
    """The family of an address in numbers; None for a name, and for what only the resolver understands (fe80::1%eth0)."""
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return None
    if "%" in host:
        return None
    return socket.AF_INET if version == 4 else socket.AF_INET6


async def _connect_at_once(family: socket.AddressFamily, address: Address) -> SocketStream:
    """Connect to an address in numbers: nothing to look up, so no thread, and no race between several addresses."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        where = (address.host, address.port)
        error = sock.connect_ex(where)
        if error == errno.EINPROGRESS:
            error = sock.connect_ex(where)  # On one machine it is done by now, and need not be waited for.
        if error in (errno.EALREADY, errno.EINPROGRESS):
            await wait_writable(sock)
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error not in (0, errno.EISCONN):
            raise OSError(error, os.strerror(error))
        return SocketStream(sock)
    except BaseException:
        sock.close()
        raise


async def _secure(
    stream: SocketStream, address: Address, context: ssl.SSLContext, hostname: str | None
) -> trio.SSLStream[SocketStream]:
    try:
        return await start_tls(stream, context, hostname=hostname or address.host or None)
    except BaseException as exc:
        stream.close()
        if isinstance(exc, trio.BrokenResourceError | trio.ClosedResourceError):
            name = str(address) if hostname is None else f"{address} ({hostname})"
            text = f"TLS with {name} failed: {why(exc)}"
            raise ConnectError(text, peer=str(address), permanent=is_final(exc)) from exc
        raise


def _reason(exc: BaseException) -> str:
    """The operating system's own words, out of the group that happy eyeballs makes."""
    cause = exc.__cause__
    errors = cause.exceptions if isinstance(cause, BaseExceptionGroup) else [cause or exc]
    return ", ".join(sorted({_words(error) for error in errors}))


def _words(error: BaseException) -> str:
    """Without number and address: the message has these already."""
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number) if number is not None and number > 0 else getattr(error, "strerror", None) or str(error)


def peer_name(stream: trio.abc.Stream) -> str:
    """Name the other end of a stream, for logs and errors."""
    transport = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    scheme = "tls" if isinstance(stream, trio.SSLStream) else "tcp"
    sock = getattr(transport, "socket", None)
    if sock is None:
        return f"{type(stream).__name__}"
    try:
        name = sock.getpeername()
    except OSError:
        return "a closed socket"
    if isinstance(name, tuple):
        return str(Address(scheme, name[0], name[1]))
    path = _text(name)  # Chosen by whom it names, as a client may bind its socket to any.
    return f"unix:{path if path.isprintable() else shown(path)}" if path else "unix:(unnamed)"


def _text(name: str | bytes) -> str:
    return (name.decode(errors="replace") if isinstance(name, bytes) else name).replace("\0", "@")
