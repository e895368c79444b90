"""Documents that would silently rot: each is compared with the code it describes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engine.model.layers import OPS

ROOT = Path(__file__).resolve().parents[1]
FORMAT = (ROOT / "docs/bundle-format.md").read_text()


def _row(op: str) -> str:
    """The line of an op, and of the ops whose options it says it shares (as `conv`)."""
    row = next((line for line in FORMAT.splitlines() if line.startswith("|") and f"`{op}`" in line.split("|")[1]), "")
    return row + "".join(_row(other) for other in re.findall(r"as `(\w+)`", row))


@pytest.mark.parametrize("op", OPS)
def test_every_op_and_its_options_are_in_the_format(op: str):
    """Whoever writes graphs in another language finds every op and option."""
    row = _row(op)
    assert row, f"{op} is missing in docs/bundle-format.md"
    for option in OPS[op].op.options:
        named = option in row or (option.endswith("_initializer") and "initializers" in row)
        assert named, f"option {option} of {op} is missing in docs/bundle-format.md"


@pytest.mark.parametrize(
    "path", sorted(p.relative_to(ROOT) for p in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))), ids=str
)
def test_relative_links_lead_somewhere(path: Path):
    """No document points at a file that is gone."""
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", (ROOT / path).read_text()):
        assert ((ROOT / path).parent / target).exists(), f"{path}: {target}"
