"""The other side of `custom_layer.py`: a bundle with a layer and a loss whose Python functions are nowhere to be found.

Prints what it measures as JSON: how far its predictions are from those where the layer was written, and the loss
before and after training on. Run: `python examples/custom_layer_elsewhere.py BUNDLE.axon DIGITS.npz`.
"""

from __future__ import annotations

import json
import sys

import numpy as np

import engine as ax

HELD_OUT = 360
EPOCHS = 8


def main(path: str, data: str) -> None:
    """Read, predict, compare, fine-tune."""
    bundle = ax.bundle.read(path)
    arrays = np.load(data)
    x, y = arrays["x"], arrays["y"]
    _, predict = ax.build(bundle.model)
    before = np.asarray(predict(bundle.state, x[:HELD_OUT]))
    loss = bundle.functions["focal_loss"]
    count = (len(x) - HELD_OUT) // 64
    batches = [(x[HELD_OUT:][i * 64 : (i + 1) * 64], y[HELD_OUT:][i * 64 : (i + 1) * 64]) for i in range(count)]
    result = ax.train.trainer(bundle.model, loss, "adam").run(batches, epochs=EPOCHS, state=bundle.state)
    after = np.asarray(predict(result.model_state, x[:HELD_OUT]))
    thresholds = [state.parameters["soft_threshold_0"]["threshold"] for state in (bundle.state, result.model_state)]
    figures = {
        "ops": [node.op.name for node in bundle.model.nodes()],
        "difference": float(np.abs(before - arrays["prediction"]).max()),
        "loss_before": float(result.history[0]["loss"]),
        "loss_after": float(result.history[-1]["loss"]),
        "threshold_moved": float(np.abs(np.asarray(thresholds[1]) - np.asarray(thresholds[0])).max()),
        "accuracy_before": float(np.mean(before.argmax(-1) == y[:HELD_OUT])),
        "accuracy_after": float(np.mean(after.argmax(-1) == y[:HELD_OUT])),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
