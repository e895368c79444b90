"""The extension model_repository over HTTP."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from service.api.repository import IndexEntry, ModelRepository
from service.api.rest.bodies import read_body
from service.core.errors import InvalidRequest, shown

_INDEX = ("/index", "/{repository}/index")
_LOAD = ("/models/{name}/load", "/{repository}/models/{name}/load")
_UNLOAD = ("/models/{name}/unload", "/{repository}/models/{name}/unload")
_MAX_INDEX_BYTES = 65_536
_READY = {"ready": {"type": "boolean"}}
_PARAMETERS = {"parameters": {"type": "object", "additionalProperties": {"type": ["string", "boolean"]}}}


def router(repository: ModelRepository, *, max_body_bytes: int) -> APIRouter:
    """Index, load, unload; the repository in a path may have any name, there is one. Bodies may be empty."""
    routes = APIRouter(prefix="/v2/repository", tags=["Open Inference Protocol"])

    async def index(request: Request) -> Response:
        body = await _read(request, _MAX_INDEX_BYTES)
        ready_only = body.get("ready", False)
        if not isinstance(ready_only, bool):
            raise InvalidRequest(f"ready: expected true or false, got {shown(ready_only)}")
        entries = [_entry(each) for each in repository.index(ready_only=ready_only)]
        return Response(orjson.dumps(entries), media_type="application/json")

    async def load(name: str, request: Request) -> Response:
        parameters = _parameters(await _read(request, max_body_bytes))
        await repository.load(name, await asyncio.to_thread(_with_files, parameters))
        return Response(orjson.dumps({"name": name, "load": True}), media_type="application/json")

    async def unload(name: str, request: Request) -> Response:
        await repository.unload(name, _parameters(await _read(request, max_body_bytes)))
        return Response(orjson.dumps({"name": name, "unload": True}), media_type="application/json")

    for paths, endpoint, known, summary in (
        (_INDEX, index, _READY, "What is stored, and what each version is doing"),
        (_LOAD, load, _PARAMETERS, "Load a model; answered when it is ready"),
        (_UNLOAD, unload, _PARAMETERS, "Unload a model; answered when its last request has been"),
    ):
        for path in paths:
            described = {"content": {"application/json": {"schema": {"type": "object", "properties": known}}}}
            extra = {"requestBody": described}
            routes.add_api_route(path, endpoint, methods=["POST"], summary=summary, openapi_extra=extra)
    return routes


def _entry(entry: IndexEntry) -> dict[str, str]:
    if not entry.state:
        return {"name": entry.name}
    return {"name": entry.name, "version": entry.version, "state": entry.state, "reason": entry.reason}


async def _read(request: Request, limit_bytes: int) -> Mapping[str, Any]:
    """The body as an object, {} for none."""
    text = await read_body(request, limit_bytes=limit_bytes, what="body")
    if not text.strip():
        return {}
    try:
        body = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"body: expected JSON: {error}") from None
    if not isinstance(body, dict):
        raise InvalidRequest(f"body: expected a JSON object, got {shown(body)}")
    return body


def _parameters(body: Mapping[str, Any]) -> Mapping[str, object]:
    parameters = body.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidRequest(f"parameters: expected an object, got {shown(parameters)}")
    return parameters


def _with_files(parameters: Mapping[str, object]) -> dict[str, object]:
    """`parameters` with the content of files as bytes; raises `InvalidRequest` for text that is no base64."""
    read = dict(parameters)
    for key, value in parameters.items():
        if key.startswith("file:") and isinstance(value, str):
            try:
                read[key] = base64.b64decode(value, validate=True)
            except (binascii.Error, ValueError) as error:
                raise InvalidRequest(f"parameters: expected base64 as content of {shown(key)}: {error}") from None
    return read
