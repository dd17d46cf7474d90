"""Serving: from a request to a handler's coroutine, and from its end to a terminal frame.

A request did not run only if that is told before `start` has returned the handler's coroutine: here for a declaration,
a refused authorisation or arguments that do not fit, and by the connection for what never came so far (no such method,
no room, going away, expired on arrival). After that everything ran.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

import trio

from . import codecs
from ._authorization import Authorize, check_authorize, permit
from ._call import Call, Handler, Interceptor, Reply, compose
from ._config import Limits
from ._contract import MethodSpec, ServiceSpec
from ._crew import Estimate, holds
from ._errors import (
    Code,
    CodecError,
    DecodeError,
    InvalidArgument,
    Refused,
    RemoteError,
    Unimplemented,
)
from ._failures import NEUTRAL, NOT_ENTERED, Failures, neutral
from ._generators import as_generator, drive
from ._incoming import Incoming, Served
from ._kept import KEY, Answer
from ._logs import limited, log_failure
from ._once import Once
from ._streams import Outbound
from ._text import shown
from ._util import locate
from .wire import Outcome

__all__ = ["ServedMethod", "compile_services"]

log = limited(logging.getLogger("trio_rpc.server"))


def compile_services(
    specs: Sequence[ServiceSpec],
    codec: str,
    limits: Limits,
    *,
    authorize: Authorize | None = None,
    interceptors: Sequence[Interceptor] = (),
    limiter: trio.CapacityLimiter | None = None,
    debug: bool = False,
    once: Once | None = None,
) -> Mapping[str, Served]:
    """Everything that is served, by wire name, for one codec. Raises TypeError for what no codec carries.

    `once`: where calls with an idempotency key run; None: they are refused.
    """
    check_authorize(authorize)
    make = partial(
        ServedMethod,
        codec=codec,
        bounds=codecs.Bounds.of(limits),
        authorize=authorize,
        interceptors=interceptors,
        limiter=limiter,
        debug=debug,
        once=once,
    )
    return {method.wire_name: make(method) for spec in specs for method in spec.methods.values()}


class ServedMethod:
    """One method of one served object, compiled for one codec: a `Served`."""

    def __init__(
        self,
        spec: MethodSpec,
        *,
        codec: str,
        bounds: codecs.Bounds,
        authorize: Authorize | None,
        interceptors: Sequence[Interceptor],
        limiter: trio.CapacityLimiter | None,
        debug: bool,
        once: Once | None,
    ) -> None:
        adapter = codecs.adapter_for(codec, bounds)
        self.spec = spec
        self.codec = codec
        self.idempotent: bool = spec.idempotent
        self.estimate = Estimate(eager=not (spec.shape.streams_in or spec.shape.streams_out or spec.thread))
        self.limit: float | None = math.inf if spec.unlimited else spec.limit
        self._arguments = adapter.arguments(spec.parameters, name=spec.name)
        self._result = adapter.carrier(spec.result)
        self._items = adapter.carrier(spec.stream_item) if spec.stream_parameter is not None else None
        self._failures = Failures(adapter, spec.raises)
        self._authorize = authorize
        self._interceptors = tuple(interceptors)
        self._limiter = limiter
        self._debug = debug
        self._once = once
        self._run = self._runner()
        self._streams_out = spec.shape.streams_out
        self._plain = (
            spec.implemented
            and not (authorize or interceptors or spec.shape.streams_out)
            and spec.stream_parameter is None
        )
        """Nothing to be done before a handler runs but to decode its arguments."""

    def __repr__(self) -> str:
        return f"<ServedMethod {self.spec.wire_name}>"

    def _runner(self) -> Callable[..., Coroutine[Any, Any, Any]]:
        """What makes a coroutine of the handler: chosen once, as it depends on the method alone."""
        handler = self.spec.handler
        if self.spec.shape.streams_out or handler is None:
            return self._generate
        if self.spec.thread:
            return partial(self._in_thread, handler)
        return handler if self.spec.is_async else partial(_inline, handler)

    # -- a Served -------------------------------------------------------------------------------------------------

    def start(self, call: Incoming) -> Coroutine[Any, Any, Any]:
        """Check, decode, and make the handler's coroutine. What it raises did not run."""
        if call._metadata is not None and KEY in call._metadata:
            return self._start_once(call)
        if self._plain:
            args, kwargs = self._arguments.decode(call.payload, call.blobs)
            call.payload, call.blobs = b"", ()
            return self._run(*args, **kwargs)
        self._check(call)
        return self.enter(call)

    def _start_once(self, call: Incoming) -> Coroutine[Any, Any, None]:
        self._check(call)  # Who may not call it may not have another's result either.
        if self._once is None:
            raise Unimplemented(f"no {KEY} is kept by those who are called back: only by a server")
        if self.spec.shape.streams_in or self.spec.shape.streams_out:
            raise InvalidArgument(f"{self.spec.wire_name} has a stream, and {KEY} is for calls with one result alone")
        return self._once.start(call, self)

    def _check(self, call: Incoming) -> None:
        spec = self.spec
        if self._authorize is not None:  # First: who may not call it need not know more of it.
            permit(self._authorize, call.peer, spec.wire_name)
        if not spec.implemented:
            raise Unimplemented(f"{spec.wire_name} is declared here, and not implemented")

    def enter(self, call: Incoming) -> Coroutine[Any, Any, Any]:
        """Decode, and make the handler's coroutine. What it raises did not run."""
        args, kwargs = self._arguments.decode(call.payload, call.blobs)
        call.payload, call.blobs = b"", ()
        if self.spec.stream_parameter is not None:
            args, kwargs = self._with_stream(call, args, kwargs)
        if self._interceptors:
            return self._through_interceptors(call, args, kwargs)
        if self.spec.shape.streams_out:
            return self._generate(call, args, kwargs)
        return self._run(*args, **kwargs)

    def _with_stream(
        self, call: Incoming, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        assert self._items is not None
        if call.inbound is None:
            raise DecodeError(f"{self.spec.stream_parameter.name}: expected a stream of items, got none")  # type: ignore[union-attr]
        call.inbound.decode_with(self._items.decode_many)
        return self.spec.put_stream(args, kwargs, call.inbound)

    async def _generate(self, call: Incoming, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Drive a generator into the call's stream of items."""
        assert self.spec.handler is not None
        remote = call.connection.remote
        outbound: Outbound[Any] = Outbound(
            call.connection.flows, call.id, remote.stream_window, remote.stream_window_items, self._result.encode_many
        )
        call.outbound = outbound
        await drive(as_generator(self.spec.handler(*args, **kwargs)), outbound)
        # A generator that was cut short by a cancellation has not come to its end, however quietly it went.
        await trio.lowlevel.checkpoint_if_cancelled()
        await outbound.finish()

    async def _in_thread(self, handler: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # Not abandoned on cancellation: the call's slot is held until the thread has really ended.
        return await trio.to_thread.run_sync(partial(handler, *args, **kwargs), limiter=self._limiter)

    async def _through_interceptors(self, call: Incoming, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        async def innermost(wrapped: Call) -> Reply:
            if self.spec.shape.streams_out:
                await self._generate(call, wrapped.args, wrapped.kwargs)
                return Reply(None)
            return Reply(await self._run(*wrapped.args, **wrapped.kwargs))

        handler: Handler = compose(self._interceptors, innermost)
        return (await handler(Call(self.spec.wire_name, args, kwargs, call.metadata))).value

    def succeed(self, call: Incoming, value: Any) -> None:
        """Answer with the result, or end the stream of items."""
        try:
            if self._streams_out:
                call.send_end()
                return
            payload, blobs = self._result.encode(value)
            call.send_response(payload, blobs)
        except CodecError as exc:
            self._tell_unsendable(call, exc)
        except BaseException as exc:  # A type of the program's that is encoded may do anything.
            self.fail(call, exc, started=True)
            if holds(exc, KeyboardInterrupt):
                raise

    def _tell_unsendable(self, call: Incoming, exc: CodecError) -> None:
        locate(exc, f"the result of {self.spec.wire_name} cannot be sent")
        self._tell(call, exc.code, self._outline(exc), exc)

    def fail(self, call: Incoming, exc: BaseException, *, started: bool) -> None:
        """Answer with a failure."""
        if not started:
            self._refuse(call, exc)
        elif isinstance(exc, DecodeError) and call.inbound is not None and call.inbound.failed_with(exc):
            locate(exc, f"an item for {self.spec.wire_name}", item=True)
            no_room = exc.code is Code.RESOURCE_EXHAUSTED
            self._tell(call, exc.code if no_room else Code.INVALID_ARGUMENT, exc.message, exc)
            if exc.malformed:
                call.connection.faults.charge_aside(exc.message)
        elif isinstance(exc, CodecError) and call.outbound is not None and exc is call.outbound.last_error:
            locate(exc, f"an item of {self.spec.wire_name} cannot be sent", item=True)
            self._tell(call, exc.code, self._outline(exc), exc)
        else:
            code, text, payload = self._describe(call, exc)
            call.send_error(code, Outcome.FAILED, text, payload)

    def _describe(self, call: Incoming, exc: BaseException) -> tuple[Code, str, bytes]:
        try:
            error_id = "" if self._is_told(exc) else self._log(call, exc)
            return self._failures.dump(exc, debug=self._debug, error_id=error_id)
        except BaseException:  # Raised by what was raised, when it was looked at.
            return Code.UNKNOWN, NEUTRAL, b""

    def note_late_failure(self, call: Incoming, exc: BaseException) -> None:
        """Its connection was lost first: the log is the only one to be told."""
        if not self._is_told(exc):
            self._log(call, exc)

    # -- a Runnable: for several calls, which come and go, with one end of the handler -----------------------------

    def result(self, call: Incoming, value: Any) -> Answer:
        """What the handler's result is on the wire."""
        try:
            payload, blobs = self._result.encode(value)
        except CodecError as exc:
            locate(exc, f"the result of {self.spec.wire_name} cannot be sent")
            self._note(exc)
            return Answer(b"", code=exc.code, text=self._outline(exc))
        return Answer(payload, tuple(map(bytes, blobs)))  # Copied, if the handler could change them afterwards.

    def failure(self, call: Incoming, exc: BaseException) -> Answer:
        """What the handler's failure is on the wire."""
        code, text, payload = self._describe(call, exc)
        return Answer(payload, code=code, text=text)

    def give(self, call: Incoming, answer: Answer) -> None:
        """Answer the call, whatever its peer can take."""
        try:
            answer.give(call)
        except CodecError as exc:
            self._tell_unsendable(call, exc)

    # -- what failed -----------------------------------------------------------------------------------------------

    def _is_told(self, exc: BaseException) -> bool:
        """True if the caller learns all there is to know, so that nothing need be looked up in the log."""
        if isinstance(exc, BaseExceptionGroup):
            return all(map(self._is_told, exc.exceptions))
        deliberate = type(exc) is RemoteError and exc.peer is None
        return deliberate or self._failures.nearest(exc) is not None

    def _refuse(self, call: Incoming, exc: BaseException) -> None:
        if isinstance(exc, DecodeError):
            call.send_error(Code.INVALID_ARGUMENT, Outcome.REFUSED, f"{self.spec.wire_name}: {exc.message}")
        elif isinstance(exc, Refused):
            call.send_error(exc.code, Outcome.REFUSED, exc.message)
        else:
            call.send_error(Code.INTERNAL, Outcome.REFUSED, neutral(self._log(call, exc), NOT_ENTERED))

    def _tell(self, call: Incoming, code: Code, text: str, exc: CodecError) -> None:
        self._note(exc)
        call.send_error(code, Outcome.FAILED, text)

    def _note(self, exc: CodecError) -> None:
        log.warning("%s: %s", self.spec.wire_name, shown(exc.outline or exc.message, 160))

    def _outline(self, exc: CodecError) -> str:
        """What the caller is told of a value of ours: nothing of what was in it, unless in `debug`."""
        return exc.message if self._debug else exc.outline or exc.message

    def _log(self, call: Incoming, exc: BaseException) -> str:
        return log_failure(log, self.spec.wire_name, call.connection.address, exc)


async def _inline(handler: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return handler(*args, **kwargs)
