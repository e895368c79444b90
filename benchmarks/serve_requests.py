"""The same question on every wire and in every server's form: bodies for the load makers, and what is answered."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.catalogue import PLAIN, PROTOCOL, RAW, ROWS
from benchmarks.serve_loads import RPC
from benchmarks.serve_works import Work

BINARY, JSON, GRPC, STREAM = WIRES = ("http-binary", "http-json", "grpc", "grpc-stream")
STREAM_RPC = "/inference.GRPCInferenceService/ModelStreamInfer"
_OCTETS, _JSON = "Content-Type=application/octet-stream", "Content-Type=application/json"
_LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Request:
    """A body in a file, and its headers as `name=value`."""

    body: Path
    headers: tuple[str, ...] = ()

    def named(self) -> dict[str, str]:
        """The headers; answers are not to be compressed."""
        return dict(header.split("=", 1) for header in self.headers) | {"Accept-Encoding": "identity"}


def requests(folder: Path, work: Work) -> dict[tuple[str, str], Request]:
    """By wire and form; the files are in `folder`."""
    image = work.image()
    tensor: dict[str, Any] = {"name": "image", "shape": list(image.shape), "datatype": "FP32"}
    header = json.dumps(
        {
            "inputs": [{**tensor, "parameters": {"binary_data_size": image.nbytes}}],
            "outputs": [{"name": "softmax", "parameters": {"binary_data": True}}],
        }
    ).encode()
    numbers = [float(str(value)) for value in image.ravel()]
    nested = np.array(numbers).reshape(image.shape).tolist()

    def kept(name: str, content: bytes | Any, *headers: str) -> Request:
        path = folder / f"{work.name}-{name}"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return Request(path, headers)

    framed = kept("grpc", _framed(work.name, image))
    return {
        (BINARY, PROTOCOL): kept("binary", header + image.tobytes(), f"{_LENGTH}={len(header)}", _OCTETS),
        (BINARY, RAW): kept("raw", image.tobytes(), _OCTETS),
        (JSON, PROTOCOL): kept("json", {"inputs": [{**tensor, "data": numbers}]}, _JSON),
        (JSON, PLAIN): kept("plain", {"image": nested[0]}, _JSON),
        (JSON, ROWS): kept("rows", {"image": nested}, _JSON),
        (GRPC, PROTOCOL): framed,
        (STREAM, PROTOCOL): framed,
    }


def _framed(model: str, image: np.ndarray) -> bytes:
    """One gRPC frame: a flag, the length, and the message."""
    from service.api.grpc.generated import inference_pb2 as pb

    item = pb.ModelInferRequest.InferInputTensor(name="image", datatype="FP32", shape=image.shape)
    message = pb.ModelInferRequest(model_name=model, inputs=[item], raw_input_contents=[image.tobytes()])
    content = message.SerializeToString()
    return struct.pack(">BI", 0, len(content)) + content


def ask_http(url: str, request: Request, form: str) -> np.ndarray:
    """A server's answer, flat; raises `httpx.HTTPError` when it gives none."""
    import httpx

    body = request.body.read_bytes()
    reply = httpx.post(url, content=body, headers=request.named(), timeout=30).raise_for_status()
    if form == RAW:
        return np.frombuffer(reply.content, np.float32)
    length = reply.headers.get(_LENGTH.lower())
    if length is not None:
        return np.frombuffer(reply.content[int(length) :], np.float32)
    answer = reply.json()
    if form == PROTOCOL:
        answer = answer["outputs"][0]["data"]
    elif form == PLAIN:
        answer = answer["softmax"]
    return np.array(answer, np.float32).ravel()


def ask_grpc(address: str, request: Request, wire: str) -> np.ndarray:
    """A server's answer, flat; raises `grpc.RpcError` when it gives none."""
    import grpc

    from service.api.grpc.generated import inference_pb2 as pb

    message = request.body.read_bytes()[5:]
    with grpc.insecure_channel(address) as channel:
        if wire == GRPC:
            call = channel.unary_unary(RPC, response_deserializer=pb.ModelInferResponse.FromString)
            return _values(call(message, timeout=30))
        calls = channel.stream_stream(STREAM_RPC, response_deserializer=pb.ModelStreamInferResponse.FromString)
        reply = next(iter(calls(iter([message]), timeout=30)))
        if reply.error_message:
            raise RuntimeError(f"{address}: {reply.error_message}")
        return _values(reply.infer_response)


def _values(response: Any) -> np.ndarray:
    if response.raw_output_contents:
        return np.frombuffer(response.raw_output_contents[0], np.float32)
    return np.array(response.outputs[0].contents.fp32_contents, np.float32)
