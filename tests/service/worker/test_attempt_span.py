"""A job's attempts in the trace of the request that submitted it."""

from __future__ import annotations

import pytest
from structlog.contextvars import get_contextvars

from service.core.tracing import TraceContext
from service.core.types import Lease
from service.worker.attempt_span import traced
from tests.service.adapters.job_queues import a_job
from tests.service.core.served import HeldClock
from tests.service.fake_tracer import FakeTracer

PARENT = TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", True)


def lease(clock: HeldClock, attempt: int = 1, trace: str = PARENT.traceparent) -> Lease:
    """A lease on a job that has waited for five seconds."""
    job = a_job(created_at=clock.time() - 5, attempt=attempt, trace=trace)
    return Lease(job, attempt, "token", "worker")


def test_first_attempt_is_a_span_after_the_time_in_the_queue():
    """Both are children of the request's span: five seconds of waiting, then seven of work."""
    clock, tracer = HeldClock(), FakeTracer()
    with traced(tracer, clock, lease(clock)):
        clock.now += 7
    queued, attempt = tracer.spans
    assert (queued.parent, attempt.parent) == (PARENT, PARENT)
    assert (queued.name, attempt.name, attempt.kind) == ("job queued", "job attempt", "consumer")
    assert queued.end_ns - queued.start_ns == pytest.approx(5e9, abs=1000)
    assert attempt.end_ns - attempt.start_ns == pytest.approx(7e9, abs=1000)
    assert queued.end_ns == attempt.start_ns
    assert attempt.attributes == {
        "axon.job.id": "job",
        "axon.job.attempt": 1,
        "axon.model.name": "m",
        "axon.worker.id": "worker",
    }


def test_later_attempts_are_spans_of_the_same_trace():
    """One for each, without the queue again."""
    clock, tracer = HeldClock(), FakeTracer()
    with traced(tracer, clock, lease(clock, attempt=2)):
        pass
    (attempt,) = tracer.spans
    assert (attempt.parent, attempt.attributes["axon.job.attempt"]) == (PARENT, 2)


def test_attempt_that_breaks_is_a_failed_span():
    """And the error goes on."""
    clock, tracer = HeldClock(), FakeTracer()
    with pytest.raises(RuntimeError), traced(tracer, clock, lease(clock, attempt=2)):
        raise RuntimeError
    assert tracer.spans[0].failed


@pytest.mark.parametrize("trace", ["", "nonsense"])
def test_job_of_an_untraced_request_has_a_trace_of_its_own(trace):
    """Also when what was stored is no context."""
    clock, tracer = HeldClock(), FakeTracer()
    with traced(tracer, clock, lease(clock, trace=trace)):
        pass
    assert [span.parent for span in tracer.spans] == [None]


def test_unsampled_attempt_makes_no_span():
    """The decision was the request's."""
    clock, tracer = HeldClock(), FakeTracer()
    with traced(tracer, clock, lease(clock, trace=PARENT.traceparent[:-1] + "0")):
        pass
    assert tracer.spans == []


def test_lines_about_an_attempt_carry_its_ids():
    """The job's always, the trace's where there is a tracer."""
    clock = HeldClock()
    with traced(None, clock, lease(clock)):
        assert get_contextvars() == {"job_id": "job"}
    with traced(FakeTracer(), clock, lease(clock)):
        assert get_contextvars() == {"job_id": "job", "trace_id": PARENT.trace_id}
    assert get_contextvars() == {}
