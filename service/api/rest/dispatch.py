"""The hot path: inference over plain ASGI, in front of the application that answers everything else.

A request costs what it must: one look at the path, one read, one decode, one hop to the model's thread, one write.
See `docs/decisions/003-http-hot-path.md` for the measurements.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, final

from service.api.admission import Admission
from service.api.body_chunks import BodyChunks
from service.api.observation import INFER_ROUTE, VERSION_INFER_ROUTE, Exchange, Observer
from service.api.rest.asgi import App, ObservedApp, Receive, Scope, Send, method_of, observed_call
from service.api.rest.errors import JSON_TYPE, Headers, error_body, error_headers
from service.api.rest.infer_wire import (
    CONTENT_ENCODING,
    HEADER_LENGTH,
    JSON_AT_ONCE,
    ONCE,
    WINDOW_BITS,
    admit,
    check_containers,
    decode,
    header_length_of,
    json_length,
    reply_headers,
    target_of,
    to_core,
)
from service.api.rest.tensors import WireRequest, encode_result
from service.api.status import failure_of
from service.core.errors import InvalidRequest, TooLarge
from service.core.inference import InferenceService
from service.core.serving import ServedModel
from service.core.types import InferRequest, InferResult

_LOOK_EVERY_S = 0.025
_INFLATED_AT_ONCE = 1024  # a thousand times as much at most, in some milliseconds; a thread does not hold up others
_DEFLATED_AT_ONCE = 65_536


class _Gone(Exception):
    """The client closed its connection before it had sent everything."""


@final
class Dispatcher:
    """An ASGI application: inference requests are answered here, everything else goes to `app`.

    `max_body_bytes` bounds a request's body, before and after decompression, `max_json_bytes` the JSON in it.
    `observer` is told of each request, `admission` asked before a body is held.
    """

    def __init__(
        self,
        app: App,
        inference: InferenceService,
        *,
        max_body_bytes: int,
        max_json_bytes: int = 2**23,
        observer: Observer | None = None,
        admission: Admission | None = None,
    ) -> None:
        self._app = app if observer is None else ObservedApp(app, observer)
        self._observer = observer
        self._inference = inference
        self._max_body_bytes = max_body_bytes
        self._max_json_bytes = max_json_bytes
        # One, however many large bodies come: threads that read JSON take turns with the event loop.
        self._reading = ThreadPoolExecutor(1, "json")
        self._admission = admission
        self._watch = _DisconnectWatch()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one ASGI connection."""
        if scope["type"] == "http":
            target = target_of(scope["path"])
            if target is not None:
                if self._observer is None:
                    return await self._answer(*target, scope, receive, send, None)
                return await self._observed(self._observer, *target, scope, receive, send)
        return await self._app(scope, receive, send)

    async def _observed(
        self, observer: Observer, model: str, version: str | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        route = INFER_ROUTE if version is None else VERSION_INFER_ROUTE
        exchange = observer.begin("http", method_of(scope), route, dict(scope["headers"]))
        exchange.asked(model, version)
        with exchange:
            await observed_call(
                exchange, send, partial(self._answer, model, version, scope, receive, exchange=exchange)
            )

    async def _answer(
        self,
        model: str,
        version: str | None,
        scope: Scope,
        receive: Receive,
        send: Send,
        exchange: Exchange | None,
    ) -> None:
        held = _Held(self._admission)
        try:
            if scope["method"] != "POST":
                return await _send(send, 405, [JSON_TYPE, (b"allow", b"POST")], b'{"error":"expected the method POST"}')
            headers = dict(scope["headers"])
            if len(headers) != len(scope["headers"]):
                _refuse_repeated(scope["headers"])
            body = await self._read(headers, receive, held)
            if exchange is not None:
                exchange.bytes_in = len(body)
            served, request = await self._decoded(model, version, headers, body)
            infer = to_core(self._inference, model, version, request)
            if exchange is not None:
                exchange.asked(model, version, request.id)
                infer.started = exchange.started
            result = await self._awaited(served, infer, receive)
            if exchange is not None:
                exchange.version = str(result.version)
            reply, text_length = encode_result(result, request)
        except _Gone:
            return None
        except Exception as error:
            if exchange is not None:
                exchange.error = type(error).__name__
            failure = failure_of(error)
            return await _send(send, failure.status.http, error_headers(failure), error_body(failure))
        finally:
            held.release()
        return await _send(send, 200, *await _compressed(headers, reply_headers(text_length), reply))

    async def _awaited(self, served: ServedModel | None, infer: InferRequest, receive: Receive) -> InferResult:
        """The model's answer; raises `_Gone` when the client went away meanwhile."""
        task = asyncio.current_task()
        assert task is not None
        gone = False
        self._watch.enter(task, receive)
        try:
            try:
                return await (
                    self._inference.infer(infer) if served is None else self._inference.infer_by(served, infer)
                )
            finally:
                gone = self._watch.leave(task)
        except asyncio.CancelledError:
            if gone:
                raise _Gone from None
            raise

    async def _decoded(
        self, model: str, version: str | None, headers: dict[bytes, bytes], body: bytes
    ) -> tuple[ServedModel | None, WireRequest]:
        """What is asked of whom; None where nobody answers for the model."""
        header_length = header_length_of(headers.get(HEADER_LENGTH))
        served = admit(self._inference, model, version, header_length, body)
        size = json_length(len(body), header_length)
        self._check_json(size)
        work = partial(decode, self._inference, model, version, header_length, body)
        if size <= JSON_AT_ONCE:
            return served, work()
        check_containers(body if header_length is None else body[:header_length])
        return served, await asyncio.get_running_loop().run_in_executor(self._reading, work)

    def _check_json(self, size: int) -> None:
        if size > self._max_json_bytes:
            raise TooLarge(
                f"body: expected at most {self._max_json_bytes} bytes of JSON, got {size}; send tensors as binary data "
                "(Inference-Header-Content-Length)"
            )

    async def _read(self, headers: dict[bytes, bytes], receive: Receive, held: _Held) -> bytes:
        """The whole body, decompressed; raises `TooLarge`, `Overloaded` before holding more than may be, `_Gone`."""
        limit = self._max_body_bytes
        declared = headers.get(b"content-length")
        if declared is not None and declared.isdigit():
            if int(declared) > limit:
                raise TooLarge(f"body: expected at most {limit} bytes, got {int(declared)}")
            if HEADER_LENGTH not in headers:
                self._check_json(int(declared))
            held.check(int(declared))
        message = await receive()
        body: bytes = message.get("body", b"")
        if message["type"] != "http.request" or message.get("more_body", False):
            body = await self._read_on(message, receive, held)
        elif len(body) > limit:
            raise TooLarge(f"body: expected at most {limit} bytes, got {len(body)}")
        else:
            held.take(len(body))
        encoding = headers.get(CONTENT_ENCODING)
        if encoding is None:
            return body
        inflate = partial(_decompress, body, encoding.strip().lower(), limit)
        inflated = inflate() if len(body) <= _INFLATED_AT_ONCE else await asyncio.to_thread(inflate)
        held.take(max(0, len(inflated) - len(body)))
        return inflated

    async def _read_on(self, message: MutableMapping[str, Any], receive: Receive, held: _Held) -> bytes:
        chunks = BodyChunks()
        while True:
            if message["type"] != "http.request":
                raise _Gone
            chunk = message.get("body", b"")
            held.take(len(chunk))
            chunks.add(chunk)
            if chunks.size > self._max_body_bytes:
                raise TooLarge(f"body: expected at most {self._max_body_bytes} bytes, got more")
            if not message.get("more_body", False):
                return chunks.joined()
            message = await receive()


@final
class _Held:
    """What one request holds of `admission`; raises `Overloaded` for more than there is room for."""

    __slots__ = ("_admission", "_size")

    def __init__(self, admission: Admission | None) -> None:
        self._admission = admission
        self._size = 0

    def check(self, size: int) -> None:
        """What is announced."""
        if self._admission is not None and not self._admission.fits(size):
            raise self._admission.body_refused()

    def take(self, size: int) -> None:
        """What has come."""
        if self._admission is not None:
            if not self._admission.hold(size):
                raise self._admission.body_refused()
            self._size += size

    def release(self) -> None:
        """The request has its answer."""
        if self._admission is not None:
            self._admission.release(self._size)


@final
class _DisconnectWatch:
    """Cancels the tasks of clients that went away while they wait for their answer.

    Listening for a disconnect takes a task of its own, which costs more than most requests do. So only those that
    have waited through two looks get one.
    """

    def __init__(self) -> None:
        self._fresh: dict[asyncio.Task[Any], Receive] = {}
        self._seen: dict[asyncio.Task[Any], Receive] = {}
        self._listeners: dict[asyncio.Task[Any], asyncio.Task[None]] = {}
        self._gone: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def enter(self, task: asyncio.Task[Any], receive: Receive) -> None:
        """`task` begins to wait; `receive` is its ASGI connection's, with the body already read."""
        self._fresh[task] = receive
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_EVERY_S, self._look)

    def leave(self, task: asyncio.Task[Any]) -> bool:
        """`task` no longer waits; returns whether it was cancelled because its client went away."""
        if self._fresh.pop(task, None) is not None or self._seen.pop(task, None) is not None:
            return False
        listener = self._listeners.pop(task, None)
        if listener is not None:
            listener.cancel()
        if task in self._gone:
            self._gone.remove(task)
            return True
        return False

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        for task, receive in self._seen.items():
            self._listeners[task] = loop.create_task(self._listen(task, receive))
        self._seen, self._fresh = self._fresh, {}
        self._timer = loop.call_later(_LOOK_EVERY_S, self._look) if self._seen else None

    async def _listen(self, task: asyncio.Task[Any], receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone.add(task)
        task.cancel()


def _refuse_repeated(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Two values of what says how to read the body: whoever stands before this server may have read it otherwise."""
    names = [name for name, _ in headers]
    for name in ONCE:
        if names.count(name) > 1:
            raise InvalidRequest(f"headers: expected {name.decode()} once, got it {names.count(name)} times")


def _decompress(body: bytes, encoding: bytes, limit: int) -> bytes:
    if encoding in (b"", b"identity"):
        return body
    bits = WINDOW_BITS.get(encoding)
    if bits is None:
        raise InvalidRequest(f"Content-Encoding: expected gzip or deflate, got {encoding[:64]!r}")
    inflater = zlib.decompressobj(bits)
    try:
        inflated = inflater.decompress(body, limit + 1)
    except zlib.error as error:
        raise InvalidRequest(f"body: expected {encoding.decode()} data: {error}") from error
    if len(inflated) > limit:
        raise TooLarge(f"body: expected at most {limit} bytes after decompression, got more")
    if not inflater.eof or inflater.unused_data:
        raise InvalidRequest(f"body: expected one complete {encoding.decode()} stream and nothing behind it")
    return inflated


async def _compressed(request_headers: dict[bytes, bytes], headers: Headers, body: bytes) -> tuple[Headers, bytes]:
    """Compress a reply for a client that accepts nothing else.

    Many clients announce gzip with every request out of habit; numbers hardly shrink and compressing costs more than
    inference, so only the explicit wish for a single encoding counts.
    """
    accepted = request_headers.get(b"accept-encoding")
    if accepted is None or (bits := WINDOW_BITS.get(accepted.strip().lower())) is None:
        return headers, body
    deflate = partial(_deflated, body, bits)
    body = deflate() if len(body) <= _DEFLATED_AT_ONCE else await asyncio.to_thread(deflate)
    return [*headers, (b"content-encoding", accepted.strip().lower())], body


def _deflated(body: bytes, bits: int) -> bytes:
    deflater = zlib.compressobj(level=1, wbits=bits)
    return deflater.compress(body) + deflater.flush()


async def _send(send: Send, status: int, headers: Headers, body: bytes) -> None:
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": int(status), "headers": headers})
    await send({"type": "http.response.body", "body": body})
