"""The results of a run: kept as JSON, and asked for medians and for ratios round by round."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from .measure import Sample
from .rounds import Options, Outcome

__all__ = ["Metric", "Results", "machine"]

Metric: TypeAlias = Literal[
    "rate", "p50", "p99", "cpu", "server_memory", "client_memory", "worst_share", "slowdown", "client_cpu", "server_cpu"
]


def value_of(sample: Sample, metric: Metric) -> float | None:
    """A metric of one round."""
    if metric == "cpu":
        return sample.client_cpu + sample.server_cpu if sample.client_cpu is not None and sample.server_cpu else None
    value: float | None = getattr(sample, metric)
    return value


@dataclass
class Results:
    """All that a run has measured."""

    options: Options
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """By the workload's key."""
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    """What was installed: environment -> package -> version."""
    machine: dict[str, str] = field(default_factory=dict)
    started: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M", time.gmtime()))

    def asked(self, workload: str, peer: str) -> bool:
        """Whether the peer was to do it, with or without a result."""
        outcome = self.outcomes.get(workload)
        return outcome is not None and (peer in outcome.samples or peer in outcome.failures)

    def samples(self, workload: str, peer: str) -> list[Sample]:
        """The rounds of one peer; none if it did not run."""
        outcome = self.outcomes.get(workload)
        return outcome.samples.get(peer, []) if outcome else []

    def values(self, workload: str, peer: str, metric: Metric = "rate") -> list[float]:
        """The metric in each round."""
        values = (value_of(sample, metric) for sample in self.samples(workload, peer))
        return [value for value in values if value is not None]

    def median(self, workload: str, peer: str, metric: Metric = "rate") -> float | None:
        """The metric's median over the rounds."""
        return median(self.values(workload, peer, metric))

    def ratio(self, workload: str, peer: str, reference: str, metric: Metric = "rate", *, of: str = "") -> float | None:
        """The median of the rounds' ratios to `reference` in the same round (in the workload `of`, if given).

        Drifts of the machine that are slower than a round cancel.
        """
        ours, theirs = self.values(workload, peer, metric), self.values(of or workload, reference, metric)
        return median(mine / other for mine, other in zip(ours, theirs, strict=False) if other)

    def join(self, other: Results) -> None:
        """Add the workloads of another run."""
        self.outcomes.update(other.outcomes)
        self.versions.update(other.versions)

    def dump(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), indent=1)

    @staticmethod
    def load(text: str) -> Results:
        """From `dump()`."""
        fields: dict[str, Any] = json.loads(text)
        fields["options"] = Options(**fields["options"])
        fields["outcomes"] = {key: _outcome(outcome) for key, outcome in fields["outcomes"].items()}
        return Results(**fields)


def _outcome(fields: dict[str, Any]) -> Outcome:
    samples = {peer: [Sample(**sample) for sample in rounds] for peer, rounds in fields.pop("samples").items()}
    return Outcome(samples=samples, **fields)


def median(values: Iterable[float]) -> float | None:
    """The median; None of nothing."""
    values = list(values)
    return statistics.median(values) if values else None


def machine() -> dict[str, str]:
    """What was measured on, as far as a reader needs to know."""
    model = next((line for line in _cpu_lines() if line.startswith("model name")), f":{platform.machine()}")
    return {
        "processor": f"{os.cpu_count()} x {model.partition(':')[2].strip()}",
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def _cpu_lines() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
