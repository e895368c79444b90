"""Checks of option values, shared by the ops: what was expected, and what came instead."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Literal

from engine.errors import OptionError

Channels = Literal["first", "last"]
Mode = Literal["train", "inference"]
Reduction = Literal["none", "mean", "sum"]
Padding = Literal["valid", "same"] | Sequence[tuple[int, int]]

CHANNELS: tuple[Channels, ...] = ("first", "last")
MODES: tuple[Mode, ...] = ("train", "inference")
REDUCTIONS: tuple[Reduction, ...] = ("none", "mean", "sum")


def require_choice(op: str, option: str, value: object, choices: Sequence[str]) -> None:
    """Raise `OptionError` unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise OptionError(f"{op}: expected {option} to be one of {', '.join(map(repr, choices))}, got {value!r}")


def require_number(
    op: str,
    option: str,
    value: float,
    *,
    at_least: float = -math.inf,
    at_most: float = math.inf,
    less_than: float = math.inf,
) -> None:
    """Raise `OptionError` unless `value` is a finite number within the bounds, an integer one of 32 bits."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value)
    if not (known and at_least <= value <= at_most and value < less_than):
        low = "" if at_least == -math.inf else f" of at least {at_least}"
        high = f" below {less_than}" if less_than < math.inf else f" up to {at_most}" if at_most < math.inf else ""
        raise OptionError(f"{op}: expected {option} to be a finite number{low}{high}, got {value!r}")


def _is_finite(value: float) -> bool:
    # JAX cannot take a larger Python integer beside an array.
    return -(2**31) <= value < 2**31 if isinstance(value, int) else math.isfinite(value)


def require_boolean(op: str, option: str, value: object) -> None:
    """Raise `OptionError` unless `value` is True or False."""
    if not isinstance(value, bool):
        raise OptionError(f"{op}: expected {option} to be true or false, got {value!r:.200}")


def as_integer(op: str, option: str, value: object, *, at_least: int) -> int:
    """`value` as an `int`; raise `OptionError` unless it is an integer of at least `at_least`."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or number < at_least:
        raise OptionError(f"{op}: expected {option} to be an integer of at least {at_least}, got {value!r}")
    return number


def as_sizes(op: str, option: str, value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    """One positive size per spatial axis; an integer is repeated `rank` times."""
    if isinstance(value, Sequence):
        if len(value) != rank:
            raise OptionError(f"{op}: expected {option} to be an integer or {rank} integers, got {value!r}")
        return tuple(as_integer(op, option, item, at_least=1) for item in value)
    return (as_integer(op, option, value, at_least=1),) * rank
