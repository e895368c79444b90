"""/v1/status: whether the server takes traffic, and what of it is not well."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel

from service.core.inference import InferenceService


class PartStatus(BaseModel):
    """A thing that the server stands on; it is not ready while a required one is not well."""

    part: str
    required: bool
    ok: bool
    reason: str
    for_s: float


class ModelsStatus(BaseModel):
    """What is wrong with models: `degraded` has by name what is wanted and failed; the server is ready nevertheless."""

    degraded: dict[str, list[str]]


class ServerStatus(BaseModel):
    """The server as it is now; `reasons` say why it is not ready."""

    live: bool
    ready: bool
    reasons: list[str]
    parts: list[PartStatus]
    models: ModelsStatus


def router(inference: InferenceService) -> APIRouter:
    """One route, which answers whatever is broken."""
    routes = APIRouter(prefix="/v1", tags=["Server"])

    @routes.get("/status", summary="Whether the server takes traffic, and why not")
    async def status() -> ServerStatus:
        reasons = inference.unready()
        parts = [
            PartStatus(
                part=part.part,
                required=part.required,
                ok=not part.reason,
                reason=part.reason,
                for_s=round(part.for_s, 3),
            )
            for part in inference.parts()
        ]
        models = ModelsStatus(degraded=inference.degraded())
        return ServerStatus(live=inference.live(), ready=not reasons, reasons=reasons, parts=parts, models=models)

    return routes
