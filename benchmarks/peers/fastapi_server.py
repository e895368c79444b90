"""A bare FastAPI handler: the bytes of an FP32 row in, the bytes of ten FP32 values out, one call for each request.

    python fastapi_server.py FOLDER HTTP_PORT GRPC_PORT

`POST /NAME` for every `FOLDER/NAME.onnx`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import forward
import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response


def application(folder: Path) -> FastAPI:
    """A route for all models; they are computed where the handler runs."""
    models = {path.stem: forward.onnxruntime(path) for path in folder.glob("*.onnx")}
    app = FastAPI()

    @app.post("/{name}")
    async def predict(name: str, request: Request) -> Response:
        image = np.frombuffer(await request.body(), np.float32).reshape(1, *forward.shape(name))
        return Response(models[name](image).tobytes(), media_type="application/octet-stream")

    return app


if __name__ == "__main__":
    uvicorn.run(
        application(Path(sys.argv[1])), port=int(sys.argv[2]), loop="uvloop", http="httptools", access_log=False
    )
