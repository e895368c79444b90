"""The learning-rate finder: its sweep, where it stops, what it suggests, what it leaves alone."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

import engine as ax
from engine.errors import DataError, OptionError
from engine.train import find_learning_rate

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 3)).astype(np.float32)
Y = (X @ np.array([[1.0], [-2.0], [0.5]], np.float32)).astype(np.float32)
BATCHES = [({"x": X[i : i + 16]}, Y[i : i + 16]) for i in range(0, 64, 16)]


def model() -> ax.Model:
    """A line through the data, starting at zero."""
    return ax.input("x", shape=(None, 3)).dense(1, use_bias=False, kernel_initializer="zeros")


def by_hand(rates: np.ndarray, smoothing: float) -> np.ndarray:
    """Losses of gradient descent with these rates in NumPy, smoothed."""
    w, average, found = np.zeros((3, 1)), 0.0, []
    for i, rate in enumerate(rates):
        x, y = X[i % 4 * 16 :][:16].astype(np.float64), Y[i % 4 * 16 :][:16]
        error = x @ w - y
        average = smoothing * average + (1 - smoothing) * np.mean(error**2)
        found.append(average / (1 - smoothing ** (i + 1)))
        w -= rate * 2 * x.T @ error / 16
    return np.array(found)


def test_the_sweep_is_gradient_descent_with_rising_rates() -> None:
    """Rates, smoothed losses, and the rate of the steepest fall are those computed by hand."""
    found = find_learning_rate(
        model(), "mean_squared_error", BATCHES, optimizer="sgd", min=1e-4, max=0.3, num_training=30, smoothing=0.5
    )
    rates = np.geomspace(1e-4, 0.3, 30)
    losses = by_hand(rates, 0.5)
    np.testing.assert_allclose(found.learning_rates, rates, rtol=1e-6)
    np.testing.assert_allclose(found.losses, losses, rtol=1e-3)
    inner = losses[10:-1]
    assert found.suggestion == pytest.approx(rates[10:-1][np.argmin(np.gradient(inner))])


def test_the_suggestion_learns() -> None:
    """Training with it brings the loss of this small problem to almost nothing."""
    found = find_learning_rate(model(), "mean_squared_error", BATCHES, smoothing=0.9)
    assert found.suggestion is not None
    loop = ax.train.trainer(model(), "mean_squared_error", {"name": "adam", "learning_rate": found.suggestion})
    assert float(loop.run(BATCHES, epochs=60).metrics["loss"]) < 1e-2


def test_the_sweep_stops_when_the_loss_explodes() -> None:
    """At the first smoothed loss above the threshold, or before one that is not finite."""
    spec: dict[str, Any] = {"optimizer": "sgd", "min": 0.1, "max": 1e6, "num_training": 60, "smoothing": 0.0}
    found = find_learning_rate(model(), "mean_squared_error", BATCHES, **spec)
    beyond = found.losses > 4 * np.minimum.accumulate(found.losses)
    assert beyond.tolist() == [False] * (len(beyond) - 1) + [True]
    endless = find_learning_rate(model(), "mean_squared_error", BATCHES, early_stop_threshold=None, **spec)
    assert len(found.losses) < len(endless.losses) < 60
    assert np.isfinite(endless.losses).all()
    assert len(endless.learning_rates) == len(endless.losses)


def test_the_given_state_is_left_alone() -> None:
    """It is the start of the sweep, and can be used afterwards."""
    init_fn, _ = ax.build(model())
    state = init_fn(seed=3)
    before = jax.tree.map(np.array, state)
    first = find_learning_rate(model(), "mean_squared_error", BATCHES, state=state, num_training=12)
    jax.tree.map(np.testing.assert_array_equal, state, before)
    again = find_learning_rate(model(), "mean_squared_error", BATCHES, state=state, num_training=12)
    np.testing.assert_array_equal(first.losses, again.losses)


def test_too_few_steps_suggest_nothing() -> None:
    """What is left between the skipped ends must have a slope."""
    assert find_learning_rate(model(), "mean_squared_error", BATCHES, num_training=11).suggestion is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min": 0.0}, "expected 0 < min < max"),
        ({"min": 1.0, "max": 1.0}, "expected 0 < min < max"),
        ({"num_training": 1}, "num_training to be an integer of at least 2"),
        ({"smoothing": 1.0}, "smoothing to be a finite number"),
        ({"early_stop_threshold": 0.5}, "early_stop_threshold"),
        ({"skip_begin": -1}, "skip_begin"),
        ({"optimizer": {"name": "sgd", "learning_rate": {"name": "constant", "init_value": 1.0}}}, "got 0 of them"),
        ({"optimizer": {"name": "chain", "transforms": ["sgd", "sgd"]}}, "got 2 of them"),
    ],
)
def test_finder_explains_what_is_wrong(options: Any, message: str) -> None:
    """Values outside their domain, and optimizers without one learning rate."""
    with pytest.raises(OptionError, match=message):
        find_learning_rate(model(), "mean_squared_error", BATCHES, **options)


def test_finder_needs_data() -> None:
    """No batches is an error."""
    with pytest.raises(DataError, match="expected at least one batch"):
        find_learning_rate(model(), "mean_squared_error", [])
