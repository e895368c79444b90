"""When requests are observed, and what an operator is told who lacks what that needs."""

from __future__ import annotations

import sys

import pytest

from service.adapters.clock import SystemClock
from service.adapters.otel_tracer import OtelTracer
from service.bootstrap.observing import build_observer, build_tracer
from service.core.errors import InvalidRequest
from service.settings import Settings
from tests.service.waiting import WAIT_S


def test_nobody_observes_unless_asked():
    """Neither spans nor an access log: the wires get no observer at all."""
    assert build_observer(Settings(), SystemClock()) is None


def test_access_log_alone_observes():
    """Without a tracer there are no spans to be counted."""
    observer = build_observer(Settings(access_log=True), SystemClock())
    assert observer is not None
    assert observer.span_counts() == {}


def test_tracing_is_opentelemetrys(monkeypatch):
    """Spans go to where its own variables say; its own switch turns them off."""
    tracer = build_tracer(Settings(tracing=True, trace_ratio=0.5))
    assert isinstance(tracer, OtelTracer)
    tracer.close(WAIT_S)
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert build_tracer(Settings(tracing=True)) is None


def test_tracing_without_its_packages_says_what_to_install(monkeypatch):
    """The server does not start, rather than be silent."""
    monkeypatch.setitem(sys.modules, "service.adapters.otel_tracer", None)
    with pytest.raises(InvalidRequest, match=r"pip install 'axon-server\[otel\]'"):
        build_tracer(Settings(tracing=True))
