"""npz and safetensors files as columns, against the libraries that write them; hostile ones."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from engine.columns import Limits, convert, read
from engine.errors import DataError, OptionError, TooLargeError

KINDS = ["?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"]


def arrays(rows: int = 7) -> dict[str, np.ndarray]:
    """A column of every type, in different shapes."""
    rng = np.random.default_rng(0)
    shapes = [(), (2,), (2, 3), (0,)]
    return {
        f"c{index}": rng.integers(0, 100, (rows, *shapes[index % 4])).astype(kind) for index, kind in enumerate(KINDS)
    }


def assert_same(columns: Any, expected: dict[str, np.ndarray]) -> None:
    """Names, types and values."""
    assert set(columns) == set(expected)
    for name, array in expected.items():
        assert columns[name].dtype == array.dtype
        np.testing.assert_array_equal(columns[name], array)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_comes_back_exactly(tmp_path: Path, save: Any) -> None:
    """What NumPy writes, compressed or not, in any memory order."""
    expected = {**arrays(), "f": np.asfortranarray(np.arange(70, dtype=">f4").reshape(7, 5, 2))}
    save(tmp_path / "a.npz", **expected)
    expected["f"] = expected["f"].astype("<f4")
    assert_same(read(tmp_path / "a.npz"), expected)


def test_safetensors_come_back_exactly(tmp_path: Path) -> None:
    """What safetensors writes; the short floats widened, which is exact."""
    short = np.arange(7).astype(ml_dtypes.bfloat16) / 3
    safetensors.numpy.save_file({**arrays(), "b": short}, tmp_path / "a.safetensors", metadata={"any": "text"})
    assert_same(read(tmp_path / "a.safetensors"), {**arrays(), "b": short.astype(np.float32)})


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_columns_may_be_chosen(tmp_path: Path, kind: str) -> None:
    """A file with arrays of different lengths holds several data sets."""
    given = {"x": np.zeros((3, 2)), "y": np.arange(3), "test": np.zeros(5)}
    path = tmp_path / f"a.{kind}"
    if kind == "npz":
        np.savez(path, **given)
    else:
        safetensors.numpy.save_file(given, path)
    with pytest.raises(DataError, match="rows as in the others"):
        read(path)
    assert list(read(path, columns=["y", "x"])) == ["y", "x"]
    with pytest.raises(DataError, match=r"columns: expected different ones of .*got \['z'\]"):
        read(path, columns=["z"])


def tensors(header: Any, values: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + values


def entry(shape: list[Any], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    """One tensor of a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


HOSTILE = {
    "empty": (b"", "ends in its header|expected a column"),
    "long header": (tensors({}, length=10**6), "ends in its header"),
    "no json": (tensors(b"{"), "expected a safetensors file"),
    "deep": (tensors(b"[" * 100_000), "expected a safetensors file"),
    "list": (tensors([1]), "no object"),
    "twice": (tensors(b'{"a": 1, "a": 2}'), "a name twice"),
    "no entry": (tensors({"a": 1}), "expected dtype, shape and offsets"),
    "negative": (tensors({"a": entry([-1], 0, 4)}, b"0000"), "expected dtype, shape and offsets"),
    "boolean": (tensors({"a": entry([True], 0, 4)}, b"0000"), "expected dtype, shape and offsets"),
    "other size": (tensors({"a": entry([2], 0, 4)}, b"0000"), "expected dtype, shape and offsets"),
    "gap": (tensors({"a": entry([1], 4, 8)}, b"00000000"), "expected values at byte"),
    "overlap": (tensors({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, b"0000"), "expected values at byte"),
    "short": (tensors({"a": entry([2], 0, 8)}, b"0000"), "expected a safetensors file of"),
    "trailing": (tensors({"a": entry([1], 0, 4)}, b"00000"), "expected a safetensors file of"),
    "unknown type": (tensors({"a": entry([1], 0, 4, "F4")}, b"0000"), "expected a dtype out of"),
    "scalar": (tensors({"a": entry([], 0, 4)}, b"0000"), "got a scalar"),
    "path": (tensors({"../a": entry([1], 0, 4)}, b"0000"), "column name"),
    "no rows": (tensors({"a": entry([0], 0, 0)}), "a row or more"),
    "none": (tensors({}), "a column and a row or more"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_safetensors_are_refused(tmp_path: Path, case: str) -> None:
    """One clear error, and no file is left."""
    data, message = HOSTILE[case]
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("limits", [Limits(max_columns=3), Limits(max_rows=6), Limits(max_bytes=100)])
@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_limits_hold(tmp_path: Path, kind: str, limits: Limits) -> None:
    """Columns, rows and bytes."""
    path = tmp_path / f"a.{kind}"
    if kind == "npz":
        np.savez(path, **arrays())
    else:
        safetensors.numpy.save_file(arrays(), path)
    with pytest.raises(TooLargeError, match="expected at most"):
        read(path, limits=limits)


def test_pickle_is_never_read(tmp_path: Path) -> None:
    """An npz member of Python objects is refused by its header."""
    np.savez(tmp_path / "a.npz", a=np.array([{}, 1], object))
    with pytest.raises(DataError, match="only pickle could read"):
        read(tmp_path / "a.npz")


def test_unknown_formats_and_options_are_errors(tmp_path: Path) -> None:
    """Nothing is guessed."""
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    (tmp_path / "a.xyz").write_bytes(b"")
    with pytest.raises(OptionError, match="expected a suffix out of"):
        read(tmp_path / "a.xyz")
    with pytest.raises(OptionError, match="format: expected one of"):
        read(tmp_path / "a.npz", format="pickle")
    with pytest.raises(OptionError, match="npz: expected options out of columns, got 'features'"):
        read(tmp_path / "a.npz", features=["a"])
    with pytest.raises(OptionError, match="expected columns to be a list of names"):
        read(tmp_path / "a.npz", columns="a")
    with pytest.raises(DataError, match="expected a file or folder, got nothing"):
        read(tmp_path / "b.npz")
    with pytest.raises(OptionError, match="csv: expected options TableOptions"):
        convert(tmp_path / "a.npz", tmp_path, "csv", 1)
