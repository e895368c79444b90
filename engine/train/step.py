"""What a loop repeats: a training step, an evaluation step, or any step of one's own. All are pure functions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from engine.errors import DataError, StateError
from engine.functional.rows import Rows
from engine.model.build import TrainOutput, build, x64
from engine.model.model import Model
from engine.model.state import ModelState
from engine.optim import apply_updates, from_spec
from engine.optim.loss_scale import LossScale, LossScaleSpec, all_finite
from engine.optim.loss_scale import from_spec as scale_from_spec
from engine.train.metrics import Observation
from engine.train.objectives import Losses, Objective, Outcome, objective
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
    guarded: bool = False
    donates: bool = True

    @property
    def reports(self) -> tuple[str, ...]:
        """Names of what it reports besides metrics: `loss` and its parts, with a loss scale `skipped` steps' share."""
        return ("loss", *self.objective.parts, *(() if self.loss_scale is None else ("skipped",)))

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

    def step(
        self, step_state: TrainState, batch: Batch, proceed: jax.Array | None = None
    ) -> tuple[TrainState, Observation]:
        """The next state; where `proceed` is false or the loss not finite, in a guarded step the same one."""
        inputs, targets, rows = split_batch(batch)
        before = step_state.model_state
        trainable = before.trainable()

        def loss_of(trainable: Tree) -> tuple[jax.Array, Outcome]:
            state = before.with_trainable(trainable)
            outcome = self.objective.evaluate(self.predict, state, inputs, targets, rows)
            scaled = outcome.loss if scale is None else scale.scale(outcome.loss, step_state.loss_scale_state)
            return scaled, outcome

        scale = self.loss_scale
        (_, outcome), gradients = jax.value_and_grad(loss_of, has_aux=True)(trainable)
        reports = {"loss": outcome.loss, **outcome.parts}
        scale_state, finite = step_state.loss_scale_state, None
        if scale is not None:
            finite = all_finite(gradients)
            reports["skipped"] = 1 - finite.astype(jnp.float32)
            gradients, scale_state = scale.unscale(gradients, scale_state)
        elif proceed is not None:
            finite = proceed & jnp.isfinite(outcome.loss)

        def value_fn(trainable: Tree, weight: Any = None) -> jax.Array:
            return loss_of(trainable)[1].loss

        def update() -> TrainState:
            # What Optax's line searches and schedules by the loss ask for, and accumulation.
            extra = {"value": outcome.loss, "grad": gradients, "value_fn": value_fn, "weight": row_weight(batch)}
            updates, optimizer_state = self.optimizer.update(gradients, step_state.optimizer_state, trainable, **extra)
            after = before.with_trainable(apply_updates(trainable, updates)).update(state=outcome.state)
            return TrainState(after, optimizer_state, scale_state)

        following = _only_where(finite, update, replace(step_state, loss_scale_state=scale_state))
        return following, _observation(self.objective, outcome, targets, reports, rows)


def row_weight(batch: Batch) -> int | jax.Array:
    """How many rows a batch has, or the sum of their weights, float32."""
    inputs, targets, rows = split_batch(batch)
    if rows is not None:
        return jnp.sum(rows, dtype=jnp.float32)
    leaves = [leaf for leaf in jax.tree.leaves((inputs, targets)) if jnp.ndim(leaf) > 0]
    return len(leaves[0]) if leaves else 1


def _observation(
    goal: Objective, outcome: Outcome, targets: Any, reports: dict[str, jax.Array], rows: Rows
) -> Observation:
    arguments = () if outcome.prediction is None else (targets, goal.finish(outcome.prediction))
    return Observation(arguments, reports, rows)


def _only_where(finite: jax.Array | None, update: Callable[[], TrainState], unchanged: TrainState) -> TrainState:
    """The updated state where `finite` holds (None: always), else the unchanged one."""
    if finite is None:
        return update()
    if jax.default_backend() == "cpu":
        # A branch costs 2 % of a small step on the CPU, selecting every array 8 % (measured); on a GPU a branch waits.
        chosen: TrainState = jax.lax.cond(finite, update, lambda: unchanged)
        return chosen
    return jax.tree.map(partial(jnp.where, finite), update(), unchanged)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class EvaluationStep:
    """One prediction on one batch in inference mode; `objective` adds the report `loss` and its parts."""

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
        if self.objective is None:
            return step_state, Observation((targets, self.predict(step_state, inputs, rows)), rows=rows)
        outcome = self.objective.evaluate(self._forward, step_state, inputs, targets, rows)
        reports = {"loss": outcome.loss, **outcome.parts}
        return step_state, _observation(self.objective, outcome, targets, reports, rows)

    def _forward(self, model_state: ModelState, inputs: Any, rows: Rows = None) -> TrainOutput:
        return TrainOutput(self.predict(model_state, inputs, rows), {})


def train_step(
    model: Model,
    loss: Losses,
    optimizer: Any,
    *,
    seed: int = 0,
    loss_scale: LossScaleSpec | None = None,
    guarded: bool = False,
) -> TrainStep:
    """The step of a trainer: gradients of the loss with respect to the trainable parameters, one optimizer update.

    With a loss scale (see `engine.optim.loss_scale`) a step whose gradients are not finite changes nothing else. A
    `guarded` one without changes nothing where the loss is not finite, so that what happened can be looked into.

    Raises: `OptionError` for an unknown loss, optimizer, loss scale or option. Source: Axon.Loop.train_step/4.
    """
    goal = objective(model, loss)
    make, _ = build(model, mode="train")
    _, predict = build(goal.raw, mode="train")
    transform = optax.with_extra_args_support(from_spec(optimizer))
    scale = None if loss_scale is None else scale_from_spec(loss_scale)

    @jax.jit
    def begin(state: ModelState) -> TrainState:
        # A copy: the first step takes over the memory of what it is given.
        scale_state = None if scale is None else scale.init()
        return TrainState(jax.tree.map(jnp.copy, state), transform.init(state.trainable()), scale_state)

    return TrainStep(model, goal, transform, seed, make, begin, predict, scale, guarded and scale is None)


def evaluation_step(model: Model, goal: Objective | None = None) -> EvaluationStep:
    """The step of an evaluator. Source: Axon.Loop.eval_step/1."""
    _, predict = build(model if goal is None else goal.raw, mode="inference")
    return EvaluationStep(model, predict, goal)
