"""Limits of what is read from strangers, checked before anything is allocated for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds; sizes in bytes.

    Attributes:
        bundle_bytes: of the whole file.
        members: number of files in it.
        graph_bytes: of graph.json and of every other JSON member.
        nodes: of a graph with the definitions of its blocks.
        expanded_nodes: of a graph with every call of a block written out, as it is traced and compiled.
        block_depth: of blocks within blocks.
        depth: nesting of JSON.
        parameter_bytes: parameters, state and constants together.
        activation_bytes: outputs of all nodes together at `activation_batch` rows.
    """

    bundle_bytes: int = 4 * 2**30
    members: int = 64
    graph_bytes: int = 4 * 2**20
    nodes: int = 4096
    expanded_nodes: int = 16384
    block_depth: int = 16
    depth: int = 64
    parameter_bytes: int = 4 * 2**30
    activation_bytes: int = 8 * 2**30
    activation_batch: int = 64


DEFAULT_LIMITS = Limits()
