"""Whether the comparison of a sort is an order, which sorting in place relies on.

Standard sorting routines read beyond their array when `less(a, b)` is no strict weak order, so that a comparison
from a stranger must be proven to be one. Accepted is what JAX writes: `key(a) < key(b)` (or `>`) in a total order, and
its lexicographic combinations `key(a) < key(b) or (key(a) == key(b) and less(a, b))`, for any pure function `key`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.bundle.hlo import ELEMENTWISE, Block, Operation

_MORE = frozenset({"stablehlo.bitcast_convert", "stablehlo.constant"})


@dataclass(frozen=True, slots=True)
class _Key:
    """An expression, the same one with both sides exchanged, and which sides it uses."""

    expression: int
    exchanged: int
    sides: frozenset[int]


@dataclass(slots=True)
class _Expressions:
    """Expressions by their parts, numbered; equal ones have one number."""

    numbers: dict[tuple[object, ...], int] = field(default_factory=dict)

    def number(self, *parts: object) -> int:
        return self.numbers.setdefault(parts, len(self.numbers))


def is_order(block: Block) -> bool:
    """Whether the comparison in `block` is a strict weak order."""
    return _Comparator(block).is_less(block.returned[0])


class _Comparator:
    def __init__(self, block: Block) -> None:
        self._expressions = _Expressions()
        self._keys: dict[int, _Key] = {}
        self._made: dict[int, Operation] = {}
        for index, argument in enumerate(block.arguments):
            array, side = divmod(index, 2)
            here, there = (self._expressions.number("argument", array, s) for s in (side, 1 - side))
            self._keys[argument] = _Key(here, there, frozenset({side}))
        for operation in block.operations[:-1]:
            self._note(operation)

    def is_less(self, value: int, depth: int = 0) -> bool:
        """Whether a value is `less(a, b)` for some order."""
        made = self._made.get(value)
        if made is None or depth > 64:
            return False
        if self._pair(value, ("LT", "GT")) is not None:
            return True
        if made.name != "stablehlo.or":
            return False
        a, b = made.operands
        return self._is_lexicographic(a, b, depth) or self._is_lexicographic(b, a, depth)

    def _is_lexicographic(self, first: int, rest: int, depth: int) -> bool:
        pair, made = self._pair(first, ("LT", "GT")), self._made.get(rest)
        if pair is None or made is None or made.name != "stablehlo.and":
            return False
        return any(
            self._pair(equal, ("EQ",)) == pair and self.is_less(less, depth + 1)
            for equal, less in (made.operands, made.operands[::-1])
        )

    def _pair(self, value: int, directions: tuple[str, ...]) -> tuple[int, int] | None:
        """The keys of both sides where a value compares the same key of both, in a total order."""
        made = self._made.get(value)
        if made is None or made.name != "stablehlo.compare":
            return None
        if made.attributes.get("comparison_direction") not in directions:
            return None
        if made.attributes.get("compare_type") not in ("SIGNED", "UNSIGNED", "TOTALORDER"):
            return None
        left, right = (self._key(operand) for operand in made.operands)
        if left.exchanged != right.expression or len(left.sides) != 1 or left.sides == right.sides:
            return None
        return min(left.expression, right.expression), max(left.expression, right.expression)

    def _key(self, value: int) -> _Key:
        """A value from outside of the comparison is the same for both sides."""
        if value not in self._keys:
            number = self._expressions.number("outside", value)
            self._keys[value] = _Key(number, number, frozenset())
        return self._keys[value]

    def _note(self, operation: Operation) -> None:
        if len(operation.results) != 1 or operation.name not in ELEMENTWISE | _MORE:
            return
        self._made[operation.results[0]] = operation
        if operation.name == "stablehlo.constant":
            return
        parts = [self._key(operand) for operand in operation.operands]
        what = (operation.name, operation.types, tuple(sorted(operation.attributes.items())))
        self._keys[operation.results[0]] = _Key(
            self._expressions.number(*what, *(part.expression for part in parts)),
            self._expressions.number(*what, *(part.exchanged for part in parts)),
            frozenset().union(*(part.sides for part in parts)),
        )
