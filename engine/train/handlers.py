"""Handlers that a loop offers: logging, validation, monitoring a metric.

A handler is `handler(state) -> None | LoopState | Status | (Status, LoopState)`. `Logging` and
`Validation` are bound to their loop when it runs, so that they see all its metrics, whenever those were added.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import DivergedError, OptionError
from engine.functional.options import as_integer, require_choice, require_number
from engine.optim import multiply_scale
from engine.train import checkpoint
from engine.train.data import Data
from engine.train.events import Status
from engine.train.state import LoopState

if TYPE_CHECKING:
    from engine.train.loop import Loop

Answer = None | LoopState | Status | tuple[Status, LoopState]
Handler = Callable[[LoopState], Answer]


def read_answer(answer: Any, state: LoopState) -> tuple[Status, LoopState]:
    """Status and state from what a handler returned; raises `OptionError` for anything else."""
    match answer:
        case None:
            return Status.CONTINUE, state
        case LoopState():
            return Status.CONTINUE, answer
        case Status():
            return answer, state
        case (Status() as status, LoopState() as changed):
            return status, changed
    raise OptionError(
        f"handler of {state.event}: expected None, a LoopState, a Status or (Status, LoopState), got {answer!r:.200}"
    )


def require_finite(name: str, value: Any, state: LoopState) -> None:
    """Raise `DivergedError` when a scalar on the host is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        raise DivergedError(
            f"training diverged: expected a finite {name}, got {value} in epoch {state.epoch} "
            f"after {state.total_iterations} iterations"
        )


def describe(state: LoopState) -> str:
    """One line: epoch, iteration and all metrics; waits for their values."""
    values = (f"{name} {_number(value)}" for name, value in state.values().items())
    return ", ".join([f"epoch {state.epoch}", f"iteration {state.iteration}", *values])


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def write_line(line: str) -> None:
    """Write a line to standard output."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


@dataclass(frozen=True, slots=True)
class Logging:
    """Sends `message(state)` to `sink`; a loss that is not finite ends the run, as at an epoch's end."""

    message: Callable[[LoopState], str]
    sink: Callable[[str], None]

    def bind(self, loop: Loop) -> Handler:
        def handler(state: LoopState) -> None:
            self.sink(self.message(state))
            if loop.on_nonfinite == "raise" and "loss" in state.metrics:
                require_finite("loss", state.metrics["loss"].item(), state)

        return handler


@dataclass(frozen=True, slots=True)
class Validation:
    """Evaluates the model on `data` with the loop's metrics and loss, and adds them as `validation_<name>`.

    Nothing is fetched from the device.
    """

    data: Data

    def bind(self, loop: Loop) -> Handler:
        evaluation = type(loop)(loop.program.evaluation, on_nonfinite="ignore")

        def handler(state: LoopState) -> LoopState:
            found = evaluation.run(self.data, state.model_state).metrics
            return state.with_metrics(**{f"validation_{name}": value for name, value in found.items()})

        return handler


@dataclass(frozen=True, slots=True)
class Monitor:
    """Calls `handler` when a metric has stopped improving.

    At each event the metric is compared with the best so far. After `patience` events without improvement the next
    one calls the handler, and the count starts again from the value of that moment. What it remembers is
    `state.handler_state[name] = {"best": ..., "since_improvement": ...}`, so it goes on exactly after a resume.

    Source: Axon.Loop.monitor/5.
    """

    metric: str
    handler: Handler
    name: str
    mode: str
    patience: int

    def __post_init__(self) -> None:
        require_choice("monitor", "mode", self.mode, ("min", "max"))
        as_integer("monitor", "patience", self.patience, at_least=0)

    def __call__(self, state: LoopState) -> Answer:
        value = read_metric(f"monitor {self.name}", self.metric, state)
        memory = state.handler_state.get(self.name)
        if memory is None or is_better(value, memory["best"], self.mode):
            return self._remember(state, value, 0)
        if memory["since_improvement"] < self.patience:
            return self._remember(state, memory["best"], memory["since_improvement"] + 1)
        state = self._remember(state, value, 0)
        status, state = read_answer(self.handler(state), state)
        return status, state

    def _remember(self, state: LoopState, best: float, since: int) -> LoopState:
        return state.with_handler_state(self.name, {"best": best, "since_improvement": since})


@dataclass(frozen=True, slots=True)
class Saving:
    """Writes a checkpoint to `folder/checkpoint_<steps done>`; with a metric only when it is better than ever before.

    The best value is `state.handler_state["checkpoint"]`, and in the checkpoint itself. One of the same step, left by
    a run that went on from an earlier one, is replaced.
    """

    folder: Path
    metric: str | None
    mode: str

    def __post_init__(self) -> None:
        require_choice("checkpoint", "mode", self.mode, ("min", "max"))

    def __call__(self, state: LoopState) -> LoopState:
        if self.metric is not None:
            value = read_metric("checkpoint", self.metric, state)
            best = state.handler_state.get("checkpoint")
            if best is not None and not is_better(value, best, self.mode):
                return state
            state = state.with_handler_state("checkpoint", value)
        path = self.folder / f"checkpoint_{state.total_iterations}"
        shutil.rmtree(path, ignore_errors=True)
        checkpoint.save(path, state)
        return state


def read_metric(owner: str, metric: str, state: LoopState) -> float:
    """A metric's value on the host; raises `OptionError` when there is none of that name."""
    if metric not in state.metrics:
        known = ", ".join(state.metrics) or "none"
        raise OptionError(f"{owner}: expected a metric out of {known}; got {metric!r}")
    return float(state.metrics[metric])


def is_better(value: float, best: float, mode: str) -> bool:
    """Whether a value is below (mode `min`) or above (`max`) the best so far."""
    return value < best if mode == "min" else value > best


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


def bound(handler: Any, loop: Loop) -> Handler:
    """The handler as a function of the state, made for `loop` where it asks for that."""
    return handler.bind(loop) if isinstance(handler, (Logging, Validation)) else handler
