"""Parquet files and Arrow files (Feather version 2) or streams, record batch by record batch, through pyarrow.

Numbers and booleans keep their type, lists of equal length become an axis of the row, and texts become numbers where
they are among the categories. A gap is NaN in a column of floats and an error elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.columns.layout import ColumnSpec, ColumnWriter, check_columns, check_totals
from engine.columns.limits import Limits
from engine.columns.table import Categories, Plan, TableOptions, check_names, narrowed, packed, plan
from engine.errors import DataError, TooLargeError

_ROWS_PER_BATCH = 16_384
_THRIFT_BYTES = 64 * 2**20
_MAGIC = b"ARROW1"
_Batches = Callable[[Sequence[str]], Iterator[Any]]
Converted = tuple[list[ColumnSpec], int, dict[str, list[str]]]


@dataclass(slots=True)
class _Found:
    """What the first pass finds: rows, texts of categories, and of every other column dtype and shape of a row."""

    categories: dict[str, Categories]
    types: dict[str, tuple[np.dtype, tuple[int, ...]]]
    rows: int = 0


def convert_parquet(source: Path, folder: Path, options: TableOptions, limits: Limits) -> Converted:
    """Write the columns asked for; raises `DataError` (with column and row) or `TooLargeError`."""
    from pyarrow import parquet

    limit = {"thrift_string_size_limit": _THRIFT_BYTES, "thrift_container_size_limit": _THRIFT_BYTES}
    with _arrow_errors("Parquet"), parquet.ParquetFile(source, **limit) as file:
        metadata = file.metadata
        check_totals(1, max(metadata.num_rows, 1), 0, limits)
        size = sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
        if size > 2 * limits.max_bytes:  # texts may be longer than the numbers they become
            raise TooLargeError(f"data set: expected at most {limits.max_bytes} bytes of values, got {size}")

        def batches(names: Sequence[str]) -> Iterator[Any]:
            yield from file.iter_batches(_ROWS_PER_BATCH, columns=list(names), use_threads=False)

        return _convert(list(file.schema_arrow.names), batches, folder, options, limits)


def convert_arrow(source: Path, folder: Path, options: TableOptions, limits: Limits) -> Converted:
    """Write the columns asked for of an Arrow file or stream; raises `DataError` or `TooLargeError`."""
    with _arrow_errors("Arrow"):
        with _open_arrow(source) as reader:
            names = list(reader.schema.names)

        def batches(names: Sequence[str]) -> Iterator[Any]:
            with _open_arrow(source) as reader:
                count = getattr(reader, "num_record_batches", None)
                every = reader if count is None else map(reader.get_batch, range(count))
                for batch in every:
                    batch.validate(full=True)  # offsets that point elsewhere would crash the process
                    yield batch.select(list(names))

        return _convert(names, batches, folder, options, limits)


@contextmanager
def _open_arrow(source: Path) -> Iterator[Any]:
    import pyarrow

    with pyarrow.memory_map(str(source)) as mapped:
        is_file = mapped.size() >= len(_MAGIC) and mapped.read(len(_MAGIC)) == _MAGIC
        mapped.seek(0)
        with pyarrow.ipc.open_file(mapped) if is_file else pyarrow.ipc.open_stream(mapped) as reader:
            yield reader


@contextmanager
def _arrow_errors(what: str) -> Iterator[None]:
    """A file that does not parse is an error of the data."""
    import pyarrow

    try:
        yield
    except pyarrow.ArrowMemoryError:
        raise
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"data set: expected a file of {what}, got: {error}"[:500]) from None


def _convert(names: list[str], batches: _Batches, folder: Path, options: TableOptions, limits: Limits) -> Converted:
    check_names(names, limits)
    chosen = plan(names, options)
    found = _Found({name: Categories(name, limits) for name in chosen.single if name in chosen.categories}, {})
    for batch in batches(chosen.used):
        _scan(batch, found, limits)
    shapes = [
        (name, np.dtype(np.int32), (found.rows,))
        if name in found.categories
        else (name, found.types[name][0], (found.rows, *found.types[name][1]))
        for name in chosen.single
        if found.rows
    ]
    if chosen.features:
        _check_scalars(chosen, found)
        shapes.insert(0, (chosen.features_name, np.dtype(np.float32), (found.rows, len(chosen.features))))
    specs = check_columns(shapes, limits)
    with ColumnWriter(folder, specs, found.rows) as writer:
        row = 0
        for batch in batches(chosen.used):
            _write(batch, chosen, found, writer, row)
            row += batch.num_rows
    return specs, found.rows, {name: texts.labels for name, texts in found.categories.items()}


def _scan(batch: Any, found: _Found, limits: Limits) -> None:
    if batch.num_rows == 0:
        return
    check_totals(1, found.rows + batch.num_rows, 0, limits)
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if name in found.categories:
            found.categories[name].add(_texts(column, name), found.rows)
            continue
        values = _values(column, name, found.rows)
        known = found.types.setdefault(name, (values.dtype, values.shape[1:]))
        if known != (values.dtype, values.shape[1:]):
            raise DataError(
                f"column {name[:128]!r}, row {found.rows + 1}: expected lists of shape {known[1]}, "
                f"got shape {values.shape[1:]}"
            )
    found.rows += batch.num_rows


def _check_scalars(chosen: Plan, found: _Found) -> None:
    for name in chosen.features:
        shape = found.types[name][1] if name in found.types else ()
        if shape:
            raise DataError(f"features: expected columns of single numbers, got {name[:128]!r} with shape {shape}")


def _write(batch: Any, chosen: Plan, found: _Found, writer: ColumnWriter, row: int) -> None:
    for name in chosen.single:
        column = batch.column(name)
        texts = found.categories.get(name)
        writer.write(name, _values(column, name, row) if texts is None else texts.numbers(_texts(column, name)))
    if chosen.features:
        columns = (narrowed(_values(batch.column(name), name, row), name, row) for name in chosen.features)
        writer.write(chosen.features_name, packed(columns))


def _texts(column: Any, name: str) -> Any:
    from pyarrow import types

    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not (types.is_string(column.type) or types.is_large_string(column.type)):
        raise DataError(f"column {name[:128]!r}: expected texts as it is among the categories, got {column.type}")
    return column


def _values(column: Any, name: str, row: int) -> np.ndarray:
    """Numbers `[rows, ...]` of a column that begins at `row`; raises `DataError` for gaps and other types."""
    import pyarrow
    from pyarrow import types

    kind = column.type
    if isinstance(kind, pyarrow.FixedShapeTensorType):
        return _values(column.storage, name, row).reshape(len(column), *kind.shape)
    is_list = _is_list(kind)
    if not (types.is_floating(kind) or types.is_boolean(kind) or types.is_integer(kind) or is_list):
        raise DataError(
            f"column {name[:128]!r}: expected numbers, lists of them, or texts named in categories, got {kind}"
        )
    if column.null_count and not types.is_floating(kind):
        at = row + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0]) + 1
        raise DataError(f"column {name[:128]!r}, row {at}: expected a value as the column holds {kind}, got none")
    if is_list:
        length = _list_length(column, name, row)
        inner = _values(column.flatten(), name, row)
        return inner.reshape(len(column), length, *inner.shape[1:])
    values: np.ndarray = column.to_numpy(zero_copy_only=False)
    return values


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_fixed_size_list(kind) or types.is_list(kind) or types.is_large_list(kind))


def _list_length(column: Any, name: str, row: int) -> int:
    from pyarrow import types

    if types.is_fixed_size_list(column.type):
        return int(column.type.list_size)
    lengths = column.value_lengths().to_numpy()
    odd = np.flatnonzero(lengths != lengths[0])
    if odd.size:
        at = int(odd[0])
        raise DataError(
            f"column {name[:128]!r}, row {row + at + 1}: expected a list of {lengths[0]} as in row {row + 1}, "
            f"got {lengths[at]}"
        )
    return int(lengths[0])
