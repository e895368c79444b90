"""Jobs that standardise, and versions that do the same to requests: from a data set to the bundle that is served."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import engine as ax
from engine import bundle
from engine.bundle import Bundle
from engine.preprocess import OneHot, Standardize, Vocabulary
from service.adapters.clock import SystemClock
from service.adapters.engine_runtime import EngineRuntime
from service.adapters.file_store import FileDatasetStore
from service.core.jobs import parse_spec
from service.core.manifests import bundle_manifest
from service.core.serving import ServedModel
from service.core.types import Column, Dataset, ServingConfig
from service.worker import preparation
from service.worker.protocol import TrainerJob
from tests.service.worker.test_trainer import Recorder, trained

ROWS, SEED, HELD_OUT = 60, 5, 0.25
GENERATOR = np.random.default_rng(3)
COLUMNS = {
    "sizes": GENERATOR.normal([20, -400], [3, 90], (ROWS, 2)).astype(np.float32),
    "kind": GENERATOR.integers(0, 3, ROWS),
    "tokens": GENERATOR.integers(0, 4, (ROWS, 5)).astype(np.uint8),
    "mood": GENERATOR.integers(0, 2, ROWS),
}
COLUMNS["price"] = (COLUMNS["sizes"][:, 0] * 1000 + COLUMNS["kind"] * 50).astype(np.float32)
MakeJob = Callable[..., TrainerJob]


@pytest.fixture
def make_job(tmp_path: Path) -> Iterator[MakeJob]:
    """Jobs on a data set of all columns, its `mood` with labels."""
    store = FileDatasetStore(tmp_path / "data")
    folder = store.scratch()
    labels = {"mood": ("glum", "merry")}
    columns = []
    for name, values in COLUMNS.items():
        np.save(folder / f"{name}.npy", values)
        datatype = {"f": "FP32", "i": "INT64", "u": "UINT8"}[values.dtype.kind]
        columns.append(Column(name, datatype, values.shape[1:], labels.get(name, ())))
    dataset = store.add(folder, Dataset("ds", "toy", ROWS, tuple(columns), "0" * 64, 1, 1.0, folder))
    count = 0

    def make(start_bundle: str | None = None, **changes: Any) -> TrainerJob:
        nonlocal count
        count += 1
        work = tmp_path / f"work-{count}"
        work.mkdir()
        spec = parse_spec(
            {
                "model": "toy",
                "dataset": "ds",
                "optimizer": {"name": "sgd", "learning_rate": 0.01},
                "epochs": 1,
                "batch_size": 8,
                "seed": SEED,
                "validation_fraction": HELD_OUT,
                **({} if start_bundle else {"graph": graph(changes)}),
                **changes,
            }
        ).to_json()
        return TrainerJob(
            "job", count, spec, str(dataset.path), "0" * 64, None, str(work),
            start_bundle=start_bundle, labels=labels.get(str(changes["target"]), ()),
        )  # fmt: skip

    yield make
    store.close()


def graph(changes: dict[str, Any]) -> dict[str, Any]:
    """Takes sizes [2], kind [3] and tokens [5]; gives a price, or moods where these are the target."""
    classes = changes["target"] == "mood"
    sizes, kind = ax.input("sizes", shape=(None, 2)), ax.input("kind", shape=(None, 3))
    words = ax.input("tokens", shape=(None, 5), dtype="s32").embedding(4, 2).flatten()
    out = sizes.concatenate(kind, words).dense(2 if classes else 1)
    value, _ = bundle.graph_to_json(out.softmax(name="out") if classes else out.linear(name="out"))
    return dict(value)


WORDS = {"name": "vocabulary", "tokens": ["?", "a", "b", "c"], "length": 5, "padding": 0}
STEPS = {"sizes": "standardize", "kind": {"name": "one_hot"}, "tokens": WORDS}
REGRESSION: dict[str, Any] = {
    "target": "price",
    "inputs": {name: name for name in STEPS},
    "loss": "mean_squared_error",
    "preprocess": STEPS,
    "standardize_target": True,
}
CLASSES: dict[str, Any] = {
    **REGRESSION,
    "target": "mood",
    "loss": "categorical_cross_entropy",
    "standardize_target": False,
}


def finished(reports: Recorder) -> tuple[Bundle, dict[str, Any]]:
    """The bundle, and the manifest that the trainer reports."""
    assert not reports.of("failed"), reports.of("failed")
    (told,) = reports.of("finished")
    return bundle.read(told["bundle"]), told["manifest"]


def training_rows() -> np.ndarray:
    """Which rows are trained on, by the split of the same data."""
    data = ax.train.ArrayData(np.arange(ROWS), batch_size=8, seed=SEED)
    return np.concatenate(list(data.split(HELD_OUT, seed=SEED)[0].chunks()))


def test_what_is_fitted_on_training_rows_is_published(make_job: MakeJob) -> None:
    """Mean and standard deviation of these alone, of inputs and target; and what clients send is told."""
    stored, manifest = finished(trained(make_job(**REGRESSION)))
    rows = training_rows()
    assert len(rows) == 45
    steps = stored.preprocess.inputs
    (scale,) = steps["sizes"]
    assert isinstance(scale, Standardize)
    np.testing.assert_allclose(scale.mean, COLUMNS["sizes"][rows].astype(float).mean(axis=0))
    np.testing.assert_allclose(scale.std, COLUMNS["sizes"][rows].astype(float).std(axis=0))
    assert steps["kind"] == (OneHot(3),)
    assert steps["tokens"] == (Vocabulary(("?", "a", "b", "c"), length=5, padding=0),)
    target = stored.postprocess.outputs["out"].unstandardize
    assert target is not None
    np.testing.assert_allclose(target.mean, [COLUMNS["price"][rows].astype(float).mean()])
    np.testing.assert_allclose(target.std, [COLUMNS["price"][rows].astype(float).std()])
    sent = {tensor["name"]: (tensor["datatype"], tensor["shape"]) for tensor in manifest["inputs"]}
    assert sent == {"sizes": ("FP32", [-1, 2]), "kind": ("INT64", [-1]), "tokens": ("BYTES", [-1])}
    own = {tensor["name"]: (tensor["datatype"], tensor["shape"]) for tensor in manifest["own_inputs"]}
    assert own == {"sizes": ("FP32", [-1, 2]), "kind": ("FP32", [-1, 3]), "tokens": ("INT32", [-1, 5])}


def prepared(rows: slice, stored: Bundle) -> dict[str, np.ndarray]:
    """What the model was given in training, by NumPy."""
    (scale,) = stored.preprocess.inputs["sizes"]
    assert isinstance(scale, Standardize)
    sizes = (COLUMNS["sizes"][rows] - np.float32(scale.mean)) * (1 / np.array(scale.std)).astype(np.float32)
    tokens = COLUMNS["tokens"][rows].astype(np.int32)
    return {"sizes": sizes, "kind": np.eye(3, dtype=np.float32)[COLUMNS["kind"][rows]], "tokens": tokens}


async def test_a_version_serves_with_what_training_stored(make_job: MakeJob) -> None:
    """Raw sizes, a class number and a text give what the model gives for the columns as it was trained on them."""
    reports = trained(make_job(**REGRESSION))
    stored, manifest = finished(reports)
    path = Path(reports.of("finished")[0]["bundle"])
    report = EngineRuntime().check_bundle(path)
    told = bundle_manifest(path, report, stored.lineage)
    assert [told[part] for part in ("inputs", "outputs", "own_inputs", "own_outputs")] == [
        manifest[part] for part in ("inputs", "outputs", "own_inputs", "own_outputs")
    ]
    config = ServingConfig(max_batch_size=4)
    served = ServedModel("toy", 1, EngineRuntime().load(path, config), config, SystemClock())
    rows = slice(0, 4)
    texts = np.empty(4, object)
    texts[:] = [" ".join("?abc"[token] for token in row).encode() for row in COLUMNS["tokens"][rows].tolist()]
    sent = {"sizes": COLUMNS["sizes"][rows].astype(np.float64), "kind": COLUMNS["kind"][rows], "tokens": texts}
    answer = await served.infer(sent)
    target = stored.postprocess.outputs["out"].unstandardize
    assert target is not None
    plain = np.asarray(ax.build(stored.model)[1](stored.state, prepared(rows, stored)), np.float64)
    np.testing.assert_allclose(answer["out"], plain * target.std[0] + target.mean[0], rtol=1e-5)
    await served.close()


def test_the_model_is_trained_on_prepared_columns(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """As NumPy prepares them; the same through files, where columns get long."""
    stored, _ = finished(trained(make_job(**REGRESSION)))
    monkeypatch.setattr(preparation, "MEMORY_BYTES", 0)
    monkeypatch.setattr(preparation, "ROWS", 7)
    job = make_job(**REGRESSION)
    again, _ = finished(trained(job))
    assert sorted(path.name for path in Path(job.work).glob("*.npy")) == [
        "training-kind.npy",
        "training-sizes.npy",
        "training-tokens.npy",
        "training.npy",
    ]
    for name, values in prepared(slice(None), stored).items():
        np.testing.assert_allclose(np.load(Path(job.work) / f"training-{name}.npy"), values, rtol=1e-6, atol=1e-7)
    for ours, theirs in zip(jax.tree.leaves(stored.state), jax.tree.leaves(again.state), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_a_classifier_gets_the_labels_of_its_target(make_job: MakeJob) -> None:
    """In the order of its class numbers; a version that is fine-tuned keeps them, and all its steps."""
    reports = trained(make_job(**CLASSES))
    stored, _ = finished(reports)
    assert stored.postprocess.outputs["out"].labels == ("glum", "merry")
    assert stored.postprocess.outputs["out"].unstandardize is None
    start = {"start": {"model": "toy", "version": 1}, "preprocess": None}
    tuned, _ = finished(trained(make_job(reports.of("finished")[0]["bundle"], **CLASSES | start)))
    assert (tuned.preprocess, tuned.postprocess) == (stored.preprocess, stored.postprocess)


def test_columns_that_steps_cannot_take_fail_the_job(make_job: MakeJob) -> None:
    """By their own fault, which is told."""
    broken = make_job(**REGRESSION)
    path = Path(broken.dataset) / "sizes.npy"
    values = np.load(path)
    values[3, 1] = np.nan
    path.unlink()
    np.save(path, values)
    rows = training_rows()
    if 3 not in rows:
        values[rows[0], 1] = np.nan
        np.save(path, values)
    (failure,) = trained(broken).of("failed")
    assert "input 'sizes': standardize: expected finite numbers" in failure["error"]
    wrong = make_job(**REGRESSION | {"inputs": {"sizes": "sizes", "kind": "tokens", "tokens": "tokens"}})
    path.unlink()
    np.save(path, COLUMNS["sizes"])
    (failure,) = trained(wrong).of("failed")
    assert "input 'kind': rows from 0 on: one_hot: expected classes below 3, got 3 in row" in failure["error"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"sizes": {"name": "standardize", "per": "row"}}, "preprocess.sizes: .*expected per to be 'feature' or 'all'"),
        ({"tokens": "standardize"}, "preprocess.tokens: .*expected an input of floating-point numbers, got s32"),
        ({"tokens": {**WORDS, "length": 4}}, r"preprocess.tokens: .*shape \(rows, 4\)"),
        ({"nothing": "one_hot"}, "preprocess.nothing: .*expected inputs out of sizes, kind, tokens, got 'nothing'"),
    ],
)
def test_submission_checks_steps(asked: dict[str, Any], message: str) -> None:
    """Before there is a job."""
    spec = parse_spec({**REGRESSION, "model": "toy", "dataset": "ds", "graph": graph(REGRESSION), "optimizer": "adam",
                       "epochs": 1, "batch_size": 8, "preprocess": asked})  # fmt: skip
    assert spec.preprocess is not None
    steps = {name: step.to_json() for name, step in spec.preprocess.items()}
    (problem,) = EngineRuntime().check_training(
        json.dumps(spec.graph).encode(), loss={"name": "mean_squared_error"}, optimizer={"name": "adam"}, metrics=(),
        preprocess=steps,
    )  # fmt: skip
    assert re.search(message, f"{problem.path}: {problem.expected}, {problem.got}")
