r"""Losses: `loss(y_true, y_pred, *, reduction="none", ...)`, the target first.

Unless said otherwise both arguments have the same shape `[..., n]`, the loss is computed along the last axis and has
shape `[...]`; `reduction` then leaves it (`none`) or takes the `mean` or `sum` over everything. Values are computed in
float32 at least, whatever the inputs' dtype. Shapes are never broadcast: ones that do not match raise `ShapeError`.

`rows` are weights `[batch]` of the rows, 0 for padding (see `engine.functional.rows`): `none` multiplies by them, `sum`
adds the products, `mean` is `sum(rows loss) / sum(rows)`. None means all ones.
Source: Axon.Losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from engine.errors import DtypeError, OptionError, ShapeError
from engine.functional.ctc import check_ctc, negative_log_likelihood
from engine.functional.options import (
    REDUCTIONS,
    Reduction,
    as_integer,
    require_boolean,
    require_choice,
    require_number,
)
from engine.functional.rows import Rows, check_rows, row_mean, weighted, without_padding
from engine.shapes import Shape, normalize_axis, require_rank

# Keeps logarithms finite; upstream's value, part of the losses' definition.
_EPSILON = 1e-7


class Loss(Protocol):
    """A loss as training calls it."""

    def __call__(self, y_true: jax.Array, y_pred: jax.Array) -> jax.Array: ...


def check_pair(op: str, y_true: Shape, y_pred: Shape, *, at_least: int = 1) -> None:
    """Raise `ShapeError` unless both shapes are equal and of rank `at_least` or more."""
    if y_true != y_pred:
        raise ShapeError(f"{op}: expected y_true and y_pred of one shape, got {y_true} and {y_pred}")
    require_rank(op, y_pred, at_least=at_least)


def check_labels(op: str, y_true: Shape, y_pred: Shape) -> None:
    """Raise `ShapeError` unless `y_true` holds one class index per row of `y_pred` (`[...]` or `[..., 1]`)."""
    require_rank(op, y_pred, at_least=1)
    if y_true not in (y_pred[:-1], (*y_pred[:-1], 1)):
        raise ShapeError(
            f"{op}: expected class indices of shape {y_pred[:-1]} or {(*y_pred[:-1], 1)} "
            f"for y_pred of shape {y_pred}, got {y_true}"
        )


def _floats(*arrays: jax.Array) -> list[jax.Array]:
    dtype = jnp.promote_types(jnp.result_type(*arrays), jnp.float32)
    return [jnp.asarray(array, dtype) for array in arrays]


def _pair(op: str, y_true: jax.Array, y_pred: jax.Array, rows: Rows = None, *, at_least: int = 1) -> list[jax.Array]:
    check_pair(op, jnp.shape(y_true), jnp.shape(y_pred), at_least=at_least)
    return [_real(op, array, rows) for array in _floats(y_true, y_pred)]


def _two(op: str, what: str, value: Sequence[jax.Array]) -> Sequence[jax.Array]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ShapeError(f"{op}: expected {what} to be a pair of arrays, got {type(value).__name__}")
    return value


def _real(op: str, x: jax.Array, rows: Rows) -> jax.Array:
    if rows is not None:
        check_rows(op, jnp.shape(rows), x.shape)
    return without_padding(x, rows)


def _reduce(op: str, loss: jax.Array, reduction: Reduction, rows: Rows) -> jax.Array:
    require_choice(op, "reduction", reduction, REDUCTIONS)
    if rows is not None:
        check_rows(op, jnp.shape(rows), loss.shape)
    if reduction == "mean":
        return row_mean(loss, rows)
    return weighted(loss, rows) if reduction == "none" else jnp.sum(weighted(loss, rows))


def mean_squared_error(
    y_true: jax.Array, y_pred: jax.Array, *, reduction: Reduction = "none", rows: Rows = None
) -> jax.Array:
    """L2: `mean((y - p)^2)`. Source: Axon.Losses.mean_squared_error."""
    y, p = _pair("mean_squared_error", y_true, y_pred, rows)
    return _reduce("mean_squared_error", jnp.mean(jnp.square(y - p), axis=-1), reduction, rows)


def mean_absolute_error(
    y_true: jax.Array, y_pred: jax.Array, *, reduction: Reduction = "none", rows: Rows = None
) -> jax.Array:
    """L1: `mean(|y - p|)`. Source: Axon.Losses.mean_absolute_error."""
    y, p = _pair("mean_absolute_error", y_true, y_pred, rows)
    return _reduce("mean_absolute_error", jnp.mean(jnp.abs(y - p), axis=-1), reduction, rows)


def binary_cross_entropy(
    y_true: jax.Array,
    y_pred: jax.Array,
    *,
    positive_weight: float | None = None,
    negative_weight: float | None = None,
    reduction: Reduction = "none",
    from_logits: bool = False,
    rows: Rows = None,
) -> jax.Array:
    """Cross entropy of independent yes-or-no targets: `mean(-w1 y log p - w0 (1 - y) log(1 - p))`.

    Args:
        y_true: `[..., n]`, in [0, 1].
        y_pred: `[..., n]`, probabilities (clipped to [1e-7, 1 - 1e-7]), or logits.
        positive_weight: `w1`, weight of the positive part; 1 when `None`.
        negative_weight: `w0`, weight of the negative part; 1 when `None`.
        from_logits: `y_pred` holds logits; exact at any size, so prefer it.
    Source: Axon.Losses.binary_cross_entropy (whose weights ignore `reduction`; these do not).
    """
    op = "binary_cross_entropy"
    require_boolean(op, "from_logits", from_logits)
    y, p = _pair(op, y_true, y_pred, rows)
    if from_logits:
        positive, negative = -jax.nn.log_sigmoid(p), -jax.nn.log_sigmoid(-p)
    else:
        p = jnp.clip(p, _EPSILON, 1 - _EPSILON)
        positive, negative = -jnp.log(p + _EPSILON), -jnp.log(1 - p + _EPSILON)
    for option, weight in (("positive_weight", positive_weight), ("negative_weight", negative_weight)):
        if weight is not None:
            require_number(op, option, weight, at_least=0)
    positive = positive if positive_weight is None else positive_weight * positive
    negative = negative if negative_weight is None else negative_weight * negative
    return _reduce(op, jnp.mean(y * positive + (1 - y) * negative, axis=-1), reduction, rows)


def _weighted_log(y: jax.Array, log_p: jax.Array) -> jax.Array:
    # 0 * log 0 is 0 here, and so is its gradient.
    absent = (y == 0) & jnp.isneginf(log_p)
    return jnp.where(absent, 0, y * jnp.where(absent, 0, log_p))


def _log_probabilities(y_pred: jax.Array, present: jax.Array, from_logits: bool) -> jax.Array:
    if from_logits:
        return jax.nn.log_softmax(y_pred, axis=-1)
    # Where a class is absent and impossible the logarithm's gradient would be 0 / 0.
    impossible = (y_pred == 0) & ~present
    return jnp.where(impossible, -jnp.inf, jnp.log(jnp.where(impossible, 1, y_pred)))


def _check_class_weights(op: str, class_weights: Sequence[float] | jax.Array, classes: int) -> jax.Array:
    if isinstance(class_weights, list | tuple):
        for weight in class_weights:
            require_number(op, "class_weights", weight, at_least=0)
    elif not isinstance(class_weights, jax.Array | np.ndarray):
        raise OptionError(f"{op}: expected class_weights to be a list of numbers, got {class_weights!r:.200}")
    weights = jnp.asarray(class_weights, jnp.float32)
    if weights.shape != (classes,):
        raise OptionError(f"{op}: expected class_weights of shape ({classes},), got shape {weights.shape}")
    return weights


def categorical_cross_entropy(
    y_true: jax.Array,
    y_pred: jax.Array,
    *,
    class_weights: Sequence[float] | jax.Array | None = None,
    reduction: Reduction = "none",
    from_logits: bool = False,
    sparse: bool = False,
    label_smoothing: float = 0.0,
    rows: Rows = None,
) -> jax.Array:
    """Cross entropy of one class among n: `-sum(y log p)`, with `0 log 0 = 0`.

    Args:
        y_true: one-hot rows or distributions `[..., n]`; with `sparse`, class indices `[...]` or `[..., 1]`.
        y_pred: `[..., n]`, probabilities (taken as they are: p = 0 at the true class gives infinity), or logits.
        class_weights: one weight per class, taken at the (most likely) true class. With `reduction="mean"` the
            result is `sum(w loss) / sum(w)`.
        from_logits: `y_pred` holds logits, of which the softmax is taken; exact at any size, so prefer it.
        sparse: `y_true` holds class indices. One outside [0, n) makes its loss NaN.
        label_smoothing: the share `s` of each target that is spread over all classes: `y (1 - s) + s / n`, below 1.
    Raises:
        ShapeError: shapes do not match; indices given without `sparse` are such a case.
        DtypeError: class indices that are not integers.
        OptionError: class_weights of another length than n.
    Source: Axon.Losses.categorical_cross_entropy (where sparse and class_weights exclude each other).
    """
    op = "categorical_cross_entropy"
    require_boolean(op, "from_logits", from_logits)
    require_boolean(op, "sparse", sparse)
    require_number(op, "label_smoothing", label_smoothing, at_least=0, less_than=1)
    if sparse and label_smoothing:
        y_true, sparse = _one_hot(op, y_true, y_pred), False
    if sparse:
        return _sparse_cross_entropy(op, y_true, y_pred, class_weights, reduction, from_logits, rows)
    y, p = _pair(op, y_true, y_pred, rows)
    if label_smoothing:
        y = y * (1 - label_smoothing) + label_smoothing / p.shape[-1]
    loss = -jnp.sum(_weighted_log(y, _log_probabilities(p, y != 0, from_logits)), axis=-1)
    if class_weights is None:
        return _reduce(op, loss, reduction, rows)
    weights = _check_class_weights(op, class_weights, p.shape[-1])
    return _reduce_weighted(op, loss, weights[jnp.argmax(y, axis=-1)], reduction, rows)


def _one_hot(op: str, labels: jax.Array, y_pred: jax.Array) -> jax.Array:
    """Rows of a class index's place; NaN for an index that is no class."""
    labels = _class_indices(op, labels, y_pred)
    classes = y_pred.shape[-1]
    known = (labels >= 0) & (labels < classes)
    return jnp.where(known[..., None], jax.nn.one_hot(labels, classes), jnp.nan)


def _class_indices(op: str, labels: jax.Array, y_pred: jax.Array) -> jax.Array:
    check_labels(op, jnp.shape(labels), jnp.shape(y_pred))
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise DtypeError(f"{op}: expected integer class indices with sparse, got dtype {labels.dtype}")
    return jnp.reshape(labels, y_pred.shape[:-1])


def _log_sum_over(logits: jax.Array, chosen: jax.Array) -> jax.Array:
    """`-log_softmax` at the chosen logits alone: the whole of it is neither stored nor scattered into."""
    top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    return jnp.log(jnp.sum(jnp.exp(logits - top), axis=-1)) - (chosen - top[..., 0])


def _sparse_cross_entropy(
    op: str,
    y_true: jax.Array,
    y_pred: jax.Array,
    class_weights: Sequence[float] | jax.Array | None,
    reduction: Reduction,
    from_logits: bool,
    rows: Rows,
) -> jax.Array:
    labels = _class_indices(op, y_true, y_pred)
    (p,) = _floats(y_pred)
    p = _real(op, p, rows)
    classes = p.shape[-1]
    # Negative indices would count from the end; a gather fills only those past it.
    labels = jnp.where(labels < 0, classes, labels.astype(jnp.int32))[..., None]
    chosen = jnp.take_along_axis(p, labels, axis=-1, mode="fill", fill_value=jnp.nan)[..., 0]
    loss = _log_sum_over(p, chosen) if from_logits else -jnp.log(chosen)
    if class_weights is None:
        return _reduce(op, loss, reduction, rows)
    weights = _check_class_weights(op, class_weights, classes)
    return _reduce_weighted(op, loss, jnp.take(weights, labels[..., 0], mode="clip"), reduction, rows)


def _reduce_weighted(op: str, loss: jax.Array, weights: jax.Array, reduction: Reduction, rows: Rows) -> jax.Array:
    total = _reduce(op, loss * weights, "sum" if reduction == "mean" else reduction, rows)
    if reduction != "mean":
        return total
    divisor = jnp.sum(weighted(weights, rows))
    return total / (divisor if rows is None else jnp.where(divisor > 0, divisor, 1))


def categorical_hinge(
    y_true: jax.Array, y_pred: jax.Array, *, reduction: Reduction = "none", rows: Rows = None
) -> jax.Array:
    """Multi-class hinge: `max(0, 1 + max((1 - y) p) - sum(y p))`. Source: Axon.Losses.categorical_hinge."""
    y, p = _pair("categorical_hinge", y_true, y_pred, rows)
    loss = jnp.maximum(0, 1 + jnp.max((1 - y) * p, axis=-1) - jnp.sum(y * p, axis=-1))
    return _reduce("categorical_hinge", loss, reduction, rows)


def hinge(y_true: jax.Array, y_pred: jax.Array, *, reduction: Reduction = "none", rows: Rows = None) -> jax.Array:
    """`mean(max(0, 1 - y p))` of targets in {-1, 1}. Source: Axon.Losses.hinge."""
    y, p = _pair("hinge", y_true, y_pred, rows)
    return _reduce("hinge", jnp.mean(jnp.maximum(0, 1 - y * p), axis=-1), reduction, rows)


def huber(
    y_true: jax.Array, y_pred: jax.Array, *, reduction: Reduction = "none", delta: float = 1.0, rows: Rows = None
) -> jax.Array:
    """`d^2 / 2` where |d| <= delta, else `delta |d| - delta^2 / 2`, with `d = y - p`.

    Element-wise: without a reduction the result has the shape of the inputs, unlike the other regression losses.
    Source: Huber 1964; Axon.Losses.huber.
    """
    require_number("huber", "delta", delta, at_least=0)
    y, p = _pair("huber", y_true, y_pred, rows, at_least=0)
    distance = jnp.abs(y - p)
    loss = jnp.where(distance <= delta, jnp.square(distance) / 2, delta * (distance - delta / 2))
    return _reduce("huber", loss, reduction, rows)


def kl_divergence(
    y_true: jax.Array, y_pred: jax.Array, *, reduction: Reduction = "none", rows: Rows = None
) -> jax.Array:
    """Kullback-Leibler: `sum(y log(y / p))`, both clipped to [1e-7, 1]. Source: Axon.Losses.kl_divergence."""
    y, p = (jnp.clip(array, _EPSILON, 1) for array in _pair("kl_divergence", y_true, y_pred, rows))
    return _reduce("kl_divergence", jnp.sum(y * (jnp.log(y) - jnp.log(p)), axis=-1), reduction, rows)


def log_cosh(y_true: jax.Array, y_pred: jax.Array, *, reduction: Reduction = "none", rows: Rows = None) -> jax.Array:
    """`mean(log(cosh(p - y)))`, computed as `log(e^d + e^-d) - log 2`. Source: Axon.Losses.log_cosh."""
    y, p = _pair("log_cosh", y_true, y_pred, rows)
    return _reduce("log_cosh", jnp.mean(jnp.logaddexp(p - y, y - p) - math.log(2), axis=-1), reduction, rows)


def margin_ranking(
    y_true: jax.Array,
    y_pred: tuple[jax.Array, jax.Array],
    *,
    margin: float = 0.0,
    reduction: Reduction = "none",
    rows: Rows = None,
) -> jax.Array:
    """Pairwise ranking: `max(0, -y (p1 - p2) + margin)`, element-wise.

    Args:
        y_true: any shape; 1 where the first of the pair should rank higher, -1 where the second should.
        y_pred: the pair `(p1, p2)`, both of y_true's shape.
        margin: by how much.
    Source: Axon.Losses.margin_ranking.
    """
    require_number("margin_ranking", "margin", margin)
    first, second = _two("margin_ranking", "y_pred", y_pred)
    for prediction in (first, second):
        check_pair("margin_ranking", jnp.shape(y_true), jnp.shape(prediction), at_least=0)
    y, p1, p2 = (_real("margin_ranking", array, rows) for array in _floats(y_true, first, second))
    return _reduce("margin_ranking", jnp.maximum(0, -y * (p1 - p2) + margin), reduction, rows)


def poisson(y_true: jax.Array, y_pred: jax.Array, *, reduction: Reduction = "none", rows: Rows = None) -> jax.Array:
    """Poisson: `mean(p - y log(p + 1e-7))`. Source: Axon.Losses.poisson."""
    y, p = _pair("poisson", y_true, y_pred, rows)
    return _reduce("poisson", jnp.mean(p - y * jnp.log(p + _EPSILON), axis=-1), reduction, rows)


def soft_margin(y_true: jax.Array, y_pred: jax.Array, *, reduction: Reduction = "none", rows: Rows = None) -> jax.Array:
    """Logistic loss of targets in {-1, 1}: `mean(log(1 + e^(-y p)))`.

    Source: Axon.Losses.soft_margin (which sums over the batch axis instead; see docs/differences.md).
    """
    y, p = _pair("soft_margin", y_true, y_pred, rows)
    return _reduce("soft_margin", jnp.mean(jnp.logaddexp(-y * p, 0), axis=-1), reduction, rows)


def _norm(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    squared = jnp.sum(jnp.square(x), axis=axes)
    # The root's slope is infinite at zero.
    return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)


def cosine_similarity(
    y_true: jax.Array,
    y_pred: jax.Array,
    *,
    axes: Sequence[int] = (1,),
    eps: float = 1e-6,
    reduction: Reduction = "none",
    rows: Rows = None,
) -> jax.Array:
    """`sum(y p) / max(|y| |p|, eps)` over `axes`: 1 for equal directions, so negate it to train with it.

    Args:
        y_true: any shape that has `axes`; y_pred: the same.
        axes: the axes a vector spans; they are reduced.
        eps: lower bound of the divisor.
    Raises:
        OptionError: an axis outside the rank.
    Source: Axon.Losses.cosine_similarity.
    """
    op = "cosine_similarity"
    return _reduce(op, _cosine(op, y_true, y_pred, axes, eps, rows), reduction, rows)


def _cosine(op: str, y_true: jax.Array, y_pred: jax.Array, axes: Sequence[int], eps: float, rows: Rows) -> jax.Array:
    require_number(op, "eps", eps, at_least=0)
    if not isinstance(axes, list | tuple):
        raise OptionError(f"{op}: expected axes to be a list of axes, got {axes!r:.200}")
    y, p = _pair(op, y_true, y_pred, rows)
    over = tuple(normalize_axis(op, as_integer(op, "axes", axis, at_least=-y.ndim), y.ndim) for axis in axes)
    if len(set(over)) < len(over):
        raise OptionError(f"{op}: expected different axes, got {tuple(axes)}")
    if rows is not None and 0 in over:
        raise OptionError(f"{op}: expected axes behind the batch axis with rows, got {tuple(axes)}")
    return jnp.sum(y * p, axis=over) / jnp.maximum(_norm(y, over) * _norm(p, over), eps)


def cosine_distance(
    y_true: jax.Array,
    y_pred: jax.Array,
    *,
    axes: Sequence[int] = (1,),
    eps: float = 1e-6,
    reduction: Reduction = "none",
    rows: Rows = None,
) -> jax.Array:
    """`1 - cosine_similarity`: 0 for equal directions, 2 for opposite ones, so that less of it is better."""
    op = "cosine_distance"
    return _reduce(op, 1 - _cosine(op, y_true, y_pred, axes, eps, rows), reduction, rows)


def apply_label_smoothing(y_true: jax.Array, y_pred: jax.Array, *, smoothing: float = 0.1) -> jax.Array:
    """Smoothed targets: `y (1 - s) + s / n`, n the size of the last axis; shape `[..., n]`, rank 2 or more.

    Source: Szegedy et al. 2015, arXiv:1512.00567; Axon.Losses.apply_label_smoothing.
    """
    require_number("apply_label_smoothing", "smoothing", smoothing, at_least=0, at_most=1)
    y, p = _pair("apply_label_smoothing", y_true, y_pred, at_least=2)
    return y * (1 - smoothing) + smoothing / p.shape[-1]


def label_smoothing(loss: Callable[..., jax.Array], *, smoothing: float = 0.1) -> Loss:
    """`loss` of smoothed targets (see `apply_label_smoothing`); takes `rows` if it does.

    Source: Axon.Losses.label_smoothing.
    """
    require_number("label_smoothing", "smoothing", smoothing, at_least=0, at_most=1)

    def smoothed(y_true: jax.Array, y_pred: jax.Array, *, rows: Rows = None) -> jax.Array:
        targets = apply_label_smoothing(y_true, y_pred, smoothing=smoothing)
        return loss(targets, y_pred) if rows is None else loss(targets, y_pred, rows=rows)

    return smoothed


def connectionist_temporal_classification(
    y_true: tuple[jax.Array, jax.Array],
    y_pred: jax.Array,
    *,
    blank: int = 0,
    reduction: Reduction = "none",
    rows: Rows = None,
) -> jax.Array:
    """`-log p(labels)` summed over all alignments of a label sequence with the frames.

    Args:
        y_true: `(lengths [batch], labels [batch, S])`, integers; labels behind a sequence's length are ignored.
        y_pred: log-probabilities `[batch, T, classes]`.
        blank: the class that stands for no label.
        reduction: `mean` divides each loss by its length first.
    Returns: `[batch]`, or a scalar. A sequence that fits no alignment costs about 1e9; a label outside the classes
        makes its loss NaN.
    Raises:
        ShapeError: shapes do not fit.
        OptionError: `blank` is not a class.
    Source: Graves et al. 2006; Axon.Losses.connectionist_temporal_classification (which adds 1e-7 at every step).
    """
    op = "connectionist_temporal_classification"
    lengths, labels = _two(op, "y_true", y_true)
    check_ctc(jnp.shape(lengths), jnp.shape(labels), jnp.shape(y_pred))
    classes = y_pred.shape[-1]
    if as_integer(op, "blank", blank, at_least=0) >= classes:
        raise OptionError(f"{op}: expected blank below {classes}, the number of classes, got {blank}")
    (log_p,) = _floats(y_pred)
    log_p = _real(op, log_p, rows)
    inside = jnp.arange(labels.shape[1]) < lengths[:, None]
    # Negative indices would count from the end; the gather fills those past it with NaN.
    labels = jnp.where(inside, jnp.where(labels < 0, classes, labels), blank)
    loss = negative_log_likelihood(log_p, labels, lengths, blank)
    return _reduce(op, loss / jnp.maximum(lengths, 1) if reduction == "mean" else loss, reduction, rows)


LOSSES: Mapping[str, Callable[..., jax.Array]] = MappingProxyType(
    {
        function.__name__: function
        for function in (
            binary_cross_entropy,
            categorical_cross_entropy,
            categorical_hinge,
            connectionist_temporal_classification,
            cosine_distance,
            hinge,
            huber,
            kl_divergence,
            log_cosh,
            margin_ranking,
            mean_absolute_error,
            mean_squared_error,
            poisson,
            soft_margin,
        )
    }
)
"""The losses that may be named in training; for `cosine_similarity`, of which less is not better, `cosine_distance`."""

FUSED_ACTIVATION: Mapping[str, str] = MappingProxyType(
    {"binary_cross_entropy": "sigmoid", "categorical_cross_entropy": "softmax"}
)
"""The activation whose input a loss may take with `from_logits=True` in place of its output, exactly."""
