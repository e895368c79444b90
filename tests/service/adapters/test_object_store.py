"""What only stores in buckets have: lost answers, kills between their requests, copies on the disk, a lost bucket."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from dataclasses import replace

import numpy as np
import pytest

from service.adapters.holds import Holds
from service.adapters.objects import Objects
from service.core.errors import Conflict, NotFound, NotReady
from tests.service.adapters.places import Place
from tests.service.adapters.test_store_contract import bundle_in, dataset_in, put

SPAWN = multiprocessing.get_context("spawn")


@pytest.mark.parametrize("nth", range(1, 6))
def test_publication_through_lost_answers_is_one(bucket, s3, nth):
    """Whichever answer is lost: the number is used once, and the content is whole."""
    store = bucket.models()
    s3.fail({"kind": "lost", "count": nth, "method": "PUT"})
    assert put(store, content=b"123") == 1
    s3.fail()
    assert store.bundle(store.version("m", 1)).read_bytes() == b"123"
    assert (store.state("m").generation, store.allocate("m")) == (2, 2)


def test_content_of_a_record_that_is_still_being_written_stays(bucket, monkeypatch):
    """S3 refuses a second write while it is at work on the first, whose answer was lost: that one may come yet."""
    store = bucket.models()
    store.allocate("m")
    create, late = Objects.create, []

    def refused(objects, key, content):
        late.append((key, content))
        return False

    monkeypatch.setattr(Objects, "create", refused)
    with pytest.raises(NotReady, match="version 1 is being published"):
        store.publish("m", 1, bundle_in(bucket.root, b"123"), manifest={"lineage": {"job": "j"}})
    monkeypatch.setattr(Objects, "create", create)
    [(key, content)] = late
    assert bucket.objects.create(key, content)
    other = Place("s3", bucket.root / "other", url=bucket.url)
    assert other.models().bundle(other.models().version("m", 1)).read_bytes() == b"123"
    other.close()


def test_repeated_publication_tells_what_the_first_could_not(bucket, monkeypatch):
    """Whoever polls looks for a version where the generation is a new one."""
    store, calls = bucket.models(), {"name": "m", "version": 1, "manifest": {"lineage": {"job": "j"}}}
    store.allocate("m")

    def away(name, version):
        raise NotReady("away")

    with monkeypatch.context() as lost:
        lost.setattr(store, "_announce", away)
        with pytest.raises(NotReady):
            store.publish(bundle=bundle_in(bucket.root, b"123"), **calls)
    before = store.state("m").generation
    assert store.publish(bundle=bucket.root / "gone", **calls).version == 1
    assert store.state("m").generation > before


def _publish_and_die(place: Place, step: int) -> None:
    """Publish, killed at the `step`-th request that writes."""
    store = place.models()
    store.check()
    calls = 0

    def counted(method):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return method(*args, **kwargs)

        return call

    for name in ("create", "send", "replace", "delete"):
        setattr(Objects, name, counted(getattr(Objects, name)))
    store.publish("m", 1, place.root / "upload", manifest={"lineage": {"job": "j"}})


def test_kill_in_mid_publish_leaves_all_or_nothing(bucket):
    """Killed before any of its requests, a publication is absent or whole; a later one by the same job succeeds."""
    outcomes = []
    for step in range(1, 5):
        place = Place("s3", bucket.root / str(step), url=f"{bucket.url}/{step}")
        place.root.mkdir()
        store = place.models()
        store.allocate("m")
        bundle_in(place.root, b"x" * 1000)
        child = SPAWN.Process(target=_publish_and_die, args=(place, step))
        child.start()
        child.join(30)
        found = store.versions("m")
        assert [store.bundle(stored).stat().st_size for stored in found] in ([], [1000])
        outcomes.append((child.exitcode, len(found)))
        again = store.publish("m", 1, bundle_in(place.root, b"y" * 1000), manifest={"lineage": {"job": "j"}})
        assert len(store.bundle(again).read_bytes()) == 1000
        place.close()
    assert outcomes == [(-signal.SIGKILL, 0), (-signal.SIGKILL, 0), (-signal.SIGKILL, 1), (0, 1)]


def test_deletion_that_was_killed_is_finished_by_the_next_start(bucket, monkeypatch):
    """What the state calls removed is invisible at once, and its objects go later."""
    store = bucket.models()
    put(store), put(store)
    monkeypatch.setattr(store, "_discard_gone", lambda document: None)
    store.delete("m", 1)
    assert [stored.version for stored in store.versions("m")] == [2]
    assert len(bucket.objects.entries("bundles/m/1")) == len(bucket.objects.entries("bundles/m/2")) == 1
    bucket.models().check()
    assert bucket.objects.entries("bundles/m/1") == []
    assert [entry.key for entry in bucket.objects.entries("versions")] == ["versions/m/2.json"]


def test_version_deleted_while_it_is_published_stays_deleted(bucket, monkeypatch):
    """Its objects go again."""
    store, other = bucket.models(), bucket.models()
    number = store.allocate("m")
    create = Objects.create

    def slow(objects, key, content):
        if key.startswith("versions/"):
            other.delete("m", None)
        return create(objects, key, content)

    monkeypatch.setattr(Objects, "create", slow)
    with pytest.raises(Conflict, match="was deleted"):
        store.publish("m", number, bundle_in(store.scratch()), manifest={})
    assert bucket.objects.entries("versions") == bucket.objects.entries("bundles") == []


def test_another_process_fetches_the_bundle_once(bucket, tmp_path):
    """And compares it with its digest; a copy is used as it is."""
    put(bucket.models(), content=b"123")
    place = Place("s3", tmp_path / "other", url=bucket.url)
    store = place.models()
    stored = store.version("m", 1)
    assert not stored.path.exists()
    assert store.bundle(stored).read_bytes() == b"123"
    inode = stored.path.stat().st_ino
    assert store.bundle(stored).stat().st_ino == inode
    stored.path.unlink()
    [entry] = bucket.objects.entries("bundles")
    bucket.objects.write(entry.key, b"321")
    with pytest.raises(NotReady, match=r"expected bundles/m/1/a665a459.* with sha256 a665a459"):
        store.bundle(stored)
    bucket.objects.delete([entry.key])
    with pytest.raises(NotFound, match="no version 1"):
        store.bundle(stored)
    assert not stored.path.exists()
    place.close()


def test_columns_that_were_meddled_with_are_refused(bucket, tmp_path):
    """Nobody trains on them."""
    datasets = bucket.datasets()
    folder = datasets.scratch()
    dataset = datasets.add(folder, dataset_in(folder))
    [entry] = bucket.objects.entries("columns")
    bucket.objects.write(entry.key, b"\0" * entry.size)
    with pytest.raises(NotReady, match="with sha256"):
        datasets.columns(dataset)
    folder = datasets.scratch()
    other = datasets.add(folder, replace(dataset_in(folder, "ds-2"), sha256="11"))
    np.testing.assert_array_equal(np.load(datasets.columns(other) / "x.npy"), [[0, 1], [2, 3], [4, 5]])


def test_data_sets_deleted_at_once_leave_no_columns(bucket, monkeypatch):
    """Of two who want the columns alone both step back and try again; what one lists the other may have deleted."""
    datasets, other = bucket.datasets(), bucket.datasets()
    for number in (1, 2):
        folder = datasets.scratch()
        datasets.add(folder, dataset_in(folder, f"ds-{number}"))
    listed, take, refused = datasets.all(), Holds.take, [None]
    monkeypatch.setattr(Holds, "take", lambda *args, **how: refused.pop() if refused else take(*args, **how))
    monkeypatch.setattr(datasets, "all", lambda: listed[1:])
    other._objects.delete(["datasets/ds-2.json"])
    datasets.delete("ds-1")
    assert refused == []
    assert bucket.objects.entries("columns") == []


def test_bucket_that_was_emptied_is_no_empty_store(bucket):
    """Whoever took it for one would unload what serves."""
    store = bucket.models()
    put(store)
    bucket.objects.delete([entry.key for entry in bucket.objects.entries("")])
    for call in (store.check, store.models, lambda: store.state("m"), lambda: store.versions("m")):
        with pytest.raises(NotReady, match="the store of models is not there"):
            call()
    assert bucket.models().models() == []


def test_foreign_objects_are_passed_over(bucket):
    """What people or tools leave between ours."""
    store, datasets = bucket.models(), bucket.datasets()
    put(store)
    for key in ("models/notes.txt", "models/x/y.json", "versions/m/x.json", "versions/m/y", "datasets/readme", "a.txt"):
        bucket.objects.write(key, b"hello")
    assert store.models() == ["m"]
    assert [stored.version for stored in store.versions("m")] == [1]
    assert datasets.all() == []


def test_poll_costs_one_list_while_nothing_changes(bucket, monkeypatch):
    """However many models there are."""
    store = bucket.models()
    for name in "abc":
        put(store, name)
    store.states()
    asked: list[str] = []
    for name in ("read", "entries", "exists"):
        method = getattr(Objects, name)
        monkeypatch.setattr(Objects, name, lambda *args, name=name, method=method: asked.append(name) or method(*args))
    assert list(store.states()) == ["a", "b", "c"]
    assert asked == ["entries"]
    bucket.models().change("b", lambda state: replace(state, loaded=frozenset({1})))
    asked.clear()
    assert store.states()["b"].loaded == {1}
    assert asked == ["entries", "read"]


def test_documents_are_those_of_the_file_store(bucket, tmp_path):
    """But for a mark of who wrote them: a back-up of one is read by people who know the other."""
    for place in (bucket, Place("file", tmp_path / "file")):
        store = place.models()
        put(store)
        store.change("m", lambda state: replace(state, aliases={"prod": 1}))
        if place.kind == "file":
            written = json.loads((place.root / "models" / "m" / "state.json").read_bytes())
        else:
            written = json.loads(place.objects.read("models/m.json").content)
            assert len(written.pop("change")) == 16
        assert written == {
            "format": 1, "generation": 3, "next_version": 2, "loaded": [], "aliases": {"prod": 1}, "serving": {},
            "previous": {}, "pinned": [], "evicted": {}, "deleted": False, "removed": [], "floor": 1,
        }  # fmt: skip
        place.close()
