"""`axon backup` and `axon restore`: the stores and the job queue in one file."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from service.adapters import backup
from service.adapters.clock import SystemClock
from service.adapters.embedded_redis import EmbeddedRedis
from service.adapters.redis_backup import Key, RedisBackup
from service.adapters.redis_jobs import PREFIX
from service.bootstrap.local import queue_file
from service.bootstrap.queue import build_queue
from service.bootstrap.stores import Stores, build_stores
from service.core.errors import Conflict
from service.core.types import Json
from service.settings import Settings

_MAX_JOBS = 1_000_000


class Summary(NamedTuple):
    """What a back-up has, or what was restored of one; `tied` are jobs whose version had come after the queue."""

    models: int
    versions: int
    datasets: int
    checkpoints: int
    keys: int
    tied: int = 0


async def back_up(settings: Settings, path: Path, stop: asyncio.Event) -> Summary:
    """Write a back-up of what runs, or of what is stopped; `path` appears when it is whole.

    Raises `Conflict` when it exists, `NotReady` when the store or the queue is away.
    """
    if await asyncio.to_thread(path.exists):
        raise Conflict(f"back-up: expected no file {path}, got one")
    draft = path.with_name(f".{path.name}.part")
    clock = SystemClock()
    stores = build_stores(settings, clock)
    try:
        async with _queue_url(settings) as url:
            keys, pointers = await _read_queue(settings, url)
        with draft.open("wb") as file:
            contents = await asyncio.to_thread(backup.write, file, _sides(stores), keys, pointers, clock.time())
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)
        stores.close()
    return _summary(contents)


async def restore(settings: Settings, path: Path, stop: asyncio.Event) -> Summary:
    """Write a back-up into an empty store and an empty queue, which nobody uses meanwhile.

    Raises `Conflict` where there is anything, `InvalidRequest` for a file that is no back-up or is torn.
    """
    stores = build_stores(settings, SystemClock())
    scratch = stores.models.scratch()
    try:
        async with _queue_url(settings) as url, _closing(RedisBackup(url)) as queue:
            await queue.require_empty()
            with path.open("rb") as file:
                restored = await asyncio.to_thread(backup.restore, file, _sides(stores), scratch)
            tied = await queue.restore(restored.keys, restored.contents.versions)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        stores.close()
    return _summary(restored.contents)._replace(tied=tied)


def _sides(stores: Stores) -> backup.Sides:
    return backup.Sides(stores.models, stores.datasets, stores.checkpoints)


def _summary(contents: backup.Contents) -> Summary:
    versions = sum(map(len, contents.models.values()))
    kept = (len(contents.models), versions, len(contents.datasets), len(contents.checkpoints), len(contents.keys))
    return Summary(*kept)


async def _read_queue(settings: Settings, url: str) -> tuple[list[Key], list[Mapping[str, Json]]]:
    """All keys in one moment, and the checkpoints that its jobs point at."""
    async with _closing(RedisBackup(url)) as dump:
        # Who was alive then is not who is alive when it is restored.
        keys = [key for key in await dump.keys() if not key.name.startswith(f"{PREFIX}:worker")]
    async with _closing(build_queue(settings, url)) as queue:
        jobs = await queue.find(limit=_MAX_JOBS)
    return keys, [job.checkpoint for job in jobs if job.checkpoint is not None]


@contextlib.asynccontextmanager
async def _closing(thing: Any) -> AsyncIterator[Any]:
    try:
        yield thing
    finally:
        await thing.close()


@contextlib.asynccontextmanager
async def _queue_url(settings: Settings) -> AsyncIterator[str]:
    """That of the settings, of an `axon up` that runs on the data folder, or of its queue, started for a moment."""
    if settings.redis_url is not None:
        yield settings.redis_url
        return
    embedded = EmbeddedRedis(settings.data_dir / "queue")
    try:
        await embedded.start()
    except Conflict:
        if not queue_file(settings).exists():
            raise
        yield json.loads(queue_file(settings).read_bytes())["url"]
        return
    try:
        yield embedded.url
    finally:
        await embedded.stop()
