"""Which columns of a table go where: packed into features, kept alone, or turned from texts into numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from engine.columns.layout import listed
from engine.columns.limits import Limits
from engine.errors import DataError, TooLargeError

ALL = ("*",)


@dataclass(frozen=True, slots=True)
class TableOptions:
    """How the columns of a table become columns of the data set.

    Attributes:
        features: columns packed, in this order, into one float32 column of shape `[rows, k]`; `("*",)` packs all that
            `target` does not name. None are packed by default, and every column is one of its own.
        features_name: of the packed column.
        target: columns kept beside the packed one; all others by default.
        categories: columns of texts that become numbers (int32), the places of the texts in their sorted order; the
            data set keeps the texts as `labels`.
    """

    features: tuple[str, ...] = ()
    features_name: str = "features"
    target: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """Which columns of the table go where."""

    single: tuple[str, ...]
    features: tuple[str, ...]
    features_name: str
    categories: frozenset[str]

    @property
    def used(self) -> tuple[str, ...]:
        """All columns that are read."""
        return (*self.features, *self.single)


def check_names(names: Sequence[str], limits: Limits) -> None:
    """Raise `TooLargeError` for more columns than allowed, `DataError` for one name twice."""
    if len(names) > limits.max_columns:
        raise TooLargeError(f"data set: expected at most {limits.max_columns} columns, got {len(names)}")
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise DataError(f"header: expected different names, got {listed(doubled)} more than once")


def plan(names: Sequence[str], options: TableOptions) -> Plan:
    """The plan for a table with columns `names`; raises `DataError` for options that do not fit it."""
    for what in ("features", "target", "categories"):
        asked = getattr(options, what)
        unknown = [] if asked == ALL and what == "features" else [name for name in asked if name not in names]
        if unknown or len(set(asked)) != len(asked):
            raise DataError(f"{what}: expected different ones of {listed(names)}, got {listed(unknown or asked)}")
    features = options.features
    if features == ALL:
        features = tuple(name for name in names if name not in options.target)
    if both := [name for name in options.target if name in features]:
        raise DataError(f"target: expected columns that are not among the features, got {listed(both)}")
    single = options.target or tuple(name for name in names if name not in features)
    if foreign := [name for name in options.categories if name not in single]:
        raise DataError(f"categories: expected columns kept on their own, got {listed(foreign)}")
    return Plan(single, features, options.features_name, frozenset(options.categories))


class Categories:
    """The different texts of a column, collected piece by piece, then their numbers."""

    def __init__(self, name: str, limits: Limits) -> None:
        self._name = name
        self._most = limits.max_categories
        self._texts: set[str] = set()

    def add(self, column: Any, row: int) -> None:
        """Take in an Arrow array of texts that begins at `row`; raises `DataError` for a gap or too many texts."""
        if column.null_count:
            at = row + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0]) + 1
            raise DataError(f"column {self._name[:128]!r}, row {at}: expected a text, got none")
        self._texts.update(column.unique().to_pylist())
        if len(self._texts) > self._most:
            raise TooLargeError(f"column {self._name[:128]!r}: expected at most {self._most} different texts, got more")

    @cached_property
    def labels(self) -> list[str]:
        """The texts in order, once all are collected."""
        return sorted(self._texts)

    def numbers(self, column: Any) -> np.ndarray:
        """The numbers of texts, int32."""
        import pyarrow
        import pyarrow.compute

        found = pyarrow.compute.index_in(column, value_set=pyarrow.array(self.labels, column.type))
        if found.null_count:
            raise DataError(f"column {self._name[:128]!r}: expected the texts of the first reading, got another")
        numbers: np.ndarray = found.to_numpy().astype(np.int32)
        return numbers


def narrowed(values: np.ndarray, name: str, row: int) -> np.ndarray:
    """Floats as float32; raises `DataError` for a finite one beyond its range."""
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    beyond = np.argwhere(np.isinf(narrow) & ~np.isinf(values))
    if len(beyond):
        at = tuple(beyond[0])
        raise DataError(f"column {name[:128]!r}, row {row + at[0] + 1}: expected a number of FP32, got {values[at]}")
    return narrow


def packed(columns: Iterable[np.ndarray]) -> np.ndarray:
    """Columns `[rows]` side by side, `[rows, k]`."""
    return np.stack(list(columns), axis=1)
