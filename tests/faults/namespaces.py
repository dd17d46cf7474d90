"""Machines and cables, as far as the network is concerned: namespaces of Linux, and what can go wrong between them.

    with open_pair() as pair, pair.names():
        with pair.server.sockets():
            ... open_server("tcp://10.77.0.2:7000", allow_insecure=True)
        with pair.client.sockets():
            ... open_pool("tcp://server.test:7000")
            pair.drop("both", 7000)

One process may have sockets in all of them, as a socket belongs to the namespace that it was made in. So a test needs
no processes of its own, and neither do two sides that are watched at once. Sockets are made there by Trio's socket
factory, which the pool's dials go through for a name, though not for an address in numbers.

Everything is gone when the block ends, however it does. Names hold the process's id; what a killed process has left
behind is removed by the next one. Where the machine cannot do it, `Unavailable` says why.

All commands are awaited by the whole process, some milliseconds each, so that what they do has been done.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import trio

__all__ = [
    "SERVER",
    "Direction",
    "Names",
    "Namespace",
    "Pair",
    "Unavailable",
    "open_namespaces",
    "open_nat",
    "open_pair",
]

PREFIX: Final = "trio-rpc-test"
PLACES: Final = Path("/run/netns")
CLONE_NEWNET: Final = 0x40000000
DEVICE: Final = "eth0"
TIMEOUT: Final = 20.0
"""Seconds that a command of the system may take; they take milliseconds."""
SERVER: Final = "server.test"
"""A name that stands for the server of a pair."""
RULES: Final = "table inet faults { chain arriving { type filter hook input priority 0; policy accept; }; }"
NAT_RULES: Final = """
table ip nat {
    chain leaving { type nat hook postrouting priority 100; oifname "eth1" masquerade; }
}
table ip filter {
    chain passing {
        type filter hook forward priority 0; policy drop;
        ct state established accept
        ct state new tcp flags & (fin | syn | rst | ack) == syn accept
    }
}
"""

Direction: TypeAlias = Literal["both", "to_server", "to_client"]

_numbers = itertools.count(1)


class Unavailable(Exception):
    """One sentence: what this machine cannot do."""


def command(*words: str, given: str | None = None) -> str:
    """Run a command of the system, and return what it says. Raises Unavailable where it fails."""
    try:
        done = subprocess.run(words, input=given, capture_output=True, text=True, check=False, timeout=TIMEOUT)
    except OSError as exc:
        raise Unavailable(f"{words[0]} cannot be run here: {exc.strerror}") from exc
    if done.returncode:
        said = (done.stderr or done.stdout).strip().partition("\n")[0]
        raise Unavailable(f"`{' '.join(words)}` failed here: {said}")
    return done.stdout


class Namespace(trio.abc.SocketFactory):
    """One machine: its name, and its address in numbers."""

    def __init__(self, name: str, ip: str) -> None:
        self.name: str = name
        self.ip: str = ip

    @contextmanager
    def entered(self) -> Iterator[None]:
        """What this thread makes in the block is made in here. Nothing is awaited in it, and no thread is started."""
        with open("/proc/thread-self/ns/net", "rb") as home, (PLACES / self.name).open("rb") as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    def socket(
        self,
        family: int = socket.AF_INET,
        type: int = socket.SOCK_STREAM,  # noqa: A002 - Trio's name
        proto: int = 0,
    ) -> trio.socket.SocketType:
        """A socket in here."""
        with self.entered():
            return trio.socket.from_stdlib_socket(socket.socket(family, type, proto))

    @contextmanager
    def sockets(self) -> Iterator[None]:
        """What this Trio run makes of sockets in the block is made in here: listeners, and dials to names."""
        previous = trio.socket.set_custom_socket_factory(self)
        try:
            yield
        finally:
            trio.socket.set_custom_socket_factory(previous)

    def inside(self, *words: str) -> list[str]:
        """The command line that runs a command in here; its process is the command's own."""
        return ["ip", "netns", "exec", self.name, *words]

    def run(self, *words: str, given: str | None = None) -> str:
        """Run a command in here, and return what it says."""
        return command(*self.inside(*words), given=given)

    def ip_batch(self, *lines: str) -> None:
        """Run some commands of `ip` in here."""
        command("ip", "-n", self.name, "-batch", "-", given="\n".join(lines) + "\n")

    def rules(self, *lines: str) -> None:
        """Add rules to what arrives here, in nft's words; all at once."""
        self.run("nft", "-f", "-", given="\n".join(f"add rule inet faults arriving {line}" for line in lines) + "\n")

    def heal(self) -> None:
        """Let everything arrive again."""
        self.run("nft", "flush", "chain", "inet", "faults", "arriving")

    def set_link(self, state: Literal["up", "down"]) -> None:
        """Plug the cable in, or pull it out."""
        self.ip_batch(f"link set {DEVICE} {state}")

    def set_rate(self, kilobits: int) -> None:
        """Send at most so many kbit/s, by a token bucket; what is beyond waits for up to 0.4 s, or is lost."""
        self.run(*f"tc qdisc replace dev {DEVICE} root tbf rate {kilobits}kbit burst 4kb latency 400ms".split())

    def set_ports(self, first: int, last: int) -> None:
        """The ports that connections from here may have."""
        self.set_option("ipv4/ip_local_port_range", f"{first} {last}")

    def set_option(self, name: str, value: str) -> None:
        """One of the kernel's own settings for the network, in here."""
        with self.entered():
            try:
                (Path("/proc/sys/net") / name).write_text(value)
            except OSError as exc:
                raise Unavailable(f"net/{name} cannot be set here: {exc.strerror}") from exc

    def kill_sockets(self, selector: str) -> None:
        """Reset connections from here, as a middlebox does; which ones, in ss's words. Raises Unavailable if the kernel does not know how to."""
        if not self.run("ss", "-KHn", "state", "established", *selector.split()).strip():
            raise Unavailable("`ss -K` has killed nothing here: the kernel is without CONFIG_INET_DIAG_DESTROY")


def _enter(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise Unavailable(f"a thread cannot change its network namespace here: {os.strerror(number)}")


class Names(trio.abc.HostnameResolver):
    """What names stand for: addresses in numbers, in order. All other names are unknown."""

    def __init__(self, table: Mapping[str, Sequence[str]]) -> None:
        self.table: dict[str, Sequence[str]] = dict(table)

    async def getaddrinfo(
        self,
        host: bytes | None,
        port: bytes | str | int | None,
        family: int = 0,
        type: int = 0,  # noqa: A002 - Trio's name
        proto: int = 0,
        flags: int = 0,
    ) -> Any:
        """Look a name up."""
        await trio.lowlevel.checkpoint()
        found = self.table.get((host or b"").decode())
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [each for ip in found for each in socket.getaddrinfo(ip, port, family, type, proto, flags)]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        """Nobody asks."""
        raise NotImplementedError

    @contextmanager
    def known(self) -> Iterator[Names]:
        """In the block this Trio run looks names up here."""
        previous = trio.socket.set_custom_hostname_resolver(self)
        try:
            yield self
        finally:
            trio.socket.set_custom_hostname_resolver(previous)


class Pair:
    """Two machines on one cable."""

    def __init__(self, client: Namespace, server: Namespace) -> None:
        self.client: Namespace = client
        self.server: Namespace = server

    def names(self) -> contextlib.AbstractContextManager[Names]:
        """In the block this Trio run knows the server by its name."""
        return Names({SERVER: [self.server.ip]}).known()

    def drop(self, direction: Direction, *ports: int) -> None:
        """From now on what goes to and comes from these ports of the server is lost on the way, silently."""
        these = f"{{ {', '.join(map(str, ports))} }}"
        if direction != "to_client":
            self.server.rules(f"tcp dport {these} drop")
        if direction != "to_server":
            self.client.rules(f"tcp sport {these} drop")

    def heal(self) -> None:
        """Lose nothing any more."""
        self.client.heal()
        self.server.heal()


@contextmanager
def open_namespaces(**ips: str) -> Iterator[list[Namespace]]:
    """Some machines that are not connected yet, by the last word of their names. Raises Unavailable."""
    check_machine()
    number = next(_numbers)
    with ExitStack() as stack:
        found = []
        for word, ip in ips.items():
            name = f"{PREFIX}-{os.getpid()}-{number}-{word}"
            command("ip", "netns", "add", name)
            stack.callback(_remove, name)
            found.append(Namespace(name, ip))
        for namespace in found:
            namespace.ip_batch("link set lo up")
            namespace.run("nft", "-f", "-", given=RULES)
        yield found


@contextmanager
def open_pair(client: str = "10.77.0.1", server: str = "10.77.0.2") -> Iterator[Pair]:
    """Two machines on one cable. Raises Unavailable, before the block, where that is not to be had."""
    with open_namespaces(client=client, server=server) as (near, far):
        connect(near, far)
        yield Pair(near, far)


@contextmanager
def open_nat(expiry: int) -> Iterator[Pair]:
    """A client behind a router that rewrites addresses, and forgets connections that are silent for `expiry` seconds.

    What belongs to no connection that it knows is dropped. Raises Unavailable.
    """
    with open_namespaces(client="10.79.1.1", router="10.79.1.2", server="10.79.2.1") as (client, router, server):
        connect(client, router)
        outside = Namespace(router.name, "10.79.2.2")
        connect(server, outside, other_device="eth1")
        client.ip_batch(f"route add default via {router.ip}")
        settings = {"ipv4/ip_forward": 1, "netfilter/nf_conntrack_tcp_timeout_established": expiry}
        router.run("nft", "-f", "-", given=NAT_RULES)  # It brings the connection table, and its settings, to life.
        for name, value in (settings | {"netfilter/nf_conntrack_tcp_loose": 0}).items():
            router.set_option(name, str(value))
        yield Pair(client, server)


def connect(one: Namespace, other: Namespace, device: str = DEVICE, other_device: str = DEVICE) -> None:
    """Join two namespaces by a cable; each has its own address at its end of it."""
    words = f"link add {device} netns {one.name} type veth peer name {other_device} netns {other.name}"
    command("ip", *words.split())
    for namespace, name in ((one, device), (other, other_device)):
        namespace.ip_batch(f"addr add {namespace.ip}/24 dev {name}", f"link set {name} up")


def _remove(name: str) -> None:
    with contextlib.suppress(Unavailable):  # There is nobody to tell, and the next process tries again.
        command("ip", "netns", "del", name)


@functools.cache
def check_machine() -> None:
    """Find out once whether it can be tried at all, and remove what killed processes have left."""
    if sys.platform != "linux":
        raise Unavailable("network namespaces are Linux's")
    for tool in ("ip", "nft"):
        if shutil.which(tool) is None:
            raise Unavailable(f"{tool} is not installed here")
    if os.geteuid() != 0:
        raise Unavailable("network namespaces need root here")
    for place in PLACES.glob(f"{PREFIX}-*"):
        pid = int(place.name.removeprefix(f"{PREFIX}-").partition("-")[0])
        if not Path(f"/proc/{pid}").exists():
            _remove(place.name)
