"""Logs that hostile or many clients cannot fill a disk with."""

from __future__ import annotations

import logging

from service.logs import Bounded
from tests.service.core.served import HeldClock


def test_a_flood_of_one_fault_is_cut_and_counted():
    """As many as the burst, then some a second, the first of which says how many were left out."""
    clock = HeldClock()
    bounded = Bounded(burst=3, per_s=2.0, monotonic=clock.monotonic)

    def passed() -> list[str]:
        records = [logging.LogRecord("a", logging.ERROR, "", 1, "request %s", (number,), None) for number in range(10)]
        return [record.getMessage() for record in records if bounded.filter(record)]

    assert passed() == ["request 0", "request 1", "request 2"]
    assert passed() == []
    clock.now += 0.5
    assert passed() == ["request 0 (17 more like it were not logged)"]
    clock.now += 60
    assert len(passed()) == 3
