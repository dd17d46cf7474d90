"""The log under attack: few lines, one line each, and what counts is not lost among what does not."""

from __future__ import annotations

import io
import logging
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import msgpack
import pytest
import trio
from trio.testing import MockClock

import trio_rpc
from tests.guarantees.kit import RawClient
from trio_rpc import ServerLimits, method
from trio_rpc.testing import MemoryListener, open_loopback
from trio_rpc.wire import PREFACE, Hello, Protocol, Role, method_block

QUIET = trio_rpc.Heartbeat(interval=None)
LINES = 10
"""What all peers together may have written in any second (R21)."""


class Clerk(logging.Handler):
    """Notes each line with the virtual time at which it was written."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[float, int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((trio.current_time(), record.levelno, record.getMessage()))

    @property
    def most_in_a_second(self) -> int:
        """Of any second, wherever it begins."""
        times = [time for time, _, _ in self.lines]
        return max((sum(begin <= time < begin + 1 for time in times) for begin in times), default=0)

    def of(self, level: int) -> list[str]:
        """The lines of one level."""
        return [text for _, found, text in self.lines if found == level]


@pytest.fixture
def clerk() -> Iterator[Clerk]:
    """Everything that is written, at any level."""
    logger, clerk = logging.getLogger("trio_rpc"), Clerk()
    level = logger.level
    logger.addHandler(clerk)
    logger.setLevel(logging.DEBUG)
    yield clerk
    logger.removeHandler(clerk)
    logger.setLevel(level)


class Weak:
    """What fails, and what does not."""

    @method
    async def fails(self) -> None:
        raise ValueError("on purpose")

    @method
    async def fails_otherwise(self) -> None:
        raise TypeError("on purpose")

    @method
    async def wrong(self) -> int:
        return "text"  # type: ignore[return-value]

    @method
    async def echo(self, value: int) -> int:
        return value

    @method
    async def clings(self) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(30)


class World:
    """A server, and those who attack it."""

    def __init__(self, listener: MemoryListener) -> None:
        self.listener = listener

    async def say(self, data: bytes) -> None:
        """Connect, say this, and wait for the end."""
        async with await self.listener.connect() as stream:
            with trio.move_on_after(5):
                try:
                    await stream.send_all(data)
                    while await stream.receive_some():
                        pass
                except trio.BrokenResourceError:
                    pass

    async def client(self) -> RawClient:
        """One that has said HELLO."""
        client = RawClient(await self.listener.connect())
        await client.greet()
        return client


@asynccontextmanager
async def world(**options: Any) -> AsyncIterator[World]:
    """A server with these options."""
    listener = MemoryListener()
    options.setdefault("heartbeat", QUIET)
    async with trio_rpc.open_server(Weak(), listener, **options):
        yield World(listener)


GREETING = Protocol(Role.DIALLER, Hello()).greeting()


async def strangers(w: World) -> None:
    """A connection that speaks something else."""
    await w.say(b"GET / HTTP/1.1\r\n\r\n")


async def bad_hellos(w: World) -> None:
    """One whose HELLO is none."""
    await w.say(PREFACE + GREETING[len(PREFACE) :].replace(b"{", b"\x1b[2J"[:1]))


async def bad_frames(w: World) -> None:
    """One that has said HELLO, and sends rubbish behind it."""
    client = await w.client()
    await client.stream.send_all(b"\xff" * 64)
    with trio.move_on_after(5):
        while await client.stream.receive_some():
            pass
    await client.stream.aclose()


async def bad_tokens(w: World) -> None:
    """Credentials that `authenticate` fails on, and repeats."""
    await w.say(Protocol(Role.DIALLER, Hello(credentials={"token": "\n\x1b[2J" + "A" * 500})).greeting())


async def dead_peers(w: World) -> None:
    """One that says HELLO, and nothing more."""
    async with await w.listener.connect() as stream:
        await stream.send_all(GREETING)
        await trio.sleep(4)


def calls(name: str, payload: bytes = b"\x90") -> Callable[[World], Awaitable[None]]:
    """A client with twenty calls of this."""

    async def attack(w: World) -> None:
        client = await w.client()
        for _ in range(20):
            frames = client.protocol.request(method_block(name), payload)[1]
            await client.send(frames)
        await trio.sleep(0.1)
        await client.stream.aclose()

    return attack


async def refuse(credentials: Any, _origin: object) -> str:
    """Fails, with the token in its text."""
    raise ValueError(f"no such token: {credentials['token']}")


FLOODS: dict[str, tuple[Callable[[World], Awaitable[None]], dict[str, Any]]] = {
    "strangers": (strangers, {}),
    "bad HELLOs": (bad_hellos, {}),
    "bad frames": (bad_frames, {}),
    "refused credentials": (bad_tokens, {"authenticate": refuse}),
    "peers that die": (dead_peers, {"heartbeat": trio_rpc.Heartbeat(interval=1, timeout=1)}),
    "unknown methods": (calls("Weak.\n\x1b[2J" + "A" * 200), {}),
    "arguments that do not fit": (calls("Weak.echo", msgpack.packb(["\n\x1b[2J" + "A" * 500])), {}),
    "handlers that fail": (calls("Weak.fails"), {}),
    "results that cannot be sent": (calls("Weak.wrong"), {}),
    "handlers that cling": (calls("Weak.clings"), {"limits": ServerLimits(cancel_warn_after=0.5)}),
    "handshakes that stop": (lambda w: w.say(GREETING[:5]), {"limits": ServerLimits(handshake_timeout=0.5)}),
}


@pytest.mark.parametrize("flood", FLOODS)
async def test_a_flood_fills_no_log(flood: str, autojump_clock: MockClock, clerk: Clerk) -> None:
    """R21, X11, X17: whatever six hundred connections do, the log gets at most ten lines a second, each on one line and with
    nothing in it that a terminal would act on, or that goes on for 500 characters.
    """
    attack, options = FLOODS[flood]
    async with world(**options) as w, trio.open_nursery() as nursery:
        for _ in range(60):
            for _ in range(10):
                nursery.start_soon(attack, w)
            await trio.sleep(0.05)
    assert clerk.most_in_a_second <= LINES
    quiet = flood in ("unknown methods", "arguments that do not fit")  # Told to who asked, and to nobody else.
    assert bool(clerk.lines) is not quiet
    for _, _, text in clerk.lines:
        head = text.partition("\n")[0] if text.startswith("authenticate failed") else text
        assert head.isprintable()
        assert "A" * 161 not in text
        assert "\x1b" not in text


async def test_all_of_them_together(autojump_clock: MockClock, clerk: Clerk) -> None:
    """R21: ten lines are for all kinds, all loggers and both sides together; and one of them says how many there were."""
    async with world() as w, trio.open_nursery() as nursery:
        for _ in range(40):
            for attack in (strangers, bad_hellos, bad_frames, calls("Weak.fails"), calls("Weak.wrong")):
                for _ in range(3):
                    nursery.start_soon(attack, w)
            await trio.sleep(0.1)
    assert clerk.most_in_a_second <= LINES
    counts = [int(text.split()[0]) for _, _, text in clerk.lines if "more lines were left out" in text]
    assert len(counts) >= 3
    assert sum(counts) > 1000


async def test_what_counts_is_not_lost(autojump_clock: MockClock, clerk: Clerk) -> None:
    """R21: a few lines of each level find room whatever is written of the others: so a failing handler does, and its
    caller gets an id.
    """
    async with world() as w, trio.open_nursery() as nursery:

        async def flood() -> None:
            while True:
                nursery.start_soon(strangers, w)
                nursery.start_soon(bad_frames, w)
                await trio.sleep(0.01)

        async with trio_rpc.open_pool(w.listener.connect, heartbeat=QUIET) as pool:
            await pool.connect()
            nursery.start_soon(flood)
            for _ in range(10):
                await trio.sleep(1.5)
                with pytest.raises(trio_rpc.RemoteError) as caught:
                    await pool.stub(Weak).fails_otherwise()
                assert caught.value.error_id
        nursery.cancel_scope.cancel()
    assert len(clerk.of(logging.ERROR)) == 10
    assert clerk.most_in_a_second <= LINES


async def test_failures_do_not_hide_what_else_there_is(autojump_clock: MockClock, clerk: Clerk) -> None:
    """R21: nor does one method that fails all the time keep the lines about strangers and bad peers out."""
    async with world() as w, trio.open_nursery() as nursery:
        for _ in range(50):
            for _ in range(3):
                nursery.start_soon(calls("Weak.fails"), w)
            await trio.sleep(0.1)
        begun = len(clerk.lines)
        for attack in (strangers, bad_frames):
            nursery.start_soon(attack, w)
        nursery.start_soon(calls("Weak.fails"), w)
    levels = [level for _, level, text in clerk.lines[begun:] if "left out" not in text]
    assert {logging.INFO, logging.WARNING} <= set(levels)


async def test_who_finds_no_place_gets_no_id(autojump_clock: MockClock, clerk: Clerk) -> None:
    """R21, P05: six failures in a second are written, the seventh is not, and its caller is promised nothing; a second later
    there is room again, and a line says what was left out.
    """
    async with open_loopback(Weak()) as pool:
        ids: list[str] = []

        async def fail() -> None:
            with pytest.raises(trio_rpc.RemoteError) as caught:
                await pool.stub(Weak).fails()
            ids.append(caught.value.error_id)
            assert ("error id" in str(caught.value)) is bool(ids[-1])

        for _ in range(12):
            await fail()
        assert Counter(map(bool, ids)) == {True: 6, False: 6}
        await trio.sleep(0.999)
        await fail()
        assert ids[-1] == ""
        await trio.sleep(0.001)
        await fail()
        assert ids[-1]
    texts = [text for _, _, text in clerk.lines]
    assert texts[6] == "7 more lines were left out in the last 1.0 s"
    assert len(texts) == 8


async def test_what_nobody_reads_costs_nothing(autojump_clock: MockClock) -> None:
    """R21: lines of a level that is off take no place from others."""
    logger, clerk = logging.getLogger("trio_rpc"), Clerk()
    logger.addHandler(clerk)
    logger.setLevel(logging.ERROR)
    try:
        async with world() as w:
            for _ in range(20):
                await w.say(b"GET / HTTP/1.1\r\n\r\n")
                await bad_frames(w)
            async with trio_rpc.open_pool(w.listener.connect, heartbeat=QUIET) as pool:
                for _ in range(6):
                    with pytest.raises(trio_rpc.RemoteError, match="error id"):
                        await pool.stub(Weak).fails()
    finally:
        logger.removeHandler(clerk)
        logger.setLevel(logging.NOTSET)
    assert [level for _, level, _ in clerk.lines] == [logging.ERROR] * 6


def test_runs_do_not_share(clerk: Clerk) -> None:
    """Each Trio run has its own allowance: its clock is its own, too."""

    async def main() -> None:
        async with open_loopback(Weak()) as pool:
            with pytest.raises(trio_rpc.RemoteError, match="error id"):
                await pool.stub(Weak).fails()

    for _ in range(12):
        trio.run(main)
    assert len(clerk.of(logging.ERROR)) == 12


async def test_a_traceback_that_cannot_be_shown(autojump_clock: MockClock) -> None:
    """P07: the line is written without it, and says why."""

    class Unlike(BaseException):
        def __str__(self) -> str:
            raise SystemExit

        @property
        def __cause__(self) -> Any:  # type: ignore[override]
            raise SystemExit

    class Strange(Weak):
        @method
        async def strange(self) -> None:
            raise Unlike

    stream = io.StringIO()
    handler, logger = logging.StreamHandler(stream), logging.getLogger("trio_rpc")
    logger.addHandler(handler)
    try:
        async with open_loopback(Strange()) as pool:
            with pytest.raises(trio_rpc.RemoteError) as caught:
                await pool.stub(Strange).strange()
            assert await pool.stub(Strange).echo(1) == 1
    finally:
        logger.removeHandler(handler)
    assert caught.value.error_id in stream.getvalue()


EVIL = "go away\n2026-01-01 CRITICAL all is lost\x1b[2J\r\x07 " + "A" * 1000


async def test_a_hostile_servers_words(autojump_clock: MockClock, clerk: Clerk) -> None:
    """X11, X16: what a server says of its refusal is one line of at most 160 characters in a client's log."""
    listener = MemoryListener()

    async def refuse_all() -> None:
        while True:
            stream = await listener.accept()
            await stream.send_all(PREFACE + Protocol(Role.ACCEPTOR, Hello()).goaway(0, trio_rpc.Code.INTERNAL, EVIL))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(refuse_all)
        async with trio_rpc.open_pool(listener.connect, heartbeat=QUIET) as pool:
            with pytest.raises(trio_rpc.RpcError):
                await pool.stub(Weak).echo(1)
        nursery.cancel_scope.cancel()
    [line, *_] = clerk.of(logging.INFO)
    assert "go away\\n2026" in line
    assert line.isprintable()
    assert len(line) < 200


@pytest.mark.skipif(sys.platform != "linux", reason="abstract UNIX sockets are Linux's")
async def test_a_clients_own_address(clerk: Clerk) -> None:
    """X11: the name to which a client has bound its UNIX socket is its own choice, and is escaped."""
    async with trio_rpc.open_server(Weak(), "unix:@trio_rpc-names-of-clients", heartbeat=QUIET):
        with trio.socket.socket(socket.AF_UNIX) as sock:
            await sock.bind("\0trio_rpc-evil\n\x1b[2J")
            await sock.connect("\0trio_rpc-names-of-clients")
            await sock.send(b"GET / HTTP/1.1\r\n\r\n")
            while await sock.recv(1000):
                pass
    [line] = clerk.of(logging.INFO)
    assert "@trio_rpc-evil\\n\\x1b[2J" in line
    assert line.isprintable()
