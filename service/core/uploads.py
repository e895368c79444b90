"""Clients' bodies go to disk as they come: bounded, never whole in memory, never on the event loop.

An upload that may be interrupted is a thing of its own: announced with its length, appended to in any number of
requests, and used when it is whole. Where it goes on is what is on the disk, so no process needs to remember it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from service.core.errors import Conflict, InvalidRequest, NotFound, ServiceError, TooLarge, WrongOffset, shown
from service.core.limits import Limits
from service.core.ports import Clock
from service.core.threads import held_by

MAX_UPLOADS: Final = 1000
"""Unfinished uploads at a time, however small."""

_BUFFER = 2**20
_HASHED = 2**22
_ID = re.compile(r"up-[0-9a-f]{16}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CLEAN_EVERY_S = 300.0


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload of which the first `offset` of `length` bytes are here.

    `sha256` is that of the whole, if the client said it; `written_at` when the last byte came, in seconds since the
    epoch.
    """

    id: str
    length: int
    created_at: float
    sha256: str | None = None
    offset: int = 0
    written_at: float = 0.0


class Taken(NamedTuple):
    """An upload's content, to be read only, and what gives it free again."""

    path: Path
    release: Callable[[], None]


class UploadStore(Protocol):
    """Unfinished uploads, shared by every process that serves. Every method blocks: call it in a thread."""

    @property
    def piece_bytes(self) -> int:
        """About how much one `append` shall bring."""

    def create(self, upload: Upload, *, max_bytes: int, max_uploads: int) -> None:
        """Store an empty one; raises `Overloaded` when there are too many, or all announce more than `max_bytes`."""

    def get(self, upload_id: str) -> Upload:
        """One with its offset as it is on the disk; raises `NotFound`."""

    def append(self, upload_id: str, offset: int, pieces: Sequence[bytes], *, durable: bool) -> int:
        """Write `pieces` at `offset` if that is where it ends, in one step; returns where it ends then.

        `durable`: it is on the disk itself on return. Raises `WrongOffset`, `NotFound`, `Overloaded` for a full disk.
        """

    def take(self, upload_id: str) -> Taken:
        """Have it for oneself until it is released; raises `NotFound`, `NotReady` while another has it."""

    def delete(self, upload_id: str) -> None:
        """Remove it; raises `NotFound`."""

    def remove_unwritten(self, since: float) -> None:
        """Remove those without a byte since that time which nobody has taken."""


class UploadService:
    """Uploads as clients see them; REST and gRPC call nothing else."""

    def __init__(self, store: UploadStore, clock: Clock, limits: Limits) -> None:
        self._store = store
        self._clock = clock
        self._limits = limits

    async def create(self, length: int, *, sha256: str | None = None) -> Upload:
        """Announce an upload; raises `InvalidRequest`, `TooLarge`, `Overloaded`."""
        if length < 1:
            raise InvalidRequest(f"length: expected 1 or more bytes, got {shown(length)}")
        largest = max(self._limits.max_dataset_bytes, self._limits.max_bundle_bytes)
        check_size(length, limit_bytes=largest, what="length")
        if sha256 is not None and _SHA256.fullmatch(sha256) is None:
            raise InvalidRequest(f"sha256: expected 64 hexadecimal digits in lower case, got {shown(sha256)}")
        await self._clean()
        now = self._clock.time()
        upload = Upload(f"up-{secrets.token_hex(8)}", length, now, sha256, written_at=now)
        await asyncio.to_thread(
            lambda: self._store.create(upload, max_bytes=self._limits.max_uploads_bytes, max_uploads=MAX_UPLOADS)
        )
        return upload

    async def get(self, upload_id: str) -> Upload:
        """One with its offset; raises `NotFound`."""
        return await asyncio.to_thread(self._store.get, check_upload_id(upload_id))

    def expires_at(self, upload: Upload) -> float:
        """When it goes unless another byte comes, in seconds since the epoch."""
        return upload.written_at + self._limits.upload_ttl_s

    async def append(self, upload_id: str, offset: int, chunks: AsyncIterable[bytes], *, announced: int = 0) -> Upload:
        """Write `chunks`, of which there are `announced` bytes (0: it is not known), behind the first `offset` bytes.

        What came before `chunks` broke off stays. Raises `WrongOffset` when it ends elsewhere, also in the middle when
        another request writes too, `TooLarge` for more than its length, `NotFound`.
        """
        upload = await self.get(upload_id)
        if offset != upload.offset:
            raise wrong_offset(upload_id, upload.offset, offset)
        _check_fits(upload, offset + announced)
        pending: list[bytes] = []
        size = 0

        async def flush(*, durable: bool) -> None:
            nonlocal pending, size, offset
            batch, pending, size = pending, [], 0
            offset = await asyncio.to_thread(self._store.append, upload_id, offset, batch, durable=durable)

        try:
            async for chunk in chunks:
                _check_fits(upload, offset + size + len(chunk))
                pending.append(chunk)
                size += len(chunk)
                if size >= self._store.piece_bytes:
                    await flush(durable=False)
        except ServiceError:
            if pending:
                await flush(durable=False)
            raise
        await flush(durable=True)
        return await self.get(upload_id)

    async def delete(self, upload_id: str) -> None:
        """End it; raises `NotFound`, `NotReady` while it is being used."""
        await asyncio.to_thread(self._store.delete, check_upload_id(upload_id))

    @contextlib.asynccontextmanager
    async def taken(self, upload_id: str, *, limit_bytes: int, what: str) -> AsyncIterator[Path]:
        """The content of a whole upload, removed behind the block unless that fails: then it may be used again.

        Raises `Conflict` before all of it is here, `NotReady` while another request uses it, `TooLarge`, `NotFound`,
        `InvalidRequest` when its digest is not the announced one.
        """
        upload = await self.get(upload_id)
        check_size(upload.length, limit_bytes=limit_bytes, what=what)
        if upload.offset < upload.length:
            raise Conflict(f"upload {upload_id}: expected all of its {upload.length} bytes, got {upload.offset} so far")
        taken = await held_by(lambda: self._store.take(upload_id), _let_go)
        try:
            if upload.sha256 is not None and (found := await asyncio.to_thread(_digest, taken.path)) != upload.sha256:
                raise InvalidRequest(f"upload {upload_id}: expected content with sha256 {upload.sha256}, got {found}")
            yield taken.path
        finally:
            await asyncio.to_thread(taken.release)
        with contextlib.suppress(NotFound):
            await self.delete(upload_id)

    async def run(self, stopping: asyncio.Event) -> None:
        """Remove uploads that are out of time, every now and then, until `stopping`."""
        while not stopping.is_set():
            await self._clean()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), min(_CLEAN_EVERY_S, self._limits.upload_ttl_s))

    async def _clean(self) -> None:
        since = self._clock.time() - self._limits.upload_ttl_s
        await asyncio.to_thread(self._store.remove_unwritten, since)


def _let_go(taken: Taken) -> None:
    taken.release()


def check_upload_id(upload_id: str) -> str:
    """Return an id that may become part of a path; an impossible one does not exist: raises `NotFound`."""
    if _ID.fullmatch(upload_id) is None:
        raise no_upload(upload_id)
    return upload_id


def no_upload(upload_id: str) -> NotFound:
    """The error for an upload that is not there."""
    return NotFound(f"there is no upload {shown(upload_id)}; it may have been used, ended, or out of time")


def wrong_offset(upload_id: str, right: int, got: int) -> WrongOffset:
    """The error for a request that would go on elsewhere than where the upload ends."""
    return WrongOffset(f"upload {upload_id}: expected offset {right}, got {shown(got)}", right)


def link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system cannot."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


async def receive(chunks: AsyncIterable[bytes], path: Path, *, limit_bytes: int, what: str) -> int:
    """Write `chunks` to `path` and return their length; raises `TooLarge` at the first byte beyond the limit.

    The caller removes the folder of `path` whatever happens.
    """
    file = await asyncio.to_thread(path.open, "wb")
    total, pending, size = 0, [], 0
    try:
        async for chunk in chunks:
            total += len(chunk)
            check_size(total, limit_bytes=limit_bytes, what=what)
            pending.append(chunk)
            size += len(chunk)
            if size >= _BUFFER:
                await asyncio.to_thread(file.writelines, pending)
                pending, size = [], 0
        await asyncio.to_thread(file.writelines, pending)
    finally:
        await asyncio.to_thread(file.close)
    return total


def check_size(size: int, *, limit_bytes: int, what: str) -> None:
    """Raise `TooLarge` when `size` (announced or received so far) is beyond the limit."""
    if size > limit_bytes:
        raise TooLarge(f"{what}: expected at most {limit_bytes} bytes, got more")


def _check_fits(upload: Upload, end: int) -> None:
    if end > upload.length:
        raise TooLarge(f"upload {upload.id}: expected no more than its {upload.length} bytes, got more")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_HASHED):
            digest.update(piece)
    return digest.hexdigest()
