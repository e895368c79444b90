"""Calls over gRPC as an `Observer` is told of them."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from typing import Any, final

import grpc
from google.protobuf.message import Message

from service.api.grpc.errors import Streaming, Unary, abort, failure_of_call, read
from service.api.grpc.transport.calls import Aborted, Context
from service.api.observation import Exchange, Observer

OK: int = grpc.StatusCode.OK.value[0]
CANCELLED: int = grpc.StatusCode.CANCELLED.value[0]


@final
class ObservedCalls:
    """Makes the methods of `service` guarded ones that `observer` is told of."""

    def __init__(self, observer: Observer, service: str) -> None:
        self._observer = observer
        self._service = service

    def unary(self, name: str, method: Unary) -> Unary:
        """A method of one answer."""

        @functools.wraps(method)
        async def call(request: Any, context: Context) -> Any:
            exchange = self._begin(name, request, context)
            with exchange:
                try:
                    reply = await method(read(request), context)
                except BaseException as error:
                    _failed(error, exchange)
                    raise
            exchange.end(OK, bytes_out=reply.ByteSize())
            return reply

        return call

    def streaming(self, name: str, method: Streaming) -> Streaming:
        """A method of many answers; told of when the last was given."""

        @functools.wraps(method)
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            exchange = self._begin(name, request, context)
            exchange.__enter__()  # and never left: each call has a task, and so a context, of its own
            try:
                async for response in method(read(request), context):
                    yield response
            except BaseException as error:
                _failed(error, exchange)
                raise
            exchange.end(OK)

        return call

    def _begin(self, name: str, request: Any, context: Context) -> Exchange:
        size = request.ByteSize() if isinstance(request, Message) else 0
        return self._observer.begin("grpc", name, f"{self._service}/{name}", context.headers(), bytes_in=size)


def _failed(error: BaseException, exchange: Exchange) -> None:
    """End `exchange` and, for what is no cancellation, the call: raises `Aborted` then."""
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        exchange.end(CANCELLED)
    elif isinstance(error, Aborted):
        exchange.end(int(error.status.code.value[0]))
    elif isinstance(error, Exception):
        failure = failure_of_call(error)
        exchange.end(failure.status.grpc.value[0], error=error)
        abort(failure)
