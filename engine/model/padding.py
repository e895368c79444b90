"""Which nodes keep the rows of a batch apart, so that rows of padding may be among them."""

from __future__ import annotations

from collections.abc import Sequence

from engine.model.graph import Node
from engine.shapes import Shape

ELEMENTWISE = frozenset({"add", "subtract", "multiply"})
"""Ops that broadcast their inputs: which rows meet depends on all shapes together."""


def padding_reason(node: Node, shapes: Sequence[Shape], carries: Sequence[bool]) -> str | None:
    """Why padding would change what the node gives for other rows; None when it does not.

    `carries` says for each input whether it depends on the batch.
    """
    if node.op.name in ELEMENTWISE:
        return rank_reason([shape for shape, carry in zip(shapes, carries, strict=True) if carry])
    return node.op.mixes_rows(node.options, shapes)


def rank_reason(batches: Sequence[Shape]) -> str | None:
    """Why rows meet when these batches are broadcast: the batch axis of one is another axis of the other."""
    if len({len(shape) for shape in batches}) > 1:
        return f"it broadcasts batches of different ranks: {' and '.join(map(str, batches))}"
    return None
