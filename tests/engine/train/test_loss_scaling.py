"""Training with a loss scale: half precision learns, steps that are not finite change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import engine as ax
from engine.errors import DivergedError, OptionError
from engine.train import LoopState, checkpoint, trainer

ADAM = {"name": "adam", "learning_rate": 0.01}


def _model() -> ax.Model:
    x = ax.input("x", shape=(None, 4)).dense(16, activation="tanh").batch_norm().dropout(rate=0.1)
    return x.dense(3, activation="softmax")


def _batches(count: int = 4, bad: int | None = None) -> list[Any]:
    """Batches of three classes; the inputs of batch `bad` overflow."""
    generator = np.random.default_rng(0)
    result = []
    for i in range(count):
        labels = np.arange(12) % 3
        x = (np.eye(3, 4)[labels] + 0.1 * generator.standard_normal((12, 4))).astype(np.float32)
        result.append(({"x": np.full_like(x, np.inf) if i == bad else x}, np.eye(3, dtype=np.float32)[labels]))
    return result


def _bytes(tree: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def _states(loop: Any, batches: list[Any]) -> list[LoopState]:
    """The states after every step."""
    found: list[LoopState] = []
    loop.handle_event("iteration_completed", lambda state: found.append(state.copy())).run(batches)
    return found


@pytest.mark.parametrize("preset", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_learns(preset: str) -> None:
    """With the dynamic scale the loss falls to a tenth, and parameters stay f32."""
    model = ax.apply_policy(_model(), preset)
    final = trainer(model, "categorical_cross_entropy", ADAM, loss_scale="dynamic").run(_batches(), epochs=40)
    assert final.history[-1]["loss"] < final.history[0]["loss"] / 10
    assert {leaf.dtype for leaf in jax.tree.leaves(final.model_state.parameters)} == {np.dtype(np.float32)}
    assert float(final.history[-1]["skipped"]) == 0


@pytest.mark.parametrize(
    ("spec", "after"), [("dynamic", 2.0**14), ("static", 2.0**15), ({"name": "static", "init_scale": 4}, 4.0)]
)
def test_a_step_that_is_not_finite_changes_nothing_but_the_scale(spec: Any, after: float) -> None:
    """Parameters, optimizer and layer state (statistics, dropout keys) stay bit for bit; the next step goes on."""
    loop = trainer(_model(), "categorical_cross_entropy", ADAM, loss_scale=spec, on_nonfinite="ignore")
    first, skipped, following, _ = _states(loop, _batches(bad=1))
    before, now = first.step_state, skipped.step_state
    assert _bytes((before.model_state, before.optimizer_state)) == _bytes((now.model_state, now.optimizer_state))
    assert float(now.loss_scale_state["loss_scale"]) == after
    assert _bytes(following.model_state) != _bytes(skipped.model_state)
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(following.model_state))
    assert float(skipped.metrics["skipped"]) == 0.5
    np.testing.assert_allclose(float(following.metrics["skipped"]), 1 / 3, rtol=1e-6)


def test_gradients_too_small_for_half_precision_survive_with_a_scale():
    """A loss of 1e-8 times the error has f16 gradients of zero without, and the right ones with it."""

    def loss(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
        return 1e-8 * ((y_true - y_pred) ** 2).mean()

    model = ax.apply_policy(ax.input("x", shape=(None, 4)).dense(3), "mixed_float16")
    start = ax.build(model)[0]()
    moved = []
    for scale in (None, "static"):
        final = trainer(model, loss, {"name": "sgd", "learning_rate": 1e8}, loss_scale=scale).run(_batches(1), start)
        kernels = (state.parameters["dense_0"]["kernel"] for state in (final.model_state, start))
        moved.append(float(np.abs(np.subtract(*map(np.asarray, kernels))).max()))
    assert moved[0] == 0
    assert moved[1] > 0.01


def test_scaled_training_in_f32_is_the_unscaled_one():
    """Factors that are powers of two change no bit of it, nor of the reported loss."""
    runs = [
        trainer(_model(), "categorical_cross_entropy", ADAM, loss_scale=scale).run(_batches(), epochs=2)
        for scale in (None, "identity", "static", "dynamic")
    ]
    for other in runs[1:]:
        assert _bytes(other.model_state) == _bytes(runs[0].model_state)
        assert float(other.metrics["loss"]) == float(runs[0].metrics["loss"])


def test_without_a_scale_nothing_of_it_is_in_the_step():
    """No state, no report, no test for finite numbers in the program."""
    loop = trainer(_model(), "categorical_cross_entropy", ADAM)
    state = loop.start(_batches())
    assert state.step_state.loss_scale_state is None
    assert set(state.metrics) | set(state.accumulators.values) == {"loss"}
    step = jax.make_jaxpr(lambda state, batch: loop.program.step.step(state, batch)[0])
    assert "is_finite" not in str(step(state.step_state, _batches()[0]))


def test_the_scale_is_resumed(tmp_path: Path) -> None:
    """A run from a checkpoint ends as the one that was not interrupted, its scale included."""
    loop = trainer(_model(), "categorical_cross_entropy", ADAM, loss_scale={"name": "dynamic", "period": 3})
    whole = loop.run(_batches(), epochs=2)
    checkpoint.save(tmp_path / "first", loop.run(_batches(), epochs=1))
    resumed = loop.run(_batches(), epochs=2, resume=checkpoint.restore(tmp_path / "first", loop.start(_batches())))
    assert float(whole.step_state.loss_scale_state["loss_scale"]) == 2.0**17
    assert _bytes(resumed.step_state) == _bytes(whole.step_state)


def test_a_loss_that_is_not_finite_still_ends_the_run():
    """Skipping guards against overflowing gradients; a loss of NaN is an error unless it shall be ignored."""
    loop = trainer(_model(), "categorical_cross_entropy", ADAM, loss_scale="dynamic")
    with pytest.raises(DivergedError):
        loop.run(_batches(bad=1))


def test_its_report_is_no_name_for_a_metric():
    """The name is taken."""
    loop = trainer(_model(), "categorical_cross_entropy", ADAM, loss_scale="dynamic")
    with pytest.raises(OptionError, match="got 'skipped' again"):
        loop.metric("accuracy", "skipped")
