"""A back-up is made of what runs, and restored into empty stores and queues of any kind."""

from __future__ import annotations

import asyncio
import contextlib
import io
import tarfile
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from service.adapters import backup
from service.adapters.embedded_redis import EmbeddedRedis
from service.adapters.redis_jobs import RedisJobQueue
from service.bootstrap.backup import back_up, restore
from service.bootstrap.queue import build_queue
from service.core.errors import Conflict, InvalidRequest, NotFound
from service.core.types import Job, JobState
from service.settings import Settings
from tests.service.adapters.places import Place
from tests.service.adapters.test_checkpoint_store import local
from tests.service.adapters.test_store_contract import dataset_in, put

NEVER = asyncio.Event()


@pytest_asyncio.fixture
async def servers(tmp_path: Path) -> AsyncIterator[list[str]]:
    """The URLs of two empty job queues."""
    started = [EmbeddedRedis(tmp_path / name) for name in ("redis-old", "redis-new")]
    for each in started:
        await each.start()
    yield [each.url for each in started]
    for each in started:
        await each.stop()


def queued(job_id: str) -> Job:
    """A job as it is submitted."""
    return Job(job_id, {"model": "m", "tag": "default"}, JobState.QUEUED, "default", 0, 3, 1_700_000_000.0)


async def fill(place: Place, queue: RedisJobQueue, folder: Path) -> None:
    """Models that were deleted and not, a data set, and jobs in every state."""
    store, datasets = place.models(), place.datasets()
    for content in (b"one", b"two", b"three"):
        put(store, "m", content)
    store.delete("m", 2)
    store.change("m", lambda state: replace(state, aliases={"prod": 3}, loaded=frozenset({3})))
    put(store, "gone")
    store.delete("gone", None)
    scratch = datasets.scratch()
    datasets.add(scratch, dataset_in(scratch))
    for name in ("done", "running", "waiting"):
        await queue.submit(queued(name))
    done = await queue.claim("w", ["default"], wait_s=1)
    await queue.reserve(done, "m", 1)
    await queue.settle(done, JobState.SUCCEEDED, result={"model": "m", "version": 1})
    running = await queue.claim("w", ["default"], wait_s=1)
    await queue.append(running, "log", {"line": "hello"})
    checkpoints = place.checkpoints()
    await queue.commit_checkpoint(running, checkpoints.put("running", 1, 5, local(folder, "five")))
    checkpoints.put("running", 1, 6, local(folder, "not committed"))
    # It has published, and the queue as it was saved does not know.
    put(store, "m", b"four", job="running")


@pytest.mark.parametrize("kind", ["file", "s3"])
async def test_backup_comes_back_in_another_place(bucket, s3, servers, tmp_path, kind):
    """From files into a bucket and from a bucket into files, byte for byte; no number is given twice."""
    sides = {"file": Place("file", tmp_path / "old"), "s3": Place("s3", tmp_path / "new", url=bucket.url)}
    old, new = (sides["file"], sides["s3"]) if kind == "file" else (sides["s3"], sides["file"])
    settings = [
        Settings(data_dir=place.root, store_url=place.url or None, redis_url=url, job_lease_s=0.5)
        for place, url in zip((old, new), servers, strict=True)
    ]
    queues = [build_queue(use, url) for use, url in zip(settings, servers, strict=True)]
    await fill(old, queues[0], tmp_path)
    made = await back_up(settings[0], tmp_path / "backup.tar", NEVER)
    assert made == (2, 3, 1, 1, made.keys, 0)
    read = await restore(settings[1], tmp_path / "backup.tar", NEVER)
    assert read == (*made[:5], 1)

    before, after = old.models(), new.models()
    assert after.states() == before.states()
    for stored in before.versions("m"):
        copy = after.version("m", stored.version)
        assert (copy.manifest, copy.created_at) == (stored.manifest, stored.created_at)
        assert after.bundle(copy).read_bytes() == before.bundle(stored).read_bytes()
    assert [after.allocate("m"), after.allocate("gone")] == [5, 2]
    found = new.datasets().all()
    assert [replace(each, path=Path()) for each in found] == [replace(d, path=Path()) for d in old.datasets().all()]
    np.testing.assert_array_equal(np.load(new.datasets().columns(found[0]) / "x.npy"), [[0, 1], [2, 3], [4, 5]])
    jobs = {job.id: job for job in await queues[1].find()}
    assert jobs["running"].reserved == ("m", 4)
    assert {job.id: job for job in await queues[0].find()} == jobs | {
        "running": replace(jobs["running"], reserved=None)
    }
    assert (new.checkpoints().get(jobs["running"].checkpoint) / "arrays" / "0").read_text() == "five"
    assert [event.data for event in await queues[1].replay("running") if event.kind == "log"] == [{"line": "hello"}]
    claimed = {(await queues[1].claim("w2", ["default"], wait_s=5)).job.id for _ in range(2)}
    assert claimed == {"running", "waiting"}
    for queue in queues:
        await queue.close()
    for place in sides.values():
        place.close()


async def test_restore_refuses_what_it_would_mix_or_half_do(servers, tmp_path):
    """A store or a queue with anything in it, a file that is torn, and one that is none."""
    old = Place("file", tmp_path / "old")
    use = Settings(data_dir=old.root, redis_url=servers[0])
    queue = build_queue(use, servers[0])
    await fill(old, queue, tmp_path)
    path = tmp_path / "backup.tar"
    await back_up(use, path, NEVER)
    with pytest.raises(Conflict, match="expected no file"):
        await back_up(use, path, NEVER)
    with pytest.raises(Conflict, match=r"expected an empty job queue and nobody who uses it, got \d+ keys"):
        await restore(replace_settings(use, data_dir=tmp_path / "a"), path, NEVER)
    with pytest.raises(Conflict, match="expected an empty store"):
        await restore(replace_settings(use, redis_url=servers[1]), path, NEVER)
    whole = path.read_bytes()
    torn = {"half": whole[: len(whole) // 2], "none": b"hello" * 1000, "empty": b"", "tar": tar("notes.txt", b"x")}
    torn["outside"] = tar("backup.json", b'{"format": "axon.backup", "version": 1}', "../x", b"")
    torn["later"] = tar("backup.json", b'{"format": "axon.backup", "version": 2}')
    for name, content in torn.items():
        (tmp_path / f"{name}.tar").write_bytes(content)
        into = replace_settings(use, data_dir=tmp_path / name, redis_url=servers[1])
        with pytest.raises(InvalidRequest, match="restore: expected"):
            await restore(into, tmp_path / f"{name}.tar", NEVER)
    assert not (tmp_path / "x").exists()
    await queue.close()
    old.close()


def replace_settings(settings: Settings, **changes: object) -> Settings:
    """The same with other values."""
    return settings.model_copy(update=changes)


def tar(*members: str | bytes) -> bytes:
    """An archive of names and contents in turn."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for name, content in zip(members[::2], members[1::2], strict=True):
            member = tarfile.TarInfo(str(name))
            member.size = len(content)
            archive.addfile(member, io.BytesIO(bytes(content)))  # type: ignore[arg-type]
    return whole.getvalue()


def test_backup_of_a_store_that_changes_is_of_one_moment_for_each_model(place, tmp_path):
    """Every version that a restored state names is there, and none has a number that will be given again."""
    store, stop = place.models(), threading.Event()

    def change() -> None:
        mine, turn = place.models(), 0
        while not stop.is_set():
            name = f"m{turn % 3}"
            number = put(mine, name, str(turn).encode())
            mine.change(name, lambda state, to=number: replace(state, aliases={"prod": to}))
            if turn % 2 and number > 1:
                with contextlib.suppress(Conflict, NotFound):
                    mine.delete(name, number - 1)
            turn += 1

    put(store, "m0")
    changing = threading.Thread(target=change)
    changing.start()
    try:
        for turn in range(3):
            whole = io.BytesIO()
            backup.write(whole, backup.Sides(store, place.datasets(), place.checkpoints()), [], [], 1.0)
            whole.seek(0)
            other = Place("file", tmp_path / f"restored-{turn}")
            restored = other.models()
            backup.restore(whole, backup.Sides(restored, other.datasets(), other.checkpoints()), restored.scratch())
            for name, state in restored.states().items():
                numbers = [stored.version for stored in restored.versions(name)]
                assert set(state.aliases.values()) <= set(numbers)
                assert max(numbers, default=0) < state.next_version
            other.close()
    finally:
        stop.set()
        changing.join()
