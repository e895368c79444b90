"""The spans of one observed request: the server's own, and one for each stage that its batch tells the times of.

Names and attributes follow OpenTelemetry's semantic conventions for HTTP and RPC servers; ours begin with `axon.`.
Nothing of a tensor is among them, and what a client wrote is bounded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, final

from service.core.tracing import Attribute, Span, TraceContext

if TYPE_CHECKING:
    from service.api.observation import Exchange
    from service.core.statistics import BatchTimes

_KEPT_BATCHES = 512
_GRPC_NAMES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
"""gRPC's codes from 0 on."""

_GRPC_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""Of gRPC's codes those that are an error of the server, as the conventions list them."""


@final
class SpanMaker:
    """Makes the spans of requests; remembers which batches it has seen, so that their requests link to one another."""

    def __init__(self) -> None:
        # By identity, and kept, so that no other batch takes its place while it is known.
        self._batches: OrderedDict[int, tuple[BatchTimes, TraceContext]] = OrderedDict()

    def of(self, exchange: Exchange, child: Callable[[TraceContext], TraceContext], to_epoch_s: float) -> list[Span]:
        """All spans of a request that is sampled; `child` draws ids, `to_epoch_s` is added to its times."""
        own = exchange.context
        assert own is not None

        def ns(moment: float) -> int:
            return round((moment + to_epoch_s) * 1e9)

        name, attributes, failed = _http(exchange) if exchange.wire == "http" else _grpc(exchange)
        attributes |= _common(exchange)
        start, end = ns(exchange.received), ns(exchange.ended)
        spans = [Span(name, own, exchange.parent, start, end, "server", attributes, failed, exchange.error)]
        for stage, began, ended in _stages(exchange):
            context = child(own)
            links: tuple[TraceContext, ...] = ()
            details: dict[str, Attribute] = {}
            if stage == "compute" and exchange.pending is not None and exchange.pending.times is not None:
                times = exchange.pending.times
                details = {"axon.batch.rows": times.rows, "axon.batch.requests": times.requests}
                leader = self._leader(times, context)
                links = () if leader is context else (leader,)
            spans.append(Span(stage, context, own, ns(began), ns(ended), attributes=details, links=links))
        return spans

    def _leader(self, times: BatchTimes, context: TraceContext) -> TraceContext:
        """The compute span of the first request seen of a batch, to which those of the others link."""
        known = self._batches.get(id(times))
        if known is not None:
            return known[1]
        self._batches[id(times)] = (times, context)
        if len(self._batches) > _KEPT_BATCHES:
            self._batches.popitem(last=False)
        return context


def _stages(exchange: Exchange) -> Iterator[tuple[str, float, float]]:
    pending = exchange.pending
    if pending is None:
        return
    yield "decode", exchange.received, pending.arrived
    times = pending.times
    if times is None:  # it got no answer: it waited, and perhaps was computed for nothing
        yield "queue", pending.arrived, exchange.ended
        return
    yield "queue", pending.arrived, times.taken
    yield "assemble", times.taken, times.assembled
    yield "compute", times.assembled, times.computed
    yield "split", times.computed, times.split
    yield "hop", times.split, times.delivering
    yield "encode", times.delivering, exchange.ended


def _http(exchange: Exchange) -> tuple[str, dict[str, Attribute], bool]:
    attributes: dict[str, Attribute] = {
        "http.request.method": exchange.method,
        "url.scheme": "http",
        "http.response.status_code": exchange.status,
        "http.request.body.size": exchange.bytes_in,
        "http.response.body.size": exchange.bytes_out,
    }
    if exchange.route:
        attributes["http.route"] = exchange.route
    failed = exchange.status >= 500
    if failed:
        attributes["error.type"] = exchange.error or str(exchange.status)
    return f"{exchange.method} {exchange.route}".strip(), attributes, failed


def _grpc(exchange: Exchange) -> tuple[str, dict[str, Attribute], bool]:
    code = _GRPC_NAMES[exchange.status]
    attributes: dict[str, Attribute] = {
        "rpc.system.name": "grpc",
        "rpc.method": exchange.route,
        "rpc.response.status_code": code,
        "rpc.request.size": exchange.bytes_in,
        "rpc.response.size": exchange.bytes_out,
    }
    failed = code in _GRPC_FAULTS
    if failed:
        attributes["error.type"] = exchange.error or code
    return exchange.route, attributes, failed


def _common(exchange: Exchange) -> dict[str, Attribute]:
    attributes: dict[str, Attribute] = {"axon.request.id": exchange.request_id}
    if exchange.model:
        attributes["axon.model.name"] = exchange.model
    if exchange.version:
        attributes["axon.model.version"] = exchange.version
    return attributes
