"""The engine's steps behind the ports: the same numbers as in training, whatever comes in whatever datatype."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import engine as ax
from engine.bundle import Bundle
from engine.errors import OptionError
from engine.postprocess import OutputSteps, Postprocess
from engine.preprocess import OneHot, Preprocess, Standardize, Vocabulary
from service.adapters.processing import EngineInputStep, processing_of
from service.core.datatypes import DATATYPES
from service.core.errors import InvalidModel, InvalidRequest
from service.core.types import OpenSize, TensorSpec

WORDS = ("<unk>", "<pad>", "a", "b", "ä", ".", "don", "'")
NUMBERS = [name for name in DATATYPES if name != "BYTES"]
MODEL = ax.input("x", shape=(None, 2)).dense(1)


def step_of(
    *steps: Any, datatype: str = "FP32", shape: tuple[int, ...] = (-1, 2), opened: OpenSize | None = None
) -> Any:
    """These steps before an input `x`."""
    return EngineInputStep(Preprocess({"x": steps}), TensorSpec("x", datatype, shape), opened)


def texts_of(texts: list[str]) -> np.ndarray:
    """As both wires give them."""
    array = np.empty(len(texts), object)
    array[:] = [text.encode() for text in texts]
    return array


@given(st.data(), st.sampled_from(NUMBERS))
def test_standardised_numbers_are_those_of_training(data: st.DataObject, datatype: str) -> None:
    """Of every datatype, to the ends of its range; what float32 does not hold is infinite."""
    dtype = DATATYPES[datatype].dtype
    scale = Standardize((3.5, -1e30), (0.25, 7e20))
    narrow = np.dtype(np.float32) if dtype == ml_dtypes.bfloat16 else dtype
    raw = data.draw(hnp.arrays(narrow, (3, 2))).astype(dtype)
    with np.errstate(all="ignore"):
        expected = Preprocess({"x": (scale,)}).apply({"x": raw})["x"]
    step = step_of(scale)
    assert datatype in step.datatypes
    np.testing.assert_array_equal(step.apply(raw, ""), expected)
    half = step_of(scale, datatype="BF16").apply(raw, "")
    assert half.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(half.astype(np.float32), expected.astype(ml_dtypes.bfloat16).astype(np.float32))


@given(
    st.lists(st.text(st.sampled_from("ab ä.'Ä\n\"") | st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5)
)
def test_texts_are_the_token_numbers_of_training(texts: list[str]) -> None:
    """Of one length, of the model's, and of the longest."""
    fixed = Vocabulary(WORDS, length=4, padding=1)
    expected = Preprocess({"x": (fixed,)}).apply({"x": texts})["x"]
    whole = {"datatype": "INT32", "shape": (-1, 4)}
    np.testing.assert_array_equal(step_of(fixed, **whole).apply(texts_of(texts), ""), expected)
    free = Vocabulary(WORDS, padding=1)
    np.testing.assert_array_equal(step_of(free, **whole).apply(texts_of(texts), ""), expected)
    longest = max(1, *(len(free.encode(text)) for text in texts))
    opened = OpenSize({"x": (1,)}, (2, 5, 10_000), {"x": 1})
    found = step_of(free, datatype="INT64", shape=(-1, -1), opened=opened).apply(texts_of(texts), "")
    expected = Preprocess({"x": (Vocabulary(WORDS, length=longest, padding=1),)}).apply({"x": texts})["x"]
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected)


@given(hnp.arrays(np.uint8, (2, 3), elements=st.integers(0, 4)))
def test_class_numbers_become_vectors(classes: np.ndarray) -> None:
    """And a step behind them is applied to these."""
    steps = (OneHot(5), Standardize((0.5,), (2.0,)))
    expected = (np.eye(5, dtype=np.float32)[classes] - 0.5) / 2
    found = step_of(*steps, shape=(-1, 3, 5)).apply(classes, "")
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([b"a", b"\xff"], "model 'm': vocabulary: expected UTF-8 in row 1, got invalid start byte at byte 0"),
        ([b"a a", b"zz"], "model 'm': vocabulary: expected one of its 8 tokens, got 'zz' in row 1"),
        ([b"a a", b"a"], "model 'm': vocabulary: expected 2 tokens in row 1, got 1"),
        ([b"a a a", b"b b b"], "model 'm': vocabulary: expected at most 2 tokens in row 0, got 3"),
    ],
)
def test_texts_that_do_not_fit_are_refused(texts: list[bytes], message: str) -> None:
    """With the place that was given, and the row."""
    array = np.empty(len(texts), object)
    array[:] = texts
    opened = OpenSize({"x": (1,)}, (2,))
    with pytest.raises(InvalidRequest, match=message):
        step_of(Vocabulary(WORDS, None), datatype="INT32", shape=(-1, -1), opened=opened).apply(array, "model 'm'")


def around(outputs: Mapping[str, OutputSteps]) -> Any:
    """What a bundle says of the output `y` [-1, 3]."""
    bundle = Bundle(MODEL, ax.init(MODEL), postprocess=Postprocess(outputs))
    tensor = TensorSpec("y", "BF16", (-1, 3))
    return processing_of(bundle, (TensorSpec("x", "FP32", (-1, 2)),), (tensor,))


def test_outputs_are_what_the_engine_makes_of_them() -> None:
    """Texts as bytes; labels alone change no output."""
    y = np.array([[1, 3, 2], [np.nan, -1, 0]], ml_dtypes.bfloat16)
    steps = OutputSteps(Standardize((1.0,), (2.0,)), ("a", "b"), 2)
    processing = around({"y": steps})
    found, expected = processing.outputs["y"].apply(y), steps.apply("y", y)
    assert list(found) == list(expected) == [tensor.name for tensor in processing.outputs["y"].specs]
    np.testing.assert_array_equal(found["y_scores"].astype(np.float32), [[7, 5], [1, -1]])
    assert found["y_labels"].tolist() == [[b"b", b"2"], [b"2", b"b"]]
    assert expected["y_labels"].tolist() == [["b", "2"], ["2", "b"]]
    only = around({"y": OutputSteps(labels=("a",))})
    assert (dict(only.outputs), only.labels) == ({}, {"y": ("a",)})
    assert around({}) is None


def test_steps_that_cannot_be_are_refused() -> None:
    """By the engine, when the version is loaded."""
    with pytest.raises(OptionError, match="one_hot expected whole numbers, got numbers from the step before"):
        step_of(Standardize((0.0,), (1.0,)), OneHot(2))


@pytest.mark.parametrize(
    "steps", [OutputSteps(labels=("a", "b"), top_k=2), OutputSteps(unstandardize=Standardize((0.0, 1.0), (1.0, 2.0)))]
)
def test_steps_of_a_last_axis_that_is_open_are_refused(steps: OutputSteps) -> None:
    """They would fit some requests only: nobody knows how many classes or features there are."""
    state = ax.init(MODEL)
    bundle = Bundle(MODEL, state, postprocess=Postprocess({"y": steps}))
    fits = processing_of(bundle, [], [TensorSpec("y", "FP32", (-1, 2))])
    assert fits is not None
    with pytest.raises(InvalidModel, match=r"postprocess\.json: outputs\.y: .*None"):
        processing_of(bundle, [], [TensorSpec("y", "FP32", (-1, -1))])
