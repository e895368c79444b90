"""Checkpoints of jobs as folders: `checkpoints/<job>/<attempt>/<step>` under the data folder.

The file `checkpoints/<job>.expires` says when those of a job that has ended may go.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from service.adapters.files import sync
from service.core.errors import NotFound
from service.core.names import check_name
from service.core.types import Json


class FileCheckpointStore:
    """The `CheckpointStore` on a file system that all workers share."""

    def __init__(self, root: Path) -> None:
        self._root = root / "checkpoints"
        self._root.mkdir(parents=True, exist_ok=True)

    def put(self, job_id: str, attempt: int, step: int, folder: Path) -> Mapping[str, Json]:
        """Move a complete local checkpoint in, atomically and synced; returns the pointer to commit.

        One that is there already (a repetition) stays.
        """
        target = self._job(job_id) / str(attempt) / str(step)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            draft = target.with_name(f".{step}.{secrets.token_hex(4)}")
            try:
                _move_folder(folder, draft)
                _sync_tree(draft)
                os.rename(draft, target)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
            sync(target.parent)
            sync(target.parent.parent)
        return {"attempt": attempt, "step": step, "path": str(target.relative_to(self._root))}

    def get(self, pointer: Mapping[str, Json]) -> Path:
        """The checkpoint's folder, to be read only; raises `NotFound`."""
        path = self._path(pointer)
        if not path.is_dir():
            raise no_checkpoint(pointer)
        return path

    def exists(self, pointer: Mapping[str, Json]) -> bool:
        """Whether it is there."""
        return self._path(pointer).is_dir()

    def delete_older(self, job_id: str, keep: Mapping[str, Json]) -> None:
        """Remove the job's checkpoints that were written before `keep`, by its attempt or earlier ones."""
        kept = (int(keep["attempt"]), int(keep["step"]))
        for attempt in list(self._job(job_id).glob("*")):
            if int(attempt.name) > kept[0]:  # another worker's, who took the job from the caller
                continue
            for step in list(attempt.iterdir()):
                if step.name.startswith(".") or (int(attempt.name), int(step.name)) < kept:
                    shutil.rmtree(step, ignore_errors=True)
            if int(attempt.name) < kept[0]:
                with contextlib.suppress(OSError):
                    attempt.rmdir()

    def delete(self, job_id: str) -> None:
        """Remove all checkpoints of a job; absent ones are no error."""
        shutil.rmtree(self._job(job_id), ignore_errors=True)
        self._expiry(job_id).unlink(missing_ok=True)

    def expire(self, job_id: str, at: float) -> None:
        """Note that what a job has may be deleted from `at` on; nothing where it has none."""
        if self._job(job_id).is_dir():
            draft = self._root / f".{secrets.token_hex(8)}"
            draft.write_text(repr(at))
            os.replace(draft, self._expiry(job_id))

    def expiry(self, job_id: str) -> float | None:
        """What `expire` noted; None before."""
        try:
            return float(self._expiry(job_id).read_text())
        except FileNotFoundError:
            return None

    def jobs(self) -> list[str]:
        """Ids of the jobs that have any."""
        return sorted(entry.name for entry in os.scandir(self._root) if entry.is_dir())

    def _path(self, pointer: Mapping[str, Json]) -> Path:
        job_id, attempt, step = str(pointer["path"]).split("/")
        return self._job(job_id) / str(int(attempt)) / str(int(step))

    def _expiry(self, job_id: str) -> Path:
        return self._root / f"{check_name(job_id, 'job')}.expires"

    def _job(self, job_id: str) -> Path:
        return self._root / check_name(job_id, "job")


def no_checkpoint(pointer: Mapping[str, Json]) -> NotFound:
    """The error for a checkpoint that is not there."""
    path = str(pointer["path"])
    return NotFound(f"job {path.split('/')[0]}: there is no checkpoint {path}")


def _move_folder(source: Path, target: Path) -> None:
    """Rename a folder, or copy it where the file systems differ."""
    try:
        os.rename(source, target)
    except OSError:
        shutil.copytree(source, target)
        shutil.rmtree(source, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        sync(path)
    sync(folder)
