"""W3C trace context as the recommendation (https://www.w3.org/TR/trace-context/) has it; cases from its own text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.tracing import TraceContext, parse_trace_context

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("header", "sampled"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-09", True),
        (f" 00-{TRACE}-{SPAN}-01\t", True),
        (f"cc-{TRACE}-{SPAN}-01", True),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", True),
    ],
)
def test_traceparent_is_read(header, sampled):
    """Ids and the sampled flag; other flags and later versions are read as far as version 00 goes."""
    assert parse_trace_context(header) == TraceContext(TRACE, SPAN, sampled)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"cc-{TRACE}-{SPAN}-01.what",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-\u0661\u0661",
        f"00-{TRACE}-{SPAN}-01" + "-" * 5000,
    ],
)
def test_malformed_traceparent_starts_a_trace_of_its_own(header):
    """What the recommendation calls invalid is taken for no header."""
    assert parse_trace_context(header) is None


@pytest.mark.parametrize(
    ("state", "kept"),
    [
        ("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
        (" rojo=1 , ,tenant@vendor=2", "rojo=1,tenant@vendor=2"),
        ("", ""),
        ("rojo", ""),
        ("ROJO=1", ""),
        ("rojo=1,rojo=2", ""),
        ("rojo=a=b", ""),
        ("rojo=\u00fc", ""),
        (",".join(f"k{index}=1" for index in range(33)), ""),
        ("rojo=" + "1" * 3000, ""),
    ],
)
def test_tracestate_is_kept_only_when_valid(state, kept):
    """A malformed `tracestate` is dropped whole, and `traceparent` holds all the same."""
    found = parse_trace_context(f"00-{TRACE}-{SPAN}-01", state)
    assert found is not None
    assert found.state == kept


def test_traceparent_round_trips():
    """The header of a context is read as the same context."""
    context = TraceContext(TRACE, SPAN, True)
    assert parse_trace_context(context.traceparent) == context


@given(st.text(max_size=80), st.text(max_size=80))
def test_hostile_headers_never_raise(traceparent, tracestate):
    """Whatever comes is a context or none."""
    parse_trace_context(traceparent, tracestate)
    parse_trace_context(f"00-{TRACE}-{SPAN}-01", tracestate)
