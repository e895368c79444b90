"""Uploads that may be interrupted: on the real store, in memory-sized pieces, by several writers and processes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.core.errors import (
    Cancelled,
    Conflict,
    InvalidRequest,
    NotFound,
    NotReady,
    Overloaded,
    TooLarge,
    WrongOffset,
)
from service.core.limits import Limits
from service.core.uploads import MAX_UPLOADS, Upload, UploadService, link
from tests.service.adapters.places import Place
from tests.service.waiting import WAIT_S, FakeClock

MIB = 2**20
LIMITS = Limits(max_dataset_bytes=8 * MIB, max_bundle_bytes=MIB, max_uploads_bytes=16 * MIB, upload_ttl_s=100.0)
SPAWN = multiprocessing.get_context("spawn")


class Parts:
    """The service with what it stands on."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.root = place.root
        self.clock = FakeClock()
        self.store = place.uploads()
        self.service = UploadService(self.store, self.clock, LIMITS)

    async def here(self, length: int, **options: str) -> str:
        """Announce an upload, written as of the clock's now; returns its id."""
        upload = await self.service.create(length, **options)
        self.touch(upload.id)
        return upload.id

    def touch(self, upload_id: str) -> None:
        """Let the last byte have come now, by the clock."""
        if self.place.kind == "file":
            os.utime(self.root / "uploads" / upload_id / "content", (self.clock.now, self.clock.now))

    async def content(self, upload_id: str) -> bytes:
        """Use a whole upload."""
        async with self.service.taken(upload_id, limit_bytes=8 * MIB, what="data set") as path:
            return path.read_bytes()


@pytest.fixture
def parts(place: Place):
    """An empty store and its service."""
    return Parts(place)


@pytest.fixture
def files(tmp_path: Path):
    """The same in files, whose times can be set."""
    parts = Parts(Place("file", tmp_path))
    yield parts
    parts.place.close()


async def body(*pieces: bytes, error: Exception | None = None) -> AsyncIterator[bytes]:
    """A request's body; one that breaks off with `error`."""
    for piece in pieces:
        yield piece
    if error is not None:
        raise error


async def test_upload_in_pieces_is_used_once(parts):
    """Each request goes on where the one before ended; used, the upload is gone."""
    data = os.urandom(3 * MIB + 7)
    upload_id = await parts.here(len(data), sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(Conflict, match=rf"expected all of its {len(data)} bytes, got 0 so far"):
        await parts.content(upload_id)
    half = await parts.service.append(upload_id, 0, body(data[:5], data[5:MIB]))
    assert (half.offset, half.length) == (MIB, len(data))
    whole = await parts.service.append(upload_id, MIB, body(data[MIB:]))
    assert whole.offset == len(data)
    assert await parts.content(upload_id) == data
    with pytest.raises(NotFound, match="no upload"):
        await parts.service.get(upload_id)
    if parts.place.kind == "file":
        assert [path for path in (parts.root / "uploads").iterdir() if path.is_dir()] == []
    else:
        assert parts.place.objects.entries("uploads") == parts.place.objects.entries("holds") == []


async def test_what_came_before_a_broken_connection_stays(parts):
    """Also what was not enough yet for a write."""
    upload_id = await parts.here(10)
    with pytest.raises(Cancelled):
        await parts.service.append(upload_id, 0, body(b"abc", error=Cancelled("gone")))
    assert (await parts.service.get(upload_id)).offset == 3
    await parts.service.append(upload_id, 3, body(b"defghij"))
    assert await parts.content(upload_id) == b"abcdefghij"


async def test_wrong_offset_says_the_right_one(parts):
    """Before, behind, and beyond the end; nothing is written."""
    upload_id = await parts.here(10)
    await parts.service.append(upload_id, 0, body(b"abcd"))
    for wrong in (0, 3, 5, 10, 2**62):
        with pytest.raises(WrongOffset, match="expected offset 4") as caught:
            await parts.service.append(upload_id, wrong, body(b"x"))
        assert caught.value.offset == 4
    assert (await parts.service.get(upload_id)).offset == 4


async def test_of_two_writers_the_second_block_is_refused(parts):
    """One that stood still while another wrote finds another offset, and has changed nothing."""
    upload_id = await parts.here(3 * MIB)
    waiting, resumed = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"s"
        waiting.set()
        await resumed.wait()
        yield b"s" * MIB

    first = asyncio.create_task(parts.service.append(upload_id, 0, slow()))
    await waiting.wait()
    second = await parts.service.append(upload_id, 0, body(b"f" * MIB, b"f" * MIB))
    resumed.set()
    with pytest.raises(WrongOffset) as caught:
        await first
    assert (second.offset, caught.value.offset) == (2 * MIB, 2 * MIB)
    await parts.service.append(upload_id, 2 * MIB, body(b"f" * MIB))
    assert await parts.content(upload_id) == b"f" * 3 * MIB


@pytest.mark.parametrize("length", [0, -1, -(2**70)])
async def test_empty_upload_is_refused(parts, length):
    """There is nothing to send."""
    with pytest.raises(InvalidRequest, match="1 or more bytes"):
        await parts.service.create(length)


async def test_hostile_lengths_are_refused_before_a_byte_is_written(parts):
    """Beyond the limit, beyond what was announced, and by a body that says less than it brings."""
    for length in (8 * MIB + 1, 2**63, 2**200):
        with pytest.raises(TooLarge, match="length: expected at most"):
            await parts.service.create(length)
    upload_id = await parts.here(10)
    with pytest.raises(TooLarge, match="no more than its 10 bytes"):
        await parts.service.append(upload_id, 0, body(b"abc"), announced=11)
    assert (await parts.service.get(upload_id)).offset == 0
    with pytest.raises(TooLarge, match="no more than its 10 bytes"):
        await parts.service.append(upload_id, 0, body(b"abc", b"defghijkl"))
    assert (await parts.service.get(upload_id)).offset == 3
    with pytest.raises(TooLarge, match="bundle: expected at most 5 bytes"):
        async with parts.service.taken(upload_id, limit_bytes=5, what="bundle"):
            raise AssertionError


@pytest.mark.parametrize("sha256", ["", "0" * 63, "A" * 64, "g" * 64, "0" * 64 + "\n"])
async def test_odd_digest_is_refused(parts, sha256):
    """Only 64 hexadecimal digits in lower case."""
    with pytest.raises(InvalidRequest, match="sha256: expected 64 hexadecimal digits"):
        await parts.service.create(1, sha256=sha256)


@pytest.mark.parametrize(
    "upload_id", ["", ".", "..", "lock", "up-", "up-" + "0" * 15, "up-../../etc/pas", "up-" + "0" * 16]
)
async def test_unknown_upload_is_not_found(parts, upload_id):
    """Whatever it looks like; nothing outside the folder is touched."""
    calls = [
        parts.service.get(upload_id), parts.service.append(upload_id, 0, body(b"x")), parts.service.delete(upload_id),
        parts.content(upload_id),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(NotFound, match="no upload"):
            await call


async def test_all_together_are_bounded(parts):
    """By what they announce, not by what has come; one less makes room."""
    first = await parts.here(8 * MIB)
    await parts.here(8 * MIB - 1)
    await parts.here(1)
    with pytest.raises(Overloaded, match=rf"of {16 * MIB} bytes together, got 4 of {16 * MIB + 1}") as caught:
        await parts.service.create(1)
    assert caught.value.retry_after_s == 60.0
    await parts.service.delete(first)
    await parts.here(8 * MIB)


def test_their_number_is_bounded(parts):
    """However small they are."""
    for number in range(3):
        parts.store.create(Upload(f"up-{number:016x}", 1, 0.0), max_bytes=10, max_uploads=3)
    with pytest.raises(Overloaded, match="expected at most 3 unfinished ones"):
        parts.store.create(Upload(f"up-{9:016x}", 1, 0.0), max_bytes=10, max_uploads=3)
    assert MAX_UPLOADS == 1000


async def test_silent_uploads_go_and_others_stay(files):
    """The time counts from the last byte; one that is being used stays."""
    ids = [await files.here(2) for _ in range(3)]
    assert files.service.expires_at(await files.service.get(ids[0])) == files.clock.now + 100
    files.clock.advance(60)
    await files.service.append(ids[1], 0, body(b"x"))
    files.touch(ids[1])
    taken = files.store.take(ids[2])
    files.clock.advance(60)
    await files.here(1)  # to make one is to look
    with pytest.raises(NotFound):
        await files.service.get(ids[0])
    assert (await files.service.get(ids[1])).offset == 1
    assert (await files.service.get(ids[2])).offset == 0
    taken.release()
    stopping = asyncio.Event()
    running = asyncio.create_task(files.service.run(stopping))
    async with asyncio.timeout(WAIT_S):
        while (files.root / "uploads" / ids[2]).exists():
            await asyncio.sleep(0.01)
    stopping.set()
    await running


def test_silent_uploads_go_from_a_bucket(bucket):
    """By the bucket's own times; one that is used stays, and so do bytes that came to a deleted one a moment ago."""
    store = bucket.uploads()
    ids = [f"up-{number:016x}" for number in range(3)]
    for upload_id in ids:
        store.create(Upload(upload_id, 2, 0.0), max_bytes=10, max_uploads=3)
        store.append(upload_id, 0, [b"x"], durable=True)
    bucket.objects.delete([f"uploads/{ids[2]}/upload.json"])
    store.remove_unwritten(time.time() - 60)
    assert [store.get(upload_id).offset for upload_id in ids[:2]] == [1, 1]
    taken = store.take(ids[1])
    store.remove_unwritten(time.time() + 60)
    assert bucket.objects.folders("uploads") == [ids[1]]
    assert taken.path.read_bytes() == b"x"
    taken.release()
    assert not taken.path.exists()


async def test_wrong_content_is_told_by_its_digest(parts):
    """It is not used, and stays until it is ended."""
    upload_id = await parts.here(3, sha256=hashlib.sha256(b"abc").hexdigest())
    await parts.service.append(upload_id, 0, body(b"abd"))
    with pytest.raises(InvalidRequest, match=r"expected content with sha256 ba7816bf\w+, got a52d159f\w+"):
        await parts.content(upload_id)
    await parts.service.delete(upload_id)


async def test_upload_is_used_by_one_at_a_time_and_again_after_a_failure(parts):
    """Meanwhile it is neither used nor ended."""
    upload_id = await parts.here(3)
    await parts.service.append(upload_id, 0, body(b"abc"))

    async def fail() -> None:
        async with parts.service.taken(upload_id, limit_bytes=3, what="data set"):
            for call in (parts.content(upload_id), parts.service.delete(upload_id)):
                with pytest.raises(NotReady, match="another request uses it"):
                    await call
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await parts.content(upload_id) == b"abc"


def test_linked_file_is_the_same(tmp_path):
    """By another name."""
    (tmp_path / "a").write_bytes(b"abc")
    link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").samefile(tmp_path / "a")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 400_000), min_size=1, max_size=12), st.data())
def test_any_pieces_make_the_same_whole(sizes: list[int], drawn: st.DataObject):
    """However it is cut into requests and chunks, and wherever these break off."""
    data = os.urandom(sum(sizes))

    async def send(root: Path) -> bytes:
        parts = Parts(Place("file", root))
        upload_id = await parts.here(len(data), sha256=hashlib.sha256(data).hexdigest())
        offset = 0
        for size in sizes:
            piece = data[offset : offset + size]
            step = drawn.draw(st.integers(1 + size // 8, size + 1))
            chunks: Sequence[bytes] = [piece[at : at + step] for at in range(0, size, step)]
            breaks = Cancelled("gone") if drawn.draw(st.booleans()) else None
            with contextlib.suppress(Cancelled):
                await parts.service.append(upload_id, offset, body(*chunks, error=breaks))
            offset = (await parts.service.get(upload_id)).offset
        try:
            return await parts.content(upload_id)
        finally:
            parts.place.close()

    with tempfile.TemporaryDirectory() as folder:
        assert asyncio.run(send(Path(folder))) == data


def _append_all(place: Place, upload_id: str, byte: int, size: int, count: int) -> None:
    """A process that appends blocks of one byte wherever the upload ends, as often as it gets the chance."""
    store = place.uploads()
    written = 0
    while written < count:
        offset = store.get(upload_id).offset
        try:
            store.append(upload_id, offset, [bytes([byte]) * size], durable=False)
            written += 1
        except WrongOffset:
            continue
    place.close()


async def test_blocks_of_several_processes_never_mix(parts):
    """Every block is whole, none is lost: the offset is compared and the block written in one step."""
    if not parts.place.shared:
        pytest.skip("a bucket in memory is one process's")
    size, count = 1000, 50 if parts.place.kind == "file" else 15
    upload_id = await parts.here(2 * size * count)
    racing = [SPAWN.Process(target=_append_all, args=(parts.place, upload_id, byte, size, count)) for byte in (1, 2)]
    for process in racing:
        process.start()
    for process in racing:
        await asyncio.to_thread(process.join, 60)
        assert process.exitcode == 0
    content = await parts.content(upload_id)
    blocks = [content[at : at + size] for at in range(0, len(content), size)]
    assert sorted(set(blocks)) == [b"\1" * size, b"\2" * size]
    assert blocks.count(b"\1" * size) == count
