"""zerorpc: gevent, ZeroMQ and MessagePack; a greenlet for each caller, all on one client.

Fair: its heartbeats are left on, as ours are, and a call's deadline is the client's timeout. zerorpc streams from the
server only. The harness's threads are greenlets here.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import gevent
import zerorpc
from gevent import monkey

from ..workloads import Setting
from . import DEADLINE, HOST, Announce, Call, ThreadPeer, burn, payload

__all__ = ["peer"]

monkey.patch_thread()


class Service:
    """The methods."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def echo(self, item: Any) -> Any:
        if self.setting.suspends:
            gevent.sleep(0)
        if self.setting.burn:
            burn(self.setting.burn)
        return item

    @zerorpc.stream
    def numbers(self, count: int) -> Iterator[Any]:
        for i in range(count):
            yield payload(i)


def call_of(client: Any) -> Call:
    """A small call."""
    echo = client.echo

    def call(i: int) -> None:
        assert echo(payload(i))["id"] == i

    return call


class Zerorpc(ThreadPeer):
    """See ThreadPeer."""

    def serve(self, announce: Announce) -> None:
        with socket.create_server((HOST, 0)) as found:  # ZeroMQ picks ports too, and zerorpc does not tell which
            port = found.getsockname()[1]
        server = zerorpc.Server(Service(self.setting))
        server.bind(f"tcp://{HOST}:{port}")
        announce(port)
        server.run()

    def connect(self, port: int) -> Any:
        """A client, as a context manager that closes it."""
        return closing(zerorpc.Client(f"tcp://{HOST}:{port}", timeout=DEADLINE))

    @contextmanager
    def unary(self) -> Iterator[list[Call]]:
        setting = self.setting
        with ExitStack() as stack:
            ports = [setting.ports[k % len(setting.ports)] for k in range(setting.connections)]
            calls = [call_of(stack.enter_context(self.connect(port))) for port in ports]
            yield [calls[k % len(calls)] for k in range(setting.callers)]

    @contextmanager
    def large(self) -> Iterator[Call]:
        with self.connect(self.port) as client:

            def call(data: bytes) -> None:
                assert len(client.echo(data)) == len(data)

            yield call

    @contextmanager
    def server_stream(self) -> Iterator[Call]:
        with self.connect(self.port) as client:

            def run(count: int) -> None:
                expected = 0
                for item in client.numbers(count):
                    assert item["id"] == expected
                    expected += 1
                assert expected == count

            yield run

    @contextmanager
    def short(self) -> Iterator[Call]:
        def call(i: int) -> None:
            with self.connect(self.port) as client:
                call_of(client)(i)

        yield call

    @contextmanager
    def idle(self) -> Iterator[Callable[[], None]]:
        with ExitStack() as stack:
            yield lambda: call_of(stack.enter_context(self.connect(self.port)))(0)


peer = Zerorpc
