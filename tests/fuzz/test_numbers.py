"""A short run of the numbers' fuzzer, and whether it finds what it is for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from tests.fuzz import numbers

EXAMPLES = 1000


def test_both_parsers_give_the_bits_of_exact_arithmetic(record_property: Callable[[str, object], None]) -> None:
    """A thousand numbers in each of twelve datatypes, read twice; floats are written shortest."""
    counts: Counter[str] = Counter()
    assert numbers.reading(EXAMPLES, 1, counts) == []
    assert numbers.writing(EXAMPLES, 1, counts) == []
    assert counts["numbers read by both parsers"] == EXAMPLES * len(numbers.NUMERIC) == 12_000
    assert 1000 < counts["of them refused by both"] < 11_000
    for name, count in counts.items():
        record_property(name, count)


def test_expected_values_are_what_is_known() -> None:
    """The fuzzer's own arithmetic: ties, ends, what is too large."""
    assert numbers.nearest(Fraction(2**24 + 1), 24, -149) == 2**24
    assert numbers.nearest(Fraction(2**24 + 3), 24, -149) == 2**24 + 4
    assert numbers.nearest(Fraction(1, 2**150), 24, -149) == 0
    for text, name, value in (("65519", "FP16", 65504), ("3e38", "BF16", 3.003e38), ("-0", "FP32", 0)):
        np.testing.assert_allclose(np.float64(numbers.expected(text, name)), value, rtol=1e-3)
    for text, name in (("65520", "FP16"), ("1e39", "FP32"), ("1.0", "INT8"), ("18446744073709551616", "UINT64")):
        assert numbers.expected(text, name) is None


def test_a_parser_that_loses_bits_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that reads integers by way of FP64 does."""
    right = numbers.read
    monkeypatch.setattr(numbers, "NUMERIC", ("INT64",))
    monkeypatch.setattr(numbers, "read", lambda text, name, *, exactly: _by_double(right(text, name, exactly=exactly)))
    assert numbers.reading(500, 1, Counter())


def _by_double(value: np.ndarray | None) -> np.ndarray | None:
    return None if value is None else value.astype(np.float64).clip(-(2.0**62), 2.0**62).astype(value.dtype)
