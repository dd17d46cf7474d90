"""Accepting on a bad day: what an error means, who waits when there is no room, and what the kernel tells of its queue.

In memory and in virtual time wherever that will do; descriptors, system calls and listen queues on real sockets.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import resource
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from trio.testing import MockClock, wait_all_tasks_blocked

import trio_rpc
from tests.faults.scarcity import Unavailable, failing, memory_limit, open_serving
from tests.guarantees.kit import Lab, RawClient
from trio_rpc import ConnectError, Heartbeat, Overloaded, PoolLimits, Server, ServerLimits, open_pool, open_server
from trio_rpc._address import Address
from trio_rpc._listening import listen
from trio_rpc._room import Room
from trio_rpc.testing import MemoryListener, no_leaks
from trio_rpc.wire import GoAwayReceived, Hello, PingReceived, ResponseReceived

QUIET = Heartbeat(interval=None)
PATIENCE = 30.0
"""Real seconds for what takes one or two."""
AUTHORITY = trustme.CA()


class Flawed(MemoryListener):
    """A user's own listener, whose next accepts fail, with what is in `failures`."""

    def __init__(self, *failures: Exception) -> None:
        super().__init__()
        self.failures = list(failures)
        self.tries = 0
        self.closed = False

    async def accept(self) -> trio.abc.Stream:
        self.tries += 1
        if self.failures:
            raise self.failures.pop(0)
        return await super().accept()

    async def aclose(self) -> None:
        self.closed = True
        await super().aclose()


class Broken(Flawed):
    """One whose accepts all fail, from the moment on that it is broken."""

    def __init__(self, failure: Exception) -> None:
        super().__init__()
        self.failure = failure
        self.broken = trio.Event()

    async def accept(self) -> trio.abc.Stream:
        if not self.broken.is_set():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cancel_when_broken, nursery.cancel_scope)
                stream = await super().accept()
                nursery.cancel_scope.cancel()
                return stream
        self.tries += 1
        raise self.failure

    async def _cancel_when_broken(self, scope: trio.CancelScope) -> None:
        await self.broken.wait()
        scope.cancel()


def failure(number: int) -> Exception:
    """As a system call fails."""
    return OSError(number, os.strerror(number))


async def client_of(listener: MemoryListener, name: str = "") -> RawClient:
    """A connection that is played by hand, after its HELLO."""
    client = RawClient(await listener.connect(), Hello(credentials={"name": name}))
    await client.greet()
    return client


async def is_served(client: RawClient) -> bool:
    """Whether it is answered."""
    await client.send(client.request("Lab.echo", 1))
    return isinstance(await client.event(), ResponseReceived)


async def until(condition: Callable[[], object], patience: float = PATIENCE) -> None:
    """Wait, in real time, for what has no event."""
    with trio.fail_after(patience):
        while not condition():  # noqa: ASYNC110 - there is no event
            await trio.sleep(0.01)


# -- what an error means -------------------------------------------------------------------------------------------

CONNECTIONS_OWN = ["ECONNABORTED", "EPERM", "EPROTO", "ENETDOWN", "ENETUNREACH", "EHOSTUNREACH", "EHOSTDOWN"]
CONNECTIONS_OWN += ["ENOPROTOOPT", "ETIMEDOUT", "ECONNRESET", "EINTR"]
SHORTAGES = ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"]
UNEXPECTED = ["EINVAL", "EBADF", "EIO", "EFAULT"]
STRANGE = [ValueError("a bug"), trio.BrokenResourceError("broken"), ExceptionGroup("some", [OSError(5, "x")])]
BACKOFF = {1: 0.01, 2: 0.03, 3: 0.07, 8: 1.27 + 1, 9: 1.27 + 2}
"""So many pauses take so long: 10 ms, doubled each time, up to a second."""


@pytest.fixture(autouse=True)
def tracebacks_are_let_go() -> Iterator[None]:
    """What is raised in several tests keeps nothing of the earlier ones."""
    yield
    for exc in STRANGE:
        exc.__traceback__ = exc.__context__ = None


@pytest.mark.parametrize("name", CONNECTIONS_OWN)
@pytest.mark.parametrize(("count", "pauses"), [(1, 0), (10, 0), (11, 1), (12, 2), (19, 9)])
async def test_a_connections_own_trouble(autojump_clock: MockClock, name: str, count: int, pauses: int) -> None:
    """R02: who is gone before he is accepted delays nobody, unless it is one after the other."""
    listener = Flawed(*[failure(getattr(errno, name))] * count)
    async with open_server(Lab(), listener) as server:
        assert await is_served(await client_of(listener))
        assert trio.current_time() == pytest.approx(BACKOFF.get(pauses, 0))
        assert server.statistics().accept_errors == count


@pytest.mark.parametrize("exc", [*map(failure, map(errno.__dict__.__getitem__, SHORTAGES)), MemoryError()], ids=repr)
@pytest.mark.parametrize("count", BACKOFF)
async def test_a_shortage_makes_accepting_rest(autojump_clock: MockClock, exc: Exception, count: int) -> None:
    """R01, R02: out of something, accepting rests for 10 ms to a second, and goes on as soon as there is some."""
    listener = Flawed(*[exc] * count)
    async with open_server(Lab(), listener) as server:
        assert await is_served(await client_of(listener))
        assert trio.current_time() == pytest.approx(BACKOFF[count])
        assert server.statistics().accept_errors == count


@pytest.mark.parametrize("exc", [*map(failure, map(errno.__dict__.__getitem__, SHORTAGES)), MemoryError()], ids=repr)
async def test_a_shortage_can_last(autojump_clock: MockClock, exc: Exception) -> None:
    """R01: a shortage ends no server, however long it lasts; at one try a second."""
    listener = Flawed(*[exc] * 1000)
    async with open_server(Lab(), listener):
        assert await is_served(await client_of(listener))
        assert trio.current_time() == pytest.approx(1.27 + 993)


@pytest.mark.parametrize("exc", [*map(failure, map(errno.__dict__.__getitem__, UNEXPECTED)), *STRANGE], ids=repr)
@pytest.mark.parametrize("count", BACKOFF)
async def test_what_is_not_expected_is_tried_again(autojump_clock: MockClock, exc: Exception, count: int) -> None:
    """R02, Rule 1: an error that no accept should have, of a system call or a user's listener, ends nothing at once."""
    listener = Flawed(*[exc] * count)
    async with open_server(Lab(), listener) as server:
        assert await is_served(await client_of(listener))
        assert trio.current_time() == pytest.approx(BACKOFF[count])
        assert server.statistics().accept_errors == count


@pytest.mark.parametrize("exc", [failure(errno.EINVAL), *STRANGE], ids=repr)
async def test_ten_in_a_row_and_no_way_to_open_it_anew(
    autojump_clock: MockClock, exc: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """R02: a user's listener that goes on failing ends the server with the error itself; it is never half dead."""
    good, bad = Flawed(), Flawed(*[exc] * 10)
    with pytest.raises(type(exc)) as caught:
        await trio_rpc.serve_listeners(Lab(), [good, bad])
    assert caught.value is exc
    assert (bad.tries, good.closed, bad.closed) == (10, True, True)
    assert trio.current_time() == pytest.approx(1.27 + 2)
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]


async def test_a_success_in_between_is_a_new_beginning(autojump_clock: MockClock) -> None:
    """R02: only failures in a row count: nine, a connection, and nine more end no server."""
    listener = Flawed(*[failure(errno.EIO)] * 9)
    async with open_server(Lab(), listener):
        assert await is_served(await client_of(listener))
        listener.failures = [failure(errno.EIO)] * 9
        assert await is_served(await client_of(listener))  # Accepted before; behind it, nine fail.
        assert await is_served(await client_of(listener))
        assert trio.current_time() == pytest.approx(2 * (1.27 + 2))


async def test_what_was_begun_is_finished_when_accepting_is_beyond_hope(autojump_clock: MockClock) -> None:
    """R02: a server that cannot accept any more finishes its calls; then its block is cancelled, loudly."""
    lab, bad, cancelled_at = Lab(), Broken(failure(errno.EINVAL)), 0.0
    answers: list[str] = []

    async def call(pool: trio_rpc.Pool) -> None:
        answers.append(await pool.stub(Lab).sleep(8))

    async with open_pool(bad.connect, heartbeat=QUIET) as pool, trio.open_nursery() as nursery:
        with pytest.raises(OSError, match="Invalid argument"):
            async with open_server(lab, bad, heartbeat=QUIET):
                nursery.start_soon(call, pool)
                await trio.sleep(1)
                bad.broken.set()
                try:
                    await trio.sleep(100)
                finally:
                    cancelled_at = trio.current_time()
        assert answers == ["slept"]
        assert cancelled_at == pytest.approx(8)
    assert lab.words == ["ended"]


async def test_an_endless_run_is_no_spin(autojump_clock: MockClock) -> None:
    """R02: whatever fails for ever is tried once a second, and other tasks run meanwhile."""
    for number in (errno.ECONNABORTED, errno.EMFILE):
        listener, start = Flawed(*[failure(number)] * 1000), trio.current_time()
        async with open_server(Lab(), listener):
            await trio.sleep(100)
        assert listener.tries <= 10 + 7 + 100
        assert trio.current_time() == start + 100


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ECONNABORTED])
async def test_few_lines_tell_of_it(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, number: int) -> None:
    """R01, R21: at most one line in five seconds says that accepting fails, and how often it has."""
    caplog.set_level(logging.INFO)
    listener = Flawed(*[failure(number)] * 1000)
    async with open_server(Lab(), listener):
        await trio.sleep(100)
    times = [record.message for record in caplog.records]
    assert 15 <= len(times) <= 20
    assert all("accept failed at" in line and os.strerror(number) in line for line in times)


async def test_who_leaves_ends_the_rest(autojump_clock: MockClock) -> None:
    """R01: a connection that ends gives back what was short, so that accepting is tried again at once."""
    listener = Flawed()
    async with open_server(Lab(), listener):
        client = await client_of(listener)
        listener.failures = [failure(errno.EMFILE)] * 1000
        await listener.connect()  # Accepted already; behind it all fail.
        await trio.sleep(6.5)
        tries = listener.tries
        await client.stream.aclose()
        await wait_all_tasks_blocked()
        assert (listener.tries, trio.current_time()) == (tries + 1, 6.5)


@pytest.mark.parametrize("signal", [KeyboardInterrupt, SystemExit])
async def test_a_programs_end_is_not_swallowed(signal: type[BaseException]) -> None:
    """R02: Ctrl-C in a user's listener is the program's, and no failed accept."""

    class Interrupted(Flawed):
        async def accept(self) -> trio.abc.Stream:
            raise signal

    with pytest.raises(BaseExceptionGroup) as caught:
        await trio_rpc.serve_listeners(Lab(), [Interrupted()])
    assert caught.value.split(signal)[1] is None


async def test_a_listener_that_its_owner_closes(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """Who closes his own listener is served on at the others, and the log says that there is one less."""

    class Closable(Flawed):
        async def accept(self) -> trio.abc.Stream:
            raise trio.ClosedResourceError

    good = MemoryListener()
    async with open_server(Lab(), [Closable(), good]):
        assert await is_served(await client_of(good))
    [record] = caplog.records
    assert "was closed by somebody else" in record.message


# -- opened anew ---------------------------------------------------------------------------------------------------


def descriptors() -> Iterator[tuple[int, str]]:
    """This process's open descriptors, and what each is."""
    for name in os.listdir("/proc/self/fd"):
        try:
            yield int(name), os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue


def listening(address: str) -> socket.socket:
    """Another handle on the listening socket at an address, as who has got hold of it by mistake."""
    for number, what in descriptors():
        if what.startswith("socket:"):
            sock = socket.socket(fileno=os.dup(number))
            name = sock.getsockname()
            if isinstance(name, bytes):
                name = name.decode().replace("\0", "@")
            told = str(Address("tcp", *name[:2])) if isinstance(name, tuple) else name
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and told and address.endswith(told):
                return sock
            sock.close()
    raise AssertionError(f"nobody listens at {address}")


@pytest.fixture
def quick_clock() -> MockClock:
    """Real time, ten times as fast."""
    return MockClock(rate=10)


@pytest.mark.parametrize("place", ["tcp://127.0.0.1:0", "tcp://[::1]:0", "unix://{}", "unix:@trio-rpc-test-{}"])
async def test_a_listening_socket_that_breaks_is_opened_anew(
    quick_clock: MockClock, place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """R02: after ten failures a listener of ours listens at the same address again; who is inside notices nothing."""
    path = tmp_path / "s"
    place = place.format(path if "://" in place else os.getpid())
    try:
        async with (
            no_leaks(),
            open_server(Lab(), place, heartbeat=QUIET) as server,
            open_pool(server.addresses[0]) as pool,
        ):
            assert await pool.stub(Lab).echo(1) == 1
            for errors in (10, 20):
                with listening(server.addresses[0]) as handle:
                    handle.shutdown(socket.SHUT_RDWR)
                await until(lambda: server.statistics().accept_errors >= errors, 10 * PATIENCE)  # noqa: B023
                async with open_pool(server.addresses[0], limits=PoolLimits(connect_timeout=None)) as late:
                    with trio.fail_after(10 * PATIENCE):
                        assert await late.stub(Lab).echo(2) == 2
                assert await pool.stub(Lab).echo(3) == 3
                assert (pool.statistics().connects, server.statistics().accept_errors) == (1, errors)
            if place.startswith("unix:///"):
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
    except OSError as exc:
        if "::1" in place and not caplog.records:
            pytest.skip(f"no IPv6 here: {exc}")
        raise
    assert not path.exists()
    lines = [record.message for record in caplog.records]
    assert (2 <= len(lines) <= 4, "opened anew" in lines[-1]) == (True, True), lines


async def test_a_port_that_another_one_has_taken(quick_clock: MockClock) -> None:
    """R02: if the address cannot be had again, the server finishes what it has, and ends with that very error."""
    with pytest.raises(
        OSError, match=r"cannot listen on tcp://127\.0\.0\.1:\d+ again: Address already in use"
    ) as caught:
        async with open_server(Lab(), "tcp://127.0.0.1:0", heartbeat=QUIET) as server:
            async with open_pool(server.addresses[0]) as pool:
                assert await pool.stub(Lab).echo(1) == 1
                with listening(server.addresses[0]) as handle, socket.socket() as thief:
                    name = handle.getsockname()
                    handle.shutdown(socket.SHUT_RDWR)
                    thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    thief.bind(name)
                    thief.listen()
                    assert await pool.stub(Lab).sleep(5) == "slept"
                    await trio.sleep(10 * PATIENCE)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EINVAL


async def test_a_socket_that_fails_for_ever(quick_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """R02: ten failures, the same ten times after it was opened anew, and the server ends with the error."""
    tries = 0

    def accept(_sock: socket.socket) -> Any:
        nonlocal tries
        tries += 1
        raise failure(errno.EIO)

    monkeypatch.setattr(socket.socket, "accept", accept)
    with pytest.raises(OSError, match="Input/output error"):
        async with open_server(Lab(), "tcp://127.0.0.1:0") as server:
            while True:
                with contextlib.suppress(OSError):
                    host, port = "127.0.0.1", int(server.addresses[0].rpartition(":")[2])
                    async with await trio.open_tcp_stream(host, port):
                        await trio.sleep(10)
    assert tries == 20


async def reachable(address: Address) -> bool:
    """Whether somebody listens there."""
    stream: trio.SocketStream
    try:
        if address.scheme == "unix":
            stream = await trio.open_unix_socket(address.path)
        else:
            stream = await trio.open_tcp_stream(address.host, address.port)
    except OSError:
        return False
    await stream.aclose()
    return True


@pytest.mark.parametrize("place", ["tcp://127.0.0.1:0", "unix://{}/s"])
async def test_opened_anew_at_the_same_place(place: str, tmp_path: Path) -> None:
    """R02: a whole listener can be replaced as well, with its port or file; and it goes on accepting."""
    [listener] = await listen(Address.parse(place.format(tmp_path)), 7)
    before, address = listener.socket, listener.address
    listener.reopen()
    assert (listener.socket is before, before.fileno(), listener.address) == (False, -1, address)
    assert await reachable(address)
    with trio.fail_after(PATIENCE):
        await (await listener.accept()).aclose()
    if listener.queue() is not None:
        assert listener.queue() == (0, 7)
    await listener.aclose()
    assert not await reachable(address)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("place", ["tcp://127.0.0.1:0", "unix://{}/s"])
async def test_an_address_that_is_another_ones_by_now(place: str, tmp_path: Path) -> None:
    """R02: where somebody else listens by now, it fails, and what is his stays."""
    [listener] = await listen(Address.parse(place.format(tmp_path)), 7)
    listener.socket.close()
    [other] = await listen(listener.address, 7)
    with pytest.raises(OSError, match=f"cannot listen on {listener.address} again: Address already in use"):
        listener.reopen()
    await listener.aclose()
    assert await reachable(other.address)
    await other.aclose()


async def test_descriptors_that_are_others_by_now_are_left_alone(tmp_path: Path) -> None:
    """R02: who closes our descriptor by mistake may be given its number for a file, which we then do not close."""
    [listener] = await listen(Address.parse("tcp://127.0.0.1:0"), 7)
    number = listener.socket.fileno()
    with (tmp_path / "precious").open("w") as file:
        os.dup2(file.fileno(), number)
        await listener.aclose()
        assert os.fstat(number).st_ino == os.fstat(file.fileno()).st_ino
        os.close(number)


# -- room ------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def a_server(listeners: int = 1, **limits: Any) -> AsyncIterator[tuple[Server, list[MemoryListener]]]:
    """One in memory, whose clients are played by hand."""
    places = [MemoryListener() for _ in range(listeners)]
    async with open_server(Lab(), places, limits=ServerLimits(**limits), heartbeat=QUIET) as server:
        yield server, places


@pytest.mark.parametrize("before", [False, True], ids=["with HELLO", "without"])
@pytest.mark.parametrize("limit", [1, 3])
async def test_one_connection_more_than_there_is_room_for(autojump_clock: MockClock, limit: int, before: bool) -> None:
    """N-1, N, N+1 of max_connections, strangers counted: one more waits to be accepted until another one has ended."""
    async with a_server(max_connections=limit, handshake_timeout=100) as (server, [place]):
        assert server.statistics().max_connections == limit
        clients = []
        for count in range(1, limit + 1):
            clients.append(RawClient(await place.connect()) if before else await client_of(place))
            await wait_all_tasks_blocked()
            stats = server.statistics()
            assert (stats.connections + stats.handshaking, stats.accepted) == (count, count)
        more = RawClient(await place.connect())
        with trio.move_on_after(50) as scope:
            await more.greet()
        assert (scope.cancelled_caught, server.statistics().accepted) == (True, limit)
        await clients[0].stream.aclose()
        await more.event()
        assert await is_served(more)
        assert (server.statistics().accepted, trio.current_time()) == (limit + 1, 50)


@pytest.mark.parametrize("limit", [1, 3])
async def test_one_stranger_more_than_are_borne(autojump_clock: MockClock, limit: int) -> None:
    """R06, N-1, N, N+1 of max_handshaking: one more waits to be accepted until another one is known, or gone."""
    async with a_server(max_handshaking=limit, handshake_timeout=5) as (server, [place]):
        friend = await client_of(place)
        strangers = []
        for count in range(1, limit + 2):
            strangers.append(RawClient(await place.connect()))
            await wait_all_tasks_blocked()
            assert server.statistics().handshaking == min(count, limit)
        assert await is_served(friend)
        await strangers[0].greet()
        await wait_all_tasks_blocked()
        assert (server.statistics().connections, server.statistics().handshaking) == (2, limit)
        await strangers[-1].greet()
        assert trio.current_time() == 0


async def test_listeners_share_the_room_exactly(autojump_clock: MockClock) -> None:
    """However many listeners wait at once, never one more than max_connections is inside."""
    most, clients = 0, 12
    async with a_server(4, max_connections=2) as (server, places), trio.open_nursery() as nursery:

        async def visit(place: MemoryListener) -> None:
            nonlocal most, clients
            client = await client_of(place)
            stats = server.statistics()
            most = max(most, stats.connections + stats.handshaking)
            await trio.sleep(1)
            await client.stream.aclose()
            clients -= 1

        await wait_all_tasks_blocked()
        for number in range(clients):
            nursery.start_soon(visit, places[number % 4])
    assert (most, clients, trio.current_time()) == (2, 0, 6)


async def test_listeners_take_turns(autojump_clock: MockClock) -> None:
    """A crowd at one listener does not keep out who comes by another one: where room is scarce, it goes round."""
    order: list[str] = []
    async with a_server(2, max_connections=1) as (_, [crowded, quiet]), trio.open_nursery() as nursery:

        async def visit(place: MemoryListener, name: str) -> None:
            client = await client_of(place)
            order.append(name)
            await trio.sleep(1)
            await client.stream.aclose()

        for number in range(20):
            nursery.start_soon(visit, crowded, f"crowd {number}")
        await trio.sleep(5.5)
        nursery.start_soon(visit, quiet, "late")
    assert order.index("late") <= 5 + 3, order


async def test_a_leaver_in_line_passes_it_on(autojump_clock: MockClock) -> None:
    """Who is gone before his turn holds up nobody."""
    async with a_server(3, max_connections=1) as (server, places):
        await wait_all_tasks_blocked()  # All three listeners accept, as there is room.
        first, second, third = [RawClient(await place.connect()) for place in places]
        await wait_all_tasks_blocked()
        assert server.statistics().handshaking == 1
        for client in (second, third):
            await client.stream.send_all(client.protocol.greeting())
        await first.stream.aclose()
        await second.stream.aclose()
        await third.event()
        assert await is_served(third)
        assert trio.current_time() == 0


@pytest.mark.parametrize("round_", range(8))
async def test_who_came_first_enters_first(round_: int) -> None:
    """Two places that are free at once go to the two who have waited for longest, whoever runs first."""
    room, entered = Room(ServerLimits(max_connections=2)), list[int]()
    inside = [room.enter(), room.enter()]

    async def wait(number: int) -> None:
        await room.wait_turn()
        entered.append(number)
        inside.append(room.enter())

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(wait, number)
            await wait_all_tasks_blocked()
        for most in (2, 4, 6):
            inside.pop(0).end()
            inside.pop(0).end()
            if most == 2:
                nursery.start_soon(wait, 6)  # Comes when there is room, and before those who wait have run.
            await wait_all_tasks_blocked()
            assert entered == list(range(most))
        inside.pop(0).end()
    assert entered == list(range(7))


async def test_who_gives_up_in_line_passes_it_on() -> None:
    """A place that is free when the first in line gives up goes to the next."""
    room, entered = Room(ServerLimits(max_connections=1)), list[str]()
    inside = room.enter()

    async def wait(name: str, scope: trio.CancelScope) -> None:
        with scope:
            await room.wait_turn()
            entered.append(name)

    scopes = [trio.CancelScope(), trio.CancelScope()]
    async with trio.open_nursery() as nursery:
        for name, scope in zip(("first", "second"), scopes, strict=True):
            nursery.start_soon(wait, name, scope)
            await wait_all_tasks_blocked()
        scopes[0].cancel()
        inside.end()
    assert entered == ["second"]


@pytest.mark.parametrize("round_", range(8))
async def test_while_one_waits_for_room_the_others_rest(autojump_clock: MockClock, round_: int) -> None:
    """No listener accepts while there is no room for whom it would accept: they wait in the kernel, not here."""
    crowded, quiet = Flawed(), Flawed()
    async with open_server(Lab(), [crowded, quiet], limits=ServerLimits(max_connections=1), heartbeat=QUIET):
        await wait_all_tasks_blocked()
        first, second = await client_of(crowded), RawClient(await quiet.connect())
        for _ in range(3):
            await crowded.connect()
        await wait_all_tasks_blocked()
        assert (crowded.tries, quiet.tries) == (1, 1)
        await first.stream.aclose()
        await second.greet()
        await wait_all_tasks_blocked()
        assert (crowded.tries, quiet.tries) == (1, 1)


# -- one client, many connections -----------------------------------------------------------------------------------


def by_name(credentials: Mapping[str, Any], _origin: object) -> Any:
    """An authentication that believes everybody."""
    return credentials["name"]


@asynccontextmanager
async def a_guarded_server(most: int | None, **options: Any) -> AsyncIterator[tuple[Server, MemoryListener]]:
    """One that asks for names."""
    place, limits = MemoryListener(), ServerLimits(max_connections_per_principal=most)
    options = {"authenticate": by_name, "heartbeat": QUIET, **options}
    async with open_server(Lab(), place, limits=limits, **options) as server:
        yield server, place


@pytest.mark.parametrize("limit", [1, 3])
async def test_one_connection_more_than_a_principal_may_have(autojump_clock: MockClock, limit: int) -> None:
    """N-1, N, N+1 of max_connections_per_principal: one more is told to come again; others are not concerned."""
    async with a_guarded_server(limit) as (server, place):
        clients = [await client_of(place, "eve") for _ in range(limit)]
        assert all([await is_served(client) for client in clients])
        refused = RawClient(await place.connect(), Hello(credentials={"name": "eve"}))
        await refused.stream.send_all(refused.protocol.greeting())
        goaway = await refused.expect(GoAwayReceived)
        assert (goaway.code, "max_connections_per_principal" in goaway.message) == (Overloaded.default_code, True)
        assert await refused.closed()
        assert await is_served(await client_of(place, "bob"))
        await clients[0].stream.aclose()
        await wait_all_tasks_blocked()
        assert await is_served(await client_of(place, "eve"))
        assert (server.statistics().connections, server.statistics().refused_connections) == (limit + 1, 1)


async def test_without_principals_it_is_for_a_host(autojump_clock: MockClock) -> None:
    """Without `authenticate` the connections of one host are counted together; None switches it off."""
    for most, refusals in ((2, 1), (None, 0)):
        async with a_guarded_server(most, authenticate=None) as (server, place):
            for _ in range(3):
                client = RawClient(await place.connect())
                await client.stream.send_all(client.protocol.greeting())
                await client.event()
            await wait_all_tasks_blocked()
            assert server.statistics().refused_connections == refusals


async def test_whose_connections_are_counted_together(tmp_path: Path) -> None:
    """Over TCP those of one address, whatever its ports; over a UNIX socket those of one user."""
    places, limits = ["tcp://127.0.0.1:0", f"unix://{tmp_path}/s"], ServerLimits(max_connections_per_principal=2)
    async with open_server(Lab(), places, limits=limits) as server, contextlib.AsyncExitStack() as stack:
        port, path = int(server.addresses[0].rpartition(":")[2]), tmp_path / "s"

        async def dial() -> list[RawClient]:
            streams = [await trio.open_tcp_stream("127.0.0.1", port), await trio.open_unix_socket(path)]
            return [RawClient(await stack.enter_async_context(stream)) for stream in streams]

        for client in [*await dial(), *await dial()]:  # As many of each kind as there may be.
            await client.greet()
            assert await is_served(client)
        assert server.statistics().connections == 4
        for client in await dial():
            await client.stream.send_all(client.protocol.greeting())
            assert "2 connections of this client" in (await client.expect(GoAwayReceived)).message


async def test_a_pool_comes_again(autojump_clock: MockClock) -> None:
    """A pool that is refused for its number of connections tries again, with back-off; nothing of it is permanent."""
    limits = PoolLimits(connect_backoff=trio_rpc.Backoff(initial=1, factor=1, jitter=0), acquire_timeout=60)
    async with a_guarded_server(1) as (server, place):
        first = await client_of(place, "eve")
        async with open_pool(place.connect, credentials={"name": "eve"}, limits=limits, heartbeat=QUIET) as pool:
            with pytest.raises(ConnectError, match="refused the connection: 1 connections of this client") as caught:
                await pool.connect()
            assert (caught.value.permanent, caught.value.may_have_run) == (False, False)
            with trio.CancelScope() as scope:
                scope.deadline = trio.current_time() + 9.5
                await trio.sleep_forever()
            await first.stream.aclose()
            assert await pool.stub(Lab).echo(1) == 1
            assert trio.current_time() == 10
        assert 9 <= server.statistics().refused_connections <= 11


async def test_who_is_lost_in_the_middle_is_not_counted(autojump_clock: MockClock) -> None:
    """A connection that ends between its authentication and our HELLO leaves nothing behind."""

    async def slow(_credentials: object, _origin: object) -> str:
        await trio.sleep(1)
        return "eve"

    async with a_guarded_server(1, authenticate=slow) as (server, place):
        for _ in range(3):
            lost = RawClient(await place.connect())
            await lost.stream.send_all(lost.protocol.greeting())
            await trio.sleep(0.5)
            await lost.stream.aclose()
            await trio.sleep(1)
        assert server.statistics().connections == 0
        assert await is_served(await client_of(place))


async def test_a_greedy_client_leaves_handlers_to_others(autojump_clock: MockClock) -> None:
    """R22, X17: with a share for each principal, one who takes all he can get delays nobody else's calls."""
    limits, place = ServerLimits(max_calls=8, max_calls_per_principal=5, max_in_flight=4), MemoryListener()
    async with (
        open_server(Lab(), place, limits=limits, authenticate=by_name, heartbeat=QUIET) as server,
        open_pool(place.connect, credentials={"name": "bob"}, heartbeat=QUIET) as pool,
    ):
        for _ in range(5):
            greedy = await client_of(place, "eve")
            await greedy.send(*[greedy.request("Lab.sleep", 1000) for _ in range(4)])
        await wait_all_tasks_blocked()
        assert server.statistics().in_flight == 5
        for number in range(1000):
            assert await pool.stub(Lab).echo(number) == number
            await trio.sleep(0.01)
        assert (pool.statistics().errors, pool.statistics().retries) == (0, 0)
        assert (server.statistics().refused_principal, server.statistics().refused_server) == (15, 0)


# -- descriptors, and the numbers of the kernel ----------------------------------------------------------------------


@contextmanager
def descriptor_limit(most: int) -> Iterator[None]:
    """This process may open so many, for the length of a block that opens few."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(
    ("asked", "effective", "level"),
    [
        (435, 435, None),
        (436, 436, None),
        (437, 436, "WARNING"),
        (10_000, 436, "INFO"),  # The default: nobody has asked for it.
        (None, None, None),
    ],
)
async def test_connections_are_bounded_by_descriptors(
    asked: int | None, effective: int | None, level: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """R01: max_connections leaves 64 descriptors to the rest of the process; the number in force is in statistics()."""
    caplog.set_level(logging.INFO)
    with descriptor_limit(500):
        async with open_server(Lab(), MemoryListener(), limits=ServerLimits(max_connections=asked)) as server:
            assert server.statistics().max_connections == effective
    assert [record.levelname for record in caplog.records] == ([] if level is None else [level])


def socket_queue_limit() -> int:
    """The longest queue that the kernel allows."""
    return int(Path("/proc/sys/net/core/somaxconn").read_text())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of listen queues")
async def test_the_listen_queue_is_in_the_statistics() -> None:
    """R03: who comes beyond max_connections waits in a queue of `backlog`; beyond that, dials find no answer."""
    limits = ServerLimits(backlog=5, max_connections=1)
    async with open_server(Lab(), "tcp://127.0.0.1:0", limits=limits) as server:
        stats = server.statistics()
        assert (stats.accept_queue, stats.accept_queue_limit, stats.listen_overflows) == (0, 5, 0)
        host, port = "127.0.0.1", int(server.addresses[0].rpartition(":")[2])
        holder = await trio.open_tcp_stream(host, port)
        await until(lambda: server.statistics().handshaking == 1)
        waiting = [socket.socket() for _ in range(12)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex((host, port))
        await until(lambda: (server.statistics().listen_overflows or 0) > 0)
        stats = server.statistics()
        assert (stats.accept_queue, stats.accept_queue_limit, stats.accepted) == (6, 5, 1)
        async with open_pool(server.addresses[0], limits=PoolLimits(connect_timeout=0.3)) as pool:
            with trio.fail_after(PATIENCE), pytest.raises(ConnectError, match="did not answer within") as caught:
                await pool.connect()
        assert (caught.value.may_have_run, caught.value.permanent) == (False, False)
        for sock in waiting:
            sock.close()
        await holder.aclose()
        async with open_pool(server.addresses[0]) as pool:
            assert await pool.stub(Lab).echo(1) == 1
        await until(lambda: server.statistics().accept_queue == 0)


async def test_where_no_queue_is_known(tmp_path: Path) -> None:
    """R03: of UNIX sockets and users' own listeners the kernel tells nothing, and the statistics say None."""
    async with open_server(Lab(), [MemoryListener(), f"unix://{tmp_path}/s"]) as server:
        stats = server.statistics()
        assert (stats.accept_queue, stats.accept_queue_limit, stats.listen_overflows) == (None, None, None)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of listen queues")
@pytest.mark.parametrize("backlog", [1, 2, 1000])
async def test_the_backlog_is_the_one_asked_for(backlog: int, tmp_path: Path) -> None:
    """R03: each listening socket gets it, clipped by the kernel to somaxconn alone."""
    most = socket_queue_limit()
    async with open_server(Lab(), "tcp://127.0.0.1:0", limits=ServerLimits(backlog=backlog)) as server:
        assert server.statistics().accept_queue_limit == min(backlog, most)
    async with open_server(Lab(), f"unix://{tmp_path}/s", limits=ServerLimits(backlog=2**40)):
        pass


async def test_a_server_without_descriptors() -> None:
    """R01: out of descriptors, the clients at hand are served on, new ones wait and are served once some are free."""
    with trio.fail_after(PATIENCE):
        async with open_serving(spare=3) as serving, open_pool(serving.addresses[0]) as pool:
            assert await pool.call("Desk.echo", 1) == 1
            host, _, port = serving.addresses[0][6:].rpartition(":")
            hoard = [await trio.open_tcp_stream(host, int(port)) for _ in range(10)]
            while (await pool.call("Desk.statistics"))["accept_errors"] < 4:  # noqa: ASYNC110 - another process's
                await trio.sleep(0.02)
            async with open_pool(serving.addresses[0]) as late:
                with trio.move_on_after(0.3) as scope:
                    await late.call("Desk.echo", 2)
                assert (scope.cancelled_caught, late.statistics().connections) == (True, 0)
                assert await pool.call("Desk.echo", 3) == 3
                for stream in hoard:
                    await stream.aclose()
                assert await late.call("Desk.echo", 4) == 4
            stats = await pool.call("Desk.statistics")
            assert (pool.statistics().errors, pool.statistics().connects) == (0, 1)
            assert stats["accept_errors"] < 40
            # The hoard did not say HELLO, and not all of it was let in.
            assert stats["refused_connections"] <= 10
    assert serving.status == 0
    assert [line for line in serving.complaints if "accept failed" not in line] == []
    assert len(serving.complaints) == 1


@pytest.mark.parametrize(
    "name", ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "ECONNABORTED", "EPERM", "EINVAL", "EIO", "EPROTO"]
)
async def test_accept_fails_in_the_kernel(name: str) -> None:
    """R02: whichever error accept4 has three times, the server goes on serving, and loses nobody."""
    try:
        under = failing(["accept4"], name, "1..3")
    except Unavailable as exc:
        pytest.skip(str(exc))
    with trio.fail_after(2 * PATIENCE):
        async with open_serving(under) as serving, open_pool(serving.addresses[0]) as pool:
            assert await pool.call("Desk.echo", 1) == 1
            assert (await pool.call("Desk.statistics"))["accept_errors"] == 3
            assert pool.statistics().connects == 1
    assert serving.status == 0


# -- slow lorises ------------------------------------------------------------------------------------------------------


@functools.cache
def client_hello() -> bytes:
    """How a client begins TLS."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


async def begins_tls(stream: trio.abc.Stream) -> None:
    """The first half of a ClientHello."""
    await stream.send_all(client_hello()[:100])


async def stops_in_tls(stream: trio.abc.Stream) -> None:
    """A whole ClientHello, and no word after the server's."""
    await stream.send_all(client_hello())


async def is_silent(stream: trio.abc.Stream) -> None:
    """Nothing."""
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    ("behaviour", "secure"), [(is_silent, False), (is_silent, True), (begins_tls, True), (stops_in_tls, True)]
)
async def test_who_stops_before_hello_is_closed_in_time(
    behaviour: Callable[[trio.abc.Stream], Any], secure: bool, autojump_clock: MockClock
) -> None:
    """R06, R07, Rule 14: who never says HELLO is closed exactly at `handshake_timeout`, so many at once; friends notice
    nothing.
    """
    context, place = None, MemoryListener()
    trusting: Any = None
    if secure:
        context, trusting = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
        AUTHORITY.issue_cert("localhost").configure_cert(context)
        AUTHORITY.configure_trust(trusting)

    async def dial() -> trio.abc.Stream:
        stream = await place.connect()
        return (
            trio.SSLStream(stream, trusting, server_hostname="localhost", https_compatible=False) if secure else stream
        )

    limits = ServerLimits(max_handshaking=256, handshake_timeout=5)
    async with (
        open_server(Lab(), place, limits=limits, ssl_context=context, heartbeat=QUIET) as server,
        open_pool(dial, heartbeat=QUIET) as pool,
    ):
        assert await pool.stub(Lab).echo(0) == 0
        start = trio.current_time()
        lorises = [await place.connect() for _ in range(300)]
        for stream in lorises:
            await behaviour(stream)
        await wait_all_tasks_blocked()
        assert server.statistics().handshaking == 256
        for number in range(99):
            assert await pool.stub(Lab).echo(number) == number
            await trio.sleep(0.05)
        await trio.sleep_until(start + 5 - 0.001)
        assert server.statistics().handshaking == 256
        await trio.sleep_until(start + 5)
        await wait_all_tasks_blocked()
        assert (server.statistics().handshaking, server.statistics().refused_connections) == (300 - 256, 256)
        await trio.sleep(5)
        await wait_all_tasks_blocked()
        assert (server.statistics().handshaking, server.statistics().refused_connections) == (0, 300)
        assert trio.current_time() == start + 10
        assert pool.statistics().errors == 0


async def test_two_thousand_slow_lorises() -> None:
    """R06: 2,000 sockets that say nothing, at a server that bears 256: all are sent away, and a client is served."""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 5000:
        pytest.skip("this process may not open 5,000 descriptors")
    limits, served = ServerLimits(max_handshaking=256, handshake_timeout=0.2), 0
    async with open_server(Lab(), "tcp://127.0.0.1:0", limits=limits) as server, open_pool(server.addresses[0]) as pool:
        assert await pool.stub(Lab).echo(0) == 0
        port, most = int(server.addresses[0].rpartition(":")[2]), 0
        lorises = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(2000)]
        with trio.fail_after(PATIENCE):
            while server.statistics().refused_connections < 2000:
                most = max(most, server.statistics().handshaking)
                served += await pool.stub(Lab).echo(1)
                await trio.sleep(0.01)
        assert (most, pool.statistics().errors, pool.statistics().connects) == (256, 0, 1)
        assert served >= 10
        async with open_pool(server.addresses[0]) as late:
            assert await late.stub(Lab).echo(1) == 1
        for stream in lorises:
            await stream.aclose()


# -- drain ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["resting after a shortage", "full", "full of strangers", "holding one beyond"])
async def test_a_drain_ends_whatever_accepting_does(autojump_clock: MockClock, state: str) -> None:
    """A drain waits for no pause of accepting and for no room; who was not let in sees the end of his connection."""
    one, two = Flawed(), Flawed()
    limits = ServerLimits(max_connections=2, max_handshaking=1, handshake_timeout=60)
    async with no_leaks(), open_server(Lab(), [one, two], limits=limits, heartbeat=QUIET) as server:
        await wait_all_tasks_blocked()
        friend = await client_of(one)
        outside: list[RawClient] = []
        if state == "resting after a shortage":
            two.failures = [failure(errno.EMFILE)] * 1000
            await (await client_of(two)).stream.aclose()
            await trio.sleep(7.3)
        elif state == "full":
            outside = [RawClient(await one.connect()), RawClient(await two.connect()), RawClient(await two.connect())]
            await outside[0].greet()
        elif state == "full of strangers":
            outside = [RawClient(await one.connect()) for _ in range(3)]
        else:
            outside = [RawClient(await one.connect()), RawClient(await two.connect())]
        await wait_all_tasks_blocked()
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(functools.partial(server.drain, grace=3))
            nursery.start_soon(friend.closed)
            for client in outside[1:]:
                nursery.start_soon(client.closed)
            await server._closed.wait()
            nursery.cancel_scope.cancel()
        stats = server.statistics()
        assert (stats.connections, stats.handshaking) == (0, 0)
        assert trio.current_time() - start <= 3 + 1 + 1
        assert (one.closed, two.closed) == (True, True)
        if state == "holding one beyond":
            assert await outside[1].closed()


@pytest.mark.parametrize("seconds", [0.5, 3.0])
async def test_a_first_frame_that_arrives_slowly(autojump_clock: MockClock, seconds: float) -> None:
    """R08, S14: a call that is still arriving at max_idle is served if it comes within a second, and else surely did
    not run.
    """
    limits, place = ServerLimits(max_idle=5), MemoryListener()
    async with open_server(Lab(), place, limits=limits, heartbeat=QUIET) as server:
        client = await client_of(place)
        frame = client.request("Lab.echo", "late")
        await trio.sleep(4.9)
        await client.stream.send_all(frame[:12])
        assert (await client.expect(GoAwayReceived)).last_id > 1
        assert (trio.current_time(), server.statistics().closed_idle) == (5, 1)
        ping = await client.expect(PingReceived)
        with trio.move_on_after(seconds):
            assert (await client.expect(GoAwayReceived)).last_id == 0
            assert (seconds, trio.current_time()) == (3, 6)
            return
        await client.send(frame[12:], client.protocol.pong(ping.data))
        events = [await client.event(), await client.event()]
        assert [type(event) for event in events if not isinstance(event, GoAwayReceived)] == [ResponseReceived]


# -- what is left to others --------------------------------------------------------------------------------------------


async def test_a_clean_end_leaves_nothing_open() -> None:
    """P14: after a clean close, Python in its development mode complains of nothing at exit."""
    with trio.fail_after(PATIENCE):
        async with open_serving(places=["tcp://127.0.0.1:0", f"unix:@trio-rpc-test-{os.getpid()}"]) as serving:
            for address in serving.addresses:
                async with open_pool(address) as pool:
                    assert await pool.call("Desk.echo", 1) == 1
            host, _, port = serving.addresses[0][6:].rpartition(":")
            stranger = await trio.open_tcp_stream(host, int(port))
            pool_under_way = open_pool(serving.addresses[0])
            pool = await pool_under_way.__aenter__()
            assert await pool.call("Desk.echo", 1) == 1
        await pool_under_way.__aexit__(None, None, None)
        await stranger.aclose()
    assert (serving.status, serving.complaints) == (0, [])


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc here to see descriptors in")
async def test_children_inherit_nothing(tmp_path: Path) -> None:
    """P15: neither listeners nor connections, of either side, are open in a program that is started meanwhile."""

    async def inherited() -> set[str]:
        done = await trio.run_process(["ls", "-l", "/proc/self/fd"], capture_stdout=True, close_fds=False)
        return {word for word in done.stdout.decode().split() if word.startswith(("socket:", "anon_inode:"))}

    before = await inherited()
    places = ["tcp://127.0.0.1:0", f"unix://{tmp_path}/s"]
    async with open_server(Lab(), places) as server:
        async with open_pool(server.addresses[0]) as one, open_pool(server.addresses[1]) as two:
            assert await one.stub(Lab).echo(1) == await two.stub(Lab).echo(1) == 1
            assert len([what for _, what in descriptors() if what.startswith("socket:")]) >= 6
            assert await inherited() == before


# -- the kit -------------------------------------------------------------------------------------------------------------


def test_a_memory_limit_is_one() -> None:
    """The kit's own: what takes more memory than its group may have is killed, what takes less is not."""
    program = "import sys; data = b'x' * (int(sys.argv[1]) << 20); print(len(data) >> 20)"
    try:
        with memory_limit(100 << 20) as group:
            for size, status in ((20, 0), (300, -9)):
                done = subprocess.run(
                    group.command(sys.executable, "-c", program, str(size)), capture_output=True, text=True, check=False
                )
                assert (done.returncode, done.stdout.strip()) == (status, str(size) if status == 0 else "")
            assert group.peak == 0 or 20 << 20 < group.peak <= 100 << 20
    except Unavailable as exc:
        pytest.skip(str(exc))
    assert not group.path.exists()
