"""The course of a run as a picture: drawn anew while it goes on, in a file and in a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import OptionError
from engine.train.state import LoopState

if TYPE_CHECKING:
    from engine.train.answers import Plan
    from engine.train.loop import Loop

MEMORY = "plot"
Points = Sequence[tuple[int, Mapping[str, float]]]


@dataclass(frozen=True, slots=True)
class Plotting:
    """Adds the metrics of an event to a curve and draws it to `path` (PNG or SVG by its suffix).

    The points are `state.handler_state["plot"]`, `[iterations done, {metric: value}]`, so that a resumed run goes on
    with the same curve. `metrics` are those shown; None shows all that are single numbers.
    """

    path: Path
    metrics: tuple[str, ...] | None

    def __post_init__(self) -> None:
        if self.path.suffix not in (".png", ".svg"):
            raise OptionError(f"plot: expected a file name that ends in .png or .svg, got {self.path.name!r}")

    def bind(self, loop: Loop, plan: Plan) -> Plotter:
        """What draws the curve of one run."""
        del loop, plan
        return Plotter(self)


class Plotter:
    """Draws the curve of one run; in a notebook the same picture is shown and replaced as it grows."""

    def __init__(self, plotting: Plotting) -> None:
        self._plotting = plotting
        self._shown: Any = None

    def __call__(self, state: LoopState) -> LoopState:
        """Add a point and draw; waits for the metrics."""
        chosen = self._plotting.metrics
        values = {
            name: value
            for name, value in state.values().items()
            if isinstance(value, (int, float)) and (chosen is None or name in chosen)
        }
        if missing := set(chosen or ()) - set(values):
            known = ", ".join(state.metrics) or "none"
            raise OptionError(f"plot: expected metrics out of {known}; got {', '.join(sorted(missing))}")
        points = [*state.handler_state.get(MEMORY, []), [state.total_iterations, values]]
        figure = draw(points)
        self._plotting.path.parent.mkdir(parents=True, exist_ok=True)
        drawn = self._plotting.path.with_name(f".{self._plotting.path.name}")
        figure.savefig(drawn, format=self._plotting.path.suffix[1:], dpi=120)
        drawn.replace(self._plotting.path)
        self._show(figure)
        return state.with_handler_state(MEMORY, points)

    def _show(self, figure: Any) -> None:
        if not _in_notebook():
            return
        from IPython.display import display

        if self._shown is None:
            self._shown = display(figure, display_id=True)
        else:
            self._shown.update(figure)


def _in_notebook() -> bool:
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    shell = get_ipython()
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"


def draw(points: Points) -> Any:
    """A Matplotlib figure: losses in one panel, other metrics below, each with its validation in the same colour.

    Raises: `OptionError` when Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise OptionError("plot: expected Matplotlib to be installed (pip install matplotlib), got none") from None
    series: dict[str, list[tuple[int, float]]] = {}
    for iterations, values in points:
        for name, value in values.items():
            series.setdefault(name, []).append((iterations, value))
    groups = [[n for n in series if _base(n) == "loss"], [n for n in series if _base(n) != "loss"]]
    panels = [group for group in groups if group]
    figure = Figure(figsize=(7, 3.2 * max(len(panels), 1)), layout="constrained")
    for index, group in enumerate(panels):
        axes = figure.add_subplot(len(panels), 1, index + 1)
        bases = sorted({_base(name) for name in group})
        for name in group:
            x, y = zip(*series[name], strict=True)
            style = "--" if name != _base(name) else "-"
            axes.plot(x, y, style, color=f"C{bases.index(_base(name))}", marker=".", label=name)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        axes.set_xlabel("iterations")
    return figure


def _base(name: str) -> str:
    return name.removeprefix("validation_")
