"""One attempt at a job as a span, and its ids in every line that the supervisor logs about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from structlog.contextvars import bound_contextvars

from service.core.ports import Clock
from service.core.tracing import Attribute, Span, TraceContext, Tracer, parse_trace_context
from service.core.types import Lease


@contextmanager
def traced(tracer: Tracer | None, clock: Clock, lease: Lease) -> Iterator[None]:
    """Around an attempt. Its span goes to `tracer`, below that of the request that submitted the job.

    A span of how long the job waited goes before the first attempt's.
    """
    job = lease.job
    if tracer is None:
        with bound_contextvars(job_id=job.id):
            yield
        return
    parent = parse_trace_context(job.trace)
    context = tracer.begin(parent)
    began_ns = _ns(clock)
    with bound_contextvars(job_id=job.id, trace_id=context.trace_id):
        failed = True
        try:
            yield
            failed = False
        finally:
            if context.sampled:
                tracer.record(_spans(tracer, lease, context, parent, began_ns, _ns(clock), failed))


def _spans(
    tracer: Tracer,
    lease: Lease,
    context: TraceContext,
    parent: TraceContext | None,
    began_ns: int,
    ended_ns: int,
    failed: bool,
) -> list[Span]:
    job = lease.job
    attributes: dict[str, Attribute] = {
        "axon.job.id": job.id,
        "axon.job.attempt": lease.attempt,
        "axon.model.name": str(job.spec.get("model", "")),
        "axon.worker.id": lease.worker,
    }
    spans = [Span("job attempt", context, parent, began_ns, ended_ns, "consumer", attributes, failed)]
    if parent is not None and lease.attempt == 1:
        queued_ns = min(round(job.created_at * 1e9), began_ns)
        spans.insert(0, Span("job queued", tracer.child(context), parent, queued_ns, began_ns))
    return spans


def _ns(clock: Clock) -> int:
    return round(clock.time() * 1e9)
