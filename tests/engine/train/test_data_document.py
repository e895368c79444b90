"""The examples of docs/data.md run, and its tables name what there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from engine.columns import FORMATS
from engine.preprocess.specs import STEPS

DOCUMENT = (Path(__file__).resolve().parents[3] / "docs/data.md").read_text()


def test_examples_run() -> None:
    """One after the other, as a reader would type them."""
    namespace: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL):
        exec(compile(block, "docs/data.md", "exec"), namespace)
    assert namespace["iris"].labels["kind"] == ("a", "b")
    assert namespace["final"].status == "completed"


def test_every_format_and_step_is_described() -> None:
    """Formats with their options, and steps of preprocessing."""
    for kind, known in FORMATS.items():
        assert f"`{kind}`" in DOCUMENT
        for option in known.options.__dataclass_fields__:
            assert f"`{option}`" in DOCUMENT
    for step in STEPS:
        assert f"`{step}`" in DOCUMENT
