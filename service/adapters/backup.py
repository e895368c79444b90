"""A back-up: one tar file with the stores, and the queue as it was right before.

    backup.json                          format, when it was made
    queue/<number>                       a key's content; its name and life are in the last member
    models/<name>/<v>/manifest.json, bundle.axon
    models/<name>/state.json             the desired state, also of deleted models: no number is given again
    datasets/<id>/manifest.json, <column>.npy
    checkpoints/<job>/<attempt>/<step>/...
    contents.json                        last: what there is, so that a torn file is told

The queue comes first, so whatever its jobs refer to is in the stores. What came into them later is there too: a version
that a job published meanwhile is tied to the job when it is restored. Each model is as it was in one moment.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol, final

from service.adapters.dataset_document import dataset_from_json, dataset_to_json
from service.adapters.model_rules import lineage_job, named
from service.adapters.redis_backup import Key
from service.adapters.state_document import StateDocument
from service.core.errors import Conflict, InvalidRequest, NotFound
from service.core.names import check_name
from service.core.ports import CheckpointStore, DatasetStore, ModelStore
from service.core.types import Json, StoredVersion

FORMAT = "axon.backup"
VERSION = 1
_TRIES = 20
_MAX_DOCUMENT_BYTES = 256 * 2**20


class Documents(ModelStore, Protocol):
    """A store of models whose documents can be read and written as they are."""

    def documents(self) -> dict[str, StateDocument]:
        """That of every model by name, of deleted ones too."""

    def adopt(self, name: str, document: StateDocument) -> None:
        """Write one where there is none; raises `Conflict`."""

    def adopt_version(self, stored: StoredVersion, bundle: Path) -> None:
        """Publish a version with the time that it was created at."""


class Datasets(DatasetStore, Protocol):
    """A store of data sets with room for what comes in."""

    def scratch(self) -> Path:
        """A fresh private folder."""


@dataclass(frozen=True)
class Sides:
    """The stores that a back-up is made of, or restored into."""

    models: Documents
    datasets: Datasets
    checkpoints: CheckpointStore


@dataclass
class Contents:
    """What a back-up has; `versions` are job, model and number of what jobs have published."""

    keys: list[tuple[str, int | None]] = field(default_factory=list)
    models: dict[str, list[int]] = field(default_factory=dict)
    datasets: list[str] = field(default_factory=list)
    checkpoints: list[str] = field(default_factory=list)
    versions: list[tuple[str, str, int]] = field(default_factory=list)

    def to_json(self) -> dict[str, Json]:
        """For the last member."""
        return vars(self)


def write(
    file: BinaryIO, sides: Sides, keys: Sequence[Key], pointers: Sequence[Mapping[str, Json]], now: float
) -> Contents:
    """Write a back-up; `pointers` are those of the queue's jobs to their checkpoints. Blocks."""
    contents = Contents()
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        _put_json(archive, "backup.json", {"format": FORMAT, "version": VERSION, "created_at": now})
        for number, key in enumerate(keys):
            _put(archive, f"queue/{number}", key.content)
            contents.keys.append((key.name, key.ttl_ms))
        for name in sides.models.documents():
            _write_model(archive, sides.models, name, contents)
        for dataset in sides.datasets.all():
            with contextlib.suppress(NotFound, FileNotFoundError):  # deleted meanwhile: no job of the queue needs it
                folder = sides.datasets.columns(dataset)
                for column in dataset.columns:
                    _put_file(archive, f"datasets/{dataset.id}/{column.name}.npy", folder / f"{column.name}.npy")
                _put_json(archive, f"datasets/{dataset.id}/manifest.json", dataset_to_json(dataset))
                contents.datasets.append(dataset.id)
        for pointer in pointers:
            with contextlib.suppress(NotFound, FileNotFoundError):  # replaced by a newer one: the job begins anew
                folder = sides.checkpoints.get(pointer)
                for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                    _put_file(archive, f"checkpoints/{pointer['path']}/{path.relative_to(folder).as_posix()}", path)
                contents.checkpoints.append(str(pointer["path"]))
        _put_json(archive, "contents.json", contents.to_json())
    return contents


def _write_model(archive: tarfile.TarFile, models: Documents, name: str, contents: Contents) -> None:
    """One model: its versions, then its document as soon as all that this names have been written."""
    written: dict[int, StoredVersion] = {}
    for _ in range(_TRIES):
        document = models.documents()[name]
        for each in [] if document.deleted else _versions(models, name):
            if each.version < document.state.next_version and each.version not in written:
                with contextlib.suppress(NotFound, FileNotFoundError):  # deleted meanwhile
                    _write_version(archive, models, each)
                    written[each.version] = each
        if named(document.state) <= written.keys():
            break
    else:
        raise Conflict(f"model {name!r} is changed all the time; try again")
    _put_json(archive, f"models/{name}/state.json", document.to_json())
    kept = contents.models[name] = [version for version in sorted(written) if not document.gone(version)]
    for version in kept:
        if (job := lineage_job(written[version].manifest)) is not None:
            contents.versions.append((job, name, version))


def _versions(models: Documents, name: str) -> list[StoredVersion]:
    try:
        return models.versions(name)
    except NotFound:  # deleted meanwhile
        return []


def _write_version(archive: tarfile.TarFile, models: Documents, stored: StoredVersion) -> None:
    folder = f"models/{stored.name}/{stored.version}"
    with models.bundle(stored).open("rb") as file:
        said = {"created_at": stored.created_at, "manifest": dict(stored.manifest)}
        _put_json(archive, f"{folder}/manifest.json", said)
        _put_open(archive, f"{folder}/bundle.axon", file)


@final
class Restored:
    """What came out of a back-up: the queue's keys, to be written when the stores are whole."""

    def __init__(self, contents: Contents, keys: list[Key]) -> None:
        self.contents = contents
        self.keys = keys


def restore(file: BinaryIO, sides: Sides, scratch: Path) -> Restored:
    """Write a back-up's stores into empty ones, with `scratch` to unpack in; blocks.

    Raises `Conflict` where there is anything, `InvalidRequest` for a file that is none of ours, or torn: what was
    written until then is to be removed.
    """
    if sides.models.documents() or sides.datasets.all():
        raise Conflict("restore: expected an empty store, got one with models or data sets")
    raw: dict[int, bytes] = {}
    contents: Contents | None = None
    try:
        with tarfile.open(fileobj=file, mode="r|") as archive:
            _check_head(archive)
            for folder, path, member in _members(archive):
                if path.parts[0] == "queue":
                    raw[int(path.name)] = _read(archive, member)
                elif path.name == "contents.json" and len(path.parts) == 1:
                    contents = Contents(**json.loads(_read(archive, member)))
                else:
                    _take_in(archive, member, path, sides, scratch / folder)
    except (tarfile.TarError, ValueError, KeyError, TypeError) as error:
        raise InvalidRequest(f"restore: expected a back-up, got a file that is none or is damaged: {error}") from error
    if contents is None or len(raw) != len(contents.keys):
        raise InvalidRequest("restore: expected a whole back-up, got one without its end")
    keys = [Key(name, ttl_ms, raw[number]) for number, (name, ttl_ms) in enumerate(contents.keys)]
    _restore_checkpoints(sides.checkpoints, contents, scratch / "checkpoints")
    return Restored(contents, keys)


def _take_in(
    archive: tarfile.TarFile, member: tarfile.TarInfo, path: PurePosixPath, sides: Sides, folder: Path
) -> None:
    """One member: unpacked, and taken in when it is the last one of its thing."""
    target = folder / path.name if path.parts[0] != "checkpoints" else folder.parent.joinpath(*path.parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    _unpack(archive, member, target)
    match path.parts:
        case ("models", name, "state.json"):
            document = StateDocument.from_json(check_name(name), json.loads(target.read_bytes()))
            sides.models.adopt(name, document)
        case ("models", name, number, "bundle.axon"):
            said = json.loads((folder / "manifest.json").read_bytes())
            stored = StoredVersion(check_name(name), int(number), target, said["manifest"], said["created_at"])
            sides.models.adopt_version(stored, target)
            shutil.rmtree(folder)
        case ("datasets", _, "manifest.json"):
            dataset = dataset_from_json(json.loads(target.read_bytes()), folder)
            own = sides.datasets.scratch()
            for column in dataset.columns:
                (folder / f"{check_name(column.name, 'column')}.npy").rename(own / f"{column.name}.npy")
            sides.datasets.add(own, replace(dataset, path=own))
            shutil.rmtree(folder)


def _restore_checkpoints(checkpoints: CheckpointStore, contents: Contents, folder: Path) -> None:
    for pointer in contents.checkpoints:
        job, attempt, step = pointer.split("/")
        checkpoints.put(check_name(job, "job"), int(attempt), int(step), folder / job / attempt / step)


def _check_head(archive: tarfile.TarFile) -> None:
    member = archive.next()
    if member is None or member.name != "backup.json":
        raise InvalidRequest("restore: expected a back-up, got another file")
    head: dict[str, Any] = json.loads(_read(archive, member))
    if head.get("format") != FORMAT or head.get("version") != VERSION:
        expected = f"{FORMAT} of version {VERSION}"
        raise InvalidRequest(f"restore: expected {expected}, got {head.get('format')} of version {head.get('version')}")


def _members(archive: tarfile.TarFile) -> Iterator[tuple[str, PurePosixPath, tarfile.TarInfo]]:
    """Each file with a folder's name that all of its thing share; raises `InvalidRequest` for odd paths."""
    while (member := archive.next()) is not None:
        path = PurePosixPath(member.name)
        if not member.isfile() or path.is_absolute() or ".." in path.parts or not path.parts:
            raise InvalidRequest(f"restore: expected plain files, got {member.name[:80]!r}")
        yield "_".join(path.parts[:-1]), path, member


def _unpack(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    source = archive.extractfile(member)
    assert source is not None
    with source, target.open("wb") as file:
        while piece := source.read(2**20):
            file.write(piece)


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.size > _MAX_DOCUMENT_BYTES:
        raise InvalidRequest(f"restore: expected a document, got {member.name!r} of {member.size} bytes")
    source = archive.extractfile(member)
    assert source is not None
    return source.read()


def _put(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _put_json(archive: tarfile.TarFile, name: str, value: Mapping[str, Json]) -> None:
    _put(archive, name, json.dumps(value, sort_keys=True, allow_nan=False).encode())


def _put_file(archive: tarfile.TarFile, name: str, path: Path) -> None:
    with path.open("rb") as file:
        _put_open(archive, name, file)


def _put_open(archive: tarfile.TarFile, name: str, file: BinaryIO) -> None:
    member = tarfile.TarInfo(name)
    member.size = os.fstat(file.fileno()).st_size
    archive.addfile(member, file)
