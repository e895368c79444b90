"""Data sets as files: any known format, converted once to mapped columns.

columns = read("mnist.npz")
columns["x_train"]          # an array over the file, read where it is used
"""

from engine.columns.images import ImageOptions
from engine.columns.layout import Columns, ColumnSpec, open_columns
from engine.columns.limits import DEFAULT_LIMITS, Limits
from engine.columns.npy import ArrayOptions
from engine.columns.read import FORMATS, convert, read
from engine.columns.table import TableOptions
from engine.columns.text import TextOptions

__all__ = [
    "DEFAULT_LIMITS",
    "FORMATS",
    "ArrayOptions",
    "ColumnSpec",
    "Columns",
    "ImageOptions",
    "Limits",
    "TableOptions",
    "TextOptions",
    "convert",
    "open_columns",
    "read",
]
