"""How requests are shared by several versions of an alias, and when an alias moves."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.core.desired import split
from service.core.routing import ModelEntry, Slot, Split
from service.core.serving import ServedModel
from service.core.types import ModelState, Target, VersionState
from tests.service.core.served import HeldModel, serve, spec


@pytest.fixture(scope="module")
def models() -> Iterator[dict[int, ServedModel]]:
    """Sixteen served versions."""
    served = {version: serve(HeldModel(spec()), version=version) for version in range(1, 17)}
    yield served

    async def close() -> None:
        for each in served.values():
            await each.close()

    asyncio.run(close())


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.floats(0.001, 1), min_size=2, max_size=16),
    start=st.floats(0, 1, exclude_max=True),
    count=st.integers(1, 3000),
)
def test_shares_are_exact_to_a_few_requests(
    models: dict[int, ServedModel], weights: list[float], start: float, count: int
):
    """After n requests no version is off its share by more than the discrepancy of the golden ratio, O(log n).

    The bound: D_n <= 3 + log(n) / log(golden ratio) / 2 for an interval with two ends (Kuipers and Niederreiter, 2.3).
    """
    shares = split(dict(enumerate(weights, 1)))
    assert not isinstance(shares, int)
    split_ = Split(shares, {version: models[version] for version in shares}, start)
    seen = Counter(split_.pick().version for _ in range(count))
    bound = 3 + math.log(count) / math.log((1 + math.sqrt(5)) / 2) / 2
    for version, share in shares.items():
        assert abs(seen[version] - share * count) <= bound


def test_canary_of_a_twentieth_gets_its_share_at_once(models: dict[int, ServedModel]):
    """95 to 5 within one of a hundred requests, wherever the round starts."""
    for start in (0.0, 0.3, 0.7, 0.96):
        shared = Split({3: 0.95, 4: 0.05}, {3: models[3], 4: models[4]}, start)
        assert shared.heaviest is models[3]
        assert abs([shared.pick().version for _ in range(100)].count(4) - 5) <= 1


def entry(models: dict[int, ServedModel], ready: set[int], aliases: dict[str, Target]) -> ModelEntry:
    """A model of which these versions are ready."""
    found = ModelEntry(ModelState("m", loaded=frozenset(models), aliases=aliases))
    for version in ready:
        found.slots[version] = Slot(VersionState.READY, models[version])
        found.slots[version].settled.set()
    return found


def test_alias_moves_only_when_all_targets_are_ready(models: dict[int, ServedModel]):
    """Until then the old one is in effect, and kept although it is not wanted any more."""
    here = entry(models, {1, 2}, {"prod": 1})
    here.move_aliases()
    here.desired = ModelState("m", loaded=frozenset({2, 3}), aliases={"prod": {2: 0.5, 3: 0.5}})
    here.move_aliases()
    assert (here.aliases, here.lagging()) == ({"prod": 1}, {1})
    here.slots[3] = Slot(VersionState.FAILED)
    here.move_aliases()
    assert (here.aliases, here.lagging()) == ({"prod": 1}, {1})
    here.slots[3] = Slot(VersionState.READY, models[3])
    here.move_aliases()
    assert (here.aliases, here.lagging()) == ({"prod": {2: 0.5, 3: 0.5}}, frozenset())


def test_round_goes_on_when_routes_are_computed_anew(models: dict[int, ServedModel]):
    """Another version that comes and goes does not disturb the shares."""
    here = entry(models, {1, 2}, {"prod": {1: 0.9, 2: 0.1}})
    here.move_aliases()
    seen: Counter[int] = Counter()
    for _ in range(1000):
        here.route()
        route = here.routes[""]
        assert isinstance(route, Split)
        seen[route.pick().version] += 1
    assert abs(seen[2] - 100) <= 3


def test_versions_that_are_ready_answer_for_one_that_is_not(models: dict[int, ServedModel]):
    """As long as one of a split serves, no request fails."""
    here = entry(models, {4}, {"prod": {3: 0.95, 4: 0.05}})
    here.move_aliases()
    here.route()
    route = here.routes["prod"]
    assert isinstance(route, Split)
    assert {route.pick().version for _ in range(50)} == {route.heaviest.version} == {4}
    here.slots.clear()
    here.route()
    assert here.routes == {}
    assert "alias 'prod' (version 3)" in str(here.unresolved("prod"))
