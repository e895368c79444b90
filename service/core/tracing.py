"""Traces as the service speaks of them: W3C trace context in, finished spans out; who exports them is an adapter's.

Formats: https://www.w3.org/TR/trace-context/ (level 1; of later versions what level 1 can read).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_KEY = r"[a-z0-9][a-z0-9_\-*/]{0,255}(?:@[a-z][a-z0-9_\-*/]{0,13})?"
_MEMBER = re.compile(rf"{_KEY}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{{0,255}}[\x21-\x2b\x2d-\x3c\x3e-\x7e]", re.ASCII)
_MAX_MEMBERS = 32
_MAX_STATE = 2048
_SAMPLED = 1
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16


@dataclass(frozen=True, slots=True)
class TraceContext:
    """Where a span stands: ids as lower-case hex, whether it is recorded, and what vendors said (`tracestate`)."""

    trace_id: str
    span_id: str
    sampled: bool
    state: str = ""

    @property
    def traceparent(self) -> str:
        """As the header spells it."""
        return f"00-{self.trace_id}-{self.span_id}-{int(self.sampled):02x}"


def parse_trace_context(traceparent: str, tracestate: str = "") -> TraceContext | None:
    """A caller's context; None for one that is malformed, which starts a trace of its own. A bad `tracestate` is "".

    Both are hostile: looked at up to a bound, and never raised for.
    """
    if len(traceparent) > _MAX_STATE:
        return None
    found = _TRACEPARENT.fullmatch(traceparent.strip(" \t"))
    if found is None:
        return None
    version, trace_id, span_id, flags, rest = found.groups()
    if version == "ff" or (version == "00" and rest) or trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & _SAMPLED), _checked_state(tracestate))


def _checked_state(state: str) -> str:
    if not state or len(state) > _MAX_STATE:
        return ""
    members = [member for each in state.split(",") if (member := each.strip(" \t"))]
    keys = {member.partition("=")[0] for member in members}
    if len(members) > _MAX_MEMBERS or len(keys) < len(members) or not all(map(_MEMBER.fullmatch, members)):
        return ""
    return ",".join(members)


Attribute = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Span:
    """One finished piece of work; times in nanoseconds since the epoch.

    `parent` is the context of whoever caused it, None for the first of a trace. `error` is a short description, ""
    where nothing failed. `links` are spans that it belongs to besides its parent.
    """

    name: str
    context: TraceContext
    parent: TraceContext | None
    start_ns: int
    end_ns: int
    kind: Literal["server", "consumer", "internal"] = "internal"
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    failed: bool = False
    error: str = ""
    links: Sequence[TraceContext] = ()


class Tracer(Protocol):
    """Where spans go. No method blocks or raises, whatever the other end does."""

    def begin(self, parent: TraceContext | None) -> TraceContext:
        """The context of a new span under `parent` (None: of a new trace), with the decision whether it is recorded."""

    def child(self, parent: TraceContext) -> TraceContext:
        """The context of a further span in a trace that is recorded."""

    def record(self, spans: Sequence[Span]) -> None:
        """Take finished spans of recorded contexts for export; what there is no room for is dropped and counted."""

    def counts(self) -> Mapping[str, int]:
        """Spans so far by what became of them: `exported`, `failed`, `dropped`."""

    def close(self, timeout_s: float) -> None:
        """Export what is left within `timeout_s`; blocks as long."""
