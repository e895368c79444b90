"""The curves of `overload.py` as a picture: offered load against goodput, and against p50 and p99."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.overload import Curve

COLORS = ("#1f77b4", "#d95f02")


def draw(path: Path, title: str, curves: Sequence[Curve]) -> None:
    """Write an SVG; the same figures give the same bytes."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "axon", "svg.fonttype": "none"}
    from matplotlib import pyplot as plt

    figure, (speed, latency) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for color, curve in zip(COLORS, curves, strict=False):
        factors = [point.factor for point in curve.points]
        tallies = [point.tally for point in curve.points]
        label = f"{curve.wire}: 1x = {curve.sustainable_per_s:,.0f}/s"
        goodput = [tally.good_per_s / curve.sustainable_per_s for tally in tallies]
        speed.plot(factors, goodput, "o-", color=color, label=label)
        latency.plot(factors, [tally.p99_ms for tally in tallies], "o-", color=color, label=f"{curve.wire}: p99")
        latency.plot(factors, [tally.p50_ms for tally in tallies], "o--", color=color, label=f"{curve.wire}: p50")
    largest = max(point.factor for curve in curves for point in curve.points)
    speed.plot([0, 1, largest], [0, 1, 1], color="0.7", zorder=0, label="ideal")
    speed.set(xlabel="offered load / sustainable load", ylabel="goodput / sustainable load", ylim=(0, None))
    latency.set(xlabel="offered load / sustainable load", ylabel="ms, of accepted requests", yscale="log")
    for axes in (speed, latency):
        axes.set_xlim(0, None)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(f"Overload: {title}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
