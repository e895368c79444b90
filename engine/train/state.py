"""The state of a running loop: what handlers see, what a checkpoint holds, what `run` returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import jax
import jax.numpy as jnp

from engine.errors import StateError
from engine.model.state import ModelState, flatten, unflatten
from engine.optim import ema_parameters
from engine.train.events import Count, Event

Tree = Any
Metrics = Mapping[str, jax.Array]


class Stage(StrEnum):
    """Where in its course a loop stands; resuming goes on from here."""

    NEW = "new"
    """Nothing has happened."""
    BETWEEN = "between"
    """Epoch `epoch` has not started."""
    OPEN = "open"
    """Epoch `epoch` is being run."""
    CLOSING = "closing"
    """All batches of epoch `epoch` are done and its last event has been announced."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class TrainState:
    """What a training step changes: the model's state, the optimizer's, and the loss scale's (None without one)."""

    model_state: ModelState
    optimizer_state: Tree
    loss_scale_state: Tree = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class Accumulators:
    """Running values of the metrics in the current epoch, with the iterations they cover (int32) and how many rows.

    Rows are float32: their weights need not be whole.
    """

    values: dict[str, jax.Array]
    iterations: jax.Array
    rows: jax.Array


@dataclass(frozen=True, slots=True)
class LoopState:
    """A loop at one moment. Its arrays are on the device; nothing is fetched until someone asks.

    The next step takes over the memory of `step_state`: a handler that keeps it for longer than its own call takes a
    `copy()`. Handlers may change `step_state`, `handler_state`, and add to `metrics` (by `with_...`).

    Attributes:
        step_state: what the step works on: a `TrainState`, in an evaluator a `ModelState`.
        accumulators: the metrics' running values, in their internal form.
        epoch: the current epoch, from 0; after the run, the next one.
        iteration: in an iteration's events its index in the epoch, from 0; at the epoch's end how many there were.
        total_iterations: steps done in all epochs.
        metrics: values over the current epoch so far, and what handlers added, such as `validation_loss`.
        history: the metrics of each finished epoch.
        event: the event being announced, or the last one.
        event_counts: how often each event has happened.
        handler_state: what handlers remember, by their name; plain JSON values.
        data_state: where the data iterator stands; None when the data cannot tell.
        stage: where a resumed run goes on.
        status: `running`, `completed` or `halted`.
        best_model_state: the model's state where a metric was best (`Loop.keep_best`); None where none is kept.
    """

    step_state: Tree
    accumulators: Accumulators
    epoch: int = 0
    iteration: int = 0
    total_iterations: int = 0
    metrics: Metrics = field(default_factory=dict)
    history: tuple[Metrics, ...] = ()
    event: Event | None = None
    event_counts: Mapping[Event, Count] = field(default_factory=lambda: {event: Count() for event in Event})
    handler_state: Mapping[str, Any] = field(default_factory=dict)
    data_state: Mapping[str, Any] | None = None
    stage: Stage = Stage.NEW
    status: str = "running"
    best_model_state: ModelState | None = None

    @property
    def model_state(self) -> ModelState:
        """The model's parameters and state; raises `StateError` in a loop that has none."""
        if isinstance(self.step_state, ModelState):
            return self.step_state
        return self._train_state().model_state

    @property
    def averaged_model_state(self) -> ModelState:
        """The model's state with the averages that the optimizer's `ema` keeps, in the parameters' own types.

        Raises: `OptionError` without such an optimizer, `StateError` in a loop that has none.
        """
        state = self.model_state
        parameters = dict(flatten(state.parameters))
        averages = dict(flatten(ema_parameters(self.optimizer_state)))
        changed = {path: average.astype(parameters[path].dtype) for path, average in averages.items()}
        return state.update(parameters=unflatten(changed))

    @property
    def optimizer_state(self) -> Tree:
        """The optimizer's state; raises `StateError` in a loop that has none."""
        return self._train_state().optimizer_state

    def _train_state(self) -> TrainState:
        if not isinstance(self.step_state, TrainState):
            raise StateError(f"expected the state of a trainer, got a loop over {type(self.step_state).__name__}")
        return self.step_state

    def with_model_state(self, model_state: ModelState) -> LoopState:
        """The same state with another model state, which the next step takes over."""
        if isinstance(self.step_state, ModelState):
            return replace(self, step_state=model_state)
        return replace(self, step_state=replace(self._train_state(), model_state=model_state))

    def with_optimizer_state(self, optimizer_state: Tree) -> LoopState:
        """The same state with another optimizer state."""
        return replace(self, step_state=replace(self._train_state(), optimizer_state=optimizer_state))

    def with_step_state(self, step_state: Tree) -> LoopState:
        """The same state with another step state."""
        return replace(self, step_state=step_state)

    def with_metrics(self, **metrics: Any) -> LoopState:
        """The same state with these values added to the metrics; they last until the epoch ends."""
        return replace(self, metrics={**self.metrics, **metrics})

    def with_handler_state(self, name: str, value: Any) -> LoopState:
        """The same state in which the handler `name` remembers `value` (plain JSON, so that it is checkpointed)."""
        return replace(self, handler_state={**self.handler_state, name: value})

    def copy(self) -> LoopState:
        """The same state with arrays of its own, which later steps leave alone."""
        return replace(self, step_state=jax.tree.map(jnp.copy, self.step_state))

    def values(self) -> dict[str, Any]:
        """The metrics on the host: floats, or nested lists for metrics that are not scalar. Waits for the device."""
        return {name: jax.device_get(value).tolist() for name, value in self.metrics.items()}
