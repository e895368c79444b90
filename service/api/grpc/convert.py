"""The wire form of inference over gRPC: protobuf messages to the core's values and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from service.api.grpc.generated import inference_pb2 as pb
from service.api.operation import TRACE_SETTINGS, log_settings
from service.api.parameters import UNSCHEDULED, Schedule, class_count, schedule
from service.api.raw_tensors import check_texts, read_raw
from service.api.repository import IndexEntry
from service.core.datatypes import Datatype, datatype, element_count
from service.core.errors import InvalidRequest, TooLarge, Unsupported
from service.core.inference import ModelMetadata, ServerMetadata
from service.core.types import InferRequest, TensorSpec

_ALLOWED = frozenset({"triton_enable_empty_final_response"})
_SHARED_MEMORY = ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size")
_FIXED = {"bool_contents": 0x0A, "fp32_contents": 0x32, "fp64_contents": 0x3A}
"""Fields whose values take as many bytes on the wire as in an array, with their tags."""

_WIDE_BYTES = 4

MAX_TYPED = 2**20
"""Most values of `contents` in one request, those of fixed width aside: an object each, while the event loop waits."""


def request_from_proto(message: pb.ModelInferRequest) -> tuple[InferRequest, Schedule]:
    """One inference request; raw inputs are views of the message's bytes. Raises `InvalidRequest`, `Unsupported`."""
    wanted = schedule(parameters_from_proto(message.parameters), _ALLOWED) if message.parameters else UNSCHEDULED
    request = InferRequest(message.model_name, message.model_version or None, _inputs(message), id=message.id)
    request.priority = wanted.priority
    if message.outputs:
        _read_outputs(message.outputs, request)
    return request, wanted


def index_to_proto(entries: Sequence[IndexEntry]) -> pb.RepositoryIndexResponse:
    """What is stored, and what each version is doing."""
    index = pb.RepositoryIndexResponse.ModelIndex
    return pb.RepositoryIndexResponse(
        models=[index(name=each.name, version=each.version, state=each.state, reason=each.reason) for each in entries]
    )


def trace_settings_to_proto() -> pb.TraceSettingResponse:
    """Tracing is off."""
    response = pb.TraceSettingResponse()
    for key, value in TRACE_SETTINGS.items():
        response.settings[key].value.extend([value] if isinstance(value, str) else value)
    return response


def log_settings_to_proto() -> pb.LogSettingsResponse:
    """How this process logs."""
    response = pb.LogSettingsResponse()
    for key, value in log_settings().items():
        kind = {bool: "bool_param", int: "uint32_param", str: "string_param"}[type(value)]
        setattr(response.settings[key], kind, value)
    return response


def server_metadata_to_proto(metadata: ServerMetadata) -> pb.ServerMetadataResponse:
    """Who serves."""
    return pb.ServerMetadataResponse(name=metadata.name, version=metadata.version, extensions=metadata.extensions)


def model_metadata_to_proto(metadata: ModelMetadata) -> pb.ModelMetadataResponse:
    """What a model takes and gives."""
    return pb.ModelMetadataResponse(
        name=metadata.name,
        versions=[str(version) for version in metadata.versions],
        platform=metadata.platform,
        inputs=_tensors(metadata.inputs),
        outputs=_tensors(metadata.outputs),
    )


def _tensors(specs: Sequence[TensorSpec]) -> list[pb.ModelMetadataResponse.TensorMetadata]:
    tensor = pb.ModelMetadataResponse.TensorMetadata
    return [tensor(name=spec.name, datatype=spec.datatype, shape=spec.shape) for spec in specs]


def _inputs(message: pb.ModelInferRequest) -> dict[str, np.ndarray]:
    given, raw = message.inputs, message.raw_input_contents
    if not given:
        raise InvalidRequest("inputs: expected at least one input")
    if raw and len(raw) != len(given):
        raise InvalidRequest(f"raw_input_contents: expected one entry per input, {len(given)}, got {len(raw)}")
    inputs: dict[str, np.ndarray] = {}
    one_by_one = 0
    for index, item in enumerate(given):
        name = item.name
        where = f"input {name[:128]!r}"
        if name in inputs:
            raise InvalidRequest(f"{where}: expected each input once")
        if item.parameters and any(key in item.parameters for key in _SHARED_MEMORY):
            raise Unsupported(f"{where}: this server does not offer shared memory")
        entry = datatype(item.datatype)
        shape = tuple(item.shape)
        count = element_count(shape, where)
        if not raw:
            one_by_one += 0 if entry.contents in _FIXED else count
            if one_by_one > MAX_TYPED:
                raise TooLarge(f"{where}: expected at most {MAX_TYPED} values in contents; use raw_input_contents")
            inputs[name] = _typed(item, entry, count, where).reshape(shape)
        elif item.HasField("contents"):
            raise InvalidRequest(f"{where}: expected contents or raw_input_contents, got both")
        else:
            body = raw[index]
            inputs[name] = read_raw(body, 0, len(body), entry, shape, count, where)
    return inputs


def _typed(item: pb.ModelInferRequest.InferInputTensor, entry: Datatype, count: int, where: str) -> np.ndarray:
    """The values of `contents`, which are widened on the wire, as `entry` wants them."""
    if entry.contents is None:
        raise InvalidRequest(f"{where}: expected {entry.name} in raw_input_contents, it has no typed field")
    for field, _ in item.contents.ListFields():
        if field.name != entry.contents:
            raise InvalidRequest(f"{where}: expected {entry.name} in {entry.contents}, got {field.name}")
    values = getattr(item.contents, entry.contents)
    if len(values) != count:
        raise InvalidRequest(f"{where}: expected {count} values as the shape says, got {len(values)}")
    if entry.name == "BYTES":
        check_texts(count, where)
        elements = np.empty(count, object)
        elements[:] = list(values)
        return elements
    if entry.contents in _FIXED:
        return _packed(item.contents, _FIXED[entry.contents], values, entry.dtype)
    wide = np.fromiter(values, entry.dtype if entry.dtype.itemsize >= _WIDE_BYTES else np.int64, count)
    if wide.dtype == entry.dtype:
        return wide
    limits = np.iinfo(entry.dtype)
    fits = (wide >= limits.min) & (wide <= limits.max)
    if not fits.all():
        raise InvalidRequest(f"{where}: expected values of {entry.name}, got {wide[~fits][0]}")
    return wide.astype(entry.dtype)


def _packed(contents: pb.InferTensorContents, tag: int, values: Sequence[Any], dtype: np.dtype) -> np.ndarray:
    """The values of a packed field of fixed width from its bytes: a tenth of what it takes to ask for each."""
    wire = contents.SerializeToString()
    if not wire or wire[0] != tag:  # there are no values, or fields that nobody knows come first
        return np.array(values, dtype)
    at = 1
    while wire[at] & 0x80:  # the length
        at += 1
    return np.frombuffer(wire, dtype, len(values), at + 1)


def _read_outputs(wanted: Sequence[pb.ModelInferRequest.InferRequestedOutputTensor], request: InferRequest) -> None:
    request.outputs = [output.name for output in wanted]
    classes: dict[str, int] = {}
    for output in wanted:
        if not output.parameters:
            continue
        where = f"output {output.name[:128]!r}"
        if any(key in output.parameters for key in _SHARED_MEMORY):
            raise Unsupported(f"{where}: this server does not offer shared memory")
        if "classification" in output.parameters:
            classes[output.name] = class_count(parameters_from_proto(output.parameters)["classification"], where)
    request.classes = classes or None


def parameters_from_proto(
    parameters: Mapping[str, pb.InferParameter] | Mapping[str, pb.ModelRepositoryParameter],
) -> dict[str, Any]:
    """The values of a request's parameters; None for one without."""
    read: dict[str, Any] = {}
    for key, value in parameters.items():
        choice = value.WhichOneof("parameter_choice")
        read[key] = getattr(value, choice) if choice is not None else None
    return read
