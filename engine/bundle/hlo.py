"""StableHLO modules as plain records, and which operations, attributes and types they may hold.

The one place that touches the MLIR bindings. A module becomes records only when all of it is in the allow-list: what
is not listed here is refused, so that an operation of a newer StableHLO is not let in by default.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from engine.bundle.flatbuffer import Malformed
from engine.bundle.limits import Limits

_NAMES = """
    abs add and atan2 cbrt ceil clamp compare complex convert cosine count_leading_zeros divide exponential
    exponential_minus_one floor imag is_finite log log_plus_one logistic maximum minimum multiply negate not or popcnt
    power real reduce_precision remainder round_nearest_afz round_nearest_even rsqrt select shift_left
    shift_right_arithmetic shift_right_logical sign sine sqrt subtract tan tanh xor
"""
ELEMENTWISE = frozenset(f"stablehlo.{name}" for name in _NAMES.split())
"""One number of the result comes from one of each operand."""
_ACCURATE = "cbrt cosine exponential exponential_minus_one log log_plus_one logistic rsqrt sine sqrt tan tanh"
OPERATIONS: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(ELEMENTWISE, frozenset()),
    **{f"stablehlo.{name}": frozenset({"result_accuracy"}) for name in _ACCURATE.split()},
    **{
        name: frozenset(attributes.split())
        for name, attributes in {
            "func.call": "callee",
            "func.return": "",
            "stablehlo.bitcast_convert": "",
            "stablehlo.broadcast_in_dim": "broadcast_dimensions",
            "stablehlo.case": "",
            "stablehlo.compare": "compare_type comparison_direction",
            "stablehlo.concatenate": "dimension",
            "stablehlo.constant": "value",
            "stablehlo.convolution": "batch_group_count dimension_numbers feature_group_count lhs_dilation padding "
            "precision_config rhs_dilation window_reversal window_strides",
            "stablehlo.custom_call": "api_version backend_config call_target_name error_message has_side_effect",
            "stablehlo.dot_general": "dot_dimension_numbers precision_config",
            "stablehlo.dynamic_broadcast_in_dim": "broadcast_dimensions known_expanding_dimensions "
            "known_nonexpanding_dimensions",
            "stablehlo.dynamic_gather": "dimension_numbers indices_are_sorted",
            "stablehlo.dynamic_iota": "iota_dimension",
            "stablehlo.dynamic_pad": "",
            "stablehlo.dynamic_reshape": "",
            "stablehlo.dynamic_slice": "slice_sizes",
            "stablehlo.dynamic_update_slice": "",
            "stablehlo.fft": "fft_length fft_type",
            "stablehlo.gather": "dimension_numbers indices_are_sorted slice_sizes",
            "stablehlo.get_dimension_size": "dimension",
            "stablehlo.if": "",
            "stablehlo.iota": "iota_dimension",
            "stablehlo.optimization_barrier": "",
            "stablehlo.pad": "edge_padding_high edge_padding_low interior_padding",
            "stablehlo.real_dynamic_slice": "",
            "stablehlo.reduce": "dimensions",
            "stablehlo.reduce_precision": "exponent_bits mantissa_bits",
            "stablehlo.reduce_window": "base_dilations padding window_dilations window_dimensions window_strides",
            "stablehlo.reshape": "",
            "stablehlo.return": "",
            "stablehlo.reverse": "dimensions",
            "stablehlo.scatter": "indices_are_sorted scatter_dimension_numbers unique_indices",
            "stablehlo.select_and_scatter": "padding window_dimensions window_strides",
            "stablehlo.slice": "limit_indices start_indices strides",
            "stablehlo.sort": "dimension is_stable",
            "stablehlo.transpose": "permutation",
            "stablehlo.while": "",
        }.items()
    },
}
"""Every operation a program may hold, with the attributes it may have."""
_BITS = {
    **dict.fromkeys(("i1", "i8", "ui8"), 8),
    **dict.fromkeys(("i16", "ui16", "f16", "bf16"), 16),
    **dict.fromkeys(("i32", "ui32", "f32"), 32),
    **dict.fromkeys(("i64", "ui64", "f64", "complex<f32>"), 64),
    "complex<f64>": 128,
}
_TYPE = re.compile(r"tensor<((?:(?:\d+|\?)x)*)([a-z0-9]+|complex<f(?:32|64)>)>")
_ENUM = re.compile(r"#stablehlo<\w+ (\w+)>")
_MODULE_ATTRIBUTES = {"jax.uses_shape_polymorphism", "mhlo.num_partitions", "mhlo.num_replicas", "sym_name"}
_FUNCTION_ATTRIBUTES = {"arg_attrs", "function_type", "res_attrs", "sym_name", "sym_visibility"}
_VALUE_ATTRIBUTES = {"jax.arg_info", "jax.global_constant", "jax.result_info"}
_ASSERTION = re.compile(r"(?:[^{}]|\{\d\d?\})*")
_MAGIC = re.compile(rb"ML\xefR\rStableHLO_v\d+\.\d+\.\d+\0")
_LARGEST = 2**31
_MAX_NAME = 1000
SMALL = 64
"""Constants of whole numbers up to this many are kept: sizes, positions, bounds of loops."""


class Refused(Exception):
    """An operation that no program may hold: its name, what was expected, what it is."""

    def __init__(self, operation: str, expected: str, got: str) -> None:
        super().__init__(operation, expected, got)
        self.operation, self.expected, self.got = operation, expected, got


@dataclass(frozen=True, slots=True)
class TensorType:
    """Sizes, None for those that are open in the program, and MLIR's name of the dtype."""

    sizes: tuple[int | None, ...]
    dtype: str

    @property
    def is_integer(self) -> bool:
        """Whether it holds whole numbers or booleans."""
        return "i" in self.dtype


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation; values are numbered throughout the module."""

    name: str
    operands: tuple[int, ...]
    results: tuple[int, ...]
    types: tuple[TensorType, ...]
    attributes: Mapping[str, Any]
    blocks: tuple[Block, ...] = ()

    def __str__(self) -> str:
        short = self.name.removeprefix("stablehlo.").removeprefix("func.")
        target = self.attributes.get("call_target_name", self.attributes.get("callee"))
        return short if target is None else f"{short} @{target}"


@dataclass(frozen=True, slots=True)
class Block:
    """Operations in order, with what they take; the last one returns."""

    arguments: tuple[int, ...]
    types: tuple[TensorType, ...]
    operations: tuple[Operation, ...]

    @property
    def returned(self) -> tuple[int, ...]:
        """The values the block gives."""
        return self.operations[-1].operands


@dataclass(slots=True)
class Module:
    """Functions by name, and what was refused in them, by function."""

    functions: dict[str, Block] = field(default_factory=dict)
    refused: list[tuple[str, Refused]] = field(default_factory=list)


def parse(data: bytes, limits: Limits) -> Module:
    """The module in a portable artifact, with everything in it that is refused; raises `Malformed` for other bytes."""
    # Deserialising an empty file gives a module that is none.
    if not _MAGIC.match(data):
        raise Malformed("a StableHLO portable artifact", f"{data[:24]!r}")
    from jax.extend.mlir import ir
    from jax.extend.mlir.dialects import chlo, sdy, stablehlo

    with ir.Context() as context:
        for dialect in (stablehlo, chlo, sdy):
            dialect.register_dialect(context)
        try:
            parsed = stablehlo.deserialize_portable_artifact(context, data)
            parsed.operation.verify()
        except Exception as error:
            version = data[9:30].split(b"\0")[0].decode(errors="replace")
            raise Malformed(f"a module in a StableHLO up to {_newest(stablehlo)}", f"{version}: {error}") from None
        try:
            return _Reader(limits).module(parsed.operation)
        except Exception as error:
            # The bindings raise anything: RuntimeError for a name that is no UTF-8, TypeError for an odd attribute.
            raise Malformed("a module that can be read", repr(error)) from None


def _newest(stablehlo: Any) -> str:
    return str(stablehlo.get_current_version())


@dataclass(slots=True)
class _Reader:
    """Turns the bindings' objects into records, under limits."""

    limits: Limits
    values: dict[Any, int] = field(default_factory=dict)
    count: int = 0
    constant_bytes: int = 0

    def module(self, operation: Any) -> Module:
        module = Module()
        try:
            for name in _names(operation):
                if name not in _MODULE_ATTRIBUTES:
                    raise Refused("module", f"attributes out of {', '.join(sorted(_MODULE_ATTRIBUTES))}", name)
                if name.startswith("mhlo.num_") and _plain(operation.attributes[name], name) != 1:
                    raise Refused("module", f"{name} 1", str(operation.attributes[name]))
            items = list(_single_block("module", operation).operations)
        except Refused as refused:
            module.refused.append(("", refused))
            return module
        for item in items:
            name = _symbol(item.operation)
            try:
                module.functions[name] = self.function(item.operation)
            except Refused as refused:
                module.refused.append((name, refused))
        return module

    def function(self, operation: Any) -> Block:
        if operation.name != "func.func":
            raise Refused(operation.name, "functions only in a module", operation.name)
        for name in _names(operation):
            if name not in _FUNCTION_ATTRIBUTES:
                raise Refused("func", f"attributes out of {', '.join(sorted(_FUNCTION_ATTRIBUTES))}", name)
            if name in ("arg_attrs", "res_attrs"):
                for found in _dictionary_names(operation.attributes[name]):
                    if found not in _VALUE_ATTRIBUTES:
                        raise Refused(
                            "func", f"argument attributes out of {', '.join(sorted(_VALUE_ATTRIBUTES))}", found
                        )
        return self.block(_single_block("func", operation), 0)

    def block(self, block: Any, depth: int) -> Block:
        if depth > self.limits.program_depth:
            raise Refused("region", f"at most {self.limits.program_depth} regions within each other", "more")
        types = tuple(self.type("block argument", argument.type) for argument in block.arguments)
        arguments = tuple(self.define(argument) for argument in block.arguments)
        operations = tuple(self.operation(each.operation, depth) for each in block.operations)
        if not operations or operations[-1].name not in ("func.return", "stablehlo.return"):
            raise Refused("block", "a return at its end", "none")
        return Block(arguments, types, operations)

    def operation(self, operation: Any, depth: int) -> Operation:
        name = operation.name
        self.count += 1
        if self.count > self.limits.program_operations:
            raise Refused(name, f"at most {self.limits.program_operations} operations", "more")
        allowed = OPERATIONS.get(name)
        if allowed is None:
            raise Refused(name, "an operation that programs may hold", name)
        attributes = {}
        for attribute in _names(operation):
            if attribute not in allowed:
                raise Refused(name, f"attributes out of {sorted(allowed)}", attribute)
            if name != "stablehlo.constant":
                attributes[attribute] = _plain(operation.attributes[attribute], name)
        if name == "stablehlo.custom_call":
            _check_assertion(operation, attributes)
        types = tuple(self.type(name, result.type) for result in operation.results)
        if name == "stablehlo.constant":
            attributes["value"] = self.constant(operation, types[0])
        operands = tuple(self.values[operand] for operand in operation.operands)
        blocks = tuple(self.block(_only_block(name, region), depth + 1) for region in operation.regions)
        results = tuple(self.define(result) for result in operation.results)
        return Operation(name, operands, results, types, attributes, blocks)

    def define(self, value: Any) -> int:
        self.values[value] = len(self.values)
        return len(self.values) - 1

    def type(self, name: str, found: Any) -> TensorType:
        result = _tensor_type(str(found)[:500])
        if result is None:
            raise Refused(name, "arrays of numbers without encoding", str(found)[:100])
        self.check_size(name, result.sizes, result.dtype)
        return result

    def check_size(self, name: str, sizes: tuple[int | None, ...], dtype: str) -> int:
        size = math.prod(size for size in sizes if size is not None) * _BITS[dtype] // 8
        if size > self.limits.program_array_bytes or any(n is not None and n >= _LARGEST for n in sizes):
            raise Refused(name, f"arrays of at most {self.limits.program_array_bytes} bytes", f"{list(sizes)} {dtype}")
        return size

    def constant(self, operation: Any, found: TensorType) -> tuple[int, ...] | None:
        """The value of a small constant of whole numbers."""
        size = self.check_size("constant", found.sizes, found.dtype)
        self.constant_bytes += size
        if self.constant_bytes > self.limits.program_constant_bytes:
            raise Refused("constant", f"at most {self.limits.program_constant_bytes} bytes of constants", "more")
        if not found.is_integer or math.prod(n or 0 for n in found.sizes) > SMALL:
            return None
        return tuple(int(value) for value in operation.attributes["value"])


def array_bytes(sizes: tuple[int, ...], dtype: str) -> int:
    """Bytes of an array."""
    return math.prod(sizes) * _BITS[dtype] // 8


@lru_cache(maxsize=4096)
def _tensor_type(text: str) -> TensorType | None:
    match = _TYPE.fullmatch(text)
    if match is None or match[2] not in _BITS or match[1].count("x") > 32:
        return None
    return TensorType(tuple(None if n == "?" else int(n) for n in match[1].split("x")[:-1]), match[2])


def _names(operation: Any) -> Iterator[str]:
    """Names of all attributes; iteration gives objects or names, by version of the bindings."""
    for attribute in operation.attributes:
        yield attribute if isinstance(attribute, str) else attribute.name


def _dictionary_names(attributes: Any) -> Iterator[str]:
    for each in attributes:
        for attribute in each:
            yield attribute if isinstance(attribute, str) else attribute.name


def _symbol(operation: Any) -> str:
    return str(operation.attributes["sym_name"].value)[:_MAX_NAME] if "sym_name" in operation.attributes else ""


def _single_block(name: str, operation: Any) -> Any:
    regions = list(operation.regions)
    if len(regions) != 1:
        raise Refused(name, "one region", f"{len(regions)}")
    return _only_block(name, regions[0])


def _only_block(name: str, region: Any) -> Any:
    blocks = list(region.blocks)
    if len(blocks) != 1:
        raise Refused(name, "a body of one block", f"{len(blocks)} blocks")
    return blocks[0]


def _check_assertion(operation: Any, attributes: Mapping[str, Any]) -> None:
    """Exactly what open sizes are checked with: a condition, numbers for a message, no result."""
    target = attributes.get("call_target_name")
    name = f"custom_call @{str(target)[:200]}"
    if target != "shape_assertion":
        raise Refused(name, "no custom_call but to @shape_assertion", name)
    types = [_tensor_type(str(operand.type)[:500]) for operand in operation.operands]
    scalars = all(t is not None and not t.sizes and t.dtype in ("i32", "i64") for t in types[1:])
    message = attributes.get("error_message", "")
    if (
        not types
        or types[0] != TensorType((), "i1")
        or not scalars
        or len(types) > 33
        or list(operation.results)
        or not isinstance(message, str)
        or attributes.get("has_side_effect") is not True
        or attributes.get("api_version") != 2
        or attributes.get("backend_config", "") != ""
    ):
        raise Refused(name, "a condition, scalar sizes and a message, without result", "another form")
    if not _ASSERTION.fullmatch(message) or any(int(n) >= len(types) - 1 for n in re.findall(r"\{(\d+)\}", message)):
        raise Refused(name, "a message that names the sizes it is given", repr(message)[:100])


def _plain(attribute: Any, where: str) -> Any:
    """An attribute as numbers, texts and tuples of them; dimension numbers as a mapping."""
    kind = type(attribute).__name__
    if kind in ("IntegerAttr", "BoolAttr", "StringAttr", "FlatSymbolRefAttr"):
        return _bounded(attribute.value, where)
    if kind in ("DenseI64ArrayAttr", "DenseBoolArrayAttr", "DenseIntElementsAttr"):
        if kind == "DenseIntElementsAttr" and math.prod(attribute.type.shape) > 4 * SMALL:
            raise Refused(where, f"attributes of at most {4 * SMALL} numbers", str(attribute.type))
        return tuple(_bounded(value, where) for value in attribute)
    text = str(attribute)[:_MAX_NAME]
    if (match := _ENUM.fullmatch(text)) is not None:
        return match[1]
    return _dimension_numbers(attribute, text)


def _bounded(value: Any, where: str) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _LARGEST:
        raise Refused(where, f"attributes of at most {_LARGEST}", f"{value}")
    return value


def _dimension_numbers(attribute: Any, text: str) -> Any:
    from jax.extend.mlir.dialects import stablehlo

    for prefix, kind, names in (
        ("dot", stablehlo.DotDimensionNumbers, _DOT),
        ("gather", stablehlo.GatherDimensionNumbers, _GATHER),
        ("conv", stablehlo.ConvDimensionNumbers, _CONV),
    ):
        if text.startswith(f"#stablehlo.{prefix}<"):
            numbers = kind(attribute)
            return {name: _tuple(getattr(numbers, name)) for name in names}
    return text


def _tuple(value: Any) -> Any:
    return value if isinstance(value, int) else tuple(value)


_DOT = (
    "lhs_batching_dimensions",
    "rhs_batching_dimensions",
    "lhs_contracting_dimensions",
    "rhs_contracting_dimensions",
)
_GATHER = ("offset_dims", "collapsed_slice_dims", "operand_batching_dims", "index_vector_dim")
_CONV = (
    "input_batch_dimension",
    "input_spatial_dimensions",
    "kernel_output_feature_dimension",
    "kernel_spatial_dimensions",
    "output_batch_dimension",
    "output_feature_dimension",
    "output_spatial_dimensions",
)
