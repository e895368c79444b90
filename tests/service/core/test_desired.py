"""Changes of a model's desired state: shares of a split, rollbacks, pins, evictions."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core import desired
from service.core.errors import Conflict, InvalidRequest, NotFound
from service.core.types import ModelState

weights = st.dictionaries(st.integers(1, 2**63 - 1), st.floats(0.1, 1000), min_size=2, max_size=16)


@given(weights)
def test_shares_are_in_proportion_and_sum_to_one(given_weights: dict[int, float]):
    """Whatever the weights, the shares are theirs divided by their sum."""
    shares = desired.split(given_weights)
    assert isinstance(shares, dict)
    assert math.isclose(math.fsum(shares.values()), 1, rel_tol=1e-12)
    total = math.fsum(given_weights.values())
    assert shares == {version: given_weights[version] / total for version in sorted(given_weights)}
    assert desired.heaviest(shares) == min(shares, key=lambda v: (-shares[v], v))


def test_shares_that_sum_to_one_stay_as_they_are():
    """What a client sends as shares, it gets back to the last bit."""
    assert desired.split({4: 0.05, 3: 0.95}) == {3: 0.95, 4: 0.05}


BAD: list[tuple[dict[Any, Any], str]] = [
    ({}, "weights: expected 2 to 16 versions, got 0"),
    ({1: 1.0}, "expected 2 to 16 versions, got 1"),
    (dict.fromkeys(range(1, 18), 1.0), "got 17"),
    ({1: 0.0, 2: 1.0}, r"weights\.1: expected a number > 0"),
    ({1: -1.0, 2: 1.0}, "number > 0"),
    ({1: math.nan, 2: 1.0}, "number > 0"),
    ({1: math.inf, 2: 1.0}, "number > 0"),
    ({1: 10**400, 2: 1.0}, "at most 1e"),
    ({1: True, 2: 1.0}, "number > 0"),
    ({1: "1", 2: 1.0}, "number > 0"),
    ({0: 1.0, 2: 1.0}, "versions of 1 or more"),
    ({2**63: 1.0, 2: 1.0}, "versions of 1 or more"),
    ({1: 1e-12, 2: 1.0}, "at least 1e-06 of their sum"),
]


@pytest.mark.parametrize(("value", "message"), BAD)
def test_wrong_weights_are_refused_with_their_place(value: dict[Any, Any], message: str):
    """Each with what was expected and what came."""
    with pytest.raises(InvalidRequest, match=message) as caught:
        desired.split(value)
    assert caught.value.problems


def test_move_keeps_where_an_alias_was_and_a_rollback_swaps():
    """The same target again is no move; back and forth are one another's opposite."""
    first = desired.pointed(ModelState("m"), "prod", 1)
    assert (first.loaded, first.aliases, first.previous) == ({1}, {"prod": 1}, {})
    with pytest.raises(Conflict, match="nowhere else"):
        desired.before(first, "prod")
    second = desired.pointed(first, "prod", {1: 0.5, 2: 0.5})
    assert (second.aliases, second.previous) == ({"prod": {1: 0.5, 2: 0.5}}, {"prod": 1})
    assert desired.pointed(second, "prod", {1: 0.5, 2: 0.5}) == second
    back = desired.rolled_back(second, "prod", 1)
    assert (back.aliases, back.previous) == ({"prod": 1}, {"prod": {1: 0.5, 2: 0.5}})
    assert desired.rolled_back(back, "prod", {1: 0.5, 2: 0.5}) == second
    with pytest.raises(Conflict, match="somebody else"):
        desired.rolled_back(back, "prod", 1)
    with pytest.raises(NotFound, match="no alias 'x'; it has alias prod"):
        desired.before(back, "x")
    gone = desired.without_alias(back, "prod")
    assert (gone.aliases, gone.previous, gone.loaded) == ({}, {}, {1, 2})


def test_eviction_spares_what_is_held():
    """Targets of aliases, of their rollbacks and pinned versions stay; an eviction is told until the next load."""
    state = ModelState("m", loaded=frozenset({1, 2, 3, 4, 5}))
    state = desired.pointed(desired.pointed(state, "prod", 1), "prod", {2: 0.9, 3: 0.1})
    state = desired.wanted(state, 4, pin=True)
    assert desired.held(state) == {1, 2, 3, 4}
    for version in (1, 2, 3, 4):
        assert desired.evicted(state, version, "x") is state
    state = desired.evicted(state, 5, "for another")
    assert (state.loaded, state.evicted) == ({1, 2, 3, 4}, {5: "for another"})
    assert desired.evicted(state, 5, "again") is state
    assert desired.wanted(state, 5).evicted == {}
    assert desired.unwanted(state, 5).evicted == {}
    assert desired.wanted(state, 4, pin=False).pinned == frozenset()
    assert desired.unwanted(state, 4).pinned == frozenset()


def test_deleted_version_is_nowhere():
    """No rollback leads to it."""
    state = desired.pointed(desired.pointed(ModelState("m"), "prod", {1: 0.5, 2: 0.5}), "prod", 3)
    state = desired.evicted(desired.wanted(state, 4), 4, "x")
    assert desired.forgotten(state, 2).previous == {}
    assert desired.forgotten(state, 4).evicted == {}
