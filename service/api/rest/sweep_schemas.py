"""The JSON of sweeps and comparisons under /v1."""

from __future__ import annotations

from pydantic import BaseModel

from service.core.comparison import Comparison, Row
from service.core.types import Json


class BestJob(BaseModel):
    """The best job of a sweep so far."""

    id: str
    value: float
    version: int | None


class SweepDetail(BaseModel):
    """How a sweep is getting on: its jobs by state, and the best by its metric (`mode`: min or max)."""

    metric: str
    mode: str
    children: dict[str, int]
    best: BestJob | None


class BestValue(BaseModel):
    """The best value of a metric over the ends of epochs."""

    value: float
    epoch: int | None


class ComparedJob(BaseModel):
    """One of the jobs compared.

    `spec` holds the fields that differ, `metrics` the last values, those of the published version once there is one.
    """

    id: str
    model: str
    state: str
    spec: dict[str, Json]
    metrics: dict[str, float]
    best: dict[str, BestValue]
    epoch: int | None
    epochs: int | None
    seconds: float | None
    version: int | None
    error: str | None

    @classmethod
    def from_core(cls, row: Row) -> ComparedJob:
        return cls(
            id=row.job.id,
            model=row.job.spec.get("model", ""),
            state=row.job.state.value,
            spec=dict(row.spec),
            metrics=dict(row.metrics),
            best={name: BestValue(value=best.value, epoch=best.epoch) for name, best in row.best.items()},
            epoch=row.epoch,
            epochs=row.job.spec.get("epochs"),
            seconds=row.seconds,
            version=row.version,
            error=row.job.error,
        )


class ComparisonDetail(BaseModel):
    """Jobs side by side: the paths of the `fields` that differ, and which is the `best` by `metric`."""

    fields: list[str]
    metric: str | None
    mode: str | None
    best: str | None
    jobs: list[ComparedJob]

    @classmethod
    def from_core(cls, found: Comparison) -> ComparisonDetail:
        return cls(
            fields=list(found.fields),
            metric=None if found.watched is None else found.watched.metric,
            mode=None if found.watched is None else found.watched.mode,
            best=found.best,
            jobs=[ComparedJob.from_core(row) for row in found.rows],
        )
