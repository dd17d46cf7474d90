"""The proofs hold in their small versions, and can fail. Nothing here is timed, and nothing depends on speed."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner

import trio_rpc
from tests.proofs import cli
from tests.proofs.census import census, differences, left_behind
from tests.proofs.kill import judge_claims
from tests.proofs.ledger import Executions, Ledger, read_ledgers
from tests.proofs.line import in_order
from tests.proofs.load import Journal
from tests.proofs.processes import ServerFailed, open_servers
from tests.proofs.report import Proof, Report, percentile
from tests.proofs.restart import judge
from trio_rpc._timer import Timer

ROOT = Path(__file__).resolve().parents[1]


def prove(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command, and wait for its end."""
    command = [sys.executable, "-m", "tests.proofs", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


TIMED = {"slow"}
"""What these find is times, which depend on the machine; they are not held here."""
AT_ONCE = 3
"""Proofs that run at the same time: most of each is waiting."""


@pytest.fixture(scope="module")
def proved(request: pytest.FixtureRequest) -> dict[str, subprocess.CompletedProcess[str]]:
    """The small versions of those proofs that are asked for; all have ended before the first one is looked at."""
    cases = [item.name for item in request.session.items if "::test_what_is_promised_holds[" in item.nodeid]
    names = [name for name in cli.PROOFS if any(case.endswith(f"[{name}]") for case in cases)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(names, pool.map(partial(prove, "--quick"), names), strict=True))


@pytest.mark.parametrize("name", [name for name in cli.PROOFS if name not in TIMED])
def test_what_is_promised_holds(name: str, proved: dict[str, subprocess.CompletedProcess[str]]) -> None:
    """Each proof holds in its small version, too. Which items of the catalogue it shows stands in its module."""
    done = proved[name]
    lacking = [line for line in done.stdout.splitlines() if "cannot be measured here: " in line]
    if lacking:
        pytest.skip(lacking[0].rpartition("cannot be measured here: ")[2])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "holds: " in done.stdout
    assert "FAILS: " not in done.stdout


def test_every_way_of_balancing_is_measured() -> None:
    """What comes out depends on the machine, and is not held here."""
    done = prove("slow", "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(way in done.stdout for way in ("P2C + peak EWMA", "round robin", "least in flight"))


def given(report: Report | None, _quick: bool, _seed: int) -> Report:
    """A proof that finds what it was given, or nothing, as it breaks down."""
    if report is None:
        raise ZeroDivisionError
    return report


def test_what_does_not_hold_fails_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """All are run, those that do not hold are named, and the exit code is 1; a proof of nothing does not hold either."""
    good, bad, empty = Report(["a"]), Report(["a"]), Report(["a"])
    good.check("this is so", True)
    bad.check("this is not so", False)
    for name, report in {"line": bad, "slow": None, "kill": good, "seeds": empty}.items():
        monkeypatch.setitem(cli.PROOFS, name, Proof("", partial(given, report)))
    done = CliRunner().invoke(cli.main, ["line", "slow", "kill", "seeds"])
    assert done.exit_code == 1
    assert "FAILS: this is not so" in done.output
    assert "holds: this is so" in done.output
    assert "ZeroDivisionError" in done.output
    assert "does not hold: line, slow, seeds" in done.output


def test_the_table_has_a_row_for_each_promise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And one for all that a proof says beside; rows of proofs that are not run again stay; a breakdown is a row too."""
    report = Report(["a"])
    report.bar("at most 20 KiB", "11 | KiB", True)
    report.bar("at most 5 s", "7 s", False)
    report.check("0 lines in the log", True)
    page = tmp_path / "reliability.md"
    monkeypatch.setattr(cli, "TABLE", page)
    for name, found in {"idle": report, "kill": None, "line": Report(["a"])}.items():
        monkeypatch.setitem(cli.PROOFS, name, Proof(f"about {name}", partial(given, found)))
    for names in (["kill"], ["idle", "line"]):
        assert CliRunner().invoke(cli.main, [*names, "--table"]).exit_code == 1
    lines = page.read_text().splitlines()
    assert lines[0].startswith("Measured on ")
    assert lines[2:] == [
        "| promised | measured | holds | again with |",
        "| --- | --- | --- | --- |",
        "| At most 20 KiB | 11 / KiB | yes | `prove idle` |",
        "| At most 5 s | 7 s | **no** | `prove idle` |",
        "| (beside that) | 0 lines in the log | yes | `prove idle` |",
        "| About kill | it could not be measured | **no** | `prove kill` |",
        "| About line | nothing was measured | **no** | `prove line` |",
    ]
    assert CliRunner().invoke(cli.main, ["line", "--table", "--quick"]).exit_code == 2


@pytest.fixture
def nothing_older() -> Iterator[None]:
    """The garbage collector knows nothing of what is there by now: other tests' objects are not counted."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("nothing_older")
def test_a_census_counts_what_tables_hold() -> None:
    """Objects of the library, and the entries of their tables; a moment that a timer has forgotten is none."""
    timer = Timer()
    before = census_in_trio()
    moment = timer.at(1.0, lambda _late: None)
    timer.at(2.0, lambda _late: None)
    assert differences(before, census_in_trio()) == ["trio_rpc._timer.Timer._heap: 0 before, 2 after"]
    timer.forget(moment)
    other = Timer()
    after = census_in_trio()
    assert differences(before, after) == [
        "trio_rpc._timer.Timer: 1 before, 2 after",
        "trio_rpc._timer.Timer._heap: 0 before, 1 after",
    ]
    assert left_behind(before, after) == differences(before, after)
    assert left_behind(after, before) == []
    del other
    assert differences(before, census_in_trio()) == ["trio_rpc._timer.Timer._heap: 0 before, 1 after"]


def census_in_trio() -> dict[str, int]:
    """The census of this process, in a run of its own."""

    async def count() -> dict[str, int]:
        return census()

    return trio.run(count)


def test_a_wrong_name_is_told_with_the_right_ones() -> None:
    """Nothing is started for a misspelt name."""
    done = prove("lien")
    assert done.returncode == 2
    assert all(f"'{right}'" in done.stderr for right in cli.PROOFS)


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([3, 1, 2], 0.5, 2), ([3, 1, 2], 1, 3), ([7], 0.99, 7), (range(1, 101), 0.99, 99), (range(1, 102), 0.99, 100)],
)
def test_percentiles_are_values_that_occurred(values: Sequence[float], share: float, expected: float) -> None:
    """The smallest value that at least this share does not exceed."""
    assert percentile(values, share) == expected


@pytest.mark.parametrize(
    ("order", "by_connection", "fair"),
    [
        ([0, 1, 2, 3, 4, 5], [[0, 4], [1, 5], [2], [3]], True),
        ([3, 2, 1, 0, 4, 5], [[0, 4], [1, 5], [2], [3]], True),  # Four at once; nobody can say which was first.
        ([4, 3, 2, 1, 0, 5], [[0, 4], [1, 5], [2], [3]], False),
        ([0, 1, 2, 3, 5, 4], [[0, 5, 4], [1], [2], [3]], False),
    ],
)
def test_who_overtakes_is_seen(order: list[int], by_connection: list[list[int]], fair: bool) -> None:
    """By more than what four connections may do side by side, or on one connection."""
    assert in_order(order, by_connection) is fair


def test_a_ledger_says_what_ran(tmp_path: Path) -> None:
    """Ledgers of several processes are read together; who was interrupted has no end; a torn line is an error."""
    ledgers = [Ledger(tmp_path / name) for name in ("one.ledger", "two.ledger")]
    for ledger in ledgers:
        with ledger.entry("not idempotent:1.1"):
            pass
    with pytest.raises(ZeroDivisionError), ledgers[0].entry("again"):
        raise ZeroDivisionError
    for ledger in ledgers:
        ledger.close()
    executions = read_ledgers(tmp_path)
    assert (executions.begun, executions.ended) == ({"not idempotent:1.1": 2, "again": 1}, {"not idempotent:1.1": 2})
    (tmp_path / "three.ledger").write_text("begun aga")
    with pytest.raises(ValueError, match="torn"):
        read_ledgers(tmp_path)


def note(journal: Journal, key: str, error: Exception | None) -> None:
    """Write down a call that ended so."""
    with journal.entry(key):
        if error is not None:
            raise error


@pytest.mark.parametrize(
    ("begun", "may_have_run", "holds"), [(0, False, True), (1, False, False), (0, True, False), (1, True, False)]
)
async def test_a_wrong_claim_is_found(begun: int, may_have_run: bool, holds: bool) -> None:
    """`may_have_run=False` is held against the ledger; without any there is nothing to hold."""
    journal, executions, report = Journal(), Executions(), Report(["a"])
    note(journal, "bound:1.1", trio_rpc.ConnectionLost("gone", may_have_run=may_have_run))
    executions.begun["bound:1.1"] = begun
    assert judge_claims(report, journal, executions) == (["bound:1.1"] if begun and not may_have_run else [])
    assert report.holds is holds


@pytest.mark.parametrize(
    ("begun", "ended", "error", "holds"),
    [(1, 1, None, True), (2, 1, None, False), (1, 0, None, False), (1, 1, trio_rpc.Draining("away"), False)],
)
async def test_a_restart_that_shows_is_found(begun: int, ended: int, error: Exception | None, holds: bool) -> None:
    """An error that a caller saw, a call that ran twice, and one that did not end."""
    journal, executions, report = Journal(), Executions(), Report(["a"])
    note(journal, "once:1.1", error)
    executions.begun["once:1.1"], executions.ended["once:1.1"] = begun, ended
    judge(report, journal, executions)
    assert report.holds is holds


async def test_servers_keep_their_address() -> None:
    """Over SIGTERM and over kill -9, with a ledger for each process; what a server complains of is kept."""
    async with open_servers([0.0]) as servers:
        (server,) = servers
        (address,) = servers.addresses
        for number, end in enumerate((server.stop, server.kill), start=1):
            async with trio_rpc.open_pool(address) as pool:
                assert await pool.call("Works.once", "key", 0) == "key"
                assert servers.executions().ended == {"key": number}
            await end()
            await server.start()
            assert servers.addresses == [address]
        assert server.complaints == ""
        server.signal(signal.SIGINT)
        with trio.fail_after(10):
            await server.wait()
        with pytest.raises(ServerFailed, match="exit code"):
            await server.stop()
        assert "KeyboardInterrupt" in server.complaints


async def test_a_server_ends_with_who_started_it() -> None:
    """Its standard input is held by us alone: however we end, no server is left."""
    async with open_servers([0.0]) as servers:
        (server,) = servers
        await server.let_go()
        with trio.fail_after(10):
            assert await server.wait() == 0
