"""Settings: the environment's `AXON_*`, typed and read once by the entry point; docs/settings.md lists every one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.core.job_spec import MAX_HOSTS
from service.core.limits import Limits
from service.core.types import ServingConfig

_LIMITS = Limits()
_SERVING = ServingConfig()


class Settings(BaseSettings):
    """What a process of the service is told from outside; immutable."""

    model_config = SettingsConfigDict(
        env_prefix="AXON_", frozen=True, populate_by_name=True, use_attribute_docstrings=True
    )

    data_dir: Path = Path("axon-data")
    """Folder of models, data sets, checkpoints and the compile cache; shared by the API and its workers, which with
    `store_url` have one of their own each."""

    store_url: str | None = None
    """Bucket of models, data sets, checkpoints and uploads in the place of the data folder, such as `s3://bucket/prefix`,
    `gs://bucket/prefix`, `az://account/container/prefix`; credentials are those of the cloud's own variables."""

    store_cache_bytes: int = Field(default=20 * 2**30, ge=0)
    """Most room that copies of what the bucket has take in the data folder, besides what was used in the last ten
    minutes."""

    redis_url: str | None = Field(default=None, validation_alias=AliasChoices("AXON_REDIS_URL", "REDIS_URL"))
    """URL of the queue's Redis or Valkey (`redis://`, `rediss://`, `unix://`); without one `axon up` starts its own."""

    host: str = "127.0.0.1"
    """Address that REST and gRPC listen on; there are no keys yet, so anything else is open to whoever can reach it."""

    http_port: int = Field(default=8000, ge=0, le=65535)
    """Port of REST; 0 takes a free one."""

    grpc_port: int = Field(default=8001, ge=0, le=65535)
    """Port of gRPC; 0 takes a free one."""

    metrics_port: int | None = Field(default=None, ge=1, le=65535)
    """Port of `/metrics` alone, besides the one of REST, which has them too; 8002 is what `perf_analyzer` asks."""

    backlog: int = Field(default=2048, ge=1)
    """Connections that may wait to be accepted."""

    drain_s: float = Field(default=30.0, ge=0)
    """How long a stopping server goes on answering what it has accepted, in seconds."""

    stop_delay_s: float = Field(default=0.0, ge=0)
    """How long a stopping server says that it is not ready, and takes requests all the same, before it stops to listen,
    in seconds: what a load balancer needs to send them elsewhere."""

    client_patience_s: float = Field(default=60.0, gt=0)
    """How long a client may be silent in mid-request, or leave its answer unread, in seconds."""

    keep_alive_s: float = Field(default=75.0, ge=1)
    """How long a REST connection without a request stays open, in seconds; longer than proxies and pools of clients
    keep theirs, or one of them asks at the moment when it is closed."""

    registry_poll_s: float = Field(default=0.5, gt=0)
    """How often the store is asked for changes of other processes, such as a finished job's model, in seconds."""

    max_loaded_bytes: int | None = Field(default=None, ge=1)
    """Most bytes of parameters that a process holds for loaded versions; without it there is no limit. Versions without
    a pin or an alias are evicted for others, those first that were used the longest ago."""

    min_free_bytes: int = Field(default=256 * 2**20, ge=0)
    """Least room on the file system of the data folder; with less the server is not ready."""

    stalled_s: float = Field(default=3.0, gt=0)
    """How long one batch may compute before the server says that it hangs, in seconds; where those before took long,
    four times the longest of them."""

    device: str | None = None
    """JAX platform that serves (`cpu`, `cuda`); JAX's own choice without it."""

    max_connections: int = Field(default=8192, ge=1)
    """Connections of clients on REST and gRPC together; one more is told so (503, GOAWAY) and closed."""

    max_bodies_bytes: int = Field(default=512 * 2**20, ge=1)
    """Bytes of all inference requests under way together, from their first byte to their answer; more get 429."""

    executions_at_once: int | None = Field(default=None, ge=1)
    """Batches of all versions together that each device computes at the same time; without it as many as there are
    cores, 2 at least, and 2 on a GPU."""

    max_request_bytes: int = Field(default=64 * 2**20, ge=1)
    """Largest inference request, before and after decompression."""

    max_json_bytes: int = Field(default=8 * 2**20, ge=1)
    """Most JSON in an inference request; larger tensors come as binary data."""

    max_graph_bytes: int = Field(default=_LIMITS.max_graph_bytes, ge=1)
    """Largest graph, as JSON."""

    max_bundle_bytes: int = Field(default=_LIMITS.max_bundle_bytes, ge=1)
    """Largest bundle, or safetensors beside a graph."""

    check_s: float = Field(default=60.0, gt=0)
    """How long the trial of a bundle with programs may take in a process of its own, in seconds."""

    max_check_bytes: int = Field(default=8 * 2**30, ge=2**29)
    """Most memory of that process."""

    max_dataset_bytes: int = Field(default=_LIMITS.max_dataset_bytes, ge=1)
    """Largest data set, as uploaded and as stored."""

    max_uploads_bytes: int = Field(default=_LIMITS.max_uploads_bytes, ge=1)
    """What all unfinished uploads together may announce; more get 429."""

    upload_ttl_s: float = Field(default=_LIMITS.upload_ttl_s, gt=0)
    """How long an unfinished upload is kept without a further byte, in seconds."""

    max_dataset_rows: int = Field(default=_LIMITS.max_dataset_rows, ge=1)
    """Most rows of a data set."""

    max_dataset_columns: int = Field(default=_LIMITS.max_dataset_columns, ge=1)
    """Most columns of an uploaded table."""

    convert_s: float = Field(default=600.0, gt=0)
    """How long the process that reads an upload of Parquet, Arrow or images may take, in seconds."""

    max_convert_bytes: int = Field(default=4 * 2**30, ge=2**29)
    """Most memory of that process."""

    max_job_spec_bytes: int = Field(default=_LIMITS.max_job_spec_bytes, ge=1)
    """Largest request for a training job, its graph included."""

    max_batch_size: int = Field(default=_SERVING.max_batch_size, ge=1)
    """Largest batch a version computes at once; a bundle may say less, not more."""

    max_queue_delay_us: int = Field(default=_SERVING.max_queue_delay_us, ge=0)
    """How long a batch waits for company although the model is idle, in microseconds; bundles may say more, up to
    `default_timeout_us`."""

    max_queue_requests: int = Field(default=_SERVING.max_queue_requests, ge=1)
    """Requests that may wait for one version; more get 429."""

    max_queue_bytes: int = Field(default=_SERVING.max_queue_bytes, ge=1)
    """Bytes of inputs that may wait for one version; more get 429."""

    max_queue_wait_us: int = Field(default=_SERVING.max_queue_wait_us, ge=0)
    """How long a prediction may be expected to wait in the queue of its version, in microseconds; more get 429."""

    overload_wait_us: int = Field(default=_SERVING.overload_wait_us, ge=0)
    """The same while a version is overloaded, that is until a second has passed without a 429, in microseconds."""

    default_timeout_us: int = Field(default=_SERVING.default_timeout_us, ge=1)
    """How long a prediction may take when the request does not say, in microseconds."""

    job_lease_s: float = Field(default=15.0, gt=0)
    """How long a silent worker keeps its job before another takes it up, in seconds; the same for all of a queue."""

    job_grace_s: float = Field(default=10.0, gt=0)
    """How long a stopping trainer may take to write its checkpoint, in seconds."""

    job_retry_base_s: float = Field(default=1.0, gt=0)
    """How long a job waits after its trainer's first crash at most, in seconds; doubled with every further one."""

    job_retry_cap_s: float = Field(default=60.0, gt=0)
    """How long a crashed job waits at most, in seconds."""

    max_queued_jobs: int = Field(default=10_000, ge=1)
    """Unfinished jobs per tag; more get 429."""

    max_unfinished_jobs: int = Field(default=50_000, ge=1)
    """Unfinished jobs of all tags; more get 429."""

    max_kept_jobs: int = Field(default=10_000, ge=1)
    """Finished jobs that can be read; the oldest are forgotten first."""

    keep_jobs_s: float = Field(default=7 * 86_400.0, gt=0)
    """How long finished jobs and their events can be read, in seconds; so long the checkpoints of failed ones stay."""

    max_job_events: int = Field(default=10_000, ge=100)
    """About how many events are kept per job."""

    webhook_hosts: tuple[str, ...] = ()
    """Hosts that jobs may have told of their events, as a JSON list; `host` on the default ports and at public
    addresses only, `host:port` at any address. Without one there are no webhooks."""

    worker_tags: tuple[str, ...] = ("default",)
    """Tags of the jobs that a worker takes, as a JSON list; `axon worker --tag` replaces it."""

    worker_slots: int = Field(default=1, ge=1, le=64)
    """Jobs that a worker trains at the same time; `axon worker --slots` replaces it."""

    worker_device: str = "auto"
    """What a worker trains on: `auto`, `cpu`, or GPUs as `cuda:0,1`; `axon worker --device` replaces it."""

    worker_hosts: int = Field(default=1, ge=1, le=MAX_HOSTS)
    """Hosts that train one job together; one worker runs on each. `axon worker --hosts` replaces it."""

    worker_number: int = Field(default=0, ge=0)
    """Number of this host among them; 0 leads and takes the jobs. `axon worker --number` replaces it."""

    worker_leader: str | None = None
    """Where host 0 listens for the others, as `host:port`; there are no keys, so let only them reach it.
    `axon worker --leader` replaces it."""

    worker_idle_s: float | None = Field(default=None, gt=0)
    """How long a worker waits for a job before it ends, and a host of several for its leader, in seconds; for ever
    without it."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is logged."""

    log_format: Literal["console", "json"] = "console"
    """Logs for people, or one JSON object per line."""

    access_log: bool = False
    """Whether each request is logged when it has its answer; server errors are logged without it."""

    tracing: bool = False
    """Whether spans of requests and jobs go to an OpenTelemetry collector; needs the extra `otel`. Where it is and all
    else is said by OpenTelemetry's own variables, such as `OTEL_EXPORTER_OTLP_ENDPOINT`."""

    trace_ratio: float | None = Field(default=None, ge=0, le=1)
    """Share of the requests that are traced when their callers have not decided; `OTEL_TRACES_SAMPLER` says without
    it, and all are when nothing does."""

    def limits(self) -> Limits:
        """The bounds on what clients may send."""
        return Limits(
            max_graph_bytes=self.max_graph_bytes,
            max_bundle_bytes=self.max_bundle_bytes,
            max_dataset_bytes=self.max_dataset_bytes,
            max_uploads_bytes=self.max_uploads_bytes,
            upload_ttl_s=self.upload_ttl_s,
            max_dataset_rows=self.max_dataset_rows,
            max_dataset_columns=self.max_dataset_columns,
            max_job_spec_bytes=self.max_job_spec_bytes,
            webhook_hosts=self.webhook_hosts,
            serving=self.serving(),
        )

    def serving(self) -> ServingConfig:
        """How a version is served when its bundle does not say, and the most that one may ask for."""
        return ServingConfig(
            max_batch_size=self.max_batch_size,
            max_queue_delay_us=self.max_queue_delay_us,
            max_queue_requests=self.max_queue_requests,
            max_queue_bytes=self.max_queue_bytes,
            max_queue_wait_us=self.max_queue_wait_us,
            overload_wait_us=self.overload_wait_us,
            default_timeout_us=self.default_timeout_us,
        )


def unknown_variables() -> list[str]:
    """Variables that look like settings of ours but are none: most likely misspelt."""
    known = {f"AXON_{name.upper()}" for name in Settings.model_fields} | {"AXON_URL"}
    return sorted(name for name in os.environ if name.startswith("AXON_") and name not in known)
