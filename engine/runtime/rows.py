"""Whether every row of a model's answer depends on the same row of its inputs alone.

Only such models may be batched: with any other, one caller's answer would show another's data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.model.block import BLOCK
from engine.model.build import Template, declared_template, infer, template_of
from engine.model.graph import Node
from engine.model.model import Model
from engine.model.open_sizes import OpenSize, opened
from engine.model.padding import ELEMENTWISE, rank_reason
from engine.model.walk import LayerInfo


def mixing_reason(model: Model, open_sizes: Sequence[OpenSize] = ()) -> str | None:
    """Why the rows of a batch depend on each other, naming the layer; None when they do not.

    Works on the graph alone, from each op's own rule (`Op.mixes_rows`) and on which values carry the batch; with the
    smallest and the largest of the open sizes, where there are any.
    """
    for name, node in model.inputs().items():
        shape = node.options["shape"]
        if not shape or shape[0] is not None:
            return f"input {name!r} declares no open batch size: shape {shape}"
    if not open_sizes:
        return _mixing_at(model, template_of(model, batch=2))
    ends = (opened(open_sizes, [each.sizes[end] for each in open_sizes]) for end in (0, -1))
    reasons = (_mixing_at(model, declared_template(model, 2, sizes)) for sizes in ends)
    return next((reason for reason in reasons if reason is not None), None)


def _mixing_at(model: Model, template: Template) -> str | None:
    carries: dict[Node, bool] = {}
    for layer in infer(model, template):
        node = layer.node
        if node.op.name == "input":
            carries[node] = True
            continue
        carries[node] = any(carries[parent] for parent in node.inputs)
        reason = _reason(layer, carries) if carries[node] else None
        if node.op is BLOCK:
            carries[node] = _all_carry(node.options["block"].model.node, carries)
        if reason is not None:
            return f"layer {layer.name!r}: {reason}"
    return None if _all_carry(model.node, carries) else "an output does not depend on the batch"


def _all_carry(node: Node, carries: dict[Node, bool]) -> bool:
    if node.op.name == "container":
        return all(_all_carry(parent, carries) for parent in node.inputs)
    return carries[node]


def _reason(layer: LayerInfo, known: dict[Node, bool]) -> str | None:
    node = layer.node
    if node.op.name == "container":
        return None
    if node.op is BLOCK:
        return None if all(known[parent] for parent in node.inputs) else "it passes a block a value without the batch"
    carries = [known[parent] for parent in node.inputs]
    if any(parent.op.name == "container" and not _all_carry(parent, known) for parent in node.inputs):
        return "it takes a structured value of which a part does not depend on the batch"
    shapes = [getattr(value, "shape", ()) for value in layer.inputs]
    rows = [shape for shape, carry in zip(shapes, carries, strict=True) if carry]
    fixed = [shape for shape, carry in zip(shapes, carries, strict=True) if not carry]
    if node.op.name in ELEMENTWISE:
        return _broadcast_reason(rows, fixed)
    if fixed:
        return f"it joins a batch with a constant of shape {fixed[0]}"
    return node.op.mixes_rows(node.options, shapes)


def _broadcast_reason(rows: Sequence[Any], fixed: Sequence[Any]) -> str | None:
    if (reason := rank_reason(rows)) is not None:
        return reason
    rank = len(rows[0])
    if any(len(shape) > rank or (len(shape) == rank and shape[0] != 1) for shape in fixed):
        return f"it combines the batch with constants of shape {' and '.join(map(str, fixed))}"
    return None
