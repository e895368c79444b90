"""Standardisation: features with mean 0 and standard deviation 1 on the training data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from engine.errors import DataError, OptionError
from engine.preprocess.kinds import Kind
from engine.shapes import OpenShape

MAX_FEATURES = 2**20
_LARGEST = float(np.finfo(np.float32).max)
SMALLEST_STD = 1e-30
"""Below it a feature counts as one that never varies; its inverse is a float32."""


@dataclass(frozen=True, slots=True)
class Standardize:
    r"""$(x - \mathrm{mean}) / \mathrm{std}$, in float32.

    `mean` and `std` have one number, or one per index of the last axis. A feature that never varies has `std` 1.

    Raises:
        OptionError: numbers that are not finite, a std below `SMALLEST_STD`, or different lengths.
    """

    name: ClassVar[str] = "standardize"
    takes: ClassVar[Kind] = "numbers"
    gives: ClassVar[Kind] = "numbers"
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for part in ("mean", "std"):
            object.__setattr__(self, part, _numbers(part, getattr(self, part)))
        if len(self.mean) != len(self.std):
            raise OptionError(f"standardize: expected as many means as stds, got {len(self.mean)} and {len(self.std)}")
        if min(self.std) < SMALLEST_STD:
            raise OptionError(f"standardize: expected stds of at least {SMALLEST_STD}, got {min(self.std)}")

    def factors(self) -> tuple[np.ndarray, np.ndarray]:
        """`(mean, 1 / std)` as float32 arrays, of shape `[]` or `[features]`; a standardised x is their affine map."""
        mean, factor = np.asarray(self.mean, np.float32), (1 / np.asarray(self.std)).astype(np.float32)
        return (mean.reshape(()), factor.reshape(())) if len(self.mean) == 1 else (mean, factor)

    def apply(self, values: Any) -> np.ndarray:
        """Standardise numbers of shape `[..., features]`; raises `DataError` when the last axis does not fit."""
        array = np.asarray(values)
        if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
            raise DataError(f"standardize: expected numbers, got {array.dtype}")
        if len(self.mean) > 1 and (array.ndim == 0 or array.shape[-1] != len(self.mean)):
            raise DataError(f"standardize: expected a last axis of {len(self.mean)}, got shape {array.shape}")
        mean, factor = self.factors()
        scaled: np.ndarray = (array.astype(np.float32) - mean) * factor
        return scaled

    def before(self, shape: OpenShape) -> OpenShape:
        """The shape that it brings to `shape`, the same; raises `OptionError` where it gives none such."""
        if len(self.mean) > 1 and (not shape or shape[-1] != len(self.mean)):
            raise OptionError(
                f"standardize: expected a model's input with a last axis of {len(self.mean)}, got {shape}"
            )
        return shape

    def invert(self, values: np.ndarray) -> np.ndarray:
        """Standardised numbers `[..., features]` in their units, in their own type; raises `DataError` as `apply`."""
        if len(self.mean) > 1 and (values.ndim == 0 or values.shape[-1] != len(self.mean)):
            raise DataError(f"standardize: expected a last axis of {len(self.mean)}, got shape {values.shape}")
        mean, std = (np.asarray(part if len(self.mean) > 1 else part[0]) for part in (self.mean, self.std))
        scaled: np.ndarray = (values.astype(np.float64) * std + mean).astype(values.dtype)
        return scaled

    def to_json(self) -> dict[str, Any]:
        """Its arguments as JSON."""
        return {"mean": list(self.mean), "std": list(self.std)}


def _numbers(part: str, values: Any) -> tuple[float, ...]:
    if isinstance(values, int | float):
        values = (values,)
    if not isinstance(values, Sequence | np.ndarray) or isinstance(values, str) or not 1 <= len(values) <= MAX_FEATURES:
        raise OptionError(f"standardize: expected {part} to be 1 to {MAX_FEATURES} numbers, got {values!r:.100}")
    for value in values:
        known = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if not known or not abs(value) <= _LARGEST:
            raise OptionError(f"standardize: expected {part} of finite float32 numbers, got {value!r:.100}")
    return tuple(float(value) for value in values)


class Moments:
    """Running mean and variance in float64, merged block by block, so that no digits cancel.

    Source: Chan, Golub, LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: np.ndarray = np.zeros(())
        self._squares: np.ndarray = np.zeros(())

    def add(self, values: np.ndarray) -> None:
        """Take in rows `[rows, features]`; raises `DataError` for values beyond float32 or other features."""
        if values.ndim != 2 or (self.count and values.shape[1:] != self._mean.shape):
            raise DataError(f"standardize: expected rows of {self._mean.size} features, got shape {values.shape}")
        if len(values) == 0:
            return
        rows = values.astype(np.float64)
        fits = (np.abs(rows) <= _LARGEST).all(axis=1)  # never so for NaN
        if not fits.all():
            row = int(np.flatnonzero(~fits)[0])
            got = f"{values[row]!s:.100} in row {self.count + row}"
            raise DataError(f"standardize: expected finite numbers of float32, got {got}")
        mean = rows.mean(axis=0)
        squares = np.square(rows - mean).sum(axis=0)
        total = self.count + len(rows)
        delta = mean - self._mean
        self._mean = self._mean + delta * (len(rows) / total)
        self._squares = self._squares + squares + np.square(delta) * (self.count * len(rows) / total)
        self.count = total

    @property
    def mean(self) -> np.ndarray:
        """The mean of each feature."""
        return self._mean

    @property
    def std(self) -> np.ndarray:
        """The standard deviation of each feature, of the rows as a population."""
        return np.sqrt(self._squares / max(self.count, 1))


def fit_standardize(chunks: Iterable[np.ndarray], *, per: str = "feature") -> Standardize:
    """The standardisation of an array that comes in chunks of rows, seen once.

    Args:
        chunks: arrays `[rows, ..., features]`, such as the inputs of `ArrayData.chunks()`: fit on the training part of
            a split, never on the whole.
        per: `feature`: statistics for each index of the last axis (a column of a table, a channel of an image);
            `all`: one mean and one standard deviation.
    Raises:
        DataError: no rows, or values that are not finite.
        OptionError: `per` is neither.
    """
    if per not in ("feature", "all"):
        raise OptionError(f"standardize: expected per to be 'feature' or 'all', got {per!r}")
    moments = Moments()
    for chunk in chunks:
        array = np.asarray(chunk)
        moments.add(array.reshape(-1, 1 if per == "all" or array.ndim < 2 else array.shape[-1]))
    if moments.count == 0:
        raise DataError("standardize: expected at least one row, got none")
    std = [value if value >= SMALLEST_STD else 1.0 for value in moments.std.tolist()]
    return Standardize(tuple(moments.mean.tolist()), tuple(std))
