"""What the client commands show of many jobs: a sweep live, and jobs side by side; rich is imported when needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from service.cli_views import plain_console

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from service.client import Client

Json = Mapping[str, Any]
_POLL_S = 1.0
_MAX_POLL_S = 30.0
_MAX_SHARE = 0.2
"""Of the time that may go into asking: a large sweep is asked for less often."""


def follow_sweep(client: Client, job_id: str) -> dict[str, Any]:
    """Show a sweep's jobs until it has ended, and return it: a table in place on a terminal, else a line per change."""
    from rich.live import Live

    console = plain_console()
    if not console.is_terminal:
        told: dict[str, tuple[Any, ...]] = {}
        return _poll(client, job_id, lambda job, found: _tell_changes(console, found, told))
    with Live(console=console, auto_refresh=False) as live:
        return _poll(client, job_id, lambda job, found: live.update(_live_table(job, found), refresh=True))


def _poll(client: Client, job_id: str, show: Callable[[Json, Json], None]) -> dict[str, Any]:
    from service.client import ClientError
    from service.client.events import FINAL_STATES
    from service.client.retries import Patience

    patience = Patience(60.0)
    while True:
        began = time.monotonic()
        try:
            job = client.job(job_id)
            show(job, client.compare(parent=job_id))
            if job["state"] in FINAL_STATES:
                return job
            took_s = time.monotonic() - began
            client.job(job_id, wait_s=min(max(_POLL_S, took_s / _MAX_SHARE), _MAX_POLL_S), state=job["state"])
            patience.went_well()
        except ClientError as error:
            patience.after(error)


def show_comparison(found: Json) -> None:
    """A row for each job, the best one marked."""
    console = plain_console()
    console.print(comparison_table(found, narrow=console.is_terminal), crop=False)


def comparison_table(found: Json, *, narrow: bool) -> Table:
    """Jobs side by side: where they differ, their metrics at the end, the best value of what is compared.

    A `narrow` one has headings of several lines, numbers in place of the ids of a sweep's jobs, and leaves out what was
    measured on the training data where it was measured in the validation as well.
    """
    metric = found["metric"]
    metrics = list(dict.fromkeys(name for job in found["jobs"] for name in job["metrics"]))
    if narrow:
        metrics = [name for name in metrics if f"validation_{name}" not in metrics]
    best = [] if metric is None else [f"best {metric}"]
    names = ["", "job", *_short(found["fields"]), "state", "epochs", *metrics, *best, "seconds", "version"]
    table = _table(names, narrow=narrow)
    numbered = narrow and len({job["id"].rpartition(".")[0] for job in found["jobs"]}) == 1
    for job in found["jobs"]:
        marked = job["id"] == found["best"]
        shown = _number_of(job["id"]) if numbered else job["id"]
        cells = ["*" if marked else "", shown, *_settings(job, found), job["state"], _epochs(job)]
        cells += [_number(job["metrics"].get(name)) for name in metrics]
        if metric is not None:
            cells.append(_number(job["best"].get(metric, {}).get("value")))
        cells += ["" if job["seconds"] is None else f"{job['seconds']:.1f}", _text(job["version"])]
        table.add_row(*cells, style="bold" if marked else None)
    return table


def summary_line(job: Json) -> str:
    """Where a sweep stands, on one line."""
    sweep = job["sweep"]
    counts = "  ".join(f"{count} {state}" for state, count in sweep["children"].items() if count)
    best = sweep["best"]
    if best is None:
        return counts
    return f"{counts}  best {sweep['metric']} {_number(best['value'])} (job {_number_of(best['id'])})"


def _live_table(job: Json, found: Json) -> Table:
    table = _table(["", "job", *_short(found["fields"]), "state", "epoch", *_watched(found)], narrow=True)
    table.title, table.title_justify = summary_line(job), "left"
    for each in found["jobs"]:
        best = each["id"] == found["best"]
        cells = ["*" if best else "", _number_of(each["id"]), *_settings(each, found), each["state"], _epochs(each)]
        cells += [_number(value) for value in _watched(found, each).values()]
        table.add_row(*cells, style="bold" if best else None)
    return table


def _tell_changes(console: Console, found: Json, told: dict[str, tuple[Any, ...]]) -> None:
    """A line for each job that is in another state or epoch than when it was told of."""
    for job in found["jobs"]:
        now = (job["state"], job["epoch"])
        if told.get(job["id"], ("queued", None)) == now:
            continue
        told[job["id"]] = now
        pairs = zip(_short(found["fields"]), _settings(job, found), strict=True)
        settings = [f"{name}={value}" for name, value in pairs]
        values = [f"{name} {_number(value)}" for name, value in _watched(found, job).items() if value is not None]
        epoch = [] if job["epoch"] is None else [f"epoch {_epochs(job)}"]
        error = [] if not job["error"] else [job["error"]]
        line = "  ".join([f"job {_number_of(job['id'])}", *settings, job["state"], *epoch, *values, *error])
        console.print(line, soft_wrap=True)


def _watched(found: Json, job: Json | None = None) -> dict[str, Any]:
    """The loss, the metric compared, and its best value so far, by what they are called."""
    metric = found["metric"]
    values: Json = {} if job is None else job["metrics"]
    shown = {"loss": values.get("loss")}
    if metric is not None:
        shown[metric] = values.get(metric)
        shown[f"best {metric}"] = None if job is None else job["best"].get(metric, {}).get("value")
    return shown


def _table(names: Sequence[str], *, narrow: bool) -> Table:
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in names:
        heading = name.replace(" ", "\n").replace("_", "_\n") if narrow else name
        table.add_column(heading, no_wrap=not narrow, overflow="fold")
    return table


def _short(paths: Sequence[str]) -> list[str]:
    """The last keys of paths, where these tell them apart."""
    last = [path.rpartition(".")[2] for path in paths]
    return [name if last.count(name) == 1 else path for name, path in zip(last, paths, strict=True)]


def _settings(job: Json, found: Json) -> list[str]:
    return [_text(job["spec"].get(path)) for path in found["fields"]]


def _epochs(job: Json) -> str:
    return "" if job["epoch"] is None else f"{job['epoch']}/{job['epochs']}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _number_of(job_id: str) -> str:
    """The number of a sweep's job."""
    return job_id.rpartition(".")[2]


def _text(value: object) -> str:
    return "" if value is None else str(value)
