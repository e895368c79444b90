"""What every `ModelStore` and `DatasetStore` keeps, in files and in buckets; with real processes where they race."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.core.errors import Conflict, InvalidRequest, NotFound
from service.core.types import Column, Dataset, ModelState
from tests.service.adapters.places import LEASE_S, Place

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def store(place: Place):
    """An empty store of models."""
    return place.models()


def put(store: Any, name: str = "m", content: bytes = b"bundle", job: str | None = None) -> int:
    """Publish a new version with this content."""
    version = store.allocate(name)
    folder = store.scratch()
    (folder / "b").write_bytes(content)
    store.publish(name, version, folder / "b", manifest={"lineage": {"job": job}})
    shutil.rmtree(folder)
    return version


def bundle_in(folder: Path, content: bytes = b"bundle") -> Path:
    """A file to publish."""
    path = folder / "upload"
    path.write_bytes(content)
    return path


def test_published_version_reads_back_whole(store):
    """Content, manifest and number of a version are those published."""
    version = put(store, content=b"123", job="j1")
    stored = store.version("m", version)
    assert (stored.version, store.bundle(stored).read_bytes()) == (1, b"123")
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


def test_change_counts_generations_and_persists(place, store):
    """A change is seen by another store on the same folder; a change to the same value writes nothing."""
    put(store)
    assert store.state("m").generation == 2, "allocation and publication"
    before = store.state("m").generation
    after = store.change("m", lambda s: replace(s, aliases={"prod": 1}, loaded=frozenset({1})))
    assert after.generation == before + 1
    assert store.change("m", lambda s: s).generation == after.generation
    other = place.models()
    assert other.state("m") == after == ModelState("m", after.generation, 2, frozenset({1}), {"prod": 1})
    assert other.states() == {"m": after}
    put(store, "a")
    assert list(other.states()) == other.models() == ["a", "m"]


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
    assert store.bundle(again).read_bytes() == b"first"
    for manifest in ({"lineage": {"job": "j2"}}, {}, {"lineage": {}}):
        with pytest.raises(Conflict, match="immutable"):
            store.publish("m", version, bundle_in(store.scratch()), manifest=manifest)
    with pytest.raises(NotFound, match="never allocated"):
        store.publish("m", 9, bundle_in(store.scratch()), manifest={})


def test_delete_refuses_what_is_in_use(place, store):
    """A loaded version, or one with an alias, stays; once free it goes with its files."""
    stored = store.version("m", put(store))
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
    with pytest.raises(NotFound, match="no version 1"):
        store.version("m", 1)
    with pytest.raises(NotFound, match="no version 1"):
        place.models().version("m", 1)
    assert store.versions("m") == []
    assert stored.manifest == {"lineage": {"job": None}}


def _race(place: Place, barrier, results) -> None:
    store = place.models()
    barrier.wait()
    versions = []
    for _ in range(10):
        versions.append(put(store))
        store.change("m", lambda s: replace(s, aliases={**s.aliases, f"a{len(s.aliases)}": 1}))
    shared = bundle_in(store.scratch(), str(os.getpid()).encode())
    try:
        stored = store.publish("shared", 1, shared, manifest={"lineage": {"job": "one"}})
        results.put((versions, store.bundle(stored).read_bytes()))
    finally:
        place.close()


def test_racing_processes_lose_nothing(place, store):
    """Numbers are unique, no change is lost, and one of several publications of a number wins for all."""
    if not place.shared:
        pytest.skip("a bucket in memory is one process's")
    put(store)
    store.allocate("shared")
    barrier, results = SPAWN.Barrier(3), SPAWN.Queue()
    processes = [SPAWN.Process(target=_race, args=(place, barrier, results)) for _ in range(3)]
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


# Data sets


@pytest.fixture
def datasets(place: Place):
    """An empty store of data sets."""
    return place.datasets()


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
    np.testing.assert_array_equal(np.load(datasets.columns(added) / "x.npy"), [[0, 1], [2, 3], [4, 5]])


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


def test_data_sets_of_the_same_content_share_their_files(place, datasets):
    """Two ids, one stored content; whichever goes first, the other keeps all of it."""
    for number in (1, 2, 3):
        folder = datasets.scratch()
        datasets.add(folder, dataset_in(folder, f"ds-{number}"))
    files = [datasets.columns(datasets.get(f"ds-{number}")) / "x.npy" for number in (1, 2, 3)]
    assert all(file.samefile(files[0]) for file in files)
    datasets.delete("ds-1")
    datasets.delete("ds-3")
    kept = datasets.columns(datasets.get("ds-2")) / "x.npy"
    np.testing.assert_array_equal(np.load(kept), [[0, 1], [2, 3], [4, 5]])
    if place.kind == "file":
        assert kept.stat().st_nlink == 1
        assert sorted(path.name for path in kept.parent.iterdir()) == ["manifest.json", "x.npy"]
    else:
        assert [entry.size for entry in place.objects.entries("columns")] == [kept.stat().st_size]
        datasets.delete("ds-2")
        assert place.objects.entries("columns") == place.objects.entries("datasets") == []


def test_data_sets_of_other_content_share_nothing(datasets):
    """Another digest, another file."""
    folder, other = datasets.scratch(), datasets.scratch()
    datasets.add(folder, dataset_in(folder))
    datasets.add(other, replace(dataset_in(other, "ds-2"), sha256="11"))
    first, second = (datasets.columns(datasets.get(name)) / "x.npy" for name in ("ds-1", "ds-2"))
    assert not first.samefile(second)


def test_holds_share_or_are_alone(place, datasets):
    """Many hold at once, one alone; the stores of two processes agree."""
    folder = datasets.scratch()
    datasets.add(folder, dataset_in(folder))
    other = place.datasets()
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


def _hold(place: Place, held) -> None:
    """A process that holds a data set until it is killed."""
    assert place.datasets().hold("ds-1", alone=True) is not None
    held.set()
    threading.Event().wait()


def test_hold_of_a_killed_process_is_free(place, datasets):
    """Nothing stays locked; in a bucket, once its lease is over."""
    if not place.shared:
        pytest.skip("a bucket in memory is one process's")
    folder = datasets.scratch()
    datasets.add(folder, dataset_in(folder))
    held = SPAWN.Event()
    process = SPAWN.Process(target=_hold, args=(place, held))
    process.start()
    assert held.wait(30)
    assert datasets.hold("ds-1", alone=False) is None
    process.kill()
    process.join(30)
    deadline = time.monotonic() + 5 * LEASE_S
    while (release := datasets.hold("ds-1", alone=True)) is None and place.kind != "file":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert release is not None
    release()
