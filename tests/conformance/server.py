"""`axon serve` in a process of its own, with the models of `values` in it."""

from __future__ import annotations

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

from safetensors.numpy import save

import engine as ax
from engine.postprocess import OutputSteps, Postprocess
from engine.preprocess import Preprocess, Vocabulary
from service.client import Client
from tests.conformance.values import (
    ALIASED,
    CHARACTERS,
    ECHO,
    LABELS,
    MAX_BATCH,
    MLP,
    SIMPLE,
    TEXTS,
    echo,
    echo_graph,
    mlp_params,
    movable,
)

START_S = 120
STOP_S = 60
NO_QUEUE = "redis://127.0.0.1:1"
"""Serving needs no job queue: nothing listens here."""


@dataclass(frozen=True)
class Running:
    """Where the server listens (`host:port`), and the file it logs to."""

    http: str
    grpc: str
    log: Path


@contextmanager
def running(clients: list[str]) -> Iterator[Running]:
    """A server on free ports that answers for all models, among them one per name of `clients` for it alone."""
    with tempfile.TemporaryDirectory(prefix="axon-conformance-") as folder, _process(Path(folder)) as server:
        _write_texts(texts := Path(folder) / "texts.axon")
        with Client(f"http://{server.http}") as client:
            client.submit(TEXTS, bundle=texts)
            _fill(client, clients)
        yield server


@contextmanager
def _process(folder: Path) -> Iterator[Running]:
    ready, log = folder / "ready.json", folder / "axon.log"
    command = [sys.executable, "-m", "service", "serve", "--http-port", "0", "--grpc-port", "0"]
    command += ["--data-dir", str(folder / "data"), "--ready-file", str(ready)]
    settings = {"AXON_REDIS_URL": NO_QUEUE, "AXON_MAX_BATCH_SIZE": str(MAX_BATCH)}
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | settings)
    try:
        deadline = time.monotonic() + START_S
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"axon serve did not start:\n{log.read_text()[-4000:]}")
            time.sleep(0.1)
        ports = json.loads(ready.read_text())
        yield Running(f"127.0.0.1:{ports['http_port']}", f"127.0.0.1:{ports['grpc_port']}", log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def _fill(client: Client, clients: list[str]) -> None:
    for datatype, dtype in ECHO.items():
        client.submit(echo(datatype), graph=echo_graph(dtype))
    client.submit(MLP, graph=_MLP, params=save(mlp_params()), alias="prod")
    client.submit(SIMPLE, graph=_SIMPLE)
    client.submit(ALIASED, graph=echo_graph("f32"), alias="prod")
    client.submit(ALIASED, graph=echo_graph("f32"))
    for name in clients:
        client.submit(movable(name), graph=echo_graph("f32"))


def _write_texts(path: Path) -> None:
    """A bundle whose input is texts by their characters' numbers, and whose output is the label of the largest."""
    model = ax.input("x", shape=(None, 4), dtype="s32").flatten(name="y")
    before = Preprocess({"x": (Vocabulary(CHARACTERS, None, "characters", length=4, padding=0),)})
    after = Postprocess({"y": OutputSteps(labels=LABELS, top_k=1)})
    ax.bundle.write(path, model, ax.build(model)[0](seed=0), preprocess=before, postprocess=after)


def _graph(nodes: list[dict[str, Any]], outputs: str | dict[str, str]) -> dict[str, Any]:
    return {"format": "axon.graph", "version": 1, "nodes": nodes, "outputs": outputs}


def _input(name: str, units: int, dtype: str) -> dict[str, Any]:
    return {"name": name, "op": "input", "options": {"shape": [None, units], "dtype": dtype}}


_SIMPLE = _graph(
    [
        _input("INPUT0", 16, "s32"),
        _input("INPUT1", 16, "s32"),
        {"name": "sum", "op": "add", "inputs": ["INPUT0", "INPUT1"]},
        {"name": "difference", "op": "subtract", "inputs": ["INPUT0", "INPUT1"]},
    ],
    {"OUTPUT0": "sum", "OUTPUT1": "difference"},
)

_MLP = _graph(
    [
        _input("features", 8, "f32"),
        {"name": "dense_0", "op": "dense", "inputs": ["features"], "options": {"units": 16}},
        {"name": "relu", "op": "relu", "inputs": ["dense_0"]},
        {"name": "dense_1", "op": "dense", "inputs": ["relu"], "options": {"units": 3}},
        {"name": "probabilities", "op": "softmax", "inputs": ["dense_1"]},
    ],
    "probabilities",
)
