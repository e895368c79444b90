"""What a loop costs besides its throughput, beside a hand-written step: host time, first step, memory."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.train_sides import BY_HAND, OURS, RATE, engine_parts, initial, loss_function, update_function
from benchmarks.train_works import WORKS, TrainWork

ROOT = Path(__file__).resolve().parents[1]


def host_overhead(work: TrainWork, batches: int, rounds: int) -> float:
    """The share of `Loop.run` without validation that its steps, on batches that stay in the device, do not take.

    Median of the rounds; gathering batches, events, metrics, progress and starting the run are in it.
    """
    data, loop, state = engine_parts(work)
    program, begin = loop.program, loop.start(data, state)
    batch = jax.tree.map(jnp.asarray, data.peek())
    together = program.steps_together(begin.step_state, begin.accumulators, batch)

    def resident() -> None:
        carry = jax.tree.map(jnp.copy, (begin.step_state, begin.accumulators))
        executions, singles = divmod(batches, together) if together > 1 else (0, batches)
        for _ in range(executions):
            carry = program.execution(*carry, (batch,) * together)
        for _ in range(singles):
            carry = program.iteration(*carry, batch)
        jax.block_until_ready(carry)

    def run() -> None:
        jax.block_until_ready(loop.run(data, state, iterations=batches).step_state)

    for function in (resident, run):
        function()
    shares = []
    for i in range(rounds):
        times = {function: seconds(function) for function in (resident, run)[:: 1 if i % 2 else -1]}
        shares.append(1 - times[resident] / times[run])
    return statistics.median(shares)


def seconds(function: Callable[[], Any]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def step_bytes(work: TrainWork) -> tuple[int, int, int]:
    """Peak memory of compiled programs, arguments and results included.

    Our step, our execution of several steps (the same where it is one), and the hand-written step.
    """
    data, loop, state = engine_parts(work)
    begin, batch = loop.start(data, state), jax.tree.map(jnp.asarray, data.peek())
    program, carry_in = loop.program, (begin.step_state, begin.accumulators)
    together = program.steps_together(*carry_in, batch)
    ours = program.iteration.lower(*carry_in, batch)  # type: ignore[attr-defined]
    several = ours if together == 1 else program.execution.lower(*carry_in, (batch,) * together)  # type: ignore[attr-defined]
    optimizer = optax.adam(RATE)
    params = initial(work).parameters
    carry = params, optimizer.init(params), jax.random.key(0)
    rows = work.x[: work.batch], work.y[: work.batch]
    by_hand = jax.jit(update_function(work, optimizer), donate_argnums=0).lower(carry, *rows)
    found = [lowered.compile().memory_analysis() for lowered in (ours, several, by_hand)]
    first, second, third = (
        m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes + m.temp_size_in_bytes for m in found
    )
    return first, second, third


def first_step(name: str, side: str) -> float:
    """Seconds from a described model to the end of the first step; run in a process that has done nothing yet."""
    work = WORKS[name]()
    jnp.zeros(1).block_until_ready()  # starts the backend
    start = time.perf_counter()
    if side == OURS:
        data, loop, _ = engine_parts(work, initialise=False)
        jax.block_until_ready(loop.run(data, iterations=1).step_state)
        return time.perf_counter() - start
    made = jax.jit(lambda key: initialised(work, key))(jax.random.key(0))
    optimizer = optax.adam(RATE)
    carry = made, optimizer.init(made), jax.random.key(1)
    rows = work.x[: work.batch], work.y[: work.batch]
    jax.block_until_ready(jax.jit(update_function(work, optimizer), donate_argnums=0)(carry, *rows))
    return time.perf_counter() - start


def initialised(work: TrainWork, key: jax.Array) -> Any:
    """Parameters as one makes them by hand: Glorot uniform kernels, zeros, and ones for scales."""
    shapes = jax.eval_shape(lambda: initial(work).parameters)
    paths, tree = jax.tree_util.tree_flatten_with_path(shapes)
    made = []
    for number, (path, leaf) in enumerate(paths):
        if leaf.ndim > 1:
            draw = jax.nn.initializers.glorot_uniform()(jax.random.fold_in(key, number), leaf.shape)
        else:
            draw = (jnp.ones if "gamma" in jax.tree_util.keystr(path) else jnp.zeros)(leaf.shape)
        made.append(draw)
    return jax.tree.unflatten(tree, made)


def first_steps(work: TrainWork, rounds: int) -> dict[str, list[float]]:
    """`first_step` of both sides alternately, each in a process of its own."""
    found: dict[str, list[float]] = {OURS: [], BY_HAND: []}
    for _ in range(rounds):
        for side, times in found.items():
            code = f"from benchmarks.train_costs import first_step; print(first_step({work.name!r}, {side!r}))"
            done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
            times.append(float(done.stdout.split()[-1]))
    return found


def same_start(work: TrainWork) -> None:
    """Raise `AssertionError` unless our model and the hand-written one have the same loss before training."""
    import engine as ax

    state = initial(work)
    x, y = work.x[: work.batch], work.y[: work.batch]
    output = np.asarray(ax.build(work.model)[1](state, x), np.float64)
    log = np.log(output) if not work.random else output - np.log(np.exp(output).sum(-1, keepdims=True))
    ours = -np.take_along_axis(log, y[..., None], -1).mean()
    np.testing.assert_allclose(ours, jax.jit(loss_function(work))(state.parameters, x, y), rtol=1e-4)
