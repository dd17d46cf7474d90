"""Drives the blocks of a peer with blocking functions: a thread for each caller."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from .drive_async import SETTLE, SHORT_RUN
from .measure import Client, Command, Latencies, Meter, Sample, Window, memory_now, memory_sample, stream_length
from .peers import Call, ThreadPeer
from .workloads import MIB

__all__ = ["drive"]

now = time.perf_counter


def drive(peer: ThreadPeer, client: Client, command: Command) -> Sample:
    """One round."""
    return DRIVERS[client.setting.kind](peer, client, command)


def unary(peer: ThreadPeer, client: Client, command: Command) -> Sample:
    """Callers in loops, for the length of the window."""
    with peer.unary() as calls:
        window = Window.of(client, command)
        threads = [threading.Thread(target=until_closed, args=(call, window, window.caller())) for call in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return window.sample()


def until_closed(call: Call, window: Window, latencies: Latencies, argument: bytes | None = None) -> None:
    """The loop of a caller."""
    opens, closes, i = window.opens, window.closes, 0
    while now() < opens:
        call(i if argument is None else argument)
        i += 1
    window.start()
    start = now()
    while start < closes:
        call(i if argument is None else argument)
        end = now()
        latencies.append(end - start)
        start = end
        i += 1


def large(peer: ThreadPeer, client: Client, command: Command) -> Sample:
    """One caller and a large message."""
    data = bytes(bytearray(range(256)) * (client.setting.size // 256 + 1))[: client.setting.size]
    with peer.large() as call:
        window = Window.of(client, command)
        until_closed(call, window, window.caller(), data)
        return window.sample(per_call=len(data) / MIB)


def stream(peer: ThreadPeer, client: Client, command: Command) -> Sample:
    """One run of a stream, as long as the window."""
    meter = Meter(client)
    with getattr(peer, client.setting.kind)() as items:
        items(SHORT_RUN // 10)
        count, lengths = SHORT_RUN, [max(command.warm_up, 0.1), command.seconds]
        while True:
            meter.start()
            items(count)
            meter.stop()
            if not lengths:
                return meter.sample(count)
            count = stream_length(count, meter.elapsed, lengths.pop(0))


def short(peer: ThreadPeer, client: Client, command: Command) -> Sample:
    """One caller, and a connection for each call."""
    with peer.short() as call:
        window = Window.of(client, command)
        until_closed(call, window, window.caller())
        return window.sample()


def idle(peer: ThreadPeer, client: Client, command: Command) -> Sample:
    """Connections that have had their only call."""
    start = now()
    with peer.idle() as open_one:
        for _ in range(5):
            open_one()
        time.sleep(SETTLE)
        before = memory_now(client)
        for _ in range(command.connections):
            open_one()
        time.sleep(SETTLE)
        return memory_sample(client, before, command.connections, now() - start)


DRIVERS: dict[str, Callable[[ThreadPeer, Client, Command], Sample]] = {
    "unary": unary,
    "large": large,
    "server_stream": stream,
    "client_stream": stream,
    "bidi": stream,
    "short": short,
    "idle": idle,
}
