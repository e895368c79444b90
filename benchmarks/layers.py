"""Layers: forward and backward of each family beside plain JAX, Flax NNX and PyTorch.

Every side computes the same: the value and the gradients of `sum(output * cotangent)` with respect to parameters and
inputs, jitted, float32. Outputs and gradients are compared first. Compilation is not timed. Then the sides take turns,
in an order that is drawn, and the ratio is the median of the rounds': (time of the faster other side) / (our time).
Flax takes part where the extra `bench` is installed. PyTorch takes part where it is installed, with parameters of its
own (`layer_torch.py`); its outputs are not compared, and the ratio to it stands apart.

    python benchmarks/layers.py [--only lstm] [--rounds 41] [--seconds 6] [--json FILE]
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.layer_sides import Side, Work  # noqa: E402
from benchmarks.layer_torch import INSTALLED, torch_step  # noqa: E402
from benchmarks.layer_works import WORKS  # noqa: E402
from benchmarks.report import Report  # noqa: E402

TARGET = 0.97
FLOOR = 0.9
TURN_S = 0.03
"""A side's turn in a round takes at least this long: short calls are repeated."""


class Measured(NamedTuple):
    """The outcome of one work."""

    name: str
    times_s: dict[str, float]
    ratio: float
    to_torch: float | None = None


def is_float(value: np.ndarray) -> bool:
    """Whether gradients reach an input."""
    return bool(jnp.issubdtype(value.dtype, jnp.floating))


def gradients_of(work: Work, side: Side) -> Callable[[], Any]:
    """`step() -> ((value, (output state)), (parameter gradients, input gradients))`, compiled."""
    inputs = [jnp.asarray(value) for value in work.inputs]
    reached = [i for i, value in enumerate(inputs) if is_float(value)]
    output, _ = jax.eval_shape(side.apply, side.parameters, side.state, *inputs)
    cotangent = jnp.asarray(np.random.default_rng(7).standard_normal(output.shape, np.float32))

    def loss(
        parameters: Any, floats: list[jax.Array], state: Any, inputs: list[jax.Array], cotangent: jax.Array
    ) -> Any:
        values = [floats[reached.index(i)] if i in reached else value for i, value in enumerate(inputs)]
        output, new = side.apply(parameters, state, *values)
        return jnp.sum(output * cotangent), new

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    arguments = (side.parameters, [inputs[i] for i in reached], side.state, inputs, cotangent)
    return lambda: step(*arguments)


def norm(tree: Any) -> float:
    """The Euclidean norm of all leaves, which does not mind how they are split."""
    return math.sqrt(sum(float(np.square(np.asarray(leaf, np.float64)).sum()) for leaf in jax.tree.leaves(tree)))


def compare(work: Work) -> None:
    """Raise `AssertionError` unless all sides give the same outputs and gradients."""
    inputs = [jnp.asarray(value) for value in work.inputs]
    outputs, steps = {}, {}
    for name, side in work.sides.items():
        outputs[name] = np.asarray(jax.jit(side.apply)(side.parameters, side.state, *inputs)[0])
        steps[name] = gradients_of(work, side)()
    if work.random:
        for output in outputs.values():
            kept = output != 0
            assert abs(kept.mean() - 0.5) < 0.01
            np.testing.assert_allclose(output[kept], 2 * work.inputs[0][kept], rtol=1e-6)
        return
    _, (own_parameters, own_inputs) = steps["ours"]
    for name, (_, (parameters, floats)) in steps.items():
        np.testing.assert_allclose(outputs[name], outputs["ours"], rtol=1e-3, atol=1e-3, err_msg=name)
        for got, expected in zip(floats, own_inputs, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3, err_msg=name)
        if work.sides[name].same_parameters:
            np.testing.assert_allclose(norm(parameters), norm(own_parameters), rtol=1e-3, err_msg=name)


def turn(step: Callable[[], Any], calls: int) -> float:
    """Seconds of one call, over so many."""
    start = time.perf_counter()
    for _ in range(calls):
        jax.block_until_ready(step())
    return (time.perf_counter() - start) / calls


def measure(key: str, work: Work, *, rounds: int, seconds: float) -> Measured:
    """Compare the sides, warm up, and let them take turns."""
    compare(work)
    steps = {name: gradients_of(work, side) for name, side in work.sides.items()}
    if INSTALLED and (step := torch_step(key, work.inputs)) is not None:
        steps["torch"] = step
    once = {name: min(turn(step, 1) for _ in range(3)) for name, step in steps.items()}
    calls = {name: max(1, round(TURN_S / time_s)) for name, time_s in once.items()}
    round_s = sum(calls[name] * once[name] for name in steps)
    order, drawn = list(steps), random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(max(5, min(rounds, int(seconds / round_s)))):
        drawn.shuffle(order)  # Rotated, the same side would always follow PyTorch, whose threads spin for a while.
        for name in order:
            if calls[name] > 1:
                turn(steps[name], 1)
            times[name].append(turn(steps[name], calls[name]))
    medians = {name: statistics.median(found) for name, found in times.items()}
    faster = min((name for name in work.sides if name != "ours"), key=medians.__getitem__)
    # Round by round: both sides of a round meet the same load of the machine.
    ratio = statistics.median(a / b for a, b in zip(times[faster], times["ours"], strict=True))
    to_torch = [a / b for a, b in zip(times.get("torch", []), times["ours"], strict=False)]
    return Measured(work.name, medians, ratio, statistics.median(to_torch) if to_torch else None)


def verdict(ratio: float) -> str:
    """What the table says of a ratio."""
    return "met" if ratio >= TARGET else "below" if ratio >= FLOOR else "FAR BELOW"


def print_summary(found: list[Measured]) -> None:
    """One line per work."""
    table = Table(title=f"Forward and backward on {jax.devices()[0].device_kind}, ms per call")
    table.add_column("work")
    for column in ("ours", "jax", "flax", "torch", "ratio to the faster", f">= {TARGET}", "to torch"):
        table.add_column(column, justify="right")
    for row in found:
        sides = ("ours", "jax", "flax", "torch")
        cells = [f"{1000 * row.times_s[side]:.3g}" if side in row.times_s else "-" for side in sides]
        to_torch = "-" if row.to_torch is None else f"{row.to_torch:.2f}"
        table.add_row(row.name, *cells, f"{row.ratio:.2f}", verdict(row.ratio), to_torch)
    Console(width=120).print(table)


def main() -> int:
    """Measure, print, and fail when a ratio is below the floor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(WORKS), action="append", metavar="NAME")
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--seconds", type=float, default=6, help="of measuring per work, at least 5 rounds")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    report = Report(f"Forward and backward on {jax.devices()[0].device_kind}")
    found = []
    for name in options.only or WORKS:
        measured = measure(name, WORKS[name](), rounds=options.rounds, seconds=options.seconds)
        found.append(measured)
        for side, time_s in measured.times_s.items():
            report.add(measured.name, side, "ms", 1000 * time_s)
        report.add(measured.name, "faster other / ours", "ratio", measured.ratio)
        if measured.to_torch is not None:
            report.add(measured.name, "torch / ours", "ratio", measured.to_torch)
        print(f"{measured.name}: {measured.ratio:.2f}", flush=True)
    report.write(options.json)
    print_summary(found)
    return 1 if any(row.ratio < FLOOR for row in found) else 0


if __name__ == "__main__":
    sys.exit(main())
