"""The API and workers with nothing in common but a bucket and Redis: train, lose the worker, serve, lose the bucket."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio

from service.adapters.embedded_redis import EmbeddedRedis
from service.client import Client
from tests import servers
from tests.s3 import S3, running
from tests.service.waiting import WAIT_S

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif("STORE" not in os.environ, reason="part of make store-test, which takes a minute"),
]

GRAPH = {
    "format": "axon.graph",
    "version": 1,
    "nodes": [
        {"name": "x", "op": "input", "options": {"shape": [None, 4], "dtype": "f32"}},
        {"name": "dense_0", "op": "dense", "inputs": ["x"], "options": {"units": 1}},
    ],
    "outputs": "dense_0",
}


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    """A real S3-compatible server."""
    with running() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def environment(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the processes share."""
    redis = EmbeddedRedis(tmp_path_factory.mktemp("redis"))
    await redis.start()
    shared = {**s3.environment, "AXON_STORE_URL": s3.bucket(), "AXON_REDIS_URL": redis.url, "AXON_JOB_LEASE_S": "2"}
    yield shared | {"AXON_WORKER_DEVICE": "cpu", "AXON_JOB_RETRY_BASE_S": "0.1"}
    await redis.stop()


@contextlib.contextmanager
def working(folder: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A worker with a data folder of its own."""
    folder.mkdir()
    command = [sys.executable, "-m", "service", "worker"]
    variables = os.environ | environment | {"AXON_DATA_DIR": str(folder)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=variables)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(WAIT_S)


@contextlib.contextmanager
def serving(folder: Path, name: str, environment: Mapping[str, str]) -> Iterator[servers.Server]:
    """A replica with a data folder of its own."""
    with servers.started(folder / name, name, environment) as (process, ready):
        yield servers.wait_ready(process, ready)


def until(condition: Callable[[], Any]) -> Any:
    """Poll until it is true."""
    deadline = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def test_machines_share_nothing_but_the_bucket(environment: dict[str, str], s3: S3, tmp_path: Path) -> None:
    """A killed worker's job goes on from its checkpoint on another machine; every replica serves what came of it."""
    x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    y = x @ np.array([[1.0], [-2.0], [3.0], [0.5]], np.float32)
    with serving(tmp_path, "one", environment) as one, Client(one.url, piece_bytes=1000) as client:
        dataset = client.add_dataset({"x": x, "y": y}, name="lines")["id"]
        spec = {
            "model": "lines", "graph": GRAPH, "dataset": dataset, "target": "y", "loss": "mean_squared_error",
            "optimizer": {"name": "adam", "learning_rate": 0.05}, "epochs": 400, "batch_size": 8, "seed": 1,
            "checkpoint_every_s": 0.2, "on_success": {"alias": "prod", "load": True},
        }  # fmt: skip
        with working(tmp_path / "first", environment) as worker:
            job = client.train(spec)["id"]
            next(event for event in client.watch(job) if event.kind == "checkpoint")
            worker.kill()
        with working(tmp_path / "second", environment):
            assert client.wait(job)["state"] == "succeeded"
        events = [event.data for event in client.watch(job)]
        assert client.job(job)["attempt"] == 2, events
        client.wait_served("lines")
        answer = client.infer("lines", {"x": x[:4]})["dense_0"]
        np.testing.assert_allclose(answer, y[:4], atol=0.2)
        with serving(tmp_path, "two", environment) as two, Client(two.url) as other:
            other.wait_served("lines")
            np.testing.assert_array_equal(other.infer("lines", {"x": x[:4]})["dense_0"], answer)
            s3.fail({"kind": "error", "count": 10**9})
            until(lambda: httpx.get(f"{two.url}/v2/health/ready").status_code == 503)
            parts = {part["part"]: part for part in httpx.get(f"{two.url}/v1/status").json()["parts"]}
            assert "the object store does not answer" in parts["store"]["reason"]
            np.testing.assert_array_equal(other.infer("lines", {"x": x[:4]})["dense_0"], answer)
            assert httpx.get(f"{two.url}/v1/datasets").status_code == 503
            s3.fail()
            until(lambda: httpx.get(f"{two.url}/v2/health/ready").status_code == 200)
            assert [found["id"] for found in other.datasets()] == [dataset]
