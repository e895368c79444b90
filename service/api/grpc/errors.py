"""Errors over gRPC: methods, and whoever reads messages for them, raise the core's errors; callers get a status."""

from __future__ import annotations

from typing import NoReturn

from google.protobuf.message import DecodeError

from service.api.grpc.transport.calls import Aborted
from service.api.grpc.transport.metadata import Status
from service.api.status import Failure, failure_of
from service.core.errors import InvalidRequest

MAX_DETAILS = 2000
"""Characters of a message: details travel in a header, which clients bound to 8 KiB."""


def details(failure: Failure) -> str:
    """The text for the wire."""
    return failure.message[:MAX_DETAILS]


def failure_of_call(error: BaseException) -> Failure:
    """What to tell the caller of what a method raised."""
    if isinstance(error, DecodeError):
        error = InvalidRequest(f"message: {error}")
    return failure_of(error)


def abort(failure: Failure) -> NoReturn:
    """End the call with a failure's status: raises `Aborted`."""
    raise Aborted(_status(failure))


def call_status(error: BaseException) -> Status:
    """How a call ends whose method raised `error`."""
    return _status(failure_of_call(error))


def _status(failure: Failure) -> Status:
    trailing: tuple[tuple[str, str], ...] = ()
    if failure.retry_after_s is not None:
        trailing = (
            ("retry-after", str(failure.retry_after_seconds)),
            ("grpc-retry-pushback-ms", str(failure.retry_after_ms)),  # what gRPC's own retries go by
        )
    return Status(failure.status.grpc, details(failure), trailing)
