"""One table from the core's errors to both wires, and the one place that words what a client gets to read."""

from __future__ import annotations

import errno
import logging
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from grpc import StatusCode

from service.api.observation import current
from service.core.errors import (
    Cancelled,
    Conflict,
    DeadlineExceeded,
    ExecutionFailed,
    InvalidModel,
    InvalidRequest,
    NotFound,
    NotReady,
    Overloaded,
    PermissionDenied,
    Problem,
    ServiceError,
    StaleLease,
    TooLarge,
    Unsupported,
    WrongOffset,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Status:
    """What an error is on either wire."""

    http: HTTPStatus
    grpc: StatusCode


INTERNAL = Status(HTTPStatus.INTERNAL_SERVER_ERROR, StatusCode.INTERNAL)

STATUS: dict[type[BaseException], Status] = {
    ServiceError: INTERNAL,
    InvalidRequest: Status(HTTPStatus.BAD_REQUEST, StatusCode.INVALID_ARGUMENT),
    InvalidModel: Status(HTTPStatus.BAD_REQUEST, StatusCode.INVALID_ARGUMENT),
    PermissionDenied: Status(HTTPStatus.FORBIDDEN, StatusCode.PERMISSION_DENIED),
    NotFound: Status(HTTPStatus.NOT_FOUND, StatusCode.NOT_FOUND),
    Conflict: Status(HTTPStatus.CONFLICT, StatusCode.ALREADY_EXISTS),
    WrongOffset: Status(HTTPStatus.CONFLICT, StatusCode.ABORTED),
    TooLarge: Status(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, StatusCode.RESOURCE_EXHAUSTED),
    Overloaded: Status(HTTPStatus.TOO_MANY_REQUESTS, StatusCode.RESOURCE_EXHAUSTED),
    Unsupported: Status(HTTPStatus.NOT_IMPLEMENTED, StatusCode.UNIMPLEMENTED),
    NotReady: Status(HTTPStatus.SERVICE_UNAVAILABLE, StatusCode.UNAVAILABLE),
    DeadlineExceeded: Status(HTTPStatus.GATEWAY_TIMEOUT, StatusCode.DEADLINE_EXCEEDED),
    # Nobody reads this one: the caller has gone. 499 would be taken for the client's own timeout by some clients.
    Cancelled: Status(HTTPStatus.BAD_REQUEST, StatusCode.CANCELLED),
    ExecutionFailed: INTERNAL,
    StaleLease: Status(HTTPStatus.CONFLICT, StatusCode.ABORTED),
}


@dataclass(frozen=True, slots=True)
class Failure:
    """What the client gets to read; `request_id` finds the log entry of an unplanned one.

    `offset` is where an upload goes on.
    """

    status: Status
    message: str
    problems: Sequence[Problem] = ()
    retry_after_s: float | None = None
    request_id: str | None = None
    offset: int | None = None

    @property
    def retry_after_seconds(self) -> int:
        """When a retry is useful in whole seconds, 1 at least: as HTTP wants it."""
        return max(1, math.ceil(self.retry_after_s or 0.0))

    @property
    def retry_after_ms(self) -> int:
        """The same in whole milliseconds, 1 at least."""
        return max(1, math.ceil((self.retry_after_s or 0.0) * 1000))


_STORAGE_RETRY_S = 10.0
_NO_STORAGE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE})
"""What a disk says that is full or gone: the operator's to mend, and the same request may succeed then."""


_FAULTS: Mapping[HTTPStatus, int] = {
    HTTPStatus.INTERNAL_SERVER_ERROR: logging.ERROR,
    HTTPStatus.SERVICE_UNAVAILABLE: logging.WARNING,
    HTTPStatus.GATEWAY_TIMEOUT: logging.WARNING,
}
"""The server's own faults, and how loud each is logged; what it does not offer (501) is none."""


def status_of(error: BaseException) -> Status:
    """The row of the nearest ancestor; an unplanned error is internal."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), INTERNAL)


def failure_of(error: BaseException) -> Failure:
    """What to tell the client. The server's own faults are logged, under the request's id where it is observed.

    An unplanned error shows no details, and has an id in any case.
    """
    if isinstance(error, ServiceError):
        problems = error.problems if isinstance(error, InvalidRequest) else ()
        offset = error.offset if isinstance(error, WrongOffset) else None
        status = status_of(error)
        request_id = _logged(error, status) if status.http in _FAULTS else None
        return Failure(status, str(error), problems, error.retry_after_s, request_id, offset)
    if isinstance(error, OSError) and error.errno in _NO_STORAGE:
        _log.error("storage: %s", error)
        away = NotReady(f"the server cannot store anything now: {error.strerror}", retry_after_s=_STORAGE_RETRY_S)
        return failure_of(away)
    request_id = _request_id() or secrets.token_hex(8)
    _log.error("request %s: unplanned error", request_id, exc_info=error)
    return Failure(
        INTERNAL, f"internal error; the server's log has it under request {request_id}", request_id=request_id
    )


def _logged(error: ServiceError, status: Status) -> str | None:
    """Log a planned fault; the request's id, where requests are observed: what it says needs none to be found."""
    request_id = _request_id()
    _log.log(_FAULTS[status.http], "request %s: %s: %s", request_id or "without an id", type(error).__name__, error)
    return request_id


def _request_id() -> str | None:
    exchange = current()
    return None if exchange is None else exchange.request_id
