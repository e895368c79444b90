"""The example of a sweep, run as its readers run it, on scikit-learn's digits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "sweep.py"


def test_best_of_six_takes_the_place_of_the_first_model(tmp_path: Path):
    """Two workers, every job followed and compared, the best promoted; it ends with 0 only if that is better."""
    pytest.importorskip("sklearn")
    command = [sys.executable, str(EXAMPLE), "--data", str(tmp_path / "none.npz"), "--epochs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    for number in range(6):
        assert any(line.startswith(f"job {number}  learning_rate=") and "succeeded" in line for line in lines)
    (best,) = [line.split() for line in lines if line.startswith("*")]
    assert best[3] == "succeeded"
    assert f"prod is version {best[-1]}: test accuracy" in lines[-1]
    assert "6 jobs on 2 workers" in lines[-2]
