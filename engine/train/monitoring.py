"""Watching a metric: what is better, and what to do when it stalls."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from engine.errors import OptionError
from engine.functional.options import as_integer, require_choice, require_number
from engine.optim import multiply_scale
from engine.train.answers import Answer, Handler, read_answer
from engine.train.events import Status
from engine.train.state import LoopState


@dataclass(frozen=True, slots=True)
class Monitor:
    """Calls `handler` when a metric has stopped improving.

    At each event the metric is compared with the best so far, which it must beat by more than `min_delta`. After
    `patience` events without improvement the next one calls the handler, and the count starts again from the value of
    that moment. What it remembers is `state.handler_state[name] = {"best": ..., "since_improvement": ...}`, so it goes
    on exactly after a resume.

    Source: Axon.Loop.monitor/5.
    """

    metric: str
    handler: Handler
    name: str
    mode: str
    patience: int
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        require_choice("monitor", "mode", self.mode, ("min", "max"))
        as_integer("monitor", "patience", self.patience, at_least=0)
        require_number("monitor", "min_delta", self.min_delta, at_least=0.0)

    def __call__(self, state: LoopState) -> Answer:
        value = read_metric(f"monitor {self.name}", self.metric, state)
        memory = state.handler_state.get(self.name)
        if memory is None or is_better(value, memory["best"], self.mode, self.min_delta):
            return self._remember(state, value, 0)
        if memory["since_improvement"] < self.patience:
            return self._remember(state, memory["best"], memory["since_improvement"] + 1)
        state = self._remember(state, value, 0)
        status, state = read_answer(self.handler(state), state)
        return status, state

    def _remember(self, state: LoopState, best: float, since: int) -> LoopState:
        return state.with_handler_state(self.name, {"best": best, "since_improvement": since})


def read_metric(owner: str, metric: str, state: LoopState) -> float:
    """A metric's value on the host; raises `OptionError` when there is none of that name."""
    if metric not in state.metrics:
        known = ", ".join(state.metrics) or "none"
        raise OptionError(f"{owner}: expected a metric out of {known}; got {metric!r}")
    return float(state.metrics[metric])


def is_better(value: float, best: float, mode: str, min_delta: float = 0.0) -> bool:
    """Whether a value is below (mode `min`) or above (`max`) the best so far by more than `min_delta`.

    A number is better than NaN.
    """
    if math.isnan(best):
        return not math.isnan(value)
    return value < best - min_delta if mode == "min" else value > best + min_delta


@dataclass(frozen=True, slots=True)
class Best:
    """Keeps a copy of the model's state when a metric is better than ever before, as `state.best_model_state`.

    With `averaged` the parameters are those that the optimizer averages. What it remembers is
    `state.handler_state["keep_best"] = {"best": ..., "epoch": ...}`; both are in checkpoints.
    """

    metric: str
    mode: str
    averaged: bool = False

    def __post_init__(self) -> None:
        require_choice("keep_best", "mode", self.mode, ("min", "max"))

    def __call__(self, state: LoopState) -> LoopState:
        value = read_metric("keep_best", self.metric, state)
        memory = state.handler_state.get("keep_best")
        if memory is not None and not is_better(value, memory["best"], self.mode):
            return state
        model_state = state.averaged_model_state if self.averaged else state.model_state
        kept = replace(state, best_model_state=jax.tree.map(jnp.copy, model_state))
        return kept.with_handler_state("keep_best", {"best": value, "epoch": state.epoch})


def halt(state: LoopState) -> Status:
    """A handler that ends the run."""
    del state
    return Status.HALT_LOOP


def reduce_learning_rate(factor: float) -> Handler:
    """A handler that multiplies the learning rate by `factor`; raises `OptionError` in a run with a schedule."""
    require_number("reduce_lr_on_plateau", "factor", factor, at_least=0.0)

    def handler(state: LoopState) -> LoopState:
        return state.with_optimizer_state(multiply_scale(state.optimizer_state, factor))

    return handler
