"""The places on which one contract suite runs: a folder, a bucket in memory, one on a real S3-compatible server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.adapters.clock import SystemClock
from service.adapters.file_checkpoints import FileCheckpointStore
from service.adapters.file_replicas import FileReplicaBoard
from service.adapters.file_store import FileDatasetStore, FileModelStore
from service.adapters.file_uploads import FileUploadStore
from service.adapters.holds import Holds
from service.adapters.local_cache import LocalCache
from service.adapters.object_checkpoints import ObjectCheckpointStore
from service.adapters.object_datasets import ObjectDatasetStore
from service.adapters.object_replicas import ObjectReplicaBoard
from service.adapters.object_store import ObjectModelStore
from service.adapters.object_uploads import ObjectUploadStore
from service.adapters.objects import Objects
from service.core.ports import Clock

LEASE_S = 2.0
"""How long a dead process's hold lasts here; a bucket tells times in whole seconds."""


@dataclass
class Place:
    """Makes stores on one truth: each call stands for a process. What is made is closed at the end.

    Any but a bucket in memory can be sent to another process, which has `root` for its files.
    """

    kind: str
    root: Path
    url: str = ""
    memory: Objects | None = None
    made: list[Callable[[], None]] = field(default_factory=list)

    def __getstate__(self) -> dict[str, Any]:
        assert self.kind != "memory"
        return {"kind": self.kind, "root": self.root, "url": self.url, "memory": None, "made": []}

    @property
    def objects(self) -> Objects:
        """The bucket."""
        return self.memory or Objects.at(self.url)

    @property
    def shared(self) -> bool:
        """Whether other processes can use it."""
        return self.kind != "memory"

    def models(self, clock: Clock | None = None) -> Any:
        """A `ModelStore`."""
        clock = clock or SystemClock()
        if self.kind == "file":
            return self._closed(FileModelStore(self.root, clock))
        return self._closed(ObjectModelStore(self.objects, self.cache(), self.root, clock))

    def datasets(self) -> Any:
        """A `DatasetStore`."""
        if self.kind == "file":
            return self._closed(FileDatasetStore(self.root))
        objects = self.objects
        return self._closed(ObjectDatasetStore(objects, self.cache(), Holds(objects, lease_s=LEASE_S), self.root))

    def checkpoints(self) -> Any:
        """A `CheckpointStore`."""
        if self.kind == "file":
            return FileCheckpointStore(self.root)
        return ObjectCheckpointStore(self.objects, self.cache())

    def uploads(self) -> Any:
        """An `UploadStore`."""
        if self.kind == "file":
            return self._closed(FileUploadStore(self.root))
        objects = self.objects
        return self._closed(ObjectUploadStore(objects, Holds(objects, lease_s=LEASE_S), self.root))

    def board(self, clock: Clock) -> Any:
        """A `ReplicaBoard`."""
        return FileReplicaBoard(self.root, clock) if self.kind == "file" else ObjectReplicaBoard(self.objects, clock)

    def cache(self, max_bytes: int = 2**30) -> LocalCache:
        """Copies of what the bucket has."""
        return self._closed(LocalCache(self.root / "cache", SystemClock(), max_bytes=max_bytes))

    def close(self) -> None:
        """Close all that was made."""
        while self.made:
            self.made.pop()()

    def _closed(self, store: Any) -> Any:
        self.made.append(store.close)
        return store


def places(kind: str, root: Path, s3: Callable[[], Any], setenv: Callable[[str, str], None]) -> Iterator[Place]:
    """One of that kind, empty; `s3` gives the server."""
    if kind == "memory":
        from obstore.store import MemoryStore

        bucket = MemoryStore()
        place = Place(kind, root, memory=Objects(bucket, bucket))
    elif kind == "s3":
        server = s3()
        for name, value in server.environment.items():
            setenv(name, value)
        place = Place(kind, root, url=server.bucket())
    else:
        place = Place(kind, root)
    yield place
    place.close()
