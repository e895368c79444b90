"""Typed contents: what protobuf read, as an array, whatever else stands in the message, and no more than is bounded."""

from __future__ import annotations

import numpy as np
import pytest

from service.api.grpc import convert
from service.api.grpc.generated import inference_pb2 as pb
from service.api.grpc.message_bounds import check_fields
from service.core.errors import InvalidRequest, TooLarge

FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
UNKNOWN = b"\x78\x05"
"""A field 15 that the message does not have."""


def asked(datatype: str, values: np.ndarray, *, before: bytes = b"", behind: bytes = b"") -> pb.ModelInferRequest:
    """A request as it comes off the wire, its contents between other bytes."""
    contents = pb.InferTensorContents()
    getattr(contents, FIELDS[datatype]).extend(values.tolist())
    wire = before + contents.SerializeToString() + behind
    request = pb.ModelInferRequest(model_name="m")
    request.inputs.add(name="x", datatype=datatype, shape=values.shape)
    request.inputs[0].contents.MergeFromString(wire)
    return request


@pytest.mark.parametrize(("before", "behind"), [(b"", b""), (UNKNOWN, b""), (b"", UNKNOWN * 40)])
@pytest.mark.parametrize("count", [0, 1, 16, 200, 20_000])
@pytest.mark.parametrize("datatype", FIELDS)
def test_values_are_those_that_were_sent(datatype: str, count: int, before: bytes, behind: bytes):
    """Of every datatype and number, also among fields that are not known."""
    dtype = np.dtype(np.bool_ if datatype == "BOOL" else datatype.replace("FP", "float").lower())
    values = np.random.default_rng(0).integers(0, 2 if datatype == "BOOL" else 100, count).astype(dtype)
    request, _ = convert.request_from_proto(asked(datatype, values, before=before, behind=behind))
    assert request.inputs["x"].dtype == dtype
    np.testing.assert_array_equal(request.inputs["x"], values)


@pytest.mark.parametrize(("datatype", "value"), [("INT8", -129), ("INT16", 2**15), ("UINT8", 256), ("UINT16", 2**16)])
def test_values_that_do_not_fit_are_refused(datatype: str, value: int):
    """The wire's field is wider than the datatype; the first that is wrong is told."""
    with pytest.raises(InvalidRequest, match=f"expected values of {datatype}, got {value}"):
        convert.request_from_proto(asked(datatype, np.array([1, value, 2])))


def test_number_of_values_is_bounded():
    """Of all inputs together, where each is an object; raw contents and those of fixed width take more."""
    request = asked("INT8", np.zeros(convert.MAX_TYPED, np.int8))
    convert.request_from_proto(request)
    request.inputs.add(name="y", datatype="INT8", shape=[1]).contents.int_contents.append(1)
    with pytest.raises(
        TooLarge, match=r"input 'y': expected at most 1048576 values in contents; use raw_input_contents"
    ):
        convert.request_from_proto(request)
    convert.request_from_proto(asked("BOOL", np.zeros(convert.MAX_TYPED + 1, bool)))


@pytest.mark.parametrize(
    "unit",
    [b"\x2a\x00", b"\x32\x00", b"\x3a\x00", b"\x1a\x01a", UNKNOWN, b"\x7b\x7c", b"\x79" + bytes(8), b"\x7d" + bytes(4)],
)
def test_long_message_of_tiny_fields_is_refused_before_it_is_read(unit: bytes):
    """Inputs, outputs and others of no bytes, each of forty times its size in memory; few of any length are right."""
    with pytest.raises(TooLarge, match="at most 4096 fields"):
        check_fields(unit * 2**16)
    check_fields(unit * 4096)
    check_fields(b"\xff" * 2**24)  # a number that does not end: protobuf says so


def test_long_message_as_clients_send_it_is_right():
    """Values of any number, in either form."""
    values = np.arange(2**18, dtype=np.float32)
    message = asked("FP32", values)
    check_fields(message.SerializeToString())
    raw = pb.ModelInferRequest(model_name="m", id="x" * 70_000, raw_input_contents=[values.tobytes()] * 9)
    check_fields(raw.SerializeToString())
