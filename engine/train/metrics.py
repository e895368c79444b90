"""Metrics of a loop: what is measured in every iteration, and how an epoch's values become one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from engine.errors import OptionError
from engine.functional.metrics import METRICS
from engine.functional.rows import Rows
from engine.train.state import Accumulators

Accumulate = Callable[[Any, Any, Any], Any]
"""`accumulate(accumulated, value, i)` with i counting an epoch's batches from 0; starts from zero."""

ACCUMULATORS = ("running_average", "running_sum")


@dataclass(frozen=True, slots=True)
class Metric:
    """A named measurement and how its values are accumulated."""

    name: str
    function: Callable[..., Any]
    accumulate: str | Accumulate


def make_metric(
    metric: str | Callable[..., Any], name: str | None, accumulate: str | Accumulate, options: Mapping[str, Any]
) -> Metric:
    """A metric from its name in `engine.functional.metrics`, or from a function, with `options` bound to it.

    Raises:
        OptionError: an unknown name, option or accumulator; a function without a name.
    """
    if isinstance(metric, str):
        if metric not in METRICS:
            raise OptionError(f"metric: expected one of {', '.join(METRICS)}, or a function; got {metric!r}")
        name = metric if name is None else name
        function: Callable[..., Any] = METRICS[metric]
    elif callable(metric):
        function = metric
    else:
        raise OptionError(f"metric: expected a name or a function, got {type(metric).__name__}")
    if not isinstance(name, str) or not name:
        raise OptionError(f"metric: expected a name for {metric!r}, got {name!r}")
    check_options(f"metric {name}", function, options)
    if not callable(accumulate) and accumulate not in ACCUMULATORS:
        known = ", ".join(ACCUMULATORS)
        raise OptionError(f"metric {name}: expected accumulate to be one of {known}, or a function; got {accumulate!r}")
    return Metric(name, partial(function, **options) if options else function, accumulate)


def check_options(what: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raise `OptionError` for an option that `function` does not take by keyword; `rows` come with a batch."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "rows"]
    if unknown := sorted(set(options) - set(known)):
        raise OptionError(f"{what}: expected options out of {', '.join(known) or 'none'}; got {', '.join(unknown)}")


def call_with_rows(what: str, function: Callable[..., Any], arguments: tuple[Any, ...], rows: Rows) -> Any:
    """`function(*arguments)`, for a batch with row weights `function(*arguments, rows=rows)`.

    Raises: `OptionError` when there are weights and the function has no parameter `rows`: it could not leave padding
        out.
    """
    if rows is None:
        return function(*arguments)
    if "rows" not in inspect.signature(function).parameters:
        raise OptionError(f"{what}: expected a function with a parameter rows, since the batches have row weights")
    return function(*arguments, rows=rows)


@dataclass(frozen=True, slots=True)
class Observation:
    """What one step lets metrics see: the `arguments` they are called with, and values `reports` by name.

    Reports, such as the loss, are averaged like metrics. `rows` are the weights of the batch's rows, if it has any.
    """

    arguments: tuple[Any, ...]
    reports: Mapping[str, jax.Array] = field(default_factory=dict)
    rows: Rows = None

    def measure(self, metrics: tuple[Metric, ...]) -> dict[str, jax.Array]:
        """The values of this batch, by name; raises `OptionError` where there is nothing to measure."""
        if metrics and not self.arguments:
            raise OptionError("metrics: expected an objective that returns (loss, output), got the loss alone")
        measured = {
            metric.name: jnp.asarray(
                call_with_rows(f"metric {metric.name}", metric.function, self.arguments, self.rows)
            )
            for metric in metrics
        }
        return {**self.reports, **measured}


def zeros(measured: Mapping[str, jax.ShapeDtypeStruct], metrics: tuple[Metric, ...]) -> Accumulators:
    """Accumulators at the start of an epoch, for values like `measured`."""
    sums = {metric.name for metric in metrics if metric.accumulate == "running_sum"}
    values = {
        name: jnp.zeros(value.shape, _sum_dtype(value.dtype) if name in sums else _mean_dtype(value.dtype))
        for name, value in measured.items()
    }
    return Accumulators(values, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))


def _mean_dtype(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)


def _sum_dtype(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.int32)


def accumulated(
    so_far: Accumulators,
    measured: Mapping[str, jax.Array],
    metrics: tuple[Metric, ...],
    rows: int | jax.Array,
    counted: int | jax.Array = 1,
) -> Accumulators:
    r"""The accumulators after one more batch of `rows` rows, or whose row weights have this sum.

    `counted` is 0 for a batch that shall not count among the iterations.

    A running average weighs each batch by its rows, $a \leftarrow a + (v - a)\, r / (R + r)$, so that a smaller last
    batch counts for what it is; with batches of one size that is the mean of their values. A batch of padding alone
    does not count. Values are float32 at least. A running sum keeps integers.
    """
    how = {metric.name: metric.accumulate for metric in metrics}
    total = so_far.rows + rows
    share = rows / jnp.where(total > 0, total, 1)
    values = {}
    for name, value in measured.items():
        previous = so_far.values[name]
        accumulate = how.get(name, "running_average")
        if callable(accumulate):
            value = accumulate(previous, value, so_far.iterations)
        elif accumulate == "running_sum":
            value = previous + value
        else:
            value = previous + (value - previous) * share.astype(previous.dtype)
        values[name] = jnp.asarray(value, previous.dtype)
    return Accumulators(values, so_far.iterations + counted, total)
