"""What only the store in files has: folders that others see, steps between which it may be killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from service.adapters import files
from service.adapters.clock import SystemClock
from service.adapters.file_store import FileDatasetStore, FileModelStore
from tests.service.adapters.test_store_contract import bundle_in, put

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def store(tmp_path: Path):
    """An empty store of models."""
    store = FileModelStore(tmp_path, SystemClock())
    yield store
    store.close()


@pytest.fixture
def datasets(tmp_path: Path):
    """An empty store of data sets."""
    store = FileDatasetStore(tmp_path)
    yield store
    store.close()


def visible(root: Path) -> list[str]:
    """All scratch folders."""
    return sorted(str(path.relative_to(root)) for path in (root / "tmp").rglob("*") if path.is_dir())


def test_foreign_files_in_the_folder_are_no_models(tmp_path, store, datasets):
    """What a file system or a person leaves between our folders is passed over."""
    for place in ("models", "datasets"):
        for name in ("lost+found", "empty"):
            (tmp_path / place / name).mkdir()
        (tmp_path / place / "notes.txt").write_text("hello")
    put(store)
    assert store.models() == ["m"]
    assert datasets.all() == []
    FileModelStore(tmp_path, SystemClock()).close()


def test_abandoned_scratch_goes_at_the_next_start_and_a_live_ones_stays(tmp_path, store):
    """Scratch belongs to a process; only a dead one's is removed."""
    mine = store.scratch()
    child = SPAWN.Process(target=_leave_scratch, args=(tmp_path,))
    child.start()
    child.join(30)
    assert child.exitcode == -signal.SIGKILL
    assert len(visible(tmp_path)) == 4
    FileModelStore(tmp_path, SystemClock()).close()
    assert mine.is_dir()
    assert len(visible(tmp_path)) == 2


def _leave_scratch(root: Path) -> None:
    FileModelStore(root, SystemClock()).scratch()
    os.kill(os.getpid(), signal.SIGKILL)


def _publish_and_die(root: Path, step: int) -> None:
    """Publish, killed at the `step`-th durable operation."""
    store = FileModelStore(root, SystemClock())
    calls = 0

    def counted(function):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    os.rename, os.fsync, files.write_json = counted(os.rename), counted(os.fsync), counted(files.write_json)
    store.publish("m", 1, root / "upload", manifest={"lineage": {"job": "j"}})


def test_kill_in_mid_publish_leaves_all_or_nothing(tmp_path):
    """Killed before any of its steps, a publication is absent or whole; a later one with the same job succeeds."""
    outcomes = []
    for step in range(1, 12):
        root = tmp_path / str(step)
        root.mkdir()
        store = FileModelStore(root, SystemClock())
        store.allocate("m")
        bundle_in(root, b"x" * 100_000)
        child = SPAWN.Process(target=_publish_and_die, args=(root, step))
        child.start()
        child.join(30)
        found = store.versions("m")
        assert [v.path.stat().st_size for v in found] in ([], [100_000])
        outcomes.append((child.exitcode, len(found)))
        bundle_in(root, b"y" * 100_000)
        assert store.publish("m", 1, root / "upload", manifest={"lineage": {"job": "j"}}).version == 1
        store.close()
        FileModelStore(root, SystemClock()).close()
        assert visible(root) == []
    assert (-signal.SIGKILL, 0) in outcomes
    assert (-signal.SIGKILL, 1) in outcomes
    assert outcomes[-1] == (0, 1)


def test_kill_in_mid_deletion_is_finished_at_the_next_start(tmp_path, store):
    """What `state.json` calls removed is invisible at once and gone after the next start."""
    put(store)
    path = store.version("m", 1).path
    child = SPAWN.Process(target=_delete_and_die, args=(tmp_path,))
    child.start()
    child.join(30)
    assert child.exitcode == -signal.SIGKILL
    assert path.exists()
    assert store.versions("m") == []
    FileModelStore(tmp_path, SystemClock()).close()
    assert not path.exists()


def _delete_and_die(root: Path) -> None:
    store = FileModelStore(root, SystemClock())
    store._scratch.discard = lambda path: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
    store.delete("m", 1)
