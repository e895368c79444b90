"""The canonical layout of a data set: equally long columns, each a `.npy` file (C order, little-endian) to be mapped.

Beside the columns lies `columns.json`, which describes them; it is written last.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from engine.columns.limits import DEFAULT_LIMITS, Limits
from engine.columns.npy import read_header, write_header
from engine.errors import DataError, DtypeError, TooLargeError
from engine.precision import dtype_of, name_of

FORMAT = "axon.columns"
VERSION = 1
DESCRIPTION = "columns.json"
MAX_DESCRIPTION_BYTES = 64 * 2**20
_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
_KINDS = "biuf"
_SHOWN = 20
_CHUNK = 4 * 2**20


@dataclass(frozen=True, slots=True)
class ColumnSpec:
    """One column: its name, dtype, and the shape of one row."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Size of one row."""
        return self.dtype.itemsize * math.prod(self.shape)


def check_column_name(name: str) -> str:
    """Return `name` when it may name a column, and so a file; raises `DataError`."""
    if not _NAME.fullmatch(name) or name in (".", ".."):
        raise DataError(f"column name: expected 1 to 128 of A-Z a-z 0-9 . _ - (not '.' or '..'), got {name[:80]!r}")
    return name


def check_columns(columns: Iterable[tuple[str, np.dtype, tuple[int, ...]]], limits: Limits) -> list[ColumnSpec]:
    """The specs of columns (name, dtype, full shape) that may be stored together.

    Raises `DataError` on names, dtypes and unequal lengths, `TooLargeError` beyond the limits.
    """
    found, rows, size = [], -1, 0
    for name, dtype, shape in columns:
        check_column_name(name)
        if dtype.hasobject or dtype.kind not in _KINDS or dtype.itemsize > 8:
            got = "Python objects, which only pickle could read" if dtype.hasobject else f"NumPy's {dtype}"
            raise DataError(f"column {name!r}: expected booleans, integers or floats of at most 64 bits, got {got}")
        if not shape:
            raise DataError(f"column {name!r}: expected one row or more, got a scalar")
        if min(shape) < 0 or (rows >= 0 and shape[0] != rows):
            raise DataError(f"column {name!r}: expected {max(rows, 0)} rows as in the others, got shape {shape}")
        rows = shape[0]
        size += dtype.itemsize * math.prod(shape)
        found.append(ColumnSpec(name, dtype.newbyteorder("<"), shape[1:]))
    if len({column.name.casefold() for column in found}) != len(found):
        raise DataError("columns: expected different names (also on file systems that ignore case), got the same")
    check_totals(len(found), rows, size, limits)
    return found


def check_totals(columns: int, rows: int, size: int, limits: Limits) -> None:
    """Raise `DataError` for an empty data set, `TooLargeError` for one beyond the limits."""
    if columns == 0 or rows < 1:
        raise DataError(f"data set: expected a column and a row or more, got {columns} columns, {max(rows, 0)} rows")
    for what, got, most in (
        ("columns", columns, limits.max_columns),
        ("rows", rows, limits.max_rows),
        ("bytes of values", size, limits.max_bytes),
    ):
        if got > most:
            raise TooLargeError(f"data set: expected at most {most} {what}, got {got}")


def listed(names: Iterable[str]) -> str:
    """Names for a message, bounded."""
    shown = [repr(name[:128]) for name in names]
    return ", ".join(shown[:_SHOWN]) + (", ..." if len(shown) > _SHOWN else "")


class ColumnWriter:
    """Writes the columns of a data set in order, piece by piece, each to its own file.

    Use it as a context. Raises `DataError` on leaving when a column did not get all its values.
    """

    def __init__(self, folder: Path, specs: Sequence[ColumnSpec], rows: int) -> None:
        self._folder = folder
        self._specs = {spec.name: spec for spec in specs}
        self._rows = rows
        self._files: dict[str, BinaryIO] = {}
        self._left = {spec.name: spec.row_bytes * rows for spec in specs}

    def __enter__(self) -> ColumnWriter:
        try:
            for spec in self._specs.values():
                file = (self._folder / f"{check_column_name(spec.name)}.npy").open("xb")
                self._files[spec.name] = file
                write_header(file, spec.dtype, (self._rows, *spec.shape))
        except BaseException:
            self._close()
            raise
        return self

    def write(self, name: str, values: np.ndarray) -> None:
        """Append values, whole rows or parts of them, in C order; they are cast to the column's dtype.

        Raises: `DataError` for more values than the column has rows for.
        """
        piece = np.ascontiguousarray(values, self._specs[name].dtype)
        self._left[name] -= piece.nbytes
        if self._left[name] < 0:
            raise DataError(f"column {name!r}: expected {self._rows} rows, got more")
        self._files[name].write(piece.data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()
        for name, left in self._left.items():
            if left and kind is None:
                raise DataError(f"column {name!r}: expected {self._rows} rows, got {left} bytes too little")

    def _close(self) -> None:
        for file in self._files.values():
            file.close()


@dataclass(frozen=True, eq=False)
class Columns(Mapping[str, np.ndarray]):
    """A data set in the canonical layout: a mapping from column names to read-only arrays, mapped from the files.

    Attributes:
        folder: where the files are.
        rows: of every column.
        specs: dtype and row shape of every column.
        sha256: of the values of every column, as `verify` compares them.
        labels: for columns whose numbers stand for texts, these texts in order.
        source: what the columns were made from.
    """

    folder: Path
    rows: int
    specs: Mapping[str, ColumnSpec]
    sha256: Mapping[str, str]
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    _arrays: dict[str, np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            if name not in self.specs:
                raise KeyError(f"expected a column out of {listed(self.specs)}, got {name!r}")
            self._arrays[name] = map_column(self.folder, self.specs[name], self.rows)
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def verify(self) -> None:
        """Read every value; raises `DataError` when a column is not what was written."""
        for name in self:
            if _digest(self[name]) != self.sha256[name]:
                raise DataError(f"column {name!r}: expected values of sha256 {self.sha256[name]}, got others")


def map_column(folder: Path, spec: ColumnSpec, rows: int) -> np.ndarray:
    """The column as a read-only array over its file; raises `DataError` when the file is another or damaged."""
    path = folder / f"{check_column_name(spec.name)}.npy"
    wanted = (rows, *spec.shape)
    with _opened(path) as file:
        shape, fortran, dtype = read_header(file, spec.name)
        if (shape, dtype) != (wanted, spec.dtype) or (fortran and len(shape) > 1):
            raise DataError(
                f"column {spec.name!r}: expected {spec.dtype} of shape {wanted}, got {dtype} of shape {shape}"
            )
        start, size = file.tell(), rows * spec.row_bytes
        # A shorter file would be a fault of the whole process when its missing part is read.
        if os.fstat(file.fileno()).st_size != start + size:
            raise DataError(f"column {spec.name!r}: expected a file of {start + size} bytes, got another size")
        if size == 0:
            return np.zeros(wanted, spec.dtype)
        return np.memmap(file, spec.dtype, "r", offset=start, shape=wanted)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"column file {path.name!r}: expected one to read, got {error.strerror}") from None
    with file:
        yield file


def _digest(values: np.ndarray) -> str:
    digest = hashlib.sha256()
    flat = values.reshape(-1).view(np.uint8)
    for start in range(0, flat.size, _CHUNK):
        digest.update(flat[start : start + _CHUNK].data)
    return digest.hexdigest()


def describe(
    folder: Path,
    specs: Sequence[ColumnSpec],
    rows: int,
    *,
    labels: Mapping[str, Sequence[str]] | None = None,
    source: Mapping[str, Any] | None = None,
) -> Columns:
    """Write `columns.json` for columns that lie in `folder`, and open them."""
    columns = [
        {
            "name": spec.name,
            "dtype": name_of(spec.dtype),
            "shape": list(spec.shape),
            "sha256": _digest(map_column(folder, spec, rows)),
            **({"labels": list(labels[spec.name])} if labels and spec.name in labels else {}),
        }
        for spec in specs
    ]
    content = {"format": FORMAT, "version": VERSION, "rows": rows, "columns": columns, "source": dict(source or {})}
    (folder / DESCRIPTION).write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")
    return open_columns(folder)


def open_columns(folder: Path | str, *, limits: Limits = DEFAULT_LIMITS) -> Columns:
    """Map the columns of a folder in the canonical layout.

    Raises: `DataError` when the description or a file is missing or malformed, `TooLargeError` beyond the limits.
    """
    folder = Path(folder)
    with _opened(folder / DESCRIPTION) as file:
        text = file.read(MAX_DESCRIPTION_BYTES + 1)
    where = f"{DESCRIPTION}: "
    if len(text) > MAX_DESCRIPTION_BYTES:
        raise TooLargeError(f"{where}expected at most {MAX_DESCRIPTION_BYTES} bytes, got more")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}expected JSON, got {str(error)[:100]}") from None
    if not isinstance(content, dict) or (content.get("format"), content.get("version")) != (FORMAT, VERSION):
        raise DataError(f"{where}expected format {FORMAT!r}, version {VERSION}, got {str(content)[:100]}")
    rows, entries, source = content.get("rows"), content.get("columns"), content.get("source")
    if type(rows) is not int or not isinstance(entries, list) or not isinstance(source, dict):
        raise DataError(f"{where}expected rows, columns and source, got {str(sorted(content))[:100]}")
    found = [_entry(entry, where) for entry in entries]
    specs = check_columns(((spec.name, spec.dtype, (rows, *spec.shape)) for spec, _, _ in found), limits)
    columns = Columns(
        folder,
        rows,
        {spec.name: spec for spec in specs},
        {spec.name: sha256 for spec, sha256, _ in found},
        {spec.name: labels for spec, _, labels in found if labels is not None},
        source,
    )
    for name in columns:
        columns[name]  # every file is there and of its size
    return columns


def _entry(entry: Any, where: str) -> tuple[ColumnSpec, str, tuple[str, ...] | None]:
    match entry:
        case {"name": str(name), "dtype": str(dtype), "shape": list(shape), "sha256": str(sha256)}:
            labels = entry.get("labels")
            try:
                spec = ColumnSpec(name, dtype_of(dtype), tuple(shape))
            except DtypeError as error:
                raise DataError(f"{where}column {name[:80]!r}: {error}") from None
            sizes = all(type(size) is int and 0 <= size < 2**40 for size in shape) and len(shape) <= 32
            texts = labels is None or (isinstance(labels, list) and all(isinstance(text, str) for text in labels))
            if sizes and texts:
                return spec, sha256, None if labels is None else tuple(labels)
    raise DataError(f"{where}expected columns with name, dtype, shape and sha256, got {str(entry)[:100]}")
