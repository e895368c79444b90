"""Jobs whose graph leaves a size open: the data set's size trains, the declared sizes serve."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import engine as ax
from service.adapters.engine_runtime import EngineRuntime
from service.adapters.file_store import FileDatasetStore
from service.core.jobs import parse_spec
from service.core.manifests import serving_config
from service.core.types import ServingConfig
from service.worker import training
from service.worker.protocol import TrainerJob
from tests.service.worker.test_trainer import Recorder
from tests.service.worker.workshop import CLASSES, add_dataset, spec_json


def _model() -> ax.Model:
    """A convolution along a row of any length, and the mean of what it finds."""
    signal = ax.input("x", shape=(None, None)).reshape(("batch", "auto", 1))
    return signal.conv(4, kernel_size=3).relu().global_avg_pool().dense(CLASSES).softmax()


def test_a_job_with_an_open_size_trains_and_its_version_is_served(tmp_path: Path):
    """Its `serving` is checked with the graph, kept in the bundle, and compiled."""
    serving = {"batch_buckets": [1], "open_sizes": [{"axes": {"x": 1}, "sizes": [4, 9]}]}
    graph, _ = ax.bundle.graph_to_json(_model())
    spec = parse_spec(spec_json(graph=graph, serving=serving, epochs=1))
    runtime = EngineRuntime(device="cpu")
    encoded = json.dumps(spec.graph).encode()
    assert [tensor.shape for tensor in runtime.check_graph(encoded).inputs] == [(-1, -1)]
    chosen = {"loss": spec.loss.to_json(), "optimizer": spec.stepping, "metrics": spec.metrics}
    assert runtime.check_training(encoded, **chosen, serving=spec.serving) == []
    store, reports = FileDatasetStore(tmp_path), Recorder()
    dataset = add_dataset(store)
    assert training.run(
        TrainerJob("job", 1, spec.to_json(), str(dataset.path), dataset.sha256, None, str(tmp_path)), reports
    )
    store.close()
    (finished,) = reports.of("finished")
    assert finished["manifest"]["serving"] == serving
    loaded = runtime.load(Path(finished["bundle"]), serving_config(ServingConfig(), finished["manifest"]))
    read = ax.bundle.read(finished["bundle"])
    for size in (4, 9):
        x = np.random.default_rng(size).standard_normal((1, size)).astype(np.float32)
        (found,) = loaded.run({"x": x}).values()
        np.testing.assert_allclose(found, ax.predict(read.model, read.state, {"x": x}), atol=1e-6)
    loaded.close()
