"""Data sets: an upload becomes equally long columns in one canonical layout, which training maps.

A column is a `.npy` file (C order, little-endian); a data set is immutable and known by its id.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import secrets
import shutil
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from service.core.column_statistics import Collector
from service.core.errors import Conflict, InvalidRequest, NotFound
from service.core.limits import Limits
from service.core.names import check_name
from service.core.ports import Clock, DatasetStore
from service.core.retry import Backoff
from service.core.threads import held_by
from service.core.types import Column, Dataset
from service.core.uploads import UploadService, check_upload_id, receive

ALL_BUT_TARGET = ("*",)
MAX_CONVERSIONS = 2
MAX_LABELS = 2**16
_CHUNK = 4 * 2**20
_SNIFFED = 2**16
_HOLD_PAUSE_S = 0.1
_HOLD_TRIES = 100
_LISTED_JOBS = 20
_TABLE = frozenset({"features", "features_name", "target", "categories"})
OPTIONS: Mapping[str, frozenset[str]] = {
    "npz": frozenset({"columns"}),
    "safetensors": frozenset({"columns"}),
    "csv": _TABLE,
    "parquet": _TABLE,
    "arrow": _TABLE,
    "images": frozenset({"size", "mode"}),
    "text": frozenset({"unit"}),
}
"""The formats of uploads, and which of the `DatasetOptions` each takes."""
FORMATS = tuple(OPTIONS)


@dataclass(frozen=True, slots=True)
class DatasetOptions:
    """How a file becomes columns.

    Attributes:
        features: of a table: columns packed, in the order named, into one FP32 column of shape `[rows, k]`; `("*",)`
            packs all that `target` does not name. Without it every column is one of its own, of shape `[rows]`.
        features_name: the packed column's name.
        target: of a table: the columns kept beside the packed one; all others without it.
        categories: of a table: columns of texts that become numbers, INT32; the texts are kept as labels.
        columns: of npz and safetensors: the arrays to take; all without it.
        size: of images: height and width that all are resized to.
        mode: of images: `L`, `RGB` or `RGBA`.
        unit: of a text: `bytes`, `characters` or `basic_english`.
    """

    features: tuple[str, ...] = ()
    features_name: str = "features"
    target: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    mode: str = "RGB"
    unit: str = "characters"


def sniff(head: bytes, size: int) -> str:
    """The format of a file of `size` bytes by its first ones; raises `InvalidRequest` when they do not tell."""
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        return "npz" if name.endswith(b".npy") else "images"
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "arrow"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return "safetensors"
    commas = [line.count(b",") for line in head.split(b"\n")[:2]]
    if b"\0" not in head and len(commas) == 2 and commas[0] == commas[1] > 0:
        return "csv"
    raise InvalidRequest(f"format: expected one of {', '.join(FORMATS)}, as the content does not tell which; got none")


class DatasetReader(Protocol):
    """Turns an uploaded file into the canonical layout. Blocks: call it in a thread."""

    def read(self, source: Path, folder: Path, kind: str, options: DatasetOptions, limits: Limits) -> Sequence[Column]:
        """Write every column of `source` (of `kind`, one of `FORMATS`) as `<name>.npy` into `folder`.

        Raises `InvalidRequest` or `TooLarge` before it takes memory or disk for what is refused.
        """


class DatasetUses(Protocol):
    """Who needs a data set: the queue knows."""

    async def using(self, dataset_id: str) -> list[str]:
        """Ids of the jobs that train on it and have not ended; raises `NotReady`."""


@contextlib.asynccontextmanager
async def holding(store: DatasetStore, dataset_id: str, *, alone: bool = False) -> AsyncIterator[None]:
    """Keep a data set as it is: whoever queues a job for it holds it, whoever deletes it does so `alone`.

    A job is queued within its hold; a deletion looks for jobs, and deletes, within its own. So either the job finds
    the data set gone before it is accepted, or the deletion finds the job. Raises `NotFound`, and `Conflict` when
    another does not let go of it.
    """
    backoff = Backoff(_HOLD_PAUSE_S, _HOLD_PAUSE_S)
    for _ in range(_HOLD_TRIES):
        release = await held_by(partial(store.hold, dataset_id, alone=alone), _let_go)
        if release is not None:
            break
        await asyncio.sleep(backoff.delay_s(1))
    else:
        busy = "jobs are being queued for it" if alone else "it is being deleted"
        raise Conflict(f"data set {dataset_id}: {busy}; try again")
    try:
        yield
    finally:
        await asyncio.to_thread(release)


def _let_go(release: Callable[[], None] | None) -> None:
    if release is not None:
        release()


class DatasetService:
    """Data sets as clients see them; REST and gRPC call nothing else."""

    def __init__(
        self,
        store: DatasetStore,
        scratch: Callable[[], Path],
        reader: DatasetReader,
        clock: Clock,
        limits: Limits,
        uses: DatasetUses,
        uploads: UploadService,
    ) -> None:
        self._store = store
        self._uses = uses
        self._uploads = uploads
        self._scratch = scratch
        self._reader = reader
        self._clock = clock
        self._limits = limits
        self._converting = asyncio.Semaphore(MAX_CONVERSIONS)

    async def add(
        self,
        chunks: AsyncIterable[bytes],
        kind: str | None = None,
        *,
        name: str | None = None,
        options: DatasetOptions | None = None,
    ) -> Dataset:
        """Store an upload of `kind`, which its content tells when it is None; `name` is a label for people.

        Nothing stays of a refused one. Raises `InvalidRequest`, `TooLarge`.
        """
        options = options or DatasetOptions()
        _check_request(kind, name, options)
        async with self._folder() as scratch:
            source = scratch / "upload"
            await receive(chunks, source, limit_bytes=self._limits.max_dataset_bytes, what="data set")
            return await self._convert(source, scratch, kind, name, options, f"ds-{secrets.token_hex(8)}")

    async def add_upload(
        self,
        upload_id: str,
        kind: str | None = None,
        *,
        name: str | None = None,
        options: DatasetOptions | None = None,
    ) -> Dataset:
        """Store what a whole upload holds, which ends it; a repetition gives the data set of the first time.

        A refused one may be tried again in another way. Raises as `add` and `UploadService.taken` do.
        """
        options = options or DatasetOptions()
        _check_request(kind, name, options)
        dataset_id = "ds-" + check_upload_id(upload_id).removeprefix("up-")
        try:
            taking = self._uploads.taken(upload_id, limit_bytes=self._limits.max_dataset_bytes, what="data set")
            async with taking as source, self._folder() as scratch:
                return await self._convert(source, scratch, kind, name, options, dataset_id)
        except NotFound:
            with contextlib.suppress(NotFound):  # the answer to the first time may have been lost
                return await self.get(dataset_id)
            raise

    async def get(self, dataset_id: str) -> Dataset:
        """One data set; raises `NotFound`."""
        return await asyncio.to_thread(self._store.get, dataset_id)

    async def all(self) -> list[Dataset]:
        """All, oldest first."""
        return await asyncio.to_thread(self._store.all)

    async def delete(self, dataset_id: str) -> None:
        """Remove it; raises `NotFound`, `Conflict` while unfinished jobs need it, `NotReady` without the queue."""
        async with holding(self._store, dataset_id, alone=True):
            if jobs := await self._uses.using(dataset_id):
                listed = ", ".join(jobs[:_LISTED_JOBS]) + (", ..." if len(jobs) > _LISTED_JOBS else "")
                raise Conflict(
                    f"data set {dataset_id}: expected no unfinished jobs that need it, got {len(jobs)}: {listed}"
                )
            await asyncio.to_thread(self._store.delete, dataset_id)

    @contextlib.asynccontextmanager
    async def _folder(self) -> AsyncIterator[Path]:
        scratch = await asyncio.to_thread(self._scratch)
        try:
            yield scratch
        finally:
            await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)

    async def _convert(
        self, source: Path, scratch: Path, kind: str | None, name: str | None, options: DatasetOptions, dataset_id: str
    ) -> Dataset:
        if kind is None:
            kind = await asyncio.to_thread(_sniffed, source)
            _check_options(kind, options)
        arguments = (source, scratch / "columns", kind, name, options, dataset_id)
        async with self._converting:
            return await asyncio.to_thread(self._ingest, *arguments)

    def _ingest(
        self, source: Path, folder: Path, kind: str, name: str | None, options: DatasetOptions, dataset_id: str
    ) -> Dataset:
        folder.mkdir()
        columns, rows, size, digest = _measure(folder, self._reader.read(source, folder, kind, options, self._limits))
        dataset = Dataset(dataset_id, name or dataset_id, rows, columns, digest, size, self._clock.time(), folder)
        return self._store.add(folder, dataset)


def _check_request(kind: str | None, name: str | None, options: DatasetOptions) -> None:
    """What can be refused before a file is there."""
    if kind is not None and kind not in FORMATS:
        raise InvalidRequest(f"format: expected one of {', '.join(FORMATS)}, got {kind[:80]!r}")
    if kind is not None:
        _check_options(kind, options)
    if name is not None:
        check_name(name, "data set")
    check_name(options.features_name, "column")


def _check_options(kind: str, options: DatasetOptions) -> None:
    for field in fields(DatasetOptions):
        if getattr(options, field.name) != field.default and field.name not in OPTIONS[kind]:
            fitting = " or ".join(known for known, names in OPTIONS.items() if field.name in names)
            raise InvalidRequest(f"{field.name}: expected with format {fitting} only, got it with {kind}")


def _sniffed(source: Path) -> str:
    with source.open("rb") as file:
        return sniff(file.read(_SNIFFED), source.stat().st_size)


def _measure(folder: Path, columns: Sequence[Column]) -> tuple[tuple[Column, ...], int, int, str]:
    """Columns with statistics, rows, bytes of values, and a digest of names, types, shapes, labels and values.

    The digest is the same whatever the form of the upload.
    """
    digest, size, rows = hashlib.sha256(), 0, 0
    statistics = {}
    for column in sorted(columns, key=lambda column: column.name):
        values = np.load(folder / f"{column.name}.npy", mmap_mode="r", allow_pickle=False)
        rows = len(values)
        size += values.nbytes
        head = [column.name, column.datatype, list(values.shape), *([list(column.labels)] if column.labels else [])]
        digest.update(json.dumps(head).encode() + b"\n")
        collector = Collector(classes=values.ndim == 1 and values.dtype.kind in "biu")
        flat = values.reshape(-1)
        step = _CHUNK // values.itemsize
        for start in range(0, flat.size, step):
            piece = np.asarray(flat[start : start + step])
            digest.update(piece.view(np.uint8).data)
            collector.feed(piece)
        statistics[column.name] = collector.result()
    measured = tuple(replace(column, statistics=statistics[column.name]) for column in columns)
    return measured, rows, size, digest.hexdigest()
