"""ModelInfer and ModelStreamInfer without a task per request: bytes in, a place in the queue, bytes out.

A request is read when its message is whole, and answered from the callback that a batch gives to all of its callers:
their answers leave in one write per connection. A task is made only for what a model's queue does not do by itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Final, Protocol, final

import numpy as np
from google.protobuf.message import DecodeError
from grpc import StatusCode

from service.api.grpc import convert
from service.api.grpc.answers import Answers, framed_in_stream, refusal_in_stream
from service.api.grpc.errors import call_status, details
from service.api.grpc.generated import inference_pb2 as pb
from service.api.grpc.message_bounds import check_fields
from service.api.grpc.transport.calls import ONE_MESSAGE
from service.api.grpc.transport.metadata import OK
from service.api.grpc.transport.server import GrpcServer
from service.api.grpc.transport.stream import Stream
from service.api.observation import Exchange, Observer
from service.api.status import failure_of, status_of
from service.core.errors import InvalidRequest, NotFound, NotReady
from service.core.inference import InferenceService
from service.core.request_queue import Pending
from service.core.serving import ServedModel
from service.core.types import InferResult

SERVICE_NAME: Final = "inference.GRPCInferenceService"

STREAM_WINDOW: Final = 64
"""Requests of one stream that are computed at the same time; more wait on the wire."""

_CANCELLED: Final = StatusCode.CANCELLED.value[0]


@final
class InferenceCalls:
    """Takes up the calls of both methods for `inference`; `observer` is told of each request."""

    def __init__(self, inference: InferenceService, observer: Observer | None = None) -> None:
        self.inference = inference
        self.observer = observer
        self.answers = Answers()

    def add_to(self, server: GrpcServer) -> None:
        """Serve both methods."""
        server.add_method(f"/{SERVICE_NAME}/ModelInfer", lambda stream: _Unary(self, stream), streaming=False)
        server.add_method(f"/{SERVICE_NAME}/ModelStreamInfer", lambda stream: _Streaming(self, stream), streaming=True)


class _Taker(Protocol):
    """Whom a request's answer is for; one of the two is called, once."""

    def answered(self, request: _Request, pieces: list[bytes], size: int) -> None:
        """A `ModelInferResponse` in pieces of `size` bytes together."""

    def failed(self, request: _Request, error: BaseException) -> None:
        """Why there is none."""


@final
class _Request:
    """One request, and its caller as a model's queue sees it."""

    __slots__ = (
        "_calls", "_exchange", "_outputs", "_pending", "_served", "_taker", "_task", "error", "id", "pieces", "size",
        "size_in", "streamed", "unreadable",
    )  # fmt: skip

    def __init__(self, calls: InferenceCalls, taker: _Taker, *, streamed: bool) -> None:
        self._calls = calls
        self._taker = taker
        self._exchange: Exchange | None = None
        self._pending: Pending | None = None
        self._task: asyncio.Task[InferResult] | None = None
        self.streamed = streamed
        self.id = ""
        self.unreadable = False
        self.pieces: list[bytes] | None = None
        self.error: BaseException | None = None
        self.size = self.size_in = 0

    def start(self, message: bytes, stream: Stream, method: str) -> None:
        """Read `message` and begin; what is wrong with it is told like any failure."""
        observer = self._calls.observer
        self.size_in = len(message)
        try:
            if observer is not None:
                route = f"{SERVICE_NAME}/{method}"
                self._exchange = observer.begin("grpc", method, route, stream.head.raw(), bytes_in=len(message))
                with self._exchange:
                    self._begin(message, stream.remaining_s())
            else:
                self._begin(message, stream.remaining_s())
        except DecodeError as error:
            self.unreadable = True
            self.failed(InvalidRequest(f"message: {error}"))
        except Exception as error:
            self.failed(error)

    def _begin(self, message: bytes, remaining_s: float | None) -> None:
        inference, exchange = self._calls.inference, self._exchange
        received = inference.deadline(0.0)
        check_fields(message)
        parsed = pb.ModelInferRequest.FromString(message)
        self.id = parsed.id
        served = self._room(parsed)
        request, wanted = convert.request_from_proto(parsed)
        request.received = received
        if exchange is not None:
            exchange.asked(request.model, request.version, request.id)
            request.started = exchange.started
        if wanted.timeout_us is not None:
            timeout_s = wanted.timeout_us * 1e-6
            remaining_s = timeout_s if remaining_s is None else min(timeout_s, remaining_s)
        if remaining_s is not None:
            request.deadline = received + remaining_s
        if served is None:
            served = inference.route(request.model, request.version)
        self._served = served
        self._outputs = request.outputs
        if served.direct and not request.classes:
            self._pending = served.start(
                self,
                request.inputs,
                request.outputs,
                deadline=request.deadline,
                priority=request.priority,
                received=received,
            )
            if exchange is not None:
                exchange.started(self._pending)
        else:
            self._task = asyncio.get_running_loop().create_task(inference.infer_by(served, request))
            self._task.add_done_callback(self._done)

    def _room(self, parsed: pb.ModelInferRequest) -> ServedModel | None:
        """The version that answers, None where none does; raises `Overloaded` before any value is looked at."""
        try:
            served = self._calls.inference.route(parsed.model_name, parsed.model_version or None)
        except (NotFound, NotReady):  # told once the message was found right
            return None
        if served.queue_depth and not parsed.parameters:  # one of them may be a priority
            served.check_room()
        return served

    def _done(self, task: asyncio.Task[InferResult]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self.answered(task.result().outputs)
        else:
            self.failed(error)

    def answered(self, outputs: Mapping[str, np.ndarray]) -> None:
        """Write the answer."""
        served, self._pending = self._served, None
        try:
            chosen, answers = served.chosen(outputs, self._outputs), self._calls.answers
            pieces, size = answers.pieces(served.name, served.version, self.id, chosen, streamed=self.streamed)
        except Exception as error:
            self.failed(error)
            return
        if self._exchange is not None:
            self._exchange.end(OK.code.value[0], version=served.version, bytes_out=size)
        self._taker.answered(self, pieces, size)

    def failed(self, error: BaseException) -> None:
        """Write why there is none."""
        self._pending = None
        if self._exchange is not None:
            self._exchange.end(status_of(error).grpc.value[0], error=error)
        self._taker.failed(self, error)

    def cancel(self) -> None:
        """Its caller has gone: free its place."""
        if self._pending is not None:
            self._served.cancel(self._pending)
        elif self._task is not None:
            self._task.cancel()
        if self._exchange is not None:
            self._exchange.end(_CANCELLED)


@final
class _Unary:
    """A call of ModelInfer."""

    __slots__ = ("_calls", "_message", "_request", "_stream")

    def __init__(self, calls: InferenceCalls, stream: Stream) -> None:
        self._calls = calls
        self._stream = stream
        self._message: bytes | None = None
        self._request: _Request | None = None

    def message(self, message: bytes) -> None:
        """Keep it until the client has said that there are no more."""
        if self._message is not None:
            self._stream.refuse(ONE_MESSAGE)
        self._message = message

    def half_closed(self) -> None:
        """Begin."""
        message, self._message = self._message, None
        if message is None:
            self._stream.refuse(ONE_MESSAGE)
        else:
            self._request = request = _Request(self._calls, self, streamed=False)
            request.start(message, self._stream, "ModelInfer")

    def writable(self) -> None:
        """Nothing: there is one answer."""

    def cancelled(self) -> None:
        """Free the request's place."""
        if self._request is not None:
            self._request.cancel()
            self._request = None

    def answered(self, request: _Request, pieces: list[bytes], size: int) -> None:
        """Send the answer."""
        self._request = None
        self._stream.answer(pieces, size)

    def failed(self, request: _Request, error: BaseException) -> None:
        """Send the status."""
        self._request = None
        self._stream.finish(call_status(error))


@final
class _Streaming:
    """A call of ModelStreamInfer: answers in the order of the requests.

    A failed one is answered with its message and id, and the stream goes on, unless the call's metadata says
    `triton_grpc_error: true`: then the stream ends with the status of the first failure. It also ends with a message
    that cannot be read. Every answer is the final one of its request and says so; there are no empty ones.
    """

    def __init__(self, calls: InferenceCalls, stream: Stream) -> None:
        self._calls = calls
        self._stream = stream
        self._strict = stream.head.raw().get(b"triton_grpc_error") == b"true"
        self._waiting: deque[bytes] = deque()
        self._started: deque[_Request] = deque()
        self._ended = self._going_on = False
        stream.watch_deadline()
        stream.widen()

    def message(self, message: bytes) -> None:
        """Begin, unless as many are under way as may be."""
        if self._waiting or len(self._started) >= STREAM_WINDOW or self._stream.congested:
            self._waiting.append(message)
            self._go_on()
        else:
            self._start(message)

    def half_closed(self) -> None:
        """End once the last has its answer."""
        self._ended = True
        self._end_if_done()

    def writable(self) -> None:
        """Go on."""
        self._go_on()

    def cancelled(self) -> None:
        """Free the places of all."""
        self._waiting.clear()
        started, self._started = self._started, deque()
        for request in started:
            if request.pieces is None and request.error is None:
                request.cancel()

    def answered(self, request: _Request, pieces: list[bytes], size: int) -> None:
        """Send the answer when it is its turn."""
        request.pieces, request.size = framed_in_stream(pieces, size)
        self._send_in_turn()

    def failed(self, request: _Request, error: BaseException) -> None:
        """Tell of the failure when it is its turn."""
        request.error = error
        self._send_in_turn()

    def _start(self, message: bytes) -> None:
        request = _Request(self._calls, self, streamed=True)
        self._started.append(request)
        self._stream.consumed(len(message))
        request.start(message, self._stream, "ModelStreamInfer")

    def _send_in_turn(self) -> None:
        started, stream = self._started, self._stream
        while started and not stream.closed:
            first = started[0]
            if first.pieces is not None:
                stream.send(first.pieces, first.size)
            elif first.error is not None:
                self._send_failure(first, first.error)
            else:
                break
            if not stream.closed:
                started.popleft()
                stream.released(first.size_in)
        self._go_on()

    def _send_failure(self, request: _Request, error: BaseException) -> None:
        if self._strict or request.unreadable:
            self._stream.refuse(call_status(error))
        else:
            message = refusal_in_stream(request.id, details(failure_of(error)))
            self._stream.send([message], len(message))

    def _go_on(self) -> None:
        if self._going_on:  # a request that fails at once comes here again
            return
        self._going_on = True
        while self._waiting and len(self._started) < STREAM_WINDOW and not self._stream.congested:
            self._start(self._waiting.popleft())
        self._going_on = False
        if self._waiting and not self._started:
            self._stream.notify()
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._ended and not self._started and not self._waiting:
            self._stream.finish(OK)
