"""The API: REST and gRPC over one core."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING

from service.adapters.clock import SystemClock
from service.adapters.health_checks import checks
from service.api.admission import Admission
from service.bootstrap.observing import build_metrics, build_observer
from service.bootstrap.stores import build_stores
from service.core.errors import NotReady
from service.core.health import HealthMonitor
from service.core.ports import Clock, Engine, JobQueue
from service.listening import Endpoints, listen
from service.settings import Settings

if TYPE_CHECKING:
    from service.api.grpc.transport.server import GrpcServer
    from service.api.rest.asgi import App
    from service.api.rest.context import Context
    from service.api.rest.fast_lane import FastLane
    from service.api.rest.server import Server
    from service.core.datasets import DatasetUses
    from service.core.registry import Registry
    from service.core.webhook_delivery import WebhookStore

_READY_POLL_S = 0.05
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
        from service.api.repository import ModelRepository
        from service.core.inference import InferenceService
        from service.core.uploads import UploadService

        self._settings = settings
        clock, limits = SystemClock(), settings.limits()
        self._stores = stores = build_stores(settings, clock)
        self.registry = self._build_registry(engine, clock)
        watched = checks(stores.models, queue, settings.data_dir, min_free_bytes=settings.min_free_bytes)
        self._health = HealthMonitor(watched, clock, served=self.registry.served, stalled_s=settings.stalled_s)
        self._inference = InferenceService(self.registry, "axon", version("axon-server"), clock, self._health)
        self._repository = ModelRepository(self.registry, limits)
        self._stopping = asyncio.Event()
        self._uploads = UploadService(stores.uploads, clock, limits)
        self._context = self._build_context(queue, engine, webhooks, uses, clock)
        self._observer = build_observer(settings, clock)
        self._metrics: Server | None = None
        self._admission = Admission(
            max_connections=settings.max_connections, max_bodies_bytes=settings.max_bodies_bytes
        )
        self._measured = build_metrics(self._inference, self.registry, queue, self._observer, self._admission)
        self._http = self._build_http()
        self._grpc = self._build_grpc()
        self._tasks: list[asyncio.Task[None]] = []

    def _build_context(
        self, queue: JobQueue, engine: Engine, webhooks: WebhookStore | None, uses: DatasetUses, clock: Clock
    ) -> Context:
        from service.adapters.dataset_files import FileDatasetReader  # imports JAX
        from service.api.observation import current_traceparent
        from service.api.rest.context import Context
        from service.core.datasets import DatasetService
        from service.core.jobs import JobService
        from service.core.starts import Starts

        settings, stores = self._settings, self._stores
        limits, datasets = settings.limits(), stores.datasets
        reader = FileDatasetReader(timeout_s=settings.convert_s, memory_bytes=settings.max_convert_bytes)
        starts = Starts(stores.models, stores.checkpoints, queue)
        return Context(
            self.registry,
            DatasetService(datasets, datasets.scratch, reader, clock, limits, uses, self._uploads),
            JobService(queue, datasets, engine, clock, limits, webhooks, starts=starts, trace=current_traceparent),
            self._uploads,
            limits,
            self._stopping,
        )

    def _build_registry(self, engine: Engine, clock: Clock) -> Registry:
        from service.core.registry import Registry

        settings = self._settings
        return Registry(
            self._stores.models,
            engine,
            clock,
            settings.serving(),
            poll_s=settings.registry_poll_s,
            max_loaded_bytes=settings.max_loaded_bytes,
            board=self._stores.board,
            executions_at_once=settings.executions_at_once,
        )

    def _build_http(self) -> Server:
        from service.api import metrics
        from service.api.rest import v1_status, v2, v2_operation, v2_repository
        from service.api.rest.app import create_app
        from service.api.rest.dispatch import Dispatcher
        from service.api.rest.fast_lane import FastLane

        settings = self._settings
        if settings.metrics_port is not None:
            alone = metrics.alone(self._measured.routes)
            self._metrics = self._server(alone)
        routers = (
            v2.router(self._inference),
            v2_repository.router(self._repository, max_body_bytes=settings.max_request_bytes),
            v2_operation.router(self._inference),
            v1_status.router(self._inference),
            self._measured.routes,
        )
        app = create_app(self._context, routers, version=version("axon-server"))
        largest, observer, admission = settings.max_request_bytes, self._observer, self._admission
        dispatcher = Dispatcher(
            app,
            self._inference,
            max_body_bytes=largest,
            max_json_bytes=settings.max_json_bytes,
            observer=observer,
            admission=admission,
        )
        clock = SystemClock()
        lane = FastLane(self._inference, clock, max_body_bytes=largest, observer=observer, admission=admission)
        return self._server(dispatcher, lane, admission)

    def _server(self, app: App, lane: FastLane | None = None, admission: Admission | None = None) -> Server:
        from service.api.rest.server import build_server

        use = self._settings
        return build_server(
            app,
            backlog=use.backlog,
            drain_s=use.drain_s,
            patience_s=use.client_patience_s,
            keep_alive_s=use.keep_alive_s,
            lane=lane,
            admission=admission,
        )

    def _build_grpc(self) -> GrpcServer:
        from service.api.grpc import axon_v1
        from service.api.grpc.server import build_server

        use = self._context
        servicers = axon_v1.servicers(use.registry, use.datasets, use.jobs, use.uploads, use.limits, use.stopping)
        largest = self._settings.max_request_bytes
        return build_server(
            self._inference,
            self._repository,
            extra_servicers=servicers,
            max_message_bytes=largest,
            patience_s=self._settings.client_patience_s,
            observer=self._observer,
            admission=self._admission,
        )

    async def start(self) -> Endpoints:
        """Listen on both ports and begin to load what shall be loaded; raises `OSError` for a port that is taken."""
        settings = self._settings
        listener = listen("REST", settings.host, settings.http_port, settings.backlog)
        try:
            grpc_listener = listen("gRPC", settings.host, settings.grpc_port, settings.backlog)
        except OSError:
            listener.close()
            raise
        if self._metrics is not None and settings.metrics_port is not None:
            try:
                measured = listen("metrics", settings.host, settings.metrics_port, settings.backlog)
            except OSError:
                listener.close()
                grpc_listener.close()
                raise
            self._tasks.append(asyncio.create_task(self._metrics.serve(sockets=[measured])))
        if self._observer is not None:
            self._observer.start()
        await self._grpc.start(grpc_listener)
        self._tasks.append(asyncio.create_task(self._http.serve(sockets=[listener])))
        self._tasks.append(asyncio.create_task(self.registry.run(self._stopping)))
        self._tasks.append(asyncio.create_task(self._uploads.run(self._stopping)))
        self._tasks.append(asyncio.create_task(self._health.run(self._stopping)))
        self._tasks.append(asyncio.create_task(self._measured.lag.run(self._stopping)))
        return Endpoints(settings.host, listener.getsockname()[1], grpc_listener.getsockname()[1])

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
        if self._observer is not None:
            await asyncio.to_thread(self._observer.close, _LEAST_CLOSE_S)
        if not ended:  # the store hangs, so what lies there is left to the next start
            return False
        self._stores.close()
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
