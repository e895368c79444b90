"""The sides of `train.py`: `make(work) -> train`, and `train(batches)` trains so many batches, then validates.

Every side runs the same job: Adam at 0.001 over shuffled batches of rows in memory, mean cross entropy, and then the
mean loss of a tenth as many batches that were held out, which it returns. `Loop.run` measures the accuracy besides, in
training and in validation, and shows its progress.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

import engine as ax
from benchmarks import train_models
from benchmarks.train_works import HELD_OUT, Params, TrainWork
from engine.train import ArrayData, trainer

RATE = 1e-3
SCANNED = 10
"""Batches in one scan; `batches` is a multiple of it."""
LOSS = {"name": "categorical_cross_entropy", "sparse": True}
Train = Callable[[int], float]
Arrays = tuple[np.ndarray, np.ndarray]


def parts(work: TrainWork) -> tuple[Arrays, Arrays]:
    """Rows to train on, and those held out."""
    first = int(len(work.x) * (1 - HELD_OUT))
    return (work.x[:first], work.y[:first]), (work.x[first:], work.y[first:])


def validated(batches: int) -> int:
    """How many batches are held out for so many in training."""
    return max(1, int(batches * HELD_OUT))


def training_batches(work: TrainWork, batches: int, size: int | None = None) -> Iterator[Arrays]:
    """Shuffled batches of rows."""
    (x, y), _ = parts(work)
    size = work.batch if size is None else size
    order = np.random.default_rng(0).permutation(len(x))
    for i in range(batches):
        rows = order[i * size : (i + 1) * size]
        yield x.take(rows, axis=0), y.take(rows, axis=0)


def held_out_batches(work: TrainWork, batches: int) -> Iterator[Arrays]:
    """Batches that were held out, in their order."""
    _, (x, y) = parts(work)
    for i in range(batches):
        rows = slice(i * work.batch, (i + 1) * work.batch)
        yield x[rows], y[rows]


def initial(work: TrainWork) -> ax.ModelState:
    """Parameters and state of our model, which the hand-written sides start from too."""
    return ax.build(work.model)[0](work.x[:1])


# Ours


def engine_parts(
    work: TrainWork, *, initialise: bool = True, steps: int | None = None
) -> tuple[ArrayData, ax.train.Loop, ax.ModelState | None]:
    """Data, a loop with a metric and progress, and a state to start from."""
    x, y = parts(work)[0]
    name = next(iter(work.model.inputs()))
    data = ArrayData({name: x}, y, batch_size=work.batch, drop_remainder=True)
    loss = LOSS | ({"from_logits": True} if work.random else {})
    loop = trainer(work.model, loss, "adam", steps_per_execution=steps).metric("accuracy", sparse=True)
    console = Console(file=io.StringIO(), force_terminal=True)
    return data, loop.progress(console), initial(work) if initialise else None


def engine_loop(work: TrainWork, steps: int | None = None) -> Train:
    """`Loop.run` with a metric, progress and validation."""
    data, trained, state = engine_parts(work, steps=steps)
    _, (x, y) = parts(work)
    name = next(iter(work.model.inputs()))

    @functools.cache
    def loop_of(batches: int) -> ax.train.Loop:
        rows = validated(batches) * work.batch
        return trained.validate(ArrayData({name: x[:rows]}, y[:rows], batch_size=work.batch, shuffle=False))

    return lambda batches: float(loop_of(batches).run(data, state, iterations=batches).metrics["validation_loss"])


# By hand


def loss_function(work: TrainWork) -> Callable[..., jax.Array]:
    """`loss(params, x, y, key)`."""

    def loss(params: Params, x: jax.Array, y: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(work.logits(params, x, key), y).mean()

    return loss


def update_function(work: TrainWork, optimizer: Any) -> Callable[..., Any]:
    """`update((params, optimizer state, key), x, y) -> (the same, loss)`."""
    loss = loss_function(work)

    def update(carry: Any, x: jax.Array, y: jax.Array) -> Any:
        params, state, key = carry
        key, current = jax.random.split(key) if work.random else (key, None)
        value, gradients = jax.value_and_grad(loss)(params, x, y, current)
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state, key), value

    return update


def hand_written(work: TrainWork) -> Train:
    """`jax.jit` of one step, in a Python loop."""
    params, optimizer = initial(work).parameters, optax.adam(RATE)
    step = jax.jit(update_function(work, optimizer), donate_argnums=0)
    validate = jax.jit(loss_function(work))

    def train(batches: int) -> float:
        carry = jax.tree.map(jnp.array, params), optimizer.init(params), jax.random.key(0)
        for x, y in training_batches(work, batches):
            carry, _ = step(carry, x, y)
        return float(np.mean([validate(carry[0], x, y) for x, y in held_out_batches(work, validated(batches))]))

    return train


def hand_scanned(work: TrainWork) -> Train:
    """`lax.scan` over several batches at a time."""
    params, optimizer = initial(work).parameters, optax.adam(RATE)
    update = update_function(work, optimizer)
    validate = jax.jit(loss_function(work))

    @functools.partial(jax.jit, donate_argnums=0)
    def steps(carry: Any, x: jax.Array, y: jax.Array) -> Any:
        return jax.lax.scan(lambda carry, batch: update(carry, *batch), carry, (x, y))[0]

    def train(batches: int) -> float:
        carry = jax.tree.map(jnp.array, params), optimizer.init(params), jax.random.key(0)
        for x, y in training_batches(work, batches // SCANNED, SCANNED * work.batch):
            folded = (part.reshape(SCANNED, work.batch, *part.shape[1:]) for part in (x, y))
            carry = steps(carry, *folded)
        return float(np.mean([validate(carry[0], x, y) for x, y in held_out_batches(work, validated(batches))]))

    return train


# Other frameworks


def nnx_side(work: TrainWork) -> Train:
    """Flax NNX, with its graph cached."""
    from flax import nnx

    model = train_models.nnx_models()[work.name](work)
    optimizer = nnx.Optimizer(model, optax.adam(RATE), wrt=nnx.Param)

    def loss_of(model: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    @nnx.jit
    def step(model: Any, optimizer: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        loss, gradients = nnx.value_and_grad(loss_of)(model, x, y)
        optimizer.update(model, gradients)
        return loss

    validate = nnx.jit(loss_of)

    def train(batches: int) -> float:
        model.train()
        cached = nnx.cached_partial(step, model, optimizer)
        for x, y in training_batches(work, batches):
            cached(x, y)
        model.eval()
        cached = nnx.cached_partial(validate, model)
        return float(np.mean([cached(x, y) for x, y in held_out_batches(work, validated(batches))]))

    return train


def keras_side(work: TrainWork) -> Train:
    """Keras `fit`, over JAX."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    model = train_models.keras_models()[work.name](work)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(RATE), loss)
    (x, y), (x_held, y_held) = parts(work)

    def train(batches: int) -> float:
        rows, held = batches * work.batch, validated(batches) * work.batch
        history = model.fit(x[:rows], y[:rows], work.batch, verbose=0, validation_data=(x_held[:held], y_held[:held]))
        return float(history.history["val_loss"][-1])

    return train


def torch_side(work: TrainWork) -> Train:
    """PyTorch, eager, with its fused Adam and convolutions on channels last (both are faster here)."""
    import torch
    from torch.nn import functional

    model = train_models.torch_models()[work.name](work)
    optimizer = torch.optim.Adam(model.parameters(), RATE, fused=True)
    (x, y), (x_held, y_held) = (tuple(map(torch.from_numpy, map(np.ascontiguousarray, part))) for part in parts(work))
    y, y_held = y.long(), y_held.long()
    if work.x.ndim == 4:
        x, x_held = x.permute(0, 3, 1, 2), x_held.permute(0, 3, 1, 2)
        model = model.to(memory_format=torch.channels_last)

    def loss_of(x: Any, y: Any) -> Any:
        return functional.cross_entropy(model(x).flatten(0, -2), y.flatten())

    def train(batches: int) -> float:
        model.train()
        order = torch.randperm(len(x))
        for rows in order[: batches * work.batch].split(work.batch):
            optimizer.zero_grad(set_to_none=True)
            loss_of(x[rows], y[rows]).backward()
            optimizer.step()
        model.eval()
        rows = validated(batches) * work.batch
        with torch.inference_mode():
            pairs = zip(x_held[:rows].split(work.batch), y_held[:rows].split(work.batch), strict=True)
            return float(np.mean([loss_of(*pair).item() for pair in pairs]))

    return train


SINGLE = "Loop.run, single steps"
OURS, BY_HAND, SCAN = "Loop.run", "jax.jit + Optax", "lax.scan + Optax"
SIDES: dict[str, Callable[[TrainWork], Train]] = {
    OURS: engine_loop,
    SINGLE: functools.partial(engine_loop, steps=1),
    BY_HAND: hand_written,
    SCAN: hand_scanned,
    "Flax NNX": nnx_side,
    "Keras on JAX": keras_side,
    "PyTorch": torch_side,
}
NEEDS = {"Flax NNX": "flax", "Keras on JAX": "keras", "PyTorch": "torch"}


def missing(side: str) -> str | None:
    """The package that a side needs and that is not installed."""
    package = NEEDS.get(side)
    return package if package is not None and importlib.util.find_spec(package) is None else None
