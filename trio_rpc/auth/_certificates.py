"""Names in a client's certificate: who it is, with mutual TLS."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator, Mapping
from typing import Any

from trio_rpc import Identity, Origin, Unauthenticated

__all__ = ["CertificateNames"]

REFUSAL = "a client certificate with a name that is known here is needed"


class CertificateNames:
    """Lets in who has a certificate with one of these names: an `authenticate`, for mutual TLS. The name is the principal.

    The server's `ssl_context` must have verified the certificate (`verify_mode = ssl.CERT_REQUIRED`, with the authority
    that signs your clients' as its only one); here its names are read. They are those of the subjectAltName: DNS names,
    URIs (SPIFFE's, for one) and e-mail addresses; only if it has none of these, the subject's common name (RFC 6125).
    The first that is allowed counts. The credentials are not looked at. The identity expires with the certificate: a
    pool whose `ssl_context` is `reloading` then goes on with a renewed one, and its callers notice nothing.

    Args:
        allowed: `worker-1.example.org`, `spiffe://example.org/worker` or `ops@example.org`: the very name, where DNS
            names are the same in upper and lower case; or `*.example.org`: one label more than that, as in TLS. Of none
            at all: any name that the authority has signed.

    Raises:
        TypeError, ValueError: at once, for a name that cannot be.
    """

    def __init__(self, *allowed: str) -> None:
        for name in allowed:
            if not isinstance(name, str):
                raise TypeError(f"a name in a certificate is a text, not {name!r:.80}")
            if not name or "*" in name.removeprefix("*."):
                raise ValueError(f"{name!r:.80} is no name: write worker.example.org, *.example.org, or a URI")
        self.allowed: tuple[str, ...] = allowed
        self._allowed = {_folded(name) for name in allowed}

    def __repr__(self) -> str:
        return f"CertificateNames({', '.join(map(repr, self.allowed))})"

    def __call__(self, credentials: Mapping[str, Any], origin: Origin) -> Identity:
        """The first name that is allowed. Raises Unauthenticated if there is none."""
        certificate = origin.certificate or {}
        for kind, name in _names(certificate):
            if self._allows(kind, name):
                return Identity(name, expires_in=_seconds_left(certificate))
        raise Unauthenticated(REFUSAL)

    def _allows(self, kind: str, name: str) -> bool:
        if "*" in name:
            return False  # Of a certificate for a whole domain: it names nobody.
        if not self._allowed or name in self._allowed:
            return True
        label, _, domain = name.partition(".")
        return kind == "DNS" and label != "" and f"*.{domain}" in self._allowed


def _seconds_left(certificate: Mapping[str, Any]) -> float | None:
    until = certificate.get("notAfter")
    return None if until is None else ssl.cert_time_to_seconds(until) - time.time()


def _names(certificate: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Its names and their kinds, as they are compared."""
    alternatives = [(kind, name) for kind, name in certificate.get("subjectAltName", ()) if kind in _KINDS]
    if not alternatives:
        subject = certificate.get("subject", ())
        alternatives = [("DNS", value) for names in subject for key, value in names if key == "commonName"]
    for kind, name in alternatives:
        if _kind_of(name) == kind:  # Else it pretends to be of another kind.
            yield kind, _folded(name)


_KINDS = {"DNS", "URI", "email"}


def _kind_of(name: str) -> str:
    return "URI" if ":" in name else "email" if "@" in name else "DNS"


def _folded(name: str) -> str:
    return name.lower() if _kind_of(name) == "DNS" else name
