"""Durable file primitives: atomic writes, locks between processes, private scratch folders."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def sync(path: Path) -> None:
    """Force a file's or folder's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write a small JSON file durably; it must not exist, or be replaced as a whole by the caller's rename."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, sort_keys=True, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())


def replace_json(path: Path, value: Any) -> None:
    """Put a new JSON document in the place of `path`: readers see the old one or the new one."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        write_json(draft, value)
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync(path.parent)


def move(source: Path, target: Path) -> None:
    """Rename a file, or copy it where the file systems differ."""
    try:
        os.rename(source, target)
    except OSError:
        shutil.copyfile(source, target)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path` against every other thread and process; freed even by a kill."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class Scratch:
    """Private folders on the store's file system.

    Each owner holds a lock on `<id>.lock` while it lives, so whoever starts next can tell abandoned folders
    from those of a living process, and removes only the former.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)
        self._remove_abandoned()
        self._lock, self._folder = self._own()

    def folder(self) -> Path:
        """A fresh empty folder; the caller removes it."""
        path = self._folder / secrets.token_hex(8)
        path.mkdir(parents=True)
        return path

    def discard(self, path: Path) -> None:
        """Take a folder or a file out of sight at once (by one rename), then remove it."""
        hidden = self._folder / secrets.token_hex(8)
        try:
            os.rename(path, hidden)
            hidden.unlink()
        except FileNotFoundError:
            return
        except OSError:  # a folder
            shutil.rmtree(hidden, ignore_errors=True)

    def close(self) -> None:
        """Remove what is left and give the lock back."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.with_suffix(".lock").unlink(missing_ok=True)
        os.close(self._lock)

    def _own(self) -> tuple[int, Path]:
        while True:
            path = self._root / f"{secrets.token_hex(8)}.lock"
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if path.exists():  # another starter may have taken the fresh file for an abandoned one
                folder = path.with_suffix("")
                folder.mkdir()
                return descriptor, folder
            os.close(descriptor)

    def _remove_abandoned(self) -> None:
        for path in self._root.glob("*.lock"):
            with contextlib.suppress(FileNotFoundError, BlockingIOError):
                descriptor = os.open(path, os.O_RDWR)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path.with_suffix(""), ignore_errors=True)
                    path.unlink(missing_ok=True)
                finally:
                    os.close(descriptor)
