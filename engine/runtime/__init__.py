"""Executables for serving: programs compiled ahead of time, and whether requests may share a batch."""

from __future__ import annotations

from engine.runtime.executable import Executable, Signature, output_names, signature
from engine.runtime.rows import mixing_reason

__all__ = ["Executable", "Signature", "mixing_reason", "output_names", "signature"]
