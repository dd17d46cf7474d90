"""The built-in codecs: a test that takes `codec` runs once with each."""

from __future__ import annotations

import pytest

from trio_rpc.codecs import MessagePack, register


class DefaultPath(MessagePack):
    """MessagePack as it is where msgspec is not installed."""

    name = "msgpack alone"


register(DefaultPath(fast=False))


@pytest.fixture(params=["msgpack", DefaultPath.name, "json"])
def codec(request: pytest.FixtureRequest) -> str:
    """The name of a codec."""
    name: str = request.param
    return name
