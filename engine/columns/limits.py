"""Limits of what is read from files, checked before anything is allocated for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds; the defaults suit files of one's own, a server sets its own.

    Attributes:
        max_bytes: of all values together, as they are stored.
        max_rows: of a data set.
        max_columns: of a file, those not used included.
        max_pixels: of one image, before it is decoded.
        max_categories: different texts of a column that becomes numbers.
    """

    max_bytes: int = 2**42
    max_rows: int = 2**40
    max_columns: int = 4096
    max_pixels: int = 2**26
    max_categories: int = 2**16


DEFAULT_LIMITS = Limits()
