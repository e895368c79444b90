"""What is compiled for a loop: one iteration, with everything that is measured in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from engine.train.executions import chosen_steps
from engine.train.metrics import Metric, accumulated, zeros
from engine.train.parallel import Placement
from engine.train.state import Accumulators, Tree
from engine.train.step import Batch, Step, TrainStep, evaluation_step


@dataclass(frozen=True, eq=False)
class Program:
    """A step and the metrics measured in it. Loops that differ in handlers alone share one, and its executables.

    `placement` says on which devices it runs; None leaves that to JAX. `steps_per_execution` iterations are one call
    where nobody is told of those between; None leaves their number to what was measured.
    """

    step: Step
    metrics: tuple[Metric, ...] = ()
    placement: Placement | None = None
    steps_per_execution: int | None = None
    _chosen: dict[Any, int] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def iteration(self) -> Callable[[Tree, Accumulators, Batch], tuple[Tree, Accumulators]]:
        """One iteration, compiled once per shape of a batch."""
        return self._compiled(self._iteration)

    @cached_property
    def execution(self) -> Callable[[Tree, Accumulators, tuple[Batch, ...]], tuple[Tree, Accumulators]]:
        """Iterations over several batches of one form, one after the other, as one program."""
        return self._compiled(self._iterations)

    def steps_together(self, step_state: Tree, so_far: Accumulators, batch: Batch) -> int:
        """How many iterations are one execution, for a state and batches like these."""
        if self.steps_per_execution is not None:
            return self.steps_per_execution
        if self.placement is not None:
            return 1  # not measured
        leaves, structure = jax.tree.flatten((step_state, so_far, batch))
        form = structure, *((kind.shape, kind.dtype) for kind in map(jax.typeof, leaves))
        if form not in self._chosen:
            self._chosen[form] = chosen_steps(self.iteration, (step_state, so_far), batch)
        return self._chosen[form]

    def _compiled(self, function: Callable[..., tuple[Tree, Accumulators]]) -> Callable[..., tuple[Tree, Accumulators]]:
        donated = 0 if self.step.donates else ()
        if self.placement is None:
            return jax.jit(function, donate_argnums=donated)
        placement = self.placement

        def placed(step_state: Tree, so_far: Accumulators, batch: Batch) -> tuple[Tree, Accumulators]:
            """Its results lie where its arguments did, whatever XLA would prefer."""
            return placement.keep_state(function(step_state, so_far, batch))

        compiled = jax.jit(placed, donate_argnums=donated)
        return lambda step_state, so_far, batch: compiled(step_state, so_far, placement.place_batch(batch))

    def _iterations(
        self, step_state: Tree, so_far: Accumulators, batches: tuple[Batch, ...]
    ) -> tuple[Tree, Accumulators]:
        def iterate(carry: tuple[Tree, Accumulators], batch: Batch) -> tuple[tuple[Tree, Accumulators], None]:
            return self._iteration(*carry, batch), None

        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
        return jax.lax.scan(iterate, (step_state, so_far), stacked)[0]

    def place(self, state: Tree) -> Tree:
        """A step state or accumulators on the devices of this program."""
        return state if self.placement is None else self.placement.place_state(state)

    def _iteration(self, step_state: Tree, so_far: Accumulators, batch: Batch) -> tuple[Tree, Accumulators]:
        if isinstance(self.step, TrainStep) and self.step.guarded:
            # Once the mean of the losses is not finite, nothing changes until someone looks: the state stays that of
            # the step to explain, and `iterations` stays its number in the epoch.
            fine = jnp.isfinite(so_far.values["loss"])
            step_state, observation = self.step.step(step_state, batch, fine)
            counted: int | jax.Array = (fine & jnp.isfinite(observation.reports["loss"])).astype(jnp.int32)
        else:
            step_state, observation = self.step.step(step_state, batch)
            counted = 1
        measured = observation.measure(self.metrics)
        rows = _rows(batch) if observation.rows is None else jnp.sum(observation.rows, dtype=jnp.float32)
        return step_state, accumulated(so_far, measured, self.metrics, rows, counted)

    @cached_property
    def reset(self) -> Callable[[Accumulators], Accumulators]:
        """Accumulators of the same kind at zero."""
        return jax.jit(lambda accumulators: jax.tree.map(jnp.zeros_like, accumulators))

    def new_accumulators(self, step_state: Tree, batch: Batch) -> Accumulators:
        """Accumulators at zero, for the metrics of batches like `batch`."""
        accumulators: Accumulators = self.place(zeros(self._measured.eval_shape(step_state, batch), self.metrics))
        return accumulators

    @cached_property
    def _measured(self) -> Any:
        return jax.jit(lambda step_state, batch: self.step.step(step_state, batch)[1].measure(self.metrics))

    @cached_property
    def evaluation(self) -> Program:
        """The same metrics and loss of a trainer's model, in inference mode."""
        assert isinstance(self.step, TrainStep)
        return replace(self, step=evaluation_step(self.step.model, self.step.objective))


def _rows(batch: Batch) -> int:
    leaves = [leaf for leaf in jax.tree.leaves(batch) if leaf.ndim > 0]
    return leaves[0].shape[0] if leaves else 1
