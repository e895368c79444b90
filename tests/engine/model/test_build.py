"""Building: initialisation, prediction, modes, errors before any compute."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import engine as ax
from engine.errors import DtypeError, GraphError, OptionError, ShapeError, StateError
from engine.functional import StatefulOutput
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


def _merge(x: Any, o: Any, *, weight: Any, seen: Any, mode: str) -> StatefulOutput:
    return StatefulOutput(x * weight + (0 if o is None else o), {"seen": seen + (mode == "train")})


def test_a_layer_that_takes_missing_values_is_whole_without_them():
    """Its parameters, its mode, its state and the check of its rows are those of a call with every input."""
    x, o = ax.input("x", shape=(None, 2)), ax.input("o", shape=(None, 2), optional=True)
    params = [
        ax.param("weight", (2,), initializer={"name": "full", "value": 3.0}),
        ax.param("seen", (), kind="state", initializer="zeros"),
    ]
    model = ax.layer(_merge, [x, o], params=params, takes_missing=True, passes_mode=True, op_name="merge")
    values = np.ones((2, 2), np.float32)
    state = ax.init(model, {"x": values})
    assert state.paths() == ["merge_0.weight", "merge_0.seen"]
    np.testing.assert_array_equal(ax.predict(model, state, {"x": values}), 3 * values)
    np.testing.assert_array_equal(ax.predict(model, state, {"x": values, "o": values}), 4 * values)
    _, predict = ax.build(model, mode="train")
    assert predict(state, {"x": values}).state["merge_0"]["seen"] == 1
    with pytest.raises(GraphError, match="row_wise=True"):
        predict(state, {"x": values}, np.ones(2))


def test_a_layer_of_the_other_mode_hands_on_its_first_input_without_a_missing_one():
    """As it does with every input."""
    x, o = ax.input("x", shape=(None, 2)), ax.input("o", shape=(None, 2), optional=True)
    model = ax.layer(lambda x, o: x * 0, [x, o], takes_missing=True, mode="train", op_name="noise")
    values = np.ones((2, 2), np.float32)
    np.testing.assert_array_equal(ax.predict(model, ax.init(model), {"x": values}), values)


def test_parameters_that_are_alike_are_drawn_by_one_program():
    """Compiling grows with the kinds of parameters, not with the number of layers; their values still differ."""
    drawn = []

    def normal(shape: tuple[int, ...], dtype: Any, key: jax.Array) -> jax.Array:
        drawn.append(shape)
        return jax.random.normal(key, shape, dtype)

    model = ax.input("x", shape=(None, 3))
    for units in (3, 3, 3, 3, 2):
        model = model.dense(units, kernel_initializer=normal)
    state = ax.init(model)
    assert drawn == [(3, 3), (3, 2)]
    kernels = [np.asarray(state.parameters[f"dense_{i}"]["kernel"]) for i in range(4)]
    assert len({kernel.tobytes() for kernel in kernels}) == 4


def test_missing_optional_input_reaches_the_output_as_an_error():
    """A layer without one of its inputs gives nothing; when that is the output, the missing input is named."""
    model = ax.add(ax.input("x", shape=(None, 1)), ax.input("o", shape=(None, 1), optional=True))
    with pytest.raises(GraphError, match="missing inputs o"):
        ax.build(model)[1](ax.ModelState({}), {"x": np.ones((1, 1), np.float32)})


def test_a_function_that_returns_nothing_is_named():
    """Most likely a forgotten return; no input is missing."""
    model = ax.input("x", shape=(None, 1)).nx(lambda x: None, name="forgot")
    with pytest.raises(GraphError, match=r"expected an output, got None from layer 'forgot' \(nx, built at test_build"):
        ax.predict(model, ax.ModelState({}), np.ones((1, 1), np.float32))


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


def test_given_leaves_are_taken_and_the_others_initialised():
    """Part of a state, as a dict or a ModelState with marks and ties; what is not given is as without it."""
    model = _mlp().batch_norm()
    whole = ax.init(model, seed=3)
    kernel = np.arange(12).reshape(4, 3)
    part = ax.init(model, seed=3, state={"dense_1": {"kernel": kernel}, "batch_norm_0": {"mean": np.full(3, 2.0)}})
    assert part.parameters["dense_1"]["kernel"].dtype == np.float32
    np.testing.assert_array_equal(part.parameters["dense_1"]["kernel"], kernel)
    np.testing.assert_array_equal(part.state["batch_norm_0"]["mean"], np.full(3, 2.0, np.float32))
    np.testing.assert_array_equal(part.parameters["dense_0"]["kernel"], whole.parameters["dense_0"]["kernel"])
    assert part.paths() == whole.paths()
    square = ax.input("x", shape=(None, 4)).dense(4, name="a").dense(4, name="b")
    given = square.init(seed=1).freeze(lambda path: path.endswith("bias")).tie("b.kernel", "a.kernel")
    again = square.init(seed=2, state=given)
    assert (again.frozen, again.ties) == (given.frozen, given.ties)
    assert again.paths() == ["a.bias", "a.kernel", "b.bias"]
    marks = ax.ModelState({}, frozen=frozenset({"a.kernel"}), ties=given.ties)
    np.testing.assert_array_equal(
        square.init(seed=1, state=marks).parameters["a"]["kernel"], given.parameters["a"]["kernel"]
    )
    assert square.init(state=marks).frozen == {"a.kernel"}


def test_given_leaves_that_do_not_fit_are_refused():
    """Another shape, a float for an integer, unknown paths among leaves, frozen marks and ties."""
    model = _mlp()
    with pytest.raises(ShapeError, match=r"init: expected 'dense_1\.kernel' of shape \(4, 3\), got \(3, 4\)"):
        ax.init(model, state={"dense_1": {"kernel": np.zeros((3, 4))}})
    with pytest.raises(StateError, match=r"such as dense_1\.kernel.*; got 'dense_1\.kernl'"):
        ax.init(model, state={"dense_1": {"kernl": np.zeros((4, 3))}})
    with pytest.raises(StateError, match=r"got 'dense_9\.bias'"):
        ax.init(model, state=ax.ModelState({}, frozen=frozenset({"dense_9.bias"})))
    with pytest.raises(ShapeError, match=r"tie of 'dense_1\.kernel' to 'dense_0\.kernel': expected shape \(4, 3\)"):
        ax.init(model, state=ax.ModelState({}, ties=(ax.Tie("dense_1.kernel", "dense_0.kernel"),)))
    with pytest.raises(StateError, match="expected a ModelState or nested dicts of arrays, got list"):
        ax.init(model, state=[1.0])
    with pytest.raises(DtypeError, match=r"init: expected 'dropout_0\.key' of dtype uint32, got float32"):
        ax.init(_mlp().dropout(rate=0.5), state={"dropout_0": {"key": np.zeros(2, np.float32)}})


def test_a_compiled_model_takes_its_template_alone():
    """It predicts what build predicts, for any frozen marks; other shapes, inputs and leaves are refused."""
    model = _mlp()
    x = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    state, predict = ax.compile(model, {"x": x}, seed=4)
    np.testing.assert_allclose(predict(state, x), ax.predict(model, ax.init(model, seed=4), x), rtol=1e-6)
    np.testing.assert_array_equal(predict(state.freeze(), {"x": x}), predict(state, x))
    with pytest.raises(ShapeError, match=r"compiled model: input 'x': expected f32 \(5, 8\), got f32 \(4, 8\)"):
        predict(state, x[:4])
    with pytest.raises(ShapeError, match=r"input 'x': expected shape \(None, 8\), got \(5, 7\)"):
        predict(state, x[:, :7])
    with pytest.raises(StateError, match=r"compiled model: expected leaves dense_0\.bias.*; got dense_0\.bias"):
        predict(ax.ModelState({"dense_0": state.parameters["dense_0"]}), x)
    wrong = jax.tree.map(lambda leaf: leaf[:2], state)
    with pytest.raises(ShapeError, match=r"compiled model: leaf 'dense_0\.bias': expected f32 \(4,\), got f32 \(2,\)"):
        predict(wrong, x)
    given, trained = ax.compile(model.dropout(rate=0.5), {"x": x}, state, mode="train")
    assert trained(given, x).state["dropout_0"]["key"].shape == (2,)
    wide = ax.input("n", shape=(None,), dtype="s64").nx(lambda n: n + 1)
    state, predict = ax.compile(wide, {"n": np.zeros(1, np.int64)})
    assert int(predict(state, np.array([2**40]))[0]) == 2**40 + 1


def test_init_and_apply_of_a_model_work_under_jit():
    """`Model.init` and `Model.apply` are pure; a bare array is a template, training gives the changed state too."""
    model = _mlp().batch_norm()
    x = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    state = jax.jit(lambda seed: model.init(x, seed))(jax.random.key(7, impl="threefry2x32"))
    jax.tree.map(np.testing.assert_array_equal, state, model.init(x, 7))
    np.testing.assert_allclose(jax.jit(model.apply)(state, x), model.apply(state, x), rtol=1e-6, atol=1e-6)
    output = jax.jit(lambda state, x: model.apply(state, x, train=True))(state, x)
    assert set(output.state) == {"batch_norm_0"}


MANY_LAYERS = """
import hashlib, numpy as np, engine as ax
model = ax.input("x", shape=(None, 4))
for _ in range(45):
    model = model.dense(4)
state = model.init(seed=11)
leaves = [np.asarray(state.parameters[f"dense_{i}"]["kernel"]).tobytes() for i in range(45)]
print(len(set(leaves)), hashlib.sha256(b"".join(leaves)).hexdigest())
"""


def test_a_seed_gives_the_same_parameters_in_every_process():
    """45 layers, more than the 32 beyond which Axon's order is not fixed: two processes with other hash seeds agree."""
    found = []
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", MANY_LAYERS]
        found.append(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert found[0] == found[1]
    assert found[0].startswith("45 ")
