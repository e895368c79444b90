"""Orders: permutations without tables, splits, epochs."""

from __future__ import annotations

import subprocess
import sys
from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.train.data import ArrayData, order
from engine.train.data.order import Feistel, Order


@pytest.fixture(params=["listed", "computed"])
def ways(request: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both kinds of permutation, whatever the number of rows."""
    monkeypatch.setattr(order, "LISTED_ROWS", 2**22 if request.param == "listed" else 0)
    return str(request.param)


@given(st.integers(1, 3000), st.lists(st.integers(0, 2**40), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_feistel_is_a_permutation(count: int, seed: list[int]) -> None:
    """Every row once, for every number of rows."""
    assert sorted(Feistel(count, seed)(np.arange(count))) == list(range(count))


def test_feistel_mixes() -> None:
    """Where rows go is uniform, whatever seed, neighbours and place (chi-square and correlation at five sigma)."""
    count, bins = 100_003, 50
    for seed in range(4):
        rows = Feistel(count, [seed])(np.arange(count))
        for part in (rows[: count // 7], rows[::97], rows[-5000:]):
            seen = np.bincount(part * bins // count, minlength=bins)
            chi = float(((seen - len(part) / bins) ** 2 / (len(part) / bins)).sum())
            assert abs(chi - bins) < 5 * (2 * bins) ** 0.5
        steps = np.diff(rows)
        assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 5 / count**0.5
        assert len(np.unique(steps)) > 0.6 * count  # 1 - 1/e of those of a random permutation, or more
        other = Feistel(count, [seed + 1])(np.arange(count))
        assert (rows == other).sum() < 10


def test_huge_orders_cost_nothing() -> None:
    """A trillion rows: only what is asked for is computed, in pieces that fit together."""
    whole = Order(10**12).shuffled([1, 2])
    rows = whole.rows(5 * 10**11, 5 * 10**11 + 1000)
    assert rows.min() >= 0
    assert rows.max() < 10**12
    assert len(set(rows.tolist())) == 1000
    np.testing.assert_array_equal(whole.rows(5 * 10**11 + 300, 5 * 10**11 + 400), rows[300:400])
    np.testing.assert_array_equal(whole.rows(10**12 - 5, 10**13), whole.rows(10**12 - 5, 10**12))


@given(count=st.integers(2, 400), fraction=st.floats(0.01, 0.99), seed=st.integers(0, 2**40), listed=st.booleans())
@settings(max_examples=60, deadline=None)
def test_splits_are_disjoint_and_of_exact_size(count: int, fraction: float, seed: int, listed: bool) -> None:
    """Together they have every row once, also after shuffling."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "LISTED_ROWS", 2**22 if listed else 0)
        held = min(max(round(count * fraction), 1), count - 1)
        first, others = Order(count).split(held, [seed])
        assert (first.count, others.count) == (held, count - held)
        rows = first.rows(0, count).tolist() + others.shuffled([seed, 3]).rows(0, count).tolist()
        assert sorted(rows) == list(range(count))
        again, _ = Order(count).split(held, [seed])
        np.testing.assert_array_equal(first.rows(0, count), again.rows(0, count))


def test_a_split_of_a_split_is_within_it(ways: str) -> None:
    """Training, validation and test parts."""
    data = ArrayData(np.arange(100), np.arange(100), batch_size=7)
    rest, test = data.split(0.2, seed=1)
    training, validation = rest.split(0.25, seed=2)
    parts = [[int(row) for _, labels in part.epoch(0) for row in labels] for part in (training, validation, test)]
    assert [len(part) for part in parts] == [60, 20, 20]
    assert sorted(chain(*parts)) == list(range(100))


@pytest.mark.parametrize("taken", [0, 1, 15, 16, 17, 20, 21])
def test_computed_epochs_go_on_from_any_position(monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    """As those from a list do."""
    monkeypatch.setattr(order, "LISTED_ROWS", 0)
    data = ArrayData(np.arange(83), np.arange(83), batch_size=4)
    whole = [labels.tolist() for _, labels in data.epoch(2)]
    assert sorted(chain(*whole)) == list(range(83))
    iterator = data.epoch(2)
    for _ in range(taken):
        next(iterator)
    state = iterator.get_state()
    assert state is not None
    other = data.epoch(2)
    other.set_state(state)
    assert [labels.tolist() for _, labels in other] == whole[taken:]


SCRIPT = """
import numpy as np
from engine.train.data import order
from engine.train.data.order import Order
out = []
for order.LISTED_ROWS in (2**22, 0):
    first, others = Order(50).split(10, [7])
    out += [first.rows(0, 50).tolist(), others.shuffled([3, 1]).rows(0, 50).tolist()]
print(out)
"""


def test_orders_are_the_same_in_every_process() -> None:
    """Nothing depends on the process, such as the hashes of strings."""
    expected: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        for listed in (2**22, 0):
            patch.setattr(order, "LISTED_ROWS", listed)
            first, others = Order(50).split(10, [7])
            expected += [first.rows(0, 50).tolist(), others.shuffled([3, 1]).rows(0, 50).tolist()]
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(expected)
