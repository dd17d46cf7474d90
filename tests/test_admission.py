"""Which requests a server takes: limits on what runs at once, who is refused, and when a place is free again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from tests.guarantees.kit import Lab, RawClient, numbers
from trio_rpc import (
    Code,
    Heartbeat,
    Origin,
    Overloaded,
    PoolLimits,
    ServerLimits,
    current_call,
    method,
    open_pool,
    open_server,
)
from trio_rpc._admission import party_of
from trio_rpc._policies import AdaptiveLimit
from trio_rpc.testing import MemoryListener
from trio_rpc.wire import ErrorReceived, Hello, Outcome, ResponseReceived


class Desk(Lab):
    """With a method of each kind."""

    @method(limit=2)
    async def narrow(self, seconds: float) -> str:
        return await self.sleep(seconds)

    @method(unlimited=True)
    async def watch(self, seconds: float) -> str:
        return await self.sleep(seconds)

    @method(raises=[KeyError])
    async def fails(self) -> None:
        raise KeyError("x")

    @method
    def plain(self, number: int) -> int:
        return number

    @method(thread=True)
    def threaded(self) -> int:
        return 1


class Site:
    """A server with clients that are played by hand."""

    def __init__(self, desk: Desk, listener: MemoryListener, server: Any) -> None:
        self.desk, self.listener, self.server = desk, listener, server

    async def client(self, name: str = "", codec: str = "msgpack") -> RawClient:
        """A new connection."""
        client = RawClient(await self.listener.connect(), Hello(codecs=(codec,), credentials={"name": name}))
        await client.greet()
        return client


@asynccontextmanager
async def a_site(limits: ServerLimits, **options: Any) -> AsyncIterator[Site]:
    """A server of a Desk, in memory."""
    desk, listener = Desk(), MemoryListener()
    async with open_server(desk, listener, limits=limits, heartbeat=Heartbeat(interval=None), **options) as server:
        yield Site(desk, listener, server)


def by_name(credentials: Mapping[str, Any], origin: Origin) -> Any:
    """An authentication that believes everybody. The principal cannot be hashed."""
    return {"name": credentials["name"]}


async def refusal(client: RawClient, name: str, *args: Any) -> str:
    """Make a call that is refused for lack of room; what its caller is told."""
    await client.send(client.request(name, *args))
    error = await client.expect(ErrorReceived)
    assert (error.code, error.outcome, error.started) == (Code.RESOURCE_EXHAUSTED, Outcome.REFUSED, False)
    return error.message


ONE_IN_FLIGHT = ServerLimits(max_in_flight=2)
SERVER = ServerLimits(max_calls=2)
PRINCIPAL = ServerLimits(max_calls_per_principal=2)
ADAPTIVE = {"adaptive": AdaptiveLimit(initial=2, minimum=2, maximum=2)}
LIMITS: dict[str, tuple[ServerLimits, dict[str, Any], str, str, str]] = {
    "of a connection": (
        ONE_IN_FLIGHT,
        {},
        "Lab.sleep",
        "refused",
        "2 calls are running on this connection already (max_in_flight)",
    ),
    "of the server": (
        SERVER,
        {},
        "Lab.sleep",
        "refused_server",
        "2 calls are running on this server already (max_calls)",
    ),
    "of a principal": (
        PRINCIPAL,
        {"authenticate": by_name},
        "Lab.sleep",
        "refused_principal",
        "2 calls of this caller are running already (max_calls_per_principal)",
    ),
    "of a host": (
        PRINCIPAL,
        {},
        "Lab.sleep",
        "refused_principal",
        "2 calls of this caller are running already (max_calls_per_principal)",
    ),
    "of a method": (
        ServerLimits(),
        {},
        "Lab.narrow",
        "refused_method",
        "2 calls of Lab.narrow are running already (limit=2)",
    ),
    "that follows the latency": (
        ServerLimits(),
        ADAPTIVE,
        "Lab.sleep",
        "refused_adaptive",
        "2 calls are running, and more would make all of them slower (adaptive)",
    ),
}


@pytest.mark.parametrize(("limits", "options", "name", "counter", "sentence"), LIMITS.values(), ids=LIMITS)
async def test_one_more_than_a_limit_is_refused(
    autojump_clock: trio.testing.MockClock,
    limits: ServerLimits,
    options: dict[str, Any],
    name: str,
    counter: str,
    sentence: str,
) -> None:
    """R16: it did not run, and is told which limit that was; once a call has ended, there is room again."""
    async with a_site(limits, **options) as site:
        client = await site.client()
        await client.send(client.request(name, 1), client.request(name, 2))
        assert await refusal(client, name, 1) == sentence
        stats = site.server.statistics()
        assert (stats.in_flight, stats.refused, getattr(stats, counter)) == (2, 1, 1)
        kinds = stats.refused_server + stats.refused_principal + stats.refused_method + stats.refused_adaptive
        assert kinds == (counter != "refused")
        assert (await client.expect(ResponseReceived)).id == 1
        await client.send(client.request(name, 3))
        assert (await client.expect(ResponseReceived)).id == 3
        assert ((await client.expect(ResponseReceived)).id, trio.current_time()) == (7, 4)
        assert site.desk.words == ["ended"] * 3
        assert site.server.statistics().in_flight == 0


async def test_whom_a_limit_is_for(autojump_clock: trio.testing.MockClock) -> None:
    """R22: a server's is for all connections together, a principal's for all of its own, and not for those of others."""
    limits = ServerLimits(max_calls=3, max_calls_per_principal=2)
    async with a_site(limits, authenticate=by_name) as site:
        ann, ann_again, bob, cid = [await site.client(name) for name in ("ann", "ann", "bob", "cid")]
        await ann.send(ann.request("Lab.sleep", 5))
        await ann_again.send(ann_again.request("Lab.sleep", 5))
        await trio.sleep(0.1)
        assert "max_calls_per_principal" in await refusal(ann, "Lab.sleep", 1)
        assert "max_calls_per_principal" in await refusal(ann_again, "Lab.sleep", 1)
        await bob.send(bob.request("Lab.sleep", 5))
        await trio.sleep(0.1)
        assert "max_calls)" in await refusal(cid, "Lab.sleep", 1)
        await trio.sleep(6)
        await cid.send(cid.request("Lab.sleep", 1), cid.request("Lab.sleep", 2))
        assert (await cid.expect(ResponseReceived)).id == 3


async def test_a_methods_limit_holds_over_all_codecs(autojump_clock: trio.testing.MockClock) -> None:
    """However it is called, it is one method."""
    async with a_site(ServerLimits()) as site:
        client, other = await site.client(), await site.client(codec="json")
        await client.send(client.request("Lab.narrow", 5))
        request = other.protocol.request(b"\x0aLab.narrow", b"[5]")[1]
        await other.send(request)
        await trio.sleep(1)
        assert "limit=2" in await refusal(client, "Lab.narrow", 1)
        await client.send(client.request("Lab.sleep", 1))
        assert (await client.expect(ResponseReceived)).id == 5  # Others are not concerned.


@pytest.mark.parametrize("case", ["of a connection", "of the server", "of a principal", "that follows the latency"])
async def test_what_is_unlimited_is_served_when_all_is_full(autojump_clock: trio.testing.MockClock, case: str) -> None:
    """No limit applies to it, and it takes nobody's place; on one connection it has `max_in_flight` of its own."""
    limits, options, name, _, _ = LIMITS[case]
    async with a_site(limits, **options) as site:
        client = await site.client()
        await client.send(client.request("Lab.watch", 3))
        await client.send(client.request(name, 5), client.request(name, 5), client.request("Lab.watch", 1))
        assert await refusal(client, name, 1)
        assert site.server.statistics().in_flight == 4
        assert ((await client.expect(ResponseReceived)).id, trio.current_time()) == (7, 1)
        if case == "of a connection":
            await client.send(client.request("Lab.watch", 1))
            assert "max_in_flight" in await refusal(client, "Lab.watch", 1)


async def test_a_reconnecting_client_cannot_pile_handlers_up(autojump_clock: trio.testing.MockClock) -> None:
    """R10, R22, Rule 8: a place is taken until the handler has ended, and not only until its connection has."""
    async with a_site(ServerLimits(max_calls=3, max_calls_per_principal=2)) as site:
        for number in range(5):
            client = await site.client()
            if number < 2:
                await client.send(client.request("Lab.stubborn", 10))
            else:
                assert "max_calls_per_principal" in await refusal(client, "Lab.stubborn", 10)
            await trio.sleep(0.1)
            await client.stream.aclose()
        stats = site.server.statistics()
        assert (stats.in_flight, stats.refused_principal, stats.served) == (2, 3, 2)
        await trio.sleep(10)
        assert site.server.statistics().in_flight == 0
        assert site.desk.words == ["ended"] * 2
        client = await site.client()
        await client.send(client.request("Lab.echo", 1))
        await client.expect(ResponseReceived)


async def ends(client: RawClient, *, name: str, args: tuple[Any, ...] = (), timeout: float | None = None) -> None:
    """Make a call and wait for its end."""
    await client.send(client.request(name, *args, timeout=timeout))
    await client.event()


async def is_cancelled(client: RawClient, name: str, *args: Any) -> None:
    """Make a call, and cancel it while it runs."""
    await client.send(client.request(name, *args))
    await trio.sleep(1)
    await client.send(client.protocol.cancel(client.protocol.last_local_id, 1))
    await client.event()


async def is_lost(client: RawClient, name: str, *args: Any, streaming: bool = False) -> None:
    """Make a call, and leave it alone."""
    await client.send(client.request(name, *args, streaming=streaming))
    await trio.sleep(1)
    await client.stream.aclose()
    await trio.sleep(1)


async def is_cancelled_and_lost(client: RawClient) -> None:
    """Make a call, cancel it, and leave it alone while it cleans up."""
    await client.send(client.request("Lab.sleep", 9, 1))
    await trio.sleep(1)
    await client.send(client.protocol.cancel(client.protocol.last_local_id, 1))
    await trio.sleep(0.5)
    await client.stream.aclose()
    await trio.sleep(1)


async def leaves_a_crowd(client: RawClient) -> None:
    """Make calls of which most are not begun, as no answer is taken, and leave them alone."""
    await client.send(*(client.request("Lab.echo", "x" * 30_000) for number in range(10)))
    await client.send(*(client.request("Lab.plain", number) for number in range(50)))
    await trio.sleep(1)
    await client.stream.aclose()
    await trio.sleep(1)


ENDS: dict[str, Any] = {
    "a result": lambda client: ends(client, name="Lab.echo", args=(1,)),
    "a result of a plain function": lambda client: ends(client, name="Lab.plain", args=(1,)),
    "a result after a while": lambda client: ends(client, name="Lab.sleep", args=(1,)),
    "a result of a thread": lambda client: ends(client, name="Lab.threaded"),
    "a failure": lambda client: ends(client, name="Lab.fails"),
    "a stream's end": lambda client: ends(client, name="Lab.count", args=(0,)),
    "arguments that do not fit": lambda client: ends(client, name="Lab.plain", args=("x",)),
    "no such method": lambda client: ends(client, name="Lab.nothing"),
    "a passed deadline": lambda client: ends(client, name="Lab.sleep", args=(9,), timeout=1),
    "one that had passed on arrival": lambda client: ends(client, name="Lab.echo", args=(9,), timeout=-1),
    "a cancellation": lambda client: is_cancelled(client, "Lab.sleep", 9),
    "a failure in answer to one": lambda client: is_cancelled(client, "Lab.breaks", 9),
    "a cancellation, and a lost connection": is_cancelled_and_lost,
    "a lost connection": lambda client: is_lost(client, "Lab.sleep", 9),
    "a lost connection, and a failure": lambda client: is_lost(client, "Lab.breaks", 9),
    "a lost connection, and a result": lambda client: is_lost(client, "Lab.stubborn", 1.5),
    "a stream's lost connection": lambda client: is_lost(client, "Lab.count", 1_000_000),
    "a client stream's lost connection": lambda client: is_lost(client, "Lab.total", streaming=True),
    "a connection lost before any was begun": leaves_a_crowd,
}


@pytest.mark.parametrize("limited", ["one", "all"])
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
async def test_every_end_frees_the_place(end: Any, limited: str, autojump_clock: trio.testing.MockClock) -> None:
    """Exactly once, whichever limits there are: afterwards there is room for as many as before, and for no more."""
    options: dict[str, Any] = {}
    limits = ServerLimits(max_calls=60, max_queued_bytes=64 * 1024)
    if limited == "all":
        limits = attrs.evolve(limits, max_calls_per_principal=60)
        options = {"adaptive": AdaptiveLimit(initial=60, minimum=60, maximum=60)}
    async with a_site(limits, **options) as site:
        for _ in range(3):
            client = await site.client()
            await end(client)
            assert site.server.statistics().in_flight == 0
            await client.stream.aclose()
        client = await site.client()
        await client.send(*(client.request("Lab.sleep", 5) for _ in range(60)))
        assert await refusal(client, "Lab.sleep", 5)
        assert site.server.statistics().in_flight == 60


async def test_what_expired_is_counted_and_holds_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """Neither what is late on arrival nor what becomes late in line is begun, or takes part in a limit."""
    async with a_site(ServerLimits(max_calls=1)) as site:
        client = await site.client()
        await client.send(client.request("Lab.sleep", 5))
        await client.send(client.request("Lab.echo", 1, timeout=-1))
        error = await client.expect(ErrorReceived)  # There would have been no room for it.
        assert (error.code, error.outcome, error.started) == (Code.DEADLINE_EXCEEDED, Outcome.EXPIRED, False)
        stats = site.server.statistics()
        assert (stats.expired, stats.refused, stats.served, stats.in_flight) == (1, 0, 1, 1)


async def test_what_expires_in_line_is_counted_too(autojump_clock: trio.testing.MockClock) -> None:
    """While its caller takes no answers, nothing further is begun; and then, what is too late by then is not."""
    async with a_site(ServerLimits(max_queued_bytes=64 * 1024)) as site:
        client = await site.client()
        await client.send(*(client.request("Lab.echo", "x" * 30_000) for _ in range(10)))
        await client.send(client.request("Lab.sleep", 0, timeout=1))
        await trio.sleep(2)
        ends = [await client.event() for _ in range(11)]
        assert [end.outcome for end in ends if isinstance(end, ErrorReceived)] == [Outcome.EXPIRED]
        assert (site.server.statistics().expired, site.desk.log) == (1, [])


async def test_a_refused_call_is_made_again(autojump_clock: trio.testing.MockClock) -> None:
    """To a pool's callers a full server is a slow one, as long as their deadline allows."""
    async with a_site(ServerLimits(max_calls=1)) as site:
        async with open_pool(site.listener.connect) as pool, trio.open_nursery() as nursery:
            nursery.start_soon(pool.stub(Desk).sleep, 1)
            await trio.sleep(0.1)
            assert await pool.stub(Desk).echo("later") == "later"
            assert trio.current_time() >= 1
            assert site.server.statistics().refused_server > 0
            nursery.start_soon(pool.stub(Desk).sleep, 60)
            await trio.sleep(0.1)
            with pytest.raises(Overloaded, match="max_calls"):
                await pool.stub(Desk, acquire_timeout=0.5).echo("too late")


async def test_streams_take_places_too(autojump_clock: trio.testing.MockClock) -> None:
    """Both ways, for as long as they last."""
    async with a_site(ServerLimits(max_calls=2)) as site, open_pool(site.listener.connect) as pool:
        async with pool.stub(Desk).count(1000) as counting, pool.stub(Desk).doubled(numbers(5000)) as doubled:
            assert (await counting.receive(), await doubled.receive()) == ("0", 0)
            assert site.server.statistics().in_flight == 2
            with pytest.raises(Overloaded):
                await pool.stub(Desk, acquire_timeout=0).echo(1)
        assert site.server.statistics().in_flight == 0
        assert await pool.stub(Desk).echo(1) == 1


class Caller:
    """Calls its caller back."""

    @method
    async def ring(self) -> list[str]:
        stub, told = current_call().peer.stub(Desk), []

        async def narrow() -> None:
            told.append(await stub.narrow(1))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(narrow)
            nursery.start_soon(narrow)
            nursery.start_soon(narrow)
        return told


async def test_a_pool_that_serves_keeps_its_methods_limits(autojump_clock: trio.testing.MockClock) -> None:
    """What is called back is limited by its methods' own limits."""
    listener = MemoryListener()
    async with open_server(Caller(), listener), open_pool(listener.connect, services=Desk()) as pool:
        assert await pool.stub(Caller).ring() == ["slept"] * 3
        assert 2 <= trio.current_time() < 3  # Two at first; the third was refused, and made again.


PARTIES: dict[str, tuple[Any, Any]] = {
    "a principal": ("ann", "ann"),
    "one that cannot be hashed": ({"name": "ann"}, (dict, "{'name': 'ann'}")),
    "none": (None, ("a host", "10.0.0.7")),
    "one like a host": ("10.0.0.7", "10.0.0.7"),
}


@pytest.mark.parametrize(("principal", "party"), PARTIES.values(), ids=PARTIES)
def test_whom_calls_are_counted_for(principal: Any, party: Any) -> None:
    """By principal, or without one by host, which no principal can be mistaken for."""
    assert party_of(principal, "10.0.0.7") == party


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "2"])
def test_a_limit_is_a_number_of_calls(limit: Any) -> None:
    """Else the class that says so cannot be made."""
    with pytest.raises(TypeError, match="is no number of calls: write 1 or more"):
        method(limit=limit)(Desk.plain.function)  # type: ignore[attr-defined]


async def test_an_implementation_may_add_a_limit() -> None:
    """It is its own affair; but it may not change the contract's, and no method is both limited and unlimited."""

    class Contract:
        @method
        async def work(self) -> None: ...

        @method(limit=5)
        async def more(self) -> None: ...

        @method(unlimited=True)
        async def health(self) -> None: ...

    class Adds(Contract):
        @method(limit=3)
        async def work(self) -> None:
            pass

    class Changes(Contract):
        @method(limit=3)
        async def more(self) -> None:
            pass

    class Contradicts(Contract):
        @method(limit=3)
        async def health(self) -> None:
            pass

    async with open_server(Adds(), MemoryListener()):
        pass
    with pytest.raises(TypeError, match="changes limit from 5 to 3"):
        async with open_server(Changes(), MemoryListener()):
            raise AssertionError
    with pytest.raises(TypeError, match="is unlimited, and has limit=3: leave out one of them"):
        async with open_server(Contradicts(), MemoryListener()):
            raise AssertionError


async def test_the_places_of_a_pool_are_no_matter_of_admission(autojump_clock: trio.testing.MockClock) -> None:
    """Who keeps to the announced `max_in_flight` is not refused for it: guarantee 11."""
    async with a_site(ServerLimits(max_in_flight=3)) as site:
        async with open_pool(site.listener.connect, limits=PoolLimits(max_connections=1)) as pool:
            async with trio.open_nursery() as nursery:
                for _ in range(9):
                    nursery.start_soon(pool.stub(Desk).sleep, 1)
            assert trio.current_time() == 3
            assert site.server.statistics().refused == 0
