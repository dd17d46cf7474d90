"""The network kit itself: what its knobs do, and that nothing of it is left behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.faults import namespaces
from tests.faults.namespaces import Unavailable, open_pair
from tests.faults.proxy import Proxy, open_proxy

PATIENCE = 10


@asynccontextmanager
async def echo_behind_proxy() -> AsyncIterator[Proxy]:
    """A server that sends everything back, and a proxy before it."""

    async def send_back(stream: trio.SocketStream) -> None:
        async with stream:
            async for data in stream:
                await stream.send_all(data)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, send_back, 0)
        with trio.fail_after(PATIENCE):
            async with open_proxy("127.0.0.1", listeners[0].socket.getsockname()[1]) as proxy:
                yield proxy
        nursery.cancel_scope.cancel()


async def echo(proxy: Proxy, data: bytes) -> float:
    """Send something through the proxy, and all of it back; how long it took."""
    start = trio.current_time()
    async with await trio.open_tcp_stream("127.0.0.1", int(proxy.address.rpartition(":")[2])) as stream:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, data)
            received = b""
            while len(received) < len(data):
                received += await stream.receive_some()
        assert received == data
        await stream.send_eof()
        assert await stream.receive_some() == b""
    return trio.current_time() - start


async def test_a_proxy_that_does_nothing_passes_everything_on() -> None:
    """Whole, with its end, and it keeps no connection."""
    async with echo_behind_proxy() as proxy:
        await echo(proxy, b"x" * 300_000)
        assert (proxy.accepted, proxy.to_server.passed, proxy.to_client.passed) == (1, 300_000, 300_000)
        while proxy.open:  # noqa: ASYNC110 - there is no event
            await trio.sleep(0.01)


async def test_latency_and_jitter() -> None:
    """In each direction by itself; nothing overtakes."""
    async with echo_behind_proxy() as proxy:
        proxy.to_server.latency, proxy.to_client.latency = 0.1, 0.05
        proxy.to_client.jitter = 0.02
        assert await echo(proxy, bytes(range(256)) * 2000) >= 0.13


async def test_rate() -> None:
    """Bytes a second."""
    async with echo_behind_proxy() as proxy:
        proxy.to_client.rate = 200_000
        assert await echo(proxy, b"x" * 60_000) >= 0.3


async def test_a_stall_loses_nothing() -> None:
    """What was held up arrives when it goes on."""
    async with echo_behind_proxy() as proxy, trio.open_nursery() as nursery:
        proxy.to_server.stall()
        nursery.start_soon(echo, proxy, b"x" * 1000)
        await trio.sleep(0.1)
        assert (proxy.open, proxy.to_server.passed) == (1, 0)
        proxy.to_server.go_on()


async def test_refusing() -> None:
    """With a reset, as long as it is said."""
    async with echo_behind_proxy() as proxy:
        proxy.refuse = True
        with pytest.raises(ExceptionGroup) as caught:
            await echo(proxy, b"x")
        assert caught.group_contains(trio.BrokenResourceError)
        proxy.refuse = False
        await echo(proxy, b"x")


def test_no_namespace_is_left() -> None:
    """Neither by a block that fails, nor by a process that was killed, once the next one looks."""
    names: list[str] = []
    try:
        with pytest.raises(ZeroDivisionError), open_pair() as pair:
            names += [pair.client.name, pair.server.name]
            assert all((namespaces.PLACES / name).exists() for name in names)
            raise ZeroDivisionError
    except Unavailable as exc:
        pytest.skip(str(exc))
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    names.append(f"{namespaces.PREFIX}-{gone.pid}-1-client")
    namespaces.command("ip", "netns", "add", names[-1])
    namespaces.check_machine.cache_clear()
    with open_pair():
        assert not any((namespaces.PLACES / name).exists() for name in names)


def test_why_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the machine lacks is one sentence, and the same for every test."""
    monkeypatch.setenv("PATH", str(tmp_path))
    namespaces.check_machine.cache_clear()
    try:
        with pytest.raises(Unavailable, match=r"ip is not installed here|are Linux's"), open_pair():
            raise AssertionError("opened")
    finally:
        namespaces.check_machine.cache_clear()
