"""Rows of padding in a model: no layer lets them touch the others, or it says that it cannot."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import engine as ax
from engine.errors import GraphError, OptionError, ShapeError
from engine.runtime import mixing_reason
from tests.engine.every_op import ROWS
from tests.engine.test_every_op import data_of, model_of

REAL, BATCH = 3, 5
WEIGHTS = (np.arange(BATCH) < REAL).astype(np.float32)


@pytest.mark.parametrize("op", ROWS)
def test_no_op_lets_padding_touch_the_other_rows(op: str) -> None:
    """In training: other padding, the same real rows and the same state, bit for bit; an op that cannot refuses."""
    row = ROWS[op]
    init, _ = ax.build(model_of(row))
    predict = jax.jit(ax.build(model_of(row), mode="train")[1])
    state, first, second = init(seed=1), data_of(row, batch=BATCH), data_of(row, batch=BATCH, seed=9)
    for name, value in second.items():
        value[:REAL] = first[name][:REAL]
    if not row.row_wise:
        with pytest.raises(GraphError, match=f"{op}: expected a batch without rows of padding"):
            predict(state, first, WEIGHTS)
        return
    one, other = predict(state, first, WEIGHTS), predict(state, second, WEIGHTS)
    for a, b in zip(jax.tree.leaves(one.prediction), jax.tree.leaves(other.prediction), strict=True):
        np.testing.assert_array_equal(a[:REAL], b[:REAL])
    jax.tree.map(np.testing.assert_array_equal, one.state, other.state)


def image(*shape: int) -> ax.Model:
    """An input of rows of this shape."""
    return ax.input("x", shape=(None, *shape))


def train(model: ax.Model, x: Any, rows: Any = WEIGHTS) -> Any:
    """A training prediction with row weights."""
    return ax.build(model, mode="train")[1](ax.build(model)[0](seed=1), x, rows)


def test_a_model_with_statistics_gives_what_its_real_rows_alone_give() -> None:
    """Within blocks too, whose layers get the weights."""
    inner = ax.block(lambda x: x.dense(4).instance_norm().batch_norm().tanh())
    model = inner(inner(image(3, 4)).batch_norm())
    x = np.random.default_rng(0).normal(size=(BATCH, 3, 4)).astype(np.float32)
    got, expected = train(model, x), train(model, x[:REAL], None)
    np.testing.assert_allclose(got.prediction[:REAL], expected.prediction, rtol=1e-5, atol=1e-6)
    for a, b in zip(jax.tree.leaves(got.state), jax.tree.leaves(expected.state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_layers_that_mix_rows_are_named() -> None:
    """In both modes, whatever the weights are, and only when there are any; within a block by their path."""
    mixing = ax.block(lambda x: x.transpose(name="turned"), name="outer")
    model = mixing(image(BATCH))
    x = np.ones((BATCH, BATCH), np.float32)
    with pytest.raises(GraphError, match=r"it moves axis 0, the batch.*in layer 'outer\.turned'"):
        train(model, x, np.ones(BATCH))
    with pytest.raises(GraphError, match="expected a batch without rows of padding"):
        ax.build(model)[1](ax.build(model)[0](), x, WEIGHTS)
    assert train(model, x, None).prediction.shape == (BATCH, BATCH)


def test_only_inputs_that_carry_the_batch_count() -> None:
    """Constants may be moved and added; batches of different ranks may not be broadcast."""
    table = ax.constant(np.ones((4, 1), np.float32)).transpose()
    assert train(ax.add(image(4), table), np.ones((BATCH, 4), np.float32)).prediction.shape == (BATCH, 4)
    model = ax.add(image(BATCH), ax.input("y", shape=(None,)))
    values = {"x": np.ones((BATCH, BATCH), np.float32), "y": np.ones(BATCH, np.float32)}
    with pytest.raises(GraphError, match=r"add: .*it broadcasts batches of different ranks"):
        train(model, values)


def test_functions_of_ones_own_refuse_padding_unless_they_are_row_wise() -> None:
    """Nothing is known of them but what they declare; serving believes it too."""
    x = np.ones((BATCH, 2), np.float32)
    for declared in (False, True):
        layer = ax.layer(lambda x: 2 * x, image(2), row_wise=declared)
        short = image(2).nx(jnp.tanh, row_wise=declared)
        assert (mixing_reason(layer) is None) == (mixing_reason(short) is None) == declared
        if declared:
            np.testing.assert_array_equal(train(layer, x).prediction, 2 * x)
            continue
        for model in (layer, short):
            with pytest.raises(GraphError, match=r"not known to be independent \(row_wise=True"):
                train(model, x)


def test_layers_passed_over_in_this_mode_do_not_refuse() -> None:
    """A layer for inference only is no obstacle in training."""
    model = ax.layer(lambda x: x[::-1], image(2), mode="inference")
    x = np.arange(2.0 * BATCH, dtype=np.float32).reshape(BATCH, 2)
    np.testing.assert_array_equal(train(model, x).prediction, x)


def test_weights_that_do_not_fit_are_refused_by_the_layer() -> None:
    """One weight per row, on an axis that is the batch."""
    with pytest.raises(ShapeError, match=r"batch_norm: expected rows of shape \(5,\).*in layer 'batch_norm_0'"):
        train(image(4).batch_norm(), np.ones((BATCH, 4), np.float32), np.ones(3))
    fixed = ax.input("x", shape=(BATCH, 4)).batch_norm(channel_index=0)
    with pytest.raises(OptionError, match="batch_norm: expected a channel_index behind the batch axis"):
        train(fixed, np.ones((BATCH, 4), np.float32))
