"""What only checkpoints in files have: renames and full disks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.adapters import file_checkpoints
from service.adapters.file_checkpoints import FileCheckpointStore
from tests.service.adapters.test_checkpoint_store import local


@pytest.fixture
def store(tmp_path: Path) -> FileCheckpointStore:
    """An empty store."""
    return FileCheckpointStore(tmp_path / "store")


def test_checkpoint_from_another_file_system_is_copied(store, tmp_path, monkeypatch):
    """Where renaming is impossible the folder is copied, and then renamed into place."""
    rename = os.rename

    def across(source: Path, target: Path) -> None:
        if "local" in str(source):
            raise OSError(18, "Invalid cross-device link")
        rename(source, target)

    monkeypatch.setattr(file_checkpoints.os, "rename", across)
    pointer = store.put("job", 1, 1, local(tmp_path, "a"))
    assert (store.get(pointer) / "arrays" / "0").read_text() == "a"
    assert not (tmp_path / "local" / "a").exists()


def test_broken_put_leaves_nothing(store, tmp_path, monkeypatch):
    """A checkpoint appears whole or not at all."""

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(file_checkpoints, "sync", full)
    with pytest.raises(OSError, match="space"):
        store.put("job", 1, 1, local(tmp_path, "a"))
    assert list((tmp_path / "store" / "checkpoints" / "job" / "1").iterdir()) == []
