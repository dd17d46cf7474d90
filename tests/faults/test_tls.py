"""TLS that cannot be, in words; certificates that are renewed under a running server; verification that stays on."""

from __future__ import annotations

import datetime
import logging
import ssl
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trustme

import trio_rpc
from trio_rpc import ConnectError, Endpoint, PoolLimits, current_call, method
from trio_rpc.auth import CertificateNames, reloading
from trio_rpc.wire import PREFACE

SOON = 5.0
"""Real time for what should take milliseconds, well below `acquire_timeout`."""
PACKAGE = Path(trio_rpc.__file__).parent

AUTHORITY = trustme.CA()
STRANGER = trustme.CA()
DAY = datetime.timedelta(days=1)
TODAY = datetime.datetime.now(datetime.UTC)
PAST: dict[str, Any] = {"not_before": TODAY - 9 * DAY, "not_after": TODAY - DAY}
FUTURE: dict[str, Any] = {"not_before": TODAY + DAY, "not_after": TODAY + 9 * DAY}


class Echo:
    """Counts the handlers that were entered."""

    def __init__(self) -> None:
        self.ran = 0

    @method(idempotent=True)
    async def echo(self, value: int) -> int:
        self.ran += 1
        return value

    @method
    async def who(self) -> Any:
        return current_call().peer.principal


def server_side(*names: str, by: trustme.CA = AUTHORITY, mutual: bool = False, **dates: Any) -> ssl.SSLContext:
    """A server's context."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    by.issue_cert(*names or ("127.0.0.1",), **dates).configure_cert(context)
    if mutual:
        context.verify_mode = ssl.CERT_REQUIRED
        AUTHORITY.configure_trust(context)
    return context


def client_side(by: trustme.CA | None = None, *, trusts: trustme.CA | None = AUTHORITY, **dates: Any) -> ssl.SSLContext:
    """A client's context; with a certificate if it is said by whom."""
    context = ssl.create_default_context()
    if trusts is not None:
        trusts.configure_trust(context)
    if by is not None:
        by.issue_cert("worker.example.org", **dates).configure_cert(context)
    return context


def at_most(context: ssl.SSLContext, version: ssl.TLSVersion) -> ssl.SSLContext:
    """No newer version than this."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, version
        context.set_ciphers("DEFAULT:@SECLEVEL=0")  # Else OpenSSL has no cipher for it.
    return context


async def refusal(target: str | Endpoint, context: Any) -> ConnectError:
    """What a call that goes with the HELLO, and one after it, fail with, at once."""
    errors: list[ConnectError] = []
    async with trio_rpc.open_pool(target, ssl_context=context) as pool:
        for _ in range(2):
            with trio.fail_after(SOON), pytest.raises(ConnectError) as caught:
                await pool.stub(Echo).echo(7)
            errors.append(caught.value)
    assert str(errors[0]) == str(errors[1])
    assert [error.may_have_run for error in errors] == [False, False]
    assert type(errors[0]) is ConnectError
    return errors[0]


async def told(caplog: pytest.LogCaptureFixture, reason: str) -> None:
    """The server's log says why."""
    with trio.fail_after(SOON):
        while True:
            texts = [record.getMessage() for record in caplog.records if record.name == "trio_rpc.server"]
            if any(reason in text for text in texts):
                return
            await trio.sleep(0.01)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(
    ("certificate", "client_says", "server_says"),
    [
        (
            {},
            {
                ssl.TLSVersion.TLSv1_2: "either it wants a certificate of this side, or",
                ssl.TLSVersion.TLSv1_3: "the peer wants a certificate of this side: load one",
            },
            "the peer gave no certificate, and this side wants one",
        ),
        (
            {"by": STRANGER},
            "the peer does not trust the authority that signed our certificate",
            "the peer's certificate is signed by an authority that is not trusted here",
        ),
        (
            {"by": AUTHORITY, **PAST},
            "the peer says that our certificate has expired",
            "the peer's certificate has expired",
        ),
        (
            {"by": AUTHORITY, **FUTURE},
            "the peer refuses our certificate: it may not be valid yet",
            "the peer's certificate is not valid yet",
        ),
    ],
    ids=["none", "wrong authority", "expired", "not yet valid"],
)
async def test_client_certificates_that_are_refused(
    certificate: dict[str, Any],
    client_says: Any,
    server_says: str,
    version: ssl.TLSVersion,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """X06, Rule 12: no call runs, in TLS 1.3 neither, where the first read tells; both sides learn the reason."""
    caplog.set_level(logging.INFO)
    echo, context = Echo(), client_side(**certificate)
    context.maximum_version = version
    async with trio_rpc.open_server(echo, "tls://127.0.0.1:0", ssl_context=server_side(mutual=True)) as server:
        error = await refusal(server.addresses[0], context)
        assert error.permanent
        if isinstance(client_says, dict):
            client_says = client_says[version]
        assert f"TLS with {server.addresses[0]} failed: " in str(error)
        assert client_says in str(error)
        await told(caplog, f"TLS handshake failed: {server_says}")
        async with trio_rpc.open_pool(server.addresses[0], ssl_context=client_side(AUTHORITY)) as pool:
            assert await pool.stub(Echo).echo(7) == 7
    assert echo.ran == 1


SELF_SIGNED = trustme.CA()


def self_signed() -> ssl.SSLContext:
    """A server whose certificate is an authority's own."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    with SELF_SIGNED.private_key_pem.tempfile() as key, SELF_SIGNED.cert_pem.tempfile() as certificate:
        context.load_cert_chain(certificate, key)
    return context


@pytest.mark.parametrize(
    ("context", "trusts", "reason"),
    [
        (server_side(by=STRANGER), AUTHORITY, "is signed by an authority that is not trusted here: load that one into"),
        (server_side(), None, "is signed by an authority that is not trusted here: load that one into"),
        (self_signed(), AUTHORITY, "is signed by itself, and not trusted here: load it into the ssl_context"),
        (server_side(**PAST), AUTHORITY, "the peer's certificate has expired"),
        (server_side(**FUTURE), AUTHORITY, "the peer's certificate is not valid yet"),
        (server_side("server.example.org"), AUTHORITY, "is for another name, not for '127.0.0.1': connect by the name"),
        (server_side("127.0.0.2"), AUTHORITY, "is for another name, not for '127.0.0.1': connect by the name"),
        (
            at_most(server_side(), ssl.TLSVersion.TLSv1_1),
            AUTHORITY,
            "the peer takes none of our versions of TLS (this side allows what its ssl_context allows",
        ),
    ],
    ids=["wrong authority", "system's", "self-signed", "expired", "not yet", "other name", "other address", "TLS 1.1"],
)
async def test_server_certificates_that_are_refused(
    context: ssl.SSLContext, trusts: trustme.CA | None, reason: str
) -> None:
    """X07: each has its own words, tells the address, and nothing is sent to such a server."""
    echo = Echo()
    async with trio_rpc.open_server(echo, "tls://127.0.0.1:0", ssl_context=context) as server:
        error = await refusal(server.addresses[0], client_side(trusts=trusts))
        assert error.permanent
        assert f"TLS with {server.addresses[0]} failed: " in str(error)
        assert reason in str(error)
        assert "_ssl.c" not in str(error)
    assert echo.ran == 0


async def test_the_name_of_an_endpoint_is_checked() -> None:
    """X07: `Endpoint(hostname=...)` says which name the certificate must be for; it does not turn the check off."""
    async with trio_rpc.open_server(Echo(), "tls://127.0.0.1:0", ssl_context=server_side("a.example.org")) as server:
        good = Endpoint(server.addresses[0], hostname="a.example.org")
        async with trio_rpc.open_pool(good, ssl_context=client_side()) as pool:
            assert await pool.stub(Echo).echo(7) == 7
        error = await refusal(attrs.evolve(good, hostname="b.example.org"), client_side())
        assert "is for another name, not for 'b.example.org'" in str(error)


async def test_a_client_with_old_tls(caplog: pytest.LogCaptureFixture) -> None:
    """X06: a client that offers TLS 1.1 at most is refused, and the log says so."""
    caplog.set_level(logging.INFO)
    async with trio_rpc.open_server(Echo(), "tls://127.0.0.1:0", ssl_context=server_side()) as server:
        error = await refusal(server.addresses[0], at_most(client_side(), ssl.TLSVersion.TLSv1_1))
        assert "the peer takes none of our versions of TLS" in str(error)
        await told(caplog, "the peer offers none but old versions of TLS")


def test_nothing_turns_verification_off() -> None:
    """X07: no line of the package does it, whatever the options; who wants it has to build such a context."""
    words = ("CERT_NONE", "CERT_OPTIONAL", "check_hostname =", "_create_unverified_context", "verify_flags", "TLSv1_1")
    found = [
        (path.name, word)
        for path in PACKAGE.rglob("*.py")
        for word in words
        if word in path.read_text(encoding="utf-8")
    ]
    assert found == []


@pytest.mark.parametrize("context", [None, client_side(STRANGER, trusts=None), reloading(client=True)])
async def test_what_no_option_can_do(context: Any) -> None:
    """X07: with all that a pool can be told, and without a context of one's own, a stranger's server is refused."""
    async with trio_rpc.open_server(
        Echo(), "tls://127.0.0.1:0", ssl_context=server_side(by=STRANGER), allow_insecure=True
    ) as server:
        for endpoint in (server.addresses[0], Endpoint(server.addresses[0], hostname="127.0.0.1")):
            assert "signed by an authority that is not trusted here" in str(await refusal(endpoint, context))


async def test_a_certificate_that_nobody_verified_is_none() -> None:
    """X07: who builds a context that verifies nothing is not told names that anybody may have written."""
    seen: list[trio_rpc.Peer] = []
    blind = client_side()
    blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE

    async def on_connect(peer: trio_rpc.Peer) -> None:
        seen.append(peer)

    async with trio_rpc.open_server(Echo(), "tls://127.0.0.1:0", ssl_context=server_side(by=STRANGER)) as server:
        async with trio_rpc.open_pool(server.addresses[0], ssl_context=blind, on_connect=on_connect) as pool:
            assert await pool.stub(Echo).echo(7) == 7
    [peer] = seen
    assert (peer.certificate, peer.origin.certificate) == (None, None)
    assert peer.tls is not None


# -- who a certificate says one is -------------------------------------------------------------------------------------


async def test_a_principal_by_certificate() -> None:
    """The name in the client's certificate is who it is; one that is signed, and not known, is not let in."""
    mutual = server_side(mutual=True)
    names = CertificateNames("*.example.org")
    async with trio_rpc.open_server(Echo(), "tls://127.0.0.1:0", ssl_context=mutual, authenticate=names) as server:
        async with trio_rpc.open_pool(server.addresses[0], ssl_context=client_side(AUTHORITY)) as pool:
            assert await pool.stub(Echo).who() == "worker.example.org"
        other = client_side()
        AUTHORITY.issue_cert("worker.example.net").configure_cert(other)
        async with trio_rpc.open_pool(server.addresses[0], ssl_context=other) as pool:
            with pytest.raises(trio_rpc.Unauthenticated, match="a client certificate with a name that is known here"):
                await pool.stub(Echo).who()


# -- certificates that are renewed -------------------------------------------------------------------------------------


@attrs.frozen
class Files:
    """A certificate, its key and its authority in files."""

    folder: Path

    @property
    def paths(self) -> tuple[Path, Path]:
        """Those of certificate and key."""
        return self.folder / "cert.pem", self.folder / "key.pem"

    @property
    def authority(self) -> Path:
        """That of the authority."""
        return self.folder / "ca.pem"

    def renew(self, by: trustme.CA = AUTHORITY, *names: str) -> None:
        """Put another certificate there, as it should be done."""
        leaf = by.issue_cert(*names or ("127.0.0.1",))
        certificate, key = self.paths
        self.replace(certificate, b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        self.replace(key, leaf.private_key_pem.bytes())
        self.replace(self.authority, by.cert_pem.bytes())

    @staticmethod
    def replace(path: Path, content: bytes) -> None:
        """Write another file and rename it."""
        new = path.with_suffix(".new")
        new.write_bytes(content)
        new.replace(path)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """A first certificate."""
    files = Files(tmp_path)
    files.renew()
    return files


async def issuer(address: str, trusts: trustme.CA) -> bool:
    """Whether a client that trusts this authority gets in."""
    limits = PoolLimits(min_connections=0)
    async with trio_rpc.open_pool(address, ssl_context=client_side(trusts=trusts), limits=limits) as pool:
        try:
            with trio.fail_after(SOON):
                return await pool.stub(Echo).echo(7) == 7
        except ConnectError as exc:
            return "signed by an authority that is not trusted here" not in str(exc)


async def test_a_server_whose_certificate_is_renewed(files: Files) -> None:
    """Connections that begin after it have the new certificate; one that was there before goes on."""
    async with trio_rpc.open_server(Echo(), "tls://127.0.0.1:0", ssl_context=reloading(*files.paths)) as server:
        address = server.addresses[0]
        async with trio_rpc.open_pool(address, ssl_context=client_side()) as pool:
            assert await pool.stub(Echo).echo(7) == 7
            files.renew(STRANGER)
            assert [await issuer(address, STRANGER), await issuer(address, AUTHORITY)] == [True, False]
            assert await pool.stub(Echo).echo(7) == 7
            assert pool.statistics().connects == 1


async def test_a_client_whose_certificate_is_renewed(files: Files) -> None:
    """So it is for the client's own certificate, and for whom it trusts."""
    files.renew(AUTHORITY, "old.example.org")
    names = CertificateNames()
    trust_both = server_side(mutual=True)
    STRANGER.configure_trust(trust_both)
    async with trio_rpc.open_server(Echo(), "tls://127.0.0.1:0", ssl_context=trust_both, authenticate=names) as server:
        context = reloading(*files.paths, cafile=files.authority, client=True)
        async with trio_rpc.open_pool(server.addresses[0], ssl_context=context) as pool:
            assert await pool.stub(Echo).who() == "old.example.org"
            files.renew(AUTHORITY, "new.example.org")
            assert await pool.stub(Echo).who() == "old.example.org"
            pool.recycle()
            with trio.fail_after(SOON):
                while await pool.stub(Echo).who() != "new.example.org":  # noqa: ASYNC110 - the pool replaces it by itself
                    await trio.sleep(0.01)
            files.renew(STRANGER, "other.example.org")
            assert "not trusted here" in str(await refusal(server.addresses[0], context))


@pytest.mark.parametrize("where", ["certificate", "key", "away", "mismatch"])
async def test_new_files_that_cannot_be_used(where: str, files: Files, caplog: pytest.LogCaptureFixture) -> None:
    """The old ones stay in use, the log says it once, and the next good ones are taken."""
    certificate, key = files.paths
    async with trio_rpc.open_server(Echo(), "tls://127.0.0.1:0", ssl_context=reloading(*files.paths)) as server:
        address = server.addresses[0]
        if where == "away":
            key.unlink()
        elif where == "mismatch":
            files.replace(key, AUTHORITY.issue_cert("127.0.0.1").private_key_pem.bytes())
        else:
            files.replace(certificate if where == "certificate" else key, b"-----BEGIN NONSENSE-----\n")
        assert [await issuer(address, AUTHORITY) for _ in range(3)] == [True, True, True]
        lines = [record.getMessage() for record in caplog.records if record.name == "trio_rpc.auth"]
        assert len(lines) == 1
        assert str(certificate) in lines[0]
        assert "cannot be used, so the old ones stay: " in lines[0]
        files.renew(STRANGER)
        assert await issuer(address, STRANGER)


def test_files_are_read_when_they_have_changed(files: Files) -> None:
    """Nothing is read, and no context made, while they are as they were."""
    made: list[ssl.SSLContext] = []
    context = reloading(*files.paths, cafile=files.authority, configure=made.append)
    assert [context() for _ in range(5)] == made[:1] * 5
    assert made[0].verify_mode is ssl.CERT_REQUIRED
    files.renew()
    assert [context() for _ in range(5)] == made[1:2] * 5
    files.replace(files.authority, STRANGER.cert_pem.bytes())
    assert [context() for _ in range(5)] == made[2:3] * 5
    assert len(made) == 3
    assert repr(context) == f"<reloading {files.paths[0]}, {files.paths[1]}, {files.authority}>"


def test_a_server_without_cafile_asks_for_no_certificate(files: Files) -> None:
    """TLS is mutual if and only if it is said whom to trust; a client's context always verifies."""
    assert reloading(*files.paths)().verify_mode is ssl.CERT_NONE
    client = reloading(client=True)()
    assert (client.verify_mode, client.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert client.minimum_version is ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (lambda files: {"certfile": files.folder / "none.pem"}, OSError, "No such file"),
        (lambda files: {"certfile": files.authority}, ssl.SSLError, "PEM|KEY"),
        (lambda files: {}, TypeError, "a server needs a certificate"),
        (lambda files: {"keyfile": files.paths[1], "client": True}, TypeError, "without its certificate"),
    ],
)
def test_files_that_are_no_good_at_first(
    options: Callable[[Files], dict[str, Any]], kind: type[Exception], message: str, files: Files
) -> None:
    """They are told at once, and not at the first handshake."""
    with pytest.raises(kind, match=message):
        reloading(**options(files))


def test_an_encrypted_key_asks_nobody(files: Files) -> None:
    """It is refused; no server waits for somebody at its terminal."""
    certificate, key = files.paths
    command = ["openssl", "pkey", "-aes128", "-passout", "pass:x", "-in", str(key), "-out", str(key) + ".enc"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl command here")
    with pytest.raises(ValueError, match="the private key is encrypted"):
        reloading(certificate, str(key) + ".enc")


# -- a function as ssl_context -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [lambda: 1 / 0, lambda: None, lambda: "cert.pem"])
async def test_a_context_function_that_fails_for_a_moment(
    broken: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """It costs the connection that it was asked for, on either side; the server and the pool go on."""
    ours, theirs = server_side(), client_side()
    answers: dict[str, Any] = {}
    fast = PoolLimits(min_connections=0, connect_backoff=trio_rpc.Backoff(initial=0.02, factor=1, jitter=0))
    async with trio_rpc.open_server(Echo(), "tls://127.0.0.1:0", ssl_context=lambda: answers["server"]()) as server:
        for side in ("server", "client"):
            answers.update(server=lambda: ours, client=lambda: theirs)
            answers[side] = broken
            async with trio_rpc.open_pool(
                server.addresses[0], ssl_context=lambda: answers["client"](), limits=fast
            ) as pool:
                with pytest.raises(trio_rpc.PoolTimeout) as caught:
                    await pool.stub(Echo, acquire_timeout=0.2).echo(7)
                assert isinstance(caught.value.__cause__, ConnectError)
                answers.update(server=lambda: ours, client=lambda: theirs)
                with trio.fail_after(SOON):
                    assert await pool.stub(Echo).echo(7) == 7
        assert server.statistics().refused_connections > 0
        assert "the handshake with" in caplog.text


async def test_a_listening_port_without_tls_tells_nothing() -> None:
    """X07: who asks for TLS never gets a plain connection instead."""
    async with trio_rpc.open_server(Echo(), "tcp://127.0.0.1:0") as server:
        target = server.addresses[0].replace("tcp", "tls")
        error = await refusal(target, client_side())
        assert "the peer does not speak TLS" in str(error)


async def test_a_plain_client_learns_no_more_than_that() -> None:
    """X01: over a plain connection to a TLS server nothing is said but that."""
    async with trio_rpc.open_server(Echo(), "tls://127.0.0.1:0", ssl_context=server_side()) as server:
        stream = await trio.open_tcp_stream("127.0.0.1", int(server.addresses[0].rpartition(":")[2]))
        async with stream:
            await stream.send_all(PREFACE)
            data = b""
            with trio.fail_after(SOON):
                while more := await stream.receive_some():
                    data += more
        assert len(data) <= 16
