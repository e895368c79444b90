"""The canonical layout: converted once, opened as often as wanted, never trusted."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.columns import Limits, open_columns, read
from engine.errors import DataError, TooLargeError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An npz file."""
    np.savez(tmp_path / "a.npz", x=np.arange(12, dtype="f4").reshape(4, 3), y=np.arange(4))
    return tmp_path / "a.npz"


def test_a_file_is_converted_once(path: Path) -> None:
    """A second reading maps what is there; a changed file, or other options, are converted anew."""
    first = read(path)
    assert first.folder == path.with_name("a.npz.columns")
    made = (first.folder / "x.npy").stat().st_ino
    read(path)
    assert (first.folder / "x.npy").stat().st_ino == made
    assert list(read(path, columns=["y"])) == ["y"]
    os.utime(path, ns=(1, 1))
    assert (read(path).folder / "x.npy").stat().st_ino != made
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["a.npz", "a.npz.columns"]


def test_columns_are_mapped_and_read_only(path: Path) -> None:
    """Values are read from the file when they are used."""
    columns = read(path)
    with pytest.raises(ValueError, match="read-only"):
        columns["x"][0] = 1
    with (columns.folder / "y.npy").open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write((99).to_bytes(8, "little"))
    assert columns["y"][-1] == 99
    with pytest.raises(DataError, match="column 'y': expected values of sha256"):
        columns.verify()


def test_description_names_types_shapes_and_digests(path: Path) -> None:
    """What `columns.json` says."""
    columns = read(path)
    columns.verify()
    content = json.loads((columns.folder / "columns.json").read_text())
    assert (content["format"], content["version"], content["rows"]) == ("axon.columns", 1, 4)
    assert [(c["name"], c["dtype"], c["shape"]) for c in content["columns"]] == [("x", "f32", [3]), ("y", "s64", [])]
    with pytest.raises(KeyError, match="expected a column out of 'x', 'y', got 'z'"):
        columns["z"]


def test_a_folder_of_something_else_is_left_alone(path: Path, tmp_path: Path) -> None:
    """Only columns are ever replaced."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match=r"columns.json.*expected one to read"):
        read(path, other)
    assert (other / "thesis.txt").read_text() == "precious"


CHANGES: dict[str, tuple[Any, str]] = {
    "format": ({"format": "other"}, "expected format"),
    "version": ({"version": 2}, "expected format"),
    "rows": ({"rows": 5}, "expected float32 of shape"),
    "rows text": ({"rows": "4"}, "expected rows, columns and source"),
    "rows negative": ({"rows": -4}, "rows as in the others"),
    "columns": ({"columns": {}}, "expected rows, columns and source"),
    "no columns": ({"columns": []}, "a column and a row or more"),
    "entry": ({"columns": [1]}, "expected columns with name"),
    "path": ({"columns": [{"name": "../x", "dtype": "f32", "shape": [3], "sha256": ""}]}, "column name"),
    "missing": ({"columns": [{"name": "z", "dtype": "f32", "shape": [3], "sha256": ""}]}, "expected one to read"),
    "dtype": ({"columns": [{"name": "x", "dtype": "O", "shape": [3], "sha256": ""}]}, "expected a data type"),
    "shape": ({"columns": [{"name": "x", "dtype": "f32", "shape": [-3], "sha256": ""}]}, "expected columns with name"),
    "other shape": ({"columns": [{"name": "x", "dtype": "f32", "shape": [2], "sha256": ""}]}, "expected float32"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_changed_descriptions_are_refused(path: Path, case: str) -> None:
    """A description that does not fit the files, or names others."""
    changed, message = CHANGES[case]
    description = read(path).folder / "columns.json"
    description.write_text(json.dumps(json.loads(description.read_text()) | changed))
    with pytest.raises(DataError, match=message):
        open_columns(description.parent)


@pytest.mark.parametrize("text", ["", "[", "[" * 100_000, "1"])
def test_descriptions_that_are_no_object_are_refused(path: Path, text: str) -> None:
    """Whatever is not JSON, or no object."""
    description = read(path).folder / "columns.json"
    description.write_text(text)
    with pytest.raises(DataError, match=r"columns.json: expected"):
        open_columns(description.parent)


def test_a_cut_file_is_refused_rather_than_mapped(path: Path) -> None:
    """Reading the missing part of a mapping would end the process."""
    columns = read(path)
    os.truncate(columns.folder / "x.npy", 150)
    with pytest.raises(DataError, match="column 'x': expected a file of 176 bytes"):
        open_columns(columns.folder)


def test_limits_hold_when_opening(path: Path) -> None:
    """Also for what was converted under others."""
    folder = read(path).folder
    with pytest.raises(TooLargeError, match="at most 3 rows"):
        open_columns(folder, limits=Limits(max_rows=3))
