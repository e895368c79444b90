"""Where boxes and arrows of a picture go: layers by longest path, ordered by barycentres, aligned by least squares.

Coordinates are (across, along): the flow runs along, the boxes of a layer stand side by side across. Source: Sugiyama,
Tagawa and Toda 1981; positions are an isotonic regression (pool adjacent violators) of the neighbours' means.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

MAX_BENDS = 20_000
"""Long edges are led around boxes by a bend per layer; when there were more bends than this, they run straight."""
SWEEPS = 8
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Layout:
    """Centres `(across, along)` of the boxes, the points of every edge, and the size of it all."""

    centres: list[Point]
    edges: list[list[Point]]
    extent: Point


@dataclass(slots=True)
class _Grid:
    """Boxes and bends: the layer of each, its width and neighbours, and the order within each layer."""

    layer_of: list[int]
    widths: list[float]
    above: list[list[int]]
    below: list[list[int]]
    layers: list[list[int]]


def arrange(sizes: Sequence[Point], edges: Sequence[tuple[int, int]], *, gap: float, layer_gap: float) -> Layout:
    """Places for boxes of these sizes `(across, along)`; every edge leads to a later box.

    Boxes do not overlap: they are `gap` apart across and `layer_gap` along.
    """
    grid, chains = _grid([width for width, _ in sizes], edges)
    _order(grid)
    across = _align(grid, gap)
    heights = [max((sizes[i][1] for i in layer if i < len(sizes)), default=0.0) for layer in grid.layers]
    along, total = [], 0.0
    for height in heights:
        along.append(total + height / 2)
        total += height + layer_gap
    low = min((across[i] - width / 2 for i, width in enumerate(grid.widths)), default=0.0)
    high = max((across[i] + width / 2 for i, width in enumerate(grid.widths)), default=0.0)
    places = [(x - low, along[layer]) for x, layer in zip(across, grid.layer_of, strict=True)]
    centres = places[: len(sizes)]
    return Layout(centres, _lines(sizes, places, chains, heights, grid), (high - low, max(total - layer_gap, 0.0)))


def _grid(widths: Sequence[float], edges: Sequence[tuple[int, int]]) -> tuple[_Grid, list[list[int]]]:
    """Layers by longest path, a bend for every layer that an edge passes, and each edge as a chain of both."""
    depth = [0] * len(widths)
    for source, target in sorted(edges, key=lambda edge: edge[1]):
        depth[target] = max(depth[target], depth[source] + 1)
    nearest: dict[int, int] = {}
    for source, target in edges:
        nearest[source] = min(nearest.get(source, depth[target]), depth[target])
    # What no edge leads to stands just before its first user.
    for root in set(nearest) - {target for _, target in edges}:
        depth[root] = nearest[root] - 1
    bends = sum(depth[target] - depth[source] - 1 for source, target in edges)
    grid = _Grid(list(depth), list(widths), [[] for _ in widths], [[] for _ in widths], [])
    chains = []
    for source, target in edges:
        chain = [source]
        for layer in range(depth[source] + 1, depth[target]) if bends <= MAX_BENDS else ():
            chain.append(len(grid.widths))
            grid.layer_of.append(layer)
            grid.widths.append(0.0)
            grid.above.append([])
            grid.below.append([])
        chain.append(target)
        chains.append(chain)
        for upper, lower in itertools.pairwise(chain):
            grid.below[upper].append(lower)
            grid.above[lower].append(upper)
    grid.layers = [[] for _ in range(max(grid.layer_of, default=-1) + 1)]
    for item, layer in enumerate(grid.layer_of):
        grid.layers[layer].append(item)
    return grid, chains


def _order(grid: _Grid) -> None:
    """Sort each layer by the mean place of its neighbours, downwards and upwards in turn; keep the fewest crossings."""
    best, fewest = [list(layer) for layer in grid.layers], _crossings(grid)
    for sweep in range(SWEEPS):
        if not fewest:
            break
        downwards = sweep % 2 == 0
        neighbours = grid.above if downwards else grid.below
        rows = grid.layers[1:] if downwards else grid.layers[-2::-1]
        place = _places(grid)
        for row in rows:
            means = {
                i: sum(place[n] for n in neighbours[i]) / len(neighbours[i]) if neighbours[i] else place[i] for i in row
            }
            row.sort(key=means.__getitem__)
            place.update((item, position) for position, item in enumerate(row))
        crossings = _crossings(grid)
        if crossings < fewest:
            best, fewest = [list(layer) for layer in grid.layers], crossings
    grid.layers = best


def _places(grid: _Grid) -> dict[int, float]:
    return {item: float(position) for layer in grid.layers for position, item in enumerate(layer)}


def _crossings(grid: _Grid) -> int:
    """How often edges between neighbouring layers cross: inversions, counted with a Fenwick tree."""
    place = _places(grid)
    total = 0
    for layer in grid.layers:
        ends = [int(place[n]) for item in layer for n in sorted(grid.below[item], key=place.__getitem__)]
        tree = [0] * (max(ends, default=0) + 2)
        for seen, end in enumerate(ends):
            not_beyond, index = 0, end + 1
            while index:
                not_beyond += tree[index]
                index -= index & -index
            total += seen - not_beyond
            index = end + 1
            while index < len(tree):
                tree[index] += 1
                index += index & -index
    return total


def _align(grid: _Grid, gap: float) -> list[float]:
    """Across coordinates: every item near the mean of its neighbours, in order and `gap` apart."""
    across = [0.0] * len(grid.widths)
    offsets = {}
    for layer in grid.layers:
        position = 0.0
        for item in layer:
            offsets[item] = position + grid.widths[item] / 2
            position += grid.widths[item] + gap
        for item in layer:
            across[item] = offsets[item] - (position - gap) / 2
    for sweep in range(2 * SWEEPS):
        rows: Sequence[list[int]] = grid.layers if sweep % 2 == 0 else grid.layers[::-1]
        near = (grid.above, grid.below)[sweep % 2]
        for row in rows:
            wanted = [_wanted(item, near[item], across) - offsets[item] for item in row]
            # Bends pull harder, so that long edges become straight.
            weights = [4.0 if not grid.widths[item] else 1.0 for item in row]
            for item, place in zip(row, _isotonic(wanted, weights), strict=True):
                across[item] = place + offsets[item]
    return across


def _wanted(item: int, neighbours: Sequence[int], across: Sequence[float]) -> float:
    return sum(across[n] for n in neighbours) / len(neighbours) if neighbours else across[item]


def _isotonic(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The non-decreasing sequence that is nearest by weighted least squares."""
    pools: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        pool = (value, weight, 1)
        while pools and pools[-1][0] > pool[0]:
            mean, other, count = pools.pop()
            both = other + pool[1]
            pool = ((mean * other + pool[0] * pool[1]) / both, both, count + pool[2])
        pools.append(pool)
    return [mean for mean, _, count in pools for _ in range(count)]


def _lines(
    sizes: Sequence[Point],
    places: Sequence[Point],
    chains: Sequence[list[int]],
    heights: Sequence[float],
    grid: _Grid,
) -> list[list[Point]]:
    """The points of every edge, from the end of one box to the start of the other, past each layer between."""
    starts = _ports(sizes, places, [(chain[0], places[chain[1]][0]) for chain in chains])
    ends = _ports(sizes, places, [(chain[-1], places[chain[-2]][0]) for chain in chains])
    lines = []
    for chain, start, end in zip(chains, starts, ends, strict=True):
        (_, along), (_, goal) = places[chain[0]], places[chain[-1]]
        line = [(start, along + sizes[chain[0]][1] / 2)]
        for bend in chain[1:-1]:
            across, middle = places[bend]
            half = heights[grid.layer_of[bend]] / 2
            line += [(across, middle - half), (across, middle + half)]
        lines.append([*line, (end, goal - sizes[chain[-1]][1] / 2)])
    return lines


def _ports(sizes: Sequence[Point], places: Sequence[Point], edges: Sequence[tuple[int, float]]) -> list[float]:
    """Where on its box each edge ends, given the box and where the edge comes from: side by side, in that order."""
    at: dict[int, list[int]] = {}
    for edge, (box, _) in enumerate(edges):
        at.setdefault(box, []).append(edge)
    ports = [0.0] * len(edges)
    for box, here in at.items():
        step = min(16.0, 0.7 * sizes[box][0] / len(here))
        for position, edge in enumerate(sorted(here, key=lambda edge: edges[edge][1])):
            ports[edge] = places[box][0] + (position - (len(here) - 1) / 2) * step
    return ports
