"""Large files: announced once, sent in pieces, and gone on with where a connection broke."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import httpx

from service.client.errors import ClientError
from service.client.retries import Patience

PIECE_BYTES = 64 * 2**20
PATIENCE_S = 120.0
"""How long to try without a further byte arriving."""
USE_PATIENCE_S = 900.0
"""How long to ask what came of a whole upload: longer than the server may take to read it."""

Progress = Callable[[int, int], None]
"""Called with the bytes sent so far and their total."""

_READ_BYTES = 2**20
_ELSEWHERE = frozenset({409})


class Call(Protocol):
    """A request; raises `ClientError`."""

    def __call__(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """The reply to it."""


def announce(call: Call, path: Path) -> str:
    """Make an upload for a file; returns its id."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    body = {"length": path.stat().st_size, "sha256": digest}
    patience = Patience(PATIENCE_S)
    while True:
        try:
            return str(call("POST", "/v1/uploads", json=body).json()["id"])
        except ClientError as error:  # an upload whose id got lost runs out of time
            patience.after(error)


def send(call: Call, upload_id: str, path: Path, *, piece_bytes: int, progress: Progress | None = None) -> None:
    """Send what is missing of an upload; raises `ClientError` after `PATIENCE_S` without progress."""
    patience, here, best = Patience(PATIENCE_S), f"/v1/uploads/{upload_id}", -1
    offset: int | None = None
    with path.open("rb") as file:
        length = path.stat().st_size
        while True:
            try:
                if offset is None:
                    offset = _offset(call, here, length)
                if offset > best:
                    best = offset
                    patience.went_well()
                if offset == length:
                    return
                offset = _send_piece(call, here, file, offset, min(length, offset + piece_bytes), length, progress)
            except ClientError as error:
                offset = None
                patience.after(error, _ELSEWHERE)


def use_whole(call: Call, path: str, query: dict[str, Any]) -> httpx.Response:
    """Ask for what becomes of a whole upload, again until the answer is there; raises `ClientError`."""
    patience = Patience(USE_PATIENCE_S)
    while True:
        try:
            return call("POST", path, params=query)
        except ClientError as error:
            patience.after(error)


def _offset(call: Call, here: str, length: int) -> int:
    found = call("GET", here).json()
    if found["length"] != length:
        raise ClientError(400, f"upload: expected the file of {found['length']} bytes that it began with, got {length}")
    return int(found["offset"])


def _send_piece(
    call: Call, here: str, file: BinaryIO, start: int, end: int, length: int, progress: Progress | None
) -> int:
    """Send the bytes from `start` to `end`; returns where the upload ends."""

    def content() -> Iterator[bytes]:
        file.seek(start)
        sent = start
        while sent < end:
            if not (chunk := file.read(min(_READ_BYTES, end - sent))):
                raise ClientError(400, f"upload: expected a file of {length} bytes, got its end after {sent}")
            yield chunk
            sent += len(chunk)
            if progress is not None:
                progress(sent, length)

    headers = {
        "Upload-Offset": str(start),
        "Content-Length": str(end - start),
        "Content-Type": "application/partial-upload",
    }
    return int(call("PATCH", here, content=content(), headers=headers).headers["Upload-Offset"])
