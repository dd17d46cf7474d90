"""The benchmarks run, and their arithmetic is right. Nothing here is timed."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from benchmarks import rounds
from benchmarks.bars import BARS, Bar, bars_report, pairs_for_bars
from benchmarks.environments import ENVIRONMENTS, ROOT
from benchmarks.growth import CURVES, growth_report, growth_svg, growth_workloads
from benchmarks.measure import Command, Sample, worst_share
from benchmarks.plot import results_svg
from benchmarks.processes import Running
from benchmarks.registry import PEERS
from benchmarks.report import markdown
from benchmarks.results import Results
from benchmarks.rounds import Options, Outcome, quiet_round
from benchmarks.workloads import FAIRNESS, WORKLOADS, Setting


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command, and wait for its end."""
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def rates(*values: float) -> list[Sample]:
    """Rounds with these rates."""
    return [Sample(count=1, elapsed=1.0, rate=value, client_cpu=2e-6, server_cpu=1e-6) for value in values]


def test_every_workload_runs(tmp_path: Path) -> None:
    """`run --quick` gives a result for each workload and peer, and writes what was asked for."""
    names = [f"--{kind}={tmp_path / kind}" for kind in ("json", "markdown", "svg")]
    done = bench("run", "--quick", *names)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads((tmp_path / "json").read_text())["outcomes"]
    assert set(WORKLOADS) < set(outcomes)
    for key, outcome in outcomes.items():
        expected = {peer for peer in ("trio_rpc", "raw-trio", "hand-asyncio") if key in PEERS[peer].workloads}
        assert set(outcome["samples"]) == expected
        assert all(sample["count"] > 0 for samples in outcome["samples"].values() for sample in samples)
    assert ET.fromstring((tmp_path / "svg").read_text()).tag.endswith("svg")
    assert "| trio_rpc |" in (tmp_path / "markdown").read_text()


async def test_a_peer_that_fails_costs_its_own_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose process ends is named, with its last words, and the others are measured."""
    monkeypatch.setitem(PEERS, "unheard-of", PEERS["raw-trio"])  # Here, and not in its process.
    options = Options(rounds=1, seconds=0.01, warm_up=0.0, tries=1, at_once=True)
    outcome = await rounds.measure_workload(WORKLOADS["one"], ["unheard-of", "raw-trio"], options)
    assert list(outcome.samples) == ["raw-trio"]
    assert outcome.failures == {"unheard-of": "unheard-of (server): ended with exit code 1: KeyError: 'unheard-of'"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "--peers=trio_rcp"], "'trio_rcp' is no peer: take some of trio_rpc, "),
        (["run", "--workloads=one,tow"], "'tow' is no workload: take some of one, 64, "),
        (["growth", "--curves=callers,bites"], "'bites' is no curve: take some of callers, "),
    ],
)
def test_a_wrong_name_is_told_with_the_right_ones(arguments: list[str], sentence: str) -> None:
    """Nothing is started for a misspelt name."""
    done = bench(*arguments)
    assert done.returncode == 2
    assert sentence in done.stderr


def test_the_registry_holds_together() -> None:
    """Each peer has a module, an environment and workloads that exist; each bar compares peers that can do it."""
    for entry in PEERS.values():
        assert (ROOT / "benchmarks" / entry.module.replace(".", "/")).with_suffix(".py").exists()
        assert entry.environment in ENVIRONMENTS
        assert entry.workloads <= set(WORKLOADS | FAIRNESS)
    for key, peers in pairs_for_bars().items():
        assert all(key in PEERS[peer].workloads for peer in peers)


def test_ratios_are_taken_round_by_round() -> None:
    """A drift that both peers share does not change the ratio; the medians alone would say otherwise."""
    results = Results(Options(), {"one": Outcome({"trio_rpc": rates(10, 40, 90), "grpc.aio": rates(5, 10, 90)})})
    assert results.median("one", "trio_rpc") == 40
    assert results.ratio("one", "trio_rpc", "grpc.aio") == 2
    assert results.ratio("one", "trio_rpc", "rpyc") is None


@pytest.mark.parametrize(
    ("bar", "value", "verdict"),
    [
        (Bar(workload="one", title="", must=4, aim=5), 5.0, "aim met"),
        (Bar(workload="one", title="", must=4, aim=5), 4.5, "aim missed by 10%"),
        (Bar(workload="one", title="", must=4, aim=5), 3.0, "MISSED by 25%"),
        (Bar(workload="one", title="", must=4), 4.0, "met"),
        (Bar(workload="one", title="", aim=4), 3.0, "aim missed by 25%"),
        (Bar(workload="one", title="", must=10, at_most=True), 10.0, "met"),
        (Bar(workload="one", title="", must=10, aim=5, at_most=True), 12.0, "MISSED by 20%"),
        (Bar(workload="one", title="", must=10), None, "not measured"),
    ],
)
def test_a_verdict_says_how_much_is_lacking(bar: Bar, value: float | None, verdict: str) -> None:
    """The must comes first, then the aim."""
    assert bar.verdict(value) == verdict


def test_the_report_lists_the_bars_that_were_run() -> None:
    """A bar whose peer failed is listed as not measured; one whose peer was not asked is not listed."""
    outcome = Outcome({"trio_rpc": rates(100), "grpc.aio": rates(20)}, failures={"raw-trio": "ended"})
    report = bars_report(Results(Options(), {"one": outcome}))
    assert "| 1 caller: over grpc.aio | 5.00x | 4.00x | 5.00x | aim met |" in report
    assert "| 1 caller: over raw-trio | - | 0.70x | 0.80x | not measured |" in report
    assert "rpyc" not in report
    assert "64 callers" not in report


def test_cpu_bar_compares_both_sides_together() -> None:
    """CPU per call is the client's and the server's."""
    (bar,) = [bar for bar in BARS if bar.metric == "cpu"]
    theirs = [Sample(count=1, elapsed=1.0, client_cpu=40e-6, server_cpu=20e-6)]
    results = Results(Options(), {"64": Outcome({"trio_rpc": rates(1), "grpc.aio": theirs})})
    assert bar.measured(results) == pytest.approx(20)


def test_results_survive_json() -> None:
    """What is written can be read and reported again."""
    results = Results(Options(), {"one": Outcome({"trio_rpc": rates(1, 2)})}, versions={"trio-rpc": {"trio": "0.31"}})
    again = Results.load(results.dump())
    assert again == results
    assert markdown(again, "trio_rpc") == markdown(results, "trio_rpc")
    assert "Versions: trio 0.31." in markdown(again, "trio_rpc")


def test_plots_are_well_formed() -> None:
    """Bars for a run, lines for growth; a point without a cost is left out of a logarithmic axis."""
    results = Results(Options(), {"one": Outcome({"trio_rpc": rates(3), "raw-trio": rates(9)})})
    assert ET.fromstring(results_svg(results)) is not None
    points = growth_workloads(list(CURVES))
    costs = rates(1)
    nothing = [Sample(count=1, elapsed=1.0, client_cpu=1e-6, server_cpu=0.0)]
    grown = Results(Options(), {key: Outcome({"trio_rpc": costs}) for key in points})
    grown.outcomes["callers_1"] = Outcome({"trio_rpc": nothing})
    plot = growth_svg(grown, "trio_rpc")
    assert ET.fromstring(plot) is not None
    assert plot.count("<circle") == 2 * len(points) - 1
    assert "| 10,000 | 2.0 | 1.0 | 3.0 |" in growth_report(grown, "trio_rpc")


def test_a_starved_caller_shows_in_the_shares() -> None:
    """One without any answer has waited all the time."""
    even: list[float] = [0.1] * 100
    starved: list[float] = []
    assert worst_share([even, even, even], 2.0) == 1.0
    assert worst_share([even, even, starved], 2.0) == pytest.approx(20)
    assert worst_share([even], 2.0) is None


def test_settings_cross_to_the_processes() -> None:
    """Both processes of a peer read what the command has written."""
    for workload in (WORKLOADS | FAIRNESS).values():
        assert Setting.parse(workload.setting.dump()) == workload.setting


class Steady(Running):
    """A peer that uses no CPU and answers at once; `asked` counts."""

    def __init__(self) -> None:
        super().__init__("steady", [], None)  # type: ignore[arg-type]
        self.asked = 0

    def cpu(self) -> float:
        return 0.0

    async def round(self, command: Command) -> Sample:
        self.asked += 1
        return Sample(count=self.asked, elapsed=command.seconds)


@pytest.mark.parametrize(("disturbed", "asked", "quiet"), [(0, 1, True), (2, 3, True), (9, 4, False)])
async def test_a_disturbed_round_is_repeated(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: object, disturbed: int, asked: int, quiet: bool
) -> None:
    """Until the machine is quiet, or as often as allowed; then the last one counts, and says so."""
    peer = Steady()
    monkeypatch.setattr(rounds, "busy_seconds", lambda: 100.0 * min(2 * peer.asked, 2 * disturbed))
    sample, was_quiet = await quiet_round(peer, Options(tries=4))
    assert (peer.asked, sample.count, was_quiet) == (asked, asked, quiet)
