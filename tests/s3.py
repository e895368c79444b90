"""A server of `tests.s3_server` in a process of its own, and buckets on it."""

from __future__ import annotations

import contextlib
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from tests.service.waiting import WAIT_S

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


@dataclass
class S3:
    """A running server; `environment` is what its clients need."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        """Its endpoint."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """Endpoint and keys, as the cloud's own tools have them."""
        return {**KEYS, "AWS_ENDPOINT_URL": self.url}

    def bucket(self) -> str:
        """A new bucket's URL, with a prefix."""
        name = f"bucket-{secrets.token_hex(6)}"
        httpx.put(f"{self.url}/{name}").raise_for_status()
        return f"s3://{name}/some/where"

    def fail(self, *faults: dict[str, Any]) -> None:
        """How the next requests fail; see `tests.s3_server.Faults`."""
        httpx.post(f"{self.url}/faults", json=faults).raise_for_status()


@contextlib.contextmanager
def running() -> Iterator[S3]:
    """A server on a free port, with nothing in it; gone at the end."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "tests.s3_server", str(port)])
    try:
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
        yield S3(port, process)
    finally:
        process.kill()
        process.wait()
