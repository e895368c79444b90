"""Canonical columns on disk: rules common to every form of upload, and writing `.npy` piece by piece."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from service.core.datatypes import name_of
from service.core.errors import InvalidRequest, TooLarge
from service.core.limits import Limits
from service.core.names import check_name
from service.core.types import Column

_KINDS = "biuf"
_SHOWN = 20


def check_columns(columns: Iterable[tuple[str, np.dtype, tuple[int, ...]]], limits: Limits) -> list[Column]:
    """Columns (name, dtype, full shape) that may be stored together.

    Raises `InvalidRequest` on names, dtypes and unequal lengths, `TooLarge` beyond the limits.
    """
    found, rows, size = [], -1, 0
    for name, dtype, shape in columns:
        check_name(name, "column")
        if dtype.hasobject or dtype.kind not in _KINDS or dtype.itemsize > 8:
            raise InvalidRequest(
                f"column {name!r}: expected booleans, integers or floats of at most 64 bits, got {_shown(dtype)}"
            )
        if not shape:
            raise InvalidRequest(f"column {name!r}: expected one row or more, got a scalar")
        if min(shape) < 0 or (rows >= 0 and shape[0] != rows):
            raise InvalidRequest(f"column {name!r}: expected {max(rows, 0)} rows as in the others, got shape {shape}")
        rows = shape[0]
        size += dtype.itemsize * math.prod(shape)
        found.append(Column(name, name_of(dtype.newbyteorder("<")), shape[1:]))
    if len({column.name.casefold() for column in found}) != len(found):
        raise InvalidRequest("columns: expected different names (also on file systems that ignore case), got the same")
    check_totals(len(found), rows, size, limits)
    return found


def check_totals(columns: int, rows: int, size: int, limits: Limits) -> None:
    """Raise `InvalidRequest` for an empty data set, `TooLarge` for one beyond the limits."""
    if columns == 0 or rows < 1:
        raise InvalidRequest(
            f"data set: expected a column and a row or more, got {columns} columns, {max(rows, 0)} rows"
        )
    for what, got, most in (
        ("columns", columns, limits.max_dataset_columns),
        ("rows", rows, limits.max_dataset_rows),
        ("bytes of values", size, limits.max_dataset_bytes),
    ):
        if got > most:
            raise TooLarge(f"data set: expected at most {most} {what}, got {got}")


def write_header(file: BinaryIO, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Begin a canonical `.npy` file: C order, little-endian; the values follow."""
    descr = np.lib.format.dtype_to_descr(dtype.newbyteorder("<"))
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})


def column_path(folder: Path, name: str) -> Path:
    """Where a column goes; its name is checked again, since it becomes a path."""
    return folder / f"{check_name(name, 'column')}.npy"


def listed(names: Iterable[str]) -> str:
    """Clients' names for a message, bounded."""
    shown = [repr(name[:128]) for name in names]
    return ", ".join(shown[:_SHOWN]) + (", ..." if len(shown) > _SHOWN else "")


def _shown(dtype: np.dtype) -> str:
    if dtype.hasobject:
        return "Python objects, which only pickle could read"
    return f"NumPy's {dtype}"
