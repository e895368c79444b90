"""Windows of a long text for language models."""

from __future__ import annotations

import numpy as np

from engine.errors import DataError
from engine.functional.options import as_integer


def windows(tokens: np.ndarray, length: int, *, stride: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """`(inputs, targets)`, both `[windows, length]`: pieces of a text, and the same moved on by one token.

    Both are views: a mapped column stays mapped, and rows overlap without being copied.

    Args:
        tokens: numbers `[tokens]`, such as the column `tokens` of a text.
        length: of a window.
        stride: from the start of one window to that of the next; `length` makes them meet without overlap.
    Raises:
        DataError: less than `length + 1` tokens, or not one row of whole numbers.
    Example:
        >>> x, y = windows(columns["tokens"], 128)
        >>> ArrayData({"tokens": x}, y, batch_size=64)
    """
    as_integer("windows", "length", length, at_least=1)
    as_integer("windows", "stride", stride, at_least=1)
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise DataError(f"windows: expected tokens [tokens] of whole numbers, got {tokens.dtype} {tokens.shape}")
    if len(tokens) <= length:
        raise DataError(f"windows: expected at least {length + 1} tokens, got {len(tokens)}")
    pieces = np.lib.stride_tricks.sliding_window_view(tokens, length + 1)[::stride]
    return pieces[:, :-1], pieces[:, 1:]
