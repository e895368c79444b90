"""What a data set's `manifest.json` holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from service.adapters.formats import check_format
from service.core.errors import NotFound
from service.core.types import Column, ColumnStatistics, Dataset, Json


def no_dataset(dataset_id: str) -> NotFound:
    """The error for a data set that is not there."""
    return NotFound(f"there is no data set {dataset_id!r}")


def dataset_to_json(dataset: Dataset) -> dict[str, Json]:
    """The document as JSON, format 1."""
    return {
        "format": 1,
        "id": dataset.id,
        "name": dataset.name,
        "rows": dataset.rows,
        "columns": [_column_to_json(column) for column in dataset.columns],
        "sha256": dataset.sha256,
        "size_bytes": dataset.size_bytes,
        "created_at": dataset.created_at,
    }


def _column_to_json(column: Column) -> dict[str, Json]:
    entry: dict[str, Json] = {"name": column.name, "datatype": column.datatype, "shape": list(column.shape)}
    if column.labels:
        entry["labels"] = list(column.labels)
    if column.statistics is not None:
        classes = column.statistics.classes
        # JSON's objects have texts as keys.
        pairs = None if classes is None else [list(pair) for pair in classes.items()]
        entry["statistics"] = {**asdict(column.statistics), "classes": pairs}
    return entry


def _column_from_json(value: Mapping[str, Any]) -> Column:
    known = value.get("statistics")
    statistics = None
    if known is not None:
        classes = None if known["classes"] is None else dict(known["classes"])
        names = {each.name for each in fields(ColumnStatistics)}
        read = {name: number for name, number in known.items() if name in names}
        statistics = ColumnStatistics(**{**read, "classes": classes})
    return Column(value["name"], value["datatype"], tuple(value["shape"]), tuple(value.get("labels", ())), statistics)


def dataset_from_json(value: Mapping[str, Any], folder: Path) -> Dataset:
    """Read a document as `StateDocument.from_json` does; the columns are in `folder`."""
    check_format(value, f"data set {value.get('id')!r}")
    columns = tuple(map(_column_from_json, value["columns"]))
    return Dataset(
        value["id"],
        value["name"],
        value["rows"],
        columns,
        value["sha256"],
        value["size_bytes"],
        value["created_at"],
        folder,
    )
