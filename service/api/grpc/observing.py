"""Calls over gRPC as an `Observer` is told of them."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from typing import Any, final

import grpc
from google.protobuf.message import Message

from service.api.grpc.errors import Context, Streaming, Unary, abort, failure_of_call, read
from service.api.observation import Exchange, Observer

OK: int = grpc.StatusCode.OK.value[0]
CANCELLED: int = grpc.StatusCode.CANCELLED.value[0]


def begin(observer: Observer, service: str, name: str, context: Context, bytes_in: int) -> Exchange:
    """A call of `service`'s method `name`, or a message of it, is there."""
    metadata = {
        key.encode(): value.encode() if isinstance(value, str) else value
        for key, value in context.invocation_metadata() or ()
    }
    return observer.begin("grpc", name, f"{service}/{name}", metadata, bytes_in=bytes_in)


@final
class ObservedCalls:
    """Makes the methods of `service` guarded ones that `observer` is told of; those in `apart` see to it themselves."""

    def __init__(self, observer: Observer, service: str, apart: frozenset[str] = frozenset()) -> None:
        self._observer = observer
        self._service = service
        self._apart = apart

    def unary(self, name: str, method: Unary) -> Unary:
        """A method of one answer."""

        @functools.wraps(method)
        async def call(request: Any, context: Context) -> Any:
            exchange = self._begin(name, request, context)
            with exchange:
                try:
                    reply = await method(read(request), context)
                except BaseException as error:
                    await _failed(error, exchange, context)
                    raise
            exchange.end(OK, bytes_out=reply.ByteSize())
            return reply

        return call

    def streaming(self, name: str, method: Streaming) -> Streaming:
        """A method of many answers; told of when the last was given."""

        @functools.wraps(method)
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            exchange = None if name in self._apart else self._begin(name, request, context)
            if exchange is not None:
                exchange.__enter__()  # and never left: each call has a task, and so a context, of its own
            try:
                async for response in method(read(request), context):
                    yield response
            except BaseException as error:
                await _failed(error, exchange, context)
                raise
            if exchange is not None:
                exchange.end(OK)

        return call

    def _begin(self, name: str, request: Any, context: Context) -> Exchange:
        size = request.ByteSize() if isinstance(request, Message) else 0
        return begin(self._observer, self._service, name, context, size)


async def _failed(error: BaseException, exchange: Exchange | None, context: Context) -> None:
    """End `exchange` and, for what is no cancellation, the call; raises `AbortError` then."""
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        if exchange is not None:
            exchange.end(CANCELLED)
    elif isinstance(error, grpc.aio.AbortError):
        if exchange is not None:
            exchange.end(_code_of(context))
    elif isinstance(error, Exception):
        failure = failure_of_call(error)
        if exchange is not None:
            exchange.end(failure.status.grpc.value[0], error=error)
        await abort(failure, context)


def _code_of(context: Context) -> int:
    code = context.code()
    return int(code.value[0] if isinstance(code, grpc.StatusCode) else code)
