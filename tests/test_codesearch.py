"""The code search: its index against a plain scan, its gateway in memory, and the demo as real processes."""

from __future__ import annotations

import os
import pty
import random
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path

import pytest
import trio
import trio.testing
from attrs import define
from hypothesis import given, strategies as st

import trio_rpc
from examples.codesearch.audit import PlainScan, Result
from examples.codesearch.contract import Answer, BadPattern, Enough, Match, Missing, Query, Search, ShareStats
from examples.codesearch.corpus import read_documents, share_of, source_paths, standard_library
from examples.codesearch.fleet import WorkerFailed, open_fleet
from examples.codesearch.gateway import Gateway
from examples.codesearch.index import Document, Index, compile_query
from examples.codesearch.screen import excerpt
from examples.codesearch.worker import IndexedShare
from trio_rpc.testing import FaultyStream, Freeze, open_loopback

ROOT = Path(__file__).resolve().parent.parent
SMALL = standard_library() / "asyncio"
"""Real files, and few enough to be indexed at once."""
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
"""What a pipe must not carry; lines end with a newline alone."""


# -- the files and the index -------------------------------------------------------------------------------------------


def test_the_sources_are_those_of_the_running_python() -> None:
    """Files and packages of the standard library are among them, and nothing that was installed."""
    paths = source_paths(standard_library())
    assert {"contextvars.py", "asyncio/tasks.py"} <= set(paths)
    assert not [path for path in paths if "site-packages" in path or not path.endswith(".py")]


@pytest.mark.parametrize("of", [1, 2, 3, 7])
def test_every_file_is_in_exactly_one_share(of: int) -> None:
    """The shares are disjoint, whole, and equal but for one file."""
    paths = source_paths(SMALL)
    shares = [share_of(paths, number, of) for number in range(1, of + 1)]
    assert sorted(path for share in shares for path in share) == paths
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.fixture(scope="module")
def index() -> Index:
    """An index of real files."""
    return Index(read_documents(SMALL, source_paths(SMALL)))


def scan(documents: Sequence[Document], query: Query) -> set[Match]:
    """What a search through all lines finds."""
    pattern = compile_query(query)
    return {match for document in documents for match in document.matches(pattern)}


@pytest.mark.parametrize(
    "query",
    [
        Query("deadlock"),
        Query("DEADLOCK", ignore_case=True),
        Query("if"),  # too short for the index
        Query("def __init__(self"),  # its parenthesis is no group
        Query(r"class \w+Error\b", regex=True),
        Query(r"async\s+def [a-z_]{3,9}\(", regex=True),
        Query(r"^import (os|sys)$", regex=True),
        Query(r"[Cc]ancel+ed", regex=True),
        Query(r"\x64eadlock", regex=True),
        Query("no such text anywhere"),
    ],
    ids=lambda query: query.pattern,
)
def test_the_index_loses_nothing(index: Index, query: Query) -> None:
    """What is found in the candidates is what is found in all files."""
    assert scan(index.candidates(query), query) == scan(index.documents, query)


def test_the_index_spares_most_files(index: Index) -> None:
    """A rare text is looked for in few files; one without three certain characters in all of them."""
    assert len(index.candidates(Query("run_until_complete"))) < len(index.documents) / 3
    assert index.candidates(Query("zzzzqqqq")) == []
    assert len(index.candidates(Query("x.y", regex=True))) == len(index.documents)


PIECES = [
    "abc",
    "ABC",
    "a",
    "bcd",
    r"\w",
    r"\.",
    r"\x61",
    "[ab]",
    "[^]b]",
    r"[\]x]",
    ".",
    "*",
    "+",
    "?",
    "{2}",
    "{0,3}",
    "^",
    "$",
    "|",
    "(b)",
]


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=8), st.text("abcdABC.]x", max_size=12), st.booleans())
def test_no_regular_expression_escapes_the_index(pieces: list[str], text: str, ignore_case: bool) -> None:
    """A line that matches is in a candidate, whatever the expression is made of."""
    query = Query("".join(pieces), regex=True, ignore_case=ignore_case)
    try:
        pattern = compile_query(query)
    except BadPattern:
        return
    if pattern.search(text):
        assert Index([("file.py", text)]).candidates(query)


def test_lines_are_counted_as_editors_count_them() -> None:
    """Only a newline ends a line, and the last one begins no further line."""
    document = Document("a.py", "one\x0cone\n\ntwo\n")
    assert [(match.line, match.text) for match in document.matches(re.compile("one|two|^$"))] == [
        (1, "one\x0cone"),
        (2, ""),
        (3, "two"),
    ]


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        (Query(""), "the pattern is empty"),
        (Query("(a", regex=True), r"'\(a' is no regular expression: missing \)"),
        (Query("a", limit=0), "a limit of 0 finds nothing"),
    ],
)
def test_a_bad_query_is_refused_in_a_sentence(query: Query, sentence: str) -> None:
    """BadPattern says what is wrong."""
    with pytest.raises(BadPattern, match=sentence):
        compile_query(query)


@pytest.mark.parametrize(
    ("text", "start", "end", "expected"),
    [
        ("    return answer", 4, 10, ("", "return", " answer")),
        ("\ta\x1b[1mb\x07", 1, 2, ("", "a", " [1mb ")),
        ("x" * 50 + "needle" + "y" * 50, 50, 56, ("...xxx", "needle", "yyyyy...")),
        ("needle" * 10, 0, 60, ("", "needle" * 3 + "ne", "")),
        ("  ", 0, 2, ("", "", "")),
    ],
)
def test_a_match_is_shown_in_the_room_there_is(text: str, start: int, end: int, expected: tuple[str, str, str]) -> None:
    """The match stays in sight, indentation goes, and no control character comes through."""
    assert excerpt(Match("a.py", 1, text, start, end), 20) == expected


# -- the gateway, in memory ---------------------------------------------------------------------------------------------


@define
class Scripted(Search):
    """A search that finds `count` matches, one each `pace` seconds, and may fail after them.

    Attributes:
        asked: searches begun.
        running: searches that have not ended.
    """

    count: int = 3
    pace: float = 0.0
    failure: Exception | None = None
    asked: int = 0
    running: int = 0

    @trio_rpc.method
    async def search(self, query: Query) -> AsyncGenerator[Answer, None]:
        self.asked += 1
        self.running += 1
        try:
            for line in range(self.count):
                await trio.sleep(self.pace)
                yield Match(f"{id(self)}.py", line, query.pattern, 0, 1)
            if self.failure is not None:
                raise self.failure
        finally:
            await trio.lowlevel.cancel_shielded_checkpoint()  # a clean-up that takes a moment is waited for as well
            self.running -= 1

    @trio_rpc.method
    async def stats(self) -> list[ShareStats]:
        if self.failure is not None:
            raise self.failure
        return [ShareStats(f"{id(self)}", 1, 1, 1, 1, 1, 0.0, self.asked, self.running, 0, 0, None)]


async def answers_of(search: Search, query: Query) -> list[Answer]:
    """A whole answer."""
    async with search.search(query) as answers:
        return [answer async for answer in answers]


@pytest.mark.parametrize("remote", [False, True])
async def test_the_gateway_finds_what_all_shares_find(remote: bool) -> None:
    """All matches of all shares come, through a gateway that is here, and through one that is served."""
    shares = [Scripted(count=1000), Scripted(count=3), Scripted(count=0)]
    async with open_loopback(shares[0]) as first, open_loopback(shares[1]) as second:
        gateway = Gateway({"a": first.stub(Search), "b": second.stub(Search), "c": shares[2]})
        async with open_loopback(gateway) as pool:
            answers = await answers_of(pool.stub(Search) if remote else gateway, Query("x"))
    assert len(set(answers)) == len(answers) == 1003
    assert [share.running for share in shares] == [0, 0, 0]


@pytest.mark.parametrize("remote", [False, True])
async def test_enough_stops_every_worker(remote: bool, autojump_clock: trio.testing.MockClock) -> None:
    """With as many matches as were wanted the answer says so, and by then no worker is searching any more."""
    shares = [Scripted(count=10**9), Scripted(count=10**9, pace=0.01), Scripted(count=10**9, pace=1000)]
    async with open_loopback(shares[0]) as first, open_loopback(shares[1]) as second, open_loopback(shares[2]) as third:
        gateway = Gateway({name: pool.stub(Search) for name, pool in (("a", first), ("b", second), ("c", third))})
        async with open_loopback(gateway) as pool:
            search = pool.stub(Search) if remote else gateway
            with trio.fail_after(600):
                async with search.search(Query("x", limit=5000)) as answers:
                    for _ in range(5000):
                        assert isinstance(await answers.receive(), Match)
                    assert await answers.receive() == Enough(5000)
                    assert [(share.asked, share.running) for share in shares] == [(1, 0)] * 3
                    with pytest.raises(trio.EndOfChannel):
                        await answers.receive()


async def test_a_caller_who_leaves_stops_every_worker(autojump_clock: trio.testing.MockClock) -> None:
    """Leaving the gateway's block leaves those of the workers, two wires away, and waits for them."""
    shares = [Scripted(count=10**9), Scripted(count=10**9, pace=0.01)]
    async with open_loopback(shares[0]) as first, open_loopback(shares[1]) as second:
        gateway = Gateway({"a": first.stub(Search), "b": second.stub(Search)})
        async with open_loopback(gateway) as pool:
            async with pool.stub(Search).search(Query("x")) as answers:
                for _ in range(10):
                    await answers.receive()
            assert [(share.asked, share.running) for share in shares] == [(1, 0)] * 2


async def test_a_share_that_fails_costs_its_own_matches_alone() -> None:
    """The others' matches arrive, with a word about the share that is missing."""
    good, bad = Scripted(count=4), Scripted(count=2, failure=trio_rpc.RemoteError("the disk is on fire"))
    async with open_loopback(good) as first, open_loopback(bad) as second:
        gateway = Gateway({"good": first.stub(Search), "bad": second.stub(Search)})
        answers = await answers_of(gateway, Query("x"))
        assert [entry.share for entry in await gateway.stats()] == [f"{id(good)}"]
    assert [answer for answer in answers if isinstance(answer, Missing)] == [
        Missing("bad", "RemoteError: the disk is on fire")
    ]
    assert len(answers) == 4 + 2 + 1


async def test_a_silent_share_is_missing_after_a_second(autojump_clock: trio.testing.MockClock) -> None:
    """One that freezes in the middle is given up after interval + timeout, by when the others have long answered."""
    shares = [Scripted(count=4), Scripted(count=10**9, pace=0.1)]
    ice = Freeze()
    heartbeat = trio_rpc.Heartbeat(interval=0.5, timeout=0.5)
    async with (
        open_loopback(shares[0]) as first,
        open_loopback(shares[1], heartbeat=heartbeat, wrap=lambda stream: FaultyStream(stream, ice)) as second,
    ):
        gateway = Gateway({"well": first.stub(Search), "frozen": second.stub(Search)})
        async with gateway.search(Query("x")) as answers:
            for _ in range(4 + 3):
                assert isinstance(await answers.receive(), Match)
            ice.freeze()
            frozen_at = trio.current_time()
            missing = await answers.receive()
            assert isinstance(missing, Missing)
            assert missing.share == "frozen"
            assert missing.reason.startswith("PeerUnresponsive")
            assert trio.current_time() - frozen_at == pytest.approx(1.0, abs=0.01)


async def test_a_bad_pattern_is_refused_before_anybody_is_asked() -> None:
    """It arrives with its own type, from a gateway that is served as well."""
    share = Scripted()
    async with open_loopback(Gateway({"a": share})) as pool:
        with pytest.raises(BadPattern, match="no regular expression"):
            await answers_of(pool.stub(Search), Query("(", regex=True))
    assert share.asked == 0


async def test_a_worker_counts_what_it_does() -> None:
    """Finished and stopped searches, files read, and the deadline that came with the latest."""
    share = IndexedShare("share 1", SMALL, 1, 1)
    async with open_loopback(share, limits=trio_rpc.PoolLimits(stream_window_items=1)) as pool:
        search = pool.stub(Search)
        found = await answers_of(search, Query("deadlock"))
        (done,) = await search.stats()
        with trio.move_on_after(60):
            async with search.search(Query("self")) as answers:
                await answers.receive()
        (stopped,) = await search.stats()
    assert set(found) == scan(
        [Document(*document) for document in read_documents(SMALL, source_paths(SMALL))], Query("deadlock")
    )
    assert (done.files, done.started, done.finished, done.stopped, done.running) == (
        len(source_paths(SMALL)),
        1,
        1,
        0,
        0,
    )
    assert done.seconds_left is None
    assert (stopped.started, stopped.finished, stopped.stopped, stopped.running) == (2, 1, 1, 0)
    assert stopped.seconds_left == pytest.approx(60, abs=1)
    assert 1 <= stopped.files_read - done.files_read < done.files


async def test_the_audit_sees_what_is_wrong() -> None:
    """A missing, a doubled and an invented match are told; a share that could not answer excuses its own alone."""
    names = ["share 1", "share 2"]
    gateway = Gateway({name: IndexedShare(name, SMALL, number, 2) for number, name in enumerate(names, 1)})
    plain, result = PlainScan(SMALL, names), Result(Query("deadlock"))
    await result.collect(gateway, lambda _match: None)
    assert len(result.matches) >= 2
    assert plain.fault_of(result) is None
    last = result.matches.pop()
    assert plain.fault_of(result) == "1 matches are not there"
    lost = names[source_paths(SMALL).index(last.path) % 2]
    result.missing[lost] = Missing(lost, "why not")
    assert plain.fault_of(result) is None
    result.matches.append(Match("streams.py", 1, "deadlock", 0, 8))
    assert plain.fault_of(result) == "1 matches are wrong"
    result.matches[-1] = result.matches[0]
    assert plain.fault_of(result) == "a match came twice"


# -- real processes -----------------------------------------------------------------------------------------------------

QUIET = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "FORCE_COLOR"}}
QUIET |= {"TERM": "xterm", "COLUMNS": "100"}
"""An environment that says nothing about colours."""


def command(*arguments: str) -> list[str]:
    """The demo's command line."""
    return [sys.executable, "-m", "examples.codesearch", *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The demo, run to its end in pipes."""
    return subprocess.run(
        command(*arguments), cwd=ROOT, env=QUIET, capture_output=True, text=True, timeout=100, check=False
    )


def session(leader: int) -> list[str]:
    """The processes of a session that are still there: its leader's children stay in it, whoever their parent is."""
    left = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _parent, _group, number = status.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(number) == leader and state != "Z":
            left.append(f"{status.parent.name} ({state})")
    return left


def await_session(leader: int, wanted: Callable[[list[str]], bool]) -> None:
    """Look until the processes of a session are as wanted: a signal is sent at once, and seen a little later."""
    give_up = time.monotonic() + 10
    while not wanted(left := session(leader)):
        assert time.monotonic() < give_up, left
        time.sleep(0.01)


@pytest.mark.slow
def test_the_demo_in_a_pipe() -> None:
    """Every search is answered over the whole standard library, a worker is evicted and comes back, and it exits with 0."""
    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "Every search was answered as it should be." in done.stdout
    assert re.search(r"share 2 is missing: PeerUnresponsive", done.stdout)
    assert re.search(r"evictions +1\n +reconnects +1\n", done.stdout)
    assert re.search(r"cancelled +[1-9]\d* searches of workers, 0 of them left behind", done.stdout)
    assert not CONTROL.search(done.stdout.replace("\n", ""))
    assert max(map(len, done.stdout.splitlines())) < 200


def test_one_search_prints_what_a_scan_finds() -> None:
    """`--query` prints each match once, whole, and nothing else."""
    done = run("--root", str(SMALL), "--workers", "2", "--query", "deadlock")
    documents = [Document(*document) for document in read_documents(SMALL, source_paths(SMALL))]
    expected = {f"{match.path}:{match.line}: {match.text.strip()}" for match in scan(documents, Query("deadlock"))}
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == sorted(expected)


def read_terminal(environment: dict[str, str]) -> str:
    """What a search prints on a terminal."""
    ours, theirs = pty.openpty()
    arguments = command("--root", str(SMALL), "--workers", "1", "--query", "deadlock")
    with subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        said = b""
        try:
            while chunk := os.read(ours, 4096):
                said += chunk
        except OSError:  # how Linux tells the end of a terminal
            pass
        os.close(ours)
        assert process.wait() == 0
    return said.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("quiet", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_that_wants_no_colour_gets_none(quiet: dict[str, str]) -> None:
    """NO_COLOR and a plain terminal get text alone."""
    said = read_terminal({**QUIET, **quiet})
    assert "deadlock" in said
    assert not CONTROL.search(said)


def test_a_terminal_gets_colours() -> None:
    """The matching part is highlighted where rich is installed and the terminal can show it."""
    pytest.importorskip("rich")
    assert "\x1b[1;33mdeadlock\x1b[0m" in read_terminal(QUIET)


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """Read standard output until it has `text`; past Python's buffer, which would hide a line from `select`."""
    assert process.stdout is not None
    said = b""
    while text.encode() not in said:
        assert select.select([process.stdout], [], [], 60)[0], f"{text!r} did not come:\n{said.decode()}"
        data = os.read(process.stdout.fileno(), 65536)
        assert data, f"it ended before {text!r} came:\n{said.decode()}"
        said += data
    return said.decode()


# A line of the demo's, seconds after it within which the signal comes, and the signal. A freeze takes 0.7 s at least.
MOMENTS = [
    ("each is a service", 0.4, signal.SIGINT),
    ("each is a service", 0.4, signal.SIGTERM),
    ("ready after", 0.1, signal.SIGINT),
    ("SIGSTOP", 0.6, signal.SIGINT),
    ("SIGSTOP", 0.6, signal.SIGTERM),
]


@pytest.mark.parametrize(("line", "spread", "number"), MOMENTS)
def test_a_signal_at_any_moment_leaves_no_process(line: str, spread: float, number: signal.Signals) -> None:
    """During the start, the searches and the freeze alike: one line, the signal's exit code, and nobody is left."""
    arguments = command("--root", str(SMALL))
    pipe = subprocess.PIPE
    with subprocess.Popen(
        arguments, cwd=ROOT, env=QUIET, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:
        wait_for(process, line)
        moment = random.uniform(0, spread)
        time.sleep(moment)
        os.killpg(process.pid, number)  # as a terminal does: all of the group get it
        _, errors = process.communicate(timeout=20)
        assert errors == f"{number.name}: stopped, and no worker is left.\n", f"{moment:.3f} s after {line!r}"
        assert process.returncode == 128 + number
        assert session(process.pid) == [], f"{moment:.3f} s after {line!r}"


def test_workers_end_with_their_supervisor() -> None:
    """Should it be killed, the workers see the end of their input; the system wakes the frozen one."""
    arguments = command("--root", str(SMALL))
    pipe = subprocess.PIPE
    with subprocess.Popen(arguments, cwd=ROOT, env=QUIET, stdout=pipe, text=True, start_new_session=True) as process:
        wait_for(process, "SIGSTOP")
        await_session(process.pid, lambda left: any("(T)" in entry for entry in left))
        process.kill()
        process.wait()
        await_session(process.pid, lambda left: not left)


async def test_a_frozen_worker_ends_in_order_with_its_fleet() -> None:
    """Leaving the fleet's block wakes it, so that it can end by itself, with exit code 0."""
    async with open_fleet(SMALL, 2) as workers:
        workers[0].freeze()
    assert [worker.process.returncode for worker in workers] == [0, 0]


async def test_a_worker_that_cannot_start_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fleet fails with its name and exit code, and its block is not entered."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(WorkerFailed, match="the worker of share 1 ended with exit code 1 before it was ready"):
        async with open_fleet(SMALL, 2):
            pytest.fail("nobody is ready")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--workers", "0"], "0 is not between 1 and 64"),
        (["--query", "(", "--regex"], "'(' is no regular expression"),
        (["--root", "/dev/null"], "there are no Python files below /dev/null"),
        (["worker", "--share", "4", "--of", "3"], "there is no share 4 of 3"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(arguments: list[str], sentence: str) -> None:
    """Nothing is started; exit code 2."""
    done = run(*arguments)
    assert done.returncode == 2
    assert sentence in done.stderr


def test_hello() -> None:
    """The smallest example: a server process greets a client process, and ends on Ctrl-C."""
    server = [sys.executable, "-m", "examples.hello.server", "tcp://127.0.0.1:0"]
    with subprocess.Popen(server, cwd=ROOT, env=QUIET, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().removeprefix("serving at").strip()  # "" if it has ended instead
            client = [sys.executable, "-m", "examples.hello.client", address]
            done = subprocess.run(client, cwd=ROOT, env=QUIET, capture_output=True, text=True, timeout=30, check=True)
            assert done.stdout == "Hello, Ada!\n"
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=10)[0] == "stopped\n"
            assert process.returncode == 0
        finally:
            process.kill()  # Or leaving the block would wait for a server that nobody stops.
