"""A batch of items is what its frame says: else counting items would bound nothing."""

from __future__ import annotations

import msgpack
import pytest
import trio

import trio_rpc
from tests.scripted import ScriptedPeer, ScriptedServer
from trio_rpc import DecodeError
from trio_rpc.wire import RequestReceived


@pytest.mark.parametrize("count", [1, 3])
async def test_a_batch_that_lies_about_its_count(count: int, autojump_clock: trio.testing.MockClock) -> None:
    """It costs its own call, in a sentence; the connection goes on."""

    async def script(peer: ScriptedPeer) -> None:
        await peer.greet()
        request = await peer.expect(RequestReceived)
        await peer.send(peer.protocol.items(request.id, count, msgpack.packb(["a", "b"])))
        await peer.event()  # the stream is given up
        await peer.send(peer.protocol.end(request.id))
        await peer.serve()

    async with trio.open_nursery() as nursery:
        server = ScriptedServer(nursery, script)
        async with trio_rpc.open_pool(server.connect) as pool:
            with pytest.raises(DecodeError, match=rf"2 items in a batch that announced {count}"):
                async with pool.stream("S.items") as items:
                    await items.receive()
            assert await pool.call("S.name") == "S.name"
        nursery.cancel_scope.cancel()
    assert len(server.dialled_at) == 1
