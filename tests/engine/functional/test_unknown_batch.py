"""Ops traced with a batch of unknown size, as custom layers are when a bundle is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import export

from engine import functional as F

ONE, KEY = jnp.ones(3), jnp.zeros(2, jnp.uint32)
LSTM = ({f"wi{g}": jnp.ones((3, 2)) for g in "ifgo"}, {f"wh{g}": jnp.ones((2, 2)) for g in "ifgo"})
HEADS = {name: {"kernel": jnp.ones((4, 4))} for name in ("query", "key", "value", "output")}
CASES: dict[str, tuple[Callable[..., Any], list[tuple[tuple[int, ...], Any]]]] = {
    "dense": (lambda x: F.dense(x, jnp.ones((4, 2))), [((4,), float)]),
    "embedding": (lambda x: F.embedding(x, jnp.ones((5, 2))), [((3,), int)]),
    "conv": (lambda x: F.conv(x, jnp.ones((3, 3, 3, 2)), padding="same", strides=2), [((8, 8, 3), float)]),
    "max_pool": (lambda x: jax.grad(lambda x: F.max_pool(x, kernel_size=2).sum())(x), [((8, 8, 3), float)]),
    "avg_pool": (lambda x: F.avg_pool(x, kernel_size=2), [((8, 8, 3), float)]),
    "batch_norm": (lambda x: F.batch_norm(x, ONE, ONE, ONE, ONE, mode="train"), [((8, 3), float)]),
    "layer_norm": (lambda x: F.layer_norm(x, ONE, ONE), [((8, 3), float)]),
    "dropout": (lambda x: F.dropout(x, KEY, mode="train"), [((8, 3), float)]),
    "flatten": (F.flatten, [((2, 3), float)]),
    "add": (lambda x: F.add(x, jnp.ones((1, 3))), [((3,), float)]),
    "concatenate": (lambda x: F.concatenate(x, x), [((3,), float)]),
    "global_avg_pool": (F.global_avg_pool, [((3, 3, 2), float)]),
    "lstm": (
        lambda x, m: F.lstm(x, (jnp.zeros((x.shape[0], 2)),) * 2, m, *LSTM),
        [((4, 3), float), ((4,), int)],
    ),
    "scaled_dot_product_attention": (
        lambda x, p: F.scaled_dot_product_attention(x, x, x, key_padding_mask=p, is_causal=True),
        [((4, 2, 6), float), ((4,), int)],
    ),
    "multi_head_attention": (
        lambda x: F.multi_head_attention(x, x, x, HEADS, num_heads=2, rotary_base=10.0),
        [((4, 4), float)],
    ),
    "softmax": (F.activations.softmax, [((3,), float)]),
    "accuracy": (lambda y, x: F.metrics.accuracy(y, x, sparse=True), [((), int), ((3,), float)]),
    "categorical_cross_entropy": (
        lambda y, x: F.losses.categorical_cross_entropy(y, x, sparse=True, from_logits=True),
        [((), int), ((3,), float)],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_batch_size_may_stay_unknown(name: str) -> None:
    """The shape rules decide nothing by the size of the batch, so one program serves all of them."""
    (batch,) = export.symbolic_shape("batch")
    function, arrays = CASES[name]
    dtypes = {float: jnp.float32, int: jnp.int32}
    arguments = [jax.ShapeDtypeStruct((batch, *shape), dtypes[dtype]) for shape, dtype in arrays]
    program = export.export(jax.jit(lambda *args: jax.tree.leaves(function(*args))))(*arguments)
    assert program.in_avals[0].shape[0] == batch
