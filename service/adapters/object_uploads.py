"""Unfinished uploads in an object store.

    uploads/<id>/upload.json        length and digest as announced; never changes
    uploads/<id>/parts/<offset>     what has come, each part written if absent: where the last one ends it goes on
    holds/uploads/<id>/             while the whole is used; holds/uploads/all/ while one is made

Of two requests that write the same upload one finds its part written already, wherever the other is.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, final

from service.adapters.files import Scratch
from service.adapters.formats import check_format
from service.adapters.holds import Holds
from service.adapters.objects import PART_BYTES, Entry, Objects, fresh
from service.core.errors import NotFound, NotReady, Overloaded
from service.core.uploads import Taken, Upload, check_upload_id, no_upload, wrong_offset

_RETRY_FULL_S = 60.0
_RETRY_TAKEN_S = 2.0
_TRIES = 5
_PAUSE_S = 0.2


@final
class ObjectUploadStore:
    """The `UploadStore` in a bucket; what is used is copied to the local disk first."""

    piece_bytes = PART_BYTES

    def __init__(self, objects: Objects, holds: Holds, root: Path) -> None:
        self._objects = objects
        self._holds = holds
        self._scratch = Scratch(root / "tmp")

    def close(self) -> None:
        """Remove this process's scratch."""
        self._scratch.close()

    def create(self, upload: Upload, *, max_bytes: int, max_uploads: int) -> None:
        """Store an empty one; raises `Overloaded` when there are too many, or all announce more than `max_bytes`."""
        announced = {"format": 1, "length": upload.length, "sha256": upload.sha256, "created_at": upload.created_at}
        release = self._alone("all", "others are being made; try again")
        try:
            known = self._known()
            total = sum(other.length for other in known) + upload.length
            if len(known) >= max_uploads or total > max_bytes:
                raise Overloaded(
                    f"uploads: expected at most {max_uploads} unfinished ones of {max_bytes} bytes together, got "
                    f"{len(known) + 1} of {total}; finish or delete one",
                    retry_after_s=_RETRY_FULL_S,
                )
            self._objects.create(_key(upload.id), json.dumps(announced | {"change": fresh()}).encode())
        finally:
            release()

    def get(self, upload_id: str) -> Upload:
        """One with its offset as the bucket has it; raises `NotFound`."""
        try:
            found = self._objects.read(_key(upload_id))
        except FileNotFoundError:
            raise no_upload(upload_id) from None
        assert found is not None
        said: dict[str, Any] = json.loads(found.content)
        check_format(said, f"upload {upload_id}")
        parts = self._parts(upload_id)
        written_at = max([said["created_at"], *(part.modified_at for part in parts)])
        end = sum(part.size for part in parts)
        return Upload(upload_id, said["length"], said["created_at"], said["sha256"], end, written_at)

    def append(self, upload_id: str, offset: int, pieces: Sequence[bytes], *, durable: bool) -> int:
        """Write `pieces` at `offset` if that is where it ends, in one step; returns where it ends then."""
        data = b"".join(pieces)
        if (end := self.get(upload_id).offset) != offset:
            raise wrong_offset(upload_id, end, offset)
        if data and not self._objects.create(_part_key(upload_id, offset), data):
            raise wrong_offset(upload_id, self.get(upload_id).offset, offset)
        return offset + len(data)

    def take(self, upload_id: str) -> Taken:
        """Have a copy of it for oneself until it is released; raises `NotFound`, `NotReady` while another has it."""
        self.get(upload_id)
        release = self._alone(upload_id, "another request uses it; ask again for what came of it")
        folder = self._scratch.folder()

        def let_go() -> None:
            shutil.rmtree(folder, ignore_errors=True)
            release()

        try:
            self.get(upload_id)  # it may have gone before it was held
            with (folder / "content").open("xb") as file:
                for part in self._parts(upload_id):
                    file.writelines(self._objects.pieces(part.key, part.size))
        except FileNotFoundError:
            let_go()
            raise no_upload(upload_id) from None
        except BaseException:
            let_go()
            raise
        return Taken(folder / "content", let_go)

    def delete(self, upload_id: str) -> None:
        """Remove it; raises `NotFound`, `NotReady` while another has it."""
        self.get(upload_id)
        release = self._alone(upload_id, "another request uses it; ask again for what came of it")
        try:
            self._remove(upload_id)
        finally:
            release()

    def remove_unwritten(self, since: float) -> None:
        """Remove those without a byte since that time which nobody has taken."""
        for upload_id in self._objects.folders("uploads"):
            with contextlib.suppress(NotFound, NotReady):
                if self._unwritten(upload_id, since):
                    release = self._alone(upload_id, "it is used")
                    try:
                        if self._unwritten(upload_id, since):
                            self._remove(upload_id)
                    finally:
                        release()

    def _unwritten(self, upload_id: str, since: float) -> bool:
        try:
            return self.get(upload_id).written_at < since
        except NotFound:  # of a deleted one, to which a byte came in that moment
            entries = self._objects.entries(f"uploads/{check_upload_id(upload_id)}")
            return all(entry.modified_at < since for entry in entries)

    def _remove(self, upload_id: str) -> None:
        """The announcement first: without it there is no upload."""
        self._objects.delete([_key(upload_id)])
        self._objects.delete([entry.key for entry in self._objects.entries(f"uploads/{upload_id}")])

    def _known(self) -> list[Upload]:
        found = []
        for upload_id in self._objects.folders("uploads"):
            with contextlib.suppress(NotFound):  # deleted since it was listed, or none of ours
                found.append(self.get(upload_id))
        return found

    def _parts(self, upload_id: str) -> list[Entry]:
        """Those that follow each other from the beginning."""
        found, end = [], 0
        for entry in self._objects.entries(f"uploads/{upload_id}/parts"):
            if entry.key != _part_key(upload_id, end):
                break
            found.append(entry)
            end += entry.size
        return found

    def _alone(self, what: str, why_not: str) -> Callable[[], None]:
        for _ in range(_TRIES):
            if (release := self._holds.take(f"uploads/{what}", alone=True)) is not None:
                return release
            time.sleep(_PAUSE_S * random.random())  # two that see each other both go
        raise NotReady(f"upload {what}: {why_not}", retry_after_s=_RETRY_TAKEN_S)


def _key(upload_id: str) -> str:
    return f"uploads/{check_upload_id(upload_id)}/upload.json"


def _part_key(upload_id: str, offset: int) -> str:
    return f"uploads/{check_upload_id(upload_id)}/parts/{offset:020}"
