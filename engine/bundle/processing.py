"""The members that say what is done to inputs and outputs, checked against the model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from engine import postprocess as post
from engine.bundle import archive
from engine.bundle.limits import Limits
from engine.errors import BundleError, OptionError, Problem
from engine.model.model import Model
from engine.model.outputs import output_names
from engine.model.walk import LayerInfo
from engine.postprocess import Postprocess
from engine.preprocess import Preprocess, specs


def members(
    model: Model,
    layers: Sequence[LayerInfo],
    preprocess: Preprocess | None,
    postprocess: Postprocess | None,
    limits: Limits,
) -> dict[str, bytes]:
    """The members to write; raises `BundleError` for steps of what the model does not have, or that get too long."""
    found: dict[str, bytes] = {}
    if preprocess is not None:
        check_inputs(preprocess, model)
        found[archive.PREPROCESS] = _json(specs.to_json(preprocess))
    if postprocess is not None and postprocess.outputs:
        check_outputs(postprocess, model, layers)
        found[archive.POSTPROCESS] = _json(post.to_json(postprocess))
    for name, data in found.items():
        if len(data) > limits.graph_bytes:
            raise BundleError([Problem(name, f"at most {limits.graph_bytes} bytes", str(len(data)))])
    return found


def read_preprocess(value: Any, model: Model) -> Preprocess:
    """What a member's JSON says, None for no member; raises `BundleError`."""
    preprocess = Preprocess() if value is None else specs.from_json(value)
    check_inputs(preprocess, model)
    return preprocess


def read_postprocess(value: Any, model: Model, layers: Sequence[LayerInfo]) -> Postprocess:
    """What a member's JSON says, None for no member; raises `BundleError`."""
    postprocess = Postprocess() if value is None else post.from_json(value)
    check_outputs(postprocess, model, layers)
    return postprocess


def check_inputs(preprocess: Preprocess, model: Model) -> None:
    """Raise `BundleError` for steps of inputs that the model does not have."""
    known = ", ".join(model.inputs())
    if unknown := sorted(set(preprocess.inputs) - set(model.inputs())):
        raise BundleError([Problem(f"{archive.PREPROCESS}: inputs.{n}", f"one of {known}", "unknown") for n in unknown])


def check_outputs(postprocess: Postprocess, model: Model, layers: Sequence[LayerInfo]) -> None:
    """Raise `BundleError` for steps that do not fit the model's outputs, or give two outputs one name."""
    if not postprocess.outputs:
        return
    leaves = dict(zip(output_names(model), jax.tree.leaves(layers[-1].output), strict=False))
    problems: list[Problem] = []
    for name, steps in postprocess.outputs.items():
        where = f"{archive.POSTPROCESS}: outputs.{name[:128]}"
        if name not in leaves:
            problems.append(Problem(where, f"one of {', '.join(leaves)}"[:1000], "unknown"))
            continue
        try:
            steps.check((None, *leaves[name].shape[1:]) if leaves[name].shape else (), leaves[name].dtype)
        except OptionError as error:
            problems.append(Problem(where, "steps that fit the output", str(error)[:300]))
        for given in set(steps.given(name)) - {name}:
            if given in leaves or given in model.names().values():
                problems.append(Problem(where, "top_k to give names that no layer has", repr(given)[:200]))
    if problems:
        raise BundleError(problems)


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
