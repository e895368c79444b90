"""Wiring: the one file that sees every part, and what each process of the service consists of."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from service.adapters.clock import SystemClock
from service.adapters.embedded_redis import EmbeddedRedis
from service.adapters.file_checkpoints import FileCheckpointStore
from service.adapters.file_replicas import FileReplicaBoard
from service.adapters.file_store import FileDatasetStore, FileModelStore
from service.adapters.file_uploads import FileUploadStore
from service.adapters.health_checks import checks
from service.adapters.kept_process import KeptProcess
from service.adapters.nvml import Nvml
from service.adapters.redis_dataset_uses import RedisDatasetUses
from service.adapters.redis_jobs import RedisJobQueue, connect
from service.adapters.redis_webhooks import RedisWebhookStore
from service.core.errors import InvalidRequest, NotReady
from service.core.health import HealthMonitor
from service.core.ports import Clock, Engine, JobQueue
from service.core.retry import Backoff
from service.listening import Endpoints, Report, bracketed, listen, report
from service.settings import Settings

if TYPE_CHECKING:
    from service.api.rest.dispatch import App
    from service.api.rest.server import Server
    from service.core.datasets import DatasetUses
    from service.core.registry import Registry
    from service.core.webhook_delivery import WebhookStore

_log = logging.getLogger(__name__)

_READY_POLL_S = 0.05
_STOP_MARGIN_S = 10.0
_LEAST_CLOSE_S = 2.0


def build_engine(settings: Settings) -> Engine:
    """The engine on this process's device; imports JAX, which takes seconds."""
    from engine.bundle import DEFAULT_LIMITS
    from service.adapters.engine_runtime import EngineRuntime, compute_in_calling_thread, use_compile_cache

    compute_in_calling_thread()
    use_compile_cache(settings.data_dir / "compile-cache")
    limits = replace(
        DEFAULT_LIMITS,
        bundle_bytes=settings.max_bundle_bytes,
        graph_bytes=settings.max_graph_bytes,
        parameter_bytes=settings.max_bundle_bytes,
        check_s=settings.check_s,
        check_bytes=settings.max_check_bytes,
    )
    return EngineRuntime(limits=limits, device=settings.device)


def build_queue(settings: Settings, url: str) -> RedisJobQueue:
    """The job queue; connects when it is first used."""
    return RedisJobQueue(
        connect(url),
        SystemClock(),
        lease_s=settings.job_lease_s,
        max_jobs=settings.max_queued_jobs,
        keep_s=settings.keep_jobs_s,
        max_events=settings.max_job_events,
        max_unfinished=settings.max_unfinished_jobs,
        max_kept=settings.max_kept_jobs,
    )


class Api:
    """REST and gRPC over one core, in one process and on one event loop."""

    def __init__(
        self,
        settings: Settings,
        queue: JobQueue,
        engine: Engine,
        webhooks: WebhookStore | None,
        uses: DatasetUses,
    ) -> None:
        from service.adapters.dataset_files import FileDatasetReader  # imports JAX
        from service.api.repository import ModelRepository
        from service.api.rest.context import Context
        from service.core.datasets import DatasetService
        from service.core.inference import InferenceService
        from service.core.jobs import JobService
        from service.core.starts import Starts
        from service.core.uploads import UploadService

        self._settings = settings
        clock, limits = SystemClock(), settings.limits()
        reader = FileDatasetReader(timeout_s=settings.convert_s, memory_bytes=settings.max_convert_bytes)
        self._models = FileModelStore(settings.data_dir, clock)
        self._datasets = FileDatasetStore(settings.data_dir)
        self._unfinished = FileUploadStore(settings.data_dir)
        self.registry = self._build_registry(engine, clock)
        watched = checks(self._models, queue, settings.data_dir, min_free_bytes=settings.min_free_bytes)
        stalled_s = settings.default_timeout_us * 1e-6 + settings.stalled_s
        self._health = HealthMonitor(watched, clock, served=self.registry.served, stalled_s=stalled_s)
        self._inference = InferenceService(self.registry, "axon", version("axon-server"), clock, self._health)
        self._repository = ModelRepository(self.registry, limits)
        self._stopping = asyncio.Event()
        starts = Starts(self._models, FileCheckpointStore(settings.data_dir), queue)
        self._uploads = UploadService(self._unfinished, clock, limits)
        self._context = Context(
            self.registry,
            DatasetService(self._datasets, self._datasets.scratch, reader, clock, limits, uses, self._uploads),
            JobService(queue, self._datasets, engine, clock, limits, webhooks, starts=starts),
            self._uploads,
            limits,
            self._stopping,
        )
        self._metrics: Server | None = None
        self._http = self._build_http()
        self._grpc = self._build_grpc()
        self._tasks: list[asyncio.Task[None]] = []

    def _build_registry(self, engine: Engine, clock: Clock) -> Registry:
        from service.core.registry import Registry

        settings = self._settings
        return Registry(
            self._models,
            engine,
            clock,
            settings.serving(),
            poll_s=settings.registry_poll_s,
            max_loaded_bytes=settings.max_loaded_bytes,
            board=FileReplicaBoard(settings.data_dir, clock),
        )

    def _build_http(self) -> Server:
        from prometheus_client import CollectorRegistry, ProcessCollector

        from service.api import metrics
        from service.api.nv_metrics import NvMetrics
        from service.api.rest import v1_status, v2, v2_operation, v2_repository
        from service.api.rest.app import create_app
        from service.api.rest.dispatch import Dispatcher

        collectors = CollectorRegistry()
        collectors.register(metrics.InferenceCollector(self._inference.served))
        ProcessCollector(registry=collectors)
        nvml = Nvml()
        compatible = NvMetrics(self._inference.served, nvml.read if nvml.available else None)
        measured = metrics.router(collectors, compatible)
        settings = self._settings
        if settings.metrics_port is not None:
            alone = metrics.alone(measured)
            self._metrics = self._server(alone)
        routers = (
            v2.router(self._inference),
            v2_repository.router(self._repository, max_body_bytes=settings.max_request_bytes),
            v2_operation.router(self._inference),
            v1_status.router(self._inference),
            measured,
        )
        app = create_app(self._context, routers, version=version("axon-server"))
        dispatcher = Dispatcher(app, self._inference, max_body_bytes=settings.max_request_bytes)
        return self._server(dispatcher)

    def _server(self, app: App) -> Server:
        from service.api.rest.server import build_server

        use = self._settings
        return build_server(app, backlog=use.backlog, drain_s=use.drain_s, patience_s=use.client_patience_s)

    def _build_grpc(self) -> Any:
        from service.api.grpc import axon_v1
        from service.api.grpc.server import build_server

        use = self._context
        servicers = axon_v1.servicers(use.registry, use.datasets, use.jobs, use.uploads, use.limits, use.stopping)
        largest = self._settings.max_request_bytes
        return build_server(self._inference, self._repository, extra_servicers=servicers, max_message_bytes=largest)

    async def start(self) -> Endpoints:
        """Listen on both ports and begin to load what shall be loaded; raises `OSError` for a port that is taken."""
        settings = self._settings
        listener = listen("REST", settings.host, settings.http_port, settings.backlog)
        try:
            grpc_port = self._grpc.add_insecure_port(f"{bracketed(settings.host)}:{settings.grpc_port}")
        except RuntimeError as error:
            listener.close()
            raise OSError(f"gRPC cannot listen on {settings.host}:{settings.grpc_port}: {error}") from None
        if self._metrics is not None and settings.metrics_port is not None:
            try:
                measured = listen("metrics", settings.host, settings.metrics_port, settings.backlog)
            except OSError:
                listener.close()
                raise
            self._tasks.append(asyncio.create_task(self._metrics.serve(sockets=[measured])))
        await self._grpc.start()
        self._tasks.append(asyncio.create_task(self._http.serve(sockets=[listener])))
        self._tasks.append(asyncio.create_task(self.registry.run(self._stopping)))
        self._tasks.append(asyncio.create_task(self._uploads.run(self._stopping)))
        self._tasks.append(asyncio.create_task(self._health.run(self._stopping)))
        return Endpoints(settings.host, listener.getsockname()[1], grpc_port)

    async def wait_ready(self) -> None:
        """Return when both wires answer and everything that shall be loaded is, or has failed."""
        while not (self._http.started and self.registry.ready()):
            for task in self._tasks:
                if task.done():
                    task.result()
                    raise NotReady("the API ended while it was starting")
            await asyncio.sleep(_READY_POLL_S)

    async def stop(self) -> bool:
        """Say not ready, answer what has been accepted, free everything; returns whether nothing goes on."""
        self.registry.drain()
        await asyncio.sleep(self._settings.stop_delay_s)
        began = time.monotonic()
        self._stopping.set()
        self._http.should_exit = True
        if self._metrics is not None:
            self._metrics.should_exit = True
        await self._grpc.stop(self._settings.drain_s)
        ended = await self._end_tasks(max(_LEAST_CLOSE_S, self._settings.drain_s - (time.monotonic() - began)))
        closed = await self.registry.close(max(_LEAST_CLOSE_S, self._settings.drain_s - (time.monotonic() - began)))
        if not ended:  # the data folder hangs, so what lies there is left to the next start
            return False
        self._models.close()
        self._datasets.close()
        self._unfinished.close()
        return closed

    async def _end_tasks(self, within_s: float) -> bool:
        """Wait for what runs until the stop; False where something is given up: a file system may never answer."""
        left: set[asyncio.Task[None]] = set()
        if self._tasks:
            _, left = await asyncio.wait(self._tasks, timeout=within_s)
        for task in left:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        return not left


async def serve(settings: Settings, stop: asyncio.Event, on_ready: Callable[[Report], None]) -> None:
    """`axon serve`: the API alone, over a queue that runs elsewhere."""
    queue = build_queue(settings, _redis_url(settings))
    webhooks = RedisWebhookStore(connect(_redis_url(settings))) if settings.webhook_hosts else None
    uses = RedisDatasetUses(connect(_redis_url(settings)))
    api = Api(settings, queue, build_engine(settings), webhooks, uses)
    sending = None if webhooks is None else asyncio.create_task(_send_webhooks(settings, queue, webhooks, stop))
    try:
        endpoints = await api.start()
        if await _before(stop, api.wait_ready()):
            # What is there by now stays. Left to the collector, JAX's objects cost every request 0.1 s now and then.
            gc.collect()
            gc.freeze()
            on_ready(report(settings, endpoints, {"api": os.getpid()}))
            await stop.wait()
    finally:
        ended = await api.stop()
        if sending is not None:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        await uses.close()
        await queue.close()
    if not ended:
        # A thread that compiles would be ended in the middle of XLA, which aborts the process.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)


async def _send_webhooks(settings: Settings, queue: JobQueue, store: RedisWebhookStore, stop: asyncio.Event) -> None:
    from service.adapters.webhook_sender import HttpWebhookSender
    from service.core.webhook_delivery import WebhookDelivery

    sender = HttpWebhookSender()
    try:
        await WebhookDelivery(queue, store, sender, SystemClock(), settings.webhook_hosts).run(stop)
    finally:
        await sender.close()
        await store.close()


async def work(settings: Settings, tags: Sequence[str], stop: asyncio.Event) -> None:
    """`axon worker`: takes jobs with `tags` until `stop`; never imports JAX."""
    from service.worker.devices import Devices
    from service.worker.supervisor import Supervisor

    devices = Devices(settings.worker_device, settings.worker_slots, os.environ)
    clock = SystemClock()
    queue = build_queue(settings, _redis_url(settings))
    models, datasets = FileModelStore(settings.data_dir, clock), FileDatasetStore(settings.data_dir)
    supervisor = Supervisor(
        queue=queue,
        store=models,
        datasets=datasets,
        checkpoints=FileCheckpointStore(settings.data_dir),
        worker_id=f"{socket.gethostname()[:64]}-{os.getpid()}-{secrets.token_hex(3)}",
        tags=tags,
        work_dir=settings.data_dir / "work",
        lease_s=settings.job_lease_s,
        clock=clock,
        grace_s=settings.job_grace_s,
        backoff=Backoff(settings.job_retry_base_s, settings.job_retry_cap_s),
        devices=devices,
        keep_s=settings.keep_jobs_s,
    )
    try:
        await supervisor.run(stop)
    finally:
        models.close()
        datasets.close()
        await queue.close()


async def up(settings: Settings, stop: asyncio.Event, on_ready: Callable[[Report], None]) -> None:
    """`axon up`: API, worker and, unless a queue's URL is set, a Valkey; each a child that is started again if it dies.

    This process imports neither JAX nor gRPC: it stays small, and it may fork whenever it must. `on_ready` is called
    when everything answers, and again whenever a child was replaced.
    """
    embedded = None if settings.redis_url else EmbeddedRedis(settings.data_dir / "queue")
    if embedded is not None:
        await embedded.start()
    try:
        url = settings.redis_url or (embedded.url if embedded is not None else "")
        children = _Children(settings, url)
        queue = build_queue(settings, url)
        try:
            await children.start()
            if await _before(stop, _everything_answers(children, queue)):
                await _keep_reporting(settings, stop, on_ready, children, embedded)
        finally:
            await children.stop()
            await queue.close()
    finally:
        if embedded is not None:
            await embedded.stop()


class _Children:
    """The API and a worker, as processes of their own."""

    def __init__(self, settings: Settings, url: str) -> None:
        self._settings = settings
        self._file = settings.data_dir / "run" / "api.json"
        environment = os.environ | {"AXON_REDIS_URL": url, "AXON_DATA_DIR": str(settings.data_dir.resolve())}
        clock = SystemClock()
        self.api = KeptProcess(
            "API",
            self._api_command,
            environment,
            clock,
            stop_s=settings.stop_delay_s + settings.drain_s + _STOP_MARGIN_S,
        )
        self.worker = KeptProcess(
            "worker", self._worker_command, environment, clock, stop_s=settings.job_grace_s + _STOP_MARGIN_S
        )

    async def start(self) -> None:
        """Start both; they are not ready yet."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.unlink(missing_ok=True)
        await self.api.start()
        await self.worker.start()

    async def stop(self) -> None:
        """End both in order, at the same time."""
        await asyncio.gather(self.api.stop(), self.worker.stop())
        self._file.unlink(missing_ok=True)

    def endpoints(self) -> Endpoints | None:
        """Where the API said that it listens; None before it has."""
        try:
            said = json.loads(self._file.read_bytes())
        except FileNotFoundError:
            return None
        return Endpoints(self._settings.host, said["http_port"], said["grpc_port"])

    def _api_command(self) -> Sequence[str]:
        known = self.endpoints()  # a second API takes the first one's ports, so that clients find it
        http_port = self._settings.http_port if known is None else known.http_port
        grpc_port = self._settings.grpc_port if known is None else known.grpc_port
        ports = ["--http-port", str(http_port), "--grpc-port", str(grpc_port)]
        return [*_command("serve"), "--host", self._settings.host, *ports, "--ready-file", str(self._file), "--quiet"]

    def _worker_command(self) -> Sequence[str]:
        return [*_command("worker"), *(part for tag in self._settings.worker_tags for part in ("--tag", tag))]


async def _everything_answers(children: _Children, queue: RedisJobQueue) -> None:
    """Raises `NotReady` when a child ends instead."""
    while children.endpoints() is None or not await queue.workers():
        for name, child in (("API", children.api), ("worker", children.worker)):
            if child.restarts or child.pid is None:
                raise NotReady(f"the {name} did not start; its own message is above")
        await asyncio.sleep(_READY_POLL_S)


async def _keep_reporting(
    settings: Settings,
    stop: asyncio.Event,
    on_ready: Callable[[Report], None],
    children: _Children,
    embedded: EmbeddedRedis | None,
) -> None:
    reported: dict[str, int | None] = {}
    while not stop.is_set():
        valkey = None if embedded is None else _pid(embedded)
        pids = {"up": os.getpid(), "api": children.api.pid, "worker": children.worker.pid, "valkey": valkey}
        endpoints = children.endpoints()
        if pids != reported and endpoints is not None:
            on_ready(report(settings, endpoints, pids))
            reported = pids
        await _before(stop, asyncio.sleep(_READY_POLL_S))


def _command(name: str) -> list[str]:
    return [sys.executable, "-P", "-m", "service", name, "--parent", str(os.getpid())]


def run(main: Callable[[asyncio.Event], Any], *, fast: bool) -> None:
    """Run a program until it ends or SIGINT or SIGTERM asks it to; a second signal ends it at once.

    `fast` takes uvloop, for programs that serve.
    """

    async def guarded() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()

        def ask(number: signal.Signals) -> None:
            stop.set()
            loop.remove_signal_handler(number)

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, ask, number)
        await main(stop)

    factory = None
    if fast:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(guarded())


async def _before(stop: asyncio.Event, work: Any) -> bool:
    """Await `work` unless `stop` comes first; returns whether it was done."""
    task, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            return False
        task.result()
        return True
    finally:
        task.cancel()
        stopped.cancel()
        await asyncio.gather(task, stopped, return_exceptions=True)


def _redis_url(settings: Settings) -> str:
    if settings.redis_url is None:
        raise InvalidRequest("job queue: expected its URL in AXON_REDIS_URL or REDIS_URL, got none; or use `axon up`")
    return settings.redis_url


def _pid(embedded: EmbeddedRedis) -> int | None:
    try:
        return embedded.pid
    except NotReady:
        return None
