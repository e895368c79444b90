"""Reading single members of a stored bundle: a plain zip whose members are stored, not deflated."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

from service.core.errors import NotFound

_CHUNK = 2**20


def member_size(path: Path, member: str) -> int:
    """Bytes of a member; raises `NotFound`."""
    with zipfile.ZipFile(path) as bundle:
        if member not in bundle.namelist():
            raise NotFound(f"this version's bundle has no {member}")
        return bundle.getinfo(member).file_size


def member_chunks(path: Path, member: str) -> Iterator[bytes]:
    """A member's bytes, piece by piece. Blocks: iterate in a thread."""
    with zipfile.ZipFile(path) as bundle, bundle.open(member) as file:
        while chunk := file.read(_CHUNK):
            yield chunk
