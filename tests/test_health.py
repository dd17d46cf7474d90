"""Health: what a server says of its services, and that it can say so however busy it is."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.scripted import watchdog
from trio_rpc import (
    Code,
    Heartbeat,
    Pool,
    PoolLimits,
    RemoteError,
    RoundRobin,
    Server,
    ServerLimits,
    method,
    open_pool,
    open_server,
    serve,
    service,
)
from trio_rpc.health import Health, HealthService, Status
from trio_rpc.testing import MemoryListener, no_leaks, open_loopback

SERVING, NOT_SERVING = Status.SERVING, Status.NOT_SERVING
QUIET = Heartbeat(interval=None)


class Inventory:
    """A service that takes its time."""

    @method
    async def stock(self) -> int:
        await trio.sleep(10)
        return 1


async def test_check(autojump_clock: trio.testing.MockClock) -> None:
    """The status of each service that was set, and of the server as a whole; NOT_FOUND for others."""
    health = HealthService({"Inventory": NOT_SERVING})
    async with open_loopback(health) as pool:
        stub = pool.stub(Health)
        assert [await stub.check(), await stub.check("Inventory")] == [SERVING, NOT_SERVING]
        health.set("Inventory", SERVING)
        health.set("", Status.UNKNOWN)
        assert [await stub.check(), await stub.check("Inventory")] == [Status.UNKNOWN, SERVING]
        with pytest.raises(RemoteError, match="there is no service 'inventory' here") as caught:
            await stub.check("inventory")
        assert caught.value.code is Code.NOT_FOUND


async def test_watch(autojump_clock: trio.testing.MockClock) -> None:
    """The status now, and at once on each change of that service; what stays as it is is not told again."""
    health = HealthService({"Inventory": SERVING})

    async def change() -> None:
        for status in (NOT_SERVING, NOT_SERVING, SERVING, Status.UNKNOWN):
            await trio.sleep(1)
            health.set("Audit", SERVING)
            health.set("Inventory", status)
        await trio.sleep(1)
        health.shut_down()

    async with open_loopback(health) as pool, trio.open_nursery() as nursery:
        async with pool.stub(Health).watch("Inventory") as statuses:
            nursery.start_soon(change)
            seen = [(status, trio.current_time()) async for status in statuses]
    assert seen == [(SERVING, 0), (NOT_SERVING, 1), (SERVING, 3), (Status.UNKNOWN, 4), (NOT_SERVING, 5)]


async def test_watch_waits_for_a_service_that_is_not_there_yet(autojump_clock: trio.testing.MockClock) -> None:
    """SERVICE_UNKNOWN is a status here, and no error."""
    health = HealthService()
    async with open_loopback(health) as pool, pool.stub(Health).watch("Inventory") as statuses:
        assert await statuses.receive() is Status.SERVICE_UNKNOWN
        health.set("Inventory", SERVING)
        assert await statuses.receive() is SERVING


async def test_changes_that_were_overtaken_are_not_told(autojump_clock: trio.testing.MockClock) -> None:
    """A watcher learns what is so, not all that was: nothing piles up for it."""
    health = HealthService()
    async with health.watch("") as statuses:  # a local object, which has the same interface
        assert await statuses.receive() is SERVING
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(10):
            health.set("", NOT_SERVING)
            health.set("", SERVING)
        health.set("Inventory", SERVING)
        with trio.move_on_after(1) as scope:
            await statuses.receive()
        assert scope.cancelled_caught


async def test_many_watchers_leave_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """Each is told on its own, and nothing of it is left in the service when it has gone."""
    health = HealthService()
    async with no_leaks(), open_loopback(health) as pool:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                async with pool.stub(Health).watch() as statuses:
                    assert [await statuses.receive(), await statuses.receive()] == [SERVING, NOT_SERVING]

            for _ in range(20):
                nursery.start_soon(watch)
            await trio.sleep(1)
            health.set("", NOT_SERVING)
        assert pool.statistics().in_flight == 0


async def test_at_most_a_hundred_are_listed(autojump_clock: trio.testing.MockClock) -> None:
    """By name, the server as a whole first."""
    health = HealthService()
    async with open_loopback(health) as pool:
        stub = pool.stub(Health)
        health.set("b", NOT_SERVING)
        health.set("a", SERVING)
        assert list((await stub.list()).items()) == [("", SERVING), ("a", SERVING), ("b", NOT_SERVING)]
        for number in range(200):
            health.set(f"c{number:03}", SERVING)
        listed = await stub.list()
        assert (len(listed), list(listed)[-1]) == (100, "c096")


async def test_shutting_down(autojump_clock: trio.testing.MockClock) -> None:
    """Everything is NOT_SERVING, for good; streams end behind that, also those that begin later."""
    health = HealthService({"Inventory": SERVING})
    async with open_loopback(health) as pool:
        stub = pool.stub(Health)
        health.shut_down()
        health.shut_down()
        health.set("Inventory", SERVING)
        health.set("Later", SERVING)
        assert await stub.list() == {"": NOT_SERVING, "Inventory": NOT_SERVING}
        for service, last in (("", NOT_SERVING), ("Inventory", NOT_SERVING), ("Later", Status.SERVICE_UNKNOWN)):
            async with stub.watch(service) as statuses:
                assert [status async for status in statuses] == [last]


async def test_a_drain_need_not_wait_for_watchers(autojump_clock: trio.testing.MockClock) -> None:
    """They have been told and sent away before it begins; without that their streams would use up its grace."""
    health, listener = HealthService(), MemoryListener()
    async with open_server(health, listener) as server, open_pool(listener.connect) as pool:
        async with pool.stub(Health).watch() as statuses:
            assert await statuses.receive() is SERVING
            health.shut_down()
            with trio.fail_after(9):
                await server.drain(grace=10)
            assert [status async for status in statuses] == [NOT_SERVING]


async def test_without_a_contract(autojump_clock: trio.testing.MockClock) -> None:
    """Statuses travel as their names, for whoever knows no more than that."""
    async with open_loopback(HealthService()) as pool:
        assert await pool.call("Health.check") == "SERVING"
        assert await pool.call("Health.list") == {"": "SERVING"}
        async with pool.stream("Health.watch", "Inventory") as statuses:
            assert await statuses.receive() == "SERVICE_UNKNOWN"


async def test_a_full_server_tells_its_health(autojump_clock: trio.testing.MockClock) -> None:
    """Outside of every limit of the server: on the connection, of the method, and of all together."""
    limits = ServerLimits(max_calls=1)
    health, listener = HealthService(), MemoryListener()
    async with (
        open_server([Inventory(), health], listener, limits=limits),
        open_pool(listener.connect, limits=PoolLimits(max_connections=2)) as pool,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(pool.stub(Inventory).stock)
        await trio.sleep(1)
        with trio.move_on_after(0.5) as scope:
            await pool.stub(Inventory).stock()
        assert (scope.cancelled_caught, pool.statistics().retries > 0) == (True, True)
        stub = pool.stub(Health)
        assert await stub.check() is SERVING
        async with stub.watch() as first, stub.watch() as second:
            assert [await first.receive(), await second.receive()] == [SERVING, SERVING]
            assert await stub.list() == {"": SERVING}
        assert trio.current_time() < 2


@pytest.mark.parametrize(
    ("service", "status", "kind", "sentence"),
    [
        (
            "Inventory",
            Status.SERVICE_UNKNOWN,
            ValueError,
            "the health of 'Inventory' cannot be set to <Status.SERVICE_",
        ),
        ("Inventory", "well", ValueError, "cannot be set to 'well': take Status.SERVING or the like"),
        ("Inventory", True, ValueError, "cannot be set to True"),
        (None, SERVING, TypeError, 'a service is named by a text like "Inventory", or "" for all, not by None'),
    ],
)
def test_mistakes(service: Any, status: Any, kind: type[Exception], sentence: str) -> None:
    """Told in a sentence, and nothing is changed."""
    health = HealthService()
    with pytest.raises(kind, match=sentence):
        health.set(service, status)
    with pytest.raises(kind, match=sentence):
        HealthService({service: status})
    assert repr(health) == "<HealthService: '' SERVING>"


def test_a_status_is_its_name() -> None:
    """For who has it from a configuration file."""
    health = HealthService()
    health.set("Inventory", "NOT_SERVING")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert repr(health) == "<HealthService: '' SERVING, 'Inventory' NOT_SERVING>"


# -- a pool that asks --------------------------------------------------------------------------------------------------


class Desk:
    """Says who it is, soon or late."""

    def __init__(self, name: str) -> None:
        self.name = name

    @method
    async def who(self, seconds: float = 0) -> str:
        await trio.sleep(seconds)
        return self.name


@service(name="Health")
class NoHealth:
    """A server's own idea of a `Health`, which fails."""

    def __init__(self) -> None:
        self.asked = 0

    @method
    async def watch(self, service: str) -> AsyncGenerator[str, None]:
        self.asked += 1
        if self.asked == 1:
            raise RuntimeError("no idea")
        yield "SERVING"
        await trio.sleep_forever()


class Site:
    """Two servers, and a pool over both that asks for the health of the service Desk."""

    def __init__(self, nursery: trio.Nursery, path: Path) -> None:
        self.nursery = nursery
        self.addresses = [f"unix://{path}/{name}" for name in "ab"]
        self.servers: list[Server] = []

    async def serve(self, *healths: object) -> None:
        """Start the servers, each with such a service beside its own."""
        for name, address, health in zip("ab", self.addresses, healths, strict=True):
            served = [Desk(name)] if health is None else [Desk(name), health]
            self.servers.append(await self.nursery.start(partial(serve, served, address, heartbeat=QUIET)))

    def open_pool(self, **limits: Any) -> AbstractAsyncContextManager[Pool]:
        """One connection to each server."""
        return open_pool(
            self.addresses,
            balance=RoundRobin(),
            health_check="Desk",
            heartbeat=QUIET,
            limits=PoolLimits(max_connections=1, **limits),
        )


@pytest.fixture
async def site(tmp_path: Path) -> AsyncGenerator[Site, None]:
    """Servers at sockets in a directory, on an autojump clock; what passes between them takes no time."""
    async with watchdog(), trio.open_nursery() as nursery:
        yield Site(nursery, tmp_path)
        nursery.cancel_scope.cancel()


async def who(pool: Pool, times: int = 6) -> str:
    """Who answers so many calls, one after the other; a moment later, when news have come."""
    await trio.sleep(0.01)
    return "".join(sorted({await pool.stub(Desk).who() for _ in range(times)}))


async def test_health_flips_routing(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """Calls go where the service serves, and nowhere else, from the very moment that this is told."""
    healths = [HealthService({"Desk": SERVING}), HealthService({"Desk": SERVING})]
    await site.serve(*healths)
    async with site.open_pool() as pool:
        await pool.wait_connected(2)
        assert await who(pool) == "ab"
        for status in (NOT_SERVING, Status.UNKNOWN):
            healths[0].set("Desk", status)
            assert await who(pool) == "b"
            healths[0].set("", NOT_SERVING)  # somebody else's matter
            healths[0].set("Desk", SERVING)
            assert await who(pool) == "ab"


async def test_a_call_under_way_goes_on_where_health_is_lost(
    site: Site, autojump_clock: trio.testing.MockClock
) -> None:
    """Only what has not begun goes elsewhere."""
    health = HealthService({"Desk": SERVING})
    await site.serve(health, HealthService())
    async with site.open_pool() as pool, trio.open_nursery() as nursery:
        assert await who(pool) == "a"
        nursery.start_soon(pool.stub(Desk).who, 5)
        await trio.sleep(1)
        health.set("Desk", NOT_SERVING)
    assert pool.statistics().errors == 0


async def test_without_a_health_service_a_server_is_healthy(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """Unimplemented is an answer: it will not be asked again."""
    await site.serve(None, HealthService({"Desk": NOT_SERVING}))
    async with site.open_pool() as pool:
        assert await who(pool) == "a"


async def test_calls_wait_for_somebody_who_serves(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """A service that is not there yet is waited for like a connection."""
    health = HealthService()
    await site.serve(health, HealthService())
    async with site.open_pool() as pool, trio.open_nursery() as nursery:
        nursery.start_soon(pool.stub(Desk).who)
        await trio.sleep(3)
        assert pool.statistics().waiting == 1
        health.set("Desk", SERVING)
    assert trio.current_time() < 4


async def test_watching_takes_nobodys_place(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """It neither keeps a connection from being idle nor counts as a call; and it is gone with the pool."""
    await site.serve(HealthService({"Desk": SERVING}), HealthService({"Desk": SERVING}))
    async with no_leaks():
        async with site.open_pool(idle_timeout=5, min_connections=0) as pool:
            assert await who(pool) == "ab"
            assert (pool.statistics().busy, pool.statistics().idle) == (0, 2)
            await trio.sleep(20)
            assert pool.statistics().connections == 0


async def test_a_rolling_drain_with_health(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """Told first and drained then, a server is left without a failed call, and without using up its grace."""
    health = HealthService({"Desk": SERVING})
    await site.serve(health, HealthService({"Desk": SERVING}))
    async with site.open_pool() as pool:
        assert await who(pool) == "ab"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.stub(Desk).who, 2)
            nursery.start_soon(pool.stub(Desk).who, 2)
            await trio.sleep(1)
            health.shut_down()
            assert await who(pool) == "b"
            began = trio.current_time()
            await site.servers[0].drain(grace=10)
            assert trio.current_time() - began < 3
        assert await who(pool) == "b"
        assert pool.statistics().errors == 0


async def test_a_drain_of_who_says_nothing_is_not_held_up(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """The pool stops watching a server that goes away."""
    await site.serve(HealthService({"Desk": SERVING}), HealthService({"Desk": SERVING}))
    async with site.open_pool() as pool:
        assert await who(pool) == "ab"
        began = trio.current_time()
        await site.servers[0].drain(grace=10)
        assert trio.current_time() - began < 3


async def test_a_watch_that_fails_is_begun_anew(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """Meanwhile the server is not known to be healthy."""
    await site.serve(NoHealth(), HealthService({"Desk": SERVING}))
    async with site.open_pool() as pool:
        await pool.wait_connected(1)
        assert await who(pool) == "b"
        await trio.sleep(30)
        assert await who(pool) == "ab"
