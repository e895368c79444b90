"""The Open Inference Protocol over HTTP, except inference itself (see `dispatch`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from fastapi import APIRouter, Response

from service.api.descriptions import model_config, model_statistics
from service.core.errors import NotReady
from service.core.inference import InferenceService, ModelMetadata
from service.core.types import TensorSpec


def router(inference: InferenceService) -> APIRouter:
    """Health, server metadata, and the models: metadata, readiness, configuration, statistics."""
    routes = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])
    _add_server(routes, inference)
    _add_models(routes, inference)
    return routes


def _add_server(routes: APIRouter, inference: InferenceService) -> None:
    @routes.get("", summary="Server metadata")
    async def server_metadata() -> Response:
        server = inference.server_metadata()
        return _json({"name": server.name, "version": server.version, "extensions": server.extensions})

    @routes.get("/health/live", summary="Whether the process answers")
    async def live() -> Response:
        return _json({"live": inference.live()})

    @routes.get("/health/ready", summary="Whether the server takes traffic")
    async def ready() -> Response:
        if reasons := inference.unready():
            raise NotReady(f"the server is not ready: {'; '.join(reasons)}")
        return _json({"ready": True, "live": True})

    @routes.get("/models", summary="Names of all models")
    async def models() -> Response:
        return _json({"models": inference.models()})


def _add_models(routes: APIRouter, inference: InferenceService) -> None:
    # Before `/models/{name}`, which would take it for a model.
    @routes.get("/models/stats", summary="Statistics of all models")
    async def all_statistics() -> Response:
        return _json(model_statistics(inference.served()))

    @routes.get("/models/{name}/stats", summary="Statistics of all versions")
    async def statistics(name: str) -> Response:
        return _json(model_statistics(inference.served(name)))

    @routes.get("/models/{name}/versions/{version}/stats", summary="Statistics of a version")
    async def version_statistics(name: str, version: str) -> Response:
        return _json(model_statistics([inference.model(name, version)]))

    @routes.get("/models/{name}/config", summary="Model configuration")
    @routes.get("/models/{name}/versions/{version}/config", summary="Model configuration")
    async def configuration(name: str, version: str | None = None) -> Response:
        return _json(model_config(inference.model(name, version)))

    @routes.get("/models/{name}", summary="Model metadata")
    @routes.get("/models/{name}/versions/{version}", summary="Model metadata")
    async def model_metadata(name: str, version: str | None = None) -> Response:
        return _json(metadata_body(inference.model_metadata(name, version)))

    @routes.get("/models/{name}/ready", summary="Whether a model answers")
    @routes.get("/models/{name}/versions/{version}/ready", summary="Whether a version answers")
    async def model_ready(name: str, version: str | None = None) -> Response:
        if not inference.model_ready(name, version):
            raise NotReady(f"model {name!r} is not ready")
        return _json({"name": name, "ready": True})


def metadata_body(metadata: ModelMetadata) -> dict[str, Any]:
    """A model's metadata as the protocol spells it."""
    return {
        "name": metadata.name,
        "versions": [str(version) for version in metadata.versions],
        "platform": metadata.platform,
        "inputs": _tensors(metadata.inputs),
        "outputs": _tensors(metadata.outputs),
    }


def _tensors(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
    return [{"name": spec.name, "datatype": spec.datatype, "shape": spec.shape} for spec in specs]


def _json(body: Any) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")
