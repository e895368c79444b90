"""A progress bar for a run, over rich."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.train.events import Count, Event
from engine.train.state import LoopState

if TYPE_CHECKING:
    from engine.train.answers import Plan
    from engine.train.loop import Loop

READ_EVERY_S = 0.5
"""How often the metrics are fetched from the device, at most."""
SHOWN_EVERY_S = 0.05
"""How often the bar is moved, at most; it is drawn ten times a second."""


@dataclass(frozen=True, slots=True)
class Progressing:
    """A bar per run with iterations, rate, time left and the metrics so far; `console` None writes to stderr."""

    console: Any = None

    def bind(self, loop: Loop, plan: Plan) -> ProgressBar:
        """The bar of one run."""
        del loop
        return ProgressBar(self.console, plan)


class ProgressBar:
    """The bar of one run. It reads metrics rarely, so that training does not wait for them."""

    def __init__(self, console: Any, plan: Plan, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._plan = plan
        self._clock = clock
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=Console(stderr=True) if console is None else console,
        )
        total = None if plan.epochs is None or plan.batches is None else plan.epochs * plan.batches
        self._task = self._bar.add_task("training", total=total, rate="", metrics="")
        self._begun: tuple[float, int] | None = None
        self._read_at = self._shown_at = 0.0
        self._done = 0
        self._bar.start()

    def due(self, event: Event, count: Count) -> bool:
        """Whether it is time to move the bar; an epoch's end is always shown."""
        if event is not Event.ITERATION_COMPLETED:
            return True
        self._done = count.total
        return self._clock() - self._shown_at >= SHOWN_EVERY_S

    def __call__(self, state: LoopState) -> None:
        """Show where the run stands."""
        self._shown_at = now = self._clock()
        self._done = state.total_iterations
        if self._begun is None:
            self._begun = now, state.total_iterations
        seconds, done = now - self._begun[0], state.total_iterations - self._begun[1]
        fields: dict[str, Any] = {"rate": f"{done / seconds:,.0f}/s"} if seconds > 0 and done else {}
        if state.event is not Event.ITERATION_COMPLETED or now - self._read_at >= READ_EVERY_S:
            self._read_at = now
            fields["metrics"] = "  ".join(
                f"{name} {value:.4g}" for name, value in state.values().items() if isinstance(value, (int, float))
            )
        of = "" if self._plan.epochs is None else f"/{self._plan.epochs}"
        shown = min(state.epoch + 1, self._plan.epochs or state.epoch + 1)
        self._bar.update(self._task, completed=state.total_iterations, description=f"epoch {shown}{of}", **fields)

    def close(self) -> None:
        """Leave the last line as it is."""
        self._bar.update(self._task, completed=self._done)
        self._bar.stop()
