"""Models and data sets as files of one data folder.

    models/<name>/state.json                 desired state; changed under `lock`, replaced by rename
    models/<name>/versions/<v>/bundle.axon   a published version: the folder is prepared in tmp/, synced, renamed
    models/<name>/versions/<v>/manifest.json
    datasets/<id>/<column>.npy, manifest.json, lock; columns of the same content are one file with several names
    models/.store                            tells the store from the empty folder under a mount that went away
    tmp/                                     scratch; what a dead process left there goes at the next start

`state.json` is the truth: a version folder that it calls removed is invisible even before it is gone. The folder of a
deleted model keeps its `state.json`, so that no number is ever given again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from service.adapters.dataset_document import dataset_from_json, dataset_to_json, no_dataset
from service.adapters.files import Scratch, locked, move, replace_json, sync, write_json
from service.adapters.formats import check_format
from service.adapters.model_rules import check_change, lineage_job, no_model, no_version, refuse_in_use
from service.adapters.state_document import StateDocument
from service.core.desired import forgotten
from service.core.errors import Conflict, NotFound, NotReady, Unsupported
from service.core.names import check_name, is_name
from service.core.ports import Clock
from service.core.types import Dataset, Json, ModelState, StoredVersion

BUNDLE = "bundle.axon"
MANIFEST = "manifest.json"
STATE = "state.json"
MARK = ".store"
_SETTLED_NS = 1_000_000_000  # a file younger than the clock's grain may change again under the same stamp


class FileModelStore:
    """The `ModelStore` on a local file system; any number of processes may share `root`."""

    def __init__(self, root: Path, clock: Clock) -> None:
        self._models = root / "models"
        self._models.mkdir(parents=True, exist_ok=True)
        (self._models / MARK).touch()
        self._clock = clock
        self._scratch = Scratch(root / "tmp")
        self._seen: dict[str, tuple[tuple[int, int, int], StateDocument]] = {}
        self._finish_deletions()

    def close(self) -> None:
        """Remove this process's scratch."""
        self._scratch.close()

    def check(self) -> None:
        """Raise `NotReady` when the store has gone (removed, unmounted) or cannot be written."""
        try:
            (self._models / MARK).stat()
            os.scandir(self._models).close()
        except OSError as error:
            raise NotReady(f"the store of models is not there: {error.strerror}") from None
        if not os.access(self._models, os.R_OK | os.W_OK | os.X_OK):
            raise NotReady("the store of models cannot be written: its folder or file system forbids it")

    def models(self) -> list[str]:
        """Names of all models, sorted; raises `NotReady` for a store that has gone, whose models have not."""
        return [*self.states()]

    def state(self, name: str) -> ModelState:
        """The desired state; raises `NotFound`. Costs one `stat` while nothing changes."""
        return self._document(name).state

    def states(self) -> dict[str, ModelState]:
        """The desired state of every model by name, sorted; raises as `models`. Costs one `stat` of each."""
        self._require()
        names = filter(is_name, os.listdir(self._models))  # whatever else lies there is none of ours
        documents = {name: self._read(name) for name in sorted(names)}
        self._require()  # it may have gone since
        return {name: found.state for name, found in documents.items() if found is not None and not found.deleted}

    def change(self, name: str, change: Callable[[ModelState], ModelState], *, create: bool = False) -> ModelState:
        """Apply `change` under the model's lock; a version that it newly names must exist.

        Raises `NotFound` when the model is absent and not `create`, or such a version is.
        """
        folder = self._folder(name)
        self._require()
        if not create:
            self._document(name)
        folder.mkdir(exist_ok=True)
        with locked(folder / "lock"):
            old = self._read(name) or StateDocument(ModelState(name))
            if not create and (old.deleted or not (folder / STATE).exists()):
                raise no_model(name)
            new = change(old.state)
            if new == old.state and not old.deleted and (folder / STATE).exists():
                return new
            return self._write(
                replace(old, state=check_change(old, new, partial(self._exists, old)), deleted=False)
            ).state

    def allocate(self, name: str) -> int:
        """Take the next version number for ever, creating the model when absent."""
        state = self.change(name, lambda state: replace(state, next_version=state.next_version + 1), create=True)
        return state.next_version - 1

    def publish(self, name: str, version: int, bundle: Path, *, manifest: Mapping[str, Json]) -> StoredVersion:
        """Move `bundle` in as the content of an allocated number, atomically.

        Repeating it with a manifest of the same lineage job returns the stored one; anything else raises `Conflict`.
        """
        if (stored := self._repeated(name, version, manifest)) is not None:
            return stored
        folder = self._prepared(bundle, manifest, self._clock.time())
        try:
            with locked(self._folder(name) / "lock"):
                if (stored := self._repeated(name, version, manifest)) is not None:
                    return stored
                self._place(folder, name, version)
                self._write(self._document(name))  # a new generation tells whoever polls that there is a new version
        finally:
            self._scratch.discard(folder)
        return self.version(name, version)

    def versions(self, name: str) -> list[StoredVersion]:
        """All versions in ascending order; raises `NotFound`."""
        document = self._document(name)
        folder = self._folder(name) / "versions"
        numbers = sorted(map(int, filter(str.isdecimal, os.listdir(folder)))) if folder.is_dir() else []
        found = []
        for number in numbers:
            with contextlib.suppress(NotFound):  # deleted since the document was read
                if not document.gone(number):
                    found.append(self._stored(name, number))
        self._require()  # it may have gone since
        return found

    def version(self, name: str, version: int) -> StoredVersion:
        """One version; raises `NotFound`."""
        if not self._exists(self._document(name), version):
            self._require()
            raise no_version(name, version)
        return self._stored(name, version)

    def bundle(self, stored: StoredVersion) -> Path:
        """Where it lies."""
        return stored.path

    def delete(self, name: str, version: int | None) -> None:
        """Delete a version, or the whole model with its aliases; the numbers are never given again.

        Raises `NotFound`, and `Conflict` while it is to be loaded or, for a version, while an alias points at it.
        """
        self._document(name)
        with locked(self._folder(name) / "lock"):
            document = self._document(name)
            state = document.state
            refuse_in_use(state, version)
            if version is None:
                state = ModelState(name, state.generation, state.next_version)
                self._write(StateDocument(state, deleted=True, floor=state.next_version))
            elif not self._exists(document, version):
                raise no_version(name, version)
            else:
                removed = document.removed | {version}
                self._write(replace(document, state=forgotten(state, version), removed=removed))
        self._discard_gone(name)

    def scratch(self) -> Path:
        """A fresh private folder on the store's file system, for uploads; the caller removes it."""
        self._require()
        return self._scratch.folder()

    # For back-ups

    def documents(self) -> dict[str, StateDocument]:
        """That of every model by name, of deleted ones too."""
        names = filter(is_name, os.listdir(self._models))
        return {name: found for name in sorted(names) if (found := self._read(name)) is not None}

    def adopt(self, name: str, document: StateDocument) -> None:
        """Write a document where there is none; raises `Conflict`."""
        self._folder(name).mkdir(exist_ok=True)
        with locked(self._folder(name) / "lock"):
            if self._read(name) is not None:
                raise Conflict(f"model {name!r} exists already")
            replace_json(self._folder(name) / STATE, document.to_json())

    def adopt_version(self, stored: StoredVersion, bundle: Path) -> None:
        """Publish a version with the time that it was created at; its model's document follows."""
        folder = self._prepared(bundle, stored.manifest, stored.created_at)
        try:
            self._place(folder, stored.name, stored.version)
        finally:
            self._scratch.discard(folder)

    def _prepared(self, bundle: Path, manifest: Mapping[str, Json], created_at: float) -> Path:
        """A folder on the disk that can become a version."""
        folder = self._scratch.folder()
        try:
            move(bundle, folder / BUNDLE)
            write_json(folder / MANIFEST, {"created_at": created_at, "manifest": dict(manifest)})
            sync(folder / BUNDLE)
            sync(folder)
        except BaseException:
            self._scratch.discard(folder)
            raise
        return folder

    def _place(self, folder: Path, name: str, version: int) -> None:
        versions = self._folder(name) / "versions"
        versions.mkdir(parents=True, exist_ok=True)
        os.rename(folder, versions / str(version))
        sync(versions)

    def _require(self) -> None:
        """Raise `NotReady` when the store has gone: what it had is not known to have."""
        if not (self._models / MARK).exists():
            raise NotReady("the store of models is not there")

    def _folder(self, name: str) -> Path:
        return self._models / check_name(name)

    def _read(self, name: str) -> StateDocument | None:
        path = self._folder(name) / STATE
        try:
            with path.open("rb") as file:
                found = os.fstat(file.fileno())
                stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
                seen = self._seen.get(name)
                if seen is not None and seen[0] == stamp:
                    return seen[1]
                document = StateDocument.from_json(name, json.load(file))
                if time.time_ns() - found.st_mtime_ns > _SETTLED_NS:
                    self._seen[name] = (stamp, document)
                return document
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _document(self, name: str) -> StateDocument:
        document = self._read(name)
        if document is None or document.deleted:
            self._require()
            raise no_model(name)
        return document

    def _write(self, document: StateDocument) -> StateDocument:
        state = replace(document.state, generation=document.state.generation + 1)
        document = replace(document, state=state)
        replace_json(self._folder(state.name) / STATE, document.to_json())
        return document

    def _exists(self, document: StateDocument, version: int) -> bool:
        folder = self._folder(document.state.name) / "versions" / str(version)
        return not document.gone(version) and folder.is_dir()

    def _stored(self, name: str, version: int) -> StoredVersion:
        folder = self._folder(name) / "versions" / str(version)
        try:
            content = json.loads((folder / MANIFEST).read_bytes())
        except FileNotFoundError:  # deleted since it was listed
            self._require()
            raise no_version(name, version) from None
        check_format(content, f"model {name!r}: version {version}")
        return StoredVersion(name, version, folder / BUNDLE, content["manifest"], content["created_at"])

    def _repeated(self, name: str, version: int, manifest: Mapping[str, Json]) -> StoredVersion | None:
        """The stored version when this publication happened before; None when it may happen now."""
        document = self._document(name)
        if not 1 <= version < document.state.next_version:
            raise NotFound(f"model {name!r}: version {version} was never allocated")
        if document.gone(version):
            raise Conflict(f"model {name!r}: version {version} was deleted, its number is not given again")
        if not self._exists(document, version):
            return None
        stored = self._stored(name, version)
        job = lineage_job(manifest)
        if job is None or job != lineage_job(stored.manifest):
            raise Conflict(f"model {name!r}: version {version} exists already and versions are immutable")
        return stored

    def _discard_gone(self, name: str) -> None:
        document = self._read(name)
        folder = self._folder(name) / "versions"
        if document is None or not folder.is_dir():
            return
        for entry in filter(str.isdecimal, os.listdir(folder)):
            if document.gone(int(entry)):
                self._scratch.discard(folder / entry)

    def _finish_deletions(self) -> None:
        for name in filter(is_name, os.listdir(self._models)):
            with contextlib.suppress(Unsupported):  # a later server's, which knows what to do
                self._discard_gone(name)


class FileDatasetStore:
    """The `DatasetStore` on a local file system."""

    def __init__(self, root: Path) -> None:
        self._datasets = root / "datasets"
        self._datasets.mkdir(parents=True, exist_ok=True)
        self._scratch = Scratch(root / "tmp")

    def close(self) -> None:
        """Remove this process's scratch."""
        self._scratch.close()

    def scratch(self) -> Path:
        """A fresh private folder on the store's file system, for uploads; the caller removes it."""
        return self._scratch.folder()

    def add(self, folder: Path, dataset: Dataset) -> Dataset:
        """Move a prepared folder in, atomically; the same id returns the stored one."""
        target = self._datasets / check_name(dataset.id, "data set")
        self._share(folder, dataset)
        for column in dataset.columns:
            sync(folder / f"{check_name(column.name, 'column')}.npy")
        write_json(folder / MANIFEST, dataset_to_json(dataset))
        sync(folder)
        try:
            os.rename(folder, target)
        except OSError:
            if not target.is_dir():
                raise
            self._scratch.discard(folder)
        sync(self._datasets)
        return self.get(dataset.id)

    def get(self, dataset_id: str) -> Dataset:
        """One data set; raises `NotFound`."""
        folder = self._datasets / check_name(dataset_id, "data set")
        try:
            return dataset_from_json(json.loads((folder / MANIFEST).read_bytes()), folder)
        except (FileNotFoundError, NotADirectoryError):
            raise no_dataset(dataset_id) from None

    def columns(self, dataset: Dataset) -> Path:
        """Where they lie."""
        return dataset.path

    def all(self) -> list[Dataset]:
        """All, oldest first."""
        found = []
        for name in filter(is_name, os.listdir(self._datasets)):
            with contextlib.suppress(NotFound):  # deleted since it was listed
                found.append(self.get(name))
        return sorted(found, key=lambda dataset: (dataset.created_at, dataset.id))

    def delete(self, dataset_id: str) -> None:
        """Remove it; raises `NotFound`. Whoever has its files mapped keeps them."""
        self.get(dataset_id)
        self._scratch.discard(self._datasets / dataset_id)

    def hold(self, dataset_id: str, *, alone: bool) -> Callable[[], None] | None:
        """Keep it from being deleted, or `alone` from being held by anyone, until the result is called.

        A lock on a file beside its columns, which ends with the process; None while another's forbids it.
        """
        folder = self._datasets / check_name(dataset_id, "data set")
        try:
            (folder / MANIFEST).stat()
            descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except (FileNotFoundError, NotADirectoryError):
            raise no_dataset(dataset_id) from None
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            (folder / MANIFEST).stat()  # it may have gone before the lock was had
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            os.close(descriptor)
            raise no_dataset(dataset_id) from None
        return lambda: os.close(descriptor)

    def _share(self, folder: Path, dataset: Dataset) -> None:
        """Take the files of a stored data set with the same content in the place of one's own: links to them.

        The file system counts them: a deletion takes away only the links of its own data set.
        """
        for other in self.all():
            if other.sha256 != dataset.sha256 or other.id == dataset.id:
                continue
            with contextlib.suppress(OSError):  # deleted meanwhile, or a file system without links: keep one's own
                for column in dataset.columns:
                    file = f"{check_name(column.name, 'column')}.npy"
                    os.link(other.path / file, folder / f"{file}.link")
                    os.replace(folder / f"{file}.link", folder / file)
            return
