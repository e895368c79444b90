"""The fast lane: inference requests answered where their bytes are read, without ASGI, a task or a future.

It takes what most requests are: a POST to the infer route whose head came in one piece, with a plain body of a known
length. Everything else goes the long way, through the server's parser and `Dispatcher`, on the same connection; both
give the same answers to the byte, for they read and write with the same functions.

A connection has one request under way at a time, in one lane or the other: what is pipelined behind it waits as bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Protocol, final

import numpy as np
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from service.api.admission import Admission
from service.api.body_chunks import BodyChunks
from service.api.observation import GONE, INFER_ROUTE, VERSION_INFER_ROUTE, Exchange, Observer
from service.api.rest.errors import Headers, error_body, error_headers
from service.api.rest.http_head import Head, Heads
from service.api.rest.infer_wire import JSON_AT_ONCE, admit, decode, json_length, reply_headers, to_core
from service.api.rest.templates import ReplyForm, Templates
from service.api.rest.tensors import WireRequest, encode_result
from service.api.status import failure_of
from service.core.errors import ServiceError
from service.core.inference import InferenceService
from service.core.ports import Clock
from service.core.request_queue import Pending
from service.core.serving import ServedModel
from service.core.types import InferResult

_HELD_BYTES = 2**16
"""With so many bytes behind the request under way, a connection is read no further."""


class Wire(Protocol):
    """What the lane needs of its connection."""

    @property
    def full(self) -> bool:
        """Whether the client does not read its answers."""

    @property
    def closing(self) -> bool:
        """Whether nothing can be answered any more."""

    def reply(self, head: bytes, body: bytes) -> None:
        """Write one answer."""

    def end(self) -> None:
        """Close once everything is written."""

    def read_on(self, on: bool) -> None:
        """Read from the client, or let it wait."""

    def long_way(self, data: bytes) -> None:
        """Give the other lane what came."""

    def keep(self, task: asyncio.Task[None]) -> None:
        """Let a stopping server wait for `task`, and cancel it when its time is over."""


@final
class FastLane:
    """What all connections of a server share.

    `observer` is told of each request, `admission` asked before a body is held; None: neither.
    """

    __slots__ = ("admission", "clock", "heads", "inference", "observer", "templates")

    def __init__(
        self,
        inference: InferenceService,
        clock: Clock,
        *,
        max_body_bytes: int,
        observer: Observer | None = None,
        admission: Admission | None = None,
    ) -> None:
        self.inference = inference
        self.clock = clock
        self.observer = observer
        self.admission = admission
        self.heads = Heads(max_body_bytes=max_body_bytes)
        self.templates = Templates()


@final
class FastConnection:
    """One connection's requests in the fast lane; the `Caller` of the one under way."""

    __slots__ = (
        "_body", "_closing", "_counted", "_exchange", "_head", "_held", "_lane", "_missing", "_paused", "_pending",
        "_request", "_served", "_task", "_wire", "waiting",
    )  # fmt: skip

    def __init__(self, lane: FastLane, wire: Wire) -> None:
        self._lane = lane
        self._wire = wire
        self._head: Head | None = None  # of the request that is being read or under way
        self._body = BodyChunks()
        self._missing = self._counted = 0
        self.waiting = False  # for an answer
        self._request: WireRequest | None = None
        self._served: ServedModel | None = None
        self._pending: Pending | None = None
        self._task: asyncio.Task[None] | None = None
        self._exchange: Exchange | None = None
        self._held = bytearray()
        self._paused = self._closing = False

    @property
    def busy(self) -> bool:
        """Whether what comes next belongs here, whatever it is."""
        return self._head is not None or bool(self._held)

    @property
    def reading(self) -> bool:
        """Whether a body is yet to come, or to go on."""
        return self._head is not None and not self.waiting

    # What comes

    def take(self, data: bytes) -> bytes:
        """Take what came, between two requests or while `busy`; returns what is for the other lane."""
        if self._held:
            self._hold(data)
            return b""
        return self._run(data)

    def resume(self) -> None:
        """Go on with what was held, once the request before it has its answer and the client has read enough."""
        if self.waiting or self._wire.full or self._wire.closing:
            return
        data = bytes(self._held)
        self._held.clear()
        rest = self._run(data)
        if self._paused and len(self._held) < _HELD_BYTES and not self._wire.full:
            self._paused = False
            self._wire.read_on(True)
        if rest:
            self._wire.long_way(rest)

    def _run(self, data: bytes) -> bytes:
        """Take requests off `data` until one is under way; returns what is for the other lane."""
        while data:
            if self._head is None:
                if self._wire.full:
                    self._hold(data)
                    return b""
                head = self._lane.heads.find(data)
                if head is None or not self._admitted(head):
                    return data
                self._head = head
                self._missing = head.length
                stop = head.size + head.length
                body, data = (data[head.size : stop], data[stop:]) if stop < len(data) else (data[head.size :], b"")
            elif self.waiting:
                self._hold(data)
                return b""
            else:
                stop = self._missing
                body, data = (data[:stop], data[stop:]) if stop < len(data) else (data, b"")
            self._missing -= len(body)
            if not self._counts(len(body)):
                return b""
            if self._missing or self._body.size:
                self._body.add(body)
                if self._missing:
                    return b""
                body, self._body = self._body.joined(), BodyChunks()
            self._start(self._head, body)
            if data and self._wire.closing:
                return b""
        return b""

    def _hold(self, data: bytes) -> None:
        self._held += data
        if not self._paused and (self._wire.full or len(self._held) >= _HELD_BYTES):
            self._paused = True
            self._wire.read_on(False)

    def _admitted(self, head: Head) -> bool:
        if json_length(head.length, head.header_length) > JSON_AT_ONCE:
            return False
        admission = self._lane.admission
        return admission is None or admission.fits(head.length)

    def _counts(self, size: int) -> bool:
        """Whether there is room for what came of a body; if not, the request is answered and the connection closed."""
        admission = self._lane.admission
        if admission is None:
            return True
        if admission.hold(size):
            self._counted += size
            return True
        self._body, self._missing = BodyChunks(), 0
        self._closing = True
        self._fail(admission.body_refused())
        return False

    # One request

    def _start(self, head: Head, body: bytes) -> None:
        """Begin to answer a request that is there; when it cannot be, it is answered already."""
        self.waiting = True
        received = self._lane.clock.monotonic()
        observer = self._lane.observer
        if observer is None:
            self._ask(head, body, received, None)
            return
        route = INFER_ROUTE if head.version is None else VERSION_INFER_ROUTE
        exchange = observer.begin("http", "POST", route, head.headers, received=received, bytes_in=len(body))
        exchange.asked(head.model, head.version)
        self._exchange = exchange
        with exchange:
            self._ask(head, body, received, exchange)

    def _ask(self, head: Head, body: bytes, received: float, exchange: Exchange | None) -> None:
        inference, templates = self._lane.inference, self._lane.templates
        try:
            served = admit(inference, head.model, head.version, head.header_length, body)
            request = self._request = decode(inference, head.model, head.version, head.header_length, body, templates)
            if exchange is not None:
                exchange.asked(head.model, head.version, request.id)
            if served is None:
                served = inference.route(head.model, head.version)
            self._served = served
            if request.classes or not served.direct:
                self._task = asyncio.get_running_loop().create_task(self._await(head, request, served, received))
                self._wire.keep(self._task)
                return
            schedule = request.schedule
            pending = self._pending = served.start(
                self,
                request.inputs,
                request.outputs,
                deadline=None if schedule.timeout_us is None else inference.deadline(schedule.timeout_us * 1e-6),
                priority=schedule.priority,
                received=received,
            )
            if exchange is not None:
                exchange.started(pending)
        except Exception as error:
            self._fail(error)

    async def _await(self, head: Head, request: WireRequest, served: ServedModel, received: float) -> None:
        """Answer what takes more than the model."""
        infer = to_core(self._lane.inference, head.model, head.version, request, received)
        if self._exchange is not None:
            infer.started = self._exchange.started
        try:
            with self._exchange or contextlib.nullcontext():
                result = await self._lane.inference.infer_by(served, infer)
        except Exception as error:
            self._fail(error)
        except asyncio.CancelledError as error:
            if not self._wire.closing:  # the server ends, not the client
                self._fail(error)
            raise
        else:
            self._succeed(result, request)

    def answered(self, outputs: Mapping[str, np.ndarray]) -> None:
        """Write the answer."""
        request, served = self._request, self._served
        assert request is not None
        assert served is not None
        chosen = served.chosen(outputs, request.outputs)
        template, head = request.template, self._head
        if template is not None and head is not None and head.keep_alive and not self._closing:
            form = template.reply
            if form is not None and form.fits(served.name, served.version, chosen):
                body = b"".join([array.tobytes() for array in chosen.values()])
                self._write(200, form.head, body, form.json_bytes + len(body), version=served.version)
                return
        self._succeed(InferResult(served.name, served.version, chosen, request.id), request)

    def failed(self, error: ServiceError) -> None:
        """Write why there is none."""
        self._fail(error)

    def _succeed(self, result: InferResult, request: WireRequest) -> None:
        try:
            body, header_length = encode_result(result, request)
        except Exception as error:
            self._fail(error)
            return
        template = request.template
        if template is not None and header_length is not None and template.all_binary(result.outputs):
            head = head_of(200, reply_headers(header_length), len(body), keep_alive=True) + body[:header_length]
            template.reply = ReplyForm(result.model, result.version, result.outputs, head, header_length)
        self._reply(200, reply_headers(header_length), body, version=result.version)

    def _fail(self, error: BaseException) -> None:
        with self._exchange or contextlib.nullcontext():
            failure = failure_of(error)
        self._reply(failure.status.http, error_headers(failure), error_body(failure), error=error)

    def _reply(
        self,
        status: int,
        headers: Headers,
        body: bytes,
        *,
        version: int | None = None,
        error: BaseException | None = None,
    ) -> None:
        assert self._head is not None
        keep_alive = self._head.keep_alive and not self._closing
        head = head_of(status, headers, len(body), keep_alive=keep_alive)
        self._write(status, head, body, len(body), version=version, error=error, keep_alive=keep_alive)

    def _write(
        self,
        status: int,
        head: bytes,
        body: bytes,
        size: int,
        *,
        version: int | None = None,
        error: BaseException | None = None,
        keep_alive: bool = True,
    ) -> None:
        """Write an answer that begins with `head`, `size` bytes of which and of `body` are its body."""
        exchange = self._exchange
        self._forget()
        if self._wire.closing:
            if exchange is not None:
                exchange.end(GONE)
            return
        self._wire.reply(head, body)
        if exchange is not None:
            exchange.end(int(status), version=version, error=error, bytes_out=size)
        if not keep_alive:
            self._held.clear()
            self._wire.end()
        elif self._held:
            # Not now: the answers of a whole batch are given in a row.
            asyncio.get_running_loop().call_soon(self.resume)

    def _forget(self) -> None:
        """The request under way, or the one that was being read, is over."""
        self._head = None
        if self._counted and self._lane.admission is not None:
            self._lane.admission.release(self._counted)
            self._counted = 0
        self.waiting = False
        self._request = self._served = self._pending = self._task = self._exchange = None

    # The connection's end

    def close_soon(self) -> None:
        """The server stops: answer the request that has begun to come, and nothing behind it."""
        self._closing = True

    def lost(self) -> None:
        """The client has gone: forget its request."""
        self._held.clear()
        self._body = BodyChunks()
        if self._pending is not None and self._served is not None:
            self._served.cancel(self._pending)
        if self._task is not None:
            self._task.cancel()
        if self._exchange is not None:
            self._exchange.end(GONE)
        self._forget()


def head_of(status: int, headers: Headers, length: int, *, keep_alive: bool) -> bytes:
    """The head of an answer with a body of `length` bytes, as the other lane has it."""
    lines = [STATUS_LINE[status]]
    for name, value in headers:
        lines += (name, b": ", value, b"\r\n")
    lines.append(b"content-length: %d\r\n" % length)
    lines.append(b"\r\n" if keep_alive else b"connection: close\r\n\r\n")
    return b"".join(lines)
