"""`axon up`: everything on one machine."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from service.adapters.clock import SystemClock
from service.adapters.embedded_redis import EmbeddedRedis
from service.adapters.kept_process import KeptProcess
from service.adapters.redis_jobs import RedisJobQueue
from service.bootstrap.queue import build_queue
from service.bootstrap.running import before
from service.core.errors import NotReady
from service.listening import Endpoints, Report, report
from service.settings import Settings

_READY_POLL_S = 0.05
_STOP_MARGIN_S = 10.0


async def up(settings: Settings, stop: asyncio.Event, on_ready: Callable[[Report], None]) -> None:
    """`axon up`: API, worker and, unless a queue's URL is set, a Valkey; each a child that is started again if it dies.

    This process imports neither JAX nor gRPC: it stays small, and it may fork whenever it must. `on_ready` is called
    when everything answers, and again whenever a child was replaced.
    """
    embedded = None if settings.redis_url else EmbeddedRedis(settings.data_dir / "queue")
    if embedded is not None:
        await embedded.start()
        queue_file(settings).parent.mkdir(parents=True, exist_ok=True)
        queue_file(settings).write_text(json.dumps({"url": embedded.url}))
    try:
        url = settings.redis_url or (embedded.url if embedded is not None else "")
        children = _Children(settings, url)
        queue = build_queue(settings, url)
        try:
            await children.start()
            if await before(stop, _everything_answers(children, queue)):
                await _keep_reporting(settings, stop, on_ready, children, embedded)
        finally:
            await children.stop()
            await queue.close()
    finally:
        if embedded is not None:
            queue_file(settings).unlink(missing_ok=True)
            await embedded.stop()


def queue_file(settings: Settings) -> Path:
    """Where `axon up` says how the queue of its own is reached, for `axon backup`."""
    return settings.data_dir / "run" / "queue.json"


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
        await before(stop, asyncio.sleep(_READY_POLL_S))


def _command(name: str) -> list[str]:
    return [sys.executable, "-P", "-m", "service", name, "--parent", str(os.getpid())]


def _pid(embedded: EmbeddedRedis) -> int | None:
    try:
        return embedded.pid
    except NotReady:
        return None
