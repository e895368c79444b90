"""Training with the engine, in this process; and the trainer as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from engine import bundle
from engine.errors import CheckpointError
from service.adapters.engine_runtime import EngineRuntime
from service.adapters.file_store import FileDatasetStore
from service.core.jobs import parse_spec
from service.core.manifests import bundle_manifest
from service.worker import training
from service.worker.protocol import TrainerJob, encode
from tests.service.waiting import WAIT_S, wait_until
from tests.service.worker.workshop import ROWS, add_dataset, graph, spec_json


class Recorder:
    """Keeps what is reported, and wants to stop after so many steps.

    Checkpoints are acknowledged when that has been asked for `patience` times; with None never.
    """

    def __init__(self, *, stop_after: int | None = None, patience: int | None = 0) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self._patience = patience
        self._asked = 0
        self._stop_after = stop_after
        self._steps = 0

    @property
    def stopping(self) -> bool:
        self._steps += 1
        return self._stop_after is not None and self._steps >= self._stop_after

    @property
    def acknowledged(self) -> int:
        self._asked += 1
        steps = [content["step"] for content in self.of("checkpoint")]
        return steps[-1] if steps and self._patience is not None and self._asked > self._patience else -1

    def send(self, kind: str, **content: Any) -> None:
        encode({"type": kind, **content})
        self.sent.append((kind, content))
        self._asked = 0

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [content for k, content in self.sent if k == kind]


@pytest.fixture
def make_job(tmp_path: Path):
    """Jobs on the toy data set, each with a work folder of its own."""
    store = FileDatasetStore(tmp_path / "data")
    dataset = add_dataset(store)
    count = 0

    def make(checkpoint: str | None = None, **changes: Any) -> TrainerJob:
        nonlocal count
        count += 1
        work = tmp_path / f"work-{count}"
        work.mkdir()
        spec = parse_spec(spec_json(**changes)).to_json()
        return TrainerJob("job", count, spec, str(dataset.path), dataset.sha256, checkpoint, str(work))

    yield make
    store.close()


def trained(job: TrainerJob) -> Recorder:
    """What a run to the end reports."""
    reports = Recorder()
    assert training.run(job, reports)
    return reports


def parameters(reports: Recorder) -> list[np.ndarray]:
    """Of the finished bundle."""
    (finished,) = reports.of("finished")
    return [np.asarray(leaf) for leaf in jax.tree.leaves(bundle.read(finished["bundle"]).state)]


def test_job_is_trained_to_a_bundle(make_job):
    """The bundle reads back with the model, its lineage and manifest; the loss has fallen."""
    job = make_job(epochs=20, validation_fraction=0.25, serving={"max_batch_size": 8})
    job = replace(job, worker="w7", started_at=5.0)
    reports = trained(job)
    (finished,) = reports.of("finished")
    read = bundle.read(finished["bundle"])
    assert (
        bundle.graph_to_json(read.model)[0]["nodes"]
        == bundle.graph_to_json(bundle.graph_from_json(graph()))[0]["nodes"]
    )
    lineage = finished["manifest"]["lineage"]
    assert dict(read.lineage) == lineage
    assert set(lineage) == {
        *("job", "parent", "dataset", "dataset_sha256", "validation_dataset", "validation_dataset_sha256", "spec"),
        *("metrics", "epoch", "attempts", "worker", "started_at", "finished_at", "engine_version"),
    }
    assert (lineage["epoch"], lineage["worker"], lineage["started_at"], lineage["parent"]) == (20, "w7", 5.0, None)
    assert set(lineage["metrics"]) == {"loss", "accuracy", "validation_loss", "validation_accuracy"}
    assert dict(read.serving) == finished["manifest"]["serving"] == {"max_batch_size": 8}
    assert finished["manifest"]["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    report = EngineRuntime().check_bundle(Path(finished["bundle"]))
    assert finished["manifest"] == bundle_manifest(Path(finished["bundle"]), report, lineage) | {
        "serving": dict(read.serving)
    }
    losses = [data["data"]["loss"] for data in reports.of("progress") if "epoch_completed" in data["data"]]
    assert len(losses) == 20
    assert losses[-1] < losses[0]


def test_progress_tells_where_the_run_stands(make_job):
    """One report per epoch, with steps, epochs, metrics, rate and time left."""
    reports = trained(make_job(validation_fraction=0.5))
    epochs = [data["data"] for data in reports.of("progress") if "epoch_completed" in data["data"]]
    assert [(e["step"], e["steps"], e["epoch"], e["epochs"]) for e in epochs] == [
        (3, 9, 1, 3),
        (6, 9, 2, 3),
        (9, 9, 3, 3),
    ]
    for data in epochs:
        assert {"loss", "accuracy", "validation_loss", "validation_accuracy", "samples_per_s", "eta_s"} <= set(data)
    assert epochs[-1]["samples_per_s"] > 0
    assert epochs[-1]["eta_s"] == 0
    assert reports.of("started")[0]["device"].startswith("cpu")


def test_same_seed_gives_the_same_parameters(make_job):
    """Seed, data and spec decide everything."""
    first, second, other = (parameters(trained(make_job(epochs=1, seed=seed))) for seed in (5, 5, 6))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("step", [2, 6])
def test_stopped_job_goes_on_exactly(make_job, step):
    """Stopped in or at the end of an epoch and resumed, it ends with the very parameters of an undisturbed run."""
    options = {"epochs": 2, "validation_fraction": 0.25, "batch_size": 12}
    undisturbed = trained(make_job(**options))
    halted = Recorder(stop_after=step)
    assert not training.run(make_job(**options), halted)
    assert halted.of("finished") == []
    (last,) = halted.of("checkpoint")
    assert last["step"] == step
    resumed = trained(make_job(checkpoint=last["path"], **options))
    assert resumed.of("log") == [{"line": f"going on after step {step}"}]
    for a, b in zip(parameters(undisturbed), parameters(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    lineages = [r.of("finished")[0]["manifest"]["lineage"] for r in (undisturbed, resumed)]
    assert len({lineage["attempts"] for lineage in lineages}) == 2
    assert [{**lineage, "attempts": 0, "finished_at": 0} for lineage in lineages] == [
        {**lineages[0], "attempts": 0, "finished_at": 0}
    ] * 2


@pytest.mark.parametrize(("patience", "steps"), [(None, [1]), (0, [1, 2, 3, 4, 5, 6])])
def test_checkpoint_due_by_time_waits_for_the_one_before(make_job, patience, steps):
    """Training goes on meanwhile; there is never more than one under way."""
    reports = Recorder(patience=patience)
    assert training.run(make_job(epochs=1, checkpoint_every_s=1e-9), reports)
    assert [c["step"] for c in reports.of("checkpoint")] == steps


def test_training_waits_for_checkpoints_due_by_steps(make_job):
    """None is left out, however slowly they are stored."""
    reports = Recorder(patience=3)
    assert training.run(make_job(epochs=1, checkpoint_every_steps=2), reports)
    assert [c["step"] for c in reports.of("checkpoint")] == [2, 4, 6]


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("class numbers below 3, got 5 to 7", {"target": "wrong"}),
        ("expected one of", {"loss": "happiness"}),
        ("expected", {"loss": {"name": "categorical_cross_entropy", "warmth": 3}}),
        ("expected", {"optimizer": "guess"}),
        ("expected", {"optimizer": {"name": "adam", "learning_rate": "fast"}}),
        ("metric", {"metrics": ["beauty"]}),
        (
            "finite loss",
            {"optimizer": {"name": "sgd", "learning_rate": 1e30}, "loss": "mean_squared_error", "target": "x3"},
        ),
    ],
)
def test_fault_of_the_job_is_reported(make_job, message, changes):
    """What would fail again in the same way is `failed`, not a crash."""
    job = make_job(**changes)
    np.save(Path(job.dataset) / "x3.npy", np.ones((ROWS, 3), np.float32))
    if changes.get("target") == "x3":
        linear = graph()
        out = {"name": "out", "op": "dense", "inputs": ["hidden"], "options": {"units": 3}}
        linear["nodes"] = [*linear["nodes"][:2], out]
        job = replace(job, spec={**job.spec, "graph": {**linear, "outputs": "out"}})
    reports = trained(job)
    (failed,) = reports.of("failed")
    assert message in failed["error"]
    assert reports.of("finished") == []


def test_submission_refuses_what_the_trainer_would():
    """The service asks the engine before it queues a job: each fault is told at its place, a sound job passes."""
    encoded = json.dumps(graph()).encode()
    sound = {"name": "adam", "learning_rate": {"name": "cosine_decay", "init_value": 0.1, "decay_steps": 9}}
    check = EngineRuntime().check_training
    loss = {"name": "categorical_cross_entropy"}
    assert check(encoded, loss=loss, optimizer=sound, metrics=["accuracy"]) == []
    found = check(encoded, loss={"name": "happiness"}, optimizer={**sound, "warmth": 3}, metrics=["accuracy", "beauty"])
    assert [problem.path for problem in found] == ["loss", "optimizer", "metrics[1]"]
    assert [word in problem.got for word, problem in zip(("happiness", "warmth", "beauty"), found, strict=True)] == [
        True
    ] * 3


def test_composed_optimizers_train_and_averages_are_published(make_job):
    """A chain of groups with a schedule, accumulation and an average; the bundle holds the average."""
    rate = {"name": "cosine_decay", "init_value": 0.05, "decay_steps": 40}
    inner = {"name": "groups", "groups": [{"paths": "*.bias", "optimizer": "sgd"}], "default": {"name": "adam"}}
    inner["default"]["learning_rate"] = {"name": "join", "schedules": [rate, rate], "boundaries": [40]}
    composed = {"name": "chain", "transforms": [{"name": "clip_by_global_norm"}, inner, {"name": "ema", "decay": 0.9}]}
    loss = {**CROSS_ENTROPY, "label_smoothing": 0.1, "regularizers": [{"name": "l2", "factor": 1e-4}]}
    spec = {"loss": loss, "epochs": 20, "validation_fraction": 0.25}
    reports = trained(make_job(optimizer={"name": "accumulate_gradients", "steps": 2, "inner": composed}, **spec))
    losses = [data["data"]["loss"] for data in reports.of("progress") if "epoch_completed" in data["data"]]
    assert losses[-1] < losses[0]
    composed["transforms"].pop()
    plain = trained(make_job(optimizer={"name": "accumulate_gradients", "steps": 2, "inner": composed}, **spec))
    for averaged, last in zip(parameters(reports), parameters(plain), strict=True):
        assert averaged.dtype == last.dtype
        assert np.array_equal(averaged, last) == (last.dtype.kind == "u")  # keys of dropout
        np.testing.assert_allclose(averaged, last, atol=0.3)


CROSS_ENTROPY = {"name": "categorical_cross_entropy"}
DECAYED = {"name": "adamw", "decay": 0.01, "exclude": ["*.bias"]}


@pytest.mark.parametrize(
    ("part", "spec", "message"),
    [
        ("loss", {**CROSS_ENTROPY, "from_logits": "yes"}, "from_logits to be true or false"),
        ("loss", {**CROSS_ENTROPY, "label_smoothing": 1.5}, "label_smoothing to be a finite number"),
        ("loss", {**CROSS_ENTROPY, "class_weights": [1.0] * 7}, r"class_weights of shape \(\d+,\)"),
        ("loss", {**CROSS_ENTROPY, "regularizers": [{"name": "l2", "factor": 1, "paths": "a.b"}]}, "'a.b' to match"),
        ("loss", {"name": "margin_ranking"}, "margin_ranking"),
        (
            "optimizer",
            {"name": "chain", "transforms": [{"name": "clip"}]},
            "expected an optimizer or scale_by_learning",
        ),
        (
            "optimizer",
            {"name": "groups", "groups": [{"paths": "encoder.*", "optimizer": "sgd"}], "default": "adam"},
            r"'encoder\.\*' to match some of",
        ),
        (
            "optimizer",
            {"name": "chain", "transforms": [DECAYED, {"name": "unit_norm", "axes": [4]}]},
            "expected an axis",
        ),
    ],
)
def test_submission_checks_values_shapes_and_paths(part: str, spec: dict, message: str) -> None:
    """What only the graph can tell is told before the job is queued, too."""
    job = {"loss": CROSS_ENTROPY, "optimizer": DECAYED, "metrics": []}
    check = EngineRuntime().check_training
    (problem,) = check(json.dumps(graph()).encode(), **{**job, part: spec})
    assert problem.path == part
    assert re.search(message, problem.got), problem.got
    assert check(json.dumps(graph()).encode(), **job) == []


def test_submission_knows_precisions_loss_scales_and_layers():
    """Unknown ones are told at their place too."""
    check = EngineRuntime().check_training
    right: dict[str, Any] = {"loss": {"name": "mean_squared_error"}, "optimizer": {"name": "sgd"}, "metrics": []}
    encoded = json.dumps(graph()).encode()
    scale = {"name": "dynamic", "period": 10}
    served: dict[str, Any] = {"expose_intermediate": ["act"], "precision": "mixed_bfloat16"}
    assert check(encoded, **right, precision="mixed_float16", loss_scale=scale, serving=served) == []
    served = {"expose_intermediate": ["no"]}
    found = check(encoded, **right, precision="mixed_int4", loss_scale={"name": "dynamic", "step": 1}, serving=served)
    assert [problem.path for problem in found] == ["precision", "loss_scale", "serving.expose_intermediate"]


def test_job_in_half_precision_learns_and_its_version_keeps_the_policy(make_job):
    """Parameters and output stay f32; the share of skipped steps is a metric; a killed run resumes exactly."""
    changes: dict[str, Any] = {"precision": "mixed_float16", "loss_scale": "dynamic", "epochs": 20}
    whole = trained(make_job(**changes))
    (finished,) = whole.of("finished")
    read = bundle.read(finished["bundle"])
    policies = {node.op.name: str(node.policy) for node in read.model.nodes()}
    assert policies["dense"] == policies["softmax"] == "p=f32 c=f16 o=f32"
    assert {leaf.dtype for leaf in jax.tree.leaves(read.state.parameters)} == {np.dtype(np.float32)}
    assert finished["manifest"]["outputs"][0]["datatype"] == "FP32"
    assert finished["manifest"]["lineage"]["metrics"]["skipped"] == 0
    epochs = [data["data"]["loss"] for data in whole.of("progress") if "epoch_completed" in data["data"]]
    assert epochs[-1] < epochs[0] / 2
    stopped = Recorder(stop_after=40)
    assert not training.run(make_job(**changes), stopped)
    resumed = trained(make_job(checkpoint=stopped.of("checkpoint")[-1]["path"], **changes))
    again = bundle.read(resumed.of("finished")[0]["bundle"])
    assert jax.tree.all(jax.tree.map(np.array_equal, read.state, again.state))


def test_damaged_checkpoint_is_a_crash(make_job, tmp_path):
    """It is no fault of the job's: another attempt may read it."""
    (tmp_path / "damaged").mkdir()
    with pytest.raises(CheckpointError):
        training.run(make_job(checkpoint=str(tmp_path / "damaged")), Recorder())


def test_table_columns_become_what_the_graph_wants(make_job):
    """One number per row goes where [None, 1] is wanted, whole numbers where fractions are."""
    job = make_job()
    np.save(Path(job.dataset) / "price.npy", np.arange(ROWS, dtype=np.int64))
    np.save(Path(job.dataset) / "amount.npy", np.linspace(0, 1, ROWS))
    nodes = [
        {"name": "amount", "op": "input", "options": {"shape": [None, 1], "dtype": "f32"}},
        {"name": "price", "op": "dense", "inputs": ["amount"], "options": {"units": 1}},
    ]
    changed = spec_json(
        graph={"format": "axon.graph", "version": 1, "nodes": nodes, "outputs": "price"},
        loss="mean_squared_error",
        target="price",
        metrics=["mean_absolute_error"],
    )
    reports = trained(replace(job, spec=parse_spec(changed).to_json()))
    assert reports.of("finished")[0]["manifest"]["inputs"] == [{"name": "amount", "datatype": "FP32", "shape": [-1, 1]}]


def test_whole_numbers_that_do_not_fit_are_refused(make_job):
    """A cast that would change a value is an error that names the column's range."""
    job = make_job()
    np.save(Path(job.dataset) / "word.npy", np.full(ROWS, 2**40))
    nodes = [
        {"name": "word", "op": "input", "options": {"shape": [None], "dtype": "s32"}},
        {"name": "e", "op": "embedding", "inputs": ["word"], "options": {"vocab_size": 4, "embedding_size": 3}},
    ]
    changed = spec_json(graph={"format": "axon.graph", "version": 1, "nodes": nodes, "outputs": "e"})
    reports = trained(replace(job, spec=parse_spec(changed).to_json()))
    assert "word" in reports.of("failed")[0]["error"]
    assert str(2**40) in reports.of("failed")[0]["error"]


def test_number_beyond_the_models_type_is_refused(make_job):
    """It would become infinite; an infinity that is in the data stays one, and is the loss's affair."""
    job = make_job(loss="mean_squared_error", target="wide", metrics=[])
    np.save(Path(job.dataset) / "wide.npy", np.full((ROWS, 3), 1e300))
    reports = trained(job)
    assert "wide" in reports.of("failed")[0]["error"]
    assert "1e+300" in reports.of("failed")[0]["error"]


async def start_trainer(parent: int) -> asyncio.subprocess.Process:
    """The real program; it waits for its job, so JAX is not imported."""
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-m", "service.worker.trainer", str(parent))
    return await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)


async def test_trainer_ends_with_its_input():
    """The supervisor's end of the pipe closes with the supervisor."""
    process = await start_trainer(os.getpid())
    assert process.stdin is not None
    process.stdin.close()
    async with asyncio.timeout(WAIT_S):
        assert await process.wait() == 1


async def test_trainer_of_another_parent_ends_at_once():
    """One whose supervisor died before it could ask to be told of that does not stay."""
    process = await start_trainer(1)
    async with asyncio.timeout(WAIT_S):
        assert await process.wait() == 1


PARENT = """
import os, subprocess, sys
child = subprocess.Popen(
    [sys.executable, "-m", "service.worker.trainer", str(os.getpid())], stdin=int(sys.argv[1]), stdout=subprocess.PIPE
)
print(child.pid, flush=True)
child.wait()
"""


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return "gone"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells of a parent's death on Linux only")
async def test_trainer_dies_with_its_supervisor():
    """SIGKILL of the supervisor takes the trainer along, even while its input stays open."""
    kept_read, kept_write = os.pipe()
    try:
        parent = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PARENT, str(kept_read), pass_fds=[kept_read], stdout=asyncio.subprocess.PIPE
        )
        assert parent.stdout is not None
        pid = int(await parent.stdout.readline())
        await wait_until(lambda: _blocks_in_read(pid))
        parent.kill()
        await parent.wait()
        await wait_until(lambda: _state(pid) in ("gone", "Z"))
    finally:
        os.close(kept_read)
        os.close(kept_write)


def _blocks_in_read(pid: int) -> bool:
    """Whether it has got as far as waiting for its job: its standard output is a copy of standard error by then."""
    try:
        return os.readlink(f"/proc/{pid}/fd/1") == os.readlink(f"/proc/{pid}/fd/2")
    except OSError:
        return False


class CountingDevice:
    """A device as JAX shows it, with or without statistics of its memory."""

    def __init__(self, stats: dict[str, int] | None) -> None:
        self._stats = stats

    def memory_stats(self) -> dict[str, int] | None:
        return self._stats


def test_device_memory_is_told_where_it_is_known():
    """The sum over the job's devices; a CPU has none."""
    from service.worker.training import device_memory

    gpu = CountingDevice({"bytes_in_use": 5, "peak_bytes_in_use": 7, "bytes_limit": 9})
    assert device_memory([gpu, gpu]) == {"device_memory_bytes": 10, "device_memory_peak_bytes": 14}
    assert device_memory([CountingDevice(None)]) == {}
