"""Two machines on a long and bad line: delay, jitter with reordering, loss and duplicates, of IP packets.

The kernel's own netem is not to be had everywhere. So each machine has a TUN device, and a program of ours (relay.py)
carries the packets from the one to the other; TCP is the kernel's, and mends what it can. Nothing is left after the
block, and where the machine has no TUN devices, `Unavailable` says so.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tests.faults.namespaces import Namespace, Pair, Unavailable, command, open_namespaces

__all__ = ["Conditions", "Traffic", "Tunnel", "open_tunnel"]

PROGRAM: Final = Path(__file__).parent / "relay.py"
TUNSETIFF: Final = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
END: Final = 10.0
"""Seconds in which the relay must end; it does so at once."""


@dataclass(frozen=True)
class Conditions:
    """What the line does to each packet, in either direction."""

    delay: float = 0.0
    """Seconds."""
    jitter: float = 0.0
    """Seconds by which that is more or less; packets overtake each other."""
    loss: float = 0.0
    """The share that is lost."""
    duplicate: float = 0.0
    """The share that arrives twice."""


@dataclass(frozen=True)
class Traffic:
    """What became of the packets of one direction."""

    carried: int
    lost: int
    duplicated: int
    overtook: int
    """Those that arrived behind a later one."""


class Tunnel(Pair):
    """Two machines, and the line between them."""

    def __init__(self, client: Namespace, server: Namespace) -> None:
        super().__init__(client, server)
        self.to_server: Traffic = Traffic(0, 0, 0, 0)
        """Known at the end."""
        self.to_client: Traffic = Traffic(0, 0, 0, 0)


@contextmanager
def open_tunnel(conditions: Conditions, seed: int = 1) -> Iterator[Tunnel]:
    """Two machines on such a line. Raises Unavailable, before the block, where that is not to be had."""
    with open_namespaces(client="10.78.0.1", server="10.78.0.2") as (client, server), ExitStack() as stack:
        ends = []
        for namespace, other in ((client, server), (server, client)):
            device = _open_device(f"tr{os.getpid()}{namespace is server:d}")
            stack.callback(os.close, device.descriptor)
            command("ip", "link", "set", device.name, "netns", namespace.name)
            namespace.ip_batch(
                f"addr add {namespace.ip} peer {other.ip} dev {device.name}", f"link set {device.name} up"
            )
            ends.append(device.descriptor)
        tunnel = Tunnel(client, server)
        words = [sys.executable, str(PROGRAM), *map(str, ends), json.dumps(asdict(conditions)), str(seed)]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=ends) as relay:
            try:
                assert relay.stdout is not None
                relay.stdout.readline()
                yield tunnel
            finally:
                tunnel.to_server, tunnel.to_client = _end(relay)


@dataclass(frozen=True)
class _Device:
    name: str
    descriptor: int


def _open_device(name: str) -> _Device:
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        raise Unavailable(f"there are no TUN devices here: {exc.strerror}") from exc
    try:
        fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    except OSError as exc:
        os.close(descriptor)
        raise Unavailable(f"no TUN device can be made here: {exc.strerror}") from exc
    return _Device(name, descriptor)


def _end(relay: subprocess.Popen[bytes]) -> tuple[Traffic, Traffic]:
    try:
        said, _ = relay.communicate(timeout=END)
        there, back = (Traffic(**each) for each in json.loads(said))
    except BaseException:
        relay.kill()
        raise
    return there, back
