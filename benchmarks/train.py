"""Training throughput: `Loop.run` beside a hand-written `jax.jit` + Optax loop.

Same model, data, batches and optimizer, in one process, alternately, in several rounds. The
loop measures the metric `accuracy` besides the loss; the hand-written one computes the loss alone and fetches nothing.

    python benchmarks/train.py [--work mlp] [--rounds 15] [--seconds 0.5] [--json FILE]
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import engine as ax  # noqa: E402
from benchmarks.report import Report  # noqa: E402
from engine import functional as F  # noqa: E402
from engine.train import ArrayData, trainer  # noqa: E402

BATCH = 128
LOSS = {"name": "categorical_cross_entropy", "sparse": True}
TARGET = 0.95
Params = dict[str, dict[str, jax.Array]]


def load_images() -> tuple[np.ndarray, np.ndarray, str]:
    """28 x 28 images in [0, 1] with their labels: MNIST where it lies, else scikit-learn's digits, enlarged."""
    path = ROOT.parent / "shared" / "data" / "mnist.npz"
    if path.exists():
        with np.load(path) as file:
            return (file["x_train"] / 255).astype(np.float32), file["y_train"].astype(np.int32), "mnist"
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.repeat(np.repeat(digits.images / 16, 4, axis=1), 4, axis=2)[:, 2:-2, 2:-2]
    repeated = np.tile(images, (8, 1, 1)).astype(np.float32)
    return repeated, np.tile(digits.target, 8).astype(np.int32), "digits"


def mlp() -> ax.Model:
    """784-128-10."""
    return ax.input("x", shape=(None, 784)).dense(128, activation="relu").dense(10, activation="softmax")


def mlp_logits(params: Params, x: jax.Array) -> jax.Array:
    """`mlp` by hand, up to its softmax."""
    h = jax.nn.relu(x @ params["dense_0"]["kernel"] + params["dense_0"]["bias"])
    return h @ params["dense_1"]["kernel"] + params["dense_1"]["bias"]


def cnn() -> ax.Model:
    """Two convolutions of 8 and 16 filters, each pooled, and a classifier."""
    x = ax.input("x", shape=(None, 28, 28, 1)).conv(8, kernel_size=3, padding="same", activation="relu")
    x = x.max_pool(kernel_size=2).conv(16, kernel_size=3, padding="same", activation="relu")
    return x.max_pool(kernel_size=2).flatten().dense(10, activation="softmax")


def cnn_logits(params: Params, x: jax.Array) -> jax.Array:
    """`cnn` by hand out of the same functions, up to its softmax."""
    for layer in ("conv_0", "conv_1"):
        x = jax.nn.relu(F.conv(x, **params[layer], padding="same"))
        x = F.max_pool(x, kernel_size=2)
    x = x.reshape(len(x), -1)
    return x @ params["dense_0"]["kernel"] + params["dense_0"]["bias"]


WORKS: dict[str, tuple[Callable[[], ax.Model], Callable[[Params, jax.Array], jax.Array], tuple[int, ...]]] = {
    "mlp": (mlp, mlp_logits, (784,)),
    "cnn": (cnn, cnn_logits, (28, 28, 1)),
}


def hand_written(
    logits: Callable[[Params, jax.Array], jax.Array], params: Params, x: np.ndarray, y: np.ndarray
) -> Callable[[int], float]:
    """`train(batches)`: the loop that one writes by hand; returns the last loss."""
    optimizer = optax.adam(1e-3)

    def loss_of(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Params, state: Any, x: jax.Array, y: jax.Array) -> tuple[Params, Any, jax.Array]:
        loss, gradients = jax.value_and_grad(loss_of)(params, x, y)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    def train(batches: int) -> float:
        weights, state = jax.tree.map(jnp.array, params), optimizer.init(params)
        order = np.random.default_rng(0).permutation(len(x))
        for i in range(batches):
            rows = order[i * BATCH : (i + 1) * BATCH]
            weights, state, loss = step(weights, state, x.take(rows, axis=0), y.take(rows, axis=0))
        return float(loss)

    return train


def engine_loop(model: ax.Model, state: ax.ModelState, x: np.ndarray, y: np.ndarray) -> Callable[[int], float]:
    """`train(batches)` by `Loop.run`, with a metric."""
    data = ArrayData({"x": x}, y, batch_size=BATCH, drop_remainder=True)
    loop = trainer(model, LOSS, "adam").metric("accuracy", sparse=True)
    return lambda batches: float(loop.run(data, state, iterations=batches).metrics["loss"])


def samples_per_s(train: Callable[[int], float], batches: int) -> float:
    """The rate of one call, which waits for its last loss."""
    start = time.perf_counter()
    train(batches)
    return batches * BATCH / (time.perf_counter() - start)


def measure(work: str, report: Report, *, rounds: int, seconds: float) -> float:
    """Rounds of both sides, each first in every other round; returns the median of the rounds' ratios."""
    make, logits, shape = WORKS[work]
    images, labels, source = load_images()
    x = images.reshape(len(images), *shape)
    model = make()
    state = ax.build(model)[0](x[:1])
    sides = {
        "jax.jit + Optax": hand_written(logits, state.parameters, x, labels),
        "Loop.run": engine_loop(model, state, x, labels),
    }
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for train in sides.values():
        train(20)
    batches = max(20, min(len(x) // BATCH, int(seconds * samples_per_s(sides["jax.jit + Optax"], 50) / BATCH)))
    for i in range(rounds):
        for side, train in list(sides.items())[:: 1 if i % 2 else -1]:
            rates[side].append(samples_per_s(train, batches))
    label = f"{work}, {source}, batch {BATCH}, {batches} batches"
    for side, found in rates.items():
        report.add(label, side, "samples_per_s", statistics.median(found))
    # Ratios round by round: both sides of a round meet the same load of the machine.
    ratio = statistics.median(a / b for a, b in zip(rates["Loop.run"], rates["jax.jit + Optax"], strict=True))
    report.add(label, "Loop.run / jax.jit + Optax", "ratio", ratio)
    return ratio


def main() -> int:
    """Measure, print, and fail when a ratio misses the target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=sorted(WORKS), action="append")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.5, help="about how long one round of one side takes")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    report = Report(f"Training throughput on {jax.devices()[0].device_kind}")
    ratios = {
        work: measure(work, report, rounds=options.rounds, seconds=options.seconds)
        for work in options.work or sorted(WORKS)
    }
    report.finish(options.json)
    missed = {work: ratio for work, ratio in ratios.items() if ratio < TARGET}
    for work, ratio in missed.items():
        print(f"{work}: expected a ratio of {TARGET} or more, got {ratio:.3f}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
