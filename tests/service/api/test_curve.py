"""Pictures of series: any numbers give a document that parses, with everything inside."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from service.api.curve import MAX_POINTS, draw
from service.core.progress import Point

SVG = "{http://www.w3.org/2000/svg}"


def points(**lines: list[float]) -> list[Point]:
    """Points with one value of each line."""
    return [Point(step, 1, False, 0.0, {n: v[step] for n, v in lines.items()}) for step in range(len(*lines.values()))]


@pytest.mark.parametrize(
    "values",
    [[1.0], [0.0, 0.0], [1e-300, 2e-300], [1.7e308, -1.7e308], [1.0, 1.0 + 2**-52], [float("nan"), 1.0], [-1.7e308]],
)
def test_any_numbers_are_drawn_inside(values):
    """One point, equal ones, the largest, the smallest, and gaps."""
    picture = ElementTree.fromstring(draw(points(loss=values), "t"))
    for line in picture.iter(f"{SVG}polyline"):
        for number in re.split("[ ,]", line.attrib["points"]):
            assert 0 <= float(number) <= 720


def test_validation_is_dashed_and_names_are_escaped():
    """A validation line has the colour of its metric, and dashes; text from outside stays text."""
    found = points(loss=[1.0])
    found += [Point(1, 1, True, 0.0, {"loss": 0.5, "validation_loss": 0.7, "<b>&": 1.0})]
    text = draw(found, "<script>")
    assert "<script>" not in text
    lines = list(ElementTree.fromstring(text).iter(f"{SVG}polyline"))
    assert len(lines) == 3
    assert lines[0].attrib["stroke"] == lines[1].attrib["stroke"]
    assert ["stroke-dasharray" in line.attrib for line in lines] == [False, True, False]


def test_long_series_are_thinned():
    """A line never has more points than can be seen; the last is among them."""
    picture = ElementTree.fromstring(draw(points(loss=[float(step) for step in range(5000)]), "t"))
    (line,) = picture.iter(f"{SVG}polyline")
    places = line.attrib["points"].split()
    assert len(places) == MAX_POINTS
    assert places[-1].split(",")[0] == "704.0"
