"""Graphs through the engine's adapter: schema, marks, blocks and precision from JSON to predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.bundle import tensors
from service.adapters.engine_runtime import EngineRuntime
from service.core.errors import InvalidModel
from service.core.types import ServingConfig

ENCODER = {
    "inputs": ["value"],
    "nodes": [
        {"name": "value", "op": "input"},
        {"name": "dense", "op": "dense", "inputs": ["value"], "options": {"units": 2, "use_bias": False}},
    ],
    "outputs": "dense",
}
GRAPH: dict[str, Any] = {
    "format": "axon.graph",
    "version": 1,
    "nodes": [
        {"name": "x", "op": "input", "options": {"shape": [None, 2]}},
        {"name": "once", "op": "block", "inputs": ["x"], "options": {"block": "enc"}},
        {"name": "twice", "op": "block", "inputs": ["once"], "options": {"block": "enc"}},
        {"name": "head", "op": "dense", "inputs": ["twice"], "options": {"units": 2, "use_bias": False}},
    ],
    "outputs": "head",
    "blocks": {"enc": ENCODER},
    "tied": {"head.kernel": {"source": "enc.dense.kernel", "transform": "transpose"}},
    "frozen": ["enc.dense.kernel"],
}


@pytest.fixture(scope="module")
def runtime() -> EngineRuntime:
    """The engine on the CPU."""
    return EngineRuntime(device="cpu")


def _bytes(graph: dict[str, Any]) -> bytes:
    return json.dumps(graph).encode()


def test_the_schema_is_the_same_bytes_every_time(runtime: EngineRuntime):
    """Clients cache it by its ETag."""
    assert json.loads(runtime.graph_schema())["title"] == "axon.graph"
    assert runtime.graph_schema() == EngineRuntime(device="cpu").graph_schema()


@pytest.mark.parametrize("given", [False, True])
def test_graphs_with_blocks_and_ties_are_written_loaded_and_described(
    runtime: EngineRuntime, tmp_path: Path, given: bool
):
    """With drawn parameters and with given ones; the marks stay."""
    kernel = np.array([[1, 2], [0, 1]], np.float32)
    params = tensors.dump({"enc.dense.kernel": kernel}) if given else None
    path = tmp_path / "m.axon"
    runtime.write_bundle(path, _bytes(GRAPH), params, seed=3, lineage={})
    runtime.check_bundle(path)
    assert {key: json.loads(runtime.describe(path)[0])[key] for key in GRAPH} == GRAPH
    assert runtime.picture(path, "svg").startswith("<svg ")
    assert 'subgraph b0["enc"]' in runtime.picture(path, "mermaid")
    model = runtime.load(path, ServingConfig(max_batch_size=1))
    (y,) = model.run({"x": np.array([[1, 2]], np.float32)}).values()
    model.close()
    if given:
        np.testing.assert_array_equal(y, np.array([[1, 2]]) @ kernel @ kernel @ kernel.T)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"frozen": ["enc.dense.bias"]}, "frozen"),
        ({"tied": {"head.kernel": {"source": "enc.kernel"}}}, "tied.head.kernel"),
        ({"blocks": {"enc": {**ENCODER, "outputs": "nowhere"}}}, "blocks.enc.outputs"),
    ],
)
def test_wrong_marks_and_blocks_are_refused_before_anything_is_stored(
    runtime: EngineRuntime, change: dict[str, Any], path: str
):
    """A graph is checked as strictly alone as it would be with its parameters."""
    with pytest.raises(InvalidModel) as caught:
        runtime.check_graph(_bytes({**GRAPH, **change}))
    assert [problem.path for problem in caught.value.problems] == [path]
