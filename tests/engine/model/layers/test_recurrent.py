"""Recurrent layers in graphs: parameters with paths, carries, masks, both directions, serving, bundles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import engine as ax
from engine import functional as F
from engine.errors import BundleError, GraphError, OptionError, ShapeError
from engine.model.state import flatten
from engine.runtime.rows import mixing_reason
from tests.engine.model.layers.support import assert_round_trip, data, sequence

X = data(2, 4, 3)


def predict(model: ax.Model, inputs: Any = X, seed: int = 3) -> Any:
    """The prediction of a freshly made state."""
    init, run = ax.build(model)
    return run(init(inputs, seed=seed), inputs)


def test_parameters_are_nested_by_gate_and_start_from_their_own_keys() -> None:
    """A path per gate; equal seeds give equal parameters, whatever else is in the graph."""
    hidden = sequence().lstm(5, name="enc")[1][1]
    state = ax.build(hidden)[0](seed=1)
    assert set(state.parameters["enc"]) == {"input_kernel", "hidden_kernel", "bias"}
    shapes = {path: leaf.shape for path, leaf in flatten(state.parameters)}
    assert shapes["enc.input_kernel.wii"] == (3, 5)
    assert shapes["enc.hidden_kernel.who"] == (5, 5)
    assert shapes["enc.bias.bg"] == (5,)
    assert len(shapes) == 12
    assert not state.state
    wider = ax.build(hidden.dense(2))[0](seed=1)
    jax.tree.map(np.testing.assert_array_equal, wider.parameters["enc"], state.parameters["enc"])
    kernels = state.parameters["enc"]["input_kernel"]
    assert not np.array_equal(kernels["wii"], kernels["wif"])
    assert "180" in ax.display.as_table(hidden)  # 4 * (3 * 5 + 5 * 5 + 5)


@pytest.mark.parametrize("unroll", ["dynamic", "static"])
def test_layers_equal_their_functions(unroll: str) -> None:
    """From a carry of zeros, with the state's own parameters."""
    for build, function, parts in ((ax.lstm, F.lstm, 2), (ax.gru, F.gru, 1)):
        whole, carry = build(sequence(), 5, unroll=unroll, bias_initializer="normal")
        model = ax.container((whole, carry))
        init, run = ax.build(model)
        state = init(X, seed=2)
        (layer,) = state.parameters.values()
        expected = function(X, (jnp.zeros((2, 5)),) * parts, None, *layer_parameters(layer))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), run(state, X), expected)


def layer_parameters(layer: dict[str, Any]) -> tuple[Any, ...]:
    """In the order of the functions' arguments."""
    return layer["input_kernel"], layer["hidden_kernel"], layer["bias"]


def test_a_carry_of_one_layer_starts_another() -> None:
    """A sequence in two halves equals the sequence, when the second goes on where the first ended."""
    init, run = ax.build(sequence().lstm(5, name="one")[0])
    state = init(X, seed=4)
    first, carry = sequence("a", 2, 3).lstm(5, name="first")
    second, _ = sequence("b", 2, 3).lstm(5, carry=carry, name="second")
    layer = state.parameters["one"]
    halves = ax.ModelState({"first": layer, "second": layer})
    got = ax.build(ax.container((first, second)))[1](halves, {"a": X[:, :2], "b": X[:, 2:]})
    np.testing.assert_allclose(np.concatenate(got, 1), run(state, X), rtol=1e-5, atol=1e-6)


def test_masked_steps_leave_the_carry() -> None:
    """What stands in padded places has no influence."""
    tokens = ax.input("tokens", shape=(None, 5), dtype="s32")
    hidden = tokens.embedding(9, 3).gru(4, mask=tokens.mask(0))[1][0]
    init, run = ax.build(hidden)
    state = init(seed=1)
    long = run(state, np.array([[3, 4, 5, 0, 0]]))
    short = ax.input("tokens", shape=(None, 3), dtype="s32").embedding(9, 3).gru(4)[1][0]
    np.testing.assert_allclose(long, ax.build(short)[1](state, np.array([[3, 4, 5]])), rtol=1e-6, atol=1e-6)


def test_a_random_carry_keeps_a_key_that_training_moves_on() -> None:
    """The same in every inference; drawn anew in every training call."""
    model = sequence().lstm(5, recurrent_initializer="glorot_uniform", name="enc")[0]
    init, run = ax.build(model)
    state = init(X, seed=1)
    assert state.paths()[-1] == "enc.key"
    np.testing.assert_array_equal(run(state, X), run(state, X))
    assert not np.allclose(run(state, X), run(init(X, seed=1).update(state={"enc": {"key": jnp.zeros(2, "u4")}}), X))
    _, train = ax.build(model, mode="train")
    output, changed = train(state, X)
    np.testing.assert_array_equal(output, run(state, X))
    following = state.update(state=changed)
    assert not np.allclose(train(following, X).prediction, output)
    assert "drawn for the batch" in str(mixing_reason(model))
    ones = sequence().gru(5, recurrent_initializer="ones")[0]
    assert not ax.build(ones)[0](X).state


def test_convolutional_layers_run() -> None:
    """Their parameters are plain arrays; the carry has a time axis of one."""
    whole, carry = sequence("x", 3, 2, 6, 6).conv_lstm(4, kernel_size=3, strides=2, padding="same")
    init, run = ax.build(ax.container((whole, carry)))
    state = init(seed=1)
    shapes = {path: leaf.shape for path, leaf in flatten(state.parameters)}
    assert shapes == {
        "conv_lstm_0.input_kernel": (16, 2, 3, 3),
        "conv_lstm_0.hidden_kernel": (16, 4, 3, 3),
        "conv_lstm_0.bias": (16,),
    }
    output, (cell, hidden) = run(state, data(2, 3, 2, 6, 6))
    assert output.shape == (2, 3, 4, 3, 3)
    assert cell.shape == hidden.shape == (2, 1, 4, 3, 3)


def _both(merge: Any = "concatenate", **options: Any) -> ax.Model:
    return sequence().bidirectional(lambda x: x.lstm(5)[0], merge, **options)


def test_both_directions_have_their_own_parameters() -> None:
    """The second half is a layer run on the reversed sequence, turned back."""
    model = _both()
    init, run = ax.build(model)
    state = init(X, seed=1)
    assert set(state.parameters) == {"lstm_0", "lstm_1"}
    single = sequence().lstm(5)[0]
    forward, backward = (
        ax.build(single)[1](ax.ModelState({"lstm_0": state.parameters[name]}), x)
        for name, x in (("lstm_0", X), ("lstm_1", X[:, ::-1]))
    )
    np.testing.assert_allclose(run(state, X), np.concatenate([forward, backward[:, ::-1]], -1), rtol=1e-6, atol=1e-6)


def test_last_states_of_both_directions_are_not_turned_back() -> None:
    """Only what has the rank of the input and its number of steps is a sequence."""
    whole, (hidden,) = sequence().bidirectional(lambda x: x.gru(4), lambda a, b: ax.concatenate(a, b))
    output, last = predict(ax.container((whole, hidden)))
    np.testing.assert_allclose(last[:, :4], output[:, -1, :4], rtol=1e-6)
    np.testing.assert_allclose(last[:, 4:], output[:, 0, 4:], rtol=1e-6)


def test_names_tell_the_directions_apart() -> None:
    """Explicit names get the direction, a name of the whole stands in front."""

    def build(x: ax.Model) -> ax.Model:
        return x.lstm(5, name="enc")[0]

    assert set(ax.build(sequence().bidirectional(build))[0](X).parameters) == {"enc_forward", "enc_backward"}
    named = _both(name="bi")
    assert set(ax.build(named)[0](X).parameters) == {"bi_forward_lstm_0", "bi_backward_lstm_0"}


def test_a_layer_made_outside_is_shared_by_both_directions() -> None:
    """Only what forward_fun builds is its own."""
    start = sequence("s", 5).dense(5, name="start")
    model = sequence().bidirectional(lambda x: x.gru(5, carry=(start,), name="g")[0], "add")
    parameters = ax.build(model)[0]({"x": X, "s": data(2, 5)}).parameters
    assert set(parameters) == {"start", "g_forward", "g_backward"}


def test_masks_are_reversed_with_the_sequence() -> None:
    """Padding at the end stays padding at the beginning of the way back."""
    tokens = ax.input("tokens", shape=(None, 5), dtype="s32")

    def build(x: ax.Model, mask: ax.Model) -> ax.Model:
        return x.gru(4, mask=mask)[1][0]

    model = tokens.embedding(9, 3).bidirectional(build, mask=tokens.mask(0))
    init, run = ax.build(model)
    state = init(seed=1)
    short = ax.input("tokens", shape=(None, 3), dtype="s32")
    plain = short.embedding(9, 3).bidirectional(lambda x: x.gru(4)[1][0])
    expected = ax.build(plain)[1](state, np.array([[3, 4, 5]]))
    np.testing.assert_allclose(run(state, np.array([[3, 4, 5, 0, 0]])), expected, rtol=1e-6, atol=1e-6)


def test_directions_merge_by_name_or_function() -> None:
    """Name or function, the result is a graph."""
    halves = np.split(np.asarray(predict(_both())), 2, axis=-1)
    for merge, merged in (("multiply", np.multiply), ("subtract", np.subtract), (lambda a, b: ax.add(a, b), np.add)):
        np.testing.assert_allclose(predict(_both(merge)), merged(*halves), rtol=1e-6, atol=1e-6)


def test_elem_takes_parts_of_structured_values() -> None:
    """By position, by key, by a path; a wrong one says what there is."""
    both = ax.container({"a": sequence(), "b": (sequence().tanh(), sequence().relu())})
    with pytest.raises(GraphError, match="distinct names"):
        ax.build(both)[0](X)
    x = sequence()
    both = ax.container({"a": x, "b": (x.tanh(), x.relu())})
    np.testing.assert_array_equal(predict(both.fetch("a")), X)
    np.testing.assert_allclose(predict(both.elem(["b", 1])), np.maximum(X, 0))
    np.testing.assert_allclose(predict(both.fetch("b").elem(0)), np.tanh(X), rtol=1e-6)
    with pytest.raises(ShapeError, match=r"elem: expected a value with a part \['c'\], got one with 'a', 'b'"):
        predict(both.fetch("c"))
    with pytest.raises(OptionError, match="path"):
        both.elem(-1)


def test_mask_marks_one_token() -> None:
    """One where the token is, as u8."""
    tokens = ax.input("tokens", shape=(None, 3), dtype="s32")
    marked = predict(tokens.mask(0), np.array([[1, 0, 2], [0, 0, 5]]))
    assert marked.dtype == jnp.uint8
    np.testing.assert_array_equal(marked, [[0, 1, 0], [1, 1, 0]])


def _models() -> dict[str, tuple[ax.Model, Any]]:
    x, tokens = sequence(), ax.input("tokens", shape=(None, 4), dtype="s32")
    whole, carry = x.lstm(5, activation="relu", gate="hard_sigmoid", name="enc")
    decoded, (hidden,) = whole.gru(3, carry=(carry[1].dense(3),), mask=tokens.mask(0), unroll="static")
    images = sequence("i", 3, 2, 4, 4).conv_lstm(2, kernel_size=(3, 1), padding=[(1, 1), (0, 0)], use_bias=False)
    ids = np.array([[1, 2, 0, 0], [3, 0, 0, 0]])
    return {
        "lstm, gru, mask": (ax.container({"all": decoded, "last": (hidden, carry)}), {"x": X, "tokens": ids}),
        "conv_lstm": (ax.container(images), data(2, 3, 2, 4, 4)),
        "bidirectional": (_both(name="bi"), X),
        "random carry": (x.lstm(5, recurrent_initializer={"name": "normal", "scale": 0.5})[0], X),
        "container inside": (ax.container({"a": x, "b": x.tanh()}).fetch("b"), X),
    }


@pytest.mark.parametrize("name", _models())
def test_bundles_hold_these_layers(name: str, tmp_path: Path) -> None:
    """Graph, parameters and predictions survive."""
    assert_round_trip(tmp_path, *_models()[name])


@pytest.mark.parametrize("name", ["lstm, gru, mask", "conv_lstm", "bidirectional", "container inside"])
def test_rows_are_independent(name: str) -> None:
    """Such models may be batched: each row's answer is that of the row alone."""
    model, inputs = _models()[name]
    assert mixing_reason(model) is None
    init, run = ax.build(model)
    state = init(inputs)
    together = run(state, inputs)
    alone = run(state, jax.tree.map(lambda leaf: leaf[1:], inputs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1:], b, rtol=1e-5, atol=1e-6), together, alone)


def test_a_part_that_does_not_depend_on_the_batch_is_found() -> None:
    """It would have the wrong number of rows."""
    fixed = ax.container((sequence(), ax.constant([[1.0, 2.0]]))).elem(1)
    assert "does not depend on the batch" in str(mixing_reason(fixed))
    assert "axis 0" in str(mixing_reason(sequence().reverse(axis=0)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: sequence("x", 3).lstm(5)[0],
            r"lstm: expected an input of rank 3.*layer 'lstm_0' \(lstm, built at test",
        ),
        (
            lambda: sequence().gru(5, carry=(sequence("s", 4),))[0],
            r"gru: expected the carry's hidden of shape",
        ),
        (lambda: sequence().gru(5, mask=sequence("m", 3))[0], r"gru: expected a mask of shape \(1, 4\), got \(1, 3\)"),
        (lambda: sequence().conv_lstm(5)[0], "conv_lstm: expected an input of rank 4"),
        (lambda: sequence("x", 3, 2, 4).conv_lstm(5, kernel_size=(3, 3))[0], "kernel_size"),
    ],
)
def test_wrong_shapes_name_layer_op_expected_and_got(build: Callable[[], ax.Model], message: str) -> None:
    """Before anything is computed."""
    with pytest.raises((ShapeError, OptionError), match=message):
        ax.infer(build())


def test_wrong_arguments_are_named() -> None:
    """Options, carries and merges."""
    with pytest.raises(OptionError, match="unroll"):
        sequence().lstm(5, unroll="twice")
    with pytest.raises(OptionError, match="gate"):
        sequence().lstm(5, gate="door")
    with pytest.raises(GraphError, match="carry to be a tuple of the models cell, hidden"):
        sequence().lstm(5, carry=(sequence(),))  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="merge_fun"):
        _both("average")
    with pytest.raises(GraphError, match="forward_fun to return models"):
        sequence().bidirectional(lambda x: 1)


def test_graphs_with_a_wrong_number_of_inputs_are_refused() -> None:
    """A graph from elsewhere may promise a carry that is not there."""
    node = {"name": "g", "op": "gru", "inputs": ["x"], "options": {"units": 2, "has_carry": True}}
    x = {"name": "x", "op": "input", "options": {"shape": [None, 4, 3]}}
    graph = {"format": "axon.graph", "version": 1, "nodes": [x, node], "outputs": "g"}
    with pytest.raises(ShapeError, match="expected the inputs x, hidden, got 1"):
        ax.infer(ax.bundle.graph_from_json(graph))
    options = {"path": ["x", {}]}
    graph["nodes"] = [x, {"name": "g", "op": "elem", "inputs": ["x"], "options": options}]
    with pytest.raises(BundleError, match="a position, a key, or a list of them"):
        ax.bundle.graph_from_json(graph)


def test_training_learns_to_remember_the_first_step() -> None:
    """Gradients reach every parameter of the loop."""
    model = sequence("x", 6, 1).gru(8)[1][0].dense(1)
    x = data(64, 6, 1, seed=5)
    init, _ = ax.build(model)
    _, train = ax.build(model, mode="train")
    state = init(x, seed=1)

    optimizer = optax.adam(0.03)

    @jax.jit
    def step(parameters: Any, moments: Any) -> tuple[jax.Array, Any, Any]:
        def loss(parameters: Any) -> jax.Array:
            return jnp.mean((train(state.with_trainable(parameters), x).prediction - x[:, 0]) ** 2)

        value, gradient = jax.value_and_grad(loss)(parameters)
        updates, moments = optimizer.update(gradient, moments)
        return value, optax.apply_updates(parameters, updates), moments

    parameters = state.trainable()
    moments, losses = optimizer.init(parameters), []
    for _ in range(120):
        loss, parameters, moments = step(parameters, moments)
        losses.append(float(loss))
    assert losses[-1] < 0.05 * losses[0]
