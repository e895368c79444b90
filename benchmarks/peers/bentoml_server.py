"""BentoML: JSON `{"image": [[...]]}` to `[[...]]`, with its adaptive batching (64 rows).

    python bentoml_server.py FOLDER HTTP_PORT GRPC_PORT

Becomes `bentoml serve`, which imports this file again; the folder is then in `PEER_FOLDER`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import bentoml
import forward
import numpy as np
from bentoml.validators import DType

Rows = Annotated[np.ndarray, DType("float32")]


@bentoml.service(workers=1, traffic={"timeout": 60, "max_concurrency": 256})
class Peer:
    """A route for each model."""

    def __init__(self) -> None:
        self._models = {path.stem: forward.onnxruntime(path) for path in Path(os.environ["PEER_FOLDER"]).glob("*.onnx")}

    @bentoml.api(route="/mlp", batchable=True, max_batch_size=64, max_latency_ms=10_000)
    def mlp(self, image: Rows) -> Rows:
        """784-128-10."""
        return self._models["mlp"](image)

    @bentoml.api(route="/wide", batchable=True, max_batch_size=64, max_latency_ms=10_000)
    def wide(self, image: Rows) -> Rows:
        """784-2048-2048-10."""
        return self._models["wide"](image)

    @bentoml.api(route="/cnn", batchable=True, max_batch_size=64, max_latency_ms=10_000)
    def cnn(self, image: Rows) -> Rows:
        """Two convolutions."""
        return self._models["cnn"](image)


def main() -> None:
    """Become the server."""
    folder, port, _ = sys.argv[1:]
    environment: dict[str, Any] = os.environ | {"PEER_FOLDER": str(Path(folder).resolve()), "BENTOML_DO_NOT_TRACK": "1"}
    program = str(Path(sys.executable).with_name("bentoml"))
    here = str(Path(__file__).resolve().parent)
    command = [program, "serve", "bentoml_server:Peer", "--host", "127.0.0.1", "--port", port, "--working-dir", here]
    os.execve(program, [*command, "--quiet"], environment)


if __name__ == "__main__":
    main()
