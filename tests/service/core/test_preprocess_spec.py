"""The field `preprocess` of a job, and what columns it wants."""

from __future__ import annotations

from typing import Any

import pytest

from service.core.errors import InvalidRequest
from service.core.job_spec import parse_spec, public, stored_spec
from service.core.preprocess_spec import MAX_INPUTS, column_tensor
from service.core.spec_reader import Choice
from service.core.types import TensorSpec


def minimal(**changes: Any) -> dict[str, Any]:
    """A valid request."""
    return {
        "model": "m",
        "graph": {"format": "axon.graph"},
        "dataset": "d",
        "target": "y",
        "loss": "mean_squared_error",
        "optimizer": "adam",
        "epochs": 1,
        "batch_size": 2,
        **changes,
    }


def test_steps_are_read_and_written() -> None:
    """A name alone is the same as an object with it; older requests say nothing."""
    words = {"name": "vocabulary", "tokens": ["a", "b"], "length": 3}
    spec = parse_spec(minimal(preprocess={"x": "standardize", "text": words}, standardize_target=True))
    assert spec.preprocess == {
        "x": Choice("standardize"),
        "text": Choice("vocabulary", {"tokens": ["a", "b"], "length": 3}),
    }
    assert spec.standardize_target
    assert stored_spec(spec.to_json()) == spec
    assert public(spec.to_json())["preprocess"] == {"x": {"name": "standardize"}, "text": words}
    assert (parse_spec(minimal()).preprocess, parse_spec(minimal()).standardize_target) == (None, False)
    assert parse_spec(minimal(preprocess={})).preprocess == {}


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        ("preprocess", {"preprocess": []}),
        ("preprocess", {"preprocess": {"": "one_hot"}}),
        ("preprocess", {"preprocess": {"../x": "one_hot"}}),
        ("preprocess", {"preprocess": {f"x{n}": "one_hot" for n in range(MAX_INPUTS + 1)}}),
        ("preprocess.x", {"preprocess": {"x": "eval"}}),
        ("preprocess.x", {"preprocess": {"x": {"per": "all"}}}),
        ("preprocess.x", {"preprocess": {"x": {"name": ["standardize"]}}}),
        ("preprocess.x", {"preprocess": {"x": [{"name": "standardize"}]}}),
        ("preprocess.x.per", {"preprocess": {"x": {"name": "standardize", "per": float("nan")}}}),
        ("preprocess.x.tokens", {"preprocess": {"x": {"name": "vocabulary", "tokens": ["a" * 1000]}}}),
        ("standardize_target", {"standardize_target": 1}),
    ],
)
def test_wrong_steps_are_named(path: str, changes: dict[str, Any]) -> None:
    """With their place."""
    with pytest.raises(InvalidRequest) as caught:
        parse_spec(minimal(**changes))
    assert [problem.path for problem in caught.value.problems] == [path]


OWN = TensorSpec("x", "FP32", (-1, 3))
SENT = TensorSpec("x", "INT64", (-1,))
TEXTS = TensorSpec("x", "BYTES", (-1,))


@pytest.mark.parametrize(
    ("sent", "steps", "expected"),
    [
        (OWN, None, OWN),
        (SENT, None, SENT),
        (TEXTS, None, OWN),
        (SENT, {}, OWN),
        (OWN, {"x": Choice("standardize")}, OWN),
        (OWN, {"x": Choice("one_hot")}, SENT),
        (OWN, {"x": Choice("vocabulary", {"tokens": ["a"]})}, OWN),
    ],
)
def test_columns_hold_what_the_first_step_takes(
    sent: TensorSpec, steps: dict[str, Choice] | None, expected: TensorSpec
) -> None:
    """Of the job's steps, else of those of the version it starts from; token numbers in place of texts."""
    assert column_tensor(OWN, sent, steps) == expected
