"""Whole experiments in the trainer: starts, freezing, stopping early, the best epoch, accumulation, two data sets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import engine as ax
from engine import bundle
from engine.bundle import Bundle
from service.adapters.engine_runtime import EngineRuntime
from service.adapters.file_store import FileDatasetStore
from service.core.experiment_spec import Start
from service.core.jobs import parse_spec
from service.core.types import Json
from service.worker import training
from service.worker.protocol import TrainerJob
from tests.service.worker.test_trainer import Recorder, parameters, trained
from tests.service.worker.workshop import CLASSES, WIDTH, add_dataset, graph, spec_json

MakeJob = Callable[..., TrainerJob]
RATE = {"name": "adam", "learning_rate": 0.05}


@pytest.fixture
def make_job(tmp_path: Path) -> Iterator[MakeJob]:
    """Jobs on the toy data set, with a resolved start if one is given."""
    store = FileDatasetStore(tmp_path / "data")
    dataset = add_dataset(store)
    count = 0

    def make(
        checkpoint: str | None = None, start: Start | None = None, files: dict[str, str] | None = None, **changes: Any
    ) -> TrainerJob:
        nonlocal count
        count += 1
        work = tmp_path / f"work-{count}"
        work.mkdir()
        spec: dict[str, Json] = parse_spec(spec_json(**changes)).to_json()
        if start is not None:
            spec = {**spec, "graph": None, "start": start.to_json()}
        job = TrainerJob("job", count, spec, str(dataset.path), dataset.sha256, checkpoint, str(work))
        return replace(job, **(files or {}))

    yield make
    store.close()


def finished(reports: Recorder) -> Bundle:
    """The bundle that was made."""
    assert reports.of("failed") == []
    return bundle.read(reports.of("finished")[0]["bundle"], trusted=True)


def epochs(reports: Recorder) -> list[dict[str, Any]]:
    """What was told at the end of each epoch."""
    return [told["data"] for told in reports.of("progress") if "epoch_completed" in told["data"]]


def lines(reports: Recorder) -> list[str]:
    """The log."""
    return [told["line"] for told in reports.of("log")]


def leaves(state: Any) -> dict[str, np.ndarray]:
    """All arrays of a state by path."""
    return {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree_util.tree_leaves_with_path(state)}


def version_of(reports: Recorder) -> dict[str, str]:
    """The file of a version to start from."""
    return {"start_bundle": reports.of("finished")[0]["bundle"]}


FROM_VERSION = Start("toy", 1, asked={"model": "toy"})


def test_fine_tuned_version_keeps_what_is_frozen(make_job: MakeJob) -> None:
    """Training goes on from the version's parameters; frozen ones stay bit for bit, and are still marked."""
    first = trained(make_job(epochs=2))
    before = finished(first)
    tuned = trained(
        make_job(start=FROM_VERSION, files=version_of(first), freeze=["hidden"], optimizer=RATE, serving={})
    )
    after = finished(tuned)
    assert after.state.frozen == {"hidden.kernel", "hidden.bias"}
    for name in ("kernel", "bias"):
        np.testing.assert_array_equal(
            after.state.parameters["hidden"][name], before.state.parameters["hidden"][name], strict=True
        )
        assert not np.array_equal(after.state.parameters["logits"][name], before.state.parameters["logits"][name])
    assert epochs(tuned)[0]["loss"] < epochs(first)[0]["loss"]
    lineage = tuned.of("finished")[0]["manifest"]["lineage"]
    assert lineage["parent"] == {"model": "toy", "version": 1}
    assert lineage["spec"]["start"] == {"model": "toy", "version": 1}
    again = trained(make_job(start=FROM_VERSION, files=version_of(tuned), unfreeze=["*.bias"], optimizer=RATE))
    assert finished(again).state.frozen == {"hidden.kernel"}
    moved = finished(again).state.parameters["hidden"]
    np.testing.assert_array_equal(moved["kernel"], before.state.parameters["hidden"]["kernel"])
    assert not np.array_equal(moved["bias"], before.state.parameters["hidden"]["bias"])


@pytest.mark.parametrize("step", [3, 7])
def test_fine_tuning_that_was_stopped_goes_on_exactly(make_job: MakeJob, step: int) -> None:
    """From its own checkpoint, not from the version again."""
    files = version_of(trained(make_job(epochs=1)))
    options: dict[str, Any] = {"start": FROM_VERSION, "files": files, "freeze": ["hidden"], "epochs": 2}
    undisturbed = trained(make_job(**options))
    halted = Recorder(stop_after=step)
    assert not training.run(make_job(**options), halted)
    resumed = trained(make_job(checkpoint=halted.of("checkpoint")[-1]["path"], **options))
    for a, b in zip(parameters(undisturbed), parameters(resumed), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


def test_start_from_another_jobs_checkpoint(make_job: MakeJob) -> None:
    """Its graph and newest parameters, with a fresh optimizer; what it froze stays frozen."""
    halted = Recorder(stop_after=4)
    assert not training.run(make_job(freeze=["hidden.bias"]), halted)
    path = halted.of("checkpoint")[-1]["path"]
    like = trained(make_job(epochs=1))
    kept = ax.train.checkpoint.restore_model(path, finished(like).state)
    pointer = {"attempt": 1, "step": 4, "path": "other/1/4"}
    start = Start(job="other", checkpoint=pointer, graph=graph(), marks=((("hidden.bias",), ()),))
    still = {"name": "sgd", "learning_rate": 0.0}
    job = make_job(start=start, files={"start_checkpoint": path}, optimizer=still, epochs=1)
    found = finished(trained(job))
    for name, value in leaves(kept.parameters).items():
        np.testing.assert_array_equal(leaves(found.state.parameters)[name], value, strict=True)
    assert found.state.frozen == {"hidden.bias"}
    assert found.lineage["parent"] == {"job": "other", "checkpoint": pointer}
    (Path(path) / "checkpoint.json").write_text("{}")
    assert (
        "start: checkpoint" in trained(make_job(start=start, files={"start_checkpoint": path})).of("failed")[0]["error"]
    )


def test_version_with_programs_functions_and_ties_is_fine_tuned(make_job: MakeJob, tmp_path: Path) -> None:
    """A layer of one's own is trained without its function; the new bundle keeps it and all that travels."""
    path = tmp_path / "own.axon"
    travelling_model(path)
    before = bundle.read(path, trusted=True)
    tuned = trained(make_job(start=FROM_VERSION, files={"start_bundle": str(path)}, freeze=["first"], optimizer=RATE))
    after = finished(tuned)
    assert set(after.functions) == {"squared"}
    assert after.preprocess == before.preprocess
    assert dict(after.serving) == {"max_batch_size": 4}
    assert after.state.ties == before.state.ties
    assert after.state.frozen == {"first.kernel", "first.bias"}
    same, moved = leaves(before.state.parameters), leaves(after.state.parameters)
    assert {name for name in same if not np.array_equal(same[name], moved[name])} == {
        "['gate']['threshold']",
        "['last']['bias']",
        "['last']['kernel']",
        "['middle']['kernel']",
    }
    x = np.load(Path(make_job().dataset) / "x.npy")[:5]
    found = ax.build(after.model)[1](after.state, x)
    gate, parts = after.state.parameters["gate"]["threshold"], after.state.parameters
    hidden = x @ parts["first"]["kernel"] + parts["first"]["bias"]
    hidden = np.asarray(soft_threshold(hidden, threshold=gate, sharpness=4.0)) @ parts["middle"]["kernel"]
    hidden = hidden @ parts["middle"]["kernel"]
    expected = jax.nn.softmax(hidden @ parts["last"]["kernel"] + parts["last"]["bias"])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def soft_threshold(x: jax.Array, *, threshold: jax.Array, sharpness: float) -> jax.Array:
    """Fades small values out."""
    return x * jax.nn.sigmoid(sharpness * (jnp.abs(x) - threshold))


def squared(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    """A loss that travels."""
    return jnp.mean((y_true - y_pred) ** 2)


def travelling_model(path: Path) -> None:
    """A bundle with a program, a loss, a tie, a wish for serving, and a step before its input."""
    hidden = ax.input("x", shape=(None, WIDTH)).dense(WIDTH, name="first")
    threshold = ax.param("threshold", lambda x: (x[-1],), initializer={"name": "full", "value": 0.1})
    gated = ax.layer(
        soft_threshold, hidden, params=[threshold], row_wise=True, op_name="soft_threshold", sharpness=4.0, name="gate"
    )
    tied = gated.dense(WIDTH, use_bias=False, name="middle").dense(WIDTH, use_bias=False, name="again")
    model = tied.dense(CLASSES, activation="softmax", name="last")
    state = ax.build(model)[0](seed=1).tie("again.kernel", "middle.kernel")
    targets = ax.bundle.Template((None, CLASSES))
    standardize = ax.preprocess.Standardize((0.0,) * WIDTH, (1.0,) * WIDTH)
    bundle.write(
        path,
        model,
        state,
        functions=[ax.bundle.Function("squared", squared, targets)],
        preprocess=ax.preprocess.Preprocess({"x": (standardize,)}),
        serving={"max_batch_size": 4},
    )


def test_version_in_half_precision_goes_on_in_single(make_job: MakeJob, tmp_path: Path) -> None:
    """Its parameters are cast to what the job's policy keeps."""
    half = ax.apply_policy(bundle.graph_from_json(graph()), ax.Policy("bf16", "bf16", "f32"))
    before = ax.build(half)[0](seed=3)
    bundle.write(tmp_path / "half.axon", half, before)
    still = {"name": "sgd", "learning_rate": 0.0}
    job = make_job(
        start=FROM_VERSION,
        files={"start_bundle": str(tmp_path / "half.axon")},
        precision="float32",
        optimizer=still,
        epochs=1,
    )
    for name, value in leaves(finished(trained(job)).state.parameters).items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, leaves(before.parameters)[name].astype(np.float32))


STALLING: dict[str, Any] = {
    "validation_fraction": 0.25,
    "batch_size": 12,
    "epochs": 12,
    "optimizer": {"name": "sgd", "learning_rate": 6.0},
    "early_stopping": {"metric": "validation_loss", "patience": 1},
    "keep": "best",
}


def test_early_stopping_ends_the_job_and_the_best_epoch_is_published(make_job: MakeJob) -> None:
    """The result has the metrics of that epoch; the log says when it ended."""
    reports = trained(make_job(**STALLING))
    told = epochs(reports)
    losses = [data["validation_loss"] for data in told]
    best = int(np.argmin(losses))
    assert len(told) == best + 3 < 12
    lineage = reports.of("finished")[0]["manifest"]["lineage"]
    assert lineage["epoch"] == best + 1
    assert lineage["metrics"]["validation_loss"] == losses[best]
    assert f"stopped early, after epoch {best + 3} of 12" in lines(reports)
    until_best = trained(make_job(**{**STALLING, "epochs": best + 1, "keep": "last"}))
    for a, b in zip(parameters(until_best), parameters(reports), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


@pytest.mark.parametrize("step", [4, 9, 15])
def test_stopped_experiment_goes_on_exactly(make_job: MakeJob, step: int) -> None:
    """Patience, the best parameters and the reduced learning rate are in the checkpoint: it ends bit for bit alike."""
    options = {**STALLING, "reduce_on_plateau": {"metric": "loss", "patience": 0, "factor": 0.5}}
    undisturbed = trained(make_job(**options))
    halted = Recorder(stop_after=step)
    assert not training.run(make_job(**options), halted)
    resumed = trained(make_job(checkpoint=halted.of("checkpoint")[-1]["path"], **options))
    for a, b in zip(parameters(undisturbed), parameters(resumed), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)
    ends = [r.of("finished")[0]["manifest"]["lineage"] for r in (undisturbed, resumed)]
    assert ends[0]["epoch"] == ends[1]["epoch"]
    assert ends[0]["metrics"] == ends[1]["metrics"]
    assert len(epochs(undisturbed)) == 12 or lines(undisturbed)[-1] == lines(resumed)[-1]


def test_best_averages_are_published(make_job: MakeJob) -> None:
    """With an `ema` the best epoch's averages, which the validation was of."""
    averaging = {"name": "chain", "transforms": [{"name": "sgd", "learning_rate": 3.0}, {"name": "ema", "decay": 0.5}]}
    options = {**STALLING, "optimizer": averaging}
    reports = trained(make_job(**options))
    best = reports.of("finished")[0]["manifest"]["lineage"]["epoch"]
    last = trained(make_job(**{**options, "epochs": best, "keep": "last", "early_stopping": None}))
    for a, b in zip(parameters(last), parameters(reports), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


def test_learning_rate_is_reduced_on_a_plateau(make_job: MakeJob) -> None:
    """With a factor near 0 the parameters stand still from then on."""
    stalled = {"metric": "loss", "mode": "max", "patience": 0, "factor": 1e-9}
    reports = trained(make_job(epochs=6, optimizer={"name": "sgd", "learning_rate": 0.5}, reduce_on_plateau=stalled))
    same = trained(make_job(epochs=2, optimizer={"name": "sgd", "learning_rate": 0.5}))
    kernels = [finished(r).state.parameters["hidden"]["kernel"] for r in (reports, same)]
    np.testing.assert_allclose(*kernels, atol=1e-6)


def test_accumulated_steps_are_as_one_of_a_larger_batch(make_job: MakeJob) -> None:
    """Two batches of 16 make the step of one of 32, but for the order of additions."""
    plain = {**graph(), "nodes": [node for node in graph()["nodes"] if node["op"] != "dropout"]}
    plain["nodes"] = [{**n, "inputs": ["act"]} if n.get("inputs") == ["drop"] else n for n in plain["nodes"]]
    options: dict[str, Any] = {"graph": plain, "epochs": 2, "optimizer": {"name": "sgd", "learning_rate": 0.5}}
    small = finished(trained(make_job(batch_size=16, accumulate_steps=2, **options)))
    large = finished(trained(make_job(batch_size=32, **options)))
    for name, value in leaves(large.state.parameters).items():
        np.testing.assert_allclose(leaves(small.state.parameters)[name], value, atol=1e-5)


def test_validation_on_another_data_set(make_job: MakeJob, tmp_path: Path) -> None:
    """All its rows, whose metrics are told; both have class numbers or neither."""
    job = make_job(validation_dataset="other")
    other = tmp_path / "other"
    other.mkdir()
    x, y = (np.load(Path(job.dataset) / f"{name}.npy") for name in ("x", "y"))
    np.save(other / "x.npy", x[:10])
    np.save(other / "y.npy", (y[:10] + 1) % CLASSES)
    reports = trained(replace(job, validation=str(other), validation_sha256="f" * 64))
    model = finished(reports)
    predicted = np.asarray(ax.build(model.model)[1](model.state, x[:10])).argmax(-1)
    right = float((predicted == (y[:10] + 1) % CLASSES).mean())
    assert epochs(reports)[-1]["validation_accuracy"] == pytest.approx(right)
    lineage = reports.of("finished")[0]["manifest"]["lineage"]
    assert (lineage["validation_dataset"], lineage["validation_dataset_sha256"]) == ("other", "f" * 64)
    np.save(other / "y.npy", np.eye(CLASSES, dtype=np.float32)[y[:10]])
    assert "in both data sets" in trained(replace(make_job(), validation=str(other))).of("failed")[0]["error"]


def test_devices_that_are_not_there_fail_the_job(make_job: MakeJob) -> None:
    """With their number; one is there."""
    count = len(jax.devices())
    reports = trained(make_job(devices=count + 1, batch_size=(count + 1) * 4))
    assert f"at most {count} devices" in reports.of("failed")[0]["error"]
    one = trained(make_job(devices=1, shard_params=True, epochs=1))
    for a, b in zip(parameters(one), parameters(trained(make_job(epochs=1))), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


DECAYING = {"name": "cosine_decay", "init_value": 0.1, "decay_steps": 9}
SOUND: dict[str, Any] = {"loss": {"name": "categorical_cross_entropy"}, "optimizer": {"name": "sgd"}, "metrics": []}


@pytest.mark.parametrize(
    ("path", "message", "changes"),
    [
        ("freeze", "'conv*' to match some of", {"marks": [(["conv*"], [])]}),
        ("freeze", "leave parameters", {"marks": [(["*"], [])]}),
        ("unfreeze", "'hidden' to match some of none", {"marks": [([], ["hidden"])]}),
        ("start", "'gone'", {"marks": [(["gone"], []), ([], [])]}),
        (
            "optimizer",
            "'hidden.*' to match",
            {
                "marks": [(["hidden"], [])],
                "optimizer": {
                    "name": "groups",
                    "groups": [{"paths": "hidden.*", "optimizer": "sgd"}],
                    "default": "adam",
                },
            },
        ),
        (
            "reduce_on_plateau",
            "schedule",
            {
                "reduces": True,
                "optimizer": {
                    "name": "sgd",
                    "learning_rate": {"name": "cosine_decay", "init_value": 0.1, "decay_steps": 9},
                },
            },
        ),
    ],
)
def test_submission_knows_patterns_and_schedules(path: str, message: str, changes: dict[str, Any]) -> None:
    """What fits nothing is told by the field, before the job is queued."""
    check = EngineRuntime().check_training
    found = check(json.dumps(graph()).encode(), **{**SOUND, **changes})
    assert [problem.path for problem in found] == [path]
    assert message in found[0].got
    accumulated = {"name": "accumulate_gradients", "steps": 2, "inner": "adam"}
    marks = [(["hidden"], []), (["*.bias"], ["hidden.bias"])]
    sound = {**SOUND, "optimizer": accumulated, "marks": marks, "reduces": True}
    assert check(json.dumps(graph()).encode(), **sound) == []


def test_submission_checks_a_stored_version(tmp_path: Path) -> None:
    """Its model, frozen paths and tensors, in place of a graph."""
    path = tmp_path / "own.axon"
    travelling_model(path)
    check = EngineRuntime().check_training
    assert check(path, **SOUND, marks=[(["gate"], [])], serving={"expose_intermediate": ["gate"]}) == []
    wrong = {**SOUND, "loss": {"name": "happiness"}, "serving": {"expose_intermediate": ["hidden"]}}
    found = check(path, **wrong, marks=[(["hidden"], ["gate"])])
    assert [problem.path for problem in found] == ["unfreeze", "freeze", "loss", "serving.expose_intermediate"]
