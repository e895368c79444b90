"""The examples of docs/training.md run, and its tables name what there is."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from engine import optim
from engine.functional.losses import LOSSES

DOCUMENT = (Path(__file__).resolve().parents[3] / "docs/training.md").read_text()


def test_examples_run() -> None:
    """One after the other, as a reader would."""
    namespace: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL):
        exec(compile(block, "docs/training.md", "exec"), namespace)
    assert len(namespace["norms"]) == 4
    assert namespace["averaged"].parameters["head"]["kernel"].shape == (8, 3)


NAMED = sorted(
    {name for name in optim.OPTIMIZERS | optim.SCHEDULES | optim.TRANSFORMS if not name.startswith("scale_by_")}
    - {"identity"}
)


@pytest.mark.parametrize("name", NAMED)
def test_every_optimizer_schedule_and_transform_is_named(name: str) -> None:
    """Whoever writes a job finds it."""
    assert f"`{name}`" in DOCUMENT


def test_every_option_of_a_loss_is_named() -> None:
    """Those of the table, but for what every loss has."""
    options = {
        name
        for loss in LOSSES.values()
        for name, parameter in inspect.signature(loss).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name != "rows"
    }
    assert [name for name in sorted(options) if f"`{name}`" not in DOCUMENT] == []
