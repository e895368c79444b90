"""Checkpoints of jobs in an object store: `checkpoints/<job>/<attempt>/<step>.tar`, each folder one object.

It appears when it is whole, so nothing else says that it is there. `checkpoints/<job>/expires` says when those of a job
that has ended may go.
"""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import final

from service.adapters.file_checkpoints import no_checkpoint
from service.adapters.local_cache import LocalCache
from service.adapters.objects import PART_BYTES, Entry, Objects
from service.core.errors import NotReady
from service.core.names import check_name
from service.core.types import Json

_CACHED = "checkpoints"
_READ = 2**20


@final
class ObjectCheckpointStore:
    """The `CheckpointStore` in a bucket that all workers share."""

    def __init__(self, objects: Objects, cache: LocalCache) -> None:
        self._objects = objects
        self._cache = cache

    def put(self, job_id: str, attempt: int, step: int, folder: Path) -> Mapping[str, Json]:
        """Send a complete local checkpoint, which goes; returns the pointer to commit.

        One that is there already (a repetition) stays.
        """
        path = f"{check_name(job_id, 'job')}/{attempt}/{step}"
        if not self._objects.exists(_key(path)):
            self._objects.send(_key(path), _tar(folder))
        shutil.rmtree(folder, ignore_errors=True)
        return {"attempt": attempt, "step": step, "path": path}

    def get(self, pointer: Mapping[str, Json]) -> Path:
        """A copy of the checkpoint's folder, to be read only; raises `NotFound`."""
        path = _path(pointer)
        size = next((entry.size for entry in self._all(path.split("/")[0]) if entry.key == _key(path)), None)
        if size is None:
            raise no_checkpoint(pointer)
        try:
            name = path.replace("/", "_")
            return self._cache.find(_CACHED, name, size, lambda copy: self._unpack(_key(path), size, copy))
        except FileNotFoundError:  # deleted meanwhile
            raise no_checkpoint(pointer) from None

    def exists(self, pointer: Mapping[str, Json]) -> bool:
        """Whether it is there."""
        return self._objects.exists(_key(_path(pointer)))

    def delete_older(self, job_id: str, keep: Mapping[str, Json]) -> None:
        """Remove the job's checkpoints that were written before `keep`, by its attempt or earlier ones."""
        kept = (int(keep["attempt"]), int(keep["step"]))
        self._objects.delete([entry.key for entry in self._all(job_id) if _order(entry) < kept])

    def delete(self, job_id: str) -> None:
        """Remove all checkpoints of a job; absent ones are no error."""
        self._objects.delete([entry.key for entry in self._objects.entries(_folder(job_id))])

    def expire(self, job_id: str, at: float) -> None:
        """Note that what a job has may be deleted from `at` on; nothing where it has none."""
        if self._all(job_id):
            self._objects.write(f"{_folder(job_id)}/expires", repr(at).encode())

    def expiry(self, job_id: str) -> float | None:
        """What `expire` noted; None before."""
        try:
            found = self._objects.read(f"{_folder(job_id)}/expires")
        except FileNotFoundError:
            return None
        return None if found is None else float(found.content)

    def jobs(self) -> list[str]:
        """Ids of the jobs that have any."""
        return self._objects.folders("checkpoints")

    def _all(self, job_id: str) -> list[Entry]:
        return [entry for entry in self._objects.entries(_folder(job_id)) if entry.key.endswith(".tar")]

    def _unpack(self, key: str, size: int, folder: Path) -> None:
        stream = io.BufferedReader(_Pieces(self._objects.pieces(key, size)), PART_BYTES)
        try:
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                archive.extractall(folder, filter="data")
        except tarfile.TarError as error:
            raise NotReady(f"the object store: {key} cannot be unpacked: {error}") from None


class _Pieces(io.RawIOBase):
    """A file to be read once, of what comes piece by piece."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if not self._left:
            self._left = memoryview(next(self._pieces, b""))
        taken = self._left[: len(buffer)]
        buffer[: len(taken)] = taken
        self._left = self._left[len(taken) :]
        return len(taken)


def _tar(folder: Path) -> Iterator[bytes]:
    """A folder as a tar archive, bit by bit."""
    for path in sorted(folder.rglob("*")):
        member = tarfile.TarInfo(path.relative_to(folder).as_posix())
        if path.is_dir():
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            yield member.tobuf(tarfile.PAX_FORMAT)
            continue
        member.size = path.stat().st_size
        yield member.tobuf(tarfile.PAX_FORMAT)
        with path.open("rb") as file:
            while piece := file.read(_READ):
                yield piece
        yield bytes(-member.size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _folder(job_id: str) -> str:
    return f"checkpoints/{check_name(job_id, 'job')}"


def _key(path: str) -> str:
    return f"checkpoints/{path}.tar"


def _path(pointer: Mapping[str, Json]) -> str:
    job_id, attempt, step = str(pointer["path"]).split("/")
    return f"{check_name(job_id, 'job')}/{int(attempt)}/{int(step)}"


def _order(entry: Entry) -> tuple[int, int]:
    attempt, step = entry.key.removesuffix(".tar").split("/")[2:]
    return int(attempt), int(step)
