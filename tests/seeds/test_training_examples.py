"""The training examples: Axon's four steps, Optax's ten, a loader's batches, a Lightning module, a sharded step."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import engine as ax
from engine.train import ArrayData, LoopState, Module, Trainer, trainer


def test_the_four_steps_of_axon_learn_digits():
    """Model, factory (categorical cross entropy, AdamW 0.005), instruments every 50 iterations, ten epochs."""
    digits = load_digits()
    x, y = (digits.data / 16).astype(np.float32), np.eye(10, dtype=np.float32)[digits.target]
    model = ax.input("input", shape=(None, 64)).dense(128).dense(10, activation="softmax")
    seen: list[int] = []

    def note(state: LoopState) -> None:
        seen.append(state.iteration)

    final = (
        trainer(model, "categorical_cross_entropy", {"name": "adamw", "learning_rate": 0.005})
        .metric("accuracy")
        .handle_event("iteration_completed", note, every=50)
        .run(ArrayData({"input": x}, y, batch_size=32, drop_remainder=True), epochs=10)
    )
    assert final.values()["accuracy"] > 0.95
    batches = len(x) // 32
    assert seen == [i % batches for i in range(0, 10 * batches, 50)]


def test_ten_steps_of_adam_lower_the_loss():
    """adam(0.01) on a 100x10 regression: init, value_and_grad, update, apply_updates in one compiled step."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 10)).astype(np.float32)
    y = x @ rng.normal(size=(10, 1)).astype(np.float32)
    optimizer = ax.optim.from_spec({"name": "adam", "learning_rate": 0.01})
    params = {"w": jnp.zeros((10, 1)), "b": jnp.zeros(1)}
    state = optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any, jax.Array]:
        def loss_of(p: Any) -> jax.Array:
            return jnp.mean((ax.functional.dense(x, p["w"], p["b"]) - y) ** 2)

        loss, gradients = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    losses = []
    for _ in range(10):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    assert all(later < earlier for earlier, later in pairwise(losses))


def test_a_loader_of_1000_rows_gives_32_batches_the_last_of_8():
    """Batches of 32 rows of 10 features with labels of three classes, each row once."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(1000, 10)).astype(np.float32), rng.integers(0, 3, 1000)
    batches = list(ArrayData({"x": x}, y, batch_size=32))
    assert len(batches) == 32
    for inputs, labels in batches[:3]:
        assert (inputs["x"].shape, labels.shape) == ((32, 10), (32,))
    assert batches[-1][1].shape == (8,)
    rows = np.concatenate([inputs["x"] for inputs, _ in batches])
    np.testing.assert_array_equal(np.sort(rows[:, 0]), np.sort(x[:, 0]))


def test_a_lightning_module_is_fitted():
    """Mean squared error, Adam, ten epochs on one device, a part held out."""

    class Net(Module):
        def model(self) -> ax.Model:
            return ax.input("x", shape=(None, 10)).dense(50, activation="relu").dense(1)

        def training_step(self, forward: Callable[[Any], jax.Array], batch: tuple[Any, Any]) -> Any:
            inputs, targets = batch
            return jnp.mean((forward(inputs) - targets) ** 2)

        def configure_optimizers(self) -> Any:
            return {"name": "adam", "learning_rate": 1e-3}

    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 10)).astype(np.float32)
    data = ArrayData({"x": x}, x.sum(1, keepdims=True), batch_size=32, drop_remainder=True)
    training, validation = data.split(0.2)
    final = Trainer(max_epochs=10, devices=1).fit(Net(), training, validation)
    first, last = final.history[0], final.history[-1]
    assert float(last["validation_loss"]) < 0.5 * float(first["validation_loss"])


def test_a_function_over_a_device_axis():
    """sin(x) * exp(-x) over (devices, 10), a row per device."""
    devices = jax.local_device_count()
    x = np.arange(devices * 10, dtype=np.float32).reshape(devices, 10) / 10
    mesh = jax.make_mesh((devices,), ("devices",))
    placed = jax.device_put(x, jax.NamedSharding(mesh, jax.P("devices")))
    got = jax.jit(lambda x: jnp.sin(x) * jnp.exp(-x))(placed)
    np.testing.assert_allclose(got, np.sin(x) * np.exp(-x), rtol=1e-5, atol=1e-6)
    assert len(got.sharding.device_set) == devices


def test_a_calibrated_int8_model_is_smaller_and_close():
    """Prepare, 100 batches of (32, 10), convert: the file shrinks and the answers stay near."""
    model = ax.input("x", shape=(None, 10)).dense(256, activation="relu").dense(256, activation="relu").dense(3)
    state = ax.build(model)[0](seed=0)
    rng = np.random.default_rng(0)
    batches = [rng.normal(size=(32, 10)).astype(np.float32) for _ in range(100)]
    calibration = ax.calibrate(model, state, batches)
    small, small_state = ax.quantize(model, state, calibration=calibration)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(small_state)) < 0.4 * size
    x = batches[0]
    expected, got = ax.build(model)[1](state, x), ax.build(small)[1](small_state, x)
    assert float(jnp.abs(got - expected).max()) < 0.05 * float(jnp.abs(expected).max())
