"""/v1/datasets: uploads become equally long columns that training jobs name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request

from service.api.rest.bodies import body_chunks
from service.api.rest.context import Use
from service.api.rest.schemas import DatasetInfo, DatasetList
from service.core.datasets import CsvOptions

routes = APIRouter(prefix="/v1", tags=["Data sets"])

_UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "text/csv": {"schema": {"type": "string"}},
        },
    }
}


@routes.post("/datasets", status_code=201, openapi_extra=_UPLOAD)
async def add_dataset(
    request: Request,
    use: Use,
    name: str | None = None,
    kind: Annotated[Literal["npz", "csv"], Query(alias="format")] = "npz",
    features: str = "",
    features_name: str = "features",
    target: str = "",
) -> DatasetInfo:
    """Store a data set: NumPy's npz (never pickle), or CSV with a header line.

    For CSV: `features=a,b,c` packs these columns into one FP32 column `features_name` of shape [rows, 3]; `features=*`
    packs all that `target` does not name; with `target` (comma-separated) only those are kept beside it.
    """
    options = CsvOptions(_split(features), features_name, _split(target))
    chunks = body_chunks(request, limit_bytes=use.limits.max_dataset_bytes, what="data set")
    return DatasetInfo.from_core(await use.datasets.add(chunks, kind, name=name, options=options))


@routes.get("/datasets")
async def list_datasets(use: Use) -> DatasetList:
    """All data sets, oldest first."""
    return DatasetList(datasets=[DatasetInfo.from_core(dataset) for dataset in await use.datasets.all()])


@routes.get("/datasets/{dataset_id}")
async def get_dataset(dataset_id: str, use: Use) -> DatasetInfo:
    """One data set with its columns."""
    return DatasetInfo.from_core(await use.datasets.get(dataset_id))


@routes.delete("/datasets/{dataset_id}", status_code=204)
async def delete_dataset(dataset_id: str, use: Use) -> None:
    """Delete a data set; a job that reads it already goes on."""
    await use.datasets.delete(dataset_id)


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()
