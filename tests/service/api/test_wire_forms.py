"""Encode, decode: the same tensor over every wire form, for every datatype and shape."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.api.grpc.answers import Answers
from service.api.grpc.convert import request_from_proto
from service.api.grpc.generated import inference_pb2 as pb
from service.api.raw_tensors import MAX_TEXTS, read_raw, write_raw
from service.api.rest.tensors import WireRequest, decode_request, encode_result
from service.core.datatypes import DATATYPES, datatype
from service.core.errors import InvalidRequest, TooLarge
from service.core.types import InferResult

TYPED = [name for name, entry in DATATYPES.items() if entry.contents is not None]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@st.composite
def tensors(draw: st.DrawFn, *, text: bool = False) -> np.ndarray:
    """Any tensor; BYTES of Unicode where JSON has to carry them."""
    name = draw(st.sampled_from(list(DATATYPES)))
    shape = draw(SHAPES)
    if name == "BYTES":
        elements = st.text().map(str.encode) if text else st.binary(max_size=20)
        array = np.empty(math.prod(shape), object)
        array[:] = draw(st.lists(elements, min_size=array.size, max_size=array.size))
        return array.reshape(shape)
    if name == "BF16":
        return draw(hnp.arrays(np.uint16, shape)).view(ml_dtypes.bfloat16)
    return draw(hnp.arrays(DATATYPES[name].dtype, shape))


def name_of(array: np.ndarray) -> str:
    """The datatype's name."""
    return next(name for name, entry in DATATYPES.items() if entry.dtype == array.dtype)


def same(read: np.ndarray, array: np.ndarray, *, payload: bool) -> None:
    """Bit for bit; JSON has one NaN, so there a NaN is a NaN unless `payload`."""
    assert (read.dtype, read.shape) == (array.dtype, array.shape)
    if array.dtype.hasobject:
        assert read.ravel().tolist() == array.ravel().tolist()
        return
    plain, expected = np.ascontiguousarray(read).ravel(), array.ravel()
    if not payload and array.dtype.kind in "fV":
        nan = np.isnan(expected.astype(np.float64))
        assert np.isnan(plain.astype(np.float64))[nan].all()
        plain, expected = plain[~nan], expected[~nan]
    assert plain.tobytes() == expected.tobytes()


def item(array: np.ndarray, **more: Any) -> dict[str, Any]:
    """A tensor as JSON has it."""
    return {"name": "x", "shape": list(array.shape), "datatype": name_of(array), **more}


LIMITS = (
    np.array([2**63 - 1, -(2**63), 2**53 + 1]),
    np.array([2**64 - 1, 0, 2**63 + 1], np.uint64),
)


def by_json(array: np.ndarray) -> np.ndarray:
    """An answer's JSON, sent back as a request."""
    body, length = encode_result(InferResult("m", 1, {"x": array}), WireRequest({}))
    assert length is None
    (output,) = orjson.loads(body)["outputs"]
    assert output.keys() == {"name", "datatype", "shape", "data"}
    return decode_request(orjson.dumps({"inputs": [output]}), None).inputs["x"]


def by_binary(array: np.ndarray) -> np.ndarray:
    """An answer's bytes, sent back as a request, one tensor before and one behind it."""
    outputs = {"a": np.arange(3, dtype=np.int8), "x": array, "b": np.array([1.5])}
    body, length = encode_result(InferResult("m", 1, outputs), WireRequest({}, binary_all=True))
    assert length is not None
    header = orjson.dumps({"inputs": orjson.loads(body[:length])["outputs"]})
    inputs = decode_request(header + body[length:], len(header)).inputs
    same(inputs["a"], outputs["a"], payload=True)
    same(inputs["b"], outputs["b"], payload=True)
    return inputs["x"]


def by_raw_contents(array: np.ndarray) -> np.ndarray:
    """An answer's raw contents over gRPC, through real messages, sent back as a request."""
    pieces, _ = Answers().pieces("m", 1, "id", {"x": array}, streamed=False)
    answer = pb.ModelInferResponse.FromString(b"".join(pieces))
    (output,) = answer.outputs
    sent = pb.ModelInferRequest(model_name="m", raw_input_contents=answer.raw_output_contents)
    sent.inputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
    return request_from_proto(pb.ModelInferRequest.FromString(sent.SerializeToString()))[0].inputs["x"]


def by_typed_contents(array: np.ndarray) -> np.ndarray:
    """Values in the field of their datatype."""
    sent = pb.ModelInferRequest(model_name="m")
    tensor = sent.inputs.add(name="x", datatype=name_of(array), shape=array.shape)
    field = datatype(name_of(array)).contents
    assert field is not None
    getattr(tensor.contents, field).extend(array.ravel().tolist())
    return request_from_proto(pb.ModelInferRequest.FromString(sent.SerializeToString()))[0].inputs["x"]


@example(LIMITS[0])
@example(LIMITS[1])
@given(tensors(text=True))
def test_json(array: np.ndarray) -> None:
    """Any tensor, BYTES being Unicode."""
    same(by_json(array), array, payload=False)


@example(LIMITS[0])
@example(LIMITS[1])
@given(tensors())
def test_bytes(array: np.ndarray) -> None:
    """Any tensor in the binary extension and in raw contents, to the last bit of a NaN."""
    for wire in (by_binary, by_raw_contents):
        same(wire(array), array, payload=True)


@example(LIMITS[0])
@example(LIMITS[1])
@given(tensors().filter(lambda array: name_of(array) in TYPED))
def test_typed_contents(array: np.ndarray) -> None:
    """Any tensor of the datatypes that have a field."""
    same(by_typed_contents(array), array, payload=False)


@pytest.mark.parametrize("name", DATATYPES)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (70,), (2, 0, 4), (3, 2), (2, 3, 4, 5)], ids=str)
def test_every_datatype_and_shape_in_every_form(name: str, shape: tuple[int, ...]) -> None:
    """Bits as they come from a generator, through all four forms."""
    entry, count = DATATYPES[name], math.prod(shape)
    if name == "BYTES":
        array = np.empty(count, object)
        array[:] = [("é\0" * (index % 5)).encode() for index in range(count)]
        array = array.reshape(shape)
    else:
        noise = np.frombuffer(random.Random(f"{name} {shape}").randbytes(count * entry.itemsize), np.uint8)
        array = (noise & 1 if name == "BOOL" else noise).view(entry.dtype).reshape(shape)
    for wire in (by_json, by_binary, by_raw_contents, *((by_typed_contents,) if name in TYPED else ())):
        same(wire(array), array, payload=wire in (by_binary, by_raw_contents))


@given(tensors())
def test_raw_bytes(array: np.ndarray) -> None:
    """What both wires share."""
    content = write_raw(array)
    entry = datatype(name_of(array))
    same(read_raw(content, 0, len(content), entry, array.shape, array.size, "x"), array, payload=True)


def _spelled(value: Any) -> str:
    """A JSON text with bare words for what is not finite."""
    if isinstance(value, list):
        return "[" + ", ".join(map(_spelled, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return orjson.dumps(value).decode()


NUMBERS = st.one_of(
    st.integers(-(2**63), 2**64 - 1), st.floats(), st.sampled_from(["NaN", "Infinity", "-Infinity", None])
)


@given(st.lists(NUMBERS, max_size=8), st.sampled_from(["FP64", "FP32", "FP16", "BF16", "INT64", "UINT64", "INT8"]))
def test_both_parsers_agree(values: list[Any], name: str) -> None:
    """The same numbers, read by the fast parser and by the exact one: the same bits or a refusal by both."""
    head = f'{{"inputs":[{{"name":"x","shape":[{len(values)}],"datatype":"{name}","data":'
    quoted = [_spelled(v) if isinstance(v, float) and not math.isfinite(v) else v for v in values]
    fast = (head + orjson.dumps(quoted).decode() + "}]}").encode()
    # A bare word anywhere makes the fast parser give up.
    exact = (head + _spelled(values) + '}],"unknown":NaN}').encode()
    results = []
    for body in (fast, exact):
        try:
            results.append(decode_request(body, None).inputs["x"])
        except InvalidRequest:
            results.append(None)
    assert (results[0] is None) == (results[1] is None)
    if results[0] is not None:
        same(results[1], results[0], payload=False)


@given(st.binary(max_size=40))
def test_exact_parser_takes_no_more_than_json(noise: bytes) -> None:
    """Any bytes beside a bare NaN: what is taken is JSON once the NaN is a number."""
    body = b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[NaN]}],"more":%b}' % noise
    with contextlib.suppress(InvalidRequest):
        decode_request(body, None)
        orjson.loads(body.replace(b"NaN", b"0").replace(b"Infinity", b"0"))


@st.composite
def near_ties(draw: st.DrawFn) -> float:
    """A number at, or within a few steps of FP64 of, the middle between two bfloat16s; or any other."""
    if draw(st.booleans()):
        return draw(st.floats(allow_nan=False, allow_infinity=False))
    half = draw(st.integers(0, 0x7F7F)) << 16 | 0x8000
    middle = float(np.uint32(half).view(np.float32))
    for _ in range(draw(st.integers(0, 3))):
        middle = math.nextafter(middle, draw(st.sampled_from([0.0, math.inf])))
    return middle * draw(st.sampled_from([1, -1]))


@given(near_ties())
def test_decimals_are_rounded_once_to_bfloat16(value: float) -> None:
    """Nearest, ties to even, compared with exact fractions; what would become infinite is refused."""
    body = orjson.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "BF16", "data": [value]}]})
    try:
        read = decode_request(body, None).inputs["x"]
    except InvalidRequest:
        assert abs(value) >= 2.0**128 - 2.0**119
        return
    bits = int(read.view(np.uint16)[0])
    around = [bits + step for step in (-1, 0, 1) if 0 <= (bits & 0x7FFF) + step < 0x7F80]
    exact = {each: Fraction(float(np.uint16(each).view(ml_dtypes.bfloat16))) for each in around}
    distance = {each: abs(number - Fraction(value)) for each, number in exact.items()}
    least = min(distance.values())
    assert distance[bits] == least
    if least > 0 and list(distance.values()).count(least) > 1:
        assert bits % 2 == 0


@pytest.mark.parametrize("count", [MAX_TEXTS, MAX_TEXTS + 1])
def test_texts_are_counted_before_they_are_made(count: int):
    """Each is an object read one by one: 64 MiB of empty ones took seconds; the same bound on every wire form."""
    typed = pb.ModelInferRequest()
    typed.inputs.add(name="x", datatype="BYTES", shape=[count]).contents.bytes_contents.extend([b""] * count)
    texts = {"name": "x", "datatype": "BYTES", "shape": [count], "data": [""] * count}
    forms: list[Callable[[], object]] = [
        lambda: read_raw(bytes(4 * count), 0, 4 * count, datatype("BYTES"), [count], count, "x"),
        lambda: decode_request(orjson.dumps({"inputs": [texts]}), None),
        lambda: request_from_proto(typed),
    ]
    for form in forms:
        if count <= MAX_TEXTS:
            form()
        else:
            with pytest.raises(TooLarge, match=f"expected at most {MAX_TEXTS} elements of BYTES, got {count}"):
                form()
