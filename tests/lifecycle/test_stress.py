"""A short form of the stress that `make soak` runs for ten minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lifecycle.stress import KINDS, stress

pytestmark = pytest.mark.e2e

SECONDS = 8


async def test_no_request_fails_whatever_changes(tmp_path: Path):
    """Each kind of change happens; every answer is right, from a version that could answer; the server ends well."""
    outcome = await stress(tmp_path, SECONDS, seed=7)
    print(f"\n{outcome}")
    assert outcome.failed == []
    assert outcome.exit_code == 0
    assert set(outcome.requests) == {"binary", "json", "grpc"}
    assert set(outcome.done) >= KINDS
