"""Values that travel between the layers of the service: plain, frozen, without behaviour of their own."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from service.core.request_queue import Pending

Json = Any
"""A value that JSON can spell."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A named tensor: Open Inference Protocol `datatype` and full `shape` with -1 for sizes open until called."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OpenSize:
    """A size besides the batch that each request chooses, one for all of `axes` (input name -> its axes, 0 the batch).

    The model is compiled for `sizes`, ascending. With `pad_values` (one per input in `axes`) a request of another size
    is padded at the end to the next one; without, only exactly these sizes are answered. `mask` is an input
    (batch, size) that clients do not send: the server fills it with 1 where a position is real, 0 where it is padded.
    """

    axes: Mapping[str, tuple[int, ...]]
    sizes: tuple[int, ...]
    pad_values: Mapping[str, int | float | bytes] = field(default_factory=dict)
    mask: str | None = None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What a loaded version takes and gives.

    `intermediates` are given to requests that ask for them by name. `max_batch_size` is 0 when requests must not be
    batched; `batching_reason` then says why.
    `buckets` are the batch sizes that are compiled, each with every combination of the `open_sizes`. `masks` are the
    inputs that the server fills. `open_axes` says which axes of an output have an open size (output name -> axis ->
    index in `open_sizes`): padding is cut off there.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    buckets: tuple[int, ...]
    batching_reason: str = ""
    parameter_bytes: int = 0
    intermediates: tuple[TensorSpec, ...] = ()
    open_sizes: tuple[OpenSize, ...] = ()
    masks: tuple[TensorSpec, ...] = ()
    open_axes: Mapping[str, Mapping[int, int]] = field(default_factory=dict)


WarmUp = Literal["none", "zeros", "random"]
"""What every compiled program is run on once before a version is ready."""


@dataclass(frozen=True, slots=True)
class ServingConfig:
    """How a version is served; read from a bundle's `serving.json`, else from the settings.

    `expose_intermediate` are layers whose values requests may ask for besides the outputs; True: all of them.
    `batch_buckets` are the batch sizes to compile, the largest of them `max_batch_size` (empty: powers of two up to
    it); `open_sizes` those besides the batch. `instances` batches are computed at the same time on each device.
    `precision` is a policy by name in place of the model's own; `default_priority` is what priority 0 means.
    Where versions compete for a device, each gets time in proportion to its `compute_weight`.
    `max_queue_wait_us` and, while overloaded, `overload_wait_us` bound how long a request is expected to wait.
    """

    max_batch_size: int = 64
    max_queue_delay_us: int = 0
    max_queue_requests: int = 4096
    max_queue_bytes: int = 256 * 2**20
    max_queue_wait_us: int = 100_000
    overload_wait_us: int = 2_000
    default_timeout_us: int = 30_000_000
    expose_intermediate: bool | tuple[str, ...] = False
    batch_buckets: tuple[int, ...] = ()
    open_sizes: tuple[OpenSize, ...] = ()
    instances: int = 1
    precision: str | None = None
    warm_up: WarmUp = "zeros"
    default_priority: int = 2
    compute_weight: int = 1


@dataclass(slots=True)
class InferRequest:
    """One call: `inputs` by name with their full shapes; `outputs` None means all declared ones, in their order.

    `deadline` is in seconds of the monotonic clock (None: the model's default timeout); `priority` 0 is
    the default, 1 the highest. `classes` says for which outputs how many of the largest values are wanted instead.
    `received` is when the whole request was there, in seconds of the monotonic clock (None: now). `started` is told
    the request as the model's queue has it.
    """

    model: str
    version: str | None
    inputs: dict[str, np.ndarray]
    outputs: Sequence[str] | None = None
    id: str = ""
    deadline: float | None = None
    priority: int = 0
    classes: Mapping[str, int] | None = None
    received: float | None = None
    started: Callable[[Pending], None] | None = None


@dataclass(slots=True)
class InferResult:
    """The answer to one call; `outputs` in the order asked for."""

    model: str
    version: int
    outputs: Mapping[str, np.ndarray]
    id: str = ""


class VersionState(enum.StrEnum):
    """What a version of a model is doing in this process."""

    UNLOADED = "UNAVAILABLE"
    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """What a stored version is doing in a process; `reason` explains a failure.

    `known` says whether it has been loaded there, or was to be.
    """

    version: int
    state: VersionState
    reason: str = ""
    known: bool = True


Target = int | Mapping[int, float]
"""Where an alias points: a version, or versions with the share of the requests that each answers, which sum to 1."""


@dataclass(frozen=True, slots=True)
class ModelState:
    """The desired state of one model: a small document in the store, changed by compare-and-swap.

    `next_version` only grows, so that a number is never given twice, not even after deletion.
    `generation` counts changes. `serving` is, per loaded version, what a load asked for instead of the bundle's own.
    `previous` is where an alias pointed before it was moved last. `pinned` versions are not evicted; `evicted` says
    which were, and what for.
    """

    name: str
    generation: int = 0
    next_version: int = 1
    loaded: frozenset[int] = frozenset()
    aliases: Mapping[str, Target] = field(default_factory=dict)
    serving: Mapping[int, Mapping[str, Json]] = field(default_factory=dict)
    previous: Mapping[str, Target] = field(default_factory=dict)
    pinned: frozenset[int] = frozenset()
    evicted: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReplicaModel:
    """One model as a serving process has it: the newest `generation` it has converged on, and what is in effect."""

    generation: int
    versions: tuple[VersionStatus, ...]
    aliases: Mapping[str, Target]


@dataclass(frozen=True, slots=True)
class Replica:
    """A serving process as it last described itself, `age_s` seconds ago."""

    id: str
    age_s: float
    models: Mapping[str, ReplicaModel]


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """A published, immutable version: the bundle file and its manifest (format, digests, lineage)."""

    name: str
    version: int
    path: Path
    manifest: Mapping[str, Json]
    created_at: float


GraphForm = Literal["svg", "mermaid"]
"""How a graph is drawn."""


@dataclass(frozen=True, slots=True)
class BundleReport:
    """What the engine says of a valid graph or bundle before it is stored; `serving` as the bundle has it, checked.

    `inputs` and `outputs` are what clients send and get; the model's `own_inputs` and `own_outputs` are given where
    they are others.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: int
    parameter_bytes: int
    summary: str
    serving: Mapping[str, Json] = field(default_factory=dict)
    own_inputs: tuple[TensorSpec, ...] = ()
    own_outputs: tuple[TensorSpec, ...] = ()


@dataclass(frozen=True, slots=True)
class ColumnStatistics:
    """What a column's values are like: `count` finite ones, `missing` others; None where there is no such number.

    `std` divides by `count`. `classes` says how often each value occurs in a column of whole numbers, one per row,
    with few different ones.
    """

    count: int
    missing: int = 0
    min: float | None = None
    max: float | None = None
    mean: float | None = None
    std: float | None = None
    classes: Mapping[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a data set: `datatype` as in the Open Inference Protocol, `shape` of one row, file `name`.

    `labels` are the texts that a column's numbers stand for; `statistics` is None for what was stored without them.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    labels: tuple[str, ...] = ()
    statistics: ColumnStatistics | None = None


@dataclass(frozen=True, slots=True)
class Dataset:
    """A stored data set: equally long columns, each a mapped `.npy` file under `path`."""

    id: str
    name: str
    rows: int
    columns: tuple[Column, ...]
    sha256: str
    size_bytes: int
    created_at: float
    path: Path


class Priority(enum.StrEnum):
    """Levels of jobs, the most urgent first."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


CLAIM_ORDER = (
    Priority.HIGH, Priority.HIGH, Priority.NORMAL, Priority.HIGH,
    Priority.HIGH, Priority.NORMAL, Priority.HIGH, Priority.LOW,
)  # fmt: skip
"""The level that goes first at each of eight claims in turn, by workers with the same tags: none starves another."""


class JobState(enum.StrEnum):
    """States of a job; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether the job has ended."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True, slots=True)
class Job:
    """A training job as the queue stores it; times are seconds since the epoch, `spec` is the validated request.

    `attempt` only grows; `released` of the attempts were given back and do not count against `max_attempts`.
    `checkpoint` points at the last committed one (relative to the store); `result` holds
    `{"model", "version", "metrics"}` once it has succeeded, with `promoted` and `reason` where an alias was to
    be moved; `reserved` is the model and number taken for it.
    `not_before` is when a queued job that crashed may be tried again; `owner` is a label. `dead` is a failed job whose
    attempts were used up, until another one was queued in its place: `requeued_as`, whose `requeued_from` it is.
    `ttl_s` is how long it can be read after its end, if that is less than the server's bound; `ran_s` how long the
    attempts have run that have ended.
    A sweep is a job with `children`, so many jobs of their own that each name it as their `parent`; it stays queued,
    and nobody can claim it, until the last of them has ended.
    `trace` is the W3C `traceparent` of the request that submitted it, '' where nobody traced that.
    """

    id: str
    spec: Mapping[str, Json]
    state: JobState
    tag: str
    attempt: int
    max_attempts: int
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    worker: str | None = None
    cancel_requested: bool = False
    checkpoint: Mapping[str, Json] | None = None
    reserved: tuple[str, int] | None = None
    result: Mapping[str, Json] | None = None
    error: str | None = None
    released: int = 0
    priority: Priority = Priority.NORMAL
    owner: str = ""
    not_before: float | None = None
    idempotency_key: str = ""
    dead: bool = False
    requeued_from: str | None = None
    requeued_as: str | None = None
    ttl_s: float | None = None
    ran_s: float = 0.0
    parent: str | None = None
    children: int = 0
    trace: str = ""


@dataclass(frozen=True, slots=True)
class JobCounts:
    """How many jobs the queue knows by `states`, how many of the failed are `dead`, and how many wait by tag.

    Those that wait after a failure are among the waiting, a sweep itself is not: its jobs are.
    """

    states: Mapping[JobState, int]
    dead: int
    waiting: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work on a job: every write that matters carries `attempt` and `token`."""

    job: Job
    attempt: int
    token: str
    worker: str


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One entry of a job's event stream.

    `id` orders the stream and resumes it; `kind` is `state`, `progress`, `log`, `checkpoint`, or in a sweep's
    stream `child`, when one of its jobs has ended; `time` is in seconds since the epoch.
    """

    id: str
    kind: str
    time: float
    data: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """An accelerator and its memory."""

    name: str
    kind: str
    memory_total_bytes: int
    memory_free_bytes: int


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A supervisor as it describes itself with every heartbeat.

    `state` is `idle`, `training`, `waiting` (no room on its devices) or `broken` (they cannot be used); `problem` says
    why. It works on `jobs` in `slots`; `job` is the first of them.
    """

    id: str
    tags: tuple[str, ...]
    device: str
    state: str
    job: str | None
    version: str
    heartbeat_at: float
    slots: int = 1
    jobs: tuple[str, ...] = ()
    devices: tuple[DeviceInfo, ...] = ()
    problem: str = ""
    heartbeat_age_s: float = 0.0
