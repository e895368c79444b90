"""Reads the short call notation in which the cases describe optimizers, losses and metrics.

`sgd(learning_rate: 0.1) |> accumulate_gradients(2)` becomes nested `Call` values; nothing is evaluated.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Call:
    """A name with positional arguments and options; a bare name has neither."""

    name: str
    args: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


def parse(text: str) -> Call:
    """The call that `text` describes."""
    head, *rest = (_parse_one(part.strip()) for part in text.split("|>"))
    for call in rest:
        head = Call(call.name, (head, *call.args), call.options)
    return head


def _parse_one(text: str) -> Call:
    text = re.sub(r"\b(\w+): ", r"\1=", text)
    text = re.sub(r"(?<=[=(\s]):(\w+)", r"'\1'", text)
    value = _value(ast.parse(text, mode="eval").body)
    assert isinstance(value, Call), text
    return value


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        names = {"true": True, "false": False, "nil": None}
        return names[node.id] if node.id in names else Call(node.id)
    if isinstance(node, ast.Call):
        assert isinstance(node.func, ast.Name)
        options = {str(k.arg): _value(k.value) for k in node.keywords}
        return Call(node.func.id, tuple(map(_value, node.args)), options)
    return ast.literal_eval(node)
