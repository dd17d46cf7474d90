"""Certificates that are renewed under a running program."""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Callable
from typing import TypeAlias

__all__ = ["reloading"]

log = logging.getLogger("trio_rpc.auth")

PathLike: TypeAlias = str | os.PathLike[str]
Signature: TypeAlias = tuple[tuple[int, int, int, int], ...]


def reloading(
    certfile: PathLike | None = None,
    keyfile: PathLike | None = None,
    *,
    cafile: PathLike | None = None,
    client: bool = False,
    configure: Callable[[ssl.SSLContext], object] | None = None,
) -> Callable[[], ssl.SSLContext]:
    """An `ssl_context=` that follows its files: connections that begin after a renewal have the new certificate.

    The files are looked at for each handshake, which costs about 10 us, and read again when their time, size or
    identity has changed. If they cannot be used then, that is logged, once, and the old ones stay in use. Connections
    that are there already go on as they were; `max_age` bounds that. Who renews a certificate should write other files
    and rename them to these: a file that is written in place may be read half. Between two renames certificate and key
    do not fit; that moment passes.

    Args:
        certfile: this side's certificate, and those between it and its authority, in PEM. A server needs one.
        keyfile: its private key, unencrypted; None if it is in `certfile` too.
        cafile: the authorities that the other side's certificate is verified by. For a server it makes the TLS mutual:
            clients without a certificate of theirs are refused. For a client, None means the system's.
        client: for `open_pool`, not for `serve`. Names of servers are checked, as always.
        configure: told each new context before it is used, for what else you want of it.

    Raises:
        OSError: at once, for a file that cannot be read; `ssl.SSLError` is one too.
        TypeError: for a server without a certificate.
    """
    if certfile is None and not client:
        raise TypeError("a server needs a certificate: write reloading('server.pem', 'server.key')")
    if certfile is None and keyfile is not None:
        raise TypeError("a private key is of no use without its certificate: give the certfile too")

    def build() -> ssl.SSLContext:
        purpose = ssl.Purpose.SERVER_AUTH if client else ssl.Purpose.CLIENT_AUTH
        context = ssl.create_default_context(purpose, cafile=cafile)
        if certfile is not None:
            # Without a password of its own OpenSSL would ask for one at the terminal, and wait for it.
            try:
                context.load_cert_chain(certfile, keyfile, password=_no_password)
            except ssl.SSLError as exc:  # Its own words name no file.
                where = f"{certfile}" if keyfile is None else f"{certfile} and {keyfile}"
                text = f"no certificate with its private key in {where}: {exc.strerror or exc}"
                raise ssl.SSLError(exc.errno or 1, text) from exc
        if cafile is not None and not client:
            context.verify_mode = ssl.CERT_REQUIRED
        if configure is not None:
            configure(context)
        return context

    return _Reloading(build, [path for path in (certfile, keyfile, cafile) if path is not None])


class _Reloading:
    """The latest context that could be made of some files."""

    def __init__(self, build: Callable[[], ssl.SSLContext], paths: list[PathLike]) -> None:
        self._build = build
        self._paths = paths
        self._complaint: tuple[Signature, str] | None = None
        self._signature = self._look()
        self._context = build()

    def __repr__(self) -> str:
        return f"<reloading {', '.join(str(path) for path in self._paths)}>"

    def __call__(self) -> ssl.SSLContext:
        """The context for one handshake."""
        try:
            signature = self._look()
            if signature != self._signature:
                self._signature = signature  # Before they are read: what changes meanwhile is read again next time.
                self._context = self._build()
                log.info("%r: read again", self)
        except Exception as exc:  # Of `configure`, too.
            complaint = self._signature, f"{type(exc).__name__}: {exc}"
            if complaint != self._complaint:
                log.warning("%r: cannot be used, so the old ones stay: %s", self, complaint[1])
            self._complaint = complaint
        return self._context

    def _look(self) -> Signature:
        return tuple(
            (status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev) for status in map(os.stat, self._paths)
        )


def _no_password() -> str:
    raise ValueError("the private key is encrypted: give it without a password")
