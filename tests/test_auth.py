"""The battery `trio_rpc.auth`: tokens, names in certificates, users of this machine, and rules of access."""

from __future__ import annotations

import inspect
import os
import pwd
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

import trio_rpc
from trio_rpc import Identity, Origin, PermissionDenied, ProcessCredentials, Unauthenticated, current_call, method
from trio_rpc.auth import AccessRules, BearerTokens, CertificateNames, any_of, anyone, same_user, unix_users
from trio_rpc.testing import open_loopback

HERE = Origin(address="tcp://127.0.0.1:1")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="SO_PEERCRED is Linux's")
ME = os.geteuid()


class Inventory:
    @method
    async def stock(self) -> Any:
        return current_call().peer.principal

    @method
    async def restock(self) -> None:
        pass


async def ask(authenticate: Any, credentials: Mapping[str, Any] | None = None, origin: Origin = HERE) -> Any:
    """What it says: the principal, or None if it refuses."""
    try:
        principal = authenticate(credentials or {}, origin)
        return await principal if inspect.isawaitable(principal) else principal
    except Unauthenticated:
        return None


async def text_of(authenticate: Any, credentials: Any, origin: Origin = HERE) -> str:
    """How it refuses."""
    with pytest.raises(Unauthenticated) as caught:
        principal = authenticate(credentials, origin)
        await principal
    return caught.value.message


# -- tokens ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["sesame", "x" * 5000, "schlüssel", "鍵", "\ud800 lone", "a\0b", " "])
async def test_the_right_token(token: str) -> None:
    """X02: any text may be one, beyond ASCII too; its principal comes back as it was given."""
    tokens = BearerTokens({"other": "bert", token: Identity("anne", expires_in=60)})
    assert await ask(tokens, {"token": token}) == Identity("anne", expires_in=60)


@pytest.mark.parametrize(
    "credentials",
    [
        {},
        {"token": ""},
        {"token": "Sesame"},
        {"token": "sesamE"},
        {"token": "sesam"},
        {"token": "sesame\n"},
        {"token": None},
        {"token": 5},
        {"token": ["sesame"]},
        {"token": {"sesame": 1}},
        {"Token": "sesame"},
        {"token": "sesame", "user": "anne"},
        {"user": "anne", "password": "sesame"},
        {"token": "\ud800"},
    ],
)
async def test_anything_else_is_refused_in_the_same_words(credentials: Any) -> None:
    """X01, X02: missing, wrong, too much: who guesses learns nothing of how near it was."""
    assert await text_of(BearerTokens({"sesame": "anne"}), credentials) == "a valid token is needed"


async def test_tokens_without_principals() -> None:
    """Each is a principal of its own, the same at each look, whose name does not tell the token."""
    tokens = BearerTokens(["first", "second"])
    first, second = await ask(tokens, {"token": "first"}), await ask(tokens, {"token": "second"})
    assert first == await ask(tokens, {"token": "first"}) != second
    assert first.startswith("token ")
    assert "first" not in first
    assert await ask(BearerTokens(["first"]), {"token": "first"}) != first, "nor is it the same in another process"


async def test_tokens_are_replaced() -> None:
    """Without a restart; those who have none any more are told, so that they can be revoked."""
    tokens = BearerTokens({"a1": "anne", "b1": "bert", "c1": "carl"})
    assert tokens.replace({"a2": "anne", "b1": "bert"}) == ["carl"]
    found = [await ask(tokens, {"token": token}) for token in ("a1", "a2", "b1", "c1")]
    assert found == [None, "anne", "bert", None]
    with pytest.raises(TypeError):
        tokens.replace({"a3": "anne", 5: "bert"})  # type: ignore[dict-item]
    assert await ask(tokens, {"token": "a2"}) == "anne", "nothing has changed"


async def test_tokens_from_a_function() -> None:
    """It is asked each time, async or not; what it raises goes on, and `replace` is not for it."""
    current: Any = None

    def at_once() -> Any:
        return current

    async def later() -> Any:
        await trio.lowlevel.checkpoint()
        return current

    for tokens in (BearerTokens(at_once), BearerTokens(later)):
        current = {"a1": "anne"}
        assert await ask(tokens, {"token": "a1"}) == "anne"
        current = ["a2"]
        assert await ask(tokens, {"token": "a1"}) is None
        assert await ask(tokens, {"token": "a2"}) is not None
        current = 5
        with pytest.raises(TypeError, match="tokens must be a mapping of tokens to principals, or a list of tokens"):
            await ask(tokens, {"token": "a2"})
        with pytest.raises(TypeError, match="these tokens come from a function"):
            tokens.replace([])


@pytest.mark.parametrize(
    ("tokens", "kind", "message"),
    [
        ("sesame-4711", TypeError, "or a list of tokens, not of type str"),
        (b"sesame-4711", TypeError, "not of type bytes"),
        (5, TypeError, "not of type int"),
        ([b"sesame-4711"], TypeError, "a token must be a text, not of type bytes"),
        ({"": "anne"}, ValueError, "a token must not be empty"),
        ({4711: "anne"}, TypeError, "a token must be a text, not of type int"),
    ],
)
def test_what_is_no_token(tokens: Any, kind: type[Exception], message: str) -> None:
    """It is told at once, without what might be a secret."""
    with pytest.raises(kind, match=message) as caught:
        BearerTokens(tokens)
    assert "4711" not in str(caught.value)


def test_tokens_are_not_shown() -> None:
    """X15: neither in the repr, nor anywhere in the object."""
    tokens = BearerTokens({"sesame-4711": "anne"})
    assert repr(tokens) == "<BearerTokens: 1>"
    assert "4711" not in repr(vars(tokens))
    assert repr(BearerTokens(lambda: ["sesame-4711"])) == "<BearerTokens: from a function>"


# -- names in certificates ---------------------------------------------------------------------------------------------


def with_names(*names: tuple[str, str], common: str | None = None) -> Origin:
    """An origin with a certificate like those of `getpeercert`."""
    certificate: dict[str, Any] = {"subject": ((("organizationName", "x"),),)}
    if common is not None:
        certificate["subject"] += ((("commonName", common),),)
    if names:
        certificate["subjectAltName"] = names
    return Origin(address="tls://10.0.0.7:1", certificate=certificate, tls="TLSv1.3")


@pytest.mark.parametrize(
    ("allowed", "origin", "principal"),
    [
        (["a.example.org"], with_names(("DNS", "a.example.org")), "a.example.org"),
        (["a.example.org"], with_names(("DNS", "A.Example.Org")), "a.example.org"),
        (["A.EXAMPLE.ORG"], with_names(("DNS", "a.example.org")), "a.example.org"),
        (["a.example.org"], with_names(("DNS", "b.example.org")), None),
        (["a.example.org"], with_names(("DNS", "a.example.org.evil.net")), None),
        (["a.example.org"], with_names(("DNS", "b.example.org"), ("DNS", "a.example.org")), "a.example.org"),
        (["*.example.org"], with_names(("DNS", "a.example.org")), "a.example.org"),
        (["*.example.org"], with_names(("DNS", "example.org")), None),
        (["*.example.org"], with_names(("DNS", "a.b.example.org")), None),
        (["*.example.org"], with_names(("DNS", ".example.org")), None),
        (["*.example.org"], with_names(("DNS", "aexample.org")), None),
        (["*.example.org"], with_names(("DNS", "*.example.org")), None),
        ([], with_names(("DNS", "*.example.org")), None),
        ([], with_names(("DNS", "a.example.org")), "a.example.org"),
        ([], with_names(), None),
        ([], HERE, None),
        (["spiffe://x/worker"], with_names(("URI", "spiffe://x/worker")), "spiffe://x/worker"),
        (["spiffe://x/worker"], with_names(("URI", "spiffe://x/Worker")), None),
        (["spiffe://x/worker"], with_names(("DNS", "spiffe://x/worker")), None),
        (["*.example.org"], with_names(("URI", "a.example.org")), None),
        (["*.example.org"], with_names(("URI", "x:a.example.org")), None),
        (["ops@example.org"], with_names(("email", "ops@example.org")), "ops@example.org"),
        (["*.example.org"], with_names(("email", "ops@a.example.org")), None),
        (["10.0.0.7"], with_names(("IP Address", "10.0.0.7")), None),
        (["anne"], with_names(common="anne"), "anne"),
        (["anne"], with_names(("DNS", "bert"), common="anne"), None),
        (["anne"], with_names(("IP Address", "10.0.0.7"), common="anne"), "anne"),
        (["spiffe://x/worker"], with_names(common="spiffe://x/worker"), None),
    ],
)
async def test_names_of_certificates(allowed: list[str], origin: Origin, principal: str | None) -> None:
    """The first name that is allowed is the principal; the common name counts where there is no other (RFC 6125)."""
    found = await ask(CertificateNames(*allowed), {"token": "not looked at"}, origin)
    assert found == (principal if principal is None else Identity(principal))


@pytest.mark.parametrize("left", [3600.0, 1.0, 0.0, -3600.0])
async def test_an_identity_expires_with_its_certificate(left: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """X04: for as long as the certificate is valid, so long is its owner who it says."""
    origin = with_names(("DNS", "a.example.org"))
    assert isinstance(origin.certificate, dict)
    origin.certificate["notAfter"] = "Jan  5 09:34:43 2018 GMT"  # The example of Python's own documentation.
    monkeypatch.setattr("time.time", lambda: 1515144883 - left)
    assert await ask(CertificateNames(), {}, origin) == Identity("a.example.org", expires_in=left)


@pytest.mark.parametrize("name", ["", "*", "a.*.org", "*.*.org", "a*.example.org", "*example.org"])
def test_what_is_no_name(name: str) -> None:
    """It is told at once."""
    with pytest.raises(ValueError, match="is no name: write worker"):
        CertificateNames(name)
    with pytest.raises(TypeError, match="is a text, not 5"):
        CertificateNames(5)  # type: ignore[arg-type]


def test_names_are_shown() -> None:
    """They are no secrets."""
    assert repr(CertificateNames("*.example.org", "anne")) == "CertificateNames('*.example.org', 'anne')"


# -- users of this machine ---------------------------------------------------------------------------------------------


def from_user(uid: int) -> Origin:
    """A process of this user's."""
    return Origin(address="unix:(unnamed)", process=ProcessCredentials(pid=1, uid=uid, gid=uid))


async def test_users() -> None:
    """The kernel's word counts; over other transports there is none, so nobody is let in."""
    name = pwd.getpwuid(0).pw_name
    ways = unix_users(4711, name)
    assert [await ask(ways, origin=from_user(uid)) for uid in (4711, 0, 4712)] == [4711, name, None]
    assert await ask(ways) is None
    assert await ask(same_user(), origin=from_user(ME)) == ME
    assert await ask(same_user(), origin=from_user(ME + 1)) is None


@LINUX
@pytest.mark.parametrize("place", ["unix://{folder}/app.sock", "unix:@trio-rpc-users-{pid}"])
async def test_users_over_a_socket(place: str, tmp_path: Path) -> None:
    """A process of this very user is let in, and not if another is wanted."""
    address = place.format(folder=tmp_path, pid=os.getpid())
    async with trio_rpc.open_server(Inventory(), address, authenticate=same_user()) as server:
        async with trio_rpc.open_pool(server.addresses[0]) as pool:
            assert await pool.stub(Inventory).stock() == ME
    async with trio_rpc.open_server(Inventory(), address, authenticate=unix_users(ME + 1)) as server:
        async with trio_rpc.open_pool(server.addresses[0]) as pool:
            with pytest.raises(Unauthenticated, match="this user may not connect here"):
                await pool.stub(Inventory).stock()


@pytest.mark.parametrize(
    ("users", "kind", "message"),
    [
        ((), TypeError, "needs a user"),
        ((True,), TypeError, "a name or a number, not True"),
        ((1.5,), TypeError, "a name or a number"),
        (("no such user",), LookupError, "there is no user 'no such user' on this machine"),
    ],
)
def test_what_is_no_user(users: tuple[Any, ...], kind: type[Exception], message: str) -> None:
    """It is told at once."""
    with pytest.raises(kind, match=message):
        unix_users(*users)


# -- several ways ------------------------------------------------------------------------------------------------------


async def test_any_of() -> None:
    """The first that knows the caller decides; all that refuse have one text; one that fails ends it."""
    ways = any_of(same_user(), BearerTokens({"sesame": "anne"}), lambda *_: False)
    assert await ask(ways, {"token": "sesame"}, from_user(ME)) == ME
    assert await ask(ways, {"token": "sesame"}, from_user(ME + 1)) == "anne"
    assert await text_of(ways, {"token": "x"}) == "these credentials are not accepted here"
    with pytest.raises(ZeroDivisionError):
        await ask(any_of(lambda *_: 1 / 0, lambda *_: "anne"))
    no_function: Any = 5
    for none in ((), (no_function,)):
        with pytest.raises(TypeError, match="any_of needs functions"):
            any_of(*none)


# -- rules -------------------------------------------------------------------------------------------------------------


def is_operator(principal: Any) -> bool:
    """A group."""
    return str(principal).startswith("ops-")


RULES = AccessRules(
    deny=[("ops-new", "*.delete"), (anyone, "Inventory.secret"), ({"web", "batch"}, ["Admin.?top", "Admin.[ab]*"])],
    allow=[
        ({"web", "batch"}, ["Inventory.stock", "Inventory.reserve"]),
        (is_operator, "*"),
        ("batch", "Admin.*"),
        (anyone, "Health.*"),
        (["in", "a", "list"], "List.*"),
    ],
)


@pytest.mark.parametrize(
    ("principal", "name", "may"),
    [
        ("web", "Inventory.stock", True),
        ("web", "Inventory.stocks", False),
        ("web", "inventory.stock", False),
        ("web", "Inventory.restock", False),
        ("web", "Health.check", True),
        ("web", "Health", False),
        (None, "Health.check", True),
        (None, "Inventory.stock", False),
        ("ops-old", "Inventory.delete", True),
        ("ops-new", "Inventory.delete", False),
        ("ops-new", "Inventory.deleted", True),
        ("ops-old", "Inventory.secret", False),
        ("batch", "Admin.go", True),
        ("batch", "Admin.stop", False),
        ("batch", "Admin.apply", False),
        ("web", "Admin.go", False),
        (["in", "a", "list"], "List.x", True),
        (["in", "a"], "List.x", False),
        (["unhashable"], "Inventory.stock", False),
        ("web", "", False),
        ("web", "Health.\n", True),
    ],
)
def test_rules(principal: Any, name: str, may: bool) -> None:
    """First what is denied, then what is allowed; the rest is refused."""
    assert RULES.allows(principal, name) is may


def test_no_rules_allow_nothing() -> None:
    """Whoever asks."""
    assert not AccessRules().allows("root", "Inventory.stock")
    assert not AccessRules(deny=[("bert", "*")]).allows("anne", "Inventory.stock")


async def test_rules_over_the_wire() -> None:
    """They are an `authorize`: the method that is denied is not run, and says the same as one that is not there."""
    rules = AccessRules(allow=[("anne", "Inventory.stock")])
    tokens = BearerTokens({"sesame": "anne"})
    async with open_loopback(Inventory(), authenticate=tokens, authorize=rules, credentials="sesame") as pool:
        assert await pool.call("Inventory.stock") == "anne"
        for name in ("Inventory.restock", "Inventory.nothing"):
            with pytest.raises(PermissionDenied, match=f"not allowed to call {name}"):
                await pool.call(name)


@pytest.mark.parametrize(
    "rule", ["anne", ("anne",), ("anne", 5), ("anne", b"x"), ("anne", ["x", 5]), ("anne", [""]), 5]
)
@pytest.mark.parametrize("kind", ["deny", "allow"])
def test_what_is_no_rule(kind: str, rule: Any) -> None:
    """It is told at once, with an example."""
    with pytest.raises(TypeError, match=f"a rule under {kind} is"):
        AccessRules(**{kind: [rule]})


def test_rules_are_shown() -> None:
    """They are no secrets."""
    rules = AccessRules(deny=[("anne", "A.b")], allow=[(is_operator, ["*", "C.d"]), ({"x"}, "E.*")])
    assert repr(rules) == "AccessRules(deny=[('anne', A.b)], allow=[(is_operator, *, C.d), ({'x'}, E.*)])"
