"""What every `CheckpointStore` keeps, in files and in buckets."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.core.errors import InvalidRequest, NotFound
from service.core.ports import CheckpointStore
from tests.service.adapters.places import Place


@pytest.fixture
def store(place: Place) -> CheckpointStore:
    """An empty store."""
    place.root /= "store"
    return place.checkpoints()


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
    assert store.exists(pointer)
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


def test_older_ones_go(store, tmp_path):
    """Only the kept one stays, whichever attempt wrote the others."""
    older = store.put("job", 1, 5, local(tmp_path, "a")), store.put("job", 2, 6, local(tmp_path, "b"))
    kept = store.put("job", 2, 9, local(tmp_path, "c"))
    other = store.put("other", 1, 1, local(tmp_path, "d"))
    store.delete_older("job", kept)
    assert [pointer["path"] for pointer in (*older, kept) if store.exists(pointer)] == ["job/2/9"]
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
    assert not store.exists(pointer)
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
