"""What made a loss not finite: one more run of that step, with every layer watched."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from engine.errors import DivergedError
from engine.model.block import BLOCK, Block
from engine.model.build import build
from engine.model.graph import Hook, Node, owners
from engine.model.model import Model
from engine.model.state import flatten
from engine.train.state import LoopState, TrainState

if TYPE_CHECKING:
    from engine.train.step import TrainStep

Note = Callable[[str, str, Any], None]


def require_finite(name: str, value: Any, state: LoopState) -> None:
    """Raise `DivergedError` when a scalar on the host is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        raise DivergedError(
            f"training diverged: expected a finite {name}, got {value} in epoch {state.epoch} "
            f"after {state.total_iterations} iterations"
        )


def explain(step: TrainStep, state: TrainState, batch: Any) -> str:
    """Which values of a training step are not finite, found by running it again: the first in the order of computing.

    Looks at the batch, the parameters, every layer's output, the loss, and the gradients at every layer's output.
    """
    from engine.train.step import split_batch

    inputs, targets, rows = split_batch(batch)
    if not _finite((inputs, targets)):
        return "the batch has values that are not finite"
    broken = [path for path, leaf in flatten(state.model_state.parameters) if not _finite(leaf)]
    if broken:
        return f"parameters are not finite since the update before: {', '.join(broken[:8])}"
    found: dict[tuple[str, str], bool] = {}

    def note(what: str, path: str, value: Any) -> None:
        found[what, path] = found.get((what, path), True) and _finite(value)

    watched, order = _watched(step.objective.raw, note)
    _, predict = build(watched, mode="train")

    def loss_of(trainable: Any) -> jax.Array:
        model_state = state.model_state.with_trainable(trainable)
        return step.objective.evaluate(predict, model_state, inputs, targets, rows).loss

    loss, gradients = jax.jit(jax.value_and_grad(loss_of))(state.model_state.trainable())
    jax.block_until_ready((loss, gradients))  # type: ignore[no-untyped-call]
    jax.effects_barrier()  # type: ignore[no-untyped-call]
    for path in order:
        if not found.get(("output", path), True):
            return f"the output of layer {path!r} is the first that is not finite"
    if not _finite(loss):
        return "the loss is not finite although every layer's output is"
    for path in reversed(order):
        if not found.get(("gradient", path), True):
            return f"the gradient at the output of layer {path!r} is the first that is not finite"
    return "every value was finite when the step was run again"


def _finite(tree: Any) -> bool:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree) if leaf is not None]
    return all(bool(np.all(np.isfinite(leaf))) for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact))


def _watched(model: Model, note: Note, prefix: str = "") -> tuple[Model, list[str]]:
    """The same model with every value and gradient given to `note`, and the layers' paths in order."""
    names, made, paths = model.names(), dict[Node, Node](), list[str]()
    owner = owners(names)
    blocks: dict[Block, Block] = {}
    for node, name in names.items():
        options = node.options
        if node.op is BLOCK:
            block = options["block"]
            if block not in blocks:
                inner, inside = _watched(block.model, note, f"{prefix}{owner[node]}.")
                blocks[block] = replace(block, model=inner)
                paths += inside
            options = {**options, "block": blocks[block]}
        path = f"{prefix}{name}"
        paths.append(path)
        hooks = (Hook(partial(note, "output", path), "forward"), Hook(partial(note, "gradient", path), "backward"))
        inputs = tuple(made[parent] for parent in node.inputs)
        made[node] = replace(node, inputs=inputs, options=options, hooks=hooks)
    return replace(model, node=made[model.node]), paths
