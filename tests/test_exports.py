"""The front door: what is public is there, sorted, documented, and says where it lives; nothing else leaks out."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import trio_rpc

REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "reference"
NAMESPACES = [
    "trio_rpc",
    "trio_rpc.auth",
    "trio_rpc.codecs",
    "trio_rpc.health",
    "trio_rpc.resolvers",
    "trio_rpc.testing",
    "trio_rpc.wire",
]

# Names that users may rely on: they stay, and more may join them.
FIXED = {
    "trio_rpc": """
        method service current_call
        serve open_server serve_listeners serve_stream ServerLimits
        open_pool run_pool open_connection PoolLimits Heartbeat RetryPolicy
        Code RpcError RemoteError RemoteCancelled
        Refused Overloaded Draining Unauthenticated PermissionDenied Unimplemented InvalidArgument
        ConnectionFailed ConnectError ConnectionLost PeerUnresponsive
        PoolError PoolTimeout PoolExhausted PoolClosed
        CodecError EncodeError DecodeError
        ProtocolError LocalProtocolError RemoteProtocolError
    """,
    "trio_rpc.codecs": "register",
    "trio_rpc.testing": "open_loopback",
}


@pytest.fixture(params=NAMESPACES)
def namespace(request: pytest.FixtureRequest) -> ModuleType:
    """Each public namespace in turn."""
    return importlib.import_module(request.param)


def public_things(namespace: ModuleType) -> Iterator[tuple[str, object]]:
    """The classes and functions that a namespace exports, as opposed to constants and type aliases."""
    for name in namespace.__all__:
        thing = getattr(namespace, name)
        if inspect.isclass(thing) or inspect.isroutine(thing):
            yield name, thing


def undocumented(name: str, thing: object) -> Iterator[str]:
    """The names of a public thing, and of its own public methods, that have no docstring."""
    if not (getattr(thing, "__doc__", None) or "").strip():
        yield name
    if inspect.isclass(thing):
        for member, value in vars(thing).items():
            described = inspect.isroutine(value) or isinstance(value, property)
            if described and not member.startswith("_") and not inspect.getdoc(getattr(thing, member)):
                yield f"{name}.{member}"


@pytest.mark.parametrize("name", FIXED)
def test_promised_names_are_exported(name: str) -> None:
    """What users rely on is in `__all__`."""
    assert set(FIXED[name].split()) - set(importlib.import_module(name).__all__) == set()


def test_all_is_sorted_and_without_twins(namespace: ModuleType) -> None:
    """`__all__` reads like an index: constants, classes, then the rest, each by name."""
    exported = set(namespace.__all__)
    assert list(namespace.__all__) == sorted(exported, key=lambda name: (not name.isupper(), name[0].islower(), name))


def test_every_name_resolves(namespace: ModuleType) -> None:
    """`from namespace import *` works."""
    assert [name for name in namespace.__all__ if not hasattr(namespace, name)] == []


def test_nothing_leaks(namespace: ModuleType) -> None:
    """What is not in `__all__` begins with an underscore or is a public namespace of its own."""
    visible = {name for name in vars(namespace) if not name.startswith("_")}
    inner = {name for name in visible if f"{namespace.__name__}.{name}" in NAMESPACES}
    assert visible - inner - set(namespace.__all__) - {"annotations"} == set()


def test_public_things_say_where_they_live(namespace: ModuleType) -> None:
    """A traceback or repr names the module that a user imports from, never a private one."""
    homes = {name: getattr(thing, "__module__", None) for name, thing in public_things(namespace)}
    assert {name: home for name, home in homes.items() if home not in NAMESPACES} == {}


def test_public_things_are_documented(namespace: ModuleType) -> None:
    """Every public class, function and method has a docstring."""
    assert [gap for name, thing in public_things(namespace) for gap in undocumented(name, thing)] == []


def test_every_public_name_is_in_the_reference() -> None:
    """Each name of the front door is on a reference page."""
    words = set(" ".join(page.read_text() for page in REFERENCE.glob("*.md")).replace(".", " ").split())
    assert set(trio_rpc.__all__) - words - {"__version__"} == set()
