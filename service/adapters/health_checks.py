"""What a serving process stands on: its store, room on its disks, the queue."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from service.core.health import Check, free_space, in_thread
from service.core.ports import JobQueue


class Store(Protocol):
    """A store of models, as far as it can be away."""

    def check(self) -> None:
        """Raise `NotReady` when it is."""


def checks(
    models: Store,
    queue: JobQueue,
    data_dir: Path,
    *,
    min_free_bytes: int,
    free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
) -> list[Check]:
    """The checks for a `HealthMonitor`; `free_bytes` tells what may still be written beside a path.

    Predictions need no queue: without it only jobs wait, so it is told and not required.
    """
    folders = (data_dir / "models", data_dir / "compile-cache", data_dir / "cache")
    free = free_space(lambda: least_free_bytes(folders, free_bytes), floor_bytes=min_free_bytes)
    return [
        Check("store", in_thread(models.check)),
        Check("disk", in_thread(free)),
        Check("queue", queue.ping, required=False),
    ]


def least_free_bytes(paths: Sequence[Path], free_bytes: Callable[[Path], int]) -> int:
    """The least of the file systems that hold `paths`; a folder that is not there counts where it would be made."""
    return min(free_bytes(_existing(path)) for path in paths)


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
