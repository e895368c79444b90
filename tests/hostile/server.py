"""`axon serve` in a process of its own with small limits, and what it takes: memory, descriptors, threads."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from service.adapters.embedded_redis import EmbeddedRedis
from service.client import Client

START_S = 120.0
STOP_S = 60.0
MAX_BATCH = 4
WIDTH = 4
MODEL = "sums"
FLOATS = "floats"
SPARE = "spare"
"""A model that clients may load, unload, move and delete."""
PATIENCE_S = 4.0
"""How long the server waits for a silent client in mid-request."""
LIMITS = {
    "AXON_REDIS_URL": "redis://127.0.0.1:1",
    "AXON_MAX_BATCH_SIZE": str(MAX_BATCH),
    "AXON_MAX_REQUEST_BYTES": str(2**20),
    "AXON_MAX_GRAPH_BYTES": str(2**16),
    "AXON_MAX_BUNDLE_BYTES": str(2**20),
    "AXON_MAX_DATASET_BYTES": str(2**20),
    "AXON_CLIENT_PATIENCE_S": str(PATIENCE_S),
    "AXON_MIN_FREE_BYTES": "0",
}


def graph(dtype: str) -> dict[str, Any]:
    """`total` = x + x, and `x` itself: exact for integers."""
    return {
        "format": "axon.graph",
        "version": 1,
        "nodes": [
            {"name": "x", "op": "input", "options": {"shape": [None, WIDTH], "dtype": dtype}},
            {"name": "total", "op": "add", "inputs": ["x", "x"]},
        ],
        "outputs": "total",
    }


@dataclass(frozen=True)
class Footprint:
    """What a process takes."""

    rss_bytes: int
    descriptors: int
    threads: int


@dataclass(frozen=True)
class Target:
    """The server: where it listens, its process, its log."""

    host: str
    http_port: int
    grpc_port: int
    process: subprocess.Popen[bytes]
    log: Path

    def alive(self) -> bool:
        """Whether its process runs."""
        return self.process.poll() is None

    def footprint(self) -> Footprint:
        """As Linux tells it."""
        proc = Path(f"/proc/{self.process.pid}")
        resident = int((proc / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        threads = next(
            int(line.split()[1]) for line in (proc / "status").read_text().splitlines() if line.startswith("Threads")
        )
        return Footprint(resident, len(os.listdir(proc / "fd")), threads)

    def tracebacks(self) -> list[str]:
        """What broke in it, from its log."""
        lines = self.log.read_text(errors="replace").splitlines()
        found = [index for index, line in enumerate(lines) if line.startswith("Traceback")]
        return [" | ".join(lines[max(0, index - 1) : index + 30])[-800:] for index in found]

    def right(self) -> bool:
        """Whether a known request gets its answer."""
        x = np.arange(WIDTH, dtype=np.int64)[None] - 2**62
        with Client(f"http://{self.host}:{self.http_port}") as client:
            return bool((client.infer(MODEL, {"x": x})["total"] == x + x).all())


@contextmanager
def queue() -> Iterator[dict[str, str]]:
    """A queue of its own for the server, as a setting: jobs are taken and nobody works on them."""
    with tempfile.TemporaryDirectory(prefix="axon-queue-") as folder, asyncio.Runner() as runner:
        redis = EmbeddedRedis(Path(folder))
        runner.run(redis.start())
        try:
            yield {"AXON_REDIS_URL": redis.url}
        finally:
            runner.run(redis.stop())


@contextmanager
def serving(settings: dict[str, str] | None = None) -> Iterator[Target]:
    """A server on free ports with an INT64 and an FP32 model."""
    with tempfile.TemporaryDirectory(prefix="axon-hostile-") as name:
        folder = Path(name)
        ready, log = folder / "ready.json", folder / "axon.log"
        command = [sys.executable, "-m", "service", "serve", "--http-port", "0", "--grpc-port", "0"]
        command += ["--data-dir", str(folder / "data"), "--ready-file", str(ready)]
        with log.open("w") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | LIMITS | (settings or {})
            )
        try:
            target = _ready(process, ready, log)
            with Client(f"http://{target.host}:{target.http_port}") as client:
                client.submit(MODEL, graph=graph("s64"), alias="prod")
                client.submit(FLOATS, graph=graph("f32"))
                client.submit(SPARE, graph=graph("s32"))
            yield target
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise


def _ready(process: subprocess.Popen[bytes], ready: Path, log: Path) -> Target:
    deadline = time.monotonic() + START_S
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"axon serve did not start:\n{log.read_text()[-4000:]}")
        time.sleep(0.05)
    ports = json.loads(ready.read_text())
    return Target("127.0.0.1", ports["http_port"], ports["grpc_port"], process, log)
