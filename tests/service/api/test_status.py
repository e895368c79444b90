"""The one table from errors to both wires."""

from __future__ import annotations

import inspect

import pytest
from grpc import StatusCode

from service.api.status import INTERNAL, STATUS, failure_of, status_of
from service.core import errors

ERRORS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.ServiceError)]

# The Open Inference Protocol's table of errors.
PROTOCOL = {
    errors.InvalidRequest: (400, StatusCode.INVALID_ARGUMENT),
    errors.PermissionDenied: (403, StatusCode.PERMISSION_DENIED),
    errors.NotFound: (404, StatusCode.NOT_FOUND),
    errors.Conflict: (409, StatusCode.ALREADY_EXISTS),
    errors.TooLarge: (413, StatusCode.RESOURCE_EXHAUSTED),
    errors.Overloaded: (429, StatusCode.RESOURCE_EXHAUSTED),
    errors.ExecutionFailed: (500, StatusCode.INTERNAL),
    errors.Unsupported: (501, StatusCode.UNIMPLEMENTED),
    errors.NotReady: (503, StatusCode.UNAVAILABLE),
    errors.DeadlineExceeded: (504, StatusCode.DEADLINE_EXCEEDED),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_has_a_row(kind: type[errors.ServiceError]) -> None:
    """A new error class must decide what it is on both wires."""
    assert kind in STATUS


@pytest.mark.parametrize(("kind", "expected"), PROTOCOL.items())
def test_row_is_the_protocols(kind: type[errors.ServiceError], expected: tuple[int, StatusCode]) -> None:
    """HTTP and gRPC status as the protocol's table has them."""
    status = status_of(kind("x"))
    assert (status.http, status.grpc) == expected


def test_nearest_ancestor_decides() -> None:
    """A subclass without a row takes its parent's."""

    class Narrower(errors.NotFound):
        pass

    assert status_of(Narrower("x")) is STATUS[errors.NotFound]


def test_unplanned_error_shows_no_details(caplog: pytest.LogCaptureFixture) -> None:
    """The client gets a request id, the log gets the rest under it."""
    failure = failure_of(KeyError("/secret/path"))
    assert failure.status is INTERNAL
    assert "secret" not in failure.message
    assert failure.request_id is not None
    assert failure.request_id in failure.message
    assert failure.request_id in caplog.text
    assert "/secret/path" in caplog.text


def test_retry_after_comes_with_the_error() -> None:
    """Overload tells when to come back: never at once."""
    failure = failure_of(errors.Overloaded("full", retry_after_s=2.5))
    assert (failure.retry_after_s, failure.retry_after_seconds, failure.retry_after_ms) == (2.5, 3, 2500)
    failure = failure_of(errors.Overloaded("full", retry_after_s=0.0001))
    assert (failure.retry_after_seconds, failure.retry_after_ms) == (1, 1)
    assert failure_of(errors.NotFound("gone")).retry_after_s is None
