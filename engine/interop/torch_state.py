"""PyTorch state dicts, in and out: the same numbers in the other library's layout.

Taken is whatever `numpy.asarray` reads, PyTorch's tensors on the CPU among it; PyTorch itself is not needed. Linear
weights are `[out, in]` there and `[in, out]` here; convolutions' are `[out, in, *window]` there, here
`[*window, in, out]` with channels last and the same with channels first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from engine.errors import Problem, StateError
from engine.model.build import infer, init
from engine.model.model import Model
from engine.model.state import ModelState, flatten, unflatten
from engine.model.walk import Inputs, LayerInfo

IGNORED = ("num_batches_tracked",)
"""What PyTorch counts and nothing here needs."""
_DENSE = {"kernel": "weight", "bias": "bias"}
_SCALED = {"gamma": "weight", "beta": "bias"}
_NORMALIZED = {**_SCALED, "mean": "running_mean", "var": "running_var"}
_NAMES: Mapping[str, Mapping[str, str]] = {
    "dense": _DENSE,
    "conv": _DENSE,
    "depthwise_conv": _DENSE,
    "embedding": {"kernel": "weight"},
    "bilinear": _DENSE,
    "batch_norm": _NORMALIZED,
    "instance_norm": _NORMALIZED,
    "layer_norm": _SCALED,
    "group_norm": _SCALED,
    "rms_norm": {"gamma": "weight"},
}
"""For every op that PyTorch has in the same form: our parameters and its names."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """A parameter here and there, with what turns one layout into the other."""

    path: str
    key: str
    leaf: Any
    to_here: Callable[[np.ndarray], np.ndarray]
    to_there: Callable[[np.ndarray], np.ndarray]


def from_torch(
    model: Model, state_dict: Mapping[str, Any], *, names: Mapping[str, str] | None = None, template: Inputs = None
) -> ModelState:
    """A model's state with the parameters of a PyTorch module.

    Args:
        state_dict: `module.state_dict()`, or its arrays by name.
        names: `{layer: prefix}`, such as `{"dense_0": "fc1"}`; None pairs the layers that have parameters with the
            prefixes in the order of both.
        template: as for `build`, where input shapes are not declared.
    Returns: the state; keys of dropout layers and the like are made with seed 0.
    Raises: `StateError` with everything missing, left over or of another shape, and for layers that PyTorch has in
        another form.
    """
    layers = _layers(infer(model, template))
    pairs = _pairs(layers, _matched(layers, state_dict) if names is None else names)
    given = {key: np.asarray(value) for key, value in state_dict.items() if key.rpartition(".")[2] not in IGNORED}
    problems, leaves = [], {}
    for pair in pairs:
        if pair.key not in given:
            problems.append(Problem(pair.key, f"the {pair.path} of the model", "nothing"))
            continue
        array = given.pop(pair.key)
        found = pair.to_here(array) if array.ndim == len(pair.leaf.shape) else array
        if found.shape != pair.leaf.shape:
            expected = pair.to_there(np.empty(pair.leaf.shape, np.bool_)).shape
            problems.append(Problem(pair.key, f"shape {expected} for {pair.path}", f"{array.shape}"))
        leaves[pair.path] = found
    problems += [Problem(key, "keys of the model's layers", "one that no layer takes") for key in given]
    _raise("from_torch", problems)
    return init(model, template, state=unflatten({path: jnp.asarray(leaf) for path, leaf in leaves.items()}))


def to_torch(
    model: Model, state: ModelState, *, names: Mapping[str, str] | None = None, template: Inputs = None
) -> dict[str, np.ndarray]:
    """The arrays of a PyTorch module with this state, for `module.load_state_dict` after `torch.from_numpy`.

    `names` is `{layer: prefix}`; None takes the layers' own names. Raises: `StateError` as `from_torch`.
    """
    layers = _layers(infer(model, template))
    leaves = dict(flatten(state.parameters)) | dict(flatten(state.state))
    chosen = {layer.name: layer.name for layer in layers} if names is None else names
    return {
        pair.key: np.ascontiguousarray(pair.to_there(np.asarray(leaves[pair.path]))) for pair in _pairs(layers, chosen)
    }


def _layers(layers: list[LayerInfo]) -> list[LayerInfo]:
    """Those that have parameters; raises `StateError` for one that PyTorch has in another form."""
    found = [layer for layer in layers if layer.params and layer.node.op.name != "block"]
    kept = [layer for layer in found if layer.trained() or layer.node.op.name in _NAMES]
    _raise(
        "torch",
        [
            Problem(f"layer {layer.name!r}", f"an op out of {', '.join(_NAMES)}", layer.node.op.name)
            for layer in kept
            if layer.node.op.name not in _NAMES
        ],
    )
    return kept


def _matched(layers: list[LayerInfo], state_dict: Mapping[str, Any]) -> dict[str, str]:
    prefixes = list(dict.fromkeys(key.rpartition(".")[0] for key in state_dict))
    if len(prefixes) != len(layers):
        _raise(
            "from_torch",
            [
                Problem(
                    "state_dict",
                    f"as many modules as layers, {', '.join(layer.name for layer in layers)}; else give names",
                    ", ".join(prefixes) or "none",
                )
            ],
        )
    return {layer.name: prefix for layer, prefix in zip(layers, prefixes, strict=True)}


def _pairs(layers: list[LayerInfo], names: Mapping[str, str]) -> list[_Pair]:
    known = [layer.name for layer in layers]
    problems = [
        Problem("names", f"layers out of {', '.join(known)}", repr(name)) for name in names if name not in known
    ]
    problems += [
        Problem("names", "a prefix for every layer", f"none for {name!r}") for name in known if name not in names
    ]
    _raise("torch", problems)
    pairs = []
    for layer in layers:
        prefix = f"{names[layer.name]}." if names[layer.name] else ""
        for name, there in _NAMES[layer.node.op.name].items():
            if name in layer.params:
                layouts = _layouts(layer, name)
                pairs.append(_Pair(f"{layer.name}.{name}", f"{prefix}{there}", layer.params[name], *layouts))
    return pairs


def _layouts(
    layer: LayerInfo, name: str
) -> tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]:
    """From PyTorch's layout of a parameter to ours, and back."""
    op = layer.node.op.name
    if name == "kernel" and op == "dense":
        return np.transpose, np.transpose
    if name == "kernel" and op in ("conv", "depthwise_conv") and layer.node.options["channels"] == "last":
        rank = len(layer.params[name].shape)
        return (
            lambda array: array.transpose(*range(2, rank), 1, 0),
            lambda array: array.transpose(rank - 1, rank - 2, *range(rank - 2)),
        )
    return np.asarray, np.asarray


def _raise(what: str, problems: list[Problem]) -> None:
    if problems:
        listed = "; ".join(f"{p.path}: expected {p.expected}, got {p.got}" for p in problems[:20])
        raise StateError(f"{what}: {listed}")
