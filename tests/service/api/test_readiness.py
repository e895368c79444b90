"""Readiness over both wires while things break for real: how soon it flips, that it comes back, that live stays."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.adapters.clock import SystemClock
from service.adapters.file_store import FileModelStore
from service.adapters.health_checks import checks
from service.adapters.redis_jobs import RedisJobQueue, connect
from service.api.grpc.generated import inference_pb2 as pb
from service.api.grpc.generated import inference_pb2_grpc as pb_grpc
from service.api.grpc.server import build_server
from service.api.repository import ModelRepository
from service.api.rest import errors, v1_status, v2
from service.core.errors import DeadlineExceeded, InvalidModel
from service.core.health import HealthMonitor
from service.core.inference import InferenceService
from service.core.limits import Limits
from service.core.registry import Registry
from service.core.types import InferRequest, ServingConfig
from tests.service.api.grpc.listening import started
from tests.service.fake_engine import FakeEngine, FakeModel, bundle_bytes
from tests.service.waiting import wait_until

FLIPS_WITHIN_S = 5.0
NO_REDIS = "redis://127.0.0.1:1"
FLOOR = 1000
TIMEOUT_US = 1_000_000


class HangingModel(FakeModel):
    """Computes for as long as `gate` is closed."""

    def __init__(self, scale: float, gate: threading.Event) -> None:
        super().__init__(scale)
        self._gate = gate

    def run(self, inputs: Mapping[str, np.ndarray], *arguments: int) -> dict[str, np.ndarray]:
        assert self._gate.wait(60)
        return super().run(inputs, *arguments)


class HangingEngine(FakeEngine):
    """Loads models that hang."""

    def __init__(self, gate: threading.Event) -> None:
        super().__init__()
        self._running = gate

    def load(self, path: Path, config: ServingConfig) -> FakeModel:
        return HangingModel(super().load(path, config).scale, self._running)


@dataclass
class Wires:
    """A served model `m` over both wires, the store under it, and a disk with `free` bytes."""

    root: Path
    free: int = 10 * FLOOR
    http: httpx.AsyncClient = field(init=False)
    protocol: Any = field(init=False)
    health: Any = field(init=False)
    inference: InferenceService = field(init=False)
    registry: Registry = field(init=False)
    engine: FakeEngine = field(init=False)
    watched: list[int] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)

    async def ready(self) -> bool:
        """What all wires agree on."""
        rest = (await self.http.get("/v2/health/ready")).status_code == 200
        own = (await self.protocol.ServerReady(pb.ServerReadyRequest())).ready
        common = (await self.health.Check(health_pb2.HealthCheckRequest())).status
        watched = self.watched[-1:] == [health_pb2.HealthCheckResponse.SERVING]
        return {rest, own, common == health_pb2.HealthCheckResponse.SERVING, watched} == {True}

    async def unready(self) -> bool:
        """No wire says ready."""
        rest = (await self.http.get("/v2/health/ready")).status_code == 503
        own = not (await self.protocol.ServerReady(pb.ServerReadyRequest())).ready
        return rest and own and self.watched[-1:] == [health_pb2.HealthCheckResponse.NOT_SERVING]

    async def still_answers(self) -> None:
        """Live on both wires, and predictions of what is loaded."""
        assert (await self.http.get("/v2/health/live")).json() == {"live": True}
        assert (await self.protocol.ServerLive(pb.ServerLiveRequest())).live
        answer = await self.inference.infer(InferRequest("m", None, {"x": np.ones((1, 2), np.float32)}))
        assert answer.outputs["y"].tolist() == [[3, 3]]

    async def watch(self) -> None:
        """Note what the common health protocol tells by itself."""
        async for reply in self.health.Watch(health_pb2.HealthCheckRequest()):
            self.watched.append(reply.status)


@pytest.fixture
async def wires(tmp_path: Path) -> AsyncIterator[Wires]:
    """Ready, with the monitor's own periods; the queue's server is away."""
    made, clock, stop = Wires(tmp_path), SystemClock(), asyncio.Event()
    models, queue = FileModelStore(tmp_path, clock), RedisJobQueue(connect(NO_REDIS), clock)
    made.gate.set()
    made.engine, config = HangingEngine(made.gate), ServingConfig(default_timeout_us=TIMEOUT_US)
    made.registry = registry = Registry(models, made.engine, clock, config, poll_s=0.05)
    watched = checks(models, queue, tmp_path, min_free_bytes=FLOOR, free_bytes=lambda path: made.free)
    monitor = HealthMonitor(watched, clock, served=registry.served)
    made.inference = InferenceService(registry, "axon", "1", clock, monitor)
    app = FastAPI()
    errors.install(app)
    for router in (v2.router(made.inference), v1_status.router(made.inference)):
        app.include_router(router)
    server = build_server(made.inference, ModelRepository(registry, Limits()), max_message_bytes=2**20)
    port = await started(server)
    tasks = [asyncio.create_task(registry.run(stop)), asyncio.create_task(monitor.run(stop))]
    await wait_until(registry.ready)
    async with (
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as made.http,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        made.protocol = pb_grpc.GRPCInferenceServiceStub(channel)
        made.health = health_pb2_grpc.HealthStub(channel)
        watching = asyncio.create_task(made.watch())
        upload = tmp_path / "upload"
        upload.write_bytes(bundle_bytes(tmp_path, 3))
        await registry.submit("m", upload)
        await wait_until(made.ready)
        yield made
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            await watching
    stop.set()
    await server.stop(0)
    await asyncio.gather(*tasks)
    await registry.close()
    await queue.close()
    models.close()


async def test_failed_version_is_told_and_changes_nothing_else(wires: Wires, tmp_path: Path):
    """The old one serves, the server stays ready, and the status says what is degraded and why."""
    assert (await wires.http.get("/v1/status")).json()["models"] == {"degraded": {}}
    wires.engine.fail[4] = InvalidModel("too large for this device")
    (tmp_path / "upload").write_bytes(bundle_bytes(tmp_path, 4))
    with pytest.raises(InvalidModel):
        await wires.registry.submit("m", tmp_path / "upload", alias="prod")
    reasons = ["version 2 did not load: too large for this device"]
    assert (await wires.http.get("/v1/status")).json()["models"] == {"degraded": {"m": reasons}}
    assert await wires.ready()
    await wires.still_answers()


async def flips(wires: Wires, part: str, reason: str) -> None:
    """All wires say not ready in time, the status says why, and predictions go on."""
    began = time.monotonic()
    await wait_until(wires.unready)
    assert time.monotonic() - began < FLIPS_WITHIN_S
    status = (await wires.http.get("/v1/status")).json()
    assert (status["live"], status["ready"]) == (True, False)
    assert [each.startswith(f"{part}: {reason}") for each in status["reasons"]] == [True]
    assert reason in (await wires.http.get("/v2/health/ready")).json()["error"]
    await wires.still_answers()


async def comes_back(wires: Wires) -> None:
    """As soon."""
    began = time.monotonic()
    await wait_until(wires.ready)
    assert time.monotonic() - began < FLIPS_WITHIN_S
    await wires.still_answers()


async def test_store_that_goes_away_and_comes_back(wires: Wires):
    """Its folder is removed, then an empty one lies in its place as under a lost mount: no model is forgotten."""
    models, away = wires.root / "models", wires.root / "away"
    models.rename(away)
    await flips(wires, "store", "the store of models is not there")
    models.mkdir()
    await asyncio.sleep(0.3)  # several polls of the registry over an empty folder
    assert not await wires.ready()
    await wires.still_answers()
    models.rmdir()
    away.rename(models)
    await comes_back(wires)


async def test_full_disk(wires: Wires):
    """Below the floor and above it again."""
    wires.free = FLOOR - 1
    await flips(wires, "disk", f"expected at least {FLOOR} bytes free, got {FLOOR - 1}")
    wires.free = FLOOR
    await comes_back(wires)


async def test_execution_that_hangs(wires: Wires):
    """Its caller is told in time, and soon everybody that the server hangs; when it ends after all, it is ready."""
    wires.gate.clear()
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await wires.inference.infer(InferRequest("m", None, {"x": np.ones((1, 2), np.float32)}))
    await wait_until(wires.unready)
    assert TIMEOUT_US * 1e-6 < time.monotonic() - began < FLIPS_WITHIN_S
    status = (await wires.http.get("/v1/status")).json()
    assert status["reasons"][0].startswith("runtime: model 'm' version 1 has been computing one batch for")
    assert (await wires.http.get("/v2/health/live")).json() == {"live": True}
    wires.gate.set()
    await comes_back(wires)


async def test_queue_away_is_only_told(wires: Wires):
    """Predictions need no Redis: ready all the time, and the status tells of it."""

    async def told() -> bool:
        status = (await wires.http.get("/v1/status")).json()
        assert status["ready"]
        assert status["reasons"] == []
        return any(part["part"] == "queue" and not part["ok"] and part["reason"] for part in status["parts"])

    await wait_until(told)
    assert await wires.ready()
