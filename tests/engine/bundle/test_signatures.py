"""What a model's own layers are called with while open sizes stay open."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import pytest

import engine as ax
from engine.bundle.signatures import as_symbols, observe, own_nodes, symbolic
from engine.errors import GraphError
from engine.model.walk import abstract
from tests.engine.every_op import ROWS
from tests.engine.test_every_op import model_of

SEQUENCES = ("lstm", "gru", "scaled_dot_product_attention", "multi_head_attention", "sinusoidal_position")
WINDOWS = ("conv", "depthwise_conv", "max_pool", "avg_pool", "lp_pool", "global_max_pool", "resize", "pad", "blur_pool")


def _shapes(model: ax.Model) -> list[tuple[str, ...]]:
    calls = observe(model).calls
    return [tuple(map(str, call.inputs[0].shape)) for found in calls.values() for call in found]


@pytest.mark.parametrize("op", ROWS)
def test_every_op_works_with_an_open_batch(op: str):
    """A layer of one's own may stand behind any op of the catalogue."""
    model = model_of(ROWS[op])
    assert observe(ax.layer(lambda value: value, model)).calls


@pytest.mark.parametrize("op", SEQUENCES)
def test_sequences_keep_an_open_length(op: str):
    """Recurrent layers, attention and positions do not need to know it."""
    x = ax.input("x", shape=(None, None, 4))
    heads = x.dense(8).reshape(("batch", "auto", 2, 4)) if op == "scaled_dot_product_attention" else x
    model = {
        "lstm": lambda: x.lstm(3)[0],
        "gru": lambda: x.gru(3)[0],
        "scaled_dot_product_attention": lambda: ax.scaled_dot_product_attention(heads, heads, heads),
        "multi_head_attention": lambda: x.multi_head_attention(2),
        "sinusoidal_position": lambda: x.sinusoidal_position(),
    }[op]()
    assert _shapes(model.nx(jnp.tanh))[0][:2] == ("batch", "size_0")


@pytest.mark.parametrize("op", WINDOWS)
def test_images_keep_open_sizes(op: str):
    """Windows fit what is large enough; the sizes that come out of them are symbols of their own."""
    row = ROWS[op]
    x = ax.input("x", shape=(None, None, None, 4))
    assert _shapes(row.build(x, channels="last").nx(jnp.tanh))[0][0] == "batch"


def test_lengths_are_one_where_they_must_agree():
    """Two open sizes are told apart unless a layer joins them."""
    x, y = (ax.input(name, shape=(None, None, 4)) for name in "xy")
    apart = observe(ax.layer(lambda x, y: x, [x, y])).calls
    assert [str(leaf.shape[1]) for leaf in next(iter(apart.values()))[0].inputs] == ["size_0", "size_1"]
    assert _shapes(x.add(y).nx(jnp.tanh)) == [("batch", "axis_1", "4")]


def test_a_block_called_with_two_shapes_is_seen_twice():
    """Each shape is a call, and needs a program, of its own."""
    shared = ax.block(lambda x: x.nx(jnp.tanh))
    model = ax.container((shared(ax.input("x", shape=(None, 4))), shared(ax.input("y", shape=(None, 5)))))
    assert _shapes(model) == [("batch", "4"), ("batch", "5")]
    assert len(own_nodes(model)) == 1


def test_sizes_that_nothing_determines_become_symbols():
    """`n - 2` alone is a size like any other; beside `n` it stays what it is."""
    n, less = symbolic(["n", "n - 2"])
    alone = as_symbols(abstract((less, 4), jnp.float32))
    assert tuple(map(str, alone.shape)) == ("open_0", "4")
    beside = as_symbols([abstract((n,), jnp.float32), abstract((less,), jnp.float32)])
    assert str(beside[1].shape[0]) == "n - 2"


def test_every_pattern_of_absent_inputs_is_seen():
    """One call for each, and no more than three optional inputs."""

    def first(*values: Any) -> Any:
        return next(value for value in values if value is not None)

    inputs = [ax.input(name, shape=(None, 4), optional=name != "a") for name in "abc"]
    calls = next(iter(observe(ax.layer(first, inputs, takes_missing=True)).calls.values()))
    assert [call.present for call in calls] == [
        (True, True, True),
        (True, False, True),
        (True, True, False),
        (True, False, False),
    ]
    inputs += [ax.input(name, shape=(None, 4), optional=True) for name in "de"]
    with pytest.raises(GraphError, match="at most 3 optional inputs"):
        observe(ax.layer(first, inputs, takes_missing=True))


def test_inputs_must_be_declared():
    """Programs are made from the declared shapes."""
    with pytest.raises(GraphError, match="'x': expected a declared shape"):
        observe(ax.input("x").nx(jnp.tanh))
