"""Where models, data sets, checkpoints and uploads lie: in the data folder, or in an object store."""

from __future__ import annotations

from dataclasses import dataclass

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
from service.settings import Settings


@dataclass(frozen=True)
class Stores:
    """All of them, on one place."""

    models: FileModelStore | ObjectModelStore
    datasets: FileDatasetStore | ObjectDatasetStore
    checkpoints: FileCheckpointStore | ObjectCheckpointStore
    uploads: FileUploadStore | ObjectUploadStore
    board: FileReplicaBoard | ObjectReplicaBoard
    cache: LocalCache | None = None

    def close(self) -> None:
        """Remove this process's scratch."""
        self.models.close()
        self.datasets.close()
        self.uploads.close()
        if self.cache is not None:
            self.cache.close()


def build_stores(settings: Settings, clock: Clock) -> Stores:
    """As `store_url` says; a bucket is asked when it is first used. Raises `InvalidRequest`."""
    root = settings.data_dir
    if settings.store_url is None:
        return Stores(
            FileModelStore(root, clock),
            FileDatasetStore(root),
            FileCheckpointStore(root),
            FileUploadStore(root),
            FileReplicaBoard(root, clock),
        )
    objects = Objects.at(settings.store_url)
    holds = Holds(objects)
    cache = LocalCache(root / "cache", clock, max_bytes=settings.store_cache_bytes)
    return Stores(
        ObjectModelStore(objects, cache, root, clock),
        ObjectDatasetStore(objects, cache, holds, root),
        ObjectCheckpointStore(objects, cache),
        ObjectUploadStore(objects, holds, root),
        ObjectReplicaBoard(objects, clock),
        cache,
    )
