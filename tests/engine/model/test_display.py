"""Tables, Mermaid text and pictures: golden texts, pictures that parse, boxes that do not overlap."""

from __future__ import annotations

import itertools
import time
import xml.etree.ElementTree as ET

import numpy as np
import pytest

import engine as ax
from engine.errors import OptionError, ShapeError
from engine.model.diagram import DIRECTIONS, Box, Diagram, mermaid
from engine.model.drawing import draw
from engine.model.layout import arrange

SVG = "{http://www.w3.org/2000/svg}"


def _mlp() -> ax.Model:
    return ax.input("input", shape=(None, 784)).dense(128).dense(10).softmax()


def _residual() -> ax.Model:
    x = ax.input("image", shape=(None, 8, 8, 3)).conv(4, kernel_size=3, padding="same")
    y = x.batch_norm().relu().conv(4, kernel_size=3, padding="same")
    return ax.add(x, y).relu().global_avg_pool().dense(2)


def _two_inputs() -> ax.Model:
    body = ax.block(lambda x: x.dense(4, activation="relu"), name="body")
    outer = ax.block(lambda x: body(x.dense(4)).tanh(), name="outer")
    a, b = ax.input("a", shape=(None, 3)), ax.input("b", shape=(None, 4))
    return ax.container({"y": ax.add(outer(a), b, body(b)), "z": outer(a)})


def test_the_table_of_the_documents():
    """The golden table: 101,770 parameters in 407,080 bytes."""
    assert ax.display.as_table(_mlp()).splitlines()[3:] == [
        "Layer                              Shape         Policy              Parameters   Parameters Memory",
        "=" * 99,
        "input ( input )                    (None, 784)   p=f32 c=f32 o=f32   0            0 bytes",
        'dense_0 ( dense["input"] )         (None, 128)   p=f32 c=f32 o=f32   100480       401920 bytes',
        'dense_1 ( dense["dense_0"] )       (None, 10)    p=f32 c=f32 o=f32   1290         5160 bytes',
        'softmax_0 ( softmax["dense_1"] )   (None, 10)    p=f32 c=f32 o=f32   0            0 bytes',
        "-" * 99,
        "Total Parameters: 101770",
        "Total Parameters Memory: 407080 bytes",
        'Inputs: {"input": (None, 784)}',
    ]


def test_the_first_model_of_the_notes_has_109642_parameters():
    """100,480 + 256 + 8,256 + 650; running statistics are state, not parameters."""
    model = ax.input("input", shape=(None, 784)).dense(128).batch_norm().dropout(rate=0.8).dense(64, activation="tanh")
    text = ax.display.as_table(model.dense(10).activation("softmax"))
    assert "Total Parameters: 109642\n" in text


def test_policies_and_templates_are_shown():
    """A template's sizes in place of None, the policy of each layer."""
    model = ax.apply_policy(_mlp(), "mixed_bfloat16")
    text = ax.display.as_table(model, {"input": np.zeros((3, 784), np.float32)})
    assert "(3, 128)" in text
    assert "p=f32 c=bf16 o=f32" in text


def test_costs_are_those_of_the_products():
    """A dense layer multiplies and adds once per weight and row, and adds the bias."""
    text = ax.display.as_table(_mlp(), {"input": np.zeros((3, 784), np.float32)}, costs=True)
    cells = {line.split()[0]: line.split()[-2:] for line in text.splitlines() if " ( " in line}
    assert int(cells["dense_0"][0]) == 3 * (2 * 784 * 128 + 128)
    least = 4 * (3 * 784 + 784 * 128 + 128 + 3 * 128)
    assert least <= int(cells["dense_0"][1]) < 1.1 * least
    assert cells["input"] == ["0", "0"]
    total = sum(int(row[0]) for row in cells.values())
    assert f"Total FLOPs: {total}" in text


def test_costs_of_any_model():
    """Blocks called twice, structured values, random keys, recurrence, 64-bit graphs, layers passed over."""
    lstm = ax.input("s", shape=(None, 5, 3)).lstm(2)[0].dropout(rate=0.5).global_avg_pool()
    wide = ax.input("w", shape=(None, 2), dtype="s64").add(ax.constant(np.int64(1)))
    missing = ax.input("o", shape=(None, 2), optional=True).optional().or_else(ax.input("x", shape=(None, 2)))
    for model in (_two_inputs(), lstm, wide, missing, ax.quantize_model(_residual(), static=True)):
        assert "Total FLOPs: " in ax.display.as_table(model, costs=True)


def test_a_quantized_kernel_counts():
    """Its int8 numbers and their scales, a byte and four bytes each."""
    text = ax.display.as_table(ax.quantize_model(_mlp()))
    assert f"Total Parameters: {101770 + 138}" in text
    assert f"Total Parameters Memory: {784 * 128 + 128 * 10 + 8 * 138} bytes" in text


def test_mermaid_of_a_residual_model():
    """Inputs are parallelograms, layers boxes, edges in the order of users."""
    assert ax.display.as_graph(_residual()) == (
        "flowchart TD\n"
        '    n0[/"image (input) (None, 8, 8, 3)"/]\n'
        '    n1["conv_0 (conv) (None, 8, 8, 4)"]\n'
        '    n2["batch_norm_0 (batch_norm) (None, 8, 8, 4)"]\n'
        '    n3["relu_0 (relu) (None, 8, 8, 4)"]\n'
        '    n4["conv_1 (conv) (None, 8, 8, 4)"]\n'
        '    n5["add_0 (add) (None, 8, 8, 4)"]\n'
        '    n6["relu_1 (relu) (None, 8, 8, 4)"]\n'
        '    n7["global_avg_pool_0 (global_avg_pool) (None, 4)"]\n'
        '    n8["dense_0 (dense) (None, 2)"]\n'
        "    n0 --> n1\n    n1 --> n2\n    n2 --> n3\n    n3 --> n4\n    n1 --> n5\n    n4 --> n5\n"
        "    n5 --> n6\n    n6 --> n7\n    n7 --> n8\n"
    )


def test_mermaid_of_blocks():
    """The first call of a block is a subgraph of its layers, nested ones within; a further call is one box."""
    assert ax.display.as_graph(_two_inputs(), direction="left_right") == (
        "flowchart LR\n"
        '    n0[/"a (input) (None, 3)"/]\n'
        '    subgraph b0["outer"]\n'
        '        n1["outer.dense_0 (dense) (None, 4)"]\n'
        '        subgraph b1["body"]\n'
        '            n2["outer.body.dense_0 (dense) (None, 4)"]\n'
        '            n3["outer.body.relu_0 (relu) (None, 4)"]\n'
        "        end\n"
        '        n4["outer.tanh_0 (tanh) (None, 4)"]\n'
        "    end\n"
        '    n5[/"b (input) (None, 4)"/]\n'
        '    n6["body (block body) (None, 4)"]\n'
        '    n7["add_0 (add) (None, 4)"]\n'
        '    n8["outer_1 (block outer) (None, 4)"]\n'
        '    n9["container_0 (container) (None, 4); (None, 4)"]\n'
        "    n0 --> n1\n    n1 --> n2\n    n2 --> n3\n    n3 --> n4\n    n5 --> n6\n    n4 --> n7\n    n5 --> n7\n"
        "    n6 --> n7\n    n0 --> n8\n    n7 --> n9\n    n8 --> n9\n"
    )


def test_text_of_strangers_is_escaped():
    """Whatever a custom op is called, neither Mermaid nor XML takes it for markup."""
    hostile = '"]; <script>alert(1)</script> #amp; `x` &\n\x00'
    diagram = Diagram([Box("odd", hostile, "", 0, (hostile,))], [])
    escaped = "#quot;]; #lt;script#gt;alert(1)#lt;/script#gt; #35;amp; #96;x#96; #amp;  "
    assert mermaid(diagram).splitlines()[1:] == [
        f'    subgraph b0["{escaped}"]', f'        n0["odd ({escaped})"]', "    end",
    ]  # fmt: skip
    root = ET.fromstring(draw(diagram))
    assert not [element for element in root.iter() if "script" in element.tag]


def test_without_declared_shapes_boxes_have_none():
    """The graph is drawn all the same; in a notebook the reason stands under the table, shapes that clash too."""
    model = ax.input("x").dense(3)
    assert (
        ax.display.as_graph(model) == 'flowchart TD\n    n0[/"x (input)"/]\n    n1["dense_0 (dense)"]\n    n0 --> n1\n'
    )
    assert "(2, 3)" in ax.display.as_graph(model, np.ones((2, 4), np.float32))
    assert "no shapes are declared for the inputs x" in model._repr_html_()
    clash = ax.input("x", shape=(None, 3)).add(ax.input("y", shape=(None, 4)))
    with pytest.raises(ShapeError):
        ax.display.as_graph(clash)
    with pytest.raises(ShapeError):
        ax.display.as_svg(clash)
    assert "add_0" in clash._repr_svg_()
    assert "expected" in clash._repr_html_()
    assert "Total Parameters: 101770" in _mlp()._repr_html_()


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("make", [_mlp, _residual, _two_inputs])
def test_pictures_parse_and_boxes_do_not_overlap(make, direction):
    """Every layer has its box inside the picture, every edge joins two of them."""
    model = make()
    root = ET.fromstring(ax.display.as_svg(model, direction=direction))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    boxes = {group.attrib["id"]: _corners(group) for group in root.iter(f"{SVG}g")}
    lines = ax.display.as_graph(model).splitlines()
    assert len(boxes) == sum("[" in line and "subgraph" not in line for line in lines)
    for left, top, right, bottom in boxes.values():
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
    for one, other in itertools.combinations(boxes.values(), 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    edges = [(p.attrib["data-from"], p.attrib["data-to"]) for p in root.iter(f"{SVG}path") if "data-from" in p.attrib]
    assert edges == [tuple(line.split(" --> ")) for line in (each.strip() for each in lines) if " --> " in line]
    for path in root.iter(f"{SVG}path"):
        if "data-from" in path.attrib:
            assert _touches(path.attrib["d"].split()[0][1:], boxes[path.attrib["data-from"]])
            assert _touches(path.attrib["d"].split()[-1].lstrip("LC"), boxes[path.attrib["data-to"]])


def _corners(group: ET.Element) -> tuple[float, float, float, float]:
    rect = group.find(f"{SVG}rect")
    if rect is None:
        polygon = group.find(f"{SVG}polygon")
        assert polygon is not None
        xs, ys = zip(*(map(float, pair.split(",")) for pair in polygon.attrib["points"].split()), strict=True)
        return min(xs), min(ys), max(xs), max(ys)
    x, y, width, height = (float(rect.attrib[name]) for name in ("x", "y", "width", "height"))
    return x, y, x + width, y + height


def _touches(point: str, box: tuple[float, float, float, float]) -> bool:
    x, y = map(float, point.split(","))
    return box[0] - 0.2 <= x <= box[2] + 0.2 and box[1] - 0.2 <= y <= box[3] + 0.2


def test_a_chain_of_4000_layers_is_drawn():
    """Depth is no recursion, and takes seconds at most."""
    model = ax.input("x")
    for _ in range(4000):
        model = model.relu()
    started = time.monotonic()
    assert ax.display.as_svg(model).count('class="layer"') == 4001
    assert ax.display.as_graph(model).count("-->") == 4000
    assert time.monotonic() - started < 20


def test_many_long_edges_are_drawn_straight():
    """4,000 layers that all use the input would need eight million bends."""
    x = ax.input("x")
    model = x
    for _ in range(2000):
        model = model.add(x)
    started = time.monotonic()
    assert ax.display.as_svg(model).count('class="edge"') == 1 + 2 * 1999
    assert time.monotonic() - started < 20


def test_a_crossing_is_taken_out():
    """Two pairs that are listed crosswise are drawn side by side."""
    layout = arrange([(10, 5)] * 4, [(0, 3), (1, 2)], gap=5, layer_gap=5)
    (a, _), (b, _), (c, _), (d, _) = layout.centres
    assert (a < b) == (d < c)
    assert layout.extent == (25, 15)


def test_another_direction_is_an_error():
    """Only the two."""
    for function in (ax.display.as_graph, ax.display.as_svg):
        with pytest.raises(OptionError, match="direction"):
            function(_mlp(), direction="sideways")
