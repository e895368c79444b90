"""How many steps go to the device as one program, where nobody has said."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax

STEPS = 8
"""Steps of an execution on the CPU, whose temporary memory is allocated once; more gained nothing more."""
MOST_BYTES = 2**24
"""The most that the batches of an execution may hold; the program stacks them, so that they are there twice."""
SLOW_IN_LOOPS = "conv_general_dilated"
"""What XLA's CPU backend computes more slowly within a loop: a CNN took 16 times as long."""


def chosen_steps(iteration: Any, state: Any, batch: Any) -> int:
    """The number of steps that was measured to be the fastest for a jitted `iteration(*state, batch)`, or 1.

    1 on any backend but the CPU, since no other was measured; for steps with convolutions; for large batches; and where
    a loop would not be the same: a step with effects, or whose state changes its types.
    """
    size = sum(math.prod(kind.shape) * kind.dtype.itemsize for kind in map(jax.typeof, jax.tree.leaves(batch)))
    if jax.default_backend() != "cpu" or STEPS * size > MOST_BYTES:
        return 1
    traced = iteration.trace(*state, batch)  # known since the iteration's first call
    results = traced.jaxpr.out_avals
    if traced.jaxpr.effects or traced.jaxpr.in_avals[: len(results)] != results:
        return 1
    return 1 if SLOW_IN_LOOPS in _primitives(traced.jaxpr) else STEPS


def _primitives(jaxpr: Any) -> Iterator[str]:
    """Names of the primitives of a jaxpr and of every jaxpr in it."""
    from jax.extend import core

    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        values = (value if isinstance(value, tuple | list) else (value,) for value in equation.params.values())
        for value in itertools.chain.from_iterable(values):
            if isinstance(value, core.ClosedJaxpr | core.Jaxpr):
                yield from _primitives(value)
