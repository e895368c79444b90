"""What `train.py` trains: four works with their data, our model of each, and the same by hand in plain JAX.

The hand-written functions are pure: `logits(parameters, x, key)`, with the parameters of our model and a random key
where there is dropout (None: no dropout). They are what one writes for this very case, out of JAX alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import engine as ax
from examples.shakespeare import HEADS, LAYERS, WINDOW, gpt

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
HELD_OUT = 0.1
DROPOUT = 0.1
CLASSES, UNITS, EMBEDDING, LONGEST = 8, 128, 64, 80
Params = Any
Logits = Callable[[Params, jax.Array, jax.Array | None], jax.Array]


@dataclass(frozen=True)
class TrainWork:
    """One model and its data. `vocabulary` counts the tokens of a work on text."""

    name: str
    source: str
    batch: int
    x: np.ndarray
    y: np.ndarray
    model: ax.Model
    logits: Logits
    vocabulary: int = 0
    random: bool = False


# Data


def load_images() -> tuple[np.ndarray, np.ndarray, str]:
    """28 x 28 images in [0, 1] with their labels: MNIST where it lies, else scikit-learn's digits, enlarged."""
    path = DATA / "mnist.npz"
    if path.exists():
        with np.load(path) as file:
            return (file["x_train"] / 255).astype(np.float32), file["y_train"].astype(np.int32), "mnist"
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.repeat(np.repeat(digits.images / 16, 4, axis=1), 4, axis=2)[:, 2:-2, 2:-2]
    repeated = np.tile(images, (8, 1, 1)).astype(np.float32)
    return repeated, np.tile(digits.target, 8).astype(np.int32), "digits"


def load_text() -> tuple[np.ndarray, int, str]:
    """Characters as integers from 1, their number: Shakespeare's plays where they lie, else JAX's own source."""
    path = DATA / "tinyshakespeare" / "input.txt"
    files = [path] if path.exists() else sorted(Path(jax.__file__).parent.glob("_src/*.py"))
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    found = {character: i + 1 for i, character in enumerate(sorted(set(text)))}
    tokens = np.array([found[character] for character in text], np.int32)
    return tokens, len(found) + 1, "shakespeare" if path.exists() else "source code"


def load_sentences() -> tuple[np.ndarray, np.ndarray, int, str]:
    """Pieces of the text, 40 to 80 characters and zeros up to 80; the label is the eighth of the text they are from."""
    tokens, vocabulary, source = load_text()
    drawn = np.random.default_rng(0)
    starts = drawn.integers(0, len(tokens) - LONGEST, 30_000)
    lengths = drawn.integers(LONGEST // 2, LONGEST + 1, len(starts))
    pieces = np.lib.stride_tricks.sliding_window_view(tokens, LONGEST)[starts]
    padded = np.where(np.arange(LONGEST) < lengths[:, None], pieces, 0)
    return padded.astype(np.int32), (starts * CLASSES // len(tokens)).astype(np.int32), vocabulary, source


# Our models, and the same by hand


def affine(p: Params, x: jax.Array) -> jax.Array:
    """`x W + b`."""
    return x @ p["kernel"] + p["bias"]


def mlp_logits(p: Params, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """`mlp` by hand, up to its softmax."""
    return affine(p["dense_1"], jax.nn.relu(affine(p["dense_0"], x)))


def mlp() -> TrainWork:
    """784-128-10."""
    images, labels, source = load_images()
    model = ax.input("x", shape=(None, 784)).dense(128, activation="relu").dense(10, activation="softmax")
    return TrainWork("mlp", source, 128, images.reshape(len(images), 784), labels, model, mlp_logits)


def cnn_logits(p: Params, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """`cnn` by hand, up to its softmax."""
    for layer in ("conv_0", "conv_1"):
        x = lax.conv_general_dilated(x, p[layer]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jax.nn.relu(x + p[layer]["bias"])
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return affine(p["dense_1"], jax.nn.relu(affine(p["dense_0"], x.reshape(len(x), -1))))


def cnn() -> TrainWork:
    """Convolutions of 32 and 64 filters, each pooled, and 128-10."""
    images, labels, source = load_images()
    x = ax.input("x", shape=(None, 28, 28, 1))
    for filters in (32, 64):
        x = x.conv(filters, kernel_size=3, padding="same", activation="relu").max_pool(kernel_size=2)
    model = x.flatten().dense(128, activation="relu").dense(10, activation="softmax")
    return TrainWork("cnn", source, 64, images[..., None], labels, model, cnn_logits)


def lstm_logits(p: Params, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """`lstm` by hand: the input's product for all steps at once, then a scan that stands still on padding."""
    own = p["lstm"]
    joined = {
        part: jnp.concatenate([own[part][f"{prefix}{gate}"] for gate in "ifgo"], -1)
        for part, prefix in (("input_kernel", "wi"), ("hidden_kernel", "wh"), ("bias", "b"))
    }
    gates = p["embedding"]["kernel"][x.T] @ joined["input_kernel"] + joined["bias"]

    def step(carry: Any, at: Any) -> tuple[Any, None]:
        (c, h), (gates, real) = carry, at
        i, f, g, o = jnp.split(gates + h @ joined["hidden_kernel"], 4, -1)
        cell = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
        return (jnp.where(real, cell, c), jnp.where(real, hidden, h)), None

    zeros = jnp.zeros((len(x), UNITS))
    (_, hidden), _ = lax.scan(step, (zeros, zeros), (gates, (x.T != 0)[..., None]))
    return affine(p["dense_0"], hidden)


def lstm() -> TrainWork:
    """Characters to 64 features, an LSTM of 128 units behind a mask, its last hidden state to 8 classes."""
    x, y, vocabulary, source = load_sentences()
    text = ax.input("x", shape=(None, LONGEST), dtype="s32")
    embedded = text.embedding(vocabulary, EMBEDDING, name="embedding")
    _, (_, hidden) = embedded.lstm(UNITS, mask=text.mask(0), name="lstm")
    model = hidden.dense(CLASSES, activation="softmax")
    return TrainWork("lstm", source, 64, x, y, model, lstm_logits, vocabulary)


def normalize(p: Params, x: jax.Array) -> jax.Array:
    """Layer normalization."""
    mean = x.mean(-1, keepdims=True)
    var = jnp.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) * lax.rsqrt(var + 1e-5) * p["gamma"] + p["beta"]


def rotate(x: jax.Array) -> jax.Array:
    """Rotary positions of `[batch, time, heads, size]`."""
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[1])[:, None, None] * 10_000.0 ** (-np.arange(half) / half)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def attend(p: Params, x: jax.Array) -> jax.Array:
    """Causal self-attention of several heads."""
    batch, time, width = x.shape
    q, k, v = (affine(p[role], x).reshape(batch, time, HEADS, -1) for role in ("query", "key", "value"))
    logits = jnp.einsum("bthd,bshd->bhts", rotate(q), rotate(k)) * (width // HEADS) ** -0.5
    weights = jax.nn.softmax(jnp.where(np.tri(time, dtype=bool), logits, -jnp.inf), -1)
    return affine(p["output"], jnp.einsum("bhts,bshd->bthd", weights, v).reshape(x.shape))


def gpt_logits(p: Params, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """`gpt` by hand."""

    def drop(x: jax.Array, number: int) -> jax.Array:
        if key is None:
            return x
        kept = jax.random.bernoulli(jax.random.fold_in(key, number), 1 - DROPOUT, x.shape)
        return jnp.where(kept, x / (1 - DROPOUT), 0)

    x = p["embedding"]["kernel"][x]
    for i in range(LAYERS):
        x = x + drop(attend(p[f"attention_{i}"], normalize(p[f"attention_norm_{i}"], x)), 2 * i)
        hidden = jax.nn.gelu(affine(p[f"up_{i}"], normalize(p[f"mlp_norm_{i}"], x)), approximate=False)
        x = x + drop(affine(p[f"down_{i}"], hidden), 2 * i + 1)
    return affine(p["logits"], normalize(p["last_norm"], x))


def shakespeare() -> TrainWork:
    """Four blocks of width 128, windows of 64 characters, dropout 0.1 (see `examples/shakespeare.py`)."""
    tokens, vocabulary, source = load_text()
    view = np.lib.stride_tricks.sliding_window_view(tokens, WINDOW + 1)[:: WINDOW // 2]
    x, y = np.ascontiguousarray(view[:, :-1]), np.ascontiguousarray(view[:, 1:])
    model = gpt(vocabulary, dropout=DROPOUT)
    return TrainWork("gpt", source, 32, x, y, model, gpt_logits, vocabulary, random=True)


WORKS: dict[str, Callable[[], TrainWork]] = {
    name: functools.cache(make) for name, make in (("mlp", mlp), ("cnn", cnn), ("lstm", lstm), ("gpt", shakespeare))
}
