"""Objectives: a loss, by name, by data or a function, bound to the outputs of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from engine.errors import OptionError
from engine.functional.losses import FUSED_ACTIVATION, LOSSES
from engine.functional.rows import Rows
from engine.model.graph import Node
from engine.model.layers.basics import rebuild
from engine.model.model import Model
from engine.precision import cast
from engine.train.metrics import call_with_rows, check_options

LossFunction = Callable[..., jax.Array]
LossSpec = str | Mapping[str, Any] | LossFunction
Losses = LossSpec | Sequence[tuple[LossSpec, float]]


@dataclass(frozen=True, slots=True)
class Objective:
    """A loss together with the part of the model it is computed on.

    Where a loss takes the logits of the model's last activation in its place, `raw` is the model without that
    activation and `finish` applies it; elsewhere `raw` is the model and `finish` the identity. The loss of the logits
    is exact where that of the probabilities overflows. `loss(y_true, y_pred, rows)` takes the row weights, or None.
    """

    raw: Model
    finish: Callable[[Any], Any]
    loss: Callable[[Any, Any, Rows], jax.Array]


def objective(model: Model, loss: Losses) -> Objective:
    """The objective of a model; a list of `(loss, weight)` goes with a tuple of outputs.

    Raises:
        OptionError: an unknown loss or option, or a list that does not fit the outputs.
    """
    if isinstance(loss, Sequence) and not isinstance(loss, str):
        return _weighted_objective(model, loss)
    node, finish, function = _single_objective(model.node, loss)
    return Objective(Model(node), finish, lambda y_true, y_pred, rows: _loss_of(function, y_true, y_pred, rows))


def _loss_of(function: LossFunction, y_true: Any, y_pred: Any, rows: Rows) -> jax.Array:
    loss: jax.Array = call_with_rows("loss", function, (y_true, y_pred), rows)
    return loss


def _single_objective(node: Node, loss: LossSpec) -> tuple[Node, Callable[[Any], Any], LossFunction]:
    if callable(loss):
        return node, _identity, loss
    options: dict[str, Any] = {"name": loss} if isinstance(loss, str) else dict(loss)
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in LOSSES:
        raise OptionError(f"loss: expected one of {', '.join(LOSSES)}, or a function; got {name!r}")
    check_options(f"loss {name}", LOSSES[name], options)
    if options.setdefault("reduction", "mean") == "none":
        raise OptionError(f"loss {name}: expected the reduction mean or sum for training, got none")
    fused = FUSED_ACTIVATION.get(name) == node.op.name and node.options.get("axis", -1) == -1
    # A hook of the activation sees it, so then it is computed.
    if fused and not options.get("from_logits") and not node.hooks:
        finish = partial(_activated, node)
        return node.inputs[0], finish, partial(LOSSES[name], **{**options, "from_logits": True})
    return node, _identity, partial(LOSSES[name], **options)


def _activated(node: Node, raw: Any) -> Any:
    """The value of an activation node, under its policy."""
    value = node.op.apply(cast(node.policy, raw, "compute"), **node.op.arguments(node.options))
    return cast(node.policy, value, "output")


def _identity(prediction: Any) -> Any:
    return prediction


def _weighted_objective(model: Model, losses: Sequence[Any]) -> Objective:
    node = model.node
    structure: Any = node.options.get("structure") if node.op.name == "container" else None
    flat = isinstance(structure, tuple) and all(isinstance(position, int) for position in structure)
    if not flat or len(structure) != len(losses):
        raise OptionError(f"loss: expected a model whose output is a tuple of {len(losses)} arrays for as many losses")
    nodes, functions, weights = list(node.inputs), [], []
    finishes: list[Callable[[Any], Any]] = [_identity] * len(node.inputs)
    for position, pair in zip(structure, losses, strict=True):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[1], (int, float)):
            raise OptionError(f"loss: expected pairs (loss, weight), got {pair!r}")
        nodes[position], finishes[position], function = _single_objective(node.inputs[position], pair[0])
        functions.append(function)
        weights.append(pair[1])

    def loss(y_true: Any, y_pred: Any, rows: Rows) -> jax.Array:
        parts = zip(weights, functions, y_true, y_pred, strict=True)
        return sum((w * _loss_of(f, t, p, rows) for w, f, t, p in parts), start=jnp.zeros(()))

    def finish(raw: Any) -> Any:
        return jax.tree.map(lambda apply, value: apply(value), rebuild(structure, finishes), raw)

    return Objective(Model(replace(node, inputs=tuple(nodes))), finish, loss)
