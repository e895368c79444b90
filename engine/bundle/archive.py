"""The container of a bundle: a plain zip of stored members, or the same files in a folder.

A zip from a stranger is read member by member under limits; names are compared with a fixed list and never used as
paths on disk.
"""

from __future__ import annotations

import itertools
import os
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from engine.bundle.limits import Limits
from engine.errors import BundleError, Problem

MANIFEST = "manifest.json"
GRAPH = "graph.json"
PARAMS = "params.safetensors"
STATE = "state.safetensors"
CONSTANTS = "constants.safetensors"
PREPROCESS = "preprocess.json"
POSTPROCESS = "postprocess.json"
SERVING = "serving.json"
ARTIFACTS = "artifacts"
_ARTIFACT = re.compile(rf"{ARTIFACTS}/[0-9a-f]{{64}}\.jaxexport")
_FIXED = (MANIFEST, GRAPH, PARAMS, STATE, CONSTANTS, PREPROCESS, POSTPROCESS, SERVING)
_END, _END_MAGIC = struct.Struct("<4s4H2IH"), b"PK\5\6"
_WIDE_END, _WIDE_MAGIC = struct.Struct("<4sQ2H2I4Q"), b"PK\6\6"
_LOCATOR_BYTES, _LOCATOR_MAGIC = 20, b"PK\6\7"
_END_BYTES = _END.size + _LOCATOR_BYTES + _WIDE_END.size
_ENTRY_BYTES = 512
_EPOCH = (1980, 1, 1, 0, 0, 0)


def is_member(name: str) -> bool:
    """Whether a bundle of format 1 may hold a file of this name."""
    return name in _FIXED or _ARTIFACT.fullmatch(name) is not None


def write(path: Path, members: Mapping[str, bytes]) -> None:
    """Write a zip at `path`, whole or not at all; the same members give the same bytes."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for name, data in members.items():
                archive.writestr(zipfile.ZipInfo(name, _EPOCH), data)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path, limits: Limits) -> dict[str, bytes]:
    """The members of a bundle file or folder; raises `BundleError`."""
    return _read_folder(path, limits) if path.is_dir() else _read_zip(path, limits)


def has_programs(path: Path, limits: Limits) -> bool:
    """Whether a bundle has members that are programs; looks at names alone. Raises `BundleError`."""
    if path.is_dir():
        return next((path / ARTIFACTS).glob("*.jaxexport"), None) is not None
    with _opened(path, limits) as archive:
        return any(name.startswith(f"{ARTIFACTS}/") for name in archive.namelist())


def _wrong(where: str, expected: str, got: object) -> BundleError:
    return BundleError([Problem(where, expected, str(got)[:200])])


def _bound(name: str, size: int, limits: Limits) -> None:
    if name.startswith(f"{ARTIFACTS}/"):
        most = limits.program_bytes
    else:
        most = limits.graph_bytes if name.endswith(".json") else limits.parameter_bytes + 2**20
    if size > most:
        raise _wrong(name, f"at most {most} bytes", size)


def _read_folder(path: Path, limits: Limits) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    programs = itertools.islice((path / ARTIFACTS).glob("*.jaxexport"), limits.members + 1)
    names = [name for name in sorted(f"{ARTIFACTS}/{file.name}" for file in programs) if is_member(name)]
    if len(names) > limits.members:
        raise _wrong("bundle", f"at most {limits.members} members", "more")
    for name in (*_FIXED, *names):
        file = path / name
        if file.is_file() and not file.is_symlink():
            _bound(name, file.stat().st_size, limits)
            members[name] = file.read_bytes()
    return members


def _read_zip(path: Path, limits: Limits) -> dict[str, bytes]:
    with _opened(path, limits) as archive:
        infos = archive.infolist()
        _check_directory(infos, path.stat().st_size, limits)
        members = {}
        for info in infos:
            with archive.open(info) as file:
                members[info.filename] = file.read(info.file_size + 1)
            if len(members[info.filename]) != info.file_size:
                raise _wrong(info.filename, f"{info.file_size} bytes", len(members[info.filename]))
        return members


@contextmanager
def _opened(path: Path, limits: Limits) -> Iterator[zipfile.ZipFile]:
    """A zip whose size and directory are within the limits; what the library cannot read becomes `BundleError`."""
    try:
        if (size := path.stat().st_size) > limits.bundle_bytes:
            raise _wrong("bundle", f"at most {limits.bundle_bytes} bytes", size)
        _check_directory_size(path, size, limits)
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (BundleError, FileNotFoundError):
        raise
    except (
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        OSError,
        ValueError,
        NotImplementedError,
        RuntimeError,
        EOFError,
    ) as error:
        raise _wrong("bundle", "a readable zip file", error) from None


def _check_directory_size(path: Path, size: int, limits: Limits) -> None:
    """Bound the zip's directory, which is read whole before anything in it can be looked at."""
    with path.open("rb") as file:
        file.seek(max(size - _END_BYTES, 0))
        tail = file.read(_END_BYTES)
    at = len(tail) - _END.size
    if at < 0 or tail[at : at + 4] != _END_MAGIC or not tail.endswith(b"\0\0"):
        raise _wrong("bundle", "a readable zip file", "one that does not end as a zip without comment does")
    *_, length, _, _ = _END.unpack_from(tail, at)
    wide = at - _LOCATOR_BYTES - _WIDE_END.size
    if tail[at - _LOCATOR_BYTES : at].startswith(_LOCATOR_MAGIC):
        if wide < 0 or tail[wide : wide + 4] != _WIDE_MAGIC:
            raise _wrong("bundle", "a readable zip file", "one whose zip64 record is elsewhere")
        *_, length, _ = _WIDE_END.unpack_from(tail, wide)
    if length > (most := limits.members * _ENTRY_BYTES):
        raise _wrong("bundle", f"a directory of at most {limits.members} members, {most} bytes", f"{length} bytes")


def _check_directory(infos: list[zipfile.ZipInfo], size: int, limits: Limits) -> None:
    if len(infos) > limits.members:
        raise _wrong("bundle", f"at most {limits.members} members", len(infos))
    seen: set[str] = set()
    end = 0
    for info in sorted(infos, key=lambda i: i.header_offset):
        name = info.filename
        if not is_member(name):
            raise _wrong("bundle", f"members out of {', '.join(_FIXED)}, artifacts/<sha256>.jaxexport", repr(name))
        if name in seen:
            raise _wrong("bundle", "distinct members", f"{name} twice")
        seen.add(name)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise _wrong(name, "a stored member", "a compressed one")
        if info.flag_bits & 0x1:
            raise _wrong(name, "a plain member", "an encrypted one")
        _bound(name, info.file_size, limits)
        start, end_of_data = info.header_offset, info.header_offset + 30 + len(name) + info.file_size
        if start < end or end_of_data > size:
            raise _wrong(name, "members that do not overlap", f"bytes {start} to {end_of_data} of {size}")
        end = end_of_data
