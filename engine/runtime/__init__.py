"""Executables for serving: programs compiled ahead of time, and whether requests may share a batch."""

from __future__ import annotations

from engine.model.open_sizes import OpenSize, check_open_sizes, combinations, opened
from engine.runtime.executable import Executable, WarmUp
from engine.runtime.rows import mixing_reason
from engine.runtime.signature import Exposed, Signature, input_signatures, intermediates, output_names, signature

__all__ = [
    "Executable",
    "Exposed",
    "OpenSize",
    "Signature",
    "WarmUp",
    "check_open_sizes",
    "combinations",
    "input_signatures",
    "intermediates",
    "mixing_reason",
    "opened",
    "output_names",
    "signature",
]
