"""MLServer: the Open Inference Protocol as JSON and gRPC, with its adaptive batching (64 rows, 1 ms), in one process.

python mlserver_server.py FOLDER HTTP_PORT GRPC_PORT
"""

from __future__ import annotations

import sys
from pathlib import Path

import forward
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.settings import ModelParameters
from mlserver.types import InferenceRequest, InferenceResponse


class Served(MLModel):
    """One model; the server gathers the rows."""

    async def load(self) -> bool:
        """Read the weights."""
        self._run = forward.onnxruntime(self.settings.parameters.uri)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Compute where the handler runs."""
        values = self._run(NumpyCodec.decode_input(payload.inputs[0]))
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("softmax", values)])


async def serve(files: list[Path], http_port: int, grpc_port: int) -> None:
    """Until SIGTERM."""
    settings = Settings(
        host="127.0.0.1",
        http_port=http_port,
        grpc_port=grpc_port,
        parallel_workers=0,
        metrics_endpoint=None,
        debug=False,
    )
    models = [
        ModelSettings(
            name=path.stem,
            implementation=Served,
            parameters=ModelParameters(uri=str(path)),
            max_batch_size=64,
            max_batch_time=0.001,
        )
        for path in files
    ]
    await MLServer(settings).start(models)


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve(sorted(Path(sys.argv[1]).glob("*.onnx")), int(sys.argv[2]), int(sys.argv[3])))
