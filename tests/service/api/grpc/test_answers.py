"""Answers put together by hand are what protobuf would have written."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service.api.grpc.answers import Answers, framed_in_stream, refusal_in_stream, varint
from service.api.grpc.generated import inference_pb2 as pb
from service.api.raw_tensors import write_raw
from service.core.datatypes import name_of

NAMES = st.text(min_size=1, max_size=200).filter(lambda text: text.isprintable())
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)
DTYPES = st.sampled_from([np.float32, np.int64, np.uint8, np.bool_])
OUTPUTS = st.dictionaries(NAMES, st.tuples(SHAPES, DTYPES), max_size=4)


@given(model=NAMES, version=st.integers(1, 2**40), request_id=st.text(max_size=300), outputs=OUTPUTS)
def test_answers_are_protobufs(
    model: str, version: int, request_id: str, outputs: dict[str, tuple[tuple[int, ...], type]]
) -> None:
    """Field by field, kept or not, alone and within a stream."""
    arrays = {name: np.ones(shape, dtype) for name, (shape, dtype) in outputs.items()}
    expected = pb.ModelInferResponse(model_name=model, model_version=str(version), id=request_id)
    for name, array in arrays.items():
        expected.outputs.add(name=name, datatype=name_of(array.dtype), shape=array.shape)
        expected.raw_output_contents.append(write_raw(array))
    answers = Answers()
    for _ in range(2):
        pieces, size = answers.pieces(model, version, request_id, arrays, streamed=False)
        assert size == sum(map(len, pieces))
        assert pb.ModelInferResponse.FromString(b"".join(pieces)) == expected
    expected.parameters["triton_final_response"].bool_param = True
    pieces, size = framed_in_stream(*answers.pieces(model, version, request_id, arrays, streamed=True))
    assert size == sum(map(len, pieces))
    assert pb.ModelStreamInferResponse.FromString(b"".join(pieces)).infer_response == expected


def test_texts_travel_with_their_lengths() -> None:
    """BYTES are not the array's own memory."""
    texts = np.array([b"a", b"", b"xyz"], object)
    pieces, _ = Answers().pieces("m", 1, "", {"y": texts}, streamed=False)
    found = pb.ModelInferResponse.FromString(b"".join(pieces))
    assert found.raw_output_contents[0] == b"\1\0\0\0a\0\0\0\0\3\0\0\0xyz"
    assert (found.outputs[0].datatype, list(found.outputs[0].shape)) == ("BYTES", [3])


def test_what_is_kept_is_bounded() -> None:
    """Clients choose shapes."""
    answers = Answers()
    for size in range(3000):
        answers.pieces("m", size, "", {"y": np.zeros((size,), np.uint8)}, streamed=False)
    assert len(answers._outputs) <= 1024
    assert len(answers._models) <= 1024


@given(value=st.integers(0, 2**63 - 1))
def test_varints(value: int) -> None:
    """As protobuf reads them."""
    assert pb.ModelRepositoryParameter.FromString(b"\x10" + varint(value)).int64_param == value


def test_refusal_says_what_and_for_whom() -> None:
    """Its message, its id, and that nothing follows."""
    found = pb.ModelStreamInferResponse.FromString(refusal_in_stream("7", "no"))
    assert (found.error_message, found.infer_response.id) == ("no", "7")
    assert found.infer_response.parameters["triton_final_response"].bool_param
