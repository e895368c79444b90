"""Models for people: tables as text and HTML, graphs as Mermaid text and SVG (`as_graph`, `as_svg`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import jax
import numpy as np

from engine.model.block import BLOCK
from engine.model.build import infer, x64
from engine.model.diagram import as_graph, diagram_of, shape_text, tuple_text, weights
from engine.model.drawing import as_svg, draw
from engine.model.layers.basics import CONTAINER, INPUT
from engine.model.model import Model
from engine.model.state import unflatten
from engine.model.walk import Inputs, LayerInfo
from engine.precision import cast

__all__ = ["as_graph", "as_html", "as_svg", "as_table", "draw"]

_HEADER = ("Layer", "Shape", "Policy", "Parameters", "Parameters Memory")
_COSTS = ("FLOPs", "Bytes Accessed")


def as_table(model: Model, template: Inputs = None, *, costs: bool = False) -> str:
    """A table with a row per layer and the totals.

    Args:
        template: inputs (arrays or abstract ones) by name; None takes the declared shapes, open sizes shown as None.
        costs: whether to add floating-point operations and bytes read and written per layer, as XLA estimates them for
            each layer alone, before layers are fused; for the template's batch, one row without a template.
    Returns: Markdown-free text; parameters are counted per layer, memory in bytes.
    Raises: as `build`'s `init_fn` when shapes do not fit.
    Source: Axon.Display.as_table/2, in the layout of Axon 0.1.
    """
    header, rows, totals = _cells(model, template, costs)
    return "\n".join([*_grid(header, rows), *totals])


def as_html(model: Model, template: Inputs = None) -> str:
    """The table as HTML, for notebooks; text in it is escaped. Arguments and errors as `as_table`."""
    header, rows, totals = _cells(model, template, costs=False)
    return _html(header, rows, totals)


def summary_html(model: Model) -> str:
    """`as_html`, or where shapes are not known the layers and why, so that a notebook shows any model."""
    diagram = diagram_of(model, strict=False)
    if not diagram.problem:
        return as_html(model)
    return _html(("Layer", "Op"), [(box.name, box.op) for box in diagram.boxes], [diagram.problem])


def summary_svg(model: Model) -> str:
    """`as_svg`, without shapes where they are not known."""
    return draw(diagram_of(model, strict=False))


def _html(header: Sequence[str], rows: Sequence[Sequence[str]], totals: Sequence[str]) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        written = (f'<{tag} style="text-align:left">{escape(cell)}</{tag}>' for cell in cells)
        return f"<tr>{''.join(written)}</tr>"

    return "\n".join(
        [
            "<table>",
            f"<thead>{line('th', header)}</thead>",
            "<tbody>",
            *(line("td", row) for row in rows),
            "</tbody>",
            "</table>",
            f"<p>{'<br>'.join(map(escape, totals))}</p>",
        ]
    )


def _cells(model: Model, template: Inputs, costs: bool) -> tuple[tuple[str, ...], list[tuple[str, ...]], list[str]]:
    """Header, rows and last lines of the table."""
    layers = infer(model, template)
    names = {layer.node: layer.name for layer in layers}
    rows: list[tuple[str, ...]] = []
    spent = _costs(model, layers) if costs else []
    for index, layer in enumerate(layers):
        parents = ", ".join(f'"{names[parent]}"' for parent in layer.node.inputs)
        source = f"[{parents}]" if parents else ""
        count, size = _size(layer)
        rows.append(
            (
                f"{layer.name} ( {layer.node.op.name}{source} )",
                shape_text(layer, open_batch=template is None),
                str(layer.node.policy),
                f"{count}",
                f"{size} bytes",
                *(f"{amount}" for amount in (spent[index] if costs else ())),
            )
        )
    total, memory = (sum(column) for column in zip(*(_size(layer) for layer in layers), strict=True))
    inputs = ", ".join(f'"{name}": {tuple_text(node.options["shape"])}' for name, node in model.inputs().items())
    totals = [f"Total Parameters: {total}", f"Total Parameters Memory: {memory} bytes", f"Inputs: {{{inputs}}}"]
    if costs:
        sums = (sum(column) for column in zip(*spent, strict=True))
        totals[2:2] = [f"Total {title}: {amount}" for title, amount in zip(_COSTS, sums, strict=True)]
    return (*_HEADER, *_COSTS * costs), rows, totals


def _size(layer: LayerInfo) -> tuple[int, int]:
    leaves = weights(layer)
    count = sum(math.prod(leaf.shape) for leaf in leaves)
    return count, sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in leaves)


def _costs(model: Model, layers: Sequence[LayerInfo]) -> list[tuple[int, int]]:
    # A further call of a block brings no parameters of its own, but computes with them.
    params: dict[str, Any] = {}
    with x64(model):
        return [_cost(layer, params.setdefault(layer.name, dict(layer.params))) for layer in layers]


def _cost(layer: LayerInfo, params: dict[str, Any]) -> tuple[int, int]:
    """Floating-point operations and bytes accessed of one layer in inference, by XLA's analysis; compiles nothing.

    A call of a block costs what its layers cost, which have rows of their own.
    """
    node, op = layer.node, layer.node.op
    if op.train_only or node.op is BLOCK or op is INPUT or op is CONTAINER:
        return 0, 0
    if any(not jax.tree.leaves(value) for value in layer.inputs):
        return 0, 0
    options: dict[str, Any] = op.arguments(node.options) | ({"mode": "inference"} if op.has_modes else {})

    def run(inputs: Any, params: Any) -> Any:
        inputs, params = cast(node.policy, (inputs, params), "compute")
        return op.apply(*inputs, **unflatten(params), **options)

    found: Any = jax.jit(run).lower(layer.inputs, params).cost_analysis() or {}
    return int(found.get("flops", 0)), int(found.get("bytes accessed", 0))


def _grid(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    width = sum(widths) + 3 * (len(widths) - 1)

    def line(row: tuple[str, ...]) -> str:
        return "   ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)).rstrip()

    return [
        "-" * width,
        "Model".center(width).rstrip(),
        "=" * width,
        line(header),
        "=" * width,
        *map(line, rows),
        "-" * width,
    ]
