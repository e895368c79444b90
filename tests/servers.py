"""`axon serve` in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_S = 180
STOP_S = 60
NO_QUEUE = "redis://127.0.0.1:1"
"""Serving needs no job queue: nothing listens here."""


@dataclass(frozen=True)
class Server:
    """A running server, the ports it listens on and the file it logs to."""

    process: subprocess.Popen[bytes]
    http_port: int
    grpc_port: int
    log: Path

    @property
    def http(self) -> str:
        """`host:port` of REST."""
        return f"127.0.0.1:{self.http_port}"

    @property
    def grpc(self) -> str:
        """`host:port` of gRPC."""
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def url(self) -> str:
        """The base of REST."""
        return f"http://{self.http}"

    def stop(self) -> int:
        """Ask it to end, and wait; returns how it ended."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_S)


@contextmanager
def started(data: Path, name: str, environment: Mapping[str, str]) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A server that begins to start on free ports over the data in `data`, and the file that tells when it is ready.

    It has no queue unless `environment` names one. At the end it is gone; one that does not end by itself fails.
    """
    ready, log = data.parent / f"{name}.json", data.parent / f"{name}.log"
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-m", "service", "serve", "--http-port", "0", "--grpc-port", "0"]
    command += ["--data-dir", str(data), "--ready-file", str(ready)]
    variables = os.environ | {"AXON_REDIS_URL": NO_QUEUE} | environment
    with log.open("ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=variables)
    try:
        yield process, ready
    finally:
        _end(process)


def wait_ready(process: subprocess.Popen[bytes], ready: Path) -> Server:
    """Return when a server that was started answers."""
    log = ready.with_suffix(".log")
    deadline = time.monotonic() + START_S
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"axon serve did not start:\n{log.read_text()[-4000:]}")
        time.sleep(0.05)
    ports = json.loads(ready.read_text())
    return Server(process, ports["http_port"], ports["grpc_port"], log)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise
