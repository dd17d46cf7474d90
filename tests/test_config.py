"""The settings: their bounds, and the sentence that a wrong one gets."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest

from trio_rpc import Backoff, Heartbeat, PoolLimits, RetryPolicy, ServerLimits
from trio_rpc._checks import describe

pool_limits: Any = PoolLimits
"""Without its types, which rule out most of what is tried here."""
CLASSES: list[type[Any]] = [Backoff, Heartbeat, PoolLimits, RetryPolicy, ServerLimits]


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (PoolLimits, "min_connections", -1),
        (PoolLimits, "max_connections", 0),
        (PoolLimits, "max_in_flight", 0),
        (PoolLimits, "max_waiting", -1),
        (PoolLimits, "connect_timeout", 0),
        (PoolLimits, "acquire_timeout", -0.1),
        (PoolLimits, "idle_timeout", -1),
        (PoolLimits, "max_idle", 0),
        (PoolLimits, "max_lifetime", -3600),
        (PoolLimits, "max_frame_size", 1),
        (PoolLimits, "stream_window", 0),
        (PoolLimits, "cancel_wait", -1),
        (ServerLimits, "max_connections", 0),
        (ServerLimits, "handshake_timeout", 0),
        (Heartbeat, "interval", 0),
        (Heartbeat, "timeout", 0),
        (Backoff, "factor", 0.5),
        (Backoff, "initial", -1),
        (Backoff, "jitter", -0.1),
        (Backoff, "jitter", 1.1),
        (RetryPolicy, "attempts", 0),
        (PoolLimits, "cancel_wait", math.nan),
        (PoolLimits, "cancel_wait", math.inf),
        (PoolLimits, "max_lifetime", math.inf),
        (Heartbeat, "interval", math.inf),
        (Heartbeat, "timeout", math.inf),
    ],
)
def test_what_is_out_of_bounds(make: Any, name: str, value: Any) -> None:
    """A ValueError that names the setting, its bound and the value."""
    with pytest.raises(ValueError, match=rf"^{name} must be .*, not {value!r}") as caught:
        make(**{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["5", True, [], object])
@pytest.mark.parametrize("name", ["max_in_flight", "connect_timeout"])
def test_what_is_no_number(name: str, value: Any) -> None:
    """A TypeError: "5" is not 5, and True is not 1."""
    with pytest.raises(TypeError, match=f"^{name} must be a number, not"):
        pool_limits(**{name: value})


@pytest.mark.parametrize("value", [20_000.5, 20_000.0])
@pytest.mark.parametrize(
    "name", ["min_connections", "max_connections", "max_in_flight", "max_frame_size", "stream_window", "max_waiting"]
)
def test_counts_are_whole(name: str, value: float) -> None:
    """They travel to the peer as whole numbers."""
    with pytest.raises(TypeError, match=f"^{name} must be a whole number, not {value}"):
        pool_limits(**{name: value})


@pytest.mark.parametrize("name", ["min_connections", "max_connections", "max_in_flight", "cancel_wait"])
def test_some_bounds_cannot_be_switched_off(name: str) -> None:
    """And say so."""
    with pytest.raises(ValueError, match=f"^{name} must be a number, not None: this bound cannot be switched off"):
        pool_limits(**{name: None})


@pytest.mark.parametrize(
    "name", ["connect_timeout", "acquire_timeout", "idle_timeout", "max_lifetime", "max_waiting", "write_timeout"]
)
def test_none_switches_a_bound_off(name: str) -> None:
    """Where the table says that it may."""
    assert getattr(pool_limits(**{name: None}), name) is None


def test_a_minimum_above_the_maximum() -> None:
    """Told with both values and what to do."""
    with pytest.raises(ValueError, match="min_connections=5 is above max_connections=4: raise the one or lower"):
        PoolLimits(min_connections=5)


@pytest.mark.parametrize(("make", "name"), [(RetryPolicy, "backoff"), (PoolLimits, "connect_backoff")])
def test_a_back_off_is_a_back_off(make: Any, name: str) -> None:
    """And not a number of seconds."""
    with pytest.raises(TypeError, match=name):
        make(**{name: 1.0})


@pytest.mark.parametrize("make", CLASSES)
def test_every_setting_is_described(make: type[Any]) -> None:
    """With its name, its default and one sentence: the reference page and introspection read the same table."""
    rows = list(describe(make))
    assert [name for name, _, _ in rows] == [field.name for field in attrs.fields(make)]
    assert all(meaning.endswith(".") for _, _, meaning in rows)
    assert {name: default for name, default, _ in rows} == attrs.asdict(make(), recurse=False)


@pytest.mark.parametrize("make", CLASSES)
def test_settings_do_not_change(make: type[Any]) -> None:
    """They are shared; `attrs.evolve` makes a changed copy."""
    config = make()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(config, attrs.fields(make)[0].name, 7)
    assert config == make()


def test_the_defaults_that_are_promised() -> None:
    """The numbers that the documentation names."""
    assert Heartbeat(10, 5) == Heartbeat()
    limits = PoolLimits()
    assert (limits.min_connections, limits.max_connections, limits.max_in_flight) == (1, 4, 256)
    assert (limits.max_waiting, limits.connect_timeout, limits.acquire_timeout) == (10_000, 5, 10)
    assert (limits.idle_timeout, limits.max_lifetime, limits.cancel_wait) == (600, 3600, 1)
    assert (limits.max_frame_size, limits.max_message_size) == (2**20, 2**22)
    assert (ServerLimits().max_in_flight, ServerLimits().handshake_timeout) == (256, 5)
