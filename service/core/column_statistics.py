"""What the values of a column are like: counted in one pass, piece by piece, while they are digested."""

from __future__ import annotations

import numpy as np

from service.core.types import ColumnStatistics

MAX_CLASSES = 256
"""Columns of whole numbers with more different values than this have no counts per value."""


class Collector:
    """Count, extremes, mean and standard deviation of the finite values fed so far, and how often each class occurs.

    Pieces are combined by the update of Chan, Golub and LeVeque (1983), in FP64.
    """

    def __init__(self, *, classes: bool) -> None:
        """`classes`: whether to count every value, as for whole numbers of shape `[rows]`."""
        self._count = self._missing = 0
        self._min = self._max = self._mean = self._squares = 0.0
        self._classes: dict[int, int] | None = {} if classes else None

    def feed(self, values: np.ndarray) -> None:
        """Take in a piece of numbers or booleans of any shape."""
        flat = values.reshape(-1)
        if flat.dtype.kind == "f":
            finite = np.isfinite(flat)
            if not finite.all():
                self._missing += int(flat.size - np.count_nonzero(finite))
                flat = flat[finite]
        if not flat.size:
            return
        self._count_classes(flat)
        low, high = float(flat.min()), float(flat.max())
        self._min, self._max = (min(self._min, low), max(self._max, high)) if self._count else (low, high)
        # Halved twice, so that the sum of values near the end of FP64 stays finite.
        wide = flat.astype(np.float64)
        mean = float(np.mean(wide / 4) * 4) if max(-low, high) > 1e300 else float(np.mean(wide))
        with np.errstate(over="ignore"):
            squares = float(np.sum(np.square(wide - mean)))
            total = self._count + flat.size
            gap = mean - self._mean
            self._squares += squares + gap * gap * self._count * flat.size / total
        self._mean += gap * flat.size / total
        self._count = total

    def _count_classes(self, flat: np.ndarray) -> None:
        if self._classes is None:
            return
        found, counts = np.unique(flat, return_counts=True)
        if len(found) > MAX_CLASSES:
            self._classes = None
            return
        for value, count in zip(found.tolist(), counts.tolist(), strict=True):
            self._classes[int(value)] = self._classes.get(int(value), 0) + count
        if len(self._classes) > MAX_CLASSES:
            self._classes = None

    def result(self) -> ColumnStatistics:
        """The statistics of everything fed; without a finite value there are no extremes and no mean."""
        if not self._count:
            return ColumnStatistics(0, self._missing)
        variance = self._squares / self._count
        deviation = float(np.sqrt(variance)) if np.isfinite(variance) else None
        classes = None if self._classes is None else dict(sorted(self._classes.items()))
        mean = self._mean if np.isfinite(self._mean) else None
        return ColumnStatistics(self._count, self._missing, self._min, self._max, mean, deviation, classes)
