"""CSV tables read twice in bounded pieces: once to know types and rows, once to write the columns.

Numbers only: a column of whole numbers without gaps is INT64, any other FP32 (an empty cell is NaN).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from service.adapters.columns import check_columns, check_totals, column_path, listed, write_header
from service.core.datasets import ALL_BUT_TARGET, CsvOptions
from service.core.errors import InvalidRequest, TooLarge
from service.core.limits import Limits
from service.core.types import Column

_BLOCK = 4 * 2**20


@dataclass(slots=True)
class _Table:
    """What the first pass finds: rows, and which of the columns in use are whole numbers without gaps."""

    rows: int = 0
    whole: dict[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Which columns of the table go where."""

    single: tuple[str, ...]
    features: tuple[str, ...]
    features_name: str

    @property
    def used(self) -> tuple[str, ...]:
        return (*self.features, *self.single)


def read(source: Path, folder: Path, options: CsvOptions, limits: Limits) -> Sequence[Column]:
    """Write the columns asked for; raises `InvalidRequest` (with column, row and text) or `TooLarge`."""
    plan = _plan(_names(source, limits), options)
    table = _Table(whole=dict.fromkeys(plan.used, True))
    for batch in _batches(source, plan.used):
        _scan(batch, table, limits)
    specs: list[tuple[str, np.dtype, tuple[int, ...]]] = [
        (name, np.dtype(np.int64 if table.whole[name] else np.float32), (table.rows,)) for name in plan.single
    ]
    if plan.features:
        specs.insert(0, (plan.features_name, np.dtype(np.float32), (table.rows, len(plan.features))))
    columns = check_columns(specs, limits)
    with ExitStack() as stack:
        files: dict[str, BinaryIO] = {}
        for name, dtype, shape in specs:
            files[name] = stack.enter_context(column_path(folder, name).open("wb"))
            write_header(files[name], dtype, shape)
        for batch in _batches(source, plan.used):
            _write(batch, plan, table, files)
    return columns


def _names(source: Path, limits: Limits) -> list[str]:
    """Names of the header line, counted before anything is built per column."""
    import pyarrow.csv

    with source.open("rb") as file:
        line = file.readline(_BLOCK)
    if line.count(b",") >= limits.max_dataset_columns:
        raise TooLarge(f"data set: expected at most {limits.max_dataset_columns} columns, got {line.count(b',') + 1}")
    if not line.strip():
        raise InvalidRequest("data set: expected a CSV file with a header line, got an empty line")
    with _arrow_errors(), pyarrow.csv.open_csv(source, _read_options(), None, None) as reader:
        names = list(reader.schema.names)
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise InvalidRequest(f"header: expected different names, got {listed(doubled)} more than once")
    return names


def _read_options() -> Any:
    from pyarrow import csv

    return csv.ReadOptions(block_size=_BLOCK, use_threads=False)


@contextmanager
def _arrow_errors() -> Iterator[None]:
    """A table that does not parse is the client's error."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowInvalid, UnicodeDecodeError) as error:
        raise InvalidRequest(
            f"data set: expected a CSV table in UTF-8 with a header line, got: {error}"[:500]
        ) from None


def _plan(names: list[str], options: CsvOptions) -> _Plan:
    for what, asked in (("features", options.features), ("target", options.target)):
        unknown = [] if asked == ALL_BUT_TARGET and what == "features" else [n for n in asked if n not in names]
        if unknown or len(set(asked)) != len(asked):
            raise InvalidRequest(f"{what}: expected different ones of {listed(names)}, got {listed(unknown or asked)}")
    features = options.features
    if features == ALL_BUT_TARGET:
        features = tuple(name for name in names if name not in options.target)
    if both := [name for name in options.target if name in features]:
        raise InvalidRequest(f"target: expected columns that are not among the features, got {listed(both)}")
    single = options.target or tuple(name for name in names if name not in features)
    return _Plan(single, features, options.features_name)


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
        if table.whole[name]:
            try:
                table.whole[name] = column.null_count == 0 and column.cast(pyarrow.int64()) is not None
            except pyarrow.ArrowInvalid:
                table.whole[name] = False
        if not table.whole[name]:
            _floats(column, name, table.rows)
    table.rows += batch.num_rows
    check_totals(1, max(table.rows, 1), 0, limits)


def _write(batch: Any, plan: _Plan, table: _Table, files: dict[str, BinaryIO]) -> None:
    import pyarrow

    for name in plan.single:
        column = batch.column(name)
        values = column.cast(pyarrow.int64()).to_numpy() if table.whole[name] else _floats(column, name, 0)
        files[name].write(values.tobytes())
    if plan.features:
        packed = np.stack([_floats(batch.column(name), name, 0) for name in plan.features], axis=1)
        files[plan.features_name].write(packed.tobytes())


def _floats(column: Any, name: str, row: int) -> np.ndarray:
    """A text column as FP32; raises `InvalidRequest` naming the first cell that is no number."""
    import pyarrow

    try:
        values: np.ndarray = column.cast(pyarrow.float64()).to_numpy(zero_copy_only=False)
    except pyarrow.ArrowInvalid:
        at, text = next((i, t) for i, t in enumerate(column.to_pylist()) if t is not None and not _is_number(t))
        raise InvalidRequest(
            f"column {name[:128]!r}, row {row + at + 1}: expected a number, got {text[:80]!r}"
        ) from None
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    beyond = np.flatnonzero(np.isinf(narrow) & ~np.isinf(values))
    if beyond.size:
        at = int(beyond[0])
        raise InvalidRequest(f"column {name[:128]!r}, row {row + at + 1}: expected a number of FP32, got {values[at]}")
    return narrow


def _is_number(text: str) -> bool:
    import pyarrow

    try:
        pyarrow.array([text]).cast(pyarrow.float64())
    except pyarrow.ArrowInvalid:
        return False
    return True
