"""Rows of a benchmark: collected, printed as a table, written as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One figure: of which work, on which side, what is measured (unit in its name), how much."""

    work: str
    side: str
    metric: str
    value: float


@dataclass
class Report:
    """The figures of one benchmark run."""

    title: str
    rows: list[Row] = field(default_factory=list)

    def add(self, work: str, side: str, metric: str, value: float) -> None:
        """Add one figure."""
        self.rows.append(Row(work, side, metric, float(value)))

    def print(self) -> None:
        """Print all figures as a table."""
        table = Table(title=self.title)
        for column in ("work", "side", "metric"):
            table.add_column(column)
        table.add_column("value", justify="right")
        for row in self.rows:
            table.add_row(row.work, row.side, row.metric, _number(row.value))
        Console(width=110).print(table)

    def finish(self, json_path: str | None) -> None:
        """Print the table and, when a path is given, write the rows there."""
        self.print()
        self.write(json_path)

    def write(self, json_path: str | None) -> None:
        """Write the rows when a path is given."""
        if json_path is not None:
            Path(json_path).write_text(json.dumps([asdict(row) for row in self.rows], indent=1) + "\n")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
