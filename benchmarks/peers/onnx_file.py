"""Just enough of ONNX's protobuf to write a feed-forward model, so that no environment needs the `onnx` package.

Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

IR_VERSION, OPSET = 8, 17
_FLOAT, _INT64 = 1, 7
_ATTRIBUTE_INT, _ATTRIBUTE_INTS = 2, 7


@dataclass(frozen=True)
class Node:
    """One operator: its type, names of inputs and outputs, and whole numbers as attributes."""

    kind: str
    inputs: Sequence[str]
    output: str
    attributes: Mapping[str, int | Sequence[int]] = field(default_factory=dict)


def model(
    nodes: Sequence[Node],
    tensors: Mapping[str, np.ndarray],
    given: tuple[str, Sequence[int]],
    result: tuple[str, Sequence[int]],
) -> bytes:
    """A model's bytes: FP32 input and output by name and shape, the batch left out."""
    graph = b"".join(_bytes(1, _node(node)) for node in nodes)
    graph += _bytes(2, b"axon")
    graph += b"".join(_bytes(5, _tensor(name, value)) for name, value in tensors.items())
    graph += _bytes(11, _value(*given)) + _bytes(12, _value(*result))
    return _int(1, IR_VERSION) + _bytes(7, graph) + _bytes(8, _bytes(1, b"") + _int(2, OPSET))


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _int(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _bytes(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _node(node: Node) -> bytes:
    names = b"".join(_bytes(1, name.encode()) for name in node.inputs) + _bytes(2, node.output.encode())
    attributes = b"".join(_bytes(5, _attribute(name, value)) for name, value in node.attributes.items())
    return names + _bytes(4, node.kind.encode()) + attributes


def _attribute(name: str, value: int | Sequence[int]) -> bytes:
    if isinstance(value, int):
        return _bytes(1, name.encode()) + _int(3, value) + _int(20, _ATTRIBUTE_INT)
    return _bytes(1, name.encode()) + b"".join(_int(8, each) for each in value) + _int(20, _ATTRIBUTE_INTS)


def _tensor(name: str, value: np.ndarray) -> bytes:
    kind = {"float32": _FLOAT, "int64": _INT64}[value.dtype.name]
    sizes = b"".join(_int(1, size) for size in value.shape)
    return sizes + _int(2, kind) + _bytes(8, name.encode()) + _bytes(9, np.ascontiguousarray(value).tobytes())


def _value(name: str, shape: Sequence[int]) -> bytes:
    axes = _bytes(1, _bytes(2, b"batch")) + b"".join(_bytes(1, _int(1, size)) for size in shape)
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, _int(1, _FLOAT) + _bytes(2, axes)))
