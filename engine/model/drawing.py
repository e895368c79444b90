"""Pictures of models as SVG text, drawn here: no browser, no other program."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from engine.functional.options import require_choice
from engine.model.diagram import DIRECTIONS, Box, Diagram, Direction, diagram_of
from engine.model.layout import Layout, Point, arrange
from engine.model.model import Model
from engine.model.walk import Inputs

# Fill and outline of each family of layers; text on them is dark.
COLOURS = {
    "input": ("#e3efff", "#4a7fc1"),
    "linear": ("#fff0d9", "#c98a2b"),
    "convolution": ("#ffe6dc", "#c8683d"),
    "normalization": ("#e5f5e4", "#57985a"),
    "pooling": ("#dff4f3", "#3f918c"),
    "dropout": ("#efefef", "#8a8a8a"),
    "attention": ("#fff6cc", "#b59a1d"),
    "recurrent": ("#fdebf7", "#b3589a"),
    "sequence": ("#f0f4dc", "#87954a"),
    "combine": ("#ffe3e6", "#c25b68"),
    "shape": ("#e9edf2", "#6f7f93"),
    "activation": ("#efe7fb", "#7d5bb5"),
    "block": ("#f7f0e6", "#8f7350"),
    "custom": ("#ffffff", "#444444"),
}
TEXT, SOFT_TEXT, LINE = "#18212d", "#4a5665", "#66727f"
GAP, LAYER_GAP, MARGIN, PADDING, LINE_HEIGHT = 28.0, 38.0, 24.0, 14.0, 17.0
MAX_TEXT = 60
"""Longer lines of a box are cut off; the whole text is its tooltip."""
MAX_FRAMES = 256
"""Of more blocks than this no frames are drawn."""
_FONT = "'Helvetica Neue', Helvetica, Arial, sans-serif"
_NARROW, _WIDE = frozenset("ijltfrI.,:;|!'()[]/\\ "), frozenset("mwMW@%—QOGD&")


def as_svg(model: Model, template: Inputs = None, *, direction: Direction = "top_down") -> str:
    """A picture of the model: a box per layer with name, op, shape and number of parameters; frames around blocks.

    Args:
        template: inputs by name, as for `as_table`; without one, and without declared shapes, boxes have no shapes.
        direction: `top_down` or `left_right`.
    Returns: an SVG document as text.
    Raises: `OptionError` for another direction; as `build`'s `init_fn` when shapes do not fit.
    """
    require_choice("as_svg", "direction", direction, DIRECTIONS)
    return draw(diagram_of(model, template), direction)


def draw(diagram: Diagram, direction: Direction = "top_down") -> str:
    """The SVG document of a diagram."""
    shapes = [_Shape.of(box) for box in diagram.boxes]
    turned = direction == "left_right"
    sizes = [(s.height, s.width) if turned else (s.width, s.height) for s in shapes]
    layout = arrange(sizes, diagram.edges, gap=GAP, layer_gap=LAYER_GAP)
    picture = _Picture(diagram, shapes, layout, turned)
    width, height = picture.extent
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="{_FONT}" font-size="13">',
            "<title>Model</title>",
            f'<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0,0.5 L8,4 L0,7.5 z" fill="{LINE}"/></marker></defs>',
            f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>',
            *picture.frames(),
            *picture.edges(),
            *picture.boxes(),
            "</svg>\n",
        ]
    )


@dataclass(frozen=True, slots=True)
class _Shape:
    """The lines of a box and its size in pixels."""

    lines: tuple[str, ...]
    width: float
    height: float

    @classmethod
    def of(cls, box: Box) -> _Shape:
        lines = [box.name, f"{box.op}  {box.shape}".rstrip()]
        if box.parameters:
            lines.append(f"{box.parameters:,} parameter{'s' * (box.parameters != 1)}")
        cut = [line if len(line) <= MAX_TEXT else f"{line[: MAX_TEXT - 1]}…" for line in lines]
        width = max(text_width(line, bold=not i) for i, line in enumerate(cut))
        slant = 2 * PADDING if box.op == "input" else 0
        return cls(tuple(cut), round(width + 2 * PADDING + slant), LINE_HEIGHT * len(cut) + PADDING)


def text_width(text: str, *, bold: bool = False) -> float:
    """About how wide a line of 13 pixels is in a common sans-serif font, rather too wide."""
    width = sum(4.3 if c in _NARROW else 10.8 if c in _WIDE or ord(c) > 0x2E7F else 7.5 for c in text)
    return width * (1.05 if bold else 1.0)


@dataclass(frozen=True, slots=True)
class _Picture:
    """A laid out diagram; the frames of blocks may reach beyond the boxes."""

    diagram: Diagram
    shapes: list[_Shape]
    layout: Layout
    turned: bool

    @property
    def extent(self) -> Point:
        """Width and height in pixels."""
        across, along = self.layout.extent
        width, height = (along, across) if self.turned else (across, along)
        return width + 2 * MARGIN, height + 2 * MARGIN

    def at(self, point: Point) -> Point:
        """A point of the layout in pixels."""
        across, along = point
        return (along + MARGIN, across + MARGIN) if self.turned else (across + MARGIN, along + MARGIN)

    def corner(self, index: int) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of a box."""
        x, y = self.at(self.layout.centres[index])
        shape = self.shapes[index]
        return x - shape.width / 2, y - shape.height / 2, x + shape.width / 2, y + shape.height / 2

    def frames(self) -> Iterator[str]:
        """A frame with its name around each block's boxes, where no other box is in the way."""
        members: dict[tuple[str, ...], list[int]] = {}
        for index, box in enumerate(self.diagram.boxes):
            for depth in range(1, len(box.groups) + 1):
                members.setdefault(box.groups[:depth], []).append(index)
        if len(members) > MAX_FRAMES:
            return
        deepest = max(map(len, members), default=0)
        for group, inside in sorted(members.items(), key=lambda item: len(item[0])):
            within = set(inside)
            room = 8.0 + 4.0 * (deepest - len(group))
            corners = [self.corner(i) for i in inside]
            left, top = min(c[0] for c in corners) - room, min(c[1] for c in corners) - room - 6
            right, bottom = max(c[2] for c in corners) + room, max(c[3] for c in corners) + room
            others = [self.corner(i) for i in range(len(self.shapes)) if i not in within]
            if any(c[0] < right and c[2] > left and c[1] < bottom and c[3] > top for c in others):
                continue
            yield (
                f'<rect class="block" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
                f'height="{bottom - top:.1f}" rx="8" fill="#8f7350" fill-opacity="0.07" stroke="#8f7350" '
                f'stroke-opacity="0.6" stroke-dasharray="4 3"/>'
            )
            place = f'x="{left + 7:.1f}" y="{top + 10:.1f}" font-size="10"'
            yield f'<text {place} fill="{SOFT_TEXT}">{_text(group[-1])}</text>'

    def edges(self) -> Iterator[str]:
        """Arrows: straight past boxes, curved between layers."""
        for (source, target), line in zip(self.diagram.edges, self.layout.edges, strict=True):
            yield (
                f'<path class="edge" data-from="n{source}" data-to="n{target}" d="{self._path(line)}" fill="none" '
                f'stroke="{LINE}" stroke-width="1.4" marker-end="url(#arrow)"/>'
            )

    def _path(self, line: list[Point]) -> str:
        text = "M{:.1f},{:.1f}".format(*self.at(line[0]))
        for index, (start, end) in enumerate(itertools.pairwise(line)):
            bend = abs(start[0] - end[0]) > 0.5 and index % 2 == 0
            if bend:
                middle = (start[1] + end[1]) / 2
                first, second = self.at((start[0], middle)), self.at((end[0], middle))
                text += " C{:.1f},{:.1f} {:.1f},{:.1f} {:.1f},{:.1f}".format(*first, *second, *self.at(end))
            else:
                text += " L{:.1f},{:.1f}".format(*self.at(end))
        return text

    def boxes(self) -> Iterator[str]:
        """Boxes with their text; inputs are parallelograms."""
        for index, (box, shape) in enumerate(zip(self.diagram.boxes, self.shapes, strict=True)):
            left, top, right, bottom = self.corner(index)
            fill, outline = COLOURS[box.family]
            style = f'fill="{fill}" stroke="{outline}" stroke-width="1.3"'
            yield f'<g class="layer" id="n{index}"><title>{_text(box.label)}</title>'
            if box.op == "input":
                points = ((left + PADDING, top), (right, top), (right - PADDING, bottom), (left, bottom))
                yield f'<polygon points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" {style}/>'
            else:
                yield (
                    f'<rect x="{left:.1f}" y="{top:.1f}" width="{shape.width:.1f}" height="{shape.height:.1f}" '
                    f'rx="6" {style}/>'
                )
            for number, line in enumerate(shape.lines):
                y = top + PADDING / 2 + LINE_HEIGHT * (number + 0.5) + 4.5
                font = f'font-weight="600" fill="{TEXT}"' if number == 0 else f'font-size="12" fill="{SOFT_TEXT}"'
                yield f'<text x="{(left + right) / 2:.1f}" y="{y:.1f}" text-anchor="middle" {font}>{_text(line)}</text>'
            yield "</g>"


def _text(text: str) -> str:
    """Text for XML: escaped, and without the control characters that XML does not know."""
    return escape("".join(c if c.isprintable() else " " for c in text))
