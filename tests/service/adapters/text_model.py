"""A small text classifier with an open length and a mask, as a bundle."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

import engine as ax

LENGTHS = (4, 8, 16)
WORDS = 20
SERVING: dict[str, Any] = {
    "batch_buckets": [1, 4],
    "open_sizes": [{"axes": {"tokens": 1}, "sizes": list(LENGTHS), "pad_values": {"tokens": 0}, "mask": "mask"}],
}


def classifier() -> ax.Model:
    """An LSTM over embeddings that passes over positions whose mask is 0; the sequence of its answers too."""
    tokens = ax.input("tokens", shape=(None, None), dtype="s32")
    ignored = ax.subtract(ax.constant(np.float32(1)), ax.input("mask", shape=(None, None)))
    sequence, (_, hidden) = tokens.embedding(WORDS, 6).lstm(5, mask=ignored)
    return ax.container({"classes": hidden.dense(3, name="head"), "steps": sequence})


def write_bundle(path: Path, serving: dict[str, Any] | None = None) -> ax.ModelState:
    """Write the classifier with such a `serving.json`; returns its state."""
    state = _state()
    ax.bundle.write(path, classifier(), state, serving=serving)
    return state


@cache
def _state() -> ax.ModelState:
    return ax.build(classifier())[0](seed=1)


def tokens_of(rows: int, length: int, seed: int = 0) -> np.ndarray:
    """Random tokens, `[rows, length]`."""
    return np.random.default_rng((seed, rows, length)).integers(0, WORDS, (rows, length)).astype(np.int32)


def unpadded(state: ax.ModelState, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """What the model says of tokens of exactly this length, by its formulas in NumPy (float64)."""
    layers: Any = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), dict(state.parameters))
    cell_of, head = layers["lstm_0"], layers["head"]
    embedded = layers["embedding_0"]["kernel"][tokens]
    hidden = cell = np.zeros((len(tokens), 5))
    steps = []
    for x in np.moveaxis(embedded, 1, 0):
        i, f, g, o = (
            x @ cell_of["input_kernel"][f"wi{gate}"]
            + hidden @ cell_of["hidden_kernel"][f"wh{gate}"]
            + cell_of["bias"][f"b{gate}"]
            for gate in "ifgo"
        )
        cell = _sigmoid(f) * cell + _sigmoid(i) * np.tanh(g)
        hidden = _sigmoid(o) * np.tanh(cell)
        steps.append(hidden)
    return {"classes": hidden @ head["kernel"] + head["bias"], "steps": np.stack(steps, 1)}


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))
