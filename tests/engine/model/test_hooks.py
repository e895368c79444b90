"""Hooks: which values they see, when, and in which order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import engine as ax
from engine.errors import GraphError, OptionError
from engine.model.hooks import EVENTS
from engine.train import trainer

X = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)


class Seen(list[tuple[str, Any]]):
    """What hooks were called with."""

    def __call__(self, label: str) -> Callable[[Any], None]:
        return lambda value: self.append((label, value))

    def labels(self) -> list[str]:
        """Of the calls so far; waits for those under way."""
        jax.effects_barrier()
        return [label for label, _ in self]


def _x() -> ax.Model:
    return ax.input("x", shape=(None, 3))


def test_forward_hook_sees_the_output_also_under_jit():
    """The very values of the layer, as NumPy arrays."""
    seen = Seen()
    model = ax.attach_hook(_x().dense(2), seen("dense")).relu()
    init, predict = ax.build(model)
    state = init()
    jax.jit(predict)(state, X)
    assert seen.labels() == ["dense"]
    assert isinstance(seen[0][1], np.ndarray)
    np.testing.assert_allclose(seen[0][1], X @ np.asarray(state.parameters["dense_0"]["kernel"]), rtol=1e-6)


def test_backward_hook_sees_the_gradient_of_the_output():
    """Of sum(y^2) it is 2y."""
    seen = Seen()
    model = ax.attach_hook(_x().dense(2), seen("gradient"), on="backward")
    init, predict = ax.build(model)
    state = init()
    gradient = jax.jit(jax.grad(lambda s: jnp.sum(predict(s, X) ** 2)))(state)
    plain = ax.build(ax.detach_hooks(model))[1]
    np.testing.assert_array_equal(
        gradient.parameters["dense_0"]["kernel"],
        jax.jit(jax.grad(lambda s: jnp.sum(plain(s, X) ** 2)))(state).parameters["dense_0"]["kernel"],
    )
    assert seen.labels() == ["gradient"]
    np.testing.assert_allclose(seen[0][1], 2 * np.asarray(predict(state, X)), rtol=1e-6)


def test_all_means_every_event_gradients_included():
    """One call per event: parameters, input, output, gradient."""
    seen = Seen()
    model = ax.attach_hook(_x().dense(2), seen("value"), on="all")
    init, predict = ax.build(model, mode="train")
    state = init()
    jax.grad(lambda s: jnp.sum(predict(s, X).prediction))(state)
    assert seen.labels() == ["value"] * len(EVENTS)
    made, before, after, gradient = (value for _, value in seen)
    np.testing.assert_array_equal(made["kernel"], state.parameters["dense_0"]["kernel"])
    np.testing.assert_array_equal(before, X)
    np.testing.assert_allclose(after, X @ made["kernel"], rtol=1e-6)
    np.testing.assert_array_equal(gradient, np.ones((4, 2)))


def test_several_hooks_run_in_the_order_attached():
    """Also within one compiled program."""
    seen = Seen()
    model = _x().dense(2)
    for label in "abc":
        model = ax.attach_hook(model, seen(label))
    init, predict = ax.build(model)
    jax.jit(predict)(init(), X)
    assert seen.labels() == ["a", "b", "c"]


def test_mode_says_in_which_build_they_run():
    """Train, inference or both; what is initialised knows no mode."""
    seen = Seen()
    model = _x().dense(2)
    for mode in ("train", "inference", "both"):
        model = ax.attach_hook(model, seen(mode), mode=mode)
    model = ax.attach_hook(model, seen("made"), on="initialize", mode="train")
    init, predict = ax.build(model)
    state = init()
    assert seen.labels() == ["made"]
    predict(state, X)
    assert seen.labels() == ["made", "inference", "both"]
    ax.build(model, mode="train")[1](state, X)
    assert seen.labels() == ["made", "inference", "both", "train", "both"]


def test_pre_forward_sees_each_input_in_the_compute_type_and_forward_comes_before_the_output_cast():
    """A policy's casts lie outside of the hooks."""
    seen = Seen()
    model = ax.add(_x(), ax.input("y", shape=(None, 3)))
    for on in ("pre_forward", "forward"):
        model = ax.attach_hook(model, seen(on), on=on)
    model = ax.apply_policy(model, "mixed_bfloat16")
    init, predict = ax.build(model)
    assert predict(init(), {"x": X, "y": 2 * X}).dtype == jnp.float32
    assert seen.labels() == ["pre_forward", "pre_forward", "forward"]
    assert {value.dtype for _, value in seen} == {np.dtype(ml_dtypes.bfloat16)}
    np.testing.assert_array_equal(seen[1][1], (2 * X).astype(ml_dtypes.bfloat16))


def test_inputs_have_values_and_gradients_only():
    """Other events are refused, `all` means these two."""
    seen = Seen()
    for on in ("initialize", "pre_forward"):
        with pytest.raises(OptionError, match=f"forward, backward for an input, got '{on}'"):
            ax.attach_hook(_x(), seen("no"), on=on)
    model = ax.attach_hook(_x(), seen("input"), on="all").dense(2)
    init, predict = ax.build(model)
    jax.grad(lambda s, x: jnp.sum(predict(s, x)), argnums=1)(init(), X)
    assert seen.labels() == ["input", "input"]


def test_vmap_calls_once_per_element():
    """As the docstring says."""
    seen = Seen()
    init, predict = ax.build(ax.attach_hook(_x().dense(2), seen("row")))
    jax.vmap(predict, in_axes=(None, 0))(init(), np.stack([X, X, X]))
    assert seen.labels() == ["row"] * 3
    assert seen[0][1].shape == (4, 2)


def test_structures_and_values_without_gradient():
    """A container's hook gets its structure; whole numbers have no gradient."""
    seen = Seen()
    tokens = ax.input("t", dtype="s32")
    model = ax.container({"t": tokens, "y": tokens.embedding(5, 2)})
    for on in ("forward", "backward"):
        model = ax.attach_hook(model, seen(on), on=on)
    init, predict = ax.build(model)
    state = init({"t": np.zeros((1, 2), np.int32)})
    jax.grad(lambda s: jnp.sum(predict(s, np.zeros((1, 2), np.int32))["y"]))(state)
    assert seen.labels() == ["forward", "backward"]
    assert seen[0][1].keys() == {"t", "y"}
    assert seen[1][1]["t"] is None
    np.testing.assert_array_equal(seen[1][1]["y"], np.ones((1, 2, 2)))


def test_layers_in_blocks_and_layers_that_are_passed_over():
    """Every call of a block shows its layers; dropout in inference shows what it hands on."""
    seen = Seen()
    block = ax.block(lambda x: ax.attach_hook(x.dense(3), seen("dense")), remat=True)
    model = ax.attach_hook(block(block(_x())), seen("block"))
    model = ax.attach_hook(model.dropout(rate=0.5), seen("dropout"))
    init, predict = ax.build(model)
    predict(init(), X)
    assert seen.labels() == ["dense", "dense", "block", "dropout"]
    np.testing.assert_array_equal(seen[-1][1], seen[-2][1])


def test_detached_models_call_nothing():
    """Nor do their blocks."""
    seen = Seen()
    block = ax.block(lambda x: ax.attach_hook(x.dense(3), seen("block")))
    model = ax.detach_hooks(ax.attach_hook(block(_x()), seen("outer"), on="all"))
    init, predict = ax.build(model)
    predict(init(), X)
    assert seen.labels() == []
    assert "callback" not in ax.trace_forward(model, X, init())


def test_training_calls_them_with_the_activation_whose_logits_it_would_take():
    """A hook on the last softmax sees probabilities and their gradient; the loss is the same."""
    seen = Seen()
    model = _x().dense(2).softmax()
    hooked = ax.attach_hook(ax.attach_hook(model, seen("value")), seen("gradient"), on="backward")
    targets = np.eye(2, dtype=np.float32)[[0, 1, 1, 0]]
    runs = [
        trainer(m, "categorical_cross_entropy", "sgd").run([({"x": X}, targets)], epochs=2) for m in (model, hooked)
    ]
    assert sorted(seen.labels()) == ["gradient", "gradient", "value", "value"]
    np.testing.assert_allclose(next(v for label, v in seen if label == "value").sum(-1), np.ones(4), rtol=1e-6)
    np.testing.assert_allclose(runs[0].history[1]["loss"], runs[1].history[1]["loss"], rtol=1e-5)


def test_arguments_of_a_block_have_no_hooks():
    """They stand for what its calls are given: that can be watched outside."""
    with pytest.raises(GraphError, match="arguments without hooks"):
        ax.block(lambda x: ax.attach_hook(x, print).dense(3))


def test_wrong_arguments_are_refused():
    """Events, modes and what is to be called."""
    with pytest.raises(OptionError, match="expected on to be one of"):
        ax.attach_hook(_x().dense(2), print, on="after")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="expected mode to be one of"):
        ax.attach_hook(_x().dense(2), print, mode="test")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="expected a function of the value, got str"):
        ax.attach_hook(_x().dense(2), "print")  # type: ignore[arg-type]
