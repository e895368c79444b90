"""What every `CheckpointStore` keeps, run on the file store."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.adapters import file_checkpoints
from service.adapters.file_checkpoints import FileCheckpointStore
from service.core.errors import InvalidRequest, NotFound


@pytest.fixture
def store(tmp_path: Path) -> FileCheckpointStore:
    """An empty store."""
    return FileCheckpointStore(tmp_path / "store")


def local(tmp_path: Path, content: str) -> Path:
    """A checkpoint as a trainer leaves it: a folder with files and folders."""
    folder = tmp_path / "local" / content
    (folder / "arrays").mkdir(parents=True)
    (folder / "arrays" / "0").write_text(content)
    return folder


def test_stored_checkpoint_reads_back(store, tmp_path):
    """The content moves in under attempt and step, and the pointer leads to it."""
    source = local(tmp_path, "a")
    pointer = store.put("job", 2, 30, source)
    assert pointer == {"attempt": 2, "step": 30, "path": "job/2/30"}
    assert (store.get(pointer) / "arrays" / "0").read_text() == "a"
    assert not source.exists()
    assert store.jobs() == ["job"]


def test_expiry_is_noted_until_the_checkpoints_are_deleted(store, tmp_path):
    """It is no job's checkpoint itself; a job without any has none."""
    store.expire("nobody", 5.0)
    assert store.expiry("nobody") is None
    pointer = store.put("job", 1, 1, local(tmp_path, "a"))
    assert store.expiry("job") is None
    store.expire("job", 1_700_000_000.25)
    assert store.expiry("job") == 1_700_000_000.25
    assert store.jobs() == ["job"]
    assert store.get(pointer).exists()
    store.delete("job")
    assert store.expiry("job") is None


def test_repeated_put_keeps_the_first(store, tmp_path):
    """A repetition after a lost answer changes nothing."""
    first = store.put("job", 1, 1, local(tmp_path, "a"))
    assert store.put("job", 1, 1, local(tmp_path, "b")) == first
    assert (store.get(first) / "arrays" / "0").read_text() == "a"


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


def test_older_ones_go(store, tmp_path):
    """Only the kept one stays, whichever attempt wrote the others."""
    store.put("job", 1, 5, local(tmp_path, "a"))
    store.put("job", 2, 6, local(tmp_path, "b"))
    kept = store.put("job", 2, 9, local(tmp_path, "c"))
    other = store.put("other", 1, 1, local(tmp_path, "d"))
    store.delete_older("job", kept)
    found = sorted(
        str(p.relative_to(tmp_path / "store/checkpoints")) for p in tmp_path.glob("store/checkpoints/job/*/*")
    )
    assert found == ["job/2/9"]
    assert store.get(other).is_dir()


def test_newer_ones_stay(store, tmp_path):
    """A worker that lost its job while it tidied up removes nothing of the one who has it now."""
    kept = store.put("job", 2, 5, local(tmp_path, "a"))
    newer = [store.put("job", 2, 9, local(tmp_path, "b")), store.put("job", 3, 1, local(tmp_path, "c"))]
    store.delete_older("job", kept)
    assert all(store.get(pointer).is_dir() for pointer in (kept, *newer))


def test_deleted_checkpoints_are_not_found(store, tmp_path):
    """All of a job go at once; deleting what is not there is no error."""
    pointer = store.put("job", 1, 1, local(tmp_path, "a"))
    store.delete("job")
    store.delete("job")
    with pytest.raises(NotFound, match="job/1/1"):
        store.get(pointer)
    assert store.jobs() == []


@pytest.mark.parametrize("job_id", ["..", "a/b", ""])
def test_job_id_cannot_leave_the_folder(store, tmp_path, job_id):
    """A path is made of checked names only."""
    with pytest.raises(InvalidRequest):
        store.put(job_id, 1, 1, local(tmp_path, "a"))
    with pytest.raises(InvalidRequest):
        store.delete(job_id)
