"""/v1/graphs, /v1/schema and /v1/models: what is stored, what is loaded, where aliases point."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse, PlainTextResponse, StreamingResponse

from service.api.rest.bodies import body_chunks, described, read_body, read_model, read_optional, receive_parts
from service.api.rest.context import Context, Use
from service.api.rest.model_schemas import AliasInfo, AliasRequest, LoadRequest, ModelInfo, ModelList, VersionInfo
from service.api.rest.schemas import GraphReport
from service.core.bundle_files import member_chunks, member_size
from service.core.errors import InvalidRequest, NotFound
from service.core.names import parse_version
from service.core.serving_spec import read_serving
from service.core.types import GraphForm, Replica, StoredVersion
from service.core.uploads import link, receive

routes = APIRouter(prefix="/v1", tags=["Models"])

_PICTURES: Mapping[GraphForm, str] = {"svg": "image/svg+xml", "mermaid": "text/plain"}
# A browser that opens a picture runs and fetches nothing in it.
_INERT = {"content-security-policy": "default-src 'none'", "x-content-type-options": "nosniff"}
_BINARY = {"type": "string", "format": "binary"}
_UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": _BINARY},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"bundle": _BINARY, "graph": {"type": "string"}, "params": _BINARY},
                }
            },
        },
    }
}
_GRAPH: dict[str, Any] = {"requestBody": {"required": True, "content": {"application/json": {"schema": {}}}}}


@routes.post("/graphs:validate", openapi_extra=_GRAPH)
async def validate_graph(request: Request, use: Use) -> GraphReport:
    """Check a graph (format `axon.graph`, JSON) without storing it; every problem is reported at once."""
    graph = await read_body(request, limit_bytes=use.limits.max_graph_bytes, what="graph")
    return GraphReport.from_core(await use.registry.check_graph(graph))


@routes.get(
    "/schema/graph",
    response_class=Response,
    responses={200: {"content": {"application/schema+json": {"schema": {}}}}, 304: {"description": "Not changed"}},
)
async def get_graph_schema(request: Request, use: Use) -> Response:
    """The JSON Schema (draft 2020-12) of a graph, for editors and for clients in other languages; it has an ETag."""
    schema = await use.registry.graph_schema()
    tag = f'"{hashlib.sha256(schema).hexdigest()[:32]}"'
    headers = {"etag": tag, "cache-control": "no-cache"}
    known = {each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")}
    if known & {tag, "*"}:
        return Response(status_code=304, headers=headers)
    return Response(schema, media_type="application/schema+json", headers=headers)


@routes.get("/models")
async def list_models(use: Use) -> ModelList:
    """All models with their versions."""
    models, replicas = [], await use.registry.replicas()
    for name in await use.registry.stored_names():
        try:
            models.append(await _model(use, name, replicas))
        except NotFound:  # deleted since it was listed
            continue
    return ModelList(models=models)


@routes.get("/models/{name}")
async def get_model(name: str, use: Use) -> ModelInfo:
    """One model with its versions, and how far every serving process is."""
    return await _model(use, name, await use.registry.replicas())


@routes.delete("/models/{name}", status_code=204)
async def delete_model(name: str, use: Use) -> None:
    """Delete a model with all versions and aliases; refused while a version is loaded."""
    await use.registry.delete(name)


@routes.post("/models/{name}/versions", status_code=201, openapi_extra=_UPLOAD)
async def submit_version(
    name: str,
    request: Request,
    use: Use,
    load: bool = True,
    alias: str | None = None,
    seed: Annotated[int, Query(ge=0, lt=2**63)] = 0,
    upload: str | None = None,
) -> VersionInfo:
    """Store a new version: a bundle (the body, or part `bundle`), or parts `graph` (JSON) and `params` (safetensors).

    A graph without parameters is initialised with `seed`. With `load` the reply comes when the version is ready; with
    `alias` it is loaded and then gets that alias. With `upload` the bundle is that of a whole upload under
    `/v1/uploads` and not the body.
    """
    if upload is not None:
        limit = use.limits.max_bundle_bytes
        async with (
            use.uploads.taken(upload, limit_bytes=limit, what="bundle") as whole,
            use.registry.scratch() as folder,
        ):
            await asyncio.to_thread(link, whole, folder / "bundle")
            stored = await use.registry.submit(name, folder / "bundle", load=load, alias=alias)
        return await _version(use, stored)
    async with use.registry.scratch() as folder:
        parts = await _receive(request, folder, use)
        if "bundle" in parts:
            stored = await use.registry.submit(name, parts["bundle"], load=load, alias=alias)
        else:
            graph = await asyncio.to_thread(parts["graph"].read_bytes)
            params = await asyncio.to_thread(parts["params"].read_bytes) if "params" in parts else None
            stored = await use.registry.submit_graph(name, graph, params, seed=seed, load=load, alias=alias)
    return await _version(use, stored)


@routes.post(
    "/models/{name}/versions/{version}:load",
    openapi_extra=described(LoadRequest, required=False),
)
async def load_version(name: str, version: str, request: Request, use: Use, pin: bool | None = None) -> VersionInfo:
    """Load a version; the reply comes when it is ready, or says why it is not.

    With `pin` it is never evicted to make room, until it is loaded with `pin=false` or unloaded. A body's `serving` is
    how it shall be served in place of what its bundle says; one that is loaded is loaded anew beside itself and then
    exchanged.
    """
    asked = await read_optional(request, LoadRequest, what="load")
    serving = None if asked is None else read_serving(asked.serving)
    await use.registry.load(name, parse_version(version), serving=serving, pin=pin)
    return await _version(use, await use.registry.stored_version(name, parse_version(version)))


@routes.post("/models/{name}/versions/{version}:unload")
async def unload_version(name: str, version: str, use: Use) -> VersionInfo:
    """Stop serving a version; the reply comes when its last request has been answered."""
    await use.registry.unload(name, parse_version(version))
    return await _version(use, await use.registry.stored_version(name, parse_version(version)))


@routes.get("/models/{name}/versions/{version}")
async def get_version(name: str, version: str, use: Use) -> VersionInfo:
    """One version."""
    return await _version(use, await use.registry.stored_version(name, parse_version(version)))


@routes.delete("/models/{name}/versions/{version}", status_code=204)
async def delete_version(name: str, version: str, use: Use) -> None:
    """Delete a version; refused while it is loaded or an alias points at it. Its number is never given again."""
    await use.registry.delete(name, parse_version(version))


@routes.get("/models/{name}/versions/{version}/graph")
async def get_graph(
    name: str, version: str, use: Use, form: Annotated[Literal["json"] | GraphForm, Query(alias="format")] = "json"
) -> Response:
    """The version's graph as JSON, as a picture (`svg`), or as the text of one (`mermaid`)."""
    if form != "json":
        picture = await use.registry.picture(name, parse_version(version), form)
        return Response(picture, media_type=_PICTURES[form], headers=_INERT)
    graph, _ = await use.registry.describe(name, parse_version(version))
    return Response(graph, media_type="application/json")


@routes.get("/models/{name}/versions/{version}/summary", response_class=PlainTextResponse)
async def get_summary(name: str, version: str, use: Use) -> str:
    """The version's layers as a table of text."""
    _, summary = await use.registry.describe(name, parse_version(version))
    return summary


@routes.get("/models/{name}/versions/{version}/params", response_class=StreamingResponse)
async def get_params(name: str, version: str, use: Use) -> StreamingResponse:
    """The version's parameters as safetensors."""
    bundle = await use.registry.bundle(name, parse_version(version))
    size = await asyncio.to_thread(member_size, bundle, "params.safetensors")
    chunks = member_chunks(bundle, "params.safetensors")
    headers = {"content-length": str(size), **_attachment(f"{name}-{parse_version(version)}.safetensors")}
    return StreamingResponse(chunks, media_type="application/octet-stream", headers=headers)


@routes.get("/models/{name}/versions/{version}/bundle", response_class=FileResponse)
async def get_bundle(name: str, version: str, use: Use) -> FileResponse:
    """The version's bundle file."""
    bundle = await use.registry.bundle(name, parse_version(version))
    filename = f"{name}-{parse_version(version)}.axon"
    return FileResponse(bundle, media_type="application/octet-stream", filename=filename)


@routes.put("/models/{name}/aliases/{alias}", openapi_extra=described(AliasRequest), response_model_exclude_none=True)
async def move_alias(name: str, alias: str, request: Request, use: Use) -> AliasInfo:
    """Point an alias at a version, or at several that share its requests by `weights` (a canary).

    They are loaded first; when one fails the alias stays where it is.
    """
    target = (await read_model(request, AliasRequest, what="alias")).target()
    await use.registry.set_alias(name, alias, target)
    return AliasInfo.from_core(name, alias, target)


@routes.post("/models/{name}/aliases/{alias}:rollback", response_model_exclude_none=True)
async def roll_back(name: str, alias: str, use: Use) -> AliasInfo:
    """Point an alias where it pointed before, which is loaded still; a second time goes forth again.

    409 where nothing is known of before.
    """
    return AliasInfo.from_core(name, alias, await use.registry.roll_back(name, alias))


@routes.delete("/models/{name}/aliases/{alias}", status_code=204)
async def delete_alias(name: str, alias: str, use: Use) -> None:
    """Remove an alias; the version stays loaded."""
    await use.registry.delete_alias(name, alias)


async def _model(use: Context, name: str, replicas: Sequence[Replica]) -> ModelInfo:
    state, stored = await use.registry.stored(name)
    known = {status.version: status for status in use.registry.status(name)}
    aliases = use.registry.aliases(name)
    versions = [VersionInfo.from_core(v, known[v.version], aliases) for v in stored if v.version in known]
    return ModelInfo.from_core(state, versions, replicas, use.registry.degraded().get(name, ()))


async def _version(use: Context, stored: StoredVersion) -> VersionInfo:
    status = use.registry.version_status(stored.name, stored.version)
    return VersionInfo.from_core(stored, status, use.registry.aliases(stored.name))


async def _receive(request: Request, folder: Path, use: Context) -> Mapping[str, Path]:
    """The upload as files: part `bundle`, or `graph` and perhaps `params`."""
    largest = use.limits.max_bundle_bytes
    if not request.headers.get("content-type", "").startswith("multipart/"):
        path = folder / "bundle"
        chunks = body_chunks(request, limit_bytes=largest, what="bundle")
        await receive(chunks, path, limit_bytes=largest, what="bundle")
        return {"bundle": path}
    limits = {"bundle": largest, "graph": use.limits.max_graph_bytes, "params": largest}
    parts = await receive_parts(request, folder, limits)
    if set(parts) not in ({"bundle"}, {"graph"}, {"graph", "params"}):
        raise InvalidRequest(f"multipart body: expected bundle, or graph and perhaps params; got {sorted(parts)}")
    return parts


def _attachment(filename: str) -> dict[str, str]:
    return {"content-disposition": f'attachment; filename="{filename}"'}
