"""Where endpoints come from: names, files, functions; what changes is yielded, and what fails ends nothing."""

from __future__ import annotations

import logging
import os
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from trio_rpc import resolvers
from trio_rpc._endpoint import Endpoint
from trio_rpc.resolvers import Polled, dns, static, watched_file
from trio_rpc.resolvers._targets import resolver_for

NAME = "db.example.org"
COMPLETE = "db.example.org."
PORT = 7000
Found = list[tuple[float, list[str]]]


class Names(trio.abc.HostnameResolver):
    """A name server of which the test holds the zone: addresses, an error, or a function that may also wait."""

    def __init__(self, *answer: str) -> None:
        self.answer: Iterable[str] | Exception | Callable[[], Awaitable[Iterable[str]]] = answer
        self.asked: list[float] = []
        self._began = trio.current_time()
        trio.socket.set_custom_hostname_resolver(self)

    async def getaddrinfo(self, host: bytes | None, port: Any, family: int = 0, *options: int, **named: int) -> Any:
        kind = named.get("type", options[0] if options else 0)
        assert (host, kind) in [(NAME.encode(), socket.SOCK_STREAM), (COMPLETE.encode(), socket.SOCK_STREAM)]
        self.asked.append(round(trio.current_time() - self._began, 6))
        answer = await self.answer() if callable(self.answer) else self.answer
        if isinstance(answer, Exception):
            raise answer
        entries = [socket.getaddrinfo(text, port, type=kind, flags=socket.AI_NUMERICHOST)[0] for text in answer]
        return [entry for entry in entries if family in (0, entry[0])]

    def giving(self, *answers: Iterable[str] | Exception) -> Names:
        """One answer after the other; the last one stays."""
        rest = list(answers)

        async def next_answer() -> Any:
            return rest.pop(0) if len(rest) > 1 else rest[0]

        self.answer = next_answer
        return self

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


def unknown(text: str = "Name or service not known") -> socket.gaierror:
    """What a lookup of an unknown name raises."""
    return socket.gaierror(socket.EAI_NONAME, text)


def steady(resolver: Polled) -> Polled:
    """With the back-off's delays just as in its formula."""
    resolver.rng = lambda: 0.5
    return resolver


async def watch(resolver: resolvers.Resolver, seconds: float) -> Found:
    """All that a resolver yields in this time: when, and which addresses."""
    found: Found = []
    began = trio.current_time()
    with trio.move_on_after(seconds):
        async for endpoints in resolver:
            found.append((round(trio.current_time() - began, 6), [str(endpoint) for endpoint in endpoints]))
    return found


async def at(times: Iterable[float], act: Callable[[], object]) -> None:
    """Do it at each of these times from now."""
    began = trio.current_time()
    for time in times:
        await trio.sleep_until(began + time)
        act()


async def first(resolver: resolvers.Resolver) -> list[Any]:
    """The first set."""
    return list(await anext(aiter(resolver)))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged, but for what only tells of good things."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "options", "addresses", "expected"),
    [
        (NAME, {}, ["10.0.0.2", "10.0.0.1"], [Endpoint("tcp://10.0.0.1:7000"), Endpoint("tcp://10.0.0.2:7000")]),
        (NAME, {}, ["fd00::1", "10.0.0.1"], [Endpoint("tcp://10.0.0.1:7000"), Endpoint("tcp://[fd00::1]:7000")]),
        (NAME, {}, ["10.0.0.1", "10.0.0.1"], [Endpoint("tcp://10.0.0.1:7000")]),
        (NAME, {}, ["fe80::1%1"], [Endpoint("tcp://[fe80::1%1]:7000")]),
        (NAME, {}, [], []),
        (NAME, {"family": socket.AF_INET6}, ["fd00::1", "10.0.0.1"], [Endpoint("tcp://[fd00::1]:7000")]),
        (NAME, {"scheme": "tls"}, ["10.0.0.1"], [Endpoint("tls://10.0.0.1:7000", hostname=NAME)]),
        (COMPLETE, {"scheme": "tls"}, ["10.0.0.1"], [Endpoint("tls://10.0.0.1:7000", hostname=NAME)]),
        (COMPLETE, {}, ["10.0.0.1"], [Endpoint("tcp://10.0.0.1:7000")]),
        ("10.0.0.9", {"scheme": "tls"}, [], [Endpoint("tls://10.0.0.9:7000", hostname="10.0.0.9")]),
    ],
)
async def test_each_address_of_a_name_is_an_endpoint(
    host: str, options: dict[str, Any], addresses: list[str], expected: list[Endpoint]
) -> None:
    """Of both families, once each; a certificate is checked against the name; no address at all is an answer too."""
    Names(*addresses)
    assert await first(dns(host, PORT, **options)) == expected


async def test_the_system_is_asked() -> None:
    """Without a custom hostname resolver, /etc/hosts and all that belongs to it hold."""
    assert await first(dns("localhost", PORT, family=socket.AF_INET)) == [Endpoint("tcp://127.0.0.1:7000")]


async def test_a_name_is_looked_up_again(autojump_clock: MockClock) -> None:
    """N14: every interval, 30 s of themselves; what has changed is yielded, and another order is no change."""
    one, both = ["10.0.0.2"], ["10.0.0.1", "10.0.0.2"]
    names = Names().giving(both, both[::-1], one, one, [])
    found = await watch(dns(NAME, PORT), 149)
    assert found == [(0, ["tcp://10.0.0.1:7000", "tcp://10.0.0.2:7000"]), (60, ["tcp://10.0.0.2:7000"]), (120, [])]
    assert names.asked == [0, 30, 60, 90, 120]


@pytest.mark.parametrize(
    ("refreshed", "asked"),
    [
        ([], [0, 30, 60]),
        ([5], [0, 5, 35, 65]),
        ([0.25], [0, 1, 31, 61]),  # a second after the one before
        ([5, 5.25, 5.5, 5.75], [0, 5, 6, 36, 66]),  # what is asked for together is done once
        ([5.25, 5.5, 7], [0, 5.25, 6.25, 7.25, 37.25, 67.25]),
        ([29.5, 30.5], [0, 29.5, 30.5, 60.5]),
    ],
)
async def test_a_pool_asks_for_an_earlier_look(
    autojump_clock: MockClock, refreshed: list[float], asked: list[float]
) -> None:
    """At once, but not twice within a second, however many connections were lost; the interval begins anew."""
    names, resolver = Names("10.0.0.1"), dns(NAME, PORT)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(at, refreshed, resolver.refresh)
        assert len(await watch(resolver, 69)) == 1
    assert names.asked == asked


async def test_an_interval_below_a_second(autojump_clock: MockClock) -> None:
    """It holds: a pool that asks makes no look come later."""
    names, resolver = Names("10.0.0.1"), dns(NAME, PORT, interval=0.5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(at, [0.25], resolver.refresh)
        await watch(resolver, 1.25)
    assert names.asked == [0, 0.5, 1]


async def test_asked_during_a_look(autojump_clock: MockClock) -> None:
    """What was lost while a look was under way may be newer than its answer: there is another one."""
    names, resolver = Names(), dns(NAME, PORT)

    async def slow() -> list[str]:
        await trio.sleep(2)
        return ["10.0.0.1"]

    names.answer = slow
    async with trio.open_nursery() as nursery:
        nursery.start_soon(at, [1], resolver.refresh)
        assert [time for time, _ in await watch(resolver, 35)] == [2]
    assert names.asked == [0, 2, 32]


# -- failures ----------------------------------------------------------------------------------------------------------


async def test_failed_looks_are_tried_again(autojump_clock: MockClock) -> None:
    """With gRPC's back-off, start to start, which no pool hastens, but never more rarely than the interval."""
    names = Names()
    names.answer = unknown()
    resolver = steady(dns(NAME, PORT, interval=5))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(at, [0.5, 1.5, 6, 11], resolver.refresh)
        nursery.start_soon(at, [20], lambda: setattr(names, "answer", ["10.0.0.1"]))
        assert await watch(resolver, 35) == [(24.256, ["tcp://10.0.0.1:7000"])]
    assert names.asked == [0, 1, 2.6, 5.16, 9.256, 14.256, 19.256, 24.256, 29.256, 34.256]


async def test_the_back_off_begins_anew_after_an_answer(autojump_clock: MockClock) -> None:
    """The first failure after an answer is the first one; and the same answer after it is no change."""
    names = Names().giving(unknown(), unknown(), ["10.0.0.1"], unknown(), ["10.0.0.1"], ["10.0.0.1"])
    assert await watch(steady(dns(NAME, PORT)), 80) == [(2.6, ["tcp://10.0.0.1:7000"])]
    assert names.asked == [0, 1, 2.6, 32.6, 33.6, 63.6]


async def test_delays_are_spread(autojump_clock: MockClock) -> None:
    """Many clients of one name that is gone do not ask all at once for it."""
    names = Names()
    names.answer = unknown()
    resolver = dns(NAME, PORT)
    resolver.rng = iter([0.0, 1.0, 0.5]).__next__
    await watch(resolver, 3)
    assert names.asked == [0, 0.8, 2.72]


async def test_a_failure_is_told_once(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """One warning for each change of the reason, one line when it is over; `problem` says how it stands."""
    caplog.set_level(logging.INFO)
    timeout, answer = TimeoutError("too slow"), ["10.0.0.1"]
    Names().giving(unknown(), unknown(), answer, unknown(), timeout, timeout, unknown(), [])
    resolver = steady(dns(NAME, PORT, interval=1))
    problems = [resolver.problem]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, resolver, 7.75)
        nursery.start_soon(at, [0.5 + second for second in range(8)], lambda: problems.append(resolver.problem))
    gone, slow = f"dns://{NAME}:7000: Name or service not known", f"dns://{NAME}:7000: too slow"
    assert problems == [None, gone, gone, None, gone, slow, slow, gone, None]
    kept, again = "; the last answer stays", f"dns://{NAME}:7000: resolved again"
    assert caplog.messages == [gone, again, gone + kept, slow + kept, gone + kept, again]


async def test_a_lookup_has_a_bound(autojump_clock: MockClock) -> None:
    """A name server that never answers is asked anew, and the problem has a name."""
    names = Names()
    names.answer = trio.sleep_forever
    resolver = steady(dns(NAME, PORT, timeout=10))
    assert await watch(resolver, 25) == []
    assert names.asked == [0, 10, 20]
    assert resolver.problem == f"dns://{NAME}:7000: no answer within 10 s"


async def test_a_function_of_ones_own(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """Any async function can be polled; whatever it raises, or returns, is logged with its place and ends nothing."""
    answers: list[Any] = [["tcp://a:1"], KeyError("down"), ["nonsense"], 7, ("tcp://b:2", Endpoint("tcp://a:1", 3))]

    async def inventory() -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    resolver = steady(Polled(inventory, interval=1, name="inventory"))
    assert await watch(resolver, 4.5) == [(0, ["tcp://a:1"]), (4, ["tcp://b:2", "tcp://a:1"])]
    assert [(record.message.partition(";")[0], bool(record.exc_info)) for record in caplog.records] == [
        ("inventory: KeyError('down')", True),
        (
            "inventory: 'nonsense' is no address: write tcp://host:port, tls://host:port, unix:///path or unix:@name",
            False,
        ),
        ("inventory: TypeError(\"'int' object is not iterable\")", True),
    ]


async def test_a_changed_weight_is_a_change(autojump_clock: MockClock) -> None:
    """And so is a changed name of a certificate."""
    sets = [[Endpoint("tls://a:1")], [Endpoint("tls://a:1", 2)], [Endpoint("tls://a:1", 2, "b")]]

    async def inventory() -> Any:
        return sets[min(2, int(trio.current_time() - began))]

    began = trio.current_time()
    assert [time for time, _ in await watch(Polled(inventory, interval=1), 10)] == [0, 1, 2]


# -- iterations --------------------------------------------------------------------------------------------------------


async def test_cancelled_at_any_point_it_goes_on(autojump_clock: MockClock) -> None:
    """An iteration that was cancelled, in a look or between two, can be taken up again."""
    names, resolver = Names(), dns(NAME, PORT)

    async def slow() -> list[str]:
        await trio.sleep(1)
        return [f"10.0.0.{len(names.asked)}"]

    names.answer = slow
    sets = aiter(resolver)
    found = []
    for patience in [0.5, 2, 10, 30]:
        with trio.move_on_after(patience):
            found.append([str(endpoint) for endpoint in await anext(sets)])
    assert found == [["tcp://10.0.0.2:7000"], ["tcp://10.0.0.3:7000"]]
    assert names.asked == [0, 0.5, 30.5]


async def test_two_pools_may_share_a_resolver(autojump_clock: MockClock) -> None:
    """Each iteration gets every change, and both hear of a refresh."""
    names, resolver = Names("10.0.0.1"), dns(NAME, PORT)
    sets: list[Found] = []

    async def keep() -> None:
        sets.append(await watch(resolver, 20))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep)
        nursery.start_soon(keep)
        await trio.sleep(10)
        names.answer = ["10.0.0.2"]
        resolver.refresh()
    assert sets == [[(0, ["tcp://10.0.0.1:7000"]), (10, ["tcp://10.0.0.2:7000"])]] * 2


async def test_a_static_set_stays(autojump_clock: MockClock) -> None:
    """It is yielded once to each who asks, and never ends."""
    resolver = static("tcp://a:1", Endpoint("tcp://b:2", 3))
    for _ in range(2):
        assert await watch(resolver, 1000) == [(0, ["tcp://a:1", "tcp://b:2"])]
    assert str(resolver) == "tcp://a:1, tcp://b:2"


# -- files -------------------------------------------------------------------------------------------------------------


class Watched:
    """A watched file, on a clock that only the test turns: each `look` is one look, done when it returns."""

    def __init__(self, path: Path, clock: MockClock) -> None:
        self.path = path
        self.resolver = watched_file(path)
        self.sets: list[list[str]] = []
        self._clock, self._looks = clock, 0
        self._look, self.resolver.look = self.resolver.look, self._counted
        self.resolver.rng = lambda: 0.5

    async def run(self) -> None:
        """Keep what is yielded."""
        async for endpoints in self.resolver:
            self.sets.append([f"{endpoint.address} {endpoint.weight:g}" for endpoint in endpoints])

    async def look(self) -> list[list[str]]:
        """Let a second go by; returns what was yielded in it."""
        before, known = self._looks, len(self.sets)
        self._clock.jump(1)
        while self._looks == before:
            await trio.lowlevel.checkpoint()  # A thread is not in virtual time.
        return self.sets[known:]

    def replace(self, text: str) -> None:
        """As one should."""
        other = self.path.with_suffix(".new")
        other.write_text(text)
        other.rename(self.path)

    async def _counted(self) -> Any:
        try:
            return await self._look()
        finally:
            self._looks += 1


@pytest.fixture
async def watched(tmp_path: Path, mock_clock: MockClock, nursery: trio.Nursery) -> Watched:
    """A file with one endpoint, looked at once. The test itself must ask for `mock_clock`, too."""
    assert trio.lowlevel.current_clock() is mock_clock
    watched = Watched(tmp_path / "servers", mock_clock)
    watched.path.write_text("tcp://a:1")
    nursery.start_soon(watched.run)
    assert await watched.look() == [["tcp://a:1 1"]]
    return watched


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tcp://a:1\ntcp://b:2\n", ["tcp://a:1 1", "tcp://b:2 1"]),
        ("tcp://a:1 2.5\n\ttcp://b:2   1e-3  \n", ["tcp://a:1 2.5", "tcp://b:2 0.001"]),
        ("# all of them\n\n  # but\ntcp://a:1 # not\ntls://b:2 3# these\r\n", ["tcp://a:1 1", "tls://b:2 3"]),
        ("\ufeffunix:/run/b.sock\nunix:@c", ["unix:///run/b.sock 1", "unix:@c 1"]),
        ("tcp://a:1\ntcp://a:1 2\n", ["tcp://a:1 3"]),
        ("", []),
        ("# none\n", []),
    ],
)
async def test_a_file_lists_endpoints(watched: Watched, mock_clock: MockClock, text: str, expected: list[str]) -> None:
    """An address and a weight a line, comments and blank lines left out; none at all is an answer too."""
    watched.path.write_text("tcp://z:9")
    await watched.look()
    watched.path.write_text(text, encoding="utf-8")
    assert await watched.look() == [expected]
    assert await watched.look() == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            b"tcp://b:2\ntcp://c",
            "line 2: 'tcp://c' has no valid port: write tcp://host:port with a port from 1 to 65535",
        ),
        (b"\n\ntcp://c:0", "line 3: tcp://c:0 has port 0, which is for listening"),
        (b"tcp://b:2 heavy", "line 1: 'heavy' is no weight: write a number after the address, or nothing"),
        (b"tcp://b:2 0", "line 1: weight must be more than 0 and finite, not 0.0: leave out what is to get no calls"),
        (b"tcp://b:2 nan", "line 1: weight must be more than 0 and finite, not nan"),
        (b"tcp://b:2 1 tcp://c:3", "line 1: 'tcp://c:3' is one word too many: write an address, or an address and"),
        (b"tcp://b:2\n\xff\xfe", "line 2: 'utf-8' codec can't decode byte 0xff"),
        (None, "No such file or directory"),
        ("directory", "Is a directory"),
        ("pipe", "it is no regular file"),
        ("long", "it has 16777217 bytes, and a list of addresses no more than 16777216"),
    ],
)
async def test_a_bad_file_changes_nothing(
    watched: Watched, mock_clock: MockClock, text: bytes | str | None, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The last good set stays; file, line and reason are logged once; what is mended then is taken."""
    watched.path.unlink()
    if isinstance(text, bytes):
        watched.path.write_bytes(text)
    elif text == "directory":
        watched.path.mkdir()
    elif text == "pipe":
        os.mkfifo(watched.path)
    elif text == "long":
        watched.path.touch()
        os.truncate(watched.path, 16 * 1024 * 1024 + 1)
    assert [await watched.look() for _ in range(5)] == [[]] * 5
    [warning] = warnings(caplog)
    assert warning.startswith(f"file://{watched.path}: {problem}")
    assert watched.resolver.problem == warning.removesuffix("; the last answer stays")
    if text == "directory":
        watched.path.rmdir()
    watched.replace("tcp://b:2")
    assert await watched.look() == [["tcp://b:2 1"]]
    assert watched.resolver.problem is None


async def test_a_file_that_stays_bad_takes_no_more_memory_with_each_look(tmp_path: Path, mock_clock: MockClock) -> None:
    """The one error that is raised again and again does not gather the frames of all looks."""
    path = tmp_path / "servers"
    path.write_text("nonsense")
    resolver = watched_file(path)
    depths = set()
    for _ in range(6):
        with pytest.raises(ValueError, match="line 1") as caught:
            await resolver.look()
        depths.add(len(caught.traceback))
        mock_clock.jump(1)
    assert len(depths) == 1


async def test_the_order_of_lines_is_no_change(watched: Watched, mock_clock: MockClock) -> None:
    """Nor is a comment."""
    watched.replace("tcp://a:1\ntcp://b:2")
    assert len(await watched.look()) == 1
    watched.replace("tcp://b:2 1\ntcp://a:1 # old")
    assert await watched.look() == []


def test_a_file_is_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that begins nowhere begins in the directory of the moment, for good."""
    monkeypatch.chdir(tmp_path)
    assert str(watched_file("servers")) == f"file://{tmp_path}/servers"


async def test_a_file_that_is_not_there_yet(
    tmp_path: Path, mock_clock: MockClock, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    """It may come later; until then there is no set at all."""
    watched = Watched(tmp_path / "servers", mock_clock)
    nursery.start_soon(watched.run)
    assert await watched.look() == []
    assert warnings(caplog) == [f"file://{watched.path}: No such file or directory"]
    watched.replace("tcp://b:2")
    assert await watched.look() == [["tcp://b:2 1"]]


async def test_a_file_is_replaced(watched: Watched, mock_clock: MockClock) -> None:
    """Another file with the same name, size and times is another file."""
    for letter in "bcde":
        times = watched.path.stat()
        other = watched.path.with_suffix(".new")
        other.write_text(f"tcp://{letter}:1")
        os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
        for _ in range(5):  # Until the times that there were are long trusted.
            assert await watched.look() == []
        other.rename(watched.path)
        assert await watched.look() == [[f"tcp://{letter}:1 1"]]


async def test_a_file_is_written_twice_in_one_tick(watched: Watched, mock_clock: MockClock) -> None:
    """A file system's clock is coarse: what has just been written is read once more, even if it looks the same."""
    times = watched.path.stat()
    watched.path.write_text("tcp://b:1")
    os.utime(watched.path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert await watched.look() == [["tcp://b:1 1"]]


async def test_a_file_at_rest_is_not_read(
    watched: Watched, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once its times can be trusted, a look costs one system call."""
    await watched.look()
    await watched.look()
    opened: list[str] = []
    system_open = os.open

    def spy(path: str, flags: int, *rest: Any) -> int:
        opened.append(path)
        return system_open(path, flags, *rest)

    monkeypatch.setattr(os, "open", spy)
    for _ in range(3):
        await watched.look()
    assert opened == []
    watched.path.write_text("tcp://b:22")
    assert await watched.look() == [["tcp://b:22 1"]]
    assert len(opened) == 1


async def test_a_file_leaves_nothing_open(watched: Watched, mock_clock: MockClock) -> None:
    """Neither a good file nor what is none keeps a descriptor."""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        watched.replace("tcp://b:2")
        await watched.look()
        watched.path.unlink()
        watched.path.mkdir()
        await watched.look()
        watched.path.rmdir()
    assert len(os.listdir("/proc/self/fd")) == before


# -- texts and bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("dns://db.example.org:7000", "dns://db.example.org:7000"),
        ("dns:///db.example.org:7000", "dns://db.example.org:7000"),
        ("dns://[fd00::1]:7000", "dns://[fd00::1]:7000"),
        ("file:///run/servers", "file:///run/servers"),
        ("file:///run/my%20servers", "file:///run/my%20servers"),
        (Path("/run/my servers").as_uri(), "file:///run/my%20servers"),
        ("tcp://a:1", None),
        ("unix:///run/a.sock", None),
        ("nonsense", None),
    ],
)
def test_resolvers_as_text(text: str, name: str | None) -> None:
    """A target's text may name a resolver; what does not is an address, or an error of those who read these."""
    resolver = resolver_for(text)
    assert (resolver and str(resolver)) == name


async def test_resolvers_as_text_work(tmp_path: Path) -> None:
    """`dns://` with a TLS context means TLS, checked against the name; a blank in a path is written as in any URL."""
    Names("10.0.0.1")
    path = tmp_path / "my servers"
    path.write_text("tcp://a:1")
    for text, ssl_context, expected in [
        (f"dns://{NAME}:1", None, Endpoint("tcp://10.0.0.1:1")),
        (f"dns://{NAME}:1", ssl.create_default_context(), Endpoint("tls://10.0.0.1:1", hostname=NAME)),
        (path.as_uri(), None, Endpoint("tcp://a:1")),
    ]:
        resolver = resolver_for(text, ssl_context)
        assert resolver is not None
        assert await first(resolver) == [expected]


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: dns("", 1), "'' is no host name"),
        (lambda: dns("tcp://a", 1), "'tcp://a' is no host name"),
        (lambda: dns("a", 0), "0 is no port: write the server's, from 1 to 65535"),
        (lambda: dns("a", 65536), "65536 is no port"),
        (lambda: dns("a", 1, scheme="unix"), "scheme must be 'tcp' or 'tls', not 'unix'"),  # type: ignore[arg-type]
        (lambda: dns("a", 1, interval=0), "interval must be more than 0 seconds and finite, not 0"),
        (lambda: dns("a", 1, timeout=float("nan")), "timeout must be more than 0 seconds and finite, not nan"),
        (lambda: watched_file("/x", interval=float("inf")), "interval must be more than 0 seconds and finite, not inf"),
        (lambda: static("a"), "'a' is no address"),
        (lambda: resolver_for("dns://a"), "'dns://a' names no host and port: write dns://host:port"),
        (lambda: resolver_for("dns://a:0"), "'dns://a:0' has port 0, which is for listening: write the servers' port"),
        (lambda: resolver_for("dns://:1"), "'dns://:1' names no host and port"),
        (lambda: resolver_for("file://servers"), "'file://servers' names no file: write file:///path"),
        (lambda: resolver_for("file:///"), "'file:///' names no file"),
    ],
)
def test_bad_arguments(make: Callable[[], object], complaint: str) -> None:
    """One sentence that says what is wrong, before anything is looked up."""
    with pytest.raises(ValueError, match="^" + re.escape(complaint)):
        make()
