"""Calling: what a pool of connections and a single peer have in common.

The way of a unary call: arguments become a payload here; `_begin` finds a place, or waits for one in the line; the
connection sends it and the task parks in `Outgoing.wait`; the terminal frame wakes it, and the result is decoded here,
in the caller's own task. What surely did not run is tried again; what may have run only if the method is idempotent.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeAlias

import attrs
import trio
from trio import current_effective_deadline, current_time
from trio.lowlevel import checkpoint, checkpoint_if_cancelled

from ._budget import Budget
from ._call import Call, Interceptor, Reply, compose
from ._calls import Outgoing
from ._config import Limits
from ._connection import Connection
from ._context import CURRENT
from ._contract import Shape
from ._errors import ConnectError, DecodeError, RpcError
from ._hedging import HedgedCall
from ._methods import RemoteMethod, untyped
from ._options import CallOptions
from ._outcomes import error_of, expired_remotely, has_own_end
from ._placement import Route
from ._policies import HedgePolicy, RetryPolicy
from ._scope import hidden_nursery
from ._statistics import CallerCounters
from ._streaming import Feeder, StreamCall
from ._timer import Timer
from ._trial import Pause, Trial
from ._util import locate
from ._waiting import Attempt
from .codecs import Bounds
from .wire import LEAST_FRAME_SIZE, Bytes, Metadata, ResponseReceived

__all__ = ["Caller"]

TIMEOUT_SIZE = 8
"""Bytes that a deadline takes in a request."""

Unary: TypeAlias = Callable[[RemoteMethod, tuple[Any, ...], dict[str, Any], CallOptions], Coroutine[Any, Any, Any]]


class Caller:
    """Makes the calls of a pool or of a peer, in all four shapes.

    `pick(route)` gives a connection with a free place for one who has not waited, or None, and raises PoolClosed once
    there will be none any more; `join(attempt)` puts one who has to wait into a line, or raises.
    """

    def __init__(
        self,
        *,
        describe: Callable[[], str],
        pick: Callable[[Route | None], Connection | None],
        join: Callable[[Attempt], object],
        codec: str,
        timer: Timer,
        retry: RetryPolicy,
        hedge: HedgePolicy | None = None,
        limits: Limits,
        acquire_timeout: float | None,
        metadata: Metadata | None = None,
        interceptors: Sequence[Interceptor] = (),
        rng: Callable[[], float] = random.random,
        counters: CallerCounters | None = None,
        budget: Budget | None = None,
        resumed: Callable[[], object] = lambda: None,
    ) -> None:
        self._describe = describe
        self.pick = pick
        self.join = join
        self.codec = codec
        self.bounds: Bounds = Bounds.of(limits)
        """What a message of the peer's may hold."""
        self.counters: CallerCounters = CallerCounters() if counters is None else counters
        self.timer = timer
        self.stream_limits: tuple[int, int] = (limits.stream_window, limits.stream_window_items)
        self._interceptors = tuple(interceptors)
        unary: Unary = self._unary if retry.throttle is None else self._throttled
        self.unary: Unary = partial(self._intercepted, unary) if interceptors else unary
        """One request, one result."""
        self.budget: Budget = Budget(retry.budget, retry.throttle) if budget is None else budget
        """What retries and hedges may cost, whatever policy a stub has."""
        self.options: CallOptions = CallOptions(
            metadata=dict(metadata or {}),
            retry=retry,
            hedge=hedge,
            cancel_wait=limits.cancel_wait,
            acquire_timeout=acquire_timeout,
        )
        self._untyped: dict[tuple[str, Shape], RemoteMethod] = {}
        self.restarting: dict[StreamCall | HedgedCall | Pause, None] = {}
        """Calls between two attempts, in order."""
        self.under_way: int = 0
        """Calls that tasks of their own are in the middle of; hedged ones and those of streams not counted."""
        self.resumed = resumed
        """Told that a call is between two attempts no more."""
        self.rng = rng

    def __repr__(self) -> str:
        return self._describe()

    @property
    def between_attempts(self) -> bool:
        """True while any call is neither in a line nor in flight, and will be again."""
        return bool(self.restarting)

    def by_name(self, name: str, shape: Shape) -> RemoteMethod:
        """A method without a contract, compiled once. Raises ValueError for what is no name."""
        key = (name, shape)
        if key not in self._untyped:
            self._untyped[key] = untyped(name, self.codec, self.bounds, shape)
        return self._untyped[key]

    # -- the call shapes: what a stub's methods are made of ----------------------------------------------------------

    async def _unary(
        self, method: RemoteMethod, args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions
    ) -> Any:
        # With a key it would run again at another server, which does not know the key, and join itself at the same one.
        if options.hedge is not None and method.idempotent and options.idempotency_key is None:
            return await self._hedged(method, args, kwargs, options, options.hedge)
        payload, blobs = method.encode(args, kwargs)
        self.counters.requests += 1
        trial: Trial | None = None
        route = None if options.routing_key is None else Route(options.routing_key)
        self.under_way += 1
        try:
            while True:
                deadline, now = current_effective_deadline(), current_time()
                if deadline <= now:
                    await checkpoint()  # The deadline has passed: Trio says so, and nothing is sent.
                try:
                    if trial is not None:
                        call = await self._begin(self._attempt(method, payload, blobs, options, deadline, trial), trial)
                    elif (connection := self.pick(route)) is None:
                        attempt = self._attempt(method, payload, blobs, options, deadline, early=True)
                        call = await self._wait_in_line(attempt)
                    else:  # What an attempt's `start` does, without the attempt.
                        parent = CURRENT.get(None)
                        call = connection.start_call(
                            method.block, payload, blobs, deadline, now, options.metadata, options.cancel_wait, parent
                        )
                except RpcError as exc:
                    trial = trial or Trial(self, method, options)
                    raise trial.final(exc)  # noqa: B904 - the same error, or the one that it came after
                await call.wait()
                plain = type(call.terminal) is ResponseReceived and not call.terminal.metadata
                error = None if plain else self._error(call, method, options)
                if error is None:
                    return self.result(method, call)
                if expired_remotely(call):
                    await trio.sleep_until(call.deadline)  # The caller's own scope fires; else its deadline has moved.
                trial = trial or Trial(self, method, options)
                await trial.again(error, call)
        finally:
            self.under_way -= 1

    async def _hedged(
        self,
        method: RemoteMethod,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: CallOptions,
        policy: HedgePolicy,
    ) -> Any:
        payload, blobs = method.encode(args, kwargs)
        self.counters.requests += 1
        deadline = current_effective_deadline()
        if deadline <= current_time():
            await checkpoint()
        attempt = self._attempt(method, payload, blobs, options, deadline, early=True)
        return await HedgedCall(self, method, options, policy).run(attempt)

    async def _throttled(
        self, method: RemoteMethod, args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions
    ) -> Any:
        result = await self._unary(method, args, kwargs, options)
        self.budget.note_success()
        return result

    async def client_stream(
        self, method: RemoteMethod, args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions
    ) -> Any:
        """A stream of items there, one result back."""
        _refuse_key(method, options)
        if self._interceptors:
            return await self._intercepted(self._client_stream, method, args, kwargs, options)
        return await self._client_stream(method, args, kwargs, options)

    async def _client_stream(
        self, method: RemoteMethod, args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions
    ) -> Any:
        args, kwargs, items = method.split(args, kwargs)
        feeder = Feeder(method, items)
        payload, blobs = method.encode(args, kwargs)
        self.counters.requests += 1
        trial = Trial(self, method, options)
        self.under_way += 1
        try:
            async with hidden_nursery() as nursery:
                nursery.start_soon(feeder.run)
                with feeder.between_calls:
                    while True:
                        await checkpoint_if_cancelled()
                        deadline = current_effective_deadline()
                        attempt = self._attempt(method, payload, blobs, options, deadline, trial, streaming=True)
                        attempt.on_start = feeder.attach
                        try:
                            call = await self._begin(attempt, trial)
                        except RpcError as exc:
                            raise trial.final(exc)  # noqa: B904 - the same error
                        await call.wait()
                        if feeder.error is not None:
                            break
                        error = self._error(call, method, options)
                        if error is None:
                            self.budget.note_success()
                            return self.result(method, call)
                        if expired_remotely(call):
                            await trio.sleep_until(call.deadline)
                        if feeder.taken:
                            self.take_metadata(call, options)
                            raise trial.final(error)
                        await trial.again(error, call)
                assert feeder.error is not None
                raise feeder.error
        finally:
            self.under_way -= 1

    def server_stream(
        self, method: RemoteMethod, args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions
    ) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[Any]]:
        """One request, a stream of items back."""
        _refuse_key(method, options)
        return self._stream(method, args, kwargs, options, None)

    def bidi(
        self, method: RemoteMethod, args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions
    ) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[Any]]:
        """A stream of items each way."""
        _refuse_key(method, options)
        args, kwargs, items = method.split(args, kwargs)
        return self._stream(method, args, kwargs, options, Feeder(method, items))

    @asynccontextmanager
    async def _stream(
        self,
        method: RemoteMethod,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: CallOptions,
        feeder: Feeder | None,
    ) -> AsyncIterator[trio.abc.ReceiveChannel[Any]]:
        await checkpoint_if_cancelled()  # Already expired: nothing is sent.
        if self._interceptors:
            call = Call(method.name, args, kwargs, dict(options.metadata))
            opened: list[StreamCall] = []

            async def innermost(call: Call) -> Reply:
                if opened:
                    raise TypeError(f"an interceptor called on twice for {method.name}: a stream is opened once")
                changed = attrs.evolve(options, metadata=call.metadata)
                opened.append(self._open(method, call.args, call.kwargs, changed, feeder))
                return Reply(opened[0].received)

            try:
                channel = (await compose(self._interceptors, innermost)(call)).value
            except BaseException as exc:
                for stream in opened:  # Its block will not be entered, and would have ended it.
                    await stream.leave(exc)
                raise
            if not opened:
                raise TypeError(f"an interceptor answered {method.name} without calling on: its results are a stream")
        else:
            opened = [self._open(method, args, kwargs, options, feeder)]
            channel = opened[0].received
        async with opened[0].block():
            yield channel

    def _open(
        self,
        method: RemoteMethod,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: CallOptions,
        feeder: Feeder | None,
    ) -> StreamCall:
        payload, blobs = method.encode(args, kwargs)
        self.counters.requests += 1
        stream = StreamCall(self, method, feeder, options)
        deadline, streaming = current_effective_deadline(), feeder is not None
        stream.begin(self._attempt(method, payload, blobs, options, deadline, streaming=streaming))
        return stream

    async def _intercepted(
        self,
        run: Callable[..., Any],
        method: RemoteMethod,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: CallOptions,
    ) -> Any:
        async def innermost(call: Call) -> Reply:
            return Reply(await run(method, call.args, call.kwargs, attrs.evolve(options, metadata=call.metadata)))

        call = Call(method.name, args, kwargs, dict(options.metadata))
        return (await compose(self._interceptors, innermost)(call)).value

    # -- steps -----------------------------------------------------------------------------------------------------

    def _attempt(
        self,
        method: RemoteMethod,
        payload: bytes,
        blobs: Sequence[Bytes],
        options: CallOptions,
        deadline: float,
        trial: Trial | None = None,
        *,
        streaming: bool = False,
        early: bool = False,
    ) -> Attempt:
        """One attempt; `trial` has seen those before it. `early`: it may go with our HELLO, if nothing else forbids."""
        if trial is not None:
            route = trial.route
        else:
            route = None if options.routing_key is None else Route(options.routing_key)
        return Attempt(
            method.block,
            payload,
            blobs,
            deadline,
            options.metadata if trial is None else trial.metadata(),
            options.cancel_wait,
            streaming=streaming,
            acquire_timeout=options.patience,
            fail_fast=options.wait_for_ready is False,
            priority=options.priority,
            route=route,
            parent=CURRENT.get(None),
            early=early and method.idempotent and _may_be_early(method, payload, blobs, options),
        )

    async def _begin(self, attempt: Attempt, trial: Trial) -> Outgoing:
        """Start now if there is a place, else wait for one; and wait for the end of a call that had to wait."""
        connection = None
        if trial.back is not None:
            with suppress(ConnectError):  # It is no endpoint any more.
                connection = self.pick(trial.back)
        if connection is None:
            connection = self.pick(attempt.route)
        if connection is not None:
            return attempt.start(connection, current_time())
        return await self._wait_in_line(attempt)

    async def _wait_in_line(self, attempt: Attempt) -> Outgoing:
        self.join(attempt)
        return await attempt.wait()

    def submit(self, attempt: Attempt) -> None:
        """Start now if there is a place, else join the line; for attempts that nobody awaits."""
        connection = self.pick(attempt.route)
        if connection is not None:
            attempt.start(connection, current_time())
        else:
            self.join(attempt)

    def _error(self, call: Outgoing, method: RemoteMethod, options: CallOptions) -> BaseException | None:
        """What the call is to raise: the terminal frame decides, then a cancellation that was waiting for it."""
        if type(call.terminal) is ResponseReceived:
            self.take_metadata(call, options)
            return None
        if call.cancelled is not None and not has_own_end(call):
            self.take_metadata(call, options)
            raise call.cancelled
        return error_of(call, method)

    def take_metadata(self, call: Outgoing, options: CallOptions) -> None:
        """Give the caller what came with the call's end, if it has asked for that."""
        if call.terminal is not None and call.terminal.metadata and options.reply_metadata is not None:
            options.reply_metadata.update(call.terminal.metadata)

    def result(self, method: RemoteMethod, call: Outgoing) -> Any:
        """What the handler returned. Raises DecodeError."""
        terminal = call.terminal
        assert type(terminal) is ResponseReceived
        try:
            return method.result.decode(terminal.payload, terminal.blobs)
        except DecodeError as exc:
            locate(exc, f"the result of {method.name}")
            exc.may_have_run, exc.peer = True, call.connection.address
            raise self.counted(exc) from None

    def counted(self, error: BaseException) -> BaseException:
        """Count a call that ends with `error`."""
        self.counters.errors += 1
        return error


def _refuse_key(method: RemoteMethod, options: CallOptions) -> None:
    if options.idempotency_key is not None:
        raise TypeError(
            f"{method.name} is a stream, and an idempotency key is for unary methods: what a server keeps for a second "
            "call is one result. Make the call by a stub without idempotency_key"
        )


def _may_be_early(method: RemoteMethod, payload: bytes, blobs: Sequence[Bytes], options: CallOptions) -> bool:
    """True for what any peer takes, whatever its HELLO will say, and what may be tried again if there is none."""
    if blobs or options.metadata or options.retry.attempts == 1:
        return False
    return TIMEOUT_SIZE + len(method.block) + len(payload) <= LEAST_FRAME_SIZE
