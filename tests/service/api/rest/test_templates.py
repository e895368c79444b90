"""Templates: requests and answers of a form that is known are those of one that is not."""

from __future__ import annotations

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.rest.recent import Recent
from service.api.rest.templates import ReplyForm, Templates
from service.api.rest.tensors import WireRequest, decode_request
from service.core.errors import ServiceError

TENSORS = [("FP32", [1, 3], 12), ("INT8", [2], 2), ("BF16", [0, 4], 0), ("BOOL", [2], 2), ("BYTES", [1], 6)]


def read(templates: Templates | None, body: bytes, length: int) -> tuple[object, ...] | str:
    """All there is to a request, or why there is none."""
    try:
        request: WireRequest = decode_request(body, length) if templates is None else templates.read(body, length)
    except ServiceError as error:
        return str(error)
    inputs = [(name, array.dtype, array.shape, array.tolist()) for name, array in request.inputs.items()]
    return (
        inputs, request.outputs, request.id, request.schedule, request.binary_all, request.binary, request.classes,
    )  # fmt: skip


@given(st.lists(st.sampled_from(TENSORS), min_size=1, max_size=3), st.data())
def test_known_forms_are_read_as_unknown_ones(tensors: list[tuple[str, list[int], int]], data: st.DataObject) -> None:
    """Any bytes behind the same JSON, too many and too few among them."""
    inputs = [
        {"name": str(index), "datatype": name, "shape": shape, "parameters": {"binary_data_size": size}}
        for index, (name, shape, size) in enumerate(tensors)
    ]
    text = orjson.dumps({"inputs": inputs, "id": "a", "outputs": [{"name": "y", "parameters": {"binary_data": True}}]})
    size = sum(size for _, _, size in tensors)
    right = b"".join(b"\1" * size if name != "BYTES" else b"\2\0\0\0ab" for name, _, size in tensors)
    templates = Templates()
    for segment in (right, data.draw(st.binary(min_size=size, max_size=size)), right + b"1", right[1:], right):
        body = text + segment
        assert read(templates, body, len(text)) == read(None, body, len(text))


def test_values_in_the_json_have_no_template() -> None:
    """Nor have those whose bytes must be looked at."""
    templates = Templates()
    text = orjson.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]})
    assert templates.read(text, len(text)).template is None
    item = {"name": "x", "datatype": "BOOL", "shape": [1], "parameters": {"binary_data_size": 1}}
    text = orjson.dumps({"inputs": [item]})
    assert templates.read(text + b"\1", len(text)).template is None
    item["datatype"] = "INT8"
    text = orjson.dumps({"inputs": [item]})
    first, second = (templates.read(text + bytes([number]), len(text)) for number in (7, 8))
    assert first.template is second.template is not None
    assert (first.inputs["x"][0], second.inputs["x"][0]) == (7, 8)


@pytest.mark.parametrize(
    ("version", "outputs"),
    [
        (2, {"y": np.zeros((1, 3), np.float32)}),
        (1, {"z": np.zeros((1, 3), np.float32)}),
        (1, {"y": np.zeros((2, 3), np.float32)}),
        (1, {"y": np.zeros((1, 3), np.int32)}),
        (1, {"y": np.zeros((1, 3), np.float32), "z": np.zeros(1)}),
        (1, {}),
    ],
)
def test_answers_of_another_form_do_not_fit(version: int, outputs: dict[str, np.ndarray]) -> None:
    """Another version, name, shape, datatype or number of outputs."""
    form = ReplyForm("m", 1, {"y": np.zeros((1, 3), np.float32)}, b"head", 1)
    assert form.fits("m", 1, {"y": np.ones((1, 3), np.float32)})
    assert not form.fits("m", version, outputs)
    assert not form.fits("n", 1, {"y": np.ones((1, 3), np.float32)})


def test_recent_forgets_the_oldest() -> None:
    """What is used stays, and there are never more than twice the size."""
    recent: Recent[int, str] = Recent(2)
    for number in range(20):
        recent.put(number, str(number))
        assert recent.get(0) == "0"
        assert len(recent) <= 4
    assert recent.get(10) is None
