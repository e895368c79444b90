"""Uploaded tables as canonical columns: NumPy's npz, and CSV through pyarrow (imported when used)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from service.adapters import csv_columns, npz_columns
from service.core.datasets import CsvOptions
from service.core.limits import Limits
from service.core.types import Column

_READERS: dict[str, Callable[[Path, Path, CsvOptions, Limits], Sequence[Column]]] = {
    "npz": npz_columns.read,
    "csv": csv_columns.read,
}


class FileDatasetReader:
    """The `DatasetReader` for files on a local disk."""

    def read(self, source: Path, folder: Path, kind: str, options: CsvOptions, limits: Limits) -> Sequence[Column]:
        """Write every column of `source` as `<name>.npy` into `folder`; raises `InvalidRequest`, `TooLarge`."""
        return _READERS[kind](source, folder, options, limits)
