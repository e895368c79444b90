"""NumPy's npz (a zip of `.npy` files) read as hostile input: bounded, streamed, without pickle.

`numpy.load` would do most of this, but it reads headers and members before it can be told a limit.
"""

from __future__ import annotations

import io
import math
import os
import struct
import tokenize
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np

from service.adapters.columns import check_columns, column_path, write_header
from service.core.datasets import CsvOptions
from service.core.errors import InvalidRequest, TooLarge
from service.core.limits import Limits
from service.core.types import Column

_CHUNK = 4 * 2**20
_MAX_HEADER = 10_000
_MAX_RANK = 32
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


def read(source: Path, folder: Path, options: CsvOptions, limits: Limits) -> Sequence[Column]:
    """Write every member as a canonical column; raises `InvalidRequest` or `TooLarge` before any value is read."""
    del options
    _check_directory(source, limits)
    try:
        with zipfile.ZipFile(source) as archive:
            members = [_member(archive, info) for info in _infos(archive, limits)]
            columns = check_columns(((m.name, m.dtype, m.shape) for m in members), limits)
            for member in members:
                _write(archive, member, folder)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, zipfile.zlib.error) as error:  # type: ignore[attr-defined]
        raise InvalidRequest(f"data set: expected a npz file, got a damaged zip: {error}") from None
    return columns


def _check_directory(source: Path, limits: Limits) -> None:
    """Bound the zip's directory, which `ZipFile` reads whole, before it does."""
    size = source.stat().st_size
    with source.open("rb") as file:
        file.seek(max(0, size - 66_000))
        tail = file.read()
        at = tail.rfind(_END)
        if at < 0 or len(tail) < at + 22:
            raise InvalidRequest("data set: expected a npz file (a zip), got something else")
        directory, start = struct.unpack("<II", tail[at + 12 : at + 20])
        if _FULL in (directory, start):
            directory = _zip64_directory(file, tail[max(0, at - 20) : at], size)
    if directory > limits.max_dataset_columns * _DIRECTORY_BYTES_PER_MEMBER:
        raise TooLarge(
            f"data set: expected at most {limits.max_dataset_columns} columns, got a directory of {directory}"
        )


def _zip64_directory(file: BinaryIO, locator: bytes, size: int) -> int:
    if len(locator) != 20 or not locator.startswith(b"PK\x06\x07"):
        raise InvalidRequest("data set: expected a npz file, got a damaged zip64 directory")
    (offset,) = struct.unpack("<Q", locator[8:16])
    file.seek(min(offset, size))
    record = file.read(56)
    if len(record) != 56:
        raise InvalidRequest("data set: expected a npz file, got a damaged zip64 directory")
    (directory,) = struct.unpack("<Q", record[40:48])
    return int(directory)


def _infos(archive: zipfile.ZipFile, limits: Limits) -> list[zipfile.ZipInfo]:
    infos = archive.infolist()
    if len(infos) > limits.max_dataset_columns:
        raise TooLarge(f"data set: expected at most {limits.max_dataset_columns} columns, got {len(infos)}")
    if sum(info.file_size for info in infos) > limits.max_dataset_bytes + len(infos) * (_MAX_HEADER + 16):
        raise TooLarge(f"data set: expected at most {limits.max_dataset_bytes} bytes of values, got more")
    return infos


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    name = info.filename.removesuffix(".npy")
    if (
        name == info.filename
        or info.flag_bits & 0x1
        or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    ):
        raise InvalidRequest(
            f"data set: expected members <name>.npy, stored or deflated, not encrypted; got {info.filename[:128]!r}"
        )
    with archive.open(info) as file:
        shape, fortran, dtype = _header(file, name)
    return _Member(info, name, dtype, shape, fortran)


def _header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the header without letting its length field, or its text, take more than a few kilobytes."""
    start = file.read(8)
    version = tuple(start[6:8])
    if start[:6] != b"\x93NUMPY" or version not in ((1, 0), (2, 0)):
        raise InvalidRequest(f"column {name[:128]!r}: expected a .npy file of format 1 or 2, got another")
    width = 2 if version == (1, 0) else 4
    length = file.read(width)
    size = int.from_bytes(length, "little")
    if size > _MAX_HEADER:
        raise InvalidRequest(f"column {name[:128]!r}: expected a header of at most {_MAX_HEADER} bytes, got {size}")
    parse = np.lib.format.read_array_header_1_0 if width == 2 else np.lib.format.read_array_header_2_0
    try:
        shape, fortran, dtype = parse(io.BytesIO(length + file.read(size)), max_header_size=_MAX_HEADER)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, tokenize.TokenError) as error:
        raise InvalidRequest(f"column {name[:128]!r}: expected a .npy header, got {str(error)[:200]}") from None
    if len(shape) > _MAX_RANK:
        raise InvalidRequest(f"column {name[:128]!r}: expected at most {_MAX_RANK} dimensions, got {len(shape)}")
    return shape, fortran, dtype


def _write(archive: zipfile.ZipFile, member: _Member, folder: Path) -> None:
    path = column_path(folder, member.name)
    transposed = member.fortran and len(member.shape) > 1
    target = path.with_suffix(".raw") if transposed else path
    with archive.open(member.info) as source, target.open("wb") as file:
        _header(source, member.name)
        if not transposed:
            write_header(file, member.dtype, member.shape)
        left = member.size
        while left:
            piece = source.read(min(left, _CHUNK - _CHUNK % member.dtype.itemsize))
            piece += (
                b"" if len(piece) % member.dtype.itemsize == 0 else source.read(-len(piece) % member.dtype.itemsize)
            )
            if not piece or len(piece) % member.dtype.itemsize:
                raise InvalidRequest(f"column {member.name!r}: expected {member.size} bytes, got {member.size - left}")
            file.write(_canonical(np.frombuffer(piece, member.dtype)).tobytes())
            left -= len(piece)
        if source.read(1):
            raise InvalidRequest(f"column {member.name!r}: expected {member.size} bytes, got more")
    if transposed:
        _transpose(target, path, member)


def _canonical(values: np.ndarray) -> np.ndarray:
    """Little-endian; a boolean is 0 or 1 whatever its byte was."""
    if values.dtype == np.bool_:
        return np.not_equal(values.view(np.uint8), 0)
    return values.astype(values.dtype.newbyteorder("<"), copy=False)


def _transpose(raw: Path, path: Path, member: _Member) -> None:
    """Rewrite a column-major file in row-major order, some rows at a time."""
    dtype = member.dtype.newbyteorder("<")
    rows = max(1, _CHUNK * member.shape[0] // max(1, member.size))
    with path.open("wb") as file:
        write_header(file, dtype, member.shape)
        if member.size:
            values = np.memmap(raw, dtype, "r", shape=member.shape, order="F")
            for start in range(0, member.shape[0], rows):
                file.write(values[start : start + rows].tobytes(order="C"))
    os.unlink(raw)
