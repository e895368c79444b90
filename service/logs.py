"""Logs: the standard library's `logging` everywhere, rendered by structlog; set up once by an entry point."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Literal


def configure(level: str, form: Literal["console", "json"]) -> None:
    """Write everything from `level` on to standard error, for people or one JSON object per line."""
    import structlog

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if form == "json":
        last: list[structlog.typing.Processor] = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    else:
        # The prettier form of an exception shows local variables: clients' tensors have no place in a log.
        plain = structlog.dev.plain_traceback
        last = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    # What clients send that is no HTTP is answered; a line for each would let them fill the disk.
    logging.getLogger("uvicorn.error").setLevel(max(logging.ERROR, root.level))
    logging.getLogger("grpc._cython.cygrpc").addFilter(_not_gone)
    # Under overload thousands of requests a second may end in one and the same fault.
    logging.getLogger("service.api.status").addFilter(Bounded())
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    for noisy in ("jax", "asyncio", "httpx", "httpcore", "uvicorn"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


class Bounded(logging.Filter):
    """Lets `burst` records through at once and `per_s` of them a second; the next one says how many were left out."""

    def __init__(self, *, burst: int = 50, per_s: float = 5.0, monotonic: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._burst = burst
        self._per_s = per_s
        self._monotonic = monotonic
        self._room = float(burst)
        self._looked = monotonic()
        self._left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether there is room for `record`."""
        now = self._monotonic()
        self._room = min(self._room + (now - self._looked) * self._per_s, self._burst)
        self._looked = now
        if self._room < 1:
            self._left_out += 1
            return False
        self._room -= 1
        if self._left_out:
            record.msg = f"{record.getMessage()} ({self._left_out} more like it were not logged)"
            record.args = ()
            self._left_out = 0
        return True


def _not_gone(record: logging.LogRecord) -> bool:
    """Whether a record of gRPC tells of anything but a client that went away before its answer."""
    error = record.exc_info[0] if record.exc_info else None
    return error is None or error.__name__ != "ExecuteBatchError"
