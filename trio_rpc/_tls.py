"""TLS over any stream, with reasons that people understand.

When a handshake fails on this side, OpenSSL holds an alert ready that tells the peer why. SSLStream raises without
sending it, and the peer sees a bare end of the connection. Here it is sent: so a client without a certificate is told
that one is wanted, and a server learns that its own was refused.
"""

from __future__ import annotations

import contextlib
import ssl
from typing import Any, cast

import trio

__all__ = ["is_final", "start_tls", "why"]

_NOT_TLS = "WRONG_VERSION_NUMBER"
_ALERT = bytes.fromhex("15 0301 0002 02 46")
"""Fatal, protocol_version. OpenSSL has no alert for those who do not speak TLS, and they had better know."""

_WORDS = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the peer wants a certificate of this side: load one "
    "into the ssl_context (load_cert_chain)",
    "TLSV1_ALERT_UNKNOWN_CA": "the peer does not trust the authority that signed our certificate",
    _NOT_TLS: "the peer does not speak TLS: use it on both sides (tls://), or on neither",
}
"""OpenSSL's reasons that need a translation."""

_ENDS = ("UNEXPECTED_EOF_WHILE_READING", None)
"""Not a verdict: the connection just ended."""


class _Witness:
    """Stands in for an SSLContext towards SSLStream, and keeps the buffer of what is to be sent."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.outgoing = ssl.MemoryBIO()
        self._context = context

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, **options: Any) -> ssl.SSLObject:
        """As `ssl.SSLContext.wrap_bio`."""
        self.outgoing = outgoing
        return self._context.wrap_bio(incoming, outgoing, **options)


async def start_tls(
    stream: trio.abc.Stream, context: ssl.SSLContext, *, server_side: bool = False, hostname: str | None = None
) -> trio.SSLStream[Any]:
    """Shake hands over `stream`. Raises BrokenResourceError, after an alert has told the peer; the caller closes."""
    witness = _Witness(context)
    tls: trio.SSLStream[Any] = trio.SSLStream(
        stream,
        cast("ssl.SSLContext", witness),
        server_hostname=hostname,
        server_side=server_side,
        https_compatible=False,
    )
    try:
        await tls.do_handshake()
    except trio.BrokenResourceError as exc:
        plain = server_side and getattr(exc.__cause__, "reason", None) == _NOT_TLS
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await stream.send_all(_ALERT if plain else witness.outgoing.read())
        raise
    return tls


def why(exc: BaseException) -> str:
    """The reason of a broken stream in words: OpenSSL's, without its brackets, or the system's."""
    reason = exc.__cause__ or exc
    if not isinstance(reason, ssl.SSLError):
        return str(reason)
    name = reason.reason or ""
    words = str(reason).removeprefix(f"[SSL: {name}] ").partition(" (_ssl")[0]
    return _WORDS.get(name, words)


def is_final(exc: BaseException) -> bool:
    """True if a stream broke by a verdict of TLS that trying again will not change."""
    reason = exc.__cause__ or exc
    return isinstance(reason, ssl.SSLError) and reason.reason not in _ENDS
