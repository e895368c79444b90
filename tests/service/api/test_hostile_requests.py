"""Anything at all as a request for inference: it is decoded, or refused with one of the core's errors."""

from __future__ import annotations

import contextlib
import json
import tracemalloc
from typing import Any

import orjson
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from service.api.grpc.convert import request_from_proto
from service.api.grpc.generated import inference_pb2 as pb
from service.api.repository import _load_parameters, _read_config
from service.api.rest.tensors import decode_raw_request, decode_request
from service.core.datatypes import DATATYPES
from service.core.errors import InvalidRequest, ServiceError
from tests.service.core.served import spec

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-3, 5),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["NaN", "x", "\x00", "FP32", "binary_data_size"]),
    st.lists(st.integers(-2, 3), max_size=4),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
NAMES = st.sampled_from(["x", "y", ""])
KEYS = st.sampled_from(
    [
        "binary_data_size",
        "binary_data",
        "classification",
        "shared_memory_region",
        "priority",
        "timeout",
        "sequence_id",
        "sequence_start",
        "binary_data_output",
        "triton_x",
        "headers",
        "custom",
    ]
)
PARAMETERS = st.one_of(ODD, st.dictionaries(KEYS, ODD, max_size=3))
SHAPES = st.one_of(
    ODD,
    st.lists(st.integers(0, 3), max_size=3),
    st.just([2**40, 2**40]),
    st.sampled_from([[0, 2**63], [0, 2**60], [2**31, 0, 2**31]]),
)
TENSORS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.one_of(NAMES, ODD),
        "shape": SHAPES,
        "datatype": st.one_of(st.sampled_from(list(DATATYPES)), ODD),
        "parameters": PARAMETERS,
        "data": st.one_of(ODD, st.lists(ODD, max_size=6)),
    },
)
REQUESTS = st.fixed_dictionaries(
    {},
    optional={
        "id": ODD,
        "inputs": st.one_of(ODD, st.lists(st.one_of(TENSORS, ODD), max_size=3)),
        "outputs": st.one_of(
            ODD,
            st.lists(st.fixed_dictionaries({}, optional={"name": NAMES, "parameters": PARAMETERS}), max_size=3),
        ),
        "parameters": PARAMETERS,
        "unknown": ODD,
    },
)


def _dumps(value: Any) -> bytes:
    """As a client without scruples would: integers of any size."""
    return json.dumps(value).encode()


@given(REQUESTS, st.binary(max_size=30), st.integers(-2, 2))
def test_json_of_any_kind(content: Any, rest: bytes, off: int) -> None:
    """Known keys with unlikely values, bytes behind it, a header length that is wrong."""
    body = _dumps(content)
    with contextlib.suppress(ServiceError):
        decode_request(body + rest, max(0, len(body) + off))


@given(st.binary(max_size=200))
def test_bytes_of_any_kind(body: bytes) -> None:
    """No JSON, and raw requests."""
    for length in (None, len(body) // 2, len(body) + 1):
        with contextlib.suppress(ServiceError):
            decode_request(body, length)
    for datatype in ("FP32", "BOOL", "BYTES"):
        for rows in (0, 4):
            with contextlib.suppress(ServiceError):
                decode_raw_request(body, spec(datatype=datatype, max_batch_size=rows))


@st.composite
def messages(draw: st.DrawFn) -> pb.ModelInferRequest:
    """Raw and typed contents in any mixture."""
    message = pb.ModelInferRequest(model_name=draw(NAMES), raw_input_contents=draw(st.lists(st.binary(max_size=9))))
    for _ in range(draw(st.integers(0, 3))):
        item = message.inputs.add(
            name=draw(NAMES),
            datatype=draw(st.sampled_from([*DATATYPES, "", "FLOAT"])),
            shape=draw(st.lists(st.sampled_from([0, 1, 2, -1, 2**62, 2**63 - 1]), max_size=3)),
        )
        if draw(st.booleans()):
            item.contents.fp32_contents.extend(draw(st.lists(st.floats(width=32), max_size=3)))
        if draw(st.booleans()):
            item.contents.int_contents.extend(draw(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3)))
        if draw(st.booleans()):
            item.contents.bytes_contents.extend(draw(st.lists(st.binary(max_size=3), max_size=3)))
        item.parameters[draw(KEYS)].int64_param = draw(st.integers(-(2**63), 2**63 - 1))
    message.parameters[draw(KEYS)].uint64_param = draw(st.integers(0, 2**64 - 1))
    message.outputs.add(name=draw(NAMES)).parameters[draw(KEYS)].string_param = draw(st.text(max_size=3))
    return message


@given(messages())
def test_messages_of_any_kind(message: pb.ModelInferRequest) -> None:
    """Decoded or refused."""
    with contextlib.suppress(ServiceError):
        request_from_proto(message)


@given(messages(), st.data())
def test_frames_of_any_kind(message: pb.ModelInferRequest, data: st.DataObject) -> None:
    """A message with changed bytes, where protobuf takes it."""
    frame = bytearray(message.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        if frame:
            frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ServiceError, DecodeError):
        request_from_proto(pb.ModelInferRequest.FromString(bytes(frame)))


@given(st.dictionaries(st.one_of(st.text(max_size=9), st.just("file:1/graph.json"), st.just("config")), ODD))
def test_load_parameters_of_any_kind(parameters: dict[str, Any]) -> None:
    """Read or refused."""
    with contextlib.suppress(ServiceError):
        _load_parameters(parameters)


@given(st.dictionaries(st.sampled_from(["max_batch_size", "dynamic_batching", "input", "name"]), ODD))
def test_configurations_of_any_kind(given_: dict[str, Any]) -> None:
    """Read, or noted as problems; what is read is a number within bounds."""
    serving: dict[str, Any] = {}
    told = {"name": "m", "input": [{"name": "x", "dims": [3]}], "dynamic_batching": {"priority_levels": 3}}
    _read_config(given_, told, "", serving, [])
    assert all(0 <= value < 2**53 for value in serving.values())


@pytest.mark.parametrize(
    "body",
    [
        b'{"inputs":[{"name":"x","shape":[%b],"datatype":"FP32","data":[1]}]}' % b",".join([b"1"] * 100_000),
        b'{"inputs":[{"name":"x","shape":[1000000000,1000],"datatype":"FP64","data":[1]}]}',
        b'{"inputs":[{"name":"x","shape":[1000000000,1000],"datatype":"BYTES","parameters":{"binary_data_size":0}}]}',
        b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":%b}]}' % (b"[" * 1000 + b"]" * 1000),
        b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[%b]}]}' % (b"9" * 100_000),
        b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[NaN,%b]}]}' % (b"9" * 100_000),
        orjson.dumps({"inputs": [{"name": "x" * 100_000}] * 2}),
    ],
)
def test_made_up_sizes_take_no_memory(body: bytes) -> None:
    """What is refused has not taken more than some times its own length."""
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest) as raised:
            decode_request(body, None)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000 + 40 * len(body)
    finally:
        tracemalloc.stop()
    assert len(str(raised.value)) < 2500


@pytest.mark.parametrize(
    "place",
    [
        '{"inputs": [{"name": "x", "datatype": "FP32", "shape": [%s], "data": [1]}]}',
        '{"inputs": [{"name": "x", "datatype": %s, "shape": [1], "data": [1]}]}',
        '{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": %s}}]}',
        '{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [{"a": %s}]}]}',
        '{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}], "parameters": {"timeout": %s}}',
        '{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}],'
        ' "parameters": {"binary_data_output": %s}}',
        '{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}],'
        ' "outputs": [{"name": "y", "parameters": {"classification": %s}}]}',
    ],
)
def test_message_about_a_deep_value(place: str):
    """What is nested as deeply as the parser takes is refused, not lost in showing it."""
    for depth in (990, 1010):
        with pytest.raises(InvalidRequest):
            decode_request((place % ("[" * depth + "]" * depth)).encode(), None)
