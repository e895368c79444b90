"""One layer family in several implementations: ours, plain JAX, Flax NNX.

A side is a pure function `(parameters, state, *inputs) -> (output, new state)` with its parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import engine as ax

try:
    from flax import nnx
except ImportError:  # The extra `bench` brings it; without it there are two sides.
    nnx = None

Tree = Any


@dataclass(frozen=True)
class Side:
    """One implementation of a work."""

    apply: Callable[..., tuple[Any, Tree]]
    parameters: Tree = field(default_factory=dict)
    state: Tree = field(default_factory=dict)
    same_parameters: bool = True


@dataclass(frozen=True)
class Work:
    """One family at one size; gradients are taken with respect to parameters and inputs of floats.

    `random` works draw numbers, so that their sides agree on what is kept, scaled, but not on where.
    """

    name: str
    inputs: tuple[np.ndarray, ...]
    sides: dict[str, Side]
    random: bool = False


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def ours(model: ax.Model, *inputs: np.ndarray) -> Side:
    """A model as its users run it in training; its inputs are called a, b, c."""
    init, predict = ax.build(model, mode="train")
    made = init(dict(zip("abc", inputs, strict=False)))

    def apply(parameters: Tree, state: Tree, *values: jax.Array) -> tuple[Any, Tree]:
        given = made.update(state=state).with_trainable(parameters)
        return tuple(predict(given, dict(zip("abc", values, strict=False))))

    return Side(apply, made.parameters, made.state)


def plain(apply: Callable[..., Any], parameters: Tree = None) -> Side:
    """A function `(parameters, *inputs) -> output`."""
    return Side(lambda p, _, *values: (apply(p, *values), {}), {} if parameters is None else parameters)


def flax(make: Callable[[Any], Any], values: dict[str, Any], *, same_parameters: bool = True) -> dict[str, Side]:
    """A Flax module with these parameters (path -> array), where Flax is there."""
    if nnx is None:
        return {}
    module = make(nnx.Rngs(0))
    for path, value in values.items():
        owner = module
        *parents, last = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        getattr(owner, last)[...] = jnp.asarray(value).reshape(getattr(owner, last).shape)
    graph, parameters, state = nnx.split(module, nnx.Param, ...)

    def apply(parameters: Tree, state: Tree, *inputs: jax.Array) -> tuple[Any, Tree]:
        merged = nnx.merge(graph, parameters, state, copy=True)
        output = merged(*inputs)
        return output, nnx.state(merged, nnx.Not(nnx.Param))

    return {"flax": Side(apply, parameters, state, same_parameters)}


def flax_function(function: Callable[[], Callable[..., Any]]) -> dict[str, Side]:
    """A function of Flax without parameters."""
    return {} if nnx is None else {"flax": plain(lambda _, *inputs: function()(*inputs))}


def layered(
    name: str,
    model: ax.Model,
    jax_side: Callable[..., Any],
    make: Callable[[Any], Any] | None,
    x: np.ndarray,
    names: dict[str, str],
) -> Work:
    """A layer called `layer`, whose plain JAX takes the same parameters; `names` are those of Flax."""
    side = ours(model, x)
    own = side.parameters["layer"]
    others = {} if make is None else flax(make, {names.get(key, key): value for key, value in own.items()})
    return Work(name, (x,), {"ours": side, "jax": plain(jax_side, own), **others})


def pointwise(
    name: str, model: ax.Model, jax_side: Callable[..., Any], x: np.ndarray, flax_side: Callable[[], Any] | None
) -> Work:
    """A layer without parameters."""
    others = {} if flax_side is None else flax_function(flax_side)
    return Work(name, (x,), {"ours": ours(model, x), "jax": plain(lambda _, x: jax_side(x)), **others})


def x_of(shape: tuple[int, ...], dtype: str = "f32") -> ax.Model:
    """The input `a`, of an open batch."""
    return ax.input("a", shape=(None, *shape[1:]), dtype=dtype)
