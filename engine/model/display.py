"""Text pictures of models."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from engine.model.build import infer
from engine.model.model import Model
from engine.model.walk import Inputs, LayerInfo
from engine.precision import name_of

_HEADER = ("Layer", "Shape", "Policy", "Parameters", "Parameters Memory")


def as_table(model: Model, template: Inputs = None) -> str:
    """A table with a row per layer and the totals.

    Args:
        template: inputs (arrays or abstract ones) by name; None takes the declared shapes, open sizes shown as None.
    Returns: Markdown-free text; parameters are counted per layer, memory in bytes.
    Raises: as `build`'s `init_fn` when shapes do not fit.
    Source: Axon.Display.as_table/2, in the layout of Axon 0.1.
    """
    layers = infer(model, template)
    names = {layer.node: layer.name for layer in layers}
    rows: list[tuple[str, ...]] = []
    for layer in layers:
        parents = ", ".join(f'"{names[parent]}"' for parent in layer.node.inputs)
        source = f"[{parents}]" if parents else ""
        count, size = _size(layer)
        rows.append(
            (
                f"{layer.name} ( {layer.node.op.name}{source} )",
                _shape_text(layer, open_batch=template is None),
                str(layer.node.policy),
                f"{count}",
                f"{size} bytes",
            )
        )
    total, memory = (sum(column) for column in zip(*(_size(layer) for layer in layers), strict=True))
    inputs = ", ".join(f'"{name}": {_tuple_text(node.options["shape"])}' for name, node in model.inputs().items())
    return "\n".join(
        [
            *_grid(rows),
            f"Total Parameters: {total}",
            f"Total Parameters Memory: {memory} bytes",
            f"Inputs: {{{inputs}}}",
        ]
    )


def _size(layer: LayerInfo) -> tuple[int, int]:
    leaves = [layer.params[name] for name in layer.trained()]
    count = sum(math.prod(leaf.shape) for leaf in leaves)
    return count, sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in leaves)


def _tuple_text(shape: Any) -> str:
    return "any" if shape is None else f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def _shape_text(layer: LayerInfo, *, open_batch: bool) -> str:
    texts = []
    for leaf in jax.tree.leaves(layer.output):
        sizes: tuple[Any, ...] = leaf.shape
        if open_batch and sizes:
            sizes = (None, *sizes[1:])
        texts.append(
            _tuple_text(sizes) if name_of(leaf.dtype) == "f32" else f"{name_of(leaf.dtype)} {_tuple_text(sizes)}"
        )
    return "; ".join(texts)


def _grid(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in (_HEADER, *rows)) for i in range(len(_HEADER))]
    width = sum(widths) + 3 * (len(widths) - 1)

    def line(row: tuple[str, ...]) -> str:
        return "   ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)).rstrip()

    return [
        "-" * width,
        "Model".center(width).rstrip(),
        "=" * width,
        line(_HEADER),
        "=" * width,
        *map(line, rows),
        "-" * width,
    ]
