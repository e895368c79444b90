"""What the job queue keeps in Redis, as the service's values and back; and the errors of a server that refuses."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, Final, NamedTuple

from redis.exceptions import ClusterDownError, OutOfMemoryError, ReadOnlyError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.core.errors import Conflict, NotFound, NotReady, Overloaded, ServiceError, StaleLease
from service.core.limits import MAX_REASON_CHARS
from service.core.types import DeviceInfo, Job, JobEvent, JobState, Priority, WorkerInfo

_REFUSALS: Final[Mapping[str, type[ServiceError]]] = {
    "STALE": StaleLease,
    "NOJOB": NotFound,
    "CONFLICT": Conflict,
    "FULL": Overloaded,
}
_AWAY: Final = (
    RedisConnectionError, RedisTimeoutError, ReadOnlyError, OutOfMemoryError, ClusterDownError, OSError,
)  # fmt: skip


class Place(NamedTuple):
    """What the keys of a job are made of."""

    id: str
    tag: str
    priority: Priority
    children: int = 0


class Taken(NamedTuple):
    """What `take` found: a job and its entry or neither, where the streams end, and who is due now or in so long."""

    job: Place | None
    entry: str
    ends: dict[str, str]
    due: list[Place]
    next_due_ms: int | None


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn the scripts' refusals and an absent server into the service's errors."""
    try:
        yield
    except _AWAY as error:
        raise NotReady(f"the job queue's server is away: {error}", retry_after_s=1.0) from error
    except ResponseError as error:
        code, _, text = str(error).partition(" ")
        if code in _REFUSALS:
            raise _REFUSALS[code](text) from None
        if code in ("LOADING", "MISCONF", "MASTERDOWN", "NOREPLICAS", "TRYAGAIN"):
            raise NotReady(f"the job queue's server is not ready: {error}", retry_after_s=1.0) from error
        raise


def job_of(job_id: str, found: Any) -> Job:
    """A job out of its hash: a mapping, or a script's flat list."""
    one: Mapping[str, str] = found if isinstance(found, dict) else dict(zip(found[::2], found[1::2], strict=True))
    reserved = one.get("reserved_version")
    return Job(
        id=job_id,
        spec=json.loads(one["spec"]),
        state=JobState(one["state"]),
        tag=one["tag"],
        attempt=int(one["attempt"]),
        max_attempts=int(one["max_attempts"]),
        created_at=float(one["created_at"]),
        started_at=float(one["started_at"]) if "started_at" in one else None,
        finished_at=float(one["finished_at"]) if "finished_at" in one else None,
        worker=one.get("worker"),
        cancel_requested="cancel_requested" in one,
        checkpoint=json.loads(one["checkpoint"]) if "checkpoint" in one else None,
        reserved=None if reserved is None else (one["reserved_model"], int(reserved)),
        result=json.loads(one["result"]) if "result" in one else None,
        error=one.get("error"),
        released=int(one["released"]),
        priority=Priority(one["priority"]),
        owner=one["owner"],
        not_before=float(one["not_before"]) if "not_before" in one else None,
        idempotency_key=one["idempotency_key"],
        dead="dead" in one,
        requeued_from=one.get("requeued_from"),
        requeued_as=one.get("requeued_as"),
        ttl_s=int(one["ttl_ms"]) / 1000 if "ttl_ms" in one else None,
        ran_s=int(one.get("ran_ms", 0)) / 1000,
        parent=one.get("parent"),
        children=int(one.get("children", 0)),
        trace=one.get("trace", ""),
    )


def fields_of(job: Job) -> list[str]:
    """The fields of a new job and their values in turn."""
    found = {
        "spec": json.dumps(job.spec),
        "tag": job.tag,
        "max_attempts": str(job.max_attempts),
        "priority": str(job.priority),
        "owner": job.owner,
        "idempotency_key": job.idempotency_key,
    }
    if job.ttl_s is not None:
        found["ttl_ms"] = str(int(job.ttl_s * 1000))
    if job.requeued_from is not None:
        found["requeued_from"] = job.requeued_from
    if job.parent is not None:
        found["parent"] = job.parent
    if job.trace:
        found["trace"] = job.trace
    if job.children:
        found |= {"children": str(job.children), "open": str(job.children)}
    return [part for pair in found.items() for part in pair]


def place_of(job: Job) -> Place:
    """Where a job's keys are."""
    return Place(job.id, job.tag, job.priority, job.children)


def worker_of(info: Mapping[str, Any]) -> WorkerInfo:
    """A worker's heartbeat."""
    devices = tuple(DeviceInfo(**_known(DeviceInfo, device)) for device in info["devices"])
    lists = {"tags": tuple(info["tags"]), "jobs": tuple(info["jobs"]), "devices": devices}
    return WorkerInfo(**_known(WorkerInfo, info) | lists)


def _known(kind: type[DeviceInfo] | type[WorkerInfo], value: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that there are here: a later worker may tell more."""
    names = {each.name for each in fields(kind)}
    return {name: content for name, content in value.items() if name in names}


def event_of(event_id: str, fields: Mapping[str, str]) -> JobEvent:
    """An entry of a job's stream."""
    return JobEvent(event_id, fields["kind"], int(event_id.partition("-")[0]) / 1000, json.loads(fields["data"]))


def dumps(value: Any) -> str:
    """JSON that every reader takes."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def cut(text: str) -> str:
    """What UTF-8 can carry, up to a bound."""
    return text[:MAX_REASON_CHARS].encode("utf-8", "replace").decode()


def no_job(job_id: str) -> NotFound:
    """The error of an unknown id."""
    return NotFound(f"there is no job {job_id!r}")
