"""The two built-in codecs: a test that takes `codec` runs once with each."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["msgpack", "json"])
def codec(request: pytest.FixtureRequest) -> str:
    """The name of a codec."""
    name: str = request.param
    return name
