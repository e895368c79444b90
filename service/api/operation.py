"""What the protocol's extensions for operators show, the same over both wires: logging, tracing, shared memory."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from service.core.errors import PermissionDenied, Unsupported

TRACE_SETTINGS: Mapping[str, str | list[str]] = {
    "trace_file": "",
    "trace_level": ["OFF"],
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
}
"""Tracing is off and cannot be turned on; the other values are those that clients know as defaults."""


def log_settings() -> dict[str, bool | int | str]:
    """How this process logs: to its standard error, so there is no file."""
    log = logging.getLogger("service")
    return {
        "log_file": "",
        "log_info": log.isEnabledFor(logging.INFO),
        "log_warning": log.isEnabledFor(logging.WARNING),
        "log_error": log.isEnabledFor(logging.ERROR),
        "log_verbose_level": int(log.isEnabledFor(logging.DEBUG)),
        "log_format": "ISO8601",
    }


def no_log_changes() -> PermissionDenied:
    """The error for a change of the log's settings."""
    return PermissionDenied("logging: its settings are the operator's (AXON_LOG_LEVEL); nobody may change them here")


def no_tracing() -> Unsupported:
    """The error for a change of the trace's settings."""
    return Unsupported("trace: this server does not offer the extension trace; its settings cannot be changed")


def no_shared_memory() -> Unsupported:
    """The error for a region that is to be registered."""
    return Unsupported("shared memory: this server does not offer it; send tensors in the request")


def no_generation() -> Unsupported:
    """The error for generated text."""
    return Unsupported("generate: this server does not offer the extension generate; use infer")
