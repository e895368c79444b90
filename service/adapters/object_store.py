"""Models in an object store: S3, GCS, Azure.

    models/<name>.json                  desired state; replaced only where it still is what was read
    models/.store                       tells the store from a bucket that was emptied
    versions/<name>/<v>.json            a published version: written if absent, which publishes it
    bundles/<name>/<v>/<sha256>         its content, sent before

All states lie in one folder, so that one list says what has changed. The documents are those of the file store, with a
`change` of their own each: two writers never write the same content. As there, a version that its model's state calls
removed is invisible even before it is gone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from service.adapters.files import Scratch
from service.adapters.formats import check_format
from service.adapters.local_cache import LocalCache
from service.adapters.model_rules import check_change, lineage_job, no_model, no_version, refuse_in_use
from service.adapters.objects import Objects, Tag, fresh
from service.adapters.state_document import StateDocument
from service.core.desired import forgotten
from service.core.errors import Conflict, NotFound, NotReady, Unsupported
from service.core.names import check_name, is_name
from service.core.ports import Clock
from service.core.retry import Backoff
from service.core.types import Json, ModelState, StoredVersion

_MARK = "models/.store"
_CACHED = "bundles"
_SUFFIX = ".json"
_READERS = 8
_AGAIN = Backoff(base_s=0.01, cap_s=0.5)


@dataclass(frozen=True, slots=True)
class _Seen:
    """A state as it was read."""

    document: StateDocument
    tag: Tag


@dataclass(frozen=True, slots=True)
class _Record:
    """What `versions/<name>/<v>.json` says."""

    manifest: Mapping[str, Json]
    created_at: float
    sha256: str
    size_bytes: int


@final
class ObjectModelStore:
    """The `ModelStore` in a bucket; any number of processes may share it. `scratch` is on the local disk."""

    def __init__(self, objects: Objects, cache: LocalCache, root: Path, clock: Clock) -> None:
        self._objects = objects
        self._cache = cache
        self._clock = clock
        self._scratch = Scratch(root / "tmp")
        self._seen: dict[str, _Seen] = {}
        self._records: dict[str, tuple[Tag, _Record]] = {}
        self._known = False

    def close(self) -> None:
        """Remove this process's scratch."""
        self._scratch.close()

    def check(self) -> None:
        """Raise `NotReady` when the bucket does not answer, or is not the one it was."""
        self._require()

    def models(self) -> list[str]:
        """Names of all models, sorted; raises `NotReady` for a store that has gone, whose models have not."""
        return list(self.states())

    def state(self, name: str) -> ModelState:
        """The desired state; raises `NotFound`. Costs a request without content while nothing changes."""
        return self._document(name).document.state

    def states(self) -> dict[str, ModelState]:
        """The desired state of every model by name, sorted. Costs one list while nothing changes."""
        self._require(marked=False)
        entries = self._objects.entries("models")
        if not any(entry.key == _MARK for entry in entries):
            raise _away()
        listed = {name: entry.tag for entry in entries if is_name(name := _name_of(entry.key))}
        changed = [name for name, tag in listed.items() if (seen := self._seen.get(name)) is None or seen.tag != tag]
        if changed:
            with ThreadPoolExecutor(_READERS) as pool:
                list(pool.map(self._read, changed))
        found = {name: seen.document for name in sorted(listed) if (seen := self._seen.get(name)) is not None}
        return {name: document.state for name, document in found.items() if not document.deleted}

    def change(self, name: str, change: Callable[[ModelState], ModelState], *, create: bool = False) -> ModelState:
        """Apply `change` until nobody else has changed the state meanwhile; a version that it newly names must exist.

        Raises `NotFound` when the model is absent and not `create`, or such a version is.
        """

        def changed(old: StateDocument | None) -> StateDocument | None:
            if not create and (old is None or old.deleted):
                raise no_model(name)
            before = StateDocument(ModelState(name)) if old is None else old
            new = change(before.state)
            if old is not None and new == old.state and not old.deleted:
                return None
            state = check_change(before, new, lambda version: self._exists(before, version))
            return replace(before, state=state, deleted=False)

        return self._update(name, changed).state

    def allocate(self, name: str) -> int:
        """Take the next version number for ever, creating the model when absent."""
        state = self.change(name, lambda state: replace(state, next_version=state.next_version + 1), create=True)
        return state.next_version - 1

    def publish(self, name: str, version: int, bundle: Path, *, manifest: Mapping[str, Json]) -> StoredVersion:
        """Send `bundle` and make it the content of an allocated number, in one step.

        Repeating it with a manifest of the same lineage job returns the stored one; anything else raises `Conflict`.
        """
        if (stored := self._repeated(name, version, manifest)) is not None:
            self._announce(name, version)  # the one before may have ended, or found the bucket away, in between
            return stored
        sha256, created = self._send(name, version, bundle, manifest, self._clock.time())
        if not created:
            return self._lost(name, version, sha256, manifest)
        self._cache.keep(_CACHED, sha256, bundle)
        self._announce(name, version)
        return self.version(name, version)

    def versions(self, name: str) -> list[StoredVersion]:
        """All versions in ascending order; raises `NotFound`."""
        document = self._document(name).document
        found = []
        for entry in self._objects.entries(f"versions/{name}"):
            number = _number_of(entry.key)
            if number is not None and not document.gone(number):
                with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
                    found.append(self._stored(name, number, self._record(entry.key, entry.tag)))
        self._require()  # it may have gone since
        return sorted(found, key=lambda stored: stored.version)

    def version(self, name: str, version: int) -> StoredVersion:
        """One version; raises `NotFound`."""
        document = self._document(name).document
        try:
            if document.gone(version):
                raise no_version(name, version)
            return self._stored(name, version, self._record(_record_key(name, version)))
        except FileNotFoundError:
            self._require()
            raise no_version(name, version) from None

    def bundle(self, stored: StoredVersion) -> Path:
        """A copy, fetched and compared with its digest when it is not here; raises `NotFound`."""
        name, version = stored.name, stored.version
        try:
            record = self._record(_record_key(name, version))
            key = _bundle_key(name, version, record.sha256)
            fill = lambda path: self._objects.fetch(key, path, record.size_bytes, record.sha256)  # noqa: E731
            return self._cache.find(_CACHED, record.sha256, record.size_bytes, fill)
        except FileNotFoundError:
            self._require()
            raise no_version(name, version) from None

    def delete(self, name: str, version: int | None) -> None:
        """Delete a version, or the whole model with its aliases; the numbers are never given again.

        Raises `NotFound`, and `Conflict` while it is to be loaded or, for a version, while an alias points at it.
        """

        def deleted(document: StateDocument | None) -> StateDocument:
            if document is None or document.deleted:
                raise no_model(name)
            state = document.state
            refuse_in_use(state, version)
            if version is None:
                state = ModelState(name, state.generation, state.next_version)
                return StateDocument(state, deleted=True, floor=state.next_version)
            if not self._exists(document, version):
                raise no_version(name, version)
            return replace(document, state=forgotten(state, version), removed=document.removed | {version})

        self._discard_gone(self._update(name, deleted))

    def scratch(self) -> Path:
        """A fresh private folder on the local disk, for uploads; the caller removes it."""
        return self._scratch.folder()

    # For back-ups

    def documents(self) -> dict[str, StateDocument]:
        """That of every model by name, of deleted ones too."""
        self.states()
        return {name: self._seen[name].document for name in sorted(self._seen)}

    def adopt(self, name: str, document: StateDocument) -> None:
        """Write a document where there is none; raises `Conflict`."""
        self._require()
        if not self._objects.create(_state_key(name), _written(document.to_json() | {"change": fresh()})):
            raise Conflict(f"model {name!r} exists already")

    def adopt_version(self, stored: StoredVersion, bundle: Path) -> None:
        """Publish a version with the time that it was created at; its model's document follows. Raises `Conflict`."""
        _, created = self._send(stored.name, stored.version, bundle, stored.manifest, stored.created_at)
        if not created:
            raise Conflict(f"model {stored.name!r}: version {stored.version} exists already")

    # The state

    def _read(self, name: str) -> _Seen | None:
        seen = self._seen.get(check_name(name))
        try:
            found = self._objects.read(_state_key(name), None if seen is None else seen.tag)
        except FileNotFoundError:
            self._seen.pop(name, None)
            return None
        if found is None:
            return seen
        document = StateDocument.from_json(name, json.loads(found.content))
        self._seen[name] = now = _Seen(document, found.tag)
        return now

    def _document(self, name: str) -> _Seen:
        seen = self._read(name)
        if seen is None or seen.document.deleted:
            self._require()
            raise no_model(name)
        return seen

    def _update(self, name: str, change: Callable[[StateDocument | None], StateDocument | None]) -> StateDocument:
        """Write what `change` makes of the document, with the next generation; None leaves it as it is."""
        tries = 0
        while True:
            seen = self._read(name)
            if seen is None:
                self._require()
            document = change(None if seen is None else seen.document)
            if document is None:
                assert seen is not None
                return seen.document
            document = replace(document, state=replace(document.state, generation=document.state.generation + 1))
            content = _written(document.to_json() | {"change": fresh()})
            if seen is None:
                if self._objects.create(_state_key(name), content):
                    return document
            elif (tag := self._objects.replace(_state_key(name), content, seen.tag)) is not None:
                self._seen[name] = _Seen(document, tag)
                return document
            tries += 1
            time.sleep(_AGAIN.delay_s(tries))

    def _require(self, *, marked: bool = True) -> None:
        """Raise `NotReady` when the store has gone: what it had is not known to have.

        The first time, the mark is made where there is none, and what a dead process has not finished is finished.
        """
        if self._known:
            if marked and not self._objects.exists(_MARK):
                raise _away()
            return
        self._objects.create(_MARK, _written({"format": 1, "change": fresh()}))
        self._known = True
        self._finish_deletions()

    # Versions

    def _record(self, key: str, tag: Tag | None = None) -> _Record:
        known = self._records.get(key)
        if known is not None and (tag is None or known[0] == tag):
            return known[1]
        found = self._objects.read(key)
        assert found is not None
        said: dict[str, Any] = json.loads(found.content)
        check_format(said, key)
        record = _Record(said["manifest"], said["created_at"], said["sha256"], said["size_bytes"])
        self._records[key] = (found.tag, record)
        return record

    def _send(
        self, name: str, version: int, bundle: Path, manifest: Mapping[str, Json], created_at: float
    ) -> tuple[str, bool]:
        """Send a version's content and write its record; the content's digest, and False where there is a record."""
        with bundle.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        record = {
            "format": 1,
            "created_at": created_at,
            "manifest": dict(manifest),
            "sha256": sha256,
            "size_bytes": bundle.stat().st_size,
            "change": fresh(),
        }
        self._objects.send(_bundle_key(name, version, sha256), bundle)
        return sha256, self._objects.create(_record_key(name, version), _written(record))

    def _exists(self, document: StateDocument, version: int) -> bool:
        if document.gone(version):
            return False
        try:
            self._record(_record_key(document.state.name, version))
        except FileNotFoundError:
            return False
        return True

    def _stored(self, name: str, version: int, record: _Record) -> StoredVersion:
        path = self._cache.path(_CACHED, record.sha256)
        return StoredVersion(name, version, path, record.manifest, record.created_at)

    def _repeated(self, name: str, version: int, manifest: Mapping[str, Json]) -> StoredVersion | None:
        """The stored version when this publication happened before; None when it may happen now."""
        document = self._document(name).document
        if not 1 <= version < document.state.next_version:
            raise NotFound(f"model {name!r}: version {version} was never allocated")
        if document.gone(version):
            raise _was_deleted(name, version)
        if not self._exists(document, version):
            return None
        stored = self._stored(name, version, self._record(_record_key(name, version)))
        job = lineage_job(manifest)
        if job is None or job != lineage_job(stored.manifest):
            raise Conflict(f"model {name!r}: version {version} exists already and versions are immutable")
        return stored

    def _lost(self, name: str, version: int, sha256: str, manifest: Mapping[str, Json]) -> StoredVersion:
        """Another has published the number meanwhile; what was sent for it goes unless it is the same.

        Where nothing is there and nothing was deleted, a write is still under way, such as our own whose answer was
        lost: what it will name must stay.
        """
        seen = self._read(name)
        try:
            kept = self._record(_record_key(name, version)).sha256
        except FileNotFoundError:
            if seen is not None and not seen.document.gone(version):
                raise NotReady(f"model {name!r}: version {version} is being published; try again") from None
            kept = ""
        if kept != sha256:
            self._objects.delete([_bundle_key(name, version, sha256)])
        stored = self._repeated(name, version, manifest)
        if stored is None:
            raise _was_deleted(name, version)
        return stored

    def _announce(self, name: str, version: int) -> None:
        """A new generation tells whoever polls that there is a new version."""

        def told(document: StateDocument | None) -> StateDocument | None:
            if document is None or document.gone(version):
                raise _was_deleted(name, version)
            return document

        try:
            self._update(name, told)
        except Conflict:
            if (seen := self._read(name)) is not None:
                self._discard_gone(seen.document)
            raise

    def _discard_gone(self, document: StateDocument) -> None:
        """Remove the objects of what was deleted; records last, so that a half of it is found again."""
        name = document.state.name
        for folder in (f"bundles/{name}", f"versions/{name}"):
            keys = [entry.key for entry in self._objects.entries(folder)]
            gone = [key for key in keys if (number := _number_of(key)) is not None and document.gone(number)]
            self._objects.delete(gone)
            for key in gone:
                self._records.pop(key, None)

    def _finish_deletions(self) -> None:
        with contextlib.suppress(Unsupported):  # a later server's, which knows what to do
            self.states()
        for seen in list(self._seen.values()):
            if seen.document.deleted or seen.document.removed:
                self._discard_gone(seen.document)


def _written(value: Mapping[str, Json]) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False).encode()


def _state_key(name: str) -> str:
    return f"models/{check_name(name)}{_SUFFIX}"


def _name_of(key: str) -> str:
    """The model of a state's key; '' for what is none of ours."""
    found = key.removeprefix("models/")
    return found.removesuffix(_SUFFIX) if found.endswith(_SUFFIX) else ""


def _record_key(name: str, version: int) -> str:
    return f"versions/{check_name(name)}/{version}{_SUFFIX}"


def _bundle_key(name: str, version: int, sha256: str) -> str:
    return f"bundles/{check_name(name)}/{version}/{sha256}"


def _number_of(key: str) -> int | None:
    """The version of a record's or a bundle's key; None for what is none of ours."""
    number = key.split("/")[2].removesuffix(_SUFFIX) if key.count("/") >= 2 else ""
    return int(number) if number.isascii() and number.isdecimal() else None


def _was_deleted(name: str, version: int) -> Conflict:
    return Conflict(f"model {name!r}: version {version} was deleted, its number is not given again")


def _away() -> NotReady:
    return NotReady("the store of models is not there")
