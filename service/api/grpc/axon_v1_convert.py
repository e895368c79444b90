"""The core's values as messages of `axon.v1`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from service.api.grpc.generated import axon_v1_pb2 as pb
from service.core.comparison import Comparison, Row
from service.core.desired import heaviest, split, versions_of
from service.core.errors import InvalidRequest
from service.core.job_spec import public
from service.core.progress import Point, thinned
from service.core.types import (
    BundleReport,
    Column,
    Dataset,
    Job,
    JobEvent,
    Json,
    ModelState,
    Replica,
    StoredVersion,
    Target,
    TensorSpec,
    VersionStatus,
    WorkerInfo,
)
from service.core.uploads import Upload


def tensors(specs: Iterable[TensorSpec]) -> list[pb.Tensor]:
    """Named tensors."""
    return [pb.Tensor(name=spec.name, datatype=spec.datatype, shape=spec.shape) for spec in specs]


def graph_report(report: BundleReport) -> pb.GraphReport:
    """What a valid graph is."""
    return pb.GraphReport(
        inputs=tensors(report.inputs),
        outputs=tensors(report.outputs),
        parameters=report.parameters,
        parameter_bytes=report.parameter_bytes,
        summary=report.summary,
    )


def version(stored: StoredVersion, status: VersionStatus, aliases: Mapping[str, Target]) -> pb.Version:
    """A version with its state and the aliases in effect here."""
    return pb.Version(
        name=stored.name,
        version=stored.version,
        state=status.state.value,
        reason=status.reason,
        aliases=sorted(alias for alias, at in aliases.items() if stored.version in versions_of(at)),
        created_at=stored.created_at,
        manifest_json=_dumps(stored.manifest),
    )


def model(
    state: ModelState, versions: Iterable[pb.Version], replicas: Iterable[Replica], degraded: Iterable[str]
) -> pb.Model:
    """A model: what is wanted, what is here, how far every process is."""
    return pb.Model(
        name=state.name,
        aliases={alias: heaviest(at) for alias, at in state.aliases.items()},
        loaded=sorted(state.loaded),
        versions=versions,
        targets={alias: target(at) for alias, at in state.aliases.items()},
        previous={alias: target(at) for alias, at in state.previous.items()},
        pinned=sorted(state.pinned),
        generation=state.generation,
        replicas=[_replica(replica, state) for replica in replicas if state.name in replica.models],
        degraded=degraded,
    )


def target(at: Target) -> pb.Target:
    """Where an alias points."""
    return pb.Target(version=heaviest(at), weights={} if isinstance(at, int) else dict(at))


def target_from(version: int, weights: Mapping[int, float]) -> Target:
    """Where an alias shall point; raises `InvalidRequest`."""
    if weights and version:
        raise InvalidRequest("alias: expected either version or weights, got both")
    if not weights and version < 1:
        raise InvalidRequest(f"version: expected a whole number of 1 or more, or weights, got {version}")
    return split(weights) if weights else version


def _replica(replica: Replica, state: ModelState) -> pb.Replica:
    model = replica.models[state.name]
    return pb.Replica(
        id=replica.id,
        age_s=replica.age_s,
        generation=model.generation,
        converged=model.generation == state.generation,
        versions=[
            pb.ReplicaVersion(version=status.version, state=status.state.value, reason=status.reason)
            for status in model.versions
        ],
        targets={alias: target(at) for alias, at in model.aliases.items()},
    )


def dataset(found: Dataset, *, detail: bool) -> pb.Dataset:
    """A data set with its columns; their labels and statistics only where it was asked for alone."""
    return pb.Dataset(
        id=found.id,
        name=found.name,
        rows=found.rows,
        columns=[_column(column, detail=detail) for column in found.columns],
        sha256=found.sha256,
        size_bytes=found.size_bytes,
        created_at=found.created_at,
    )


def _column(found: Column, *, detail: bool) -> pb.Column:
    column = pb.Column(name=found.name, datatype=found.datatype, shape=found.shape)
    known = found.statistics
    if detail and known is not None:
        classes = [pb.ClassCount(value=value, count=count) for value, count in (known.classes or {}).items()]
        numbers = {"min": known.min, "max": known.max, "mean": known.mean, "std": known.std}
        statistics = pb.Statistics(count=known.count, missing=known.missing, classes=classes, **numbers)
        column.statistics.CopyFrom(statistics)
    if detail:
        column.labels.extend(found.labels)
    return column


def job(found: Job, *, with_spec: bool, sweep: Mapping[str, Json] | None = None) -> pb.Job:
    """A job; its request, and how a sweep is getting on, only where it was asked for alone."""
    return pb.Job(
        id=found.id,
        model=str(found.spec.get("model", "")),
        state=found.state.value,
        tag=found.tag,
        attempt=found.attempt,
        max_attempts=found.max_attempts,
        created_at=found.created_at,
        started_at=found.started_at,
        finished_at=found.finished_at,
        worker=found.worker or "",
        cancel_requested=found.cancel_requested,
        result_json="" if found.result is None else _dumps(found.result),
        error=found.error or "",
        spec_json=_dumps(public(found.spec)) if with_spec else "",
        priority=found.priority.value,
        owner=found.owner,
        not_before=found.not_before,
        dead=found.dead,
        requeued_from=found.requeued_from or "",
        requeued_as=found.requeued_as or "",
        parent=found.parent or "",
        children=found.children,
        sweep_json="" if sweep is None else _dumps(sweep),
    )


def comparison(found: Comparison) -> pb.JobComparison:
    """Jobs side by side."""
    return pb.JobComparison(
        fields=found.fields,
        metric="" if found.watched is None else found.watched.metric,
        mode="" if found.watched is None else found.watched.mode,
        best=found.best or "",
        jobs=map(_row, found.rows),
    )


def _row(row: Row) -> pb.ComparedJob:
    return pb.ComparedJob(
        id=row.job.id,
        model=str(row.job.spec.get("model", "")),
        state=row.job.state.value,
        spec_json=_dumps(row.spec),
        metrics=row.metrics,
        best={name: pb.BestValue(value=best.value, epoch=best.epoch) for name, best in row.best.items()},
        epoch=row.epoch,
        epochs=row.job.spec.get("epochs"),
        seconds=row.seconds,
        version=row.version,
        error=row.job.error or "",
    )


def event(found: JobEvent) -> pb.JobEvent:
    """One entry of a job's stream."""
    return pb.JobEvent(id=found.id, kind=found.kind, time=found.time, data_json=_dumps(found.data))


def metrics(found: Job, points: Sequence[Point], most: int) -> pb.JobMetrics:
    """A job's series, of each at most so many points."""
    return pb.JobMetrics(
        id=found.id,
        state=found.state.value,
        names=sorted({name for point in points for name in point.values}),
        steps=[_point(point) for point in thinned(points, most)],
        epochs=[_point(point) for point in thinned([point for point in points if point.epoch_completed], most)],
    )


def _point(found: Point) -> pb.MetricsPoint:
    return pb.MetricsPoint(step=found.step, epoch=found.epoch, time=found.time, values=found.values)


def upload(found: Upload, expires_at: float) -> pb.Upload:
    """An upload."""
    return pb.Upload(
        id=found.id,
        length=found.length,
        offset=found.offset,
        sha256=found.sha256 or "",
        created_at=found.created_at,
        expires_at=expires_at,
    )


def worker(found: WorkerInfo) -> pb.Worker:
    """A worker."""
    return pb.Worker(
        id=found.id,
        tags=found.tags,
        device=found.device,
        state=found.state,
        job=found.job or "",
        version=found.version,
        heartbeat_at=found.heartbeat_at,
        heartbeat_age_s=found.heartbeat_age_s,
        slots=found.slots,
        jobs=found.jobs,
        devices=[pb.Device(**asdict(device)) for device in found.devices],
        problem=found.problem,
    )


def _dumps(value: Mapping[str, Json]) -> str:
    return json.dumps(dict(value))
