"""The Open Inference Protocol's request and reply bodies, in JSON and with binary tensors."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np

NO_CLASSES: Mapping[str, int] = MappingProxyType({})

HEADER_LENGTH = "Inference-Header-Content-Length"

DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def encode(
    inputs: Mapping[str, np.ndarray],
    outputs: Sequence[str] | None,
    *,
    binary: bool,
    classes: Mapping[str, int] = NO_CLASSES,
) -> tuple[bytes, dict[str, str]]:
    """The body and headers of a request; raises `TypeError` for an array without a datatype in the protocol."""
    tensors: list[dict[str, Any]] = []
    segments: list[bytes] = []
    for name, value in inputs.items():
        array = np.asarray(value)
        tensor: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": _name(name, array)}
        if binary:
            segments.append(_to_bytes(array))
            tensor["parameters"] = {"binary_data_size": len(segments[-1])}
        else:
            tensor["data"] = _to_list(array)
        tensors.append(tensor)
    request: dict[str, Any] = {"inputs": tensors}
    if binary:
        request["parameters"] = {"binary_data_output": True}
    if outputs is not None or classes:
        request["outputs"] = [_output(name, classes) for name in (classes if outputs is None else outputs)]
    header = json.dumps(request).encode()
    if not binary:
        return header, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(header))}
    return b"".join([header, *segments]), headers


def decode(body: bytes, header_length: str | None) -> dict[str, np.ndarray]:
    """The outputs of a reply by name; raises `ValueError` for a reply that contradicts itself."""
    end = len(body) if header_length is None else int(header_length)
    arrays = {}
    at = end
    for tensor in json.loads(body[:end])["outputs"]:
        size = tensor.get("parameters", {}).get("binary_data_size")
        if size is None:
            flat = _from_list(tensor["data"], tensor["datatype"])
        else:
            flat = _from_bytes(body[at : at + size], tensor["datatype"])
            at += size
        arrays[tensor["name"]] = flat.reshape(tensor["shape"])
    if at != len(body):
        raise ValueError(f"reply: expected {at} bytes, got {len(body)}")
    return arrays


def _output(name: str, classes: Mapping[str, int]) -> dict[str, Any]:
    return {"name": name, "parameters": {"classification": classes[name]}} if name in classes else {"name": name}


def _name(name: str, array: np.ndarray) -> str:
    if array.dtype.kind in "OSU":
        return "BYTES"
    found = _NAMES.get(array.dtype.newbyteorder("<") if array.dtype.kind in "iuf" else array.dtype)
    if found is None:
        raise TypeError(f"input {name!r}: expected one of {', '.join(DTYPES)} or text, got NumPy's {array.dtype}")
    return found


def _to_bytes(array: np.ndarray) -> bytes:
    if array.dtype.kind in "OSU":
        elements = [e.encode() if isinstance(e, str) else bytes(e) for e in array.reshape(-1).tolist()]
        return b"".join(struct.pack("<I", len(element)) + element for element in elements)
    little = array.dtype.newbyteorder("<") if array.dtype.kind in "iuf" else array.dtype
    return array.astype(little, copy=False).tobytes()


def _to_list(array: np.ndarray) -> list[Any]:
    flat: list[Any] = array.reshape(-1).tolist()
    if array.dtype.kind in "OS":
        return [e.decode() if isinstance(e, bytes) else e for e in flat]
    return flat


def _from_bytes(data: bytes, datatype: str) -> np.ndarray:
    if datatype != "BYTES":
        return np.frombuffer(data, DTYPES[datatype])
    elements, at = [], 0
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at)
        elements.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return np.array(elements, object)


def _from_list(data: list[Any], datatype: str) -> np.ndarray:
    if datatype == "BYTES":
        return np.array(data, object)
    dtype = DTYPES[datatype]
    if dtype.kind in "fV":
        return np.array([float(value) for value in data], np.float64).astype(dtype)
    return np.array(data, dtype)
