"""Training data: batches per epoch, shuffled, from iterators that can be stopped and continued.

A loop takes anything that is `Data`, or what `as_data` makes data of. A batch is `(inputs, targets)`, or `(inputs,
targets, rows)` with a weight per row: 0 for padding. Files become mapped columns by `read`.
"""

from engine.columns import Columns, open_columns, read
from engine.train.data.arrays import ArrayData
from engine.train.data.grain_data import GrainData
from engine.train.data.iterables import Batches
from engine.train.data.prefetch import Prefetched
from engine.train.data.protocol import Batch, BatchIterator, Data
from engine.train.data.sources import as_data
from engine.train.data.text import windows

__all__ = [
    "ArrayData",
    "Batch",
    "BatchIterator",
    "Batches",
    "Columns",
    "Data",
    "GrainData",
    "Prefetched",
    "as_data",
    "open_columns",
    "read",
    "windows",
]
