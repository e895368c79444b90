"""Ray Serve: the bytes of an FP32 row in, the bytes of ten FP32 values out, with its batching (64 rows, 1 ms).

    python ray_server.py FOLDER HTTP_PORT GRPC_PORT

`POST /NAME` for every `FOLDER/NAME.onnx`; one replica of each.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import forward
import numpy as np
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.1})
class Served:
    """One model."""

    def __init__(self, path: str) -> None:
        self._run = forward.onnxruntime(path)
        self._shape = forward.shape(Path(path).stem)

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.001)
    async def rows(self, bodies: list[bytes]) -> list[bytes]:
        """Compute where the handler runs."""
        image = np.frombuffer(b"".join(bodies), np.float32).reshape(len(bodies), *self._shape)
        return [row.tobytes() for row in self._run(image)]

    async def __call__(self, request: Request) -> Response:
        """One row."""
        return Response(await self.rows(await request.body()), media_type="application/octet-stream")


def main() -> None:
    """Until SIGTERM."""
    folder, port, _ = sys.argv[1:]
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parent)
    ray.init(num_cpus=2, include_dashboard=False, configure_logging=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
    for path in sorted(Path(folder).glob("*.onnx")):
        serve.run(Served.bind(str(path.resolve())), name=path.stem, route_prefix=f"/{path.stem}")
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    stopped.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
