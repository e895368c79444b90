"""The example of a layer and a loss that travel, run as its readers run it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_other_process_predicts_the_same_and_trains_on():
    """To 1e-6, without the functions; its training changes the layer's own parameter and lowers the loss."""
    command = [sys.executable, str(EXAMPLES / "custom_layer.py"), "--json"]
    figures = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout)
    assert figures["ops"] == ["input", "dense", "soft_threshold", "dense", "softmax"]
    assert figures["difference"] <= 1e-6
    assert figures["loss_after"] < 0.8 * figures["loss_before"]
    assert figures["threshold_moved"] > 1e-3
    assert figures["accuracy_before"] > 0.85


def test_the_other_process_does_not_know_the_function():
    """Neither by import nor by a copy."""
    source = (EXAMPLES / "custom_layer_elsewhere.py").read_text()
    assert "import custom_layer" not in source
    assert "def soft_threshold" not in source
    assert "sigmoid" not in source
