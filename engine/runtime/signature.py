"""What a model takes and gives: names, shapes and dtypes, worked out abstractly at the sizes it is declared for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np

from engine.errors import EngineError, OptionError, ShapeError
from engine.model.build import declared_template, infer, template_of
from engine.model.model import Model
from engine.model.open_sizes import OpenSize, open_axes, opened
from engine.model.outputs import output_names, with_outputs
from engine.model.walk import LayerInfo
from engine.precision import dtype_of


@dataclass(frozen=True, slots=True)
class Signature:
    """A named array: shape with None for what a call decides, and dtype.

    `open_axes` says which of these axes have an open size: axis -> its index among the declared ones.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype
    open_axes: Mapping[int, int] = field(default_factory=dict)


Layers = list[LayerInfo]


@dataclass(frozen=True, slots=True)
class Walks:
    """The shapes of a graph at 2 rows: `base` with the largest of each open size, then one of them changed at a time.

    `declared` and `trials` hold, per open size, the walks at its other declared sizes and at an undeclared one.
    """

    open_sizes: tuple[OpenSize, ...]
    base: Layers
    declared: tuple[Mapping[int, Layers], ...] = ()
    trials: tuple[Mapping[int, Layers], ...] = ()

    def shape_of(self, what: str, pick: Callable[[Layers], Any]) -> tuple[tuple[int | None, ...], dict[int, int]]:
        """The shape of a value, None where it depends on an open size, and which axes are that size itself.

        Raises: `OptionError` where a padded size comes out as something else, since nobody knows what to cut off.
        """
        base = tuple(pick(self.base).shape)
        shape: list[int | None] = list(base)
        found: dict[int, int] = {}
        for index, (each, declared, trials) in enumerate(zip(self.open_sizes, self.declared, self.trials, strict=True)):
            known = {each.sizes[-1]: base, **{size: tuple(pick(layers).shape) for size, layers in declared.items()}}
            tried = {size: tuple(pick(layers).shape) for size, layers in trials.items()}
            for axis in range(len(base)):
                seen = known if len({_axis(other, axis) for other in known.values()}) > 1 else {**known, **tried}
                if len({_axis(other, axis) for other in seen.values()}) == 1:
                    continue
                equal = shape[axis] is not None and all(_axis(other, axis) == size for size, other in seen.items())
                shape[axis] = None
                found.pop(axis, None)
                if equal:
                    found[axis] = index
                elif each.padded:
                    got = ", ".join(f"{_axis(other, axis)} at {size}" for size, other in sorted(seen.items()))
                    raise OptionError(
                        f"{what} axis {axis}: expected the size of {each} itself, so that padding can be cut off; got "
                        f"{got}. Without pad_values requests of exactly the declared sizes are answered"
                    )
        return tuple(shape), found


def _axis(shape: tuple[int, ...], axis: int) -> int | None:
    """A size; None where the rank has changed."""
    return shape[axis] if axis < len(shape) else None


def walk_sizes(model: Model, open_sizes: Sequence[OpenSize] = (), *, limit_s: float = math.inf) -> Walks:
    """The shapes of a graph at its declared open sizes, which must be all that it has.

    Args:
        limit_s: how much CPU time it may take.
    Raises: the errors of `infer` that name the sizes; `OptionError` for parameters whose shapes depend on them.
    """
    until_s = time.thread_time() + limit_s

    def walk(sizes: Sequence[int]) -> Layers:
        return _walk(model, open_sizes, sizes, limit_s=max(until_s - time.thread_time(), 0.0))

    largest = [each.sizes[-1] for each in open_sizes]

    def at(index: int, size: int) -> Layers:
        return walk([*largest[:index], size, *largest[index + 1 :]])

    base = walk(largest)
    if len(open_sizes) > 1:
        walk([each.sizes[0] for each in open_sizes])
    declared, trials = [], []
    for index, each in enumerate(open_sizes):
        walks = {}
        for size in each.sizes[:-1]:
            walks[size] = at(index, size)
            _check_params(each, base, walks[size], size)
        declared.append(walks)
        trials.append(_trial(each, partial(at, index)))
    return Walks(tuple(open_sizes), base, tuple(declared), tuple(trials))


def _walk(
    model: Model, open_sizes: Sequence[OpenSize], sizes: Sequence[int], *, rows: int = 2, limit_s: float = math.inf
) -> Layers:
    try:
        return infer(model, declared_template(model, rows, opened(open_sizes, sizes)), limit_s=limit_s)
    except EngineError as error:
        if not open_sizes:
            raise
        raise type(error)(f"{error}; with {sizes_text(open_sizes, sizes)}") from None
    except Exception as error:
        # A size from a stranger reaches arithmetic in every op.
        raise ShapeError(f"{error!r:.200}; with {sizes_text(open_sizes, sizes)}") from None


def sizes_text(open_sizes: Sequence[OpenSize], sizes: Sequence[int]) -> str:
    """One size for each open size, for a message."""
    return " and ".join(f"{each} = {size}" for each, size in zip(open_sizes, sizes, strict=True))


def _trial(each: OpenSize, walk: Callable[[int], Layers]) -> dict[int, Layers]:
    """A walk at an undeclared size, which tells an axis that depends on the size from one that only seems not to.

    Where requests are padded below the declared ones if that fits: such are their sizes.
    """
    smallest, largest = each.sizes[0], each.sizes[-1]
    below = (smallest // 2, smallest - 1) if each.padded else ()
    for size in (*below, 2 * largest, largest // 2, largest + 1, largest - 1):
        if size < 1 or size in each.sizes:
            continue
        try:
            return {size: walk(size)}
        except EngineError:
            continue
    if each.padded and len(each.sizes) == 1:
        raise OptionError(
            f"open size of {each}: expected a second size that fits the graph, to see which outputs depend on it; only "
            f"{largest} does. Without pad_values requests of exactly this size are answered"
        )
    return {}


def _check_params(each: OpenSize, base: Layers, other: Layers, size: int) -> None:
    for layer, changed in zip(base, other, strict=True):
        for name, leaf in layer.params.items():
            if changed.params[name].shape != leaf.shape:
                raise OptionError(
                    f"layer {layer.name!r}: expected parameters of the same shapes at every size of {each}; got {name} "
                    f"{changed.params[name].shape} at {size} and {leaf.shape} at {each.sizes[-1]}"
                )


def signature(
    model: Model, layers: Sequence[LayerInfo] | None = None, open_sizes: Sequence[OpenSize] = ()
) -> tuple[list[Signature], list[Signature]]:
    """Inputs and outputs of a model, outputs named after their node, or by their path in a container.

    Args:
        layers: what `infer` has found for any batch size, to save a walk where no size is open besides the batch.
        open_sizes: as declared; where the graph leaves sizes open and none are, axes that depend on them are None.

    Raises: `OptionError` for an input without a declared shape, or as `walk_sizes`; `ShapeError` when shapes do not
        fit.
    """
    inputs = list(input_signatures(model, open_sizes))
    return inputs, outputs_at(model, _walks(model, layers, open_sizes))


def _walks(model: Model, layers: Sequence[LayerInfo] | None, open_sizes: Sequence[OpenSize]) -> Walks:
    axes = open_axes(model)
    if not axes and layers is not None:
        return Walks((), list(layers))
    if axes and not open_sizes:
        template = template_of(model)
        names = {name: tuple(axis for other, axis in axes if other == name) for name, _ in axes}
        name, axis = axes[0]
        open_sizes = [OpenSize(names, (template[name].shape[axis],))]
    return walk_sizes(model, open_sizes)


def input_signatures(model: Model, open_sizes: Sequence[OpenSize] = ()) -> Iterator[Signature]:
    """The inputs of a model in its order, masks included; raises `OptionError` for one without a declared shape."""
    found = {axis: index for index, each in enumerate(open_sizes) for axis in each.all_axes()}
    for name, node in model.inputs().items():
        shape = node.options["shape"]
        if shape is None:
            raise OptionError(f"input {name!r}: expected a declared shape, got none")
        own = {axis: found[name, axis] for axis in range(len(shape)) if (name, axis) in found}
        yield Signature(name, shape, dtype_of(node.options["dtype"]), own)


def has_open_batch(model: Model) -> bool:
    """Whether every input leaves the batch open."""
    return all((node.options["shape"] or ())[:1] == (None,) for node in model.inputs().values())


def outputs_at(model: Model, walks: Walks) -> list[Signature]:
    """The outputs, from walks of the graph."""
    layer = walks.base[-1]
    names, leaves = output_names(model), jax.tree.leaves(layer.output)
    if len(names) != len(leaves):
        raise OptionError(f"output {layer.name!r}: expected arrays, got a structure; take its parts with elem or fetch")
    open_batch = has_open_batch(model)

    def leaf_at(index: int) -> Callable[[Layers], Any]:
        return lambda layers: jax.tree.leaves(layers[-1].output)[index]

    found = []
    for index, (name, leaf) in enumerate(zip(names, leaves, strict=True)):
        shape, axes = walks.shape_of(f"output {name!r}", leaf_at(index))
        found.append(Signature(name, _batched(shape, open_batch), np.dtype(leaf.dtype), axes))
    return found


def _batched(shape: tuple[int | None, ...], open_batch: bool) -> tuple[int | None, ...]:
    return (None, *shape[1:]) if open_batch and shape else shape


Exposed = bool | Sequence[str]
"""Names of layers whose values may be asked for besides the outputs; True: of all that can be."""


def intermediates(model: Model, exposed: Exposed, open_sizes: Sequence[OpenSize] = ()) -> list[Signature]:
    """The layers whose values `exposed` lets callers ask for; a declared output's name stays that output's.

    Raises: `GraphError` for the name of no layer, `OptionError` for a layer without one row per row of the inputs, or
        from which padding cannot be cut off.
    """
    return intermediates_at(model, exposed, _walks(model, None, open_sizes)) if exposed else []


def intermediates_at(model: Model, exposed: Exposed, walks: Walks) -> list[Signature]:
    """As `intermediates`, from walks of the graph."""
    if not exposed:
        return []
    names = model.names()
    wanted = list(names.values()) if exposed is True else list(exposed)
    with_outputs(model, wanted)
    declared = {*output_names(model), *(model.inputs() if exposed is True else ())}
    open_batch = has_open_batch(model)
    three = _walk(model, walks.open_sizes, [each.sizes[-1] for each in walks.open_sizes], rows=3)
    # Every walk passes the same layers in the same order.
    positions = {layer.node: position for position, layer in enumerate(walks.base)}
    found = []
    for node, name in names.items():
        if name not in wanted or name in declared:
            continue
        pick = _output_at(positions[node])
        value, larger = pick(walks.base), pick(three)
        is_array = isinstance(value, jax.ShapeDtypeStruct)
        if is_array and (not open_batch or (value.shape[:1], larger.shape[:1]) == ((2,), (3,))):
            try:
                shape, axes = walks.shape_of(f"layer {name!r}", pick)
            except OptionError:
                if exposed is True:
                    continue
                raise
            found.append(Signature(name, _batched(shape, open_batch), np.dtype(value.dtype), axes))
        elif exposed is not True:
            got = f"shape {value.shape}" if is_array else "a structure"
            raise OptionError(f"layer {name!r}: expected an array with a row per row of the inputs, got {got}")
    return found


def _output_at(position: int) -> Callable[[Layers], Any]:
    """The value of the layer at a position of a walk."""
    return lambda layers: layers[position].output
