"""Executables for serving: programs compiled ahead of time, and whether requests may share a batch."""

from __future__ import annotations

from engine.model.open_sizes import OpenSize, check_open_sizes, combinations, opened
from engine.runtime.executable import Executable, WarmUp
from engine.runtime.rows import mixing_reason
from engine.runtime.signature import (
    Exposed,
    Signature,
    Walks,
    has_open_batch,
    input_signatures,
    intermediates,
    intermediates_at,
    outputs_at,
    signature,
    walk_sizes,
)

__all__ = [
    "Executable",
    "Exposed",
    "OpenSize",
    "Signature",
    "Walks",
    "WarmUp",
    "check_open_sizes",
    "combinations",
    "has_open_batch",
    "input_signatures",
    "intermediates",
    "intermediates_at",
    "mixing_reason",
    "opened",
    "outputs_at",
    "signature",
    "walk_sizes",
]
