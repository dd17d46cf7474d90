"""A name with several addresses: one that does not answer costs 250 ms, one that refuses costs nothing."""

from __future__ import annotations

import errno
import math
import os
import socket
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import trio_rpc
from trio_rpc import ConnectError, PoolLimits, method

NAME, TARGET = "db.example.org", "tcp://db.example.org:7000"
HOLE, AT_ONCE = math.inf, 0.0
REFUSES, NO_ROUTE = OSError(errno.ECONNREFUSED), OSError(errno.EHOSTUNREACH)
Fate = float | OSError
"""What comes of connecting to an address: an answer after so many seconds, or an error at once."""


class Echo:
    @method
    async def echo(self, value: int) -> int:
        return value


class Net(trio.abc.HostnameResolver, trio.abc.SocketFactory):
    """A network with one name: its addresses, in order. Behind those that answer there is an Echo service."""

    def __init__(self, nursery: trio.Nursery, fates: dict[str, Fate]) -> None:
        self.nursery, self.fates = nursery, fates
        self.tried: list[tuple[float, str]] = []
        self.sockets: list[FakeSocket] = []
        self._began = trio.current_time()
        trio.socket.set_custom_hostname_resolver(self)
        trio.socket.set_custom_socket_factory(self)

    async def getaddrinfo(self, host: Any, port: Any, *_options: int, **_named: int) -> Any:
        assert host == NAME.encode()
        return [socket.getaddrinfo(ip, port, type=socket.SOCK_STREAM)[0] for ip in self.fates]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError

    def socket(self, family: Any = None, type: Any = None, proto: Any = None) -> FakeSocket:  # noqa: A002 - Trio's name
        self.sockets.append(FakeSocket(self))
        return self.sockets[-1]

    def now(self) -> float:
        """Seconds since the beginning."""
        return round(trio.current_time() - self._began, 6)


class FakeSocket(trio.socket.SocketType):
    """As much of a socket as connecting takes; in the end it is one half of a socket pair."""

    def __init__(self, net: Net) -> None:
        self.half: socket.socket | None = None
        self.closed = False
        self._net = net

    @property
    def family(self) -> Any:
        return socket.AF_UNIX

    @property
    def type(self) -> Any:
        return socket.SOCK_STREAM

    @property
    def proto(self) -> Any:
        return 0

    async def connect(self, address: Any) -> None:
        self._net.tried.append((self._net.now(), address[0]))
        fate = self._net.fates[address[0]]
        if isinstance(fate, OSError):
            await trio.lowlevel.checkpoint()
            raise OSError(fate.args[0], f"Error connecting to {address}: {os.strerror(fate.args[0])}")
        await trio.sleep(fate)
        self.half, other = socket.socketpair()
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(other))
        self._net.nursery.start_soon(trio_rpc.serve_stream, Echo(), stream)

    def setsockopt(self, level: int, optname: int, value: Any, optlen: int | None = None) -> None:
        """There is nothing to set."""

    def detach(self) -> int:
        assert self.half is not None
        return self.half.detach()

    def close(self) -> None:
        self.closed = True
        if self.half is not None:
            self.half.close()


@pytest.mark.parametrize(
    ("fates", "tried", "connected_at"),
    [
        ({"10.0.0.1": AT_ONCE, "10.0.0.2": AT_ONCE}, [(0, "10.0.0.1")], 0),
        ({"10.0.0.1": HOLE, "10.0.0.2": AT_ONCE}, [(0, "10.0.0.1"), (0.25, "10.0.0.2")], 0.25),
        ({"10.0.0.1": HOLE, "10.0.0.2": 0.1}, [(0, "10.0.0.1"), (0.25, "10.0.0.2")], 0.35),
        ({"10.0.0.1": REFUSES, "10.0.0.2": 0.1}, [(0, "10.0.0.1"), (0, "10.0.0.2")], 0.1),
        ({"10.0.0.1": 0.2, "10.0.0.2": AT_ONCE}, [(0, "10.0.0.1")], 0.2),
        ({"10.0.0.1": 0.3, "10.0.0.2": HOLE}, [(0, "10.0.0.1"), (0.25, "10.0.0.2")], 0.3),
        (  # of both families, the second is of the other
            {"fd00::1": HOLE, "fd00::2": HOLE, "10.0.0.1": REFUSES, "10.0.0.2": AT_ONCE},
            [(0, "fd00::1"), (0.25, "10.0.0.1"), (0.25, "fd00::2"), (0.5, "10.0.0.2")],
            0.5,
        ),
    ],
)
async def test_the_first_address_that_answers_is_taken(
    fates: dict[str, Fate],
    tried: list[tuple[float, str]],
    connected_at: float,
    nursery: trio.Nursery,
    autojump_clock: MockClock,
) -> None:
    """N15: the next is tried as soon as one has failed, or after 250 ms beside it; the losers are closed."""
    net = Net(nursery, fates)
    async with trio_rpc.open_pool(TARGET) as pool:
        await pool.connect()
        assert net.now() == connected_at
        assert net.tried == tried
        assert [net.fates[ip] for (_, ip), sock in zip(net.tried, net.sockets, strict=True) if not sock.closed] == [
            fate for fate in fates.values() if isinstance(fate, float) and fate < HOLE
        ][:1]
        assert await pool.stub(Echo).echo(7) == 7


@pytest.mark.parametrize(
    ("fates", "reasons", "failed_at"),
    [
        ({"10.0.0.1": REFUSES, "10.0.0.2": NO_ROUTE}, "Connection refused, No route to host", 0),
        ({"10.0.0.1": REFUSES, "10.0.0.2": REFUSES}, "Connection refused", 0),
        ({"fd00::1": NO_ROUTE, "10.0.0.2": REFUSES}, "Connection refused, No route to host", 0),
    ],
)
async def test_when_all_fail_all_reasons_are_named(
    fates: dict[str, Fate], reasons: str, failed_at: float, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """In one ConnectError, each reason once; nothing is left open."""
    net = Net(nursery, fates)
    async with trio_rpc.open_pool(TARGET) as pool:
        with pytest.raises(ConnectError) as caught:
            await pool.connect()
        assert str(caught.value) == f"cannot connect to {TARGET}: {reasons}"
        assert not caught.value.may_have_run
        assert net.now() == failed_at
    assert all(sock.closed for sock in net.sockets)


async def test_when_none_answers_the_time_is_bounded(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """N18, Rule 14: by `connect_timeout`, for all addresses of a name together."""
    net = Net(nursery, {"10.0.0.1": HOLE, "10.0.0.2": HOLE})
    async with trio_rpc.open_pool(TARGET, limits=PoolLimits(connect_timeout=3)) as pool:
        with trio.fail_after(60), pytest.raises(ConnectError, match=rf"{TARGET} did not answer within 3 s"):
            await pool.connect()
        assert net.now() == 3
    assert [sock.closed for sock in net.sockets] == [True, True]
