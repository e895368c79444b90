"""Inference over HTTP with bodies that are wrong: each is refused with what was expected and what came."""

from __future__ import annotations

import re
import struct
from typing import Any

import pytest

from tests.service.api.rest.dispatching import (
    SHARED,
    Server,
    X,
    binary,
    binary_input,
    request,
)


def wrong_bodies() -> list[tuple[Any, dict[str, str], str]]:
    """Bodies, headers, and what the error must say."""
    good = {"name": "x", "shape": [2, 3], "datatype": "FP32", "data": X.ravel().tolist()}
    return [
        (b"", {}, "expected JSON"),
        (b"{", {}, "expected JSON"),
        (b"[]", {}, "expected a JSON object, got list"),
        (b'{"inputs":' + b"[" * 5000 + b"]" * 5000 + b"}", {}, "expected JSON"),
        (b'{"inputs":NaN' + b"[" * 5000, {}, "expected JSON"),
        ({}, {}, "inputs: expected a list"),
        ({"inputs": []}, {}, "inputs: expected a list"),
        ({"inputs": [3]}, {}, r"inputs\[0\]: expected an object"),
        ({"inputs": [{**good, "name": 3}]}, {}, r"inputs\[0\].name"),
        ({"inputs": [good, good]}, {}, "each input once"),
        ({"inputs": [good, {**good, "name": "y"}]}, {}, "expected the inputs 'x', got 'x', 'y'"),
        ({"inputs": [{**good, "datatype": "FLOAT"}]}, {}, "datatype: expected one of"),
        ({"inputs": [{**good, "shape": [3, 2]}]}, {}, r"expected shape \[-1, 3\], got \[3, 2\]"),
        ({"inputs": [{**good, "shape": [-2, -3]}]}, {}, "integers >= 0"),
        ({"inputs": [{**good, "shape": [2**32, 2**32]}]}, {}, r"fewer than 2\*\*60"),
        ({"inputs": [{**good, "shape": [0, 2**60], "data": []}]}, {}, r"fewer than 2\*\*60"),
        ({"inputs": [{**good, "shape": "23"}]}, {}, "expected a shape"),
        ({"inputs": [{**good, "data": "x"}]}, {}, "expected data to be a list"),
        ({"inputs": [{"name": "x", "shape": [2, 3], "datatype": "FP32"}]}, {}, "got neither"),
        ({"inputs": [{**good, "data": None}]}, {}, "got neither"),
        ({"inputs": [{**good, "parameters": 3}]}, {}, "parameters to be an object"),
        ({"inputs": [{**good, "parameters": {"binary_data_size": 24}}]}, {}, "got both"),
        ({"inputs": [{**good, "parameters": {"shared_memory_region": "r"}}]}, {}, SHARED),
        ({"inputs": [good], "id": 3}, {}, "id: expected a string"),
        ({"inputs": [good], "parameters": {"triton_x": 1}}, {}, "reserved"),
        ({"inputs": [good], "parameters": {"timeout": -1}}, {}, "parameters.timeout"),
        ({"inputs": [good], "parameters": {"sequence_start": True}}, {}, "sequence_id"),
        ({"inputs": [good], "parameters": {"binary_data_output": 1}}, {}, "binary_data_output"),
        ({"inputs": [good], "outputs": {}}, {}, "outputs: expected a list"),
        ({"inputs": [good], "outputs": [{}]}, {}, r"outputs\[0\]"),
        ({"inputs": [good], "outputs": [{"name": "total"}] * 2}, {}, "each output once"),
        ({"inputs": [good], "outputs": [{"name": "nope"}]}, {}, "got 'nope'"),
        ({"inputs": [good], "outputs": [{"name": "total", "parameters": 1}]}, {}, "parameters to be an object"),
        ({"inputs": [good], "outputs": [{"name": "total", "parameters": {"binary_data": 1}}]}, {}, "binary_data"),
        ({"inputs": [good], "outputs": [{"name": "total", "parameters": {"shared_memory_region": "r"}}]}, {}, SHARED),
        ({"inputs": [good], "parameters": {"triton_enable_empty_final_response": True}}, {}, "reserved"),
        ({"inputs": [good], "parameters": {"priority": 1.5}}, {}, "parameters.priority"),
        ({"inputs": [good], "parameters": {"priority": True}}, {}, "parameters.priority"),
        ({"inputs": [good], "parameters": []}, {}, "parameters to be an object"),
    ]


def wrong_binary_bodies() -> list[tuple[Any, dict[str, str], str]]:
    """The same for the binary tensor data extension."""
    sized = binary_input(X)
    return [
        (b"{}", {"Inference-Header-Content-Length": "-1"}, "integer >= 0"),
        (b"{}", {"Inference-Header-Content-Length": "1_0"}, "integer >= 0"),
        (b"{}", {"Inference-Header-Content-Length": "3"}, "at most the body's 2 bytes"),
        (b"{}", {"Inference-Header-Content-Length": "9" * 5000}, "integer >= 0"),
        (*binary({"inputs": [sized]}, X.tobytes() + b"!"), "expected .* bytes as the binary_data_sizes say"),
        (*binary({"inputs": [sized]}, X.tobytes()[:-1]), "bytes left in the body"),
        (*binary({"inputs": [{**sized, "shape": [1, 3]}]}, X.tobytes()), r"expected 12 bytes for shape \[1, 3\]"),
        (*binary({"inputs": [{**sized, "parameters": {"binary_data_size": -4}}]}, X.tobytes()), "binary_data_size"),
        (
            *binary({"inputs": [{**sized, "parameters": {"binary_data_size": 2**63}}]}, b""),
            "binary_data_size",
        ),
    ]


@pytest.mark.parametrize(("body", "headers", "message"), wrong_bodies() + wrong_binary_bodies())
async def test_wrong_body_is_explained(dispatcher: Server, body: Any, headers: dict[str, str], message: str) -> None:
    """Never a 5xx, always what was expected, and the server answers on."""
    reply = await dispatcher.post(body, headers)
    assert reply.status == (501 if message == SHARED else 400)
    assert reply.headers["content-type"] == "application/json"
    error = reply.json["error"]
    assert re.search(message, error), error
    assert len(error) < 2500
    assert (await dispatcher.post(request())).status == 200


@pytest.mark.parametrize(
    "payload",
    [b"", b"\x01", struct.pack("<I", 5) + b"abc", struct.pack("<I", 2**32 - 1), struct.pack("<I", 0) + b"!"],
)
async def test_bad_framing_of_bytes_is_refused(dispatcher: Server, payload: bytes) -> None:
    """Lengths are checked against what is there, before anything is allocated."""
    item = {"name": "x", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(payload)}}
    body, headers = binary({"inputs": [item]}, payload)
    assert (await dispatcher.post(body, headers, path="/v2/models/BYTES/infer")).status == 400
    huge = {**item, "shape": [2**40, 1]}
    body, headers = binary({"inputs": [huge]}, payload)
    assert (await dispatcher.post(body, headers, path="/v2/models/BYTES/infer")).status == 400


async def test_bool_bytes_other_than_0_and_1_are_refused(dispatcher: Server) -> None:
    """They would be undefined values inside NumPy."""
    item = {"name": "x", "shape": [1, 2], "datatype": "BOOL", "parameters": {"binary_data_size": 2}}
    body, headers = binary({"inputs": [item]}, b"\x01\x02")
    assert (await dispatcher.post(body, headers, path="/v2/models/BOOL/infer")).status == 400
