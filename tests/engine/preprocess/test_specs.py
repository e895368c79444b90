"""Preprocessing as JSON, and as layers of the graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import engine as ax
from engine import bundle
from engine.errors import BundleError, DataError, GraphError, OptionError
from engine.preprocess import OneHot, Preprocess, Standardize, Vocabulary, from_json, prepend, to_json

STEPS = Preprocess(
    {
        "image": (Standardize((0.5, 1.5), (2.0, 4.0)),),
        "class": (OneHot(5),),
        "text": (Vocabulary(("<unk>", "a", "b"), 0, "basic_english", 2, 0),),
    }
)


def test_json_round_trip() -> None:
    """Through text, and the steps do the same."""
    read = from_json(json.loads(json.dumps(to_json(STEPS))))
    assert read == STEPS
    values = {"image": [[1, 2]], "class": [1], "text": ["b a"], "other": 3}
    for name, value in read.apply(values).items():
        np.testing.assert_array_equal(value, STEPS.apply(values)[name])


def test_errors_name_the_input() -> None:
    """And a missing input is an error, not left alone."""
    with pytest.raises(DataError, match="input 'class': one_hot: expected classes below 5"):
        STEPS.apply({"image": [[1, 2]], "class": [9], "text": ["a b"]})
    with pytest.raises(DataError, match="got none for 'image'"):
        STEPS.apply({})
    with pytest.raises(OptionError, match="expected names of inputs"):
        Preprocess({"a b": ()})
    with pytest.raises(OptionError, match="expected steps"):
        Preprocess({"a": (lambda x: x,)})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("steps", "shape", "expected"),
    [
        ((Standardize((1.0, 2.0), (1.0, 1.0)),), (None, 3, 2), ("numbers", (None, 3, 2))),
        ((OneHot(4),), (None, 3, 4), ("whole numbers", (None, 3))),
        ((OneHot(4), Standardize((0.0,), (1.0,))), (None, 4), ("whole numbers", (None,))),
        ((Vocabulary(("a",), length=5),), (None, 5), ("texts", (None,))),
        ((Vocabulary(("a",)), OneHot(2)), (None, None, 2), ("texts", (None,))),
        ((), (None, 2), ("numbers", (None, 2))),
        ((Standardize((1.0, 2.0), (1.0, 1.0)),), (None, 3), "last axis of 2"),
        ((OneHot(4),), (4,), "last axis of 4"),
        ((Vocabulary(("a",), length=5),), (None, 4), r"shape \(rows, 5\), got \(None, 4\)"),
        ((Vocabulary(("a",)),), (None, 4, 2), r"shape \(rows, its length\)"),
        ((OneHot(4), Vocabulary(("a",))), (None, 4), "vocabulary expected texts, got numbers from the step before"),
        ((Standardize((0.0,), (1.0,)), OneHot(4)), (None, 4), "one_hot expected whole numbers, got numbers"),
    ],
)
def test_steps_tell_what_they_take(steps: tuple[Any, ...], shape: tuple[int | None, ...], expected: Any) -> None:
    """From the model's shape back to that of the wire; what does not fit is refused."""
    if isinstance(expected, str):
        with pytest.raises(OptionError, match=expected):
            Preprocess({"x": steps}).taken("x", shape)
    else:
        assert Preprocess({"x": steps}).taken("x", shape) == expected


def given(**inputs: Any) -> dict[str, Any]:
    """A document with these inputs."""
    return {"format": "axon.preprocess", "version": 1, "inputs": inputs}


HOSTILE = [
    None,
    [],
    {},
    {"format": "axon.preprocess", "version": 2, "inputs": {}},
    {"format": "axon.preprocess", "version": 1},
    {**given(), "more": 1},
    given(x=1),
    given(x=[1]),
    given(x=[{"name": []}]),
    given(x=[{"name": "eval"}]),
    given(x=[{"name": "standardize"}]),
    given(x=[{"name": "standardize", "mean": [1], "std": [0]}]),
    given(x=[{"name": "standardize", "mean": [1], "std": [1], "more": 1}]),
    given(x=[{"name": "standardize", "mean": {}, "std": {}}]),
    given(x=[{"name": "standardize", "mean": [[1]], "std": [[1]]}]),
    given(x=[{"name": "standardize", "mean": [10**400], "std": [1]}]),
    given(x=[{"name": "one_hot", "classes": 10**12}]),
    given(x=[{"name": "one_hot", "classes": 1.5}]),
    given(x=[{"name": "vocabulary", "tokens": {"a": 1}}]),
    given(x=[{"name": "vocabulary", "tokens": ["a"], "tokenizer": []}]),
    given(x=[{"name": "vocabulary", "tokens": ["a"], "_numbers": {}}]),
    given(x=[{"name": "one_hot", "classes": 2}] * 100),
    given(**{"a b": []}),
]


@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_json_is_refused(value: Any) -> None:
    """One error that says where."""
    with pytest.raises(BundleError, match=r"preprocess\.json"):
        from_json(value)


def test_every_problem_is_reported() -> None:
    """Not only the first."""
    with pytest.raises(BundleError) as caught:
        from_json(given(x=[{"name": "one_hot", "classes": 0}, 1], y=2))
    assert [problem.path for problem in caught.value.problems] == [
        "preprocess.json: inputs.x[0]",
        "preprocess.json: inputs.x[1]",
        "preprocess.json: inputs.y",
    ]


def model() -> ax.Model:
    """Two inputs, one of which wants preprocessing."""
    image, other = ax.input("image", shape=(None, 2)), ax.input("other", shape=(None, 2))
    return image.multiply(image).concatenate(other).dense(3)


def test_prepended_steps_give_what_numpy_gives(tmp_path: Path) -> None:
    """With the same state, through a bundle, and from whole numbers."""
    steps = Preprocess({"image": (Standardize((3.0, 5.0), (2.0, 0.3)), Standardize((0.25,), (1.5,)))})
    raw = prepend(model(), steps, dtypes={"image": "u8"})
    assert list(raw.inputs()) == ["image", "other"]
    assert [n for n in model().names().values() if n not in raw.names().values()] == []
    init_fn, predict_fn = ax.build(model())
    state = init_fn(seed=1)
    bundle.write(tmp_path / "m.axon", raw, state)
    served = bundle.read(tmp_path / "m.axon")
    x = {"image": np.uint8([[1, 200], [7, 3]]), "other": np.float32([[1, 2], [3, 4]])}
    expected = predict_fn(state, {**x, **steps.apply({"image": x["image"]})})
    _, serve = ax.build(served.model)
    np.testing.assert_allclose(serve(served.state, x), expected, rtol=1e-6)
    gradient = jax.grad(lambda state: serve(state, x).sum())(served.state)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_what_cannot_be_prepended_is_refused() -> None:
    """Unknown inputs, and steps that are no layers."""
    for steps, dtypes, message in [
        (Preprocess({"z": (OneHot(2),)}), None, "expected inputs out of image, other, got 'z'"),
        (Preprocess({"image": (OneHot(2),)}), None, "expected only standardize"),
        (Preprocess(), {"image": "u8"}, "dtypes of inputs that are standardised"),
    ]:
        with pytest.raises(GraphError, match=message):
            prepend(model(), steps, dtypes=dtypes)
