"""Write what the code of this version leaves behind: `python -m tests.golden.write FOLDER`, once for each release.

The folder gets a data folder (`data/`) and the job queue's keys (`queue.json`) in a form that any Redis takes.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import engine as ax
from service.adapters.embedded_redis import EmbeddedRedis
from service.adapters.file_checkpoints import FileCheckpointStore
from service.adapters.file_replicas import FileReplicaBoard
from service.adapters.file_store import FileDatasetStore, FileModelStore
from service.adapters.file_uploads import FileUploadStore
from service.adapters.redis_jobs import RedisJobQueue, connect
from service.core.job_spec import parse_spec
from service.core.manifests import bundle_manifest
from service.core.types import (
    BundleReport,
    Column,
    ColumnStatistics,
    Dataset,
    Job,
    JobState,
    Lease,
    ReplicaModel,
    TensorSpec,
    VersionState,
    VersionStatus,
    WorkerInfo,
)
from service.core.uploads import Upload

NOW = 1_700_000_000.0
AGES_S = 1e9
"""What is kept does not go while there are tests of it."""
SPLIT = {1: 0.9, 3: 0.1}


class Clock:
    """Stands still."""

    def monotonic(self) -> float:
        return NOW

    def time(self) -> float:
        return NOW


GRAPH = {
    "format": "axon.graph",
    "version": 1,
    "nodes": [
        {"name": "x", "op": "input", "options": {"shape": [None, 4], "dtype": "f32"}},
        {"name": "dense_0", "op": "dense", "inputs": ["x"], "options": {"units": 1}},
    ],
    "outputs": "dense_0",
}


def spec(**changes: Any) -> dict[str, Any]:
    """A job's request as it is stored."""
    asked = {
        "model": "m", "graph": GRAPH, "dataset": "ds-1", "inputs": {"x": "x"}, "target": "y",
        "loss": "mean_squared_error", "optimizer": {"name": "adam", "learning_rate": 0.05}, "metrics": [],
        "epochs": 2, "batch_size": 4, "seed": 1, "on_success": {"alias": "prod", "load": True}, **changes,
    }  # fmt: skip
    return dict(parse_spec(asked).to_json())


def write_data(root: Path) -> None:
    """Models, a data set, a replica's note, an upload, a checkpoint."""
    store = FileModelStore(root, Clock())
    model = ax.input("x", shape=(None, 4)).dense(1)
    init, _ = ax.build(model)
    report = BundleReport(
        (TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("dense_0", "FP32", (-1, 1)),), 5, 20, "",
        {"max_batch_size": 4},
    )  # fmt: skip
    for seed, lineage in ((1, {"job": "job-done", "metrics": {"loss": 0.5}}), (2, {}), (3, {})):
        bundle = store.scratch() / "bundle"
        state = init(np.zeros((1, 4), np.float32), seed=seed)
        ax.bundle.write(bundle, model, state)
        number = store.allocate("m")
        store.publish("m", number, bundle, manifest=bundle_manifest(bundle, report, lineage))
    store.delete("m", 2)
    store.change(
        "m", lambda old: replace(old, loaded=frozenset({1, 3}), aliases={"prod": 1, "canary": {1: 0.9, 3: 0.1}})
    )
    store.change("m", lambda old: replace(old, aliases={**old.aliases, "prod": 3}, previous={"prod": 1}))
    store.change(
        "m", lambda old: replace(old, pinned=frozenset({3}), serving={3: {"max_batch_size": 2}}, evicted={1: "room"})
    )
    store.allocate("gone")
    store.delete("gone", None)
    store.close()
    datasets = FileDatasetStore(root)
    folder = datasets.scratch()
    np.save(folder / "x.npy", np.arange(32, dtype=np.float32).reshape(8, 4))
    np.save(folder / "y.npy", np.arange(8, dtype=np.int32))
    columns = (
        Column("x", "FP32", (4,), (), ColumnStatistics(32, 0, 0.0, 31.0, 15.5, 9.23)),
        Column("y", "INT32", (), ("a", "b"), ColumnStatistics(8, 0, 0.0, 7.0, 3.5, 2.29, dict.fromkeys(range(8), 1))),
    )
    datasets.add(folder, Dataset("ds-1", "toy", 8, columns, "0" * 64, 160, NOW, folder))
    datasets.close()
    versions = (VersionStatus(1, VersionState.READY), VersionStatus(3, VersionState.FAILED, "too large"))
    FileReplicaBoard(root, Clock()).publish(
        "r1", {"m": ReplicaModel(7, versions, {"prod": 3, "canary": {1: 0.9, 3: 0.1}})}
    )
    uploads = FileUploadStore(root)
    uploads.create(Upload("up-0000000000000001", 6, NOW, "0" * 64), max_bytes=10, max_uploads=3)
    uploads.append("up-0000000000000001", 0, [b"abc"], durable=True)
    uploads.close()
    with tempfile.TemporaryDirectory() as local:
        (Path(local) / "c" / "arrays").mkdir(parents=True)
        (Path(local) / "c" / "arrays" / "0").write_text("five")
        checkpoints = FileCheckpointStore(root)
        checkpoints.put("job-running", 1, 5, Path(local) / "c")
        checkpoints.expire("job-running", NOW)


async def write_queue(queue: RedisJobQueue) -> None:
    """Jobs in every state, a sweep, events, a worker."""
    plain = Job("", spec(), JobState.QUEUED, "default", 0, 3, NOW, owner="me")
    for name in ("done", "failed", "running", "waiting", "cancelled"):
        await queue.submit(replace(plain, id=f"job-{name}", idempotency_key=f"key-{name}"))

    async def claimed(name: str) -> Lease:
        lease = await queue.claim("worker-1", ["default"], wait_s=1)
        assert lease is not None
        assert lease.job.id == f"job-{name}"
        return lease

    done = await claimed("done")
    await queue.append(done, "progress", {"epoch": 1, "metrics": {"loss": 0.5}})
    await queue.append(done, "log", {"line": "hello"})
    await queue.reserve(done, "m", 1)
    await queue.settle(done, JobState.SUCCEEDED, result={"model": "m", "version": 1, "metrics": {"loss": 0.5}})
    await queue.settle(await claimed("failed"), JobState.FAILED, error="no luck")
    running = await claimed("running")
    await queue.commit_checkpoint(running, {"attempt": 1, "step": 5, "path": "job-running/1/5"})
    await queue.cancel("job-cancelled")
    await queue.beat(WorkerInfo("worker-1", ("default",), "cpu", "training", "job-running", "0.1.0", NOW), ttl_s=AGES_S)


async def read_keys(redis: Any) -> list[dict[str, Any]]:
    """Every key with its type and content."""
    found = []
    for name in sorted([key async for key in redis.scan_iter(count=1000)]):
        kind = await redis.type(name)
        entry: dict[str, Any] = {"key": name, "type": kind, "expires": await redis.pttl(name) > 0}
        if kind == "hash":
            entry["content"] = await redis.hgetall(name)
        elif kind == "zset":
            entry["content"] = await redis.zrange(name, 0, -1, withscores=True)
        elif kind == "stream":
            entry["content"] = await redis.xrange(name)
            groups = await redis.xinfo_groups(name)
            pending = [await redis.xpending_range(name, each["name"], "-", "+", 100) for each in groups]
            entry["groups"] = [
                [each["name"], each["last-delivered-id"], [[one["message_id"], one["consumer"]] for one in left]]
                for each, left in zip(groups, pending, strict=True)
            ]
        else:
            entry["content"] = await redis.get(name)
        found.append(entry)
    return found


async def main(folder: Path) -> None:
    """Write everything."""
    write_data(folder / "data")
    with tempfile.TemporaryDirectory() as place:
        server = EmbeddedRedis(Path(place))
        await server.start()
        redis: Any = connect(server.url)
        try:
            await write_queue(RedisJobQueue(redis, Clock(), lease_s=1.0, keep_s=AGES_S))
            keys = await read_keys(redis)
        finally:
            await redis.aclose()
            await server.stop()
    (folder / "queue.json").write_text(json.dumps(keys, indent=1))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
