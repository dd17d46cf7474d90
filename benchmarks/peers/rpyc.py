"""RPyC: blocking calls, a thread and a connection for each caller on both sides.

Fair: what is passed are tuples, which travel by value; a dict or a list would be a proxy, and each look into it a call.
Streams go through `buffiter`, RPyC's own remedy for a call per item. A call's deadline is `sync_request_timeout`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import rpyc
from rpyc.utils.authenticators import SSLAuthenticator
from rpyc.utils.helpers import buffiter
from rpyc.utils.server import ThreadedServer

from ..workloads import Setting
from . import DEADLINE, HOST, Announce, Call, ThreadPeer, burn, payload

__all__ = ["peer"]


def values(i: int) -> tuple[int, str, tuple[int, ...]]:
    """The payload, immutable."""
    item = payload(i)
    return item["id"], item["name"], tuple(item["values"])


def check(items: Iterable[Any], count: int) -> None:
    """Receive all of them, in order."""
    expected = 0
    for item in items:
        assert item[0] == expected
        expected += 1
    assert expected == count


def call_of(connection: Any) -> Call:
    """A small call."""
    echo = connection.root.echo

    def call(i: int) -> None:
        assert echo(values(i))[0] == i

    return call


class Service(rpyc.Service):
    """The methods."""

    def __init__(self, setting: Setting) -> None:
        self.burn = setting.burn

    def exposed_echo(self, item: Any) -> Any:
        if self.burn:
            burn(self.burn)
        return item

    def exposed_large(self, data: bytes) -> bytes:
        return data

    def exposed_numbers(self, count: int) -> Iterator[Any]:
        return map(values, range(count))

    def exposed_total(self, items: Any) -> int:
        return sum(1 for _ in buffiter(items))

    def exposed_mirror(self, items: Any) -> Iterator[Any]:
        return buffiter(items)


class Rpyc(ThreadPeer):
    """See ThreadPeer."""

    def serve(self, announce: Announce) -> None:
        folder = self.setting.certificate
        tls = SSLAuthenticator(Path(folder, "key.pem"), Path(folder, "chain.pem")) if folder else None
        server = ThreadedServer(Service(self.setting), HOST, authenticator=tls)
        serving = threading.Thread(target=server.start)
        serving.start()
        while not server.active:  # nothing else tells that it listens
            time.sleep(0.01)
        announce(server.port)
        serving.join()

    def connect(self, port: int, deadline: float | None = DEADLINE) -> Any:
        """A connection, as a context manager that closes it; its calls have that deadline."""
        config = {"sync_request_timeout": deadline}
        if not self.setting.certificate:
            return closing(rpyc.connect(HOST, port, config=config))
        authority = str(Path(self.setting.certificate, "authority.pem"))
        return closing(rpyc.ssl_connect(HOST, port, ca_certs=authority, config=config))

    @contextmanager
    def unary(self) -> Iterator[list[Call]]:
        ports = self.setting.ports
        with ExitStack() as stack:
            yield [
                call_of(stack.enter_context(self.connect(ports[k % len(ports)]))) for k in range(self.setting.callers)
            ]

    @contextmanager
    def large(self) -> Iterator[Call]:
        with self.connect(self.port) as connection:
            large = connection.root.large

            def call(data: bytes) -> None:
                assert len(large(data)) == len(data)

            yield call

    @contextmanager
    def server_stream(self) -> Iterator[Call]:
        with self.connect(self.port, deadline=None) as connection:
            yield lambda count: check(buffiter(connection.root.numbers(count)), count)

    @contextmanager
    def client_stream(self) -> Iterator[Call]:
        with self.connect(self.port, deadline=None) as connection:

            def run(count: int) -> None:
                assert connection.root.total(map(values, range(count))) == count

            yield run

    @contextmanager
    def bidi(self) -> Iterator[Call]:
        with self.connect(self.port, deadline=None) as connection:
            yield lambda count: check(buffiter(connection.root.mirror(map(values, range(count)))), count)

    @contextmanager
    def short(self) -> Iterator[Call]:
        def call(i: int) -> None:
            with self.connect(self.port) as connection:
                call_of(connection)(i)

        yield call

    @contextmanager
    def idle(self) -> Iterator[Callable[[], None]]:
        with ExitStack() as stack:
            yield lambda: call_of(stack.enter_context(self.connect(self.port)))(0)


peer = Rpyc
