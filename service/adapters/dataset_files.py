"""Uploaded files as canonical columns, through the engine's readers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engine import columns
from engine.errors import DataError, TooLargeError
from service.core.datasets import CsvOptions
from service.core.datatypes import name_of
from service.core.errors import InvalidRequest, TooLarge
from service.core.limits import Limits
from service.core.names import check_name
from service.core.types import Column


class FileDatasetReader:
    """The `DatasetReader` for files on a local disk."""

    def read(self, source: Path, folder: Path, kind: str, options: CsvOptions, limits: Limits) -> Sequence[Column]:
        """Write every column of `source` as `<name>.npy` into `folder`; raises `InvalidRequest`, `TooLarge`."""
        table = columns.TableOptions(options.features, options.features_name, options.target)
        most = columns.Limits(
            max_bytes=limits.max_dataset_bytes,
            max_rows=limits.max_dataset_rows,
            max_columns=limits.max_dataset_columns,
        )
        try:
            specs, _, _ = columns.convert(source, folder, kind, table if kind == "csv" else None, limits=most)
        except TooLargeError as error:
            raise TooLarge(str(error)) from None
        except DataError as error:
            raise InvalidRequest(str(error)) from None
        return [Column(check_name(spec.name, "column"), name_of(spec.dtype), spec.shape) for spec in specs]
