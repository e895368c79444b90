"""The protocol's extensions for operators over HTTP, and what of it is not offered: told, and never a 404."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import APIRouter, Response

from service.api.operation import (
    TRACE_SETTINGS,
    log_settings,
    no_generation,
    no_log_changes,
    no_shared_memory,
    no_tracing,
)
from service.core.inference import InferenceService


def router(inference: InferenceService) -> APIRouter:
    """Logging, trace settings, shared memory, generate; what is always refused is not in the API's description."""
    routes = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])
    _add_logging(routes)
    _add_trace(routes, inference)
    for kind in ("systemsharedmemory", "cudasharedmemory"):
        _add_shared_memory(routes, f"/{kind}")
    _add_generate(routes)
    return routes


def _add_logging(routes: APIRouter) -> None:
    @routes.get("/logging", summary="How the server logs")
    async def read() -> Response:
        return _json(log_settings())

    @routes.post("/logging", include_in_schema=False)
    async def change() -> Response:
        raise no_log_changes()


def _add_trace(routes: APIRouter, inference: InferenceService) -> None:
    @routes.get("/trace/setting", summary="Trace settings: off")
    async def read() -> Response:
        return _json(TRACE_SETTINGS)

    @routes.get("/models/{name}/trace/setting", summary="A model's trace settings: off")
    async def read_of_model(name: str) -> Response:
        inference.check_model(name)
        return _json(TRACE_SETTINGS)

    @routes.post("/trace/setting", include_in_schema=False)
    @routes.post("/models/{name}/trace/setting", include_in_schema=False)
    async def change() -> Response:
        raise no_tracing()


def _add_shared_memory(routes: APIRouter, path: str) -> None:
    @routes.get(f"{path}/status", summary="Shared memory: none")
    @routes.get(f"{path}/region/{{region}}/status", summary="Shared memory: none")
    async def status() -> Response:
        return _json([])

    @routes.post(f"{path}/region/{{region}}/register", include_in_schema=False)
    async def register() -> Response:
        raise no_shared_memory()

    @routes.post(f"{path}/unregister", summary="Nothing to do: nothing is registered")
    @routes.post(f"{path}/region/{{region}}/unregister", summary="Nothing to do: nothing is registered")
    async def unregister() -> Response:
        return _json({})


def _add_generate(routes: APIRouter) -> None:
    async def generate() -> Response:
        raise no_generation()

    for model in ("/models/{name}", "/models/{name}/versions/{version}"):
        for verb in ("generate", "generate_stream"):
            routes.add_api_route(f"{model}/{verb}", generate, methods=["POST"], include_in_schema=False)


def _json(body: Any) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")
