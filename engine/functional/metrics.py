r"""Metrics: `metric(y_true, y_pred, ...)` gives a scalar for one batch; an accumulator combines batches.

Precision, recall and specificity of a data set are not the means of those of its batches: accumulate the counts.

`rows` are weights `[batch]` of the rows, 0 for padding (see `engine.functional.rows`): means and shares weigh the rows,
counts leave out those of weight 0. None means all ones. Source: Axon.Metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from engine.errors import DtypeError, OptionError
from engine.functional.losses import check_labels, check_pair
from engine.functional.options import as_integer, require_number
from engine.functional.rows import Rows, check_rows, row_mean, weighted

# Keeps an empty ratio at 0; upstream's value.
_EPSILON = 1e-16


class Metric(Protocol):
    """A metric as a loop calls it."""

    def __call__(self, y_true: jax.Array, y_pred: jax.Array) -> jax.Array: ...


class Accumulator(Protocol):
    """Combines the value so far with that of batch `i`, counted from 0, whose metric is called with `arguments`."""

    def __call__(self, accumulated: jax.Array, arguments: tuple[Any, ...], i: jax.Array | int) -> jax.Array: ...


def _labels(op: str, y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    check_labels(op, jnp.shape(y_true), jnp.shape(y_pred))
    if not jnp.issubdtype(y_true.dtype, jnp.integer):
        raise DtypeError(f"{op}: expected integer class indices with sparse, got dtype {y_true.dtype}")
    return jnp.reshape(y_true, jnp.shape(y_pred)[:-1])


def _mean(op: str, values: jax.Array, rows: Rows) -> jax.Array:
    if rows is not None:
        check_rows(op, jnp.shape(rows), values.shape)
    return row_mean(values, rows)


def accuracy(
    y_true: jax.Array,
    y_pred: jax.Array,
    *,
    from_logits: bool = False,
    sparse: bool = False,
    rows: Rows = None,
) -> jax.Array:
    """Share of right predictions.

    Args:
        y_true: of y_pred's shape; with `sparse`, class indices `[...]` or `[..., 1]`.
        y_pred: `[..., n]` with n > 1: the class is that of the largest value, the first of several (that of y_true
            likewise). `[..., 1]` or `[n]`: yes-or-no predictions, yes above 0.5.
        from_logits: yes-or-no predictions are logits: yes above 0.
        sparse: `y_true` holds class indices.
    Raises:
        ShapeError: shapes do not match; indices given without `sparse` are such a case.
    Source: Axon.Metrics.accuracy (rank 2 only there).
    """
    shape = jnp.shape(y_pred)
    if len(shape) > 1 and shape[-1] > 1:
        predicted = jnp.argmax(y_pred, axis=-1)
        if sparse:
            return _mean("accuracy", predicted == _labels("accuracy", y_true, y_pred), rows)
        check_pair("accuracy", jnp.shape(y_true), shape)
        return _mean("accuracy", predicted == jnp.argmax(y_true, axis=-1), rows)
    if sparse and len(shape) > 1:
        y_true = _labels("accuracy", y_true, y_pred).reshape(shape)
    check_pair("accuracy", jnp.shape(y_true), shape)
    yes = y_pred > (0 if from_logits else 0.5)
    return _mean("accuracy", yes == y_true, rows)


def _decisions(
    op: str, y_true: jax.Array, y_pred: jax.Array, threshold: float, rows: Rows
) -> tuple[jax.Array, jax.Array, jax.Array]:
    check_pair(op, jnp.shape(y_true), jnp.shape(y_pred), at_least=0)
    if rows is not None:
        check_rows(op, jnp.shape(rows), jnp.shape(y_pred))
    require_number(op, "threshold", threshold)
    return y_true == 1, y_true == 0, y_pred > threshold


def _count(hits: jax.Array, rows: Rows) -> jax.Array:
    real = None if rows is None else rows > 0
    return jnp.sum(weighted(hits, real), dtype=jnp.uint32)


def true_positives(y_true: jax.Array, y_pred: jax.Array, *, threshold: float = 0.5, rows: Rows = None) -> jax.Array:
    """How many ones are predicted as one (`y_pred > threshold`); any shape. Source: Axon.Metrics.true_positives."""
    one, _, yes = _decisions("true_positives", y_true, y_pred, threshold, rows)
    return _count(one & yes, rows)


def true_negatives(y_true: jax.Array, y_pred: jax.Array, *, threshold: float = 0.5, rows: Rows = None) -> jax.Array:
    """How many zeros are predicted as zero; any shape. Source: Axon.Metrics.true_negatives."""
    _, zero, yes = _decisions("true_negatives", y_true, y_pred, threshold, rows)
    return _count(zero & ~yes, rows)


def false_positives(y_true: jax.Array, y_pred: jax.Array, *, threshold: float = 0.5, rows: Rows = None) -> jax.Array:
    """How many zeros are predicted as one; any shape. Source: Axon.Metrics.false_positives."""
    _, zero, yes = _decisions("false_positives", y_true, y_pred, threshold, rows)
    return _count(zero & yes, rows)


def false_negatives(y_true: jax.Array, y_pred: jax.Array, *, threshold: float = 0.5, rows: Rows = None) -> jax.Array:
    """How many ones are predicted as zero; any shape. Source: Axon.Metrics.false_negatives."""
    one, _, yes = _decisions("false_negatives", y_true, y_pred, threshold, rows)
    return _count(one & ~yes, rows)


def _ratio(part: jax.Array, rest: jax.Array, rows: Rows) -> jax.Array:
    hits, others = (
        _count(found, None) if rows is None else jnp.sum(weighted(found.astype(jnp.float32), rows))
        for found in (part, rest)
    )
    hits = hits.astype(jnp.float32)
    return hits / (hits + others + _EPSILON)


def precision(y_true: jax.Array, y_pred: jax.Array, *, threshold: float = 0.5, rows: Rows = None) -> jax.Array:
    """Share of ones among those predicted as one: `TP / (TP + FP)`; 0 of none. Source: Axon.Metrics.precision."""
    one, zero, yes = _decisions("precision", y_true, y_pred, threshold, rows)
    return _ratio(one & yes, zero & yes, rows)


def recall(y_true: jax.Array, y_pred: jax.Array, *, threshold: float = 0.5, rows: Rows = None) -> jax.Array:
    """Share of the ones that are predicted as one: `TP / (TP + FN)`; 0 of none. Source: Axon.Metrics.recall."""
    one, _, yes = _decisions("recall", y_true, y_pred, threshold, rows)
    return _ratio(one & yes, one & ~yes, rows)


def sensitivity(y_true: jax.Array, y_pred: jax.Array, *, threshold: float = 0.5, rows: Rows = None) -> jax.Array:
    """The same as `recall`. Source: Axon.Metrics.sensitivity."""
    return recall(y_true, y_pred, threshold=threshold, rows=rows)


def specificity(y_true: jax.Array, y_pred: jax.Array, *, threshold: float = 0.5, rows: Rows = None) -> jax.Array:
    """Share of the zeros that are predicted as zero: `TN / (TN + FP)`; 0 of none. Source: Axon.Metrics.specificity."""
    _, zero, yes = _decisions("specificity", y_true, y_pred, threshold, rows)
    return _ratio(zero & ~yes, zero & yes, rows)


def mean_absolute_error(y_true: jax.Array, y_pred: jax.Array, *, rows: Rows = None) -> jax.Array:
    """`mean(|y - p|)` over everything; any shape. Source: Axon.Metrics.mean_absolute_error."""
    check_pair("mean_absolute_error", jnp.shape(y_true), jnp.shape(y_pred), at_least=0)
    dtype = jnp.promote_types(jnp.result_type(y_true, y_pred), jnp.float32)
    return _mean("mean_absolute_error", jnp.abs(jnp.asarray(y_true, dtype) - jnp.asarray(y_pred, dtype)), rows)


def top_k_categorical_accuracy(
    y_true: jax.Array, y_pred: jax.Array, *, k: int = 5, sparse: bool = False, rows: Rows = None
) -> jax.Array:
    """Share of rows whose class is among the k likeliest; of equal values the first counts as likelier.

    Args:
        y_true: one-hot, of y_pred's shape; with `sparse`, class indices `[...]` or `[..., 1]`.
        y_pred: `[..., n]`, rank 1 (a single row) or more.
        k: at most n.
        sparse: `y_true` holds class indices.
    Raises:
        OptionError: `k` outside [1, n].
        ShapeError: shapes do not match.
    Source: Axon.Metrics.top_k_categorical_accuracy.
    """
    op = "top_k_categorical_accuracy"
    if sparse:
        labels = _labels(op, y_true, y_pred)
    else:
        check_pair(op, jnp.shape(y_true), jnp.shape(y_pred))
        labels = jnp.argmax(y_true, axis=-1)
    classes = jnp.shape(y_pred)[-1]
    if as_integer(op, "k", k, at_least=1) > classes:
        raise OptionError(f"{op}: expected k of at most {classes}, the number of classes, got {k}")
    _, likeliest = jax.lax.top_k(y_pred, k)
    return _mean(op, jnp.any(likeliest == labels[..., None], axis=-1), rows)


def running_average(metric: Callable[..., jax.Array]) -> Accumulator:
    """Mean over batches: `(accumulated i + value) / (i + 1)`. Batches count the same, whatever their size.

    Source: Axon.Metrics.running_average.
    """

    def accumulate(accumulated: jax.Array, arguments: tuple[Any, ...], i: jax.Array | int) -> jax.Array:
        return (accumulated * i + metric(*arguments)) / (i + 1)

    return accumulate


def running_sum(metric: Callable[..., jax.Array]) -> Accumulator:
    """Sum over batches: `accumulated + value`. Source: Axon.Metrics.running_sum."""

    def accumulate(accumulated: jax.Array, arguments: tuple[Any, ...], i: jax.Array | int) -> jax.Array:
        return accumulated + metric(*arguments)

    return accumulate


METRICS: Mapping[str, Callable[..., jax.Array]] = MappingProxyType(
    {
        function.__name__: function
        for function in (
            accuracy,
            false_negatives,
            false_positives,
            mean_absolute_error,
            precision,
            recall,
            sensitivity,
            specificity,
            top_k_categorical_accuracy,
            true_negatives,
            true_positives,
        )
    }
)
"""Every metric by its name."""
