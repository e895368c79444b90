"""Run as a process of its own: tritonclient's generated protobuf and ours cannot live in one.

Reads images from an npz file, asks a served model over every wire, prints the answers as JSON.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http


def over_http(url: str, model: str, array: np.ndarray, *, binary: bool) -> np.ndarray:
    """One request over HTTP, tensors as JSON or as bytes in both directions."""
    with triton_http.InferenceServerClient(url) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(model)
        metadata = client.get_model_metadata(model)
        (given,), (asked,) = metadata["inputs"], metadata["outputs"]
        tensor = triton_http.InferInput(given["name"], list(array.shape), given["datatype"])
        tensor.set_data_from_numpy(array, binary_data=binary)
        output = triton_http.InferRequestedOutput(asked["name"], binary_data=binary)
        return client.infer(model, [tensor], outputs=[output], request_id="7").as_numpy(asked["name"])


def over_grpc(url: str, model: str, array: np.ndarray) -> np.ndarray:
    """One request over gRPC."""
    with triton_grpc.InferenceServerClient(url) as client:
        assert client.is_server_live()
        assert client.is_model_ready(model)
        metadata = client.get_model_metadata(model)
        tensor = triton_grpc.InferInput(metadata.inputs[0].name, list(array.shape), metadata.inputs[0].datatype)
        tensor.set_data_from_numpy(array)
        return client.infer(model, [tensor]).as_numpy(metadata.outputs[0].name)


def main() -> None:
    """Arguments: HTTP address, gRPC address, model, npz file with `x`."""
    http, grpc, model, path = sys.argv[1:]
    array = np.load(path)["x"]
    answers = {
        "http json": over_http(http, model, array, binary=False),
        "http binary": over_http(http, model, array, binary=True),
        "grpc": over_grpc(grpc, model, array),
    }
    print(json.dumps({wire: answer.tolist() for wire, answer in answers.items()}))


if __name__ == "__main__":
    main()
