"""Data sets: an upload becomes equally long columns in one canonical layout, which training maps.

A column is a `.npy` file (C order, little-endian); a data set is immutable and known by its id.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import shutil
from collections.abc import AsyncIterable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from service.core.errors import InvalidRequest
from service.core.limits import Limits
from service.core.names import check_name
from service.core.ports import Clock, DatasetStore
from service.core.types import Column, Dataset
from service.core.uploads import receive

FORMATS = ("npz", "csv")
ALL_BUT_TARGET = ("*",)
_CHUNK = 4 * 2**20


@dataclass(frozen=True, slots=True)
class CsvOptions:
    """How the columns of a table become columns of the data set.

    Without `features` every column is one of its own, of shape `[rows]`. With it those columns are packed, in the
    order named, into one FP32 column `features_name` of shape `[rows, k]`; `("*",)` packs all that `target` does not
    name. With `target` only these columns are kept beside it, else all others.
    """

    features: tuple[str, ...] = ()
    features_name: str = "features"
    target: tuple[str, ...] = ()


class DatasetReader(Protocol):
    """Turns an uploaded file into the canonical layout. Blocks: call it in a thread."""

    def read(self, source: Path, folder: Path, kind: str, options: CsvOptions, limits: Limits) -> Sequence[Column]:
        """Write every column of `source` (of `kind` npz or csv) as `<name>.npy` into `folder`.

        Raises `InvalidRequest` or `TooLarge` before it takes memory or disk for what is refused.
        """


class DatasetService:
    """Data sets as clients see them; REST and gRPC call nothing else."""

    def __init__(
        self,
        store: DatasetStore,
        scratch: Callable[[], Path],
        reader: DatasetReader,
        clock: Clock,
        limits: Limits,
    ) -> None:
        self._store = store
        self._scratch = scratch
        self._reader = reader
        self._clock = clock
        self._limits = limits

    async def add(
        self, chunks: AsyncIterable[bytes], kind: str, *, name: str | None = None, options: CsvOptions | None = None
    ) -> Dataset:
        """Store an upload of `kind` npz or csv; `name` is a label for people. Nothing stays of a refused one.

        Raises `InvalidRequest`, `TooLarge`.
        """
        if kind not in FORMATS:
            raise InvalidRequest(f"format: expected one of {', '.join(FORMATS)}, got {kind[:80]!r}")
        options = options or CsvOptions()
        if kind != "csv" and options != CsvOptions():
            raise InvalidRequest("features, features_name, target: expected with format csv only")
        if name is not None:
            check_name(name, "data set")
        check_name(options.features_name, "column")
        scratch = await asyncio.to_thread(self._scratch)
        try:
            source = scratch / "upload"
            await receive(chunks, source, limit_bytes=self._limits.max_dataset_bytes, what="data set")
            return await asyncio.to_thread(self._ingest, source, scratch / "columns", kind, name, options)
        finally:
            await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)

    async def get(self, dataset_id: str) -> Dataset:
        """One data set; raises `NotFound`."""
        return await asyncio.to_thread(self._store.get, dataset_id)

    async def all(self) -> list[Dataset]:
        """All, oldest first."""
        return await asyncio.to_thread(self._store.all)

    async def delete(self, dataset_id: str) -> None:
        """Remove it; raises `NotFound`. A job that reads it already has it mapped and goes on."""
        await asyncio.to_thread(self._store.delete, dataset_id)

    def _ingest(self, source: Path, folder: Path, kind: str, name: str | None, options: CsvOptions) -> Dataset:
        folder.mkdir()
        columns = tuple(self._reader.read(source, folder, kind, options, self._limits))
        rows, size, digest = _measure(folder, columns)
        dataset_id = f"ds-{secrets.token_hex(6)}"
        dataset = Dataset(dataset_id, name or dataset_id, rows, columns, digest, size, self._clock.time(), folder)
        return self._store.add(folder, dataset)


def _measure(folder: Path, columns: Sequence[Column]) -> tuple[int, int, str]:
    """Rows, bytes of values, and a digest of names, types, shapes and values, whatever the form of the upload."""
    digest, size, rows = hashlib.sha256(), 0, 0
    for column in sorted(columns, key=lambda column: column.name):
        values = np.load(folder / f"{column.name}.npy", mmap_mode="r", allow_pickle=False)
        rows = len(values)
        size += values.nbytes
        head = [column.name, column.datatype, list(values.shape)]
        digest.update(json.dumps(head).encode() + b"\n")
        flat = values.reshape(-1).view(np.uint8)
        for start in range(0, flat.size, _CHUNK):
            digest.update(flat[start : start + _CHUNK])
    return rows, size, digest.hexdigest()
