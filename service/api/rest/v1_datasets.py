"""/v1/datasets: uploads become equally long columns that training jobs name."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request

from service.api.rest.bodies import body_chunks
from service.api.rest.context import Use
from service.api.rest.schemas import DatasetDetail, DatasetInfo, DatasetList
from service.core.datasets import DatasetOptions

routes = APIRouter(prefix="/v1", tags=["Data sets"])


def _options(
    features: str = "",
    features_name: str = "features",
    target: str = "",
    categories: str = "",
    columns: str = "",
    size: Annotated[str, Query(pattern=r"^([1-9]\d{0,5},[1-9]\d{0,5})?$")] = "",
    mode: str = "RGB",
    unit: str = "characters",
) -> DatasetOptions:
    """What a format takes besides the file; lists are separated by commas.

    Tables: `features=a,b,c` packs these columns into one FP32 column `features_name` of shape [rows, 3]; `features=*`
    packs all that `target` does not name; with `target` only those are kept beside it; `categories` are columns of
    texts that become numbers. npz and safetensors: `columns` to take. Images: `size=height,width`, and the `mode` L,
    RGB or RGBA. Text: the `unit` bytes, characters or basic_english.
    """
    height, _, width = size.partition(",")
    return DatasetOptions(
        _split(features),
        features_name,
        _split(target),
        _split(categories),
        _split(columns),
        (int(height), int(width)) if size else None,
        mode,
        unit,
    )


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
    options: Annotated[DatasetOptions, Depends(_options)],
    name: str | None = None,
    kind: Annotated[str | None, Query(alias="format")] = None,
    upload: str | None = None,
) -> DatasetDetail:
    """Store a data set: npz, safetensors, csv, parquet, arrow, images (a zip of a folder per class) or text.

    Without `format` the content's first bytes tell it, where they do. Nothing is ever unpickled. With `upload` the
    content is that of a whole upload under `/v1/uploads` and not the body; a repetition gives the same data set.
    """
    if upload is not None:
        return DatasetDetail.from_core(await use.datasets.add_upload(upload, kind, name=name, options=options))
    chunks = body_chunks(request, limit_bytes=use.limits.max_dataset_bytes, what="data set")
    return DatasetDetail.from_core(await use.datasets.add(chunks, kind, name=name, options=options))


@routes.get("/datasets")
async def list_datasets(use: Use) -> DatasetList:
    """All data sets, oldest first."""
    return DatasetList(datasets=[DatasetInfo.from_core(dataset) for dataset in await use.datasets.all()])


@routes.get("/datasets/{dataset_id}")
async def get_dataset(dataset_id: str, use: Use) -> DatasetDetail:
    """One data set with its columns, their labels and statistics."""
    return DatasetDetail.from_core(await use.datasets.get(dataset_id))


@routes.delete("/datasets/{dataset_id}", status_code=204)
async def delete_dataset(dataset_id: str, use: Use) -> None:
    """Delete a data set; refused with their ids while unfinished jobs need it."""
    await use.datasets.delete(dataset_id)


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()
