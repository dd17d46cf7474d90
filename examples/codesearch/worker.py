"""A search service in a process of its own: `python -m examples.codesearch worker --share 1 --of 3`.

It reads and indexes its share, listens on a free port, and writes its address to standard output: one line, by which
its supervisor knows that it is ready. It ends when its standard input does, so it cannot outlive whoever started it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import trio

import trio_rpc

from .contract import Answer, Enough, Query, Search, ShareStats
from .corpus import read_documents, share_of, source_paths
from .index import Index, compile_query


class IndexedShare(Search):
    """One share of the sources, in memory."""

    def __init__(self, name: str, root: Path, number: int, of: int) -> None:
        began = time.perf_counter()
        self._name = name
        self._index = Index(read_documents(root, share_of(source_paths(root), number, of)))
        self._build_seconds = time.perf_counter() - began
        # What `stats` tells. Handlers of one server are tasks of one thread, so plain numbers need no lock.
        self._started = self._running = self._finished = self._files_read = 0
        self._seconds_left: float | None = None

    @trio_rpc.method
    async def search(self, query: Query) -> AsyncGenerator[Answer, None]:
        """Yield matches, file by file."""
        pattern = compile_query(query)
        found = 0
        self._note_start()
        try:
            for document in self._index.candidates(query):
                # A file is read in one go; between two of them everybody else has a turn. The loop answers pings here,
                # and here, or at the `yield`, is where a cancellation or a deadline of the caller's comes out.
                await trio.lowlevel.checkpoint()
                self._files_read += 1
                for match in document.matches(pattern):
                    # Waits while the caller has not taken what was sent before: a search that nobody reads stands still.
                    yield match
                    found += 1
                    if found == query.limit:
                        yield Enough(found)
                        self._finished += 1
                        return
            self._finished += 1
        finally:
            # Runs however the search ends: to its end, cancelled, timed out, or with its caller's machine on fire.
            self._running -= 1

    def _note_start(self) -> None:
        left = trio.current_effective_deadline() - trio.current_time()
        self._seconds_left = left if left < float("inf") else None
        self._started += 1
        self._running += 1

    @trio_rpc.method
    async def stats(self) -> list[ShareStats]:
        """The one entry of this share."""
        documents = self._index.documents
        return [
            ShareStats(
                share=self._name,
                pid=os.getpid(),
                files=len(documents),
                lines=sum(document.text.count("\n") for document in documents),
                size=sum(len(document.text) for document in documents),
                trigrams=self._index.entries,
                build_seconds=self._build_seconds,
                started=self._started,
                running=self._running,
                finished=self._finished,
                files_read=self._files_read,
                seconds_left=self._seconds_left,
            )
        ]


async def run_worker(root: Path, number: int, of: int) -> None:
    """Serve one share until standard input ends."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel_at_end_of_input, nursery.cancel_scope)
        # In a thread, so that the end of input is seen meanwhile; then nobody wants the index any more.
        share = await trio.to_thread.run_sync(IndexedShare, f"share {number}", root, number, of, abandon_on_cancel=True)
        server = await nursery.start(trio_rpc.serve, share, "tcp://127.0.0.1:0")
        print(server.addresses[0], flush=True)


async def cancel_at_end_of_input(scope: trio.CancelScope) -> None:
    """Cancel `scope` when standard input ends: closed on purpose, or with the supervisor, however that died."""
    async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stdin:
        async for _ in stdin:
            pass  # nothing is to be said to a worker here
    scope.cancel()
