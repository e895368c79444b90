"""Whatever a loop is given, as `Data`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from engine.train.data.arrays import ArrayData
from engine.train.data.grain_data import GrainData, is_grain
from engine.train.data.iterables import Batches
from engine.train.data.protocol import Batch, Data

DEFAULT_BATCH_SIZE = 32


def as_data(data: Any, *, batch_size: int = DEFAULT_BATCH_SIZE, seed: int = 0) -> Data:
    """What a loop iterates, out of whatever it is given.

    Args:
        data: one of

            * `Data`, such as `ArrayData`: itself;
            * a tuple `(x, y)`, each an array or arrays by name: rows, shuffled, in batches `(inputs, targets)`;
            * an array, or a dict of arrays: rows, shuffled, in batches of the same form, for steps of one's own;
            * a data set, loader or iterator of Grain's;
            * any other iterable of batches: a list, a generator, PyTorch's `DataLoader`.
        batch_size: rows per batch, where there are rows.
        seed: of the shuffling, where there are rows.
    Raises:
        DataError: none of these, or arrays that do not fit each other.
    """
    if isinstance(data, Data):
        return data
    if is_grain(data):
        return GrainData(data)
    if _is_rows(data):
        return ArrayData(data, batch_size=batch_size, seed=seed)
    if isinstance(data, tuple) and len(data) == 2 and all(map(_is_rows, data)):
        return ArrayData(data[0], data[1], batch_size=batch_size, seed=seed)
    batches: Iterable[Batch] = data
    return Batches(batches)


def _is_rows(value: Any) -> bool:
    if isinstance(value, Mapping):
        return len(value) > 0 and all(map(_is_rows, value.values()))
    return isinstance(value, np.ndarray | jax.Array) and value.ndim > 0
