"""A search for the learning rate: one short run in which it grows from very small to very large."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from engine.errors import DataError, OptionError
from engine.functional.options import as_integer, require_number
from engine.model.model import Model
from engine.model.state import ModelState
from engine.optim import Spec, set_learning_rate
from engine.train.data import Batch, Data, as_data
from engine.train.objectives import Losses
from engine.train.state import TrainState
from engine.train.step import TrainStep, train_step


@dataclass(frozen=True, slots=True)
class LearningRates:
    """What a sweep has found.

    Attributes:
        learning_rates: `[steps]`, those that were tried, rising.
        losses: `[steps]`, the smoothed loss of each.
        suggestion: where the loss falls most steeply; None where it never does.
    """

    learning_rates: np.ndarray
    losses: np.ndarray
    suggestion: float | None


def find_learning_rate(
    model: Model,
    loss: Losses,
    data: Data | Iterable[Batch],
    *,
    optimizer: Spec = "adam",
    state: ModelState | None = None,
    min: float = 1e-6,
    max: float = 10.0,
    num_training: int = 100,
    smoothing: float = 0.98,
    early_stop_threshold: float | None = 4.0,
    skip_begin: int = 10,
    skip_end: int = 1,
    seed: int = 0,
) -> LearningRates:
    r"""Train for a moment with learning rates from `min` to `max` and see where the loss falls most steeply.

    Step i of n has the rate $r_i = \min\, (\max / \min)^{i / (n - 1)}$. The loss is smoothed,
    $a \leftarrow \beta a + (1 - \beta) l_i$, $s_i = a / (1 - \beta^{i + 1})$; the suggestion is the rate at which $s$
    has its lowest slope over $\log r$.

    Args:
        model: what to train.
        loss: as for `trainer`.
        data: iterated again from its start where it is shorter than the sweep.
        optimizer: as for `trainer`, with one number as learning rate, which is not used.
        state: to start from, unchanged; None makes one from the seed.
        min: the first rate, above 0.
        max: the last one.
        num_training: how many steps, n.
        smoothing: $\beta$, at least 0 and below 1.
        early_stop_threshold: stop when the smoothed loss exceeds so many times its least value; None never. A loss
            that is not finite ends the sweep in any case and is left out.
        skip_begin: how many of the first steps are not considered for the suggestion.
        skip_end: how many of the last ones.
        seed: of the parameters.
    Raises:
        OptionError: a value outside its domain, or an optimizer whose learning rate is a schedule, or several.
        DataError: no batches.
    Source: Smith, 2017, "Cyclical learning rates for training neural networks", arXiv:1506.01186; the proposal of an
        `Axon.LearningRateFinder`.
    """
    op = "find_learning_rate"
    require_number(op, "min", min, at_least=0.0)
    require_number(op, "max", max, at_least=min)
    if not 0 < min < max:
        raise OptionError(f"{op}: expected 0 < min < max, got min {min} and max {max}")
    require_number(op, "smoothing", smoothing, at_least=0.0, less_than=1.0)
    if early_stop_threshold is not None:
        require_number(op, "early_stop_threshold", early_stop_threshold, at_least=1.0)
    skipped = [as_integer(op, name, n, at_least=0) for name, n in (("skip_begin", skip_begin), ("skip_end", skip_end))]
    count = as_integer(op, "num_training", num_training, at_least=2)
    rates = min * (max / min) ** (np.arange(count) / (count - 1))
    sweep = _sweep(train_step(model, loss, optimizer, seed=seed), as_data(data), state, rates)
    losses = _smoothed(sweep, smoothing, math.inf if early_stop_threshold is None else early_stop_threshold)
    rates = rates[: len(losses)]
    return LearningRates(rates, losses, _steepest(rates, losses, *skipped))


def _sweep(step: TrainStep, data: Data, state: ModelState | None, rates: np.ndarray) -> Iterator[float]:
    """The loss of each step, as it is made."""

    def advance(state: TrainState, batch: Batch, rate: Any) -> tuple[TrainState, jax.Array]:
        state = replace(state, optimizer_state=set_learning_rate(state.optimizer_state, rate))
        state, observation = step.step(state, batch)
        return state, observation.reports["loss"]

    with step.context():
        running = step.init(data.peek(), state, None)
        compiled = jax.jit(advance, donate_argnums=0)
        for batch, rate in zip(_cycle(data), rates, strict=False):
            running, loss = compiled(running, batch, np.float32(rate))
            yield float(loss)


def _cycle(data: Data) -> Iterator[Batch]:
    epoch = 0
    while True:
        empty = True
        for batch in data.epoch(epoch):
            empty = False
            yield batch
        if empty:
            raise DataError(f"data: expected at least one batch in epoch {epoch}, got none")
        epoch += 1


def _smoothed(losses: Iterator[float], smoothing: float, threshold: float) -> np.ndarray:
    average, smooth = 0.0, list[float]()
    for loss in losses:
        average = smoothing * average + (1 - smoothing) * loss
        current = average / (1 - smoothing ** (len(smooth) + 1))
        if not math.isfinite(current):
            break
        smooth.append(current)
        if len(smooth) > 1 and current > threshold * min(smooth):
            break
    return np.array(smooth)


def _steepest(rates: np.ndarray, losses: np.ndarray, skip_begin: int, skip_end: int) -> float | None:
    considered = slice(skip_begin, len(losses) - skip_end)
    if len(losses[considered]) < 2:
        return None
    # The rates are evenly spaced on a logarithmic scale.
    slopes = np.gradient(losses[considered])
    lowest = int(np.argmin(slopes))
    return float(rates[considered][lowest]) if slopes[lowest] < 0 else None
