"""What the core needs from outside: one `Protocol` per port, one contract suite per port in the tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from service.core.errors import Problem
from service.core.types import (
    BundleReport,
    Dataset,
    GraphForm,
    Job,
    JobCounts,
    JobEvent,
    JobState,
    Json,
    Lease,
    ModelSpec,
    ModelState,
    Replica,
    ReplicaModel,
    ServingConfig,
    StoredVersion,
    TensorSpec,
    WorkerInfo,
)


class Clock(Protocol):
    """Time, so that tests can hold it."""

    def monotonic(self) -> float:
        """Seconds that never go back."""

    def time(self) -> float:
        """Seconds since the epoch."""


class InputStep(Protocol):
    """What makes a model's own input of what clients send. Called from several threads at once."""

    @property
    def spec(self) -> TensorSpec:
        """What clients are told to send: the input's name, a datatype, the full shape."""

    @property
    def datatypes(self) -> frozenset[str]:
        """The datatypes that are taken, that of `spec` among them."""

    def apply(self, values: np.ndarray, where: str) -> np.ndarray:
        """The model's own input, of its datatype and shape; `values` are of the shape in `spec`.

        Raises `InvalidRequest` beginning with `where`, and naming the row where one is at fault.
        """


class OutputStep(Protocol):
    """What answers get in place of one of a model's outputs. Called from several threads at once."""

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The outputs it gives."""

    def apply(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Those outputs by name; `values` are the model's."""


@dataclass(frozen=True, slots=True)
class Processing:
    """What is done to requests before a batch and to answers after it, by name of the model's inputs and outputs.

    `labels` are the texts of an output's classes: those along its last axis, from the first on.
    """

    inputs: Mapping[str, InputStep] = field(default_factory=dict)
    outputs: Mapping[str, OutputStep] = field(default_factory=dict)
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)


class LoadedModel(Protocol):
    """A version with its parameters on the device and every declared bucket compiled."""

    @property
    def spec(self) -> ModelSpec:
        """What `run` takes and gives."""

    @property
    def processing(self) -> Processing | None:
        """What is done around `run`; None for nothing."""

    @property
    def partitions(self) -> int:
        """How many devices hold the model; `run` may be called for each at the same time, and more than once."""

    @property
    def warm_up_s(self) -> float:
        """How long the longest execution of its warm-up took, in seconds; 0 when there was none."""

    def run(self, inputs: Mapping[str, np.ndarray], partition: int = 0) -> dict[str, np.ndarray]:
        """Compute one batch on a device and wait for it.

        The leading size must be one of `spec.buckets` for a batched model; never compiles for one. Outputs are
        host arrays in the model's order, with the leading size given. Raises `ExecutionFailed`.
        """

    def close(self) -> None:
        """Free the device memory; `run` must not be called again."""


class Engine(Protocol):
    """The engine as the service sees it. Every method blocks and may be slow: call it in a thread."""

    @property
    def devices(self) -> int:
        """How many devices hold each loaded version; does not block."""

    @property
    def executions_at_once(self) -> int:
        """How many executions of all versions together each device is given at the same time."""

    def check_graph(self, graph: bytes) -> BundleReport:
        """Validate a graph's JSON; raises `InvalidModel` with every problem, or `TooLarge`."""

    def graph_schema(self) -> bytes:
        """The JSON Schema of graphs; the same bytes every time."""

    def check_training(
        self,
        source: bytes | Path,
        *,
        loss: Mapping[str, Json],
        optimizer: Mapping[str, Json],
        metrics: Sequence[str],
        precision: str | None = None,
        loss_scale: Mapping[str, Json] | None = None,
        serving: Mapping[str, Json] | None = None,
        marks: Sequence[tuple[Sequence[str], Sequence[str]]] = (),
        reduces: bool = False,
        preprocess: Mapping[str, Mapping[str, Json]] | None = None,
    ) -> list[Problem]:
        """What is wrong with how a valid graph, or the model of a stored bundle, is to be trained.

        Unknown names, options outside their domain, patterns that fit nothing: `marks` are pairs of patterns to freeze
        and to unfreeze, applied in turn, the last one the job's own. `reduces`: the learning rate will be changed.
        `preprocess` has the steps of inputs.
        """

    def check_bundle(self, path: Path) -> BundleReport:
        """Validate a bundle file completely (digests, graph, tensors against the graph, limits)."""

    def write_bundle(
        self, path: Path, graph: bytes, params: bytes | None, *, seed: int, lineage: Mapping[str, Json]
    ) -> None:
        """Write a bundle from a graph and safetensors bytes (None: initialise with `seed`).

        Raises like `check_bundle`.
        """

    def load(self, path: Path, config: ServingConfig) -> LoadedModel:
        """Put a bundle on the device and compile every bucket; raises `InvalidModel` or `NotReady`."""

    def describe(self, path: Path) -> tuple[bytes, str]:
        """A stored bundle's graph JSON and its summary table."""

    def picture(self, path: Path, form: GraphForm) -> str:
        """A stored bundle's graph as a picture."""


class ModelStore(Protocol):
    """Models and their versions: the truth about what exists. A version appears whole or not at all."""

    def models(self) -> list[str]:
        """Names of all models, sorted."""

    def state(self, name: str) -> ModelState:
        """The desired state; raises `NotFound`."""

    def states(self) -> dict[str, ModelState]:
        """The desired state of every model by name, sorted; for whoever asks all the time."""

    def change(self, name: str, change: Callable[[ModelState], ModelState], *, create: bool = False) -> ModelState:
        """Compare-and-swap: apply `change` until it wins; raises `NotFound` when absent and not `create`."""

    def allocate(self, name: str) -> int:
        """Take the next version number for ever, creating the model when absent."""

    def publish(self, name: str, version: int, bundle: Path, *, manifest: Mapping[str, Json]) -> StoredVersion:
        """Make `bundle` (moved or copied) the content of an allocated number, atomically.

        Repeating it with a manifest of the same lineage job returns the stored one; anything else raises `Conflict`.
        """

    def versions(self, name: str) -> list[StoredVersion]:
        """All versions in ascending order; raises `NotFound`."""

    def version(self, name: str, version: int) -> StoredVersion:
        """One version; raises `NotFound`."""

    def bundle(self, stored: StoredVersion) -> Path:
        """A version's bundle on this machine, to be opened at once and only read; raises `NotFound`."""

    def delete(self, name: str, version: int | None) -> None:
        """Delete a version, or the whole model; the numbers are never given again. Raises `NotFound`, `Conflict`."""

    def scratch(self) -> Path:
        """A fresh private folder on the store's file system, for uploads; the caller removes it."""


class ReplicaBoard(Protocol):
    """What the serving processes on one store say of themselves. Every method blocks: call it in a thread."""

    def publish(self, replica: str, models: Mapping[str, ReplicaModel]) -> None:
        """Put what a process says in the place of what it said before."""

    def withdraw(self, replica: str) -> None:
        """Take it back; what is not there is no error."""

    def replicas(self) -> list[Replica]:
        """Every process that has published lately, by its id; those that have been silent for long are forgotten."""


class DatasetStore(Protocol):
    """Data sets in their canonical layout: a folder of `.npy` columns and a manifest."""

    def add(self, folder: Path, dataset: Dataset) -> Dataset:
        """Move a prepared folder in, atomically; the same id returns the stored one."""

    def get(self, dataset_id: str) -> Dataset:
        """One data set; raises `NotFound`."""

    def columns(self, dataset: Dataset) -> Path:
        """The folder of its columns on this machine, to be opened at once and only read; raises `NotFound`."""

    def all(self) -> list[Dataset]:
        """All, oldest first."""

    def delete(self, dataset_id: str) -> None:
        """Remove it; raises `NotFound`."""

    def hold(self, dataset_id: str, *, alone: bool) -> Callable[[], None] | None:
        """Keep it from being deleted, or `alone` from being held by anyone, until the result is called.

        None while another's hold forbids it, which is not waited for; a process that dies holds nothing after a while.
        Blocks, as the result does. Raises `NotFound`.
        """


class JobQueue(Protocol):
    """Training jobs: the truth about what is to be done.

    Writes with a stale lease raise `StaleLease` and change nothing. An accepted cancellation and a success exclude
    each other: `reserve` is refused after `cancel`, and `cancel` after `reserve`. Every method raises `NotReady` when
    the queue's server is away.
    """

    async def submit(self, job: Job, children: Sequence[Job] = ()) -> Job:
        """Store a queued job and make it claimable; returns it as stored.

        With the children of a sweep: all of them at once or none, named by `child_id`, with the tag of their parent. It
        becomes claimable when the last of them has ended; one to be cancelled by then is cancelled instead.

        With an idempotency key that the same owner has used for the same request, returns the job of then instead.
        Raises `Conflict` on a known id, or a key used for another request; `Overloaded` when the queue is full.
        """

    async def requeue(self, job_id: str, job: Job, children: Sequence[Job] = ()) -> Job:
        """Submit `job` in the place of a failed one, once: a repetition returns the job of the first time.

        Raises `NotFound`, `Overloaded`, and `Conflict` when the old one has not failed.
        """

    async def get(self, job_id: str) -> Job:
        """One job; raises `NotFound`."""

    async def find(self, *, state: JobState | None = None, dead: bool = False, limit: int = 100) -> list[Job]:
        """Newest first; with `dead` only those whose attempts were used up."""

    async def children(self, job_id: str) -> list[Job]:
        """A sweep's jobs in their order, none of another job; raises `NotFound`."""

    async def cancel(self, job_id: str) -> Job:
        """Queued: becomes cancelled. Running: marks it, its supervisor stops it.

        A sweep's unfinished children are cancelled with it, and it ends behind the last of them. Raises `Conflict` when
        it is final or already publishes its version.
        """

    async def claim(self, worker: str, tags: Sequence[str], *, wait_s: float) -> Lease | None:
        """Take a queued job, or one whose lease has run out; None after `wait_s`.

        Lost leases go first, then the level whose turn it is (`CLAIM_ORDER`), else the most urgent one; within a level
        the oldest job of all `tags`. Increments the attempt and draws a new token. A job beyond `max_attempts` is
        failed instead, with the reason.
        """

    async def renew(self, lease: Lease) -> Job:
        """Extend the lease; returns the job as stored (see `cancel_requested`)."""

    async def append(self, lease: Lease, kind: str, data: Mapping[str, Json]) -> str:
        """Append to the job's events; returns the event's id."""

    async def commit_checkpoint(self, lease: Lease, pointer: Mapping[str, Json]) -> Mapping[str, Json] | None:
        """Make `pointer` the job's checkpoint; returns the one before."""

    async def reserve(self, lease: Lease, model: str, version: int) -> tuple[str, int]:
        """Tie the job to a version number, once: a repeated call returns the first one.

        Raises `Conflict` when the job is to be cancelled.
        """

    async def settle(
        self,
        lease: Lease,
        state: JobState,
        *,
        result: Mapping[str, Json] | None = None,
        error: str | None = None,
    ) -> Job:
        """End the job and acknowledge it in one step; repeating it with the same lease returns the job as it ended.

        A job whose cancellation was accepted ends as cancelled, whatever `state` says. Raises `Conflict` for
        `CANCELLED` when nobody asked for it.
        """

    async def release(self, lease: Lease, *, reason: str, counts: bool = False, delay_s: float = 0.0) -> Job:
        """Give a running job back to the queue, without counting against its attempts unless `counts`.

        Nobody gets it for `delay_s`. One whose attempts are used up becomes failed with `reason`; one to be cancelled
        becomes cancelled.
        """

    def events(self, job_id: str, *, after: str = "0") -> AsyncIterator[JobEvent]:
        """Replay after an id, then follow; ends after a final state's event.

        Raises `NotFound`, and `InvalidRequest` when `after` is no event's id.
        """

    async def replay(self, job_id: str, *, after: str = "0", limit: int = 1000) -> list[JobEvent]:
        """Up to `limit` events after an id, as many as there are now.

        Raises `NotFound`, and `InvalidRequest` when `after` is no event's id.
        """

    async def beat(self, worker: WorkerInfo, *, ttl_s: float) -> None:
        """Show a worker as alive for `ttl_s`."""

    async def workers(self) -> list[WorkerInfo]:
        """Workers whose heartbeat is fresh."""

    async def counts(self, tags: Sequence[str]) -> JobCounts:
        """How many jobs there are now, and how many of them wait for a worker with each of `tags`."""

    async def ping(self) -> None:
        """Raise `NotReady` when the queue's server is away."""


class CheckpointStore(Protocol):
    """Checkpoints of jobs, where every worker can read them. Every method blocks: call it in a thread."""

    def put(self, job_id: str, attempt: int, step: int, folder: Path) -> Mapping[str, Json]:
        """Move a complete local checkpoint in, atomically; returns the pointer to commit."""

    def get(self, pointer: Mapping[str, Json]) -> Path:
        """The checkpoint's folder on this machine, to be read only; raises `NotFound`."""

    def exists(self, pointer: Mapping[str, Json]) -> bool:
        """Whether `get` would find it."""

    def delete_older(self, job_id: str, keep: Mapping[str, Json]) -> None:
        """Remove the job's checkpoints that were written before `keep`, by its attempt or earlier ones."""

    def delete(self, job_id: str) -> None:
        """Remove all checkpoints of a job; absent ones are no error."""

    def expire(self, job_id: str, at: float) -> None:
        """Note that what a job has may be deleted from `at` on, in seconds since the epoch.

        Does nothing where it has none.
        """

    def expiry(self, job_id: str) -> float | None:
        """What `expire` noted; None before."""

    def jobs(self) -> list[str]:
        """Ids of the jobs that have any."""
