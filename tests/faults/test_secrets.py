"""Secrets stay home: what is planted on one side is looked for in every byte, log line, repr, error and statistic."""

from __future__ import annotations

import logging
import traceback
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from typing import Any

import attrs
import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

import trio_rpc
from tests.faults.wiretap import Wiretap, traces
from trio_rpc import current_call, method
from trio_rpc.wire import Hello, Protocol, Role

QUIET = trio_rpc.Heartbeat(interval=None)
SECRET = "pl4nted-s3cret"
"""What the server's program knows."""
TOKEN = "pl4nted-t0ken"
ARGUMENT = "pl4nted-4rgument"
METADATA = "pl4nted-m3tadata"
KEY = "pl4nted-k3y"
OWN = (TOKEN, ARGUMENT, METADATA, KEY)
"""What the client sends, and may be found in what it sends, and nowhere else."""


@attrs.frozen
class User:
    """A principal, whose repr tells everything."""

    token: str


class Chatty(Exception):
    """Says all it knows, in its text, its arguments, its attributes, its notes and its causes."""

    def __init__(self) -> None:
        super().__init__(SECRET, {"also": SECRET})
        self.detail = SECRET
        self.add_note(SECRET)


class Declared(Exception):
    """What the contract names, and may cross; its cause and context may not."""


@attrs.frozen
class Row:
    """A class whose repr is a leak, and one of whose attributes raises."""

    number: int
    password: str = SECRET


class Vault:
    """Handlers that fail in every way that has a text."""

    password = SECRET

    def __repr__(self) -> str:
        return f"Vault({SECRET})"

    @method
    async def echo(self, value: str) -> str:
        return value

    @method
    async def raises(self, value: str) -> None:
        raise Chatty

    @method
    async def raises_later(self, value: str) -> None:
        await trio.lowlevel.checkpoint()
        try:
            raise Chatty
        except Chatty as exc:
            raise KeyError(value, SECRET) from exc

    @method
    async def groups(self, value: str) -> None:
        raise ExceptionGroup("several", [Chatty(), ValueError(SECRET)])

    @method
    async def exits(self, value: str) -> None:
        raise SystemExit(SECRET)

    @method(raises=[Declared])
    async def declares(self, value: str) -> None:
        try:
            raise Chatty
        except Chatty as exc:
            raise Declared("may be told") from exc

    @method
    async def wrong_result(self, value: str) -> int:
        return SECRET  # type: ignore[return-value]

    @method
    async def wrong_field(self, value: str) -> list[Row]:
        return [Row(1), Row(SECRET)]  # type: ignore[arg-type]

    @method
    async def wrong_thing(self, value: str) -> Any:
        return {"rows": [Row(1), self, Chatty()]}

    @method
    async def wrong_key(self, value: str) -> dict[str, int]:
        return {f"{SECRET} of his": "x"}  # type: ignore[dict-item]

    @method
    async def wrong_item(self, value: str) -> AsyncGenerator[int, None]:
        yield 1
        yield SECRET  # type: ignore[misc]

    @method
    async def failing_items(self, value: str) -> AsyncGenerator[int, None]:
        yield 1
        raise Chatty

    @method
    async def takes(self, items: AsyncIterable[int]) -> int:
        return sum([item async for item in items])

    @method
    async def peer(self, value: str) -> str:
        call = current_call()
        return f"{call!r} {call.peer!r} {call.peer.statistics() if hasattr(call.peer, 'statistics') else ''}"

    @method
    async def waits(self, value: str) -> None:
        await trio.sleep_forever()


def texts() -> Any:
    """Items of the wrong kind, with an argument's text in them."""

    async def items() -> AsyncGenerator[Any, None]:
        yield ARGUMENT

    return items()


async def collect(block: Any) -> None:
    """Take all that a stream gives."""
    async with block as items:
        async for _ in items:
            pass


Use = Callable[[trio_rpc.Pool], Any]
NAMES = [
    *("raises", "raises_later", "groups", "exits", "declares", "wrong_result", "wrong_field", "wrong_thing"),
    *("wrong_key", "peer", "echo"),
]
USES: dict[str, Use] = {
    **{name: lambda pool, name=name: getattr(pool.stub(Vault), name)(ARGUMENT) for name in NAMES},  # type: ignore[misc]
    "wrong item": lambda pool: collect(pool.stub(Vault).wrong_item(ARGUMENT)),
    "failing items": lambda pool: collect(pool.stub(Vault).failing_items(ARGUMENT)),
    "items of a wrong type": lambda pool: pool.call("Vault.takes", texts()),
    "an argument of a wrong type": lambda pool: pool.call("Vault.echo", [ARGUMENT]),
    "too many arguments": lambda pool: pool.call("Vault.echo", ARGUMENT, ARGUMENT),
    "no such method": lambda pool: pool.call("Vault.password", ARGUMENT),
    "keyed": lambda pool: pool.stub(Vault, idempotency_key=KEY).raises(ARGUMENT),
    "keyed, wrong result": lambda pool: pool.stub(Vault, idempotency_key=KEY).wrong_result(ARGUMENT),
}


async def authenticate(credentials: Any, _origin: object) -> User:
    """Who knows the token."""
    if credentials["token"] != TOKEN:
        raise KeyError(credentials["token"], SECRET)
    return User(SECRET)


def without_tracebacks(caplog: pytest.LogCaptureFixture) -> str:
    """The log, but for the texts of what handlers raised: these are for the log alone."""
    return "\n".join(f"{record.name} {record.getMessage()}" for record in caplog.records)


@pytest.mark.parametrize("codec", ["msgpack", "json"])
async def test_a_secret_is_found_nowhere(
    codec: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """X10, X15, Rule 13: the server's secrets are in no byte that it sends; the client's token, arguments and
    metadata in none that comes back; none of either in a log line, a repr, an error or a statistic of either side.
    """
    caplog.set_level(logging.DEBUG, "trio_rpc")
    tap, seen = Wiretap(), list[str]()
    limits = trio_rpc.PoolLimits(max_lifetime=None)
    async with (
        trio_rpc.open_server(Vault(), tap, heartbeat=QUIET, authenticate=authenticate) as server,
        trio_rpc.open_pool(
            tap.connect,
            codec=codec,
            heartbeat=QUIET,
            limits=limits,
            credentials=lambda: TOKEN,
            metadata={"authorization": METADATA},
        ) as pool,
    ):
        for name, use in USES.items():
            try:
                await use(pool)
            except Exception as exc:
                seen += [name, str(exc), repr(exc), "".join(getattr(exc, "__notes__", []))]
                if name not in ("items of a wrong type", "an argument of a wrong type"):  # Told to who has sent it.
                    seen += traceback.format_exception_only(exc)
            await trio.sleep(2)  # The log takes only so much.
        stub = pool.stub(Vault, metadata={"more": METADATA}, idempotency_key=KEY)
        seen += map(repr, [pool, server, stub, pool.statistics(), server.statistics(), *tap.connections])
        seen += map(repr, [trio_rpc.Call("m", (ARGUMENT,), {"a": ARGUMENT}, {"k": METADATA}), trio_rpc.Reply(SECRET)])
        seen += map(repr, [trio_rpc.Identity(User(SECRET))])
    assert len(seen) > 50
    lines = without_tracebacks(caplog)
    assert "Vault.raises failed" in lines
    for trace in traces(SECRET):
        assert trace not in tap.answers
        assert trace not in tap.requests
    for secret in (SECRET, *OWN):
        assert secret not in lines
    own_again = "items of a wrong type", "an argument of a wrong type"
    for text in seen:
        assert SECRET not in text
        if not any(f"str '{ARGUMENT}" in text or f"['{ARGUMENT}" in text for _ in own_again):
            assert not [secret for secret in OWN if secret in text]
    sent = tap.requests
    assert [secret.encode() in sent for secret in OWN] == [True] * 4  # They were there to be found.
    answers = tap.answers.replace(b"got str '" + ARGUMENT.encode(), b"").replace(b"['" + ARGUMENT.encode(), b"")
    echoed = answers.count(ARGUMENT.encode())
    assert echoed == 1  # By `echo`, whose business it is.
    assert not [secret for secret in (TOKEN, METADATA, KEY) if secret.encode() in answers]


async def test_what_a_handler_raised_is_in_the_servers_log_alone(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """X10: there it is whole, text, cause and traceback, under the id that the caller got; and frames show no values."""
    tap = Wiretap()
    async with (
        trio_rpc.open_server(Vault(), tap, heartbeat=QUIET) as server,
        trio_rpc.open_pool(tap.connect, heartbeat=QUIET) as pool,
    ):
        with pytest.raises(trio_rpc.RemoteError) as caught:
            await pool.stub(Vault).raises(ARGUMENT)
        assert server.statistics().served == 1
    assert caught.value.error_id in caplog.text
    assert caplog.text.count(SECRET) == 3  # Its text, with both arguments, and its note.
    assert "Traceback" in caplog.text
    assert ARGUMENT not in caplog.text


async def test_debug_tells(autojump_clock: MockClock) -> None:
    """X10: with `debug=True` the same text is found on the wire: so the search above can fail."""
    tap = Wiretap()
    async with (
        trio_rpc.open_server(Vault(), tap, heartbeat=QUIET, debug=True),
        trio_rpc.open_pool(tap.connect, heartbeat=QUIET) as pool,
    ):
        for name in ("raises", "wrong_result"):
            before = tap.answers.count(SECRET.encode())
            with pytest.raises(trio_rpc.RemoteError):
                await getattr(pool.stub(Vault), name)("")
            assert tap.answers.count(SECRET.encode()) > before


@pytest.mark.parametrize("token", [f"not {TOKEN}", [TOKEN], {"a": TOKEN}])
async def test_refused_credentials_are_not_repeated(
    token: Any, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """X15, X01: neither to who has sent them, nor in the log, whatever `authenticate` raises about them."""
    caplog.set_level(logging.DEBUG, "trio_rpc")
    tap = Wiretap()
    limits = trio_rpc.PoolLimits(acquire_timeout=1)
    async with (
        trio_rpc.open_server(Vault(), tap, heartbeat=QUIET, authenticate=authenticate) as server,
        trio_rpc.open_pool(tap.connect, heartbeat=QUIET, limits=limits, credentials={"token": token}) as pool,
    ):
        with pytest.raises(trio_rpc.RpcError) as caught:
            await pool.stub(Vault).echo("")
        told = [repr(caught.value), repr(pool), repr(pool.statistics()), repr(server), repr(server.statistics())]
    assert TOKEN.encode() in tap.requests
    assert TOKEN.encode() not in tap.answers
    assert SECRET.encode() not in tap.answers
    assert TOKEN not in "".join(told) + caplog.text


async def test_a_hello_that_cannot_be_is_not_repeated(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """X15, X11: where the credentials in it are what is wrong."""
    caplog.set_level(logging.DEBUG, "trio_rpc")
    tap = Wiretap()
    async with trio_rpc.open_server(Vault(), tap, heartbeat=QUIET):
        stream = await tap.connect()
        hello = Hello(credentials={"x": 1})
        protocol = Protocol(Role.DIALLER, hello)
        same = f'"{TOKEN[:5]}"'.encode()
        await stream.send_all(protocol.greeting().replace(b'{"x":1}', same))
        answer = b""
        while data := await stream.receive_some():
            answer += data
    assert b"HELLO has credentials" in answer
    assert TOKEN[:5].encode() not in answer
    assert TOKEN[:5] not in caplog.text
