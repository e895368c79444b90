"""KServe's Python SDK: the Open Inference Protocol over REST and gRPC, without batching (it has none in Python).

python kserve_server.py FOLDER HTTP_PORT GRPC_PORT
"""

from __future__ import annotations

import sys
import uuid
from pathlib import Path
from typing import Any

import forward
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class Served(Model):
    """One model, ready when made."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.stem)
        self._run = forward.onnxruntime(path)
        self.ready = True

    def load(self) -> bool:
        """Nothing is left to load."""
        return True

    async def predict(self, payload: InferRequest, headers: Any = None, response_headers: Any = None) -> InferResponse:
        """Compute where the handler runs."""
        values = self._run(payload.inputs[0].as_numpy())
        output = InferOutput("softmax", list(values.shape), "FP32")
        binary = payload.from_grpc or payload.use_binary_outputs
        output.set_data_from_numpy(values, binary_data=binary)
        name = payload.id or uuid.uuid4().hex
        outputs = payload.request_outputs
        return InferResponse(name, self.name, [output], use_binary_outputs=binary, requested_outputs=outputs)


if __name__ == "__main__":
    folder, http_port, grpc_port = sys.argv[1:]
    server = ModelServer(
        http_port=int(http_port), grpc_port=int(grpc_port), enable_latency_logging=False, access_log_format=None
    )
    server.start([Served(path) for path in Path(folder).glob("*.onnx")])
