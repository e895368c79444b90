"""LitServe: JSON `{"image": [...]}` to `{"softmax": [...]}`, with its batching (64 rows, 1 ms).

python litserve_server.py FOLDER HTTP_PORT GRPC_PORT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import forward
import litserve
import numpy as np


class Served(litserve.LitAPI):
    """One model under `/NAME`, in a process of its own."""

    def __init__(self, path: Path) -> None:
        super().__init__(api_path=f"/{path.stem}", max_batch_size=64, batch_timeout=0.001)
        self._path = path

    def setup(self, device: str) -> None:
        """Read the weights."""
        self._run = forward.onnxruntime(self._path)

    def decode_request(self, request) -> np.ndarray:  # type: ignore[no-untyped-def]
        """One row; LitServe reads JSON only where the argument has no annotation."""
        return np.array(request["image"], np.float32)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """A batch that LitServe stacked."""
        return self._run(x)

    def encode_response(self, output: np.ndarray) -> dict[str, Any]:
        """One row."""
        return {"softmax": output.tolist()}


if __name__ == "__main__":
    served = [Served(path) for path in sorted(Path(sys.argv[1]).glob("*.onnx"))]
    server = litserve.LitServer(served, accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=int(sys.argv[2]), num_api_servers=1, generate_client_file=False, log_level="warning"
    )
