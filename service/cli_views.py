"""What the client commands show: tables, and a training job's progress live; rich is imported when it is needed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from service.client import Event

_PIPED_WIDTH = 10_000
_NOT_METRICS = frozenset(
    {
        "time",
        "step",
        "steps",
        "epoch",
        "epochs",
        "samples_per_s",
        "eta_s",
        "epoch_completed",
        "device_memory_bytes",
        "device_memory_peak_bytes",
    }
)


def show_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under headings."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in columns:
        table.add_column(name, no_wrap=True, overflow="fold")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row))
    plain_console().print(table, crop=False)


def plain_console() -> Console:
    """The standard output, with texts as they are; piped into another program, a line is a row, however long."""
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    return console if console.is_terminal else Console(markup=False, highlight=False, width=_PIPED_WIDTH)


def clock_time(seconds: float | None) -> str:
    """Seconds since the epoch in local time."""
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def tensors(specs: Iterable[Mapping[str, Any]]) -> str:
    """Tensors on one line: `image FP32[-1, 784]`."""
    return ", ".join(f"{spec['name']} {spec['datatype']}{spec['shape']}" for spec in specs)


def target(found: Mapping[str, Any] | int) -> str:
    """Where an alias points: `3`, or `3 (95 %), 4 (5 %)`; of an answer about an alias, or as a replica tells it."""
    if isinstance(found, int):
        return str(found)
    weights = found.get("weights", {}) if "alias" in found else found
    if not weights:
        return str(found["version"])
    return ", ".join(f"{version} ({weight * 100:.3g} %)" for version, weight in weights.items())


def show_replicas(model: Mapping[str, Any]) -> None:
    """Print the serving processes and what each has of a model."""
    rows = [
        (
            each["id"],
            "converged" if each["converged"] else "behind",
            f"{each['age_s']:.1f} s",
            "; ".join(f"{alias} -> {target(at)}" for alias, at in each["aliases"].items()),
            "; ".join(f"{v['version']} {v['state']} {v['reason']}".strip() for v in each["versions"]),
        )
        for each in model["replicas"]
    ]
    show_table(("replica", "state", "seen", "aliases", "versions"), rows)


def show_columns(columns: Iterable[Mapping[str, Any]]) -> None:
    """A data set's columns, one per line, with statistics where they are known."""
    rows = []
    for column in columns:
        known = column["statistics"] or {}
        numbers = [known.get(name) for name in ("min", "max", "mean", "std")]
        classes = known.get("classes") or ()
        shown = "  ".join(f"{c['value'] if c['label'] is None else c['label']}: {c['count']}" for c in classes[:10])
        rows.append(
            (
                column["name"],
                f"{column['datatype']}{column['shape']}",
                known.get("count"),
                known.get("missing"),
                *(None if number is None else f"{number:.5g}" for number in numbers),
                shown + ("  ..." if len(classes) > 10 else ""),
            )
        )
    show_table(("column", "type", "count", "missing", "min", "max", "mean", "std", "classes"), rows)


@contextlib.contextmanager
def show_upload(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on the error output's terminal, from the first report of bytes sent and their total."""
    bars: list[Progress] = []

    def show(sent: int, total: int) -> None:
        if not bars:
            bars.append(_bar(name, total))
        for task in bars[0].task_ids:
            bars[0].update(task, completed=sent)

    try:
        yield show
    finally:
        for bar in bars:
            bar.stop()


def _bar(name: str, total: int) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True, markup=False)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    bar.add_task(name, total=total)
    bar.start()
    return bar


def metrics_of(data: Mapping[str, Any]) -> str:
    """The loss and the metrics of a progress event on one line."""
    shown = {name: value for name, value in data.items() if name not in _NOT_METRICS and isinstance(value, int | float)}
    return "  ".join(f"{name} {value:.4f}" for name, value in shown.items())


def show_training(events: Iterable[Event]) -> Event | None:
    """A bar with loss and metrics until the job ends; log lines scroll above it. Returns the last event of state."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console, last = Console(markup=False, highlight=False), None
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[values]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("queued", total=None, values="")
        for event in events:
            data = event.data
            if event.kind == "state":
                last = event
                progress.update(task, description=str(data.get("state")))
                if data.get("reason") or data.get("error"):
                    console.print(data.get("reason") or data.get("error"))
            elif event.kind == "progress":
                progress.update(
                    task,
                    description=f"epoch {data.get('epoch')}/{data.get('epochs')}",
                    total=data.get("steps"),
                    completed=data.get("step", 0),
                    values=metrics_of(data) + _rate(data),
                )
            elif event.kind == "log":
                console.print(data.get("line", ""))
    return last


def _rate(data: Mapping[str, Any]) -> str:
    """Samples per second, and the memory of the device where it is known."""
    rate = data.get("samples_per_s")
    memory = data.get("device_memory_bytes")
    return ("" if rate is None else f"  {rate:,.0f} samples/s") + (
        "" if memory is None else f"  {memory / 2**30:.1f} GiB"
    )
