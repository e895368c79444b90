"""A layer and a loss in Python that travel: trained here, served and trained on where their functions do not exist.

The 1,797 handwritten digits that come with scikit-learn go through a layer of our own with a parameter and an option.
A second process, `custom_layer_elsewhere.py`, reads nothing but the bundle. Run: `python examples/custom_layer.py`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

import engine as ax

HELD_OUT = 360
EPOCHS = 12
ELSEWHERE = Path(__file__).with_name("custom_layer_elsewhere.py")


def soft_threshold(x: jax.Array, *, threshold: jax.Array, sharpness: float) -> jax.Array:
    """Lets large values pass and fades small ones out, `x * sigmoid(sharpness * (|x| - threshold))`."""
    return x * jax.nn.sigmoid(sharpness * (jnp.abs(x) - threshold))


def focal_loss(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    """Cross entropy that counts doubtful answers most (Lin et al. 2017, arXiv:1708.02002, with exponent 2)."""
    chosen = jnp.take_along_axis(y_pred, y_true[:, None], axis=1)[:, 0]
    return -jnp.mean((1 - chosen) ** 2 * jnp.log(chosen + 1e-7))


def build() -> ax.Model:
    """Digits to probabilities, through our own layer."""
    hidden = ax.input("image", shape=(None, 64)).dense(64)
    threshold = ax.param("threshold", lambda x: (x[-1],), initializer={"name": "full", "value": 0.5})
    gated = ax.layer(soft_threshold, hidden, params=[threshold], row_wise=True, op_name="soft_threshold", sharpness=4.0)
    return gated.dense(10, activation="softmax")


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images as floats in [0, 1], and labels."""
    data = load_digits()
    return (data.data / 16).astype(np.float32), data.target.astype(np.int32)


def batches(x: np.ndarray, y: np.ndarray, size: int = 64) -> list[tuple[np.ndarray, np.ndarray]]:
    """Whole batches in a fixed random order."""
    order = np.random.default_rng(0).permutation(len(x))
    return [(x[part], y[part]) for part in np.split(order[: len(x) // size * size], len(x) // size)]


def main(folder: Path) -> dict[str, Any]:
    """Train, write, and let another process read, predict and train on; returns what both measured."""
    x, y = digits()
    model = build()
    trained = ax.train.trainer(model, focal_loss, "adam").run(batches(x[HELD_OUT:], y[HELD_OUT:]), epochs=EPOCHS)
    state = trained.model_state
    prediction = np.asarray(ax.build(model)[1](state, x[:HELD_OUT]))
    loss = ax.bundle.Function("focal_loss", focal_loss, targets=ax.bundle.Template((None,), "s32"))
    bundle = folder / "digits.axon"
    ax.bundle.write(bundle, model, state, functions=[loss])
    np.savez(folder / "digits.npz", x=x, y=y, prediction=prediction)
    command = [sys.executable, str(ELSEWHERE), str(bundle), str(folder / "digits.npz")]
    elsewhere = subprocess.run(command, check=True, capture_output=True, text=True)
    return {
        "accuracy": float(np.mean(prediction.argmax(-1) == y[:HELD_OUT])),
        "bundle_bytes": bundle.stat().st_size,
        **json.loads(elsewhere.stdout),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        figures = main(Path(temporary))
    if arguments.json:
        print(json.dumps(figures))
    else:
        print(f"here:      accuracy on {HELD_OUT} held-out digits {figures['accuracy']:.4f}")
        print(f"bundle:    {figures['bundle_bytes']:,} bytes, layers {', '.join(figures['ops'])}")
        print(f"elsewhere: largest difference of a prediction {figures['difference']:.2g}")
        print(f"           loss while training on {figures['loss_before']:.4f} -> {figures['loss_after']:.4f}")
        print(f"           accuracy {figures['accuracy_before']:.4f} -> {figures['accuracy_after']:.4f}")
