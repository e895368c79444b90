"""Objectives: what training makes small. A loss, by name, as data or a function, bound to the outputs of a model.

"mean_squared_error"
{"name": "categorical_cross_entropy", "sparse": True, "regularizers": [{"name": "l2", "factor": 1e-4}]}
lambda y_true, y_pred: ...
[("mean_squared_error", 1.0), ("huber", 0.5)]                            the outputs of a tuple
{"heads.a": "huber", "heads.b": {"loss": "poisson", "weight": 0.5}}      outputs by their paths
ObjectiveFunction(lambda forward, model_state, inputs, targets: ...)     anything else
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from engine.errors import DataError, OptionError, ShapeError
from engine.functional.losses import FUSED_ACTIVATION, LOSSES
from engine.functional.options import require_number
from engine.functional.rows import Rows
from engine.model.build import TrainOutput
from engine.model.graph import Node
from engine.model.layers.basics import rebuild
from engine.model.model import Model
from engine.model.state import ModelState, Tree
from engine.precision import cast
from engine.train.metrics import call_with_rows, check_options
from engine.train.regularizers import Regularizer, from_specs

LossFunction = Callable[..., jax.Array]
Forward = Callable[..., TrainOutput]
"""`forward(model_state, inputs, rows=None) -> (prediction, state)`, the layer state that changed."""


@dataclass(frozen=True, slots=True)
class ObjectiveFunction:
    """An objective of one's own, pure: `function(forward, model_state, inputs, targets) -> loss`.

    `forward(model_state, inputs)` runs the model, in training with dropout and batch statistics, in validation without,
    and gives `(prediction, state)`; it may be called as often as wanted, or with other parameters. The loss is one
    number. Beside it the function may return one such result, `(loss, output)`: then metrics see its prediction, and
    the layers keep its state; a model whose layers keep state needs that. With a parameter `rows` the function takes
    batches with row weights too, which `forward` takes as its third argument. Source: a proposal to Axon, issue 669.
    """

    function: Callable[..., Any]


LossSpec = str | Mapping[str, Any] | LossFunction


class Outcome(NamedTuple):
    """An objective on one batch: the loss, its parts by name, the raw prediction, and the layer state that changed."""

    loss: jax.Array
    parts: Mapping[str, jax.Array]
    prediction: Any
    state: Tree


@dataclass(frozen=True, slots=True)
class Objective:
    """A loss together with the part of the model it is computed on.

    Where a loss takes the logits of the model's last activation in its place, `raw` is the model without that
    activation and `finish` applies it; elsewhere `raw` is the model and `finish` the identity. The loss of the logits
    is exact where that of the probabilities overflows.

    Attributes:
        evaluate: `evaluate(forward, model_state, inputs, targets, rows) -> Outcome`, with `forward` of `raw`.
        parts: names of the outcome's parts.
        penalty: the sum of the regularizers, a function of the parameters; None without any.
    """

    raw: Model
    finish: Callable[[Any], Any]
    evaluate: Callable[[Forward, ModelState, Any, Any, Rows], Outcome]
    parts: tuple[str, ...] = ()
    penalty: Regularizer | None = None


Losses = LossSpec | Sequence[tuple[LossSpec, float]] | ObjectiveFunction | Objective


def objective(model: Model, loss: Losses) -> Objective:
    """The objective of a model for a loss in any of the forms above.

    Raises:
        OptionError: an unknown loss, option or regularizer, a value outside its domain, or outputs that are not there.
    Warns: `UserWarning` where a loss with `from_logits` is of a softmax's or sigmoid's output.
    """
    if isinstance(loss, Objective):
        return loss
    if isinstance(loss, ObjectiveFunction):
        return Objective(model, _identity, partial(_own_outcome, loss.function))
    regularizers: tuple[Regularizer, ...] = ()
    if isinstance(loss, Mapping) and isinstance(loss.get("regularizers"), list | tuple):
        regularizers = from_specs(loss["regularizers"])
        loss = {key: value for key, value in loss.items() if key != "regularizers"}
    goal = _bound(model, loss)
    return goal if not regularizers else _regularized(goal, regularizers)


def _bound(model: Model, loss: LossSpec | Sequence[tuple[LossSpec, float]]) -> Objective:
    if isinstance(loss, Sequence) and not isinstance(loss, str):
        return _weighted_objective(model, _pairs(model, loss), named=False)
    if isinstance(loss, Mapping) and not isinstance(loss.get("name"), str):
        return _weighted_objective(model, _paths(model, loss), named=True)
    node, finish, function = _single_objective(model.node, loss)

    def measure(y_true: Any, y_pred: Any, rows: Rows) -> tuple[jax.Array, dict[str, jax.Array]]:
        return _loss_of(function, y_true, y_pred, rows), {}

    return Objective(Model(node), finish, partial(_outcome, measure))


def _outcome(
    measure: Callable[[Any, Any, Rows], tuple[jax.Array, dict[str, jax.Array]]],
    forward: Forward,
    model_state: ModelState,
    inputs: Any,
    targets: Any,
    rows: Rows,
) -> Outcome:
    raw, changed = forward(model_state, inputs, rows)
    loss, parts = measure(targets, raw, rows)
    return Outcome(loss, parts, raw, changed)


def _own_outcome(
    function: Callable[..., Any],
    forward: Forward,
    model_state: ModelState,
    inputs: Any,
    targets: Any,
    rows: Rows,
) -> Outcome:
    answer = call_with_rows("objective", function, (forward, model_state, inputs, targets), rows)
    match answer:
        case (loss, TrainOutput(prediction, state)):
            return Outcome(scalar(loss), {}, prediction, state)
        case tuple() | list():
            raise OptionError("objective: expected the loss, or (loss, output) with an output of forward")
    if model_state.state:
        raise OptionError("objective: expected (loss, output) of a model whose layers keep state, got the loss alone")
    return Outcome(scalar(answer), {}, None, {})


def _regularized(goal: Objective, regularizers: tuple[Regularizer, ...]) -> Objective:
    def penalty(parameters: Tree) -> jax.Array:
        return sum((scalar(regularizer(parameters)) for regularizer in regularizers), start=jnp.zeros(()))

    def evaluate(forward: Forward, model_state: ModelState, inputs: Any, targets: Any, rows: Rows) -> Outcome:
        plain = goal.evaluate(forward, model_state, inputs, targets, rows)
        added = penalty(model_state.parameters)
        return plain._replace(loss=plain.loss + added, parts={**plain.parts, "regularization": added})

    return replace(goal, evaluate=evaluate, parts=(*goal.parts, "regularization"), penalty=penalty)


def _loss_of(function: LossFunction, y_true: Any, y_pred: Any, rows: Rows) -> jax.Array:
    return scalar(call_with_rows("loss", function, (y_true, y_pred), rows))


def scalar(loss: Any) -> jax.Array:
    """A loss as one number of a batch; raises `ShapeError` for anything else."""
    if jnp.shape(loss) != ():
        raise ShapeError(f"loss: expected one number for a batch, got shape {jnp.shape(loss)}; take its mean")
    return jnp.asarray(loss)


_CALLERS = 6
"""Frames from here to whoever calls `trainer`."""


def _single_objective(
    node: Node, loss: LossSpec, *, alone: bool = True
) -> tuple[Node, Callable[[Any], Any], LossFunction]:
    """The node a loss is of, what makes the output of its value, and the loss as a function.

    `alone` says that nothing else needs the output itself.
    """
    if callable(loss):
        return node, _identity, loss
    options: dict[str, Any] = {"name": loss} if isinstance(loss, str) else dict(loss)
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in LOSSES:
        raise OptionError(f"loss: expected one of {', '.join(LOSSES)}, or a function; got {name!r:.200}")
    check_options(f"loss {name}", LOSSES[name], options)
    if options.setdefault("reduction", "mean") == "none":
        raise OptionError(f"loss {name}: expected the reduction mean or sum for training, got none")
    _check_values(name, options)
    if options.get("from_logits") and node.op.name in FUSED_ACTIVATION.values():
        warnings.warn(
            f"loss {name}: expected logits because of from_logits, got the output of {node.op.name}, so that two "
            "activations are applied; leave out from_logits or the model's activation",
            UserWarning,
            stacklevel=_CALLERS,
        )
    fused = FUSED_ACTIVATION.get(name) == node.op.name and node.options.get("axis", -1) == -1
    # A hook of the activation sees it, so then it is computed.
    if fused and alone and not options.get("from_logits") and not node.hooks:
        finish = partial(_activated, node)
        return node.inputs[0], finish, partial(LOSSES[name], **{**options, "from_logits": True})
    return node, _identity, partial(LOSSES[name], **options)


def _check_values(name: str, options: Mapping[str, Any]) -> None:
    """Raise `OptionError` for a value outside its domain, as the loss itself does, of small abstract arrays."""
    classes, rank, blank = 3, 2, options.get("blank", 0)
    weights, axes = options.get("class_weights"), options.get("axes")
    if isinstance(weights, list | tuple | np.ndarray | jax.Array):
        classes = max(1, len(weights))
    if isinstance(axes, list | tuple) and all(isinstance(axis, int) and abs(axis) < _MAX_RANK for axis in axes):
        rank = max([2, *(abs(axis) + 1 for axis in axes)])
    y_pred: Any = _abstract((*[2] * (rank - 1), classes))
    y_true: Any = y_pred
    if name == "connectionist_temporal_classification":
        classes = blank + 1 if isinstance(blank, int) and 0 <= blank < _MAX_BLANK else classes
        y_true, y_pred = (_abstract((2,), jnp.int32), _abstract((2, 3), jnp.int32)), _abstract((2, 4, classes))
    elif name == "margin_ranking":
        y_pred = (y_true, y_true)
    elif options.get("sparse") is True:
        y_true = _abstract((2,), jnp.int32)
    jax.eval_shape(partial(LOSSES[name], **options), y_true, y_pred)


_MAX_RANK = 8
_MAX_BLANK = 2**24


def _abstract(shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]


def _activated(node: Node, raw: Any) -> Any:
    """The value of an activation node, under its policy."""
    value = node.op.apply(cast(node.policy, raw, "compute"), **node.op.arguments(node.options))
    return cast(node.policy, value, "output")


def _identity(prediction: Any) -> Any:
    return prediction


Keys = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class _Part:
    """A loss of one output: where it is in the structure and among the container's inputs."""

    keys: Keys
    position: int
    loss: LossSpec
    weight: float


def _structure(model: Model) -> Any:
    return model.node.options["structure"] if model.node.op.name == "container" else None


def _leaves(structure: Any, keys: Keys = ()) -> Iterator[tuple[Keys, int]]:
    if isinstance(structure, int):
        yield keys, structure
        return
    items = structure.items() if isinstance(structure, Mapping) else enumerate(structure)
    for key, inner in items:
        yield from _leaves(inner, (*keys, key))


def _spelled(keys: Keys) -> str:
    return ".".join(map(str, keys))


def _pairs(model: Model, losses: Sequence[Any]) -> list[_Part]:
    structure = _structure(model)
    flat = isinstance(structure, tuple) and all(isinstance(position, int) for position in structure)
    if not flat or len(structure) != len(losses):
        raise OptionError(f"loss: expected a model whose output is a tuple of {len(losses)} arrays for as many losses")
    parts = []
    for index, (position, pair) in enumerate(zip(structure, losses, strict=True)):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise OptionError(f"loss: expected pairs (loss, weight), got {pair!r:.200}")
        require_number(f"loss {index}", "weight", pair[1])
        parts.append(_Part((index,), position, *pair))
    return parts


def _paths(model: Model, losses: Mapping[str, Any]) -> list[_Part]:
    structure = _structure(model)
    if structure is None:
        raise OptionError(
            f"loss: expected a name, or a model with several outputs for losses by path, got {dict(losses)!r:.200}"
        )
    outputs = {_spelled(keys): (keys, position) for keys, position in _leaves(structure)}
    parts = []
    for path, part in losses.items():
        if path not in outputs:
            raise OptionError(f"loss: expected paths of outputs out of {', '.join(outputs)}, got {path!r:.200}")
        weight: Any = 1.0
        if isinstance(part, Mapping) and "loss" in part and "name" not in part:
            if unknown := sorted(set(part) - {"loss", "weight"}):
                raise OptionError(f"loss {path}: expected loss and weight, got {', '.join(map(repr, unknown)):.200}")
            part, weight = part["loss"], part.get("weight", 1.0)
        if not callable(part) and not isinstance(part, str | Mapping):
            raise OptionError(f"loss {path}: expected a loss, or an object of loss and weight, got {part!r:.200}")
        require_number(f"loss {path}", "weight", weight)
        parts.append(_Part(*outputs[path], part, weight))
    if not parts:
        raise OptionError("loss: expected a loss of one output at least, got none")
    return parts


def _weighted_objective(model: Model, parts: Sequence[_Part], *, named: bool) -> Objective:
    node, structure = model.node, _structure(model)
    uses = Counter(position for _, position in _leaves(structure))
    nodes, functions = list(node.inputs), []
    finishes: list[Callable[[Any], Any]] = [_identity] * len(nodes)
    for part in parts:
        alone = uses[part.position] == 1
        found = _single_objective(node.inputs[part.position], part.loss, alone=alone)
        nodes[part.position], finishes[part.position], function = found
        functions.append(function)
    names = tuple(f"loss_{_spelled(part.keys)}" for part in parts) if named else ()

    def measure(y_true: Any, y_pred: Any, rows: Rows) -> tuple[jax.Array, dict[str, jax.Array]]:
        values = [
            _loss_of(function, _target(y_true, part.keys, structure), _at(y_pred, part.keys), rows)
            for part, function in zip(parts, functions, strict=True)
        ]
        total = sum((part.weight * value for part, value in zip(parts, values, strict=True)), start=jnp.zeros(()))
        return total, dict(zip(names, values, strict=True)) if named else {}

    def finish(raw: Any) -> Any:
        return jax.tree.map(lambda apply, value: apply(value), rebuild(structure, finishes), raw)

    raw = Model(replace(node, inputs=tuple(nodes)))
    return Objective(raw, finish, partial(_outcome, measure), names)


def _at(tree: Any, keys: Keys) -> Any:
    for key in keys:
        tree = tree[key]
    return tree


def _target(targets: Any, keys: Keys, structure: Any) -> Any:
    """The target of an output; targets have the structure of the outputs, but for those without a loss in dicts."""
    for index, key in enumerate(keys):
        where = _spelled(keys[:index]) or "the top"
        if isinstance(structure, Mapping):
            if not isinstance(targets, Mapping) or key not in targets:
                got = ", ".join(map(str, targets)) if isinstance(targets, Mapping) else type(targets).__name__
                raise DataError(f"data: expected targets with {key!r} at {where}, got {got:.200}")
        elif not isinstance(targets, list | tuple) or len(targets) != len(structure):
            got = str(len(targets)) if isinstance(targets, list | tuple) else type(targets).__name__
            raise DataError(f"data: expected {len(structure)} targets at {where}, got {got}")
        targets, structure = targets[key], structure[key]
    return targets
