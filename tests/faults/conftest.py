"""What only `make faults-short` and `make faults` run, and the kill matrix as a table after a run that had it."""

from __future__ import annotations

import os
import re
from collections import defaultdict

import pytest

_CELL = re.compile(r"test_matrix\.py::test_killed_job_loses_nothing\[(\w+)-(\w+)-(\w+)\]")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without the variable FAULTS only one kill is tried here, so that CI does not do everything twice."""
    if "FAULTS" not in os.environ:
        for item in items:
            if item.get_closest_marker("faults"):
                item.add_marker(pytest.mark.skip(reason="part of make faults-short and make faults"))


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
