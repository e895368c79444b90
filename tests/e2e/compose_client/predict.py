"""Predicts the model `digits` over HTTP and gRPC at each host named in the arguments; prints the answers as JSON.

Runs in a container beside the cluster. The images come from a seed, so whoever started it can ask for the same.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http


def predict(module: Any, url: str, images: np.ndarray) -> list[Any]:
    """One request with tritonclient's `module`."""
    tensor = module.InferInput("image", list(images.shape), "FP32")
    tensor.set_data_from_numpy(images)
    client = module.InferenceServerClient(url)
    assert client.is_server_ready()
    return client.infer("digits", [tensor]).as_numpy("digit").tolist()


def main(hosts: list[str]) -> None:
    """Ask every host on both wires."""
    images = np.random.default_rng(7).random((3, 8, 8, 1), np.float32)
    wires = ((tritonclient.http, 8000), (tritonclient.grpc, 8001))
    print(json.dumps([predict(module, f"{host}:{port}", images) for host in hosts for module, port in wires]))


if __name__ == "__main__":
    main(sys.argv[1:])
