"""The service's errors; `service.api.status` maps each to HTTP and gRPC.

    ServiceError
    ├── InvalidRequest        the request itself is wrong
    │   └── InvalidModel      a graph or bundle is wrong; carries every problem found
    ├── PermissionDenied      not allowed
    ├── NotFound              no such model, version, data set, job
    ├── Conflict              it exists already, or its state forbids this
    │   └── WrongOffset       an upload goes on elsewhere; carries where
    ├── TooLarge              a limit on size is exceeded
    ├── Overloaded            a queue or quota is full; retry later
    ├── Unsupported           a known request that this server does not offer
    ├── NotReady              loading, draining, or a backend is away; retry later
    ├── DeadlineExceeded      the time given to a request is over
    ├── Cancelled             the caller went away
    ├── ExecutionFailed       the model failed while computing
    └── StaleLease            a worker writes for a job it no longer owns

Messages say what, expected, got, where, and name nothing that belongs to another caller.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

_SHOWN = 60
_LONG_BITS = 128


def shown(value: object) -> str:
    """A short text of a client's value for a message; however large or deep that is, no more of it is looked at."""
    # Every piece has a character at least, so this bounds the depth too.
    text = "".join(islice(_pieces(value), _SHOWN + 1))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({type(value).__name__})"


def _pieces(value: object) -> Iterator[str]:
    """The `repr` of a value of JSON, bit by bit."""
    if isinstance(value, dict):
        yield "{"
        for index, (key, content) in enumerate(value.items()):
            yield f"{', ' if index else ''}{shown(key)}: "
            yield from _pieces(content)
        yield "}"
    elif isinstance(value, list):
        yield "["
        for index, content in enumerate(value):
            if index:
                yield ", "
            yield from _pieces(content)
        yield "]"
    elif isinstance(value, str | bytes):
        yield repr(value[: _SHOWN + 1])
    elif isinstance(value, int) and value.bit_length() > _LONG_BITS:
        yield f"an integer of {value.bit_length()} bits"  # Python does not agree to print any number of digits
    else:
        yield repr(value)


@dataclass(frozen=True, slots=True)
class Problem:
    """One defect of a request: where it is (`nodes[3].options.units`), what was expected, what came."""

    path: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.path}: expected {self.expected}, got {self.got}"


class ServiceError(Exception):
    """Base of every error the service raises on purpose."""

    retry_after_s: float | None = None


class InvalidRequest(ServiceError):
    """The request is wrong; `problems` lists each defect where there are several."""

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        self.problems = tuple(problems)
        super().__init__(message)

    @classmethod
    def from_problems(cls, what: str, problems: Sequence[Problem]) -> InvalidRequest:
        """One error for all `problems` of `what`."""
        return cls(f"{what}: " + "; ".join(map(str, problems)), problems)


class InvalidModel(InvalidRequest):
    """A graph or bundle is wrong."""


class PermissionDenied(ServiceError):
    """The caller may not do this."""


class NotFound(ServiceError):
    """There is no such thing."""


class Conflict(ServiceError):
    """It exists already, or its state forbids the request."""


class WrongOffset(Conflict):
    """An upload goes on at byte `offset`, not where the request would."""

    def __init__(self, message: str, offset: int) -> None:
        self.offset = offset
        super().__init__(message)


class TooLarge(ServiceError):
    """A limit on size is exceeded."""


class Overloaded(ServiceError):
    """A bounded queue is full."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class Unsupported(ServiceError):
    """The protocol knows this request, this server does not offer it."""


class NotReady(ServiceError):
    """Loading, draining, or a backend is away."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class DeadlineExceeded(ServiceError):
    """The time given to the request is over."""


class Cancelled(ServiceError):
    """The caller went away."""


class ExecutionFailed(ServiceError):
    """The model failed while computing."""


class StaleLease(ServiceError):
    """A worker writes for a job whose lease it has lost."""
