"""What the wires tell about each request, and what is made of it: spans of a trace and lines of the access log.

Without an `Observer` (neither is wanted) a wire asks `observer is None` once per request and that is all. With one:

    exchange = observer.begin("http", "POST", INFER_ROUTE, headers, received=received, bytes_in=len(body))
    with exchange:                                # lines logged in here carry the request's id and its trace's
        exchange.asked(model, version, request_id)    # when the body has been read
        exchange.started(pending)                 # what `ServedModel.start` returned
    ...
    with exchange: ...                            # as often as work goes on for it, in the answer's callback too
    exchange.end(200, bytes_out=len(reply))       # once, after the answer was written

Nothing is made of it until then, and that in a thread of its own: while a model computes, a request costs no span.
"""

from __future__ import annotations

import logging
import random
import re
import threading
from collections import deque
from collections.abc import Mapping
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any, Final, Literal, final

from structlog.contextvars import bind_contextvars, bound_contextvars, reset_contextvars

from service.api.spans import SpanMaker
from service.core.ports import Clock
from service.core.tracing import TraceContext, Tracer, parse_trace_context

if TYPE_CHECKING:
    from service.core.request_queue import Pending

Wire = Literal["http", "grpc"]

INFER_ROUTE: Final = "/v2/models/{name}/infer"
VERSION_INFER_ROUTE: Final = "/v2/models/{name}/versions/{version}/infer"
GONE: Final = 499
"""Status of an HTTP request whose client went away; never on the wire."""

_ID = re.compile(r"[\x21-\x7e]{1,128}", re.ASCII)
_MAX_NAME = 128
_MAX_WAITING = 16_384
_EVERY_S = 0.1

_log = logging.getLogger(__name__)
_access = logging.getLogger("service.access")


@final
class Exchange:
    """One request and its answer.

    `route` is the route's template, or the full name of the gRPC method; `status` that of the wire. `model` and
    `version` are those asked for until `end` names those that answered. Times are seconds of the monotonic clock;
    `ended` is 0 while it goes on. `context` is None when the request belongs to no trace.
    """

    __slots__ = (
        "_entered", "_observer", "bytes_in", "bytes_out", "context", "ended", "error", "method", "model",
        "parent", "pending", "received", "request_id", "route", "status", "version", "wire",
    )  # fmt: skip

    def __init__(
        self,
        observer: Observer,
        wire: Wire,
        method: str,
        route: str,
        request_id: str,
        parent: TraceContext | None,
        context: TraceContext | None,
        received: float,
        bytes_in: int,
    ) -> None:
        self._observer = observer
        self._entered: list[tuple[Token[Exchange | None], Mapping[str, Token[Any]]]] = []
        self.wire = wire
        self.method = method
        self.route = route
        self.request_id = request_id
        self.parent = parent
        self.context = context
        self.received = received
        self.bytes_in = bytes_in
        self.bytes_out = 0
        self.model = self.version = ""
        self.pending: Pending | None = None
        self.status = 0
        self.error = ""
        self.ended = 0.0

    def __enter__(self) -> Exchange:
        """Let lines logged from here on carry the request's id and its trace's, and be the `current` one."""
        outer = _current.set(self)
        if self.context is None:
            tokens = bind_contextvars(request_id=self.request_id)
        else:
            tokens = bind_contextvars(request_id=self.request_id, trace_id=self.context.trace_id)
        self._entered.append((outer, tokens))
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the context as it was."""
        outer, tokens = self._entered.pop()
        reset_contextvars(**tokens)
        _current.reset(outer)

    def asked(self, model: str, version: str | None = None, request_id: str = "") -> None:
        """What the request's body or path says; an id in the body goes before one in the headers."""
        self.model = model[:_MAX_NAME]
        self.version = "" if version is None else version[:_MAX_NAME]
        if request_id and _ID.fullmatch(request_id):
            self.request_id = request_id
            if self._entered:
                bind_contextvars(request_id=request_id)

    def started(self, pending: Pending) -> None:
        """The request is in a model's queue; `pending` will tell when what happened to it."""
        self.pending = pending

    def end(
        self, status: int, *, version: int | None = None, error: BaseException | None = None, bytes_out: int = 0
    ) -> None:
        """The answer was written, or its client has gone: `GONE`, or gRPC's CANCELLED. Call it once.

        `status` is HTTP's or gRPC's code, `version` the one that answered, `error` why there is no other answer.
        """
        self.status = status
        self.bytes_out = bytes_out
        if version is not None:
            self.version = str(version)
        if error is not None:
            self.error = type(error).__name__
        self._observer.take(self)


_current: ContextVar[Exchange | None] = ContextVar("exchange", default=None)


def current() -> Exchange | None:
    """The observed request that is being handled; None where there is none, or nobody observes."""
    return _current.get()


def current_traceparent() -> str:
    """The header that makes spans children of the request that is being handled; '' where it is in no trace."""
    exchange = _current.get()
    return "" if exchange is None or exchange.context is None else exchange.context.traceparent


@final
class Observer:
    """Makes spans for `tracer` (None: none) and, with `access_log`, a line per request.

    Requests that are neither sampled nor logged are forgotten at once. `begin` and `Exchange` may be used on any
    thread; what ended is worked off by a thread between `start` and `close`.
    """

    def __init__(self, clock: Clock, *, tracer: Tracer | None, access_log: bool) -> None:
        self._clock = clock
        self._tracer = tracer
        self._access_log = access_log
        self._spans = SpanMaker()
        self._ended: deque[Exchange] = deque()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.dropped = 0

    def begin(
        self,
        wire: Wire,
        method: str,
        route: str,
        headers: Mapping[bytes, bytes],
        *,
        received: float | None = None,
        bytes_in: int = 0,
    ) -> Exchange:
        """A request is there; `headers` (gRPC: its metadata) by lower-case name, `received` None for now.

        Its id is that of `x-request-id` where it is 1 to 128 printable ASCII characters, else a new one.
        """
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if _ID.fullmatch(given) else f"{random.getrandbits(64):016x}"
        parent = context = None
        traceparent = headers.get(b"traceparent")
        if traceparent is not None:
            state = headers.get(b"tracestate", b"").decode("latin-1")
            parent = context = parse_trace_context(traceparent.decode("latin-1"), state)
        if self._tracer is not None:
            context = self._tracer.begin(parent)
        if received is None:
            received = self._clock.monotonic()
        return Exchange(self, wire, method, route, request_id, parent, context, received, bytes_in)

    def take(self, exchange: Exchange) -> None:
        """`exchange` ended now; what there is no room for is counted in `dropped`."""
        exchange.ended = self._clock.monotonic()
        context = exchange.context
        if self._access_log or (self._tracer is not None and context is not None and context.sampled):
            if len(self._ended) < _MAX_WAITING:
                self._ended.append(exchange)
            else:
                self.dropped += 1

    def span_counts(self) -> Mapping[str, int]:
        """Spans so far by what became of them; none without a tracer."""
        return {} if self._tracer is None else self._tracer.counts()

    def start(self) -> None:
        """Begin to work off what ended; call it once."""
        self._thread = threading.Thread(target=self._run, name="observer", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Work off what is left, and let the tracer export it, within `timeout_s`; blocks as long."""
        until = self._clock.monotonic() + timeout_s
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        if self._tracer is not None:
            self._tracer.close(max(until - self._clock.monotonic(), 0.0))

    def work_off(self) -> None:
        """Make spans and lines of what has ended; for one thread at a time."""
        to_epoch_s = self._clock.time() - self._clock.monotonic()
        while self._ended:
            exchange = self._ended.popleft()
            if self._tracer is not None and exchange.context is not None and exchange.context.sampled:
                self._tracer.record(self._spans.of(exchange, self._tracer.child, to_epoch_s))
            if self._access_log:
                _log_access(exchange)

    def _run(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stop.wait(_EVERY_S)
            try:
                self.work_off()
            except Exception:
                _log.exception("observer: unplanned failure, one request is left out")


def _log_access(exchange: Exchange) -> None:
    ids = {"request_id": exchange.request_id}
    if exchange.context is not None:
        ids["trace_id"] = exchange.context.trace_id
    with bound_contextvars(**ids, **_access_fields(exchange)):
        _access.info("request")


def _access_fields(exchange: Exchange) -> dict[str, str | int | float]:
    fields: dict[str, str | int | float] = {
        "wire": exchange.wire,
        "method": exchange.method,
        "route": exchange.route,
        "status": exchange.status,
        "duration_ms": _ms(exchange.ended - exchange.received),
        "bytes_in": exchange.bytes_in,
        "bytes_out": exchange.bytes_out,
    }
    if exchange.model:
        fields |= {"model": exchange.model, "version": exchange.version}
    if exchange.error:
        fields["error"] = exchange.error
    times = None if exchange.pending is None else exchange.pending.times
    if exchange.pending is not None and times is not None:
        fields["queue_ms"] = _ms(times.taken - exchange.pending.arrived)
        fields["compute_ms"] = _ms(times.computed - times.assembled)
    return fields


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
