"""Every way to connect two sides, who may connect, and what a bad address or a bad peer does to a server: nothing."""

from __future__ import annotations

import logging
import os
import socket
import ssl
import struct
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import trustme

import trio_rpc
import trio_rpc.wire
from trio_rpc import ConnectError, PermissionDenied, PoolLimits, Unauthenticated, current_call, method
from trio_rpc.testing import MemoryListener, memory_pipe, open_loopback

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(trio_rpc.__file__).parents[1])}
SOON = 2.0
"""Real time for what should take milliseconds, far below `acquire_timeout`."""


class Echo:
    @method
    async def echo(self, value: int) -> int:
        return value

    @method
    async def count(self, upto: int) -> AsyncGenerator[int, None]:
        for number in range(upto):
            yield number

    @method
    async def who(self) -> list[Any]:
        """What a handler sees of its caller."""
        peer = current_call().peer
        return [peer.address, peer.principal, peer.tls, (peer.certificate or {}).get("subjectAltName")]


class Other:
    @method
    async def hello(self) -> str:
        return "hello"


async def use(pool: trio_rpc.Pool) -> None:
    """A call and a stream."""
    stub = pool.stub(Echo)
    with trio.fail_after(SOON):
        assert await stub.echo(7) == 7
        async with stub.count(100) as numbers:
            assert [number async for number in numbers] == list(range(100))


async def refused(target: str, **options: Any) -> trio_rpc.RpcError:
    """The error that a call gets at once, well before `acquire_timeout`; a call after it gets the same."""
    async with trio_rpc.open_pool(target, **options) as pool:
        errors = []
        for _ in range(2):
            with trio.fail_after(SOON), pytest.raises(trio_rpc.RpcError) as caught:
                await pool.call("Echo.echo", 7)
            errors.append(caught.value)
    assert type(errors[0]) is type(errors[1])
    assert str(errors[0]) == str(errors[1])
    assert not errors[0].may_have_run
    return errors[0]


# -- addresses ---------------------------------------------------------------------------------------------------------


def has_ipv6() -> bool:
    """Whether this machine has a loopback address of IPv6."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


IPV6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
ABSTRACT = pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")


@pytest.mark.parametrize(
    "address",
    [
        "tcp://127.0.0.1:0",
        "tcp://localhost:0",
        pytest.param("tcp://[::1]:0", marks=IPV6),
        "unix://{folder}/app.sock",
        pytest.param("unix:@trio-rpc-test-{pid}", marks=ABSTRACT),
    ],
)
async def test_addresses(address: str, tmp_path: Path) -> None:
    """A server listens at each kind of address, and each of its `addresses` is a target."""
    place = address.format(folder=tmp_path, pid=os.getpid())
    async with trio_rpc.open_server(Echo(), place) as server:
        assert server.addresses
        for target in server.addresses:
            assert not target.endswith(":0")
            async with trio_rpc.open_pool(target) as pool:
                await use(pool)
    assert os.listdir(tmp_path) == []


async def test_an_idle_connection_over_a_socket_is_one_task_on_each_side() -> None:
    """Rule 7: beside the pool's one timer. From the first call on a server has one more, in which handlers run."""

    def tasks() -> int:
        return trio.lowlevel.current_statistics().tasks_living

    async with trio_rpc.open_server(Echo(), "tcp://127.0.0.1:0") as server:
        await trio.testing.wait_all_tasks_blocked()
        before = tasks()
        async with trio_rpc.open_pool(server.addresses[0]) as pool:
            await pool.connect()
            assert tasks() == before + 3
            for _ in range(3):
                assert await pool.stub(Echo).echo(7) == 7
                assert tasks() == before + 4
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert tasks() == before


async def test_several_addresses_listeners_and_services_at_once(tmp_path: Path) -> None:
    """One server serves all its services at all its addresses, listeners of one's own among them."""
    memory = MemoryListener()
    tcp = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    places: list[str | trio.abc.Listener[Any]] = ["tcp://127.0.0.1:0", f"unix://{tmp_path}/app.sock", memory, tcp]
    async with trio_rpc.open_server([Echo(), Other()], places) as server:
        port = tcp.socket.getsockname()[1]
        assert len(server.addresses) == 4
        for target in (*server.addresses[:2], memory.connect, f"tcp://127.0.0.1:{port}"):
            async with trio_rpc.open_pool(target) as pool:
                await use(pool)
                assert await pool.stub(Other).hello() == "hello"


async def test_serve_listeners() -> None:
    """`serve_listeners` serves what arrives at listeners of one's own, and closes them in the end."""
    listener = MemoryListener()
    async with trio.open_nursery() as nursery:
        server = await nursery.start(trio_rpc.serve_listeners, Echo(), [listener])
        async with trio_rpc.open_pool(listener.connect) as pool:
            await use(pool)
        await server.drain()
    with pytest.raises(ConnectError, match="nobody listens"):
        await listener.connect()


MEANT = [
    ("localhost:7000", "'localhost:7000' is no address: write tcp://host:port"),
    ("http://localhost:7000", "'http://localhost:7000' is no address"),
    ("tcp://localhost", "'tcp://localhost' has no valid port: write tcp://host:port with a port from [01] to 65535"),
    ("tcp://localhost:65536", "no valid port"),
    ("tcp://localhost:7000/path", "no valid port"),
    ("tls://localhost:x", "write tls://host:port"),
    ("unix://", "names no socket: write unix:///run/app.sock or unix:@name"),
    ("unix:@", "names no socket"),
]


@pytest.mark.parametrize(("address", "message"), MEANT)
async def test_addresses_that_cannot_be_meant(address: str, message: str) -> None:
    """Both sides tell at once what is wrong with an address and what to write, before anything is opened."""
    for opening in (trio_rpc.open_pool(address), trio_rpc.open_server(Echo(), address)):
        with pytest.raises(ValueError, match=message):
            async with opening:
                raise AssertionError("opened")


@pytest.mark.parametrize("address", [None, 7000, b"tcp://localhost:7000"])
async def test_addresses_that_are_no_text(address: Any) -> None:
    """Both sides name the kind of text that they want."""
    for opening in (trio_rpc.open_pool(address), trio_rpc.open_server(Echo(), address)):
        with pytest.raises(TypeError, match=r"an address is a text like 'tcp://127\.0\.0\.1:7000', not "):
            async with opening:
                raise AssertionError("opened")


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("tcp://127.0.0.1:{port}", "Connection refused"),
        ("unix://{folder}/none.sock", "No such file or directory"),
        ("unix://{folder}/file", "Connection refused"),
    ],
)
async def test_nobody_listens(address: str, reason: str, tmp_path: Path) -> None:
    """A call where nobody listens waits for `acquire_timeout`, then names the address and the system's reason, once."""
    (tmp_path / "file").touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        target = address.format(port=taken.getsockname()[1], folder=tmp_path)
        async with trio_rpc.open_pool(target, limits=PoolLimits(acquire_timeout=0.1)) as pool:
            with pytest.raises(trio_rpc.PoolTimeout) as caught:
                await pool.call("Echo.echo", 7)
    message = f"cannot connect to {target}: {reason}"
    assert str(caught.value) == f"no place on a connection within 0.1 s (acquire_timeout): {message}"
    assert str(caught.value.__cause__) == message
    assert not caught.value.may_have_run


async def test_an_address_in_use(tmp_path: Path) -> None:
    """A second server at one address gets an OSError that names it; the first one and the file are left alone."""
    for place in ("tcp://127.0.0.1:0", f"unix://{tmp_path}/app.sock"):
        async with trio_rpc.open_server(Echo(), place) as server:
            with pytest.raises(OSError, match=f"cannot listen on {server.addresses[0]}: Address already in use"):
                async with trio_rpc.open_server(Echo(), ["tcp://127.0.0.1:0", server.addresses[0]]):
                    raise AssertionError("opened")
            async with trio_rpc.open_pool(server.addresses[0]) as pool:
                await use(pool)


async def test_files_where_a_unix_socket_should_be(tmp_path: Path) -> None:
    """A socket file that a killed server left behind is replaced; a file of another kind stays, and is told of."""
    path = tmp_path / "app.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    async with (
        trio_rpc.open_server(Echo(), f"unix://{path}") as server,
        trio_rpc.open_pool(server.addresses[0]) as pool,
    ):
        await use(pool)
        assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("precious")
    with pytest.raises(OSError, match=f"cannot listen on unix://{path}: a file that is no socket is in its place"):
        async with trio_rpc.open_server(Echo(), f"unix://{path}"):
            raise AssertionError("opened")
    assert path.read_text() == "precious"


# -- TLS ---------------------------------------------------------------------------------------------------------------

AUTHORITY = trustme.CA()
STRANGER = trustme.CA()


def server_context(*names: str, mutual: bool = False) -> ssl.SSLContext:
    """A server's context, with a certificate for `names`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    AUTHORITY.issue_cert(*names or ("127.0.0.1", "localhost")).configure_cert(context)
    if mutual:
        context.verify_mode = ssl.CERT_REQUIRED
        AUTHORITY.configure_trust(context)
    return context


def client_context(trusting: trustme.CA = AUTHORITY, certified_by: trustme.CA | None = None) -> ssl.SSLContext:
    """A client's context."""
    context = ssl.create_default_context()
    trusting.configure_trust(context)
    if certified_by is not None:
        certified_by.issue_cert("client@example.org").configure_cert(context)
    return context


@pytest.mark.parametrize("place", ["tls://127.0.0.1:0", "tls://localhost:0"])
async def test_tls(place: str) -> None:
    """Calls pass over TLS; a certificate for the name that the server was given is enough."""
    context = server_context(place[6:].partition(":")[0])
    async with trio_rpc.open_server(Echo(), place, ssl_context=context) as server:
        for target in server.addresses:
            async with trio_rpc.open_pool(target, ssl_context=client_context()) as pool:
                await use(pool)
                address, principal, version, names = await pool.stub(Echo).who()
                assert (address[:6], principal, version[:3], names) == ("tls://", None, "TLS", None)


async def test_mutual_tls() -> None:
    """With CERT_REQUIRED a handler sees the client's certificate."""
    async with trio_rpc.open_server(Echo(), "tls://127.0.0.1:0", ssl_context=server_context(mutual=True)) as server:
        context = client_context(certified_by=AUTHORITY)
        async with trio_rpc.open_pool(server.addresses[0], ssl_context=context) as pool:
            await use(pool)
            assert (await pool.stub(Echo).who())[3] == [["email", "client@example.org"]]


@pytest.mark.parametrize(
    ("server_side", "client_side", "scheme", "reason"),
    [
        (server_context(mutual=True), client_context(), "tls", "the peer wants a certificate of this side"),
        (
            server_context(mutual=True),
            client_context(certified_by=STRANGER),
            "tls",
            "the peer does not trust the authority that signed our certificate",
        ),
        (
            server_context(),
            client_context(STRANGER),
            "tls",
            "is signed by an authority that is not trusted here: load that one into the ssl_context",
        ),
        (server_context(), None, "tls", "is signed by an authority that is not trusted here"),
        (
            server_context("elsewhere.example"),
            client_context(),
            "tls",
            "the peer's certificate is for another name, not for '127.0.0.1'",
        ),
        (server_context(), None, "tcp", "it speaks TLS: use that on both sides"),
        (None, client_context(), "tls", "the peer does not speak TLS: use it on both sides"),
    ],
    ids=[
        "no client certificate",
        "client certificate of a stranger",
        "server certificate of a stranger",
        "default authorities",
        "wrong host name",
        "plain client",
        "plain server",
    ],
)
async def test_tls_that_cannot_be(
    server_side: ssl.SSLContext | None, client_side: ssl.SSLContext | None, scheme: str, reason: str
) -> None:
    """X06, X07, Rule 12: each mismatch is one ConnectError at once, which names the address and what is wrong; the
    server serves on.
    """
    place = "tcp://127.0.0.1:0" if server_side is None else "tls://127.0.0.1:0"
    async with trio_rpc.open_server(Echo(), place, ssl_context=server_side) as server:
        target = f"{scheme}{server.addresses[0][3:]}"
        error = await refused(target, ssl_context=client_side)
        assert type(error) is ConnectError
        assert error.permanent
        assert target in str(error)
        assert reason in str(error)
        good = None if server_side is None else client_context(certified_by=AUTHORITY)
        if good is not None:
            good.check_hostname = False
        async with trio_rpc.open_pool(server.addresses[0], ssl_context=good) as pool:
            await use(pool)


SERVERS = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)


@pytest.mark.parametrize(
    ("opening", "message"),
    [
        (lambda tls: trio_rpc.open_pool("tcp://127.0.0.1:1", ssl_context=tls), "write tls://127.0.0.1:1"),
        (lambda tls: trio_rpc.open_pool(MemoryListener().connect, ssl_context=tls), "does its own TLS"),
        (lambda tls: trio_rpc.open_pool("tls://127.0.0.1:0", ssl_context=tls), "port 0, which is for listening"),
        (lambda _: trio_rpc.open_server(Echo(), "tcp://127.0.0.1:0", ssl_context=SERVERS), "do not go together"),
        (lambda _: trio_rpc.open_server(Echo(), "tls://127.0.0.1:0"), "tls:// needs an ssl_context"),
    ],
)
async def test_addresses_and_contexts_that_do_not_fit(opening: Callable[[ssl.SSLContext], Any], message: str) -> None:
    """An address and an ssl_context that contradict each other are a ValueError before anything is opened."""
    with pytest.raises(ValueError, match=message):
        async with opening(ssl.create_default_context()):
            raise AssertionError("opened")


# -- any stream --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
async def test_one_stream(secure: bool) -> None:
    """`serve_stream` and `open_connection` serve and call over one stream, and end with it."""
    ours: trio.abc.Stream
    theirs: trio.abc.Stream
    ours, theirs = memory_pipe()
    if secure:
        ours = trio.SSLStream(ours, client_context(), server_hostname="localhost")
        theirs = trio.SSLStream(theirs, server_context(), server_side=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio_rpc.serve_stream, Echo(), theirs)
        async with trio_rpc.open_connection(ours) as connection:
            await use(connection)
            assert ((await connection.stub(Echo).who())[2] is not None) == secure


async def test_a_cancelled_serve_stream_tells_its_callers() -> None:
    """The handlers are cancelled and joined, and their callers told, before the stream is closed."""
    ours, theirs = memory_pipe()
    ended: list[bool] = []

    class Sleeper:
        @trio_rpc.method
        async def sleep(self) -> None:
            serving.cancel()
            try:
                await trio.sleep_forever()
            finally:
                ended.append(True)

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as serving:

            async def call() -> None:
                async with trio_rpc.open_connection(ours) as connection:
                    with pytest.raises(trio_rpc.RemoteCancelled) as caught:
                        await connection.stub(Sleeper).sleep()
                assert (caught.value.may_have_run, ended) == (True, [True])

            nursery.start_soon(call)
            await trio_rpc.serve_stream(Sleeper(), theirs)


async def test_a_subprocess() -> None:
    """A subprocess is served on its standard input and output, and ends when the connection does."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-W", "error", str(HERE / "process_pipes.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        async with trio_rpc.open_connection(trio.StapledStream(process.stdin, process.stdout)) as connection:
            with trio.fail_after(SOON):
                assert await connection.call("Echo.echo", 7) == 7
        with trio.fail_after(SOON):
            assert await process.wait() == 0
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def test_a_stream_that_speaks_something_else() -> None:
    """`open_connection` raises at its entrance when the other end does not answer as it should."""
    ours, theirs = memory_pipe()
    await theirs.send_all(b"220 mail.example.org ESMTP\r\n")
    with pytest.raises(ConnectError, match=r"does not speak trio_rpc: it began with b'220 mail"):
        async with trio_rpc.open_connection(ours):
            raise AssertionError("opened")


async def test_a_connection_that_has_ended() -> None:
    """With `open_connection` there is nothing to dial again: calls after its end fail at once."""
    ours, theirs = memory_pipe()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio_rpc.serve_stream, Echo(), theirs)
        async with trio_rpc.open_connection(ours) as connection:
            await use(connection)
            await theirs.aclose()
            with (
                trio.fail_after(SOON),
                pytest.raises(ConnectError, match="the one stream of this connection has ended"),
            ):
                await connection.call("Echo.echo", 7)


# -- both directions ---------------------------------------------------------------------------------------------------


class Progress:
    """What a client offers: a callback that may call the server again."""

    def __init__(self) -> None:
        self.pool: trio_rpc.Pool | None = None
        self.told: list[int] = []

    @method
    async def tell(self, percent: int) -> str:
        self.told.append(percent)
        return f"told {percent}"

    @method
    async def deeper(self, levels: int) -> int:
        assert self.pool is not None
        return 1 + await self.pool.stub(Worker).nest(levels - 1) if levels else 0


class Worker:
    @method
    async def work(self, steps: int) -> list[str]:
        progress = current_call().peer.stub(Progress)
        return [await progress.tell(100 * step // steps) for step in range(1, steps + 1)]

    @method
    async def nest(self, levels: int) -> int:
        peer = current_call().peer
        return 1 + await peer.stub(Progress).deeper(levels - 1) if levels else 0


@pytest.mark.parametrize("codec", ["msgpack", "json"])
async def test_callbacks(codec: str) -> None:
    """A handler calls its caller back over the same connection, and that one calls it, to any depth."""
    progress = Progress()
    async with (
        trio_rpc.open_server(Worker(), "tcp://127.0.0.1:0") as server,
        trio_rpc.open_pool(server.addresses[0], services=[progress], codec=codec) as progress.pool,
    ):
        worker = progress.pool.stub(Worker)
        with trio.fail_after(SOON):
            assert await worker.work(4) == ["told 25", "told 50", "told 75", "told 100"]
            assert await worker.nest(9) == 9
        assert progress.told == [25, 50, 75, 100]
        assert server.statistics().connections == 1


async def test_a_callback_that_the_client_does_not_offer() -> None:
    """It is Unimplemented at the handler, and a plain failure of the handler at the client."""
    async with open_loopback(Worker()) as pool:
        with pytest.raises(trio_rpc.RemoteError) as caught:
            await pool.stub(Worker).work(1)
        assert caught.value.may_have_run


# -- who may connect, and call -----------------------------------------------------------------------------------------


async def principal_of(credentials: Mapping[str, Any], origin: trio_rpc.Origin) -> str:
    """The server's `authenticate`."""
    await trio.lowlevel.checkpoint()
    if credentials.get("token") != "sesame":
        raise Unauthenticated(f"no such token: {credentials.get('token')!r}")
    return "ali baba"


async def fetched() -> str:
    """Credentials that have to be waited for."""
    await trio.lowlevel.checkpoint()
    return "sesame"


@pytest.mark.parametrize(
    "credentials", ["sesame", {"token": "sesame"}, lambda: "sesame", lambda: {"token": "sesame"}, fetched]
)
async def test_credentials(credentials: Any) -> None:
    """A text, a mapping, or a function of these, async or not; the handler sees the principal."""
    async with (
        trio_rpc.open_server(Echo(), "tcp://127.0.0.1:0", authenticate=principal_of) as server,
        trio_rpc.open_pool(server.addresses[0], credentials=credentials) as pool,
    ):
        assert (await pool.stub(Echo).who())[1] == "ali baba"


@pytest.mark.parametrize("credentials", [None, "open", {"user": "ali"}, lambda: None])
async def test_credentials_that_are_refused(credentials: Any) -> None:
    """X01: they are Unauthenticated at once, with the server's reason; nothing ran, and others are served."""
    async with trio_rpc.open_server(Echo(), "tcp://127.0.0.1:0", authenticate=principal_of) as server:
        error = await refused(server.addresses[0], credentials=credentials)
        assert type(error) is Unauthenticated
        assert "no such token" in str(error)
        assert server.addresses[0] in str(error)
        async with trio_rpc.open_pool(server.addresses[0], credentials="sesame") as pool:
            await use(pool)


@pytest.mark.parametrize(
    ("credentials", "kind", "message"),
    [
        (7, TypeError, "credentials must be a text, a mapping, or a function that returns one of these, not int"),
        ({"token": b"x"}, trio_rpc.LocalProtocolError, "plain JSON values"),
        ("x" * 20_000, trio_rpc.LocalProtocolError, "more than the 16384 that a peer accepts"),
    ],
)
async def test_credentials_that_cannot_be_sent(credentials: Any, kind: type[Exception], message: str) -> None:
    """They are told at `open_pool`; what a function returned, at the call."""
    with pytest.raises(kind, match=message):
        async with trio_rpc.open_pool("tcp://127.0.0.1:1", credentials=credentials):
            raise AssertionError("opened")
    async with trio_rpc.open_server(Echo(), "tcp://127.0.0.1:0") as server:
        error = await refused(server.addresses[0], credentials=lambda: credentials)
    assert type(error) is ConnectError
    assert message in str(error)


async def test_an_authenticate_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """P13: what it raises stays in the server's log; the client learns that its credentials could not be checked."""

    def broken(credentials: Mapping[str, Any], origin: trio_rpc.Origin) -> str:
        raise LookupError("the user database is away")

    async with trio_rpc.open_server(Echo(), "tcp://127.0.0.1:0", authenticate=broken) as server:
        error = await refused(server.addresses[0], credentials="sesame")
    assert type(error) is Unauthenticated
    assert "could not be checked" in str(error)
    assert "database" not in str(error)
    assert "the user database is away" in caplog.text


async def test_an_authorize_that_would_have_to_be_awaited() -> None:
    """Its coroutine is no yes: an async function is refused at once, and what hides one lets nobody in."""

    async def authorize(_peer: object, _method: str) -> bool:
        return True

    def hidden(peer: object, method: str) -> Any:
        coroutines.append(authorize(peer, method))
        return coroutines[-1]

    coroutines: list[Any] = []
    with pytest.raises(TypeError, match=r"authorize is asked before each call.*write a plain function"):
        async with open_loopback(Echo(), authorize=authorize):
            raise AssertionError("opened")
    async with open_loopback(Echo(), authorize=hidden) as pool:
        with pytest.raises(trio_rpc.Refused, match="internal error before the handler was entered"):
            await pool.stub(Echo).echo(1)
    coroutines.pop().close()


async def test_authorize() -> None:
    """X08: a method that this principal may not call is PermissionDenied, by name and not run; others pass."""

    def may_call(peer: trio_rpc.Peer, name: str) -> bool:
        return name == "Echo.echo" and peer.principal == "ali baba"

    async with open_loopback(Echo(), authenticate=principal_of, authorize=may_call, credentials="sesame") as pool:
        assert await pool.stub(Echo).echo(7) == 7
        with pytest.raises(PermissionDenied, match=r"not allowed to call Echo\.who") as caught:
            await pool.stub(Echo).who()
        assert not caught.value.may_have_run


@pytest.mark.parametrize(
    ("options", "opens"),
    [
        ({}, False),
        ({"allow_insecure": True}, True),
        ({"authenticate": principal_of}, True),
        ({"ssl_context": server_context()}, True),
    ],
    ids=["nothing", "allow_insecure", "authenticate", "TLS"],
)
async def test_beyond_this_machine(options: dict[str, Any], opens: bool) -> None:
    """X14: an address that other machines reach needs TLS, authentication or an explicit word."""
    place = "tls://0.0.0.0:0" if "ssl_context" in options else "tcp://0.0.0.0:0"
    opening = trio_rpc.open_server(Echo(), place, **options)
    if opens:
        async with opening as server:
            assert server.addresses
    else:
        with pytest.raises(ValueError, match="can be reached from other machines without TLS or authentication"):
            async with opening:
                raise AssertionError("opened")


# -- what a peer can do to a server ------------------------------------------------------------------------------------


async def reset(stream: trio.SocketStream) -> None:
    """End with RST."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await stream.aclose()


async def junk(stream: trio.SocketStream) -> None:
    """Say what is no protocol at all."""
    await stream.send_all(bytes(range(256)) * 64)


async def silence(stream: trio.SocketStream) -> None:
    """Say nothing."""
    await trio.lowlevel.checkpoint()


async def half_a_preface(stream: trio.SocketStream) -> None:
    """Stop in the middle of the first word."""
    await stream.send_all(trio_rpc.wire.PREFACE[:4])
    await stream.send_eof()


async def hello_and_reset(stream: trio.SocketStream) -> None:
    """Become a connection, then end with RST."""
    protocol = trio_rpc.wire.Protocol(trio_rpc.wire.Role.DIALLER, trio_rpc.wire.Hello())
    await stream.send_all(protocol.greeting())
    await stream.receive_some()
    await reset(stream)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("behaviour", [reset, junk, silence, half_a_preface, hello_and_reset])
async def test_peers_that_misbehave(
    behaviour: Callable[[trio.SocketStream], Any], secure: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Rule 1: no peer ends the server or disturbs a call in flight, and none costs it more than its own connection."""
    place, context = ("tls://127.0.0.1:0", server_context()) if secure else ("tcp://127.0.0.1:0", None)
    caplog.set_level(logging.ERROR)
    async with (
        trio_rpc.open_server(Echo(), place, ssl_context=context) as server,
        trio_rpc.open_pool(server.addresses[0], ssl_context=client_context() if secure else None) as pool,
        pool.stub(Echo).count(10_000) as numbers,
    ):
        assert await numbers.receive() == 0
        for _ in range(10):
            stream = await trio.open_tcp_stream("127.0.0.1", int(server.addresses[0].rpartition(":")[2]))
            if not (secure and behaviour is hello_and_reset):
                await behaviour(stream)
            await stream.aclose()
        assert [number async for number in numbers] == list(range(1, 10_000))
        with trio.fail_after(SOON):
            while server.statistics().connections > 1 or server.statistics().handshaking:  # noqa: ASYNC110 - no event
                await trio.sleep(0.01)
        assert server.statistics().accepted == 11
    assert caplog.records == []
