"""Handlers that a loop offers: logging and validation."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.train.answers import Handler, Plan
from engine.train.data import Data
from engine.train.divergence import require_finite
from engine.train.state import LoopState

if TYPE_CHECKING:
    from engine.train.loop import Loop


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

    def bind(self, loop: Loop, plan: Plan) -> Handler:
        """The handler of one run of `loop`."""
        del plan

        def handler(state: LoopState) -> None:
            self.sink(self.message(state))
            if loop.on_nonfinite == "raise" and "loss" in state.metrics:
                require_finite("loss", state.metrics["loss"].item(), state)

        return handler


@dataclass(frozen=True, slots=True)
class Validation:
    """Evaluates the model on `data` with the loop's metrics and loss, and adds them as `validation_<name>`.

    With `averaged` the parameters are those that the optimizer averages. Nothing is fetched from the device.
    """

    data: Data
    averaged: bool = False

    def bind(self, loop: Loop, plan: Plan) -> Handler:
        """The handler of one run of `loop`."""
        del plan

        evaluation = type(loop)(loop.program.evaluation, on_nonfinite="ignore")

        def handler(state: LoopState) -> LoopState:
            evaluated = state.averaged_model_state if self.averaged else state.model_state
            found = evaluation.run(self.data, evaluated).metrics
            return state.with_metrics(**{f"validation_{name}": value for name, value in found.items()})

        return handler
