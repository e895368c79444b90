"""Losses: values against other libraries, stability, derivatives, shapes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special
from sklearn.metrics import log_loss

from engine.errors import DtypeError, OptionError, ShapeError
from engine.functional import losses
from engine.functional.losses import LOSSES, binary_cross_entropy, categorical_cross_entropy
from tests.engine.functional.support import assert_gradient, values

ONE_TO_ONE = [name for name in LOSSES if name not in ("margin_ranking", "connectionist_temporal_classification")]
ONE_HOT = np.eye(4, dtype=np.float32)[[1, 3, 0]]
LABELS = np.array([1, 3, 0], np.int32)
LOGITS = (3 * values(3, 4)).astype(np.float32)
SIGNS = np.where(values(3, 4, seed=1) > 0, 1, -1).astype(np.float32)


@pytest.mark.parametrize(
    ("loss", "y_true", "y_pred", "expected"),
    [
        (partial(binary_cross_entropy, from_logits=True), ONE_HOT, LOGITS,
         optax.sigmoid_binary_cross_entropy(LOGITS, ONE_HOT).mean(-1)),
        (partial(categorical_cross_entropy, from_logits=True), ONE_HOT, LOGITS,
         optax.softmax_cross_entropy(LOGITS, ONE_HOT)),
        (losses.huber, ONE_HOT, LOGITS, optax.huber_loss(LOGITS, ONE_HOT)),
        (losses.log_cosh, ONE_HOT, LOGITS, optax.log_cosh(LOGITS, ONE_HOT).mean(-1)),
        (losses.hinge, SIGNS, LOGITS, optax.hinge_loss(LOGITS, SIGNS).mean(-1)),
        (losses.soft_margin, SIGNS, LOGITS, np.log1p(np.exp(-SIGNS * LOGITS)).mean(-1)),
        (losses.mean_squared_error, ONE_HOT, LOGITS, ((ONE_HOT - LOGITS) ** 2).mean(-1)),
        (losses.mean_absolute_error, ONE_HOT, LOGITS, np.abs(ONE_HOT - LOGITS).mean(-1)),
        (losses.kl_divergence, np.abs(SIGNS) / 4, special.softmax(LOGITS, -1),
         special.rel_entr(0.25, special.softmax(LOGITS, -1)).sum(-1)),
        (losses.cosine_similarity, ONE_HOT, LOGITS, optax.cosine_similarity(LOGITS, ONE_HOT)),
        (losses.cosine_distance, ONE_HOT, LOGITS, optax.cosine_distance(LOGITS, ONE_HOT)),
        (losses.poisson, ONE_HOT, np.exp(LOGITS), (np.exp(LOGITS) - ONE_HOT * LOGITS).mean(-1)),
        (losses.categorical_hinge, ONE_HOT, LOGITS,
         np.maximum(0, 1 + ((1 - ONE_HOT) * LOGITS).max(-1) - (ONE_HOT * LOGITS).sum(-1))),
    ],
)  # fmt: skip
def test_value_matches_an_independent_one(
    loss: Callable[..., jax.Array], y_true: np.ndarray, y_pred: np.ndarray, expected: Any
) -> None:
    """Without a reduction a loss equals Optax, SciPy or the formula in NumPy; reductions are those of it."""
    np.testing.assert_allclose(loss(y_true, y_pred), expected, rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(loss(y_true, y_pred, reduction="mean"), np.mean(expected), rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(loss(y_true, y_pred, reduction="sum"), np.sum(expected), rtol=2e-5, atol=1e-5)


PROBABILITIES = ("binary_cross_entropy", "categorical_cross_entropy", "kl_divergence", "poisson")


@pytest.mark.parametrize("name", ONE_TO_ONE)
def test_gradient_matches_central_differences(name: str) -> None:
    """The derivative with respect to both arguments is that of the function."""
    y_pred = values(3, 4, low=0.05, high=0.95) if name in PROBABILITIES else LOGITS
    assert_gradient(LOSSES[name], values(3, 4, seed=2, low=0.05, high=0.95), y_pred)


@pytest.mark.parametrize("name", ["binary_cross_entropy", "categorical_cross_entropy"])
def test_gradient_of_logits_matches_central_differences(name: str) -> None:
    """The derivative with respect to logits is that of the function."""
    assert_gradient(partial(LOSSES[name], from_logits=True), values(3, 4, seed=2, low=0.05, high=0.95), LOGITS)


def test_margin_ranking_gradient_matches_central_differences() -> None:
    """Both scores of a pair get their derivative."""
    sign = SIGNS[:, 0]
    assert_gradient(lambda a, b: losses.margin_ranking(sign, (a, b), margin=0.5), values(3), values(3, seed=3))


@pytest.mark.parametrize("scale", [1e4, -1e4])
@pytest.mark.parametrize("name", ["binary_cross_entropy", "categorical_cross_entropy"])
def test_loss_of_huge_logits_is_exact(name: str, scale: float) -> None:
    """The loss is 0 or the logits' distance, and its gradient is finite."""
    loss = partial(LOSSES[name], from_logits=True, reduction="sum")
    y_true, logits = jnp.asarray([[1.0, 0.0]]), jnp.asarray([[scale, -scale]], jnp.float32)
    value, gradient = jax.value_and_grad(loss, argnums=1)(y_true, logits)
    distance = 2e4 if name.startswith("categorical") else 1e4
    assert value == (0 if scale > 0 else distance)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["log_cosh", "soft_margin", "huber", "hinge", "categorical_hinge"])
def test_loss_of_huge_predictions_is_finite(name: str) -> None:
    """Nothing overflows at +-1e4, nor in half precision, where sums are taken in float32."""
    y_true = jnp.asarray([[1.0, -1.0]])
    for dtype in (jnp.float32, jnp.float16):
        value, gradient = jax.value_and_grad(partial(LOSSES[name], reduction="sum"), argnums=1)(
            y_true, jnp.asarray([[-1e4, 1e4]], dtype)
        )
        assert value.dtype == jnp.float32
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


def test_absent_impossible_class_has_no_gradient() -> None:
    """0 log 0 counts as 0, in value and derivative; an impossible true class costs infinity."""
    value, gradient = jax.value_and_grad(partial(categorical_cross_entropy, reduction="sum"), argnums=1)(
        jnp.asarray([[0.0, 1.0]]), jnp.asarray([[0.0, 0.5]])
    )
    assert value == pytest.approx(np.log(2))
    assert gradient.tolist() == [[0, -2]]
    assert categorical_cross_entropy(jnp.asarray([[1.0, 0.0]]), jnp.asarray([[0.0, 1.0]])) == np.inf


@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize("shape", [(3,), (3, 1)])
@pytest.mark.parametrize("weights", [None, (0.5, 1.0, 2.0, 4.0)])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_sparse_equals_one_hot(from_logits: bool, shape: tuple[int, ...], weights: Any, reduction: Any) -> None:
    """Class indices of both shapes give what their one-hot rows give, with and without class weights."""
    y_pred = jnp.asarray(LOGITS if from_logits else special.softmax(LOGITS, -1), jnp.float32)
    loss = partial(
        categorical_cross_entropy, y_pred=y_pred, from_logits=from_logits, class_weights=weights, reduction=reduction
    )
    np.testing.assert_allclose(loss(jnp.asarray(LABELS.reshape(shape)), sparse=True), loss(ONE_HOT), rtol=1e-6)


def test_class_weights_match_scikit_learn() -> None:
    """The mean is weighted: scikit-learn's log loss with each sample weighted by its class."""
    weights = np.array([0.5, 1.0, 2.0, 4.0])
    probabilities = special.softmax(LOGITS, -1)
    expected = log_loss(LABELS, probabilities, labels=range(4), sample_weight=weights[LABELS])
    actual = categorical_cross_entropy(ONE_HOT, probabilities, class_weights=weights, reduction="mean")
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("from_logits", [False, True])
def test_positive_and_negative_weights_scale_their_parts(from_logits: bool) -> None:
    """Weights multiply the positive and negative part, and reductions are honoured."""
    y_pred = LOGITS if from_logits else special.expit(LOGITS)
    parts = np.where(ONE_HOT == 1, 2.0 * -special.log_expit(LOGITS), 0.5 * -special.log_expit(-LOGITS))
    loss = partial(binary_cross_entropy, positive_weight=2.0, negative_weight=0.5, from_logits=from_logits)
    np.testing.assert_allclose(loss(ONE_HOT, y_pred), parts.mean(-1), rtol=1e-4)
    np.testing.assert_allclose(loss(ONE_HOT, y_pred, reduction="sum"), parts.mean(-1).sum(), rtol=1e-4)


@pytest.mark.parametrize("label", [-1, 4])
def test_class_index_out_of_range_gives_nan(label: int) -> None:
    """A label that names no class spoils its own row visibly, and no other."""
    loss = categorical_cross_entropy(jnp.asarray([label, 0]), jnp.asarray(LOGITS[:2]), from_logits=True, sparse=True)
    assert np.isnan(loss).tolist() == [True, False]


@pytest.mark.parametrize("name", ONE_TO_ONE)
@pytest.mark.parametrize("shape", [(3, 1), (3,), (1, 4), (4,), ()])
def test_shapes_are_never_broadcast(name: str, shape: tuple[int, ...]) -> None:
    """Targets of another shape raise, and the message names both shapes."""
    with pytest.raises(ShapeError, match=rf"{name}: .*\(3, 4\)"):
        LOSSES[name](jnp.zeros(shape, jnp.int32), jnp.ones((3, 4)))


@pytest.mark.parametrize("shape", [(3, 4), (4,), (3, 2), (3, 1, 1)])
def test_sparse_labels_of_a_wrong_shape_raise(shape: tuple[int, ...]) -> None:
    """Class indices are one per row."""
    with pytest.raises(ShapeError, match=r"expected class indices of shape \(3,\) or \(3, 1\)"):
        categorical_cross_entropy(jnp.zeros(shape, jnp.int32), jnp.ones((3, 4)), sparse=True)


def test_float_class_indices_raise() -> None:
    """Labels read as floats are not rounded silently."""
    with pytest.raises(DtypeError, match="expected integer class indices with sparse, got dtype float32"):
        categorical_cross_entropy(jnp.zeros(3), jnp.ones((3, 4)), sparse=True)


def test_wrong_options_raise() -> None:
    """Unknown reductions, negative weights and class weights of a wrong length name the option."""
    with pytest.raises(OptionError, match="expected reduction to be one of 'none', 'mean', 'sum', got 'average'"):
        losses.mean_squared_error(ONE_HOT, LOGITS, reduction="average")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="positive_weight"):
        binary_cross_entropy(ONE_HOT, LOGITS, positive_weight=-1.0)
    with pytest.raises(OptionError, match=r"expected class_weights of shape \(4,\), got shape \(3,\)"):
        categorical_cross_entropy(ONE_HOT, LOGITS, class_weights=[1.0, 1.0, 1.0])
    with pytest.raises(OptionError, match="smoothing"):
        losses.label_smoothing(losses.mean_squared_error, smoothing=1.5)


@pytest.mark.parametrize("zero", ["y_true", "y_pred", "both"])
def test_cosine_similarity_of_zero_vectors_has_a_finite_gradient(zero: str) -> None:
    """A vector without direction has similarity 0, and no NaN in its derivative."""
    y = jnp.zeros((1, 3)) if zero != "y_pred" else jnp.ones((1, 3))
    p = jnp.zeros((1, 3)) if zero != "y_true" else jnp.ones((1, 3))
    value, gradients = jax.value_and_grad(partial(losses.cosine_similarity, reduction="sum"), argnums=(0, 1))(y, p)
    assert value == 0
    assert np.isfinite(gradients).all()


def test_label_smoothing_matches_optax() -> None:
    """Smoothed targets are Optax's, and the wrapped loss takes them."""
    smoothed = optax.smooth_labels(jnp.asarray(ONE_HOT), 0.2)
    np.testing.assert_allclose(losses.apply_label_smoothing(ONE_HOT, LOGITS, smoothing=0.2), smoothed, rtol=1e-6)
    wrapped = losses.label_smoothing(losses.mean_squared_error, smoothing=0.2)
    np.testing.assert_allclose(wrapped(ONE_HOT, LOGITS), losses.mean_squared_error(smoothed, LOGITS), rtol=1e-6)


@pytest.mark.parametrize("from_logits", [False, True])
def test_smoothed_cross_entropy_matches_optax(from_logits: bool) -> None:
    """Of one-hot rows and of class indices alike; weights are those of the true class; no class stays NaN."""
    y_pred = jnp.asarray(LOGITS if from_logits else special.softmax(LOGITS, -1), jnp.float32)
    loss = partial(categorical_cross_entropy, from_logits=from_logits, label_smoothing=0.2)
    expected = optax.softmax_cross_entropy(LOGITS, optax.smooth_labels(jnp.asarray(ONE_HOT), 0.2))
    np.testing.assert_allclose(loss(ONE_HOT, y_pred), expected, rtol=1e-4)
    np.testing.assert_allclose(loss(jnp.asarray(LABELS), y_pred, sparse=True), expected, rtol=1e-4)
    weights = np.array([0.5, 1.0, 2.0, 4.0])
    weighted = loss(jnp.asarray(LABELS), y_pred, sparse=True, class_weights=weights.tolist())
    np.testing.assert_allclose(weighted, expected * weights[LABELS], rtol=1e-4)
    spoilt = loss(jnp.asarray([1, 4, -1]), y_pred, sparse=True)
    assert np.isnan(spoilt).tolist() == [False, True, True]
    assert_gradient(lambda p: loss(ONE_HOT, p), values(3, 4, low=0.05, high=0.95))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("binary_cross_entropy", {"from_logits": "yes"}),
        ("categorical_cross_entropy", {"from_logits": 1}),
        ("categorical_cross_entropy", {"sparse": "no"}),
        ("categorical_cross_entropy", {"label_smoothing": 1.0}),
        ("categorical_cross_entropy", {"class_weights": "heavy"}),
        ("categorical_cross_entropy", {"class_weights": [1.0, 1.0, -1.0, 1.0]}),
        ("categorical_cross_entropy", {"class_weights": [1.0, "a", 1.0, 1.0]}),
        ("cosine_distance", {"axes": 1}),
        ("cosine_distance", {"axes": [1, -1]}),
        ("cosine_distance", {"axes": [0.5]}),
    ],
)
def test_options_outside_their_domain_raise(name: str, options: Any) -> None:
    """The message names the loss and the option."""
    with pytest.raises(OptionError, match=rf"{name}: expected .*{next(iter(options))}|different axes"):
        LOSSES[name](jnp.asarray(ONE_HOT), jnp.asarray(LOGITS), **options)


LENGTHS = np.array([2, 3, 0, 1], np.int32)
SEQUENCES = np.array([[1, 1, -1], [2, 1, 3], [9, 9, 9], [4, 0, 0]], np.int32)
FRAMES = np.asarray(jax.nn.log_softmax(3 * values(4, 7, 5, seed=6).astype(np.float32)))


@pytest.mark.parametrize("blank", [0, 2])
def test_ctc_matches_optax(blank: int) -> None:
    """Repeated labels, empty sequences and padding behind the length give what Optax gives."""
    labels = np.where(blank == SEQUENCES, 3, SEQUENCES)
    padding = np.arange(3) >= LENGTHS[:, None]
    expected = optax.ctc_loss(FRAMES, np.zeros((4, 7)), labels, padding.astype(np.float32), blank_id=blank)
    loss = partial(losses.connectionist_temporal_classification, blank=blank)
    np.testing.assert_allclose(loss((LENGTHS, labels), FRAMES), expected, rtol=1e-4)
    np.testing.assert_allclose(
        loss((LENGTHS, labels), FRAMES, reduction="mean"), np.mean(expected / np.maximum(LENGTHS, 1)), rtol=1e-4
    )
    assert_gradient(lambda frames: loss((jnp.asarray(LENGTHS), jnp.asarray(labels)), frames), FRAMES)


def test_ctc_of_an_impossible_sequence_is_large_with_a_finite_gradient() -> None:
    """Two equal labels need three frames."""
    loss = partial(losses.connectionist_temporal_classification, reduction="sum")
    y_true = (jnp.array([2]), jnp.array([[1, 1]]))
    value, gradient = jax.value_and_grad(loss, argnums=1)(y_true, jnp.asarray(FRAMES[:1, :2]))
    assert value > 9e4
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("label", [-1, 5])
def test_ctc_of_a_label_outside_the_classes_is_nan(label: int) -> None:
    """Only the sequence that holds it is spoilt."""
    y_true = (jnp.array([1, 1]), jnp.array([[label], [1]]))
    loss = losses.connectionist_temporal_classification(y_true, jnp.asarray(FRAMES[:2]))
    assert np.isnan(loss).tolist() == [True, False]


def test_ctc_arguments_are_checked() -> None:
    """Lengths, labels and frames belong to one batch; the blank is a class."""
    with pytest.raises(ShapeError, match=r"expected lengths of shape \(4,\) and labels of shape \(4, S\)"):
        losses.connectionist_temporal_classification((LENGTHS[:2], SEQUENCES), FRAMES)
    with pytest.raises(OptionError, match="expected blank below 5"):
        losses.connectionist_temporal_classification((LENGTHS, SEQUENCES), FRAMES, blank=5)
