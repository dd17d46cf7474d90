"""What the HTTP peers share: the wire, which is JSON bodies, raw bytes for what is large, and lines of JSON as streams."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

from . import payload

__all__ = ["check", "dumps", "lines"]


def dumps(value: Any) -> bytes:
    """JSON without spaces."""
    return json.dumps(value, separators=(",", ":")).encode()


async def lines(count: int) -> AsyncIterator[bytes]:
    """So many payloads, a line each."""
    for i in range(count):
        yield dumps(payload(i)) + b"\n"


async def check(received: AsyncIterable[bytes | str], count: int) -> None:
    """Receive all the lines, in order."""
    expected = 0
    async for line in received:
        assert json.loads(line)["id"] == expected
        expected += 1
    assert expected == count
