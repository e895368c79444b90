"""The client's encoding of the Open Inference Protocol against the server's, and against bytes written out by hand."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest

from service.api.rest.tensors import decode_request
from service.client import tensors

ARRAYS = [
    np.array([[True, False]]),
    *(np.array([[0, 1, 100]], dtype) for dtype in ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8")),
    np.array([[1.5, -0.0, 65504.0]], np.float16),
    np.array([[1.5, -2.0]], ml_dtypes.bfloat16),
    np.array([[0.1, 3.4e38, 1e-45]], np.float32),
    np.array([[0.1, 1.7e308]], np.float64),
    np.array([2**63 - 1, -(2**63)]),
    np.array([2**64 - 1], np.uint64),
    np.zeros((0, 3), np.float32),
    np.array([["a", "ü"], ["", "long"]], object),
]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{list(array.shape)}")
def test_server_reads_what_the_client_writes(array, binary):
    """Every datatype arrives exactly, in JSON and as raw bytes."""
    body, headers = tensors.encode({"x": array}, None, binary=binary)
    length = headers.get(tensors.HEADER_LENGTH)
    request = decode_request(body, None if length is None else int(length))
    got = request.inputs["x"]
    if array.dtype == object:
        texts = [e.decode() if isinstance(e, bytes) else e for e in got.reshape(-1).tolist()]
        assert (texts, got.shape) == (array.reshape(-1).tolist(), array.shape)
    else:
        assert got.dtype == array.dtype
        np.testing.assert_array_equal(got, array)


def test_binary_request_is_as_the_protocol_spells_it():
    """A JSON header of the announced length, then the raw little-endian values in order."""
    inputs = {"a": np.array([[1.0]], ">f4"), "b": np.array([7], np.uint8)}
    body, headers = tensors.encode(inputs, ["y"], binary=True)
    length = int(headers["Inference-Header-Content-Length"])
    assert body[length:] == b"\x00\x00\x80\x3f\x07"
    assert json.loads(body[:length]) == {
        "inputs": [
            {"name": "a", "shape": [1, 1], "datatype": "FP32", "parameters": {"binary_data_size": 4}},
            {"name": "b", "shape": [1], "datatype": "UINT8", "parameters": {"binary_data_size": 1}},
        ],
        "parameters": {"binary_data_output": True},
        "outputs": [{"name": "y"}],
    }


def test_reply_with_mixed_outputs_is_read():
    """Binary outputs lie behind the header in their JSON order; JSON ones hold non-finite values as strings."""
    header = json.dumps(
        {
            "model_name": "m",
            "outputs": [
                {"name": "a", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}},
                {"name": "b", "datatype": "FP32", "shape": [3], "data": ["NaN", "-Infinity", 0.5]},
                {"name": "c", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 9}},
                {"name": "d", "datatype": "INT64", "shape": [1], "data": [9223372036854775807]},
            ],
        }
    ).encode()
    body = header + np.float32([1, 2]).tobytes() + b"\x01\0\0\0x\x00\0\0\0"
    outputs = tensors.decode(body, str(len(header)))
    np.testing.assert_array_equal(outputs["a"], np.float32([1, 2]))
    np.testing.assert_array_equal(outputs["b"], np.float32([np.nan, -np.inf, 0.5]))
    assert outputs["c"].tolist() == [b"x", b""]
    assert outputs["d"][0] == 2**63 - 1
    with pytest.raises(ValueError, match="expected"):
        tensors.decode(body + b"!", str(len(header)))


def test_array_without_a_datatype_is_refused():
    """Complex numbers have no datatype in the protocol."""
    with pytest.raises(TypeError, match=r"input 'x'.*complex128"):
        tensors.encode({"x": np.zeros(1, complex)}, None, binary=True)
