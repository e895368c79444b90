"""A dispatcher over fakes, and requests as clients send them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from fastapi import FastAPI

from service.api.rest import v2
from service.api.rest.dispatch import App, Dispatcher
from service.api.rest.errors import install
from service.core.inference import InferenceService
from service.core.types import ModelSpec, TensorSpec
from tests.service.api.asgi import Reply, call
from tests.service.core.served import WAIT_S, FakeRegistry, HeldModel, RealClock, serve, spec

INFER = "/v2/models/fake/infer"
X = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
MAX_BODY = 100_000
SHARED = "does not offer shared memory"


def echo_spec(datatype: str, *, max_batch_size: int = 0) -> ModelSpec:
    """One input `x` and one output `y` of the same kind."""
    shape = (-1, -1)
    return ModelSpec((TensorSpec("x", datatype, shape),), (TensorSpec("y", datatype, shape),), max_batch_size, ())


class Server:
    """A dispatcher over fakes."""

    def __init__(self) -> None:
        self.model = HeldModel(spec(max_batch_size=4))
        self.served = [serve(self.model, version=3)]
        for datatype in ("BYTES", "BOOL", "INT64", "BF16", "FP16"):
            echo = HeldModel(echo_spec(datatype), lambda inputs: {"y": inputs["x"]})
            self.served.append(serve(echo, name=datatype))
        inference = InferenceService(FakeRegistry(*self.served, loading=("slow",)), "axon", "1", RealClock())
        app = FastAPI()
        app.include_router(v2.router(inference))
        install(app)
        self.app: App = Dispatcher(app, inference, max_body_bytes=MAX_BODY)

    async def post(self, body: Any, headers: Mapping[str, str] | None = None, path: str = INFER) -> Reply:
        """POST bytes, chunks or an object as JSON."""
        if isinstance(body, dict):
            body = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        reply = await asyncio.wait_for(call(self.app, "POST", path, body, headers), WAIT_S)
        assert reply is not None
        assert int(reply.headers["content-length"]) == len(reply.body)
        return reply


def request(**more: Any) -> dict[str, Any]:
    """A JSON request with X."""
    return {"inputs": [{"name": "x", "shape": [2, 3], "datatype": "FP32", "data": X.ravel()}], **more}


def binary(content: dict[str, Any], *segments: bytes) -> tuple[bytes, dict[str, str]]:
    """Body and headers of the binary tensor data extension."""
    header = orjson.dumps(content)
    return b"".join((header, *segments)), {"Inference-Header-Content-Length": str(len(header))}


def binary_input(array: np.ndarray, datatype: str = "FP32", name: str = "x") -> dict[str, Any]:
    """An input whose bytes follow the JSON."""
    return {
        "name": name,
        "shape": list(array.shape),
        "datatype": datatype,
        "parameters": {"binary_data_size": array.nbytes},
    }


def split(reply: Reply) -> tuple[Any, bytes]:
    """JSON and bytes of a binary reply."""
    length = int(reply.headers["inference-header-content-length"])
    return orjson.loads(reply.body[:length]), reply.body[length:]
