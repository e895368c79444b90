"""/v1/jobs and /v1/workers: training through the queue, followed live as server-sent events."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from service.api.curve import drawn
from service.api.rest.bodies import read_json
from service.api.rest.context import Context, Use
from service.api.rest.events import event_stream
from service.api.rest.schemas import EventList, JobDetail, JobInfo, JobList, JobMetrics, WorkerDetail, WorkerList
from service.api.rest.sweep_schemas import ComparisonDetail
from service.core.jobs import Submission
from service.core.progress import MAX_POINTS, MAX_WAIT_S
from service.core.types import Job, JobState

routes = APIRouter(prefix="/v1", tags=["Jobs"])

_SPEC: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}
}
_KNOWN: dict[int | str, dict[str, Any]] = {200: {"description": "The job that an earlier call made."}}
_CURVE: dict[int | str, dict[str, Any]] = {200: {"content": {"image/svg+xml": {}}}}
WaitS = Annotated[float, Query(ge=0, le=MAX_WAIT_S)]
_EVENTS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}


@routes.post("/jobs", status_code=201, openapi_extra=_SPEC, responses=_KNOWN)
async def submit_job(
    request: Request, response: Response, use: Use, idempotency_key: Annotated[str | None, Header()] = None
) -> JobDetail:
    """Queue a training job; every problem of the request is reported at once.

    The same `Idempotency-Key` with the same request gives the same job, with 200 in place of 201.
    """
    spec = await read_json(request, limit_bytes=use.limits.max_job_spec_bytes, what="job")
    return await _answer(use, await use.jobs.submit(spec, idempotency_key=idempotency_key), response)


@routes.get("/jobs")
async def list_jobs(
    use: Use,
    state: str | None = None,
    dead: bool = False,
    parent: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> JobList:
    """Jobs, newest first; `state` keeps those in one state, `dead` those that failed because no attempt was left.

    With `parent` the jobs of a sweep, in their order.
    """
    found = await use.jobs.find(state=state, dead=dead, parent=parent, limit=limit)
    return JobList(jobs=[JobInfo.from_core(job) for job in found])


@routes.get("/jobs:compare")
async def compare_jobs(
    use: Use,
    ids: str | None = None,
    parent: str | None = None,
    metric: str | None = None,
    mode: str | None = None,
) -> ComparisonDetail:
    """Jobs side by side (`ids=a,b,c`, or those of a sweep: `parent`): where they differ, how they do, which is best.

    The best is told by `metric` (and `mode`, min or max, where its name does not tell which is better): by default by
    that of the sweep, else by the loss of the validation or of the training.
    """
    chosen = () if ids is None else tuple(ids.split(","))
    return ComparisonDetail.from_core(await use.jobs.compare(chosen, parent=parent, metric=metric, mode=mode))


@routes.get("/jobs/{job_id}")
async def get_job(job_id: str, use: Use, wait_s: WaitS = 0, state: JobState | None = None) -> JobDetail:
    """One job; with `wait_s` as soon as its state is another than `state` (or than now), or after that time."""
    job = await use.jobs.get(job_id)
    if wait_s:
        job = await use.jobs.progress.changed(job, use.stopping, known=state, wait_s=wait_s)
    return await _detail(use, job)


@routes.get("/jobs/{job_id}/metrics")
async def job_metrics(
    job_id: str, use: Use, max_points: Annotated[int, Query(ge=2, le=MAX_POINTS)] = 1000
) -> JobMetrics:
    """Loss and metrics of a job over its steps and epochs, of each at most `max_points`, evenly spaced."""
    job = await use.jobs.get(job_id)
    return JobMetrics.from_core(job, await use.jobs.progress.series(job.id), max_points)


@routes.get("/jobs/{job_id}/curve.svg", response_class=Response, responses=_CURVE)
async def job_curve(job_id: str, use: Use) -> Response:
    """The series as a picture: losses above, other metrics below, those of the validation dashed."""
    job = await use.jobs.get(job_id)
    points = await use.jobs.progress.series(job.id)
    picture = drawn(job, points)
    headers = {"cache-control": "no-store", "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
    return Response(picture, media_type="image/svg+xml", headers=headers)


@routes.post("/jobs/{job_id}:cancel")
async def cancel_job(job_id: str, use: Use) -> JobDetail:
    """Cancel a job: one that is queued at once, one that runs as soon as its worker has stopped it."""
    return await _detail(use, await use.jobs.cancel(job_id))


@routes.post("/jobs/{job_id}:requeue", status_code=201, responses=_KNOWN)
async def requeue_job(job_id: str, response: Response, use: Use) -> JobDetail:
    """Queue a new job with the request of one that failed; a repetition gives the same one, with 200."""
    return await _answer(use, await use.jobs.requeue(job_id), response)


@routes.get("/jobs/{job_id}/events", response_model=EventList, responses=_EVENTS)
async def job_events(
    job_id: str,
    use: Use,
    last_event_id: Annotated[str | None, Header()] = None,
    after: str = "0",
    wait_s: Annotated[float | None, Query(ge=0, le=MAX_WAIT_S)] = None,
) -> StreamingResponse | EventList:
    """The job's events as they come, until it has ended; `Last-Event-ID` (or `after`) resumes behind an event.

    With `wait_s` no stream: those that are there as JSON, or the first to come within that time.
    """
    job = await use.jobs.get(job_id)
    if wait_s is not None:
        after = last_event_id or after
        found = await use.jobs.progress.events(job, use.stopping, after=after, wait_s=wait_s)
        return EventList.from_core(found, after)
    events = use.jobs.events(job_id, after=last_event_id or after)
    stream = await event_stream(events, use.stopping, heartbeat_s=use.heartbeat_s)
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(stream, media_type="text/event-stream; charset=utf-8", headers=headers)


@routes.get("/workers")
async def list_workers(use: Use) -> WorkerList:
    """The workers whose heartbeat is fresh."""
    return WorkerList(workers=[WorkerDetail.from_core(worker) for worker in await use.jobs.workers()])


async def _answer(use: Context, submission: Submission, response: Response) -> JobDetail:
    if not submission.created:
        response.status_code = 200
    return await _detail(use, submission.job)


async def _detail(use: Context, job: Job) -> JobDetail:
    return JobDetail.from_core(job, await use.jobs.sweep(job))
