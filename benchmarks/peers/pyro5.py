"""Pyro5: blocking calls, a thread, a connection and a proxy for each caller; MessagePack is its fastest serializer.

Fair: arguments travel by value, and a call's deadline is the proxy's timeout (which costs Pyro 3 to 12 % of its
small calls, and about a quarter of its large ones). Pyro streams from the server only, and an item costs a call there. The server may have as
many threads as there are connections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import Pyro5.api
from Pyro5 import config

from ..workloads import Setting
from . import DEADLINE, HOST, Announce, Call, ThreadPeer, burn, payload

__all__ = ["peer"]


def call_of(proxy: Any) -> Call:
    """A small call; for one thread, which owns the proxy from its first call on."""
    owned = False

    def call(i: int) -> None:
        nonlocal owned
        if not owned:
            proxy._pyroClaimOwnership()
            owned = True
        assert proxy.echo(payload(i))["id"] == i

    return call


@Pyro5.api.expose
class Service:
    """The methods."""

    setting: Setting

    def echo(self, item: Any) -> Any:
        if self.setting.burn:
            burn(self.setting.burn)
        return item

    def numbers(self, count: int) -> Iterator[Any]:
        for i in range(count):
            yield payload(i)


class Pyro(ThreadPeer):
    """See ThreadPeer."""

    def __init__(self, setting: Setting, variant: str = "") -> None:
        super().__init__(setting, variant)
        config.SERIALIZER = setting.codec or "msgpack"
        config.THREADPOOL_SIZE = 10_000  # at most; a thread is started for a connection that needs it
        if setting.certificate:
            config.SSL = True

    def serve(self, announce: Announce) -> None:
        if self.setting.certificate:
            config.SSL_SERVERCERT = str(Path(self.setting.certificate, "chain.pem"))
            config.SSL_SERVERKEY = str(Path(self.setting.certificate, "key.pem"))
        daemon = Pyro5.api.Daemon(HOST)
        service = Service()
        service.setting = self.setting
        daemon.register(service, "bench")
        announce(int(daemon.locationStr.rpartition(":")[2]))
        daemon.requestLoop()

    def connect(self, port: int) -> Any:
        """A proxy, as a context manager that closes it; it connects with its first call."""
        if self.setting.certificate:
            config.SSL_CACERTS = str(Path(self.setting.certificate, "authority.pem"))
        proxy = Pyro5.api.Proxy(f"PYRO:bench@{HOST}:{port}")
        proxy._pyroTimeout = DEADLINE
        return proxy

    @contextmanager
    def unary(self) -> Iterator[list[Call]]:
        ports = self.setting.ports
        proxies = [self.connect(ports[k % len(ports)]) for k in range(self.setting.callers)]
        yield list(map(call_of, proxies))
        for proxy in proxies:
            proxy._pyroClaimOwnership()
            proxy._pyroRelease()

    @contextmanager
    def large(self) -> Iterator[Call]:
        with self.connect(self.port) as proxy:

            def call(data: bytes) -> None:
                assert len(proxy.echo(data)) == len(data)

            yield call

    @contextmanager
    def server_stream(self) -> Iterator[Call]:
        with self.connect(self.port) as proxy:

            def run(count: int) -> None:
                expected = 0
                for item in proxy.numbers(count):
                    assert item["id"] == expected
                    expected += 1
                assert expected == count

            yield run

    @contextmanager
    def short(self) -> Iterator[Call]:
        def call(i: int) -> None:
            with self.connect(self.port) as proxy:
                assert proxy.echo(payload(i))["id"] == i

        yield call

    @contextmanager
    def idle(self) -> Iterator[Callable[[], None]]:
        with ExitStack() as stack:
            yield lambda: call_of(stack.enter_context(self.connect(self.port)))(0)


peer = Pyro
