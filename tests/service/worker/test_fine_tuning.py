"""Fine-tuning from end to end: jobs go through the real service and the real trainer, version after version."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import bundle
from engine.bundle import Bundle
from service.adapters.clock import SystemClock
from service.adapters.engine_runtime import EngineRuntime
from service.core.jobs import JobService
from service.core.limits import Limits
from service.core.manifests import bundle_manifest
from service.core.starts import Starts
from service.core.types import Job, JobState
from tests.faults.references import parameters, train_undisturbed
from tests.service.worker.test_experiments import leaves, travelling_model
from tests.service.worker.workshop import Workshop, spec_json


class Place:
    """A workshop with the service that takes its jobs."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop
        starts = Starts(workshop.store, workshop.checkpoints, workshop.queue)
        clock, engine = SystemClock(), EngineRuntime()
        self.jobs = JobService(workshop.queue, workshop.datasets, engine, clock, Limits(), starts=starts)

    async def done(self, **changes: Any) -> Job:
        """A job at its end; without a graph where it starts elsewhere."""
        spec = spec_json(**changes)
        if "start" in changes:
            del spec["graph"]
        job = (await self.jobs.submit(json.loads(json.dumps(spec)))).job
        async with self.workshop.working():
            await self.workshop.history(job.id)
        return await self.jobs.get(job.id)

    def version(self, number: int, model: str = "toy") -> Bundle:
        """What was published."""
        return bundle.read(self.workshop.store.version(model, number).path, trusted=True)


@pytest.fixture
def place(tmp_path: Path):
    """A data folder, a queue in memory, real trainers."""
    workshop = Workshop.open(tmp_path, lease_s=10.0)
    yield Place(workshop)
    workshop.close()


async def test_version_is_fine_tuned_and_promoted_if_better(place: Place):
    """Frozen parameters stay bit for bit, the lineage names the parent, the alias moves only upwards."""
    better = {"alias": "prod", "if_better": "accuracy"}
    first = await place.done(epochs=1, on_success=better)
    assert first.state is JobState.SUCCEEDED, first.error
    assert (first.result["promoted"], first.result["reason"]) == (True, "no version was prod")
    rate = {"name": "adam", "learning_rate": 0.05}
    tuned = await place.done(start={"model": "toy"}, freeze=["hid*"], optimizer=rate, epochs=6, on_success=better)
    assert tuned.state is JobState.SUCCEEDED, tuned.error
    before, after = leaves(place.version(1).state.parameters), leaves(place.version(2).state.parameters)
    assert {name for name in before if np.array_equal(before[name], after[name])} == {
        "['hidden']['kernel']",
        "['hidden']['bias']",
    }
    lineage = place.workshop.store.version("toy", 2).manifest["lineage"]
    assert (lineage["parent"], lineage["worker"]) == ({"model": "toy", "version": 1}, "w1")
    assert lineage["started_at"] == tuned.started_at <= lineage["finished_at"] <= tuned.finished_at
    assert tuned.result["promoted"]
    assert place.workshop.store.state("toy").aliases == {"prod": 2}
    still = {"name": "sgd", "learning_rate": 0.0}
    worse = await place.done(start={"model": "toy", "version": 1}, optimizer=still, epochs=1, on_success=better)
    assert not worse.result["promoted"]
    assert "that of version 2" in worse.result["reason"]
    assert place.workshop.store.state("toy").aliases == {"prod": 2}


async def test_version_with_a_layer_of_ones_own_is_fine_tuned(place: Place, tmp_path: Path):
    """The trainer process has only the program; the next version has it too, and all else that travels."""
    path = tmp_path / "own.axon"
    travelling_model(path)
    report = EngineRuntime().check_bundle(path)
    manifest = bundle_manifest(path, report, {})
    store = place.workshop.store
    store.publish("own", store.allocate("own"), path, manifest=manifest)
    before = place.version(1, "own")
    job = await place.done(model="own", start={"model": "own"}, freeze=["first"], epochs=2)
    assert job.state is JobState.SUCCEEDED, job.error
    after = place.version(2, "own")
    assert set(after.functions) == set(before.functions) == {"squared"}
    assert after.preprocess == before.preprocess
    assert (after.state.ties, dict(after.serving)) == (before.state.ties, dict(before.serving))
    for name in ("kernel", "bias"):
        np.testing.assert_array_equal(
            after.state.parameters["first"][name], before.state.parameters["first"][name], strict=True
        )
    assert not np.array_equal(after.state.parameters["gate"]["threshold"], before.state.parameters["gate"]["threshold"])
    again = EngineRuntime().check_bundle(store.version("own", 2).path)
    assert again.inputs == report.inputs


def trainer_pid() -> int:
    """The process id of the trainer, out of this process's children."""
    own = os.getpid()
    children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
    (found,) = (pid for pid in children if b"service.worker.trainer" in Path(f"/proc/{pid}/cmdline").read_bytes())
    return int(found)


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
async def test_killed_experiment_publishes_the_same_best_epoch(place: Place, tmp_path: Path):
    """SIGKILL after some epochs: best parameters, patience and learning rate go on from the checkpoint, bit for bit."""
    options: dict[str, Any] = {
        "validation_fraction": 0.25,
        "batch_size": 12,
        "epochs": 12,
        "checkpoint_every_steps": 4,
        "optimizer": {"name": "sgd", "learning_rate": 1.0},
        "early_stopping": {"metric": "validation_loss", "patience": 1},
        "reduce_on_plateau": {"metric": "loss", "patience": 0, "factor": 0.5},
        "keep": "best",
    }
    job = (await place.jobs.submit(spec_json(**options))).job
    async with place.workshop.working():
        checkpoints = 0
        async for event in place.workshop.queue.events(job.id):
            checkpoints += event.kind == "checkpoint"
            if event.kind == "checkpoint" and checkpoints == 4:
                os.kill(trainer_pid(), signal.SIGKILL)
    ended = await place.jobs.get(job.id)
    assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 2), ended.error
    dataset = place.workshop.datasets.get("ds")
    undisturbed = train_undisturbed(dataset, tmp_path / "undisturbed", options)
    expected, found = parameters(undisturbed), parameters(place.workshop.store.version("toy", 1).path)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, strict=True, err_msg=name)
    lineages = [bundle.read(undisturbed).lineage, place.version(1).lineage]
    assert lineages[0]["epoch"] == lineages[1]["epoch"] < 12
    assert lineages[0]["metrics"] == lineages[1]["metrics"]


async def test_start_that_was_deleted_meanwhile_fails_the_job_at_once(place: Place):
    """With what is gone, and without another attempt."""
    await place.done(epochs=1)
    spec = spec_json(start={"model": "toy"})
    del spec["graph"]
    job = (await place.jobs.submit(spec)).job
    place.workshop.store.delete("toy", 1)
    async with place.workshop.working():
        await place.workshop.history(job.id)
    failed = await place.jobs.get(job.id)
    assert (failed.state, failed.attempt) == (JobState.FAILED, 1)
    assert failed.error == (
        "start: expected what was there when the job was submitted, got: model 'toy': there is no version 1"
    )


async def test_cancelled_job_is_gone_on_with_on_two_devices(place: Place, monkeypatch: pytest.MonkeyPatch):
    """Another job starts from its checkpoint, each batch split over the slot's devices."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    job = (await place.jobs.submit(spec_json(epochs=100_000, checkpoint_every_steps=10))).job
    async with place.workshop.working():
        async for event in place.workshop.queue.events(job.id):
            if event.kind == "checkpoint":
                await place.jobs.cancel(job.id)
    pointer = (await place.jobs.get(job.id)).checkpoint
    still = {"name": "sgd", "learning_rate": 0.0}
    both = await place.done(
        start={"job": job.id}, freeze=["hidden"], devices=2, shard_params=True, batch_size=10, epochs=1, optimizer=still
    )
    assert both.state is JobState.SUCCEEDED, both.error
    lineage = place.workshop.store.version("toy", 1).manifest["lineage"]
    assert lineage["parent"] == {"job": job.id, "checkpoint": pointer}
    one = await place.done(start={"job": job.id}, freeze=["hidden"], epochs=1, optimizer=still)
    assert one.state is JobState.SUCCEEDED, one.error
    found = [leaves(place.version(number).state.parameters) for number in (1, 2)]
    assert place.version(1).state.frozen == {"hidden.kernel", "hidden.bias"}
    for name, value in found[1].items():
        np.testing.assert_array_equal(found[0][name], value, strict=True)
