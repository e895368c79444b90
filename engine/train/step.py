"""What a loop repeats: a training step, an evaluation step, or any step of one's own. All are pure functions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from engine.errors import DataError, ShapeError, StateError
from engine.functional.rows import Rows
from engine.model.build import build, x64
from engine.model.model import Model
from engine.model.state import ModelState
from engine.optim import apply_updates, from_spec
from engine.optim.loss_scale import LossScale, LossScaleSpec, all_finite
from engine.optim.loss_scale import from_spec as scale_from_spec
from engine.train.metrics import Observation
from engine.train.objectives import Losses, Objective, objective
from engine.train.state import TrainState, Tree

Batch = Any


class Step(Protocol):
    """A repeated computation.

    `init(batch, state, seed)` makes the first step state; `step(step_state, batch)` is pure and traced, and gives the
    next one with what metrics may see. `donates` says whether the memory of a step state is used again for the next.
    `context()` is entered around everything that computes.
    """

    @property
    def donates(self) -> bool: ...
    def context(self) -> AbstractContextManager[Any]: ...
    def init(self, batch: Batch, state: Any, seed: int | None) -> Tree: ...
    def step(self, step_state: Tree, batch: Batch) -> tuple[Tree, Observation]: ...


@dataclass(frozen=True, slots=True)
class CustomStep:
    """A step of one's own: `function(step_state, batch) -> step_state`; metrics see the step state."""

    function: Callable[[Any, Any], Any]
    initial: Callable[[Any], Any] | None = None
    donates: bool = False

    def context(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def init(self, batch: Batch, state: Any, seed: int | None) -> Tree:
        if self.initial is not None and state is None:
            state = self.initial(batch)
        if state is None:
            raise StateError("loop: expected an initial state, got none")
        return jax.tree.map(jnp.array, state)

    def step(self, step_state: Tree, batch: Batch) -> tuple[Tree, Observation]:
        following = self.function(step_state, batch)
        return following, Observation((following,))


def split_batch(batch: Batch) -> tuple[Any, Any, Rows]:
    """`(inputs, targets, rows)`, rows None unless given; raises `DataError` for anything but two or three parts."""
    if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
        got = f"{type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, (tuple, list)) else "")
        raise DataError(f"data: expected batches (inputs, targets) or (inputs, targets, rows), got {got}")
    return batch[0], batch[1], batch[2] if len(batch) == 3 else None


@dataclass(frozen=True, slots=True)
class TrainStep:
    """One optimizer update on one batch; see `train_step`."""

    model: Model
    objective: Objective
    optimizer: Any
    seed: int
    make: Callable[..., ModelState]
    begin: Callable[[ModelState], TrainState]
    predict: Callable[..., Any]
    loss_scale: LossScale | None = None
    donates: bool = True

    @property
    def reports(self) -> tuple[str, ...]:
        """Names of what it reports besides metrics: `loss`, and with a loss scale the share of `skipped` steps."""
        return ("loss",) if self.loss_scale is None else ("loss", "skipped")

    def context(self) -> AbstractContextManager[Any]:
        return x64(self.model)

    def init(self, batch: Batch, state: Any, seed: int | None) -> TrainState:
        """Model and optimizer state, the model's made for inputs like `batch`'s unless given."""
        inputs, _, _ = split_batch(batch)
        if state is None:
            state = self.make(inputs, self.seed if seed is None else seed)
        if not isinstance(state, ModelState):
            raise StateError(f"trainer: expected a ModelState to start from, got {type(state).__name__}")
        return self.begin(state)

    def step(self, step_state: TrainState, batch: Batch) -> tuple[TrainState, Observation]:
        inputs, targets, rows = split_batch(batch)
        before = step_state.model_state
        trainable = before.trainable()

        def loss_of(trainable: Tree) -> tuple[jax.Array, Any]:
            raw, changed = self.predict(before.with_trainable(trainable), inputs, rows)
            loss = _scalar(self.objective.loss(targets, raw, rows))
            scaled = loss if scale is None else scale.scale(loss, step_state.loss_scale_state)
            return scaled, (loss, raw, changed)

        scale = self.loss_scale
        (_, (loss, raw, changed)), gradients = jax.value_and_grad(loss_of, has_aux=True)(trainable)
        reports, scale_state, finite = {"loss": loss}, step_state.loss_scale_state, None
        if scale is not None:
            finite = all_finite(gradients)
            reports["skipped"] = 1 - finite.astype(jnp.float32)
            gradients, scale_state = scale.unscale(gradients, scale_state)
        updates, optimizer_state = self.optimizer.update(gradients, step_state.optimizer_state, trainable)
        after = before.with_trainable(apply_updates(trainable, updates)).update(state=changed)
        following = TrainState(after, optimizer_state, scale_state)
        if finite is not None:
            unchanged = replace(step_state, loss_scale_state=scale_state)
            following = jax.tree.map(partial(jnp.where, finite), following, unchanged)
        return following, Observation((targets, self.objective.finish(raw)), reports, rows)


def _scalar(loss: jax.Array) -> jax.Array:
    if jnp.shape(loss) != ():
        raise ShapeError(f"loss: expected one number for a batch, got shape {jnp.shape(loss)}; take its mean")
    return loss


@dataclass(frozen=True, slots=True)
class EvaluationStep:
    """One prediction on one batch in inference mode; `objective` adds the report `loss`."""

    model: Model
    predict: Callable[..., Any]
    objective: Objective | None = None
    donates: bool = False

    def context(self) -> AbstractContextManager[Any]:
        return x64(self.model)

    def init(self, batch: Batch, state: Any, seed: int | None) -> ModelState:
        split_batch(batch)
        if not isinstance(state, ModelState):
            raise StateError(f"evaluator: expected a ModelState to evaluate, got {type(state).__name__}")
        return state

    def step(self, step_state: ModelState, batch: Batch) -> tuple[ModelState, Observation]:
        inputs, targets, rows = split_batch(batch)
        raw = self.predict(step_state, inputs, rows)
        if self.objective is None:
            return step_state, Observation((targets, raw), rows=rows)
        loss = _scalar(self.objective.loss(targets, raw, rows))
        return step_state, Observation((targets, self.objective.finish(raw)), {"loss": loss}, rows)


def train_step(
    model: Model, loss: Losses, optimizer: Any, *, seed: int = 0, loss_scale: LossScaleSpec | None = None
) -> TrainStep:
    """The step of a trainer: gradients of the loss with respect to the trainable parameters, one optimizer update.

    With a loss scale (see `engine.optim.loss_scale`) a step whose gradients are not finite changes nothing else.

    Raises: `OptionError` for an unknown loss, optimizer, loss scale or option. Source: Axon.Loop.train_step/4.
    """
    goal = objective(model, loss)
    make, _ = build(model, mode="train")
    _, predict = build(goal.raw, mode="train")
    transform = from_spec(optimizer)
    scale = None if loss_scale is None else scale_from_spec(loss_scale)

    @jax.jit
    def begin(state: ModelState) -> TrainState:
        # A copy: the first step takes over the memory of what it is given.
        scale_state = None if scale is None else scale.init()
        return TrainState(jax.tree.map(jnp.copy, state), transform.init(state.trainable()), scale_state)

    return TrainStep(model, goal, transform, seed, make, begin, predict, scale)


def evaluation_step(model: Model, goal: Objective | None = None) -> EvaluationStep:
    """The step of an evaluator. Source: Axon.Loop.eval_step/1."""
    _, predict = build(model if goal is None else goal.raw, mode="inference")
    return EvaluationStep(model, predict, goal)
