"""Building: initialisation, prediction, modes, errors before any compute."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import engine as ax
from engine.errors import DtypeError, GraphError, OptionError, ShapeError, StateError
from engine.model.state import flatten


def _mlp() -> ax.Model:
    return ax.input("x", shape=(None, 8)).dense(4, activation="relu").dense(3, activation="softmax")


def test_the_story_of_the_seeds_has_their_number_of_parameters():
    """dense 128, batch_norm, dropout, dense 64, dense 10: 100480 + 256 + 8256 + 650 parameters; rows sum to 1."""
    model = ax.input("x", shape=(None, 784)).dense(128, activation="relu").batch_norm().dropout(rate=0.5)
    model = model.dense(64, activation="relu").dense(10, activation="softmax")
    init, predict = ax.build(model)
    state = init(seed=0)
    assert sum(math.prod(leaf.shape) for _, leaf in flatten(state.parameters)) == 109_642
    np.testing.assert_allclose(predict(state, np.ones((3, 784), np.float32)).sum(-1), np.ones(3), rtol=1e-6)


def test_prediction_equals_numpy():
    """An MLP is two matrix products, a maximum and a softmax."""
    init, predict = ax.build(_mlp())
    state = init(seed=3)
    x = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    p = {path: np.asarray(leaf, np.float64) for path, leaf in flatten(state.parameters)}
    hidden = np.maximum(x @ p["dense_0.kernel"] + p["dense_0.bias"], 0)
    logits = hidden @ p["dense_1.kernel"] + p["dense_1.bias"]
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(predict(state, x), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(predict)(state, {"x": x}), expected, rtol=1e-5)


def test_the_same_seed_gives_the_same_parameters_whatever_surrounds_a_layer():
    """A parameter's key depends on the seed and its path alone."""
    alone = ax.build(ax.input("x", shape=(None, 8)).dense(4, name="a"))[0](seed=7)
    wider = ax.input("x", shape=(None, 8)).dense(4, name="a")
    other = ax.build(ax.add(wider, ax.input("y", shape=(None, 2)).dense(4, name="b")))[0](seed=7)
    np.testing.assert_array_equal(alone.parameters["a"]["kernel"], other.parameters["a"]["kernel"])
    different = ax.build(ax.input("x", shape=(None, 8)).dense(4, name="a"))[0](seed=8)
    assert not np.array_equal(alone.parameters["a"]["kernel"], different.parameters["a"]["kernel"])


def test_inference_state_is_complete_for_training():
    """Dropout's key is there although inference does not use it."""
    model = ax.input("x", shape=(None, 8)).dropout(rate=0.5).dense(2)
    state = ax.build(model)[0]()
    _, train = ax.build(model, mode="train")
    output = train(state, np.ones((2, 8), np.float32))
    assert output.state["dropout_0"]["key"].shape == (2,)
    assert not np.array_equal(output.state["dropout_0"]["key"], state.state["dropout_0"]["key"])


def test_train_mode_returns_the_changed_statistics_only():
    """`TrainOutput.state` is a partial tree that `ModelState.update` accepts."""
    model = ax.input("x", shape=(None, 4)).batch_norm(momentum=0.9)
    state = ax.build(model)[0]()
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    output = ax.build(model, mode="train")[1](state, x)
    updated = state.update(state=output.state)
    np.testing.assert_allclose(updated.state["batch_norm_0"]["mean"], 0.1 * x.mean(0), rtol=1e-6)
    assert updated.parameters is state.parameters


def test_gradients_and_vmap_pass_through():
    """predict_fn is pure: grad and vmap work on it; d(mean y)/d(bias) of a linear model is 1 per unit."""
    model = ax.input("x", shape=(None, 3)).dense(2)
    init, predict = ax.build(model)
    state = init()

    def total(parameters, x):
        return predict(state.with_trainable(parameters), x).sum(0).sum()

    gradient = jax.grad(total)(state.trainable(), jnp.ones((4, 3)))
    np.testing.assert_allclose(gradient["dense_0"]["bias"], [4.0, 4.0])
    stacked = jax.vmap(lambda x: predict(state, x))(jnp.ones((5, 2, 3)))
    assert stacked.shape == (5, 2, 2)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: ax.input("x", shape=(None, 3)).dense(4).conv(3),
            r"conv: expected .* rank 3 .*got shape \(1, 4\).*in layer 'conv_0' \(conv, built at test_build.py:\d+\)",
        ),
        (
            lambda: ax.add(ax.input("a", shape=(None, 3)), ax.input("b", shape=(None, 4))),
            r"add: .*\(1, 3\) and \(1, 4\).*in layer 'add_0'",
        ),
        (lambda: ax.input("x", shape=(None, 3)).reshape(("batch", 4)), r"reshape.*in layer 'reshape_0'"),
        (lambda: ax.input("x").dense(3), "input 'x': expected a template, or a declared shape"),
    ],
)
def test_wrong_shapes_fail_before_any_compute_and_say_where(model, message: str):
    """Layer, op, expected and got stand in one line."""
    with pytest.raises(ShapeError, match=message):
        ax.build(model())[0]()


def test_wrong_inputs_name_the_input():
    """Shapes, types and names of inputs are checked at the door."""
    init, predict = ax.build(_mlp())
    state = init()
    with pytest.raises(ShapeError, match=r"input 'x': expected shape \(None, 8\), got \(2, 9\)"):
        predict(state, np.ones((2, 9), np.float32))
    with pytest.raises(GraphError, match="input 'x': expected a value, got inputs y"):
        predict(state, {"y": np.ones((2, 8), np.float32)})
    tokens = ax.build(ax.input("t", shape=(None, 3), dtype="s32").embedding(5, 2))
    with pytest.raises(DtypeError, match="input 't': expected dtype s32, got float32"):
        tokens[1](tokens[0](), np.ones((2, 3), np.float32))
    with pytest.raises(OptionError, match="expected mode 'train' or 'inference', got 'test'"):
        ax.build(_mlp(), mode="test")  # type: ignore[arg-type]


def test_a_state_that_does_not_fit_is_refused():
    """Missing and misshapen parameters are named."""
    init, predict = ax.build(_mlp())
    state = init()
    x = np.ones((1, 8), np.float32)
    with pytest.raises(StateError, match="layer 'dense_0': expected parameter 'kernel', got none"):
        predict(ax.ModelState({}), x)
    broken = state.update(parameters={"dense_0": {"kernel": jnp.zeros((7, 4))}})
    with pytest.raises(ShapeError, match=r"layer 'dense_0': expected kernel of shape \(8, 4\), got \(7, 4\)"):
        predict(broken, x)


def test_wide_integers_are_exact_and_the_global_flag_stays_off():
    """A graph with a 64-bit input computes in 64 bits; JAX's own flag is untouched."""
    model = ax.add(ax.input("x", shape=(None, 1), dtype="s64"), ax.constant(np.int64(5)))
    init, predict = ax.build(model)
    assert int(predict(init(), np.array([[2**40]], np.int64))[0, 0]) == 2**40 + 5
    assert not jax.config.jax_enable_x64
    assert jnp.asarray(1.5).dtype == jnp.float32


def test_missing_optional_input_reaches_the_output_as_an_error():
    """A layer without one of its inputs gives nothing; when that is the output, the missing input is named."""
    model = ax.add(ax.input("x", shape=(None, 1)), ax.input("o", shape=(None, 1), optional=True))
    with pytest.raises(GraphError, match="missing inputs o"):
        ax.build(model)[1](ax.ModelState({}), {"x": np.ones((1, 1), np.float32)})


def test_reference_table():
    """The golden table of the seeds: 101,770 parameters in 407,080 bytes."""
    model = ax.input("input", shape=(None, 784)).dense(128).dense(10).softmax()
    text = ax.display.as_table(model)
    cells = [line.split() for line in text.splitlines()]
    assert ["Total", "Parameters:", "101770"] in cells
    assert ["Total", "Parameters", "Memory:", "407080", "bytes"] in cells
    rows = {line.split()[0]: line.split()[-3] for line in text.splitlines() if " ( " in line}
    assert rows == {"input": "0", "dense_0": "100480", "dense_1": "1290", "softmax_0": "0"}
    assert text.count("p=f32 c=f32 o=f32") == 4
    assert 'Inputs: {"input": (None, 784)}' in text


def test_an_input_may_be_a_structure_of_arrays():
    """Without a declared shape a tuple or dict is taken as it is, its leaves of any shapes and types."""
    model = ax.input("x").nx(lambda pair: pair[0].sum(-1) + pair[1]["y"]).reshape(("batch", 1)).dense(1)
    init, predict = ax.build(model)
    x = (np.ones((2, 3), np.float32), {"y": np.arange(2, dtype=np.int32)})
    state = init({"x": x})
    kernel, bias = (float(np.asarray(state.parameters["dense_0"][name]).ravel()[0]) for name in ("kernel", "bias"))
    np.testing.assert_allclose(predict(state, {"x": x}), [[3 * kernel + bias], [4 * kernel + bias]], rtol=1e-6)
    declared = ax.build(ax.input("x", shape=(None, 3)).relu())[1]
    with pytest.raises(ShapeError, match="input 'x': expected one array, got a tuple"):
        declared(ax.ModelState({}), {"x": x})
