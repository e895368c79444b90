"""Thirty rounds of load, infer and unload in a process of their own, then shapes that nobody declared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

ROUNDS = 30
PROCESS_S = 240
GROWTH_BYTES = 12 * 2**20
"""A fifth of what stays when each round leaves its parameters and programs behind."""
pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """What the process has measured."""
    command = [sys.executable, "-m", "tests.soak.rounds", str(ROUNDS)]
    # One arena: what glibc keeps for each thread would hide what is lost.
    environment = os.environ | {"MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=PROCESS_S, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_unloaded_versions_leave_nothing(measured: dict[str, Any]):
    """Live arrays and executables to the number, descriptors and threads; memory within what allocators keep."""
    first, last = measured["curve"][0], measured["curve"][-1]
    for what in ("live_arrays", "executables"):
        assert last[what] == first[what], (what, measured["curve"])
    for what in ("descriptors", "threads"):  # a client's connection more or less
        assert last[what] <= first[what] + 4, (what, measured["curve"])
    assert last["rss_bytes"] - first["rss_bytes"] < GROWTH_BYTES, measured["curve"]


def test_unusual_shapes_compile_nothing(measured: dict[str, Any]):
    """Every declared size and all that is padded to one is answered, the rest refused, with no program more."""
    rows = {f"m [{rows}, 512] float32" for rows in (0, 1, 2, 3, 5, 7, 8)}
    lengths = {f"text [{rows}, {length}] int32" for rows in (1, 3, 4) for length in range(1, 17)}
    for wire in ("rest", "grpc"):
        told = measured["answers"][wire]
        assert set(told["answered"]) == rows | lengths
        assert len(told["refused"]) == 16 + 4 * 21 - len(lengths) + 1
    assert measured["after"] == measured["before"]
