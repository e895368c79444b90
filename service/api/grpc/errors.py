"""Errors over gRPC: a servicer's methods raise the core's errors, callers get a status."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc

from service.api.status import Failure, failure_of

Context = Any
"""`grpc.aio.ServicerContext`, whose types are not published."""

_S = TypeVar("_S")

MAX_DETAILS = 2000
"""Characters of a message: details travel in a header, which clients bound to 8 KiB."""


def guarded(servicer: _S) -> _S:
    """`servicer`, whose methods turn what they raise into a status.

    Wraps its unary (coroutine functions) and streaming methods (asynchronous generators) once, in place, which is
    cheaper for every call than an interceptor.
    """
    for name, method in inspect.getmembers(servicer, inspect.ismethod):
        if name.startswith("_"):
            continue
        if inspect.iscoroutinefunction(method):
            setattr(servicer, name, _unary(method))
        elif inspect.isasyncgenfunction(method):
            setattr(servicer, name, _streaming(method))
    return servicer


def details(failure: Failure) -> str:
    """The text for the wire."""
    return failure.message[:MAX_DETAILS]


def _unary(method: Callable[[Any, Context], Awaitable[Any]]) -> Callable[[Any, Context], Awaitable[Any]]:
    @functools.wraps(method)
    async def call(request: Any, context: Context) -> Any:
        try:
            return await method(request, context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await _abort(error, context)

    return call


def _streaming(method: Callable[[Any, Context], AsyncIterator[Any]]) -> Callable[[Any, Context], AsyncIterator[Any]]:
    @functools.wraps(method)
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            async for response in method(request, context):
                yield response
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await _abort(error, context)

    return call


async def _abort(error: Exception, context: Context) -> None:
    failure = failure_of(error)
    trailing: tuple[tuple[str, str], ...] = ()
    if failure.retry_after_s is not None:
        trailing = (("retry-after", str(max(1, math.ceil(failure.retry_after_s)))),)
    await context.abort(failure.status.grpc, details(failure), trailing)
