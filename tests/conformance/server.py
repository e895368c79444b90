"""`axon serve` in a process of its own, with the models of `values` in it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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
from tests.servers import Server, started, wait_ready


@contextmanager
def running(clients: list[str]) -> Iterator[Server]:
    """A server on free ports that answers for all models, among them one per name of `clients` for it alone."""
    with tempfile.TemporaryDirectory(prefix="axon-conformance-") as name:
        folder = Path(name)
        _write_texts(texts := folder / "texts.axon")
        settings = {"AXON_MAX_BATCH_SIZE": str(MAX_BATCH)}
        with started(folder / "data", "axon", settings) as (process, ready):
            server = wait_ready(process, ready)
            with Client(server.url) as client:
                client.submit(TEXTS, bundle=texts)
                _fill(client, clients)
            yield server


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
