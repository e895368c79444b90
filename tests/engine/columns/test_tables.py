"""CSV, Parquet and Arrow tables as columns, against pyarrow, which writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest

from engine.columns import Limits, read
from engine.errors import DataError, TooLargeError


def stream(table: pa.Table, path: Path) -> None:
    """An Arrow stream."""
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)


Write = Callable[[pa.Table, Path], None]
WRITERS: dict[str, tuple[str, Write]] = {
    "parquet": ("t.parquet", lambda table, path: pyarrow.parquet.write_table(table, path, row_group_size=4)),
    "feather lz4": (
        "t.feather",
        lambda table, path: pyarrow.feather.write_feather(table, str(path), "lz4", chunksize=3),
    ),
    "feather": ("t.arrow", lambda table, path: pyarrow.feather.write_feather(table, str(path), "uncompressed")),
    "stream": ("t.arrows", stream),
}


def written(tmp_path: Path, writer: str, table: pa.Table) -> Path:
    """The table in a file."""
    name, write = WRITERS[writer]
    write(table, tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize("writer", WRITERS)
def test_numbers_and_lists_come_back_exactly(tmp_path: Path, writer: str) -> None:
    """Types stay; lists of one length are an axis of the row; a gap in floats is NaN."""
    rng = np.random.default_rng(0)
    expected = {
        kind: rng.integers(0, 100, 10).astype(kind) for kind in ["i1", "u1", "i2", "u4", "i8", "u8", "f4", "f8"]
    }
    expected["flag"] = np.arange(10) % 3 == 0
    lists = rng.random((10, 2, 3)).astype("f4")
    table = pa.table(
        {
            **expected,
            "fixed": pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(lists.reshape(-1), 3), 2),
            "lists": pa.array(lists.reshape(10, 6).tolist(), pa.list_(pa.float32())),
            "gaps": pa.array([None, *range(1, 10)], pa.float32()),
        }
    )
    columns = read(written(tmp_path, writer, table))
    for name, array in expected.items():
        assert columns[name].dtype == array.dtype
        np.testing.assert_array_equal(columns[name], array)
    np.testing.assert_array_equal(columns["fixed"], lists)
    np.testing.assert_array_equal(columns["lists"], lists.reshape(10, 6))
    np.testing.assert_array_equal(columns["gaps"], np.float32([np.nan, *range(1, 10)]))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
@pytest.mark.parametrize("writer", WRITERS)
def test_categories_become_numbers_in_sorted_order(tmp_path: Path, writer: str, kind: Any) -> None:
    """The texts are kept as labels."""
    texts = ["b", "a", "c", "a", "c", "b", "b"]
    array = pa.array(texts, pa.string()).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(texts, kind)
    table = pa.table({"x": np.arange(7.0), "w": np.arange(7), "y": array})
    columns = read(written(tmp_path, writer, table), features=["w", "x"], target=["y"], categories=["y"])
    assert columns.labels == {"y": ("a", "b", "c")}
    assert [columns.labels["y"][number] for number in columns["y"]] == texts
    np.testing.assert_array_equal(columns["features"], np.stack([np.arange(7), np.arange(7)], 1).astype("f4"))


def test_extension_of_fixed_tensors_keeps_its_shape(tmp_path: Path) -> None:
    """pyarrow's tensors in a column."""
    values = np.arange(24, dtype="f4").reshape(4, 2, 3)
    table = pa.table({"x": pa.FixedShapeTensorArray.from_numpy_ndarray(values)})
    np.testing.assert_array_equal(read(written(tmp_path, "feather", table))["x"], values)


REFUSED = {
    "text": (pa.array(["a", "b"]), "column 'x': expected numbers.*got string"),
    "gap in integers": (pa.array([1, None]), "column 'x', row 2: expected a value"),
    "gap in flags": (pa.array([None, True]), "column 'x', row 1: expected a value"),
    "dates": (pa.array([1, 2], pa.timestamp("s")), "expected numbers.*got timestamp"),
    "structs": (pa.array([{"a": 1}, {"a": 2}]), "expected numbers.*got struct"),
    "ragged": (pa.array([[1], [1, 2]]), "column 'x', row 2: expected a list of 1 as in row 1, got 2"),
    "gap in lists": (pa.array([[1], None]), "column 'x', row 2: expected a value"),
    "gap within lists": (pa.array([[1], [None]]), "expected a value"),
    "no rows": (pa.array([], pa.int64()), "a row or more"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("writer", ["parquet", "feather"])
def test_what_is_no_number_is_refused(tmp_path: Path, writer: str, case: str) -> None:
    """The message names column and row."""
    array, message = REFUSED[case]
    with pytest.raises(DataError, match=message):
        read(written(tmp_path, writer, pa.table({"x": array})))


def test_ragged_across_batches_is_refused(tmp_path: Path) -> None:
    """Every record batch is of the shape of the first."""
    table = pa.table({"x": pa.array([[1.0]] * 3 + [[1.0, 2.0]] * 3)})
    with pytest.raises(DataError, match=r"row 4: expected lists of shape \(1,\), got shape \(2,\)"):
        read(written(tmp_path, "stream", table))


def test_bad_plans_are_refused(tmp_path: Path) -> None:
    """Categories have to be columns of texts on their own; features single numbers."""
    path = written(tmp_path, "parquet", pa.table({"x": [[1.0]], "y": ["a"], "z": [1]}))
    for options, message in [
        ({"features": ["q"]}, "features: expected different ones"),
        ({"features": ["y"], "categories": ["y"]}, "categories: expected columns kept on their own"),
        ({"categories": ["z"], "target": ["z"]}, "expected texts"),
        ({"features": ["x"], "target": ["z"]}, "expected columns of single numbers"),
    ]:
        with pytest.raises(DataError, match=message):
            read(path, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("writer", WRITERS)
def test_damaged_files_are_refused(tmp_path: Path, writer: str) -> None:
    """Wherever a file is cut or changed there is an error of ours, or the values are all there."""
    path = written(tmp_path, writer, pa.table({"x": np.arange(50.0), "y": pa.array(["a", "b"] * 25)}))
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for attempt in range(60):
        changed = bytearray(data)
        if attempt % 2:
            changed[int(rng.integers(len(data)))] ^= int(rng.integers(1, 256))
        else:
            changed = changed[: int(rng.integers(len(data)))]
        path.write_bytes(changed)
        try:
            read(path, tmp_path / f"out{attempt}", categories=["y"], limits=Limits(max_bytes=10**6))
        except DataError:
            continue


@pytest.mark.parametrize("limits", [Limits(max_columns=2), Limits(max_rows=9), Limits(max_bytes=50)])
@pytest.mark.parametrize("writer", WRITERS)
def test_limits_hold(tmp_path: Path, writer: str, limits: Limits) -> None:
    """Columns, rows and bytes."""
    table = pa.table({"a": np.arange(10.0), "b": np.arange(10), "c": np.arange(10)})
    with pytest.raises(TooLargeError, match="expected at most"):
        read(written(tmp_path, writer, table), limits=limits)


def test_too_many_categories_are_refused(tmp_path: Path) -> None:
    """A column of free texts is no category."""
    path = written(tmp_path, "parquet", pa.table({"y": [str(n) for n in range(20)]}))
    with pytest.raises(TooLargeError, match="at most 10 different texts"):
        read(path, categories=["y"], limits=Limits(max_categories=10))


def test_csv_reads_what_pyarrow_writes(tmp_path: Path) -> None:
    """Whole numbers, floats, gaps and texts."""
    table = pa.table({"a": [1, 2, 3], "b": [0.5, None, -2.25], "kind": ["x, y", "z", "x, y"]})
    pyarrow.csv.write_csv(table, tmp_path / "t.csv")
    columns = read(tmp_path / "t.csv", categories=["kind"])
    np.testing.assert_array_equal(columns["a"], np.int64([1, 2, 3]))
    np.testing.assert_array_equal(columns["b"], np.float32([0.5, np.nan, -2.25]))
    np.testing.assert_array_equal(columns["kind"], np.int32([0, 1, 0]))
    assert columns.labels["kind"] == ("x, y", "z")
    with pytest.raises(DataError, match="column 'kind', row 1: expected a number, got 'x, y'"):
        read(tmp_path / "t.csv")


def test_csv_category_without_text_is_refused(tmp_path: Path) -> None:
    """A gap is no class."""
    (tmp_path / "t.csv").write_text("a,b\n1,x\n2,\n")
    with pytest.raises(DataError, match="column 'b', row 2: expected a text, got none"):
        read(tmp_path / "t.csv", categories=["b"])
