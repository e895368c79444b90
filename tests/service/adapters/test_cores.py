"""Cores as a control group tells them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.adapters.cores import usable_cores


@pytest.mark.parametrize(
    ("text", "cores"), [("max 100000\n", 8), ("150000 100000\n", 2), ("1000 100000\n", 1), ("9900000 100000\n", 8)]
)
def test_quota_bounds_the_cores(text: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Rounded up, one at least, never more than the affinity allows."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    (tmp_path / "cpu.max").write_text(text)
    assert usable_cores(tmp_path / "cpu.max") == cores
    assert usable_cores(tmp_path / "absent") == 8
