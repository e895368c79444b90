"""Unfinished uploads as files of the data folder.

    uploads/<id>/upload.json   length and digest as announced; never changes
    uploads/<id>/content       what has come; its size is where the upload goes on
    uploads/<id>/lock          held while bytes are appended, never while a client is waited for
    uploads/<id>/taken         held while the whole is used
    uploads/lock               held while one is made, so that the bound on all of them holds

Any number of processes may share the folder. Appending compares the offset and writes under the lock: of two requests
that write the same upload the second to come finds another offset, wherever the first one is.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from service.adapters.files import Scratch, locked, sync, write_json
from service.adapters.formats import check_format
from service.core.errors import NotFound, NotReady, Overloaded
from service.core.uploads import Taken, Upload, check_upload_id, no_upload, wrong_offset

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_RETRY_FULL_S = 60.0
_RETRY_TAKEN_S = 2.0


class FileUploadStore:
    """The `UploadStore` on a local file system."""

    def __init__(self, root: Path) -> None:
        self._uploads = root / "uploads"
        self._uploads.mkdir(parents=True, exist_ok=True)
        self._scratch = Scratch(root / "tmp")

    piece_bytes = 2**20

    def close(self) -> None:
        """Remove this process's scratch."""
        self._scratch.close()

    def create(self, upload: Upload, *, max_bytes: int, max_uploads: int) -> None:
        """Store an empty one; raises `Overloaded` when there are too many, or all announce more than `max_bytes`."""
        folder = self._scratch.folder()
        announced = {"format": 1, "length": upload.length, "sha256": upload.sha256, "created_at": upload.created_at}
        (folder / "content").touch()
        write_json(folder / "upload.json", announced)
        with locked(self._uploads / "lock"):
            known = list(self._known())
            total = sum(other.length for other in known) + upload.length
            if len(known) >= max_uploads or total > max_bytes:
                self._scratch.discard(folder)
                raise Overloaded(
                    f"uploads: expected at most {max_uploads} unfinished ones of {max_bytes} bytes together, got "
                    f"{len(known) + 1} of {total}; finish or delete one",
                    retry_after_s=_RETRY_FULL_S,
                )
            os.rename(folder, self._folder(upload.id))
            sync(self._uploads)

    def get(self, upload_id: str) -> Upload:
        """One with its offset as it is on the disk; raises `NotFound`."""
        folder = self._folder(upload_id)
        with _present(upload_id):
            said: dict[str, Any] = json.loads((folder / "upload.json").read_bytes())
            check_format(said, f"upload {upload_id}")
            found = (folder / "content").stat()
        return Upload(upload_id, said["length"], said["created_at"], said["sha256"], found.st_size, found.st_mtime)

    def append(self, upload_id: str, offset: int, pieces: Sequence[bytes], *, durable: bool) -> int:
        """Write `pieces` at `offset` if that is where it ends, in one step; returns where it ends then."""
        folder = self._folder(upload_id)
        with _present(upload_id), locked(folder / "lock"), (folder / "content").open("r+b") as file:
            if (end := file.seek(0, os.SEEK_END)) != offset:
                raise wrong_offset(upload_id, end, offset)
            file.writelines(pieces)
            file.flush()
            if durable:
                os.fsync(file.fileno())
            return file.tell()

    def take(self, upload_id: str) -> Taken:
        """Have it for oneself until it is released; raises `NotFound`, `NotReady` while another has it."""
        folder = self._folder(upload_id)
        with _present(upload_id):
            descriptor = os.open(folder / "taken", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with _present(upload_id):
                (folder / "content").stat()  # it may have gone before the lock was had
        except BlockingIOError:
            os.close(descriptor)
            message = f"upload {upload_id}: another request uses it; ask again for what came of it"
            raise NotReady(message, retry_after_s=_RETRY_TAKEN_S) from None
        except NotFound:
            os.close(descriptor)
            raise
        return Taken(folder / "content", lambda: os.close(descriptor))

    def delete(self, upload_id: str) -> None:
        """Remove it; raises `NotFound`, `NotReady` while another has it."""
        taken = self.take(upload_id)
        try:
            self._scratch.discard(self._folder(upload_id))
        finally:
            taken.release()

    def remove_unwritten(self, since: float) -> None:
        """Remove those without a byte since that time which nobody has taken."""
        for upload in self._known():
            with contextlib.suppress(NotFound, NotReady):
                if upload.written_at < since:
                    self._remove_unwritten(upload.id, since)

    def _remove_unwritten(self, upload_id: str, since: float) -> None:
        taken = self.take(upload_id)
        try:
            with _present(upload_id), locked(self._folder(upload_id) / "lock"):  # no byte may come in between
                if self.get(upload_id).written_at < since:
                    self._scratch.discard(self._folder(upload_id))
        finally:
            taken.release()

    def _known(self) -> Iterator[Upload]:
        for name in sorted(os.listdir(self._uploads)):
            with contextlib.suppress(NotFound):  # deleted since it was listed, or none of ours
                yield self.get(name)

    def _folder(self, upload_id: str) -> Path:
        return self._uploads / check_upload_id(upload_id)


@contextlib.contextmanager
def _present(upload_id: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise no_upload(upload_id) from None
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise Overloaded("uploads: the server's disk is full", retry_after_s=_RETRY_FULL_S) from None
