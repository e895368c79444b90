"""Quantized models: names, states, bounds, bundles; layers in blocks, layers left out, ranges seen."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import engine as ax
from engine.errors import OptionError, StateError
from engine.model.state import flatten


def _draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _mlp() -> tuple[ax.Model, ax.ModelState]:
    model = ax.input("x", shape=(None, 20)).dense(30, activation="relu").dense(10, use_bias=False).softmax()
    return model, ax.build(model)[0](seed=1)


def _cnn() -> tuple[ax.Model, ax.ModelState]:
    x = ax.input("x", shape=(None, 8, 8, 3)).conv(6, kernel_size=3, padding="same", activation="relu")
    model = x.conv(4, kernel_size=2, strides=2, feature_group_size=2).flatten().dense(5)
    return model, ax.build(model)[0](seed=1)


@pytest.mark.parametrize("static", [False, True], ids=["weight-only", "static"])
@pytest.mark.parametrize("make", [_mlp, _cnn])
def test_predictions_stay_near_and_names_the_same(make, static: bool):
    """Layers keep their names and biases, kernels become int8 state, and predictions move by a few per cent."""
    model, state = make()
    shape = model.get_inputs()["x"]
    x = _draw(32, *shape[1:])
    calibration = ax.calibrate(model, state, [x[:16], x[16:]]) if static else None
    small, quantized = ax.quantize(model, state, calibration=calibration)
    assert list(small.properties()) == list(model.properties())
    assert not any(path.endswith("kernel") for path in quantized.paths())
    expected, got = ax.build(model)[1](state, x), ax.build(small)[1](quantized, x)
    scale = float(jnp.abs(expected).max())
    assert 0 < float(jnp.abs(got - expected).max()) < 0.03 * scale
    prefix = "" if static else "weight_only_"
    assert f"{prefix}quantized_dense" in small.get_op_counts()
    assert not {"dense", "conv"} & set(small.get_op_counts())
    template = ax.build(small)[0](x)
    assert jax.tree.map(jnp.shape, template.state) == jax.tree.map(jnp.shape, quantized.state)
    assert jax.tree.map(jnp.result_type, template.state) == jax.tree.map(jnp.result_type, quantized.state)


def test_weight_only_error_stays_within_its_bound_layer_by_layer():
    """Each output of a dense layer is off by at most half a scale times the sum of the inputs' sizes."""
    model = ax.input("x", shape=(None, 50)).dense(20)
    state = ax.build(model)[0](seed=3)
    x = _draw(64, 50)
    small, quantized = ax.quantize(model, state)
    error = np.abs(np.asarray(ax.build(small)[1](quantized, x) - ax.build(model)[1](state, x)))
    bound = np.abs(x).sum(-1, keepdims=True) * np.asarray(quantized.state["dense_0"]["kernel"]["scale"]) / 2
    assert (error <= bound + 1e-5).all()


def test_layers_of_blocks_are_quantized_once():
    """A block called twice stays one block, its layers keep their paths, and their ranges are those of all calls."""
    twice = ax.block(lambda x: x.dense(8, activation="relu"), name="body")
    model = twice(twice(ax.input("x", shape=(None, 8)))).dense(2, name="head")
    state = ax.build(model)[0](seed=1)
    x = _draw(16, 8)
    calibration = ax.calibrate(model, state, [x])
    assert set(calibration.ranges) == {"body.dense_0", "head"}
    inner = np.maximum(x @ np.asarray(state.parameters["body"]["dense_0"]["kernel"]), 0)
    low, high = calibration.ranges["body.dense_0"]
    np.testing.assert_allclose((low, high), (x.min(), max(x.max(), inner.max())), rtol=1e-5)
    small, quantized = ax.quantize(model, state, calibration=calibration)
    assert quantized.state["body"]["dense_0"]["kernel"]["value"].dtype == jnp.int8
    expected = ax.build(model)[1](state, x)
    np.testing.assert_allclose(ax.build(small)[1](quantized, x), expected, atol=0.03 * float(jnp.abs(expected).max()))


def test_chosen_layers_only_and_everything_else_keeps_its_name():
    """Unnamed layers before and after a quantized one are not renumbered."""
    model = ax.input("x", shape=(None, 4)).dense(5).dense(6).dense(7)
    state = ax.build(model)[0](seed=1)
    small, quantized = ax.quantize(model, state, only=lambda path: path == "dense_1")
    assert small.properties() == {
        "x": "input", "dense_0": "dense", "dense_1": "weight_only_quantized_dense", "dense_2": "dense",
    }  # fmt: skip
    assert set(quantized.parameters) == {"dense_0", "dense_1", "dense_2"}
    assert ax.build(small)[1](quantized, _draw(2, 4)).shape == (2, 7)


def test_frozen_marks_stay_and_the_rest_still_trains():
    """What was frozen stays frozen, quantized layers are frozen, other layers get gradients through them."""
    model = ax.input("x", shape=(None, 4)).dense(5, name="a").dense(6, name="b").dense(2, name="c")
    state = ax.build(model)[0](seed=1).freeze(lambda path: path == "c.bias")
    small, quantized = ax.quantize(model, state, only=lambda path: path == "b")
    assert quantized.frozen == {"c.bias", "b.kernel.value", "b.kernel.scale", "b.bias"}
    predict = ax.build(small, mode="train")[1]
    x = _draw(3, 4)
    gradient = jax.grad(lambda p: predict(quantized.with_trainable(p), x).prediction.sum())(quantized.trainable())
    assert {path for path, _ in flatten(gradient)} == {"a.kernel", "a.bias", "c.kernel"}
    assert float(jnp.abs(gradient["a"]["kernel"]).max()) > 0


def test_policies_and_hooks_are_kept():
    """A layer that computes in bfloat16 goes on doing so, with its scales in float32."""
    model = ax.apply_policy(ax.input("x", shape=(None, 8)).dense(4), ax.Policy("f32", "bf16", "bf16"))
    seen: list[np.ndarray] = []
    model = ax.attach_hook(model, seen.append)
    state = ax.build(model)[0](seed=1)
    small, quantized = ax.quantize(model, state)
    y = ax.build(small)[1](quantized, _draw(2, 8))
    jax.effects_barrier()
    assert y.dtype == jnp.bfloat16
    assert len(seen) == 1
    assert quantized.state["dense_0"]["kernel"]["scale"].dtype == jnp.float32


def test_percentiles_cut_outliers_off():
    """A single huge value does not coarsen all others."""
    model = ax.input("x", shape=(None, 1000)).dense(1)
    state = ax.build(model)[0](seed=1)
    x = _draw(4, 1000)
    x[0, 0] = 1e4
    assert ax.calibrate(model, state, [x]).peak("dense_0") == 1e4
    assert ax.calibrate(model, state, [x], percentile=99.9).peak("dense_0") < 5


def test_what_cannot_be_quantized_is_said():
    """No batches, values that are not finite, layers not seen, ties, states of another model."""
    model, state = _mlp()
    with pytest.raises(OptionError, match="expected finite inputs of layer 'dense_0', got no rows"):
        ax.calibrate(model, state, [])
    with pytest.raises(OptionError, match="expected finite inputs of layer 'dense_0', got nan"):
        ax.calibrate(model, state, [np.full((1, 20), np.nan, np.float32)])
    with pytest.raises(OptionError, match=r"expected a percentile in \(50, 100\], got 10"):
        ax.calibrate(model, state, [], percentile=10)
    with pytest.raises(StateError, match="expected a range for layer 'dense_0', got none"):
        ax.quantize(model, state, calibration=ax.Calibration({}))
    with pytest.raises(StateError, match=r"expected a parameter 'dense_0.kernel', got none"):
        ax.quantize(model, ax.ModelState({}))
    square = ax.input("x", shape=(None, 4)).dense(4).dense(4)
    tied = ax.build(square)[0](seed=1).tie("dense_1.kernel", "dense_0.kernel")
    with pytest.raises(StateError, match=r"expected a kernel without ties, got 'dense_0.kernel'; untie it first"):
        ax.quantize(square, tied)


def test_a_bundle_of_int8_weights_is_a_quarter(tmp_path: Path):
    """784-2048-2048-10: at most 27 % of the float32 bundle, and it predicts the same bits after reading."""
    model = ax.input("x", shape=(None, 784)).dense(2048, activation="relu").dense(2048, activation="relu").dense(10)
    state = ax.build(model)[0](seed=1)
    small, quantized = ax.quantize(model, state)
    ax.bundle.write(tmp_path / "f32.axon", model, state)
    ax.bundle.write(tmp_path / "int8.axon", small, quantized)
    assert (tmp_path / "int8.axon").stat().st_size <= 0.27 * (tmp_path / "f32.axon").stat().st_size
    read = ax.bundle.read(tmp_path / "int8.axon")
    assert read.state.frozen == quantized.frozen
    x = _draw(2, 784)
    np.testing.assert_array_equal(ax.build(read.model)[1](read.state, x), ax.build(small)[1](quantized, x))


def test_size_report_counts_bytes_per_layer():
    """Kernels shrink to a quarter, scales come on top."""
    model, state = _mlp()
    report = ax.size_report(state, ax.quantize(model, state)[1])
    assert report.layers == (("dense_0", 2520, 600 + 120 + 120), ("dense_1", 1200, 300 + 40))
    assert report.before == 3720
    assert report.after == 1180
    assert str(report).splitlines() == [
        "Layer     Before    After   Ratio",
        "dense_0   2.5 kB    840 B   33.3%",
        "dense_1   1.2 kB    340 B   28.3%",
        "Total     3.7 kB   1.2 kB   31.7%",
    ]


def test_training_around_quantized_layers_leaves_them_alone():
    """A Loop over a partly quantized model changes other layers only."""
    model = ax.input("x", shape=(None, 4)).dense(8, activation="tanh").dense(2)
    state = ax.build(model)[0](seed=1)
    small, quantized = ax.quantize(model, state, only=lambda path: path == "dense_0")
    data = [(_draw(8, 4), _draw(8, 2, seed=1))]
    loop = ax.train.trainer(small, "mean_squared_error", "adam")
    trained = loop.run(data, quantized, epochs=2).step_state.model_state
    for path, leaf in flatten(quantized.state):
        np.testing.assert_array_equal(dict(flatten(trained.state))[path], leaf)
    assert not np.array_equal(trained.parameters["dense_1"]["kernel"], quantized.parameters["dense_1"]["kernel"])
    assert trained.frozen == quantized.frozen
