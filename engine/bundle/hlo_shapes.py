"""Sizes of the results of StableHLO operations for known sizes of their arguments, and the work they are.

Only sizes that a module leaves open are worked out; those it states, XLA holds it to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine.bundle.hlo import ELEMENTWISE, Operation, Refused
from engine.bundle.whole_numbers import Offset, Value

Sizes = tuple[int, ...]
Arguments = Sequence[Value]


class Disagreement(Refused):
    """Sizes that do not fit each other."""


def result_sizes(operation: Operation, arguments: Arguments) -> list[Sizes]:
    """The sizes of every result; raises `Refused` where they depend on data, or contradict the module."""
    results = []
    for index, found in enumerate(operation.types):
        stated = tuple(size for size in found.sizes if size is not None)
        if len(stated) == len(found.sizes):
            results.append(stated)
            continue
        rule = _RULES.get(operation.name)
        if rule is None:
            raise Refused(operation.name, "a result of stated sizes", "one of open sizes")
        sizes = rule(operation, arguments, index)
        agree = len(sizes) == len(found.sizes) and all(
            want in (None, size) for want, size in zip(found.sizes, sizes, strict=True)
        )
        if not agree or any(size < 0 for size in sizes):
            raise Disagreement(str(operation), "sizes that agree", f"{list(sizes)} for {list(found.sizes)}")
        results.append(sizes)
    return results


def work(operation: Operation, arguments: Arguments, results: Sequence[Value]) -> int:
    """How many numbers are computed, with the products summed for them; parts of a region count apart."""
    count = sum(result.count for result in results)
    if operation.name == "stablehlo.dot_general":
        axes: Sizes = operation.attributes["dot_dimension_numbers"]["lhs_contracting_dimensions"]
        return count * math.prod([arguments[0].sizes[axis] for axis in axes])
    if operation.name == "stablehlo.convolution":
        features: int = operation.attributes["dimension_numbers"]["kernel_output_feature_dimension"]
        return count * max(arguments[1].count // max(arguments[1].sizes[features], 1), 1)
    if operation.name == "stablehlo.fft":
        return 64 * max(count, arguments[0].count)
    return max(count, 1)


def region_work(operation: Operation, arguments: Arguments, results: Sequence[Value]) -> int:
    """How often the region of a reduction, a sort or a scatter is computed."""
    first = arguments[0].count
    window: Sizes = operation.attributes.get("window_dimensions", ())
    if operation.name == "stablehlo.sort":
        length: int = arguments[0].sizes[operation.attributes["dimension"]]
        return first * (max(length, 2).bit_length() + 1)
    if operation.name == "stablehlo.reduce_window":
        return results[0].count * math.prod(window)
    if operation.name == "stablehlo.select_and_scatter":
        return first * math.prod(window) + arguments[1].count
    if operation.name == "stablehlo.scatter":
        return arguments[-1].count
    return first


def _known(operation: Operation, value: Value) -> Sizes:
    """The elements of a value that states sizes."""
    elements = value.elements
    if elements is None or not all(isinstance(each, int) for each in elements):
        raise Refused(str(operation), "sizes that follow from the sizes of the arguments", "sizes that depend on data")
    return tuple(int(each) for each in elements if isinstance(each, int))


def _like(position: int) -> Callable[[Operation, Arguments, int], Sizes]:
    return lambda operation, arguments, index: arguments[position].sizes


def _stated_by(position: int) -> Callable[[Operation, Arguments, int], Sizes]:
    return lambda operation, arguments, index: _known(operation, arguments[position])


def _bitcast(operation: Operation, arguments: Arguments, index: int) -> Sizes:
    (argument,), stated = arguments, operation.types[0].sizes
    if len(stated) == len(argument.sizes) + 1:
        return (*argument.sizes, stated[-1] or 0)
    return argument.sizes[: len(stated)]


def _real_dynamic_slice(operation: Operation, arguments: Arguments, index: int) -> Sizes:
    starts, limits, strides = (argument.elements or () for argument in arguments[1:])
    stated = operation.types[0].sizes
    if not len(starts) == len(limits) == len(strides) == len(stated):
        raise Refused(str(operation), "a start, limit and stride per axis", "other positions")
    sizes = []
    for size, start, limit, stride in zip(stated, starts, limits, strides, strict=True):
        if size is not None:
            sizes.append(size)
            continue
        if isinstance(start, Offset) and isinstance(limit, Offset) and start.base == limit.base:
            start, limit = start.offset, limit.offset
        if not (isinstance(start, int) and isinstance(limit, int) and isinstance(stride, int) and stride > 0):
            raise Refused(str(operation), "sizes that follow from the sizes of the arguments", "sizes of data")
        sizes.append(max(-((start - limit) // stride), 0))
    return tuple(sizes)


def _slice(operation: Operation, arguments: Arguments, index: int) -> Sizes:
    names = ("start_indices", "limit_indices", "strides")
    rows = zip(*(operation.attributes[name] for name in names), strict=True)
    return tuple(max(-((start - limit) // max(stride, 1)), 0) for start, limit, stride in rows)


def _pad(operation: Operation, arguments: Arguments, index: int) -> Sizes:
    names = ("edge_padding_low", "edge_padding_high", "interior_padding")
    return _padded(arguments[0].sizes, *(operation.attributes[name] for name in names))


def _dynamic_pad(operation: Operation, arguments: Arguments, index: int) -> Sizes:
    return _padded(arguments[0].sizes, *(_known(operation, argument) for argument in arguments[2:]))


def _padded(sizes: Sizes, low: Sizes, high: Sizes, interior: Sizes) -> Sizes:
    rows = zip(sizes, low, high, interior, strict=True)
    return tuple(size + a + b + max(size - 1, 0) * c for size, a, b, c in rows)


def _concatenate(operation: Operation, arguments: Arguments, index: int) -> Sizes:
    axis, sizes = operation.attributes["dimension"], list(arguments[0].sizes)
    sizes[axis] = sum(argument.sizes[axis] for argument in arguments)
    return tuple(sizes)


def _transpose(operation: Operation, arguments: Arguments, index: int) -> Sizes:
    return tuple(arguments[0].sizes[axis] for axis in operation.attributes["permutation"])


def _reduce(operation: Operation, arguments: Arguments, index: int) -> Sizes:
    dropped = operation.attributes["dimensions"]
    return tuple(size for axis, size in enumerate(arguments[0].sizes) if axis not in dropped)


def _windows(sizes: Sizes, window: Sizes, attributes: Mapping[str, Any], names: Sequence[str]) -> Sizes:
    """How many positions a window takes on every axis."""
    strides, base, dilation = (attributes.get(name) or (1,) * len(sizes) for name in names)
    padding = attributes.get("padding") or (0,) * (2 * len(sizes))
    result = []
    for axis, size in enumerate(sizes):
        spread = (size - 1) * base[axis] + 1 if size else 0
        wide = (window[axis] - 1) * dilation[axis] + 1 if window[axis] else 0
        room = spread + padding[2 * axis] + padding[2 * axis + 1] - wide
        result.append(room // max(strides[axis], 1) + 1 if room >= 0 else 0)
    return tuple(result)


def _reduce_window(operation: Operation, arguments: Arguments, index: int) -> Sizes:
    names = ("window_strides", "base_dilations", "window_dilations")
    window = operation.attributes["window_dimensions"]
    return _windows(arguments[0].sizes, window, operation.attributes, names)


def _convolution(operation: Operation, arguments: Arguments, index: int) -> Sizes:
    numbers, (image, kernel) = operation.attributes["dimension_numbers"], arguments
    spatial = _windows(
        tuple(image.sizes[axis] for axis in numbers["input_spatial_dimensions"]),
        tuple(kernel.sizes[axis] for axis in numbers["kernel_spatial_dimensions"]),
        operation.attributes,
        ("window_strides", "lhs_dilation", "rhs_dilation"),
    )
    sizes = dict(zip(numbers["output_spatial_dimensions"], spatial, strict=True))
    groups = max(operation.attributes["batch_group_count"], 1)
    sizes[numbers["output_batch_dimension"]] = image.sizes[numbers["input_batch_dimension"]] // groups
    sizes[numbers["output_feature_dimension"]] = kernel.sizes[numbers["kernel_output_feature_dimension"]]
    return tuple(sizes[axis] for axis in range(len(sizes)))


def _dot_general(operation: Operation, arguments: Arguments, index: int) -> Sizes:
    numbers = operation.attributes["dot_dimension_numbers"]
    batch = tuple(arguments[0].sizes[axis] for axis in numbers["lhs_batching_dimensions"])
    free: list[int] = []
    for side, argument in zip(("lhs", "rhs"), arguments, strict=True):
        used = {*numbers[f"{side}_batching_dimensions"], *numbers[f"{side}_contracting_dimensions"]}
        free += [size for axis, size in enumerate(argument.sizes) if axis not in used]
    return (*batch, *free)


def _gather(operation: Operation, arguments: Arguments, index: int) -> Sizes:
    numbers = operation.attributes["dimension_numbers"]
    whole = operation.attributes["slice_sizes"] if len(arguments) == 2 else _known(operation, arguments[2])
    dropped = {*numbers["collapsed_slice_dims"], *numbers["operand_batching_dims"]}
    offsets = iter([size for axis, size in enumerate(whole) if axis not in dropped])
    batch = iter([n for axis, n in enumerate(arguments[1].sizes) if axis != numbers["index_vector_dim"]])
    rank = len(operation.types[0].sizes)
    return tuple(next(offsets if axis in numbers["offset_dims"] else batch, 0) for axis in range(rank))


def _fft(operation: Operation, arguments: Arguments, index: int) -> Sizes:
    *leading, last = arguments[0].sizes
    length = operation.attributes["fft_length"][-1]
    kind = operation.attributes["fft_type"]
    return (*leading, length // 2 + 1 if kind == "RFFT" else length if kind == "IRFFT" else last)


def _own(operation: Operation, arguments: Arguments, index: int) -> Sizes:
    return arguments[index].sizes


_RULES: Mapping[str, Callable[[Operation, Arguments, int], Sizes]] = {
    **dict.fromkeys(ELEMENTWISE, _like(0)),
    "stablehlo.select": _like(1),
    "stablehlo.clamp": _like(1),
    "stablehlo.bitcast_convert": _bitcast,
    "stablehlo.concatenate": _concatenate,
    "stablehlo.convolution": _convolution,
    "stablehlo.dot_general": _dot_general,
    "stablehlo.dynamic_broadcast_in_dim": _stated_by(1),
    "stablehlo.dynamic_gather": _gather,
    "stablehlo.dynamic_iota": _stated_by(0),
    "stablehlo.dynamic_pad": _dynamic_pad,
    "stablehlo.dynamic_reshape": _stated_by(1),
    "stablehlo.dynamic_update_slice": _like(0),
    "stablehlo.fft": _fft,
    "stablehlo.gather": _gather,
    "stablehlo.optimization_barrier": _own,
    "stablehlo.pad": _pad,
    "stablehlo.real_dynamic_slice": _real_dynamic_slice,
    "stablehlo.reduce": _reduce,
    "stablehlo.reduce_window": _reduce_window,
    "stablehlo.reverse": _like(0),
    "stablehlo.scatter": _own,
    "stablehlo.select_and_scatter": _like(0),
    "stablehlo.slice": _slice,
    "stablehlo.sort": _own,
    "stablehlo.transpose": _transpose,
}
