"""Domains of options: each says what it expects and turns a literal into its canonical form.

`parse` raises `ValueError` or `TypeError` for anything outside; the caller adds the op and the option's name.
Canonical forms are hashable (lists become tuples), so that nodes stay immutable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import EngineError
from engine.functional.initializers import from_spec
from engine.precision import DTYPES

MAX_SIZE = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Option:
    """The domain of an option: `expected` in words, `parse` to its canonical form."""

    expected: str
    parse: Callable[[Any], Any]


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError


def _integer(low: int, high: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        _require(isinstance(value, int) and not isinstance(value, bool) and low <= value <= high)
        return int(value)

    return parse


def integer(low: int = -MAX_SIZE, high: int = MAX_SIZE) -> Option:
    """An integer in `[low, high]`."""
    return Option(f"an integer in [{low}, {high}]", _integer(low, high))


positive = Option("a positive integer", _integer(1, MAX_SIZE))


def number(low: float = -math.inf, high: float = math.inf, *, open_high: bool = False) -> Option:
    """A finite number in `[low, high]`, or in `[low, high)`."""

    def parse(value: Any) -> float:
        _require(isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value))
        _require(low <= value and (value < high if open_high else value <= high))
        return float(value)

    words = "" if low == -math.inf and high == math.inf else f" in [{low}, {high}{')' if open_high else ']'}"
    return Option(f"a finite number{words}", parse)


def _boolean(value: Any) -> bool:
    _require(isinstance(value, bool))
    return bool(value)


boolean = Option("true or false", _boolean)


def choice(*allowed: str) -> Option:
    """One of some words."""

    def parse(value: Any) -> str:
        _require(isinstance(value, str) and value in allowed)
        return str(value)

    return Option(" or ".join(repr(a) for a in allowed), parse)


def _items(value: Any, least: int, most: int) -> Sequence[Any]:
    _require(isinstance(value, list | tuple) and least <= len(value) <= most)
    return list(value)


MAX_WINDOW = 2**16


def _window(value: Any) -> int | tuple[int, ...]:
    size = _integer(1, MAX_WINDOW)
    return tuple(size(v) for v in _items(value, 1, 8)) if isinstance(value, list | tuple) else size(value)


window = Option(f"an integer in [1, {MAX_WINDOW}], or one per spatial axis", _window)
optional_window = Option(
    f"null, an integer in [1, {MAX_WINDOW}], or one per spatial axis",
    lambda value: None if value is None else _window(value),
)


MAX_PARTS = 4096


def _parts(value: Any) -> int | tuple[int, ...]:
    if isinstance(value, list | tuple):
        return tuple(_integer(0, MAX_SIZE)(v) for v in _items(value, 1, MAX_PARTS))
    return _integer(1, MAX_PARTS)(value)


parts = Option(f"a number of equal parts, or the sizes of at most {MAX_PARTS} parts", _parts)


def _padding(value: Any) -> str | tuple[tuple[int, int], ...]:
    if isinstance(value, str):
        _require(value in ("valid", "same"))
        return value
    size = _integer(0, MAX_SIZE)
    pairs = [_items(pair, 2, 2) for pair in _items(value, 1, 8)]
    return tuple((size(low), size(high)) for low, high in pairs)


padding = Option("'valid', 'same', or a pair [low, high] of non-negative integers per spatial axis", _padding)


def _pairs(value: Any) -> tuple[tuple[int, int], ...]:
    size = _integer(-MAX_SIZE, MAX_SIZE)
    return tuple((size(low), size(high)) for low, high in (_items(pair, 2, 2) for pair in _items(value, 1, 8)))


pairs = Option("a pair [low, high] of integers per spatial axis", _pairs)


def _permutation(value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    axes = tuple(_integer(0, 15)(v) for v in _items(value, 1, 16))
    _require(sorted(axes) == list(range(len(axes))))
    return axes


permutation = Option("null, or every axis once", _permutation)


def _words(value: Any) -> tuple[str, ...]:
    items = _items(value, 0, 256)
    _require(all(isinstance(item, str) and len(item) <= 128 for item in items))
    return tuple(items)


words = Option("a list of names", _words)


def _open_shape(value: Any) -> tuple[int | None, ...] | None:
    size = _integer(0, MAX_SIZE)
    return None if value is None else tuple(None if v is None else size(v) for v in _items(value, 0, 16))


open_shape = Option("null, or a list of sizes where null is an open size", _open_shape)


def _target_shape(value: Any) -> tuple[int | str, ...]:
    size = _integer(0, MAX_SIZE)
    return tuple(v if isinstance(v, str) and v in ("batch", "auto") else size(v) for v in _items(value, 0, 16))


target_shape = Option("a list of sizes, 'batch' or 'auto'", _target_shape)


def _initializer(value: Any) -> Any:
    try:
        from_spec(value)
    except EngineError:
        raise
    except Exception:
        raise ValueError from None
    return value


initializer = Option("the name of an initializer, or an object with its name and options", _initializer)


def _dtype(value: Any) -> str:
    _require(isinstance(value, str) and value in DTYPES)
    return str(value)


dtype = Option(f"one of {', '.join(DTYPES)}", _dtype)
