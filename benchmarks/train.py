"""Training throughput: `Loop.run` beside hand-written JAX, Flax NNX, Keras 3 on JAX, and PyTorch.

Four works (`train_works.py`): an MLP and a CNN on MNIST, an LSTM and a GPT on Shakespeare's plays. All sides run the
same job (`train_sides.py`) in one process, in turns whose order is drawn; ratios are the medians of the rounds'. Then
what the loop costs beside a hand-written step: host time, time to the first step, peak memory. Sides that are not
installed are left out.

    python benchmarks/train.py [--work mlp] [--side PyTorch] [--rounds 15] [--seconds 1] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")
import jax

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.report import Report  # noqa: E402
from benchmarks.train_costs import first_steps, host_overhead, same_start, step_bytes  # noqa: E402
from benchmarks.train_sides import BY_HAND, OURS, SCAN, SCANNED, SIDES, Train, missing  # noqa: E402
from benchmarks.train_works import WORKS, TrainWork  # noqa: E402

BEST = "the faster hand-written"
TARGETS = {"Flax NNX": 1.0, "Keras on JAX": 1.0, "PyTorch": 1.0, BEST: 1.0}
CNN_TARGETS = TARGETS | {"Flax NNX": 2.0, "Keras on JAX": 2.0, BEST: 2.0}
AT_MOST = {"host overhead": 0.05, "time to first step": 1.1, "peak memory": 1.1}
FEWEST_ROUNDS = 3


def turns(work: TrainWork, sides: dict[str, Train], rounds: int, seconds: float) -> tuple[int, dict[str, list[float]]]:
    """Batches per turn, and each side's samples per second in every round."""
    warm = {side: (train(SCANNED), train(SCANNED)) for side, train in sides.items()}
    assert all(loss == loss for losses in warm.values() for loss in losses)
    once = min(timed(sides[side], SCANNED) for side in (OURS, BY_HAND) if side in sides)
    limit = int(len(work.x) * 0.9) // work.batch // SCANNED
    batches = SCANNED * max(1, min(limit, round(seconds / once)))
    for train in sides.values():
        train(batches)
    order, rates = list(sides), {side: list[float]() for side in sides}
    chance = random.Random(0)
    for _ in range(max(FEWEST_ROUNDS, rounds)):
        chance.shuffle(order)
        for side in order:
            sides[side](SCANNED)  # until the threads of the side before have stopped spinning
            rates[side].append(batches * work.batch / timed(sides[side], batches))
    return batches, rates


def timed(train: Train, batches: int) -> float:
    """Seconds of one turn."""
    start = time.perf_counter()
    train(batches)
    return time.perf_counter() - start


def throughput(work: TrainWork, names: list[str], report: Report, rounds: int, seconds: float) -> dict[str, float]:
    """All sides of a work in turns; returns our ratio to each of the others."""
    sides = {side: SIDES[side](work) for side in names}
    batches, rates = turns(work, sides, rounds, seconds)
    label = f"{work.name}, {work.source}, batch {work.batch}, {batches} batches"
    for side, found in rates.items():
        report.add(label, side, "samples_per_s", statistics.median(found))
    by_hand = [rates[side] for side in (BY_HAND, SCAN) if side in rates]
    others = {side: found for side, found in rates.items() if side != OURS}
    if by_hand:
        others[BEST] = max(by_hand, key=statistics.median)
    # Round by round: all sides of a round meet the same load of the machine.
    ratios = {
        side: statistics.median(a / b for a, b in zip(rates[OURS], found, strict=True))
        for side, found in others.items()
    }
    for side, ratio in ratios.items():
        report.add(label, f"{OURS} / {side}", "ratio", ratio)
    return ratios


def costs(work: TrainWork, report: Report, rounds: int, seconds: float) -> dict[str, float]:
    """What the loop costs beside a hand-written step."""
    batches = max(5, min(int(len(work.x) * 0.9) // work.batch, int(seconds / STEP_S[work.name])))
    firsts = first_steps(work, max(FEWEST_ROUNDS, rounds // 3))
    step, execution, by_hand = step_bytes(work)
    found = {
        "host overhead": host_overhead(work, batches, rounds),
        "time to first step": statistics.median(a / b for a, b in zip(firsts[OURS], firsts[BY_HAND], strict=True)),
        "peak memory": step / by_hand,
        "peak memory of an execution": execution / by_hand,
    }
    for side, times in firsts.items():
        report.add(work.name, side, "first_step_s", statistics.median(times))
    for side, size in ((OURS, step), (f"{OURS}, an execution", execution), (BY_HAND, by_hand)):
        report.add(work.name, side, "step_bytes", size)
    report.add(work.name, OURS, "host_share", found["host overhead"])
    for name in ("time to first step", "peak memory", "peak memory of an execution"):
        report.add(work.name, f"{OURS} / {BY_HAND}, {name}", "ratio", found[name])
    return found


STEP_S = {"mlp": 4e-4, "cnn": 0.015, "lstm": 0.05, "gpt": 0.1}
"""About how long a step takes on two cores, to choose how many make a turn."""


def verdicts(work: TrainWork, ratios: dict[str, float], spent: dict[str, float]) -> list[str]:
    """What misses its target."""
    wanted = CNN_TARGETS if work.name == "cnn" else TARGETS
    slow = [
        f"{work.name}: expected {wanted[side]} x {side} or more, got {ratio:.3f}"
        for side, ratio in ratios.items()
        if ratio < wanted.get(side, 0)
    ]
    dear = [
        f"{work.name}: expected {name} of {AT_MOST[name]} or less, got {value:.3f}"
        for name, value in spent.items()
        if value > AT_MOST.get(name, value)
    ]
    return slow + dear


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=list(WORKS), action="append")
    parser.add_argument("--side", choices=[side for side in SIDES if side != OURS], action="append")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=1, help="about how long one turn of ours takes")
    parser.add_argument("--no-costs", action="store_true", help="throughput alone")
    parser.add_argument("--json", metavar="FILE")
    return parser.parse_args()


def main() -> int:
    """Measure, print, and fail when a target is missed."""
    options = parse()
    report, missed = Report(f"Training on {jax.devices()[0].device_kind}"), []
    wanted = [OURS, *(options.side or [side for side in SIDES if side != OURS])]
    for side in wanted:
        if package := missing(side):
            print(f"{side}: left out, {package} is not installed")
    names = [side for side in wanted if missing(side) is None]
    for name in options.work or list(WORKS):
        work = WORKS[name]()
        same_start(work)
        ratios = throughput(work, names, report, options.rounds, options.seconds)
        spent = {} if options.no_costs else costs(work, report, options.rounds, options.seconds)
        missed += verdicts(work, ratios, spent)
        report.write(options.json)
    report.finish(options.json)
    print("\n".join(missed) or "all targets met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
