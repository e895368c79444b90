"""`axon serve` in processes of their own, and a model whose answers tell their version."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

START_S = 180
STOP_S = 60
NO_QUEUE = "redis://127.0.0.1:1"
"""Serving needs no job queue: nothing listens here."""

MODEL = "numbers"
WIDTH = 2
PARAMETER_BYTES = 4 * WIDTH
_STEP = 2048
_LARGEST = 2**24


@dataclass(frozen=True)
class Server:
    """A running server and where it listens."""

    process: subprocess.Popen[bytes]
    http: str
    grpc: str
    log: Path

    def stop(self) -> int:
        """Ask it to end, and wait; returns how it ended."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_S)


def start(data: Path, name: str, **settings: object) -> tuple[subprocess.Popen[bytes], Path]:
    """Begin to start a server on free ports over the data in `data`; `settings` are those of AXON_*."""
    ready, log = data.parent / f"{name}.json", data.parent / f"{name}.log"
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-m", "service", "serve", "--http-port", "0", "--grpc-port", "0"]
    command += ["--data-dir", str(data), "--ready-file", str(ready)]
    given = {f"AXON_{setting.upper()}": str(value) for setting, value in settings.items()}
    environment = os.environ | {"AXON_REDIS_URL": NO_QUEUE, "AXON_MAX_BATCH_SIZE": "4"} | given
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment), ready


def wait_ready(process: subprocess.Popen[bytes], ready: Path) -> Server:
    """Return when a server that was started answers."""
    log = ready.with_suffix(".log")
    deadline = time.monotonic() + START_S
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"axon serve did not start:\n{log.read_text()[-4000:]}")
        time.sleep(0.05)
    ports = json.loads(ready.read_text())
    return Server(process, f"http://127.0.0.1:{ports['http_port']}", f"127.0.0.1:{ports['grpc_port']}", log)


@contextmanager
def serving(data: Path, count: int = 1, **settings: object) -> Iterator[list[Server]]:
    """So many servers on one store; all are gone at the end."""
    with ExitStack() as stack:
        started = []
        for index in range(count):
            process, ready = start(data, f"server-{index}", **settings)
            stack.callback(_end, process)
            started.append((process, ready))
        yield [wait_ready(process, ready) for process, ready in started]


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def graph() -> dict[str, Any]:
    """A model that adds its parameters to every row: `y = x + mark`."""
    nodes = [
        {"name": "x", "op": "input", "options": {"shape": [None, WIDTH]}},
        {"name": "y", "op": "bias", "inputs": ["x"]},
    ]
    return {"format": "axon.graph", "version": 1, "nodes": nodes, "outputs": "y"}


def params(version: int) -> bytes:
    """The parameters of a version, which make its mark: the version's number."""
    return save({"y.bias": np.full(WIDTH, version, np.float32)})


def question(generator: np.random.Generator, rows: int) -> np.ndarray:
    """Whole numbers like no other's, which single precision has exactly, with room for a mark."""
    return (generator.integers(0, _LARGEST // _STEP, (rows, WIDTH)) * _STEP).astype(np.float32)


def mark_of(x: np.ndarray, y: np.ndarray) -> int:
    """The version that answered `x` with `y`; raises `AssertionError` for an answer to something else."""
    marks = np.unique(y - x)
    assert y.shape == x.shape, (x.shape, y.shape)
    assert len(marks) == 1, f"not the answer to this question: {x.tolist()} -> {y.tolist()}"
    assert 0 < marks[0] < _STEP, f"not the answer to this question: {x.tolist()} -> {y.tolist()}"
    return int(marks[0])
