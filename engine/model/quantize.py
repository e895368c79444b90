"""Models with 8-bit weights, and with 8-bit inputs to their layers: a rewriting of the graph, and of the state.

Weight-only layers compute in floats with int8 weights: a quarter of the memory. Static layers round their inputs too,
with ranges that `calibrate` has seen, and multiply integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engine.errors import OptionError, StateError
from engine.functional.quantize import QTensor, scale_of
from engine.model.block import BLOCK
from engine.model.build import build
from engine.model.graph import Hook, Node, Op, owners
from engine.model.layers.convolution import CONV
from engine.model.layers.linear import DENSE
from engine.model.layers.quantized import (
    QUANTIZED_CONV,
    QUANTIZED_DENSE,
    WEIGHT_ONLY_QUANTIZED_CONV,
    WEIGHT_ONLY_QUANTIZED_DENSE,
)
from engine.model.model import Model
from engine.model.rewrite import replace_nodes
from engine.model.state import ModelState, flatten, size_text, unflatten

FULL: Mapping[str, Op] = {op.name: op for op in (DENSE, CONV)}
WEIGHT_ONLY: Mapping[str, Op] = {"dense": WEIGHT_ONLY_QUANTIZED_DENSE, "conv": WEIGHT_ONLY_QUANTIZED_CONV}
STATIC: Mapping[str, Op] = {"dense": QUANTIZED_DENSE, "conv": QUANTIZED_CONV}
Only = Callable[[str], bool] | None
"""Which layers, by their path (`block_0.dense_1`); None for all."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What `calibrate` has seen: `(lowest, highest)` value of the input of each layer, by the layer's path."""

    ranges: Mapping[str, tuple[float, float]]

    def peak(self, path: str) -> float:
        """The largest size of a layer's inputs; raises `StateError` for a layer that was not seen."""
        if path not in self.ranges:
            raise StateError(f"quantize: expected a range for layer {path!r}, got {', '.join(self.ranges) or 'none'}")
        return max(map(abs, self.ranges[path]))


def quantize(
    model: Model, state: ModelState, *, calibration: Calibration | None = None, only: Only = None
) -> tuple[Model, ModelState]:
    """The model and its state with int8 weights in its dense and conv layers.

    Args:
        calibration: what `calibrate` has seen of these layers' inputs, for static layers; None for weight-only ones.
        only: which layers; the others stay as they are.
    Returns: a model that can be served, written and trained around its quantized layers, which stay as they are.
    Raises: `StateError` for a state that does not fit, is quantized already or has ties to these kernels, and for a
        layer that the calibration lacks.
    Example:
        >>> model, state = quantize(model, state)
        >>> model, state = quantize(model, state, calibration=calibrate(model, state, batches))
    Source: Axon.Quantization.quantize/2.
    """
    changed = quantize_model_state(model, state, calibration=calibration, only=only)
    return quantize_model(model, static=calibration is not None, only=only), changed


def quantize_model(model: Model, *, static: bool = False, only: Only = None) -> Model:
    """The model with quantized layers in place of its dense and conv layers: same names, units, bias and policies.

    Args:
        static: whether the layers round their inputs to int8 too.
        only: which layers, by path. A layer of a block that stands under several paths is one layer: all must be meant.
    Source: Axon.Quantization.quantize_model/1 (dense only there).
    """
    ops = STATIC if static else WEIGHT_ONLY

    def change(name: str, node: Node) -> Node:
        options = {option: value for option, value in node.options.items() if option != "kernel_initializer"}
        return replace(node, op=ops[node.op.name], options=options, name=name, declared=None)

    chosen = _chosen(model, only)
    return replace_nodes(model, {node: partial(change, paths[0].rpartition(".")[2]) for node, paths in chosen.items()})


def quantize_model_state(
    model: Model, state: ModelState, *, calibration: Calibration | None = None, only: Only = None
) -> ModelState:
    """The state for `quantize_model` of a model with this state.

    A kernel becomes layer state, `kernel.value` and `kernel.scale`, which no gradient reaches; the layer's bias is
    frozen, and what was frozen before stays so. Arguments and errors as `quantize`.
    Source: Axon.Quantization.quantize_model_state/2.
    """
    parameters, kept = dict(flatten(state.parameters)), dict(flatten(state.state))
    tied = {path for tie in state.ties for path in (tie.destination, tie.source)}
    frozen = set(state.frozen)
    for node, paths in _chosen(model, only).items():
        axis = 0 if node.options.get("channels") == "first" else -1
        for path in paths:
            kernel = f"{path}.kernel"
            if kernel in tied:
                raise StateError(f"quantize: expected a kernel without ties, got {kernel!r}; untie it first")
            if kernel not in parameters:
                raise StateError(f"quantize: expected a parameter {kernel!r}, got {', '.join(parameters) or 'none'}")
            q = QTensor.from_tensor(parameters.pop(kernel), axis=axis)
            new = {f"{kernel}.value": q.value, f"{kernel}.scale": q.scale}
            if calibration is not None:
                new[f"{path}.input.scale"] = scale_of(jnp.float32(calibration.peak(path)))
            kept |= new
            bias = {f"{path}.bias"} & set(parameters)
            frozen = (frozen - {kernel}) | set(new) | bias
    return ModelState(unflatten(parameters), unflatten(kept), frozenset(frozen), state.ties)


def calibrate(
    model: Model,
    state: ModelState,
    batches: Iterable[Any],
    *,
    percentile: float | None = None,
    only: Only = None,
) -> Calibration:
    """Run some batches and note between which values the inputs of dense and conv layers lie.

    Args:
        batches: inputs as `predict_fn` takes them; some hundred rows of what will be served are enough.
        percentile: in (50, 100]: of each batch this percentile and its mirror image are taken, and their means over
            the batches, so that rare outliers are cut off; None takes the lowest and highest value of all.
        only: which layers.
    Raises: `OptionError` for no batches, for values that are not finite, or a percentile outside its range.
    """
    if percentile is not None and not 50 < percentile <= 100:
        raise OptionError(f"calibrate: expected a percentile in (50, 100], got {percentile!r}")
    seen: dict[Node, list[tuple[float, float]]] = {}

    def note(original: Node, value: np.ndarray) -> None:
        if value.size:
            x = np.asarray(value, np.float32)
            pair = (x.min(), x.max()) if percentile is None else np.percentile(x, (100 - percentile, percentile))
            seen.setdefault(original, []).append((float(pair[0]), float(pair[1])))

    def watched(original: Node, node: Node) -> Node:
        return replace(node, hooks=(*node.hooks, Hook(partial(note, original), "pre_forward")))

    chosen = _chosen(model, only)
    predict = jax.jit(build(replace_nodes(model, {node: partial(watched, node) for node in chosen}))[1])
    for batch in batches:
        predict(state, batch)
    jax.effects_barrier()  # type: ignore[no-untyped-call]
    combine = (min, max) if percentile is None else (np.mean, np.mean)
    ranges: dict[str, tuple[float, float]] = {}
    for node, paths in chosen.items():
        lows, highs = zip(*seen.get(node, [(math.nan, math.nan)]), strict=True)
        low, high = float(combine[0](lows)), float(combine[1](highs))
        if not (math.isfinite(low) and math.isfinite(high)):
            got = f"{low} to {high}" if node in seen else "no rows"
            raise OptionError(f"calibrate: expected finite inputs of layer {paths[0]!r}, got {got}")
        ranges |= dict.fromkeys(paths, (low, high))
    return Calibration(ranges)


def _chosen(model: Model, only: Only) -> dict[Node, list[str]]:
    """The layers to quantize, in blocks too, with the paths of their parameters."""
    found: dict[Node, list[str]] = {}
    for path, node in _layers(model):
        plain = {spec.name for spec in node.specs()} <= {"kernel", "bias"}
        if FULL.get(node.op.name) is node.op and plain and path not in found.setdefault(node, []):
            found[node].append(path)
    return {node: paths for node, paths in found.items() if only is None or all(map(only, paths))}


def _layers(model: Model, prefix: str = "") -> Iterator[tuple[str, Node]]:
    seen = set()
    for node, owner in owners(model.names()).items():
        if node.op is not BLOCK:
            yield f"{prefix}{owner}", node
        elif owner not in seen:
            seen.add(owner)
            yield from _layers(node.options["block"].model, f"{prefix}{owner}.")


@dataclass(frozen=True, slots=True)
class SizeReport:
    """How many bytes a state's layers had and have; its text is a table.

    Attributes:
        layers: `(path, bytes before, bytes after)`, one per layer.
    """

    layers: tuple[tuple[str, int, int], ...]

    @property
    def before(self) -> int:
        """Bytes of all layers before."""
        return sum(before for _, before, _ in self.layers)

    @property
    def after(self) -> int:
        """Bytes of all layers after."""
        return sum(after for _, _, after in self.layers)

    @property
    def ratio(self) -> float:
        """Bytes after by bytes before; 1 when there were none."""
        return _ratio(self.before, self.after)

    def __str__(self) -> str:
        rows = [("Layer", "Before", "After", "Ratio")]
        for name, before, after in (*self.layers, ("Total", self.before, self.after)):
            rows.append((name, size_text(before), size_text(after), f"{_ratio(before, after):.1%}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "   ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        )


def _ratio(before: int, after: int) -> float:
    return after / before if before else 1.0


def size_report(before: ModelState, after: ModelState) -> SizeReport:
    """What a change of the state, such as `quantize`, has done to its size, layer by layer."""
    states = _leaf_bytes(before), _leaf_bytes(after)
    layers = {path.rpartition(".")[0] for path in states[0]}
    totals: dict[str, list[int]] = {}
    for column, sizes in enumerate(states):
        for path, size in sizes.items():
            parts = path.split(".")
            prefixes = (".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1))
            layer = next((prefix for prefix in prefixes if prefix in layers), path.rpartition(".")[0])
            totals.setdefault(layer, [0, 0])[column] += size
    return SizeReport(tuple((layer, old, new) for layer, (old, new) in totals.items()))


def _leaf_bytes(state: ModelState) -> dict[str, int]:
    leaves = [*flatten(state.parameters), *flatten(state.state)]
    return {path: math.prod(jnp.shape(leaf)) * jnp.result_type(leaf).itemsize for path, leaf in leaves}
