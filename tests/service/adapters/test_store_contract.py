"""What every `ModelStore` and `DatasetStore` keeps, run on the file store; with real processes where they race."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.adapters import files
from service.adapters.clock import SystemClock
from service.adapters.file_store import FileDatasetStore, FileModelStore
from service.core.errors import Conflict, InvalidRequest, NotFound
from service.core.types import Column, Dataset, ModelState

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def store(tmp_path: Path):
    """An empty store of models."""
    store = FileModelStore(tmp_path, SystemClock())
    yield store
    store.close()


def put(store: FileModelStore, name: str = "m", content: bytes = b"bundle", job: str | None = None) -> int:
    """Publish a new version with this content."""
    version = store.allocate(name)
    folder = store.scratch()
    (folder / "b").write_bytes(content)
    store.publish(name, version, folder / "b", manifest={"lineage": {"job": job}})
    folder.rmdir()
    return version


def bundle_in(folder: Path, content: bytes = b"bundle") -> Path:
    """A file to publish."""
    path = folder / "upload"
    path.write_bytes(content)
    return path


def visible(root: Path) -> list[str]:
    """All scratch folders."""
    return sorted(str(path.relative_to(root)) for path in (root / "tmp").rglob("*") if path.is_dir())


def test_published_version_reads_back_whole(store):
    """Content, manifest and number of a version are those published."""
    version = put(store, content=b"123", job="j1")
    stored = store.version("m", version)
    assert (stored.version, stored.path.read_bytes()) == (1, b"123")
    assert stored.manifest == {"lineage": {"job": "j1"}}
    assert [v.version for v in store.versions("m")] == [1]
    assert store.models() == ["m"]


@pytest.mark.parametrize("name", ["..", ".", "stats", "", "a/b", "a b", "x" * 129, "ä", "a\n", "a\0"])
def test_every_method_refuses_a_name_that_could_be_a_path(store, name):
    """No path is made from unchecked text."""
    for call in (
        store.state,
        store.versions,
        store.allocate,
        lambda n: store.version(n, 1),
        lambda n: store.delete(n, 1),
    ):
        with pytest.raises(InvalidRequest, match="model name"):
            call(name)


def test_absent_things_are_not_found(store):
    """A missing model or version is NotFound everywhere."""
    for call in (store.state, store.versions, lambda n: store.delete(n, None), lambda n: store.change(n, lambda s: s)):
        with pytest.raises(NotFound, match="no model 'm'"):
            call("m")
    put(store)
    with pytest.raises(NotFound, match="no version 2"):
        store.version("m", 2)
    with pytest.raises(NotFound, match="no version 2"):
        store.change("m", lambda s: replace(s, loaded=frozenset({2})))
    assert not (store.state("m").loaded)


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


def test_change_counts_generations_and_persists(tmp_path, store):
    """A change is seen by another store on the same folder; a change to the same value writes nothing."""
    put(store)
    assert store.state("m").generation == 2, "allocation and publication"
    before = store.state("m").generation
    after = store.change("m", lambda s: replace(s, aliases={"prod": 1}, loaded=frozenset({1})))
    assert after.generation == before + 1
    assert store.change("m", lambda s: s).generation == after.generation
    other = FileModelStore(tmp_path, SystemClock())
    assert other.state("m") == after == ModelState("m", after.generation, 2, frozenset({1}), {"prod": 1})
    other.close()


def test_number_is_never_given_twice(store):
    """Neither after the deletion of a version nor of the whole model, nor by publishing an old number."""
    assert [put(store), put(store)] == [1, 2]
    store.delete("m", 2)
    assert [v.version for v in store.versions("m")] == [1]
    pending = store.allocate("m")
    store.delete("m", None)
    assert store.models() == []
    assert store.allocate("m") == pending + 1 == 4
    for version in (1, 2, 3):
        with pytest.raises(Conflict, match="was deleted"):
            store.publish("m", version, bundle_in(store.scratch()), manifest={})


def test_publish_repeats_only_for_the_same_job(store):
    """A repeated finish of one job finds its own version; anyone else is refused and changes nothing."""
    version = put(store, content=b"first", job="j1")
    again = store.publish("m", version, bundle_in(store.scratch(), b"second"), manifest={"lineage": {"job": "j1"}})
    assert again.path.read_bytes() == b"first"
    for manifest in ({"lineage": {"job": "j2"}}, {}, {"lineage": {}}):
        with pytest.raises(Conflict, match="immutable"):
            store.publish("m", version, bundle_in(store.scratch()), manifest=manifest)
    with pytest.raises(NotFound, match="never allocated"):
        store.publish("m", 9, bundle_in(store.scratch()), manifest={})


def test_delete_refuses_what_is_in_use(store):
    """A loaded version, or one with an alias, stays; once free it goes with its files."""
    version = put(store)
    path = store.version("m", version).path
    store.change("m", lambda s: replace(s, loaded=frozenset({1}), aliases={"prod": 1}))
    with pytest.raises(Conflict, match="unload it"):
        store.delete("m", 1)
    with pytest.raises(Conflict, match="unload it"):
        store.delete("m", None)
    store.change("m", lambda s: replace(s, loaded=frozenset()))
    with pytest.raises(Conflict, match="alias prod points at"):
        store.delete("m", 1)
    store.change("m", lambda s: replace(s, aliases={}))
    store.delete("m", 1)
    assert not path.parent.exists()


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


def _race(root: Path, barrier, results) -> None:
    store = FileModelStore(root, SystemClock())
    barrier.wait()
    versions = []
    for _ in range(10):
        versions.append(put(store))
        store.change("m", lambda s: replace(s, aliases={**s.aliases, f"a{len(s.aliases)}": 1}))
    shared = bundle_in(store.scratch(), str(os.getpid()).encode())
    try:
        stored = store.publish("shared", 1, shared, manifest={"lineage": {"job": "one"}})
        results.put((versions, stored.path.read_bytes()))
    finally:
        store.close()


def test_racing_processes_lose_nothing(tmp_path, store):
    """Numbers are unique, no change is lost, and one of several publications of a number wins for all."""
    put(store)
    store.allocate("shared")
    barrier, results = SPAWN.Barrier(3), SPAWN.Queue()
    processes = [SPAWN.Process(target=_race, args=(tmp_path, barrier, results)) for _ in range(3)]
    for process in processes:
        process.start()
    answers = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(30)
    numbers = [number for versions, _ in answers for number in versions]
    assert sorted(numbers) == list(range(2, 32))
    assert len(store.state("m").aliases) == 30
    assert len({content for _, content in answers}) == 1
    assert len(store.versions("m")) == 31


def test_racing_threads_lose_nothing(store):
    """The lock also holds between threads of one process."""
    put(store)
    numbers: list[int] = []
    threads = [threading.Thread(target=lambda: numbers.extend(put(store) for _ in range(5))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(2, 22))


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


# Data sets


@pytest.fixture
def datasets(tmp_path: Path):
    """An empty store of data sets."""
    store = FileDatasetStore(tmp_path)
    yield store
    store.close()


def dataset_in(folder: Path, dataset_id: str = "ds-1", created_at: float = 1.0) -> Dataset:
    """Prepare a data set in a folder."""
    np.save(folder / "x.npy", np.arange(6, dtype=np.float32).reshape(3, 2))
    return Dataset(dataset_id, "toy", 3, (Column("x", "FP32", (2,)),), "00", 24, created_at, folder)


def test_dataset_reads_back(datasets):
    """A data set is what was added, at its new place."""
    folder = datasets.scratch()
    added = datasets.add(folder, dataset_in(folder))
    assert not folder.exists()
    assert datasets.get("ds-1") == added
    np.testing.assert_array_equal(np.load(added.path / "x.npy"), [[0, 1], [2, 3], [4, 5]])


def test_dataset_added_twice_is_the_stored_one(datasets):
    """The same id returns the first and leaves no scratch."""
    first, second = datasets.scratch(), datasets.scratch()
    stored = datasets.add(first, dataset_in(first))
    assert datasets.add(second, dataset_in(second, created_at=2.0)) == stored
    assert not second.exists()


def test_datasets_are_listed_oldest_first_and_deleted(datasets):
    """Order is by time; a deleted one is not found."""
    for number, created_at in ((1, 5.0), (2, 3.0)):
        folder = datasets.scratch()
        datasets.add(folder, dataset_in(folder, f"ds-{number}", created_at))
    assert [dataset.id for dataset in datasets.all()] == ["ds-2", "ds-1"]
    datasets.delete("ds-2")
    assert [dataset.id for dataset in datasets.all()] == ["ds-1"]
    for call in (datasets.get, datasets.delete):
        with pytest.raises(NotFound, match="no data set 'ds-2'"):
            call("ds-2")
        with pytest.raises(InvalidRequest, match="data set name"):
            call("../models")


def test_data_sets_of_the_same_content_share_their_files(datasets):
    """Two ids, one stored content; whichever goes first, the other keeps all of it."""
    for number in (1, 2, 3):
        folder = datasets.scratch()
        datasets.add(folder, dataset_in(folder, f"ds-{number}"))
    files = [datasets.get(f"ds-{number}").path / "x.npy" for number in (1, 2, 3)]
    assert all(file.samefile(files[0]) for file in files)
    datasets.delete("ds-1")
    datasets.delete("ds-3")
    np.testing.assert_array_equal(np.load(files[1]), [[0, 1], [2, 3], [4, 5]])
    assert files[1].stat().st_nlink == 1
    assert sorted(path.name for path in files[1].parent.iterdir()) == ["manifest.json", "x.npy"]


def test_data_sets_of_other_content_share_nothing(datasets):
    """Another digest, another file."""
    folder, other = datasets.scratch(), datasets.scratch()
    datasets.add(folder, dataset_in(folder))
    datasets.add(other, replace(dataset_in(other, "ds-2"), sha256="11"))
    assert not (datasets.get("ds-1").path / "x.npy").samefile(datasets.get("ds-2").path / "x.npy")


def test_holds_share_or_are_alone(tmp_path, datasets):
    """Many hold at once, one alone; the stores of two processes agree."""
    folder = datasets.scratch()
    datasets.add(folder, dataset_in(folder))
    other = FileDatasetStore(tmp_path)
    holds = [store.hold("ds-1", alone=False) for store in (datasets, other, datasets)]
    assert other.hold("ds-1", alone=True) is None
    for release in holds:
        release()
    alone = other.hold("ds-1", alone=True)
    assert [datasets.hold("ds-1", alone=kind) for kind in (True, False)] == [None, None]
    datasets.delete("ds-1")
    alone()
    for kind in (True, False):
        with pytest.raises(NotFound, match="no data set 'ds-1'"):
            datasets.hold("ds-1", alone=kind)
    other.close()


def _hold(root: str, held) -> None:
    """A process that holds a data set until it is killed."""
    assert FileDatasetStore(Path(root)).hold("ds-1", alone=True) is not None
    held.set()
    threading.Event().wait()


def test_hold_of_a_killed_process_is_free(tmp_path, datasets):
    """Nothing stays locked."""
    folder = datasets.scratch()
    datasets.add(folder, dataset_in(folder))
    held = SPAWN.Event()
    process = SPAWN.Process(target=_hold, args=(str(tmp_path), held))
    process.start()
    assert held.wait(30)
    assert datasets.hold("ds-1", alone=False) is None
    process.kill()
    process.join(30)
    release = datasets.hold("ds-1", alone=True)
    assert release is not None
    release()
