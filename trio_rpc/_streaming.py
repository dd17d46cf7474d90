"""Calls whose arguments or results are streams, on the calling side."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio
from trio.lowlevel import ParkingLot

from ._calls import Outgoing
from ._errors import EncodeError, RemoteError, RpcError
from ._generators import as_generator, drive
from ._methods import RemoteMethod
from ._options import CallOptions
from ._outcomes import error_of, expired_remotely
from ._scope import hidden_nursery
from ._streams import Outbound, ReceiveStream
from ._timer import Moment
from ._trial import Trial
from ._waiting import Attempt

if TYPE_CHECKING:
    from ._caller import Caller

__all__ = ["Feeder", "StreamCall"]


class Feeder:
    """Iterates the caller's items in one child task of the call, in the caller's own context.

    If the iterable raises, the call is cancelled and joined, and that error comes out bare. If the handler returns
    first, the iteration is cancelled and the result stands.

    It is the `Sink` of what it drives, and hands on to the call of the current attempt: until the first item has gone
    there, a call that surely did not run may be replaced by another.
    """

    def __init__(self, method: RemoteMethod, items: Any) -> None:
        if not hasattr(items, "__aiter__"):
            raise TypeError(
                f"{method.name} streams its items from an async iterable, a ReceiveChannel or an async generator, "
                f"not from {type(items).__name__}: wrap a plain iterable in an async generator"
            )
        self.error: Exception | None = None
        self.on_error: Callable[[Exception], object] | None = None
        self.taken = False
        """True once an item was given to a call, or the iterable has ended: no other call can take its place."""
        self.between_calls = trio.CancelScope()
        """Cancelled if the iterable fails while there is no call that could be stopped."""
        self._method = method
        self._items = items
        self._call: Outgoing | None = None
        self._held: list[Any] = []
        self._attached = ParkingLot()

    def attach(self, call: Outgoing) -> None:
        """The request of this attempt is on its way: its credit is known now."""
        remote = call.connection.remote
        encode = self._method.encode_items
        call.outbound = Outbound(
            call.connection.flows, call.id, remote.stream_window, remote.stream_window_items, encode
        )
        self._call = call
        self._attached.unpark_all()

    async def run(self) -> None:
        """Send every item, then the end of them."""
        try:
            await self._live_call()
            await drive(as_generator(self._items), self)
            call = await self._live_call()
            assert call.outbound is not None
            await call.outbound.finish()
        except Exception as exc:
            self.error, self.taken = exc, True
            if self.on_error is not None:
                self.on_error(exc)  # Before the call's end, which may come within `stop`, is told as the reason.
            if self._call is not None and not self._call.ended:
                self._call.stop()
            else:
                self.between_calls.cancel()
            self._tell_what_ran(exc)
        else:
            self.taken = True
            call.send_end_of_items()

    def _tell_what_ran(self, exc: Exception) -> None:
        """An item that cannot be sent is found out when its call has begun, unless that could still be taken back."""
        call = self._call
        if isinstance(exc, EncodeError) and call is not None and call.outbound is not None:
            ours = exc is call.outbound.last_error  # And not one that the iterable got from a call of its own.
            exc.may_have_run = exc.may_have_run or (ours and call.written)

    def batch(self) -> tuple[Callable[[Any], object], int]:
        """Items of the call's own from the second on; the first may have to wait for a call."""
        sink = self._sink()
        return (self._put_first, 1) if sink is None or not self.taken else sink.batch()

    def _put_first(self, item: Any) -> None:
        """Give an item to the call, or keep it while there is none."""
        sink = self._sink()
        if sink is None:
            self._held.append(item)
        else:
            self.taken = True
            sink.batch()[0](item)

    def flush(self) -> None:
        """Hand over what was gathered."""
        sink = self._sink()
        if sink is not None:
            sink.flush()

    async def room(self) -> None:
        """Wait for a call, and for its credit."""
        call = await self._live_call()
        assert call.outbound is not None
        while self._held:
            self._put_first(self._held.pop())
        await call.outbound.room()

    def _sink(self) -> Outbound[Any] | None:
        return self._call.outbound if self._call is not None and not self._call.ended else None

    async def _live_call(self) -> Outgoing:
        """The call of the current attempt. Waits for the next one if it has ended; the call's end cancels that."""
        while self._call is None or self._call.ended:
            await self._attached.park()
        return self._call


class StreamCall:
    """A call whose results are a stream, from opening its block to leaving it.

    Everything that happens to it between attempts happens in one synchronous step, in the reader that saw the end of
    the earlier one: a refused stream begins anew on another connection without its consumer's knowing.
    """

    def __init__(self, caller: Caller, method: RemoteMethod, feeder: Feeder | None, options: CallOptions) -> None:
        self._caller = caller
        self._method = method
        self._feeder = feeder
        self._options = options
        self._trial = Trial(caller, method, options)
        self._attempt: Attempt | None = None
        self._call: Outgoing | None = None
        self._error: BaseException | None = None
        self._due: Moment | None = None
        """When the next attempt begins; None while it is not between two."""
        self._leaving = False
        limits = caller.stream_limits
        self.received: ReceiveStream[Any] = ReceiveStream(0, *limits, method.decode_items)
        if options.reply_metadata is not None:
            self.received.metadata = options.reply_metadata
        if feeder is not None:
            feeder.on_error = self.received.end

    def begin(self, attempt: Attempt) -> None:
        """Make the first attempt. Raises what keeps it from the line."""
        attempt.received = self.received
        attempt.on_start, attempt.on_failure = self._started, self._failed
        self._attempt = attempt
        try:
            self._caller.submit(attempt)
        except RpcError as exc:
            raise self._trial.final(exc)  # noqa: B904 - the same error

    def _started(self, call: Outgoing) -> None:
        self._call = call
        call.on_end = self._ended
        if self._feeder is not None:
            self._feeder.attach(call)

    def _failed(self, error: Exception) -> None:
        self._error = self._trial.final(error)
        self.received.end(error)

    def _ended(self, call: Outgoing) -> None:
        """The call has ended, in the reader's step: tell the consumer, or begin anew."""
        error = error_of(call, self._method)
        if error is None and not call.ended:
            return
        if error is None:
            self._caller.budget.note_success()
            self.received.end(trio.EndOfChannel())
            return
        if self._leaving:
            self._error = error
            return
        fresh = not (self.received.fed or (self._feeder is not None and self._feeder.taken))
        delay = self._trial.delay(error, call) if fresh else None
        if delay is None:
            self._error = self._trial.final(error)
            self._end_when_due(call, error)
        else:
            self._caller.counters.retries += 1
            when = trio.current_time() + delay
            self._caller.restarting[self] = None
            self._due = self._caller.timer.at(when, lambda _late: self.begin_anew())

    def _end_when_due(self, call: Outgoing, error: BaseException) -> None:
        """Told that the caller's deadline has passed, its consumer waits for its own scope to say so."""
        if expired_remotely(call) and call.deadline > trio.current_time():
            self._caller.timer.at(call.deadline, lambda _late: self.received.end(error))
        else:
            self.received.end(error)

    def begin_anew(self) -> None:
        """Make the next attempt; by the timer, or at once because the caller closes and it is to fail."""
        if self._due is None:
            return
        self._unschedule()
        if self._feeder is not None and self._feeder.error is not None:
            return
        assert self._attempt is not None
        self._call = None
        self._attempt = self._attempt.again()
        self._attempt.metadata, self._attempt.route = self._trial.metadata(), self._trial.route
        try:
            self._caller.submit(self._attempt)
        except RpcError as exc:
            self._failed(exc)

    def _unschedule(self) -> None:
        due, self._due = self._due, None
        if due is not None:
            self._caller.timer.forget(due)
            del self._caller.restarting[self]
            self._caller.resumed()

    @asynccontextmanager
    async def block(self) -> AsyncIterator[None]:
        """The consumer's block. Leaving it ends the call, and waits for that."""
        if self._feeder is None:
            async with self._joined():
                yield
        else:
            async with hidden_nursery() as nursery:
                nursery.start_soon(self._feeder.run)
                async with self._joined():
                    yield

    @asynccontextmanager
    async def _joined(self) -> AsyncIterator[None]:
        try:
            yield
        except BaseException as exc:
            await self.leave(exc)
            raise
        else:
            await self.leave(None)

    async def leave(self, body_error: BaseException | None) -> None:
        """End the call and wait for that. Raises what is nobody else's to tell, unless `body_error` goes before."""
        self._leaving = True
        self._unschedule()  # A server may have put the next attempt off for days.
        early = self._call is None or not self._call.ended
        self.received.close()
        cancelled = await self._join()
        error = self._own_error()
        if body_error is not None:
            if error is not None and early and error is not body_error:
                body_error.add_note(f"the remote stream's clean-up failed: {error!r}")
        elif error is not None and not self.received.delivered:
            raise error
        elif cancelled is not None:
            raise cancelled

    async def _join(self) -> BaseException | None:
        """End the call if it has not ended; returns the Cancelled that came meanwhile."""
        call = self._call
        if call is None:
            if self._attempt is not None:
                self._attempt.leave()
            return None
        if not call.ended and not call.connection.withdraw(call):
            call.stop(leaving=True)
            if not call.orphan:
                await call.wait()
        return call.cancelled

    def _own_error(self) -> BaseException | None:
        """The iterable's error, or the handler's: those that are nobody else's to tell."""
        if self._feeder is not None and self._feeder.error is not None:
            return self._feeder.error
        error = self._error
        if isinstance(error, RpcError) and not isinstance(error, RemoteError):
            return None
        return error
