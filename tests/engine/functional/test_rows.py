"""Rows of padding leave losses, metrics and batch statistics untouched; other weights count as that many rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.metrics import log_loss

from engine.errors import OptionError, ShapeError
from engine.functional import StatefulOutput, batch_norm, instance_norm
from engine.functional.losses import (
    LOSSES,
    categorical_cross_entropy,
    cosine_similarity,
    label_smoothing,
    mean_squared_error,
)
from engine.functional.metrics import METRICS
from tests.engine.functional.support import values

WEIGHTS = np.array([1, 0, 1, 1, 0, 1], np.float32)
WHERE = WEIGHTS > 0
SIGNS = np.where(values(6, 3, seed=3) > 0, 1, -1).astype(np.float32)
CHANCES = values(6, 3, seed=1, low=0.05, high=0.95).astype(np.float32)
CLASSES = np.array([2, 9, 0, 1, 9, 2], np.int32)
ONE_HOT = np.eye(3, dtype=np.float32)[np.minimum(CLASSES, 2)]
FRAMES = np.log(values(6, 5, 4, seed=2, low=0.1, high=0.9)).astype(np.float32)
SEQUENCES = np.array([[1, 2], [9, 9], [3, 0], [1, 1], [-1, 7], [2, 3]], np.int32)
LENGTHS = np.array([2, 9, 1, 2, 1, 0], np.int32)

CASES: dict[str, tuple[Callable[..., jax.Array], Any, Any]] = {
    **{name: (loss, ONE_HOT, CHANCES) for name, loss in LOSSES.items()},
    "hinge": (LOSSES["hinge"], SIGNS, CHANCES),
    "soft_margin": (LOSSES["soft_margin"], SIGNS, CHANCES),
    "margin_ranking": (LOSSES["margin_ranking"], SIGNS, (CHANCES, values(6, 3, seed=5).astype(np.float32))),
    "connectionist_temporal_classification": (
        LOSSES["connectionist_temporal_classification"],
        (LENGTHS, SEQUENCES),
        FRAMES,
    ),
    "cosine_similarity": (cosine_similarity, ONE_HOT, CHANCES),
    "weighted binary": (
        partial(LOSSES["binary_cross_entropy"], positive_weight=2.0, negative_weight=0.5, from_logits=True),
        ONE_HOT,
        SIGNS,
    ),
    "weighted categorical": (partial(categorical_cross_entropy, class_weights=(0.5, 1.0, 2.0)), ONE_HOT, CHANCES),
    "weighted sparse": (
        partial(categorical_cross_entropy, class_weights=(0.5, 1.0, 2.0), sparse=True, from_logits=True),
        CLASSES,
        CHANCES,
    ),
    "sparse": (partial(categorical_cross_entropy, sparse=True), CLASSES[:, None], CHANCES),
    "smoothed": (label_smoothing(mean_squared_error, smoothing=0.2), ONE_HOT, CHANCES),
}
REDUCTIONS = ("mean", "sum")


@cache
def measured(name: str) -> Callable[..., Any]:
    """Compiled: the loss of each row, and value and gradient of both reductions."""
    loss = CASES[name][0]

    def function(y_true: Any, y_pred: Any, **rows: Any) -> Any:
        if name == "smoothed":
            return loss(y_true, y_pred, **rows), ()
        reduced = [
            jax.value_and_grad(partial(loss, reduction=how), argnums=1)(y_true, y_pred, **rows) for how in REDUCTIONS
        ]
        return loss(y_true, y_pred, **rows), reduced

    return jax.jit(function)


def spoilt(y_pred: Any) -> Any:
    """The predictions, with NaN in the rows of padding."""
    return jax.tree.map(lambda p: jnp.asarray(np.where(WHERE.reshape(-1, *[1] * (p.ndim - 1)), p, np.nan)), y_pred)


def only(tree: Any, where: np.ndarray = WHERE) -> Any:
    """The rows of every array that are chosen."""
    return jax.tree.map(lambda array: jnp.asarray(array)[where], tree)


@pytest.mark.parametrize("name", CASES)
def test_padding_changes_neither_loss_nor_gradient(name: str) -> None:
    """Values and gradients are those of the real rows alone, and exactly 0 in rows of padding that hold NaN."""
    _, y_true, y_pred = CASES[name]
    each, reduced = measured(name)(y_true, spoilt(y_pred), rows=jnp.asarray(WEIGHTS))
    expected, expected_reduced = measured(name)(only(y_true), only(y_pred))
    np.testing.assert_allclose(each[WHERE], expected, rtol=1e-6)
    assert not np.asarray(each)[~WHERE].any()
    for (value, gradient), (expected_value, expected_gradient) in zip(reduced, expected_reduced, strict=True):
        np.testing.assert_allclose(value, expected_value, rtol=1e-6)
        for got, wanted in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
            np.testing.assert_allclose(got[WHERE], wanted, rtol=1e-5)
            assert not np.asarray(got)[~WHERE].any()


@pytest.mark.parametrize("name", CASES)
def test_a_batch_of_padding_alone_has_no_loss_and_no_gradient(name: str) -> None:
    """0 of nothing, not NaN."""
    _, y_true, y_pred = CASES[name]
    got = measured(name)(y_true, jax.tree.map(lambda p: p * np.nan, y_pred), rows=jnp.zeros(6))
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(got))


@pytest.mark.parametrize("name", CASES)
def test_a_weight_of_two_is_a_row_taken_twice(name: str) -> None:
    """Weights are not only 0 and 1; class weights multiply with them."""
    _, y_true, y_pred = CASES[name]
    counts = np.array([2, 0, 1, 1, 0, 0])
    repeated = np.repeat(np.arange(6), counts)
    each, got = measured(name)(y_true, y_pred, rows=jnp.asarray(counts, jnp.float32))
    expected_each, expected = measured(name)(only(y_true, repeated), only(y_pred, repeated))
    np.testing.assert_allclose(each[0], 2 * expected_each[0], rtol=1e-6)
    for (value, _), (expected_value, _) in zip(got, expected, strict=True):
        np.testing.assert_allclose(value, expected_value, rtol=1e-5)


def test_row_and_class_weights_match_scikit_learn() -> None:
    """scikit-learn's log loss with each sample weighted by its row and its class."""
    weights, classes = np.array([0.5, 2.0, 1.0]), np.array([2, 1, 0, 1, 1, 2])
    rows = np.array([0.25, 1.0, 0.0, 2.0, 0.5, 1.0], np.float32)
    chances = CHANCES / CHANCES.sum(-1, keepdims=True)
    expected = log_loss(classes, chances, labels=range(3), sample_weight=rows * weights[classes])
    got = categorical_cross_entropy(
        jnp.asarray(classes), jnp.asarray(chances), sparse=True, class_weights=weights, reduction="mean", rows=rows
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5)


TRUTHS = (values(6, 3, seed=7) > 0).astype(np.float32)
MEASURED: dict[str, tuple[Callable[..., jax.Array], Any, Any]] = {
    **{name: (metric, TRUTHS, CHANCES) for name, metric in METRICS.items()},
    "top_k_categorical_accuracy": (partial(METRICS["top_k_categorical_accuracy"], k=2), ONE_HOT, CHANCES),
    "sparse top k": (partial(METRICS["top_k_categorical_accuracy"], k=2, sparse=True), CLASSES, CHANCES),
    "sparse accuracy": (partial(METRICS["accuracy"], sparse=True), CLASSES, CHANCES),
    "binary accuracy": (METRICS["accuracy"], TRUTHS[:, :1], CHANCES[:, :1]),
    "flat accuracy": (METRICS["accuracy"], TRUTHS[:, 0], CHANCES[:, 0]),
}


@pytest.mark.parametrize("name", MEASURED)
def test_every_metric_leaves_padding_out(name: str) -> None:
    """Counts and means are those of the real rows, and 0 of a batch without any."""
    metric, y_true, y_pred = MEASURED[name]
    compiled, expected = jax.jit(metric), metric(only(y_true), only(y_pred))
    got = compiled(y_true, spoilt(y_pred), rows=jnp.asarray(WEIGHTS))
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert got.dtype == expected.dtype
    assert compiled(y_true, spoilt(y_pred), rows=jnp.zeros(6)) == 0


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (partial(mean_squared_error, reduction="mean"), (ONE_HOT, CHANCES)),
        (METRICS["true_positives"], (TRUTHS, CHANCES)),
        (METRICS["precision"], (TRUTHS, CHANCES)),
        (METRICS["accuracy"], (TRUTHS, CHANCES)),
    ],
)
def test_booleans_are_weights_too(function: Callable[..., jax.Array], arguments: tuple[Any, ...]) -> None:
    """True counts as 1, False as 0."""
    assert function(*arguments, rows=jnp.asarray(WHERE)) == function(*arguments, rows=jnp.asarray(WEIGHTS))


@pytest.mark.parametrize(
    ("name", "reference"),
    [("accuracy", sk.accuracy_score), ("precision", sk.precision_score), ("recall", sk.recall_score)],
)
def test_shares_weigh_rows_as_scikit_learn_does(name: str, reference: Callable[..., float]) -> None:
    """Weights other than 0 and 1 are sample weights."""
    rows = np.array([0.25, 1.0, 0.0, 2.0, 0.5, 1.0], np.float32)
    truth, chance = TRUTHS[:, 0], CHANCES[:, 0]
    expected = reference(truth, chance > 0.5, sample_weight=rows)
    np.testing.assert_allclose(METRICS[name](truth, chance, rows=rows), expected, rtol=1e-6)


X = values(6, 4, 3, seed=8).astype(np.float32)
GAMMA, BETA, MEAN, VAR = values(4, 3, seed=9, low=0.5, high=1.5).astype(np.float32)


def normalize(norm: Callable[..., Any], *arguments: Any, channel_index: int = -1, **options: Any) -> StatefulOutput:
    """A training call on arrays whose channels are moved to where they shall be."""
    x, *rest = arguments
    result = norm(jnp.moveaxis(x, -1, channel_index), *rest, mode="train", channel_index=channel_index, **options)
    return StatefulOutput(jnp.moveaxis(result.output, channel_index, -1), result.state)


@pytest.mark.parametrize("norm", [batch_norm, instance_norm])
@pytest.mark.parametrize("channel_index", [1, -1])
def test_batch_statistics_are_those_of_the_real_rows(norm: Callable[..., Any], channel_index: int) -> None:
    """Output, running statistics and gradients equal those without the padding, which may hold NaN."""
    call = jax.jit(partial(normalize, norm, channel_index=channel_index))
    got = call(spoilt(X), GAMMA, BETA, MEAN, VAR, rows=jnp.asarray(WEIGHTS))
    expected = call(only(X), GAMMA, BETA, MEAN, VAR)
    np.testing.assert_allclose(got.output[WHERE], expected.output, rtol=1e-5, atol=1e-6)
    assert not np.asarray(got.output)[~WHERE].any()
    for name in ("mean", "var"):
        np.testing.assert_allclose(got.state[name], expected.state[name], rtol=1e-5)

    def total(x: jax.Array, gamma: jax.Array, beta: jax.Array, **options: Any) -> jax.Array:
        return jnp.sum(call(x, gamma, beta, MEAN, VAR, **options).output ** 3)

    gradients = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
    padded, real = gradients(spoilt(X), GAMMA, BETA, rows=jnp.asarray(WEIGHTS)), gradients(only(X), GAMMA, BETA)
    assert not np.asarray(padded[0])[~WHERE].any()
    np.testing.assert_allclose(padded[0][WHERE], real[0], rtol=1e-4, atol=1e-5)
    for got_leaf, expected_leaf in zip(padded[1:], real[1:], strict=True):
        np.testing.assert_allclose(got_leaf, expected_leaf, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", [batch_norm, instance_norm])
def test_a_batch_of_padding_alone_leaves_the_running_statistics(norm: Callable[..., Any]) -> None:
    """Bit for bit, and the output and its gradient are 0."""
    call = jax.jit(partial(normalize, norm, rows=jnp.zeros(6)))
    output, state = call(spoilt(X), GAMMA, BETA, MEAN, VAR)
    assert not np.asarray(output).any()
    np.testing.assert_array_equal(state["mean"], MEAN)
    np.testing.assert_array_equal(state["var"], VAR)
    gradients = jax.grad(lambda x, g: call(x, g, BETA, MEAN, VAR).output.sum(), argnums=(0, 1))(spoilt(X), GAMMA)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradients))


def test_statistics_weigh_rows() -> None:
    """A weight of two is a row taken twice."""
    counts = np.array([2, 0, 1, 3, 0, 1])
    got = normalize(batch_norm, X, GAMMA, BETA, MEAN, VAR, rows=jnp.asarray(counts, jnp.float32))
    expected = normalize(batch_norm, X[np.repeat(np.arange(6), counts)], GAMMA, BETA, MEAN, VAR)
    np.testing.assert_allclose(got.state["var"], expected.state["var"], rtol=1e-5)
    np.testing.assert_allclose(got.state["mean"], expected.state["mean"], rtol=1e-5)


def test_rows_none_is_the_program_without_rows() -> None:
    """No weights, no cost: the compiled text is the same."""
    for function, arguments in (
        (partial(mean_squared_error, reduction="mean"), (ONE_HOT, CHANCES)),
        (METRICS["precision"], (TRUTHS, CHANCES)),
        (partial(batch_norm, mode="train"), (X, GAMMA, BETA, MEAN, VAR)),
    ):
        with_none = jax.jit(lambda *given, f=function: f(*given, rows=None)).lower(*arguments).as_text()
        without = jax.jit(lambda *given, f=function: f(*given)).lower(*arguments).as_text()
        assert with_none == without


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (partial(mean_squared_error, ONE_HOT, CHANCES, rows=np.ones(5)), ShapeError, r"expected rows of shape \(6,\)"),
        (partial(mean_squared_error, ONE_HOT, CHANCES, rows=WEIGHTS[:, None]), ShapeError, r"got \(6, 1\)"),
        (partial(mean_squared_error, CHANCES[:, 0], CHANCES[:, 0], rows=WEIGHTS), ShapeError, "got a scalar"),
        (partial(cosine_similarity, ONE_HOT, CHANCES, axes=(0,), rows=WEIGHTS), OptionError, "behind the batch axis"),
        (partial(METRICS["accuracy"], TRUTHS, CHANCES, rows=np.ones(5)), ShapeError, "accuracy: expected rows"),
        (partial(METRICS["recall"], TRUTHS, CHANCES, rows=np.ones(5)), ShapeError, "recall: expected rows"),
        (partial(batch_norm, X, GAMMA, BETA, MEAN, VAR, rows=np.ones(5)), ShapeError, "batch_norm: expected rows"),
        (
            partial(batch_norm, X.T, GAMMA, BETA, MEAN, VAR, channel_index=0, rows=WEIGHTS),
            OptionError,
            "batch_norm: expected a channel_index behind the batch axis",
        ),
    ],
)
def test_rows_that_do_not_fit_are_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    """One weight per row, along an axis that is the batch."""
    with pytest.raises(error, match=message):
        call()
