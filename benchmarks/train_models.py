"""The works of `train.py` in the other frameworks, as their users write them. Each import is that of one framework."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.train_works import CLASSES, DROPOUT, EMBEDDING, UNITS, TrainWork
from examples.shakespeare import HEADS, LAYERS, WIDTH, WINDOW


def angles() -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of the rotary positions, `[time, 1, size / 2]`."""
    half = WIDTH // HEADS // 2
    found = np.arange(WINDOW)[:, None, None] * 10_000.0 ** (-np.arange(half) / half)
    return np.cos(found).astype(np.float32), np.sin(found).astype(np.float32)


def nnx_models() -> dict[str, Callable[[TrainWork], Any]]:
    """Flax NNX."""
    import jax.numpy as jnp
    from flax import nnx

    rngs = nnx.Rngs(0)
    cos, sin = angles()

    def rotate(x: Any) -> Any:
        a, b = jnp.split(x, 2, -1)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def attend(query: Any, key: Any, value: Any, **options: Any) -> Any:
        options = {name: options[name] for name in ("mask",) if name in options}
        return nnx.dot_product_attention(rotate(query), rotate(key), value, **options)

    class Classifier(nnx.Module):
        def __init__(self, vocabulary: int) -> None:
            self.embed = nnx.Embed(vocabulary, EMBEDDING, rngs=rngs)
            self.lstm = nnx.RNN(nnx.OptimizedLSTMCell(EMBEDDING, UNITS, rngs=rngs), return_carry=True, rngs=rngs)
            self.dense = nnx.Linear(UNITS, CLASSES, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            (_, hidden), _ = self.lstm(self.embed(x), seq_lengths=(x != 0).sum(1))
            return self.dense(hidden)

    class Block(nnx.Module):
        def __init__(self) -> None:
            self.norms = nnx.List([nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs) for _ in range(2)])
            self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, attention_fn=attend, rngs=rngs)
            self.up, self.down = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs), nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)
            self.drop = nnx.Dropout(DROPOUT, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            mask = np.tri(WINDOW, dtype=bool)[None, None]
            x = x + self.drop(self.attention(self.norms[0](x), mask=mask))
            return x + self.drop(self.down(nnx.gelu(self.up(self.norms[1](x)), approximate=False)))

    def gpt(work: TrainWork) -> Any:
        return nnx.Sequential(
            nnx.Embed(work.vocabulary, WIDTH, rngs=rngs),
            *(Block() for _ in range(LAYERS)),
            nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs),
            nnx.Linear(WIDTH, work.vocabulary, rngs=rngs),
        )

    def pooled(channels: int, filters: int) -> tuple[Any, ...]:
        def pool(x: Any) -> Any:
            return nnx.max_pool(x, (2, 2), (2, 2))

        return nnx.Conv(channels, filters, (3, 3), rngs=rngs), nnx.relu, pool

    def dense(first: int) -> tuple[Any, ...]:
        return nnx.Linear(first, 128, rngs=rngs), nnx.relu, nnx.Linear(128, 10, rngs=rngs)

    def flatten(x: Any) -> Any:
        return x.reshape(len(x), -1)

    return {
        "mlp": lambda work: nnx.Sequential(*dense(784)),
        "cnn": lambda work: nnx.Sequential(*pooled(1, 32), *pooled(32, 64), flatten, *dense(3136)),
        "lstm": lambda work: Classifier(work.vocabulary),
        "gpt": gpt,
    }


def keras_models() -> dict[str, Callable[[TrainWork], Any]]:
    """Keras 3, over JAX."""
    import keras
    from keras import layers

    cos, sin = angles()

    @keras.saving.register_keras_serializable()
    class Attention(layers.Layer):  # type: ignore[misc]
        """Keras's own has no rotary positions."""

        def __init__(self) -> None:
            super().__init__()
            self.roles = [layers.Dense(WIDTH) for _ in range(4)]

        def call(self, x: Any) -> Any:
            split = (*keras.ops.shape(x)[:2], HEADS, WIDTH // HEADS)
            q, k, v = (keras.ops.reshape(role(x), split) for role in self.roles[:3])
            attended = keras.ops.dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True)
            return self.roles[3](keras.ops.reshape(attended, keras.ops.shape(x)))

        def rotate(self, x: Any) -> Any:
            a, b = keras.ops.split(x, 2, -1)
            return keras.ops.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def gpt(work: TrainWork) -> Any:
        tokens = keras.Input((WINDOW,), dtype="int32")
        x = layers.Embedding(work.vocabulary, WIDTH)(tokens)
        for _ in range(LAYERS):
            x = x + layers.Dropout(DROPOUT)(Attention()(layers.LayerNormalization(epsilon=1e-5)(x)))
            hidden = layers.Dense(4 * WIDTH, activation="gelu")(layers.LayerNormalization(epsilon=1e-5)(x))
            x = x + layers.Dropout(DROPOUT)(layers.Dense(WIDTH)(hidden))
        x = layers.Dense(work.vocabulary)(layers.LayerNormalization(epsilon=1e-5)(x))
        return keras.Model(tokens, x)

    def pooled(filters: int) -> list[Any]:
        return [layers.Conv2D(filters, 3, padding="same", activation="relu"), layers.MaxPooling2D(2)]

    def lstm(work: TrainWork) -> Any:
        parts = [
            layers.Embedding(work.vocabulary, EMBEDDING, mask_zero=True),
            layers.LSTM(UNITS),
            layers.Dense(CLASSES),
        ]
        return keras.Sequential([keras.Input(work.x.shape[1:], dtype="int32"), *parts])

    dense = [layers.Dense(128, activation="relu"), layers.Dense(10)]
    return {
        "mlp": lambda work: keras.Sequential([keras.Input((784,)), *dense]),
        "cnn": lambda work: keras.Sequential(
            [keras.Input((28, 28, 1)), *pooled(32), *pooled(64), layers.Flatten(), *dense]
        ),
        "lstm": lstm,
        "gpt": gpt,
    }


def torch_models() -> dict[str, Callable[[TrainWork], Any]]:
    """PyTorch, eager. Images come channels first."""
    import torch
    from torch import nn
    from torch.nn import functional

    cos, sin = (torch.from_numpy(part[None]) for part in angles())

    def rotate(x: Any) -> Any:
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    class Classifier(nn.Module):  # type: ignore[misc]
        def __init__(self, vocabulary: int) -> None:
            super().__init__()
            self.embed = nn.Embedding(vocabulary, EMBEDDING)
            self.lstm = nn.LSTM(EMBEDDING, UNITS, batch_first=True)
            self.dense = nn.Linear(UNITS, CLASSES)

        def forward(self, x: Any) -> Any:
            outputs, _ = self.lstm(self.embed(x))
            last = (x != 0).sum(1) - 1
            return self.dense(outputs[torch.arange(len(x)), last])

    class Block(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(2)])
            self.roles, self.output = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
            self.drop = nn.Dropout(DROPOUT)

        def forward(self, x: Any) -> Any:
            split = (*x.shape[:2], HEADS, WIDTH // HEADS)
            q, k, v = (part.reshape(split) for part in self.roles(self.norms[0](x)).chunk(3, -1))
            q, k, v = (part.transpose(1, 2) for part in (rotate(q), rotate(k), v))
            attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.drop(self.output(attended.transpose(1, 2).reshape(x.shape)))
            return x + self.drop(self.down(functional.gelu(self.up(self.norms[1](x)))))

    def gpt(work: TrainWork) -> Any:
        blocks = (Block() for _ in range(LAYERS))
        ends = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, work.vocabulary)
        return nn.Sequential(nn.Embedding(work.vocabulary, WIDTH), *blocks, *ends)

    def pooled(channels: int, filters: int) -> tuple[Any, ...]:
        return nn.Conv2d(channels, filters, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)

    def dense(first: int) -> tuple[Any, ...]:
        return nn.Linear(first, 128), nn.ReLU(), nn.Linear(128, 10)

    return {
        "mlp": lambda work: nn.Sequential(*dense(784)),
        "cnn": lambda work: nn.Sequential(*pooled(1, 32), *pooled(32, 64), nn.Flatten(), *dense(3136)),
        "lstm": lambda work: Classifier(work.vocabulary),
        "gpt": gpt,
    }
