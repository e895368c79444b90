"""Copies of what an object store has, on the local disk: each whole, checked once, and of a bounded size together.

    <root>/<kind>/<key>       a file or a folder; its time is that of its last use
    <root>/locks/<number>     held while one is fetched, and while room is made

What was used lately is not removed, so a file may be opened after it was found. Any number of processes may share it.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import final

from service.adapters.files import Scratch, locked, sync
from service.core.ports import Clock

_LOCKS = 64


@final
class LocalCache:
    """At most `max_bytes`, not counting what was used within `keep_s` seconds."""

    def __init__(self, root: Path, clock: Clock, *, max_bytes: int, keep_s: float = 600.0) -> None:
        self._root = root
        self._clock = clock
        self._max_bytes = max_bytes
        self._keep_s = keep_s
        (root / "locks").mkdir(parents=True, exist_ok=True)
        self._scratch = Scratch(root / "tmp")

    def close(self) -> None:
        """Remove what this process has not finished."""
        self._scratch.close()

    def path(self, kind: str, key: str) -> Path:
        """Where a copy is, if it is."""
        return self._root / kind / key

    def find(self, kind: str, key: str, size: int, fill: Callable[[Path], None]) -> Path:
        """A copy; one that is not here is made by `fill`, a new file or folder of about `size` bytes.

        Raises what `fill` raises; nothing is kept then.
        """
        path = self.path(kind, key)
        if self._used(path):
            return path
        with self._lock(f"{kind}/{key}"):
            if not self._used(path):  # another may have fetched it meanwhile
                self._make_room(size)
                folder = self._scratch.folder()
                try:
                    fill(folder / "copy")
                    self._put(folder / "copy", path)
                finally:
                    self._scratch.discard(folder)
        return path

    def keep(self, kind: str, key: str, source: Path) -> None:
        """Take a file that is known to be the content; without room for it, or on another disk, it is let be."""
        path = self.path(kind, key)
        with contextlib.suppress(OSError), self._lock(f"{kind}/{key}"):
            if not self._used(path):
                self._make_room(source.stat().st_size)
                path.parent.mkdir(exist_ok=True)
                sync(source)  # it is not compared with its digest again, not even after a power failure
                os.rename(source, path)
                self._used(path)

    def drop(self, kind: str, key: str) -> None:
        """Remove a copy; whoever has it open keeps it."""
        self._scratch.discard(self.path(kind, key))

    def _used(self, path: Path) -> bool:
        now = self._clock.time()
        try:
            os.utime(path, (now, now))
        except FileNotFoundError:
            return False
        return True

    def _put(self, copy: Path, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        for file in [*copy.rglob("*"), copy]:
            sync(file)
        os.rename(copy, path)
        self._used(path)

    def _make_room(self, size: int) -> None:
        """Remove what was used the longest ago, until `size` more bytes fit."""
        with locked(self._root / "locks" / "room"):
            found = sorted(self._entries(), key=lambda entry: entry[0])
            total = size + sum(entry[1] for entry in found)
            for used_at, bytes_here, path in found:
                if total <= self._max_bytes or used_at > self._clock.time() - self._keep_s:
                    return
                self._scratch.discard(path)
                total -= bytes_here

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        for kind in self._root.iterdir():
            if kind.name in ("locks", "tmp"):
                continue
            for path in kind.iterdir():
                with contextlib.suppress(FileNotFoundError):  # another process removed it
                    yield path.stat().st_mtime, _bytes_of(path), path

    def _lock(self, name: str) -> contextlib.AbstractContextManager[None]:
        return locked(self._root / "locks" / str(zlib.crc32(name.encode()) % _LOCKS))


def _bytes_of(path: Path) -> int:
    if not path.is_dir():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
