"""/v1/uploads: large files in as many requests as it takes; then `upload=<id>` uses them in the place of a body."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response

from service.api.rest.bodies import announced_bytes, body_chunks, described, read_model
from service.api.rest.context import Use
from service.api.rest.schemas import UploadInfo, UploadRequest
from service.core.uploads import Upload

routes = APIRouter(prefix="/v1", tags=["Uploads"])

_PIECE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/partial-upload": {"schema": {"type": "string", "format": "binary"}}},
    }
}
_WRONG: dict[int | str, dict[str, Any]] = {409: {"description": "It goes on at the offset in `Upload-Offset`."}}


@routes.post("/uploads", status_code=201, openapi_extra=described(UploadRequest))
async def create_upload(request: Request, response: Response, use: Use) -> UploadInfo:
    """Announce a file by its length and, if known, its sha256; `Location` is where its bytes go."""
    body = await read_model(request, UploadRequest, what="upload")
    upload = await use.uploads.create(body.length, sha256=body.sha256)
    response.headers.update(_headers(upload) | {"location": f"/v1/uploads/{upload.id}"})
    return UploadInfo.from_core(upload, use.uploads.expires_at(upload))


@routes.get("/uploads/{upload_id}")
async def get_upload(upload_id: str, response: Response, use: Use) -> UploadInfo:
    """How much of an upload is here, and until when it is kept."""
    upload = await use.uploads.get(upload_id)
    response.headers.update(_headers(upload))
    return UploadInfo.from_core(upload, use.uploads.expires_at(upload))


@routes.head("/uploads/{upload_id}", status_code=204)
async def head_upload(upload_id: str, use: Use) -> Response:
    """Where an upload goes on: `Upload-Offset`."""
    return Response(status_code=204, headers=_headers(await use.uploads.get(upload_id)))


@routes.patch("/uploads/{upload_id}", status_code=204, openapi_extra=_PIECE, responses=_WRONG)
async def append_upload(
    upload_id: str, request: Request, use: Use, upload_offset: Annotated[int, Header(ge=0, lt=2**63)]
) -> Response:
    """Append the body at `Upload-Offset`, which must be where the upload ends; what comes of a broken body stays."""
    chunks = body_chunks(request, limit_bytes=use.limits.max_uploads_bytes, what="upload")
    upload = await use.uploads.append(upload_id, upload_offset, chunks, announced=announced_bytes(request))
    return Response(status_code=204, headers=_headers(upload))


@routes.delete("/uploads/{upload_id}", status_code=204)
async def delete_upload(upload_id: str, use: Use) -> None:
    """End an upload that is not wanted any more."""
    await use.uploads.delete(upload_id)


def _headers(upload: Upload) -> dict[str, str]:
    return {
        "upload-offset": str(upload.offset),
        "upload-length": str(upload.length),
        "upload-complete": "?1" if upload.offset == upload.length else "?0",
        "cache-control": "no-store",
    }
