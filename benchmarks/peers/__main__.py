"""One process of a peer: `python -m benchmarks.peers NAME server|client SETTING [SERVER_PID ...]`.

A server writes `PORT n` to stdout as soon as it listens, and serves until it is killed. A client writes `READY`, then
answers each command on stdin (a line of JSON, see `benchmarks.measure.Command`) with `RESULT` and a line of JSON.
"""

from __future__ import annotations

import fcntl
import os
import stat
import sys
from importlib import import_module
from typing import cast

from .. import drive_async, drive_threads
from ..measure import Client, answer_commands
from ..registry import PEERS
from ..workloads import Setting
from . import Peer, ThreadPeer


def main(name: str, role: str, setting_text: str, *server_pids: str) -> None:
    """Be one process of the peer."""
    entry = PEERS[name]
    setting = Setting.parse(setting_text)
    factory = import_module(f"benchmarks.{entry.module}").peer
    peer = cast("Peer | ThreadPeer", factory(setting, entry.variant))
    if role == "server":
        serve(peer)
    else:
        drive = drive_threads.drive if isinstance(peer, ThreadPeer) else drive_async.drive
        client = Client(setting, [int(pid) for pid in server_pids])
        answer_commands(lambda command: drive(peer, client, command))  # type: ignore[arg-type]


def serve(peer: Peer | ThreadPeer) -> None:
    """Serve until killed, or until the command has ended in whatever way."""
    end_with_command()
    if isinstance(peer, ThreadPeer):
        peer.serve(announce)
    else:
        drive_async.run(peer.runtime, lambda: peer.serve(announce))


def end_with_command() -> None:
    """Ask the kernel for SIGIO, whose default is to end us, when the other end of our stdin is closed.

    A thread that waits for that would be one more in the server that is measured.
    """
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)


def announce(port: int) -> None:
    """Tell the command where we listen."""
    print(f"PORT {port}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
