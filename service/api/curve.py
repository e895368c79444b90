"""A job's series as a picture, losses above and other metrics below: SVG of our own, as servers cannot plot."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from service.core.progress import Point, thinned
from service.core.types import Job

MAX_POINTS = 500
"""Points per line; more would not be seen."""

_WIDTH, _PANEL, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 250, 64, 16, 40, 34
_PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito's
_VALIDATION = "validation_"
_Line = list[tuple[int, float]]


def drawn(job: Job, points: Sequence[Point]) -> str:
    """A job's series as `draw` draws them, under its name and state."""
    return draw(points, f"{job.spec.get('model', '')}: job {job.id}, {job.state}")


def draw(points: Sequence[Point], title: str) -> str:
    """The lines of `points` over steps as an SVG document; those of the validation are dashed."""
    lines = _lines(points)
    panels = [{name: line for name, line in lines.items() if ("loss" in name) is wanted} for wanted in (True, False)]
    shown = [panel for panel in panels if panel] or [{}]
    height = 28 + _PANEL * len(shown)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{_LEFT}" y="20" font-size="14">{escape(title)}</text>',
    ]
    for number, panel in enumerate(shown):
        parts += [f'<g transform="translate(0 {28 + number * _PANEL})">', *_panel(panel), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def _lines(points: Sequence[Point]) -> dict[str, _Line]:
    found: dict[str, list[Point]] = {}
    for point in points:
        for name, value in point.values.items():
            if math.isfinite(value):
                found.setdefault(name, []).append(point)
    return {
        name: [(point.step, point.values[name]) for point in thinned(known, MAX_POINTS)]
        for name, known in sorted(found.items())
    }


def _panel(lines: dict[str, _Line]) -> Iterator[str]:
    right, bottom = _WIDTH - _RIGHT, _PANEL - _BOTTOM
    if not lines:
        yield f'<text x="{_LEFT}" y="{_TOP}">nothing was reported yet</text>'
        return
    xs = [step for line in lines.values() for step, _ in line]
    ys = [value for line in lines.values() for _, value in line]
    x_low, x_high, y_low, y_high = *_range(min(xs), max(xs)), *_range(min(ys), max(ys))

    def place(step: float, value: float) -> tuple[float, float]:
        x = _LEFT + (step - x_low) / (x_high - x_low) * (right - _LEFT)
        # Differences of huge numbers may not fit, their quotients do.
        y = bottom - (value / 2 - y_low / 2) / (y_high / 2 - y_low / 2) * (bottom - _TOP)
        return round(x, 1), round(y, 1)

    for tick in _ticks(y_low, y_high):
        _, y = place(x_low, tick)
        yield f'<path d="M{_LEFT} {y}H{right}" stroke="#ddd"/>'
        yield f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{tick:.4g}</text>'
    for tick in _ticks(x_low, x_high):
        x, _ = place(tick, y_low)
        yield f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{tick:.6g}</text>'
    yield f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" stroke="#444"/>'
    yield f'<text x="{right}" y="{bottom + 30}" text-anchor="end">step</text>'
    bases = sorted({name.removeprefix(_VALIDATION) for name in lines})
    across = _LEFT
    for name, line in lines.items():
        colour = _PALETTE[bases.index(name.removeprefix(_VALIDATION)) % len(_PALETTE)]
        dashed = ' stroke-dasharray="6 4"' if name.startswith(_VALIDATION) else ""
        style = f'stroke="{colour}" stroke-width="1.6"{dashed}'
        places = [place(step, value) for step, value in line]
        yield f'<polyline fill="none" {style} points="{" ".join(f"{x},{y}" for x, y in places)}"/>'
        if len(places) == 1:
            yield f'<circle cx="{places[0][0]}" cy="{places[0][1]}" r="3" fill="{colour}"/>'
        yield f'<path d="M{across} 20h24" {style}/><text x="{across + 28}" y="24">{escape(name)}</text>'
        across += 44 + 7 * len(name)


def _range(low: float, high: float) -> tuple[float, float]:
    """Limits of an axis, apart enough to divide it."""
    if high / 2 - low / 2 > 1e-9 * max(abs(low), abs(high)):
        return low, high
    room = max(abs(low) * 0.1, 1e-12) if low else 0.5
    return max(low - room, -1.7e308), min(high + room, 1.7e308)


def _ticks(low: float, high: float) -> list[float]:
    """Three to eleven round numbers from `low` to `high`: 1, 2 or 5 times a power of ten apart."""
    rough = (high / 5) - (low / 5)
    power = 10.0 ** math.floor(math.log10(rough))
    apart = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.ceil(low / apart), math.floor(high / apart)
    return [number * apart for number in range(first, last + 1)]
