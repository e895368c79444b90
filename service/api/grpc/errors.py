"""Errors over gRPC: a servicer's methods raise the core's errors, callers get a status."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, TypeVar, final

from google.protobuf.message import DecodeError

from service.api.grpc.transport.calls import Aborted, Context
from service.api.grpc.transport.metadata import Status
from service.api.grpc.transport.server import GrpcServer
from service.api.status import Failure, failure_of
from service.core.errors import InvalidRequest

Unary = Callable[[Any, Context], Awaitable[Any]]
Streaming = Callable[[Any, Context], AsyncIterator[Any]]

_S = TypeVar("_S")

MAX_DETAILS = 2000
"""Characters of a message: details travel in a header, which clients bound to 8 KiB."""


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """Stands for a message that is none of the method's."""

    reason: str


def tolerant(deserializer: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """`deserializer`, whose failures a `guarded` method of one message answers with INVALID_ARGUMENT."""

    def read(message: bytes) -> Any:
        try:
            return deserializer(message)
        except DecodeError as error:
            return _Unreadable(str(error))

    return read


@final
class TolerantServer:
    """What a generated `add_..._to_server` gets in place of `server`: methods of one message are made `tolerant`."""

    def __init__(self, server: GrpcServer) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Nothing: the same ones come with their names."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Add a service's methods."""
        made = {
            name: handler
            if handler.request_streaming
            else handler._replace(request_deserializer=tolerant(handler.request_deserializer))
            for name, handler in handlers.items()
        }
        self._server.add_registered_method_handlers(service, made)


class Observed(Protocol):
    """Makes methods that are guarded, and told of besides."""

    def unary(self, name: str, method: Unary) -> Unary:
        """The method `name` of one answer."""

    def streaming(self, name: str, method: Streaming) -> Streaming:
        """The method `name` of many."""


def guarded(servicer: _S, observed: Observed | None = None) -> _S:
    """`servicer`, whose methods turn what they raise into a status; with `observed` its calls are told of.

    Wraps its unary (coroutine functions) and streaming methods (asynchronous generators) once, in place, which is
    cheaper for every call than an interceptor.
    """
    for name, method in inspect.getmembers(servicer, inspect.ismethod):
        if name.startswith("_"):
            continue
        if inspect.iscoroutinefunction(method):
            setattr(servicer, name, _unary(method) if observed is None else observed.unary(name, method))
        elif inspect.isasyncgenfunction(method):
            setattr(servicer, name, _streaming(method) if observed is None else observed.streaming(name, method))
    return servicer


def details(failure: Failure) -> str:
    """The text for the wire."""
    return failure.message[:MAX_DETAILS]


def _unary(method: Unary) -> Unary:
    @functools.wraps(method)
    async def call(request: Any, context: Context) -> Any:
        try:
            return await method(read(request), context)
        except Aborted:
            raise
        except Exception as error:
            abort(failure_of_call(error))

    return call


def _streaming(method: Streaming) -> Streaming:
    @functools.wraps(method)
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            async for response in method(read(request), context):
                yield response
        except Aborted:
            raise
        except Exception as error:
            abort(failure_of_call(error))

    return call


def read(request: Any) -> Any:
    """The message; raises `InvalidRequest` for what stands for one that could not be read."""
    if type(request) is _Unreadable:
        raise InvalidRequest(f"message: {request.reason}")
    return request


def failure_of_call(error: BaseException) -> Failure:
    """What to tell the caller of what a method raised."""
    if isinstance(error, DecodeError):  # a message of a stream
        error = InvalidRequest(f"message: {error}")
    return failure_of(error)


def abort(failure: Failure) -> NoReturn:
    """End the call with a failure's status: raises `Aborted`."""
    raise Aborted(_status(failure))


def call_status(error: BaseException) -> Status:
    """How a call ends whose method raised `error`."""
    return _status(failure_of_call(error))


def _status(failure: Failure) -> Status:
    trailing: tuple[tuple[str, str], ...] = ()
    if failure.retry_after_s is not None:
        trailing = (
            ("retry-after", str(failure.retry_after_seconds)),
            ("grpc-retry-pushback-ms", str(failure.retry_after_ms)),  # what gRPC's own retries go by
        )
    return Status(failure.status.grpc, details(failure), trailing)
