"""Attention and position layers in graphs: parameters, masks, dropout's key, serving, bundles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import engine as ax
from engine import functional as F
from engine.errors import GraphError, OptionError, ShapeError
from engine.model.state import flatten
from engine.runtime.rows import mixing_reason
from tests.engine.model.layers.support import assert_round_trip, data, sequence

X, OTHER = data(2, 4, 6), data(2, 5, 3, seed=1)
PADDING = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.uint8)


def _x() -> ax.Model:
    return sequence("x", 4, 6)


def _cross(**options: Any) -> ax.Model:
    padding = ax.input("padding", shape=(None, 5), dtype="u8")
    return _x().multi_head_attention(
        2, key=sequence("other", 5, 3), key_padding_mask=padding, num_key_value_heads=1, name="cross", **options
    )


CROSS = {"x": X, "other": OTHER, "padding": PADDING}


def test_parameters_are_a_kernel_and_a_bias_per_projection() -> None:
    """Sizes follow heads and inputs."""
    state = ax.build(_cross(head_size=4, units=7))[0](CROSS, seed=1)
    assert {path: leaf.shape for path, leaf in flatten(state.parameters)} == {
        "cross.query.kernel": (6, 8),
        "cross.key.kernel": (3, 4),
        "cross.value.kernel": (3, 4),
        "cross.output.kernel": (8, 7),
        "cross.query.bias": (8,),
        "cross.key.bias": (4,),
        "cross.value.bias": (4,),
        "cross.output.bias": (7,),
    }
    assert not state.state
    bare = ax.build(_x().multi_head_attention(3, use_bias=False))[0]().parameters["multi_head_attention_0"]
    assert {name: list(part) for name, part in bare.items()} == {
        name: ["kernel"] for name in ("query", "key", "value", "output")
    }


def test_the_layer_equals_its_function() -> None:
    """The state's own parameters, masks in their places."""
    model = _cross(head_size=4, rotary_base=50.0)
    init, run = ax.build(model)
    state = init(CROSS, seed=1)
    expected = F.multi_head_attention(
        X,
        OTHER,
        OTHER,
        state.parameters["cross"],
        num_heads=2,
        num_key_value_heads=1,
        key_padding_mask=jnp.asarray(PADDING),
        rotary_base=50.0,
    )
    np.testing.assert_allclose(run(state, CROSS), expected, rtol=1e-5, atol=1e-6)


def test_causal_self_attention_ignores_what_follows() -> None:
    """Changing the last step changes its own output only."""
    model = _x().sinusoidal_position().multi_head_attention(2, is_causal=True)
    init, run = ax.build(model)
    state = init(seed=1)
    changed = X.copy()
    changed[:, -1] += 1
    first, second = run(state, X), run(state, changed)
    np.testing.assert_allclose(first[:, :-1], second[:, :-1], rtol=1e-5, atol=1e-6)
    assert not np.allclose(first[:, -1], second[:, -1])


def test_dropout_acts_in_training_and_moves_its_key_on() -> None:
    """As a dropout layer's key does."""
    model = _x().multi_head_attention(2, dropout_rate=0.5, name="mha")
    init, run = ax.build(model)
    state = init(seed=1)
    assert state.paths()[-1] == "mha.dropout_key"
    _, train = ax.build(model, mode="train")
    first = train(state, X)
    second = train(state.update(state=first.state), X)
    assert not np.allclose(first.prediction, run(state, X))
    assert not np.allclose(first.prediction, second.prediction)
    np.testing.assert_array_equal(first.prediction, train(state, X).prediction)


def _heads(name: str, count: int = 2) -> ax.Model:
    return sequence(name, 4, count, 6)


def _bare(**options: Any) -> ax.Model:
    return ax.scaled_dot_product_attention(_heads("q", 4), _heads("k"), _heads("v"), **options)


BARE = {"q": data(2, 4, 4, 6), "k": data(2, 4, 2, 6, seed=1), "v": data(2, 4, 2, 6, seed=2)}
USER = np.random.default_rng(0).random((2, 4, 4)) < 0.7


def test_attention_without_heads_of_its_own_equals_its_function() -> None:
    """Queries, keys and values as inputs, a user's mask behind them."""
    model = _bare(mask=ax.input("m", shape=(None, 4, 4), dtype="bool"), is_causal=True, scale=0.5)
    expected = F.scaled_dot_product_attention(*BARE.values(), mask=jnp.asarray(USER), is_causal=True, scale=0.5)
    init, run = ax.build(model)
    inputs = {**BARE, "m": USER}
    np.testing.assert_allclose(run(init(inputs), inputs), expected, rtol=1e-5, atol=1e-6)


def _models() -> dict[str, tuple[ax.Model, Any]]:
    mask = ax.input("m", shape=(None, 4, 4), dtype="bool")
    positions = _x().learned_position(8).sinusoidal_position(base=100.0)
    return {
        "bare": (_bare(mask=mask, dropout_rate=0.1), {**BARE, "m": USER}),
        "cross": (_cross(), CROSS),
        "positions": (positions.multi_head_attention(3, rotary_base=1000.0, is_causal=True), X),
        "rotary": (ax.input("h", shape=(None, 4, 2, 6)).rotary_embedding(base=10.0), data(2, 4, 2, 6)),
    }


@pytest.mark.parametrize("name", _models())
def test_bundles_hold_these_layers(name: str, tmp_path: Path) -> None:
    """Graph, parameters and predictions survive."""
    assert_round_trip(tmp_path, *_models()[name])


@pytest.mark.parametrize("name", _models())
def test_rows_are_independent(name: str) -> None:
    """Such models may be batched: each row's answer is that of the row alone."""
    model, inputs = _models()[name]
    assert mixing_reason(model) is None
    init, run = ax.build(model)
    state = init(inputs)
    alone = run(state, jax.tree.map(lambda leaf: leaf[1:], inputs))
    np.testing.assert_allclose(run(state, inputs)[1:], alone, rtol=1e-5, atol=1e-6)


def test_a_mask_without_an_axis_for_the_batch_mixes_rows() -> None:
    """Its first axis is time: with a batch in it one row's mask would hide another's keys."""
    heads = [sequence(name, 2, 1, 6) for name in "qkv"]
    model = ax.scaled_dot_product_attention(*heads, mask=ax.input("m", shape=(None, 2)))
    assert "no axis for the batch" in str(mixing_reason(model))


def test_equal_seeds_give_equal_parameters() -> None:
    """And different ones different parameters."""
    init = ax.build(_x().learned_position(4).multi_head_attention(2))[0]
    jax.tree.map(np.testing.assert_array_equal, init(seed=1), init(seed=1))
    first, second = (init(seed=s).parameters["multi_head_attention_0"]["query"]["kernel"] for s in (1, 2))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: sequence("x", 6).multi_head_attention(2),
            r"multi_head_attention: .* rank 3.*multi_head_attention_0",
        ),
        (lambda: _x().multi_head_attention(4), "divisible by 4 heads"),
        (lambda: _x().multi_head_attention(2, mask=sequence("m", 4, 5)), r"expected a mask of shape .*got \(1, 4, 5\)"),
        (lambda: _bare(key_padding_mask=sequence("m", 5)), r"expected a key_padding_mask of shape \(1, 4\)"),
        (lambda: _x().learned_position(3), "4 positions or more"),
        (lambda: sequence("x", 4, 5).sinusoidal_position(), "even size"),
        (lambda: sequence("x", 5).rotary_embedding(), "rank 3"),
    ],
)
def test_wrong_shapes_name_layer_op_expected_and_got(build: Callable[[], ax.Model], message: str) -> None:
    """Before anything is computed."""
    with pytest.raises(ShapeError, match=message):
        ax.infer(build())


def test_wrong_arguments_are_named() -> None:
    """Options and inputs that do not belong together."""
    with pytest.raises(OptionError, match="num_heads"):
        _x().multi_head_attention(0)
    with pytest.raises(OptionError, match="dropout_rate"):
        _bare(dropout_rate=1.0)
    with pytest.raises(GraphError, match="a key with the value"):
        _x().multi_head_attention(2, value=_x())


def test_graphs_with_a_wrong_number_of_inputs_are_refused() -> None:
    """A graph from elsewhere may promise a mask that is not there."""
    node = {"name": "a", "op": "multi_head_attention", "inputs": ["x"], "options": {"num_heads": 2, "has_mask": True}}
    x = {"name": "x", "op": "input", "options": {"shape": [None, 4, 6]}}
    graph = {"format": "axon.graph", "version": 1, "nodes": [x, node], "outputs": "a"}
    with pytest.raises(ShapeError, match="expected the inputs query, mask, got 1"):
        ax.infer(ax.bundle.graph_from_json(graph))
