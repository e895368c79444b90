"""A convolutional network on handwritten digits: training with a schedule and validation, its curve, a bundle.

    python examples/mnist.py [--data mnist.npz] [--epochs 12] [--out FOLDER]

With MNIST (an `.npz` with x_train, y_train, x_test, y_test) the CNN reaches more than 99.2 % of the test images;
without it scikit-learn's small digits, enlarged, take its place. Needs the extra `demo`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import engine as ax  # noqa: E402
from engine.train import ArrayData, evaluator, trainer  # noqa: E402

MNIST = ROOT.parent / "shared" / "data" / "mnist.npz"
LOSS = {"name": "categorical_cross_entropy", "sparse": True}
Digits = tuple[np.ndarray, np.ndarray]


def load(path: Path) -> tuple[Digits, Digits, str]:
    """`(images [n, 28, 28, 1] in [0, 1], labels)` for training and for testing, and what they are."""
    if path.exists():
        with np.load(path, allow_pickle=False) as file:
            parts = [(_pixels(file[f"x_{part}"]), file[f"y_{part}"].astype(np.int32)) for part in ("train", "test")]
        return parts[0], parts[1], "MNIST"
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.repeat(np.repeat(digits.images * 255 / 16, 4, axis=1), 4, axis=2)[:, 2:-2, 2:-2]
    images, labels = _pixels(images), digits.target.astype(np.int32)
    return (images[:-360], labels[:-360]), (images[-360:], labels[-360:]), "scikit-learn's digits"


def _pixels(images: np.ndarray) -> np.ndarray:
    return (images / 255).astype(np.float32)[..., None]


def cnn() -> ax.Model:
    """Two convolutions of 32 and 64 filters, each pooled, and two dense layers with dropout."""
    x = ax.input("image", shape=(None, 28, 28, 1)).conv(32, kernel_size=3, padding="same", activation="relu")
    x = x.max_pool(kernel_size=2).conv(64, kernel_size=3, padding="same", activation="relu").max_pool(kernel_size=2)
    x = x.flatten().dropout(rate=0.25).dense(128, activation="relu").dropout(rate=0.5)
    return x.dense(10, activation="softmax")


def main() -> int:
    """Train, test, save; 0 when the accuracy is as promised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=MNIST)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("mnist-out"), help="folder of the curve and the bundle")
    options = parser.parse_args()
    (x, y), (x_test, y_test), source = load(options.data)
    print(f"{source}: {len(x)} images to train on, {len(x_test)} to test")
    training = ArrayData({"image": x}, y, batch_size=128, drop_remainder=True)
    testing = ArrayData({"image": x_test}, y_test, batch_size=500, shuffle=False, pad_remainder=True)
    steps = options.epochs * len(training)
    schedule = {"name": "cosine_decay", "init_value": 1e-3, "decay_steps": steps}
    loop = (
        trainer(cnn(), LOSS, {"name": "adam", "learning_rate": schedule})
        .metric("accuracy", sparse=True)
        .validate(testing)
        .plot(options.out / "curve.png")
        .progress()
    )
    start = time.perf_counter()
    final = loop.run(training, epochs=options.epochs)
    seconds = time.perf_counter() - start
    tested = evaluator(cnn()).metric("accuracy", sparse=True).run(testing, final.model_state).values()
    ax.bundle.write(options.out / "mnist.axon", cnn(), final.model_state, lineage={"data": source})
    print(f"test accuracy {tested['accuracy']:.4f} after {options.epochs} epochs, {seconds:.0f} s")
    print(f"{options.out / 'curve.png'} and {options.out / 'mnist.axon'} written")
    return 0 if tested["accuracy"] >= (0.992 if source == "MNIST" else 0.95) else 1


if __name__ == "__main__":
    sys.exit(main())
