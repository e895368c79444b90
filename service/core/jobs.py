"""Training jobs: their state machine, whether a spec fits its data set, and the operations both wires offer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from service.core.comparison import Comparison, JobComparison
from service.core.datasets import holding
from service.core.datatypes import DATATYPES
from service.core.errors import Conflict, InvalidModel, InvalidRequest, NotFound, Problem, TooLarge, shown
from service.core.idempotency import check_key
from service.core.job_spec import JobSpec, OnSuccess, parse_spec, stored_spec
from service.core.limits import Limits
from service.core.names import check_name
from service.core.ports import Clock, DatasetStore, Engine, JobQueue
from service.core.preprocess_spec import column_tensor
from service.core.progress import JobProgress
from service.core.serving_spec import above
from service.core.starts import Starts, stored_report
from service.core.sweep_submission import Submitting, asked_again, is_sweep, sweep_of
from service.core.sweeps import summary
from service.core.types import BundleReport, Column, Dataset, Job, JobEvent, JobState, Json, TensorSpec, WorkerInfo
from service.core.webhook_delivery import WebhookStore
from service.core.webhooks import allowed

__all__ = [
    "MOVES",
    "JobService",
    "JobSpec",
    "OnSuccess",
    "Submission",
    "check_move",
    "input_columns",
    "parse_spec",
    "stored_spec",
]

MOVES: Final[Mapping[JobState, frozenset[JobState]]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED}),
    JobState.RUNNING: frozenset({JobState.QUEUED, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}
"""What may follow what; a final state never changes."""

MAX_LISTED = 1000


def check_move(job_id: str, old: JobState, new: JobState) -> None:
    """Raise `Conflict` when a job must not go from `old` to `new`."""
    if new not in MOVES[old]:
        legal = ", ".join(sorted(MOVES[old])) or "nothing, the state is final"
        raise Conflict(f"job {job_id}: expected a move from {old} to {legal}; got {new}")


def input_columns(spec: JobSpec, names: list[str]) -> dict[str, str]:
    """Column of each of the graph's inputs `names`; raises `InvalidRequest` when `spec.inputs` does not cover them."""
    if spec.inputs is None:
        if len(names) == 1:
            return {names[0]: names[0]}
        problem = Problem("inputs", f"a column for each of {', '.join(names)}", "nothing")
        raise InvalidRequest.from_problems("job spec", [problem])
    problems = [
        Problem(f"inputs.{name}", "a column for this input", "nothing") for name in names if name not in spec.inputs
    ]
    for name in spec.inputs:
        if name not in names:
            problems.append(Problem(f"inputs.{name}", f"an input of the graph: {', '.join(names)}", "an unknown input"))
    if problems:
        raise InvalidRequest.from_problems("job spec", problems)
    return dict(spec.inputs)


class Submission(NamedTuple):
    """A submitted job, and whether this call made it: an idempotency key may lead to an earlier one."""

    job: Job
    created: bool


class JobService:
    """Training jobs as clients see them; REST and gRPC call nothing else."""

    def __init__(
        self,
        queue: JobQueue,
        datasets: DatasetStore,
        engine: Engine,
        clock: Clock,
        limits: Limits,
        webhooks: WebhookStore | None = None,
        *,
        starts: Starts,
        trace: Callable[[], str] = str,
    ) -> None:
        """`webhooks` is needed where the limits name hosts for them; `trace` gives a request's `traceparent` or ''."""
        self._trace = trace
        self._starts = starts
        self._webhooks = webhooks
        self._queue = queue
        self._datasets = datasets
        self._engine = engine
        self._clock = clock
        self._limits = limits
        self._comparison = JobComparison(queue, clock)
        self.progress = JobProgress(queue, clock)

    async def submit(self, spec: Json, *, idempotency_key: str | None = None) -> Submission:
        """Check a job's JSON against its graph and its data set, then queue it, or find the job of the same key.

        The key may also be the field `idempotency_key` of the JSON. Raises `InvalidRequest` (or `InvalidModel`) with
        every problem, `TooLarge`, `Conflict` for a key used with another request, `Overloaded`, `NotReady`.
        """
        spec, key = _split_key(spec, idempotency_key)
        job, *children = await self._jobs(spec, key)
        await self._announce(job)
        async with self._dataset_of(job):
            stored = await self._queue.submit(job, children)
        return Submission(stored, created=stored.id == job.id)

    async def requeue(self, job_id: str) -> Submission:
        """Queue a new job, or sweep, with a failed one's request, once.

        Raises `NotFound`, `Conflict`, and as `submit` does.
        """
        old = await self.get(job_id)
        if old.requeued_as is not None:
            return Submission(await self._queue.get(old.requeued_as), created=False)
        if old.state is not JobState.FAILED:
            raise Conflict(f"job {job_id}: expected a failed one to queue it again, got {old.state}")
        if is_sweep(old.spec):
            job, *children = await self._jobs(asked_again(old.spec), "")
        else:
            job, children = await self._checked_job(stored_spec(old.spec), ""), []
        job = replace(job, requeued_from=old.id)
        await self._announce(job)
        async with self._dataset_of(job):
            stored = await self._queue.requeue(old.id, job, children)
        return Submission(stored, created=stored.id == job.id)

    @contextlib.asynccontextmanager
    async def _dataset_of(self, job: Job) -> AsyncIterator[None]:
        """Hold a job's data sets, so that they are there when the job has been queued; raises `InvalidRequest`."""
        async with contextlib.AsyncExitStack() as held:
            for name in ("dataset", "validation_dataset"):
                if (dataset_id := job.spec[name]) is None:
                    continue
                try:
                    await held.enter_async_context(holding(self._datasets, dataset_id))
                except NotFound:
                    raise _no_dataset(dataset_id, name) from None
            yield

    async def _announce(self, job: Job) -> None:
        """Have its webhooks sent, before it is stored: a crash in between must not lose them."""
        if job.spec["webhook"] is not None and self._webhooks is not None:
            await self._webhooks.add(job.id)

    async def _jobs(self, spec: Json, key: str) -> list[Job]:
        """The job of a request, and behind one that is a sweep its jobs."""
        if is_sweep(spec):
            how = Submitting(self._resolved, self._check, self._queued)
            return await sweep_of(spec, key, how, max_spec_bytes=self._limits.max_job_spec_bytes)
        return [await self._checked_job(await self._resolved(parse_spec(spec)), key)]

    async def _resolved(self, parsed: JobSpec) -> JobSpec:
        """A request with its start found, and the steps of the job whose checkpoint that is unless it has its own."""
        if parsed.start is None:
            return parsed
        start = await self._starts.resolve(parsed.start)
        if start.checkpoint is None or start.job is None or parsed.preprocess is not None:
            return replace(parsed, start=start)
        before = stored_spec((await self._queue.get(start.job)).spec)
        scaled = parsed.standardize_target or before.standardize_target
        return replace(parsed, start=start, preprocess=before.preprocess, standardize_target=scaled)

    async def _checked_job(self, parsed: JobSpec, key: str) -> Job:
        job, _ = self._queued(parsed, key)
        await asyncio.to_thread(self._check, parsed)
        return job

    def _queued(self, parsed: JobSpec, key: str) -> tuple[Job, int]:
        """A new job, and the bytes of its spec."""
        plain = parsed.to_json()
        size = len(json.dumps(plain))
        if size > self._limits.max_job_spec_bytes:
            raise TooLarge(f"job spec: expected at most {self._limits.max_job_spec_bytes} bytes, got {size}")
        job = Job(
            id=uuid.uuid4().hex,
            spec=plain,
            state=JobState.QUEUED,
            tag=parsed.queue_tag,
            attempt=0,
            max_attempts=parsed.max_attempts,
            created_at=self._clock.time(),
            priority=parsed.priority,
            owner=parsed.owner,
            idempotency_key=key,
            ttl_s=parsed.ttl_s,
            trace=self._trace(),
        )
        return job, size

    async def get(self, job_id: str) -> Job:
        """One job; raises `NotFound`."""
        return await self._queue.get(_known(job_id))

    async def find(
        self, *, state: str | None = None, dead: bool = False, parent: str | None = None, limit: int = 100
    ) -> list[Job]:
        """Jobs, newest first; with `dead` only those whose attempts were used up; with `parent` a sweep's in order.

        Raises `InvalidRequest` on an unknown state or a limit outside 1 to 1000, `NotFound` on an unknown parent.
        """
        if state is not None and state not in set(JobState):
            raise InvalidRequest(f"state: expected one of {', '.join(JobState)}, got {state[:60]!r}")
        if not 1 <= limit <= MAX_LISTED:
            raise InvalidRequest(f"limit: expected 1 to {MAX_LISTED}, got {limit}")
        if parent is not None:
            children = await self._queue.children(_known(parent))
            return [job for job in children if state in (None, job.state) and (job.dead or not dead)][:limit]
        return await self._queue.find(state=None if state is None else JobState(state), dead=dead, limit=limit)

    async def sweep(self, job: Job) -> Mapping[str, Json] | None:
        """How a sweep is getting on: its jobs by state and the best so far; None of another job."""
        return summary(job, await self._queue.children(job.id)) if job.children else None

    async def compare(
        self, ids: Sequence[str], *, parent: str | None = None, metric: str | None = None, mode: str | None = None
    ) -> Comparison:
        """Jobs side by side: those named, or a sweep's; raises `NotFound`, `InvalidRequest`."""
        sweep = None if parent is None else await self.get(parent)
        return await self._comparison.compare([*map(_known, ids)], parent=sweep, metric=metric, mode=mode)

    async def cancel(self, job_id: str) -> Job:
        """Cancel a queued job, or ask for a running one's end; raises `NotFound`, `Conflict`."""
        return await self._queue.cancel(_known(job_id))

    def events(self, job_id: str, *, after: str = "0") -> AsyncIterator[JobEvent]:
        """A job's events after an id, then as they come, until it has ended; raises `NotFound`, `InvalidRequest`."""
        return self._queue.events(_known(job_id), after=after)

    async def workers(self) -> list[WorkerInfo]:
        """The workers that are alive."""
        now = self._clock.time()
        workers = await self._queue.workers()
        return [replace(worker, heartbeat_age_s=round(max(now - worker.heartbeat_at, 0.0), 3)) for worker in workers]

    def _check(self, spec: JobSpec) -> None:
        """Blocking: the graph through the engine, then the data set's columns against it."""
        dataset, validation = self._dataset("dataset", spec.dataset), None
        if spec.validation_dataset is not None:
            validation = self._dataset("validation_dataset", spec.validation_dataset)
        source, report = self._source(spec)
        problems = self._engine.check_training(
            source,
            loss=spec.loss.to_json(),
            optimizer=spec.stepping,
            metrics=spec.metrics,
            precision=spec.precision,
            loss_scale=None if spec.loss_scale is None else spec.loss_scale.to_json(),
            serving=spec.serving,
            marks=(*(() if spec.start is None else spec.start.marks), (spec.freeze, spec.unfreeze)),
            reduces=spec.reduce_on_plateau is not None,
            preprocess={name: step.to_json() for name, step in (spec.preprocess or {}).items()},
        )
        problems += above(spec.serving or {}, self._limits.serving)
        if spec.webhook is not None:
            problems += _not_allowed(spec.webhook.url, self._limits.webhook_hosts)
        problems += _misfits(spec, report, dataset)
        if validation is not None:
            known = {problem.path for problem in problems}
            found = [problem for problem in _column_misfits(spec, report, validation) if problem.path not in known]
            problems += [Problem(f"validation_dataset: {p.path}", p.expected, p.got) for p in found]
        if problems:
            raise InvalidRequest.from_problems("job spec", problems)

    def _dataset(self, path: str, dataset_id: str) -> Dataset:
        try:
            return self._datasets.get(dataset_id)
        except NotFound:
            raise _no_dataset(dataset_id, path) from None

    def _source(self, spec: JobSpec) -> tuple[bytes | Path, BundleReport]:
        """The graph's JSON or the bundle that a job trains, and what the engine says of it."""
        stored = None if spec.start is None else self._starts.version(spec.start)
        if stored is not None:
            return self._starts.bundle(stored), stored_report(stored)
        where = "graph" if spec.start is None else "start.graph"
        graph = json.dumps(spec.graph if spec.start is None else spec.start.graph).encode()
        try:
            return graph, self._engine.check_graph(graph)
        except InvalidModel as error:
            problems = [Problem(f"{where}.{p.path}", p.expected, p.got) for p in error.problems]
            if not problems:
                raise
            raise InvalidModel.from_problems("job spec", problems) from error


def _no_dataset(dataset_id: str, path: str = "dataset") -> InvalidRequest:
    return InvalidRequest.from_problems("job spec", [Problem(path, "the id of a stored data set", repr(dataset_id))])


def _not_allowed(url: str, hosts: Sequence[str]) -> list[Problem]:
    try:
        allowed(url, hosts)
    except InvalidRequest:
        expected = f"a URL of one of {', '.join(hosts)}" if hosts else "no webhook, as this server sends none"
        return [Problem("webhook.url", expected, shown(url))]
    return []


def _split_key(spec: Json, header: str | None) -> tuple[Json, str]:
    """A request without its idempotency key, and the key: '' when there is none."""
    if not isinstance(spec, dict) or spec.get("idempotency_key") is None:
        return spec, "" if header is None else check_key(header)
    key = check_key(spec["idempotency_key"])
    if header not in (None, key):
        raise InvalidRequest("idempotency key: expected the same one in the header and in the request")
    return {name: value for name, value in spec.items() if name != "idempotency_key"}, key


def _known(job_id: str) -> str:
    """A job id that may become part of a key; an impossible one does not exist."""
    try:
        return check_name(job_id, "job")
    except InvalidRequest:
        raise NotFound(f"there is no job {job_id[:80]!r}") from None


def _misfits(spec: JobSpec, report: BundleReport, dataset: Dataset) -> list[Problem]:
    """Where the data set does not fit the graph, or is too small."""
    problems = _column_misfits(spec, report, dataset)
    held_out = round(dataset.rows * spec.validation_fraction)
    if dataset.rows - held_out < 1 or (held_out < 1 and spec.validation_fraction > 0):
        expected = "at least one row to train on, and one to validate on where validation_fraction is above 0"
        problems.append(Problem("dataset", expected, f"{dataset.rows} rows"))
    return problems


def _column_misfits(spec: JobSpec, report: BundleReport, dataset: Dataset) -> list[Problem]:
    """Where the data set's columns do not fit the graph."""
    columns = {column.name: column for column in dataset.columns}
    own, steps = report.own_inputs or report.inputs, spec.preprocess
    inputs = {t.name: column_tensor(t, sent, steps) for t, sent in zip(own, report.inputs, strict=True)}
    outputs = report.own_outputs or report.outputs
    problems: list[Problem] = []
    try:
        for name, source in input_columns(spec, list(inputs)).items():
            problems += _misfit(f"inputs.{name}", source, inputs[name], columns)
    except InvalidRequest as error:
        problems += error.problems
    if len(outputs) != 1:
        problems.append(Problem("graph.outputs", "one output, to be compared with the target", str(len(outputs))))
    elif spec.target not in columns:
        problems.append(_no_column("target", spec.target, columns))
    else:
        problems += _target_misfit(spec, columns[spec.target], outputs[0])
    return problems


def _no_column(path: str, name: str, columns: Mapping[str, Column]) -> Problem:
    return Problem(path, f"a column of the data set: {', '.join(sorted(columns))}", repr(name))


def _misfit(path: str, source: str, tensor: TensorSpec, columns: Mapping[str, Column]) -> list[Problem]:
    if source not in columns:
        return [_no_column(path, source, columns)]
    column = columns[source]
    problems = []
    if not _fits(column.shape, tensor.shape[1:]):
        expected = f"a column with rows of shape {_spelled(tensor.shape[1:])}"
        problems.append(Problem(path, expected, f"{source!r} with rows of shape {_spelled(column.shape)}"))
    if not _casts(column.datatype, tensor.datatype):
        problems.append(Problem(path, f"a column that casts to {tensor.datatype}", f"{source!r} of {column.datatype}"))
    return problems


def _target_misfit(spec: JobSpec, column: Column, output: TensorSpec) -> list[Problem]:
    """Class numbers (integers) go with categorical_cross_entropy, everything else has the output's shape."""
    row = output.shape[1:]
    dtype = _dtype(column.datatype)
    sparse = spec.loss.name == "categorical_cross_entropy" and dtype is not None and dtype.kind in "iu"
    if sparse and row and _fits(column.shape, row[:-1]):
        if not spec.standardize_target:
            return []
        return [Problem("standardize_target", "a target of numbers", f"{spec.target!r}, which has class numbers")]
    if _fits(column.shape, row):
        if _casts(column.datatype, output.datatype):
            return []
        return [Problem("target", f"a column that casts to {output.datatype}", f"{spec.target!r} of {column.datatype}")]
    expected = f"a column with rows of shape {_spelled(row)}"
    if spec.loss.name == "categorical_cross_entropy" and row:
        expected += f", or whole class numbers with rows of shape {_spelled(row[:-1])}"
    got = f"{spec.target!r} of {column.datatype} with rows of shape {_spelled(column.shape)}"
    return [Problem("target", expected, got)]


def _fits(column: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a column's row goes where `wanted` is (-1: any size); one number per row also goes where [1] is."""
    if column == () and wanted == (1,):
        return True
    return len(column) == len(wanted) and all(w in (-1, c) for c, w in zip(column, wanted, strict=True))


def _spelled(shape: tuple[int, ...]) -> str:
    return str([None if size == -1 else size for size in shape])


def _dtype(datatype: str) -> np.dtype | None:
    """The NumPy type of a numeric datatype; None for text."""
    known = DATATYPES.get(datatype)
    return None if known is None or known.dtype.kind == "O" else known.dtype


def _casts(column: str, wanted: str) -> bool:
    """Whether a column may be cast: to a kind that means at least as much, never floats to whole numbers."""
    source, target = _dtype(column), _dtype(wanted)
    if source is None or target is None:
        return False
    return np.can_cast(source, target, "same_kind") or (source.kind in "iu" and target.kind in "iu")
