"""The likelihood of a label sequence over all its alignments (Graves et al. 2006)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from engine.errors import ShapeError
from engine.shapes import Shape, require_rank


def check_ctc(lengths: Shape, labels: Shape, y_pred: Shape) -> None:
    """Raise `ShapeError` unless the shapes are `[batch]`, `[batch, S]` and `[batch, T, classes]`."""
    op = "connectionist_temporal_classification"
    require_rank(op, y_pred, exactly=3)
    if len(labels) != 2 or labels[0] != y_pred[0] or lengths != y_pred[:1]:
        raise ShapeError(
            f"{op}: expected lengths of shape ({y_pred[0]},) and labels of shape ({y_pred[0]}, S) "
            f"for y_pred of shape {y_pred}, got {lengths} and {labels}"
        )


# Stands for log 0: finite, so that derivatives are, and below what any alignment adds up to.
_LOG_ZERO = -1e9


def negative_log_likelihood(log_p: jax.Array, labels: jax.Array, lengths: jax.Array, blank: int) -> jax.Array:
    r"""$-\log p$ of each label sequence, by the forward recursion over the states blank, label, blank, ..., blank.

    Args:
        log_p: log-probabilities `[batch, T, classes]`.
        labels: `[batch, S]`, classes; behind a sequence's length the blank.
        lengths: `[batch]`.
        blank: the class that stands for no label.
    Returns: `[batch]`; about 1e9 for a sequence that fits no alignment.
    """
    batch, count = labels.shape
    states = jnp.full((batch, 2 * count + 1), blank, labels.dtype).at[:, 1::2].set(labels)
    emitted = jnp.take_along_axis(log_p, states[:, None, :], axis=2, mode="fill", fill_value=jnp.nan)
    before = jnp.pad(states, ((0, 0), (2, 0)), constant_values=blank)[:, :-2]
    skips = (states != blank) & (states != before)

    def step(alpha: jax.Array, frame: jax.Array) -> tuple[jax.Array, None]:
        padded = jnp.pad(alpha, ((0, 0), (2, 0)), constant_values=_LOG_ZERO)
        reached = jnp.logaddexp(alpha, padded[:, 1:-1])
        return frame + jnp.logaddexp(reached, jnp.where(skips, padded[:, :-2], _LOG_ZERO)), None

    start = jnp.full(states.shape, _LOG_ZERO, log_p.dtype).at[:, 0].set(0)
    # From a virtual state before the first, so that the first frame reaches blank and first label alike.
    first = emitted[:, 0] + jnp.logaddexp(start, jnp.pad(start, ((0, 0), (1, 0)), constant_values=_LOG_ZERO)[:, :-1])
    alpha, _ = jax.lax.scan(step, first, jnp.swapaxes(emitted[:, 1:], 0, 1))
    last = jnp.take_along_axis(alpha, 2 * lengths[:, None].astype(jnp.int32), axis=1)[:, 0]
    label = jnp.take_along_axis(alpha, jnp.maximum(2 * lengths[:, None].astype(jnp.int32) - 1, 0), axis=1)[:, 0]
    return -jnp.where(lengths > 0, jnp.logaddexp(last, label), last)
