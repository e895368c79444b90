"""The package's public list."""

from __future__ import annotations

import inspect

from engine import functional

# Its input is a table of arrays by name.
TAKES_NO_SHAPES = {"stack_columns"}
# An array, though given by keyword.
ROWS = "rows"


def test_every_public_name_exists_and_every_op_has_its_check() -> None:
    """The list is what the package holds, sorted, and each function with a check has it beside it."""
    assert all(hasattr(functional, name) for name in functional.__all__)
    functions = {name for name in functional.__all__ if inspect.isfunction(getattr(functional, name))}
    ops = {name for name in functions if not name.startswith("check_")} - TAKES_NO_SHAPES
    checks = {name for name in functions if name.startswith("check_")}
    assert {name.removeprefix("check_") for name in checks} == ops


def test_ops_share_parameters_with_their_checks() -> None:
    """A check takes the same options as its op, with the same defaults."""
    for name in functional.__all__:
        if name.startswith("check_"):
            check, op = (inspect.signature(getattr(functional, n)) for n in (name, name.removeprefix("check_")))
            options = [
                {p.name: p.default for p in s.parameters.values() if p.kind is p.KEYWORD_ONLY and p.name != ROWS}
                for s in (check, op)
            ]
            assert options[0] == options[1], name
