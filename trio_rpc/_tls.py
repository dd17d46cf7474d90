"""TLS over any stream, with reasons that people understand.

When a handshake fails on this side, OpenSSL holds an alert ready that tells the peer why. SSLStream raises without
sending it, and the peer sees a bare end of the connection. Here it is sent: so a client without a certificate is told
that one is wanted, and a server learns that its own was refused.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable
from typing import Any, TypeAlias, cast

import trio

from ._checks import brief

__all__ = ["ContextSource", "check_side", "context_from", "is_final", "start_tls", "why"]

ContextSource: TypeAlias = ssl.SSLContext | Callable[[], ssl.SSLContext]
"""A context, or a plain function that returns one; it is asked at each handshake, so that certificates can be renewed."""

_NOT_TLS = "WRONG_VERSION_NUMBER"
_ALERT = bytes.fromhex("15 0301 0002 02 46")
"""Fatal, protocol_version. OpenSSL has no alert for those who do not speak TLS, and they had better know."""

_WORDS = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the peer wants a certificate of this side: load one "
    "into the ssl_context (load_cert_chain)",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the peer gave no certificate, and this side wants one (CERT_REQUIRED)",
    "TLSV1_ALERT_UNKNOWN_CA": "the peer does not trust the authority that signed our certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the peer says that our certificate has expired",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "the peer says that our certificate was revoked",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the peer refuses our certificate: it may not be valid yet, or not for the name "
    "that the peer has for us",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the peer refuses our certificate",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "the peer refuses our certificate: it is not of a kind, or for a purpose, "
    "that the peer takes",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "the peer breaks off the handshake: either it wants a certificate of this side, or "
    "the two have no cipher in common",
    "TLSV1_ALERT_PROTOCOL_VERSION": "the peer takes none of our versions of TLS (this side allows what its ssl_context "
    "allows, and that is TLS 1.2 and later unless somebody has changed it)",
    "UNSUPPORTED_PROTOCOL": "the peer offers none but old versions of TLS, which the ssl_context of this side does not "
    "allow",
    "NO_SHARED_CIPHER": "the two sides have no cipher in common",
    _NOT_TLS: "the peer does not speak TLS: use it on both sides (tls://), or on neither",
}
"""OpenSSL's reasons that need a translation. The alerts are the peer's verdict on us; the others are ours."""

_EXPIRED, _NOT_YET = 10, 9
_SELF_SIGNED = 18
_UNTRUSTED = frozenset({2, 19, 20, 21, 27})
_OTHER_NAME = frozenset({62, 63, 64})
"""Why a certificate was not believed: OpenSSL's X509_V_ERR_ numbers, which do not change (verify(1))."""

_ENDS = ("UNEXPECTED_EOF_WHILE_READING", None)
"""Not a verdict: the connection just ended."""


def context_from(source: ContextSource) -> ssl.SSLContext:
    """The context for one handshake. Raises TypeError, or whatever a function of the user's raises."""
    context: object = source if isinstance(source, ssl.SSLContext) else source()
    if not isinstance(context, ssl.SSLContext):
        raise TypeError(f"the function given as ssl_context must return an SSLContext, not {brief(context)}")
    return context


def check_side(context: ssl.SSLContext, *, server_side: bool) -> None:
    """Raise TypeError for a context that only the other side can use: no handshake would ever begin."""
    if server_side and context.protocol == ssl.PROTOCOL_TLS_CLIENT:
        raise TypeError(
            "this ssl_context is a client's: a server's is made by ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), "
            "or reloading(...) without client=True"
        )
    if not server_side and context.protocol == ssl.PROTOCOL_TLS_SERVER:
        raise TypeError(
            "this ssl_context is a server's: a client's is made by ssl.create_default_context(), or "
            "reloading(..., client=True)"
        )


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
    if isinstance(reason, ssl.SSLCertVerificationError):
        return _why_not_believed(reason)
    name = reason.reason or ""
    words = str(reason).removeprefix(f"[SSL: {name}] ").partition(" (_ssl")[0]
    return _WORDS.get(name, words)


def _why_not_believed(exc: ssl.SSLCertVerificationError) -> str:
    """What is wrong with the peer's certificate. Its names and dates are not to be had: it was never taken."""
    code, words = exc.verify_code, exc.verify_message.rstrip(".")
    if code in _OTHER_NAME:
        name = words.partition("not valid for ")[2]
        return (
            f"the peer's certificate is for another name, not for {name or 'this one'}: connect by the name that it is "
            "for, or give that as Endpoint(address, hostname=...)"
        )
    if code == _EXPIRED:
        return "the peer's certificate has expired"
    if code == _NOT_YET:
        return "the peer's certificate is not valid yet: is it for later, or a clock wrong?"
    if code == _SELF_SIGNED:
        return "the peer's certificate is signed by itself, and not trusted here: load it into the ssl_context (cafile)"
    if code in _UNTRUSTED:
        return (
            "the peer's certificate is signed by an authority that is not trusted here: load that one into the "
            f"ssl_context (cafile), if it is yours [{words}]"
        )
    return f"the peer's certificate is not accepted: {words}"


def is_final(exc: BaseException) -> bool:
    """True if a stream broke by a verdict of TLS that trying again will not change."""
    reason = exc.__cause__ or exc
    return isinstance(reason, ssl.SSLError) and reason.reason not in _ENDS
