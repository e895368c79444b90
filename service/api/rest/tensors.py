"""The wire form of inference over HTTP: JSON, and the binary tensor data extension behind it.

`Inference-Header-Content-Length: N` splits a body into N bytes of JSON and the tensors' bytes, little-endian and
row-major, in the order of the JSON. Without it the body is JSON; with N = 0 it is the bytes of the only input.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from service.api.parameters import UNSCHEDULED, Schedule, class_count, schedule
from service.api.raw_tensors import read_raw, write_raw
from service.api.rest.values import may_hold_booleans, read_values, write_values
from service.core.datatypes import datatype, element_count, name_of
from service.core.errors import InvalidRequest, Unsupported, shown
from service.core.types import InferResult, ModelSpec

if TYPE_CHECKING:
    from service.api.rest.templates import Template

_SHARED_MEMORY = ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size")
_NOTHING: Mapping[str, Any] = {}
_FEW_BYTES = 1024
"""In less JSON it is not worth it to look for booleans."""


@dataclass(slots=True)
class WireRequest:
    """A decoded request body.

    `binary` tells per output whether it goes back as bytes; `binary_all` for the others. `classes` tells for which
    outputs how many of the largest values are wanted instead. `template` is the form that it has in common with others.
    """

    inputs: dict[str, np.ndarray]
    outputs: list[str] | None = None
    id: str = ""
    schedule: Schedule = UNSCHEDULED
    binary_all: bool = False
    binary: Mapping[str, bool] = field(default_factory=dict)
    classes: dict[str, int] | None = None
    template: Template | None = None


def decode_request(body: bytes, header_length: int | None) -> WireRequest:
    """Read an inference request; raises `InvalidRequest` or `Unsupported`.

    `header_length` is N, None where the header was absent. Arrays of binary inputs are views of `body`.
    """
    if header_length is None:
        header_length = len(body)
    elif header_length > len(body):
        raise InvalidRequest(
            f"Inference-Header-Content-Length: expected at most the body's {len(body)} bytes, got {header_length}"
        )
    text = body if header_length == len(body) else body[:header_length]
    content = _parse(text)
    if not isinstance(content, dict):
        raise InvalidRequest(f"request: expected a JSON object, got {type(content).__name__}")
    parameters = _object(content, "parameters", "parameters")
    numbers = len(text) > _FEW_BYTES and not may_hold_booleans(text)
    request = WireRequest(_inputs(content, body, header_length, numbers))
    request.id = _id(content)
    request.schedule = schedule(parameters)
    request.binary_all = _flag(parameters, "binary_data_output", "parameters", False)
    if "outputs" in content:
        _read_outputs(content["outputs"], request)
    return request


def decode_raw_request(body: bytes, spec: ModelSpec) -> WireRequest:
    """Read a body that is the bytes of the model's only input (N = 0): one row, answered in binary.

    Raises `InvalidRequest` when the model has several inputs or open sizes that the length does not settle.
    """
    if len(spec.inputs) != 1:
        raise InvalidRequest(f"raw request: expected a model with one input, this one has {len(spec.inputs)}")
    tensor = spec.inputs[0]
    entry = datatype(tensor.datatype)
    where = f"raw request: input {tensor.name!r}"
    shape = [1, *tensor.shape[1:]] if spec.max_batch_size else list(tensor.shape)
    if entry.name == "BYTES":
        element = np.empty((1,) * max(len(shape), 1), object)
        element.reshape(-1)[0] = body
        return WireRequest({tensor.name: element}, binary_all=True)
    if shape.count(-1) > 1:
        raise InvalidRequest(f"{where}: expected at most one open size, its shape is {list(tensor.shape)}")
    if -1 in shape:
        known = math.prod(size for size in shape if size != -1) * entry.itemsize
        shape[shape.index(-1)] = len(body) // known if known else 0
    array = read_raw(body, 0, len(body), entry, shape, math.prod(shape), where)
    return WireRequest({tensor.name: array}, binary_all=True)


def encode_result(result: InferResult, request: WireRequest) -> tuple[bytes, int | None]:
    """The reply's body, and N when any output is binary; raises `InvalidRequest` for bytes that JSON cannot carry."""
    outputs: list[dict[str, Any]] = []
    segments: list[bytes] = []
    binary, binary_all = request.binary, request.binary_all
    for name, array in result.outputs.items():
        output: dict[str, Any] = {"name": name, "datatype": name_of(array.dtype), "shape": array.shape}
        if binary.get(name, binary_all):
            segment = write_raw(array)
            segments.append(segment)
            output["parameters"] = {"binary_data_size": len(segment)}
        else:
            output["data"] = orjson.Fragment(write_values(array))
        outputs.append(output)
    content: dict[str, Any] = {"model_name": result.model, "model_version": str(result.version)}
    if result.id:
        content["id"] = result.id
    content["outputs"] = outputs
    header = orjson.dumps(content)
    if not segments:
        return header, None
    return b"".join((header, *segments)), len(header)


def _parse(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        return _parse_exactly(text, error)


def _parse_exactly(text: bytes, refusal: orjson.JSONDecodeError) -> Any:
    """Read what the fast parser refuses and the protocol allows: bare NaN, Infinity and -Infinity.

    The standard library's parser also allows what is no JSON (a number beyond FP64, half a surrogate pair, other
    encodings), so the fast one judges the text too, with 0 in the place of the bare words; within a string that changes
    nothing of whether it is one.
    """
    if b"NaN" not in text and b"Infinity" not in text:
        raise InvalidRequest(f"request: expected JSON: {refusal}") from refusal
    try:
        orjson.loads(text.replace(b"NaN", b"0").replace(b"Infinity", b"0"))
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"request: expected JSON: {error}") from error


def _inputs(content: Mapping[str, Any], body: bytes, offset: int, numbers: bool) -> dict[str, np.ndarray]:
    given = content.get("inputs")
    if not isinstance(given, list) or not given:
        raise InvalidRequest("inputs: expected a list of at least one input")
    inputs: dict[str, np.ndarray] = {}
    for index, item in enumerate(given):
        if not isinstance(item, dict):
            raise InvalidRequest(f"inputs[{index}]: expected an object, got {type(item).__name__}")
        name = item.get("name")
        if not isinstance(name, str):
            raise InvalidRequest(f"inputs[{index}].name: expected a string")
        where = f"input {name[:128]!r}"
        if name in inputs:
            raise InvalidRequest(f"{where}: expected each input once")
        inputs[name], offset = _input(item, where, body, offset, numbers)
    if offset != len(body):
        raise InvalidRequest(f"body: expected {offset} bytes as the binary_data_sizes say, got {len(body)}")
    return inputs


def _input(item: Mapping[str, Any], where: str, body: bytes, offset: int, numbers: bool) -> tuple[np.ndarray, int]:
    """One input's array, and where the next binary one starts; `numbers`: there are no booleans in its data."""
    entry = datatype(item.get("datatype"))
    shape = item.get("shape")
    if not isinstance(shape, list):
        raise InvalidRequest(f"{where}: expected a shape, got {type(shape).__name__}")
    count = element_count(shape, where)
    parameters = item.get("parameters")
    if parameters is not None:
        parameters = _object(item, "parameters", where)
        _refuse_shared_memory(parameters, where)
        size = parameters.get("binary_data_size")
        if size is not None:
            if item.get("data") is not None:
                raise InvalidRequest(f"{where}: expected data or binary_data_size, got both")
            if type(size) is not int or not 0 <= size <= len(body) - offset:
                raise InvalidRequest(
                    f"{where}: expected binary_data_size from 0 to the {len(body) - offset} bytes left in the body, "
                    f"got {shown(size)}"
                )
            return read_raw(body, offset, size, entry, shape, count, where), offset + size
    if item.get("data") is None:
        raise InvalidRequest(f"{where}: expected data or binary_data_size, got neither")
    values = read_values(item["data"], entry, count, where, without_booleans=numbers)
    return values.reshape(shape), offset


def _read_outputs(given: Any, request: WireRequest) -> None:
    """Note the outputs asked for (none named: all of them), and in which form each."""
    if not isinstance(given, list):
        raise InvalidRequest(f"outputs: expected a list, got {type(given).__name__}")
    binary: dict[str, bool] = {}
    for index, item in enumerate(given):
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str):
            raise InvalidRequest(f"outputs[{index}]: expected an object with a name")
        where = f"output {name[:128]!r}"
        if name in binary:
            raise InvalidRequest(f"{where}: expected each output once")
        parameters = _object(item, "parameters", where)
        _refuse_shared_memory(parameters, where)
        if "classification" in parameters:
            if request.classes is None:
                request.classes = {}
            request.classes[name] = class_count(parameters["classification"], where)
        binary[name] = _flag(parameters, "binary_data", where, request.binary_all)
    request.outputs, request.binary = list(binary) or None, binary


def _refuse_shared_memory(parameters: Mapping[str, Any], where: str) -> None:
    if any(key in parameters for key in _SHARED_MEMORY):
        raise Unsupported(f"{where}: this server does not offer shared memory")


def _object(content: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    value = content.get(key)
    if value is None:
        return _NOTHING
    if not isinstance(value, dict):
        raise InvalidRequest(f"{where}: expected {key} to be an object, got {type(value).__name__}")
    return value


def _flag(parameters: Mapping[str, Any], key: str, where: str, default: bool) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise InvalidRequest(f"{where}: expected {key} to be true or false, got {shown(value)}")
    return value


def _id(content: Mapping[str, Any]) -> str:
    value = content.get("id")
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidRequest(f"id: expected a string, got {type(value).__name__}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest("id: expected Unicode text, got a lone surrogate") from error
    return value
