"""Clients' values in messages."""

from __future__ import annotations

import pytest

from service.core.errors import shown


class Counted(list):  # type: ignore[type-arg]
    """A list that counts how many of its values were looked at."""

    seen = 0

    def __iter__(self):
        for value in super().__iter__():
            self.seen += 1
            yield value


@pytest.mark.parametrize("value", [None, True, 3, -2.5, "it's", b"x", [], [1, "a", [None]], {"a": {"b": 1}, "c": []}])
def test_small_value_is_shown_as_it_is(value: object):
    """As Python writes it."""
    assert shown(value) == repr(value)


def test_large_value_is_cut():
    """The beginning and the type; a number that Python would not print by its length; no more is looked at."""
    long = Counted(range(10**6))
    assert shown(long) == repr(list(range(100)))[:60] + "... (Counted)"
    assert long.seen < 100
    assert shown("a" * 1000) == "'" + "a" * 59 + "... (str)"
    assert shown(10**5000) == "an integer of 16610 bits"
    deep: object = 1
    for _ in range(10_000):
        deep = [deep]
    assert shown(deep) == "[" * 60 + "... (list)"
