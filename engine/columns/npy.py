"""NumPy's `.npy` files as hostile input: bounded headers, no pickle.

`numpy.load` would do most of this, but it cannot be told a limit before it reads.
"""

from __future__ import annotations

import io
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, TypeVar

import numpy as np

from engine.errors import DataError

T = TypeVar("T")
MAX_HEADER_BYTES = 10_000
MAX_RANK = 32


@dataclass(frozen=True, slots=True)
class ArrayOptions:
    """Which arrays of a file become columns: those named, in this order; all by default."""

    columns: tuple[str, ...] = ()

    def chosen(self, known: Mapping[str, T]) -> list[T]:
        """The arrays asked for; raises `DataError` for one that is not there, or named twice."""
        unknown = [name for name in self.columns if name not in known]
        if unknown or len(set(self.columns)) != len(self.columns):
            shown = ", ".join(repr(name[:128]) for name in list(known)[:20])
            raise DataError(f"columns: expected different ones of {shown}, got {(unknown or self.columns)!s:.200}")
        return [known[name] for name in self.columns] if self.columns else list(known.values())


def read_header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """`(shape, whether in Fortran order, dtype)` of column `name`; the values follow in `file`.

    Neither the header's length field nor its text takes more than a few kilobytes. Raises: `DataError`.
    """
    start = file.read(8)
    version = tuple(start[6:8])
    where = f"column {name[:128]!r}"
    if start[:6] != b"\x93NUMPY" or version not in ((1, 0), (2, 0)):
        raise DataError(f"{where}: expected a .npy file of format 1 or 2, got another")
    width = 2 if version == (1, 0) else 4
    length = file.read(width)
    size = int.from_bytes(length, "little")
    if size > MAX_HEADER_BYTES:
        raise DataError(f"{where}: expected a header of at most {MAX_HEADER_BYTES} bytes, got {size}")
    parse = np.lib.format.read_array_header_1_0 if width == 2 else np.lib.format.read_array_header_2_0
    try:
        shape, fortran, dtype = parse(io.BytesIO(length + file.read(size)), max_header_size=MAX_HEADER_BYTES)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, tokenize.TokenError) as error:
        raise DataError(f"{where}: expected a .npy header, got {str(error)[:200]}") from None
    if len(shape) > MAX_RANK:
        raise DataError(f"{where}: expected at most {MAX_RANK} dimensions, got {len(shape)}")
    return shape, fortran, dtype


def write_header(file: IO[bytes], dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Begin a canonical `.npy` file: C order, little-endian; the values follow."""
    descr = np.lib.format.dtype_to_descr(dtype.newbyteorder("<"))
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
