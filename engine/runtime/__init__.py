"""Executables for serving: programs compiled ahead of time, and whether requests may share a batch."""

from __future__ import annotations

from engine.model.outputs import output_names
from engine.runtime.executable import Executable, Exposed, Signature, intermediates, signature
from engine.runtime.rows import mixing_reason

__all__ = ["Executable", "Exposed", "Signature", "intermediates", "mixing_reason", "output_names", "signature"]
