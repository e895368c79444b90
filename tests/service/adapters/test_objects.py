"""A bucket that fails: lost answers, errors, silence, half an answer, and a bucket that is gone."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import resource
import threading
import time
from pathlib import Path

import httpx
import pytest

from service.adapters.objects import PART_BYTES, Objects, check_url
from service.core.errors import InvalidRequest, NotReady
from tests.s3 import S3, running
from tests.service.adapters.places import Place

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def objects(bucket: Place) -> Objects:
    """An empty bucket, whose answers are not waited for long."""
    return Objects.at(bucket.url, document_s=0.5)


@pytest.fixture
def server(s3: S3):
    """The server, which fails no more at the end."""
    yield s3
    s3.fail()


def test_conditional_writes_have_one_winner(objects):
    """Of all that create, and of all that replace the same content."""
    assert objects.create("a", b"1")
    assert not objects.create("a", b"2")
    seen = objects.read("a")
    assert objects.read("a", seen.tag) is None
    assert objects.replace("a", b"3", seen.tag) is not None
    assert objects.replace("a", b"4", seen.tag) is None
    assert objects.read("a", seen.tag).content == b"3"
    won: list[int] = []
    threads = [threading.Thread(target=lambda n=n: objects.create("b", b"%d" % n) and won.append(n)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [objects.read("b").content] == [b"%d" % number for number in won]


@pytest.mark.parametrize("kind", ["lost", "error", "refuse", "hang"])
def test_conditional_write_without_an_answer_is_done_once(objects, server, kind):
    """What is there then says whether it was ours."""
    server.fail({"kind": kind, "count": 1, "method": "PUT"})
    assert objects.create("a", b"ours")
    seen = objects.read("a")
    server.fail({"kind": kind, "count": 1, "method": "PUT"})
    tag = objects.replace("a", b"ours again", seen.tag)
    assert tag == objects.read("a").tag
    assert objects.read("a").content == b"ours again"


def test_lost_answer_of_a_write_that_another_has_undone_is_a_defeat(objects, server):
    """The other's content is there: ours is not known to have counted, and the caller reads again."""
    objects.create("a", b"1")
    seen = objects.read("a")
    objects.write("a", b"theirs")
    server.fail({"kind": "error", "count": 1, "method": "PUT"})
    assert objects.replace("a", b"ours", seen.tag) is None
    server.fail({"kind": "error", "count": 1, "method": "PUT"})
    assert not objects.create("a", b"ours")
    assert objects.read("a").content == b"theirs"


@pytest.mark.parametrize("kind", ["error", "refuse"])
def test_passing_faults_are_not_seen(objects, server, tmp_path, kind):
    """Of reads, lists, writes, parts and deletions."""
    content = os.urandom(2 * PART_BYTES + 5)
    (tmp_path / "file").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    calls = {
        "send": lambda: objects.send("f", tmp_path / "file"),
        "fetch": lambda: objects.fetch("f", tmp_path / "copy", len(content), digest),
        "write": lambda: objects.write("w", b"1"),
        "read": lambda: objects.read("w"),
        "entries": lambda: objects.entries(""),
        "exists": lambda: objects.exists("w"),
        "delete": lambda: objects.delete(["w"]),
    }
    for call in calls.values():
        server.fail({"kind": kind, "count": 2})
        call()
    assert (tmp_path / "copy").read_bytes() == content


def test_half_an_answer_is_asked_for_again(objects, server, tmp_path):
    """No copy is shorter than what it is a copy of."""
    content = os.urandom(PART_BYTES + 100)
    (tmp_path / "file").write_bytes(content)
    objects.send("f", tmp_path / "file")
    server.fail({"kind": "cut", "count": 2, "method": "GET"})
    objects.fetch("f", tmp_path / "copy", len(content), hashlib.sha256(content).hexdigest())
    assert (tmp_path / "copy").read_bytes() == content


def test_other_content_than_was_promised_is_refused(objects, tmp_path):
    """And nothing of it is left."""
    objects.write("f", b"123")
    with pytest.raises(NotReady, match=r"expected f with sha256 00, got a665a459"):
        objects.fetch("f", tmp_path / "copy", 3, "00")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("kind", ["error", "hang"])
def test_lasting_faults_are_told_soon(bucket, server, kind):
    """A bucket that only says no, or nothing: after four tries."""
    objects = Objects.at(bucket.url, document_s=0.1)
    server.fail({"kind": kind, "count": 99})
    began = time.monotonic()
    for call in (lambda: objects.read("a"), lambda: objects.create("a", b"")):
        with pytest.raises(NotReady, match="the object store does not answer"):
            call()
    assert time.monotonic() - began < 30


def test_bucket_that_is_not_there_is_not_ready(objects, bucket, server):
    """Nothing is found in it, and nothing is written."""
    httpx.delete(f"{server.url}/{bucket.url.split('/')[2]}").raise_for_status()
    for call in (lambda: objects.entries("a"), lambda: objects.create("a", b"1")):
        with pytest.raises(NotReady, match="the object store does not answer"):
            call()


def test_store_on_a_dead_server_is_not_ready_until_it_is_back(tmp_path, monkeypatch):
    """Refused connections are told within a second or two, whatever is asked."""
    with running() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        place = Place("s3", tmp_path, url=server.bucket())
        store = place.models()
        store.allocate("m")
        server.process.kill()
        server.process.wait()
        began = time.monotonic()
        for call in (store.check, store.models, lambda: store.state("m"), lambda: store.allocate("m")):
            with pytest.raises(NotReady):
                call()
        assert time.monotonic() - began < 20
        place.close()


def _send(url: str, path: Path, grown) -> None:
    objects = Objects.at(url)
    objects.create("warm", b"")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    objects.send("large", path)
    size = path.stat().st_size
    for _ in objects.pieces("large", size):
        pass
    grown.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)


def test_large_file_is_never_whole_in_memory(bucket, tmp_path):
    """It goes in parts of 8 MiB, a few at once, and comes back so."""
    with (tmp_path / "large").open("wb") as file:
        file.truncate(80 * 2**20)
    grown = SPAWN.Queue()
    process = SPAWN.Process(target=_send, args=(bucket.url, tmp_path / "large", grown))
    process.start()
    assert grown.get(timeout=60) < 64 * 2**20
    process.join(30)
    assert [entry.size for entry in bucket.objects.entries("") if entry.key == "large"] == [80 * 2**20]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "bucket",
        "ftp://b",
        "file:///etc",
        "memory:///",
        "http://b/c",
        "s3://",
        "s3://k:s@b",
        "s3://b?x=1",
        "s3://b#c",
    ],
)
def test_other_urls_are_refused(url):
    """A bucket's only, and no credentials in it."""
    with pytest.raises(InvalidRequest, match="store: expected a URL"):
        check_url(url)


@pytest.mark.parametrize("url", ["gs://bucket/prefix", "az://account/container/prefix", "s3://bucket"])
def test_buckets_of_each_cloud_are_opened_without_a_request(url, monkeypatch):
    """Wrong credentials are told when it is used."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")
    Objects.at(url)
