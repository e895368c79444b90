"""Models on the wire: graph JSON, safetensors and the bundle that joins them; validation and limits."""

from __future__ import annotations

from engine.bundle.bundle import (
    Bundle,
    check_marks,
    check_size,
    marked,
    read,
    read_json,
    read_params,
    try_programs,
    write,
)
from engine.bundle.functions import Function, FunctionProgram, Template
from engine.bundle.graph_reader import from_json as graph_from_json
from engine.bundle.graph_writer import to_json as graph_to_json
from engine.bundle.limits import DEFAULT_LIMITS, Limits
from engine.bundle.programs import export_programs
from engine.bundle.schema import graph_schema

__all__ = [
    "DEFAULT_LIMITS",
    "Bundle",
    "Function",
    "FunctionProgram",
    "Limits",
    "Template",
    "check_marks",
    "check_size",
    "export_programs",
    "graph_from_json",
    "graph_schema",
    "graph_to_json",
    "marked",
    "read",
    "read_json",
    "read_params",
    "try_programs",
    "write",
]
