"""`axon serve` in processes of their own, and a model of whole numbers whose answers tell their version."""

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

START_S = 180
STOP_S = 60
NO_QUEUE = "redis://127.0.0.1:1"
"""Serving needs no job queue: nothing listens here."""

MODEL = "numbers"
WIDTH = 2
_STEP = 1000


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


def graph(mark: int) -> dict[str, Any]:
    """A model that adds `mark`, less than a thousand, to every number: `y = x + mark`."""
    nodes = [
        {"name": "x", "op": "input", "options": {"shape": [None, WIDTH], "dtype": "s32"}},
        {"name": "mark", "op": "constant", "options": {"value": [[mark] * WIDTH], "dtype": "s32"}},
        {"name": "y", "op": "add", "inputs": ["x", "mark"]},
    ]
    return {"format": "axon.graph", "version": 1, "nodes": nodes, "outputs": "y"}


def question(generator: np.random.Generator, rows: int) -> np.ndarray:
    """Numbers like no other's, multiples of a thousand."""
    return (generator.integers(0, 2_000_000, (rows, WIDTH)) * _STEP).astype(np.int32)


def mark_of(x: np.ndarray, y: np.ndarray) -> int:
    """The mark of the model that answered `x` with `y`; raises `AssertionError` for an answer to something else."""
    marks = np.unique(y - x)
    assert y.shape == x.shape, (x.shape, y.shape)
    assert len(marks) == 1, f"not the answer to this question: {x.tolist()} -> {y.tolist()}"
    return int(marks[0])
