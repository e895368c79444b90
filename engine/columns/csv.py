"""CSV tables read twice in bounded pieces: once to know types and rows, once to write the columns.

A column of whole numbers without gaps is int64, any other float32 (an empty cell is NaN), one among the categories
int32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engine.columns.layout import ColumnSpec, ColumnWriter, check_columns, check_totals
from engine.columns.limits import Limits
from engine.columns.table import Categories, Plan, TableOptions, check_names, narrowed, packed, plan
from engine.errors import DataError, TooLargeError

_BLOCK = 4 * 2**20


@dataclass(slots=True)
class _Table:
    """What the first pass finds: rows, which columns are whole numbers without gaps, and the texts of categories."""

    rows: int = 0
    whole: dict[str, bool] = field(default_factory=dict)
    categories: dict[str, Categories] = field(default_factory=dict)

    def dtype(self, name: str) -> np.dtype:
        if name in self.categories:
            return np.dtype(np.int32)
        return np.dtype(np.int64 if self.whole[name] else np.float32)


def convert_csv(
    source: Path, folder: Path, options: TableOptions, limits: Limits
) -> tuple[list[ColumnSpec], int, dict[str, list[str]]]:
    """Write the columns asked for; raises `DataError` (with column, row and text) or `TooLargeError`."""
    chosen = plan(_names(source, limits), options)
    table = _Table(
        whole=dict.fromkeys(chosen.used, True),
        categories={name: Categories(name, limits) for name in chosen.single if name in chosen.categories},
    )
    for batch in _batches(source, chosen.used):
        _scan(batch, table, limits)
    shapes: list[tuple[str, np.dtype, tuple[int, ...]]] = [
        (name, table.dtype(name), (table.rows,)) for name in chosen.single
    ]
    if chosen.features:
        shapes.insert(0, (chosen.features_name, np.dtype(np.float32), (table.rows, len(chosen.features))))
    specs = check_columns(shapes, limits)
    with ColumnWriter(folder, specs, table.rows) as writer:
        for batch in _batches(source, chosen.used):
            _write(batch, chosen, table, writer)
    return specs, table.rows, {name: found.labels for name, found in table.categories.items()}


def _names(source: Path, limits: Limits) -> list[str]:
    """Names of the header line, counted before anything is built per column."""
    import pyarrow.csv

    with source.open("rb") as file:
        line = file.readline(_BLOCK)
    if line.count(b",") >= limits.max_columns:
        raise TooLargeError(f"data set: expected at most {limits.max_columns} columns, got {line.count(b',') + 1}")
    if not line.strip():
        raise DataError("data set: expected a CSV file with a header line, got an empty line")
    with _arrow_errors(), pyarrow.csv.open_csv(source, _read_options(), None, None) as reader:
        names = list(reader.schema.names)
    check_names(names, limits)
    return names


def _read_options() -> Any:
    from pyarrow import csv

    return csv.ReadOptions(block_size=_BLOCK, use_threads=False)


@contextmanager
def _arrow_errors() -> Iterator[None]:
    """A table that does not parse is an error of the data."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowInvalid, UnicodeDecodeError) as error:
        raise DataError(f"data set: expected a CSV table in UTF-8 with a header line, got: {error}"[:500]) from None


def _batches(source: Path, used: Sequence[str]) -> Iterator[Any]:
    """The table's record batches with the columns in use as text; null where a cell is empty or says NA or NaN."""
    import pyarrow
    from pyarrow import csv

    convert = csv.ConvertOptions(
        column_types=dict.fromkeys(used, pyarrow.string()), include_columns=list(used), strings_can_be_null=True
    )
    with _arrow_errors(), csv.open_csv(source, _read_options(), None, convert) as reader:
        yield from reader


def _scan(batch: Any, table: _Table, limits: Limits) -> None:
    """Check every cell and find which columns stay whole numbers."""
    import pyarrow

    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if name in table.categories:
            table.categories[name].add(column, table.rows)
            continue
        if table.whole[name]:
            try:
                table.whole[name] = column.null_count == 0 and column.cast(pyarrow.int64()) is not None
            except pyarrow.ArrowInvalid:
                table.whole[name] = False
        if not table.whole[name]:
            _floats(column, name, table.rows)
    table.rows += batch.num_rows
    check_totals(1, max(table.rows, 1), 0, limits)


def _write(batch: Any, chosen: Plan, table: _Table, writer: ColumnWriter) -> None:
    import pyarrow

    for name in chosen.single:
        column = batch.column(name)
        if name in table.categories:
            writer.write(name, table.categories[name].numbers(column))
        else:
            whole = table.whole[name]
            writer.write(name, column.cast(pyarrow.int64()).to_numpy() if whole else _floats(column, name, 0))
    if chosen.features:
        writer.write(chosen.features_name, packed(_floats(batch.column(name), name, 0) for name in chosen.features))


def _floats(column: Any, name: str, row: int) -> np.ndarray:
    """A text column as float32; raises `DataError` naming the first cell that is no number."""
    import pyarrow

    try:
        values: np.ndarray = column.cast(pyarrow.float64()).to_numpy(zero_copy_only=False)
    except pyarrow.ArrowInvalid:
        at, text = next((i, t) for i, t in enumerate(column.to_pylist()) if t is not None and not _is_number(t))
        raise DataError(f"column {name[:128]!r}, row {row + at + 1}: expected a number, got {text[:80]!r}") from None
    return narrowed(values, name, row)


def _is_number(text: str) -> bool:
    import pyarrow

    try:
        pyarrow.array([text]).cast(pyarrow.float64())
    except pyarrow.ArrowInvalid:
        return False
    return True
