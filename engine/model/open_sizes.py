"""Sizes besides the batch that inputs leave open: which a model is compiled for, and what carries them.

An axis is open where a declared shape has None. Axis 0 is the batch, whose sizes are declared elsewhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import BundleError, OptionError, Problem
from engine.model.model import Model

Opened = Mapping[tuple[str, int], int]
"""The size of each open axis, by input and axis."""

_MOST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class OpenSize:
    """One open size of a model: all `axes` (input name -> its axes, from 1) have it, whatever it is in a call.

    Attributes:
        sizes: what the model is compiled for, ascending.
        padded: whether smaller inputs are padded to one of `sizes`, and outputs cut.
        mask: an input `(batch, size)` that says which positions are real, if the model has one.
    """

    axes: Mapping[str, tuple[int, ...]]
    sizes: tuple[int, ...]
    padded: bool = False
    mask: str | None = None

    def __str__(self) -> str:
        return ", ".join(f"{name}[{axis}]" for name, axis in self.all_axes())

    def all_axes(self) -> Iterator[tuple[str, int]]:
        """Every axis that has this size, its mask's included."""
        for name, axes in self.axes.items():
            for axis in axes:
                yield name, axis
        if self.mask is not None:
            yield self.mask, 1


def open_axes(model: Model) -> list[tuple[str, int]]:
    """Every axis besides the batch that an input leaves open; inputs without a declared shape have none."""
    return [
        (name, axis)
        for name, node in model.inputs().items()
        for axis, size in enumerate(node.options["shape"] or ())
        if size is None and axis > 0
    ]


def opened(open_sizes: Sequence[OpenSize], sizes: Sequence[int]) -> dict[tuple[str, int], int]:
    """Sizes of all axes from one size for each of `open_sizes`."""
    return {axis: size for each, size in zip(open_sizes, sizes, strict=True) for axis in each.all_axes()}


def largest(open_sizes: Sequence[OpenSize]) -> dict[tuple[str, int], int]:
    """Sizes of all axes in the largest program."""
    return opened(open_sizes, [each.sizes[-1] for each in open_sizes])


def combinations(open_sizes: Sequence[OpenSize]) -> list[tuple[int, ...]]:
    """Every combination of sizes, one of each open size; a single empty one without open sizes."""
    return list(itertools.product(*(each.sizes for each in open_sizes)))


def check_open_sizes(model: Model, open_sizes: Sequence[OpenSize]) -> None:
    """Raises `OptionError` naming input and axis where open sizes and the open axes of a model are not the same."""
    undeclared = dict.fromkeys(open_axes(model))
    inputs = model.inputs()
    for each in open_sizes:
        for name, axis in each.all_axes():
            if (name, axis) in undeclared:
                del undeclared[name, axis]
                continue
            shape = inputs[name].options["shape"] if name in inputs else None
            got = f"shape {shape}" if name in inputs else f"no such input among {', '.join(inputs)}"
            raise OptionError(f"open size of input {name!r} axis {axis}: expected an axis left open, once; got {got}")
        if each.mask is not None and (len(shape := inputs[each.mask].options["shape"]) != 2):
            raise OptionError(f"mask {each.mask!r}: expected an input of shape (batch, size), got {shape}")
    for name, axis in undeclared:
        shape = inputs[name].options["shape"]
        raise OptionError(
            f"input {name!r} axis {axis}: expected open_sizes with the sizes to compile for, since its shape {shape} "
            "leaves it open; got none"
        )


def read_open_sizes(serving: Mapping[str, Any], path: str) -> tuple[OpenSize, ...]:
    """The `open_sizes` of how a bundle wants to be served; raises `BundleError` naming the field."""
    listed = serving.get("open_sizes")
    if listed is None:
        return ()
    if not isinstance(listed, list):
        raise BundleError([Problem(f"{path}.open_sizes", "a list", type(listed).__name__)])
    return tuple(_read(each, f"{path}.open_sizes[{index}]") for index, each in enumerate(listed))


def _read(value: Any, path: str) -> OpenSize:
    fields = value if isinstance(value, Mapping) else {}
    axes, sizes, mask = fields.get("axes"), fields.get("sizes"), fields.get("mask")
    given = axes if isinstance(axes, Mapping) else {}
    named = {name: tuple(each) if isinstance(each, list) else (each,) for name, each in given.items()}
    if not named or not all(each and all(map(_whole, each)) for each in named.values()):
        raise BundleError([Problem(f"{path}.axes", "axes from 1 by the names of inputs", str(axes)[:100])])
    ascending = sizes if isinstance(sizes, list) and all(map(_whole, sizes)) else []
    if not ascending or any(a >= b for a, b in itertools.pairwise(ascending)):
        raise BundleError([Problem(f"{path}.sizes", "ascending whole numbers from 1", str(sizes)[:100])])
    if not isinstance(mask, str | None):
        raise BundleError([Problem(f"{path}.mask", "the name of an input", str(mask)[:100])])
    return OpenSize(named, tuple(ascending), bool(fields.get("pad_values")), mask)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST
