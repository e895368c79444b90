"""What is known of small arrays of whole numbers: sizes and positions, worked out beside the shapes of a program.

An element is a number, or `Offset`: some unknown number plus a known one, so that `limit - start` of a slice and the
step of a counter are known where their values are not. `Below` is the condition of a counted loop.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from engine.bundle.hlo import SMALL, Operation, TensorType


@dataclass(frozen=True, slots=True)
class Offset:
    """An unknown number, told by `base`, plus `offset`."""

    base: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Below:
    """Whether `value` is less than `bound`."""

    value: Offset
    bound: int


Element = int | Offset | Below
Known = list[Element | None]
"""Elements, None for one of which nothing is known."""


@dataclass(frozen=True, slots=True)
class Value:
    """An array in a program: its sizes, its dtype, and its elements where they are few whole numbers."""

    sizes: tuple[int, ...]
    dtype: str
    elements: tuple[Element, ...] | None = None

    @property
    def count(self) -> int:
        """The number of elements."""
        return math.prod(self.sizes)


@dataclass(slots=True)
class Unknowns:
    """Gives every unknown number a name of its own."""

    names: Iterator[int] = field(default_factory=itertools.count)

    def value(self, sizes: tuple[int, ...], dtype: str) -> Value:
        """An array of which nothing is known but its sizes."""
        count = math.prod(sizes)
        if "i" not in dtype or count > SMALL:
            return Value(sizes, dtype)
        return Value(sizes, dtype, tuple(Offset(next(self.names)) for _ in range(count)))


def bounds(dtype: str) -> tuple[int, int]:
    """The least and the largest number of an integer dtype."""
    bits = int(dtype.lstrip("ui"))
    if dtype == "i1" or dtype.startswith("ui"):
        return 0, 2**bits - 1
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def evaluate(
    operation: Operation, arguments: Sequence[Value], sizes: tuple[int, ...], found: TensorType
) -> Known | None:
    """The elements of a result where they follow from those of the arguments; None in place of an unknown one."""
    if not found.is_integer or math.prod(sizes) > SMALL:
        return None
    if operation.name == "stablehlo.constant":
        value = operation.attributes["value"]
        return None if value is None else list(value) * (math.prod(sizes) // max(len(value), 1))
    if operation.name == "stablehlo.get_dimension_size":
        return [arguments[0].sizes[operation.attributes["dimension"]]]
    if any(argument.elements is None for argument in arguments[: _ARRAYS.get(operation.name)]):
        return None
    elements: list[Known] = [list(argument.elements or ()) for argument in arguments]
    if operation.name in _MOVES:
        return _MOVES[operation.name](operation, arguments, elements, sizes)
    if operation.name not in _NUMBERS:
        return None
    count = math.prod(sizes)
    spread = [each * count if len(each) == 1 else each for each in elements]
    if any(len(each) != count for each in spread):
        return None
    least, most = bounds(found.dtype)
    results: Known = []
    for row in zip(*spread, strict=True):
        result = _NUMBERS[operation.name](operation, arguments, row)
        results.append(result if not isinstance(result, int) or least <= result <= most else None)
    return results


def _same(
    operation: Operation, arguments: Sequence[Value], elements: list[Known], sizes: tuple[int, ...]
) -> Known | None:
    return list(elements[0]) if len(elements[0]) == math.prod(sizes) else None


def _broadcast(
    operation: Operation, arguments: Sequence[Value], elements: list[Known], sizes: tuple[int, ...]
) -> Known | None:
    if len(elements[0]) == 1:
        return list(elements[0]) * math.prod(sizes)
    return list(elements[0]) if arguments[0].sizes == sizes and len(sizes) == 1 else None


def _concatenate(
    operation: Operation, arguments: Sequence[Value], elements: list[Known], sizes: tuple[int, ...]
) -> Known | None:
    return [each for part in elements for each in part] if len(sizes) == 1 else None


def _slice(
    operation: Operation, arguments: Sequence[Value], elements: list[Known], sizes: tuple[int, ...]
) -> Known | None:
    if len(sizes) != 1:
        return None
    (start,), (limit,), (stride,) = (operation.attributes[n] for n in ("start_indices", "limit_indices", "strides"))
    return [*elements[0][start:limit:stride]]


_MOVES: Mapping[str, Callable[..., Known | None]] = {
    "stablehlo.reshape": _same,
    "stablehlo.dynamic_reshape": _same,
    "stablehlo.broadcast_in_dim": _broadcast,
    "stablehlo.dynamic_broadcast_in_dim": _broadcast,
    "stablehlo.concatenate": _concatenate,
    "stablehlo.slice": _slice,
}
_ARRAYS = {"stablehlo.dynamic_reshape": 1, "stablehlo.dynamic_broadcast_in_dim": 1}
"""How many leading arguments hold elements; the others are sizes."""

Row = tuple[Element | None, ...]
Rule = Callable[[Operation, Sequence[Value], Row], Element | None]


def _exact(function: Callable[..., int | None]) -> Rule:
    def rule(operation: Operation, arguments: Sequence[Value], row: Row) -> Element | None:
        return function(*row) if all(isinstance(each, int) for each in row) else None

    return rule


def _add(operation: Operation, arguments: Sequence[Value], row: Row) -> Element | None:
    a, b = row
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    if isinstance(a, int):
        a, b = b, a
    return Offset(a.base, a.offset + b) if isinstance(a, Offset) and isinstance(b, int) else None


def _subtract(operation: Operation, arguments: Sequence[Value], row: Row) -> Element | None:
    a, b = row
    if isinstance(b, int):
        return _add(operation, arguments, (a, -b))
    same = isinstance(a, Offset) and isinstance(b, Offset) and a.base == b.base
    return a.offset - b.offset if same and isinstance(a, Offset) and isinstance(b, Offset) else None


def _compare(operation: Operation, arguments: Sequence[Value], row: Row) -> Element | None:
    a, b = row
    direction = operation.attributes["comparison_direction"]
    signed = not arguments[0].dtype.startswith("u") and arguments[0].dtype != "i1"
    if operation.attributes.get("compare_type") not in (None, "SIGNED" if signed else "UNSIGNED"):
        return None
    if isinstance(a, int) and isinstance(b, int):
        return int(_COMPARISONS[direction](a, b))
    if direction == "GT":
        a, b, direction = b, a, "LT"
    return Below(a, b) if direction == "LT" and isinstance(a, Offset) and isinstance(b, int) else None


def _select(operation: Operation, arguments: Sequence[Value], row: Row) -> Element | None:
    chosen, yes, no = row
    if isinstance(chosen, int):
        return yes if chosen else no
    return yes if yes == no else None


def _convert(operation: Operation, arguments: Sequence[Value], row: Row) -> Element | None:
    (a,) = row
    return a if isinstance(a, int) or arguments[0].dtype == operation.types[0].dtype else None


def _quotient(a: int, b: int) -> int | None:
    return None if b == 0 else (abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1)


def _remainder(a: int, b: int) -> int | None:
    return None if b == 0 else int(math.fmod(a, b)) if max(abs(a), abs(b)) < 2**53 else None


_COMPARISONS: Mapping[str, Callable[[int, int], bool]] = {
    "EQ": operator.eq,
    "NE": operator.ne,
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
}
_NUMBERS: Mapping[str, Rule] = {
    "stablehlo.add": _add,
    "stablehlo.subtract": _subtract,
    "stablehlo.compare": _compare,
    "stablehlo.select": _select,
    "stablehlo.convert": _convert,
    "stablehlo.multiply": _exact(operator.mul),
    "stablehlo.divide": _exact(_quotient),
    "stablehlo.remainder": _exact(_remainder),
    "stablehlo.maximum": _exact(max),
    "stablehlo.minimum": _exact(min),
    "stablehlo.clamp": _exact(lambda low, a, high: min(max(low, a), high)),
    "stablehlo.negate": _exact(operator.neg),
    "stablehlo.abs": _exact(abs),
    "stablehlo.sign": _exact(lambda a: (a > 0) - (a < 0)),
    "stablehlo.and": _exact(operator.and_),
    "stablehlo.or": _exact(operator.or_),
    "stablehlo.xor": _exact(operator.xor),
}
