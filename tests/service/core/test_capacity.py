"""Which versions go when another one needs room."""

from __future__ import annotations

import pytest

from service.core.capacity import Resident, loaded_bytes, to_evict
from service.core.errors import Conflict

RESIDENTS = [
    Resident("a", 1, 40, 5.0, False),
    Resident("a", 2, 30, 1.0, True),
    Resident("b", 1, 20, 3.0, False),
    Resident("b", 2, 0, 2.0, False),
]


@pytest.mark.parametrize(
    ("needed", "gone"), [(0, []), (10, []), (11, [("b", 1)]), (30, [("b", 1)]), (31, [("b", 1), ("a", 1)])]
)
def test_least_recently_used_go_first(needed: int, gone: list[tuple[str, int]]):
    """Only as many as it takes, none that is pinned, none that takes nothing."""
    assert [(each.name, each.version) for each in to_evict("it", needed, 100, RESIDENTS)] == gone


def test_what_does_not_fit_is_refused_with_what_stays():
    """The message has the need, the limit and what is pinned."""
    with pytest.raises(Conflict, match=r"it needs 71 bytes of the 100 .*; 30 are held by .*: model 'a' version 2"):
        to_evict("it", 71, 100, RESIDENTS)
    with pytest.raises(Conflict, match=r"it needs 101 bytes of the 100 in max_loaded_bytes$"):
        to_evict("it", 101, 100, [])


def test_size_is_that_of_the_parameters_on_every_device():
    """A manifest of an old server may not say it."""
    assert loaded_bytes({"parameter_bytes": 7}, 2) == 14
    assert loaded_bytes({}, 2) == 0
