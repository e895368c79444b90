"""NumPy's npz (a zip of `.npy` files) read as hostile input: bounded, streamed, without pickle."""

from __future__ import annotations

import math
import struct
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np

from engine.columns.layout import ColumnSpec, ColumnWriter, check_columns, listed
from engine.columns.limits import Limits
from engine.columns.npy import MAX_HEADER_BYTES, ArrayOptions, read_header
from engine.errors import DataError, TooLargeError

CHUNK_BYTES = 4 * 2**20
_DIRECTORY_BYTES_PER_MEMBER = 1024
_END = b"PK\x05\x06"
_FULL = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class _Member:
    """One `.npy` inside the zip, as its header describes it."""

    info: zipfile.ZipInfo
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    fortran: bool

    @property
    def size(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)


def convert_npz(
    source: Path, folder: Path, options: ArrayOptions, limits: Limits
) -> tuple[list[ColumnSpec], int, dict[str, list[str]]]:
    """Write the members asked for; raises `DataError` or `TooLargeError` before any value is read."""
    _check_directory(source, limits)
    try:
        with zipfile.ZipFile(source) as archive:
            infos = {info.filename.removesuffix(".npy"): info for info in _infos(archive, limits)}
            members = [_member(archive, info) for info in options.chosen(infos)]
            specs = check_columns(((m.name, m.dtype, m.shape) for m in members), limits)
            rows = members[0].shape[0]
            for member, spec in zip(members, specs, strict=True):
                _copy(archive, member, spec, rows, folder)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, zipfile.zlib.error) as error:  # type: ignore[attr-defined]
        raise DataError(f"data set: expected a npz file, got a damaged zip: {error}") from None
    return specs, rows, {}


def _check_directory(source: Path, limits: Limits) -> None:
    """Bound the zip's directory, which `ZipFile` reads whole, before it does."""
    size = source.stat().st_size
    with source.open("rb") as file:
        file.seek(max(0, size - 66_000))
        tail = file.read()
        at = tail.rfind(_END)
        if at < 0 or len(tail) < at + 22:
            raise DataError("data set: expected a npz file (a zip), got something else")
        directory, start = struct.unpack("<II", tail[at + 12 : at + 20])
        if _FULL in (directory, start):
            directory = _zip64_directory(file, tail[max(0, at - 20) : at], size)
    if directory > limits.max_columns * _DIRECTORY_BYTES_PER_MEMBER:
        raise TooLargeError(f"data set: expected at most {limits.max_columns} columns, got a directory of {directory}")


def _zip64_directory(file: BinaryIO, locator: bytes, size: int) -> int:
    if len(locator) != 20 or not locator.startswith(b"PK\x06\x07"):
        raise DataError("data set: expected a npz file, got a damaged zip64 directory")
    (offset,) = struct.unpack("<Q", locator[8:16])
    file.seek(min(offset, size))
    record = file.read(56)
    if len(record) != 56:
        raise DataError("data set: expected a npz file, got a damaged zip64 directory")
    (directory,) = struct.unpack("<Q", record[40:48])
    return int(directory)


def _infos(archive: zipfile.ZipFile, limits: Limits) -> list[zipfile.ZipInfo]:
    infos = archive.infolist()
    doubled = sorted(name for name, count in Counter(info.filename for info in infos).items() if count > 1)
    if doubled:
        raise DataError(f"columns: expected different names, got {listed(doubled)} more than once")
    if len(infos) > limits.max_columns:
        raise TooLargeError(f"data set: expected at most {limits.max_columns} columns, got {len(infos)}")
    if sum(info.file_size for info in infos) > limits.max_bytes + len(infos) * (MAX_HEADER_BYTES + 16):
        raise TooLargeError(f"data set: expected at most {limits.max_bytes} bytes of values, got more")
    return infos


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    name = info.filename.removesuffix(".npy")
    plain = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    if name == info.filename or info.flag_bits & 0x1 or not plain:
        raise DataError(
            f"data set: expected members <name>.npy, stored or deflated, not encrypted; got {info.filename[:128]!r}"
        )
    with archive.open(info) as file:
        shape, fortran, dtype = read_header(file, name)
    return _Member(info, name, dtype, shape, fortran)


def _copy(archive: zipfile.ZipFile, member: _Member, spec: ColumnSpec, rows: int, folder: Path) -> None:
    with archive.open(member.info) as source, ColumnWriter(folder, [spec], rows) as writer:
        read_header(source, member.name)
        pieces = values_of(source, member.dtype, member.size, member.name)
        if member.fortran and len(member.shape) > 1 and member.size:
            pieces = _transposed(pieces, member, folder)
        for piece in pieces:
            writer.write(spec.name, piece)
        if source.read(1):
            raise DataError(f"column {member.name!r}: expected {member.size} bytes, got more")


def values_of(source: IO[bytes], dtype: np.dtype, size: int, name: str) -> Iterator[np.ndarray]:
    """The next `size` bytes as values, piece by piece; raises `DataError` when `source` ends before."""
    left = size
    while left:
        piece = source.read(min(left, CHUNK_BYTES - CHUNK_BYTES % dtype.itemsize))
        piece += b"" if len(piece) % dtype.itemsize == 0 else source.read(-len(piece) % dtype.itemsize)
        if not piece or len(piece) % dtype.itemsize:
            raise DataError(f"column {name!r}: expected {size} bytes, got {size - left}")
        values = np.frombuffer(piece, dtype)
        # A boolean is 0 or 1 whatever its byte was.
        yield np.not_equal(values.view(np.uint8), 0) if dtype == np.bool_ else values
        left -= len(piece)


def _transposed(pieces: Iterable[np.ndarray], member: _Member, folder: Path) -> Iterator[np.ndarray]:
    """The values of a column-major array in row-major order, some rows at a time, over a file on the same disk."""
    with tempfile.TemporaryFile(dir=folder) as file:
        for piece in pieces:
            file.write(piece.data)
        file.flush()
        values = np.memmap(file, member.dtype, "r", shape=member.shape, order="F")
        step = max(1, CHUNK_BYTES * member.shape[0] // member.size)
        for start in range(0, member.shape[0], step):
            yield values[start : start + step]
