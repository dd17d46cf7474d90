"""Guarantee 9: drain loses nothing."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
import trio
import trio.testing

from tests.guarantees.kit import Lab, RawClient, numbers
from tests.scripted import ScriptedPeer, ScriptedServer
from trio_rpc import (
    Code,
    Draining,
    Heartbeat,
    PoolLimits,
    RemoteCancelled,
    ServerLimits,
    current_call,
    method,
    open_pool,
    open_server,
    run_pool,
)
from trio_rpc.testing import Delay, FaultyStream, MemoryListener, no_leaks
from trio_rpc.wire import (
    MAX_ID,
    ErrorReceived,
    GoAwayReceived,
    Outcome,
    PingReceived,
    PongReceived,
    RequestReceived,
    ResponseReceived,
    method_block,
)


class Target:
    """One address, at which one server after another listens."""

    def __init__(self) -> None:
        self.listener = MemoryListener()

    async def connect(self) -> trio.abc.Stream:
        return await self.listener.connect()

    def renew(self, latency: float = 0.0) -> MemoryListener:
        """The next listener; what passes takes `latency` seconds each way, GOAWAY included."""
        self.listener = MemoryListener(wrap=lambda stream: FaultyStream(stream, Delay(latency)))
        return self.listener


@pytest.mark.parametrize("latency", [0.0, 0.02])
async def test_a_restart_is_not_noticed(autojump_clock: trio.testing.MockClock, latency: float) -> None:
    """9: one target, whose server is drained and started anew while calls of all shapes run: no caller sees an error."""
    target, labs, results = Target(), [Lab(), Lab(), Lab()], [0]
    done = False

    async def unary(pool: Any, seconds: float) -> None:
        while not done:
            assert await pool.stub(Lab).sleep(seconds) == "slept"
            results[0] += 1

    async def collects(pool: Any) -> None:
        while not done:
            assert await pool.stub(Lab).total(numbers(300)) == 44850
            await trio.sleep(0.2)

    async def streams(pool: Any) -> None:
        while not done:
            async with pool.stub(Lab).count(300) as counting:
                assert len([item async for item in counting]) == 300
            await trio.sleep(0.2)

    async with open_pool(target.connect) as pool, trio.open_nursery() as callers:
        for number, lab in enumerate(labs):
            async with open_server(lab, target.renew(latency)) as server:
                if not number:
                    for seconds in (0.05, 0.3, 1.5):
                        callers.start_soon(unary, pool, seconds)
                    callers.start_soon(collects, pool)
                    callers.start_soon(streams, pool)
                await trio.sleep(5)
                if number == len(labs) - 1:
                    done = True
                    await trio.sleep(2)
                await server.drain(grace=10)
        stats = pool.statistics()
        assert (stats.errors, stats.lost) == (0, 0)
    assert results[0] > 100


async def test_a_client_stream_that_crosses_goaway_is_served(autojump_clock: trio.testing.MockClock) -> None:
    """9: it could not be made again by us, as items are taken before anybody knows; so the drainer still accepts it."""
    target = Target()
    async with open_pool(target.connect) as pool, open_server(Lab(), target.renew(0.02)) as server:
        await pool.stub(Lab).echo(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.drain)
            await trio.sleep(0.01)  # GOAWAY is under way.
            assert await pool.stub(Lab).total(numbers(300)) == 44850
        assert pool.statistics().retries == 0


async def test_what_crosses_goaway_and_does_not_come_in_time_did_not_run(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """9 and 4: a drain without grace waits for nothing; a client stream that crosses it learns that it did not run."""
    target = Target()
    async with open_pool(target.connect) as pool, open_server(Lab(), target.renew(0.02)) as server:
        await pool.stub(Lab).echo(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.drain, 0)
            await trio.sleep(0.01)  # GOAWAY is under way.
            with pytest.raises(Draining) as caught:
                await pool.stub(Lab).total(numbers(300))
    assert not caught.value.may_have_run


async def test_what_was_accepted_is_finished_and_new_calls_wait_for_the_next(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """9: calls begun before GOAWAY end there; those after it go to the next server, unaware."""
    target, old, new = Target(), Lab(), Lab()
    async with open_pool(target.connect) as pool, trio.open_nursery() as nursery:
        async with open_server(old, target.renew()) as server:
            nursery.start_soon(pool.stub(Lab).sleep, 5)
            await trio.sleep(1)
            nursery.start_soon(server.drain, 10)
            await trio.sleep(1)
            nursery.start_soon(pool.stub(Lab).sleep, 1)
            await trio.sleep(1)
            assert (old.running, server.statistics().connections) == (1, 1)
            async with open_server(new, target.renew()):
                await trio.sleep(4)
                assert old.log == [("ended", 5.0)]
                assert server.statistics().connections == 0
                assert len(new.log) == 1


async def test_at_the_graces_end_handlers_are_cancelled(autojump_clock: trio.testing.MockClock) -> None:
    """P04, 9: what has not ended within `grace` is cancelled, and its caller told: by the peer, it may have run."""
    lab, listener = Lab(), MemoryListener()
    async with open_server(lab, listener) as server, open_pool(listener.connect) as pool:
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                with pytest.raises(RemoteCancelled) as caught:
                    await pool.stub(Lab).sleep(60, cleanup=0.5)
                assert (caught.value.code, caught.value.may_have_run) == (Code.CANCELLED, True)

            nursery.start_soon(call)
            await trio.sleep(1)
            await server.drain(grace=3)
            assert (lab.log, trio.current_time()) == ([("ended", 4.5)], 4.5)


async def test_what_was_accepted_and_not_begun_goes_elsewhere(autojump_clock: trio.testing.MockClock) -> None:
    """9 and 4: cut off before its handler was entered, a call surely did not run: the next server runs it."""
    target, old, new = Target(), Lab(), Lab()
    runs: list[Lab] = []

    def drain_at_once() -> None:
        runs.append(old)
        if len(runs) == 1:  # The other calls stand in line behind this one.
            trio.lowlevel.spawn_system_task(server.drain, 0)

    old.hook, new.hook = drain_at_once, lambda: runs.append(new)
    limits = PoolLimits(max_connections=1, max_in_flight=1000)
    async with open_pool(target.connect, limits=limits) as pool:
        async with open_server(old, target.renew(), limits=ServerLimits(max_in_flight=1000)) as server:
            await pool.stub(Lab).echo(0)  # From now on there is a crew, and handlers are run one after the other.
            async with open_server(new, target.renew()), trio.open_nursery() as callers:
                for _ in range(900):
                    callers.start_soon(pool.stub(Lab).run_hook)
    assert len(runs) == 900
    assert {old, new} == set(runs)


async def test_a_second_drain_may_shorten_the_first(autojump_clock: trio.testing.MockClock) -> None:
    """9: both return when the server has ended, by the shorter grace."""
    lab, listener, ends = Lab(), MemoryListener(), []
    async with open_server(lab, listener) as server, open_pool(listener.connect) as pool:
        async with trio.open_nursery() as nursery:

            async def drain(grace: float) -> None:
                await server.drain(grace)
                ends.append(trio.current_time())

            async def call() -> None:
                with pytest.raises(RemoteCancelled):
                    await pool.stub(Lab).sleep(1000)

            nursery.start_soon(call)
            await trio.sleep(1)
            nursery.start_soon(drain, 500)
            await trio.sleep(1)
            nursery.start_soon(drain, 2)
    assert ends == [4, 4]


async def test_a_drainer_reads_on_and_refuses(autojump_clock: trio.testing.MockClock) -> None:
    """P03, S14, 9: on the wire: two GOAWAYs, refusals above the second's last id, answers below it, and the peer closes
    first.
    """
    lab, listener = Lab(), MemoryListener()
    async with open_server(lab, listener) as server, trio.open_nursery() as nursery:
        client = RawClient(await listener.connect())
        await client.greet()
        await client.send(client.request("Lab.sleep", 2))
        await trio.sleep(1)
        nursery.start_soon(server.drain, 10)
        assert (await client.expect(GoAwayReceived)).last_id == MAX_ID
        ping = await client.expect(PingReceived)
        await client.send(client.request("Lab.echo", 1))  # It crosses the GOAWAY.
        assert (await client.expect(ResponseReceived)).id == 3
        await client.send(client.protocol.pong(ping.data))
        assert (await client.expect(GoAwayReceived)).last_id == 3
        await client.send(client.request("Lab.echo", 1))
        refusal = await client.expect(ErrorReceived)
        assert (refusal.id, refusal.outcome, refusal.started) == (5, Outcome.REFUSED, False)
        assert (await client.expect(ResponseReceived)).id == 1
        await trio.sleep(0.5)
        await client.send(client.request("Lab.echo", 1))
        assert (await client.expect(ErrorReceived)).id == 7  # It waits for us to close.
        assert server.statistics().connections == 1
        await client.stream.aclose()


async def test_a_peer_that_answers_no_ping_gets_the_last_id_all_the_same(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """9: a second after the first GOAWAY; a rule that is broken later does not make that id rise again."""
    listener = MemoryListener()
    async with open_server(Lab(), listener) as server, trio.open_nursery() as nursery:
        client = RawClient(await listener.connect())
        await client.greet()
        nursery.start_soon(server.drain, 10)
        assert (await client.expect(GoAwayReceived)).last_id == MAX_ID
        await client.expect(PingReceived)
        assert ((await client.expect(GoAwayReceived)).last_id, trio.current_time()) == (0, 1)
        await client.send(client.request("Lab.echo", 1))
        assert (await client.expect(ErrorReceived)).outcome is Outcome.REFUSED
        await client.stream.send_all(b"\xff" * 100)
        goodbye = await client.expect(GoAwayReceived)
        assert (goodbye.last_id, goodbye.code) == (0, Code.INTERNAL)
        await client.stream.aclose()


async def test_what_was_queued_before_goaway_comes_before_the_pings_answer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """9: the answer to a drainer's PING tells it that no request is still to come; so it overtakes none in the queue."""
    came: list[type] = []

    async def drains(peer: ScriptedPeer) -> None:
        await peer.greet()
        await trio.sleep(1)  # Meanwhile the transport is full, and most requests are in the queue.
        await peer.send(peer.protocol.goaway(MAX_ID), peer.protocol.ping(bytes(8)))
        await trio.sleep(1)
        while PongReceived not in came:
            event = await peer.event()
            came.append(type(event))
            if isinstance(event, RequestReceived):
                await peer.answer(event, "done")

    async with trio.open_nursery() as nursery:
        async with open_pool(ScriptedServer(nursery, drains).connect) as pool, trio.open_nursery() as callers:
            for _ in range(20):
                callers.start_soon(pool.call, "Any.thing", b"x" * 20_000)
        assert came == [RequestReceived] * 20 + [PongReceived]


class Calling(Lab):
    """Calls its caller back while it is being drained."""

    @method
    async def ring(self, seconds: float) -> str:
        await trio.sleep(seconds)
        return f"{await current_call().peer.stub(Lab).sleep(1)} there"


async def test_goaway_concerns_one_direction(autojump_clock: trio.testing.MockClock) -> None:
    """9: a draining server's handlers still call their client back, on the same connection."""
    listener = MemoryListener()
    async with open_server(Calling(), listener) as server, open_pool(listener.connect, services=Lab()) as pool:
        async with trio.open_nursery() as nursery:
            results: list[str] = []

            async def call() -> None:
                results.append(await pool.stub(Calling).ring(3))

            nursery.start_soon(call)
            await trio.sleep(1)
            await server.drain(10)
            assert trio.current_time() == 4
    assert results == ["slept there"]


async def test_streams_go_on_to_their_end(autojump_clock: trio.testing.MockClock) -> None:
    """9: a stream that was open is served to its last item, at its consumer's pace, within the grace."""
    listener = MemoryListener()
    async with open_server(Lab(), listener) as server, open_pool(listener.connect) as pool:
        async with trio.open_nursery() as nursery, pool.stub(Lab).count(100, pad=3000) as counting:
            assert await counting.receive()
            nursery.start_soon(server.drain, 100)
            await trio.sleep(1)
            count = 1
            async for _ in counting:
                await trio.sleep(0.1)
                count += 1
            assert count == 100


async def test_the_pool_drains_its_own_side_too(autojump_clock: trio.testing.MockClock) -> None:
    """9: a pool that closes lets the server's calls to it end as cancelled by the peer, and then is gone."""
    lab, listener = Calling(), MemoryListener()
    async with open_server(lab, listener) as server:
        await trio.testing.wait_all_tasks_blocked()
        async with no_leaks(), open_pool(listener.connect, services=Lab()) as pool:
            with trio.move_on_after(0.5):
                await pool.stub(Calling).ring(0.1)
        await trio.testing.wait_all_tasks_blocked()
        assert (server.statistics().calling_back, server.statistics().in_flight) == (0, 0)


async def test_over_real_sockets_on_the_same_port() -> None:
    """9: the same restart, over TCP, on one port: no error, and no reset of what was on its way."""
    counted = 0
    stop = trio.Event()

    async def calls(pool: Any) -> None:
        nonlocal counted
        while not stop.is_set():
            assert await pool.stub(Lab).sleep(0.002) == "slept"
            counted += 1

    async with trio.open_nursery() as nursery:
        async with open_server(Lab(), "tcp://127.0.0.1:0") as server:
            address = server.addresses[0]
            pool = await nursery.start(run_pool, address)
            for _ in range(8):
                nursery.start_soon(calls, pool)
            await trio.sleep(0.1)
            await server.drain(grace=5)
        async with open_server(Lab(), address):
            before = counted
            with trio.fail_after(10):
                while counted < before + 50:  # noqa: ASYNC110
                    await trio.sleep(0.05)
            stop.set()
            await trio.sleep(0.1)
            await pool.aclose()


async def test_a_refused_request_in_chunks_holds_no_drain_up(autojump_clock: trio.testing.MockClock) -> None:
    """9: a drain waits for a request that is still arriving, and no longer if that is refused once it is there."""
    listener = MemoryListener()
    async with open_server(Lab(), listener, heartbeat=Heartbeat(interval=None)) as server:
        client = RawClient(await listener.connect())
        await client.greet()
        _, (first, rest) = client.protocol.request(method_block("Lab.nothing"), msgpack.packb([b"x" * 100_000]))
        await client.send(first)
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.drain, 60)
            await trio.sleep(1)
            for chunk in rest or ():
                await client.send(*map(bytes, chunk))
            await client.expect(GoAwayReceived)
            await client.expect(PingReceived)  # It is not answered, and the second GOAWAY follows after a second.
            assert (await client.expect(GoAwayReceived)).last_id == 1
            assert (await client.expect(ErrorReceived)).code is Code.UNIMPLEMENTED
            assert await client.closed()
        assert trio.current_time() <= 3  # The grace is 60 s; a peer that does not close by itself gets one more.
        await client.stream.aclose()


@pytest.mark.parametrize("busy_until", [0.0, 0.05, 0.1, 0.15, 0.2])
@pytest.mark.parametrize("drained_at", [0.01, 0.05, 0.1])
async def test_who_is_saying_hello_loses_no_call(
    autojump_clock: trio.testing.MockClock, drained_at: float, busy_until: float
) -> None:
    """9: a drain that begins in the middle of a HELLO takes the calls that come with it, streams with items too."""
    delayed = MemoryListener(wrap=lambda stream: FaultyStream(stream, Delay(0.05)))
    quick = MemoryListener()
    async with open_server(Lab(), [delayed, quick]) as server, trio.open_nursery() as nursery:
        async with open_pool(quick.connect, heartbeat=Heartbeat(interval=None)) as neighbour:
            await neighbour.connect()
            nursery.start_soon(neighbour.stub(Lab).sleep, busy_until)

            async def drain() -> None:
                await trio.sleep(drained_at)
                await server.drain(30)

            nursery.start_soon(drain)
            async with open_pool(delayed.connect, heartbeat=Heartbeat(interval=None)) as pool:
                assert await pool.stub(Lab).total(numbers(3)) == sum(range(3))
