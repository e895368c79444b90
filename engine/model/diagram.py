"""A model as boxes and arrows, and as Mermaid text; `drawing` makes a picture of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jax

from engine.errors import EngineError
from engine.functional.options import require_choice
from engine.model.block import BLOCK, Block
from engine.model.build import infer
from engine.model.graph import Node, Op, owners
from engine.model.layers import (
    activations,
    attention,
    basics,
    combine,
    convolution,
    dropout,
    linear,
    normalization,
    pooling,
    quantized,
    recurrent,
    sequence,
    shape,
    special,
)
from engine.model.model import Model
from engine.model.walk import Inputs, LayerInfo
from engine.precision import name_of

Direction = Literal["top_down", "left_right"]
DIRECTIONS: tuple[Direction, ...] = ("top_down", "left_right")

_FAMILY_MODULES = {
    "linear": (linear, quantized),
    "convolution": (convolution,),
    "normalization": (normalization,),
    "pooling": (pooling,),
    "dropout": (dropout,),
    "attention": (attention,),
    "recurrent": (recurrent,),
    "sequence": (sequence,),
    "combine": (combine,),
    "shape": (shape, basics, special),
}
FAMILIES: Mapping[str, str] = {
    **{
        op.name: family
        for family, modules in _FAMILY_MODULES.items()
        for module in modules
        for op in vars(module).values()
        if isinstance(op, Op)
    },
    **dict.fromkeys(activations.OPS, "activation"),
    "input": "input",
    "block": "block",
}
"""What kind of layer each op makes; ops that are not listed are custom ones."""


@dataclass(frozen=True, slots=True)
class Box:
    """A layer: its path, op, shape and number of parameters as text (empty where unknown), and the blocks it is in."""

    name: str
    op: str
    shape: str
    parameters: int
    groups: tuple[str, ...]

    @property
    def family(self) -> str:
        """The kind of layer."""
        return FAMILIES.get(self.op.partition(" ")[0], "custom")

    @property
    def label(self) -> str:
        """Name, op and shape on one line."""
        return f"{self.name} ({self.op}) {self.shape}".rstrip()


@dataclass(slots=True)
class Diagram:
    """Boxes in an order in which inputs come before users, and edges between their positions.

    Attributes:
        problem: why shapes are unknown, empty when they are known.
    """

    boxes: list[Box] = field(default_factory=list)
    edges: list[tuple[int, int]] = field(default_factory=list)
    problem: str = ""


def diagram_of(model: Model, template: Inputs = None, *, strict: bool = True) -> Diagram:
    """The boxes and arrows of a model.

    Layers of a block are boxes of the group of the block's name at its first call; a further call is one box.

    Args:
        template: as for `as_table`; without one, and without declared shapes, boxes have no shapes.
        strict: whether shapes that do not fit are an error, not just a `problem`.
    """
    diagram = Diagram()
    layers: dict[str, LayerInfo] = {}
    undeclared = [
        name for name, node in model.inputs().items() if node.options["shape"] is None and not node.options["optional"]
    ]
    if template is None and undeclared:
        diagram.problem = f"no shapes are declared for the inputs {', '.join(undeclared)}"
    else:
        try:
            for layer in infer(model, template):
                layers.setdefault(layer.name, layer)
        except EngineError as error:
            if strict:
                raise
            diagram.problem = str(error)
    _Tracer(diagram, layers, open_batch=template is None).run(model, {}, ())
    return diagram


@dataclass
class _Tracer:
    diagram: Diagram
    layers: Mapping[str, LayerInfo]
    open_batch: bool
    drawn: set[Block] = field(default_factory=set)

    def run(self, model: Model, given: Mapping[str, int], groups: tuple[str, ...]) -> int:
        """Add the boxes of a model, or of a block for which `given` are the boxes of its inputs; returns the last."""
        names = model.names()
        owner = owners(names)
        prefix = "".join(f"{group}." for group in groups)
        position: dict[Node, int] = {}
        for node, name in names.items():
            inputs = [position[parent] for parent in node.inputs]
            block = node.options["block"] if node.op is BLOCK else None
            if name in given and node.op.name == "input":
                position[node] = given[name]
            elif block is not None and block not in self.drawn:
                self.drawn.add(block)
                arguments = dict(zip(block.inputs, inputs, strict=True))
                position[node] = self.run(block.model, arguments, (*groups, owner[node]))
            else:
                op = node.op.name if block is None else f"block {owner[node]}"
                position[node] = self._add(f"{prefix}{name}", op, inputs, groups)
        return position[model.node]

    def _add(self, name: str, op: str, inputs: list[int], groups: tuple[str, ...]) -> int:
        layer = self.layers.get(name)
        shape = "" if layer is None else shape_text(layer, open_batch=self.open_batch)
        count = 0 if layer is None else sum(math.prod(leaf.shape) for leaf in weights(layer))
        self.diagram.boxes.append(Box(name, op, shape, count, groups))
        index = len(self.diagram.boxes) - 1
        self.diagram.edges.extend((source, index) for source in dict.fromkeys(inputs))
        return index


def weights(layer: LayerInfo) -> list[Any]:
    """What a layer has learned: its parameters, and 8-bit kernels, which are state because no gradient reaches them."""
    return [layer.params[s.name] for s in layer.specs() if s.kind == "parameter" or s.name.startswith("kernel.")]


def shape_text(layer: LayerInfo, *, open_batch: bool) -> str:
    """The shapes of a layer's output, with their types where these are not f32."""
    texts = []
    for leaf in jax.tree.leaves(layer.output):
        sizes: tuple[Any, ...] = leaf.shape
        if open_batch and sizes:
            sizes = (None, *sizes[1:])
        texts.append(
            tuple_text(sizes) if name_of(leaf.dtype) == "f32" else f"{name_of(leaf.dtype)} {tuple_text(sizes)}"
        )
    return "; ".join(texts)


def tuple_text(shape: Any) -> str:
    """A shape as Python writes it; `any` for an undeclared one."""
    return "any" if shape is None else f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def as_graph(model: Model, template: Inputs = None, *, direction: Direction = "top_down") -> str:
    """A Mermaid flowchart: inputs are parallelograms, layers boxes `name (op) shape`, blocks are subgraphs.

    Args:
        template: inputs by name, as for `as_table`; without one, and without declared shapes, boxes have no shapes.
        direction: `top_down` or `left_right`.
    Raises: `OptionError` for another direction; as `build`'s `init_fn` when shapes do not fit.
    Source: Axon.Display.as_graph/3.
    """
    require_choice("as_graph", "direction", direction, DIRECTIONS)
    return mermaid(diagram_of(model, template), direction)


def mermaid(diagram: Diagram, direction: Direction = "top_down") -> str:
    """The Mermaid text of a diagram."""
    lines = [f"flowchart {'TD' if direction == 'top_down' else 'LR'}", *_mermaid_boxes(diagram)]
    lines += [f"    n{source} --> n{target}" for source, target in diagram.edges]
    return "\n".join(lines) + "\n"


def _mermaid_boxes(diagram: Diagram) -> Iterator[str]:
    """The boxes, each group's within its subgraph; subgraphs are opened and closed as boxes come."""
    opened: tuple[str, ...] = ()
    count = itertools.count()
    for index, box in enumerate(diagram.boxes):
        shared = sum(
            1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(opened, box.groups, strict=False))
        )
        yield from (f"{'    ' * depth}end" for depth in range(len(opened), shared, -1))
        for depth in range(shared, len(box.groups)):
            yield f'{"    " * (depth + 1)}subgraph b{next(count)}["{_escape(box.groups[depth])}"]'
        opened = box.groups
        left, right = ('[/"', '"/]') if box.op == "input" else ('["', '"]')
        yield f"{'    ' * (len(opened) + 1)}n{index}{left}{_escape(box.label)}{right}"
    yield from (f"{'    ' * depth}end" for depth in range(len(opened), 0, -1))


_ENTITIES = str.maketrans({"#": "#35;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "&": "#amp;", "`": "#96;"})


def _escape(text: str) -> str:
    """Text that is safe between quotes in Mermaid."""
    return "".join(c if c.isprintable() else " " for c in text).translate(_ENTITIES)
