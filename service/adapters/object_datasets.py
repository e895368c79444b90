"""Data sets in an object store.

    datasets/<id>.json               what it is, and the digest of each column's file; written if absent
    columns/<content>/<column>.npy   sent before; data sets of the same content share them
    holds/datasets/<id>/, holds/columns/<content>/

`content` is a digest of the digests. Who adds holds it, shared, until the document is there; who deletes the last
document that names it removes it while holding it alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from service.adapters.dataset_document import dataset_from_json, dataset_to_json, no_dataset
from service.adapters.files import Scratch
from service.adapters.holds import Holds
from service.adapters.local_cache import LocalCache
from service.adapters.objects import Objects, fresh
from service.core.errors import NotFound, NotReady
from service.core.names import check_name, is_name
from service.core.types import Dataset, Json

_CACHED = "columns"
_SUFFIX = ".json"
_TRIES = 5
_PAUSE_S = 0.2


@dataclass(frozen=True, slots=True)
class _Known:
    """A data set's document: `files` are digest and size of each column's file."""

    dataset: Dataset
    content: str
    files: Mapping[str, tuple[str, int]]


@final
class ObjectDatasetStore:
    """The `DatasetStore` in a bucket; `scratch` is on the local disk."""

    def __init__(self, objects: Objects, cache: LocalCache, holds: Holds, root: Path) -> None:
        self._objects = objects
        self._cache = cache
        self._holds = holds
        self._scratch = Scratch(root / "tmp")
        self._known: dict[str, _Known] = {}

    def close(self) -> None:
        """Remove this process's scratch."""
        self._scratch.close()

    def scratch(self) -> Path:
        """A fresh private folder on the local disk, for uploads; the caller removes it."""
        return self._scratch.folder()

    def add(self, folder: Path, dataset: Dataset) -> Dataset:
        """Send a prepared folder, which goes; the same id returns the stored one."""
        key = _key(dataset.id)
        files = {column.name: _measured(folder / _file(column.name)) for column in dataset.columns}
        content = _content(dataset, files)
        release = self._holds.take(f"columns/{content}", alone=False)
        if release is None:
            raise NotReady(f"data set {dataset.id}: its content is being removed; try again")
        try:
            there = {entry.key: entry.size for entry in self._objects.entries(f"columns/{content}")}
            for name, (_, size) in files.items():
                if there.get(_column_key(content, name)) != size:
                    self._objects.send(_column_key(content, name), folder / _file(name))
            document = dataset_to_json(dataset) | {"content": content, "files": files, "change": fresh()}
            self._objects.create(key, json.dumps(document, sort_keys=True, allow_nan=False).encode())
        finally:
            release()
        shutil.rmtree(folder, ignore_errors=True)
        return self.get(dataset.id)

    def get(self, dataset_id: str) -> Dataset:
        """One data set; raises `NotFound`."""
        return self._read(dataset_id).dataset

    def columns(self, dataset: Dataset) -> Path:
        """A copy of its columns, fetched and compared with their digests when it is not here; raises `NotFound`."""
        known = self._read(dataset.id)

        def fill(folder: Path) -> None:
            folder.mkdir()
            for name, (sha256, size) in known.files.items():
                self._objects.fetch(_column_key(known.content, name), folder / _file(name), size, sha256)

        try:
            total = sum(size for _, size in known.files.values())
            return self._cache.find(_CACHED, known.content, total, fill)
        except FileNotFoundError:
            raise no_dataset(dataset.id) from None

    def all(self) -> list[Dataset]:
        """All, oldest first."""
        found = []
        for entry in self._objects.entries("datasets"):
            name = entry.key.removeprefix("datasets/").removesuffix(_SUFFIX)
            if entry.key.endswith(_SUFFIX) and is_name(name):
                with contextlib.suppress(NotFound):  # deleted since it was listed
                    found.append((self._known.get(name) or self._read(name)).dataset)
        return sorted(found, key=lambda dataset: (dataset.created_at, dataset.id))

    def delete(self, dataset_id: str) -> None:
        """Remove it; raises `NotFound`. Whoever has its files mapped keeps them."""
        content = self._read(dataset_id).content
        self._objects.delete([_key(dataset_id)])
        self._known.pop(dataset_id, None)
        for _ in range(_TRIES):
            if (release := self._holds.take(f"columns/{content}", alone=True)) is not None:
                try:
                    self._remove_unless_named(content)
                finally:
                    release()
                return
            time.sleep(_PAUSE_S * random.random())  # another adds the same content, or deletes it as we do

    def hold(self, dataset_id: str, *, alone: bool) -> Callable[[], None] | None:
        """Keep it from being deleted, or `alone` from being held by anyone, until the result is called.

        None while another's forbids it. A process that dies holds it for a minute more.
        """
        key = _key(dataset_id)
        if not self._objects.exists(key):
            raise no_dataset(dataset_id)
        release = self._holds.take(f"datasets/{dataset_id}", alone=alone)
        if release is not None and not self._objects.exists(key):  # it went before the hold was had
            release()
            raise no_dataset(dataset_id)
        return release

    def _remove_unless_named(self, content: str) -> None:
        for dataset in self.all():
            with contextlib.suppress(NotFound):  # deleted since it was listed
                if self._read(dataset.id).content == content:
                    return
        self._objects.delete([entry.key for entry in self._objects.entries(f"columns/{content}")])
        self._cache.drop(_CACHED, content)

    def _read(self, dataset_id: str) -> _Known:
        try:
            found = self._objects.read(_key(dataset_id))
        except FileNotFoundError:
            self._known.pop(dataset_id, None)
            raise no_dataset(dataset_id) from None
        assert found is not None
        said: dict[str, Any] = json.loads(found.content)
        content = check_name(said["content"], "content")
        dataset = dataset_from_json(said, self._cache.path(_CACHED, content))
        files = {column.name: said["files"][column.name] for column in dataset.columns}
        known = self._known[dataset_id] = _Known(dataset, content, files)
        return known


def _key(dataset_id: str) -> str:
    return f"datasets/{check_name(dataset_id, 'data set')}{_SUFFIX}"


def _file(column: str) -> str:
    return f"{check_name(column, 'column')}.npy"


def _column_key(content: str, column: str) -> str:
    return f"columns/{content}/{_file(column)}"


def _measured(path: Path) -> tuple[str, int]:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size


def _content(dataset: Dataset, files: Mapping[str, tuple[str, int]]) -> str:
    told: Json = [dataset.sha256, sorted((name, sha256) for name, (sha256, _) in files.items())]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()
