"""`axon up` as a program: its processes, how it starts again, how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest

from service.client import Client, ClientError

pytestmark = pytest.mark.e2e

GRAPH = {
    "format": "axon.graph",
    "version": 1,
    "nodes": [
        {"name": "x", "op": "input", "options": {"shape": [None, 4]}},
        {"name": "y", "op": "dense", "inputs": ["x"], "options": {"units": 3}},
    ],
    "outputs": "y",
}
X = np.ones((2, 4), np.float32)
START_S = 120.0
STOP_S = 60.0


class Program:
    """`axon up` on free ports, with its data in `folder`."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.ready = folder / "ready.json"
        self.ready.unlink(missing_ok=True)
        self.log = folder / "log"
        command = [sys.executable, "-m", "service", "up", "--data-dir", str(folder / "data")]
        command += [*arguments] if arguments else ["--http-port", "0", "--grpc-port", "0"]
        clean = {k: v for k, v in os.environ.items() if k != "REDIS_URL" and not k.startswith("AXON_")}
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.metrics_port = free.getsockname()[1]
        clean |= {"AXON_DRAIN_S": "5", "AXON_METRICS_PORT": str(self.metrics_port)}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [*command, "--ready-file", str(self.ready)], stdout=log, stderr=log, env=clean
            )

    def report(self) -> dict[str, Any]:
        """Ports and process ids, once everything answers."""
        until(lambda: self.ready.exists() or self.process.poll() is not None, START_S, self.log)
        assert self.ready.exists(), self.log.read_text()
        return json.loads(self.ready.read_text())

    def kill(self) -> None:
        """Leave nothing behind, however a test ended."""
        self.process.kill()
        self.process.wait(STOP_S)


def until(condition: Callable[[], bool], within_s: float, log: Path) -> None:
    """Ask until it is true; shows the log when it never is."""
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process runs (one that has ended but was not waited for does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the data stay over restarts."""
    return tmp_path_factory.mktemp("up")


@pytest.fixture
def program(folder: Path) -> Iterator[Program]:
    """A started program."""
    program = Program(folder)
    yield program
    program.kill()


def answers(client: Client) -> bool:
    """Whether the model predicts."""
    try:
        return client.infer("m", {"x": X})["y"].shape == (2, 3)
    except ClientError:
        return False


def test_killed_api_comes_back_with_its_models_and_nothing_outlives_the_program(program: Program):
    """The API is started again on its ports and loads what it had; SIGKILL of the program ends every child."""
    report = program.report()
    pids = report["pids"]
    assert pids["up"] == program.process.pid
    with Client(report["http"]) as client:
        assert client.submit("m", graph=GRAPH, alias="prod")["state"] == "READY"
        before = client.infer("m", {"x": X})["y"]
        assert client.workers()[0]["state"] == "idle"
        os.kill(pids["api"], signal.SIGKILL)
        until(lambda: json.loads(program.ready.read_text())["pids"]["api"] not in (None, pids["api"]), 30, program.log)
        until(lambda: answers(client), START_S, program.log)
        np.testing.assert_array_equal(client.infer("m", {"x": X})["y"], before)
    children = [pid for pid in json.loads(program.ready.read_text())["pids"].values() if pid != program.process.pid]
    assert all(map(alive, children))
    program.process.kill()
    program.process.wait(STOP_S)
    until(lambda: not any(map(alive, children)), 10, program.log)


def test_restart_on_the_same_data_serves_again_and_sigterm_ends_in_order(program: Program, folder: Path):
    """After the kill before, everything is there again; SIGTERM ends with 0, no child and no scratch left."""
    report = program.report()
    with Client(report["http"]) as client:
        assert client.model("m")["aliases"] == {"prod": 1}
        assert answers(client), "what was loaded is loaded before the program calls itself ready"
    for url in (report["http"], f"http://127.0.0.1:{program.metrics_port}"):
        assert b'nv_inference_request_success{model="m",version="1"} 1\n' in urlopen(f"{url}/metrics").read()
    program.process.send_signal(signal.SIGTERM)
    assert program.process.wait(STOP_S) == 0, program.log.read_text()
    assert not any(alive(pid) for pid in report["pids"].values())
    assert list((folder / "data" / "tmp").iterdir()) == []
    assert list((folder / "data" / "run").iterdir()) == []
    assert "Traceback" not in program.log.read_text()


def test_taken_port_ends_the_program_with_a_message(tmp_path: Path):
    """A port in use is told once and ends with 1; it is not tried for ever."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        program = Program(tmp_path, "--http-port", str(port), "--grpc-port", "0")
        try:
            assert program.process.wait(START_S) == 1
        finally:
            program.kill()
    text = program.log.read_text()
    assert f"REST cannot listen on 127.0.0.1:{port}" in text
    assert "the API did not start" in text
    assert "Traceback" not in text
