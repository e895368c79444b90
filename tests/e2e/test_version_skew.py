"""An old worker under a new API, a new worker under an old API: one data folder, one Redis, both versions of the code.

The old one is the last released format's, checked out of this repository's history.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from service.adapters.embedded_redis import EmbeddedRedis
from service.client import Client
from tests import servers
from tests.golden.write import GRAPH
from tests.service.waiting import WAIT_S

ROOT = Path(__file__).parents[2]
OLD = "2edd701"
"""The commit whose formats are in tests/golden/0.1.0."""

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif("STORE" not in os.environ, reason="part of make store-test, which takes a minute"),
]


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The old code."""
    git = ["git", "-C", str(ROOT)]
    if subprocess.run([*git, "cat-file", "-e", f"{OLD}^{{commit}}"], capture_output=True).returncode:
        pytest.skip(f"the history is not here: there is no commit {OLD}")
    folder = tmp_path_factory.mktemp("old") / "code"
    folder.mkdir()
    archive = subprocess.run([*git, "archive", OLD, "engine", "service"], capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


@pytest_asyncio.fixture
async def redis() -> Any:
    """An empty queue."""
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        server = EmbeddedRedis(Path(place))
        await server.start()
        yield server.url
        await server.stop()


@contextlib.contextmanager
def working(data: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """A worker on a data folder."""
    command = [sys.executable, "-m", "service", "worker", "--data-dir", str(data)]
    with (data.parent / "worker.log").open("wb") as log:
        variables = os.environ | environment
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=variables)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(WAIT_S)


def imported(environment: Mapping[str, str]) -> Path:
    """Where a process with this environment has its code from."""
    command = [sys.executable, "-c", "import service; print(service.__file__)"]
    variables = os.environ | environment
    return Path(subprocess.run(command, env=variables, capture_output=True, check=True, text=True).stdout.strip())


@pytest.mark.parametrize("side", ["old worker", "old API"])
def test_versions_work_together(side: str, old: Path, redis: str, tmp_path: Path) -> None:
    """A job is submitted, trained, published, promoted and served; its events and its worker are seen."""
    code = {"API": str(ROOT), "worker": str(ROOT)} | {side.removeprefix("old "): str(old)}
    shared = {"AXON_REDIS_URL": redis, "AXON_WORKER_DEVICE": "cpu", "PYTHONSAFEPATH": "1"}
    x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    y = x @ np.array([[1.0], [-2.0], [3.0], [0.5]], np.float32)
    data = tmp_path / "data"
    data.mkdir()
    api, worker = ({**shared, "PYTHONPATH": code[part]} for part in ("API", "worker"))
    for part, environment in (("API", api), ("worker", worker)):
        assert imported(environment) == Path(code[part]) / "service" / "__init__.py"
    serving = servers.started(data, "api", api)
    with working(data, worker), serving as (process, ready), Client(servers.wait_ready(process, ready).url) as client:
        dataset = client.add_dataset({"x": x, "y": y}, name="lines")["id"]
        spec = {
            "model": "lines", "graph": GRAPH, "dataset": dataset, "target": "y", "loss": "mean_squared_error",
            "optimizer": {"name": "adam", "learning_rate": 0.05}, "epochs": 40, "batch_size": 8, "seed": 1,
            "on_success": {"alias": "prod", "load": True},
        }  # fmt: skip
        job = client.wait(client.train(spec)["id"])
        assert job["state"] == "succeeded", job
        client.wait_served("lines")
        np.testing.assert_allclose(client.infer("lines", {"x": x[:4]})["dense_0"], y[:4], atol=0.5)
        assert len(client.workers()) == 1
        kinds = {event.kind for event in client.watch(job["id"])}
        assert {"state", "progress"} <= kinds
        client.train({**spec, "start": {"model": "lines"}, "graph": None, "epochs": 1})
