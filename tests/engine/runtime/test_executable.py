"""Executables: no compile in a call, and which models may share a batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import engine as ax
from engine.errors import OptionError, ShapeError
from engine.runtime import Executable, mixing_reason


def _x(**options: object) -> ax.Model:
    return ax.input("x", shape=(None, 4), **options)


def _joined() -> ax.Model:
    x = _x()
    return ax.concatenate(x, x.relu(), axis=0)


def test_answers_equal_the_plain_prediction_at_every_bucket():
    """Padding-free sizes give what predict_fn gives."""
    model = _x().dense(3, activation="tanh").dense(2)
    state = ax.build(model)[0](seed=1)
    executable = Executable(model, state, buckets=[4, 1, 2])
    assert executable.buckets == (1, 2, 4)
    for rows in executable.buckets:
        x = np.random.default_rng(rows).standard_normal((rows, 4)).astype(np.float32)
        np.testing.assert_allclose(executable({"x": x})["dense_1"], ax.build(model)[1](state, x), atol=1e-6)


def test_a_call_never_compiles():
    """Undeclared sizes are errors; declared ones ask XLA for nothing."""
    model = _x().dense(3)
    executable = Executable(model, ax.build(model)[0](), buckets=[1, 2])
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append(event))
    try:
        executable({"x": np.ones((2, 4), np.float32)})
    finally:
        jax.monitoring.clear_event_listeners()
    assert not [event for event in compiled if "compile" in event]
    with pytest.raises(ShapeError, match="expected a batch size out of 1, 2, got 3"):
        executable({"x": np.ones((3, 4), np.float32)})


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: _x().softmax(axis=0), "layer 'softmax_0': it reduces over axis 0"),
        (lambda: _x().log_softmax(axis=-2), "layer 'log_softmax_0': it reduces over axis 0"),
        (lambda: _x().reshape((2, "auto")), "its new shape does not begin with 'batch'"),
        (lambda: _x().layer_norm(channel_index=0), "channel axis is axis 0"),
        (_joined, "it concatenates along axis 0"),
        (lambda: ax.add(_x(), ax.constant(np.ones((2, 4), np.float32))), "combines the batch with constants"),
        (lambda: ax.input("x", shape=(3, 4)).relu(), "input 'x' declares no open batch size"),
        (lambda: ax.container((_x().relu(), ax.constant([1.0]))), "an output does not depend on the batch"),
    ],
)
def test_models_that_mix_rows_are_recognised(model, reason: str):
    """Batching them would show one caller another's data; the reason names the layer."""
    assert reason in (mixing_reason(model()) or "")


@pytest.mark.parametrize(
    "model",
    [
        lambda: _x().dense(3).softmax().batch_norm().dropout(rate=0.5),
        lambda: ax.add(_x(), ax.constant([[1.0, 2.0, 3.0, 4.0]])).multiply(ax.constant(2.0)),
        lambda: _x().reshape(("batch", 2, 2)).flatten(),
        lambda: ax.input("i", shape=(None, 8, 8, 1)).conv(2, kernel_size=3).max_pool(kernel_size=2).global_avg_pool(),
        lambda: ax.input("t", shape=(None, 5), dtype="s32").embedding(7, 3).flatten(),
    ],
)
def test_row_wise_models_may_share_a_batch(model):
    """Neither the graph's analysis nor the probe objects."""
    built = model()
    assert mixing_reason(built) is None
    assert Executable(built, ax.build(built)[0](), buckets=[1, 2]).mixes_rows is None


def test_outputs_are_named_by_their_path():
    """A container's leaves carry their keys and positions."""
    x = _x()
    model = ax.container({"b": (x.relu(), x.dense(2)), "a": x.tanh()})
    executable = Executable(model, ax.build(model)[0](), buckets=[1])
    assert [s.name for s in executable.outputs] == ["a", "b.0", "b.1"]
    assert [s.shape for s in executable.outputs] == [(None, 4), (None, 4), (None, 2)]
    assert set(executable({"x": np.ones((1, 4), np.float32)})) == {"a", "b.0", "b.1"}


def test_open_sizes_besides_the_batch_are_refused_by_name():
    """There is no program for a size that nobody declared."""
    model = ax.input("x", shape=(None, None)).relu()
    with pytest.raises(OptionError, match=r"input 'x' axis 1: expected open_sizes .*\(None, None\) leaves it open"):
        Executable(model, ax.ModelState({}), buckets=[1])


def test_wide_integers_survive_the_executable():
    """INT64 is exact to its limits."""
    model = ax.add(ax.input("x", shape=(None, 1), dtype="s64"), ax.constant(np.int64(0)))
    executable = Executable(model, ax.ModelState({}), buckets=[1])
    assert int(executable({"x": np.array([[2**63 - 1]])})["add_0"][0, 0]) == 2**63 - 1


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32", "f64"])
def test_rows_with_nan_are_no_sign_of_mixing(dtype: str):
    """The probe takes the logarithm of negative numbers, in every floating-point type."""
    model = ax.layer(jnp.log, _x(dtype=dtype), name="log", row_wise=True)
    executable = Executable(model, ax.ModelState({}), buckets=[2])
    assert np.isnan(executable({"x": np.full((2, 4), -1, executable.inputs[0].dtype)})["log"]).all()
    assert executable.mixes_rows is None
