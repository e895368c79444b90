"""Answers to inference as bytes, put together by hand: values are not copied into a message and out of it again.

Written as protobuf's encoding says (field numbers as in `proto/inference.proto`); tests read them with protobuf.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeVar, final

import numpy as np

from service.api.grpc.generated import inference_pb2 as pb
from service.api.raw_tensors import write_raw
from service.core.datatypes import name_of

_K = TypeVar("_K")

_KEPT: Final = 1024

# Tags of fields whose content has a length: number << 3 | 2.
_MODEL, _VERSION, _ID, _OUTPUT, _RAW = b"\x0a", b"\x12", b"\x1a", b"\x2a", b"\x32"
_NAME, _DATATYPE, _SHAPE = b"\x0a", b"\x12", b"\x1a"
_IN_STREAM: Final = b"\x12"

_FINAL: Final = pb.ModelInferResponse(
    parameters={"triton_final_response": pb.InferParameter(bool_param=True)}
).SerializeToString()


@final
class Answers:
    """Writes `ModelInferResponse`s; what they say of models and of outputs' shapes is kept, as most say the same."""

    def __init__(self) -> None:
        self._models: dict[tuple[str, int], bytes] = {}
        self._outputs: dict[tuple[str, np.dtype, tuple[int, ...]], bytes] = {}

    def pieces(
        self, model: str, version: int, request_id: str, outputs: Mapping[str, np.ndarray], *, streamed: bool
    ) -> tuple[list[bytes], int]:
        """The answer in pieces, and their size together in bytes; `streamed` marks it as its request's last one."""
        head = self._models.get((model, version))
        if head is None:
            head = _keep(self._models, (model, version), _text(_MODEL, model) + _text(_VERSION, str(version)))
        pieces = [head]
        size = len(head)
        if request_id:
            pieces.append(_text(_ID, request_id))
            size += len(pieces[-1])
        if streamed:
            pieces.append(_FINAL)
            size += len(_FINAL)
        values: list[bytes] = []
        for name, array in outputs.items():
            key = (name, array.dtype, array.shape)
            described = self._outputs.get(key)
            if described is None:
                described = _keep(self._outputs, key, _described(name, array))
            raw = write_raw(array)
            prefix = _RAW + varint(len(raw))
            pieces.append(described)
            values += (prefix, raw)
            size += len(described) + len(prefix) + len(raw)
        return pieces + values, size


def framed_in_stream(pieces: list[bytes], size: int) -> tuple[list[bytes], int]:
    """A `ModelStreamInferResponse` around an answer, and its size."""
    prefix = _IN_STREAM + varint(size)
    return [prefix, *pieces], size + len(prefix)


def refusal_in_stream(request_id: str, message: str) -> bytes:
    """A `ModelStreamInferResponse` for a request that failed."""
    failed = pb.ModelInferResponse(id=request_id)
    failed.parameters["triton_final_response"].bool_param = True
    return pb.ModelStreamInferResponse(error_message=message, infer_response=failed).SerializeToString()


def varint(value: int) -> bytes:
    """A number of 0 or more as protobuf writes it."""
    if value < 128:
        return bytes((value,))
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _text(tag: bytes, text: str) -> bytes:
    raw = text.encode()
    return tag + varint(len(raw)) + raw


def _described(name: str, array: np.ndarray) -> bytes:
    shape = b"".join([varint(size) for size in array.shape])
    content = _text(_NAME, name) + _text(_DATATYPE, name_of(array.dtype))
    if shape:
        content += _SHAPE + varint(len(shape)) + shape
    return _OUTPUT + varint(len(content)) + content


def _keep(kept: dict[_K, bytes], key: _K, value: bytes) -> bytes:
    """Remember `value`; clients that make up shapes must not fill the memory."""
    if len(kept) >= _KEPT:
        kept.clear()
    kept[key] = value
    return value
