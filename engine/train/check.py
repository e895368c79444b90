"""Whether a training can work, before there is data: everything that names, values, shapes and paths can tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from engine.model.build import TrainOutput, x64
from engine.model.graph import Node
from engine.model.layers.basics import rebuild
from engine.model.model import Model
from engine.model.state import ModelState
from engine.model.walk import LayerInfo, abstract
from engine.optim import Spec, from_spec, multiply_scale
from engine.train.objectives import Losses, objective


def check_loss(model: Model, loss: Losses, layers: Sequence[LayerInfo], state: ModelState) -> None:
    """Check a loss on the outputs of a model, against targets of their shape or, with `sparse`, class numbers.

    Args:
        model: what to train.
        loss: by name or as data, of the model's only output.
        layers: what `infer` finds of the model, for inputs of a known shape.
        state: of the model; its leaves may be abstract.
    Raises: `OptionError`, `ShapeError`, `DtypeError`: the loss does not fit.
    """
    goal = objective(model, loss)
    raw = _output(goal.raw.node, {layer.node: layer.output for layer in layers})
    targets = jax.tree.map(lambda leaf: abstract(leaf.shape, jnp.float32), raw)
    if isinstance(loss, Mapping) and loss.get("sparse") is True:
        targets = abstract(raw.shape[:-1], jnp.int32)

    def evaluate(state: ModelState, raw: Any, targets: Any) -> jax.Array:
        return goal.evaluate(lambda *_: TrainOutput(raw, {}), state, None, targets, None).loss

    with x64(model):
        jax.eval_shape(evaluate, state, raw, targets)


def _output(node: Node, outputs: Mapping[Node, Any]) -> Any:
    if node in outputs:
        return outputs[node]
    return rebuild(node.options["structure"], [_output(inner, outputs) for inner in node.inputs])


def check_optimizer(optimizer: Spec, state: ModelState) -> None:
    """Check an optimizer and the paths it names against the trainable parameters; leaves may be abstract.

    Raises: `OptionError`: an unknown name, a value outside its domain, or a path that is not there.
    """
    jax.eval_shape(from_spec(optimizer).init, state.trainable())


def check_reduction(optimizer: Spec, state: ModelState) -> None:
    """Check that the learning rate of an optimizer can be reduced; leaves may be abstract.

    Raises: `OptionError`: it has a schedule, or is not to be built.
    """
    jax.eval_shape(lambda trainable: multiply_scale(from_spec(optimizer).init(trainable), 1.0), state.trainable())
