"""Calls over gRPC as an `Observer` is told of them."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import Message

from service.api.grpc.errors import abort, failure_of_call
from service.api.grpc.transport.calls import Aborted, Context
from service.api.observation import Exchange, Observer

OK: int = grpc.StatusCode.OK.value[0]
CANCELLED: int = grpc.StatusCode.CANCELLED.value[0]

_Begin = Callable[[Any, Context], Exchange]


def observe(servicer: object, service: str, observer: Observer) -> None:
    """Tell `observer` of every call of the servicer's methods: coroutine functions and asynchronous generators.

    Wraps them once, in place, which is cheaper for every call than an interceptor.
    """
    for name, method in inspect.getmembers(servicer, inspect.ismethod):
        if name.startswith("_"):
            continue
        begin = partial(_begin, observer, name, f"{service}/{name}")
        if inspect.iscoroutinefunction(method):
            setattr(servicer, name, _unary(method, begin))
        elif inspect.isasyncgenfunction(method):
            setattr(servicer, name, _streaming(method, begin))


def _unary(method: Callable[[Any, Context], Awaitable[Any]], begin: _Begin) -> Callable[[Any, Context], Awaitable[Any]]:
    @functools.wraps(method)
    async def call(request: Any, context: Context) -> Any:
        exchange = begin(request, context)
        with exchange:
            try:
                reply = await method(request, context)
            except BaseException as error:
                _failed(error, exchange)
                raise
        exchange.end(OK, bytes_out=reply.ByteSize())
        return reply

    return call


def _streaming(
    method: Callable[[Any, Context], AsyncIterator[Any]], begin: _Begin
) -> Callable[[Any, Context], AsyncIterator[Any]]:
    @functools.wraps(method)
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        exchange = begin(request, context)
        exchange.__enter__()  # and never left: each call has a task, and so a context, of its own
        try:
            async for response in method(request, context):
                yield response
        except BaseException as error:
            _failed(error, exchange)
            raise
        exchange.end(OK)

    return call


def _begin(observer: Observer, name: str, route: str, request: Any, context: Context) -> Exchange:
    size = request.ByteSize() if isinstance(request, Message) else 0
    return observer.begin("grpc", name, route, context.headers(), bytes_in=size)


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
