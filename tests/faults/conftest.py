"""Shows the kill matrix as a table after a run that had it."""

from __future__ import annotations

import re
from collections import defaultdict

import pytest

_CELL = re.compile(r"test_matrix\.py::test_killed_job_loses_nothing\[(\w+)-(\w+)-(\w+)\]")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Point and victim by what else went wrong."""
    found: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            if match := _CELL.search(report.nodeid):
                point, victim, beside = match.groups()
                found[point, victim][beside] = "ok" if outcome == "passed" else "FAILED"
    if not found:
        return
    terminalreporter.section("kill matrix")
    besides = ("nothing", "redis", "api")
    terminalreporter.write_line(f"{'point':<20}{'killed':<12}" + "".join(f"{'+ ' + name:<12}" for name in besides))
    for (point, victim), cells in found.items():
        row = "".join(f"{cells.get(name, '-'):<12}" for name in besides)
        terminalreporter.write_line(f"{point:<20}{victim:<12}{row}")
