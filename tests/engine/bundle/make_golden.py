"""Writes the golden bundle of the current format version; run once per version, never to make a test pass."""

from __future__ import annotations

import engine as ax
from tests.engine.bundle.test_bundle import GOLDEN, golden_model

if __name__ == "__main__":
    model = golden_model()
    state = ax.build(model)[0](seed=1).freeze(lambda path: path == "conv_0.bias")
    bias = {"conv_0": {"bias": state.parameters["conv_0"]["bias"] + 0.5}}
    ax.bundle.write(GOLDEN, model, state.update(parameters=bias), lineage={"source": "golden file of format 1"})
