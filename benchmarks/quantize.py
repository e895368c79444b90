"""8-bit models: size of the bundle, accuracy and speed of a 784-2048-2048-10 network in float32 and in int8.

Trains on MNIST where it lies, else on scikit-learn's digits, enlarged; then writes three bundles and reads them back:
float32, int8 weights, int8 weights and inputs (ranges from 1,024 training rows).

    python benchmarks/quantize.py [--epochs 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import engine as ax  # noqa: E402
from benchmarks.report import Report  # noqa: E402

BATCH = 256
LARGEST_RATIO, LARGEST_DROP = 0.27, 0.002
Split = tuple[np.ndarray, np.ndarray]


def load() -> tuple[Split, Split, str]:
    """Training and test rows in [0, 1] with their labels, and where they are from."""
    path = ROOT.parent / "shared" / "data" / "mnist.npz"
    if path.exists():
        with np.load(path) as file:
            x = {part: (file[f"x_{part}"] / 255).astype(np.float32).reshape(-1, 784) for part in ("train", "test")}
            y = {part: file[f"y_{part}"].astype(np.int32) for part in ("train", "test")}
        return (x["train"], y["train"]), (x["test"], y["test"]), "mnist"
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.repeat(np.repeat(digits.images / 16, 4, axis=1), 4, axis=2)[:, 2:-2, 2:-2]
    rows, labels = images.reshape(-1, 784).astype(np.float32), digits.target.astype(np.int32)
    train = (np.tile(rows[:1400], (20, 1)), np.tile(labels[:1400], 20))
    return train, (rows[1400:], labels[1400:]), "digits"


def batches(rows: np.ndarray) -> list[np.ndarray]:
    """Whole batches, so that one program serves all; the last one filled up with zeros."""
    missing = -len(rows) % BATCH
    full = np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), rows.dtype)])
    return np.split(full, len(full) // BATCH)


def accuracy(predict: Callable[..., Any], state: ax.ModelState, test: Split) -> float:
    """Share of the test rows whose most likely class is the right one."""
    answers = np.concatenate([np.argmax(predict(state, batch), -1) for batch in batches(test[0])])
    return float((answers[: len(test[1])] == test[1]).mean())


def rows_per_s(predict: Callable[..., Any], state: ax.ModelState, rows: np.ndarray) -> float:
    """Rows answered per second, the best of five quarter seconds."""
    jax.block_until_ready(predict(state, rows))
    best = 0.0
    for _ in range(5):
        count, started = 0, time.perf_counter()
        while time.perf_counter() - started < 0.25:
            jax.block_until_ready(predict(state, rows))
            count += len(rows)
        best = max(best, count / (time.perf_counter() - started))
    return best


def train(data: Split, epochs: int) -> tuple[ax.Model, ax.ModelState]:
    """The network, trained with Adam."""
    model = ax.input("x", shape=(None, 784)).dense(2048, activation="relu").dense(2048, activation="relu")
    model = model.dense(10, activation="softmax")
    loss = {"name": "categorical_cross_entropy", "sparse": True}
    source = ax.train.ArrayData(*data, batch_size=BATCH, shuffle=True, seed=0)
    loop = ax.train.trainer(model, loss, {"name": "adam", "learning_rate": 5e-4})
    return model, loop.run(source, epochs=epochs).step_state.model_state


def main() -> int:
    """Train, quantize, measure; ends with 1 when a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--json")
    options = parser.parse_args()
    training, test, source = load()
    started = time.perf_counter()
    model, state = train(training, options.epochs)
    print(f"{source}: {len(training[0])} rows, {options.epochs} epochs in {time.perf_counter() - started:.0f} s")
    calibration = ax.calibrate(model, state, batches(training[0][:1024]))
    kinds = {
        "f32": (model, state),
        "int8 weights": ax.quantize(model, state),
        "int8 static": ax.quantize(model, state, calibration=calibration),
    }
    report = Report(f"784-2048-2048-10 on {source}")
    figures: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, pair in kinds.items():
            path = Path(folder) / "m.axon"
            ax.bundle.write(path, *pair)
            bundle = ax.bundle.read(path)
            predict, kept = jax.jit(ax.build(bundle.model)[1]), jax.device_put(bundle.state)
            figures[kind] = path.stat().st_size, accuracy(predict, kept, test)
            report.add("mlp", kind, "bundle_bytes", figures[kind][0])
            report.add("mlp", kind, "bundle_share_of_f32", figures[kind][0] / figures["f32"][0])
            report.add("mlp", kind, "test_accuracy", figures[kind][1])
            for rows in (1, 32, 256):
                report.add("mlp", kind, f"rows_per_s_in_batches_of_{rows}", rows_per_s(predict, kept, test[0][:rows]))
    report.finish(options.json)
    size, right = figures["f32"]
    small = [figures[kind] for kind in figures if kind != "f32"]
    fits = all(other <= LARGEST_RATIO * size and right - found < LARGEST_DROP for other, found in small)
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main())
