"""The small JSON of /v1: what goes out, and the little that comes in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from pydantic import BaseModel, ConfigDict, Field

from service.api.rest.sweep_schemas import SweepDetail
from service.core.job_spec import public
from service.core.progress import Point, thinned
from service.core.types import (
    BundleReport,
    Column,
    ColumnStatistics,
    Dataset,
    Job,
    JobEvent,
    JobState,
    Json,
    TensorSpec,
    WorkerInfo,
)
from service.core.uploads import Upload


class Tensor(BaseModel):
    """A named tensor; -1 stands for a size that each request chooses."""

    name: str
    datatype: str
    shape: list[int]

    @classmethod
    def from_core(cls, spec: TensorSpec) -> Tensor:
        return cls(name=spec.name, datatype=spec.datatype, shape=list(spec.shape))


class GraphReport(BaseModel):
    """What a valid graph is: its inputs and outputs, its size, and its summary table as text."""

    inputs: list[Tensor]
    outputs: list[Tensor]
    parameters: int
    parameter_bytes: int
    summary: str

    @classmethod
    def from_core(cls, report: BundleReport) -> GraphReport:
        return cls(
            inputs=[Tensor.from_core(spec) for spec in report.inputs],
            outputs=[Tensor.from_core(spec) for spec in report.outputs],
            parameters=report.parameters,
            parameter_bytes=report.parameter_bytes,
            summary=report.summary,
        )


class ColumnInfo(BaseModel):
    """One column; `shape` is that of one row."""

    name: str
    datatype: str
    shape: list[int]


class ClassCount(BaseModel):
    """How often a value occurs, and the text that it stands for, if any."""

    value: int
    count: int
    label: str | None


class Statistics(BaseModel):
    """What a column's values are like: `count` finite ones, `missing` others; `std` divides by `count`.

    `classes` is there for whole numbers, one per row, with at most 256 different ones.
    """

    count: int
    missing: int
    min: float | None
    max: float | None
    mean: float | None
    std: float | None
    classes: list[ClassCount] | None

    @classmethod
    def from_core(cls, found: ColumnStatistics, labels: Sequence[str]) -> Statistics:
        classes = None
        if found.classes is not None:
            classes = [
                ClassCount(value=value, count=count, label=labels[value] if 0 <= value < len(labels) else None)
                for value, count in found.classes.items()
            ]
        return cls(
            count=found.count,
            missing=found.missing,
            min=found.min,
            max=found.max,
            mean=found.mean,
            std=found.std,
            classes=classes,
        )


class ColumnDetail(ColumnInfo):
    """One column; `labels` are the texts that its numbers stand for, in order."""

    labels: list[str] | None
    statistics: Statistics | None

    @classmethod
    def from_core(cls, column: Column) -> ColumnDetail:
        known = column.statistics
        return cls(
            name=column.name,
            datatype=column.datatype,
            shape=list(column.shape),
            labels=list(column.labels) or None,
            statistics=None if known is None else Statistics.from_core(known, column.labels),
        )


class UploadRequest(BaseModel):
    """A file to come: its `length` in bytes and, if known, its `sha256`, 64 hexadecimal digits in lower case."""

    model_config = ConfigDict(extra="forbid", strict=True)

    length: int = Field(ge=1, lt=2**63)
    sha256: str | None = None


class UploadInfo(BaseModel):
    """An upload of which the first `offset` bytes are here; it goes at `expires_at` unless another byte comes."""

    id: str
    length: int
    offset: int
    sha256: str | None
    created_at: float
    expires_at: float

    @classmethod
    def from_core(cls, upload: Upload, expires_at: float) -> UploadInfo:
        return cls(
            id=upload.id,
            length=upload.length,
            offset=upload.offset,
            sha256=upload.sha256,
            created_at=upload.created_at,
            expires_at=expires_at,
        )


class DatasetInfo(BaseModel):
    """A stored data set; `sha256` is that of its content, whatever the form it was uploaded in."""

    id: str
    name: str
    rows: int
    columns: list[ColumnInfo]
    sha256: str
    size_bytes: int
    created_at: float

    @classmethod
    def from_core(cls, dataset: Dataset) -> DatasetInfo:
        columns = [ColumnInfo(name=c.name, datatype=c.datatype, shape=list(c.shape)) for c in dataset.columns]
        return cls(**_dataset_fields(dataset), columns=columns)


class DatasetDetail(DatasetInfo):
    """A stored data set with labels and statistics of its columns."""

    columns: list[ColumnDetail]  # type: ignore[assignment]

    @classmethod
    def from_core(cls, dataset: Dataset) -> DatasetDetail:
        return cls(**_dataset_fields(dataset), columns=[ColumnDetail.from_core(column) for column in dataset.columns])


class DatasetList(BaseModel):
    """All data sets, oldest first."""

    datasets: list[DatasetInfo]


class JobInfo(BaseModel):
    """A training job; times are seconds since the epoch, `result` holds model, version and metrics of a success.

    Where an alias was to be moved it says in `promoted` and `reason` whether it was, and why.

    `not_before` is when a job that crashed is tried again; `dead` one failed because no attempt was left. A sweep has
    `children`, so many jobs whose `parent` it is.
    """

    id: str
    model: str
    state: str
    tag: str
    priority: str
    owner: str
    attempt: int
    max_attempts: int
    created_at: float
    not_before: float | None
    started_at: float | None
    finished_at: float | None
    worker: str | None
    cancel_requested: bool
    result: dict[str, Json] | None
    error: str | None
    dead: bool
    requeued_from: str | None
    requeued_as: str | None
    parent: str | None
    children: int

    @classmethod
    def from_core(cls, job: Job) -> JobInfo:
        return cls(**_job_fields(job))


class JobDetail(JobInfo):
    """A job with its complete request; of a sweep also its jobs by state and the best so far."""

    spec: dict[str, Json]
    sweep: SweepDetail | None

    @classmethod
    def from_core(cls, job: Job, sweep: Mapping[str, Json] | None = None) -> JobDetail:
        detail = None if sweep is None else SweepDetail.model_validate(sweep)
        return cls(**_job_fields(job), spec=public(job.spec), sweep=detail)


class JobList(BaseModel):
    """Jobs, newest first."""

    jobs: list[JobInfo]


class DeviceDetail(BaseModel):
    """An accelerator of a worker, with its memory when the worker last looked."""

    name: str
    kind: str
    memory_total_bytes: int
    memory_free_bytes: int


class MetricsPoint(BaseModel):
    """Loss and metrics after a step, by name."""

    step: int
    epoch: int | None
    time: float
    values: dict[str, float]

    @classmethod
    def from_core(cls, point: Point) -> MetricsPoint:
        return cls(step=point.step, epoch=point.epoch, time=point.time, values=dict(point.values))


class JobMetrics(BaseModel):
    """A job's series: `steps` as they were reported, `epochs` the reports at the ends of epochs, with validation."""

    id: str
    state: str
    names: list[str]
    steps: list[MetricsPoint]
    epochs: list[MetricsPoint]

    @classmethod
    def from_core(cls, job: Job, points: Sequence[Point], max_points: int) -> JobMetrics:
        epochs = [point for point in points if point.epoch_completed]
        return cls(
            id=job.id,
            state=job.state.value,
            names=sorted({name for point in points for name in point.values}),
            steps=[MetricsPoint.from_core(point) for point in thinned(points, max_points)],
            epochs=[MetricsPoint.from_core(point) for point in thinned(epochs, max_points)],
        )


class EventDetail(BaseModel):
    """One event of a job."""

    id: str
    kind: str
    time: float
    data: dict[str, Json]


class EventList(BaseModel):
    """Events in order; `after` is where to go on, `ended` whether there will be no more behind it."""

    events: list[EventDetail]
    after: str
    ended: bool

    @classmethod
    def from_core(cls, events: Sequence[JobEvent], after: str) -> EventList:
        details = [EventDetail(id=e.id, kind=e.kind, time=e.time, data=dict(e.data)) for e in events]
        last = events[-1] if events else None
        ended = last is not None and last.kind == "state" and JobState(last.data["state"]).final
        return cls(events=details, after=after if last is None else last.id, ended=ended)


class WorkerDetail(BaseModel):
    """A worker that is alive, as it describes itself.

    `state` is idle, training, waiting (no room on its devices) or broken (they cannot be used); `problem` says why.
    """

    id: str
    tags: list[str]
    device: str
    state: str
    job: str | None
    version: str
    heartbeat_at: float
    heartbeat_age_s: float
    slots: int
    jobs: list[str]
    devices: list[DeviceDetail]
    problem: str

    @classmethod
    def from_core(cls, worker: WorkerInfo) -> WorkerDetail:
        return cls(
            id=worker.id,
            tags=list(worker.tags),
            device=worker.device,
            state=worker.state,
            job=worker.job,
            version=worker.version,
            heartbeat_at=worker.heartbeat_at,
            heartbeat_age_s=worker.heartbeat_age_s,
            slots=worker.slots,
            jobs=list(worker.jobs),
            devices=[DeviceDetail(**asdict(device)) for device in worker.devices],
            problem=worker.problem,
        )


class WorkerList(BaseModel):
    """All workers that are alive."""

    workers: list[WorkerDetail]


def _dataset_fields(dataset: Dataset) -> dict[str, Json]:
    return {
        "id": dataset.id,
        "name": dataset.name,
        "rows": dataset.rows,
        "sha256": dataset.sha256,
        "size_bytes": dataset.size_bytes,
        "created_at": dataset.created_at,
    }


def _job_fields(job: Job) -> dict[str, Json]:
    return {
        "id": job.id,
        "model": job.spec.get("model", ""),
        "state": job.state.value,
        "tag": job.tag,
        "priority": job.priority.value,
        "owner": job.owner,
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "created_at": job.created_at,
        "not_before": job.not_before,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "worker": job.worker,
        "cancel_requested": job.cancel_requested,
        "result": None if job.result is None else dict(job.result),
        "error": job.error,
        "dead": job.dead,
        "requeued_from": job.requeued_from,
        "requeued_as": job.requeued_as,
        "parent": job.parent,
        "children": job.children,
    }
