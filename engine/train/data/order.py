"""Orders of rows: row numbers computed piece by piece, so that shuffling needs no memory that grows with the rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

LISTED_ROWS = 2**22
"""Up to here a permutation is a list (32 MiB, and the best mixing there is); beyond it is computed."""
_ROUNDS = 8
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
Stage = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Order:
    """Row numbers in an order. `stages` lead from a position to its row, the last one first."""

    count: int
    stages: tuple[Stage, ...] = ()

    def rows(self, start: int, stop: int) -> np.ndarray:
        """The rows at the positions from `start` up to `stop`, int64."""
        found = np.arange(start, max(start, min(stop, self.count)))
        for stage in reversed(self.stages):
            found = stage(found)
        return found

    def shuffled(self, seed: Sequence[int]) -> Order:
        """The same rows in an order drawn by `seed`."""
        return Order(self.count, (*self.stages, _permutation(self.count, seed)))

    def split(self, count: int, seed: Sequence[int]) -> tuple[Order, Order]:
        """`count` rows drawn by `seed`, and the others. Both keep the order of rows, up to `LISTED_ROWS` of them."""
        order = self.shuffled(seed)
        first, others = order._part(0, count), order._part(count, self.count)
        return (first._sorted(), others._sorted()) if self.count <= LISTED_ROWS else (first, others)

    def _part(self, start: int, stop: int) -> Order:
        return Order(stop - start, (*self.stages, lambda positions: positions + start))

    def _sorted(self) -> Order:
        return Order(self.count, (np.sort(self.rows(0, self.count)).__getitem__,))


def _permutation(count: int, seed: Sequence[int]) -> Stage:
    if count <= LISTED_ROWS:
        return np.random.default_rng(seed).permutation(count).__getitem__
    return Feistel(count, seed)


class Feistel:
    """A pseudo-random permutation of `range(count)` without a table.

    A position is two digits of base $\\lceil\\sqrt{count}\\rceil$; in every round a digit is shifted by a keyed hash of
    the other, which can be undone, so no two positions meet. Results beyond `count` go through the rounds again.
    Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains"; the hash is the finaliser of splitmix64
    (Steele, Lea, Flood 2014).
    """

    def __init__(self, count: int, seed: Sequence[int]) -> None:
        self._count = np.uint64(count)
        self._base = np.uint64(math.isqrt(max(count - 1, 0)) + 1)
        self._keys = np.random.SeedSequence(seed).generate_state(_ROUNDS, np.uint64)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """The rows at these positions, int64."""
        found = self._walk(positions.astype(np.uint64))
        beyond = np.flatnonzero(found >= self._count)
        while beyond.size:
            found[beyond] = self._walk(found[beyond])
            beyond = beyond[found[beyond] >= self._count]
        return found.astype(np.int64)

    def _walk(self, positions: np.ndarray) -> np.ndarray:
        high, low = np.divmod(positions, self._base)
        for key in self._keys:
            high, low = low, (high + _hash(low, key)) % self._base
        return high * self._base + low


def _hash(values: np.ndarray, key: np.uint64) -> np.ndarray:
    """32 well mixed bits of each value."""
    mixed = values ^ key
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX[0]
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX[1]
    return mixed >> np.uint64(32)
