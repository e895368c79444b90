"""The programs of a model at the sizes with which its graph calls them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from engine.bundle.limits import Limits
from engine.bundle.verify import ParsedProgram, cost_problems, parse_program
from engine.errors import Problem
from engine.model.program import Program, fits
from engine.model.state import unflatten
from engine.model.walk import LayerInfo


def call_problems(layers: Sequence[LayerInfo], limits: Limits) -> list[Problem]:
    """What is wrong with the programs of a graph at the sizes of its layers: loops and costs without a bound."""
    parsed: dict[bytes, tuple[ParsedProgram | None, list[Problem]]] = {}
    params: dict[str, Any] = {}
    problems: list[Problem] = []
    done: set[tuple[bytes, tuple[tuple[int, ...], ...]]] = set()
    for layer in layers:
        program = layer.node.op.apply
        if not isinstance(program, Program):
            continue
        # Further calls of a block bring no parameters of their own.
        given = params.setdefault(layer.name, layer.params)
        arguments = (tuple(layer.inputs), unflatten(given))
        sizes = tuple(jnp.shape(leaf) for leaf in jax.tree.leaves(arguments))
        for variant in program.variants:
            if (variant.data, sizes) in done or not fits(variant.exported, arguments):
                continue
            done.add((variant.data, sizes))
            where = f"layer {layer.name}"
            if variant.data not in parsed:
                parsed[variant.data] = parse_program(variant.data, limits, where)
            found, wrong = parsed[variant.data]
            problems += wrong if found is None else cost_problems(found, sizes, limits, where)
    return problems
