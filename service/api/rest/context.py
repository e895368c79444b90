"""What the routes of /v1 work with, put into the application once by `create_app`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request

from service.core.datasets import DatasetService
from service.core.jobs import JobService
from service.core.limits import Limits
from service.core.registry import Registry
from service.core.uploads import UploadService


@dataclass(frozen=True, slots=True)
class Context:
    """The core's services and the limits on bodies; `stopping` ends streams that would otherwise last."""

    registry: Registry
    datasets: DatasetService
    jobs: JobService
    uploads: UploadService
    limits: Limits
    stopping: asyncio.Event
    heartbeat_s: float = 15.0


def context_of(request: Request) -> Context:
    """The application's context."""
    return cast(Context, request.app.state.context)


Use = Annotated[Context, Depends(context_of)]
