"""What earlier versions left behind is read by this one, and so is what later ones may add.

`python -m tests.golden.write FOLDER`, run with the code of a release, makes its folder here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from engine.bundle import read
from service.adapters.dataset_document import dataset_from_json
from service.adapters.embedded_redis import EmbeddedRedis
from service.adapters.file_checkpoints import FileCheckpointStore
from service.adapters.file_replicas import FileReplicaBoard
from service.adapters.file_store import FileDatasetStore, FileModelStore
from service.adapters.file_uploads import FileUploadStore
from service.adapters.redis_jobs import RedisJobQueue, connect
from service.adapters.redis_values import worker_of
from service.adapters.replica_document import note_from_json
from service.adapters.state_document import StateDocument
from service.core.errors import NotFound, Unsupported
from service.core.job_spec import parse_spec, stored_spec
from service.core.manifests import serving_config
from service.core.starts import stored_report
from service.core.types import JobState, ModelState, ReplicaModel, ServingConfig, VersionState, VersionStatus
from tests.golden.write import NOW, Clock, spec

HERE = Path(__file__).parent
RELEASES = sorted(path.name for path in HERE.iterdir() if (path / "queue.json").exists())
SPLIT = {1: 0.9, 3: 0.1}


@pytest.fixture(params=RELEASES)
def release(request: pytest.FixtureRequest) -> Path:
    """What a release left."""
    return HERE / request.param


@pytest.fixture
def data(release: Path, tmp_path: Path) -> Path:
    """A copy of its data folder, to be worked on."""
    return Path(shutil.copytree(release / "data", tmp_path / "data"))


def test_there_is_a_release():
    """A folder that is gone would test nothing."""
    assert "0.1.0" in RELEASES


def test_models_are_read_and_go_on(data):
    """States, manifests and bundles; numbers go on where they were."""
    store = FileModelStore(data, Clock())
    assert store.models() == ["m"]
    assert store.state("m") == ModelState(
        "m", 10, 4, frozenset({1, 3}), {"prod": 3, "canary": SPLIT}, {3: {"max_batch_size": 2}}, {"prod": 1},
        frozenset({3}), {1: "room"},
    )  # fmt: skip
    first, third = store.versions("m")
    assert (first.version, third.version, first.created_at) == (1, 3, NOW)
    assert first.manifest["lineage"] == {"job": "job-done", "metrics": {"loss": 0.5}}
    assert stored_report(first).inputs[0].shape == (-1, 4)
    assert serving_config(ServingConfig(), first.manifest).max_batch_size == 4
    kernel = read(store.bundle(first)).state.parameters["dense_0"]["kernel"]
    assert kernel.shape == (4, 1)
    assert [store.allocate("m"), store.allocate("gone")] == [4, 2]
    with pytest.raises(NotFound):
        store.version("m", 2)
    store.close()


def test_data_sets_are_read(data):
    """With labels and statistics."""
    store = FileDatasetStore(data)
    [dataset] = store.all()
    assert (dataset.id, dataset.name, dataset.rows, dataset.created_at) == ("ds-1", "toy", 8, NOW)
    assert [(column.name, column.datatype, column.shape, column.labels) for column in dataset.columns] == [
        ("x", "FP32", (4,), ()), ("y", "INT32", (), ("a", "b")),
    ]  # fmt: skip
    assert dataset.columns[1].statistics.classes == dict.fromkeys(range(8), 1)
    np.testing.assert_array_equal(np.load(store.columns(dataset) / "y.npy"), np.arange(8))
    store.close()


def test_notes_uploads_and_checkpoints_are_read(data):
    """An upload goes on where it was."""
    (data / "replicas" / "r1.json").touch()
    clock = Clock()
    clock.time = lambda: (data / "replicas" / "r1.json").stat().st_mtime  # type: ignore[method-assign]
    [replica] = FileReplicaBoard(data, clock).replicas()
    versions = (VersionStatus(1, VersionState.READY), VersionStatus(3, VersionState.FAILED, "too large"))
    assert replica.models == {"m": ReplicaModel(7, versions, {"prod": 3, "canary": SPLIT})}
    uploads = FileUploadStore(data)
    assert uploads.append("up-0000000000000001", 3, [b"def"], durable=True) == 6
    assert uploads.get("up-0000000000000001").sha256 == "0" * 64
    uploads.close()
    checkpoints = FileCheckpointStore(data)
    found = checkpoints.get({"attempt": 1, "step": 5, "path": "job-running/1/5"})
    assert (found / "arrays" / "0").read_text() == "five"
    assert checkpoints.expiry("job-running") == NOW


@pytest_asyncio.fixture
async def queue(release: Path, tmp_path: Path) -> AsyncIterator[RedisJobQueue]:
    """A queue with the keys of the release."""
    server = EmbeddedRedis(tmp_path / "redis")
    await server.start()
    redis: Any = connect(server.url)
    for entry in json.loads((release / "queue.json").read_text()):
        await _load(redis, entry)
    yield RedisJobQueue(redis, Clock(), lease_s=0.2)
    await redis.aclose()
    await server.stop()


async def _load(redis: Any, entry: dict[str, Any]) -> None:
    key, content = entry["key"], entry["content"]
    if entry["type"] == "hash":
        await redis.hset(key, mapping=content)
    elif entry["type"] == "zset":
        await redis.zadd(key, dict(content))
    elif entry["type"] == "stream":
        for entry_id, fields in content:
            await redis.xadd(key, fields, id=entry_id)
        for name, last, pending in entry["groups"]:
            await redis.xgroup_create(key, name, id=last)
            for entry_id, consumer in pending:
                await redis.xclaim(key, name, consumer, 0, [entry_id], force=True, justid=True, idle=3_600_000)
    else:
        await redis.set(key, content)
    if entry["expires"]:
        await redis.pexpire(key, 3_600_000)


async def test_jobs_are_read_and_go_on(queue):
    """Results, errors, events; who waits is trained, and what a dead worker had is taken over with its checkpoint."""
    jobs = {job.id: job for job in await queue.find()}
    assert {job_id: job.state for job_id, job in jobs.items()} == {
        "job-done": JobState.SUCCEEDED, "job-failed": JobState.FAILED, "job-running": JobState.RUNNING,
        "job-waiting": JobState.QUEUED, "job-cancelled": JobState.CANCELLED,
    }  # fmt: skip
    done = jobs["job-done"]
    assert (done.reserved, done.result["metrics"], done.owner) == (("m", 1), {"loss": 0.5}, "me")
    assert jobs["job-failed"].error == "no luck"
    assert stored_spec(done.spec) == stored_spec(spec())
    events = await queue.replay("job-done")
    assert [event.kind for event in events] == ["state", "state", "progress", "log", "state"]
    assert events[2].data == {"epoch": 1, "metrics": {"loss": 0.5}}
    [worker] = await queue.workers()
    assert (worker.id, worker.job, worker.version) == ("worker-1", "job-running", "0.1.0")
    again = await queue.submit(replace(jobs["job-waiting"], id="another", idempotency_key="key-waiting"))
    assert again.id == "job-waiting"
    leases = {}
    for _ in range(2):
        lease = await queue.claim("worker-2", ["default"], wait_s=10)
        leases[lease.job.id] = lease
    assert set(leases) == {"job-running", "job-waiting"}
    taken = leases["job-running"]
    assert (taken.attempt, taken.job.checkpoint) == (2, {"attempt": 1, "step": 5, "path": "job-running/1/5"})
    await queue.settle(taken, JobState.SUCCEEDED, result={"model": "m", "version": 3, "metrics": {}})
    new = replace(jobs["job-failed"], id="job-new", requeued_from="job-failed", idempotency_key="")
    requeued = await queue.requeue("job-failed", new)
    assert requeued.requeued_from == "job-failed"


def test_job_specs_of_now_have_the_fields_of_then(release):
    """A worker of that release refuses every field that it does not know, so a plain job has none."""
    [then] = [
        json.loads(entry["content"]["spec"])
        for entry in json.loads((release / "queue.json").read_text())
        if entry["key"] == "{axon}:job:job-waiting"
    ]
    assert spec().keys() == then.keys()
    assert stored_spec(then).to_json().keys() == then.keys()


def test_documents_of_now_have_the_fields_of_then(release):
    """None is gone that a reader of that release takes for granted."""
    for name in ("m", "gone"):
        then = json.loads((release / "data" / "models" / name / "state.json").read_text())
        assert then.keys() <= StateDocument(ModelState(name)).to_json().keys()


# What later versions may add


def later(value: Any) -> Any:
    """The same with a field that nobody knows in every object that is not a map of names."""
    return {**value, "added_later": {"x": 1}}


def test_unknown_optional_fields_are_ignored(release):
    """In every document that servers share."""
    state = json.loads((release / "data/models/m/state.json").read_text())
    assert StateDocument.from_json("m", later(state)) == StateDocument.from_json("m", state)
    dataset = json.loads((release / "data/datasets/ds-1/manifest.json").read_text())
    column = later(dataset["columns"][1]) | {"statistics": later(dataset["columns"][1]["statistics"])}
    changed = later(dataset) | {"columns": [later(dataset["columns"][0]), column]}
    assert dataset_from_json(changed, Path("x")) == dataset_from_json(dataset, Path("x"))
    note = json.loads((release / "data/replicas/r1.json").read_text())
    models = {name: later(model) for name, model in note["models"].items()}
    assert note_from_json(json.dumps(later(note) | {"models": models}).encode()) == note_from_json(
        json.dumps(note).encode()
    )
    heartbeat = {
        "id": "w", "tags": ["default"], "device": "cpu", "state": "idle", "job": None, "version": "9", "slots": 1,
        "heartbeat_at": NOW, "jobs": [], "problem": "", "heartbeat_age_s": 0.0,
        "devices": [{"name": "gpu", "kind": "k", "memory_total_bytes": 1, "memory_free_bytes": 1}],
    }  # fmt: skip
    devices = [later(device) for device in heartbeat["devices"]]
    assert worker_of(later(heartbeat) | {"devices": devices}) == worker_of(heartbeat)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"requires": ["quorum"]}, "requires quorum: upgrade"),
        ({"format": 2}, "expected format 1, got 2; a later server wrote it"),
    ],
)
def test_what_only_later_versions_may_read_is_refused_by_name(data, changes, told):
    """And nothing is written in its place."""
    for path in ("models/m/state.json", "models/m/versions/1/manifest.json", "datasets/ds-1/manifest.json"):
        file = data / path
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    models, datasets, uploads = FileModelStore(data, Clock()), FileDatasetStore(data), FileUploadStore(data)
    for call in (
        lambda: models.state("m"),
        models.states,
        lambda: models.allocate("m"),
        lambda: datasets.get("ds-1"),
    ):
        with pytest.raises(Unsupported, match=told):
            call()
    file = data / "models/m/state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 1, "requires": []}))
    with pytest.raises(Unsupported, match=f"model 'm': version 1.*{told}"):
        models.version("m", 1)
    announced = data / "uploads/up-0000000000000001/upload.json"
    announced.write_text(json.dumps(json.loads(announced.read_text()) | changes))
    with pytest.raises(Unsupported, match=told):
        uploads.get("up-0000000000000001")
    note = json.loads((data / "replicas/r1.json").read_text())
    assert note_from_json(json.dumps(note | changes).encode()) is None
    for store in (models, datasets, uploads):
        store.close()


def test_job_spec_of_a_later_version_is_refused_by_name():
    """A worker does not train something else than was asked for."""
    from service.core.errors import InvalidRequest

    for read_spec in (parse_spec, stored_spec):
        with pytest.raises(InvalidRequest, match=r"quantum: .*got an unknown key"):
            read_spec(spec() | {"quantum": True})
