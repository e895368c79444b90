"""A tracer that keeps what it gets."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from service.core.tracing import Span, TraceContext


class FakeTracer:
    """Keeps spans; samples what its parent says, and new traces as told. Ids count upwards."""

    def __init__(self, *, sampled: bool = True) -> None:
        self.spans: list[Span] = []
        self.sampled = sampled
        self._ids = itertools.count(1)

    def begin(self, parent: TraceContext | None) -> TraceContext:
        if parent is None:
            return TraceContext(f"{next(self._ids):032x}", f"{next(self._ids):016x}", self.sampled)
        return self.child(parent)

    def child(self, parent: TraceContext) -> TraceContext:
        return TraceContext(parent.trace_id, f"{next(self._ids):016x}", parent.sampled, parent.state)

    def record(self, spans: Sequence[Span]) -> None:
        self.spans += spans

    def counts(self) -> Mapping[str, int]:
        return {"exported": len(self.spans), "failed": 0, "dropped": 0}

    def close(self, timeout_s: float) -> None:
        pass
