"""Making one call, of any shape."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

import attrs

import trio_rpc

from .plan import Call
from .service import Simulated, items

__all__ = ["Outcome", "make_call"]


@attrs.frozen
class Outcome:
    """How a call ended for its caller: by its result, by an error, or by its own scope."""

    kind: str
    value: Any
    after: float
    """Seconds since it began."""


async def make_call(pool: trio_rpc.Pool, call: Call) -> tuple[str, Any]:
    """Make it; return what came of it, and the value: "result", "left", or "error" if several calls have failed."""
    options: dict[str, Any] = {
        "wait_for_ready": call.wait_for_ready,
        "priority": call.priority,
        "routing_key": call.routing_key,
        **({"hedge": call.hedge} if call.hedge is not None else {}),
        **({"idempotency_key": f"key {call.number}"} if call.keyed else {}),
    }
    if call.shape in ("first", "quorum"):
        return await _call_several(pool, call, options)
    stub = pool.stub(Simulated, **options)
    work = call.number, call.takes, call.cleanup
    match call.shape:
        case "once":
            return "result", await stub.once(*work, b"x" * call.size)
        case "again":
            return "result", await stub.again(*work, b"x" * call.size)
        case "decline":
            return "result", await stub.decline(*work)
        case "relay":
            return "result", await stub.relay(*work)
        case "total":
            return "result", await stub.total(*work, _items(call))
        case "count":
            stream = stub.count(*work, call.items)
        case _:
            stream = stub.double(*work, _items(call))
    received: list[int] = []
    async with stream as channel:
        async for item in channel:
            if len(received) == call.leaves_after:
                return "left", received
            received.append(item)
    return "result", received


async def _call_several(pool: trio_rpc.Pool, call: Call, options: dict[str, Any]) -> tuple[str, Any]:
    """The same call to each endpoint; one result, or those of most of them, which are equal."""
    stubs = pool.stubs(Simulated, **options)
    calls = [partial(stub.again, call.number, call.takes, call.cleanup, b"x" * call.size) for stub in stubs]
    if not calls:
        raise trio_rpc.ConnectError("no endpoint is known yet")
    try:
        if call.shape == "first":
            return "result", await trio_rpc.first_success(calls, delay=call.takes / 2 or None)
        (result,) = {result for _, result in await trio_rpc.quorum(calls, needed=len(calls) // 2 + 1)}
        return "result", result
    except ExceptionGroup as group:
        return "error", list(group.exceptions)


def _items(call: Call) -> AsyncGenerator[int, None]:
    return items(call.number, call.items, call.spoilt_after)
