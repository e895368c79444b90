"""What `serve.py` prints: one table for each model, the stages, the targets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.table import Table

from benchmarks.serve_loads import Figures
from benchmarks.serve_stages import Reading
from benchmarks.serve_targets import Key, Target
from benchmarks.serve_works import TITLES

console = Console(width=160)


def speeds(work: str, measured: Mapping[Key, Figures], cpu_us: Mapping[Key, float]) -> None:
    """Requests per second, p50 and p99 in ms, and the server's CPU for a request, by wire and side."""
    keys = [key for key in measured if key.work == work]
    concurrencies = sorted({key.concurrency for key in keys})
    table = Table(title=f"{TITLES[work]}: requests/s (p50, p99 in ms; server's CPU per request in us)")
    table.add_column("wire")
    table.add_column("side")
    for concurrency in concurrencies:
        table.add_column(f"{concurrency} in flight", justify="right")
    for wire, side in dict.fromkeys((key.wire, key.side) for key in keys):
        cells = []
        for concurrency in concurrencies:
            key = Key(work, wire, side, concurrency)
            cells.append(_cell(measured[key], cpu_us[key]) if key in measured else "failed")
        table.add_row(wire, side, *cells)
    console.print(table)


def _cell(figures: Figures, cpu_us: float) -> str:
    return f"{figures.requests_per_s:,.0f} ({figures.p50_ms:.2f}, {figures.p99_ms:.1f}; {cpu_us:.0f})"


def stages(readings: Mapping[Key, Reading]) -> None:
    """Microseconds of one request by stage, as the server counts them; `total` is from its arrival to its answer."""
    names = list(dict.fromkeys(stage for reading in readings.values() for stage in reading.stages_s))
    table = Table(title="axon: one request by stage, in us, from its own /metrics")
    table.add_column("")
    for title in ("in flight", *names, "sum", "total", "rows per batch"):
        table.add_column(title, justify="right")
    for key, reading in readings.items():
        if not reading.requests:
            continue
        each = [reading.stages_s[name] / reading.requests * 1e6 for name in names]
        total = reading.total_s / reading.requests * 1e6
        batch = f"{reading.rows / reading.batches:.1f}" if reading.batches else ""
        cells = (f"{value:.1f}" for value in (*each, sum(each), total))
        table.add_row(f"{key.work} {key.wire}", str(key.concurrency), *cells, batch)
    console.print(table)


def verdicts(found: Iterable[Target], peers: Iterable[str]) -> None:
    """Every target, met or not; a best peer is the best of those that took part."""
    table = Table(title=f"Targets (requests/s at 64 in flight unless said). Peers: {', '.join(peers) or 'none'}")
    for title in ("target", "against", "bound", "measured", ""):
        table.add_column(title, justify="right" if title in ("bound", "measured") else "left")
    for target in found:
        bound = f"{'>=' if target.at_least else '<='} {target.bound:g}"
        value = "" if target.value is None else f"{target.value:.2f}"
        table.add_row(target.text, target.against, bound, value, target.verdict)
    console.print(table)


def absences(absent: Mapping[str, str]) -> None:
    """Peers without figures, and why."""
    for name, reason in absent.items():
        console.print(f"{name}: {reason}", highlight=False, markup=False, soft_wrap=True)
