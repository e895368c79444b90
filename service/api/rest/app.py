"""The REST application: everything but inference itself, which `dispatch` answers in front of it."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, FastAPI

from service.api.rest import errors, v1_datasets, v1_jobs, v1_models, v1_uploads
from service.api.rest.context import Context
from service.api.rest.description import Application

_DESCRIPTION = """Submit neural networks as data, train them through a queue, and get batched predictions.

Predictions follow the Open Inference Protocol under `/v2`; models, data sets and training jobs are under `/v1`.
Every error is `{"error": text}`, with a list `details` of `{path, expected, got}` where there are several defects."""


def create_app(context: Context, routers: Sequence[APIRouter] = (), *, version: str) -> FastAPI:
    """The application over the core's services; `routers` are further ones, such as the Open Inference Protocol's."""
    app = Application(
        title="Axon",
        version=version,
        description=_DESCRIPTION,
        docs_url="/docs",
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.context = context
    errors.install(app)
    for router in (*routers, v1_models.routes, v1_datasets.routes, v1_uploads.routes, v1_jobs.routes):
        app.include_router(router)
    return app
