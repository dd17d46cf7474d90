"""What must hold of every call when all has ended. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trio_rpc import ConnectionLost, Draining

from .calling import Outcome
from .drawing import PEACE
from .plan import Call, Drain, Plan
from .service import Ledger

__all__ = ["judge"]

IDEMPOTENT = ("again", "first", "quorum")
SLACK = 0.02
"""Seconds by which a bound may be exceeded: deadlines are kept to a hundredth."""


def judge(plan: Plan, outcomes: dict[int, list[Outcome]], ledger: Ledger) -> Iterator[str]:
    """Yield a sentence for each thing that does not hold."""
    peaceful = _is_peaceful(plan)
    for step in plan.steps:
        if isinstance(step, Call):
            sentences = list(_judge_call(plan, step, outcomes[step.number], ledger))
            if peaceful:
                sentences += _judge_peace(outcomes[step.number])
            yield from (f"call {step.number} ({step.shape}): {sentence}" for sentence in sentences)


def _judge_call(plan: Plan, call: Call, outcomes: list[Outcome], ledger: Ledger) -> Iterator[str]:
    runs, ended = ledger.runs[call.number], ledger.ended[call.number]
    if len(outcomes) != 1:
        yield f"{len(outcomes)} outcomes: {outcomes}"
        return
    (outcome,) = outcomes
    if call.keyed:
        yield from _judge_keyed(call, ledger)
    elif runs > 1 and call.shape not in IDEMPOTENT:
        yield f"ran {runs} times, and is not idempotent"
    if outcome.kind == "result" and not ended:
        yield "acknowledged, and its handler has not come to its end"
    if outcome.kind in ("result", "left") and outcome.value != (expected := _expected(call, outcome.kind)):
        yield f"got {outcome.value!r:.200}, not {expected!r:.200}"
    if outcome.kind == "spoilt" and (call.spoilt_after is None or call.spoilt_after >= call.items):
        yield "failed with an error that its caller has not made"
    if outcome.kind == "left" and not runs:
        yield "items came, and nothing ran"
    # A quorum that fails does not tell of those calls that were stopped for it.
    told = outcome.kind == "error" and call.shape != "quorum"
    if told and runs and not any(error.may_have_run for error in outcome.value):
        yield f"ran {runs} times, and the error says that it did not: {outcome.value!r}"
    bound = _given_up_after(call) + plan.clients[call.client].limits.cancel_wait + SLACK
    if outcome.after > bound:
        yield f"ended {outcome.after} s after its beginning; {bound} s would be the latest"
    if outcome.kind == "cancelled" and outcome.after < _given_up_after(call) - SLACK:
        yield f"cancelled after {outcome.after} s, before anybody wished it"


def _is_peaceful(plan: Plan) -> bool:
    """True if servers end by being drained alone, with time enough, and end no connection for its age."""
    drained = all(isinstance(step, Call) or (isinstance(step, Drain) and step.grace == PEACE) for step in plan.steps)
    return drained and all(server.limits.max_age is None for server in plan.servers)


def _judge_peace(outcomes: list[Outcome]) -> Iterator[str]:
    """Then no caller notices."""
    for error in [error for outcome in outcomes if outcome.kind == "error" for error in outcome.value]:
        if isinstance(error, ConnectionLost | Draining) or "going away" in error.message:
            yield f"a server's peaceful end showed: {error!r}"


def _judge_keyed(call: Call, ledger: Ledger) -> Iterator[str]:
    """In the life of one server it does not come to its end twice, nor run beside itself."""
    lives = [life for life, number in ledger.ended_in_life if number == call.number]
    if any(ledger.ended_in_life[life, call.number] > 1 for life in lives):
        yield "came to its end twice on one server, in spite of its idempotency key"
    if call.number in ledger.met_itself:
        yield "ran beside itself on one server, in spite of its idempotency key"
    if call.shape not in IDEMPOTENT and len(lives) > 1:
        yield f"came to its end on {len(lives)} servers, and is not idempotent"


def _given_up_after(call: Call) -> float:
    """When its caller wants no result any more."""
    wishes = (call.deadline, call.cancelled_after)
    return min((wish for wish in wishes if wish is not None), default=float("inf"))


def _expected(call: Call, kind: str) -> Any:
    numbers = [call.number * 1000 + item for item in range(call.items)]
    if kind == "left":
        numbers = numbers[: call.leaves_after]
    match call.shape:
        case "once" | "again" | "first" | "quorum":
            return call.number, call.size
        case "relay":
            return call.number
        case "decline":
            return str(call.number)
        case "total":
            return sum(numbers)
        case "count":
            return numbers
        case _:
            return [2 * number for number in numbers]
