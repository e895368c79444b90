"""`axon serve` in a process of its own with small limits, and what it takes: memory, descriptors, threads."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from service.adapters.embedded_redis import EmbeddedRedis
from service.client import Client
from tests.servers import started, wait_ready

MAX_BATCH = 4
WIDTH = 4
MODEL = "sums"
FLOATS = "floats"
SPARE = "spare"
"""A model that clients may load, unload, move and delete."""
PATIENCE_S = 4.0
"""How long the server waits for a silent client in mid-request."""
LIMITS = {
    "AXON_MAX_BATCH_SIZE": str(MAX_BATCH),
    "AXON_MAX_REQUEST_BYTES": str(2**20),
    "AXON_MAX_GRAPH_BYTES": str(2**16),
    "AXON_MAX_BUNDLE_BYTES": str(2**20),
    "AXON_MAX_DATASET_BYTES": str(2**20),
    "AXON_CLIENT_PATIENCE_S": str(PATIENCE_S),
    "AXON_MIN_FREE_BYTES": "0",
    "AXON_MAX_QUEUE_WAIT_US": "60000000",  # on a busy machine right requests would be refused, as they should
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
    with (
        tempfile.TemporaryDirectory(prefix="axon-hostile-") as folder,
        started(Path(folder) / "data", "axon", LIMITS | (settings or {})) as (process, ready),
    ):
        server = wait_ready(process, ready)
        with Client(server.url) as client:
            client.submit(MODEL, graph=graph("s64"), alias="prod")
            client.submit(FLOATS, graph=graph("f32"))
            client.submit(SPARE, graph=graph("s32"))
        yield Target("127.0.0.1", server.http_port, server.grpc_port, process, server.log)
